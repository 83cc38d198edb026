"""Draw the figures of chapter 5. Run it: `python -m figures.ch05`.

Ids, shapes and counts come from the course's own code. What the untrained full-size
model answers is written down below with its source: no figure runs or trains a model.
"""

from functools import cache
from math import exp, log
from pathlib import Path

import torch

from ch02.dataloader import load_text
from ch04.gpt import GPT_CONFIG_124M, GPTModel
from ch05.gpt_download import SETTINGS
from ch05.gpt_train import MODELS, create_loaders
from figures.ch02 import bpe, row_width, shape
from figures.ch03 import legend
from figures.ch04 import count
from figures.svg import Figure, chip_width, save_all

ROOT = Path(__file__).parents[1]
WIDTH = 760
V = GPT_CONFIG_124M["vocab_size"]
MINUS = "\N{MINUS SIGN}"

# The book, section 5.1.2: the untrained 124M model, seed 123, on two texts
TEXTS = ["every effort moves you", "I really like chocolate"]
TARGET_PROBAS = ["7.4541e-05", "3.1061e-05", "1.1563e-05"]
TARGET_PROBAS += ["1.0337e-05", "5.6776e-05", "4.7559e-06"]
LOG_PROBAS = [-9.5042, -10.3796, -11.3677, -11.4798, -9.7764, -12.2561]
LOSS = -sum(LOG_PROBAS) / len(LOG_PROBAS)
assert f"{LOSS:.4f}" == "10.7940"
for _p, _log in zip(TARGET_PROBAS, LOG_PROBAS, strict=True):
    assert abs(log(float(_p)) - _log) < 6e-5, "the logs as printed are right"

# The book, section 5.3.1: nine words and their logits
WORDS = ["closer", "every", "effort", "forward", "inches", "moves", "pizza"]
WORDS += ["toward", "you"]
LOGITS = [4.51, 0.89, -1.90, 6.75, 1.63, -1.62, -1.89, 6.28, 1.79]

# OpenAI's four models: layers, width, heads
GPT2 = {
    size: (sizes["n_layer"], sizes["n_embd"], sizes["n_head"])
    for size, sizes in SETTINGS.items()
}


@cache
def gpt(layers, width, heads):
    """GPT-2 of one size without memory for its weights, to ask for counts."""
    size = {"n_layers": layers, "emb_dim": width, "n_heads": heads}
    with torch.device("meta"):
        return GPTModel({**GPT_CONFIG_124M, **size, "qkv_bias": True})


def badge(fig, x, y, number):
    """The number of a step in a circle."""
    fig.oval(x, y, 11, 11, "ink")
    fig.text(x, y, str(number), "ink", 12.5, bold=True)


def path():
    """Opening: the chapter's five sections, the same model in each."""
    fig = Figure(
        WIDTH,
        412,
        "Five sections, one model: only its weights change",
        "Five columns with the same model. 5.1 measures it with random weights, 5.2 "
        "trains it, 5.3 lets it write, 5.4 saves its weights to a file, 5.5 fills it "
        "with GPT-2's weights from a file. The model's code stays the same.",
    )
    columns = [
        ("measure", "muted", "random weights", "how wrong is it?\nloss, perplexity"),
        ("train", "highlight", "weights learn", "less wrong,\nstep by step"),
        ("decode", "weights", "trained weights", "scores become\ntext"),
        ("save", "weights", "trained weights", "into a file\nand back"),
        ("load", "highlight", "GPT-2's weights", "from the file\nOpenAI published"),
    ]
    for i, (name, role, weights, caption) in enumerate(columns):
        x = 28 + 144 * i
        middle = x + 64
        fig.text(middle, 70, f"5.{i + 1}", "muted", 13)
        fig.text(middle, 90, name, size=15, bold=True)
        for layer in range(4):
            fig.box(x + 22, 110 + 20 * layer, 84, 16, role, radius=3)
        fig.text(middle, 206, weights, role, 13)
        if i < 4:
            fig.arrow((x + 112, 148), (x + 160, 148))
        fig.text(middle, 342, caption, "ink", 13)
        if name == "load":
            fig.arrow((middle, 246), (middle, 220))
        elif name == "save":
            fig.arrow((middle - 8, 220), (middle - 8, 246))
            fig.arrow((middle + 8, 246), (middle + 8, 220))
        else:
            fig.arrow((middle, 220), (middle, 246))

    fig.box(46, 264, 92, 44, "target", f"loss\n{LOSS:.4f}", 13, mono=True)
    x = 204
    fig.arrow((x, 256), (x, 318), (x + 68, 318), head=False)
    curve = [(x + 5 + 3 * t, 314 - 52 * 0.88**t) for t in range(21)]
    fig.arrow(*curve, role="target", head=False)
    for i, height in enumerate((16, 27, 56, 10, 34)):
        role = "text" if height == 56 else "embeddings"
        fig.box(342 + 16 * i, 318 - height, 12, height, role, radius=1)
    for x, name in ((524, "weights"), (668, "GPT-2")):
        fold = (x + 18, 254), (x + 18, 268), (x + 32, 268)
        fig.box(x - 32, 254, 64, 62, "weights", radius=3)
        fig.arrow(*fold, role="weights", head=False)
        fig.text(x, 290, name, "weights", 12.5)
    legend(fig, 46, 382, "highlight", "the weights change here")
    return fig


