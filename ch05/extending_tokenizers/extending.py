"""New special tokens, such as chat markers, for a tokenizer and a trained model.

`extend_tokenizer` gives them the next ids, `extend_model` gives these ids rows in the
embedding and in the output layer, `train_new_rows_only` trains those rows and nothing
else. The logits of the old tokens stay what they were, bit for bit. Learning a new
vocabulary from text is not here. How to use it: README.md.

Letters: V tokens in the vocabulary, C width (emb_dim).
"""

import math
from itertools import pairwise
from numbers import Integral

import tiktoken
import torch
from torch import nn

from ch04.gpt import GPTModel
from ch05.decoding.sampler import is_number, require


def extend_tokenizer(tokenizer, new_tokens):
    """A tiktoken.Encoding with new special tokens after the last id, in their order.

    tokenizer: a tiktoken.Encoding, not changed; new_tokens: a list of str. Raises
    InputError if a token cannot be told from another one. Source: "Extending tiktoken"
    in the README of tiktoken.
    """
    check_tokens(tokenizer, new_tokens)
    first = tokenizer.n_vocab
    new_ids = {token: first + i for i, token in enumerate(new_tokens)}
    return tiktoken.Encoding(
        # tiktoken asks for another name where the special tokens are others
        name="+".join([tokenizer.name, *new_tokens]),
        pat_str=tokenizer._pat_str,
        mergeable_ranks=tokenizer._mergeable_ranks,
        special_tokens={**tokenizer._special_tokens, **new_ids},
    )


class GrownHead(nn.Linear):
    """An output layer without bias, with one matrix product for each time it grew.

    nn.Linear computes all logits in one product, and how that rounds depends on their
    number. Here the old rows keep a product of their own. weight: a parameter (V, C),
    not copied; sizes: how many rows each product has, the oldest first, together V.
    Shape: (..., C) -> (..., V).
    """

    def __init__(self, weight, sizes):
        # No memory for a weight that the next line replaces
        super().__init__(*weight.T.shape, bias=False, device="meta")
        self.weight = weight
        self.sizes = tuple(sizes)

    def forward(self, x):
        parts = self.weight.split(self.sizes)  # (size, C) each
        logits = [nn.functional.linear(x, part) for part in parts]
        return torch.cat(logits, dim=-1)  # (..., V)


def grow(weight, n_new, noise, generator):
    """A parameter that holds the old rows and n_new more, near the mean of the old.

    noise: how far from it, in standard deviations of each column; generator: where the
    noise comes from. Shape: (V, C) -> (V + n_new, C).
    """
    old = weight.detach()
    std, mean = torch.std_mean(old, dim=0, correction=0)  # (C,) each
    draws = torch.randn(
        (n_new, len(mean)),
        dtype=mean.dtype,
        device=generator.device,
        generator=generator,
    )
    new = mean + noise * std * draws.to(mean.device)  # (n_new, C)
    grown = torch.cat((old, new))  # (V + n_new, C)
    return nn.Parameter(grown, requires_grad=weight.requires_grad)


def extend_model(model, n_new, config, noise=0.01, generator=None):
    """Grow a GPTModel in place for n_new tokens; returns the config it has now.

    New rows of tok_emb are near the mean of the old ones (noise and generator: see
    `grow`; default: a generator of its own with the seed 123). New rows of out_head are
    that mean, so no new token is likelier than 1 / (V + n_new) until it is trained. One
    tensor for both stays one; its new rows have the noise.

    The two parameters are new: an optimizer is to be built afterwards. Raises
    InputError, with the model unchanged, if something does not fit.
    """
    check_model(model, n_new, config, noise, generator)
    if generator is None:
        generator = torch.Generator().manual_seed(123)
    emb, head = model.tok_emb, model.out_head
    is_tied = emb.weight is head.weight
    sizes = getattr(head, "sizes", (head.out_features,))

    new_emb = grow(emb.weight, n_new, noise, generator)
    new_head = new_emb if is_tied else grow(head.weight, n_new, 0.0, generator)
    emb.weight, emb.num_embeddings = new_emb, len(new_emb)
    model.out_head = GrownHead(new_head, (*sizes, n_new))
    return {**config, "vocab_size": len(new_emb)}


def train_new_rows_only(model, n_new):
    """Freeze a GPTModel except for the last n_new rows of tok_emb and out_head.

    Returns the parameters for an optimizer, which must have no weight decay: that
    shrinks the old rows even though their gradient is set to 0. A copy of the model is
    not protected. Raises InputError if there are not that many rows.
    """
    check_new_rows(model, n_new)
    weights = [model.tok_emb.weight, model.out_head.weight]

    def without_old_rows(gradient):
        gradient = gradient.clone()
        gradient[:-n_new] = 0.0
        return gradient

    model.requires_grad_(False)
    weights = list(dict.fromkeys(weights))  # one, if both are the same
    for weight in weights:
        weight.requires_grad_(True)
        weight.register_hook(without_old_rows)
    return weights


def check_tokens(tokenizer, new_tokens):
    """Raise InputError if a tokenizer cannot be extended by these tokens."""
    require(
        isinstance(tokenizer, tiktoken.Encoding),
        "tokenizer must be a tiktoken.Encoding",
        tokenizer,
    )
    require(
        isinstance(new_tokens, (list, tuple)) and new_tokens,
        "new_tokens must be a list of at least one token",
        new_tokens,
    )
    for token in new_tokens:
        require(
            isinstance(token, str) and token,
            "a new token must be a text of at least one character",
            token,
        )
        require(
            token.encode(errors="ignore").decode() == token,
            "a new token must have whole characters, no half of a surrogate pair",
            token,
        )
    # In this order, a token that begins like another comes right after one of those
    for one, other in pairwise(sorted([*tokenizer.special_tokens_set, *new_tokens])):
        require(
            one != other,
            "a new token must not be special already, nor be given twice",
            other,
        )
        # tiktoken would take the one or the other by their order in a hash table
        require(
            not other.startswith(one),
            f"no special token may begin with another one, {one!r}",
            other,
        )


def check_model(model, n_new, config, noise, generator):
    """Raise InputError if a model cannot be grown like this."""
    require(isinstance(model, GPTModel), "model must be a GPTModel", type(model))
    check_n_new(n_new)
    V, C = model.tok_emb.weight.shape
    head = model.out_head
    require(isinstance(head, nn.Linear), "out_head must be an nn.Linear", type(head))
    require(
        head.weight.shape == (V, C) and head.bias is None,
        f"out_head must lead from {C} to {V}, as tok_emb has it, and have no bias",
        head,
    )
    require(
        isinstance(config, dict) and config.get("vocab_size") == V,
        f"config must be the model's, a dict with the vocab_size {V}",
        config,
    )
    require(
        is_number(noise) and 0 <= noise < math.inf,
        "noise must be a finite number of at least 0",
        noise,
    )
    require(
        generator is None or isinstance(generator, torch.Generator),
        "generator must be a torch.Generator or None",
        generator,
    )


def check_new_rows(model, n_new):
    """Raise InputError if a model has no such number of new rows."""
    require(isinstance(model, GPTModel), "model must be a GPTModel", type(model))
    check_n_new(n_new)
    V = len(model.tok_emb.weight)
    require(n_new < V, f"n_new must be less than {V}, all tokens there are", n_new)


def check_n_new(n_new):
    """Raise InputError if this is no number of new tokens."""
    require(
        is_number(n_new) and isinstance(n_new, Integral) and n_new >= 1,
        "n_new must be a whole number of at least 1",
        n_new,
    )
