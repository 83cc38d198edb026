"""The mini model: a small GPT, pretrained for this course and shipped with it.

`load_mini_model()` is all there is to using it. How it was made is `make.py`.
"""

from pathlib import Path

from ch02.cli import InputError
from ch05.checkpoint import load_model

NAME = "gpt2-mini"
WEIGHTS = Path(__file__).with_name("model.safetensors")


def load_mini_model(device="cpu"):
    """Return (the mini model as GPTModel in eval mode, its config)."""
    if not WEIGHTS.is_file():
        raise InputError(
            f"{WEIGHTS} is missing: get the course's files again, or make the model "
            "(python -m ch05.mini_model.make)"
        )
    return load_model(WEIGHTS, device)
