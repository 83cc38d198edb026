"""Draw the figures of ch05/gutenberg. Run it: `python -m figures.gutenberg`.

Files, reasons, tokens, window numbers and counts come from the course's own code, run
on the sample that lies beside it.
"""

import re
from functools import cache
from pathlib import Path
from textwrap import fill
from types import SimpleNamespace

from ch02.dataloader import get_tokenizer
from ch05.gutenberg.clean import Dropped, clean_book
from ch05.gutenberg.duplicates import drop_duplicates, sketch_of
from ch05.gutenberg.recipe import learning_rate
from ch05.gutenberg.shards import END_OF_TEXT
from ch05.gutenberg.training import Pretraining
from figures.ch02 import visible
from figures.svg import Figure, save_all

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "ch05" / "gutenberg" / "sample"
WIDTH = 760


@cache
def cleaned():
    """The sample's files: name to Book, or to the reason why it is left out."""
    found = {}
    for file in sorted(SAMPLE.glob("*.txt")):
        try:
            found[file.name] = clean_book(file.read_bytes())
        except Dropped as reason:
            found[file.name] = str(reason)
    return found


@cache
def books():
    """(kept, dropped): records of the cleaned books, in the order of their files."""
    records = [
        {
            "file": name,
            "title": book.title,
            "characters": len(book.text),
            "sha256": name,
            "split": "train",
            "sketch": sketch_of(book.text),
            "ids": get_tokenizer().encode_ordinary(book.text),
        }
        for name, book in cleaned().items()
        if not isinstance(book, str)
    ]
    kept, dropped, _ = drop_duplicates(records)
    return sorted(kept, key=lambda book: book["file"]), dropped


@cache
def stream():
    """All ids of the kept books, each followed by the end token; a list."""
    return [i for book in books()[0] for i in (*book["ids"], END_OF_TEXT)]


def pipeline():
    """Opening: what becomes of a folder of files."""
    unusable = [reason for reason in cleaned().values() if isinstance(reason, str)]
    kept, duplicates = books()
    cleaned_count = len(kept) + len(duplicates)
    copy = duplicates[0]["reason"].split(":")[0]
    fig = Figure(
        WIDTH,
        396,
        "Each step leaves something out and writes down what",
        f"From top to bottom: {len(cleaned())} raw files; clean_book makes "
        f"{cleaned_count} books of them and drops {len(unusable)} "
        f"({'; '.join(unusable)}); drop_duplicates keeps {len(kept)} and drops "
        f"{len(duplicates)} ({copy}); write_shards stores {len(stream()):,} tokens; "
        "Windows and Pretraining make a model of them.",
    )
    rows = [
        ("raw files", "text", f"{len(cleaned())} files", "clean_book", unusable),
        (
            "books",
            "text",
            f"{cleaned_count} texts",
            "drop_duplicates, split_of",
            [copy],
        ),
        ("kept books", "text", f"{len(kept)} texts", "write_shards", []),
        ("token shards", "ids", f"{len(stream()):,} ids", "Windows, Pretraining", []),
        ("a model", "weights", "", "", []),
    ]
    for i, (name, role, size, function, dropped) in enumerate(rows):
        y = 60 + 70 * i
        fig.box(40, y, 200, 38, role, f"{name}: {size}" if size else name, 14)
        if function:
            fig.arrow((140, y + 42), (140, y + 66))
            fig.text(156, y + 54, function, "ink", 13, "start", mono=True)
        if dropped:
            fig.arrow((400, y + 54), (452, y + 54), role="muted")
            words = ", ".join(dropped)
            fig.box(456, y + 36, 276, 36, "muted", words, 13, dash="4 3")
    fig.text(594, 84, "left out, with the reason", "muted", 13)
    words = "sizes, SHA-256, every book\nand what was left out"
    fig.box(456, 270, 276, 38, "ids", "manifest.json", 14, mono=True)
    fig.text(594, 324, words, "muted", 13)
    fig.arrow((244, 289), (452, 289))
    return fig


