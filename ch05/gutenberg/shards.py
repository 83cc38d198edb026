"""Token shards: a corpus as files of token ids, with a manifest that describes them.

`write_shards` writes a folder, `TokenShards` reads one of its splits and leaves it on
disk. A shard `train-0000.bin` holds little-endian uint16 ids, nothing else; every book
is followed by <|endoftext|> and may go on in the next shard. `manifest.json` has sizes,
order and SHA-256 of the shards, and a record per book. It is written last: a folder
that has it is complete.
"""

import json
import os
from bisect import bisect_right
from contextlib import ExitStack
from hashlib import file_digest, sha256
from pathlib import Path

import numpy as np
import torch

from ch02.cli import InputError
from ch02.dataloader import get_tokenizer

FORMAT_VERSION = 1
END_OF_TEXT = 50256
SHARD_TOKENS = 10_000_000
SPLITS = ("train", "val")


class TokenShards:
    """The tokens of one split, read from disk where they are needed.

    folder: written by `write_shards`. split: "train" or "val". verify: compare the
    SHA-256 of every shard, which reads it once. Attributes: `num_tokens`, end tokens
    included; `num_bytes`, of the text in UTF-8, for bits per byte; `books`, the records
    of the manifest: `window(book["start"], book["tokens"])` is a book, its end token
    comes after that. Raises InputError, naming the file, if something is missing,
    incomplete or altered.
    """

    def __init__(self, folder, split, verify=True):
        folder = Path(folder)
        manifest = read_manifest(folder)
        try:
            entry = manifest["splits"][split]
            self.num_tokens = entry["tokens"]
            self.num_bytes = entry["bytes"]
            self.books = [book for book in manifest["books"] if book["split"] == split]
            self._shards = [_open(folder, shard, verify) for shard in entry["shards"]]
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{folder / 'manifest.json'} has no usable entry {error}: prepare the "
                "data again"
            ) from None
        # Where each shard begins, and the end of the last one
        self._starts = np.cumsum([0, *map(len, self._shards)]).tolist()
        if self._starts[-1] != self.num_tokens:
            raise InputError(
                f"{folder / 'manifest.json'}: the shards of {split!r} hold "
                f"{self._starts[-1]} tokens, not {self.num_tokens}"
            )
        if not self.num_tokens:
            raise InputError(
                f"{folder} has no book in the split {split!r}: prepare the data with "
                "more books or another --val-share"
            )

    def __len__(self):
        return self.num_tokens

    def window(self, start, length):
        """The ids from `start` on: int64 of shape (length,), across shard borders.

        Raises IndexError if the split has no such tokens.
        """
        if not 0 <= start <= start + length <= self.num_tokens:
            raise IndexError(
                f"{length} tokens from {start} on: there are {self.num_tokens}"
            )
        ids = np.empty(length, dtype=np.int64)
        done = 0
        while done < length:
            shard = bisect_right(self._starts, start + done) - 1
            begin = start + done - self._starts[shard]
            piece = self._shards[shard][begin : begin + length - done]
            ids[done : done + len(piece)] = piece
            done += len(piece)
        return torch.from_numpy(ids)

    def texts(self):
        """Yield (record, text) of each book; the text is decoded from the tokens."""
        tokenizer = get_tokenizer()
        for book in self.books:
            ids = self.window(book["start"], book["tokens"]).tolist()
            yield book, tokenizer.decode(ids)


def read_manifest(folder):
    """The content of manifest.json, a dict; InputError if there is none to be read."""
    path = Path(folder) / "manifest.json"
    try:
        manifest = json.loads(path.read_text("utf-8"))
        version = manifest["format_version"]
    except FileNotFoundError:
        raise InputError(
            f"{folder} holds no prepared data, or not all of it: run "
            "python -m ch05.gutenberg.prepare_dataset"
        ) from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is damaged: prepare the data again") from None
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path} has format {version!r}, this code reads {FORMAT_VERSION}: "
            "prepare the data again"
        )
    return manifest


