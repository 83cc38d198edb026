"""Project Gutenberg's raw files to shards of training tokens.

Cleans every file (`clean.py`), leaves out books that others contain and keeps some
apart for validation (`duplicates.py`), and writes token shards (`shards.py`). The
result depends on the files and options alone: not on the order, the number of
processes, or how often the run was interrupted. Downloading is not here. Run it:
`python -m ch05.gutenberg.prepare_dataset --raw FOLDER` prints what became of them.
"""

import argparse
import json
import multiprocessing
import os
import posixpath
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from hashlib import sha256
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from tqdm import tqdm

from ch02.cli import InputError, Parser, exit_on_input_error, positive_int
from ch02.dataloader import get_tokenizer
from ch05.gutenberg import clean, duplicates, paragraphs
from ch05.gutenberg.raw import files_below, read_raw
from ch05.gutenberg.shards import SHARD_TOKENS, TokenShards, read_manifest, write_shards

# What other code has made is neither continued nor called up to date
CODE = (clean.__file__, paragraphs.__file__, duplicates.__file__, __file__)
VERSION = sha256(b"".join(Path(file).read_bytes() for file in CODE)).hexdigest()[:16]


# Raw files


def raw_files(source, files, unusable, bar):
    """Yield (bytes, SHA-256) of each raw file; fills two lists on the way.

    files: (name, SHA-256). unusable: (name, reason) of what is no file to be cleaned.
    In the end the names are relative to the folder that all files share.
    """
    for name, raw, position in read_raw(source):
        bar.update(position - bar.n)
        if isinstance(raw, str):
            unusable.append((name, raw))
        else:
            digest = sha256(raw).hexdigest()
            files.append((name, digest))
            yield raw, digest
    folders = [posixpath.dirname(name) for name, _ in (*files, *unusable)]
    common = posixpath.commonpath(folders) if folders else ""
    for found in (files, unusable):
        found[:] = [(name[len(common) :].lstrip("/"), what) for name, what in found]


def progress_bar(source):
    """Bytes read and time left; on stderr, only on a terminal."""
    paths = files_below(source) if source.is_dir() else [source]
    return tqdm(
        total=sum(path.stat().st_size for path in paths),
        desc="Cleaning",
        unit="B",
        unit_scale=True,
        dynamic_ncols=True,
        leave=False,
        disable=None,
    )


# One book


def process(raw, path):
    """Clean one raw file and write what is needed of it to the work file `path`."""
    tokens = sketch = np.empty(0)
    try:
        book = clean.clean_book(raw)
    except clean.Dropped as reason:
        record = {"reason": str(reason)}
    else:
        encoded = book.text.encode()
        record = {
            "title": book.title,
            "author": book.author,
            "characters": len(book.text),
            "bytes": len(encoded),
            "sha256": sha256(encoded).hexdigest(),
        }
        tokens = np.array(get_tokenizer().encode_ordinary(book.text), dtype=np.uint16)
        sketch = duplicates.sketch_of(book.text)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with open(partial, "wb") as file:
        np.savez(file, record=json.dumps(record), tokens=tokens, sketch=sketch)
    os.replace(partial, path)


def load_work(path, name):
    """ "record" (a dict), "tokens" or "sketch" of a work file; None if it has none."""
    try:
        with np.load(path) as entries:
            return json.loads(str(entries[name])) if name == "record" else entries[name]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None  # not made yet, or cut off when the machine went down


# All books


