"""What the small GPT must beat: compressors and n-gram models, in bits per byte.

Every row is measured on the validation books: how many bits a method needs to write
them down, divided by their UTF-8 bytes. Where a book ends is part of what is written
down, for the n-grams and the GPT too. Training the GPT is not here. Run it after
`prepare_dataset`: `python -m ch05.gutenberg.compare` prints the table, `--help` says
how each row is measured. Letters: B batch, T tokens, V vocabulary.
"""

import bz2
import json
import lzma
import math
import os
import time
import zlib
from argparse import ArgumentTypeError, RawDescriptionHelpFormatter
from functools import partial
from hashlib import file_digest
from itertools import islice
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from ch02.cli import (
    InputError,
    Parser,
    exit_on_input_error,
    positive_float,
    positive_int,
)
from ch05.checkpoint import find_weights, load_model
from ch05.device import ACCELERATORS, pick_device, reuse_freed_memory
from ch05.gutenberg.ngram import MAX_ORDER, KneserNey, count_ngrams
from ch05.gutenberg.shards import END_OF_TEXT, TokenShards

DESCRIPTION = """\
Bits per byte of compressors, n-gram models and a GPT on the validation books.

  zlib, bz2, lzma  each book compressed on its own at the highest level
  ..., primed      with training text to look back at, as much as the method's window
                   takes: zlib has the last 32 KiB before every book; lzma compresses
                   the last 64 MiB and then all books in one stream, and only what the
                   books add counts, which takes minutes; bz2 cannot look back
  Kneser-Ney       byte n-grams of the training text; order 5 looks at 4 bytes
  GPT              each book in windows of the context length, the first of which begins
                   with the end token before the book; every token is predicted once.
                   Without --stride the first tokens of a window have hardly any context

The n-grams and the GPT also pay for the end of each book. Parameters: the n-grams a
model remembers, or the weights of the GPT. Seconds: training, where it is done here,
and measuring; reading the books is left out.
"""
ZLIB_WINDOW, LZMA_WINDOW = 2**15, 2**26  # bytes a level-9 compressor looks back
LZMA_PRESET = 9 | lzma.PRESET_EXTREME
NOT_SCORED = -100  # the target that cross_entropy leaves out
ROW = {"method", "bits_per_byte", "parameters", "seconds", "weights_sha256"}


def bits_per_byte(model, shards, batch_size=4, stride=None):
    """Bits the model needs for the books, their end tokens included, per UTF-8 byte.

    Every token is predicted exactly once. A window starts `stride` tokens after the one
    before and scores only the tokens that one has not: the default, the context length,
    is the fastest; a smaller stride gives every token at least context length - stride
    tokens before it, as far as the book has them. shards: a `TokenShards`. Computes
    where the model is. Raises InputError if the stride or the model cannot be used.
    """
    context_length = model.pos_emb.num_embeddings
    stride = stride or context_length
    if model.tok_emb.num_embeddings <= END_OF_TEXT:
        raise InputError(
            f"the model has {model.tok_emb.num_embeddings} tokens, the books GPT-2's "
            f"{END_OF_TEXT + 1}: choose another --checkpoint"
        )
    if stride > context_length:
        raise InputError(
            f"--stride {stride} would skip tokens: this model sees {context_length}"
        )
    device = model.pos_emb.weight.device
    was_training = model.training
    model.eval()
    windows = (
        window
        for book in shards.books
        for window in _windows(_with_ends(book, shards), context_length, stride)
    )
    nats = 0.0
    num_tokens = sum(book["tokens"] + 1 for book in shards.books)
    with _progress_bar(total=num_tokens, unit="tok", unit_scale=True) as bar:
        while batch := list(islice(windows, batch_size)):
            inputs, targets = zip(*batch, strict=True)
            # Filled up on the right, where no token of the window looks
            inputs = pad_sequence(inputs, True, END_OF_TEXT)  # (B, T)
            targets = pad_sequence(targets, True, NOT_SCORED)  # (B, T)
            with torch.no_grad():
                logits = model(inputs.to(device)).float()  # (B, T, V)
            nats += cross_entropy(
                logits.flatten(0, 1),  # (B * T, V)
                targets.flatten().to(device),  # (B * T,)
                ignore_index=NOT_SCORED,
                reduction="sum",
            ).item()
            bar.update((targets != NOT_SCORED).sum().item())
    model.train(was_training)
    if not math.isfinite(nats):
        raise InputError(f"the model's loss is {nats}: choose another --checkpoint")
    return nats / math.log(2) / shards.num_bytes


