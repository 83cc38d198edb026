"""Draw the figures of chapter 3. Run it: `python -m figures.ch03`.

Every number and shape comes from the chapter's own code, so a figure cannot say
anything else than the notebook beside it.
"""

import json
from functools import cache
from pathlib import Path

import torch

from ch03.attention import (
    INPUTS,
    CausalAttention,
    MultiHeadAttention,
    MultiHeadAttentionWrapper,
    SelfAttention_v1,
    SelfAttention_v2,
)
from figures.svg import Figure, save_all

ROOT = Path(__file__).parents[1]
WIDTH = 760
WORDS = ["Your", "journey", "starts", "with", "one", "step"]
QUERY = WORDS.index("journey")
HEADS = ["attention", "highlight"]  # the colour of each of two heads


@cache
def sentence():
    """The chapter's six vectors, (T, d_in)."""
    return torch.tensor(INPUTS)


@cache
def simple_attention():
    """Scores and weights without trainable parameters, (T, T) each (section 3.3)."""
    scores = sentence() @ sentence().T
    return scores, torch.softmax(scores, dim=-1)


@cache
def scaled_scores():
    """The scaled scores that section 3.5.1 masks, (T, T)."""
    torch.manual_seed(789)
    attention = SelfAttention_v2(3, 2)
    with torch.no_grad():
        queries, keys = attention.W_query(sentence()), attention.W_key(sentence())
        return queries @ keys.T / keys.shape[-1] ** 0.5


@cache
def future():
    """True where a query (row) must not see a key (column), (T, T)."""
    T = len(WORDS)
    return CausalAttention(3, 2, T, 0.0).mask.bool()


@cache
def causal_weights():
    """The attention weights of section 3.5.1, (T, T)."""
    return torch.softmax(scaled_scores().masked_fill(future(), -torch.inf), dim=-1)


def shape(tensor):
    """A tensor's shape as the notebook would write it."""
    return str(tuple(tensor.shape))


def rows(tensor, digits=4):
    """The numbers of a vector (one row) or of a matrix, written out.

    A tie is rounded up: 1.495, whose last bits differ between machines, is 1.50 on all.
    """
    table = tensor.reshape(-1, tensor.shape[-1]).tolist()
    return [[f"{value + 1e-6:.{digits}f}" for value in row] for row in table]


def blank(tensor):
    """As many empty cells as a matrix has numbers."""
    return [[""] * tensor.shape[-1] for _ in range(tensor.shape[-2])]


def node(fig, x, y, sign):
    """A small circle in which two arrows meet."""
    fig.oval(x, y, 12, 12, "ink")
    lift, size = (2, 26) if sign == "·" else (0, 15)
    fig.text(x, y - lift, sign, size=size)


def legend(fig, x, y, role, words):
    """Say what a colour stands for."""
    fig.box(x, y, 16, 16, role, radius=3)
    fig.text(x + 24, y + 8, words, size=13, anchor="start")


def weighing():
    """3.3.1: one query's scores with all inputs, and the weights they become."""
    x, (scores, weights) = sentence(), simple_attention()
    query, scores, weights = x[QUERY], scores[QUERY], weights[QUERY]
    assert torch.allclose(scores, x @ query)
    fig = Figure(
        WIDTH,
        372,
        "A query's dot products become weights that sum to 1",
        f"The vector of '{WORDS[QUERY]}' is the query. Its dot products with all "
        f"{len(x)} inputs are the scores {rows(scores)[0]}; softmax turns them into "
        f"the weights {rows(weights)[0]}, which sum to 1.",
    )
    top, h = 112, 32
    paint = {(QUERY, c): "highlight" for c in range(3)}
    name = f"inputs {shape(x)}"
    table = fig.matrix(112, top, rows(x, 2), "embeddings", (52, h), WORDS, name, paint)
    bus = 328
    fig.matrix(bus - 78, 62, rows(query, 2), "highlight", (52, 30))
    words = f"query: the input of “{WORDS[QUERY]}”"
    fig.text(bus + 92, 77, words, "highlight", 14, "start", bold=True)
    fig.arrow((bus, 92), (bus, table.at(5, 0).left[1]), role="highlight", head=False)
    left, right = 406, 556
    for r in range(len(x)):
        y = table.at(r, 0).left[1]
        fig.arrow((table.right[0] + 6, y), (bus - 16, y))
        fig.arrow((bus + 12, y), (left - 6, y))
        node(fig, bus, y, "·")
        fig.box(right + 80, y - 9, 400 * weights[r].item(), 18, "attention", radius=2)
    for x0, vector, name in (
        (left, scores, "attn_scores"),
        (right, weights, "attn_weights"),
    ):
        caption = f"{name} {shape(vector)}"
        column = rows(vector.unsqueeze(1))
        fig.matrix(x0, top, column, "attention", (72, h), caption=caption)
    y = table.left[1]
    fig.arrow((left + 78, y), (right - 6, y), label="softmax")
    x0, words = right + 36, f"sum {weights.sum():.4f}"
    fig.text(x0, 343, words, "attention", 13, mono=True)
    fig.text(bus, 322, "dot product", "muted", 12.5)
    return fig


