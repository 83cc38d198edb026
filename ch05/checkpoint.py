"""Checkpoints: everything a run needs to go on exactly where it stopped.

A checkpoint is a folder `step-000120/` with two safetensors files: `model.safetensors`
(weights; the model's config in its metadata) and `training.safetensors` (optimizer and
random number generators; the position in its metadata). It is written under a temporary
name and renamed when complete, so a folder called step-… is never half-written.
"""

import json
import os
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from ch02.cli import InputError
from ch04.gpt import GPT_CONFIG_124M, GPTModel

FORMAT_VERSION = 1
WEIGHTS, TRAINING = "model.safetensors", "training.safetensors"
# What every position tells: how far a run is, and what must be the same to go on.
# Each kind of training adds where it is in its data.
POSITION = {"step", "tokens_seen", "seconds", "settings"}


def save_weights(path, model, config, dtype=None):
    """Write a model's state dict, with the config that rebuilds it, to one file.

    dtype: of the numbers in the file (default: the model's own). An output layer that
    shares its weights with the token embedding is not written a second time.
    """
    tensors = {
        name: t.to(dtype or t.dtype).contiguous()
        for name, t in model.state_dict().items()
    }
    metadata = {"config": config}
    if is_tied(model):
        del tensors["out_head.weight"]
        metadata["tied_head"] = True
    _save(path, tensors, metadata)


def is_tied(model):
    """Whether the output layer of a GPTModel is its token embedding."""
    weight = getattr(model.out_head, "weight", None)  # a wrapped layer has none
    return weight is model.tok_emb.weight


def build_gpt(config):
    """The `GPTModel` of a config read from a file."""
    if config.keys() != GPT_CONFIG_124M.keys():
        raise ValueError(f"its config has the keys {', '.join(config)}")
    return GPTModel(config)


def load_model(path, device="cpu", build=build_gpt):
    """Rebuild the model saved in a file, a checkpoint, or a run's newest one.

    build: makes the model of a config. Returns (model in eval mode, config); the
    weights are float32. Raises InputError if the file cannot be used.
    """
    path = find_weights(path)
    with _reading(path):
        metadata = _read_metadata(path)
        config = metadata["config"]
        # The weights drawn here are replaced: the reader's seed must not notice
        with torch.random.fork_rng(devices=[]):
            model = build(config)
        if metadata.get("tied_head"):
            model.out_head.weight = model.tok_emb.weight
        load_weights(model, path)
    return model.to(device).eval(), config


def load_weights(model, path):
    """Load a weights file into a model of the same architecture (else InputError)."""
    with _reading(path):
        weights, expected = load_file(path), model.state_dict()
        if is_tied(model):
            del expected["out_head.weight"]  # not in the file: it is tok_emb.weight
        compare_tensors(path, weights, expected)
        model.load_state_dict(weights, strict=False)  # the names are compared already


def find_weights(path):
    """Return the weights file meant by a file, a checkpoint folder or a run folder."""
    path = Path(path)
    try:
        if path.is_file():
            return path
        if (path / WEIGHTS).is_file():
            return path / WEIGHTS
        if newest := latest_checkpoint(path):
            return newest / WEIGHTS
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    raise InputError(
        f"no checkpoint in {path}: train one first (python -m ch05.gpt_train) or name "
        "a .safetensors file"
    )


def checkpoints(run_dir):
    """The checkpoint folders of a run, oldest first."""
    folders = Path(run_dir).glob("checkpoints/step-*")
    steps = {int(f.name[5:]): f for f in folders if f.name[5:].isdecimal()}
    return [steps[step] for step in sorted(steps)]


def discard(folder):
    """Remove a checkpoint so that, killed on the way, no half of it is left as one."""
    doomed = folder.with_name(f"partial-{folder.name}-old")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def latest_checkpoint(run_dir):
    """The newest checkpoint folder of a run, or None."""
    return next(reversed(checkpoints(run_dir)), None)