def _with_ends(book, shards):
    """A book's ids between two end tokens, as in the data: (tokens + 2,)."""
    ids = shards.window(book["start"], book["tokens"] + 1)
    return torch.cat((torch.tensor([END_OF_TEXT]), ids))


def _windows(ids, context_length, stride):
    """Cut ids into (inputs, targets), each at most (context_length,) long.

    Every id but the first is the target of one window; in the others that see it, its
    place holds NOT_SCORED.
    """
    start = num_scored = 0
    while num_scored < len(ids) - 1:
        targets = ids[start + 1 : start + 1 + context_length].clone()
        targets[: num_scored - start] = NOT_SCORED
        num_scored = start + len(targets)
        yield ids[start:num_scored], targets
        start += stride


# Each method: (training books, validation books) -> (bits, parameters or None)


def each_book(compress, train, val):
    """Every book compressed on its own. compress: bytes -> bytes."""
    return 8 * sum(len(compress(book)) for book in val), None


def zlib_primed(train, val):
    """Every book compressed with the end of the training text as its dictionary."""
    window = _end_of(train, ZLIB_WINDOW)

    def compress(book):
        compressor = zlib.compressobj(9, zdict=window)
        return compressor.compress(book) + compressor.flush()

    return each_book(compress, train, val)


def lzma_primed(train, val):
    """What the books add to the end of the training text, in one stream."""
    window = _end_of(train, LZMA_WINDOW)
    return 8 * (_lzma_size(window + b"".join(val)) - _lzma_size(window)), None


def kneser_ney(order, train, val):
    """An n-gram model of the training books, on the validation books."""
    model = KneserNey(*count_ngrams(train, order), order)
    return model.total_bits(*count_ngrams(val, order)), model.num_ngrams


def gpt(model, shards, batch_size, stride):
    """The row of a GPT, which reads tokens instead: (bits, parameters)."""
    bits = bits_per_byte(model, shards, batch_size, stride) * shards.num_bytes
    parameters = sum(p.numel() for p in model.parameters())
    head, embedding = model.out_head.weight, model.tok_emb.weight
    if head is not embedding and torch.equal(head, embedding):
        parameters -= head.numel()  # a copy, as `load_weights_into_gpt` makes it
    return bits, parameters


COMPRESSORS = {
    "zlib": partial(each_book, partial(zlib.compress, level=9)),
    "bz2": partial(each_book, bz2.compress),
    "lzma": partial(each_book, partial(lzma.compress, preset=LZMA_PRESET)),
    "zlib, primed": zlib_primed,
    "lzma, primed": lzma_primed,
}


def _end_of(books, num_bytes):
    """The last num_bytes bytes of the books put together."""
    return b"".join(books)[-num_bytes:]


def _lzma_size(data, piece=2**20):
    """How many bytes the data takes, compressed."""
    compressor = lzma.LZMACompressor(preset=LZMA_PRESET)
    with _progress_bar(total=len(data), unit="B", unit_scale=True) as bar:
        size = 0
        for start in range(0, len(data), piece):
            size += len(compressor.compress(data[start : start + piece]))
            bar.update(len(data[start : start + piece]))
    return size + len(compressor.flush())


def _progress_bar(iterable=None, **options):
    """On stderr, only on a terminal, gone when done."""
    return tqdm(iterable, dynamic_ncols=True, leave=False, disable=None, **options)


def read_books(shards, max_mb=None):
    """The books as a list of UTF-8 bytes; only the first, until they reach max_mb."""
    books, num_bytes = [], 0
    for _, text in _progress_bar(shards.texts(), total=len(shards.books), unit="book"):
        books.append(text.encode())
        num_bytes += len(books[-1])
        if max_mb and num_bytes >= max_mb * 1e6:
            break
    return books


