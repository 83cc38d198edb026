"""How much memory each way of loading needs, each in a process of its own.

The figures are Linux's own high-water marks; elsewhere the logits are compared, the
memory is not measured. Run it: `python -m ch05.memory_efficient_loading.measure` saves
a model of 210 MB to a temporary folder three times, loads it in six ways, and prints
the peaks as multiples of the parameters' bytes.
"""

import gc
import math
import re
import shutil
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file

from ch02.cli import InputError, Parser, exit_on_input_error, positive_int
from ch04.gpt import GPT_CONFIG_124M
from ch05.checkpoint import save_weights
from ch05.gpt_download import free_memory
from ch05.memory_efficient_loading import loading
from ch05.memory_efficient_loading.loading import build, build_on_meta

# For each way the function, and what it loads of a folder of `save_checkpoints`
WAYS = {
    "copy": (loading.load_and_copy, "model.pth"),
    "sequential": (loading.load_sequentially, "model.pth"),
    "assign": (loading.load_and_assign, "model.pth"),
    "mmap": (loading.load_mapped, "model.pth"),
    "by-tensor": (loading.load_by_tensor, "model.safetensors"),
    "sharded": (loading.load_sharded, "shards"),
}
# 210 MB, of which the largest tensor is a fiftieth, as in models of many layers
CONFIG = {
    **GPT_CONFIG_124M,
    "vocab_size": 2048,
    "context_length": 128,
    "emb_dim": 512,
    "n_heads": 8,
    "n_layers": 16,
}
SHARDS = 8  # or one or two more, as whole tensors do not fill a file
TOKEN_IDS = (1, 2, 3, 5, 8, 13, 21, 34)


class Memory(NamedTuple):
    """Bytes of this process: most resident so far, now, and of those not in a file."""

    peak: float
    now: float
    own: float


class Needs(NamedTuple):
    """What a way of loading needs, in multiples of the parameters' bytes.

    loading: peak until the model is there. forward: peak until its first logits are.
    own, files: what the process has then for itself, and in pages of files, which the
    system may take back at any time. same_logits: bit for bit those of the model saved.
    """

    loading: float
    forward: float
    own: float
    files: float
    same_logits: bool


def read_memory():
    """The `Memory` of this process, as Linux tells it; nan elsewhere."""
    try:
        status = Path("/proc/self/status").read_text()
        fields = (rf"{name}:\s+(\d+) kB" for name in ("VmHWM", "VmRSS", "RssAnon"))
        return Memory(*(1024 * int(re.search(field, status)[1]) for field in fields))
    except (OSError, TypeError):
        return Memory(math.nan, math.nan, math.nan)


def save_checkpoints(folder, model, config):
    """Save a model to a folder as model.pth, model.safetensors, and in shards."""
    from huggingface_hub import save_torch_state_dict

    (folder / "shards").mkdir(parents=True)
    torch.save(model.state_dict(), folder / "model.pth")
    save_weights(folder / "model.safetensors", model, config)
    size = n_bytes(model) // SHARDS
    save_torch_state_dict(model.state_dict(), folder / "shards", max_shard_size=size)


def n_bytes(model):
    """Bytes of a model's parameters."""
    return sum(parameter.nbytes for parameter in model.parameters())


def size_of(config):
    """Bytes of the parameters of a config's model, which need not fit into memory."""
    one, two = (n_bytes(build_on_meta({**config, "n_layers": n})) for n in (1, 2))
    return one + (config["n_layers"] - 1) * (two - one)


@torch.no_grad()
def save_random_model(folder, config):
    """Save a model as `save_checkpoints` does, and logits.safetensors beside it."""
    model = build(config).eval()
    save_checkpoints(folder, model, config)
    logits = model(torch.tensor([TOKEN_IDS]))
    save_file({"logits": logits}, folder / "logits.safetensors")


@torch.no_grad()
def load_and_measure(way, folder, config):
    """The `Needs` of loading a model of `save_random_model` in this process."""
    load, file = WAYS[way]
    token_ids = torch.tensor([TOKEN_IDS])
    expected = load_file(folder / "logits.safetensors")["logits"]
    # A first forward pass brings in code of PyTorch, which is no part of the model
    build({**config, "n_layers": 1, "emb_dim": config["n_heads"]})(token_ids)

    gc.collect()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from now
    before = read_memory()
    model = load(folder / file, config)
    loaded = read_memory()
    logits = model(token_ids)
    after = read_memory()

    own = after.own - before.own
    memory = (
        loaded.peak - before.peak,
        after.peak - before.peak,
        own,
        after.now - before.now - own,
    )
    multiples = (n / n_bytes(model) for n in memory)
    return Needs(*multiples, torch.equal(logits, expected))


def run_alone(function, *arguments):
    """Call a function in a new process, on one thread, and return what it returns."""
    if "forkserver" in get_all_start_methods():
        # One process imports PyTorch and does nothing else; each new one is its copy
        context = get_context("forkserver")
        context.set_forkserver_preload([loading.__name__])
    else:
        context = get_context("spawn")
    with ProcessPoolExecutor(1, context, torch.set_num_threads, (1,)) as pool:
        return pool.submit(function, *arguments).result()


def measure(config, ways=WAYS):
    """Yield (way, its `Needs`) for a random model of this config, saved for the time.

    Raises InputError if memory or disk are too small for it.
    """
    size = size_of(config)
    with TemporaryDirectory() as folder:
        free, disk = free_memory(), shutil.disk_usage(folder).free
        for kind, there, needed in (("memory", free, 2.5), ("disk", disk, 3.5)):
            if there is not None and there < needed * size:
                raise InputError(
                    f"{needed * size / 1e9:.1f} GB of {kind} are needed, "
                    f"{there / 1e9:.1f} GB are free: choose fewer layers"
                )
        folder = Path(folder) / "model"
        run_alone(save_random_model, folder, config)
        for way in ways:
            yield way, run_alone(load_and_measure, way, folder, config)


def main(argv=None):
    """Command line: a table with one line for each way."""
    parser = Parser(
        prog="measure",
        description="Measure the memory that each way of loading a model needs, as "
        "multiples of the model's size (on Linux).",
    )
    parser.add_argument("--way", choices=WAYS, help="only this one (default: all)")
    parser.add_argument(
        "--layers",
        type=positive_int,
        default=CONFIG["n_layers"],
        help="size of the model: 12.6 MB each (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    config = {**CONFIG, "n_layers": args.layers}
    with exit_on_input_error("measure"):
        print(f"Multiples of {size_of(config) / 1e6:.0f} MB")
        print("way        loading  forward     own   files  same logits")
        for way, needs in measure(config, [args.way] if args.way else WAYS):
            numbers = "  ".join(f"{multiple:6.2f}" for multiple in needs[:4])
            same = "yes" if needs.same_logits else "NO"
            print(f"{way:10}  {numbers}  {same}", flush=True)


if __name__ == "__main__":
    main()
