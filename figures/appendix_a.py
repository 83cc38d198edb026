"""Draw the figures of appendix A. Run it: `python -m figures.appendix_a`.

Every number and shape is computed with the definitions of the appendix, so a figure
cannot say anything else than the notebook beside it.
"""

import runpy
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from figures.svg import Figure, save_all

ROOT = Path(__file__).parents[1]
WIDTH = 760


@cache
def script():
    """The definitions of DDP-script.py, whose name no import statement can spell."""
    path = ROOT / "appendix-A/DDP-script.py"
    return SimpleNamespace(**runpy.run_path(str(path), run_name="figures"))


@cache
def neuron():
    """The one-neuron example of sections A.3 and A.4: its numbers by name."""
    x, y = torch.tensor([1.1]), torch.tensor([1.0])
    w, b = (torch.tensor([start], requires_grad=True) for start in (2.2, 0.0))
    u = x * w
    z = u + b
    a = torch.sigmoid(z)
    loss = F.binary_cross_entropy(a, y)
    names = {"w": w, "u": u, "b": b, "z": z, "a": a}
    slopes = torch.autograd.grad(loss, list(names.values()))
    values = {**names, "x": x, "y": y, "loss": loss}
    return (
        {name: tensor.item() for name, tensor in values.items()},
        {name: slope.item() for name, slope in zip(names, slopes, strict=True)},
    )


def shape(tensor):
    """A tensor's shape as the notebook would write it."""
    return str(tuple(tensor.shape))


def cells(tensor):
    """The numbers of a matrix, written out."""
    return [[str(number) for number in row] for row in tensor.tolist()]


def three_parts():
    """A.1: what PyTorch consists of."""
    fig = Figure(
        WIDTH,
        292,
        "PyTorch is three things, each resting on the one before",
        "Tensors, arrays of numbers on a CPU or a GPU, are the lowest step (sections "
        "A.2 and A.9). Autograd, which records what is computed and finds gradients, "
        "stands on them (A.3 and A.4). On both stand the parts of deep learning: "
        "layers, losses, optimizers, data loaders (A.5 to A.8).",
    )
    steps = [
        (
            "weights",
            "parts of deep learning",
            "torch.nn, torch.optim, torch.utils.data",
        ),
        ("target", "automatic differentiation", "torch.autograd"),
        ("embeddings", "tensors", "torch"),
    ]
    sections = ["A.5 to A.8", "A.3, A.4", "A.2, A.9"]
    for i, ((role, name, module), section) in enumerate(
        zip(steps, sections, strict=True)
    ):
        x, y = 176 - 68 * i, 66 + 72 * i
        box = fig.box(x, y, 560 - 2 * x + 200, 62, role)
        fig.text(box.top[0], y + 22, name, role, 15, bold=True)
        fig.text(box.top[0], y + 43, module, role, 13, mono=True)
        fig.text(box.x + 12, y + 22, section, role, 12.5, "start")
    return fig


def ranks():
    """A.2.1: tensors of zero to three dimensions."""
    tensors = [
        torch.tensor(1),
        torch.tensor([1, 2, 3]),
        torch.tensor([[1, 2], [3, 4]]),
        torch.tensor([[[1, 2], [3, 4]], [[5, 6], [7, 8]]]),
    ]
    names = ["scalar", "vector", "matrix", "3-D tensor"]
    fig = Figure(
        WIDTH,
        232,
        "Each dimension stacks what the one before it has",
        "A scalar of shape (), a vector of shape (3,), a matrix of shape (2, 2) and a "
        "3-D tensor of shape (2, 2, 2), which is two matrices.",
    )
    middles = [96, 274, 468, 652]
    for middle, name, tensor in zip(middles, names, tensors, strict=True):
        fig.text(middle, 72, name, "embeddings", 15, bold=True)
        rows = cells(tensor.reshape(-1, tensor.shape[-1])) if tensor.ndim else [["1"]]
        front = rows[:2]
        x = middle - 20 * len(front[0])
        y = 136 - 15 * len(front)
        if tensor.ndim == 3:
            fig.matrix(middle + 4, y - 12, rows[2:], "embeddings", (40, 30))
            fig.matrix(middle - 84, y + 12, front, "embeddings", (40, 30))
        else:
            fig.matrix(x, y, front, "embeddings", (40, 30))
        fig.text(middle, 204, f"shape {shape(tensor)}", "muted", 13, mono=True)
    return fig


