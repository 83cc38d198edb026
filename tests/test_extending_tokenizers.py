"""New tokens (ch05/extending_tokenizers): every old text, row and logit as it was.

The checks take the component as an argument: they get ours, which must pass, and ours
with a classic mistake in it, which must not.
"""

import copy
import math
import re
from unittest.mock import patch

import numpy as np
import pytest
import tiktoken
import torch
from checks import GPT_CONFIG, close, gpt2_pairs, random_gpt2
from conftest import ROOT
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_mutants import NOTICED, each_of, mutate
from test_notebooks import cells, definitions
from torch import nn

from ch02.cli import InputError
from ch02.dataloader import get_tokenizer, load_text
from ch04.gpt import GPTModel
from ch05.checkpoint import load_model, save_weights
from ch05.extending_tokenizers.extending import (
    GrownHead,
    extend_model,
    extend_tokenizer,
    grow,
    train_new_rows_only,
)
from ch05.gpt_train import calc_loss_batch

FOLDER = ROOT / "ch05/extending_tokenizers"
MARKERS = ["<|user|>", "<|assistant|>", "<|end|>", "ß", "new token", "🙂\n"]
EXTENDED = extend_tokenizer(get_tokenizer(), MARKERS)
IDS = dict(zip(MARKERS, range(50257, 50263), strict=True))
V = GPT_CONFIG["vocab_size"]

repeatable = settings(derandomize=True, database=None, deadline=None, max_examples=100)


def tiny_model(seed=1, is_tied=False, **changes):
    """(a GPTModel with random weights in eval mode, its config)."""
    config = {**GPT_CONFIG, **changes}
    torch.manual_seed(seed)
    model = GPTModel(config).eval()
    for parameter in model.parameters():
        # Norms start at 1 and biases at 0, where a bug might not show
        parameter.data += 0.1 * torch.randn_like(parameter)
    if is_tied:
        model.out_head.weight = model.tok_emb.weight
    return model, config


def logits_of(model, token_ids):
    with torch.no_grad():
        return model(token_ids)


def generator(seed=5):
    return torch.Generator().manual_seed(seed)


def other_kernels():
    """Makes linear layers round by their number of rows, as kernels of any CPU may."""
    real = nn.functional.linear

    def linear(x, weight, bias=None):
        return real(x, weight, bias) * (1 + len(weight) / 1000)

    return patch.object(nn.functional, "linear", linear)


# The checks


def check_extend_tokenizer(extend):
    parts = {
        "pat_str": get_tokenizer()._pat_str,
        "mergeable_ranks": get_tokenizer()._mergeable_ranks,
    }
    old = tiktoken.Encoding("gpt2", special_tokens={"<|endoftext|>": 50256}, **parts)
    new = extend(old, ["<|user|>", "<|assistant|>"])
    assert type(new) is tiktoken.Encoding
    assert new.n_vocab == 50259
    assert new._special_tokens == {
        "<|endoftext|>": 50256,
        "<|user|>": 50257,
        "<|assistant|>": 50258,
    }
    assert new.eot_token == 50256
    assert new._pat_str == parts["pat_str"]
    assert new._mergeable_ranks == parts["mergeable_ranks"]
    assert old._special_tokens == {"<|endoftext|>": 50256}
    assert old.n_vocab == 50257
    # Tokenizers that differ have names that differ
    again = extend(new, ["<|end|>"])
    assert again.encode_single_token("<|end|>") == 50259
    others = [extend(old, [token]) for token in ("<|a|>", "<|b|>")]
    assert len({t.name for t in (old, new, again, *others)}) == 5