def _open(folder, shard, verify):
    """One shard as a read-only array (tokens,) of uint16, which stays on disk."""
    path = folder / Path(shard["file"]).name  # never outside the folder
    try:
        size = path.stat().st_size
        if size != 2 * shard["tokens"]:
            raise InputError(
                f"{path} has {size} bytes, not {2 * shard['tokens']}: prepare the data "
                "again"
            )
        if verify:
            with open(path, "rb") as file:
                digest = file_digest(file, "sha256").hexdigest()
            if digest != shard["sha256"]:
                raise InputError(f"{path} was altered: prepare the data again")
        return np.memmap(path, dtype="<u2", mode="r")
    except FileNotFoundError:
        raise InputError(f"{path} is missing: prepare the data again") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def write_shards(folder, books, dropped=(), shard_tokens=SHARD_TOKENS, **more):
    """Write the shards and the manifest of a corpus; returns the manifest, a dict.

    books: iterable of (record, ids) in the order they are to be stored. A record is a
    dict with "split" ("train" or "val") and "bytes", and whatever else the manifest
    shall say of the book; "start" and "tokens" are added. ids: of the text alone,
    without an end token. dropped: records of what was left out. more: further entries
    of the manifest. Files that are there already are replaced.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # From here on until the end the folder counts as incomplete
    (folder / "manifest.json").unlink(missing_ok=True)
    records = []
    with ExitStack() as stack:
        splits = {
            name: stack.enter_context(_SplitWriter(folder, name, shard_tokens))
            for name in SPLITS
        }
        for record, ids in books:
            split = splits[record["split"]]
            records.append({**record, "start": split.tokens, "tokens": len(ids)})
            split.bytes += record["bytes"]
            split.append(np.asarray(ids, dtype="<u2"))
            split.append(np.array([END_OF_TEXT], dtype="<u2"))
    manifest = {
        "format_version": FORMAT_VERSION,
        "tokenizer": "gpt2",
        **more,
        "splits": {
            name: {"tokens": split.tokens, "bytes": split.bytes, "shards": split.shards}
            for name, split in splits.items()
        },
        "books": records,
        "dropped": list(dropped),
    }
    written = {shard["file"] for split in splits.values() for shard in split.shards}
    for name in SPLITS:
        for path in folder.glob(f"{name}-*.bin*"):
            if path.name not in written:
                path.unlink()  # of an earlier data set, or of a run that was killed
    partial = folder / "manifest.json.partial"
    text = json.dumps(manifest, indent=1, ensure_ascii=False)
    partial.write_text(text + "\n", "utf-8")
    os.replace(partial, folder / "manifest.json")
    return manifest


class _SplitWriter:
    """Appends ids to a split, and begins a new shard whenever one is full."""

    def __init__(self, folder, name, shard_tokens):
        self.folder, self.name, self.shard_tokens = folder, name, shard_tokens
        self.tokens = self.bytes = 0
        self.shards = []
        self._file = None

    def __enter__(self):
        return self

    def append(self, ids):
        while len(ids):
            if self._file is None:
                self._path = self.folder / f"{self.name}-{len(self.shards):04d}.bin"
                self._file = open(f"{self._path}.partial", "wb")  # noqa: SIM115
                self._hash, self._room = sha256(), self.shard_tokens
            piece = ids[: self._room].tobytes()
            self._file.write(piece)
            self._hash.update(piece)
            count = len(piece) // 2
            self.tokens += count
            self._room -= count
            ids = ids[count:]
            if not self._room:
                self._end_shard()

    def _end_shard(self):
        self._file.close()
        os.replace(self._file.name, self._path)
        self._file = None
        tokens = self.shard_tokens - self._room
        self.shards.append(
            {
                "file": self._path.name,
                "tokens": tokens,
                "sha256": self._hash.hexdigest(),
            }
        )

    def __exit__(self, error_type, error, traceback):
        if self._file is None:
            return
        if error_type is None:
            self._end_shard()
        else:
            self._file.close()
            os.unlink(self._file.name)
