"""Choose the next token: greedy, temperature, top-k, top-p, min-p, repetition penalty.

`Sampler` holds the settings and turns logits into probabilities and tokens; every model
of the course can use it. `sample` is the loop around a model. With temperature and
top_k alone it draws what the book's `generate` draws. Beam search is in
`beam_search.py`. Use it:

    sampler = Sampler(temperature=0.8, top_p=0.9)
    sample(model, idx, 50, context_size, sampler, eos_id)

Letters: B batch, T tokens, V vocabulary.
"""

import math
from dataclasses import dataclass, fields
from numbers import Integral, Real

import torch

from ch02.cli import InputError, positive_int


def penalize_repetition(logits, token_ids, penalty):
    """Make every token that has already occurred less likely (Keskar et al. 2019).

    A positive logit is divided by the penalty, a negative one multiplied, once however
    often the token occurred. Shapes: (B, V) and (B, T) -> (B, V). arXiv:1909.05858.
    """
    seen = logits.gather(1, token_ids)  # (B, T)
    seen = torch.where(seen > 0, seen / penalty, seen * penalty)
    return logits.scatter(1, token_ids, seen)  # (B, V)


def keep_top_k(logits, k):
    """Set all but the k largest logits of a row to -inf (Fan et al. 2018).

    What equals the k-th stays too. Shape: (B, V) -> (B, V). arXiv:1805.04833.
    """
    k = min(k, logits.shape[-1])
    kth_largest = logits.topk(k).values[:, -1:]  # (B, 1)
    return logits.masked_fill(logits < kth_largest, -torch.inf)


def keep_top_p(logits, p):
    """Keep the fewest likeliest tokens that hold the mass p (Holtzman et al. 2019).

    The others get the logit -inf. Shape: (B, V) -> (B, V). arXiv:1904.09751.
    """
    # Stable: of two equal tokens the first counts as the likelier, on every machine
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    mass = torch.softmax(ordered, dim=-1).cumsum(dim=-1)  # (B, V)
    # A token is needed as long as those before it do not reach p; the first always is
    reached = mass[:, :-1] >= p  # (B, V - 1)
    reached = torch.nn.functional.pad(reached, (1, 0), value=False)  # (B, V)
    drop = torch.zeros_like(reached).scatter(1, order, reached)
    return logits.masked_fill(drop, -torch.inf)


def keep_min_p(logits, p):
    """Drop tokens with less than p times the largest probability (Nguyen et al. 2024).

    Shape: (B, V) -> (B, V). arXiv:2407.01082.
    """
    # The ratio of two probabilities is exp of the difference of their logits
    largest = logits.max(dim=-1, keepdim=True).values  # (B, 1)
    return logits.masked_fill(logits < largest + math.log(p), -torch.inf)