def save_checkpoint(run_dir, model, config, optimizer, rng_states, position, keep=2):
    """Write a checkpoint and drop all but the `keep` newest.

    rng_states: dict from name to uint8 tensor, "cpu" among them; position: dict with
    the keys POSITION at least, that JSON can hold. Returns the folder.
    Raises InputError if the disk refuses; earlier checkpoints are untouched then.
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
            discard(folder)
        os.replace(partial, folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        newest = latest_checkpoint(run_dir)
        kept = f"{newest} is intact" if newest else "there is no earlier one"
        raise InputError(f"cannot save checkpoint {folder}: {error}; {kept}") from None
    for old in checkpoints(run_dir)[:-keep]:
        with suppress(OSError):  # in use by another program: it stays
            discard(old)
    return folder


def load_position(folder, also=frozenset()):
    """Return the position dict of a checkpoint without loading its tensors.

    also: keys it must have besides POSITION, those of one kind of training.
    """
    path = Path(folder) / TRAINING
    with _reading(path):
        position = _read_metadata(path)["position"]
        if missing := POSITION - position.keys():
            raise ValueError(f"it does not tell {', '.join(sorted(missing))}")
        if missing := also - position.keys():
            raise InputError(
                f"{folder} was saved by another kind of training (it does not tell "
                f"{', '.join(sorted(missing))}): choose another --out-dir"
            )
        if not isinstance(position["settings"], dict):
            raise ValueError("its settings are not settings")
    return position


def load_checkpoint(folder, model, optimizer, rng_names=("cpu",)):
    """Put a checkpoint back into model and optimizer.

    rng_names: the random states it must have. Returns (rng_states, position) as they
    were given to `save_checkpoint`.
    """
    path, position = Path(folder) / TRAINING, load_position(folder)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    rng_state = torch.get_rng_state()
    expected = {f"rng.{name}": rng_state for name in rng_names}
    for index, parameter in enumerate(parameters):
        expected[f"optimizer.{index}.step"] = torch.tensor(0.0)
        for name in ("exp_avg", "exp_avg_sq"):
            expected[f"optimizer.{index}.{name}"] = parameter
    with _reading(path):
        tensors = load_file(path)
        # An accelerator's generator has a state of its own kind
        rng_states = {n: t for n, t in tensors.items() if n.startswith("rng.")}
        compare_tensors(path, tensors, rng_states | expected)
        moments = {
            index: {
                name: tensors[f"optimizer.{index}.{name}"]
                for name in ("step", "exp_avg", "exp_avg_sq")
            }
            for index in range(len(parameters))
        }
        load_weights(model, Path(folder) / WEIGHTS)
        optimizer.load_state_dict(
            {"state": moments, "param_groups": _read_metadata(path)["param_groups"]}
        )
    return {n.removeprefix("rng."): t for n, t in rng_states.items()}, position


def _save(path, tensors, metadata):
    """One safetensors file; metadata values as JSON. On disk when this returns."""
    metadata = {name: json.dumps(value) for name, value in metadata.items()}
    metadata["format_version"] = str(FORMAT_VERSION)
    save_file(tensors, path, metadata)
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def compare_tensors(path, tensors, expected):
    """Raise an InputError that names the first tensor that is not as expected."""

    def describe(side, name):
        if name not in side:
            return "nothing"
        tensor = side[name]
        kind = "" if tensor.is_floating_point() else f" {tensor.dtype}"
        return f"{tuple(tensor.shape)}{kind}"

    for name in sorted(expected.keys() | tensors.keys()):
        ours, theirs = describe(expected, name), describe(tensors, name)
        if ours != theirs:
            raise InputError(
                f"{path} is of another architecture: for {name} the model has {ours}, "
                f"the file {theirs}"
            )


def _read_metadata(path):
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    version = metadata.pop("format_version", "")
    if not version.isdecimal():
        raise InputError(f"{path} was not written by this course: name another one")
    if int(version) > FORMAT_VERSION:
        raise InputError(
            f"{path} has format {version}, this version of the course reads "
            f"{FORMAT_VERSION}: update the course"
        )
    return {name: json.loads(value) for name, value in metadata.items()}


@contextmanager
def _reading(path):
    """Answer whatever a damaged or foreign file can cause with an InputError."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path} is damaged or cut off ({error}): delete its folder to use the "
            "checkpoint before it"
        ) from None
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path} is not a checkpoint of this course "
            f"({type(error).__name__}: {reason}): name another one"
        ) from None