def load_rows(path, source):
    """The rows that a file written by `save_rows` holds; {} if there is no file.

    Raises InputError if the file is of another kind, or its rows of another source.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
        rows = {row["method"]: row for row in found["rows"]}
        if any(row.keys() != ROW for row in rows.values()):
            raise ValueError
        measured_on = found["source"]
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} holds no such table: choose another --out") from None
    if measured_on != source:
        raise InputError(
            f"{path} was measured on other data or with another --max-train-mb: choose "
            "another --out"
        )
    return rows


def save_rows(path, source, rows):
    """Write the rows as JSON. source: dict, the data they are measured on."""
    partial_path = path.with_name(f"{path.name}.partial")
    text = json.dumps({"source": source, "rows": list(rows.values())}, indent=1)
    try:
        partial_path.write_text(text + "\n", "utf-8")
        os.replace(partial_path, path)
    except OSError as error:
        partial_path.unlink(missing_ok=True)
        raise InputError(f"cannot write {path}: {error.strerror}") from None


def format_table(rows):
    """The rows as aligned lines, the best method last."""
    width = max(len(row["method"]) for row in rows)
    lines = [f"{'method':{width}}  bits/byte   parameters  seconds"]
    for row in sorted(rows, key=lambda row: -row["bits_per_byte"]):
        parameters = "-" if row["parameters"] is None else f"{row['parameters']:,}"
        lines.append(
            f"{row['method']:{width}}  {row['bits_per_byte']:9.4f}  {parameters:>11}  "
            f"{row['seconds']:7.1f}"
        )
    return "\n".join(lines)


def orders(text):
    """Option type: "5" or "1-6", as a range."""
    first, _, last = text.partition("-")
    try:
        chosen = range(int(first), int(last or first) + 1)
    except ValueError:
        chosen = range(0)
    if not chosen or chosen[0] < 1 or chosen[-1] > MAX_ORDER:
        raise ArgumentTypeError(
            f"{text!r} is neither an order from 1 to {MAX_ORDER} nor a range like 1-6"
        )
    return chosen


def parse_args(argv=None):
    """Read the command line."""
    parser = Parser(
        prog="compare",
        description=DESCRIPTION,
        formatter_class=RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", type=Path, default="gutenberg_tokens", help="of prepare_dataset")
    add("--checkpoint", type=Path, help="a run, a checkpoint or a .safetensors file")
    add("--orders", type=orders, default="1-6", help="of the n-grams (default: 1-6)")
    add("--max-train-mb", type=positive_float, help="first books only, in 10^6 bytes")
    add("--stride", type=positive_int, help="tokens from one GPT window to the next")
    add("--batch-size", type=positive_int, default=4, help="GPT windows at a time")
    add("--device", default="auto", help=f"auto, cpu, {', '.join(ACCELERATORS)}")
    add("--out", type=Path, help="JSON; rows it has already are not computed again")
    return parser.parse_args(argv)


def main(argv=None):
    """Command line: compute the rows that are missing, print the table."""
    args = parse_args(argv)
    with exit_on_input_error("compare"):
        train, val = TokenShards(args.data, "train"), TokenShards(args.data, "val")
        source = {
            "manifest_sha256": _sha256(args.data / "manifest.json"),
            "max_train_mb": args.max_train_mb,
        }
        rows = load_rows(args.out, source) if args.out else {}
        if args.out:
            save_rows(args.out, source, rows)  # what cannot be written shows now

        todo = {}  # method -> function, SHA-256 of the weights it needs
        if args.checkpoint:
            path = find_weights(args.checkpoint)
            weights = _sha256(path)
            method = f"GPT, {path}" + (f", stride {args.stride}" if args.stride else "")
            if method not in rows or rows[method]["weights_sha256"] != weights:
                reuse_freed_memory()
                model, _ = load_model(path, pick_device(args.device))
                compute = partial(gpt, model, val, args.batch_size, args.stride)
                todo[method] = compute, weights
        text_methods = COMPRESSORS | {
            f"Kneser-Ney, order {n}": partial(kneser_ney, n) for n in args.orders
        }
        text_methods = {m: f for m, f in text_methods.items() if m not in rows}
        if text_methods:
            books = read_books(train, args.max_train_mb), read_books(val)
            todo |= {m: (partial(f, *books), None) for m, f in text_methods.items()}

        with _progress_bar(todo.items(), unit="method") as bar:
            for method, (compute, weights) in bar:
                bar.set_description(method)
                start = time.perf_counter()
                bits, parameters = compute()
                rows[method] = {
                    "method": method,
                    "bits_per_byte": bits / val.num_bytes,
                    "parameters": parameters,
                    "seconds": round(time.perf_counter() - start, 1),
                    "weights_sha256": weights,
                }
                if args.out:
                    save_rows(args.out, source, rows)
        print(format_table(rows.values()))


def _sha256(path):
    with open(path, "rb") as file:
        return file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    main()