@dataclass(frozen=True)
class Sampler:
    """How the next token is chosen; the defaults are greedy.

    temperature: 0 takes the likeliest token; larger values flatten the distribution.
    top_k, top_p, min_p: draw only from the tokens each of them keeps.
    repetition_penalty: above 1 makes tokens of the text so far less likely. Raises
    InputError, naming the setting, if one is out of range.

    The order is that of the transformers library: penalty, temperature, top-k, top-p,
    min-p. The penalty comes first, because it depends on a logit's sign and size as the
    model gave it. The temperature comes before top-p and min-p, because they look at
    probabilities. Top-k looks at the order alone, which no temperature changes, so it
    can go before the division, as in the book. Top-p counts the mass of what top-k
    kept; min-p compares with the largest, which nothing removes.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self):
        t, p, penalty = self.temperature, self.top_p, self.repetition_penalty
        require(
            is_number(t) and (t == 0 or 1e-3 <= t <= 1e3),
            "temperature must be 0 or a number from 0.001 to 1000",
            t,
        )
        k = self.top_k
        require(
            k is None or (is_number(k) and isinstance(k, Integral) and k >= 1),
            "top_k must be a whole number of at least 1, or None",
            k,
        )
        require(
            p is None or (is_number(p) and 0 < p <= 1),
            "top_p must be above 0 and at most 1, or None",
            p,
        )
        require(
            self.min_p is None or (is_number(self.min_p) and 0 <= self.min_p <= 1),
            "min_p must be from 0 to 1, or None",
            self.min_p,
        )
        require(
            is_number(penalty) and 0 < penalty < math.inf,
            "repetition_penalty must be a number above 0 (1 changes nothing)",
            penalty,
        )

    def probas(self, logits, token_ids=None):
        """Probabilities of the next token: (B, V), rows sum to 1.

        logits: (B, V), the model's, not changed. token_ids: (B, T), the text so far,
        which only the repetition penalty needs. Half precision is computed in float32.
        """
        logits = self._penalized(logits, token_ids)
        if self.temperature == 0:
            likeliest = logits.argmax(dim=-1, keepdim=True)  # (B, 1)
            return torch.zeros_like(logits).scatter(1, likeliest, 1.0)
        if self.top_k is not None:
            logits = keep_top_k(logits, self.top_k)
        # The largest becomes 0, so that a small temperature cannot overflow
        logits = logits - logits.max(dim=-1, keepdim=True).values
        logits = logits / self.temperature
        if self.top_p is not None and self.top_p < 1:
            logits = keep_top_p(logits, self.top_p)
        if self.min_p:
            logits = keep_min_p(logits, self.min_p)
        return torch.softmax(logits, dim=-1)

    def __call__(self, logits, token_ids=None, generator=None):
        """The next token of each row: (B, 1) int64.

        logits, token_ids: as in `probas`. generator: where the random numbers come
        from, on the device of the logits (default: PyTorch's own).
        """
        if self.temperature == 0:
            return self._penalized(logits, token_ids).argmax(dim=-1, keepdim=True)
        probas = self.probas(logits, token_ids)
        return torch.multinomial(probas, num_samples=1, generator=generator)

    def _penalized(self, logits, token_ids):
        logits = at_least_float32(logits)
        if self.repetition_penalty == 1:
            return logits
        require(token_ids is not None, "repetition_penalty needs token_ids", None)
        return penalize_repetition(logits, token_ids, self.repetition_penalty)


def add_sampler_options(parser):
    """Give an ArgumentParser one option for each setting of a Sampler."""
    add = parser.add_argument_group("choosing the next token").add_argument
    add("--temperature", type=float, default=0.0, metavar="T",
        help="0 (default): the likeliest; above 0 they are drawn, with")  # fmt: skip
    add("--top-k", type=positive_int, metavar="K", help="only the K likeliest tokens")
    add("--top-p", type=float, metavar="P",
        help="only the fewest tokens that hold the probability P")  # fmt: skip
    add("--min-p", type=float, metavar="P",
        help="only tokens with at least P times the largest probability")  # fmt: skip
    add("--repetition-penalty", type=float, default=1.0, metavar="X",
        help="above 1: what occurred becomes less likely")  # fmt: skip


def sampler_from(args):
    """The Sampler for options read with `add_sampler_options`."""
    return Sampler(
        **{field.name: getattr(args, field.name) for field in fields(Sampler)}
    )


def at_least_float32(logits):
    """Half precision as float32, everything else as it is."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def is_number(value):
    """Whether this is a number, of Python or numpy; True and False are not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def require(condition, message, value):
    """Raise an InputError with the message and the value that does not fit."""
    if not condition:
        raise InputError(f"{message}; it is {value!r}")


def sample(
    model,
    idx,
    max_new_tokens,
    context_size,
    sampler,
    eos_id=None,
    generator=None,
):
    """Append up to max_new_tokens tokens, each chosen by the sampler.

    A row ends at its first eos_id and is filled up with eos_id while others go on; a
    column of nothing but eos_id is not appended, so a batch of one ends as in the
    book's `generate`. Shape: (B, T) int -> (B, T + at most max_new_tokens).
    """
    ended = torch.zeros_like(idx[:, :1], dtype=torch.bool)  # (B, 1)
    for _ in range(max_new_tokens):
        with torch.no_grad():
            logits = model(idx[:, -context_size:])[:, -1, :]  # (B, V)
        idx_next = sampler(logits, idx, generator)  # (B, 1)
        if eos_id is not None:
            idx_next = idx_next.masked_fill(ended, eos_id)
            ended = idx_next == eos_id
            if ended.all():
                break
        idx = torch.cat((idx, idx_next), dim=1)  # (B, T + 1)
    return idx
