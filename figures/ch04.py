"""Draw the figures of chapter 4. Run it: `python -m figures.ch04`.

Shapes and counts come from the chapter's own code, run without memory for the weights.
What the full-size model generates comes from tests/book_figures.json, where a test
compares it with a run.
"""

import json
from functools import cache
from math import log10
from pathlib import Path

import torch
from torch import nn

from ch02.dataloader import get_tokenizer
from ch04.gpt import GPT_CONFIG_124M, GPTModel, LayerNorm
from figures.ch02 import bpe, row_width, shape, visible
from figures.svg import Figure, chip_width, save_all

ROOT = Path(__file__).parents[1]
WIDTH = 760
SENTENCES = ["Every effort moves you", "Every day holds a"]


@cache
def gpt():
    """The 124M model without memory for its weights, to ask for shapes and counts."""
    with torch.device("meta"):
        return GPTModel(GPT_CONFIG_124M).eval()


@cache
def batch():
    """The ids of the two sentences, (B, T)."""
    return torch.tensor([bpe(sentence)[1] for sentence in SENTENCES])


def ids_without_memory():
    """A stand-in for `batch` that the model of `gpt` takes."""
    return torch.zeros_like(batch(), device="meta")


@cache
def book_figure(name):
    """A figure of the book that a test compares with a run."""
    path = ROOT / "tests" / "book_figures.json"
    return json.loads(path.read_text(encoding="utf-8"))[f"ch04.{name}"]["value"]


def count(module):
    """The module's parameters."""
    return sum(p.numel() for p in module.parameters())


def tokens_of(token_ids):
    """Each id's token, spaces shown."""
    return [visible(get_tokenizer().decode([i])) for i in token_ids]


def plus(fig, x, y):
    """A sum: a circle with a plus sign around (x, y)."""
    fig.oval(x, y, 11, 11, "ink")
    fig.arrow((x - 5, y), (x + 5, y), head=False)
    fig.arrow((x, y - 5), (x, y + 5), head=False)


def slot(fig, stage, built, x, y, w, name):
    """A part of the frame: empty before its stage, lit in it, a solid box after it."""
    if stage < built:
        name = name if stage == 1 else ""
        return fig.box(x, y, w, 20, "muted", name, 12.5, 3, "3 3")
    if stage == built:
        return fig.box(x, y, w, 20, "highlight", name, 12.5, 3)
    return fig.box(x, y, w, 20, "weights", radius=3)


def frame(fig, x, y, stage):
    """The GPT as far as it is built in section 4.`stage`."""
    w, middle, side = 78, x + 34, x + 70
    top = y + 40  # of the block
    if stage >= 6:
        role = "highlight" if stage == 6 else "weights"
        for i in range(4, 0, -1):
            fig.box(x + 2 * i, top - 2 * i, w, 138, role, radius=4)
    role = "highlight" if stage == 5 else "weights" if stage > 5 else "muted"
    fig.box(x, top, w, 138, role, radius=4, dash="3 3" if stage < 5 else None)
    slot(fig, stage, 1, x, y, w, "embed")
    for place, built, name in ((14, 2, "norm"), (38, 5, "att")):
        slot(fig, stage, built, x + 8, top + place, 52, name)
    for place, built, name in ((78, 2, "norm"), (102, 3, "ff")):
        slot(fig, stage, built, x + 8, top + place, 52, name)
    slot(fig, stage, 2, x, top + 150, w, "norm")
    slot(fig, stage, 1, x, top + 182, w, "head")
    if stage >= 4:
        role = "highlight" if stage == 4 else "ink"
        for a, b in ((7, 65), (71, 130)):
            points = [(middle, a), (side, a), (side, b), (middle, b)]
            fig.arrow(*((px, top + py) for px, py in points), role=role)
    if stage == 7:
        corners = [(34, 202), (34, 212), (-9, 212), (-9, -56), (34, -56), (34, -43)]
        fig.arrow(*((x + a, top + b) for a, b in corners), role="highlight")


