"""One finetuning run of chapter 6, from the messages to the measured classifier.

`ClassifierTraining` is the loop of `train_classifier_simple` made safe to interrupt;
`finetune` is what the command line of `gpt_class_finetune.py` does.
"""

import sys
from hashlib import sha256
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from ch02.cli import InputError
from ch02.dataloader import get_tokenizer
from ch04.gpt import GPTModel
from ch05.device import pick_device, reuse_freed_memory
from ch05.gpt_generate import load_pretrained_or_mini
from ch05.resumable import ResumableTraining, append_metrics, open_run
from ch06.classifier import as_classifier, classifier_config, train_only
from ch06.gpt_class_finetune import (
    SpamDataset,
    calc_accuracy_loader,
    calc_loss_batch,
    create_balanced_dataset,
    evaluate_model,
    plot_values,
    random_split,
)
from ch06.spam_data import LABELS, load_messages

# The book's test mode: fresh weights, too small to learn anything
TEST_CONFIG = {
    "vocab_size": 50257,
    "context_length": 120,
    "emb_dim": 12,
    "n_heads": 2,
    "n_layers": 1,
    "drop_rate": 0.0,
    "qkv_bias": False,
}
# What is trained, how fast, and how that changes: the book's choice for OpenAI's
# models, ours for the mini (additional_experiments/ has what else was tried)
BOOK = {"trainable": "last_block", "learning_rate": 5e-5, "schedule": "constant"}
MINI = {"trainable": "all", "learning_rate": 5e-4, "schedule": "rise-and-fall"}
EVAL_ITER = 5  # batches of an evaluation


def create_loaders(df, tokenizer, batch_size, context_length, folder):
    """Balance, split, write train.csv, validation.csv, test.csv; return three loaders.

    Messages are padded to the longest of the training set, and cut where they are
    longer than that or than the context. Raises InputError if a set would be empty.
    """
    balanced = create_balanced_dataset(df)
    balanced["Label"] = balanced["Label"].map(LABELS.index)
    splits = random_split(balanced, 0.7, 0.1)
    if any(split.empty for split in splits) or len(splits[0]) < batch_size:
        raise InputError(
            f"{len(balanced)} balanced messages are too few: {len(splits[0])} to train "
            f"on, {len(splits[1])} to validate; a batch needs {batch_size}"
        )
    datasets, max_length = [], None
    for name, split in zip(("train", "validation", "test"), splits, strict=True):
        path = Path(folder) / f"{name}.csv"
        try:
            split.to_csv(path, index=False)
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from None
        datasets.append(SpamDataset(path, tokenizer, max_length))
        if max_length is None and datasets[0].max_length > context_length:
            longer = sum(
                len(tokenizer.encode(text, disallowed_special=())) > context_length
                for text in df["Text"]
            )
            print(f"Note    {longer} messages are cut to {context_length} tokens")
            datasets = [SpamDataset(path, tokenizer, context_length)]
        max_length = datasets[0].max_length
    return [
        DataLoader(dataset, batch_size, shuffle=is_train, drop_last=is_train)
        for dataset, is_train in zip(datasets, (True, False, False), strict=True)
    ]


def rise_and_fall(optimizer, num_steps):
    """Let the learning rate rise over a tenth of the steps, then fall to 0.

    Both in straight lines; appendix D has more about it. Returns the scheduler, which
    the optimizer moves at the end of each of its steps.
    """

    def factor(step):
        return min((step + 1) / (0.1 * num_steps), (1 - step / num_steps) / 0.9, 1)

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    optimizer.register_step_post_hook(lambda *_: scheduler.step())
    return scheduler


class ClassifierTraining(ResumableTraining):
    """As `ResumableTraining`, with the loss of an answer and accuracies per epoch."""

    def calc_loss(self, input_batch, target_batch):
        return calc_loss_batch(input_batch, target_batch, self.model, self.device)

    def evaluate(self):
        return evaluate_model(
            self.model, self.train_loader, self.val_loader, self.device, EVAL_ITER
        )

    def end_epoch(self):
        accuracies = [
            calc_accuracy_loader(loader, self.model, self.device, EVAL_ITER)
            for loader in (self.train_loader, self.val_loader)
        ]
        record = {
            "step": self.position["step"] - 1,
            "epoch": self.position["epoch"],
            "train_accuracy": accuracies[0],
            "val_accuracy": accuracies[1],
        }
        self.metrics.append(record)
        append_metrics(self.run_dir, record)
        with tqdm.external_write_mode(file=sys.stdout):
            print(
                f"Training accuracy: {accuracies[0]:.2%} | "
                f"Validation accuracy: {accuracies[1]:.2%}"
            )