def view_transpose():
    """A.2.3: reshape and transpose read the same memory in different orders."""
    start = torch.tensor([[1, 2, 3], [4, 5, 6]])
    memory = start.flatten()
    assert start.T.data_ptr() == start.data_ptr()
    fig = Figure(
        WIDTH,
        306,
        "Same shape, other order: reshape is not a transpose",
        f"The matrix {start.tolist()} lies in memory as {memory.tolist()}. "
        f"reshape(3, 2) gives {start.reshape(3, 2).tolist()}, in the order of the "
        f"memory; its transpose is {start.T.tolist()}, read in steps of three.",
    )
    size = (40, 30)
    first = fig.matrix(60, 100, cells(start), "embeddings", size)
    fig.text(first.top[0], 80, f"tensor2d {shape(start)}", "embeddings", 13, mono=True)
    row = fig.matrix(260, 115, cells(memory[None]), "ink", size)
    fig.text(row.top[0], 95, "the same six numbers in memory", "ink", 13)
    fig.arrow((first.right[0] + 8, 130), (row.x - 8, 130))
    # The first row of each result, and where its numbers lie in memory
    for y, result, name, role, taken in (
        (72, start.reshape(3, 2), "reshape(3, 2)", "ids", (0, 1)),
        (192, start.T, ".T", "attention", (0, 3)),
    ):
        assert result[0].tolist() == memory[list(taken)].tolist()
        paint = {(0, 0): role, (0, 1): role}
        grid = fig.matrix(620, y, cells(result), "muted", size, paint=paint)
        fig.text(grid.x - 14, y + 15, name, role, 14, "end", mono=True, bold=True)
    for taken, y, shift, role in (
        ((0, 1), 166, -6, "ids"),
        ((0, 3), 182, 6, "attention"),
    ):
        x0, x1 = (row.at(0, column).bottom[0] + shift for column in taken)
        corners = ((x0, 149), (x0, y), (x1, y), (x1, 149))
        fig.arrow(*corners, role=role, head=False)
    fig.text(row.x, 210, "first row of reshape: neighbours", "ids", 13, "start")
    fig.text(row.x, 232, "first row of .T: every third", "attention", 13, "start")
    return fig


def computation_graph():
    """A.3, A.4: values flow forwards, slopes backwards."""
    values, slopes = neuron()
    fig = Figure(
        WIDTH,
        316,
        "Values flow to the loss, gradients flow back",
        f"x1 = {values['x']:.1f} times w1 = {values['w']:.1f} is {values['u']:.2f}; "
        f"plus b = {values['b']:.1f} is z = {values['z']:.2f}; the sigmoid gives "
        f"a = {values['a']:.4f}; with the label y = {values['y']:.0f} the loss is "
        f"{values['loss']:.4f}. Back from the loss come the slopes: "
        f"{slopes['a']:.4f} at a, {slopes['z']:.4f} at z, {slopes['b']:.4f} at b and "
        f"{slopes['w']:.4f} at w1.",
    )
    y = 150
    steps = [
        (156, "×", "x1·w1", "u", 2),
        (300, "+", "z", "z", 2),
        (450, "σ", "a", "a", 4),
    ]
    inputs = [
        (60, y, "x1", f"{values['x']:.1f}", "embeddings"),
        (156, 78, "w1", f"{values['w']:.1f}", "weights"),
        (300, 78, "b", f"{values['b']:.1f}", "weights"),
        (610, 78, "y", f"{values['y']:.1f}", "target"),
    ]
    for x, top, name, number, role in inputs:
        fig.box(x - 36, top - 15, 72, 30, role, f"{name} {number}", 13, mono=True)
    fig.arrow((98, y), (134, y))
    ends = [step[0] for step in steps[1:]] + [610]
    for (x, sign, name, key, digits), end in zip(steps, ends, strict=True):
        fig.oval(x, y, 18, 18, "ink")
        fig.text(x, y, sign, size=17)
        label = f"{name} {values[key]:.{digits}f}"
        left, right = x + 20, end - (22 if end < 600 else 50)
        fig.arrow((left, y), (right, y))
        fig.text((left + right) / 2, y - 14, label, "muted", 12, mono=True)
    for x in (156, 300):
        fig.arrow((x, 95), (x, y - 20))
    fig.arrow((610, 95), (610, y - 26))
    words = f"loss\n{values['loss']:.4f}"
    fig.box(562, y - 24, 96, 48, "target", words, 14, mono=True)

    back = 214
    fig.arrow((610, y + 26), (610, back), (456, back), role="highlight")
    fig.arrow((444, back), (306, back), role="highlight")
    fig.arrow((294, back), (162, back), role="highlight")
    for middle, key in ((533, "a"), (375, "z"), (228, "u")):
        number = f"{slopes[key]:.4f}"
        fig.text(middle, back - 13, number, "highlight", 13, mono=True)
    for x, key, name in ((156, "w", "w1.grad"), (300, "b", "b.grad")):
        fig.arrow((x, back), (x, back + 30), role="highlight")
        label = f"{name}\n{slopes[key]:.4f}"
        fig.box(x - 48, back + 34, 96, 46, "highlight", label, 13, mono=True)
    fig.text(470, 260, "forwards: compute and record", "ink", 13, "start")
    fig.text(470, 282, "backwards: the chain rule", "highlight", 13, "start")
    return fig