def path():
    """Opening: a frame with empty slots, filled section by section."""
    fig = Figure(
        WIDTH,
        404,
        "A GPT starts as an empty frame; each section fills a slot",
        "Seven pictures of the same frame. 4.1: embeddings and output head, the rest "
        "empty. 4.2 adds layer norm, 4.3 GELU and feed forward, 4.4 the shortcuts, 4.5 "
        "makes it a transformer block with attention, 4.6 stacks the blocks into the "
        "whole GPT, 4.7 feeds each new token back in.",
    )
    captions = ["the frame", "layer norm", "GELU and\nfeed forward", "shortcuts"]
    captions += ["transformer\nblock", "whole GPT", "generating"]
    for i, caption in enumerate(captions):
        x, stage = 28 + 103 * i, i + 1
        frame(fig, x, 80, stage)
        fig.text(x + 39, 348, f"4.{stage}", bold=True)
        fig.text(x + 39, 367, caption, "muted", 12.5)
    return fig


def text_to_logits():
    """4.1: from two sentences to a score per token of the vocabulary."""
    ids = ids_without_memory()
    embedded, logits = gpt().tok_emb(ids), gpt()(ids)
    fig = Figure(
        WIDTH,
        322,
        f"Each token gets {logits.shape[-1]:,} scores, one per entry of the vocabulary",
        f"The sentences {SENTENCES} become ids of shape {shape(ids)}, then embeddings "
        f"{shape(embedded)}; the blocks keep that shape; the output head makes logits "
        f"of shape {shape(logits)}.",
    )
    words = [tokens_of(row) for row in batch().tolist()]
    rows = [[str(i) for i in row] for row in batch().tolist()]
    fig.text(28, 78, "text", "text", 14, "start", bold=True)
    fig.matrix(28, 94, words, "text", cell=(68, 30))
    fig.arrow((164, 160), (164, 196), label="encode")
    fig.text(28, 186, "token IDs", "ids", 14, "start", bold=True)
    grid = fig.matrix(28, 204, rows, "ids", (68, 30), caption=shape(ids))
    y = 190
    fig.arrow((306, grid.right[1]), (324, grid.right[1]), (324, y), (344, y))
    sheets, tokens = ids.shape
    columns = [
        (350, 6, "embeddings", shape(embedded)),
        (584, 13, "logits", shape(logits)),
    ]
    for x, cells, name, caption in columns:
        blank, cell = [[""] * cells] * tokens, (11, 30)
        fig.stack(x, y - 65, blank, "embeddings", sheets, cell=cell, caption=caption)
        fig.text(x + (11 * cells + 5) / 2, 104, name, "embeddings", 14, bold=True)
    fig.box(468, y - 78, 78, 156, "weights", "blocks\n+\nhead", bold=True)
    for x0, x1 in ((428, 462), (552, 578)):
        fig.arrow((x0, y), (x1, y))
    return fig


def bars(fig, x, base, values, scale, words):
    """Upright bars, `scale` pixels per unit, each with its number at its tip."""
    for i, (value, word) in enumerate(zip(values, words, strict=True)):
        left, height = x + 44 * i, max(abs(value) * scale, 1.5)
        fig.box(
            left, base - height * (value > 0), 30, height, "embeddings", "", radius=1
        )
        tip = base - height - 11 if value > 0 else base + height + 12
        fig.text(left + 15, tip, word, "embeddings", 12.5, mono=True)


