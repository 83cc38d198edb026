"""What matters when a GPT is finetuned to classify? One choice changed at a time.

Every experiment is chapter 6's run with one thing different, repeated under several
seeds; results go to results.json, one record each, and what is there is not run again.
Run it: `python -m ch06.additional_experiments.additional_experiments NAME` finetunes
the mini model as often as is missing, then prints the table of `summary`.
"""

import functools
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from tqdm import tqdm

from appendix_e.lora import replace_linear_with_lora
from ch02.cli import InputError, Parser, exit_on_input_error, positive_int
from ch02.dataloader import get_tokenizer
from ch05.device import ACCELERATORS, pick_device, reuse_freed_memory
from ch05.gpt_generate import MODELS, load_pretrained
from ch05.gutenberg.recipe import create_model
from ch06.classifier import message_lengths, train_only
from ch06.finetuning import BOOK, MINI, rise_and_fall
from ch06.gpt_class_finetune import (
    SpamDataset,
    calc_accuracy_loader,
    calc_loss_batch,
    create_balanced_dataset,
    random_split,
)
from ch06.spam_data import LABELS, load_messages

RESULTS = Path(__file__).with_name("results.json")
BATCH_SIZE = 8
READING = {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3, "seed": 123}


@dataclass(frozen=True)
class Experiment:
    """One way to finetune; the defaults are what the others are compared with."""

    trainable: str = MINI["trainable"]  # as in `train_only`, or more, see `build`
    read: str = "end"  # token: "end" of the message, "first", "last" position, "mean"
    learning_rate: float = MINI["learning_rate"]
    schedule: str = MINI["schedule"]
    pretrained: bool = True
    read_first: bool = False  # as a language model, all but those measured on
    causal: bool = True
    pad_to: int | None = None  # tokens (default: the longest message)
    batch_size: int = BATCH_SIZE  # at a time; a step has 8 messages in any case
    lora_rank: int = 8  # and alpha, so that corrections count alike
    lora_only: tuple | None = None  # as in `replace_linear_with_lora`
    num_messages: int | None = None  # to train on (default: all there are)
    epochs: int = 5


FEW = Experiment(num_messages=300, epochs=10)
LORA = Experiment("lora", learning_rate=2e-3)
EXPERIMENTS = {
    "reference": Experiment(),
    "the book's": Experiment(**BOOK, read="last"),
    "constant learning rate": Experiment(schedule="constant"),
    "last position": Experiment(read="last"),
    "first token": Experiment(read="first"),
    "mean over the message": Experiment(read="mean"),
    "head only": Experiment("head", learning_rate=5e-3),
    "last block": Experiment("last_block"),
    "last two blocks": Experiment("last_two_blocks"),
    **{f"LoRA, rank {r}": replace(LORA, lora_rank=r) for r in (1, 4, 16)},
    "LoRA, rank 4, queries and values": replace(
        LORA, lora_rank=4, lora_only=("W_query", "W_value")
    ),
    "no causal mask": Experiment(causal=False),
    "padded to 128, last position": Experiment(read="last", pad_to=128),
    "one message at a time": Experiment(batch_size=1),
    "random weights": Experiment(pretrained=False),
    "messages read first": Experiment(read_first=True),
    "300 messages": FEW,
    "300 messages, random weights": replace(FEW, pretrained=False),
    "300 messages, all read first": replace(FEW, read_first=True),
    "300 messages, random weights, all read first": replace(
        FEW, pretrained=False, read_first=True
    ),
}


class Classifier(nn.Module):
    """A GPT with a head, read as an experiment wants it: (B, T) -> (B, 1, 2)."""

    def __init__(self, gpt, read):
        super().__init__()
        self.gpt, self.read = gpt, read

    def forward(self, in_idx):
        lengths = message_lengths(in_idx)  # (B,)
        if self.read != "last":  # the last position: padding is part of the input
            in_idx = in_idx[:, : lengths.max()]  # (B, longest)
        logits = self.gpt(in_idx)  # (B, T, 2)
        if self.read == "last":
            return logits[:, -1:]
        if self.read == "first":
            return logits[:, :1]
        positions = torch.arange(logits.shape[1], device=in_idx.device)  # (T,)
        if self.read == "end":
            chosen = positions == lengths[:, None] - 1  # (B, T)
        else:
            chosen = positions < lengths[:, None]  # (B, T)
        weights = chosen / chosen.sum(dim=1, keepdim=True)  # (B, T)
        return weights[:, None] @ logits  # (B, 1, 2)


