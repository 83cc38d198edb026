"""The baselines of ch05/gutenberg: n-grams, compressors, and the GPT's bits per byte.

Kneser-Ney is compared with dictionaries and the formula, the GPT's windows with one
forward pass per token. The checks take the component as an argument: they get ours,
which must pass, and ours with a classic mistake in it, which must not.
"""

import json
import lzma
import math
import os
import random
import zlib
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_mutants import NOTICED, each_of, mutate

from ch02.cli import InputError
from ch02.dataloader import get_tokenizer
from ch04.gpt import GPT_CONFIG_124M, GPTModel
from ch05.checkpoint import save_weights
from ch05.gutenberg import compare
from ch05.gutenberg.compare import (
    _windows,
    bits_per_byte,
    lzma_primed,
    main,
    read_books,
    zlib_primed,
)
from ch05.gutenberg.ngram import (
    MAX_ORDER,
    KneserNey,
    count_ngrams,
    estimate_discounts,
    ngram_keys,
)
from ch05.gutenberg.shards import END_OF_TEXT, TokenShards, write_shards

repeatable = settings(derandomize=True, database=None, deadline=None, max_examples=60)
EDGE = 256  # as a symbol; bytes are 0 to 255


# Kneser-Ney, slowly


def pack(symbols):
    """A list of symbols as one key: a number in base 512."""
    number = 0
    for symbol in symbols:
        number = 512 * number + symbol
    return number


def padded_ngrams(book, order):
    """Each symbol of a book, its end included, after the order - 1 before it."""
    symbols = [EDGE] * (order - 1) + list(book) + [EDGE]
    return [tuple(symbols[end - order : end]) for end in range(order, len(symbols) + 1)]


class Reference:
    """The same model from its definition, with dictionaries and recursion."""

    def __init__(self, books, order):
        grams = Counter(gram for book in books for gram in padded_ngrams(book, order))
        self.order, self.followers, self.discounts = order, {}, {}
        for n in range(order, 0, -1):
            self.discounts[n] = self.estimate(list(grams.values()))
            self.followers[n] = defaultdict(dict)
            for gram, count in grams.items():
                self.followers[n][gram[:-1]][gram[-1]] = count
            before = defaultdict(set)
            for gram in grams:
                before[gram[1:]].add(gram[0])
            grams = {gram: len(symbols) for gram, symbols in before.items()}

    @staticmethod
    def estimate(counts):
        n = {k: counts.count(k) for k in (1, 2, 3, 4)}
        if n[1] and n[2] and n[3]:
            y = n[1] / (n[1] + 2 * n[2])
            d = [k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3)]
            if all(value > 0 for value in d):
                return d
        return [0.5, 1.0, 1.5]

    def proba(self, gram, n=None):
        n = self.order if n is None else n
        if n == 0:
            return 1 / 257
        *context, symbol = gram[-n:]
        shorter = self.proba(gram, n - 1)
        followers = self.followers[n].get(tuple(context))
        if not followers:
            return shorter
        d1, d2, d3 = self.discounts[n]
        total = sum(followers.values())
        ones = sum(count == 1 for count in followers.values())
        twos = sum(count == 2 for count in followers.values())
        more = sum(count >= 3 for count in followers.values())
        weight = (d1 * ones + d2 * twos + d3 * more) / total
        count = followers.get(symbol, 0)
        discount = {0: 0, 1: d1, 2: d2}.get(count, d3)
        return (count - discount) / total + weight * shorter

    def bits(self, books):
        return sum(
            -math.log2(self.proba(gram))
            for book in books
            for gram in padded_ngrams(book, self.order)
        )


def words(seed, num_words):
    """A text with the statistics of a text: few words often, many seldom."""
    generator = random.Random(seed)
    vocabulary = ["".join(generator.choices("abcdeé", k=n % 5 + 1)) for n in range(60)]
    weights = [1 / rank for rank in range(1, 61)]
    return " ".join(generator.choices(vocabulary, weights, k=num_words)).encode()