@torch.no_grad()
def layer_norm():
    """4.2: six numbers before and after."""
    torch.manual_seed(123)
    example = torch.randn(2, 5)
    before = nn.Sequential(nn.Linear(5, 6), nn.ReLU())(example)[0]  # (6,)
    sides = [(60, "before", before), (450, "after", LayerNorm(6)(before))]
    facts, numbers = [], []
    for _, name, row in sides:
        mean, var = row.mean().item(), row.var(unbiased=False).item()
        numbers.append([f"{v:.2f}" for v in row.tolist()])
        facts.append(f"mean {abs(mean):.2f}, variance {var:.2f}")
        assert name == "before" or facts[-1] == "mean 0.00, variance 1.00"
    fig = Figure(
        WIDTH,
        380,
        "Layer norm gives a token's numbers mean 0 and variance 1",
        f"Six numbers of one token as bars. Before: {', '.join(numbers[0])}; "
        f"{facts[0]}. After: {', '.join(numbers[1])}; {facts[1]}. Both on the same "
        "scale.",
    )
    base, scale = 232, 78
    for (x, name, row), words, fact in zip(sides, numbers, facts, strict=True):
        fig.text(x, 76, name, anchor="start", size=15, bold=True)
        bars(fig, x, base, row.tolist(), scale, words)
        fig.arrow((x - 14, base), (x + 264, base), head=False)
        level = base - row.mean().item() * scale
        line = (x - 14, level), (x + 264, level)
        fig.arrow(*line, role="highlight", head=False, dash="5 4")
        fig.text(x + 125, 350, fact, "highlight", 15, bold=True)
    fig.arrow((338, 180), (424, 180), label="LayerNorm")
    fig.arrow((46, 316), (70, 316), role="highlight", head=False, dash="5 4")
    fig.text(78, 316, "the mean", "highlight", 12.5, "start")
    return fig


def sheets(fig, x, y, cell, shapes, lit):
    """A (B, T, C) tensor whose sheets show their top row and last column."""
    b, t, c = shapes
    for i in reversed(range(b)):
        left, top = x + cell * i, y - cell * i
        role = "muted" if i else "embeddings"
        paint = dict.fromkeys(lit(i), "highlight")
        fig.matrix(left, top, [[""] * c] * t, role, (cell, cell), paint=paint)
        right, bottom = left + cell * c, top + cell * t
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
        fig.arrow(*corners, corners[0], head=False)


def which_axis():
    """4.2: along which axis layer norm takes its mean."""
    fig = Figure(
        WIDTH,
        380,
        "Layer norm reads one token's numbers and nothing else",
        "A tensor of shape (B, T, C) as sheets, a sheet per text, a row per token. "
        "Layer norm takes mean and variance of one row along C. Batch norm, by "
        "contrast, takes one column over all tokens of all texts.",
    )
    b, t, c = 3, 4, 7

    def token(i):
        return [(2, k) for k in range(c)] if i == 0 else []

    def channel(i):
        return [(r, c - 1) for r in range(t)]

    sheets(fig, 106, 164, 32, (b, t, c), token)
    sheets(fig, 536, 202, 20, (b, t, c), channel)
    fig.text(106, 76, "layer norm", anchor="start", size=15, bold=True)
    fig.text(536, 130, "batch norm", "muted", 14, "start", bold=True)
    fig.arrow((106, 304), (330, 304))
    fig.text(218, 322, "C numbers of a token", size=13)
    fig.arrow((94, 164), (94, 292))
    fig.text(84, 228, "T tokens", size=13, anchor="end")
    fig.arrow((340, 294), (404, 230))
    fig.text(382, 274, "B texts", size=13, anchor="start")
    words = "one mean and one variance for each row"
    fig.text(218, 352, words, "highlight", 14, bold=True)
    words = "one mean per column, over all\ntokens and texts: not in a GPT"
    fig.text(626, 304, words, "muted", 13)
    return fig


