"""Choosing tokens (ch05/decoding): each rule against its definition and transformers.

The checks take the component as an argument: they get ours, which must pass, and ours
with a classic mistake in it, which must not.
"""

import copy
import functools
import itertools
import math
import re
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from checks import GPT_CONFIG, close, gpt2_pairs, random_gpt2
from conftest import ROOT
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_mutants import NOTICED, each_of, mutate
from test_notebooks import cells, definitions

from ch02.cli import InputError
from ch04.gpt import GPTModel
from ch05.decoding.beam_search import beam_search
from ch05.decoding.sampler import (
    Sampler,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize_repetition,
    sample,
)
from ch05.gpt_generate import generate

repeatable = settings(derandomize=True, database=None, deadline=None, max_examples=40)


def kept(logits):
    """The tokens of each row that are still possible, as sets."""
    return [set(row.isfinite().nonzero().flatten().tolist()) for row in logits]


def batches(unique=False):
    """Batches of 1 to 3 rows of 2 to 12 logits; unique: no two in a row are equal."""

    def of_size(vocab_size):
        value = st.integers(-40, 40).map(lambda n: n / 4)
        row = st.lists(value, min_size=vocab_size, max_size=vocab_size, unique=unique)
        return st.lists(row, min_size=1, max_size=3).map(torch.tensor)

    return st.integers(2, 12).flatmap(of_size)


FRACTIONS = st.integers(1, 99).map(lambda n: n / 100)
SAMPLERS = st.builds(
    Sampler,
    temperature=st.sampled_from([0.3, 0.7, 1.0, 1.5, 5.0]),
    top_k=st.none() | st.integers(1, 15),
    top_p=st.none() | FRACTIONS,
    min_p=st.none() | FRACTIONS,
    repetition_penalty=st.sampled_from([1.0, 1.3, 2.0, 0.5]),
)


def transformers_probas(sampler, logits, token_ids):
    """The same settings through the processors of transformers, in its own order."""
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    processors = [
        RepetitionPenaltyLogitsProcessor(float(sampler.repetition_penalty)),
        TemperatureLogitsWarper(float(sampler.temperature)),
    ]
    if sampler.top_k is not None:
        processors.append(TopKLogitsWarper(sampler.top_k))
    if sampler.top_p is not None:
        processors.append(TopPLogitsWarper(sampler.top_p))
    if sampler.min_p is not None:
        processors.append(MinPLogitsWarper(sampler.min_p))
    scores = LogitsProcessorList(processors)(token_ids, logits.clone())
    return torch.softmax(scores, dim=-1)


# The checks


def check_penalty(penalize):
    from transformers import RepetitionPenaltyLogitsProcessor

    logits = torch.tensor([[2.0, -1.0, 0.0, -torch.inf, 3.0, -4.0],
                           [1.0, 5.0, -2.0, 0.5, 0.25, -3.0]])  # fmt: skip
    before = logits.clone()
    token_ids = torch.tensor([[0, 1, 1, 3], [5, 0, 0, 0]])
    for penalty in (1.0, 1.5, 0.5):
        expected = logits.clone()
        for row, ids in enumerate(token_ids.tolist()):
            for token in set(ids):
                factor = penalty if logits[row, token] < 0 else 1 / penalty
                expected[row, token] *= factor
        close(penalize(logits, token_ids, penalty), expected)
        theirs = RepetitionPenaltyLogitsProcessor(penalty)
        close(expected, theirs(token_ids, logits.clone()))
    assert torch.equal(logits, before), "the model's logits were changed"


def check_top_k(keep):
    logits = torch.tensor([[0.1, 3.0, -2.0, 7.0, 1.0], [9.0, 8.0, 7.0, 6.0, 5.0]])
    assert kept(keep(logits, 1)) == [{3}, {0}]
    assert kept(keep(logits, 3)) == [{1, 3, 4}, {0, 1, 2}]
    assert torch.equal(keep(logits, 5), logits)
    assert torch.equal(keep(logits, 99), logits)
    assert torch.equal(keep(logits, 3)[0, [1, 3, 4]], logits[0, [1, 3, 4]])
    # What equals the k-th stays
    assert kept(keep(torch.tensor([[1.0, 2.0, 2.0, 0.0]]), 1)) == [{1, 2}]
    assert kept(keep(torch.tensor([[-torch.inf, 2.0, 1.0]]), 3)) == [{1, 2}]


