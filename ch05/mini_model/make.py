"""Make the mini model again, or a better one: from raw books to this folder.

`python -m ch05.mini_model.make --raw BOOKS` prepares the data, pretrains, measures and
writes the files beside this one, model card included. Every step that is done is not
done again, and one that was interrupted goes on where it was. Other options are those
of `pretrain`, such as `--tokens 300M`.
"""

import json
import os
import platform
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import torch

from ch02.cli import InputError, Parser, exit_on_input_error, positive_int
from ch02.dataloader import get_tokenizer
from ch05.checkpoint import latest_checkpoint, load_model, load_position, save_weights
from ch05.decoding.sampler import Sampler, sample
from ch05.gpt_train import text_to_token_ids, token_ids_to_text
from ch05.gutenberg.compare import format_table
from ch05.gutenberg.recipe import parameter_count
from ch05.gutenberg.shards import read_manifest
from ch05.mini_model import NAME, WEIGHTS
from ch05.resumable import read_metrics

PROMPTS = (
    "It was a",
    "The old man",
    "She opened the door and",
    '"I do not believe',
    "In the morning the children",
    "He had never",
    "On the table there was",
    "Once upon a time",
    "The ship",
    "My dear friend,",
)
SAMPLER = Sampler(temperature=0.8, top_p=0.95)
SEED = 123
TEMPLATE = Path(__file__).with_name("card-template.md")


def step(module, *options, processes=1):
    """Run one command of the course; end with its exit code if it fails."""
    command = [sys.executable, "-m", module, *(str(option) for option in options)]
    if processes > 1:
        torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node"]
        command[2:2] = [*torchrun, str(processes), "-m"]
    if code := subprocess.run(command).returncode:
        raise SystemExit(code)


def export_weights(run_dir, path):
    """Write the weights of a run's newest checkpoint to one file, in bfloat16."""
    model, config = load_model(run_dir)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial")
        save_weights(partial, model, config, dtype=torch.bfloat16)
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


def describe(run_dir, data, comparison, folder):
    """Write what a reader wants to know beside the weights: config, log, plot, card."""
    model, config = load_model(folder / WEIGHTS.name)
    metrics = read_metrics(run_dir, before_step=sys.maxsize)
    lines = "".join(json.dumps(record) + "\n" for record in metrics)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", "utf-8")
    (folder / "training.jsonl").write_text(lines, "utf-8")
    plot(metrics, folder / "loss-plot.png")

    rows = json.loads(comparison.read_text("utf-8"))["rows"]
    for row in rows:
        if row["method"].startswith("GPT"):
            row["method"], bits_per_byte = NAME, row["bits_per_byte"]
    manifest = read_manifest(data)
    train, val = manifest["splits"]["train"], manifest["splits"]["val"]
    books = [book["split"] for book in manifest["books"]]
    position = load_position(latest_checkpoint(run_dir), {"loss_sum"})
    card = TEMPLATE.read_text("utf-8").format(
        name=NAME,
        parameters=parameter_count(config),
        megabytes=(folder / WEIGHTS.name).stat().st_size / 1e6,
        sha256=sha256((folder / WEIGHTS.name).read_bytes()).hexdigest(),
        train_books=books.count("train"),
        train_bytes=train["bytes"],
        train_tokens=train["tokens"],
        val_books=books.count("val"),
        val_bytes=val["bytes"],
        tokens_seen=position["tokens_seen"],
        passes=position["tokens_seen"] / train["tokens"],
        hardware=hardware(),
        hours=position["seconds"] / 3600,
        bits_per_byte=bits_per_byte,
        table=format_table(rows),
        sample_seed=SEED,
        temperature=SAMPLER.temperature,
        top_p=SAMPLER.top_p,
        samples=samples(model, config["context_length"]),
        **config,
        **position["settings"],
    )
    (folder / "README.md").write_text(card, "utf-8")


def plot(metrics, path):
    """Draw training loss and held-out bits per byte over the tokens seen."""
    import matplotlib.pyplot as plt

    plt.switch_backend("Agg")
    tokens = [record["tokens_seen"] / 1e6 for record in metrics]
    fig, ax1 = plt.subplots(figsize=(6, 3.5))
    ax1.plot(tokens, [record["train_loss"] for record in metrics], color="C0")
    ax1.set_xlabel("Tokens seen (millions)")
    ax1.set_ylabel("Training loss (nats per token)", color="C0")
    ax2 = ax1.twinx()
    bits = [record["val_bits_per_byte"] for record in metrics]
    ax2.plot(tokens, bits, color="C1", linestyle="-.")
    ax2.set_ylabel("Held-out books (bits per byte)", color="C1")
    fig.tight_layout()
    fig.savefig(path, dpi=100)
    plt.close(fig)


def samples(model, context_length):
    """One continuation of each prompt, as a numbered list in Markdown."""
    tokenizer, lines = get_tokenizer(), []
    generator = torch.Generator().manual_seed(SEED)
    for number, prompt in enumerate(PROMPTS, start=1):
        idx = text_to_token_ids(prompt, tokenizer)
        idx = sample(
            model, idx, 60, context_length, SAMPLER, tokenizer.eot_token, generator
        )
        written = token_ids_to_text(idx, tokenizer).removeprefix(prompt)
        # What Markdown would take for a mark of its own is written with a backslash
        written = "".join(f"\\{c}" if c in "\\*_`#[]<>|" else c for c in written)
        lines.append(f"{number}. **{prompt}**{' '.join(('x' + written).split())[1:]}")
    return "\n".join(lines)


def hardware():
    """What this machine computes on, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    features = getattr(torch.cpu, "get_capabilities", dict)()
    name = features.get("cpu_name") or platform.machine()
    return f"{os.cpu_count()} CPU cores ({name})"


def main(argv=None):
    """Command line: every step from raw books to the files of this folder."""
    parser = Parser(prog="make", description="Make the mini model from raw books.")
    add = parser.add_argument
    add("--raw", type=Path, help="books; needed as long as --data is not there")
    add("--data", type=Path, default="gutenberg_tokens", help="(default: %(default)s)")
    add("--run-dir", type=Path, default=f"runs/{NAME}", help="(default: %(default)s)")
    add("--folder", type=Path, default=WEIGHTS.parent, help="(default: this one)")
    add("--processes", type=positive_int, default=1,
        help="that pretrain together: one per GPU or per CPU core")  # fmt: skip
    args, pretrain_options = parser.parse_known_args(argv)
    with exit_on_input_error("make"):
        if args.raw:
            step("ch05.gutenberg.prepare_dataset", "--raw", args.raw,
                 "--out-dir", args.data)  # fmt: skip
        step("ch05.gutenberg.pretrain", "--data", args.data, "--out-dir", args.run_dir,
             "--resume", *pretrain_options, processes=args.processes)  # fmt: skip
        weights, comparison = args.folder / WEIGHTS.name, args.run_dir / "table.json"
        export_weights(args.run_dir, weights)
        step("ch05.gutenberg.compare", "--data", args.data, "--checkpoint", weights,
             "--out", comparison)  # fmt: skip
        describe(args.run_dir, args.data, comparison, args.folder)
    print(f"Written to {args.folder}: {WEIGHTS.name}, README.md and what they rest on")


if __name__ == "__main__":
    main()