def targets():
    """5.1.2: at every position one probability counts."""
    words, ids = bpe(TEXTS[0])
    fig = Figure(
        WIDTH,
        396,
        "At each position one probability counts: the right next token's",
        f"Three rows, one per position of '{TEXTS[0]}'. "
        + " ".join(
            f"After {''.join(words[: i + 1])} the target is {words[i + 1]}, id "
            f"{ids[i + 1]}, with probability {TARGET_PROBAS[i]}."
            for i in range(3)
        ),
    )
    strip, w, h = 316, 210, 28
    fig.text(28, 76, "what the model sees", "text", 14, "start", bold=True)
    name = f"{V:,} probabilities"
    fig.text(strip + w / 2, 76, name, "embeddings", 14, bold=True)
    fig.text(600, 76, "target", "target", 14, bold=True)
    fig.text(732, 76, "probability", "target", 14, "end", bold=True)
    for i in range(3):
        y = 112 + 78 * i
        middle = y + h / 2
        boxes = fig.chips(28, y, words[: i + 1], h=h)
        for box, token_id in zip(boxes, ids, strict=False):
            place = box.bottom[0], y + h + 12
            fig.text(*place, str(token_id), "ids", 12.5, mono=True)
        fig.arrow((28 + row_width(words[: i + 1]) + 8, middle), (strip - 8, middle))
        fig.box(strip, y, w, h, "embeddings", radius=0)
        lit = strip + w * ids[i + 1] / V
        fig.box(lit - 2, y - 6, 4, h + 12, "target", radius=0)
        fig.arrow((strip + w + 8, middle), (558, middle))
        chip = chip_width(words[i + 1])
        fig.chips(600 - chip / 2, y, [words[i + 1]], "target", h=h)
        fig.text(600, y + h + 12, str(ids[i + 1]), "ids", 12.5, mono=True)
        fig.text(732, middle, TARGET_PROBAS[i], "target", 13, "end", mono=True)
    fig.text(strip - 4, y + h + 16, "id 0", "muted", 12.5, mono=True)
    fig.text(strip + w, y + h + 16, str(V - 1), "muted", 12.5, mono=True)
    words = f"For comparison, a blind guess among {V:,} tokens: {1 / V:.4e}."
    words += "\nTraining has one aim: to make the numbers on the right larger."
    fig.text(28, 346, words, "ink", 13, "start")
    return fig


def cross_entropy():
    """5.1.2: from the logits to one number."""
    fig = Figure(
        WIDTH,
        418,
        "Six steps turn logits into one number, the loss",
        f"For the texts {TEXTS}: logits (2, 3, {V}) become probabilities by "
        "softmax; of these the six target "
        f"probabilities {', '.join(TARGET_PROBAS)} are picked; their logs are "
        f"{LOG_PROBAS}; the mean is {-LOSS:.4f}; times minus one, the loss is "
        f"{LOSS:.4f}.",
    )
    middle, sheet = 216, (11, 26)
    heads = [(84, "logits"), (218, "probas"), (384, "target probas")]
    heads += [(531, "log probas")]
    for number, (x, name) in enumerate(heads, 1):
        badge(fig, x, 72, number)
        fig.text(x, 96, name, "embeddings", 14, bold=True)
    cells = {"cell": sheet, "caption": f"(2, 3, {V})"}
    for x in (43, 177):
        fig.stack(x, middle - 41, [[""] * 7] * 3, "embeddings", 2, **cells)
    column = [[p] for p in TARGET_PROBAS]
    fig.matrix(332, 114, column, "target", (104, 34), caption="(6,)")
    column = [[f"{value:.4f}".replace("-", MINUS)] for value in LOG_PROBAS]
    logs = fig.matrix(484, 114, column, "target", (94, 34), caption="(6,)")
    for x0, x1, lift, words in (
        (132, 170, 58, "softmax"),
        (266, 326, 15, "pick"),
        (442, 478, 15, "log"),
    ):
        fig.arrow((x0, middle), (x1, middle))
        fig.text((x0 + x1) / 2, middle - lift, words, "muted", 12.5, mono=True)
    fig.text(324, 165, "text 1", "muted", 12.5, "end")
    fig.text(324, 267, "text 2", "muted", 12.5, "end")
    x, y = 680, 166
    fig.arrow((logs.right[0] + 6, y), (x - 58, y))
    fig.text(logs.right[0] + 25, y - 15, "mean", "muted", 12.5, mono=True)
    badge(fig, x, y - 32, 5)
    fig.box(x - 52, y - 17, 104, 34, "target", f"{MINUS}{LOSS:.4f}", 13, mono=True)
    fig.arrow((x, y + 21), (x, 244), label=f"× {MINUS}1")
    badge(fig, x - 70, 266, 6)
    fig.box(x - 52, 249, 104, 34, "highlight", f"{LOSS:.4f}", 15, mono=True, bold=True)
    fig.text(x, 301, "loss", "highlight", 14, bold=True)
    x0, x1, y = 29, 732, 358
    fig.arrow((x0, y - 7), (x0, y), (x1, y), (x1, y - 7), head=False)
    words = "cross_entropy(logits.flatten(0, 1), targets.flatten())"
    fig.text(WIDTH / 2, y + 17, words, size=13, mono=True)
    fig.text(WIDTH / 2, y + 38, "does all six in one call", "muted", 12.5)
    return fig


