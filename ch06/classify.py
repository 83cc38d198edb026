"""Tell spam from other messages with a classifier that `gpt_class_finetune` saved.

Run it: `python -m ch06.classify "You have won!"` prints the label, the probability of
spam and the message, with tabs between them; `--file` or standard input have one
message per line.
"""

import sys

from ch02.cli import InputError, Parser, exit_on_input_error
from ch02.dataloader import get_tokenizer
from ch05.device import ACCELERATORS, pick_device
from ch06.classifier import load_classifier, spam_probabilities


def read_lines(path):
    """The messages of a UTF-8 file, or of standard input where path is None."""
    try:
        if path is not None:
            with open(path, "rb") as file:
                raw = file.read()
        elif sys.stdin is None or sys.stdin.isatty():
            raise InputError("no message: give one, name a --file, or pipe some in")
        else:
            raw = sys.stdin.buffer.read()
        lines = raw.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{path or 'standard input'} is not UTF-8") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    if messages := [line for line in lines if line.strip()]:
        return messages
    raise InputError(f"{path or 'standard input'} holds no message")


def cli(argv=None):
    """Command line: one line of answer per message."""
    parser = Parser(prog="classify", description="Tell spam from other messages.")
    add = parser.add_argument
    add("messages", nargs="*", help="(default: the lines of --file or standard input)")
    add("--file", metavar="PATH", help="a UTF-8 file, one message per line")
    add("--checkpoint", default="runs/spam-gpt2-mini", metavar="PATH",
        help="a run's folder or a .safetensors file (default: runs/spam-gpt2-mini)"
        )  # fmt: skip
    add("--device", default="auto", help=f"auto, cpu, {', '.join(ACCELERATORS)}")
    args = parser.parse_args(argv)
    if args.messages and args.file:
        parser.error("give messages or a --file, not both")
    with exit_on_input_error("classify"):
        messages = args.messages or read_lines(args.file)
        device = pick_device(args.device)
        model, _ = load_classifier(args.checkpoint, device)
        tokenizer = get_tokenizer()
        for start in range(0, len(messages), 32):
            batch = messages[start : start + 32]
            answers = spam_probabilities(batch, model, tokenizer, device)
            for message, probability in zip(batch, answers, strict=True):
                label = "spam" if probability > 0.5 else "not spam"
                print(f"{label}\t{probability:.3f}\t{message}")


if __name__ == "__main__":
    cli()
