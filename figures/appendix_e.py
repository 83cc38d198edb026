"""Draw the figures of appendix E. Run it: `python -m figures.appendix_e`.

Shapes and counts come from the appendix's own code, run without memory for the weights;
what the figures say of LoRA's arithmetic is asserted on a small layer.
"""

from functools import cache
from pathlib import Path

import torch
from torch import nn

from appendix_e.lora import (
    LinearWithLoRA,
    added_weight,
    linear_layers,
    num_adapter_parameters,
)
from figures.ch04 import count, plus
from figures.ch06 import classifier
from figures.svg import Figure, save_all

ROOT = Path(__file__).parents[1]
WIDTH = 760
SIZE, RANK = "gpt2-mini", 8


@cache
def layer():
    """The example: the first linear layer of a feed forward network, I -> O."""
    return classifier(SIZE).trf_blocks[0].ff.layers[0]


def sizes():
    """(I, O, numbers in W, numbers in A and B) of the example."""
    adapters = num_adapter_parameters({"": layer()}, RANK)
    inputs, outputs = layer().in_features, layer().out_features
    return inputs, outputs, inputs * outputs, adapters


def update():
    """E.1: full finetuning learns a second matrix as large as the first."""
    inputs, outputs, numbers, _ = sizes()
    model = classifier(SIZE)
    fig = Figure(
        WIDTH,
        344,
        "Full finetuning learns a change as large as the weights",
        f"A weight matrix W of shape (I, O), here ({inputs}, {outputs}), plus a change "
        f"of the same shape gives the finetuned matrix. Each of its {numbers:,} "
        "numbers gets a change of its own.",
    )
    w, h, y = 192, 48, 128
    parts = [
        (28, "W", "muted", "before"),
        (284, "ΔW", "highlight", "what finetuning adds"),
        (540, "W'", "weights", "after"),
    ]
    for x, name, role, meaning in parts:
        fig.text(x + w / 2, y - 50, name, role, 17, mono=True, bold=True)
        fig.text(x + w / 2, y - 28, meaning, role, 13)
        fig.matrix(x, y, [[""] * 12] * 3, role, (16, 16), caption="(I, O)")
        fig.text(x + w / 2, y + h + 40, f"{numbers:,} numbers", role, 13)
    plus(fig, 252, y + h / 2)
    for line in (y + h / 2 - 3, y + h / 2 + 3):
        fig.arrow((502, line), (514, line), head=False)

    words = "y = x @ W' = x @ W + x @ ΔW"
    fig.box(28, 242, 704, 36, "ink", words, 14, mono=True)
    words = f"Drawn to scale: I = {inputs}, O = {outputs}, the first layer of a feed "
    words += f"forward network in {SIZE}.\nPyTorch stores W as its transpose, (O, I). "
    words += f"All of {SIZE}'s classifier: {count(model):,} numbers."
    fig.text(28, 302, words, "muted", 12.5, "start")
    return fig


def fraction(fig, x, y):
    """alpha over rank."""
    fig.text(x, y - 11, "alpha", "ink", 13, mono=True)
    fig.arrow((x - 22, y), (x + 22, y), head=False)
    fig.text(x, y + 11, "rank", "ink", 13, mono=True)


