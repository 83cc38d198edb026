"""Draw a figure of the course: boxes, token chips, matrices and arrows as one SVG.

A figure is built with calls in pixel coordinates, (0, 0) at the top left, and saved as
a file that stands alone: no script, no font, no outside reference. Its colours follow
the reader's light or dark setting. There is no automatic layout; instead a word that
would not fit its box or the card raises ValueError.
"""

from html import escape
from math import dist
from typing import NamedTuple

# What a colour means, the same in every chapter: fill, stroke and ink in the light
# scheme and in the dark one. "ink" is plain writing, "muted" stays in the background.
PALETTE = {
    "card": ("#fdfdfc #d9dce1 #1d2430", "#171a21 #3a414d #e8ebf0"),
    "ink": ("#fdfdfc #5a6473 #1d2430", "#171a21 #9aa4b3 #e8ebf0"),
    "muted": ("#f3f4f6 #cdd2d9 #5f6875", "#20242c #444c59 #a4adba"),
    "text": ("#dfe8f6 #56749f #1f3455", "#283a57 #86a5d3 #dde8fa"),
    "ids": ("#cbeff2 #0b8390 #07474f", "#0e4048 #3fb9c6 #c8f2f6"),
    "embeddings": ("#d8f1d3 #3a8c38 #1d4f1c", "#1f4221 #6bc166 #d5f4d1"),
    "weights": ("#e8e0fa #7d5cc6 #452a86", "#3a2d62 #a98be6 #e7defc"),
    "attention": ("#fbdff0 #bb3f8a #771a56", "#552140 #df7fb8 #fbdeee"),
    "target": ("#ffdccd #cf4f22 #82290a", "#60290f #f08c60 #ffe1d4"),
    "highlight": ("#ffe07a #a97400 #4d3600", "#6b5200 #f0c23b #fff2c9"),
}
SANS = "-apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
MONO = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
SHEET = 5  # pixels from one sheet of a stack to the next


def text_width(words, size=14, mono=False, bold=False):
    """Pixels that `words` may need in the widest font of the stack."""
    return len(words) * size * (0.61 if mono else 0.66 if bold else 0.59)


def chip_width(word, size=14):
    """Pixels that a token chip takes."""
    return round(text_width(word, size, mono=True) + 16)


def _short(*numbers):
    """Numbers with at most one decimal, so that a diff shows real changes only."""
    return " ".join(f"{round(float(x), 1) + 0.0:g}" for x in numbers)


def _style():
    """The palette as CSS: a shape, a text (-ink) and a line (-line) class per role."""

    def rules(scheme):
        for role, colours in PALETTE.items():
            fill, stroke, ink = colours[scheme].split()
            yield f".{role}{{fill:{fill};stroke:{stroke}}} .{role}-ink{{fill:{ink}}}"
            yield f".{role}-line{{fill:none;stroke:{stroke}}}"

    dark = ["@media (prefers-color-scheme: dark) {", *rules(1), "}", "</style>"]
    mono = f".mono{{font-family:{MONO}}}"
    return "\n".join(["<style>", mono, *rules(0), *dark])


class Box(NamedTuple):
    """Where something was drawn; a matrix also knows the size of its cells."""

    x: float
    y: float
    w: float
    h: float
    cell: tuple = (0, 0)

    left = property(lambda self: (self.x, self.y + self.h / 2))
    right = property(lambda self: (self.x + self.w, self.y + self.h / 2))
    top = property(lambda self: (self.x + self.w / 2, self.y))
    bottom = property(lambda self: (self.x + self.w / 2, self.y + self.h))

    def at(self, row, column, columns=1):
        """The box of one cell, or of several neighbours in a row."""
        w, h = self.cell
        return Box(self.x + column * w, self.y + row * h, w * columns, h)


