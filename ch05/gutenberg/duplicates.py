"""Which books to keep, and which of them for validation.

Public-domain collections hold many works twice: other editions, parts beside the whole,
a story alone and in a volume of stories. Training on duplicates wastes steps, and a
validation book that also stands in the training data measures memory. Two texts are
compared by hashes of their 8-word sequences, never word by word.
"""

import re
from hashlib import blake2b, sha256

import numpy as np

SHINGLE = 8  # words
# A book is left out if larger ones hold this share of its shingles ...
CONTAINED = 0.5
# ... or if those of the other split hold this share
CONTAINED_ACROSS = 0.05


def sketch_of(text):
    """A sixteenth of the text's 8-word shingles, as sorted 64-bit hashes.

    The hash itself decides which: two texts keep the same ones of what they share, so
    the overlap of the sketches estimates that of the texts (Broder 1997). Case and
    punctuation do not count.
    """
    words = re.findall(r"\w+", text.lower())
    code = {
        word: int.from_bytes(blake2b(word.encode(), digest_size=8).digest(), "little")
        for word in set(words)
    }
    codes = np.array([code[word] for word in words], dtype=np.uint64)
    count = max(len(words) - SHINGLE + 1, 0)
    hashes = np.zeros(count, dtype=np.uint64)
    for i in range(SHINGLE):
        # Modulo 2^64, by a number that makes every place of a word count differently
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + codes[i : i + count]
    # The lower bits know less of the words than the upper ones: mix them
    hashes ^= hashes >> np.uint64(32)
    hashes *= np.uint64(0xD6E8FEB86659FD93)
    return np.unique(hashes[hashes < np.uint64(2**60)])


def split_of(file, title, author, val_share):
    """ "val" for about this share of all books, else "train".

    Depends on the book's author and title alone (on the file's name if it has none): a
    new book moves no other one, and neither does a better cleaning.
    """
    names = ("".join(filter(str.isalnum, name.casefold())) for name in (author, title))
    key = " ".join(names).strip() or file.rsplit("/", 1)[-1]
    # As good as a random number from 0 to 1, but always the same
    number = int(sha256(key.encode()).hexdigest()[:12], 16) / 16**12
    return "val" if number < val_share else "train"


def drop_duplicates(books):
    """Leave out books that larger ones contain.

    books: dicts with "file", "characters", "sha256", "split" and "sketch", whose order
    does not matter. From the largest to the smallest, each is compared with all that
    were kept before it. Returns (kept, dropped, leak): the books that stay; records
    with the reason, which names the book that holds most of the one left out; and the
    share of the validation books' shingles that the training books have too.
    """
    books = sorted(books, key=lambda b: (-b["characters"], b["sha256"], b["file"]))
    sketches = [book["sketch"] for book in books]
    ids = np.unique(np.concatenate([np.empty(0, dtype=np.uint64), *sketches]))
    # The first kept book of each split that has a shingle, by its place; -1: none
    holder = {split: np.full(len(ids), -1) for split in ("train", "val")}
    kept, dropped = [], []
    for i, book in enumerate(books):
        own = np.searchsorted(ids, book["sketch"])
        across = holder["train" if book["split"] == "val" else "val"][own]
        anywhere = np.maximum(holder["train"][own], holder["val"][own])
        for holders, limit, kind in (
            (anywhere, CONTAINED, "near-duplicate"),
            (across, CONTAINED_ACROSS, "too close to the other split"),
        ):
            held = holders[holders >= 0]
            if len(held) and len(held) >= limit * len(own):
                largest = books[np.bincount(held).argmax()]["file"]
                share = 100 * len(held) / len(own)
                dropped.append(
                    {
                        "file": book["file"],
                        "reason": f"{kind}: {share:.0f} % of it, mostly in {largest}",
                    }
                )
                break
        else:
            kept.append(book)
            mine = holder[book["split"]]
            mine[own[mine[own] < 0]] = i
    in_val = holder["val"] >= 0
    leak = (holder["train"][in_val] >= 0).mean() if in_val.any() else 0.0
    return kept, dropped, float(leak)