def check_grow(grow):
    torch.manual_seed(0)
    old = nn.Parameter(torch.randn(50, 8) * torch.linspace(0.1, 9, 8) + 3)
    grown = grow(old, 3, 0.0, generator())
    assert isinstance(grown, nn.Parameter)
    assert grown.shape == (53, 8)
    assert torch.equal(grown[:50], old)
    close(grown[50:], old.mean(dim=0).expand(3, 8))
    # The noise is as large as asked for, in every column
    noisy = grow(old, 20_000, 0.5, generator())
    assert torch.equal(noisy[:50], old)
    close(noisy[50:].mean(dim=0), old.mean(dim=0), 0.05)
    close(noisy[50:].std(dim=0) / old.std(dim=0, correction=0), torch.full((8,), 0.5),
          0.02)  # fmt: skip
    assert torch.equal(grow(old, 3, 0.5, generator()), grow(old, 3, 0.5, generator()))
    assert not torch.equal(grow(old, 3, 0.5, generator(6)), noisy[:53])
    assert old.shape == (50, 8)
    for dtype in (torch.bfloat16, torch.float64):
        assert grow(nn.Parameter(old.to(dtype)), 1, 0.1, generator()).dtype == dtype
    for requires_grad in (True, False):
        old.requires_grad_(requires_grad)
        assert grow(old, 3, 0.5, generator()).requires_grad is requires_grad


def check_grown_head(head_class):
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(10, 8))
    head = head_class(weight, [5, 2, 3])
    assert isinstance(head, nn.Linear)
    assert (head.in_features, head.out_features, head.bias) == (8, 10, None)
    assert list(head.state_dict()) == ["weight"]
    assert [id(p) for p in head.parameters()] == [id(weight)]
    for shape in ((8,), (4, 8), (3, 4, 8)):
        x = torch.randn(shape)
        close(head(x), nn.functional.linear(x, weight))
        gradients = [
            torch.autograd.grad(f(x).square().sum(), weight)[0]
            for f in (head, lambda x: nn.functional.linear(x, weight))
        ]
        close(*gradients)
        with other_kernels():
            expected = [nn.functional.linear(x, w) for w in weight.split([5, 2, 3])]
            assert torch.equal(head(x), torch.cat(expected, dim=-1))


def check_extend_model(extend):
    for is_tied in (False, True):
        model, config = tiny_model(is_tied=is_tied)
        token_ids = torch.randint(V, (3, 9))
        old, given_config = copy.deepcopy(model), dict(config)
        state = torch.get_rng_state()
        first = extend(model, 2, config)
        once = copy.deepcopy(model)
        second = extend(model, 3, first, noise=0.5)
        assert torch.equal(torch.get_rng_state(), state), "the reader's seed"
        assert config == given_config, "the config given was changed"
        assert first == {**config, "vocab_size": V + 2}
        assert second == {**config, "vocab_size": V + 5}

        emb, head = model.tok_emb, model.out_head
        assert emb.weight.shape == head.weight.shape == (V + 5, 24)
        assert (emb.num_embeddings, head.out_features) == (V + 5, V + 5)
        assert head.bias is None
        assert (emb.weight is head.weight) == is_tied
        assert model.state_dict().keys() == old.state_dict().keys()
        for name, tensor in old.state_dict().items():
            assert torch.equal(model.state_dict()[name][: len(tensor)], tensor)

        for grown, before, n in ((once, old, V), (model, once, V + 2)):
            logits = logits_of(grown, token_ids)
            assert torch.equal(logits[..., :n], logits_of(before, token_ids))
            with other_kernels():
                rounded = logits_of(grown, token_ids)
                assert torch.equal(rounded[..., :n], logits_of(before, token_ids))
        # New ids can be read and written, and are not all the same
        new = torch.arange(V, V + 5).unsqueeze(1)
        assert logits_of(model, new).shape == (5, 1, V + 5)
        assert len(emb.weight[V:].unique(dim=0)) == 5
        spread = (emb.weight[V:] - emb.weight[:V].mean(dim=0)) / emb.weight[:V].std(0)
        assert 0 < spread[:2].abs().max() < 0.05
        assert 0.5 < spread[2:].abs().max() < 2.5
        if not is_tied:
            close(head.weight[V : V + 2], head.weight[:V].mean(dim=0).expand(2, 24))

        # Seeds: the same by default, others on demand
        twins = [copy.deepcopy(old) for _ in range(4)]
        for twin, g in zip(
            twins, (None, generator(123), generator(), generator()), strict=True
        ):
            extend(twin, 2, config, generator=g)
        a, b, c, d = (twin.tok_emb.weight for twin in twins)
        assert torch.equal(a, b)
        assert torch.equal(c, d)
        assert not torch.equal(a, c)
        assert torch.equal(a, once.tok_emb.weight)


