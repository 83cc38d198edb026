"""Pretrain a GPT on token shards.

Run it: `python -m ch05.gutenberg.pretrain --data gutenberg_tokens --tokens 1M`, or on
four GPUs `torchrun --nproc-per-node 4 -m ch05.gutenberg.pretrain …`, which takes the
same windows in the same steps. Ctrl-C saves; `--resume` continues bit for bit. What it
does is in `recipe.py` and `training.py`.
"""

import math
import re
from argparse import ArgumentTypeError
from hashlib import sha256
from pathlib import Path

import torch

from ch02.cli import (
    InputError,
    Parser,
    exit_on_input_error,
    positive_float,
    positive_int,
    seed,
)
from ch05.checkpoint import latest_checkpoint, load_position
from ch05.device import ACCELERATORS, reuse_freed_memory
from ch05.gpt_download import free_memory
from ch05.gutenberg.recipe import (
    CONFIG_MINI,
    flops_per_token,
    memory_needed,
    parameter_count,
)
from ch05.gutenberg.shards import TokenShards
from ch05.gutenberg.training import Pretraining, World
from ch05.resumable import find_run, unfinished

SHAPE = ("emb_dim", "n_layers", "n_heads", "context_length")


def token_count(text):
    """Option type: a number of tokens such as 500000, 500k, 20M or 1.5B."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d+)?)([kMB]?)", text)
    factor = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9}
    count = round(float(match[1]) * factor[match[2]]) if match else 0
    if count < 1:
        raise ArgumentTypeError(f"{text!r} is not a number such as 500k or 20M")
    return count


def parse_args(argv=None):
    """Read the command line."""
    parser = Parser(
        prog="pretrain",
        description="Pretrain a GPT on the shards of prepare_dataset. Alone, or in "
        "every process that torchrun starts.",
    )
    add = parser.add_argument_group("data and model").add_argument
    add("--data", default="gutenberg_tokens", metavar="DIR",
        help="(default: %(default)s)")  # fmt: skip
    add("--order", choices=("random", "sequential"), default="random",
        help="of the windows in a pass over the text")  # fmt: skip
    for name in SHAPE:
        add(f"--{name.replace('_', '-')}", type=positive_int, metavar="N",
            default=CONFIG_MINI[name], help="(default: %(default)s)")  # fmt: skip

    add = parser.add_argument_group("training").add_argument
    add("--tokens", type=token_count, default="20M", metavar="N",
        help="how many to train on, such as 500k or 300M (default: 20M)")  # fmt: skip
    add("--batch-size", type=positive_int, default=16, metavar="N",
        help="windows per step, of all processes together (default: 16)")  # fmt: skip
    add("--micro-batch", type=positive_int, metavar="N",
        help="windows at a time (default: 4 on a CPU, else all of a step)")  # fmt: skip
    add("--lr", type=positive_float, default=2e-3, help="the highest (default: 2e-3)")
    add("--warmup", type=positive_int, metavar="N",
        help="steps until it is reached (default: a twentieth of all)")  # fmt: skip
    add("--weight-decay", type=float, default=0.1, help="of matrices (default: 0.1)")
    add("--dtype", choices=("auto", "fp32", "bf16"), default="auto",
        help="bf16: autocast; auto: where the device computes in it")  # fmt: skip
    add("--compile", action="store_true", help="torch.compile; needs a C++ compiler")
    add("--seed", type=seed, default=123, help="of the weights and of the order")
    add("--device", default="auto", help=f"auto, cpu, {', '.join(ACCELERATORS)}")

    add = parser.add_argument_group("output").add_argument
    add("--out-dir", type=Path, default="runs/gpt2-mini", metavar="DIR",
        help="(default: %(default)s)")  # fmt: skip
    add("--resume", action="store_true", help="continue the run in --out-dir")
    add("--save-every", type=positive_int, default=200, help="steps per checkpoint")
    add("--eval-freq", type=positive_int, default=100, help="steps per evaluation")
    add("--eval-windows", type=positive_int, default=128, help="windows of one")
    add("--prompt", default="It was a", help="start of the samples")
    add("--tensorboard", action="store_true", help="also write what it reads")
    args = parser.parse_args(argv)
    if not args.prompt.strip():
        parser.error("--prompt is empty")
    if not 0 <= args.weight_decay < math.inf:
        parser.error("--weight-decay must be a number of at least 0")
    if args.emb_dim % args.n_heads:
        parser.error("--emb-dim must be a multiple of --n-heads")
    return args


def collect_settings(args, world):
    """What makes a run what it is: all that must be the same to go on."""
    config = CONFIG_MINI | {name: getattr(args, name) for name in SHAPE}
    num_steps = math.ceil(args.tokens / args.batch_size / args.context_length)
    share = args.batch_size // world.size
    # Four windows keep a CPU busy; an accelerator takes all it can get
    at_a_time = math.gcd(share, 4) if world.device.type == "cpu" else share
    micro_batch = args.micro_batch or max(1, at_a_time)
    if args.batch_size % (micro_batch * world.size):
        raise InputError(
            f"--batch-size {args.batch_size} cannot be shared out: {world.size} "
            f"process(es) with {micro_batch} windows at a time"
        )
    return {
        "config": config,
        "data": sha256((Path(args.data) / "manifest.json").read_bytes()).hexdigest(),
        "num_steps": num_steps,
        "batch_size": args.batch_size,
        "micro_batch": micro_batch,
        "learning_rate": args.lr,
        "warmup_steps": min(args.warmup or max(1, num_steps // 20), num_steps),
        "weight_decay": args.weight_decay,
        "max_norm": 1.0,
        "shuffle": args.order == "random",
        "seed": args.seed,
        "dtype": pick_dtype(args.dtype, world.device),
        "eval_freq": args.eval_freq,
        "eval_windows": args.eval_windows,
    }


def pick_dtype(name, device):
    """ "fp32" or "bf16"; "auto" takes bf16 where the device has instructions for it."""
    if name != "auto":
        return name
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Older versions of PyTorch do not tell
        features = getattr(torch.cpu, "get_capabilities", dict)()
        has_bf16 = device.type == "cpu" and features.get("avx512_bf16", False)
    return "bf16" if has_bf16 else "fp32"


def cli(argv=None):
    """Command line: train, evaluate, sample, checkpoint."""
    args = parse_args(argv)
    with exit_on_input_error("pretrain"):
        world = World(args.device)
        try:
            stopped_by = run(args, world)
        except torch.OutOfMemoryError:  # of an accelerator
            raise InputError(
                f"{world.device} has too little memory: choose a smaller --micro-batch"
            ) from None
        finally:
            world.close()
    if stopped_by:
        raise SystemExit(128 + stopped_by)


def run(args, world):
    """One process of a run; returns the number of the signal that stopped it."""
    say = print if world.rank == 0 else lambda *args: None
    reuse_freed_memory()
    train, val = (TokenShards(args.data, split) for split in ("train", "val"))
    settings = collect_settings(args, world)
    config, num_steps = settings["config"], settings["num_steps"]
    needed, free = memory_needed(config, settings["micro_batch"]), free_memory()
    on_cpu = world.device.type == "cpu"
    if on_cpu and free is not None and free < needed * world.size:
        raise InputError(
            f"this needs about {needed * world.size / 1e9:.1f} GB of memory, "
            f"{free / 1e9:.1f} GB are free: choose a smaller --micro-batch"
        )
    if world.rank == 0:
        find_run(args.out_dir, settings, args.resume, {"loss_sum"})
    world.wait()
    checkpoint = latest_checkpoint(args.out_dir)
    if checkpoint:
        position = load_position(checkpoint)
        if position["step"] == num_steps:
            say(f"{args.out_dir} holds this run, finished.")
            return None
        if not args.resume:
            raise unfinished(args.out_dir, position)

    board = None
    if args.tensorboard and world.rank == 0:
        board = open_board(args.out_dir, position["tokens_seen"] if checkpoint else 0)
    training = Pretraining(
        settings, train, val, world, args.out_dir, args.compile, board
    )
    if checkpoint:
        training.restore(checkpoint)
        say(f"Going on after step {training.step}.")
    passes = num_steps * settings["batch_size"] / training.windows.count
    say(
        f"Model   {parameter_count(config):,} parameters, {settings['dtype']}, "
        f"{world.size} x {world.device.type}"
    )
    say(f"Data    {len(train):,} tokens; this run makes {passes:.2f} passes")
    say(
        f"Run     {num_steps} steps of {settings['batch_size']} x "
        f"{config['context_length']} tokens -> {args.out_dir}"
    )
    say(
        f"Work    {flops_per_token(config) * num_steps * training.tokens_per_step:.1e} "
        "floating-point operations"
    )
    if on_cpu:
        say(f"Memory  about {needed / 1e9:.1f} GB per process")
    try:
        seconds = training.seconds_per_step() * (num_steps - training.step)
    except RuntimeError as error:
        if not args.compile or isinstance(error, torch.OutOfMemoryError):
            raise
        reason = str(error).splitlines()[0]
        raise InputError(f"--compile fails here ({reason}): leave it out") from None
    say(f"Time    about {duration(seconds)}, judged by one micro-batch\n")
    stopped_by = training.train(args.prompt, args.eval_freq, args.save_every)
    if stopped_by:
        say(f"\nStopped and saved in {args.out_dir}; --resume continues this run.")
    else:
        say(f"\nSaved in {args.out_dir}: checkpoints/ and metrics.jsonl")
        say(f"Try: python -m ch05.gpt_generate --checkpoint {args.out_dir}")
    return stopped_by


def open_board(run_dir, tokens_seen):
    """A TensorBoard writer for a run's folder; hides what it holds of later tokens."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError(
            "--tensorboard needs a package: pip install tensorboard"
        ) from None
    return SummaryWriter(run_dir, purge_step=tokens_seen + 1)


def duration(seconds):
    """Seconds as a text of hours, minutes or seconds."""
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"


if __name__ == "__main__":
    cli()