def check_top_p(keep):
    logits = torch.tensor([[0.1, 0.4, 0.05, 0.3, 0.15], [0.96, 0.01, 0.01, 0.01, 0.01]])
    logits = logits.log() + 2.0  # the probabilities stay
    assert kept(keep(logits, 0.39)) == [{1}, {0}]
    assert kept(keep(logits, 0.41)) == [{1, 3}, {0}]
    assert kept(keep(logits, 0.69)) == [{1, 3}, {0}]
    assert kept(keep(logits, 0.71)) == [{1, 3, 4}, {0}]
    assert kept(keep(logits, 0.01)) == [{1}, {0}]
    # Of equal tokens the first ones
    assert kept(keep(logits, 0.975)) == [{0, 1, 2, 3, 4}, {0, 1, 2}]
    assert torch.equal(keep(logits, 0.6)[0, [1, 3]], logits[0, [1, 3]])
    assert kept(keep(torch.zeros(1, 1000), 0.5)) == [set(range(500))]
    assert kept(keep(torch.tensor([[-torch.inf, 2.0, 1.0]]), 0.999)) == [{1, 2}]


def check_min_p(keep):
    logits = torch.tensor([[0.5, 0.26, 0.24, 0.0], [0.25, 0.25, 0.24, 0.26]]).log()
    logits = logits + 2.0
    assert kept(keep(logits, 0.5)) == [{0, 1}, {0, 1, 2, 3}]
    assert kept(keep(logits, 0.53)) == [{0}, {0, 1, 2, 3}]
    assert kept(keep(logits, 0.94)) == [{0}, {0, 1, 3}]
    assert kept(keep(logits, 1.0)) == [{0}, {3}]
    assert torch.equal(keep(logits, 0.5)[0, [0, 1]], logits[0, [0, 1]])


def check_sampler(sampler_class):
    """All settings together; greedy; where the random numbers come from."""
    torch.manual_seed(0)
    logits = 3 * torch.randn(4, 50)
    token_ids = torch.randint(50, (4, 9))
    for settings_ in (
        {"temperature": 1.0},
        {"temperature": 0.6},
        {"temperature": 3.0, "top_k": 7},
        {"temperature": 2.5, "top_p": 0.8},
        {"temperature": 2.5, "min_p": 0.2},
        {"temperature": 2.0, "repetition_penalty": 1.7},
        {"temperature": 4.0, "top_k": 20, "top_p": 0.7, "min_p": 0.5},
        {"temperature": 0.7, "top_k": 5, "top_p": 0.6, "repetition_penalty": 4.0},
    ):
        sampler = sampler_class(**settings_)
        theirs = transformers_probas(sampler, logits, token_ids)
        close(sampler.probas(logits, token_ids), theirs)

    greedy = sampler_class()
    likeliest = logits.argmax(dim=-1, keepdim=True)
    assert torch.equal(greedy(logits), likeliest)
    assert torch.equal(
        greedy.probas(logits), torch.zeros(4, 50).scatter(1, likeliest, 1)
    )
    # Heavily punished, what has occurred is not taken again; once it was not enough
    punished = sampler_class(repetition_penalty=1e6)
    row = torch.tensor([[5.0, 4.0, 3.0]])
    assert punished(row, torch.tensor([[0]])).tolist() == [[1]]
    assert punished.probas(row, torch.tensor([[0, 1]])).tolist() == [[0, 0, 1]]

    sampler = sampler_class(temperature=2.0)
    many = logits[:1].expand(4000, 50)
    drawn = sampler(many, generator=torch.Generator().manual_seed(1))
    again = sampler(many, generator=torch.Generator().manual_seed(1))
    assert torch.equal(drawn, again)
    counts = torch.bincount(drawn.flatten(), minlength=50) / 4000
    close(counts, torch.softmax(logits[0] / 2.0, dim=-1), 0.03)