def check_new_tokens_stay_unlikely(extend):
    """Also where all logits of a model lie far below 0, or far above."""
    for offset in (-30.0, 0.0, 30.0):
        model, config = tiny_model()
        with torch.no_grad():
            # The final norm's shift meets every row: all logits move together
            model.final_norm.shift += 1.0
            model.out_head.weight += offset / 24
        extend(model, 4, config)
        logits = logits_of(model, torch.randint(V + 4, (8, 16)))
        assert logits[..., :V].mean().sub(offset).abs() < 10
        probas = torch.softmax(logits, dim=-1)
        assert probas[..., V:].max() <= 1 / (V + 4) * 1.0001


def check_train_new_rows_only(train_new_rows_only):
    for is_tied in (False, True):
        model, config = tiny_model(is_tied=is_tied)
        extend_model(model, 3, config)
        before = copy.deepcopy(model.state_dict())
        parameters = train_new_rows_only(model, 3)
        tables = [model.tok_emb.weight, model.out_head.weight]
        assert {id(p) for p in parameters} == {id(p) for p in tables}
        assert len(parameters) == (1 if is_tied else 2)
        trainable = [p for p in model.parameters() if p.requires_grad]
        assert {id(p) for p in trainable} == {id(p) for p in tables}

        optimizer = torch.optim.Adam(parameters, lr=0.1)
        token_ids = torch.randint(V + 3, (8, 17))
        token_ids[0, :3] = torch.arange(V, V + 3)
        for _ in range(3):
            loss = calc_loss_batch(token_ids[:, :-1], token_ids[:, 1:], model, "cpu")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for name, tensor in model.state_dict().items():
            if name in ("tok_emb.weight", "out_head.weight"):
                assert torch.equal(tensor[:V], before[name][:V]), name
                assert (tensor[V:] != before[name][V:]).all(), name
            else:
                assert torch.equal(tensor, before[name]), name


CHECKS = {
    extend_tokenizer: check_extend_tokenizer,
    grow: check_grow,
    GrownHead: check_grown_head,
    extend_model: check_extend_model,
    train_new_rows_only: check_train_new_rows_only,
}


@pytest.mark.parametrize(
    ("component", "check"),
    [*CHECKS.items(), (extend_model, check_new_tokens_stay_unlikely)],
    ids=lambda value: value.__name__,
)
def test_ours_passes(component, check):
    check(component)