def kept_lines(name):
    """(length, whether the book has it) of each line of a raw file of the sample."""
    flat, place = " ".join(cleaned()[name].text.split()), 0
    for line in (SAMPLE / name).read_text("utf-8-sig").splitlines():
        words = " ".join(re.sub(r"_|\[1\]", "", line).split())
        if set(words) == set("* "):
            words = "* * *"  # however many there were
        # The same words may stand above or below the book: look on from the last line
        found = flat.find(words, place) if words else -1
        if found >= 0:
            place = found + len(words)
        yield len(line), found >= 0


def raw_file():
    """1: which lines of a file are the book."""
    name = "the-map-of-forty-one-lamps.txt"
    lines, book = list(kept_lines(name)), cleaned()[name]
    size = (SAMPLE / name).stat().st_size
    fig = Figure(
        WIDTH,
        420,
        "What the file holds, and what of it is the book",
        f"Every line of {name} as a stripe as long as the line. Kept: the lines of the "
        f"story, {len(book.text.encode()):,} of {size:,} bytes. Dropped: header, "
        "start marker and credit above it; an illustration's caption and a footnote in "
        "it; a transcriber's note, end marker and licence below it.",
    )
    top, gap = 62, 2.62

    def y(number):
        return top + gap * number

    for number, (length, kept) in enumerate(lines):
        if length:
            role = "text" if kept else "target"
            fig.box(200, y(number), 2.9 * length, gap - 0.4, role, radius=0)
    text = (SAMPLE / name).read_text("utf-8-sig").splitlines()

    def number_of(start):
        return next(i for i, line in enumerate(text) if line.startswith(start))

    for start, words in (
        ("Title", "header"),
        ("*** START", "start marker"),
        ("[Illustration", "caption of a picture"),
        ("[1] Some", "footnote"),
        ("Transcriber", "transcriber's note"),
        ("The licence", "licence"),
    ):
        at = y(number_of(start)) + 1
        fig.arrow((178, at), (196, at), role="target", head=False)
        fig.text(172, at, words, "target", 13, "end")
    for start, words in (("Produced by", "credit"), ("*** END", "end marker")):
        at = y(number_of(start)) + 1
        fig.arrow((430, at), (446, at), role="target", head=False)
        fig.text(452, at, words, "target", 13, "start")

    fig.arrow((436, 200), (486, 200), label="")
    fig.box(492, 140, 240, 120, "text", radius=8)
    fig.text(612, 162, "clean_book", "text", 14, mono=True, bold=True)
    facts = f"title and author from the header\n{len(book.text.encode()):,} of "
    paragraphs = book.text.split("\n\n")
    assert not any("\n" in paragraph for paragraph in paragraphs)
    facts += f"{size:,} bytes\n{len(paragraphs)} paragraphs, one line each"
    fig.text(612, 188, facts, "text", 13)
    fig.box(492, 290, 16, 16, "text", radius=3)
    fig.text(516, 298, "kept", size=13, anchor="start")
    fig.box(572, 290, 16, 16, "target", radius=3)
    fig.text(596, 298, "dropped", size=13, anchor="start")
    return fig


def shards():
    """2: books, shards, and a window across a border."""
    size, length = 700, 6
    start = size - length // 2
    ids = stream()
    window = ids[start : start + length]
    tokens = [visible(get_tokenizer().decode([i])) for i in window]
    fig = Figure(
        WIDTH,
        374,
        "One long row of ids, cut into files where they are full",
        f"{len(books()[0])} books, each followed by an end token, form one row of "
        f"{len(ids):,} ids. Files of {size} ids cut it without regard to the books. "
        f"The window of {length} ids from {start} on takes half of them from each of "
        "two files.",
    )
    scale = 704 / len(ids)
    fig.text(28, 66, "books; the line after each is <|endoftext|>", "text", 13, "start")
    x = 28
    for book in books()[0]:
        w = scale * len(book["ids"])
        name = fill(book["title"], int((w - 8) / 7.7))
        fig.box(x, 78, w, 42, "text", name, 13, radius=0)
        x += scale * (len(book["ids"]) + 1)
        fig.arrow((x, 73), (x, 125), role="highlight", head=False)
    fig.text(28, 146, "files; 2 bytes per id", "ids", 13, "start")
    for number, begin in enumerate(range(0, len(ids), size)):
        count = min(size, len(ids) - begin)
        words = f"train-{number:04d}.bin\n{2 * count:,} bytes"
        fig.box(28 + scale * begin, 158, scale * count, 42, "ids", words, 13, radius=0)
    border = 28 + scale * size
    call = f"window({start}, {length})"
    fig.text(border, 230, call, "ink", 14, mono=True, bold=True)
    fig.arrow((border, 204), (border, 218), role="highlight")
    w = 88
    left = border - w * length / 2
    grid = fig.matrix(left, 248, [tokens], "text", (w, 30))
    fig.matrix(left, 280, [[str(i) for i in window]], "ids", (w, 30))
    fig.arrow((border, 242), (border, 316), role="highlight", head=False, dash="4 3")
    fig.bracket(grid.x, border - 4, 326, "end of train-0000.bin", "ids", up=False)
    fig.bracket(
        border + 4, grid.x + grid.w, 326, "start of train-0001.bin", "ids", up=False
    )
    return fig