def check_sample(sample):
    """Against the book's loop; ends of rows; what the model and the sampler see."""
    table = torch.tensor(
        [
            [0.0, 4.0, 2.0, 1.0],  # after 0 comes 1
            [0.0, 0.0, 4.0, 3.0],  # after 1 comes 2
            [5.0, 0.0, 0.0, 6.0],  # after 2 comes 3
            [9.0, 0.0, 0.0, 0.0],  # after 3 comes 0
        ]
    )
    seen, given_ids = [], []

    def model(idx):
        seen.append(idx.tolist())
        return table[idx]

    def spy(logits, token_ids, generator):
        given_ids.append(token_ids.tolist())
        return Sampler()(logits, token_ids, generator)

    start = torch.tensor([[0], [2]])
    assert sample(model, start, 4, 2, spy).tolist() == [
        [0, 1, 2, 3, 0],
        [2, 3, 0, 1, 2],
    ]
    assert seen == [[[0], [2]], [[0, 1], [2, 3]], [[1, 2], [3, 0]], [[2, 3], [0, 1]]]
    assert given_ids[-1] == [[0, 1, 2, 3], [2, 3, 0, 1]]  # all, not the window

    # A row that has ended stays ended; the other goes on
    assert sample(model, start, 9, 2, Sampler(), 3).tolist() == [[0, 1, 2], [2, 3, 3]]
    assert sample(model, start, 2, 2, Sampler(), 3).tolist() == [[0, 1, 2], [2, 3, 3]]
    assert sample(model, start[:1], 9, 2, Sampler(), 3).tolist() == [[0, 1, 2]]
    # An end token in the prompt is part of the prompt
    ended = torch.tensor([[3]])
    assert sample(model, ended, 3, 2, Sampler(), 3).tolist() == [[3, 0, 1, 2]]
    assert sample(model, start, 0, 2, Sampler()).tolist() == start.tolist()

    torch.manual_seed(0)
    logits = 2 * torch.randn(30, 30)
    for choice in (
        {},
        {"temperature": 1.0},
        {"temperature": 0.5, "top_k": 3},
        {"temperature": 30.0, "top_k": 25},
    ):
        for idx in (torch.tensor([[7]]), torch.tensor([[1, 2], [3, 4], [5, 6]])):
            torch.manual_seed(123)
            theirs = generate(logits.__getitem__, idx, 20, 5, **choice)
            torch.manual_seed(123)
            assert torch.equal(
                sample(logits.__getitem__, idx, 20, 5, Sampler(**choice)), theirs
            )
        torch.manual_seed(123)
        start, end = torch.tensor([[7]]), theirs[0, 9].item()
        theirs = generate(logits.__getitem__, start, 20, 5, **choice, eos_id=end)
        torch.manual_seed(123)
        ours = sample(logits.__getitem__, start, 20, 5, Sampler(**choice), end)
        assert torch.equal(ours, theirs)


def second_order_model(vocab_size, seed):
    """Logits that depend on the last two tokens and on how many were shown."""
    generator = torch.Generator().manual_seed(seed)
    table = 2 * torch.randn(9, vocab_size, vocab_size, vocab_size, generator=generator)

    def model(idx):
        before = torch.nn.functional.pad(idx, (1, 0))[:, :-1]
        return table[idx.shape[1], before, idx]

    return model


def every_text(model, start, n, context_size, vocab_size, eos_id):
    """(log-probability, number of tokens, text) of every text the model can write."""
    for tokens in itertools.product(range(vocab_size), repeat=n):
        if eos_id in tokens:
            end = tokens.index(eos_id) + 1
            if set(tokens[end:]) - {eos_id}:
                continue  # counted where only end tokens follow
            tokens = tokens[:end]
        idx, log_proba = start, 0.0
        for token in tokens:
            logits = model(idx[:, -context_size:])[0, -1]
            log_proba += torch.log_softmax(logits, dim=-1)[token].item()
            idx = torch.cat((idx, torch.tensor([[token]])), dim=1)
        written = [token for token in tokens if token != eos_id]
        yield log_proba, len(tokens), written


def check_beam_search(beam_search):
    """Wide enough it finds the best of all texts; of width 1 it is greedy."""
    start = torch.tensor([[1, 0]])
    lengths = set()
    for seed, eos_id in itertools.product(range(4), (None, 2)):
        model = second_order_model(3, seed)
        texts = list(every_text(model, start, 4, 3, 3, eos_id))
        for penalty in (0.0, 1.0, 3.0, -1.0):
            best = max(texts, key=lambda text: text[0] / text[1] ** penalty)
            ids, log_proba = beam_search(model, start, 4, 3, 81, penalty, eos_id)
            assert ids.tolist() == [[1, 0, *best[2]]]
            assert math.isclose(log_proba, best[0], rel_tol=1e-5)
            lengths.add((penalty, len(best[2])))
        for penalty in (0.0, 1.0, 3.0):
            ids, _ = beam_search(model, start, 6, 3, 1, penalty, eos_id)
            assert torch.equal(ids, generate(model, start, 6, 3, eos_id=eos_id))
    assert {(3.0, 4), (-1.0, 0)} <= lengths  # both sides of the penalty were seen


