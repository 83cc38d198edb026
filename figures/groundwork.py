"""Draw the figures of the groundwork notebook. Run it: `python -m figures.groundwork`.

They lie beside those of appendix A. Every number and shape is computed, so a figure
cannot say anything else than the notebook.
"""

from pathlib import Path

import torch
import torch.nn.functional as F

from ch02.dataloader import load_text
from figures.svg import Figure, save_all

ROOT = Path(__file__).parents[1]
WIDTH = 760


def shape(tensor):
    """A tensor's shape as the notebook would write it."""
    return str(tuple(tensor.shape))


def cells(tensor):
    """The numbers of a matrix, written out."""
    return [[f"{number:g}" for number in row] for row in tensor.tolist()]


def groundwork_path():
    """Opening: from a text to its loss, and back."""
    text = load_text("bundled")
    chars = sorted(set(text))
    ids = torch.tensor([chars.index(char) for char in text[:8]])
    batch = ids.expand(4, 8)
    logits = torch.zeros(4, 8, len(chars))
    loss = F.cross_entropy(logits.flatten(0, 1), batch.flatten())
    fig = Figure(
        WIDTH,
        272,
        "From a text to one number, and back along the slopes",
        f"The characters {text[:8]!r} become the ids {ids.tolist()}; windows of ids "
        f"become a batch {shape(batch)}, the model makes logits {shape(logits)} of it, "
        f"and the loss is one number, {loss:.2f} before training. From the loss the "
        "slopes lead back to the model's weights.",
    )
    steps = [
        ("text", "text", "The y…", "characters"),
        ("ids", "ids", f"{ids[0]} {ids[1]} {ids[2]} …", "one per character"),
        ("ids", "batch", "(B, T)", shape(batch)),
        ("embeddings", "logits", "(B, T, V)", shape(logits)),
        ("target", "loss", "one number", f"{loss:.2f}"),
    ]
    w, gap, y, h = 120, 25, 76, 66
    for i, (role, name, inside, below) in enumerate(steps):
        x = 30 + i * (w + gap)
        fig.box(x, y, w, h, role)
        fig.text(x + w / 2, y + 22, name, role, 15, bold=True)
        fig.text(x + w / 2, y + 45, inside, role, 13, mono=True)
        fig.text(x + w / 2, y + h + 18, below, "muted", 12.5, mono=True)
        if i:
            fig.arrow((x - gap + 3, y + h / 2), (x - 3, y + h / 2))
    middle = 30 + 2.5 * (w + gap) + w / 2
    weights = fig.box(middle - 80, 200, 160, 40, "weights", "model's weights", 14)
    fig.arrow((middle, 200), (middle, y + h / 2 + 8), role="weights")
    end = 30 + 4 * (w + gap) + w / 2
    corner = weights.right[1]
    fig.arrow(
        (end, y + h + 30), (end, corner), (weights.right[0] + 5, corner), role="target"
    )
    fig.text((weights.right[0] + end) / 2, corner + 17, "slopes", "target", 13)
    return fig


def groundwork_matmul():
    """Vectors: a row meets a column."""
    a = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    b = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, -1.0]])
    product = a @ b
    terms = [f"{x:g} · {y:g}" for x, y in zip(a[0], b[:, 0], strict=True)]
    fig = Figure(
        WIDTH,
        300,
        "A row meets a column: multiply, add up, one number",
        f"The matrix A {a.tolist()} is {shape(a)}, B {b.tolist()} is {shape(b)}, and "
        f"A @ B {product.tolist()} is {shape(product)}. The first row of A and the "
        f"first column of B give {' + '.join(terms)} = {product[0, 0]:g}.",
    )
    size = (48, 34)
    left = fig.matrix(
        110, 192, cells(a), "embeddings", size, paint={(0, c): "ids" for c in range(3)}
    )
    above = fig.matrix(
        300, 70, cells(b), "embeddings", size, paint={(r, 0): "ids" for r in range(3)}
    )
    result = fig.matrix(
        300, 192, cells(product), "muted", size, paint={(0, 0): "highlight"}
    )
    for box, name, tensor in ((left, "A", a), (result, "A @ B", product)):
        words = f"{name} {shape(tensor)}"
        fig.text(box.bottom[0], box.y + box.h + 18, words, "muted", 13, mono=True)
    words = f"B {shape(b)}"
    fig.text(above.right[0] + 12, above.right[1], words, "muted", 13, "start", True)
    fig.arrow((left.right[0] + 6, 209), (result.x - 6, 209), role="ids")
    fig.arrow((324, above.y + above.h + 3), (324, result.y - 4), role="ids")

    x = 450
    fig.text(x, 196, "first row, first column:", "ink", 14, "start")
    fig.text(x, 222, " + ".join(terms), "ids", 15, "start", mono=True)
    fig.text(x, 248, f"= {product[0, 0]:g}", "highlight", 15, "start", mono=True)
    return fig


FIGURES = [groundwork_path, groundwork_matmul]


def draw_all(root):
    """Write every figure to appendix-A/figures/ below `root`."""
    save_all(FIGURES, root / "appendix-A/figures")


if __name__ == "__main__":
    draw_all(ROOT)
