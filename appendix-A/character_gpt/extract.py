"""Text files and `.xz` archives of text to a corpus of character ids on disk.

Worker processes unpack; each writes files of its own and hands back the characters it
has met, so nothing is shared that two of them could write at once. The main process
joins the sets and writes the ids: the same whatever the number of workers. Run it:
`python -m appendix_a.character_gpt.extract --source FOLDER` prints what became of it.
"""

import json
import lzma
import multiprocessing
import os
import shutil
import sys
import tarfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from hashlib import file_digest
from io import BytesIO, TextIOWrapper
from pathlib import Path

import numpy as np
from tqdm import tqdm

from appendix_a.character_gpt.characters import (
    SPLITS,
    CharacterTokenizer,
    code_points,
    split_index,
)
from ch02.cli import InputError, Parser, exit_on_input_error, positive_int
from ch05.gutenberg.prepare_dataset import start_worker
from ch05.gutenberg.raw import files_below

SUFFIXES = (".txt", ".xz")
CHUNK = 2**20  # characters in memory at a time


# In a worker: one file


def read_characters(path, work):
    """Unpack one file into the folder `work`; returns its record, a dict.

    The record has the characters that occur, and the name of the file that holds the
    text as Unicode numbers (uint32); or the reason why the file cannot be used.
    """
    try:
        with open(path, "rb") as file:
            digest = file_digest(file, "sha256").hexdigest()
        done = work / f"{digest}.json"
        if done.exists():  # from before an interruption
            return json.loads(done.read_text("utf-8"))
        characters, points = set(), work / f"{digest}.points"
        partial = work / f"{digest}.{os.getpid()}.partial"
        with open(partial, "wb") as file:
            for chunk in text_chunks(path):
                characters.update(chunk)
                file.write(code_points(chunk).tobytes())
    except (lzma.LZMAError, tarfile.TarError, EOFError) as error:
        return {"reason": f"is damaged or cut off ({error})"}
    except UnicodeDecodeError:
        return {"reason": "is not UTF-8"}
    except OSError as error:
        return {"reason": f"cannot be read ({error.strerror or error})"}
    if "\0" in characters or not characters:
        return {"reason": "is a binary file" if characters else "is empty"}
    os.replace(partial, points)
    record = {"characters": "".join(sorted(characters)), "points": points.name}
    partial.write_text(json.dumps(record), "utf-8")
    os.replace(partial, done)
    return record


def text_chunks(path):
    """Yield a file's text in pieces of at most CHUNK characters, with "\\n" line ends.

    An archive may hold one text, or a tar archive of texts, as OpenWebText's do: then
    they follow each other, an empty line between them.
    """
    with (lzma.open if path.suffix == ".xz" else open)(path, "rb") as file:
        is_tar = file.read(tarfile.BLOCKSIZE)[257:262] == b"ustar"
        file.seek(0)
        for stream in members(file) if is_tar else [file]:
            with TextIOWrapper(stream, encoding="utf-8-sig") as text:
                while chunk := text.read(CHUNK):
                    yield chunk
            if is_tar:
                yield "\n\n"


def members(file):
    """Yield each regular file of a tar archive as a binary file."""
    with tarfile.open(fileobj=file, mode="r|") as archive:
        for member in filter(tarfile.TarInfo.isreg, archive):
            yield BytesIO(archive.extractfile(member).read())


# In the main process: all files