@functools.cache
def twins():
    """A GPT-2 of transformers with random weights, and ours with the same."""
    torch.manual_seed(0)
    theirs, ours = random_gpt2(), GPTModel(GPT_CONFIG).eval()
    # Small random weights would repeat one token whatever the text is
    for layer, factor in (
        (theirs.lm_head, 10),
        (theirs.transformer.wte, 50),
        (theirs.transformer.wpe, 30),
    ):
        layer.weight.data *= factor
    for tensor, other in gpt2_pairs(ours, theirs):
        tensor.data = other.detach().clone()
    return ours, theirs


def prompt(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 97, (1, 4), generator=generator)


@functools.cache
def transformers_beam_search(seed, num_beams, eos_id, penalty):
    """The new tokens and the score that `generate` of transformers finds."""
    found = twins()[1].generate(
        prompt(seed),
        attention_mask=torch.ones(1, 4, dtype=torch.long),
        max_new_tokens=12,
        num_beams=num_beams,
        do_sample=False,
        length_penalty=penalty,
        early_stopping=True,
        pad_token_id=0,
        eos_token_id=eos_id,
        output_scores=True,
        return_dict_in_generate=True,
    )
    return found.sequences[0, 4:].tolist(), found.sequences_scores.item()


def check_beam_search_equals_transformers(beam_search):
    ours, _ = twins()
    n_ended = n_full = 0
    for seed, num_beams in ((0, 2), (0, 3), (1, 5), (2, 5)):
        unended, _ = transformers_beam_search(seed, num_beams, None, 1.0)
        for eos_id, penalty in (
            (None, 1.0),
            (unended[8], 0.0),
            (unended[8], 2.0),
            (unended[3], 1.0),
        ):
            text, score = transformers_beam_search(seed, num_beams, eos_id, penalty)
            ids, log_proba = beam_search(
                ours, prompt(seed), 12, 16, num_beams, penalty, eos_id
            )
            ended = text[-1] == eos_id
            assert ids[0, 4:].tolist() == (text[:-1] if ended else text)
            assert math.isclose(log_proba / len(text) ** penalty, score, rel_tol=1e-4)
            n_ended, n_full = n_ended + ended, n_full + (not ended)
    assert n_ended >= 5
    assert n_full >= 5


CHECKS = [
    (penalize_repetition, check_penalty),
    (keep_top_k, check_top_k),
    (keep_top_p, check_top_p),
    (keep_min_p, check_min_p),
    (Sampler, check_sampler),
    (sample, check_sample),
    (beam_search, check_beam_search),
    (beam_search, check_beam_search_equals_transformers),
]


@pytest.mark.parametrize(
    ("component", "check"), CHECKS, ids=lambda thing: thing.__name__
)
def test_agrees_with_the_definition_and_with_transformers(component, check):
    check(component)


# Classic mistakes

