"""Characters to ids and back, and windows of ids to train on.

`CharacterTokenizer` has the methods of tiktoken's that the course uses. Ids are kept as
uint16, in memory or in a file that is memory-mapped. How such files are made is in
`extract.py`.

Letters: T characters of a window, V vocabulary.
"""

import json
from hashlib import file_digest, sha256
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler, Subset

from ch02.cli import InputError
from ch02.dataloader import load_text

MAX_CHARACTERS = 2**16  # as many as uint16 can number
VAL_SHARE = 0.1
MAX_VAL_WINDOWS = 1024
SPLITS = ("train", "val")


class CharacterTokenizer:
    """One id for each character, in the order of Unicode.

    characters: str or iterable of the characters, in any order. Raises InputError if
    there are more than 65,536 of them.
    """

    def __init__(self, characters):
        self.characters = "".join(sorted(set(characters)))
        self.n_vocab = len(self.characters)
        if self.n_vocab > MAX_CHARACTERS:
            raise InputError(
                f"the text has {self.n_vocab:,} different characters, ids have room "
                f"for {MAX_CHARACTERS:,}: choose another text"
            )
        self._ids = {character: i for i, character in enumerate(self.characters)}
        # From the number of a character in Unicode to its id
        self._table = np.zeros(0x110000, dtype=np.uint16)
        self._table[code_points(self.characters)] = np.arange(self.n_vocab)

    def encode(self, text, allowed_special=()):
        """Text to a list of ids; to a character model no token is special.

        Raises InputError, naming them and the first one's place, if the vocabulary
        lacks some of the characters.
        """
        try:
            return [self._ids[character] for character in text]
        except KeyError:
            lacking = dict.fromkeys(c for c in text if c not in self._ids)
        first = text.index(next(iter(lacking)))
        line = text.count("\n", 0, first) + 1
        column = first - text.rfind("\n", 0, first)
        names = " ".join(map(repr, list(lacking)[:10]))
        more = f" and {len(lacking) - 10} more" if len(lacking) > 10 else ""
        raise InputError(
            f"not in the vocabulary: {names}{more}, first at line {line}, character "
            f"{column}; the model knows the characters of its training text only"
        )

    def encode_points(self, points):
        """Unicode numbers, all in the vocabulary, to ids: both arrays (n,), uint16."""
        return self._table[points]

    def decode(self, ids):
        """Ids to text."""
        return "".join(self.characters[i] for i in ids)

    def decode_single_token_bytes(self, i):
        """One character in UTF-8, as `ch05.gpt_generate.stream` asks for it."""
        return self.characters[i].encode()


def code_points(text):
    """The numbers of a text's characters in Unicode: an array (n,) of uint32."""
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


def split_index(length):
    """Where the training part of a text ends and the validation part begins."""
    return length - int(length * VAL_SHARE)


def read_text(source=None):
    """A text in memory: (tokenizer, training ids, validation ids, its SHA-256).

    source: as for `load_text`. Ids are arrays (n,) of uint16.
    """
    text = load_text(source)
    points = code_points(text)
    tokenizer = CharacterTokenizer(text)
    ids = tokenizer.encode_points(points)
    end = split_index(len(ids))
    digest = sha256(points.tobytes()).hexdigest()
    return tokenizer, ids[:end], ids[end:], digest


def open_corpus(folder):
    """A corpus of `extract.py`: (tokenizer, training ids, validation ids, SHA-256).

    Ids are arrays (n,) of uint16 that stay on disk. Both files are read once, to
    compare their checksums. Raises InputError, naming the file, if one is missing, cut
    off or altered.
    """
    path = Path(folder) / "corpus.json"
    try:
        record = json.loads(path.read_text("utf-8"))
        tokenizer = CharacterTokenizer(record["characters"])
        ids = []
        for split in SPLITS:
            path = Path(folder) / f"{split}.bin"
            with open(path, "rb") as file:
                digest = file_digest(file, "sha256").hexdigest()
            if digest != record[split]["sha256"]:
                raise InputError(f"{path} was altered or cut off: extract it again")
            size = path.stat().st_size  # an empty file cannot be mapped
            ids.append(np.memmap(path, dtype="<u2", mode="r") if size else np.empty(0))
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}; --data is a folder that "
            "appendix_a.character_gpt.extract has written"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is damaged: extract the texts again") from None
    return tokenizer, *ids, record["train"]["sha256"]


class CharacterWindows(Dataset):
    """Every window of T ids, and the same window one character later.

    ids: array (n,), also one on disk: an item reads T + 1 numbers of it. Item:
    (inputs, targets), both int64 of shape (T,).
    """

    def __init__(self, ids, context_length):
        self.ids, self.context_length = ids, context_length

    def __len__(self):
        return max(len(self.ids) - self.context_length, 0)

    def __getitem__(self, start):
        window = self.ids[start : start + self.context_length + 1]
        window = torch.from_numpy(window.astype(np.int64))  # (T + 1,)
        return window[:-1], window[1:]


def create_loaders(train_ids, val_ids, context_length, batch_size, num_steps):
    """(training loader, validation loader) of batches (batch_size, T).

    Training: num_steps batches of windows that begin anywhere, drawn anew each time
    the loader is used. Validation: the windows side by side, or MAX_VAL_WINDOWS spread
    evenly. Raises InputError if one of the parts has no window.
    """
    train = CharacterWindows(train_ids, context_length)
    val = CharacterWindows(val_ids, context_length)
    for windows, name in ((train, "training"), (val, "validation")):
        if not len(windows):
            raise InputError(
                f"the text is too short: its {name} part has {len(windows.ids)} "
                f"characters, a window needs {context_length + 1}"
            )
    drawn = RandomSampler(train, replacement=True, num_samples=num_steps * batch_size)
    stride = max(context_length, -(-len(val) // MAX_VAL_WINDOWS))
    spread = Subset(val, range(0, len(val), stride))
    return (
        DataLoader(train, batch_size, sampler=drawn),
        DataLoader(spread, batch_size),
    )