def feed_forward():
    """4.3: the same small network for each token."""
    layers = gpt().trf_blocks[0].ff.layers
    steps = [gpt().tok_emb(ids_without_memory())]
    for layer in layers:
        steps.append(layer(steps[-1]))
    narrow, wide = steps[0].shape[-1], steps[1].shape[-1]
    fig = Figure(
        WIDTH,
        378,
        "The same small network widens and narrows each token by itself",
        f"Four tokens, each on its own lane: {narrow} numbers, through a linear layer "
        f"{wide}, through GELU {wide}, through a linear layer {narrow} again. All "
        f"lanes pass the same weights, none meets another. Shapes: "
        f"{', '.join(shape(step) for step in steps)}.",
    )
    lanes = [116 + 48 * i for i in range(steps[0].shape[1])]
    lefts = [112, 230, 444, 664]
    widths = [step.shape[-1] * 34 / narrow for step in steps]
    names = [type(layer).__name__ for layer in layers]
    assert names == ["Linear", "GELU", "Linear"]
    for x, name, w in zip((164, 384, 598), names, (48, 42, 48), strict=True):
        role = "weights" if name == "Linear" else "ink"
        fig.box(x, 92, w, 192, role)
        fig.text(x + w / 2, 76, name, role, 14, bold=True)
        for y in lanes:
            fig.arrow((x, y), (x + w, y), role=role, head=False, dash="2 4")
    for token, y in zip(tokens_of(batch()[0].tolist()), lanes, strict=True):
        w = chip_width(token, 13)
        fig.box(102 - w, y - 14, w, 28, "text", token, 13, mono=True)
        for left, w in zip(lefts, widths, strict=True):
            fig.box(left, y - 11, w, 22, "embeddings", radius=2)
        for x in (148, 215, 368, 429, 582, 649):
            fig.arrow((x, y), (x + 12, y))
    letters = ["(B, T, C)", "(B, T, 4C)", "(B, T, 4C)", "(B, T, C)"]
    for left, w, letter, step in zip(lefts, widths, letters, steps, strict=True):
        fig.text(left + w / 2, 304, letter, "embeddings", 13, mono=True)
        fig.text(left + w / 2, 324, shape(step), "muted", 13, mono=True)
    words = "Every lane runs through the same weights, and no lane meets another."
    fig.text(WIDTH / 2, 355, words, "muted", 13)
    return fig


def gradient_bars(fig, x, base, name, values, digits, shortcuts):
    """The gradients of one network as bars above its layers, on a log scale."""
    fig.text(x, 74, name, anchor="start", size=15, bold=True)
    y = base + 26
    for i, value in enumerate(values):
        left, height = x + 54 * i, 38 * (log10(value) + 5)
        fig.box(left, base - height, 34, height, "target", radius=1)
        word = f"{value:.{digits}f}"
        fig.text(left + 17, base - height - 11, word, "target", 12.5, mono=True)
        fig.box(left + 6, y - 11, 22, 22, "weights", str(i + 1), 13)
        fig.arrow((left - 24, y), (left + 3, y))
        if shortcuts and i < len(values) - 1:  # the last layer changes the shape
            a, b = left - 8, left + 37
            corners = (a, y), (a, y + 24), (b, y + 24), (b, y + 3)
            fig.arrow(*corners, role="highlight")
    fig.arrow((x + 250, base + 68), (x, base + 68), role="target")
    words = f"layer 1: {values[-1] / values[0]:.0f} times smaller than layer 5"
    fig.text(x + 125, base + 86, words, "target", 13)


def shortcut():
    """4.4: the gradient at each of five layers, without and with shortcuts."""
    without, with_ = (book_figure(f"grads.{k}") for k in ("no_shortcut", "shortcut"))
    fig = Figure(
        WIDTH,
        406,
        "Without shortcuts the gradient fades on its way to layer 1",
        "Mean gradient size of the weights in layers 1 to 5, on a log scale. Without "
        f"shortcuts: {', '.join(f'{v:.4f}' for v in without)}. With shortcuts: "
        f"{', '.join(f'{v:.2f}' for v in with_)}.",
    )
    base = 296
    for power in range(-5, 1):
        y = base - 38 * (power + 5)
        fig.text(92, y, f"{10.0**power:.{-power}f}", "muted", 12.5, "end", mono=True)
        for x in (98, 442):
            fig.arrow((x, y), (x + 6, y), head=False)
    for x in (98, 442):
        fig.arrow((x, 94), (x, base), (x + 290, base), head=False)
    gradient_bars(fig, 116, base, "without shortcuts", without, 4, False)
    gradient_bars(fig, 460, base, "with shortcuts", with_, 2, True)
    fig.text(28, base + 26, "layer", "weights", 13, "start")
    fig.text(28, base + 68, "gradient", "target", 13, "start")
    return fig