def network():
    """A.5: the layers of NeuralNetwork(50, 3)."""
    model = script().NeuralNetwork(50, 3)
    linear = [model.layers[i] for i in (0, 2, 4)]
    counts = [sum(p.numel() for p in layer.parameters()) for layer in linear]
    total = sum(p.numel() for p in model.parameters())
    assert total == sum(counts)
    fig = Figure(
        WIDTH,
        246,
        f"Three linear layers, {total:,} parameters",
        "A batch (B, 50) passes through Linear 50 to 30, ReLU, Linear 30 to 20, ReLU "
        f"and Linear 20 to 3. The linear layers have {counts[0]:,}, {counts[1]:,} and "
        f"{counts[2]:,} parameters, weights and biases together.",
    )
    y, h = 72, 92
    x = 92
    fig.text(46, y + h / 2, "(B, 50)", "embeddings", 13, mono=True)
    for i, layer in enumerate(linear):
        fig.arrow((x - 8 if i == 0 else x - 22, y + h / 2), (x + 10, y + h / 2))
        name = f"Linear\n{layer.in_features} → {layer.out_features}"
        box = fig.box(x + 14, y, 112, h, "weights", name, 15, bold=True)
        words = f"{layer.in_features} · {layer.out_features} + {layer.out_features}"
        fig.text(box.bottom[0], y + h + 22, words, "muted", 13, mono=True)
        fig.text(
            box.bottom[0], y + h + 44, f"= {counts[i]:,}", "weights", 14, mono=True
        )
        x += 130
        if i < 2:
            fig.arrow((x, y + h / 2), (x + 14, y + h / 2))
            fig.box(x + 18, y + 26, 54, h - 52, "muted", "ReLU", 13)
            x += 98
    fig.arrow((x, y + h / 2), (x + 16, y + h / 2))
    fig.text(x + 48, y + h / 2, "(B, 3)", "target", 13, mono=True)
    return fig


