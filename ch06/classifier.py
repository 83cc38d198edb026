"""A GPT that answers with a class: what is read, what is trained, what is saved.

`GPTClassifier` reads a message at its own last token, so the answer does not depend on
how the message is padded. Not here: data, the book's functions and the command line
(`gpt_class_finetune.py`).

Letters: B batch, T tokens, C width.
"""

import torch
from torch import nn

from ch02.cli import InputError
from ch04.gpt import GPT_CONFIG_124M, GPTModel
from ch05.checkpoint import load_model
from ch06.spam_data import LABELS


class GPTClassifier(GPTModel):
    """A GPTModel with one output per class, read at each message's last token.

    Tokens that only pad a message on the right are cut off or not looked at: to the
    tokens before them they are the future. Shape: (B, T) int -> (B, 1, classes), so
    that `[:, -1, :]`, as the book reads a model, gives the answer.
    """

    def forward(self, in_idx):
        lengths = message_lengths(in_idx)  # (B,)
        in_idx = in_idx[:, : lengths.max()]  # (B, longest)
        logits = super().forward(in_idx)  # (B, longest, classes)
        rows = torch.arange(len(in_idx), device=in_idx.device)
        return logits[rows, lengths - 1].unsqueeze(1)  # (B, 1, classes)


def message_lengths(in_idx, pad_token_id=50256):
    """How many tokens each row has before its padding, at least 1. (B, T) -> (B,)."""
    positions = torch.arange(1, in_idx.shape[1] + 1, device=in_idx.device)  # (T,)
    is_text = in_idx != pad_token_id  # (B, T)
    return (positions * is_text).amax(dim=1).clamp(min=1)


def as_classifier(gpt, config, num_classes=2):
    """A GPTClassifier with a new output layer; all else is shared with the GPTModel."""
    with torch.random.fork_rng(devices=[]):
        model = GPTClassifier(config)
    model.load_state_dict(gpt.state_dict(), assign=True)
    model.out_head = nn.Linear(config["emb_dim"], num_classes)
    return model


def train_only(model, which):
    """Freeze a model but for "head", "last_block" (the book's choice) or "all".

    "last_block" is the last transformer block, the final norm and the output layer.
    Returns the parameters that are trained.
    """
    parts = {
        "head": [model.out_head],
        "last_block": [model.trf_blocks[-1], model.final_norm, model.out_head],
        "all": [model],
    }[which]
    model.requires_grad_(False)
    for part in parts:
        part.requires_grad_(True)
    return [p for p in model.parameters() if p.requires_grad]


def classifier_config(config, num_classes=2):
    """What is saved beside a classifier's weights to build it again."""
    return {**config, "num_classes": num_classes}


def load_classifier(path, device="cpu"):
    """Return (GPTClassifier in eval mode, config) of a run or of a weights file.

    Raises InputError if there is none, or if it is not a classifier.
    """
    return load_model(path, device, build=_build)


def _build(config):
    expected = classifier_config(GPT_CONFIG_124M).keys()
    if config.keys() != expected:
        raise InputError("it is not a classifier: name a run of gpt_class_finetune")
    gpt_config = {key: config[key] for key in GPT_CONFIG_124M}
    model = GPTClassifier(gpt_config)
    model.out_head = nn.Linear(config["emb_dim"], config["num_classes"])
    return model


def spam_probabilities(texts, model, tokenizer, device):
    """How likely each message is spam, a list of floats; one pass for all of them.

    Messages longer than the model's context are cut to it.
    """
    context_length = model.pos_emb.weight.shape[0]
    ids = [tokenizer.encode(t, disallowed_special=())[:context_length] for t in texts]
    longest = max(1, *map(len, ids))
    padded = [row + [50256] * (longest - len(row)) for row in ids]
    with torch.no_grad():
        logits = model.eval()(torch.tensor(padded, device=device))[:, -1, :]
    return torch.softmax(logits, dim=-1)[:, LABELS.index("spam")].tolist()
