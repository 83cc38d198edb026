"""Draw the path of the whole course, one chapter lit or none.

Run it: `python -m figures.course` writes figures/course.svg (nothing lit) and, for each
chapter in LIT, a course.svg with that chapter lit into the chapter's figures folder.
"""

from pathlib import Path

from figures.svg import Figure

ROOT = Path(__file__).parents[1]
LIT = ["ch02", "ch03", "ch04", "ch05", "ch06"]

# chapter, its subject's colour, what is built, what goes in → what comes out,
# left edge, level, width
STEPS = [
    ("ch02", "ids", "Text to tokens", "text → one vector per token", 102, 0, 630),
    ("ch03", "attention", "Attention", "vectors → vectors in context", 176, 1, 556),
    ("ch04", "weights", "GPT model", "tokens → scores for the next token", 250, 2, 482),
    ("ch05", "target", "Pretraining", "random weights → trained weights", 324, 3, 408),
    ("ch06", "text", "Classifier", "message → spam?", 398, 4, 163),
    ("ch07", "text", "Assistant", "instruction → answer", 569, 4, 163),
]
HEIGHT, FLOOR = 50, 394


def top_of(level):
    """The upper edge of the steps on one level."""
    return FLOOR - (level + 1) * (HEIGHT + 4)


def draw_step(fig, step, role):
    """One chapter as a step of the staircase."""
    chapter, _, name, change, x, level, width = step
    y = top_of(level)
    fig.box(x, y, width, HEIGHT, role)
    fig.text(x + 14, y + 18, str(int(chapter[2:])), role, 16, "start", bold=True)
    fig.text(x + 36, y + 18, name, role, 15, "start", bold=True)
    fig.text(x + 14, y + 37, change, role, 12.5, "start")


def draw_goods(fig, level, role):
    """What stands before the step of one level and goes into it."""
    x, y = 30 + 74 * level, top_of(level)
    fig.arrow((x + 48, y + HEIGHT / 2), (x + 68, y + HEIGHT / 2))
    if level == 0:  # a page of text
        fig.box(x, y + 4, 38, 42, role, radius=3)
        for i, width in enumerate((24, 20, 24, 14)):
            line = y + 14 + 7.5 * i
            fig.arrow((x + 7, line), (x + 7 + width, line), role=role, head=False)
    elif level == 1:  # a vector per token
        for i in range(3):
            fig.matrix(x, y + 4 + 15 * i, [[""] * 4], role, cell=(10, 11))
    elif level == 2:  # who looks at whom: a causal mask
        paint = {(r, c): role for r in range(4) for c in range(r + 1)}
        fig.matrix(x, y + 4, [[""] * 4] * 4, "muted", cell=(10.5, 10.5), paint=paint)
    elif level == 3:  # a stack of blocks
        for i in range(4):
            fig.box(x, y + 4 + 11 * i, 40, 9, role, radius=2)
    else:  # a falling loss
        fig.arrow((x, y + 4), (x, y + 46), (x + 42, y + 46), head=False)
        curve = [(x + 4 + 4 * t, y + 40 - 34 * 0.7**t) for t in range(10)]
        fig.arrow(*curve, role=role, head=False)


def draw(lit=None, root=ROOT):
    """Write the figure to `root`/figures or, with a chapter lit, to its folder."""
    fig = Figure(
        760,
        418,
        "Every chapter stands on the one below it",
        "A staircase of six chapters. Text goes in at the bottom left: chapter 2 turns "
        "it into vectors, chapter 3 lets them attend to each other, chapter 4 stacks "
        "this into a GPT model, chapter 5 trains it; on top of it stand the classifier "
        "of chapter 6 and the assistant of chapter 7."
        + (f" Chapter {int(lit[2:])} is lit." if lit else ""),
    )
    goods = ["text", "embeddings", "attention", "weights", "target"]
    for step in STEPS:
        chapter, role, level = step[0], step[1], step[5]
        later = lit is not None and chapter > lit
        if lit:
            role = "highlight" if chapter == lit else "muted" if later else "ink"
        draw_step(fig, step, role)
        if chapter != "ch07":
            # What the lit chapter hands on is lit too
            made = lit is None or STEPS[max(level - 1, 0)][0] <= lit
            draw_goods(fig, level, goods[level] if made else "muted")
    for step, words in zip(STEPS[-2:], ("spam", "Mind the step."), strict=True):
        x, y = step[4] + step[6] / 2, top_of(4)
        fig.arrow((x, y - 5), (x, y - 24))
        role = "muted" if lit and step[0] > lit else "text"
        fig.box(x - 66, y - 56, 132, 28, role, words, 13, mono=True)
    fig.text(28, 72, "text in at the bottom,", "muted", 13, "start")
    fig.text(28, 92, "answers out at the top", "muted", 13, "start")
    fig.save(Path(root, lit or "", "figures", "course.svg"))


def draw_all(root=ROOT):
    """Write the figure without a lit chapter and those of LIT."""
    for lit in [None, *LIT]:
        draw(lit, root)


if __name__ == "__main__":
    draw_all()