HEAD = "GrownHead(new_head, (*sizes, n_new))"
MUTANTS = {
    (extend_tokenizer, check_extend_tokenizer): {
        "last id used again": ("first + i", "first - 1 + i"),
        "one id left out": ("first + i", "first + 1 + i"),
        "alphabetical order": ("(new_tokens)}", "(sorted(new_tokens))}"),
        "all of them one id": ("first + i", "first"),
        "end of text forgotten": ("{**tokenizer._special_tokens, **", "{**"),
        "end of text moved": ("**new_ids}", "**new_ids, '<|endoftext|>': 50259}"),
        "old dict changed": ("{**tokenizer._special_tokens, **new_ids}",
                             "tokenizer._special_tokens.__ior__(new_ids)"),
        "old name kept": ('"+".join([tokenizer.name, *new_tokens])', "tokenizer.name"),
        "name tells the number only": ("*new_tokens]", "str(len(new_tokens))]"),
        "another pattern": ("tokenizer._pat_str", "tokenizer._pat_str + '|x'"),
    },
    (grow, check_grow): {
        "rows inserted at the front": ("torch.cat((old, new))",
                                       "torch.cat((new, old))"),
        "old rows re-initialised": ("torch.cat((old,",
                                    "torch.cat((torch.randn_like(old),"),
        "old rows moved by the noise": ("torch.cat((old,",
                                        "torch.cat((old + 1e-6,"),
        "no mean": ("mean + noise", "noise"),
        "sum instead of mean": ("mean + noise", "mean * len(old) + noise"),
        "mean over the columns": ("dim=0", "dim=1"),
        "noise not scaled": ("noise * std *", "noise *"),
        "noise scaled twice": ("noise * std *", "noise * std * std *"),
        "one draw for all rows": ("(n_new, len(mean))", "(1, len(mean))"),
        "the reader's random numbers": ("generator=generator", "generator=None"),
        "frozen rows thaw": ("requires_grad=weight.requires_grad",
                             "requires_grad=True"),
        "history kept": ("nn.Parameter(grown, requires_grad=weight.requires_grad)",
                         "grown"),
        "always float32": ("torch.cat((old, new))", "torch.cat((old, new)).float()"),
    },
    (GrownHead, check_grown_head): {
        "one product": ("self.weight.split(self.sizes)", "[self.weight]"),
        "new logits first": ("torch.cat(logits", "torch.cat(logits[::-1]"),
        "the first part twice": ("for part in parts", "for part in [parts[0]] * 3"),
        "bias added": ("bias=False, device", "bias=True, device"),
        "weight copied": ("self.weight = weight",
                          "self.weight = nn.Parameter(weight.detach().clone())"),
        "joined along the batch": ("dim=-1", "dim=0"),
        "not trained": ("nn.functional.linear(x, part)",
                        "nn.functional.linear(x, part.detach())"),
    },
    (extend_model, check_extend_model): {
        "bias added to the head": (
            HEAD, "nn.Linear(head.in_features, len(new_head)); "
            "model.out_head.weight = new_head"),
        "one product": (
            HEAD, "nn.Linear(head.in_features, len(new_head), bias=False); "
            "model.out_head.weight = new_head"),
        "embedding grown, head not": (f"model.out_head = {HEAD}", "pass"),
        "head grown, embedding not": (
            "emb.weight, emb.num_embeddings = new_emb, len(new_emb)", "pass"),
        "new head, old weights forgotten": (
            HEAD, "nn.Linear(head.in_features, len(new_head), bias=False)"),
        "number of embeddings forgotten": ("emb.weight, emb.num_embeddings = new_emb,",
                                           "emb.weight, _ = new_emb,"),
        "growths joined": ("(*sizes, n_new)", "(sum(sizes), n_new)"),
        "always tied": ("new_emb if is_tied", "new_emb if True"),
        "never tied": ("new_emb if is_tied", "new_emb if False"),
        "noise in the head": ("n_new, 0.0,", "n_new, noise,"),
        "noise forgotten": ("n_new, noise, generator)", "n_new, 0.0, generator)"),
        "noise ten times too large": ("grow(emb.weight, n_new, noise,",
                                      "grow(emb.weight, n_new, 10 * noise,"),
        "the reader's seed": ("torch.Generator().manual_seed(123)",
                              "torch.default_generator"),
        "generator ignored": ("if generator is None:", "if True:"),
        "another seed": ("manual_seed(123)", "manual_seed(124)"),
        "config not updated": ('{**config, "vocab_size": len(new_emb)}', "config"),
        "config changed in place": (
            'return {**config, "vocab_size": len(new_emb)}',
            "config.update(vocab_size=len(new_emb))\n    return config"),
        "size of the growth as config": ("len(new_emb)}", "n_new}"),
    },
    (extend_model, check_new_tokens_stay_unlikely): {
        "zeros in the head": (
            "    emb.weight, emb",
            "    new_head.data[-n_new:] = 0\n    emb.weight, emb"),
        "random numbers in the head": (
            "    emb.weight, emb",
            "    new_head.data[-n_new:].normal_(0, 0.02)\n    emb.weight, emb"),
        "the largest row in the head": (
            "    emb.weight, emb",
            "    new_head.data[-n_new:] = head.weight.amax(0)\n    emb.weight, emb"),
        "noise in the head": ("n_new, 0.0,", "n_new, 0.5,"),
    },
    (train_new_rows_only, check_train_new_rows_only): {
        "old rows trained": ("gradient[:-n_new] = 0.0", "pass"),
        "first rows trained": ("gradient[:-n_new]", "gradient[n_new:]"),
        "one row too few": ("gradient[:-n_new]", "gradient[: 1 - n_new]"),
        "one row too many": ("gradient[:-n_new]", "gradient[: -n_new - 1]"),
        "blocks trained": ("model.requires_grad_(False)", "pass"),
        "nothing trained": ("weight.requires_grad_(True)",
                            "weight.requires_grad_(True).register_hook("
                            "torch.zeros_like)"),
        "head not trained": ("[model.tok_emb.weight, model.out_head.weight]",
                             "[model.tok_emb.weight]"),
        "one tensor given twice": ("list(dict.fromkeys(weights))", "weights"),
    },
}  # fmt: skip


