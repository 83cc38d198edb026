"""Which device to compute on, and whether it computes correctly.

The CPU is the reference. An accelerator is used when PyTorch finds one and one small
training step on it agrees with the same step on the CPU.
"""

import copy
import ctypes
import sys

import torch
from torch import nn

from ch02.cli import InputError
from ch04.gpt import GPTModel

ACCELERATORS = ("cuda", "mps", "xpu")  # in the order "auto" tries them
TOLERANCE = 1e-3  # of the largest gradient


def is_available(name):
    """Whether this PyTorch can compute on "cpu", "cuda", "mps" or "xpu"."""
    return {
        "cpu": lambda: True,
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
        "xpu": lambda: hasattr(torch, "xpu") and torch.xpu.is_available(),
    }[name]()


def device_error(device):
    """Compare one training step of a tiny GPT on the device with the CPU.

    Returns the largest difference of any gradient, relative to the largest gradient.
    """
    config = {
        "vocab_size": 61,
        "context_length": 16,
        "emb_dim": 32,
        "n_heads": 4,
        "n_layers": 2,
        "drop_rate": 0.0,
        "qkv_bias": True,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        reference = GPTModel(config)
        token_ids = torch.randint(config["vocab_size"], (4, 17))  # (B, T + 1)

    def gradients(model, device):
        inputs, targets = token_ids[:, :-1].to(device), token_ids[:, 1:].to(device)
        logits = model.to(device)(inputs)  # (B, T, V)
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten()
        )
        loss.backward()
        return torch.cat([p.grad.flatten().cpu() for p in model.parameters()])

    on_device = gradients(copy.deepcopy(reference), device)
    on_cpu = gradients(reference, "cpu")
    return ((on_device - on_cpu).abs().max() / on_cpu.abs().max()).item()


def pick_device(name="auto"):
    """Return the `torch.device` for "auto", "cpu", "cuda", "mps" or "xpu".

    "auto" takes the first accelerator that works correctly, else the CPU. Raises
    InputError if the named device is unknown or not there.
    """
    if name == "auto":
        for candidate in filter(is_available, ACCELERATORS):
            try:
                error = device_error(candidate)
            except RuntimeError as failure:  # a driver too old, no memory left
                problem = str(failure).splitlines()[0]
            else:
                if error <= TOLERANCE:
                    return torch.device(candidate)
                problem = f"its gradients are off by {error:.0e}"
            print(
                f"Note: {candidate} does not work here ({problem}), so the CPU is "
                "used; --device forces it.",
                file=sys.stderr,
            )
        return torch.device("cpu")
    if name != "cpu" and name not in ACCELERATORS:
        raise InputError(
            f"unknown device {name!r}: choose auto, cpu, {', '.join(ACCELERATORS)}"
        )
    if not is_available(name):
        raise InputError(
            f"this machine has no {name} device that PyTorch {torch.__version__} can "
            "use; --device auto takes what is there"
        )
    return torch.device(name)


def reuse_freed_memory():
    """Let the C library keep freed memory for the next training step (Linux, glibc).

    By default every large tensor is mapped from the system, page by zeroed page, and
    given back when freed: on a CPU that costs about as much as computing with it.
    Returns whether it was possible; elsewhere nothing happens.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return False
    trim_threshold, mmap_threshold = -1, -3  # names of the options in malloc.h
    return bool(mallopt(mmap_threshold, 2**30) and mallopt(trim_threshold, 2**31 - 1))


class CheapDropout(nn.Dropout):
    """Dropout whose random 64-bit numbers decide on four elements each.

    The odds are p rounded to 16 bits, and the random stream is not that of
    `nn.Dropout`. On a CPU random numbers are drawn one after the other: a quarter of
    them makes the masks cheaper.
    """

    def forward(self, x):
        if not self.training or self.p == 0:
            return x
        n_numbers = -(-x.numel() // 4)
        numbers = torch.empty(n_numbers, dtype=torch.int64, device=x.device)
        numbers.random_(-(2**63), None)  # all 64 bits
        draws = numbers.view(torch.int16)[: x.numel()].view(x.shape)  # -2^15 to 2^15-1
        kept = torch.empty_like(x)  # 1 or 0
        torch.ge(draws, round(self.p * 2**16) - 2**15, out=kept)
        return x * kept.div_(1 - self.p)


def use_cheap_dropout(model):
    """Make every `nn.Dropout` of a model a `CheapDropout`, in place."""
    for module in model.modules():
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, CheapDropout(child.p))