def context_vector():
    """3.3.1: the weighted sum of all inputs."""
    x, weights = sentence(), simple_attention()[1][QUERY]
    parts = weights.unsqueeze(1) * x  # (T, d_in)
    context = weights @ x
    total = [sum(map(float, column)) for column in zip(*rows(parts), strict=True)]
    assert rows(torch.tensor(total)) == rows(context), "adds up as printed"
    fig = Figure(
        WIDTH,
        392,
        "The context vector mixes all inputs, each by its weight",
        f"Each input vector is multiplied by its weight, {rows(weights)[0]}; the "
        f"{len(x)} products add up to the context vector of '{WORDS[QUERY]}', "
        f"{rows(context)[0]}. Bars show the weights.",
    )
    top, h = 96, 34
    names = [(190, "weight", "attention"), (395, "input", "embeddings")]
    names += [(633, "weight × input", "embeddings")]
    for middle, name, role in names:
        fig.text(middle, 76, name, role, 14, bold=True)
    table = fig.matrix(314, top, rows(x, 2), "embeddings", (54, h))
    fig.matrix(534, top, rows(parts), "embeddings", (66, h))
    for r, word in enumerate(WORDS):
        y = table.at(r, 0).left[1]
        fig.text(92, y, word, "text", 14, "end", bold=r == QUERY)
        fig.box(104, y - 10, 480 * weights[r].item(), 20, "attention", radius=2)
        number = f"{weights[r]:.4f}"
        fig.text(228, y, number, "attention", 13, "start", mono=True)
        fig.text(297, y, "×", size=16)
        fig.text(505, y, "=", size=16)
    y = table.y + table.h
    fig.arrow((633, y + 6), (633, y + 32))
    fig.text(647, y + 18, "add the rows", "muted", 12.5, "start")
    out = fig.matrix(534, y + 38, rows(context), "highlight", (66, h))
    name = f"context vector of “{WORDS[QUERY]}”, {shape(context)}"
    fig.text(522, out.left[1], name, "highlight", 14, "end", bold=True)
    return fig


def all_pairs():
    """3.3.2: every token is the query once; two matrix products do it all."""
    x, (scores, weights) = sentence(), simple_attention()
    context = weights @ x
    fig = Figure(
        WIDTH,
        418,
        "Two matrix products give every token its context vector",
        f"inputs {shape(x)} times their transpose {shape(x.T)} are the scores "
        f"{shape(scores)}; softmax along each row makes them weights "
        f"{shape(weights)}; these times inputs {shape(x)} are the context vectors "
        f"{shape(context)}. The row of '{WORDS[QUERY]}' is marked.",
    )

    def draw(left, y, tensor, name, role, labels=(), numbers=True, mark=True):
        cells = rows(tensor, 2) if numbers else blank(tensor)
        size = (44, 22) if numbers else (26, 22)
        columns = range(tensor.shape[1]) if mark else ()
        paint = {(QUERY, c): "highlight" for c in columns}
        caption = f"{name} {shape(tensor)}"
        return fig.matrix(left, y, cells, role, size, labels, caption, paint)

    plain = {"role": "embeddings", "numbers": False}  # earlier figures show them
    top, low = 62, 252
    one = draw(96, top, x, "inputs", labels=WORDS, **plain)
    two = draw(236, one.left[1] - 33, x.T, "inputs.T", mark=False, **plain)
    three = draw(468, top, scores, "attn_scores", "attention")
    four = draw(96, low, weights, "attn_weights", "attention", WORDS)
    five = draw(450, low, x, "inputs", mark=False, **plain)
    six = draw(600, low, context, "context", "embeddings")
    for a, b, sign in (
        (one, two, "@"),
        (two, three, "="),
        (four, five, "@"),
        (five, six, "="),
    ):
        fig.text((a.right[0] + b.x) / 2, b.left[1], sign, size=18)
    x0, x1 = three.bottom[0], four.top[0]
    fig.arrow((x0, 222), (x0, 234), (x1, 234), (x1, low - 4))
    fig.text((x0 + x1) / 2, 222, "softmax along each row", "muted", 12.5, mono=True)
    return fig