def unpack_all(paths, work, workers):
    """Yield read_characters(path, work) of each path, in order."""
    jobs = paths, [work] * len(paths)
    bar = {"total": len(paths), "desc": "Unpacking", "unit": "file", "leave": False}
    if workers == 1:
        yield from tqdm(map(read_characters, *jobs), disable=None, **bar)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, start_worker) as pool:
        try:
            yield from tqdm(pool.map(read_characters, *jobs), disable=None, **bar)
        except BrokenProcessPool:
            raise InputError(
                "a worker process was killed, perhaps for want of memory: the same "
                "command with fewer --workers goes on where this one stopped"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def extract(source, out_dir, workers=1):
    """Write the corpus of a file, or of all below a folder; returns its record, a dict.

    out_dir: a folder that is not there yet; it appears when it is complete. Interrupted
    and started again, it goes on where it was. Raises InputError if there is no usable
    text, OSError if the folder cannot be read or written.
    """
    source, out_dir = Path(source), Path(out_dir)
    if out_dir.exists():
        raise InputError(f"{out_dir} is there already: choose another --out-dir")
    folder = source.parent if source.is_file() else source
    paths = [source] if source.is_file() else files_below(source)
    paths = [path for path in paths if path.suffix in SUFFIXES]
    if not paths:
        raise InputError(f"--source: {source} has no {' or '.join(SUFFIXES)} file")
    partial = out_dir.with_name(f"{out_dir.name}.partial")
    work = partial / "work"
    work.mkdir(parents=True, exist_ok=True)

    good, skipped = [], {}
    for path, record in zip(paths, unpack_all(paths, work, workers), strict=True):
        if "reason" in record:
            skipped[path.relative_to(folder).as_posix()] = record["reason"]
        else:
            good.append(record)
    if not good:
        shutil.rmtree(partial)
        name, reason = next(iter(skipped.items()))
        raise InputError(f"--source: no usable text; {name} {reason}")

    # The union of sets does not ask who came first
    tokenizer = CharacterTokenizer(set().union(*(r["characters"] for r in good)))
    corpus = {"files": len(good), "skipped": skipped}
    corpus["characters"] = tokenizer.characters
    for split in SPLITS:
        points = (np.memmap(work / r["points"], "<u4", "r") for r in good)
        corpus[split] = write_ids(partial / f"{split}.bin", points, split, tokenizer)
    text = json.dumps(corpus, indent=1, ensure_ascii=False)
    (partial / "corpus.json").write_text(text + "\n", "utf-8")
    shutil.rmtree(work)
    os.replace(partial, out_dir)
    return corpus


def write_ids(path, texts, split, tokenizer):
    """Write a split's part of all texts, arrays of Unicode numbers, as uint16 ids."""
    with open(path, "wb+") as file:
        for points in texts:
            end = split_index(len(points))
            part = points[:end] if split == "train" else points[end:]
            for start in range(0, len(part), CHUNK):
                ids = tokenizer.encode_points(part[start : start + CHUNK])
                file.write(ids.astype("<u2").tobytes())
        length = file.tell() // 2
        file.seek(0)
        return {"length": length, "sha256": file_digest(file, "sha256").hexdigest()}


def main(argv=None):
    """Command line: extract a corpus and print what it consists of."""
    parser = Parser(
        prog="extract",
        description="Unpack .xz archives and .txt files into a corpus of characters "
        "that is read from disk while a model is trained.",
    )
    add = parser.add_argument
    add("--source", required=True, metavar="PATH", help="a folder, or one file")
    add("--out-dir", default="characters", metavar="DIR", help="(default: %(default)s)")
    workers = min(os.cpu_count() or 1, 8)
    add("--workers", type=positive_int, default=workers, metavar="N",
        help="processes; all give the same result (default: %(default)s)")  # fmt: skip
    args = parser.parse_args(argv)
    with exit_on_input_error("extract"):
        try:
            corpus = extract(args.source, args.out_dir, args.workers)
        except KeyboardInterrupt:
            print("Stopped; the same command goes on where it was.", file=sys.stderr)
            raise SystemExit(130) from None
        except OSError as error:
            place = error.filename or args.out_dir
            raise InputError(f"cannot use {place}: {error.strerror}") from None
        for name, reason in corpus["skipped"].items():
            print(f"Skipped  {name} {reason}")
        print(f"Texts    {corpus['files']:,}")
        print(f"Alphabet {len(corpus['characters']):,} characters")
        for split in SPLITS:
            print(f"{split:8} {corpus[split]['length']:,} characters")
        print(f"Saved in {args.out_dir}")


if __name__ == "__main__":
    main()