@each_of(MUTANTS)
def test_mutant_is_caught(component, check, old, new):
    mutant = mutate(component, old, new)
    with pytest.raises((*NOTICED, TypeError)):
        check(mutant)


# The tokenizer: what holds for all texts


@repeatable
@given(st.text())
def test_a_text_without_new_tokens_encodes_as_before(text):
    old = get_tokenizer()
    ordinary = old.encode(text, disallowed_special=())
    # Read as text, new tokens are nothing special; the same id for the same reason
    assert EXTENDED.encode(text, disallowed_special=()) == ordinary
    assert EXTENDED.encode_ordinary(text) == ordinary
    assert EXTENDED.decode(ordinary) == text
    assume(not any(marker in text for marker in MARKERS))
    allowed = EXTENDED.encode(text, allowed_special="all")
    assert allowed == old.encode(text, allowed_special="all")


@repeatable
@given(st.lists(st.sampled_from(MARKERS) | st.text(max_size=9), max_size=9))
def test_new_tokens_are_one_id_each_wherever_they_stand(parts):
    whole = "".join(parts)
    # Texts between the markers, as a reader would split them
    pieces = re.split("(" + "|".join(map(re.escape, MARKERS)) + ")", whole)
    expected = []
    for piece in pieces:
        expected += [IDS[piece]] if piece in IDS else get_tokenizer().encode(
            piece, disallowed_special=()
        )  # fmt: skip
    ids = EXTENDED.encode(
        whole, allowed_special=set(MARKERS), disallowed_special=()
    )  # fmt: skip
    assert ids == expected
    assert EXTENDED.decode(ids) == whole
    assert EXTENDED.encode_ordinary(whole) == get_tokenizer().encode_ordinary(whole)


@pytest.mark.parametrize("marker", MARKERS)
def test_a_new_token_must_be_allowed(marker):
    text = f"before{marker}after"
    with pytest.raises(ValueError, match="disallowed special token"):
        EXTENDED.encode(text)
    with pytest.raises(ValueError, match="disallowed special token"):
        EXTENDED.encode(text, allowed_special={"<|endoftext|>"})
    ids = EXTENDED.encode(text, allowed_special={marker})
    assert ids.count(IDS[marker]) == 1
    ordinary = EXTENDED.encode(text, disallowed_special=())
    assert ordinary == get_tokenizer().encode(text, disallowed_special=())
    assert max(ordinary) < 50256
    assert EXTENDED.decode(ids) == EXTENDED.decode(ordinary) == text


def test_chat_markers_take_one_token_instead_of_five_or_more():
    old = get_tokenizer()
    for marker in MARKERS[:3]:
        assert len(old.encode(marker)) >= 5
        assert EXTENDED.encode(marker, allowed_special="all") == [IDS[marker]]
        assert EXTENDED.decode([IDS[marker]]) == marker
        assert EXTENDED.decode_single_token_bytes(IDS[marker]) == marker.encode()