@cache
def projections():
    """The three matrices of section 3.4.1, (d_in, d_out) each."""
    torch.manual_seed(123)
    attention = SelfAttention_v1(3, 2)
    names = ("W_query", "W_key", "W_value")
    return {name: getattr(attention, name).detach() for name in names}


def query_key_value():
    """3.4.1: one input becomes a query, a key and a value."""
    x = sentence()[QUERY]
    fig = Figure(
        WIDTH,
        386,
        "Three matrices give one input three jobs",
        f"The input vector of '{WORDS[QUERY]}' {shape(x)} is multiplied by W_query, "
        "W_key and W_value: the query says what the token looks for, the key what it "
        "offers to be found by, the value what it hands over.",
    )
    jobs = [
        ("query", "what I\nlook for"),
        ("key", "what I offer\nto be found by"),
        ("value", "what I\nhand over"),
    ]
    middle, bus = 224, 212
    fig.text(109, middle - 31, f"input “{WORDS[QUERY]}”", "embeddings", bold=True)
    caption = shape(x)
    source = fig.matrix(
        28, middle - 16, rows(x, 2), "embeddings", (54, 32), caption=caption
    )
    fig.arrow((source.right[0] + 6, middle), (bus, middle), head=False)
    for i, ((name, job), (label, weight)) in enumerate(
        zip(jobs, projections().items(), strict=True)
    ):
        assert label == f"W_{name}"
        y = middle + 108 * (i - 1)
        fig.arrow((bus, middle), (bus, y), (256, y))
        grid = fig.matrix(262, y - 33, rows(weight), "weights", (62, 22))
        title = f"{label} {shape(weight)}"
        fig.text(grid.top[0], grid.y - 13, title, "weights", 13, mono=True)
        vector = x @ weight
        fig.arrow((grid.right[0] + 6, y), (444, y))
        out = fig.matrix(450, y - 16, rows(vector), "embeddings", (66, 32))
        title = f"{name} {shape(vector)}"
        fig.text(out.top[0], out.y - 13, title, "embeddings", 13, mono=True)
        fig.text(out.right[0] + 22, y - 9, job, "ink", 15, "start")
    return fig


def self_attention():
    """3.4.2: the class SelfAttention with every shape."""
    x = sentence()
    queries, keys, values = (x @ weight for weight in projections().values())
    scores = queries @ keys.T
    context = torch.softmax(scores / keys.shape[-1] ** 0.5, dim=-1) @ values
    with torch.no_grad():
        torch.manual_seed(123)
        assert torch.allclose(context, SelfAttention_v1(3, 2)(x))
    (T, d_in), d_out = x.shape, context.shape[-1]
    fig = Figure(
        WIDTH,
        420,
        "Queries meet keys to weigh the values",
        "inputs (T, d_in) times three matrices (d_in, d_out) are queries, keys and "
        "values (T, d_out); queries times keys transposed are scores (T, T); divided "
        "by the root of d_out, softmax makes them weights (T, T); weights times values "
        f"are the context (T, d_out). Drawn for T = {T}, d_in = {d_in}, d_out = "
        f"{d_out}.",
    )
    cell, lanes = (14, 11), (102, 208, 314)
    y = lanes[1]
    caption = "inputs\n(T, d_in)"
    source = fig.matrix(46, y - 33, blank(x), "embeddings", cell, (), caption)
    fig.arrow((source.right[0] + 6, y), (112, y), head=False)
    made = []
    for lane, label, tensor, name in zip(
        lanes,
        projections(),
        (queries, keys, values),
        ("queries", "keys", "values"),
        strict=True,
    ):
        fig.arrow((112, y), (112, lane), (128, lane))
        label = f"{label}\n(d_in, d_out)"
        w = fig.box(132, lane - 22, 112, 44, "weights", label, 13, mono=True)
        fig.arrow((w.right[0] + 4, lane), (298, lane))
        caption = f"{name} (T, d_out)"
        made.append(
            fig.matrix(304, lane - 33, blank(tensor), "embeddings", cell, (), caption)
        )
    middle = (lanes[0] + lanes[1]) / 2
    for lane, entry in ((lanes[0], middle - 12), (lanes[1], middle + 12)):
        path = [(336, lane), (390, lane), (390, entry), (424, entry)]
        fig.arrow(*path)
    grid = fig.matrix(430, middle - 33, blank(scores), "attention", cell)
    weighed = fig.matrix(596, middle - 33, blank(scores), "attention", cell)
    for box, name in ((grid, "scores (T, T)"), (weighed, "weights (T, T)")):
        fig.text(box.top[0], box.y - 14, name, "attention", 13, mono=True)
    fig.text(grid.bottom[0], middle + 51, "queries @ keys.T", "muted", 12.5, mono=True)
    fig.arrow((520, middle), (590, middle), label="÷ √d_out")
    fig.text(555, middle + 13, "softmax", "muted", 12.5, mono=True)
    x0, low = weighed.bottom[0], lanes[2]
    fig.arrow((x0, middle + 39), (x0, low - 16))
    fig.arrow((336, low), (x0 - 16, low))
    node(fig, x0, low, "@")
    fig.arrow((x0 + 12, low), (x0 + 36, low))
    caption = "(T, d_out)"
    out = fig.matrix(x0 + 42, low - 33, blank(context), "highlight", cell, (), caption)
    fig.text(out.top[0], out.y - 14, "context", "highlight", 13, mono=True)
    note = f"drawn for T = {T} tokens, d_in = {d_in}, d_out = {d_out}"
    fig.text(WIDTH / 2, 401, note, "muted", 12.5)
    return fig