TRAIN = [words(seed, 150) for seed in range(3)] + [b"", b"\0\xff\xff\0", b"a"]
VAL = [words(9, 60), b"", b"\0\xff\xfe", b"never seen: XYZ"]


def fit(model_class, books, order):
    return model_class(*count_ngrams(books, order), order)


def check_kneser_ney(model_class):
    """Every n-gram of the validation text, and the bits of all, for each order."""
    estimated = 0
    for order in range(1, MAX_ORDER + 1):
        model, reference = fit(model_class, TRAIN, order), Reference(TRAIN, order)
        estimated += sum(d != [0.5, 1, 1.5] for d in reference.discounts.values())
        grams = [gram for book in VAL for gram in padded_ngrams(book, order)]
        keys = np.array([pack(gram) for gram in grams], dtype=np.uint64)
        expected = [reference.proba(gram) for gram in grams]
        np.testing.assert_allclose(model.probas(keys), expected, rtol=1e-10)
        bits = model.total_bits(*count_ngrams(VAL, order))
        assert math.isclose(bits, reference.bits(VAL), rel_tol=1e-10)
        assert model.num_ngrams == sum(
            len(followers)
            for level in reference.followers.values()
            for followers in level.values()
        )
    assert estimated >= 10  # so both kinds of discounts were seen


def check_keys(ngram_keys):
    assert ngram_keys(b"", 3).tolist() == [pack([EDGE, EDGE, EDGE])]
    assert ngram_keys(b"ab", 3).tolist() == [
        pack([EDGE, EDGE, 97]),
        pack([EDGE, 97, 98]),
        pack([97, 98, EDGE]),
    ]
    for book in (b"\0", b"\0\0\xff\xff\0", bytes(range(256)), b"\xff" * 9):
        for order in range(1, MAX_ORDER + 1):
            expected = [pack(gram) for gram in padded_ngrams(book, order)]
            assert ngram_keys(book, order).tolist() == expected
            assert len(set(expected)) == len(set(padded_ngrams(book, order)))


def check_counts(count_ngrams):
    for books in (TRAIN, VAL, [b""], [b"aaaa"], [b"ab", b"ba"]):
        for order in (1, 2, 3, 6):
            expected = Counter(
                pack(gram) for book in books for gram in padded_ngrams(book, order)
            )
            for chunk_size in (1, 7, 500, 2**24):
                keys, counts = count_ngrams(books, order, chunk_size)
                assert keys.tolist() == sorted(expected)
                assert counts.tolist() == [expected[key] for key in sorted(expected)]


