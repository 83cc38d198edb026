"""Low-rank adaptation of a model's linear layers (LoRA, Hu et al. 2021, appendix E).

The pretrained weights stay as they are; beside each wrapped layer two thin matrices
learn what is to be added to it. Here are the book's classes, and what one needs around
them: which layers to wrap, counting, merging, saving only the adapters.

Letters: I inputs and O outputs of a layer, R rank.
"""

import copy
import json
import math
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from ch02.cli import InputError


class LoRALayer(torch.nn.Module):
    """What is added to a linear layer's output: (alpha / rank) x A B (section E.4).

    A is drawn at random, B is zero, so nothing is added before the first step.
    Shape: (..., I) -> (..., O).
    """

    def __init__(self, in_dim, out_dim, rank, alpha):
        super().__init__()
        self.A = torch.nn.Parameter(torch.empty(in_dim, rank))  # (I, R)
        torch.nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.B = torch.nn.Parameter(torch.zeros(rank, out_dim))  # (R, O)
        self.alpha = alpha
        self.rank = rank

    def forward(self, x):
        return (self.alpha / self.rank) * (x @ self.A @ self.B)  # (..., O)


class LinearWithLoRA(torch.nn.Module):
    """A linear layer and its LoRALayer, added up (section E.4)."""

    def __init__(self, linear, rank, alpha):
        super().__init__()
        self.linear = linear
        self.lora = LoRALayer(linear.in_features, linear.out_features, rank, alpha)

    def forward(self, x):
        return self.linear(x) + self.lora(x)


def replace_linear_with_lora(model, rank, alpha, only=None):
    """Wrap the linear layers of a model, in place (section E.4).

    only: parts of names, such as ("W_query", "W_value"); layers whose name holds none
    of them stay as they are. The adapters move to the device of their layer. Raises
    InputError if nothing is wrapped.
    """
    if rank < 1:
        raise InputError(f"the rank is {rank}: it must be at least 1")
    wrapped = linear_layers(model, only)
    if not wrapped:
        raise InputError(f"no linear layer has one of {only} in its name")
    for name, linear in wrapped.items():
        adapted = LinearWithLoRA(linear, rank, alpha)
        adapted.lora.to(linear.weight.device)
        replace_module(model, name, adapted)


def linear_layers(model, only=None):
    """The linear layers a call of `replace_linear_with_lora` wraps, by their names."""
    adapted = tuple(f"{name}." for name in adapted_layers(model))
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and not name.startswith(adapted)
        and (only is None or any(part in name for part in only))
    }


def replace_module(model, name, new):
    """Put another module in the place of model.name."""
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, new)


def adapted_layers(model):
    """The LinearWithLoRA modules of a model, by their names."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LinearWithLoRA)
    }


def num_adapter_parameters(layers, rank):
    """How many numbers the adapters of these linear layers have: R (I + O) each."""
    return sum(
        rank * (linear.in_features + linear.out_features) for linear in layers.values()
    )


def merge_lora(model):
    """Replace each adapted layer by one linear layer that computes the same, in place.

    The model then has its first architecture and costs nothing more; its logits are the
    same up to rounding. Returns the adapted layers by name, for `unmerge_lora`.
    """
    adapters = adapted_layers(model)
    for name, module in adapters.items():
        merged = copy.copy(module.linear)
        # A new tensor: the old one may be shared, as that of a tied output layer is
        merged._parameters = dict(module.linear._parameters)
        weight = module.linear.weight.detach() + added_weight(module.lora).detach()
        merged.weight = torch.nn.Parameter(weight, requires_grad=False)
        replace_module(model, name, merged)
    return adapters


def unmerge_lora(model, adapters):
    """Put back, bit for bit, the adapted layers that `merge_lora` returned."""
    for name, module in adapters.items():
        replace_module(model, name, module)


def added_weight(lora):
    """What an adapter adds to the weight of its layer. Shape: (O, I)."""
    return (lora.alpha / lora.rank) * (lora.A @ lora.B).T  # (O, I)


def save_lora(path, model):
    """Write the adapters of a model, and nothing else, to one safetensors file."""
    adapters = adapted_layers(model)
    if not adapters:
        raise InputError("the model has no adapters to save")
    tensors, alphas = {}, {}
    for name, module in adapters.items():
        tensors[f"{name}.A"] = module.lora.A.detach().contiguous()
        tensors[f"{name}.B"] = module.lora.B.detach().contiguous()
        alphas[name] = module.lora.alpha
    partial = Path(f"{path}.partial")
    try:
        save_file(tensors, partial, {"alphas": json.dumps(alphas)})
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise InputError(f"cannot save {path}: {error}") from None


def load_lora(path, model):
    """Wrap the layers of a model as in a file of `save_lora`, adapters included.

    Raises InputError, with the model unchanged, if the file is not one or is of another
    architecture.
    """
    layers = linear_layers(model)
    try:
        tensors = load_file(path)
        with safe_open(path, framework="pt") as file:
            alphas = json.loads((file.metadata() or {})["alphas"])
        for name in alphas:
            A, B = tensors[f"{name}.A"], tensors[f"{name}.B"]
            here = layers.get(name)
            shape = here and (here.in_features, here.out_features)
            if shape != (A.shape[0], B.shape[1]):
                raise InputError(
                    f"{path} is of another architecture: {name} is "
                    f"{(A.shape[0], B.shape[1])} there, {shape or 'missing'} here"
                )
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} holds no adapters ({error})") from None
    for name, alpha in alphas.items():
        A, B = tensors[f"{name}.A"], tensors[f"{name}.B"]
        adapted = LinearWithLoRA(layers[name], A.shape[1], alpha)
        adapted.lora.to(layers[name].weight.device)
        with torch.no_grad():
            adapted.lora.A.copy_(A)
            adapted.lora.B.copy_(B)
        replace_module(model, name, adapted)