def perplexity():
    """5.1.2: the loss as a number of equally likely tokens."""
    untrained = exp(LOSS)
    fig = Figure(
        WIDTH,
        404,
        "Perplexity says between how many tokens the model hesitates",
        "A log scale of perplexity, the exponential of the loss. 1 is certainty, 2 a "
        f"coin, 6 a die; the untrained model has {untrained:,.0f}, a model that knows "
        f"nothing {V:,}, the size of the vocabulary.",
    )
    left, length, y = 96, 588, 292

    def at(value):
        return left + length * log(value) / log(V)

    fig.text(28, 76, "perplexity = exp(loss)", "target", 14, "start", mono=True)
    fig.arrow((left, y), (left + length + 26, y))
    for tick in (1, 10, 100, 1000, 10_000):
        x = at(tick)
        fig.arrow((x, y - 5), (x, y + 5), head=False)
        fig.text(x, y + 20, f"{tick:,}", "ink", 13, mono=True)
        fig.text(x, y + 44, f"{log(tick):.2f}", "muted", 13, mono=True)
    fig.text(732, y + 20, "perplexity", "ink", 13, "end", bold=True)
    fig.text(732, y + 44, "loss", "muted", 13, "end", bold=True)
    marks = [(1, "", 1, 14), (2, "a coin", 1, 14), (6, "a die", 2, 14), (V, "", 16, 6)]
    for value, words, columns, size in marks:
        x, rows = at(value), 18 if value == V else value // columns
        grid, top = [[""] * columns] * rows, y - 20 - size * rows
        cell = {"cell": (size, size)}
        fig.matrix(x - columns * size / 2, top, grid, "target", **cell)
        fig.arrow((x, y - 16), (x, y), role="target", head=False)
        fig.oval(x, y, 5, 5, "highlight")
        if words:
            fig.text(x, top - 14, words, "target", 13, bold=True)
    fig.oval(at(untrained), y, 5, 5, "highlight")
    fig.text(left - 14, y - 27, "certain", "target", 13, "end", bold=True)
    for line, words in (
        (118, f"knows nothing: {V:,}"),
        (140, f"untrained 124M: {untrained:,.0f}"),
    ):
        fig.text(732, line, words, "target", 13, "end", bold=True)
    fig.arrow((600, y - 60), (280, y - 60), role="highlight")
    fig.text(440, y - 78, "training goes this way", "highlight", 13)
    words = "Each square is a token the model finds equally likely; the block on the "
    words += "right stands for all.\nThe scale is logarithmic: a loss lower by "
    words += f"{log(10):.2f} means ten times fewer tokens."
    fig.text(28, 364, words, "muted", 12.5, "start")
    return fig


def drawn_order(loader):
    """The numbers of the windows in each batch of the next epoch."""
    number = {tuple(ids.tolist()): i for i, ids in enumerate(loader.dataset.input_ids)}
    return [[number[tuple(row.tolist())] for row in inputs] for inputs, _ in loader]


