"""Checkpoints: everything a run needs to go on exactly where it stopped.

A checkpoint is a folder `step-000120/` with two safetensors files: `model.safetensors`
(weights; the model's config in its metadata) and `training.safetensors` (optimizer and
random number generators; the position in its metadata). It is written under a temporary
name and renamed when complete, so a folder called step-… is never half-written.
"""

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from ch02.cli import InputError
from ch04.gpt import GPT_CONFIG_124M, GPTModel

FORMAT_VERSION = 1
WEIGHTS, TRAINING = "model.safetensors", "training.safetensors"


def save_weights(path, model, config):
    """Write a model's state dict, with the config that rebuilds it, to one file."""
    tensors = {name: t.contiguous() for name, t in model.state_dict().items()}
    _save(path, tensors, {"config": config})


def load_model(path, device="cpu"):
    """Rebuild the `GPTModel` saved in a file, a checkpoint, or a run's newest one.

    Returns (model in eval mode, config). Raises InputError if the file cannot be used.
    """
    path = find_weights(path)
    metadata = _read_metadata(path)
    config = metadata.get("config")
    if not isinstance(config, dict) or config.keys() != GPT_CONFIG_124M.keys():
        raise InputError(f"{path} does not describe a GPTModel of this course")
    # On the meta device nothing is allocated or drawn: the file's tensors move in
    with torch.device("meta"):
        model = GPTModel(config)
    load_weights(model, path, assign=True)
    return model.to(device).eval(), config


def load_weights(model, path, assign=False):
    """Load a weights file into a model of the same architecture (else InputError)."""
    weights, expected = _read_tensors(path), model.state_dict()
    for name in expected.keys() | weights.keys():
        ours, theirs = (
            f"{tuple(side[name].shape)}" if name in side else "nothing"
            for side in (expected, weights)
        )
        if ours != theirs:
            raise InputError(
                f"{path} holds another architecture: for {name} the model has {ours}, "
                f"the file {theirs}"
            )
    model.load_state_dict(weights, assign=assign)


def find_weights(path):
    """Return the weights file meant by a file, a checkpoint folder or a run folder."""
    path = Path(path)
    if path.is_file():
        return path
    if (path / WEIGHTS).is_file():
        return path / WEIGHTS
    if newest := latest_checkpoint(path):
        return newest / WEIGHTS
    raise InputError(
        f"no checkpoint in {path}: train one first (python -m ch05.gpt_train) or name "
        "a .safetensors file"
    )


def checkpoints(run_dir):
    """The checkpoint folders of a run, oldest first."""
    return sorted(Path(run_dir).glob("checkpoints/step-*"))


def latest_checkpoint(run_dir):
    """The newest checkpoint folder of a run, or None."""
    return next(reversed(checkpoints(run_dir)), None)


def save_checkpoint(run_dir, model, config, optimizer, rng_states, position, keep=2):
    """Write a checkpoint and drop all but the `keep` newest.

    rng_states: dict from name to uint8 tensor; position: dict that JSON can hold, with
    the key "step". Returns the folder. Raises InputError if the disk refuses; earlier
    checkpoints are untouched then.
    """
    folder = Path(run_dir) / "checkpoints" / f"step-{position['step']:06d}"
    partial = folder.with_name(f"partial-{folder.name}")
    state = optimizer.state_dict()
    tensors = {f"rng.{name}": tensor for name, tensor in rng_states.items()}
    for index, moments in state["state"].items():
        for name, tensor in moments.items():
            tensors[f"optimizer.{index}.{name}"] = tensor
    try:
        # Left over from a run that was killed while saving
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_weights(partial / WEIGHTS, model, config)
        metadata = {"position": position, "param_groups": state["param_groups"]}
        _save(partial / TRAINING, tensors, metadata)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(partial, folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        newest = latest_checkpoint(run_dir)
        kept = f"{newest} is intact" if newest else "there is no earlier one"
        raise InputError(f"cannot save checkpoint {folder}: {error}; {kept}") from None
    for old in checkpoints(run_dir)[:-keep]:
        shutil.rmtree(old)
    return folder


def load_position(folder):
    """Return the position dict of a checkpoint without loading its tensors."""
    return _read_metadata(Path(folder) / TRAINING)["position"]


def load_checkpoint(folder, model, optimizer):
    """Put a checkpoint back into model and optimizer.

    Returns (rng_states, position) as they were given to `save_checkpoint`.
    """
    folder = Path(folder)
    metadata = _read_metadata(folder / TRAINING)
    tensors = _read_tensors(folder / TRAINING)
    load_weights(model, folder / WEIGHTS)
    rng_states, moments = {}, {}
    for key, tensor in tensors.items():
        kind, name = key.split(".", 1)
        if kind == "rng":
            rng_states[name] = tensor
        else:
            index, name = name.split(".")
            moments.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict(
        {"state": moments, "param_groups": metadata["param_groups"]}
    )
    return rng_states, metadata["position"]


def _save(path, tensors, metadata):
    """One safetensors file; metadata values as JSON. On disk when this returns."""
    metadata = {name: json.dumps(value) for name, value in metadata.items()}
    metadata["format_version"] = str(FORMAT_VERSION)
    save_file(tensors, path, metadata)
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _read_metadata(path):
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is damaged or cut off ({error})") from None
    version = metadata.pop("format_version", "")
    if not version.isdigit():
        raise InputError(f"{path} was not written by this course")
    if int(version) > FORMAT_VERSION:
        raise InputError(
            f"{path} has format {version}, this version of the course reads "
            f"{FORMAT_VERSION}: update the course"
        )
    return {name: json.loads(value) for name, value in metadata.items()}


def _read_tensors(path):
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is damaged or cut off ({error})") from None
