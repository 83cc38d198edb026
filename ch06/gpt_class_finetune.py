"""Finetune a pretrained GPT to tell spam from other messages (chapter 6).

The book's functions and a command line around them: progress, metrics, plots,
checkpoints, `--resume`. Reading a message whatever pads it is `classifier.py`. Run it:
`python -m ch06.gpt_class_finetune` finetunes the mini model on the course's messages
and prints its accuracy; `python -m ch06.classify "..."` then uses it.

Letters: B batch, T tokens.
"""

import os
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from torch.utils.data import Dataset

from ch02.cli import (
    InputError,
    Parser,
    exit_on_input_error,
    positive_float,
    positive_int,
    seed,
)
from ch02.download import retrieve
from ch05.device import ACCELERATORS
from ch06.spam_data import unzip


def download_and_unzip_spam_data(url, zip_path, extracted_path, data_file_path):
    """Download and unpack the SMS Spam Collection, once (section 6.2).

    Raises InputError if the url does not deliver it.
    """
    if Path(data_file_path).is_file():
        print(f"{data_file_path} is there already.")
        return
    retrieve(url, Path(zip_path))
    try:
        unpacked = unzip(zip_path, extracted_path)
    except InputError:
        Path(zip_path).unlink(missing_ok=True)  # so that the next source is tried
        raise
    os.replace(unpacked, data_file_path)


def create_balanced_dataset(df):
    """All spam and as many ham messages, drawn under seed 123, ham first (6.2)."""
    spam = df[df["Label"] == "spam"]
    ham = df[df["Label"] == "ham"].sample(len(spam), random_state=123)
    return pd.concat([ham, spam])


def random_split(df, train_frac, validation_frac):
    """Shuffle under seed 123, then cut into (train, validation, test) (6.2)."""
    df = df.sample(frac=1, random_state=123).reset_index(drop=True)
    train_end = int(len(df) * train_frac)
    validation_end = train_end + int(len(df) * validation_frac)
    return df[:train_end], df[train_end:validation_end], df[validation_end:]


class SpamDataset(Dataset):
    """Messages of a CSV file (Text, Label 0 or 1) as token ids of one length (6.3).

    Shorter messages are padded, by default to the longest; with a max_length longer
    ones are cut. Items: (int64 of shape (T,), int64 scalar).
    """

    def __init__(self, csv_file, tokenizer, max_length=None, pad_token_id=50256):
        self.data = pd.read_csv(csv_file, keep_default_na=False)
        self.encoded_texts = [
            # A message that quotes <|endoftext|> means these characters
            tokenizer.encode(text, disallowed_special=())
            for text in self.data["Text"]
        ]
        self.max_length = max_length or self._longest_encoded_length()
        self.encoded_texts = [
            ids[: self.max_length] + [pad_token_id] * (self.max_length - len(ids))
            for ids in self.encoded_texts
        ]

    def __getitem__(self, index):
        label = self.data["Label"].iloc[index]
        return torch.tensor(self.encoded_texts[index]), torch.tensor(int(label))

    def __len__(self):
        return len(self.data)

    def _longest_encoded_length(self):
        return max(len(ids) for ids in self.encoded_texts)


def calc_accuracy_loader(data_loader, model, device, num_batches=None):
    """Share of right answers over the first num_batches batches (default: all) (6.6).

    The model is left in eval mode. Returns a float; nan without examples.
    """
    model.eval()
    correct = examples = 0
    for i, (input_batch, target_batch) in enumerate(data_loader):
        if i == num_batches:
            break
        input_batch = input_batch.to(device)
        target_batch = target_batch.to(device)
        with torch.no_grad():
            logits = model(input_batch)[:, -1, :]  # (B, classes)
        correct += (logits.argmax(dim=-1) == target_batch).sum().item()
        examples += len(target_batch)
    return correct / examples if examples else float("nan")


def calc_loss_batch(input_batch, target_batch, model, device):
    """Cross-entropy, in nats, of the answers at the last position; a scalar (6.6)."""
    input_batch, target_batch = input_batch.to(device), target_batch.to(device)
    logits = model(input_batch)[:, -1, :]  # (B, classes)
    return nn.functional.cross_entropy(logits, target_batch)


def calc_loss_loader(data_loader, model, device, num_batches=None):
    """Mean loss of the first num_batches batches (default: all) (6.6).

    Returns a float; nan if there are none.
    """
    if len(data_loader) == 0:
        return float("nan")
    if num_batches is None:
        num_batches = len(data_loader)
    num_batches = min(num_batches, len(data_loader))
    total = 0.0
    for i, (input_batch, target_batch) in enumerate(data_loader):
        if i == num_batches:
            break
        total += calc_loss_batch(input_batch, target_batch, model, device).item()
    return total / num_batches


