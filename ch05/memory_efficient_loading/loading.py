"""Six ways to load a checkpoint into a `GPTModel`: twice its memory, or once.

Each takes (path, config), refuses a file that does not fit before it loads a weight,
and returns the model in eval mode. Not here: loading to a GPU, an output layer shared
with the token embedding. What each needs is measured in `measure.py`. Use it:

    model = load_by_tensor("runs/gpt2-nano", config)
"""

import json
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.overrides import TorchFunctionMode

from ch02.cli import InputError
from ch04.gpt import GPTModel
from ch05.checkpoint import compare_tensors, find_weights

INDEX = "model.safetensors.index.json"  # the hub's name; lies beside the shards


def build(config):
    """A `GPTModel` with random weights, drawn without moving the reader's seed."""
    with torch.random.fork_rng(devices=[]):
        return GPTModel(config)


class SkipInit(TorchFunctionMode):
    """Leave out `torch.nn.init` and `torch.triu`, which only change values.

    On the meta device there are none to change, but for these PyTorch would import a
    computer algebra system: seconds, and the memory of a small model.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        module = getattr(function, "__module__", None)
        if function is torch.triu or module == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def build_on_meta(config):
    """A `GPTModel` of names, shapes and types: no numbers, no memory."""
    with torch.device("meta"), SkipInit():
        return GPTModel(config)


def load_and_copy(path, config):
    """Build the model, read the whole .pth file, copy: twice the memory."""
    model = build(config)
    state_dict = read_state_dict(path, model)
    model.load_state_dict(state_dict)
    return model.eval()


def load_sequentially(path, config):
    """The same, freeing each tensor once it is copied: twice at the start."""
    model = build(config)
    state_dict = read_state_dict(path, model)
    for name, tensor in model.state_dict().items():
        tensor.copy_(state_dict.pop(name))
    return model.eval()


def load_and_assign(path, config):
    """The tensors read from a .pth file become the model's, dtype too: once."""
    model = build_on_meta(config)
    state_dict = read_state_dict(path, model)
    model.load_state_dict(state_dict, assign=True)
    return model.eval()


def load_mapped(path, config):
    """The same, each page of the file read when it is first used: once, later.

    The file must stay as it is while the model lives, which never changes it.
    """
    model = build_on_meta(config)
    state_dict = read_state_dict(path, model, mmap=True)
    model.load_state_dict(state_dict, assign=True)
    return model.eval()


def load_by_tensor(path, config):
    """One tensor at a time from a .safetensors file, or from a run's folder.

    Needs the model's memory and the largest tensor's.
    """
    path = find_weights(path)
    model = build_on_meta(config)
    check_shapes(path, model)
    for name in model.state_dict():
        # Opened anew: closing it gives back the pages read from it
        with safe_open(path, framework="pt") as file:
            tensor = file.get_tensor(name).clone()
        model.load_state_dict({name: tensor}, strict=False, assign=True)
    return model.eval()


def load_sharded(folder, config):
    """One .safetensors file at a time, from a folder with an index.

    Needs the model's memory and the largest file's.
    """
    model = build_on_meta(config)
    for shard in find_shards(folder, model):
        tensors = {name: t.clone() for name, t in load_file(shard).items()}
        model.load_state_dict(tensors, strict=False, assign=True)
    return model.eval()


def read_state_dict(path, model, mmap=False):
    """The state dict in a .pth file; raises InputError if it does not fit the model."""
    with reading(path):
        state_dict = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        compare_tensors(path, state_dict, model.state_dict())
    return state_dict


def read_shapes(path):
    """{name: tensor on the meta device} of what a .safetensors file holds."""
    with reading(path), safe_open(path, framework="pt") as file:
        names = file.keys()
        return {name: file.get_tensor(name).to("meta") for name in names}


def check_shapes(path, model):
    """Raise InputError if a .safetensors file does not fit the model."""
    compare_tensors(path, read_shapes(path), model.state_dict())


def find_shards(folder, model):
    """The paths of the .safetensors files that the index of a folder names.

    Raises InputError if index, files and model do not fit together.
    """
    folder, shards, found = Path(folder), {}, {}
    with reading(folder / INDEX):
        weight_map = json.loads((folder / INDEX).read_text("utf-8"))["weight_map"]
        for name, file in weight_map.items():
            shards.setdefault(file, set()).add(name)
        if outside := [file for file in shards if Path(file).name != file]:
            raise ValueError(f"{outside[0]} is not the name of a file beside it")
    for file, names in shards.items():
        if not (folder / file).is_file():
            raise InputError(f"{folder} lacks {file}, which {INDEX} names: add it")
        shapes = read_shapes(folder / file)
        if disputed := names ^ shapes.keys():
            raise InputError(
                f"{folder / file} and {INDEX} disagree about {min(disputed)}: get both "
                "again, from the same place"
            )
        found |= shapes
    compare_tensors(folder, found, model.state_dict())
    return [folder / file for file in shards]


@contextmanager
def reading(path):
    """Answer whatever a missing, damaged or foreign file can cause with InputError."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"cannot load {path} ({type(error).__name__}: {reason}): name another "
            "one, or get or save it again"
        ) from None