def low_rank():
    """E.1: two thin matrices instead of one wide one."""
    inputs, outputs, numbers, adapters = sizes()
    counts = {r: num_adapter_parameters({"": layer()}, r) for r in (4, 8, 16)}
    assert (numbers, adapters) == (147_456, 7_680)
    fig = Figure(
        WIDTH,
        404,
        "Two thin matrices stand in for a large one",
        f"The change ΔW of shape (I, O) = ({inputs}, {outputs}), {numbers:,} numbers, "
        f"is approximated by alpha / rank times A (I, R) times B (R, O). With R = "
        f"{RANK} these have {inputs} x {RANK} + {RANK} x {outputs} = {adapters:,} "
        "numbers.",
    )
    scale, x, y, gap = 0.5, 240, 130, 12
    w, h, r = outputs * scale, inputs * scale, RANK * scale
    fig.box(x, y, w, h, "muted", radius=0)
    fig.box(x - gap - r, y, r, h, "highlight", radius=0)
    fig.box(x, y - gap - r, w, r, "highlight", radius=0)
    row, over = y + 34, x + 54
    for start, end in (((x - gap, row), (over, row)), ((over, y - gap), (over, row))):
        fig.arrow(start, end, role="highlight", head=False, dash="3 4")
    fig.oval(over, row, 4, 4, "highlight")
    words = (
        f"one number of ΔW is the sum of {RANK}\nproducts: a row of A, a column of B"
    )
    fig.text(over + 16, row - 9, words, "muted", 12.5, "start")
    fig.text(x + w / 2, y + h - 20, "ΔW (I, O)", "muted", 15, mono=True, bold=True)
    fig.text(x + w + 12, y + h / 2, f"I = {inputs}", "muted", 13, "start", mono=True)
    fig.text(x + w / 2, y + h + 18, f"O = {outputs}", "muted", 13, mono=True)
    words = f"B (R, O): {RANK} × {outputs} = {RANK * outputs:,}"
    fig.text(x + w / 2, y - 40, words, "highlight", 14, mono=True, bold=True)
    left = x - gap - r - 12
    words = f"A (I, R)\n{inputs} × {RANK}\n= {inputs * RANK:,}"
    fig.text(left, y + h / 2 - 20, words, "highlight", 14, "end", mono=True, bold=True)
    words = f"ΔW ≈ alpha/rank × A @ B, with rank R = {RANK}"
    fig.text(28, 66, words, "ink", 14, "start", mono=True)

    y, length = 286, 460
    for i, (name, size, role) in enumerate(
        (("ΔW", numbers, "muted"), ("A and B", adapters, "highlight"))
    ):
        line = y + 36 * i
        fig.text(110, line + 11, name, role, 13, "end", bold=True)
        long = length * size / numbers
        fig.box(120, line, long, 22, role, radius=0)
        words = f"{size:,}"
        if size < numbers:
            words += f", {size / numbers:.1%} of it".replace("%", " %")
        fig.text(120 + long + 10, line + 11, words, role, 13, "start", bold=True)
    words = "All to scale. A and B have R (I + O) numbers: "
    words += ", ".join(f"{n:,} for R = {rank}" for rank, n in counts.items()) + "."
    fig.text(28, 376, words, "muted", 12.5, "start")
    return fig


def column(fig, x, middle, h, role, name, caption):
    """A token's numbers as an upright bar of height h."""
    fig.box(x, middle - h / 2, 18, h, role, radius=0)
    fig.text(x + 9, middle + h / 2 + 16, caption, role, 13, mono=True)
    fig.text(x + 9, middle - h / 2 - 16, name, role, 14, mono=True, bold=True)


@torch.no_grad()
def linear_with_lora():
    """E.4: two roads from x to the output, and their sum."""
    linear = nn.Linear(6, 10)
    wrapped, x = LinearWithLoRA(linear, 2, 4), torch.randn(3, 6)
    assert torch.equal(wrapped(x), linear(x)), "B is zero at first"
    fig = Figure(
        WIDTH,
        384,
        "x takes two roads; only the narrow one is trained",
        "x of shape (..., I) goes through the frozen linear layer to (..., O), and "
        "through A to (..., R), through B to (..., O), times alpha / rank. Both are "
        "added. A starts at random, B at zero, so at first the sum is the frozen "
        "layer's output, unchanged.",
    )
    high, low, middle = 126, 272, 199
    column(fig, 48, middle, 64, "embeddings", "x", "(…, I)")
    fig.arrow((74, middle), (104, middle), head=False)
    fig.arrow((104, middle), (104, high), (230, high))
    fig.box(236, high - 36, 180, 72, "muted", "linear\nweight and bias", 14)
    fig.text(326, high - 54, "frozen", "muted", 13, bold=True)
    fig.arrow((422, high), (600, high), (600, middle - 15))
    fig.text(510, high - 11, "(…, O)", "muted", 12.5, mono=True)

    fig.arrow((104, middle), (104, low), (150, low))
    fig.box(156, low - 28, 90, 56, "highlight", "A\n(I, R)", 14, mono=True)
    fig.arrow((252, low), (322, low), label="(…, R)")
    fig.box(328, low - 28, 90, 56, "highlight", "B\n(R, O)", 14, mono=True)
    fig.arrow((424, low), (490, low), label="(…, O)")
    fig.box(496, low - 28, 76, 56, "ink")
    fig.text(509, low, "×", "ink", 16)
    fraction(fig, 544, low)
    fig.arrow((576, low), (600, low), (600, middle + 15))
    fig.text(201, low + 46, "random at first", "highlight", 13)
    fig.text(373, low + 46, "all zeros at first", "highlight", 13)
    fig.text(287, low - 46, "trained", "highlight", 13, bold=True)
    plus(fig, 600, middle)
    fig.arrow((615, middle), (672, middle))
    column(fig, 682, middle, 110, "embeddings", "y", "(…, O)")
    words = "Before the first step B is zero: the lower road adds 0, and y is what the "
    words += "frozen layer says."
    fig.text(28, 356, words, "ink", 13, "start")
    return fig