def causal_mask():
    """3.5.1: who may look at whom."""
    hidden = future()
    fig = Figure(
        WIDTH,
        366,
        "Each token sees itself and what stands before it",
        f"A grid of the sentence's {len(WORDS)} words against themselves. On and below "
        "the diagonal a word may look at another; above it, where the other word "
        "stands later in the sentence, the cell is masked.",
    )
    paint = {tuple(place): "attention" for place in (~hidden).nonzero().tolist()}
    row = WORDS.index("starts")
    seen = [word for word, no in zip(WORDS, hidden[row], strict=True) if not no]
    paint |= {(row, c): "highlight" for c in range(len(seen))}
    grid = fig.matrix(176, 104, blank(hidden), "muted", (66, 36), paint=paint)
    fig.text(grid.top[0], 66, "the word that is looked at (key)", "muted", 13)
    fig.text(164, 74, "the word that\nlooks (query)", "muted", 13, "end")
    for i, word in enumerate(WORDS):
        fig.text(grid.at(0, i).top[0], 90, word, "text", 13, mono=True)
        fig.text(164, grid.at(i, 0).left[1], word, "text", 13, "end", mono=True)
    y = grid.at(row, 0).left[1]
    *before, itself = seen
    note = f"“{itself}” sees\n“{'”, “'.join(before)}”\nand itself"
    fig.text(grid.right[0] + 16, y - 17, note, "highlight", 13, "start")
    legend(fig, 176, 334, "attention", "allowed")
    legend(fig, 286, 334, "muted", "masked")
    return fig


def masked_weights(scores):
    """The two routes of section 3.5.1: their steps in between, then their ends.

    In between: weights with the future set to 0, scores with the future at -inf.
    """
    after = torch.softmax(scores, dim=-1).masked_fill(future(), 0)
    infinite = scores.masked_fill(future(), -torch.inf)
    ends = after / after.sum(-1, keepdim=True), torch.softmax(infinite, dim=-1)
    return after, infinite, *ends


def two_routes():
    """3.5.1: two ways to hide the future that agree, and one that does not."""
    scores, row = scaled_scores(), WORDS.index("starts")
    after, infinite, one, two = masked_weights(scores)
    changed = masked_weights(scores + future())  # only the future's scores differ
    assert torch.allclose(one, two)
    assert torch.allclose(one, changed[2])
    assert (after - changed[0])[row, : row + 1].min() > 0.01
    total = after[row].sum()
    fig = Figure(
        WIDTH,
        402,
        "Mask before softmax, or rescale after it: the same weights",
        f"The scaled scores of '{WORDS[row]}' take two routes. Softmax, future set to "
        f"0, divided by the row's sum {total:.3f}; or future set to minus infinity, "
        f"then softmax. Both end at {rows(one[row], 3)[0]}. To stop after setting the "
        "future to 0 leaves weights that do not sum to 1 and depend on the future.",
    )
    hidden = {(0, c): "muted" for c in range(row + 1, len(WORDS))}

    def line(x, y, tensor, role="attention", paint=hidden, cell=52):
        cells = [[n.removesuffix(".000") for n in rows(tensor[row], 3)[0]]]
        return fig.matrix(x, y, cells, role, (cell, 28), paint=paint)

    left, right = 28, 420
    a, b = left + 156, right + 156
    start = line(188, 78, scores, paint={}, cell=64)
    for c, word in enumerate(WORDS):
        fig.text(start.at(0, c).top[0], 66, word, "text", 13, mono=True)
    name = f"scaled scores\nof “{WORDS[row]}”"
    fig.text(176, 83, name, "ink", 13, "end")
    for x, mark in ((left, "A"), (right, "B")):
        fig.text(x, 139, f"route {mark}", anchor="start", bold=True)
    fig.arrow((284, 110), (284, 126), (a, 126), (a, 150), label="softmax")
    line(left, 154, torch.softmax(scores, dim=-1))
    fig.arrow((a, 186), (a, 218), label="future = 0")
    stop = line(left, 222, after)
    fig.arrow((a, 254), (a, 328), label=f"÷ row sum {total:.3f}")
    fig.arrow((476, 110), (476, 126), (b, 126), (b, 150), label="future = -inf")
    line(right, 154, infinite)
    fig.arrow((b + 78, 186), (b + 78, 328), label="softmax")
    for x, weights in ((left, one), (right, two)):
        end = line(x, 332, weights, "highlight")
        words = f"sum {weights[row].sum():.3f}"
        fig.text(end.bottom[0], 376, words, "highlight", 13, mono=True)
    fig.text(380, 346, "=", size=18)
    words = f"Do not stop here: the\nrow sums to {total:.3f},\nand its weights still\n"
    box = fig.box(370, 194, 180, 84, "target", words + "depend on the future.", 13)
    fig.arrow((box.x - 4, 236), (stop.right[0] + 6, 236), role="target")
    return fig