def data_loader():
    """A.6: from a data set to batches."""
    torch.manual_seed(123)
    points = [[-1.2, 3.1], [-0.9, 2.9], [-0.5, 2.6], [2.3, -1.1], [2.7, -1.5]]
    labels = torch.tensor([0, 0, 0, 1, 1])
    numbered = script().ToyDataset(torch.arange(5), labels)
    batches = [b[0].tolist() for b in DataLoader(numbered, batch_size=2, shuffle=True)]
    fig = Figure(
        WIDTH,
        322,
        "A data set hands out one, a data loader makes batches",
        "ToyDataset holds five points with their labels. The data loader draws the "
        f"order {[i for b in batches for i in b]}, asks for the examples one by one "
        f"and stacks them into the batches {batches}.",
    )
    colours = ["ids", "attention", "highlight"]
    batch_of = {i: n for n, batch in enumerate(batches) for i in batch}
    rows = [
        [f"{x}", f"{y}", str(label.item())]
        for (x, y), label in zip(points, labels, strict=True)
    ]
    paint = {(r, c): colours[batch_of[r]] for r in range(5) for c in range(3)}
    numbers = [str(r) for r in range(5)]
    table = fig.matrix(70, 108, rows, "text", (52, 32), numbers, paint=paint)
    fig.text(table.top[0], 66, "ToyDataset", "ink", 14, mono=True, bold=True)
    fig.text(table.x + 52, 90, "features", "muted", 13)
    fig.text(table.x + 130, 90, "label", "muted", 13)
    fig.text(table.top[0], 292, "train_ds[3] is row 3", "muted", 13)

    fig.text(330, 66, "order", "ink", 14, bold=True)
    order = [i for batch in batches for i in batch]
    column = [[str(i)] for i in order]
    paint = {(r, 0): colours[batch_of[i]] for r, i in enumerate(order)}
    drawn = fig.matrix(308, 108, column, "ids", (44, 32), paint=paint)
    fig.arrow((table.right[0] + 10, 188), (drawn.x - 10, 188))
    fig.text(330, 292, "shuffled", "muted", 13)

    fig.text(560, 66, "DataLoader, batch_size=2", "ink", 14, mono=True, bold=True)
    y = 96
    for n, batch in enumerate(batches):
        content = [rows[i] for i in batch]
        grid = fig.matrix(500, y, content, colours[n], (52, 30))
        fig.arrow((drawn.right[0] + 10, 188), (grid.x - 10, grid.left[1]))
        words = f"({len(batch)}, 2)"
        fig.text(grid.right[0] + 12, grid.left[1], words, "muted", 13, "start")
        y += 30 * len(batch) + 16
    fig.text(560, 292, "the last one is left out by drop_last", "muted", 13)
    return fig


def training_loop():
    """A.7: the five moves of a training step."""
    fig = Figure(
        WIDTH,
        286,
        "Every training step is the same five moves",
        "A batch of features goes through the model, which gives logits; the loss "
        "compares them with the labels; zero_grad empties the gradients, backward "
        "fills them, step moves the weights; then the next batch comes.",
    )
    moves = [
        ("embeddings", "forward", "model(features)"),
        ("target", "loss", "cross_entropy"),
        ("muted", "empty", "zero_grad()"),
        ("highlight", "backward", "backward()"),
        ("weights", "step", "step()"),
    ]
    w, gap, y = 128, 14, 118
    for i, (role, name, code) in enumerate(moves):
        x = 30 + i * (w + gap)
        fig.box(x, y, w, 66, role)
        fig.text(x + w / 2, y + 23, f"{i + 1} {name}", role, 15, bold=True)
        fig.text(x + w / 2, y + 46, code, role, 12, mono=True)
        if i:
            fig.arrow((x - gap, y + 33), (x - 1, y + 33))
    first, last = 30 + w / 2, 30 + 4 * (w + gap) + w / 2
    fig.arrow((last, y + 68), (last, 226), (first, 226), (first, y + 70))
    fig.text((first + last) / 2, 246, "the next batch, with the new weights", "ink", 13)
    fig.text(30 + w / 2, 76, "features", "text", 13, mono=True)
    fig.arrow((30 + w / 2, 88), (30 + w / 2, y - 3), role="text")
    x = 30 + w + gap + w / 2
    fig.text(x, 76, "labels", "text", 13, mono=True)
    fig.arrow((x, 88), (x, y - 3), role="text")
    x = 30 + 2.5 * (w + gap) + w / 2
    fig.text(x, 76, "gradients: emptied, then filled", "muted", 13)
    return fig