def half_block(fig, y, module, code):
    """Half of a block: norm, module and dropout, then the shortcut's sum."""
    fig.box(172, y - 21, 94, 42, "weights", "layer norm")
    role = "attention" if module == "attention" else "weights"
    fig.box(294, y - 21, 112, 42, role, module)
    fig.box(434, y - 21, 84, 42, "ink", "dropout")
    for x0, x1 in ((266, 288), (406, 428), (518, 543)):
        fig.arrow((x0 + 4, y), (x1, y))
    corners = (148, y), (148, y - 42), (560, y - 42), (560, y - 15)
    fig.arrow(*corners, role="highlight")
    plus(fig, 560, y)
    fig.text(350, y - 55, "shortcut", "highlight", 13, bold=True)
    fig.text(350, y + 42, code, "ink", 13, mono=True)


def transformer_block():
    """4.5: attention, then feed forward, each with its norm and its shortcut."""
    x = gpt().tok_emb(ids_without_memory())
    y = gpt().trf_blocks[0](x)
    assert x.shape == y.shape
    fig = Figure(
        WIDTH,
        420,
        "A transformer block adds attention and feed forward to its input",
        f"First half: x of shape {shape(x)} goes through layer norm, attention and "
        "dropout, and the shortcut adds x to the result. Second half: the same with "
        f"feed forward. The shape stays {shape(y)} all the way.",
    )
    fig.box(120, 58, 512, 318, "muted", radius=10)
    first, second = 140, 298
    size = {"cell": (11, 14), "caption": shape(x)}
    for left, middle in ((41, first), (664, second)):
        fig.stack(left, middle - 30, [[""] * 5] * 4, "embeddings", 2, **size)
    fig.arrow((106, first), (166, first))
    half_block(fig, first, "attention", "x = x + drop_shortcut(att(norm1(x)))")
    turn = 214
    corners = [(571, first), (606, first), (606, turn), (134, turn), (134, second)]
    fig.arrow(*corners, (166, second))
    half_block(fig, second, "feed forward", "x = x + drop_shortcut(ff(norm2(x)))")
    fig.arrow((571, second), (656, second))
    words = f"Every arrow carries {shape(x)}, so blocks can be stacked."
    fig.text(WIDTH / 2, 398, words, "muted", 13)
    return fig


def gpt_model():
    """4.6: the whole model from ids to logits."""
    ids = ids_without_memory()
    tok, logits = gpt().tok_emb(ids), gpt()(ids)
    positions = torch.arange(ids.shape[1], device="meta")
    pos = gpt().pos_emb(positions)
    blocks = len(gpt().trf_blocks)
    fig = Figure(
        WIDTH,
        420,
        f"The whole GPT: embeddings, {blocks} blocks, a norm and an output head",
        f"Token ids {shape(ids)} are embedded as {shape(tok)}, position embeddings "
        f"{shape(pos)} are added; dropout, {blocks} transformer blocks and the final "
        f"norm keep the shape; the output head makes logits {shape(logits)}.",
    )
    left, right, width = 96, 240, 124
    middle = (left + right) / 2
    for x, name, table in (
        (left, "token IDs", "tok_emb"),
        (right, "positions", "pos_emb"),
    ):
        fig.box(x - 56, 60, 112, 26, "ids", name)
        fig.box(x - 56, 108, 112, 26, "weights", table, 13, mono=True)
        fig.arrow((x, 88), (x, 105))
    plus(fig, middle, 121)
    for i in range(blocks - 1, -1, -1):
        label = f"{blocks} × block" if i == 0 else ""
        x, y = middle - width / 2 + 3 * i, 226 - 2 * i
        fig.box(x, y, width, 34, "weights", label, bold=True)
    boxes = [
        (156, "ink", "drop_emb"),
        (284, "weights", "final_norm"),
        (332, "weights", "out_head"),
        (380, "embeddings", "logits"),
    ]
    for y, role, name in boxes:
        fig.box(middle - width / 2, y, width, 26, role, name, 13, mono=True)
    for y0, y1 in ((133, 153), (184, 200), (262, 281), (312, 329), (360, 377)):
        fig.arrow((middle, y0), (middle, y1))
    rows = [
        (73, f"{shape(ids)} and {shape(positions)}", "two texts of four tokens"),
        (121, f"{shape(tok)} + {shape(pos)}", "which token + where"),
        (169, shape(tok), "in training only"),
        (237, shape(gpt().trf_blocks(tok)), "the same shape each time"),
        (297, shape(gpt().final_norm(tok)), "mean 0 and variance 1"),
        (345, shape(gpt().out_head(tok)), "a linear layer, no bias"),
        (393, shape(logits), "a score per vocabulary entry"),
    ]
    assert gpt().out_head.bias is None
    for y, words, note in rows:
        fig.text(336, y, words, "embeddings", 13, "start", mono=True)
        fig.text(530, y, note, "muted", 13, "start")
    return fig


