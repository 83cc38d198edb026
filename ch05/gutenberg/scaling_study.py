"""Which shape should the mini model have? Several, trained with equal arithmetic.

A wider or deeper model learns more from a token, and sees fewer tokens for the same
number of operations. `python -m ch05.gutenberg.scaling_study` trains every shape with
every budget, about half an hour on two cores; begun again, it goes on where it stopped.
In the end it writes the results and a plot beside this file.
"""

import json
import subprocess
import sys
from pathlib import Path

from ch02.cli import InputError, Parser, exit_on_input_error
from ch05.gutenberg.recipe import CONFIG_MINI, flops_per_token, parameter_count
from ch05.resumable import read_metrics

RESULTS = Path(__file__).with_suffix(".json")
PLOT = Path(__file__).with_suffix(".png")
SHAPES = ((128, 4), (192, 6), (256, 8), (320, 3))  # width, layers
HEAD_DIM = 64
BUDGETS = (2e13, 8e13)  # floating-point operations


def config_of(emb_dim, n_layers):
    """The config of a shape; its heads are as wide as GPT-2's."""
    return CONFIG_MINI | {
        "emb_dim": emb_dim,
        "n_layers": n_layers,
        "n_heads": emb_dim // HEAD_DIM,
    }


def run(shape, budget, data, runs_dir):
    """Train one shape with one budget; returns its record, a dict."""
    config = config_of(*shape)
    tokens = round(budget / flops_per_token(config))
    out_dir = Path(runs_dir) / f"{shape[0]}x{shape[1]}-{budget:.0e}"
    command = [sys.executable, "-m", "ch05.gutenberg.pretrain", "--resume"]
    for name in ("emb_dim", "n_layers", "n_heads"):
        command += [f"--{name.replace('_', '-')}", config[name]]
    command += ["--data", data, "--tokens", tokens, "--out-dir", out_dir]
    command += ["--batch-size", 8, "--eval-freq", 10**9, "--eval-windows", 512]
    if code := subprocess.run([str(part) for part in command]).returncode:
        raise SystemExit(code)
    last = read_metrics(out_dir, before_step=sys.maxsize)[-1]
    return {
        "emb_dim": config["emb_dim"],
        "n_layers": config["n_layers"],
        "parameters": parameter_count(config),
        "flops": budget,
        "tokens": last["tokens_seen"],
        "train_loss": round(last["train_loss"], 4),
        "val_bits_per_byte": round(last["val_bits_per_byte"], 4),
    }


def plot(records, path):
    """Draw bits per byte over size, a curve for each budget, to a PNG file."""
    import matplotlib.pyplot as plt

    plt.switch_backend("Agg")
    fig, ax = plt.subplots(figsize=(6, 4))
    for budget in sorted({record["flops"] for record in records}):
        points = [record for record in records if record["flops"] == budget]
        points.sort(key=lambda record: record["parameters"])
        x = [point["parameters"] / 1e6 for point in points]
        y = [point["val_bits_per_byte"] for point in points]
        ax.plot(x, y, marker="o", label=f"{budget:.1e} operations")
        for point, *place in zip(points, x, y, strict=True):
            shape = f"{point['emb_dim']}×{point['n_layers']}"
            ax.annotate(shape, place, (0, 6), textcoords="offset points", ha="center")
    ax.set_xlabel("Parameters (millions)")
    ax.set_ylabel("Bits per byte of held-out books")
    ax.margins(0.1, 0.15)
    ax.legend()
    fig.tight_layout()
    fig.savefig(path, dpi=100)
    plt.close(fig)


def table(records):
    """The records as lines of text."""
    lines = ["  shape  parameters  operations     tokens  bits/byte"]
    for r in records:
        shape = f"{r['emb_dim']}x{r['n_layers']}"
        lines.append(
            f"{shape:>7} {r['parameters']:11,} {r['flops']:11.1e} {r['tokens']:10,}"
            f"  {r['val_bits_per_byte']:.4f}"
        )
    return "\n".join(lines)


def main(argv=None):
    """Command line: train all shapes, write results and plot, print the table."""
    parser = Parser(prog="scaling_study", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", default="gutenberg_tokens", metavar="DIR",
        help="(default: %(default)s)")  # fmt: skip
    add("--runs-dir", default="runs/scaling_study", metavar="DIR", help="of the runs")
    add("--out-dir", type=Path, default=RESULTS.parent, help="of results and plot")
    args = parser.parse_args(argv)
    with exit_on_input_error("scaling_study"):
        records = [
            run(shape, budget, args.data, args.runs_dir)
            for budget in BUDGETS
            for shape in SHAPES
        ]
        try:
            args.out_dir.mkdir(parents=True, exist_ok=True)
            text = json.dumps(records, indent=1) + "\n"
            (args.out_dir / RESULTS.name).write_text(text, encoding="utf-8")
            plot(records, args.out_dir / PLOT.name)
        except OSError as error:
            raise InputError(f"cannot write {args.out_dir}: {error.strerror}") from None
    print(table(records))


if __name__ == "__main__":
    main()