def test_the_course_s_text_encodes_as_before():
    text = load_text("bundled")
    assert extend_tokenizer(get_tokenizer(), ["<|x|>"]).encode(
        text
    ) == get_tokenizer().encode(text)


def test_a_tokenizer_with_gaps_gets_ids_after_the_last():
    ranks = {bytes([i]): i for i in range(256)}
    gaps = tiktoken.Encoding(
        "gaps", pat_str=".+", mergeable_ranks=ranks, special_tokens={"<end>": 300}
    )
    extended = extend_tokenizer(gaps, ("<a>", "<b>"))
    assert extended.encode("<b>x<a><end>", allowed_special="all") == [
        302, 120, 301, 300]  # fmt: skip
    assert extended.n_vocab == 303


@pytest.mark.parametrize(
    ("new_tokens", "message"),
    [
        (["<|endoftext|>"], "special already"),
        (["<|a|>", "<|b|>", "<|a|>"], "given twice"),
        ([""], "at least one character"),
        (["<|a|>", None], "at least one character"),
        ([b"<|a|>"], "at least one character"),
        ([7], "at least one character"),
        (["<|a\ud800|>"], "whole characters"),
        (["<|a|>", "<|a|>b"], "another one, '<|a|>'; it is '<|a|>b'"),
        (["<|a|>b", "<|a|>", "<|a|>0"], "another one, '<|a|>'; it is '<|a|>0'"),
        (["<|end"], "another one, '<|end'; it is '<|endoftext|>'"),
        ([], "a list of at least one token"),
        ("<|a|>", "a list of at least one token"),
        ({"<|a|>": 50257}, "a list of at least one token"),
        (None, "a list of at least one token"),
    ],
)
def test_tokens_that_cannot_be_are_refused(new_tokens, message):
    with pytest.raises(InputError, match=re.escape(message)) as error:
        extend_tokenizer(get_tokenizer(), new_tokens)
    assert "\n" not in str(error.value)
    assert get_tokenizer().n_vocab == 50257


def test_only_a_tiktoken_encoding_is_extended():
    with pytest.raises(InputError, match=r"must be a tiktoken\.Encoding; it is 'gpt2'"):
        extend_tokenizer("gpt2", ["<|a|>"])


# The model: the same bits


# Sizes for which one product over all rows rounds differently on some CPUs
SIZES = [(5, 24), (31, 48), (97, 24), (128, 96), (935, 48)]


