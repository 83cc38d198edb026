"""Time the course's training step against a plain one, side by side.

The plain step is the book's: unfused AdamW, memory as the C library hands it out. Both
train the same 124M model on the same batches of 2 x 256 tokens, in turn, each in a
process of its own. Run it: `python tests/benchmarks/training_loop.py` (about five
minutes on two CPU cores) prints tokens per second, the ratio, each one's share of the
machine's matrix-multiply peak, and the largest difference between the fp32 losses.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

import torch

from ch02.dataloader import load_text
from ch04.gpt import GPTModel
from ch05.device import pick_device, reuse_freed_memory, use_cheap_dropout
from ch05.gpt_train import MODELS, calc_loss_batch, create_loaders, create_optimizer

CONFIG, SETTINGS = MODELS["gpt2-small"]


def worker(kind, dtype, device):
    """Train one step for every line on stdin; answer with seconds and loss as JSON."""
    device = pick_device(device)
    if kind == "course":
        reuse_freed_memory()
    torch.manual_seed(123)
    model = GPTModel(CONFIG).to(device)
    if kind == "course" and dtype == "bf16" and device.type == "cpu":
        use_cheap_dropout(model)
    if kind == "course":
        optimizer = create_optimizer(model, SETTINGS)
    else:
        optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=SETTINGS["learning_rate"],
            weight_decay=SETTINGS["weight_decay"],
        )
    train_loader, _ = create_loaders(load_text(), CONFIG, SETTINGS["batch_size"])
    batches = list(train_loader)
    for step, _ in enumerate(sys.stdin):
        input_batch, target_batch = batches[step % len(batches)]
        started = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bf16"):
            loss = calc_loss_batch(input_batch, target_batch, model, device)
        loss.backward()
        optimizer.step()
        loss = loss.item()  # also waits for an accelerator
        print(json.dumps([time.perf_counter() - started, loss]), flush=True)


def step(process):
    """Let one worker train one step while the others wait."""
    process.stdin.write("\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def matmul_peak(dtype, device, size=2048, repeats=5):
    """The machine's best matrix-multiply rate at this size, in FLOP/s."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    a = torch.randn(size, size, dtype=dtype, device=device)
    best = 0.0
    for _ in range(repeats):
        started = time.perf_counter()
        (a @ a).sum().item()
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def flops_per_token():
    """Multiplications and additions of one token's training step in matrix products."""
    with torch.device("meta"):
        model = GPTModel(CONFIG)
    weights = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    lookups = model.tok_emb.weight.numel() + model.pos_emb.weight.numel()
    # Scores and weighted sums: two products of T x C per token and layer
    attention = 2 * CONFIG["n_layers"] * CONFIG["context_length"] * CONFIG["emb_dim"]
    # One multiply-add is 2, and the backward pass costs twice the forward pass
    return 6 * (weights - lookups + attention)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="training_loop", description=__doc__)
    parser.add_argument("--steps", type=int, default=8, help="timed steps of each")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        return worker(*args.worker, args.device)

    device = pick_device(args.device)
    kinds = [("plain", "fp32"), ("course", "fp32"), ("course", "bf16")]
    workers = {
        kind: subprocess.Popen(
            [sys.executable, __file__, "--device", args.device, "--worker", *kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for kind in kinds
    }
    seconds, losses = {kind: [] for kind in kinds}, {kind: [] for kind in kinds}
    for number in range(args.steps + 1):
        for kind, process in workers.items():
            elapsed, loss = step(process)
            losses[kind].append(loss)
            if number > 0:  # the first step warms up
                seconds[kind].append(elapsed)
        print(f"step {number} of {args.steps}", file=sys.stderr)
    for process in workers.values():
        process.stdin.close()
        process.wait()

    tokens = SETTINGS["batch_size"] * CONFIG["context_length"]
    plain = seconds["plain", "fp32"]
    print(f"GPT-2 124M, batch {SETTINGS['batch_size']} x {CONFIG['context_length']}")
    print(f"PyTorch {torch.__version__}, {device}, {torch.get_num_threads()} threads\n")
    print("step    dtype  tokens/s  ratio (range of pairs)  share of matmul peak")
    for kind, dtype in kinds:
        times = seconds[kind, dtype]
        ratios = sorted(a / b for a, b in zip(plain, times, strict=True))
        rate = tokens / statistics.median(times)
        share = rate * flops_per_token() / matmul_peak(dtype, device)
        print(
            f"{kind:6}  {dtype:5}  {rate:8.0f}  {statistics.median(ratios):5.2f}"
            f" ({ratios[0]:.2f} to {ratios[-1]:.2f})      {share:6.0%}"
        )
    difference = max(
        abs(a - b)
        for a, b in zip(losses["plain", "fp32"], losses["course", "fp32"], strict=True)
    )
    print(f"\nLargest difference of the fp32 losses: {difference:.1e}")


if __name__ == "__main__":
    main()