def parameters():
    """4.6: where the parameters are, and what sharing a matrix saves."""
    model = gpt()
    blocks = model.trf_blocks
    norms = [model.final_norm, *(n for b in blocks for n in (b.norm1, b.norm2))]
    parts = {
        "tok_emb": (count(model.tok_emb), "embeddings"),
        "pos_emb": (count(model.pos_emb), "ink"),
        "attention": (sum(count(b.att) for b in blocks), "attention"),
        "feed forward": (sum(count(b.ff) for b in blocks), "weights"),
        "norms": (sum(count(norm) for norm in norms), "ink"),
        "out_head": (count(model.out_head), "embeddings"),
    }
    total, saved = count(model), count(model.out_head)
    assert sum(size for size, _ in parts.values()) == total
    assert model.out_head.weight.shape == model.tok_emb.weight.shape
    fig = Figure(
        WIDTH,
        390,
        "Almost half of the parameters are two vocabulary-sized tables",
        f"A bar to scale of {total:,} parameters: "
        + ", ".join(f"{name} {size:,}" for name, (size, _) in parts.items())
        + f". With tok_emb used again as out_head, {total - saved:,} remain.",
    )
    fig.text(28, 78, f"{total:,} parameters", anchor="start", bold=True)
    fig.text(28, 266, f"{total - saved:,} when tied", anchor="start", bold=True)
    x = 28
    spans = {}
    for name, (size, role) in parts.items():
        w = 704 * size / total
        spans[name] = (x, x + w)
        again = name == "out_head"
        if w > 50:
            label = f"{name}\n{size:,}"
            fig.box(x, 128, w, 60, role, label, 13, radius=0)
            label = f"\N{MINUS SIGN}{saved:,}" if again else name
            dash = "4 4" if again else None
            role = "muted" if again else role
            fig.box(x, 284, w, 40, role, label, 13, radius=0, dash=dash)
        else:  # too small for a box: a line
            middle = x + w / 2
            fig.arrow((middle, 112), (middle, 188), head=False)
            fig.arrow((middle, 284), (middle, 324), head=False)
            fig.text(middle, 102, f"{name} {size:,}", size=13)
        x += w
    ends = spans["attention"][0] + 2, spans["feed forward"][1] - 2
    fig.bracket(*ends, 200, f"{len(blocks)} blocks", up=False)
    (x0, x1), (x2, x3) = spans["tok_emb"], spans["out_head"]
    corners = ((x0 + x1) / 2, 328), ((x0 + x1) / 2, 350), ((x2 + x3) / 2, 350)
    fig.arrow(*corners, ((x2 + x3) / 2, 329), role="highlight")
    words = f"tied: out_head uses the {shape(model.tok_emb.weight)} matrix of tok_emb"
    fig.text(WIDTH / 2, 366, words, "highlight", 13)
    return fig