@pytest.mark.parametrize(
    ("threads", "sizes", "growths"), [(1, SIZES, (1, 3, 64)), (2, SIZES[-1:], (3,))]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_old_logits_are_equal_in_every_bit(dtype, threads, sizes, growths):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for vocab_size, width in sizes:
            model, config = tiny_model(vocab_size=vocab_size, emb_dim=width)
            for n_new in growths:
                check_bits(model.to(dtype), config, n_new, ((1, 1), (3, 5), (8, 16)))
        model, config = tiny_model(vocab_size=50257, n_layers=1)
        check_bits(model.to(dtype), config, 2, ((1, 4),))
    finally:
        torch.set_num_threads(before)


def check_bits(model, config, n_new, shapes):
    grown = copy.deepcopy(model)
    config = extend_model(grown, n_new, config)
    twice = copy.deepcopy(grown)
    extend_model(twice, 2, config)
    n_old = config["vocab_size"] - n_new
    for shape in shapes:
        token_ids = torch.randint(n_old, shape)
        old, new = logits_of(model, token_ids), logits_of(grown, token_ids)
        assert torch.equal(new[..., :n_old], old)
        assert torch.equal(logits_of(twice, token_ids)[..., :-2], new)


@repeatable
@given(
    st.integers(2, 40),
    st.integers(1, 40),
    st.sampled_from([2, 8, 14, 32]),
    st.integers(1, 4),
    st.integers(1, 16),
)
def test_old_logits_are_equal_for_any_size(vocab_size, n_new, width, B, T):
    model, config = tiny_model(vocab_size=vocab_size, emb_dim=width, n_heads=2)
    check_bits(model, config, n_new, ((B, T),))


@repeatable
@given(st.integers(0, 2**32), st.integers(1, 50), st.floats(-1e3, 1e3))
def test_the_mean_row_is_at_most_as_likely_as_a_guess(seed, n_new, offset):
    g = generator(seed)
    old = 3 * torch.randn(V, 24, generator=g, dtype=torch.float64)
    hidden = torch.randn(200, 24, generator=g, dtype=torch.float64)
    hidden[:, 0] = 1.0  # through which an offset reaches all logits of a position
    old[:, 0] += offset
    logits = hidden @ grow(old, n_new, 0.0, g).T
    assert torch.softmax(logits, -1)[:, V:].max() <= (1 + 1e-9) / (V + n_new)
    if offset < -100:
        # What nothing ties to the old rows takes it all
        logits[:, V:] = 0.0
        assert torch.softmax(logits, -1)[:, V:].sum(-1).min() > 0.99


def test_equals_resize_token_embeddings_of_transformers():
    theirs = random_gpt2()
    ours = GPTModel(GPT_CONFIG).eval()
    for tensor, other in gpt2_pairs(ours, theirs):
        tensor.data = other.detach().clone()
    token_ids = torch.randint(V, (3, 12))
    before = logits_of(ours, token_ids)
    extend_model(ours, 4, GPT_CONFIG, noise=0.0)
    theirs.resize_token_embeddings(V + 4)

    logits, expected = (
        logits_of(ours, token_ids),
        theirs(token_ids).logits.detach(),
    )
    assert torch.equal(logits[..., :V], before)
    close(logits[..., :V], expected[..., :V])
    # They start at the mean, too, with very little noise
    for tensor, other in gpt2_pairs(ours, theirs):
        close(tensor, other.reshape(tensor.shape), 1e-3)
    # With the same new rows all logits are the same, also after new ids
    for tensor, other in gpt2_pairs(ours, theirs):
        if len(tensor) == V + 4:
            other.data[V:] = tensor[V:].detach()
    token_ids = torch.randint(V + 4, (3, 12))
    close(logits_of(ours, token_ids), theirs(token_ids).logits.detach())


def test_a_model_that_was_not_grown_does_not_know_a_new_id():
    model, _ = tiny_model(vocab_size=50257)
    with pytest.raises(IndexError):
        model(torch.tensor([EXTENDED.encode("<|user|>", allowed_special="all")]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_grown_model_is_saved_and_loaded(dtype, tmp_path):
    model, config = tiny_model()
    config = extend_model(model, 2, config)
    config = extend_model(model, 3, config)
    save_weights(tmp_path / "grown.safetensors", model.to(dtype), config)
    loaded, loaded_config = load_model(tmp_path / "grown.safetensors")
    loaded = loaded.to(dtype)
    assert loaded_config == config
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    token_ids = torch.randint(V + 5, (3, 9))
    expected = logits_of(model, token_ids)
    close(logits_of(loaded, token_ids), expected, 1e-5 if dtype.itemsize > 2 else 0.1)
    loaded.out_head = GrownHead(loaded.out_head.weight, [V, 2, 3])
    assert torch.equal(logits_of(loaded, token_ids), expected)


def test_a_number_of_numpy_is_a_number():
    model, config = tiny_model()
    config = extend_model(model, np.int64(2), config)
    assert type(config["vocab_size"]) is int
    assert type(model.tok_emb.num_embeddings) is int
    assert len(train_new_rows_only(model, np.int64(2))) == 2


def test_an_old_optimizer_trains_nothing_that_is_left_of_the_tables():
    model, config = tiny_model()
    optimizer = torch.optim.SGD([model.tok_emb.weight, model.out_head.weight], lr=1.0)
    extend_model(model, 2, config)
    before = copy.deepcopy(model.state_dict())
    model(torch.tensor([[1, 2]])).sum().backward()
    optimizer.step()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_all_of_a_grown_model_can_be_trained():
    model, config = tiny_model()
    extend_model(model, 2, config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    token_ids = torch.tensor([[1, V, 2, V + 1]]).repeat(2, 3)
    losses = []
    for _ in range(20):
        loss = calc_loss_batch(token_ids[:, :-1], token_ids[:, 1:], model, "cpu")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_new": 0}, "n_new must be a whole number of at least 1; it is 0"),
        ({"n_new": -1}, "n_new must be"),
        ({"n_new": 2.0}, "n_new must be"),
        ({"n_new": True}, "n_new must be"),
        ({"n_new": "2"}, "n_new must be"),
        ({"n_new": ["<|a|>"]}, "n_new must be"),
        ({"config": {"vocab_size": V + 1}}, "config must be the model's"),
        ({"config": {}}, "config must be the model's"),
        ({"config": None}, "config must be the model's"),
        ({"noise": -0.1}, "noise must be"),
        ({"noise": math.nan}, "noise must be"),
        ({"noise": math.inf}, "noise must be"),
        ({"noise": "0.1"}, "noise must be"),
        ({"generator": 123}, "generator must be a torch.Generator or None; it is 123"),
        ({"model": nn.Linear(2, 2)}, "model must be a GPTModel"),
    ],
)
def test_what_cannot_be_grown_is_refused(arguments, message):
    model, config = tiny_model()
    before = copy.deepcopy(model.state_dict())
    arguments = {"model": model, "n_new": 2, "config": config, **arguments}
    with pytest.raises(InputError, match=f"^{re.escape(message)}") as error:
        extend_model(**arguments)
    assert "\n" not in str(error.value)
    assert type(model.out_head) is nn.Linear
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (nn.Linear(24, V), "have no bias; it is Linear"),
        (nn.Linear(24, 2, bias=False), f"from 24 to {V}, as tok_emb has it"),
        (nn.Linear(24, 2), f"from 24 to {V}, as tok_emb has it"),
        (nn.Sequential(nn.Linear(24, V)), "out_head must be an nn.Linear"),
    ],
)
def test_a_head_of_another_kind_is_refused(head, message):
    model, config = tiny_model()
    model.out_head = head
    with pytest.raises(InputError, match=message) as error:
        extend_model(model, 2, config)
    assert "\n" not in str(error.value)
    assert len(model.tok_emb.weight) == V