def build(experiment, model_name, texts, device):
    """A Classifier to train, and its parameters that are trained.

    texts: a tuple, what is read first if the experiment wants that.
    """
    gpt, config = load_pretrained(model_name)
    if experiment.read_first:
        weights = weights_after_reading(
            model_name, experiment.pretrained, texts, device
        )
        gpt.load_state_dict(weights)
    elif not experiment.pretrained:
        gpt = create_model(config)
    gpt.out_head = nn.Linear(config["emb_dim"], len(LABELS))
    if not experiment.causal:
        for block in gpt.trf_blocks:
            block.att.mask.zero_()
    if experiment.trainable == "lora":
        head = gpt.requires_grad_(False).out_head
        rank = experiment.lora_rank
        replace_linear_with_lora(gpt, rank, rank, experiment.lora_only)
        gpt.out_head = head.requires_grad_(True)  # new, so it is trained as it is
        trained = [p for p in gpt.parameters() if p.requires_grad]
    elif experiment.trainable == "last_two_blocks":
        train_only(gpt, "last_block")
        gpt.trf_blocks[-2].requires_grad_(True)
        trained = [p for p in gpt.parameters() if p.requires_grad]
    else:
        trained = train_only(gpt, experiment.trainable)
    return Classifier(gpt, experiment.read).to(device), trained