def prompt_and_new():
    """The ids of the six steps, their tokens, and the length of the prompt."""
    token_ids = book_figure("gen.ids6")[0]
    prompt = book_figure("gen.encoded")
    assert token_ids[: len(prompt)] == prompt == bpe("Hello, I am")[1]
    return token_ids, tokens_of(token_ids), len(prompt)


def next_token():
    """4.7: from the logits to one more id."""
    token_ids, tokens, start = prompt_and_new()
    logits = gpt()(torch.zeros(1, start, dtype=torch.int64, device="meta"))
    last = logits[:, -1, :]
    before, after = [torch.tensor([token_ids[: start + i]]) for i in (0, 1)]
    fig = Figure(
        WIDTH,
        412,
        "Only the last row of logits decides the next token",
        f"The ids {token_ids[:start]} give logits of shape {shape(logits)}. The last "
        f"row, {shape(last)}, becomes probabilities by softmax; argmax picks id "
        f"{token_ids[start]}, which is appended to the ids.",
    )
    w, h = 66, 32
    fig.text(125, 76, "token IDs", "ids", 14, bold=True)
    column = [[str(i)] for i in token_ids[:start]]
    grid = fig.matrix(92, 92, column, "ids", (w, h), caption=shape(before))
    for row, token in enumerate(tokens[:start]):
        fig.text(82, grid.at(row, 0).left[1], token, "text", 13, "end", mono=True)
    fig.arrow((164, grid.right[1]), (226, grid.right[1]), label="model")

    paint = {(start - 1, c): "highlight" for c in range(8)}
    fig.text(330, 76, "logits", "embeddings", 14, bold=True)
    grid = fig.matrix(
        234, 92, [[""] * 8] * start, "embeddings", (24, h), (), shape(logits), paint
    )
    y = grid.at(start - 1, 0).right[1]
    fig.arrow((432, y), (506, y), label="softmax")
    heights = [9, 14, 6, 21, 11, 30, 8, 17, 5, 12, 26, 10, 16, 7, 19, 96, 13, 23, 6, 15]
    base, left = grid.y + grid.h, 516
    for i, height in enumerate(heights):
        role = "highlight" if height == max(heights) else "embeddings"
        fig.box(left + 10.5 * i, base - height, 8, height, role, radius=0)
    fig.text(left + 104, 76, "probabilities", "embeddings", 14, bold=True)
    fig.text(left + 60, base + 18, shape(last), "embeddings", 13, mono=True)
    best = left + 10.5 * heights.index(max(heights)) + 4
    y = 308
    fig.arrow((best, base + 6), (best, y - 6), label="argmax")

    fig.box(best - w / 2, y, w, h, "highlight", str(token_ids[start]), 13, mono=True)
    row = [str(i) for i in token_ids[: start + 1]]
    paint = {(0, start): "highlight"}
    grid = fig.matrix(92, y, [row], "ids", (w, h), paint=paint)
    fig.arrow((best - w / 2 - 6, y + h / 2), (grid.x + grid.w + 8, y + h / 2))
    fig.text(532, y + 5, "append", "muted", 12.5, mono=True)
    fig.text(82, y + h / 2, shape(after), "ids", 13, "end", mono=True)
    for i, token in enumerate(tokens[: start + 1]):
        fig.text(grid.at(0, i).bottom[0], y + h + 14, token, "text", 13, mono=True)
    words = "Bars: a sketch. Softmax keeps the order of the logits, so argmax "
    fig.text(WIDTH / 2, 388, f"{words}finds the same ID in both.", "muted", 12.5)
    return fig