def check_discounts(estimate):
    for n1, n2, n3, n4 in ((40, 20, 10, 5), (9, 4, 2, 0), (100, 30, 15, 11)):
        counts = np.repeat([1, 2, 3, 4, 9], [n1, n2, n3, n4, 6])
        y = n1 / (n1 + 2 * n2)
        expected = [1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
        np.testing.assert_allclose(estimate(counts), expected)
    for numbers in ((0, 5, 5, 5), (5, 0, 5, 5), (5, 5, 0, 5), (5, 1, 9, 9)):
        counts = np.repeat([1, 2, 3, 4], numbers)
        assert estimate(counts).tolist() == [0.5, 1.0, 1.5]
    # n1 = 4, n2 = 2, n3 = 1, n4 = 1: Y = 1/2
    counts = np.array([1, 1, 1, 1, 2, 2, 3, 4])
    np.testing.assert_allclose(estimate(counts), [0.5, 1.25, 1.0])


# The GPT


CONTEXT = 8
CONFIG = {
    **GPT_CONFIG_124M,
    "context_length": CONTEXT,
    "emb_dim": 12,
    "n_heads": 2,
    "n_layers": 1,
    "drop_rate": 0.5,
}
# Token counts below, at, and above the window and twice the window
TEXTS = ["A", "", "one two three four five six seven", "é 😀 " * 9, "tick tock " * 12]


def write_corpus(folder, train, val):
    tokenizer = get_tokenizer()
    records = [
        (
            {"file": f"{split}-{i}.txt", "split": split, "bytes": len(text.encode())},
            tokenizer.encode(text),
        )
        for split, texts in (("train", train), ("val", val))
        for i, text in enumerate(texts)
    ]
    write_shards(folder, records, shard_tokens=50)
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = write_corpus(tmp_path_factory.mktemp("gpt"), ["nothing"], TEXTS)
    return TokenShards(folder, "val")


def uneven_model(config=CONFIG):
    """Random weights, large enough that every context makes a difference."""
    torch.manual_seed(123)
    model = GPTModel(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


class Uniform(GPTModel):
    """Finds every token equally likely."""

    def forward(self, in_idx):
        return torch.zeros(*in_idx.shape, 50257)


def naive_bits_per_byte(model, stride):
    """One forward pass for each token, with what its window shows of the book."""
    nats = num_bytes = 0
    for text in TEXTS:
        ids = [END_OF_TEXT, *get_tokenizer().encode(text), END_OF_TEXT]
        num_bytes += len(text.encode())
        for place in range(1, len(ids)):
            # The first window that reaches this place
            start = max(0, math.ceil((place - CONTEXT) / stride)) * stride
            with torch.no_grad():
                logits = model(torch.tensor([ids[start:place]]))[0, -1]
            nats -= torch.log_softmax(logits, dim=-1)[ids[place]].item()
    return nats / math.log(2) / num_bytes


@pytest.fixture(scope="module")
def expected_bits():
    model = uneven_model()
    return {stride: naive_bits_per_byte(model, stride) for stride in (1, 3, CONTEXT)}


@pytest.fixture(scope="module")
def check_bits(shards, expected_bits):
    def check(bits_per_byte):
        model = uneven_model()
        for stride, expected in expected_bits.items():
            for batch_size in (1, 2, 64):
                ours = bits_per_byte(model, shards, batch_size, stride)
                assert math.isclose(ours, expected, rel_tol=1e-5)
        assert bits_per_byte(model, shards) == bits_per_byte(model, shards, 4, CONTEXT)
        model.train()  # with dropout, which must not play a part
        ours = bits_per_byte(model, shards)
        assert math.isclose(ours, expected_bits[CONTEXT], rel_tol=1e-5)
        assert model.training

    return check


def check_windows(windows):
    ids = torch.arange(10)
    assert [(i.tolist(), t.tolist()) for i, t in windows(ids, 4, 4)] == [
        ([0, 1, 2, 3], [1, 2, 3, 4]),
        ([4, 5, 6, 7], [5, 6, 7, 8]),
        ([8], [9]),
    ]
    assert [(i.tolist(), t.tolist()) for i, t in windows(ids[:8], 4, 2)] == [
        ([0, 1, 2, 3], [1, 2, 3, 4]),
        ([2, 3, 4, 5], [-100, -100, 5, 6]),
        ([4, 5, 6], [-100, -100, 7]),
    ]
    for num_ids in range(2, 30):
        for context in range(1, 9):
            for stride in range(1, context + 1):
                scored = []
                for inputs, targets in windows(ids := torch.arange(num_ids), context,
                                               stride):  # fmt: skip
                    assert 1 <= len(inputs) == len(targets) <= context
                    is_scored = targets != -100
                    assert torch.equal(targets[is_scored], inputs[is_scored] + 1)
                    scored += targets[is_scored].tolist()
                assert scored == list(range(1, num_ids))
                assert torch.equal(ids, torch.arange(num_ids))


CHECKS = [
    (KneserNey, check_kneser_ney),
    (ngram_keys, check_keys),
    (count_ngrams, check_counts),
    (estimate_discounts, check_discounts),
    (_windows, check_windows),
]


@pytest.mark.parametrize(
    ("component", "check"), CHECKS, ids=lambda thing: thing.__name__
)
def test_agrees_with_the_definition(component, check):
    check(component)


def test_bits_per_byte_is_that_of_a_naive_loop(check_bits):
    check_bits(bits_per_byte)


# Classic mistakes

MUTANTS = {
    (KneserNey, check_kneser_ney): {
        "raw counts for the shorter n-grams": (
            "np.unique(last_symbols(keys, n - 1), return_counts=True)",
            "_merge(last_symbols(keys, n - 1), counts)",
        ),
        "discount forgotten": ("estimate_discounts(counts)[np.minimum(counts, 3) - 1]",
                               "np.zeros(len(counts))"),
        "discount not subtracted": ("counts - discounts", "counts"),
        "one discount for every count": ("np.minimum(counts, 3) - 1", "0 * counts"),
        "discount of the next count": ("np.minimum(counts, 3) - 1",
                                       "np.minimum(counts, 2)"),
        "nothing handed on": ("np.add.reduceat(discounts, starts) / totals",
                              "0 * totals"),
        "handed on by n-grams, not by counts": (
            "np.add.reduceat(discounts, starts) / totals",
            "np.add.reduceat(discounts, starts) / num_followers",
        ),
        "a context unseen is a dead end": ("missing=1.0", "missing=0.0"),
        "oldest symbols instead of the last": (
            "ngrams = last_symbols(keys, n)",
            "ngrams = keys >> BITS * (len(self.levels) - n)",
        ),
        "end of the book forgotten": ("1 / NUM_SYMBOLS", "1 / 256"),
        "nats": ("np.log2", "np.log"),
        "every n-gram counted once": ("counts * np.log2", "np.log2"),
    },
    (ngram_keys, check_keys): {
        "end of a book looks like byte 0": ("<< BITS", "<< 8"),
        "starts with zeros": ("EDGE", "0"),
        "backwards": ("symbols[i :", "symbols[order - 1 - i : order - 1 - i - i +"),
    },
    (count_ngrams, check_counts): {
        "context across the border": (
            "for i, book in enumerate(books):",
            'books = [b"".join(books)]\n    for i, book in enumerate(books):',
        ),
        "last chunk lost": (" or i == len(books) - 1", ""),
        "only the last chunk": ("np.concatenate((keys, more_keys)), "
                                "np.concatenate((counts, more))", "more_keys, more"),
        "chunk counted again": ("waiting, num_waiting = [], 0\n    return",
                                "num_waiting = 0\n    return"),
        "chunk as one each": ("np.concatenate((counts, more))",
                              "np.concatenate((counts, 0 * more + 1))"),
    },
    (estimate_discounts, check_discounts): {
        "n2 once": ("n1 + 2 * n2", "n1 + n2"),
        "factors one too small": ("3 * y", "2 * y"),
        "ratio upside down": ("n4 / n3", "n3 / max(n4, 1)"),
        "negative discounts": ("if min(estimates) > 0", "if True"),
    },
    (_windows, check_windows): {
        "targets not shifted": ("ids[start + 1 : start + 1 +", "ids[start : start +"),
        "tokens counted again": ("targets[: num_scored - start] = NOT_SCORED", ""),
        "one too many left out": ("[: num_scored - start]",
                                  "[: num_scored - start + (start > 0)]"),
        "written into the ids": (".clone()", ""),
        "last window lost": ("num_scored < len(ids) - 1",
                             "num_scored + context_length < len(ids)"),
        "a window too many": ("num_scored < len(ids) - 1", "start < len(ids) - 1"),
    },
}  # fmt: skip

GPT_MUTANTS = {
    "nats": (" / math.log(2)", ""),
    "bits per token": ("shards.num_bytes", "num_tokens"),
    "padding scored": ("pad_sequence(targets, True, NOT_SCORED)",
                       "pad_sequence(targets, True, END_OF_TEXT)"),
    "mean of the batch": ('reduction="sum"', 'reduction="mean"'),
    "dropout on": ("model.eval()", "pass"),
    "left in evaluation mode": ("model.train(was_training)", "pass"),
    "stride ignored": ("shards), context_length, stride)",
                       "shards), context_length, context_length)"),
    "batch transposed": ("targets.flatten()", "targets.T.flatten()"),
    "end of the book not counted": ("_with_ends(book, shards)",
                                    "_with_ends(book, shards)[:-1]"),
    "nothing before the first token": ("_with_ends(book, shards)",
                                       "_with_ends(book, shards)[1:]"),
}  # fmt: skip


@each_of(MUTANTS)
def test_mutant_is_caught(component, check, old, new):
    mutant = mutate(component, old, new)
    with pytest.raises(NOTICED):
        check(mutant)


@pytest.mark.parametrize(("old", "new"), GPT_MUTANTS.values(), ids=GPT_MUTANTS)
def test_mutant_of_bits_per_byte_is_caught(check_bits, old, new):
    mutant = mutate(bits_per_byte, old, new)
    with pytest.raises(NOTICED):
        check_bits(mutant)


# What must hold for any text

BOOKS = st.lists(
    st.lists(st.sampled_from(b"\0\xffab"), max_size=30).map(bytes),
    min_size=1,
    max_size=4,
)


@repeatable
@given(BOOKS, BOOKS, st.integers(1, MAX_ORDER))
def test_any_text_agrees_with_the_definition(train, val, order):
    bits = fit(KneserNey, train, order).total_bits(*count_ngrams(val, order))
    assert math.isclose(bits, Reference(train, order).bits(val), rel_tol=1e-10)


@repeatable
@given(BOOKS, st.data())
def test_probabilities_of_all_symbols_sum_to_1(train, data):
    order = data.draw(st.integers(1, MAX_ORDER))
    symbol = st.sampled_from([0, 255, EDGE, *b"abc"])
    context = data.draw(st.lists(symbol, min_size=order - 1, max_size=order - 1))
    keys = np.array([pack([*context, s]) for s in range(257)], dtype=np.uint64)
    p = fit(KneserNey, train, order).probas(keys)
    assert math.isclose(p.sum(), 1, rel_tol=1e-12)
    assert p.min() > 0


def test_probabilities_sum_to_1_after_every_context_of_a_text():
    for order in (2, 4, 6):
        model = fit(KneserNey, TRAIN, order)
        keys = np.concatenate([ngram_keys(book, order) for book in TRAIN + VAL])
        contexts = np.unique(keys >> 9)
        every = (contexts[:, None] << 9 | np.arange(257, dtype=np.uint64)).ravel()
        sums = model.probas(every).reshape(-1, 257).sum(axis=1)
        np.testing.assert_allclose(sums, 1, rtol=1e-12)


@repeatable
@given(BOOKS, st.integers(1, MAX_ORDER), st.integers(1, 50))
def test_counting_in_chunks_changes_nothing(books, order, chunk_size):
    keys, counts = count_ngrams(books, order)
    chunked = count_ngrams(books, order, chunk_size)
    assert np.array_equal(keys, chunked[0])
    assert np.array_equal(counts, chunked[1])
    assert counts.sum() == sum(map(len, books)) + len(books)


def test_order_1_is_the_closed_form():
    # a three times, b once, the end once; too little to estimate discounts from
    model = fit(KneserNey, [b"aaba"], 1)
    freed = (1.5 + 0.5 + 0.5) / 5
    expected = {
        97: (3 - 1.5) / 5 + freed / 257,
        98: (1 - 0.5) / 5 + freed / 257,
        256: (1 - 0.5) / 5 + freed / 257,
        0: freed / 257,
    }
    keys = np.array(list(expected), dtype=np.uint64)
    np.testing.assert_allclose(model.probas(keys), list(expected.values()))
    bits = model.total_bits(*count_ngrams([b"ab"], 1))
    assert math.isclose(bits, -sum(math.log2(expected[s]) for s in (97, 98, 256)))


def test_a_byte_that_follows_one_byte_only_is_unlikely_elsewhere():
    # u is more frequent than e, but only ever stands after q
    book = b"qu" * 20 + b"aebeceded" * 2
    model = fit(KneserNey, [book], 2)
    after_unseen = np.array([pack([0, ord(c)]) for c in "ue"], dtype=np.uint64)
    p_u, p_e = model.probas(after_unseen)
    assert book.count(b"u") > book.count(b"e")
    assert p_u < p_e / 2


def test_longer_contexts_and_more_data_help_on_a_text_that_repeats():
    def bits(train, order):
        model = fit(KneserNey, [train], order)
        return model.total_bits(*count_ngrams([b"abacabad" * 50], order)) / 400

    by_order = [bits(b"abacabad" * 100, order) for order in range(1, 6)]
    assert by_order == sorted(by_order, reverse=True)
    assert by_order[0] > 1.7  # near the entropy of a half, a quarter, two eighths
    assert by_order[4] < 0.05
    by_data = [bits(b"abacabad" * n, 4) for n in (2, 10, 50, 250)]
    assert by_data == sorted(by_data, reverse=True)


def test_equally_likely_tokens_take_the_logarithm_of_the_vocabulary(shards):
    num_tokens = shards.num_tokens  # end tokens included
    expected = num_tokens * math.log2(50257) / shards.num_bytes
    assert math.isclose(bits_per_byte(Uniform(CONFIG), shards), expected, rel_tol=1e-6)


def test_a_smaller_stride_is_never_computed_from_another_book(shards):
    """The bits of all books are those of each book alone."""
    model, total = uneven_model(), 0
    for book in shards.books:

        class One:
            books, window, num_bytes = [book], shards.window, 1

        total += bits_per_byte(model, One, 2, 3)
    whole = bits_per_byte(model, shards, 5, 3) * shards.num_bytes
    assert math.isclose(whole, total, rel_tol=1e-5)


# Compressors


def test_primed_sizes_are_those_of_the_libraries():
    train, val = [words(1, 400), words(2, 400)], [words(3, 200), b"", words(1, 100)]
    text = b"".join(train)
    expected = 0
    for book in val:
        compressor = zlib.compressobj(level=9, zdict=text)
        size = len(compressor.compress(book) + compressor.flush())
        expected += 8 * size
    assert zlib_primed(train, val) == (expected, None)

    def size(data):
        return len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))

    expected = 8 * (size(text + b"".join(val)) - size(text))
    assert lzma_primed(train, val) == (expected, None)
    # A book that is in the training text costs next to nothing
    assert 0 < zlib_primed(train, train[1:])[0] / len(train[1]) < 0.5
    assert 0 < lzma_primed(train, train[1:])[0] / len(train[1]) < 0.5