@torch.no_grad()
def merge():
    """E.4: add the adapter to the weight, or keep it in a file of its own."""
    lora = LinearWithLoRA(nn.Linear(6, 10), 2, 4).lora
    assert added_weight(lora).shape == (10, 6)
    model = classifier(SIZE)
    total, adapters = count(model), num_adapter_parameters(linear_layers(model), RANK)
    fig = Figure(
        WIDTH,
        420,
        "Merge an adapter into its layer, or keep it as a small file",
        "Above: weight plus alpha / rank times (A @ B).T, all of shape (O, I), becomes "
        "by merge_lora the one weight of a plain linear layer; unmerge_lora undoes it. "
        f"Below, to scale: a base model of {total:,} numbers and three adapters of "
        f"{adapters:,} numbers each, rank {RANK}, one per task.",
    )
    middle, w, h = 146, 26, 96
    for x, name, role in (
        (78, "weight", "muted"),
        (298, "(A @ B).T", "highlight"),
        (540, "weight", "weights"),
    ):
        fig.text(x, middle - h / 2 - 16, name, role, 14, mono=True, bold=True)
        fig.box(x - w / 2, middle - h / 2, w, h, role, radius=0)
        fig.text(x, middle + h / 2 + 16, "(O, I)", role, 13, mono=True)
    plus(fig, 138, middle)
    fraction(fig, 196, middle)
    fig.text(238, middle, "×", "ink", 18)
    fig.arrow((366, middle - 18), (484, middle - 18), label="merge_lora")
    fig.arrow((484, middle + 24), (366, middle + 24), label="unmerge_lora")
    words = "one layer again,\nno extra cost,\nthe same answers\nup to rounding"
    fig.text(576, middle - 27, words, "weights", 13, "start")

    words = "Kept apart: one base model, a small file for each task"
    fig.text(28, 240, words, "ink", 14, "start", bold=True)
    left, length = 112, 620
    fig.text(left - 10, 275, "base", "muted", 13, "end", bold=True)
    words = f"{total:,} numbers, stored once"
    fig.box(left, 260, length, 30, "muted", words, 13, radius=0)
    fig.text(left - 10, 333, "adapters", "highlight", 13, "end", bold=True)
    tasks = ["spam or not", "question or not", "urgent or not"]
    for i, task in enumerate(tasks):
        y = 304 + 24 * i
        fig.box(left, y, length * adapters / total, 18, "highlight", radius=0)
        fig.text(left + 22, y + 9, task, "highlight", 13, "start")
        words = f"{adapters:,} numbers, {100 * adapters / total:.1f} %"
        fig.text(left + 140, y + 9, words, "highlight", 13, "start", mono=True)
    fig.text(732, 313, "save_lora: one file each", "ink", 13, "end")
    fig.text(732, 337, "load_lora: back onto the base", "ink", 13, "end")
    words = f"To scale: {SIZE} as a classifier, rank {RANK} in every linear layer."
    fig.text(28, 396, words, "muted", 12.5, "start")
    return fig


FIGURES = [update, low_rank, linear_with_lora, merge]


def draw_all(root=ROOT):
    """Write the appendix's figures to `root`/appendix-E/figures."""
    save_all(FIGURES, Path(root, "appendix-E", "figures"))


if __name__ == "__main__":
    draw_all()