def split():
    """5.1.3: nine tenths to train on, one tenth to test on."""
    text = load_text("bundled")
    config, settings = MODELS["gpt2-nano"]
    loaders = create_loaders(text, config, settings["batch_size"])
    torch.manual_seed(123)
    train, val = (drawn_order(loader) for loader in loaders)
    windows = [len(loader.dataset) for loader in loaders]
    cut = int(0.9 * len(text))
    size = config["context_length"]
    fig = Figure(
        WIDTH,
        384,
        "The model is tested on the tenth of the text it never trains on",
        f"A text of {len(text):,} characters is cut after {cut:,}. The first part "
        f"gives {windows[0]} training windows of {size} tokens, shuffled in each "
        f"epoch; the rest gives {windows[1]} validation windows in their order.",
    )
    x, end, seam, h = 28, 732, 28 + 704 * cut / len(text), 32
    fig.text(x, 72, "training", "text", 14, "start", bold=True)
    fig.text(end, 72, "validation", "target", 14, "end", bold=True)
    fig.text(360, 72, "cut by characters, 90 to 10", "muted", 12.5)
    fig.box(x, 86, seam - x, h, "text", f"{cut:,} characters", 13, radius=0)
    fig.box(seam, 86, end - seam, h, "target", f"{len(text) - cut:,}", 13, radius=0)

    words = f"{windows[0]} windows of {size} tokens, in the order of the text"
    fig.text(x, 156, words, "muted", 12.5, "start")
    first, w = train[0], (seam - 3 - x) / windows[0]
    cells = []
    for i in range(windows[0]):
        if i in first:
            cells.append(i)
        else:
            fig.box(x + w * i, 172, w, 26, "ids", radius=0)
    for i in cells:
        fig.box(x + w * i, 172, w, 26, "highlight", radius=0)
    wide = (end - seam - 3) / windows[1]
    for i in range(windows[1]):
        fig.box(seam + 3 + wide * i, 172, wide, 26, "target", radius=0)
    fig.text(end, 156, f"{windows[1]} windows", "muted", 12.5, "end")

    y = 272
    words = (
        f"{len(train)} batches of {settings['batch_size']}, shuffled anew each epoch"
    )
    fig.text(x + 60, y - 18, words, "muted", 12.5, "start")
    wide = (seam - 3 - x) / len(train)
    for i, batch in enumerate(train):
        role = "highlight" if i == 0 else "ids"
        label = "\n".join(map(str, batch))
        fig.box(x + wide * i, y, wide - 3, 46, role, label, 13, 3, mono=True)
    wide = (end - seam - 3) / len(val)
    for i, batch in enumerate(val):
        label = "\n".join(map(str, batch))
        left = seam + 3 + wide * i
        fig.box(left, y, wide - 3, 46, "target", label, 13, 3, mono=True)
    fig.text(end, y - 18, "in order", "muted", 12.5, "end")
    for i in first:
        middle = x + w * (i + 0.5)
        bend = 212 if i == max(first) else 222
        points = (middle, 200), (middle, bend), (x + 16, bend), (x + 16, y - 4)
        fig.arrow(*points, role="highlight")
    fig.arrow((x, 330), (x, 338), (seam - 6, 338), (seam - 6, 330), head=False)
    fig.arrow(
        (seam + 3, 330),
        (seam + 3, 338),
        (end, 338),
        (end, 330),
        role="target",
        head=False,
    )
    fig.text((x + seam) / 2, 356, "the weights learn from these", "ink", 13, bold=True)
    fig.text(end, 356, "only measured", "target", 13, "end", bold=True)
    return fig


def training_loop():
    """5.2: the loop of train_model_simple."""
    fig = Figure(
        WIDTH,
        420,
        "Four calls per batch do the learning; the rest watches",
        "Two nested loops. Outer: for each epoch. Inner: for each batch, zero_grad, "
        "calc_loss_batch, backward, step; every eval_freq steps evaluate_model. After "
        "each epoch generate_and_print_sample. Names as in train_model_simple.",
    )
    fig.box(28, 56, 704, 312, "muted", radius=10)
    words = "for epoch in range(num_epochs):"
    fig.text(44, 76, words, "ink", 13, "start", mono=True)
    fig.box(44, 94, 672, 210, "card", radius=8)
    words = "for input_batch, target_batch in train_loader:"
    fig.text(60, 114, words, "ink", 13, "start", mono=True)
    steps = [
        ("optimizer\n.zero_grad()", "weights", "forget the last\nbatch's gradients"),
        ("calc_loss_batch", "target", "forward: how wrong\nis the prediction?"),
        ("loss.backward()", "target", "which way should\neach weight move?"),
        ("optimizer.step()", "weights", "move every weight\na little that way"),
    ]
    for i, (code, role, words) in enumerate(steps):
        x = 68 + 160 * i
        fig.box(x, 134, 140, 46, role, code, 13, mono=True)
        fig.text(x + 70, 196, words, "ink", 12.5)
        if i < 3:
            fig.arrow((x + 143, 157), (x + 157, 157))
    corners = (688, 157), (702, 157), (702, 236), (56, 236), (56, 157)
    fig.arrow((688, 157), *corners[1:], (65, 157), role="highlight")
    fig.text(646, 250, "next batch", "highlight", 12.5)
    fig.text(68, 276, "every eval_freq steps", "muted", 13, "start")
    fig.arrow((206, 276), (232, 276))
    fig.box(240, 260, 140, 32, "embeddings", "evaluate_model", 13, mono=True)
    words = "both losses, without dropout"
    fig.text(392, 276, words, "ink", 12.5, "start")
    fig.text(68, 336, "after each epoch", "muted", 13, "start")
    fig.arrow((206, 336), (232, 336))
    name = "generate_and_print_sample"
    fig.box(240, 320, 220, 32, "embeddings", name, 13, mono=True)
    fig.text(472, 336, "50 tokens, to read along", "ink", 12.5, "start")
    words = "return train_losses, val_losses, track_tokens_seen"
    fig.text(44, 392, words, "ink", 13, "start", mono=True)
    return fig