def test_only_the_end_of_the_training_text_is_in_the_window(monkeypatch):
    text, noise = words(1, 99), b"-" * 99
    for method, window in ((zlib_primed, "ZLIB_WINDOW"), (lzma_primed, "LZMA_WINDOW")):
        monkeypatch.setattr(compare, window, 60)
        assert method([noise, text], [text]) == method([text[-60:]], [text])
        assert method([text, noise], [text]) == method([noise[-60:]], [text])


# The command line


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    train = [words(seed, 300).decode() for seed in range(4)]
    return write_corpus(
        tmp_path_factory.mktemp("corpus"), train, [words(8, 90).decode(), "A é 😀 end."]
    )


@pytest.fixture
def weights(tmp_path):
    """A file of weights, and the function that writes it anew."""
    path = tmp_path / "model.safetensors"

    def write(model=None, config=CONFIG):
        save_weights(path, model or uneven_model(config), config)
        return path

    write()
    return path, write


def fail(capsys, *arguments):
    """The one line on stderr with which the script refuses."""
    with pytest.raises(SystemExit) as error:
        main([str(argument) for argument in arguments])
    assert error.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_the_table_and_the_file_say_the_same(corpus, weights, tmp_path, capsys):
    out = tmp_path / "rows.json"
    path, _ = weights
    main(["--data", str(corpus), "--out", str(out), "--checkpoint", str(path),
          "--stride", "3"])  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    rows = {row["method"]: row for row in json.loads(out.read_text())["rows"]}
    assert set(rows) == {
        "zlib", "bz2", "lzma", "zlib, primed", "lzma, primed",
        *(f"Kneser-Ney, order {n}" for n in range(1, 7)), f"GPT, {path}, stride 3",
    }  # fmt: skip
    assert len({len(line) for line in lines}) == 1, "not aligned"
    printed = []
    for line in lines[1:]:
        method, bits, parameters, _ = line.rsplit(maxsplit=3)
        row = rows[method.rstrip()]
        assert bits == f"{row['bits_per_byte']:.4f}"
        assert parameters.replace(",", "") == str(row["parameters"] or "-")
        printed.append(row["bits_per_byte"])
    assert printed == sorted(printed, reverse=True)
    assert len(printed) == 12

    train, val = (read_books(TokenShards(corpus, split)) for split in ("train", "val"))
    num_bytes = sum(map(len, val))
    assert val == [words(8, 90), "A é 😀 end.".encode()]
    size = sum(len(zlib.compress(book, 9)) for book in val)
    assert rows["zlib"]["bits_per_byte"] == 8 * size / num_bytes
    for order in (1, 3, 6):
        row, reference = rows[f"Kneser-Ney, order {order}"], Reference(train, order)
        assert math.isclose(row["bits_per_byte"], reference.bits(val) / num_bytes)
    row = rows[f"GPT, {path}, stride 3"]
    ours = bits_per_byte(uneven_model(), TokenShards(corpus, "val"), stride=3)
    assert math.isclose(row["bits_per_byte"], ours, rel_tol=1e-6)
    assert row["parameters"] == sum(p.numel() for p in uneven_model().parameters())