class Figure:
    """One SVG on its own opaque card; its title, the message, is written on top."""

    def __init__(self, width, height, title, description):
        self.width = width
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" '
            f'height="{height}" viewBox="0 0 {width} {height}" role="img" '
            f'font-family="{SANS}">',
            f"<title>{escape(title)}</title>",
            f"<desc>{escape(description)}</desc>",
            _style(),
        ]
        self.box(0.5, 0.5, width - 1, height - 1, "card", radius=12)
        self.text(28, 34, title, size=17, anchor="start", bold=True)

    def _add(self, tag, kind, words="", **attributes):
        """Append an element of class `kind`, without the attributes that are None."""
        pairs = [f'<{tag} class="{kind}"']
        for name, value in attributes.items():
            if value is not None:
                value = value if isinstance(value, str) else _short(value)
                pairs.append(f'{name.replace("_", "-")}="{value}"')
        end = f">{escape(words)}</{tag}>" if words else "/>"
        self.parts.append(" ".join(pairs) + end)

    def text(
        self, x, y, words, role="ink", size=14, anchor="middle", mono=False, bold=False
    ):
        """Write `words` centred on height y; every "\\n" starts a line below."""
        for i, line in enumerate(words.split("\n")):
            width = text_width(line, size, mono, bold)
            left = x - width * {"start": 0, "middle": 0.5, "end": 1}[anchor]
            if left < 8 or left + width > self.width - 8:
                raise ValueError(f"{line!r} leaves the card")
            self._add(
                "text",
                f"{role}-ink mono" if mono else f"{role}-ink",
                line,
                x=x,
                y=y + size * (0.35 + 1.4 * i),
                font_size=size,
                text_anchor=anchor,
                font_weight="600" if bold else None,
            )

    def box(self, x, y, w, h, role, label="", size=14, radius=6, dash=None, **font):
        """Draw a box with its label in the middle; font: mono=True, bold=True."""
        lines = label.split("\n")
        if any(text_width(line, size, **font) > w - 4 for line in lines):
            raise ValueError(f"{label!r} does not fit {w} pixels")
        self._add(
            "rect", role, x=x, y=y, width=w, height=h, rx=radius, stroke_dasharray=dash
        )
        if label:
            first = y + h / 2 - 0.7 * size * (len(lines) - 1)
            self.text(x + w / 2, first, label, role, size, **font)
        return Box(x, y, w, h)

    def chips(self, x, y, words, roles="text", gap=6, size=14, h=30):
        """Draw tokens in a row, each as wide as its word; return their boxes.

        roles: one role for all, or one per word.
        """
        roles = [roles] * len(words) if isinstance(roles, str) else roles
        boxes = []
        for word, role in zip(words, roles, strict=True):
            w = chip_width(word, size)
            boxes.append(self.box(x, y, w, h, role, word, size, mono=True))
            x += w + gap
        return boxes

    def matrix(
        self, x, y, rows, role, cell=(44, 26), labels=(), caption="", paint=None
    ):
        """Draw a grid of values ("" for none) with row labels and a caption below.

        paint: {(row, column): role} for the cells that differ from the rest.
        """
        grid = Box(x, y, cell[0] * len(rows[0]), cell[1] * len(rows), cell)
        paint = paint or {}
        cells = [(r, c) for r, row in enumerate(rows) for c in range(len(row))]
        # Painted cells last: their border must lie on top of their neighbours'
        for r, c in sorted(cells, key=paint.__contains__):
            kind = paint.get((r, c), role)
            self.box(*grid.at(r, c)[:4], kind, rows[r][c], 13, radius=0, mono=True)
        for r, label in enumerate(labels):
            self.text(x - 10, grid.at(r, 0).left[1], label, "muted", 13, "end")
        if caption:
            self.text(grid.bottom[0], y + grid.h + 18, caption, role, 13, mono=True)
        return grid

    def stack(self, x, y, rows, role, sheets, behind=None, **matrix):
        """Draw a matrix as the front sheet of several; behind: role of copied ones."""
        w, h = matrix["cell"][0] * len(rows[0]), matrix["cell"][1] * len(rows)
        for i in range(sheets - 1):
            left = x + SHEET * (sheets - 1 - i)
            dash = "4 3" if behind else None
            self.box(left, y + SHEET * i, w, h, behind or role, radius=0, dash=dash)
        self.matrix(x, y + SHEET * (sheets - 1), rows, role, **matrix)

    def arrow(self, *points, label="", role="ink", head=True, dash=None):
        """Draw a line through the points; the label stands beside its last part."""
        (ax, ay), (bx, by) = points[-2:]
        path = "M" + " L".join(_short(*point) for point in points)
        if head:
            # An open tip in the same path needs no marker, so no id in the file
            ux, uy = (bx - ax) / dist(*points[-2:]), (by - ay) / dist(*points[-2:])
            left = _short(bx - 7 * ux + 4 * uy, by - 7 * uy - 4 * ux)
            right = _short(bx - 7 * ux - 4 * uy, by - 7 * uy + 4 * ux)
            path += f" M{left} L{_short(bx, by)} L{right}"
        self._add(
            "path",
            f"{role}-line",
            d=path,
            stroke_width=1.6,
            stroke_linecap="round",
            stroke_linejoin="round",
            stroke_dasharray=dash,
        )
        if label:
            x, y, flat = (ax + bx) / 2, (ay + by) / 2, abs(bx - ax) > abs(by - ay)
            x, y, anchor = (x, y - 11, "middle") if flat else (x + 9, y, "start")
            self.text(x, y, label, "muted", 12.5, anchor, mono=True)

    def bracket(self, x0, x1, y, label, role="ink", up=True):
        """Span x0 to x1 with a bracket, its label above (up) or below it."""
        tip = y + 7 if up else y - 7
        self.arrow((x0, tip), (x0, y), (x1, y), (x1, tip), role=role, head=False)
        self.text((x0 + x1) / 2, 3 * y - 2 * tip, label, role, 13, bold=True)

    def oval(self, x, y, rx, ry, role):
        """Draw an ellipse around (x, y)."""
        self._add("ellipse", role, cx=x, cy=y, rx=rx, ry=ry)

    def save(self, path):
        """Write the figure to `path`, making its folder."""
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = "\n".join([*self.parts, "</svg>", ""])
        path.write_text(lines, encoding="utf-8", newline="\n")


def save_all(figures, folder):
    """Draw each function's figure: next_token goes to next-token.svg in the folder."""
    for figure in figures:
        figure().save(folder / f"{figure.__name__.replace('_', '-')}.svg")