def memorise():
    """5.2: a sketch of both losses."""
    fig = Figure(
        WIDTH,
        390,
        "Where the validation loss turns up, learning by heart begins",
        "A sketch, not a measurement. The training loss falls towards 0. The "
        "validation loss falls with it at first, reaches a lowest point and then "
        "rises slowly while the training loss goes on falling.",
    )
    left, right, top, base = 84, 712, 84, 306
    start = log(V)

    def curve(loss):
        steps = [i / 60 for i in range(61)]
        scale = (base - 4 - top) / start
        return [(left + t * (right - left), base - 4 - scale * loss(t)) for t in steps]

    training = curve(lambda t: start * exp(-4.6 * t))
    validation = curve(lambda t: 4.9 + 1.7 * t + (start - 4.9) * exp(-9 * t))
    turn, low = max(validation, key=lambda point: point[1])
    fig.box(left, top - 14, turn - left, base - top + 14, "muted", radius=0)
    fig.arrow((left, top - 14), (left, base), (right + 8, base))
    fig.arrow((turn, top - 14), (turn, base), role="highlight", head=False, dash="5 4")
    fig.arrow(*training, role="ink", head=False)
    fig.arrow(*validation, role="target", head=False)
    fig.oval(turn, low, 5, 5, "highlight")
    fig.text(turn - 14, 84, "learns", "ink", 14, "end", bold=True)
    fig.text(turn + 14, 84, "learns by heart", "highlight", 14, "start", bold=True)
    words = "lowest validation loss"
    fig.text(turn + 12, low + 18, words, "highlight", 13, "start")
    x, y = validation[52]
    fig.text(x, y - 16, "validation loss", "target", 14, bold=True)
    x, y = training[52]
    fig.text(x, y - 20, "training loss", "ink", 14, bold=True)
    fig.text(left - 10, top - 24, "loss", "muted", 13, "end")
    fig.text(left - 10, top, f"ln {V}", "muted", 13, "end")
    fig.text(left - 10, base - 4, "0", "muted", 13, "end")
    fig.text(right, base + 20, "epochs on the same text", "muted", 13, "end")
    fig.text(left, base + 20, "0", "muted", 13)
    words = f"A sketch, not a measurement. ln {V} is the loss of a blind guess."
    fig.text(WIDTH / 2, 362, words, "muted", 13)
    return fig


def top_k():
    """5.3.2: the book's nine logits, three of them kept."""
    k = 3
    kept = sorted(LOGITS)[-k:]
    total = sum(exp(value) for value in kept)
    probas = [exp(value) / total if value in kept else 0.0 for value in LOGITS]
    numbers = [f"{p:.4f}" if p else "0" for p in probas]
    # The book, section 5.3.2
    assert [n for n in numbers if n != "0"] == ["0.0615", "0.5775", "0.3610"]
    fig = Figure(
        WIDTH,
        410,
        "Top-k leaves k candidates; no other token can be drawn",
        f"Nine words with logits {LOGITS}. The {k} largest stay, the rest become "
        f"minus infinity; softmax gives {', '.join(numbers)}.",
    )
    x, cell = 138, (66, 30)
    best = [i for i, value in enumerate(LOGITS) if value in kept]
    logits = [f"{value:.2f}".replace("-", MINUS) for value in LOGITS]
    masked = [w if i in best else f"{MINUS}inf" for i, w in enumerate(logits)]
    lit = {(0, i): "highlight" for i in best}
    grid = fig.matrix(x, 62, [WORDS], "text", cell)
    fig.matrix(x, 104, [logits], "embeddings", cell, paint=lit)
    fig.matrix(x, 176, [masked], "muted", cell, paint=lit)
    for y, words in ((77, "vocabulary"), (119, "logits")):
        fig.text(x - 12, y, words, "ink", 13, "end", bold=True)
    fig.text(x - 12, 182, f"top_k = {k}", "ink", 13, "end", mono=True)
    fig.text(x - 12, 200, "the rest out", "muted", 12.5, "end")
    base = 346
    for i, value in enumerate(probas):
        middle = grid.at(0, i).bottom[0]
        role = "highlight" if i in best else "muted"
        fig.arrow((middle, 138), (middle, 172), role=role)
        fig.text(middle, base + 16, numbers[i], role, 13, mono=True)
        if i in best:
            height = 170 * value
            fig.box(middle - 17, base - height, 34, height, "highlight", radius=1)
    fig.arrow((x, base), (x + 9 * cell[0], base), head=False)
    fig.text(x - 12, base - 52, "softmax", "ink", 13, "end", mono=True)
    fig.text(x - 12, base + 16, "probas", "ink", 13, "end", bold=True)
    words = f"A bar's height is the chance to be drawn; the {k} add up to "
    words += f"{sum(float(n) for n in numbers):.4f}."
    fig.text(x, 388, words, "muted", 13, "start")
    return fig