def test_rows_that_are_there_are_not_computed_again(
    corpus, weights, tmp_path, capsys, monkeypatch
):
    path, write = weights
    computed = []

    def watch(name):
        original = getattr(compare, name)

        def watched(*arguments):
            computed.append((name, *(a for a in arguments if isinstance(a, int))))
            return original(*arguments)

        monkeypatch.setattr(compare, name, watched)

    watch("kneser_ney")
    watch("gpt")
    monkeypatch.setattr(compare, "COMPRESSORS", {"zlib": compare.COMPRESSORS["zlib"]})
    command = ["--data", str(corpus), "--out", str(tmp_path / "rows.json")]

    def run(*more):
        computed.clear()
        main([*command, *more])
        return computed, capsys.readouterr().out

    assert run("--orders", "2-3")[0] == [("kneser_ney", 2), ("kneser_ney", 3)]
    first, table = run("--orders", "3-4")
    assert first == [("kneser_ney", 4)]
    assert "order 2" in table
    assert run("--orders", "2-4") == ([], table)
    assert run("--orders", "2-4", "--checkpoint", str(path))[0] == [("gpt", 4)]
    assert run("--orders", "2-4", "--checkpoint", str(path))[0] == []
    # Other weights of the same name are another model
    write(uneven_model({**CONFIG, "n_layers": 2}), {**CONFIG, "n_layers": 2})
    again, table = run("--orders", "2-4", "--checkpoint", str(path))
    assert again == [("gpt", 4)]
    assert table.count("GPT") == 1