def finetune(args):
    """Do what the parsed command line asks for; see `parse_args`."""
    device = pick_device(args.device)
    reuse_freed_memory()
    torch.manual_seed(args.seed)
    messages, tokenizer = load_messages(args.data), get_tokenizer()
    if args.test_mode:
        name, gpt, config = "test-mode", GPTModel(TEST_CONFIG), TEST_CONFIG
    else:
        name, gpt, config = load_pretrained_or_mini(args.model)
    defaults = MINI if name == "gpt2-mini" else BOOK
    out_dir = args.out_dir or Path("runs") / f"spam-{name}"
    schedule = args.schedule or defaults["schedule"]
    constant = schedule == "constant"
    settings = {
        "model": name,
        "config": config,
        "messages": sha256(messages.to_csv().encode()).hexdigest(),
        "trainable": args.trainable or defaults["trainable"],
        "learning_rate": args.lr or defaults["learning_rate"],
        "schedule": schedule + ("" if constant else f" over {args.epochs} epochs"),
        "batch_size": args.batch_size,
        "eval_freq": args.eval_freq,
        "seed": args.seed,
        "dtype": "fp32",
    }
    checkpoint = open_run(out_dir, settings, args.epochs, args.resume)

    torch.manual_seed(args.seed)
    loaders = create_loaders(
        messages, tokenizer, args.batch_size, config["context_length"], out_dir
    )
    torch.manual_seed(args.seed)
    model = as_classifier(gpt, config).to(device)
    trained = train_only(model, settings["trainable"])
    torch.manual_seed(args.seed)
    # Of the frozen parameters AdamW would have no averages to save
    optimizer = torch.optim.AdamW(
        trained, lr=settings["learning_rate"], weight_decay=0.1
    )
    if not constant:
        scheduler = rise_and_fall(optimizer, args.epochs * len(loaders[0]))
    sizes = [len(loader.dataset) for loader in loaders]
    print(f"Model   {name}, {sum(p.numel() for p in trained):,} of "
          f"{sum(p.numel() for p in model.parameters()):,} parameters are trained, "
          f"{device}")  # fmt: skip
    print(
        f"Data    {sizes[0]} messages to train on, {sizes[1]} to validate, {sizes[2]} "
        "to test"
    )
    print(
        f"Run     {args.epochs} epochs of {len(loaders[0])} steps, each "
        f"{args.batch_size} messages of up to {loaders[0].dataset.max_length} tokens "
        f"-> {out_dir}\n"
    )
    training = ClassifierTraining(
        model,
        classifier_config(config),
        loaders[0],
        loaders[1],
        optimizer,
        device,
        out_dir,
        settings,
        args.epochs,
        args.save_every,
    )
    if checkpoint:
        training.restore(checkpoint)
        if not constant:
            scheduler.last_epoch = training.position["step"]
        print(f"Going on after step {training.position['step']}.")
    stopped_by = training.train()
    save_plots(training.metrics, len(loaders[0]), args.batch_size, out_dir)
    if stopped_by:
        print(f"\nStopped and saved in {out_dir}; --resume continues this run.")
        raise SystemExit(128 + stopped_by)

    print()
    for name, loader in zip(("Training", "Validation", "Test"), loaders, strict=True):
        accuracy = calc_accuracy_loader(loader, model, device)
        print(f"{name} accuracy: {accuracy:.2%}")
    print(f"\nSaved in {out_dir}: checkpoints/, metrics.jsonl, plots, data")
    print(f'Try: python -m ch06.classify --checkpoint {out_dir} "You won!"')


def save_plots(metrics, steps_per_epoch, batch_size, folder):
    """Draw the losses and the accuracies of a run to PNG files."""
    import matplotlib.pyplot as plt

    plt.switch_backend("Agg")  # no window, also on a server without a display
    for label in ("loss", "accuracy"):
        records = [record for record in metrics if f"train_{label}" in record]
        if not records:  # stopped before the first epoch was over
            continue
        steps = [record["step"] + 1 for record in records]
        fig = plot_values(
            [step / steps_per_epoch for step in steps],
            [step * batch_size for step in steps],
            [record[f"train_{label}"] for record in records],
            [record[f"val_{label}"] for record in records],
            label,
        )
        path = Path(folder) / f"{label}-plot.png"
        try:
            fig.savefig(path, dpi=150)
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from None
        finally:
            plt.close(fig)