def generate():
    """5.3.3: one step of `generate`."""
    fig = Figure(
        WIDTH,
        402,
        "generate draws the next token: among the k best, by temperature",
        "One step of generate: ids (B, T) through the model to logits (B, T, V); the "
        "last row (B, V); top-k; with a temperature above 0 divide by it, softmax, "
        "multinomial; at temperature 0 argmax; idx_next (B, 1); stop at eos_id, else "
        "append and go round again.",
    )

    def step(x, middle, w, role, label):
        fig.box(x, middle - 25, w, 50, role, label, 13, mono=True)

    top, warm, cold = 96, 214, 318
    joint = (warm + cold) / 2
    step(28, top, 96, "ids", "idx\n(B, T)")
    step(152, top, 76, "weights", "model")
    step(256, top, 110, "embeddings", "logits\n(B, T, V)")
    step(460, top, 96, "embeddings", "logits\n(B, V)")
    step(600, top, 116, "highlight", f"top_k\nrest: {MINUS}inf")
    for x0, x1 in ((127, 148), (231, 252), (559, 596)):
        fig.arrow((x0, top), (x1, top))
    fig.arrow((369, top), (456, top), label="last row")
    step(600, warm, 116, "highlight", "÷ temperature\n(B, V)")
    step(448, warm, 112, "highlight", "softmax\n(B, V)")
    step(308, warm, 112, "highlight", "multinomial\ndraw one")
    step(308, cold, 112, "ink", "argmax\nthe largest")
    step(164, joint, 96, "ids", "idx_next\n(B, 1)")
    fig.arrow((658, 124), (658, warm - 29))
    fig.text(648, 160, "temperature > 0", "muted", 12.5, "end", mono=True)
    fig.arrow((658, 138), (732, 138), (732, cold), (424, cold))
    fig.text(578, cold - 12, "temperature = 0", "muted", 12.5, mono=True)
    fig.arrow((596, warm), (564, warm))
    fig.arrow((444, warm), (424, warm))
    for y in (warm, cold):
        fig.arrow((304, y), (284, y), (284, joint), (264, joint))
    step(28, joint, 96, "highlight", "eos_id?")
    fig.arrow((160, joint), (128, joint))
    fig.arrow((76, joint - 28), (76, top + 29))
    fig.text(86, 178, "no: append,\n(B, T + 1)", "muted", 12.5, "start")
    fig.arrow((76, joint + 28), (76, 344), label="yes")
    fig.box(46, 348, 60, 28, "ink", "stop", 13)
    legend(fig, 308, 360, "highlight", "new in this chapter")
    return fig


def checkpoint():
    """5.4: what must be saved to generate, and what to go on training."""
    with torch.device("meta"):
        n = count(GPTModel(MODELS["gpt2-nano"][0]))
    size = f"{n:,} numbers\n{4 * n / 1e6:.1f} MB"
    fig = Figure(
        WIDTH,
        404,
        "To generate, save one number per weight; to train on, three",
        f"Three equal blocks of {n:,} numbers: the weights in model.safetensors, and "
        "AdamW's exp_avg and exp_avg_sq in training.safetensors, with step, random "
        "states and position. The first is enough to generate; all three are needed "
        "to continue training.",
    )
    fig.box(28, 62, 226, 246, "muted", radius=8)
    fig.box(274, 62, 458, 246, "muted", radius=8)
    for x, name in ((141, "model.safetensors"), (503, "training.safetensors")):
        fig.text(x, 82, name, "ink", 13, mono=True, bold=True)
    parts = [
        (141, "weights", "weights", "what the model is"),
        (388, "target", "exp_avg", "running mean of\neach gradient"),
        (618, "target", "exp_avg_sq", "running mean of\neach gradient squared"),
    ]
    for x, role, name, meaning in parts:
        fig.text(x, 112, name, role, 14, mono=True, bold=True)
        grid = [[""] * 12] * 4
        paint = {(1, 4): "highlight"}
        fig.matrix(x - 84, 126, grid, role, (14, 14), paint=paint)
        fig.text(x, 198, size, role, 13)
        fig.text(x, 244, meaning, "ink", 13)
    words = "+ learning rate, step, random states, place in the data"
    fig.text(503, 290, words, "muted", 12.5)
    fig.text(141, 290, "+ config", "muted", 12.5)
    words = "one weight and its two running means"
    legend(fig, 388 - 84, 326, "highlight", words)
    for x1, y, words in (
        (254, 322, "enough to generate"),
        (732, 362, "needed to continue training as if it had never stopped"),
    ):
        corners = (28, y - 6), (28, y), (x1, y), (x1, y - 6)
        fig.arrow(*corners, role="ink", head=False)
        fig.text((28 + x1) / 2, y + 15, words, "ink", 13, bold=True)
    return fig