@pytest.mark.parametrize("n_new", [0, V, V + 1, 1.0, None])
def test_rows_that_are_not_there_are_not_trained(n_new):
    model, _ = tiny_model()
    with pytest.raises(InputError, match=r"^n_new must be"):
        train_new_rows_only(model, n_new)
    assert all(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(InputError, match=r"^model must be a GPTModel"):
        train_new_rows_only(nn.Linear(2, 2), 1)


# The notebook and the README


def test_the_notebook_defines_what_the_module_ships():
    code = cells(FOLDER / "extending_tokenizers.ipynb", "code")
    taught = definitions("\n".join(cell.source for cell in code))
    shipped = definitions((FOLDER / "extending.py").read_text("utf-8"))
    assert {component.__name__ for component in CHECKS} <= taught.keys()
    for name in taught.keys() & shipped.keys():
        assert taught[name] == shipped[name], name


def test_the_readme_s_code_runs(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (FOLDER / "README.md").read_text(),
                         re.DOTALL)  # fmt: skip
    model, config = tiny_model(vocab_size=50257)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/gpt2-nano").mkdir(parents=True)
    save_weights("runs/gpt2-nano/model.safetensors", model, config)
    names = {}
    exec(code, names)  # our own source
    token_ids = torch.tensor([names["tokenizer"].encode("Hello, I am")])
    logits = logits_of(names["model"], token_ids)
    assert logits.shape[-1] == names["tokenizer"].n_vocab == 50259
    assert torch.equal(logits[..., :50257], logits_of(model, token_ids))


def test_the_readme_links_to_files_that_exist():
    text = (FOLDER / "README.md").read_text("utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (FOLDER / target).exists(), target