MUTANTS = {
    (penalize_repetition, check_penalty): {
        "negative logits divided too": ("seen * penalty", "seen / penalty"),
        "every logit multiplied": ("seen / penalty", "seen * penalty"),
        "repetitions rewarded": ("seen > 0", "seen < 0"),
        "all rows punished for the first": ("logits.scatter(1, token_ids, seen)",
                                            "logits.scatter(1, token_ids[:1].expand"
                                            "_as(token_ids), seen)"),
        "written into the model's logits": ("logits.scatter(", "logits.scatter_("),
        "once per occurrence": (
            "return logits.scatter(1, token_ids, seen)",
            "return logits.scatter_add(1, token_ids, seen - logits.gather(1, token_ids)"
            ".nan_to_num())",
        ),
    },
    (keep_top_k, check_top_k): {
        "the k-th dropped too": ("logits < kth", "logits <= kth"),
        "masked with 0": ("-torch.inf", "0.0"),
        "one limit for the batch": ("[:, -1:]", "[:1, -1:]"),
        "limit of the largest": ("values[:, -1:]", "values[:, :1]"),
        "k larger than the vocabulary": ("k = min(k, logits.shape[-1])", "pass"),
        "smallest kept": ("topk(k)", "topk(k, largest=False)"),
    },
    (keep_top_p, check_top_p): {
        "the token that reaches p dropped": ("(1, 0), value=False", "(0, 0)"),
        "the last dropped instead of shifted": ("mass[:, :-1] >= p",
                                                "mass[:, 1:] >= p"),
        "mask left in sorted order": ("scatter(1, order, reached)",
                                      "copy_(reached)"),
        "scattered with the inverse": ("scatter(1, order,",
                                       "scatter(1, order.argsort(-1),"),
        "least likely first": ("descending=True", "descending=False"),
        "logits added up, not probabilities": ("torch.softmax(ordered, dim=-1)",
                                               "ordered"),
        "mass of each token alone": (".cumsum(dim=-1)", ""),
        "softmax over the batch": ("torch.softmax(ordered, dim=-1)",
                                   "torch.softmax(ordered, dim=0)"),
        "masked with 0": ("drop, -torch.inf", "drop, 0.0"),
    },
    (keep_min_p, check_min_p): {
        "a fixed limit": ("largest + math.log(p)", "math.log(p)"),
        "logit times p": ("largest + math.log(p)", "largest * p"),
        "p without its logarithm": ("math.log(p)", "p"),
        "largest of the batch": ("logits.max(dim=-1, keepdim=True).values",
                                 "logits.max()"),
        "the largest itself dropped": ("logits < largest", "logits <= largest"),
    },
    (Sampler, check_sampler): {
        "multiplied by temperature": ("logits / self.temperature",
                                      "logits * self.temperature"),
        "temperature forgotten": ("logits / self.temperature", "logits"),
        "temperature after top-p": (
            "        logits = logits / self.temperature\n"
            "        if self.top_p is not None and self.top_p < 1:\n"
            "            logits = keep_top_p(logits, self.top_p)\n",
            "        if self.top_p is not None and self.top_p < 1:\n"
            "            logits = keep_top_p(logits, self.top_p)\n"
            "        logits = logits / self.temperature\n",
        ),
        "min-p before temperature": (
            "logits = logits / self.temperature",
            "logits = keep_min_p(logits, self.min_p or 1e-9) / self.temperature",
        ),
        "min-p before top-p": (
            "logits = logits / self.temperature",
            "logits = keep_min_p(logits / self.temperature, self.min_p or 1e-9)",
        ),
        "top-p before top-k": (
            "logits = keep_top_k(logits, self.top_k)",
            "logits = keep_top_k(keep_top_p(logits / self.temperature, self.top_p or "
            "1) * self.temperature, self.top_k)",
        ),
        "penalty forgotten when greedy": (
            "self._penalized(logits, token_ids).argmax", "logits.argmax"),
        "penalty after temperature": (
            "logits = self._penalized(logits, token_ids)\n        if",
            "logits = self._penalized(logits / (self.temperature or 1) - logits.max(), "
            "token_ids) * (self.temperature or 1)\n        if",
        ),
        "generator ignored": ("generator=generator", "generator=None"),
        "always greedy": ("if self.temperature == 0:\n            return self._pen",
                          "if True:\n            return self._pen"),
        "min-p ignored": ("if self.min_p:", "if False:"),
    },
    (sample, check_sample): {
        "ended rows go on": ("masked_fill(ended, eos_id)", "clone()"),
        "stops when one row ends": ("ended.all()", "ended.any()"),
        "end token of the prompt counts": (
            "torch.zeros_like(idx[:, :1], dtype=torch.bool)", "idx[:, -1:] == eos_id"),
        "context not cropped": ("idx[:, -context_size:]", "idx"),
        "cropped from the wrong end": ("idx[:, -context_size:]",
                                       "idx[:, :context_size]"),
        "sampler sees the window only": (
            "sampler(logits, idx,", "sampler(logits, idx[:, -context_size:],"),
        "first position instead of last": ("[:, -1, :]", "[:, 0, :]"),
        "end token appended": (
            "                break\n", "                max_new_tokens = 0\n"),
    },
    (beam_search, check_beam_search): {
        "probabilities added": ("torch.log_softmax(", "torch.softmax("),
        "logits added": ("torch.log_softmax(at_least_float32(logits), dim=-1)",
                         "logits"),
        "history forgotten": ("log_probas[:, None] + step", "step"),
        "token and text swapped": ("// vocab_size], tokens[:, None]",
                                   "% vocab_size % len(beams)], tokens[:, None]"),
        "beam not reordered": ("beams[best.indices // vocab_size]",
                               "beams[:1].expand(len(tokens), -1)"),
        "text that ended goes on": ("(~ends).nonzero()", "(ends > -1).nonzero()"),
        "length penalty multiplied": ("/ length**length_penalty",
                                      "* length**length_penalty"),
        "length without the end token": ("best.values[now], length)",
                                         "best.values[now], max(length - 1, 1))"),
        "prompt counted in the length": (
            "/ length**length_penalty", "/ (length + 2) ** length_penalty"),
        "stops at the first end": ("len(ended) >= num_beams", "ended"),
        "texts cut off left out": ("note(beams, log_probas,",
                                   "ended or note(beams, log_probas,"),
        "lowest score wins": ("max(ended", "min(ended"),
        "context not cropped": ("beams[:, -context_size:]", "beams"),
    },
    (beam_search, check_beam_search_equals_transformers): {
        "no candidates in reserve": ("2 * num_beams", "num_beams"),
        "an end counts from any rank": ("ends[:num_beams]", "ends"),
        "one beam too few": ("flatten()[:num_beams]", "flatten()[: num_beams - 1]"),
        "end token kept": ("texts[now, :-1]", "texts[now]"),
    },
}  # fmt: skip


