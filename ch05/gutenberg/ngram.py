"""Byte-level n-gram models: interpolated, modified Kneser-Ney smoothing.

Such a model predicts a byte from what followed the same few bytes in its training text,
and mixes in the prediction from fewer bytes. Counts are exact and held in memory;
nothing is pruned. Use it:

    model = KneserNey(*count_ngrams(train_books, order=5), order=5)
    bits = model.total_bits(*count_ngrams(val_books, order=5))
"""

from typing import NamedTuple

import numpy as np

EDGE = 256  # the symbol after the last byte of a book; also what stands before it
NUM_SYMBOLS = 257  # what can come next: a byte, or the book's end
BITS = 9  # of one symbol in a key
MAX_ORDER = 64 // BITS  # symbols that fit into one 64-bit key


class Level(NamedTuple):
    """What the model knows about the n-grams of one length, both parts sorted."""

    keys: np.ndarray  # the n-grams seen, uint64
    direct: np.ndarray  # probability of each from its own count, less the discount
    contexts: np.ndarray  # the first n - 1 symbols of these n-grams, uint64
    backoff: np.ndarray  # weight of the shorter context, what the discounts freed


class KneserNey:
    """What comes next, given the order - 1 symbols before (Chen and Goodman 1999).

    With h the context, w the next symbol, h' the context without its oldest symbol:

        p(w | h) = (c(hw) - d) / c(h) + backoff(h) * p(w | h')

    The longest n-grams count how often hw occurs, shorter ones how many different
    symbols have stood before hw; c(h) is the sum of c(hw) over w. d depends on c(hw),
    see `estimate_discounts`, and backoff(h) is what all d of a context add up to,
    divided by c(h). Below one symbol all 257 are equally likely; after an unseen
    context p(w | h') is taken as it is. keys, counts: from `count_ngrams` with the same
    order. Source: https://doi.org/10.1006/csla.1999.0128
    """

    def __init__(self, keys, counts, order):
        self.levels = []
        for n in range(order, 0, -1):
            self.levels.insert(0, self._make_level(keys, counts))
            # An n-gram one shorter occurs once per symbol that stands before it
            keys, counts = np.unique(last_symbols(keys, n - 1), return_counts=True)

    @property
    def num_ngrams(self):
        """How many different n-grams, of all lengths, the model remembers."""
        return sum(len(level.keys) for level in self.levels)

    def probas(self, keys):
        """Probability of each n-gram's last symbol given those before; float64.

        keys: n-grams of the model's order, as from `ngram_keys`, seen or not.
        """
        p = np.full(len(keys), 1 / NUM_SYMBOLS)
        for n, level in enumerate(self.levels, start=1):
            ngrams = last_symbols(keys, n)
            direct = _look_up(ngrams, level.keys, level.direct, missing=0.0)
            contexts = ngrams >> BITS
            backoff = _look_up(contexts, level.contexts, level.backoff, missing=1.0)
            p = direct + backoff * p
        return p

    def total_bits(self, keys, counts):
        """Bits to encode a text, given its n-grams as `count_ngrams` returns them."""
        return float(-np.sum(counts * np.log2(self.probas(keys))))

    def _make_level(self, keys, counts):
        discounts = estimate_discounts(counts)[np.minimum(counts, 3) - 1]
        # Sorted, so the n-grams of one context are neighbours
        contexts, starts = np.unique(keys >> BITS, return_index=True)
        totals = np.add.reduceat(counts, starts)
        num_followers = np.diff(starts, append=len(keys))
        return Level(
            keys,
            (counts - discounts) / np.repeat(totals, num_followers),
            contexts,
            np.add.reduceat(discounts, starts) / totals,
        )


def count_ngrams(books, order, chunk_size=2**24):
    """How often each n-gram of this length occurs in the books.

    books: a list of bytes. chunk_size: n-grams sorted at a time, 8 bytes each; the
    result does not depend on it. Returns (keys uint64, counts int64), sorted by key.
    """
    keys, counts = np.empty(0, np.uint64), np.empty(0, np.int64)
    waiting, num_waiting = [], 0
    for i, book in enumerate(books):
        waiting.append(ngram_keys(book, order))
        num_waiting += len(waiting[-1])
        if num_waiting >= chunk_size or i == len(books) - 1:
            more_keys, more = np.unique(np.concatenate(waiting), return_counts=True)
            keys, counts = _merge(
                np.concatenate((keys, more_keys)), np.concatenate((counts, more))
            )
            waiting, num_waiting = [], 0
    return keys, counts


def ngram_keys(book, order):
    """The n-gram that ends at each byte of a book, and the one at its end.

    One integer each, the last symbol in its lowest 9 bits, the one before in the next.
    Before a book stand order - 1 edges: no n-gram reaches into another book.
    book: bytes. Returns uint64 of shape (len(book) + 1,).
    """
    symbols = np.full(order - 1 + len(book) + 1, EDGE, dtype=np.uint64)
    symbols[order - 1 : -1] = np.frombuffer(book, dtype=np.uint8)
    keys = np.zeros(len(book) + 1, dtype=np.uint64)
    for i in range(order):
        keys = (keys << BITS) | symbols[i : i + len(keys)]
    return keys


def last_symbols(keys, n):
    """The last n symbols of each n-gram, themselves a key."""
    return keys & (2 ** (BITS * n) - 1)


def estimate_discounts(counts):
    """What to subtract from a count of 1, of 2, and of 3 or more; float64 (3,).

    Made from how many n-grams have a count of 1, 2, 3 and 4 (Chen and Goodman 1999).
    Where there are too few for a usable estimate: 0.5, 1 and 1.5, as in KenLM.
    """
    n1, n2, n3, n4 = (np.count_nonzero(counts == c) for c in (1, 2, 3, 4))
    if min(n1, n2, n3) > 0:
        y = n1 / (n1 + 2 * n2)
        estimates = 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3
        if min(estimates) > 0:
            return np.array(estimates)
    return np.array([0.5, 1.0, 1.5])


def _merge(keys, counts):
    """Sort the keys and add up the counts of equal ones."""
    order = np.argsort(keys, kind="stable")  # two sorted halves: one pass merges them
    keys, counts = keys[order], counts[order]
    is_new = np.ones(len(keys), dtype=bool)
    is_new[1:] = keys[1:] != keys[:-1]
    return keys[is_new], np.add.reduceat(counts, is_new.nonzero()[0])


def _look_up(queries, keys, values, missing):
    """The value of each query, where keys (sorted) has it."""
    places = np.searchsorted(keys, queries)
    places[places == len(keys)] = 0
    return np.where(keys[places] == queries, values[places], missing)