def windows_of(step, batch_size, micro_batch, processes):
    """For each process its window numbers in a step, a list per micro-batch."""
    settings = {"batch_size": batch_size, "micro_batch": micro_batch}
    return [
        Pretraining.my_windows(
            SimpleNamespace(
                settings=settings, world=SimpleNamespace(rank=rank, size=processes)
            ),
            step,
        )
        for rank in range(processes)
    ]


def step():
    """4: one step, from its number to new weights."""
    number, batch_size, micro, processes = 3, 8, 2, 2
    lanes = windows_of(number, batch_size, micro, processes)
    first = min(min(map(min, lane)) for lane in lanes)
    last = max(max(map(max, lane)) for lane in lanes)
    rate = learning_rate(number, 100, 10, 2e-3)
    fig = Figure(
        WIDTH,
        376,
        "The step's number decides what is read and how far to go",
        f"Step {number} with {batch_size} windows: those with the numbers {first} to "
        f"{last}. {processes} processes share them: {lanes}. Gradients of micro-batches"
        " are added up, averaged over the processes, clipped, and used by AdamW with "
        f"the learning rate of step {number}.",
    )
    fig.box(28, 142, 92, 56, "highlight", f"step {number}", 15, bold=True)
    words = f"windows\n{number} × {batch_size}\nto {last}"
    fig.text(74, 222, words, "muted", 12.5)
    for rank, (lane, y) in enumerate(zip(lanes, (90, 216), strict=True)):
        fig.arrow((124, 170), (140, 170), (140, y + 18), (158, y + 18))
        fig.text(164, y - 14, f"process {rank}", "ink", 13, "start", bold=True)
        x = 164
        for numbers in lane:
            fig.chips(x, y, [str(i) for i in numbers], "ids", 4, h=36)
            fig.arrow((x + 36, y + 40), (x + 36, y + 56))
            fig.box(x - 2, y + 60, 76, 28, "target", "gradient", 13)
            x += 96
        fig.text(249, y + 74, "+", "ink", 18, bold=True)
        fig.arrow((340, y + 74), (372, y + 74), (372, 170), (386, 170))
    fig.box(390, 142, 92, 56, "target", "mean of all\ngradients", 13)
    fig.arrow((486, 170), (502, 170))
    fig.box(506, 142, 90, 56, "target", "clip: norm\nat most 1", 13)
    fig.arrow((600, 170), (616, 170))
    fig.box(620, 142, 112, 56, "weights", "AdamW\nnew weights", 13)
    fig.arrow((673, 232), (673, 204))
    words = f"learning_rate({number}, …)\n= {rate:.1e}"
    fig.text(732, 246, words, "highlight", 12.5, "end", mono=True)
    words = "A window's number names its pass over the text and its place in that "
    words += "pass's order.\nBetween steps nothing is remembered but the weights, "
    words += "AdamW's two means and the step."
    fig.text(28, 332, words, "muted", 13, "start")
    return fig


FIGURES = [pipeline, raw_file, shards, step]


def draw_all(root=ROOT):
    """Write the figures to `root`/ch05/gutenberg/figures."""
    save_all(FIGURES, Path(root, "ch05", "gutenberg", "figures"))


if __name__ == "__main__":
    draw_all()