def process_in_parallel(jobs, workers):
    """`process` each of the jobs in other processes, with few jobs in memory."""
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(workers, context, start_worker) as pool:
        # The processes start with these first calls, and inherit to ignore Ctrl-C
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        running = {pool.submit(os.getpid) for _ in range(workers)}
        signal.signal(signal.SIGINT, handler)
        try:
            for job in jobs:
                if len(running) >= 2 * workers:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()
                running.add(pool.submit(process, *job))
            for future in running:
                future.result()
        except BrokenProcessPool:
            raise InputError(
                "a worker process was killed, perhaps for want of memory: the same "
                "command with fewer --workers goes on where this one stopped"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in set(multiprocessing.active_children()) - others:
                child.kill()
                child.join()
            raise


def start_worker():
    """In a worker: leave Ctrl-C to the main process, and do not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def select(files, unusable, work, val_share):
    """Which books are kept: (kept, dropped, leak) as of `duplicates.drop_duplicates`.

    Both lists are sorted by file.
    """
    books, dropped = [], [{"file": file, "reason": why} for file, why in unusable]
    for file, digest in files:
        record = {"file": file, **load_work(work / f"{digest}.npz", "record")}
        if "reason" in record:
            dropped.append(record)
            continue
        sketch = load_work(work / f"{digest}.npz", "sketch")
        split = duplicates.split_of(file, record["title"], record["author"], val_share)
        books.append({**record, "split": split, "sketch": sketch, "digest": digest})
    kept, contained, leak = duplicates.drop_duplicates(books)
    kept.sort(key=lambda book: (book["file"], book["digest"]))
    dropped = sorted(dropped + contained, key=lambda book: tuple(book.values()))
    return kept, dropped, leak


def made_from(files, unusable, *options):
    """A checksum of all that a data set depends on."""
    found = [sorted(files), sorted(unusable), *options, VERSION]
    return sha256(json.dumps(found).encode()).hexdigest()


def check_up_to_date(source, out_dir, *options):
    """Raise InputError unless out_dir holds what `source` and the options give."""
    files, unusable = [], []
    with progress_bar(source) as bar:
        for _ in raw_files(source, files, unusable, bar):
            pass
    manifest = read_manifest(out_dir)
    if manifest.get("made_from") != made_from(files, unusable, *options):
        raise InputError(
            f"{out_dir} holds data of other files, options or program version: "
            "choose another --out-dir, or --force to replace them"
        )
    for split, entry in manifest["splits"].items():
        if entry["tokens"]:
            TokenShards(out_dir, split)  # complains if a shard is damaged


def prepare(source, out_dir, workers, val_share, shard_tokens, force):
    """All steps; returns (manifest, leak, bytes cleaned), None if all is up to date."""
    if not source.exists():
        raise InputError(f"--raw: there is no {source}")
    if source.is_dir() and out_dir.resolve().is_relative_to(source.resolve()):
        raise InputError("--out-dir lies inside --raw: choose another one")
    complete = (out_dir / "manifest.json").exists()
    begun = complete or (out_dir / "work").is_dir()
    if out_dir.is_dir() and not begun and any(out_dir.iterdir()):
        raise InputError(f"{out_dir} holds other files: choose another --out-dir")
    if complete and not force:
        check_up_to_date(source, out_dir, val_share, shard_tokens)
        shutil.rmtree(
            out_dir / "work", ignore_errors=True
        )  # killed before its last act
        return None

    work = out_dir / "work" / VERSION
    work.mkdir(parents=True, exist_ok=True)
    for other in work.parent.iterdir():
        if other != work:
            shutil.rmtree(other)
    files, unusable, num_bytes = [], [], 0

    def jobs():
        nonlocal num_bytes
        for raw, digest in raw_files(source, files, unusable, bar):
            path = work / f"{digest}.npz"
            if load_work(path, "record") is None:
                num_bytes += len(raw)
                yield raw, path

    with progress_bar(source) as bar:
        if workers == 1:
            for job in jobs():
                process(*job)
        else:
            process_in_parallel(jobs(), workers)
    if not files:
        raise InputError(f"--raw: there are no files in {source}")
    kept, dropped, leak = select(files, unusable, work, val_share)
    if not kept:
        reasons = "; ".join(f"{book['file']}: {book['reason']}" for book in dropped[:3])
        raise InputError(f"--raw: no usable book in {source} ({reasons})")

    def records():
        for book in kept:
            tokens = load_work(work / f"{book.pop('digest')}.npz", "tokens")
            del book["sketch"]
            yield book, tokens

    origin = made_from(files, unusable, val_share, shard_tokens)
    manifest = write_shards(out_dir, records(), dropped, shard_tokens, made_from=origin)
    shutil.rmtree(work.parent)
    return manifest, leak, num_bytes


def share(text):
    """Option type: a number from 0 to below 1."""
    try:
        number = float(text)
    except ValueError:
        number = -1
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to below 1")
    return number


def main(argv=None):
    """Command line: prepare a corpus and print what became of it."""
    parser = Parser(
        prog="prepare_dataset",
        description="Turn raw Project Gutenberg files into shards of GPT-2 tokens.",
        epilog="An interrupted run goes on where it was when the same command is given "
        "again. Titles, splits, and the reason for each file left out are in "
        "manifest.json.",
    )
    parser.add_argument(
        "--raw",
        type=Path,
        required=True,
        help="a folder of books, plain text as downloaded, or a tar archive of it",
    )
    parser.add_argument(
        "--out-dir",
        type=Path,
        default=Path("gutenberg_tokens"),
        help="default: %(default)s",
    )
    parser.add_argument(
        "--workers",
        type=positive_int,
        default=min(os.cpu_count() or 1, 8),
        help="processes; the result is the same for any number (default: %(default)s)",
    )
    parser.add_argument(
        "--val-share",
        type=share,
        default=0.02,
        help="about this share of the books is for validation (default: %(default)s)",
    )
    parser.add_argument(
        "--shard-tokens",
        type=positive_int,
        default=SHARD_TOKENS,
        help="tokens in a shard file, 2 bytes each (default: %(default)s)",
    )
    parser.add_argument(
        "--force", action="store_true", help="replace other data in --out-dir"
    )
    args = parser.parse_args(argv)
    options = vars(args)
    source, out_dir = options.pop("raw"), options.pop("out_dir")

    started = time.perf_counter()
    with exit_on_input_error("prepare_dataset"):
        try:
            result = prepare(source, out_dir, **options)
        except KeyboardInterrupt:
            print("Stopped; the same command goes on where it was.", file=sys.stderr)
            raise SystemExit(130) from None
        except OSError as error:
            raise InputError(
                f"cannot use {error.filename or out_dir}: {error.strerror}"
            ) from None
        if result is None:
            print(f"{out_dir} is up to date: made from the same files and options.")
        else:
            report(out_dir, *result, time.perf_counter() - started)


def report(out_dir, manifest, leak, num_bytes, seconds):
    """Print the figures of a data set that has been made."""
    books, dropped = manifest["books"], manifest["dropped"]
    print(f"Kept     {len(books):,} books, {len(dropped):,} files left out")
    reasons = Counter(book["reason"].split(":")[0] for book in dropped)
    for reason, count in reasons.most_common():
        print(f"         {count:5,}  {reason}")
    print(f"Text     {sum(book['characters'] for book in books):,} characters")
    for name, split in manifest["splits"].items():
        count = sum(book["split"] == name for book in books)
        print(
            f"{name:8} {split['tokens']:,} tokens, {split['bytes']:,} bytes, "
            f"{count:,} books, {len(split['shards'])} shards"
        )
        if not count:
            print(f"         No book is for {name}: try another --val-share")
    print(f"Overlap  {leak:.2%} of val's 8-word sequences are in train too")
    print(
        f"Speed    {num_bytes / 1e6:,.1f} MB of raw files in {seconds:.0f} s: "
        f"{num_bytes / 1e6 / seconds:.2f} MB/s"
    )
    print(f"Saved in {out_dir}: shards, and manifest.json, which says what is in them")


if __name__ == "__main__":
    main()