def two_memories():
    """A.9: what lies where in training on an accelerator."""
    fig = Figure(
        WIDTH,
        330,
        "A device computes only with what lies in its own memory",
        "In the CPU's memory lies the whole data set. The model is moved to the "
        "accelerator once, with model.to(device), each batch with features.to(device) "
        "and labels.to(device). There lie parameters, buffers, the batch, gradients "
        "and the optimizer's state. The loss comes back with item().",
    )
    fig.box(30, 62, 270, 240, "muted")
    fig.box(460, 62, 270, 240, "muted")
    fig.text(165, 84, "CPU and its memory", "ink", 15, bold=True)
    fig.text(595, 84, "accelerator and its memory", "ink", 15, bold=True)
    left = [
        ("weights", "model, as it was made", 126),
        ("text", "the whole data set", 186),
        ("target", "loss.item(), a number", 270),
    ]
    right = [
        ("weights", "parameters and buffers", 126),
        ("text", "one batch", 186),
        ("embeddings", "gradients, optimizer state", 228),
        ("target", "loss", 270),
    ]
    for x, column in ((48, left), (478, right)):
        for role, words, y in column:
            fig.box(x, y - 16, 234, 32, role, words, 13)
    for y, words, role, back in (
        (126, "model.to(device)", "weights", False),
        (186, "features.to(device)", "text", False),
        (270, "waits for it", "target", True),
    ):
        points = ((476, y), (284, y)) if back else ((284, y), (476, y))
        fig.arrow(*points, role=role)
        fig.text(380, y - 12, words, role, 12, mono=not back)
    for y, words in ((142, "once"), (202, "each step")):
        fig.text(380, y, words, "muted", 12.5)
    return fig


def ddp():
    """A.9.3: two ranks share a batch."""
    deal = [
        list(DistributedSampler(range(8), num_replicas=2, rank=r, seed=123))[:2]
        for r in (0, 1)
    ]
    batch = list(DistributedSampler(range(8), num_replicas=1, rank=0, seed=123))[:4]
    assert sorted(deal[0] + deal[1]) == sorted(batch)
    fig = Figure(
        WIDTH,
        330,
        "Every rank takes its share, all make the same step",
        f"A batch of the examples {batch} is dealt out: rank 0 takes {deal[0]}, rank 1 "
        f"takes {deal[1]}. Each computes gradients with its own copy of the weights; "
        "the mean of both goes to both, and both copies make the same step.",
    )
    y0, y1, middle = 124, 248, 186
    roles = ["ids", "attention"]
    owner = {i: roles[r] for r, share in enumerate(deal) for i in share}
    column = [[str(i)] for i in batch]
    paint = {(r, 0): owner[i] for r, i in enumerate(batch)}
    grid = fig.matrix(44, 126, column, "ids", (44, 30), paint=paint)
    fig.text(grid.top[0], 106, "batch", "ink", 14, bold=True)
    for y, share, role, r in ((y0, deal[0], roles[0], 0), (y1, deal[1], roles[1], 1)):
        fig.text(238, y - 46, f"rank {r}", role, 14, bold=True)
        own = fig.matrix(144, y - 15, [[str(i) for i in share]], role, (36, 30))
        fig.arrow((grid.right[0] + 6, middle), (own.x - 6, y))
        fig.box(252, y - 26, 104, 52, "weights", "copy of\nthe weights", 13)
        fig.arrow((own.right[0] + 6, y), (248, y))
        fig.box(392, y - 20, 92, 40, "highlight", "gradients", 13)
        fig.arrow((358, y), (388, y))
        fig.arrow((486, y), (524, middle - 24 if y < middle else middle + 24))
        fig.arrow((606, middle - 24 if y < middle else middle + 24), (636, y))
        fig.box(640, y - 26, 96, 52, "weights", "the same\nstep", 13)
    fig.box(510, middle - 22, 110, 44, "highlight", "mean", 15, bold=True)
    fig.text(565, 306, "exchanged by NCCL or gloo", "muted", 13)
    return fig


FIGURES = [
    three_parts,
    ranks,
    view_transpose,
    computation_graph,
    network,
    data_loader,
    training_loop,
    two_memories,
    ddp,
]


def draw_all(root=ROOT):
    """Write all figures of the appendix."""
    save_all(FIGURES, Path(root, "appendix-A", "figures"))


if __name__ == "__main__":
    draw_all()
