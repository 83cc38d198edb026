"""The figures are what their scripts draw, stand alone, and can be read by anyone."""

import re
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from xml.etree import ElementTree

import pytest

import figures
from figures.svg import PALETTE, Figure

ROOT = Path(__file__).parents[1]
SVGS = sorted(
    path
    for pattern in ("figures/*.svg", "*/figures/*.svg", "*/*/figures/*.svg")
    for path in ROOT.glob(pattern)
)
SCRIPTS = [m.name for m in iter_modules(figures.__path__) if m.name != "svg"]
SVG = "{http://www.w3.org/2000/svg}"


def luminance(colour):
    """Relative luminance of "#rrggbb", as WCAG 2 defines it."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels
    ]
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one, other):
    """WCAG contrast ratio, from 1 to 21."""
    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("script", SCRIPTS)
def test_committed_files_are_what_the_script_draws(script, tmp_path):
    import_module(f"figures.{script}").draw_all(tmp_path)
    drawn = sorted(tmp_path.rglob("*.svg"))
    assert drawn
    for path in drawn:
        committed = ROOT / path.relative_to(tmp_path)
        assert committed.read_bytes() == path.read_bytes(), (
            f"run: python -m figures.{script}"
        )


@pytest.mark.parametrize("path", SVGS, ids=lambda p: str(p.relative_to(ROOT)))
def test_svg_stands_alone(path):
    source = path.read_text(encoding="utf-8")
    root = ElementTree.fromstring(source)
    assert root.get("role") == "img"
    assert root.findtext(f"{SVG}title")
    assert root.findtext(f"{SVG}desc")
    assert path.stat().st_size <= 60_000
    rest = source.replace(' xmlns="http://www.w3.org/2000/svg"', "", 1)
    assert not re.search(r"https?:|href|url\(|@import|<script|<image", rest)

    style = root.findtext(f"{SVG}style")
    used = {name for e in root.iter() for name in e.get("class", "").split()}
    assert used <= set(re.findall(r"\.([a-z-]+)\{", style))
    assert "prefers-color-scheme: dark" in style


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("role", PALETTE)
def test_palette_is_readable(role, scheme):
    card = PALETTE["card"][scheme].split()[0]
    fill, stroke, ink = PALETTE[role][scheme].split()
    assert contrast(ink, fill) >= 4.5, "text in its own box"
    assert contrast(ink, card) >= 4.5, "text on the card"
    if role not in ("card", "muted"):
        assert contrast(stroke, card) >= 3, "lines on the card"


def test_words_that_do_not_fit_are_refused():
    fig = Figure(200, 100, "Title", "Description")
    with pytest.raises(ValueError, match="does not fit 40 pixels"):
        fig.box(20, 60, 40, 20, "ids", "far too long")
    with pytest.raises(ValueError, match="leaves the card"):
        fig.text(150, 60, "far too long", anchor="start")