@each_of(MUTANTS)
def test_mutant_is_caught(component, check, old, new):
    mutant = mutate(component, old, new)
    with pytest.raises(NOTICED):
        check(mutant)


# What holds for all logits and settings


@repeatable
@given(batches(), SAMPLERS)
def test_the_mass_is_kept(logits, sampler):
    probas = sampler.probas(logits, torch.zeros(len(logits), 1, dtype=torch.long))
    assert probas.shape == logits.shape
    assert (probas >= 0).all()
    close(probas.sum(dim=-1), torch.ones(len(logits)))


@repeatable
@given(batches(unique=True), SAMPLERS)
def test_equals_the_processors_of_transformers(logits, sampler):
    token_ids = torch.arange(2).expand(len(logits), 2)
    # Where a limit is met to within rounding, either answer is right
    for row in before_the_limits(sampler, logits, token_ids):
        mass = row.sort(descending=True).values.cumsum(0)
        assume(sampler.top_p is None or (mass - sampler.top_p).abs().min() > 1e-5)
        ratio = row / row.max()
        assume(sampler.min_p is None or (ratio - sampler.min_p).abs().min() > 1e-5)
        # transformers would also drop what float32 cannot tell from nothing
        assume(row[row > 0].min() > 1e-6)
    ours = sampler.probas(logits, token_ids)
    close(ours, transformers_probas(sampler, logits, token_ids))


def before_the_limits(sampler, logits, token_ids):
    """The probabilities that top-p and min-p look at."""
    return replace(sampler, top_p=None, min_p=None).probas(logits, token_ids)


@repeatable
@given(batches(unique=True), st.integers(1, 15))
def test_top_k_keeps_k(logits, k):
    support = Sampler(temperature=1.0, top_k=k).probas(logits) > 0
    assert (support.sum(dim=-1) == min(k, logits.shape[-1])).all()


@repeatable
@given(batches(), FRACTIONS)
def test_top_p_keeps_the_fewest_that_reach_p(logits, p):
    full = torch.softmax(logits, dim=-1)
    support = Sampler(temperature=1.0, top_p=p).probas(logits) > 0
    for row, kept_ in zip(full, support, strict=True):
        ordered = row.sort(descending=True).values
        n = int(kept_.sum())
        assert row[kept_].sum() >= p - 1e-5
        assert ordered[: n - 1].sum() <= p + 1e-5  # with one fewer it would not do
        close(row[kept_].sum(), ordered[:n].sum())  # and they are the likeliest


@repeatable
@given(batches(), FRACTIONS)
def test_min_p_keeps_what_reaches_its_share_of_the_largest(logits, p):
    full = torch.softmax(logits, dim=-1)
    share = full / full.max(dim=-1, keepdim=True).values
    support = Sampler(temperature=1.0, min_p=p).probas(logits) > 0
    clear = (share - p).abs() > 1e-6
    assert torch.equal(support[clear], (share >= p)[clear])


@repeatable
@given(batches(), SAMPLERS)
def test_what_is_kept_keeps_its_order_and_the_likeliest(logits, sampler):
    sampler = replace(sampler, repetition_penalty=1.0)
    probas = sampler.probas(logits)
    for row, before in zip(probas, logits, strict=True):
        assert row[before.argmax()] > 0
        order = before.argsort(descending=True, stable=True)
        assert (row[order].diff() <= 1e-6).all()