def gpt2_layout():
    """5.5: GPT-2's c_attn becomes three matrices."""
    width = GPT2["124M"][1]
    attention = gpt(*GPT2["124M"]).trf_blocks[0].att
    layers = [attention.W_query, attention.W_key, attention.W_value]
    merged = (width, sum(layer.weight.shape[0] for layer in layers))
    fig = Figure(
        WIDTH,
        418,
        "GPT-2's c_attn becomes three matrices, each transposed",
        f"In OpenAI's file c_attn.w has shape {merged}. It is cut into three pieces of "
        f"{shape(layers[0].weight)}; each is transposed and becomes the weight of "
        "W_query, W_key or W_value. A marked column becomes a row.",
    )
    cell, n = (11, 11), 6
    side, lanes = cell[0] * n, (104, 210, 316)
    middle = lanes[1]
    columns = [1, 3, 4]  # one marked column per piece
    paint = {
        (r, n * i + c): "highlight" for i, c in enumerate(columns) for r in range(n)
    }
    grid = fig.matrix(28, middle - 33, [[""] * 3 * n] * n, "weights", cell, paint=paint)
    fig.text(grid.top[0], middle - 68, "attn.c_attn.w", "weights", 13, mono=True)
    fig.text(grid.top[0], middle - 48, "one matrix in GPT-2's file", "muted", 12.5)
    fig.text(grid.bottom[0], middle + 51, str(merged), "weights", 13, mono=True)
    for i in range(2):
        x = 28 + side * (i + 1)
        fig.arrow(
            (x, middle - 38), (x, middle + 38), role="ink", head=False, dash="4 3"
        )
    names = ["W_query", "W_key", "W_value"]
    for lane, name, layer, lit in zip(lanes, names, layers, columns, strict=True):
        assert layer is getattr(attention, name)
        fig.arrow((232, middle), (256, middle), (256, lane), (288, lane))
        marked = {(r, lit): "highlight" for r in range(n)}
        fig.matrix(294, lane - 33, [[""] * n] * n, "weights", cell, paint=marked)
        fig.arrow((366, lane), (442, lane), label="transpose")
        marked = {(lit, c): "highlight" for c in range(n)}
        fig.matrix(448, lane - 33, [[""] * n] * n, "weights", cell, paint=marked)
        label = f"att.{name}.weight"
        fig.text(530, lane - 10, label, "weights", 13, "start", mono=True)
        label = shape(layer.weight)
        fig.text(530, lane + 11, label, "weights", 13, "start", mono=True)
    fig.text(244, middle + 74, "cut in three", "muted", 12.5, "end")
    words = (
        "GPT-2 computes x @ w, nn.Linear computes x @ weight.T: what is a column in "
    )
    words += "its file is a row\nof ours. The biases, "
    bias = sum(layer.bias.shape[0] for layer in layers)
    words += f"c_attn.b ({bias},), are cut in three and not transposed."
    fig.text(28, 374, words, "muted", 13, "start")
    return fig


