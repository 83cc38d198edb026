"""A model that answers messages, for `serve.py`: what to ask of it and what comes back.

An `Answer` is written while you iterate over it. It is free text, or kept to a format:
then every token that leads to no allowed text gets the logit -inf. Not here: the
protocols, and conversations of several messages.
"""

import json
from dataclasses import dataclass
from hashlib import sha256

import torch

from ch02.cli import InputError
from ch02.dataloader import get_tokenizer
from ch05.decoding.sampler import Sampler
from ch05.gpt_generate import stream
from ch07.gpt_instruction_finetuning import RESPONSE

TEMPERATURE = 0.8  # of requests that name none


@dataclass
class Served:
    """A model, and what is needed to let it answer."""

    name: str
    model: torch.nn.Module
    config: dict
    device: torch.device
    format_prompt: object  # makes the prompt of an entry; None: the message as it is
    max_new_tokens: int  # at most, whatever a request asks for

    def describe(self):
        """What /api/tags tells of the model; the digest is that of its numbers."""
        parameters = list(self.model.parameters())
        digest = sha256()
        for parameter in parameters:
            digest.update(parameter.detach().cpu().contiguous().numpy())
        count = sum(p.numel() for p in parameters)
        return {
            "name": self.name,
            "model": self.name,
            "size": sum(p.nbytes for p in parameters),
            "digest": digest.hexdigest(),
            "details": {
                "format": "safetensors",
                "family": "gpt2",
                "families": ["gpt2"],
                "parameter_size": f"{count / 1e6:.1f}M",
                "quantization_level": "F32",
            },
        }


class Answer:
    """One answer: iterate over its pieces, then read n_tokens and reason.

    options: those of Ollama; unknown ones are ignored. schema: what the answer is to
    follow, see `texts_of`. Raises InputError at once if there can be no answer.
    """

    def __init__(self, served, prompt, options, schema=None):
        self.served, self.tokenizer = served, get_tokenizer()
        if served.format_prompt:
            entry = {"instruction": prompt, "input": ""}
            prompt = served.format_prompt(entry) + RESPONSE[served.format_prompt]
        self.ids = self.tokenizer.encode(prompt, disallowed_special=())
        longest = served.config["context_length"]
        if not 1 <= len(self.ids) <= longest:
            raise InputError(
                f"the prompt has {len(self.ids)} tokens, {served.name} reads 1 to "
                f"{longest}"
            )
        given = {name: value for name, value in options.items() if value is not None}
        self.sampler = Sampler(
            given.get("temperature", TEMPERATURE),
            given.get("top_k") or None,  # 0 is Ollama's word for all
            given.get("top_p"),
            given.get("min_p"),
            given.get("repeat_penalty", 1.0),
        )
        # A generator of its own: answers written side by side don't disturb each other
        self.generator = torch.Generator(served.device)
        self.generator.seed()
        if "seed" in given:
            self.generator.manual_seed(whole_number(given, "seed", 0))
        self.limit = served.max_new_tokens
        if "num_predict" in given:  # -1 and -2 are Ollama's words for no limit
            wanted = whole_number(given, "num_predict", -2)
            self.limit = min(self.limit, wanted) if wanted > 0 else self.limit
        self.choices = None
        if schema is not None:
            end = self.tokenizer.eot_token
            self.choices = [[*self.tokenizer.encode(t), end] for t in texts_of(schema)]
            self.limit = max(len(choice) for choice in self.choices)
        self.n_tokens, self.reason = 0, "length"

    def __iter__(self):
        return stream(
            self.served.model,
            torch.tensor([self.ids], device=self.served.device),  # (1, T)
            self.limit,
            self.served.config["context_length"],
            self.tokenizer,
            self.choose,
            self.tokenizer.eot_token,
        )

    def choose(self, logits, idx, generator=None):
        """The next token: (1, V) -> (1, 1). With a schema it leads to a choice."""
        if self.choices:
            written = idx[0, len(self.ids) :].tolist()
            n = len(written)
            allowed = [choice[n] for choice in self.choices if choice[:n] == written]
            kept = torch.full_like(logits, -torch.inf)
            kept[:, allowed] = logits[:, allowed]
            logits = kept  # (1, V)
        idx_next = self.sampler(logits, idx, self.generator)  # (1, 1)
        if idx_next.item() == self.tokenizer.eot_token:
            self.reason = "stop"
        else:
            self.n_tokens += 1
        return idx_next


def whole_number(options, name, lowest):
    """The number under a name; InputError if it is none."""
    number = options[name]
    if type(number) is not int or not lowest <= number < 2**63:
        raise InputError(f"{name} must be a whole number of at least {lowest}")
    return number


def texts_of(schema):
    """Every JSON text that follows a schema: an object with one bounded integer."""
    try:
        ((name, number),) = schema["properties"].items()
        lowest, highest = number["minimum"], number["maximum"]
        if number["type"] == "integer" and 0 <= highest - lowest <= 1000:
            return [json.dumps({name: n}) for n in range(lowest, highest + 1)]
    except (KeyError, TypeError, ValueError, AttributeError):
        pass
    raise InputError(
        "the only format kept to here is an object with one integer between a minimum "
        "and a maximum"
    )