@repeatable
@given(batches(unique=True), SAMPLERS)
def test_near_temperature_0_is_greedy(logits, sampler):
    token_ids = torch.zeros(len(logits), 1, dtype=torch.long)
    greedy = replace(sampler, temperature=0.0)
    penalized = penalize_repetition(logits, token_ids, sampler.repetition_penalty)
    best_two = penalized.topk(2).values
    assume((best_two[:, 0] - best_two[:, 1]).min() > 0.05)
    cold = replace(sampler, temperature=1e-3)
    assert torch.equal(cold(logits, token_ids), greedy(logits, token_ids))
    close(cold.probas(logits, token_ids), greedy.probas(logits, token_ids))
    assert torch.equal(greedy(logits, token_ids)[:, 0], penalized.argmax(dim=-1))


@repeatable
@given(batches(), SAMPLERS, st.integers(0, 2**32))
def test_a_seed_decides_what_is_drawn(logits, sampler, seed):
    token_ids = torch.zeros(len(logits), 1, dtype=torch.long)
    drawn = []
    for _ in range(2):
        torch.manual_seed(seed)
        drawn.append(sampler(logits, token_ids))
    drawn.append(sampler(logits, token_ids, torch.Generator().manual_seed(seed)))
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])
    assert drawn[0].shape == (len(logits), 1)
    assert drawn[0].dtype == torch.int64
    # Only what is possible is drawn
    assert (sampler.probas(logits, token_ids).gather(1, drawn[0]) > 0).all()


@repeatable
@given(batches(), SAMPLERS)
def test_the_rows_of_a_batch_do_not_see_each_other(logits, sampler):
    token_ids = torch.arange(len(logits)).unsqueeze(1) % logits.shape[1]
    together = sampler.probas(logits, token_ids)
    for i in range(len(logits)):
        close(together[[i]], sampler.probas(logits[[i]], token_ids[[i]]), 1e-6)


@repeatable
@given(batches(), SAMPLERS)
def test_penalty_1_and_limits_at_their_end_do_nothing(logits, sampler):
    token_ids = torch.zeros(len(logits), 1, dtype=torch.long)
    sampler = replace(sampler, repetition_penalty=1.0)
    assert torch.equal(sampler.probas(logits, token_ids), sampler.probas(logits))
    plain = Sampler(temperature=sampler.temperature)
    open_ = replace(plain, top_k=logits.shape[1], top_p=1.0, min_p=0.0)
    assert torch.equal(open_.probas(logits), plain.probas(logits))
    assert torch.equal(penalize_repetition(logits, token_ids, 1.0), logits)


@repeatable
@given(batches(), SAMPLERS, st.data())
def test_an_impossible_token_stays_impossible(logits, sampler, data):
    token = data.draw(st.integers(0, logits.shape[1] - 1))
    logits[:, token] = -torch.inf
    token_ids = torch.full((len(logits), 1), token)
    for chosen in (sampler, replace(sampler, temperature=0.0)):
        probas = chosen.probas(logits, token_ids)
        assert (probas[:, token] == 0).all()
        close(probas.sum(dim=-1), torch.ones(len(logits)))


@repeatable
@given(batches(), SAMPLERS, st.sampled_from([torch.float16, torch.bfloat16]))
def test_half_precision_is_computed_in_float32(logits, sampler, dtype):
    token_ids = torch.zeros(len(logits), 1, dtype=torch.long)
    half = logits.to(dtype)
    probas = sampler.probas(half, token_ids)
    assert probas.dtype == torch.float32
    assert torch.equal(probas, sampler.probas(half.float(), token_ids))
    for chosen in (sampler, replace(sampler, temperature=0.0)):
        assert chosen(half, token_ids).dtype == torch.int64
    assert sampler.probas(logits.double(), token_ids).dtype == torch.float64


@repeatable
@given(st.integers(0, 2**32), st.sampled_from([0.1, 0.7, 1.0, 3.0, 500.0]),
       st.none() | st.integers(1, 60))  # fmt: skip
def test_draws_what_the_book_s_generate_draws(seed, temperature, top_k):
    """Also where rounding makes different logits equal: large, and close together."""
    torch.manual_seed(seed)
    table = 5 * torch.randn(50, 50) + 1e4 * torch.randn(50, 1)
    idx = torch.randint(50, (3, 2))
    torch.manual_seed(seed)
    theirs = generate(table.__getitem__, idx, 15, 4, temperature, top_k)
    torch.manual_seed(seed)
    sampler = Sampler(temperature, top_k)
    assert torch.equal(sample(table.__getitem__, idx, 15, 4, sampler), theirs)