def test_rows_before_an_interruption_are_kept(corpus, tmp_path, monkeypatch):
    out = tmp_path / "rows.json"
    kneser_ney = compare.kneser_ney

    def interrupted(order, train, val):
        if order == 3:
            raise KeyboardInterrupt
        return kneser_ney(order, train, val)

    monkeypatch.setattr(compare, "kneser_ney", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main(["--data", str(corpus), "--out", str(out)])
    methods = [row["method"] for row in json.loads(out.read_text())["rows"]]
    assert methods[-1] == "Kneser-Ney, order 2"
    assert len(methods) == 7


def test_less_training_text_is_whole_books(corpus, capsys):
    shards = TokenShards(corpus, "train")
    books = read_books(shards)
    assert len(books) == 4
    assert read_books(shards, 1e-6) == books[:1]
    assert read_books(shards, len(books[0]) / 1e6) == books[:1]
    assert read_books(shards, (len(books[0]) + 1) / 1e6) == books[:2]
    assert read_books(shards, 1e6) == books
    command = ["--data", str(corpus), "--orders", "3"]
    main(command)
    whole = capsys.readouterr().out.splitlines()
    main([*command, "--max-train-mb", "0.001"])
    part = capsys.readouterr().out.splitlines()

    def bits(lines):
        (line,) = (line for line in lines if line.startswith("Kneser-Ney"))
        return float(line.split()[3])

    assert bits(part) > bits(whole)


def test_bad_input_gets_one_line(corpus, weights, tmp_path, capsys):
    path, write = weights
    data = ("--data", corpus)
    for orders in ("0-3", "8", "3-1", "two", "1-9"):
        assert "order from 1 to 7" in fail(capsys, *data, "--orders", orders)
    assert "at least 1" in fail(capsys, *data, "--stride", "0")
    assert "above 0" in fail(capsys, *data, "--max-train-mb", "0")
    assert "prepare_dataset" in fail(capsys, "--data", tmp_path)
    assert "no checkpoint" in fail(capsys, *data, "--checkpoint", tmp_path / "none")
    stride = fail(capsys, *data, "--checkpoint", path, "--stride", CONTEXT + 1)
    assert f"--stride {CONTEXT + 1}" in stride
    small = {**CONFIG, "vocab_size": 300}
    assert "300 tokens" in fail(
        capsys, *data, "--checkpoint", write(uneven_model(small), small)
    )
    broken = uneven_model()
    broken.out_head.weight.data[7] = math.nan
    assert "loss is nan" in fail(capsys, *data, "--checkpoint", write(broken))


def test_a_file_of_rows_that_does_not_fit_is_left_alone(
    corpus, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(compare, "COMPRESSORS", {})
    out = tmp_path / "rows.json"
    command = ("--data", corpus, "--orders", "1", "--out", out)
    main([str(part) for part in command])
    capsys.readouterr()
    before = out.read_bytes()
    assert "--max-train-mb" in fail(capsys, *command, "--max-train-mb", "1")
    other = write_corpus(tmp_path / "other", ["a b c"], ["d e"])
    assert "other data" in fail(capsys, "--data", other, "--out", out)
    assert out.read_bytes() == before

    assert "cannot read" in fail(capsys, *command[:-1], tmp_path)
    assert "cannot write" in fail(capsys, *command[:-1], tmp_path / "no" / "rows.json")
    for text in ("", "[]", "{", '{"rows": [{}], "source": 1}', '{"rows": [1]}', "7"):
        out.write_text(text)
        assert "choose another --out" in fail(capsys, *command)
        assert out.read_text() == text

    def refuse(*paths):
        raise OSError(28, "No space left on device")

    out.write_bytes(before)
    monkeypatch.setattr(os, "replace", refuse)
    assert "No space left" in fail(capsys, *command)
    assert out.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "rows.json"]


def test_the_help_says_what_is_measured(run):
    result = run("python", "-m", "ch05.gutenberg.compare", "--help")
    assert result.returncode == 0
    for term in ("Kneser-Ney", "64 MiB", "--stride", "end of each book"):
        assert term in result.stdout


def test_a_matrix_used_twice_is_counted_once(shards):
    model = uneven_model()
    _, untied = compare.gpt(model, shards, 4, None)
    assert untied == sum(p.numel() for p in model.parameters())
    model.out_head.weight.data = model.tok_emb.weight.data.clone()
    assert compare.gpt(model, shards, 4, None)[1] == untied - 50257 * 12


def test_a_stride_that_skips_tokens_is_refused(shards):
    with pytest.raises(InputError, match="would skip"):
        bits_per_byte(uneven_model(), shards, stride=CONTEXT + 1)
