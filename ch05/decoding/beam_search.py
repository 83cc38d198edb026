"""Beam search: look for the likeliest text instead of the likeliest next token.

Every text of the beam is continued in one forward pass. Nothing is drawn at random and
one text comes out; sampling is in `sampler.py`. Use it:

    ids, log_proba = beam_search(model, idx, 50, context_size, num_beams=4)

Letters: N texts in the beam, T tokens, V vocabulary.
"""

import math
from numbers import Integral

import torch

from ch05.decoding.sampler import at_least_float32, is_number, require


def beam_search(
    model,
    idx,
    max_new_tokens,
    context_size,
    num_beams,
    length_penalty=1.0,
    eos_id=None,
):
    """Continue one prompt with the best text that a beam of num_beams texts finds.

    Texts are compared by their log-probability divided by length ** length_penalty:
    0 compares the log-probabilities, which favours short texts; 1 their mean per token;
    more favours long ones. It matters only where texts end at eos_id at different
    lengths (after Wu et al. 2016, arXiv:1609.08144, whose formula has a constant more).
    Ends when num_beams texts have ended. num_beams=1 is greedy.

    Shape: (1, T) int -> (1, T + at most max_new_tokens) without eos_id, and the
    log-probability in nats of the new tokens, eos_id included. Raises InputError if the
    prompt is a batch or a setting is out of range.
    """
    require(idx.shape[0] == 1, "idx must hold one prompt, (1, T)", tuple(idx.shape))
    require(
        is_number(num_beams) and isinstance(num_beams, Integral) and num_beams >= 1,
        "num_beams must be a whole number of at least 1",
        num_beams,
    )
    require(
        is_number(length_penalty) and math.isfinite(length_penalty),
        "length_penalty must be a finite number",
        length_penalty,
    )

    beams = idx  # (N, T), the texts that go on, likeliest first
    log_probas = torch.zeros(1, device=idx.device)  # (N,), of each of them
    ended = []  # (score, text, log-probability)

    def note(texts, log_probas, length):
        for text, log_proba in zip(texts, log_probas.tolist(), strict=True):
            ended.append((log_proba / length**length_penalty, text, log_proba))

    for length in range(1, max_new_tokens + 1):
        with torch.no_grad():
            logits = model(beams[:, -context_size:])[:, -1, :]  # (N, V)
        vocab_size = logits.shape[-1]
        step = torch.log_softmax(at_least_float32(logits), dim=-1)  # (N, V)
        totals = (log_probas[:, None] + step).flatten()  # (N * V,)

        # Each text offers one continuation that ends; of twice as many as are needed,
        # enough go on
        best = totals.topk(min(2 * num_beams, len(totals)))
        tokens = best.indices % vocab_size
        texts = torch.cat((beams[best.indices // vocab_size], tokens[:, None]), dim=1)

        ends = tokens == (-1 if eos_id is None else eos_id)
        # An end counts only if it is among the best num_beams itself
        now = ends[:num_beams].nonzero().flatten()
        note(texts[now, :-1], best.values[now], length)
        if len(ended) >= num_beams:
            break
        going_on = (~ends).nonzero().flatten()[:num_beams]
        beams, log_probas = texts[going_on], best.values[going_on]
    else:
        note(beams, log_probas, max(max_new_tokens, 1))

    _, text, log_proba = max(ended, key=lambda entry: entry[0])
    return text.unsqueeze(0), log_proba