@repeatable
@given(st.integers(0, 2**32), st.integers(1, 4))
def test_a_wider_beam_of_every_text_finds_no_less_than_greedy(seed, n):
    model = second_order_model(3, seed)
    start = torch.tensor([[0, 1]])
    greedy, log_proba = beam_search(model, start, n, 8, 1)
    assert torch.equal(greedy, generate(model, start, n, 8))
    best, highest = beam_search(model, start, n, 8, 3**n)
    assert highest >= log_proba - 1e-5
    assert best.shape == (1, 2 + n)


def test_a_real_model_samples_alike_through_both_loops():
    ours, _ = twins()
    idx = torch.randint(97, (2, 20))
    for temperature, top_k in ((0.0, None), (0.8, None), (1.5, 10)):
        torch.manual_seed(123)
        theirs = generate(ours, idx, 10, 16, temperature, top_k)
        torch.manual_seed(123)
        assert torch.equal(
            sample(ours, idx, 10, 16, Sampler(temperature, top_k)), theirs
        )


def test_a_beam_in_half_precision_counts_in_float32():
    ours, _ = twins()
    idx = torch.tensor([[1, 2, 3]])
    ids, log_proba = beam_search(copy.deepcopy(ours).bfloat16(), idx, 6, 16, 3)
    assert ids.shape == (1, 9)
    assert log_proba < 0


# What is refused


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", v) for v in (-0.1, 1e-4, 1e4, math.nan, math.inf, "1", None)),
        *(("temperature", True),),
        *(("top_k", v) for v in (0, -1, 2.0, "3", True, math.nan)),
        *(("top_p", v) for v in (0, -0.5, 1.01, math.nan, "0.9", True)),
        *(("min_p", v) for v in (-0.1, 1.1, math.nan, "0.1", False)),
        *(("repetition_penalty", v) for v in (0, -1, math.inf, math.nan, None, True)),
    ],
)
def test_a_setting_out_of_range_is_named(name, value):
    with pytest.raises(InputError, match=f"^{name} must be") as error:
        Sampler(**{name: value})
    assert repr(value) in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_on_the_edge_are_taken():
    import numpy as np

    Sampler(0, 1, 1, 0, 1)
    Sampler(1e-3, 1, 1e-9, 1, 1e-9)
    Sampler(np.float32(0.5), np.int64(3), np.float64(0.5), np.float32(0.5))
    assert Sampler() == Sampler(0.0, None, None, None, 1.0)
    with pytest.raises(FrozenInstanceError):
        Sampler().temperature = 1.0


def test_a_penalty_without_the_text_is_refused():
    with pytest.raises(InputError, match="repetition_penalty needs token_ids"):
        Sampler(repetition_penalty=1.2)(torch.zeros(1, 3))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"num_beams": 0}, "num_beams"),
        ({"num_beams": 2.0}, "num_beams"),
        ({"num_beams": True}, "num_beams"),
        ({"num_beams": 2, "length_penalty": math.nan}, "length_penalty"),
        ({"num_beams": 2, "length_penalty": "1"}, "length_penalty"),
        ({"num_beams": 2, "idx": torch.zeros(2, 1, dtype=torch.long)}, "idx"),
    ],
)
def test_a_beam_that_cannot_be_is_refused(arguments, name):
    arguments = {"idx": torch.tensor([[0]]), **arguments}
    with pytest.raises(InputError, match=f"^{name} must"):
        beam_search(None, max_new_tokens=3, context_size=4, **arguments)


def test_no_new_tokens_is_no_error():
    idx = torch.tensor([[1, 2]])
    ids, log_proba = beam_search(None, idx, 0, 4, 3)
    assert ids.tolist() == [[1, 2]]
    assert log_proba == 0


# The notebook


def test_the_notebook_defines_what_the_module_ships():
    folder = ROOT / "ch05/decoding"
    source = "\n".join(c.source for c in cells(folder / "decoding.ipynb", "code"))
    taught = definitions(re.sub(r"(?m)^(\s*)[%!].*$", r"\1pass", source))
    shipped = definitions((folder / "sampler.py").read_text("utf-8"))
    filters = {"penalize_repetition", "keep_top_k", "keep_top_p", "keep_min_p"}
    assert filters <= taught.keys()
    for name in taught.keys() & shipped.keys():
        assert taught[name] == shipped[name], name