def dropout_of_ones():
    """What dropout makes of a matrix of ones after seed 123 (section 3.5.2).

    Read from the figures a test checks: not every system draws the same zeros.
    """
    text = Path(ROOT, "tests", "book_figures.json").read_text(encoding="utf-8")
    return json.loads(text)["ch03.dropout.ones"]["value"]


def dropout():
    """3.5.2: some weights are left out, the others grow."""
    weights, rate = causal_weights(), 0.5
    factors = torch.tensor(dropout_of_ones())  # (T, T)
    assert set(factors.flatten().tolist()) == {0, 1 / (1 - rate)}
    after, seen = weights * factors, ~future()
    gone = seen & (factors == 0)
    fig = Figure(
        WIDTH,
        388,
        "Dropout zeroes weights at random and doubles the others",
        f"Two matrices of attention weights {shape(weights)}, lower triangles. After "
        f"dropout with rate {rate}, {gone.sum()} of the {seen.sum()} weights are 0 and "
        "the others twice as large.",
    )
    size, masked = (46, 34), (~seen).nonzero().tolist()
    paint = {tuple(place): "muted" for place in masked}
    lost = {tuple(place): "highlight" for place in gone.nonzero().tolist()}
    for x, tensor, name, labels, more in (
        (92, weights, "causal weights", WORDS, {}),
        (456, after, "after dropout", (), lost),
    ):
        cells = rows(tensor, 3)
        for r, c in paint:
            cells[r][c] = ""
        for r, c in more:
            cells[r][c] = "0"
        caption = f"{name} {shape(tensor)}"
        grid = fig.matrix(
            x, 72, cells, "attention", size, labels, caption, paint | more
        )
        y = grid.left[1]
    fig.arrow((376, y), (448, y), label="dropout")
    fig.text(412, y + 14, f"rate {rate}", "muted", 12.5)
    empty = [word for word, no in zip(WORDS, after.sum(-1) == 0, strict=True) if no]
    dropped = f"dropped: {gone.sum()} of {seen.sum()}"
    legend(fig, 92, 332, "attention", "kept, × 2 on the right")
    legend(fig, 290, 332, "highlight", dropped)
    legend(fig, 456, 332, "muted", "masked")
    note = f"a row may lose all its weights, as “{empty[0]}” does; numbers are rounded"
    fig.text(WIDTH / 2, 368, note, "muted", 12.5)
    return fig


@cache
def batch():
    """The sentence twice, (B, T, d_in)."""
    return torch.stack((sentence(), sentence()))