def gpt2_names():
    """5.5: which of GPT-2's parameters goes where."""
    model = gpt(*GPT2["124M"])
    top = [
        ("wte", ["tok_emb.weight", "out_head.weight"], "copied twice"),
        ("wpe", ["pos_emb.weight"], "copied"),
    ]
    block = [
        ("ln_1.g, .b", ["norm1.scale", "norm1.shift"], "copied"),
        (
            "attn.c_attn.w",
            ["att.W_query", "att.W_key", "att.W_value"],
            "cut, transposed",
        ),
        ("attn.c_proj.w", ["att.out_proj"], "transposed"),
        ("ln_2.g, .b", ["norm2.scale", "norm2.shift"], "copied"),
        ("mlp.c_fc.w", ["ff.layers.0"], "transposed"),
        ("mlp.c_proj.w", ["ff.layers.2"], "transposed"),
    ]
    last = [("g, b", ["final_norm.scale", "final_norm.shift"], "copied")]
    fig = Figure(
        WIDTH,
        420,
        "Each of GPT-2's parameters has its place in our model",
        " ".join(
            f"{theirs} becomes {' and '.join(ours)} ({how})."
            for theirs, ours, how in [*top, *block, *last]
        ),
    )
    for x, words in ((44, "GPT-2's params"), (200, "shape"), (344, "our GPTModel")):
        fig.text(x, 66, words, "ink", 13, "start", bold=True)
    fig.text(716, 66, "how", "ink", 13, "end", bold=True)
    fig.box(28, 146, 704, 202, "muted", radius=8)
    y = 92
    for group, prefix in ((top, ""), (block, "trf_blocks.0."), (last, "")):
        for theirs, ours, how in group:
            parameters = []
            for name in ours:
                parameter = model.get_submodule(f"{prefix}{name}".rpartition(".")[0])
                parameter = getattr(parameter, name.rpartition(".")[2])
                parameters.append(getattr(parameter, "weight", parameter))
            size = list(parameters[0].shape)
            if "transposed" in how:
                size = [size[1], size[0] * len(ours)]
            fig.text(44, y, theirs, "weights", 13, "start", mono=True)
            fig.text(200, y, str(tuple(size)), "muted", 13, "start", mono=True)
            fig.arrow((310, y), (334, y))
            first, *more = ours
            words = ", ".join([first, *(f".{name.split('.', 1)[1]}" for name in more)])
            if theirs == "wte":
                words = " and ".join(ours)
            fig.text(344, y, words, "weights", 13, "start", mono=True)
            role = "highlight" if "transposed" in how else "muted"
            fig.text(716, y, how, role, 13, "end", bold=role == "highlight")
            y += 28
        if group is top:
            words = (
                f"in each of the {len(model.trf_blocks)} blocks; .w becomes .weight; "
            )
            words += "its .b becomes .bias, never transposed"
            fig.text(44, 164, words, "ink", 12.5, "start")
            y = 192
        elif group is block:
            y = 370
    words = "The shapes are those of the 124M model."
    fig.text(44, 400, words, "muted", 12.5, "start")
    return fig


def gpt2_sizes():
    """5.5: the four published models to scale."""
    sizes = {}
    for name, (layers, width, heads) in GPT2.items():
        model = gpt(layers, width, heads)
        sizes[name] = count(model) - count(model.out_head), count(model.out_head)
        assert sizes[name][0] // 10**6 in (int(name[:-1]), int(name[:-1]) - 1)
    fig = Figure(
        WIDTH,
        404,
        "Four sizes of GPT-2, one design: deeper, wider, more heads",
        "Bars to scale. "
        + " ".join(
            f"{name}: {layers} layers, width {width}, {heads} heads, "
            f"{sizes[name][0]:,} parameters, {4 * sizes[name][0] / 1e9:.2f} GB."
            for name, (layers, width, heads) in GPT2.items()
        ),
    )
    scale = 704 / sum(sizes["1558M"])
    for i, (name, (layers, width, heads)) in enumerate(GPT2.items()):
        y = 72 + 74 * i
        tied, copied = sizes[name]
        fig.text(28, y, name, "weights", 15, "start", bold=True)
        words = f"{layers} layers, width {width}, {heads} heads"
        fig.text(94, y, words, "ink", 13, "start")
        fig.text(590, y, f"{tied:,} parameters", "weights", 13, "end")
        fig.text(732, y, f"{4 * tied / 1e9:.2f} GB in fp32", "weights", 13, "end")
        w, more = scale * tied, scale * copied
        fig.box(28, y + 15, w, 26, "weights", radius=0)
        fig.box(28 + w, y + 15, more, 26, "muted", radius=0, dash="3 3")
    legend(fig, 28, 364, "weights", "parameters")
    fig.box(160, 364, 16, 16, "muted", radius=3, dash="3 3")
    small, large = (4 * sizes[name][1] / 1e9 for name in ("124M", "1558M"))
    words = f"our out_head, a copy of tok_emb: {small:.2f} to {large:.2f} GB more"
    fig.text(184, 372, words, "ink", 13, "start")
    return fig


FIGURES = [
    path,
    targets,
    cross_entropy,
    perplexity,
    split,
    training_loop,
    memorise,
    top_k,
    generate,
    checkpoint,
    gpt2_layout,
    gpt2_names,
    gpt2_sizes,
]


def draw_all(root=ROOT):
    """Write the chapter's figures to `root`/ch05/figures."""
    save_all(FIGURES, Path(root, "ch05", "figures"))


if __name__ == "__main__":
    draw_all()