@functools.cache
def weights_after_reading(model_name, pretrained, texts, device):
    """A GPT's weights after training it to continue texts, as chapter 5 does.

    Howard and Ruder (2018) call it target task finetuning of the language model. It is
    done once, from one seed, and shared by the runs that differ in theirs.
    """
    torch.manual_seed(READING["seed"])
    gpt, config = load_pretrained(model_name)
    if not pretrained:
        gpt = create_model(config)
    gpt.to(device).requires_grad_(True).train()
    tokenizer = get_tokenizer()
    end, longest = tokenizer.eot_token, config["context_length"] - 1
    ids = [tokenizer.encode(text, disallowed_special=())[:longest] for text in texts]
    # Texts of about one length share a batch, so that little of it is padding
    rows = sorted((torch.tensor([end, *row, end]) for row in ids), key=len)
    size, epochs = READING["batch_size"], READING["epochs"]
    batches = [rows[i : i + size] for i in range(0, len(rows), size)]
    optimizer = torch.optim.AdamW(
        gpt.parameters(), READING["learning_rate"], weight_decay=0.1
    )
    rise_and_fall(optimizer, len(batches) * epochs)
    order = torch.cat([torch.randperm(len(batches)) for _ in range(epochs)])
    for i in tqdm(order.tolist(), desc="reading", leave=False, disable=None):
        inputs = pad_sequence([row[:-1] for row in batches[i]], True, end)
        targets = pad_sequence([row[1:] for row in batches[i]], True, -100)
        logits = gpt(inputs.to(device)).flatten(0, 1)  # (B*T, V)
        nn.functional.cross_entropy(logits, targets.flatten().to(device)).backward()
        nn.utils.clip_grad_norm_(gpt.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return gpt.state_dict()


def split(messages):
    """The chapter's three sets: balanced, labels as numbers."""
    balanced = create_balanced_dataset(messages)
    balanced["Label"] = balanced["Label"].map(LABELS.index)
    return random_split(balanced, 0.7, 0.1)


def load_loaders(experiment, parts, folder):
    """Three loaders of three sets; only the padding and the batches differ."""
    datasets, max_length = [], experiment.pad_to
    train, *others = parts
    parts = [train[: experiment.num_messages], *others]
    for name, part in zip(("train", "validation", "test"), parts, strict=True):
        path = Path(folder) / f"{name}.csv"
        part.to_csv(path, index=False)
        datasets.append(SpamDataset(path, get_tokenizer(), max_length))
        max_length = datasets[0].max_length
    return [
        DataLoader(dataset, experiment.batch_size, shuffle=is_train, drop_last=is_train)
        for dataset, is_train in zip(datasets, (True, False, False), strict=True)
    ]


def run(experiment, seed, messages, model_name, device):
    """Finetune once; returns a record with accuracies and seconds."""
    parts = split(messages)
    held_out = set(pd.concat(parts[1:])["Text"])
    texts = tuple(text for text in messages["Text"] if text not in held_out)
    torch.manual_seed(seed)
    classifier, trained = build(experiment, model_name, texts, device)
    with tempfile.TemporaryDirectory() as folder:
        loaders = load_loaders(experiment, parts, folder)
    optimizer = torch.optim.AdamW(trained, experiment.learning_rate, weight_decay=0.1)
    if experiment.schedule != "constant":
        steps = len(loaders[0].dataset) // BATCH_SIZE * experiment.epochs
        rise_and_fall(optimizer, steps)
    started = time.perf_counter()
    turns = BATCH_SIZE // experiment.batch_size  # of a step
    torch.manual_seed(seed)
    for _ in range(experiment.epochs):
        classifier.train()
        optimizer.zero_grad()  # of messages that were too few for a step
        for i, (inputs, targets) in enumerate(loaders[0], start=1):
            (calc_loss_batch(inputs, targets, classifier, device) / turns).backward()
            if i % turns == 0:
                optimizer.step()
                optimizer.zero_grad()
    seconds = time.perf_counter() - started
    names = ("train", "validation", "test")
    return {
        **{
            name: calc_accuracy_loader(loader, classifier, device)
            for name, loader in zip(names, loaders, strict=True)
        },
        "trained": sum(p.numel() for p in trained),
        "seconds": round(seconds, 1),
    }


def read_results(path):
    """The records of a results file, a list; empty if there is none."""
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the results in {path}: {error}") from None


def write_results(path, records):
    """Replace a results file, in one go."""
    partial = Path(f"{path}.partial")
    lines = ",\n".join(json.dumps(record) for record in records)
    try:
        partial.write_text(f"[\n{lines}\n]\n", "utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


def summary(records):
    """The table of the results, Markdown: mean ± standard deviation over the seeds."""
    lines = [
        "| experiment | trained | training | validation | test | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(record["experiment"] for record in records):
        runs = [record for record in records if record["experiment"] == name]
        cells = []
        for part in ("train", "validation", "test"):
            values = [100 * record[part] for record in runs]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.1f} ± {spread:.1f} %")
        seconds = statistics.mean(record["seconds"] for record in runs)
        cells = [name, f"{runs[0]['trained']:,}", *cells, f"{seconds:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def cli(argv=None):
    """Command line: run what is missing, then print the table."""
    parser = Parser(prog="additional_experiments", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME",
        help=f"(default: all) {', '.join(EXPERIMENTS)}")  # fmt: skip
    add("--model", choices=MODELS, default="gpt2-mini", help="(default: gpt2-mini)")
    add("--data", default="bundled", help="bundled, uci or a file (default: bundled)")
    add("--seeds", type=positive_int, default=3, help="runs of each (default: 3)")
    add("--device", default="auto", help=f"auto, cpu, {', '.join(ACCELERATORS)}")
    add("--out", type=Path, default=RESULTS, help="(default: results.json beside this)")
    args = parser.parse_args(argv)
    for name in args.names:
        if name not in EXPERIMENTS:
            parser.error(f"no experiment is called {name!r}")
    with exit_on_input_error("additional_experiments"):
        records = read_results(args.out)
        messages = load_messages(args.data)
        device = pick_device(args.device)
        reuse_freed_memory()
        wanted = [
            {"experiment": name, "model": args.model, "data": args.data, "seed": seed}
            for name in args.names or EXPERIMENTS
            for seed in range(1, args.seeds + 1)
        ]
        done = [{key: record[key] for key in wanted[0]} for record in records]
        missing = [key for key in wanted if key not in done]
        for key in tqdm(missing, unit="run", disable=None):
            experiment = EXPERIMENTS[key["experiment"]]
            result = run(experiment, key["seed"], messages, args.model, device)
            records.append({**key, **asdict(experiment), **result})
            write_results(args.out, records)
        print(summary([r for r in records if {k: r[k] for k in wanted[0]} in wanted]))


if __name__ == "__main__":
    cli(sys.argv[1:])