def two_heads():
    """3.6.1: two causal heads side by side, their outputs joined."""
    x = batch()
    torch.manual_seed(123)
    wrapper = MultiHeadAttentionWrapper(3, 2, len(WORDS), 0.0, num_heads=2)
    with torch.no_grad():
        parts, joined = [head(x) for head in wrapper.heads], wrapper(x)
    fig = Figure(
        WIDTH,
        362,
        "Two heads read the same batch; their outputs are joined",
        f"The batch {shape(x)} enters two CausalAttention heads. Each returns "
        f"{shape(parts[0])}; joined along the last dimension they are "
        f"{shape(joined)}.",
    )
    cell, sheets, lanes = (20, 15), len(x), (116, 248)
    middle = sum(lanes) / 2
    fig.stack(
        48, middle - 50, blank(x), "embeddings", sheets, cell=cell, caption=shape(x)
    )
    fig.text(81, middle - 68, "batch", "embeddings", 14, bold=True)
    fig.arrow((120, middle), (158, middle), head=False)
    for i, (lane, part, role) in enumerate(zip(lanes, parts, HEADS, strict=True)):
        fig.arrow((158, middle), (158, lane), (186, lane))
        name = f"CausalAttention\nhead {i}"
        fig.box(192, lane - 32, 150, 64, "weights", name, 13, mono=True)
        fig.arrow((346, lane), (398, lane))
        caption = shape(part)
        y = lane - 50
        fig.stack(404, y, blank(part), role, sheets, cell=cell, caption=caption)
        fig.arrow((456, lane), (492, lane), (492, middle), head=False)
        x0 = 606 + i * 2 * cell[0]
        fig.stack(x0, middle - 50, blank(part), role, sheets, cell=cell)
    fig.arrow((492, middle), (600, middle))
    fig.text(546, middle - 12, "cat, dim=-1", "muted", 12.5, mono=True)
    fig.text(646, middle + 63, shape(joined), "ink", 13, mono=True)
    fig.text(648, middle - 68, "joined", "ink", 14, bold=True)
    B, T, d_out = parts[0].shape
    note = (
        f"{B} texts of {T} tokens; each of the {len(parts)} heads makes {d_out} columns"
    )
    fig.text(WIDTH / 2, 342, note, "muted", 12.5)
    return fig