def train_classifier_simple(
    model,
    train_loader,
    val_loader,
    optimizer,
    device,
    num_epochs,
    eval_freq,
    eval_iter,
):
    """The finetuning loop (6.7).

    Losses are evaluated every eval_freq steps, accuracies after each epoch, both over
    eval_iter batches. Returns (train_losses, val_losses, train_accs, val_accs,
    examples_seen).
    """
    train_losses, val_losses, train_accs, val_accs = [], [], [], []
    examples_seen, global_step = 0, -1

    for epoch in range(num_epochs):
        model.train()
        for input_batch, target_batch in train_loader:
            optimizer.zero_grad()
            loss = calc_loss_batch(input_batch, target_batch, model, device)
            loss.backward()
            optimizer.step()
            examples_seen += len(input_batch)
            global_step += 1

            if global_step % eval_freq == 0:
                train_loss, val_loss = evaluate_model(
                    model, train_loader, val_loader, device, eval_iter
                )
                train_losses.append(train_loss)
                val_losses.append(val_loss)
                print(
                    f"Ep {epoch + 1} (Step {global_step:06d}): "
                    f"Train loss {train_loss:.3f}, Val loss {val_loss:.3f}"
                )

        for loader, accs in ((train_loader, train_accs), (val_loader, val_accs)):
            accs.append(calc_accuracy_loader(loader, model, device, eval_iter))
        print(
            f"Training accuracy: {train_accs[-1]:.2%} | "
            f"Validation accuracy: {val_accs[-1]:.2%}"
        )

    return train_losses, val_losses, train_accs, val_accs, examples_seen


def evaluate_model(model, train_loader, val_loader, device, eval_iter):
    """(training loss, validation loss) over eval_iter batches each (6.7)."""
    model.eval()
    with torch.no_grad():
        train_loss = calc_loss_loader(train_loader, model, device, eval_iter)
        val_loss = calc_loss_loader(val_loader, model, device, eval_iter)
    model.train()
    return train_loss, val_loss


def plot_values(epochs_seen, examples_seen, train_values, val_values, label="loss"):
    """Losses or accuracies over epochs and over examples; returns the figure (6.7)."""
    import matplotlib.pyplot as plt

    fig, ax1 = plt.subplots(figsize=(5, 3))
    ax1.plot(epochs_seen, train_values, label=f"Training {label}")
    ax1.plot(epochs_seen, val_values, linestyle="-.", label=f"Validation {label}")
    ax1.set_xlabel("Epochs")
    ax1.set_ylabel(label.capitalize())
    ax1.legend()

    ax2 = ax1.twiny()
    # An invisible curve stretches the second axis to the first
    ax2.plot(examples_seen, train_values, alpha=0)
    ax2.set_xlabel("Examples seen")
    fig.tight_layout()
    return fig


def classify_review(
    text, model, tokenizer, device, max_length=None, pad_token_id=50256
):
    """Return "spam" or "not spam" for one message (6.8).

    max_length: the message is cut or padded to it (default: as it is); the model's
    context is the limit in any case.
    """
    model.eval()
    supported = model.pos_emb.weight.shape[0]
    ids = tokenizer.encode(text, disallowed_special=())
    ids = ids[: min(max_length or supported, supported)]
    ids += [pad_token_id] * (min(max_length or 1, supported) - len(ids))
    with torch.no_grad():
        logits = model(torch.tensor([ids], device=device))[:, -1, :]  # (1, classes)
    return "spam" if logits.argmax(dim=-1).item() == 1 else "not spam"


def parse_args(argv=None):
    """Read the command line."""
    from ch05.gpt_generate import MODELS

    parser = Parser(
        prog="gpt_class_finetune",
        description="Finetune a pretrained GPT to tell spam from other messages.",
    )
    add = parser.add_argument
    add("--data", default="bundled",
        help="bundled, uci (the book's, downloaded) or a file of lines label<TAB>text "
        "(default: bundled)")  # fmt: skip
    add("--model", choices=MODELS, default="gpt2-mini", help="(default: gpt2-mini)")
    add("--trainable", choices=("head", "last_block", "all"),
        help="what is trained (default: all of gpt2-mini, else the book's last_block)"
        )  # fmt: skip
    add("--epochs", type=positive_int, default=5, help="(default: 5)")
    add("--batch-size", type=positive_int, default=8, help="(default: 8)")
    add("--lr", type=positive_float,
        help="learning rate of AdamW (default: 5e-4 of gpt2-mini, else the book's 5e-5)"
        )  # fmt: skip
    add("--schedule", choices=("constant", "rise-and-fall"),
        help="of the learning rate (default: rise-and-fall of gpt2-mini, else constant)"
        )  # fmt: skip
    add("--eval-freq", type=positive_int, default=50, help="steps between evaluations")
    add("--seed", type=seed, default=123, help="of the new layer and the shuffling")
    add("--device", default="auto", help=f"auto, cpu, {', '.join(ACCELERATORS)}")
    add("--out-dir", type=Path, help="(default: runs/spam-MODEL)")
    add("--resume", action="store_true", help="continue the run in --out-dir")
    add("--save-every", type=positive_int, default=100, help="steps per checkpoint")
    add("--test-mode", "--test_mode", action="store_true",
        help="a tiny model with fresh weights, to try the script")  # fmt: skip
    args = parser.parse_args(argv)
    if args.test_mode:
        args.device = "cpu"
    return args


def cli(argv=None):
    """Command line: finetune, evaluate, checkpoint, plot, measure."""
    from ch06.finetuning import finetune

    args = parse_args(argv)
    with exit_on_input_error("gpt_class_finetune"):
        finetune(args)


if __name__ == "__main__":
    cli()