def generate_loop():
    """4.7: six steps from a prompt."""
    token_ids, tokens, start = prompt_and_new()
    fig = Figure(
        WIDTH,
        402,
        "Each step appends one token, and the next step reads it too",
        f"Six rows. The first reads {tokens[:start]} and appends {tokens[start]}; each "
        f"later row reads one token more; at the end stand the ids {token_ids}. The "
        "model is untrained, so the words mean nothing.",
    )
    left = WIDTH - 28 - row_width(tokens)
    for step, size in enumerate(range(start, len(tokens))):
        y = 64 + 40 * step
        fig.text(28, y + 15, f"step {step + 1}", anchor="start", bold=True)
        roles = ["text"] * size + ["highlight"]
        boxes = fig.chips(left, y, tokens[: size + 1], roles)
    y = 68 + 40 * (len(tokens) - start)
    fig.text(28, y + 4, "token IDs", "ids", anchor="start", bold=True)
    for box, token_id in zip(boxes, token_ids, strict=True):
        fig.text(box.bottom[0], y + 4, str(token_id), "ids", 12.5, mono=True)
    legend = [("text", "read by the model"), ("highlight", "appended in this step")]
    for i, (role, words) in enumerate(legend):
        x = left + 170 * i
        fig.box(x, 346, 16, 16, role, radius=3)
        fig.text(x + 24, 354, words, size=13, anchor="start")
    words = "untrained weights, so the words mean nothing yet"
    fig.text(left, 382, words, "muted", 13, "start")
    return fig


def crop():
    """4.7: a long input is cut from the left."""
    token_ids = prompt_and_new()[0]
    size, rows = 4, gpt().pos_emb.weight.shape[0]
    assert rows == GPT_CONFIG_124M["context_length"]
    fig = Figure(
        WIDTH,
        404,
        "The model never sees more than the last context_size IDs",
        f"Rows of 3 to 7 ids with a context_size of {size}. Up to {size} ids all are "
        f"seen; of longer rows the last {size}, at positions 0 to {size - 1}; the ids "
        "before them are left out.",
    )
    left, w = 136, 66
    fig.text(28, 76, "idx", "ids", 14, "start", mono=True)
    fig.text(732, 76, "idx_cond", "ids", 14, "end", mono=True)
    for i, length in enumerate(range(3, 8)):
        idx = torch.tensor([token_ids[:length]])
        seen = idx[:, -size:]
        cut = length - seen.shape[1]
        y = 94 + 40 * i
        fig.text(28, y + 15, shape(idx), "muted", 13, "start", mono=True)
        fig.text(732, y + 15, shape(seen), "muted", 13, "end", mono=True)
        for c, token_id in enumerate(token_ids[:length]):
            x, dash = left + w * c, "3 3" if c < cut else None
            role = "muted" if c < cut else "ids"
            label = str(token_id)
            fig.box(x + 2, y, w - 4, 30, role, label, 13, 4, dash, mono=True)
    y = 306
    fig.text(28, y + 13, "positions", "weights", 14, "start", bold=True)
    for i in range(size):
        x = left + w * (cut + i)
        fig.box(x + 2, y, w - 4, 26, "weights", str(i), 13, 4, mono=True)
    legend = [("ids", "shown to the model"), ("muted", "left out")]
    for i, (role, words) in enumerate(legend):
        x = left + 180 * i
        fig.box(x, 348, 16, 16, role, radius=3, dash="3 3" if i else None)
        fig.text(x + 24, 356, words, size=13, anchor="start")
    words = (
        f"context_size is {size} here; GPT-2 has {rows:,} positions, one per row of "
    )
    fig.text(left, 384, f"{words}pos_emb", "muted", 13, "start")
    return fig


FIGURES = [
    path,
    text_to_logits,
    layer_norm,
    which_axis,
    feed_forward,
    shortcut,
    transformer_block,
    gpt_model,
    parameters,
    next_token,
    generate_loop,
    crop,
]


def draw_all(root=ROOT):
    """Write the chapter's figures to `root`/ch04/figures."""
    save_all(FIGURES, Path(root, "ch04", "figures"))


if __name__ == "__main__":
    draw_all()