def weight_split():
    """3.6.2: one product serves all heads, its columns are cut."""
    x, (d_out, H) = batch(), (4, 2)
    attention = MultiHeadAttention(3, d_out, len(WORDS), 0.0, H)
    weight = attention.W_query.weight.T.detach()  # (d_in, d_out)
    queries = x @ weight  # (B, T, d_out)
    B, T, d_in = x.shape
    D = attention.head_dim
    pieces = queries.view(B, T, H, D)
    heads = pieces.transpose(1, 2)  # (B, H, T, D)
    for i in range(H):  # the columns of one head are a small matrix of its own
        own = weight[:, i * D : (i + 1) * D]
        assert torch.allclose(heads[:, i], x @ own, atol=1e-6)
    fig = Figure(
        WIDTH,
        400,
        "One product serves both heads: its columns are cut in two",
        f"inputs (B, T, d_in) times W_query (d_in, d_out) are the queries (B, T, "
        f"d_out) = {shape(queries)}. view cuts the columns into {H} heads of {D}: "
        f"{shape(pieces)}; transpose puts the heads before the tokens: "
        f"{shape(heads)}.",
    )
    cell, y = (22, 20), 206
    paint = {(r, c): HEADS[c // D] for r in range(T) for c in range(d_out)}

    def grid(left, tensor, name, letters, labels=()):
        """One text's matrix; the columns that belong to a head have its colour."""
        matrix = tensor[0] if tensor.dim() == 3 else tensor
        n, columns = matrix.shape
        split = {at: paint[at] for at in paint if at[0] < n and columns == d_out}
        top, table = y - 10 * n, blank(matrix)
        fig.matrix(left, top, table, "embeddings", cell, labels, paint=split)
        middle = left + 11 * columns
        fig.text(middle, top - 14, name, size=13, mono=True)
        write(middle, y + 10 * n, letters, tensor)

    def write(x, y, letters, tensor):
        letters = f"{letters}\n{shape(tensor)}"
        fig.text(x, y + 17, letters, "muted", 13, mono=True)

    grid(92, x, "inputs", "(B, T, d_in)", WORDS)
    fig.text(175, y, "@", size=18)
    grid(192, weight, "W_query", "(d_in, d_out)")
    fig.text(302, y, "=", size=18)
    grid(322, queries, "queries", "(B, T, d_out)")
    fig.arrow((416, y), (460, y), label="view")
    for i in range(H):
        left = 466 + i * (2 * cell[0] + 8)
        fig.matrix(left, y - 60, blank(pieces[0, :, i]), HEADS[i], cell)
        middle = y + (2 * i - 1) * 76
        fig.matrix(662, middle - 60, blank(heads[0, i]), HEADS[i], cell)
        fig.text(684, middle - 72, f"head {i}", HEADS[i], 13, mono=True)
        fig.arrow((640, y), (640, middle), (656, middle))
    fig.arrow((568, y), (640, y), head=False)
    fig.text(602, y - 11, "transpose", "muted", 12.5, mono=True)
    write(514, y + 60, "(B, T, H, D)", pieces)
    write(684, y + 136, "(B, H, T, D)", heads)
    note = f"T = {T}, d_in = {d_in}, d_out = {d_out}, H = {H}, D = {D};\n"
    note += f"one of the B = {B} texts is drawn"
    fig.text(28, 350, note, "muted", 12.5, "start")
    return fig


def multi_head():
    """3.6.2: the whole forward pass of MultiHeadAttention."""
    x, (d_out, H) = batch(), (4, 2)
    torch.manual_seed(123)
    attention = MultiHeadAttention(3, d_out, len(WORDS), 0.0, H)
    B, T, _ = x.shape
    D = attention.head_dim
    with torch.no_grad():
        made = [
            layer(x).view(B, T, H, D).transpose(1, 2)
            for layer in (attention.W_query, attention.W_key, attention.W_value)
        ]
        queries, keys, values = made
        scores = queries @ keys.transpose(2, 3)
        masked = scores.masked_fill(future(), -torch.inf) / D**0.5
        weights = torch.softmax(masked, dim=-1)
        context = weights @ values
        side = context.transpose(1, 2)
        joined = side.contiguous().view(B, T, d_out)
        out = attention.out_proj(joined)
        assert torch.allclose(out, attention(x))
    fig = Figure(
        WIDTH,
        420,
        "The heads work apart in the middle and join at the end",
        f"x {shape(x)} becomes queries, keys and values {shape(queries)}; scores and "
        f"weights are {shape(scores)}; weights times values {shape(context)}; "
        f"transposed {shape(side)}, viewed {shape(joined)}, projected {shape(out)}.",
    )

    def step(left, middle, name, letters, tensor, role="embeddings"):
        label = f"{name}\n{letters}\n{shape(tensor)}"
        fig.box(left, middle - 31, 112, 62, role, label, 13, mono=True)

    lanes = (93, 169, 245)
    step(28, lanes[1], "x", "(B, T, d_in)", x)
    fig.arrow((144, lanes[1]), (160, lanes[1]), head=False)
    for lane, name, tensor in zip(lanes, ("query", "key", "value"), made, strict=True):
        path = [(160, lanes[1]), (160, lane), (248, lane)]
        fig.arrow(*path, label=f"W_{name}")
        fig.text(204, lane + 12, "view\ntranspose", "muted", 12, mono=True)
        plural = {"query": "queries"}.get(name, f"{name}s")
        step(252, lane, plural, "(B, H, T, D)", tensor)
    middle = (lanes[0] + lanes[1]) / 2
    for lane, entry in ((lanes[0], middle - 12), (lanes[1], middle + 12)):
        fig.arrow((368, lane), (400, lane), (400, entry), (430, entry))
    step(434, middle, "scores", "(B, H, T, T)", scores, "attention")
    words = "queries @ keys.transpose(2, 3)"
    fig.text(502, middle - 50, words, "muted", 12.5, mono=True)
    step(620, middle, "weights", "(B, H, T, T)", weights, "attention")
    fig.arrow((550, middle), (616, middle), label="÷ √D")
    fig.text(583, middle - 28, "mask", "muted", 12.5, mono=True)
    fig.text(583, middle + 13, "softmax\ndropout", "muted", 12.5, mono=True)
    low, end = lanes[2], 676
    fig.arrow((end, middle + 35), (end, low - 16))
    fig.arrow((368, low), (end - 16, low))
    node(fig, end, low, "@")
    y = 340
    fig.arrow((end, low + 12), (end, 290), (84, 290), (84, y - 35))
    for left, name, letters, tensor, role in (
        (28, "context_vec", "(B, H, T, D)", context, "embeddings"),
        (228, "per token", "(B, T, H, D)", side, "embeddings"),
        (434, "joined", "(B, T, C)", joined, "embeddings"),
        (620, "output", "(B, T, C)", out, "highlight"),
    ):
        step(left, y, name, letters, tensor, role)
    fig.arrow((144, y), (224, y), label="transpose")
    fig.arrow((344, y), (430, y), label="contiguous")
    fig.text(387, y + 13, "view", "muted", 12.5, mono=True)
    fig.arrow((550, y), (616, y), label="out_proj")
    note = f"B = {B} texts, T = {T} tokens, H = {H} heads of D = {D} columns, "
    fig.text(WIDTH / 2, 396, f"{note}C = d_out = {d_out}", "muted", 12.5)
    return fig


def four_steps():
    """The chapter in four steps."""
    hidden = future()
    fig = Figure(
        WIDTH,
        312,
        "Four kinds of attention, each with one idea more",
        "Four boxes from left to right: simple attention, where every token looks at "
        "every token; trainable attention adds matrices that learn what to look for; "
        "causal attention adds a mask that hides the future; multi-head attention "
        "adds several heads that look in parallel.",
    )
    steps = [
        ("3.3", "Simple", "every token looks\nat every token", "softmax(x @ x.T) @ x"),
        ("3.4", "Trainable", "+ matrices learn\nwhat to look for", SelfAttention_v2),
        ("3.5", "Causal", "+ a mask hides\nthe future", CausalAttention),
        ("3.6", "Multi-head", "+ several heads\nlook in parallel", MultiHeadAttention),
    ]
    masked = {tuple(place): "muted" for place in hidden.nonzero().tolist()}
    for i, (section, name, idea, code) in enumerate(steps):
        x, y = 28 + 182 * i, 124
        fig.box(x, 62, 158, 226, "card", radius=8)
        fig.text(x + 14, 84, name, size=15, anchor="start", bold=True)
        fig.text(x + 144, 84, section, "muted", 13, "end")
        left = x + (44 if i == 0 else 54)
        if i:
            for row, label in enumerate("QKV"):
                fig.box(
                    x + 16, y + 25 * row, 22, 20, "weights", label, 12.5, 4, mono=True
                )
        for head in reversed(range(2 if i == 3 else 1)):
            fig.matrix(
                left + 10 * (i == 3) - 10 * head,
                y - 10 * (i == 3) + 10 * head,
                blank(hidden),
                HEADS[head],
                (12, 12),
                paint=masked if i > 1 else {},
            )
        fig.text(x + 79, 224, idea, size=13)
        words = code if i == 0 else code.__name__
        fig.text(x + 79, 270, words, "muted", 12, mono=True)
        if i:
            fig.arrow((x - 21, 175), (x - 3, 175))
    return fig


def bottleneck():
    """3.1: one vector between two sentences, or a look back at all words."""
    fig = Figure(
        WIDTH,
        404,
        "Attention lets every output look back at every input",
        "Left: an encoder presses all words of a sentence into one vector, from which "
        "a decoder must write the whole translation. Right: with attention, each "
        "output word has a line of its own to each input word.",
    )
    outputs = ["Deine", "Reise", "beginnt", "mit", "einem", "Schritt"]
    w, h, top, gap = 80, 28, 104, 36

    def lists(x):
        """The two columns of words; return the ends of the lines between them."""
        ends = [], []
        for words, left, end, role in (
            (WORDS, x, ends[0], "text"),
            (outputs, x + 240, ends[1], "target"),
        ):
            for i, word in enumerate(words):
                box = fig.box(left, top + gap * i, w, h, role, word, mono=True)
                end.append(box.left if role == "target" else box.right)
        fig.text(x + w / 2, top - 16, "encoder reads", "text", 13)
        fig.text(x + 240 + w / 2, top - 16, "decoder writes", "target", 13)
        return ends

    y = top + (5 * gap + h) / 2
    for x, name, note in (
        (
            28,
            "without attention",
            "all words must fit into one vector\nbefore the first output word",
        ),
        (
            412,
            "with attention",
            "each output word, here “Reise”,\ntakes what it needs from each input",
        ),
    ):
        fig.text(x, 66, name, anchor="start", bold=True)
        fig.text(x + 160, 336, note, "ink", 13)
    starts, ends = lists(28)
    for start in starts:
        fig.arrow((start[0] + 4, start[1]), (170, y), head=False)
    for end in ends:
        fig.arrow((206, y), (end[0] - 4, end[1]))
    fig.matrix(174, y - 44, [[""]] * 4, "highlight", (28, 22))
    fig.text(188, y - 58, "one vector", "highlight", 13, bold=True)
    starts, ends = lists(412)
    looking = outputs.index("Reise")
    order = sorted(range(len(outputs)), key=lambda i: i == looking)
    for i in order:
        for start in starts:
            role = "attention" if i == looking else "muted"
            fig.arrow(
                (start[0] + 4, start[1]),
                (ends[i][0] - 4, ends[i][1]),
                role=role,
                head=False,
            )
    note = "an English sentence and its German translation"
    fig.text(WIDTH / 2, 386, note, "muted", 12.5)
    return fig


FIGURES = [
    weighing,
    context_vector,
    all_pairs,
    query_key_value,
    self_attention,
    causal_mask,
    two_routes,
    dropout,
    two_heads,
    weight_split,
    multi_head,
    four_steps,
    bottleneck,
]


def draw_all(root=ROOT):
    """Write the chapter's figures to `root`/ch03/figures."""
    save_all(FIGURES, Path(root, "ch03", "figures"))


if __name__ == "__main__":
    draw_all()
