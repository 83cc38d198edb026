"""Every notebook is saved as its readers should find it, and says what the code says.

That the saved outputs are what the cells print today is checked beside this, by nbval.
"""

import ast
import json
import re
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT

NOTEBOOKS = sorted(
    path
    for path in ROOT.glob("*/**/*.ipynb")
    if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
)
each_notebook = pytest.mark.parametrize(
    "path", NOTEBOOKS, ids=lambda path: str(path.relative_to(ROOT))
)
BOOK_FIGURES = json.loads((ROOT / "tests/book_figures.json").read_text("utf-8"))


def read(path):
    return nbformat.read(path, as_version=4)


def cells(path, cell_type):
    return [cell for cell in read(path).cells if cell.cell_type == cell_type]


def output_text(cell):
    texts = [o.get("text") or o.get("data", {}).get("text/plain") for o in cell.outputs]
    return "\n".join(text for text in texts if text)


def test_there_are_notebooks():
    assert ROOT / "ch02/ch02.ipynb" in NOTEBOOKS


@each_notebook
def test_was_executed_from_top_to_bottom(path):
    counts = [cell.execution_count for cell in cells(path, "code")]
    assert counts == list(range(1, len(counts) + 1))


@each_notebook
def test_is_well_formed(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    # A French edition will hang on the ids: given by hand, they say where a cell is
    assert not [
        cell.id for cell in notebook.cells if re.fullmatch("[0-9a-f]{8}", cell.id)
    ]
    assert path.stat().st_size <= 200_000


@each_notebook
def test_outputs_hold_no_errors_and_nothing_of_the_machine(path):
    for cell in cells(path, "code"):
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", cell.source
        assert not re.search(r"/(home|root|Users|work|tmp)/|site-packages", str(cell))
        assert "execution" not in cell.metadata, "holds times of the execution"


@each_notebook
def test_tags_that_weaken_the_comparison_are_not_used(path):
    tags = [tag for cell in read(path).cells for tag in cell.metadata.get("tags", [])]
    assert not {"nbval-ignore-output", "nbval-skip", "skip-execution"} & set(tags)


@each_notebook
def test_lines_fit_a_narrow_screen(path):
    for cell in cells(path, "code"):
        too_long = [line for line in cell.source.splitlines() if len(line) > 80]
        assert not too_long


@each_notebook
def test_a_cell_has_text_before_it(path):
    notebook = read(path)
    bare = sum(
        before.cell_type == cell.cell_type == "code"
        for before, cell in zip(notebook.cells, notebook.cells[1:], strict=False)
    )
    assert bare <= 0.1 * len(notebook.cells)


@each_notebook
def test_images_are_local_and_described(path):
    for cell in cells(path, "markdown"):
        assert "<img" not in cell.source
        for alt, target in re.findall(r"!\[(.*?)\]\((.*?)\)", cell.source):
            assert (path.parent / target).is_file(), target
            assert len(alt.split()) >= 5, f"{target}: the alt text states no message"


@each_notebook
def test_links_to_files_work(path):
    for cell in cells(path, "markdown"):
        for target in re.findall(r"(?<!!)\[[^\]]*\]\(([^)#]+)\)", cell.source):
            assert target.startswith("https://") or (path.parent / target).exists()


@each_notebook
def test_numbers_in_the_text_come_from_code(path):
    """A figure in prose is printed by a cell, stands in a cell, or is the book's."""
    notebook = read(path)
    known = " ".join(
        cell.source + " " + output_text(cell)
        for cell in notebook.cells
        if cell.cell_type == "code"
    )
    known += json.dumps([figure["value"] for figure in BOOK_FIGURES.values()])
    known = known.replace(",", "").replace("_", "")
    for cell in cells(path, "markdown"):
        text = re.sub(r"\]\(.*?\)|`[^`]*`", "", cell.source)
        for number in re.findall(r"(?<![\w.])\d[\d,]{2,}(?:\.\d+)?(?![\w])", text):
            digits = number.replace(",", "")
            if digits not in GENERAL_KNOWLEDGE:
                assert re.search(rf"(?<!\d){digits}(?!\d)", known), number


# Widths of the published GPT-2 models, and a hundred
GENERAL_KNOWLEDGE = {"768", "1600", "100"}


def definitions(source):
    """Top-level classes and functions by name, as text, without docstrings."""
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            for inner in ast.walk(node):
                is_definition = isinstance(inner, (ast.ClassDef, ast.FunctionDef))
                if is_definition and ast.get_docstring(inner) is not None:
                    inner.body = inner.body[1:]
            found[node.name] = ast.dump(node)
    return found


@each_notebook
def test_definitions_equal_those_of_the_scripts(path):
    """The last definition of a name in a notebook is the one its chapter ships."""
    chapter = ROOT / path.relative_to(ROOT).parts[0]
    shipped = {}
    for script in chapter.glob("*.py"):
        shipped |= definitions(script.read_text("utf-8"))
    source = "\n".join(cell.source for cell in cells(path, "code"))
    taught = definitions(re.sub(r"(?m)^(\s*)[%!].*$", r"\1pass", source))
    for name in taught.keys() & shipped.keys():
        assert taught[name] == shipped[name], f"{name} differs from {chapter.name}"


def test_the_agreement_test_sees_a_difference():
    assert definitions("def f(x):\n    return x") != definitions(
        "def f(x):\n    return -x"
    )
    assert definitions('def f():\n    "a"\n    x') == definitions(
        'def f():\n    "b"\n    x'
    )


CHAPTERS = {"ch02": "dataloader.py", "ch03": "attention.py", "ch04": "gpt.py"}


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_teaches_everything_its_script_ships(chapter):
    taught = cells(ROOT / f"{chapter}/{chapter}.ipynb", "code")
    taught = definitions("\n".join(cell.source for cell in taught)).keys()
    shipped = definitions((ROOT / chapter / CHAPTERS[chapter]).read_text("utf-8"))
    not_taught = {"main", "cli", "load_text", "get_tokenizer", "_read"}
    assert shipped.keys() - not_taught <= taught


def leaves(value):
    """The numbers and strings of nested lists and dicts."""
    if isinstance(value, (list, dict)):
        items = value.values() if isinstance(value, dict) else value
        return [leaf for item in items for leaf in leaves(item)]
    return [value]


NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*\.?\d*(?:e[-+]\d+)?")


@pytest.mark.parametrize(
    "id_",
    [
        id_
        for id_, figure in BOOK_FIGURES.items()
        if id_[:4] != "ch02"  # has examples of its own
        and not figure.get("verdict")
        # Exercises, scripts, downloaded data and weights have a place of their own
        and (figure["section"][0].isdigit() or figure["section"] == "gpt.py")
    ],
)
def test_the_book_s_figure_comes_out_in_the_notebook(id_):
    """Every number of it is printed, as exactly as the book prints it."""
    chapter, expected = id_[:4], BOOK_FIGURES[id_]
    code = cells(ROOT / f"{chapter}/{chapter}.ipynb", "code")
    printed = "\n".join(output_text(cell) for cell in code)
    numbers = NUMBER.findall(re.sub(r",(?=\D)", " ", printed))
    for leaf in leaves(expected["value"]):
        if isinstance(leaf, str):
            assert leaf in printed or repr(leaf) in printed
        else:
            assert any(says(n, leaf, expected["tolerance"]) for n in numbers), leaf


def says(printed, value, tolerance):
    """Whether a printed number is this one, rounded no further than to 4 decimals."""
    mantissa, _, exponent = printed.replace(",", "").partition("e")
    decimals = len(mantissa.partition(".")[2]) - int(exponent or 0)
    rounding = 0.5 / 10**decimals
    is_fraction = isinstance(value, float) and not value.is_integer()
    if is_fraction and rounding > max(tolerance, 0.5e-4):
        return False
    return abs(float(printed.replace(",", "")) - value) <= tolerance + rounding


def the_book_s_rows(chapter, *ids):
    """The figures' first rows as a notebook's table writes them."""
    for id_ in ids:
        value = BOOK_FIGURES[f"{chapter}.{id_}"]["value"]
        while isinstance(value, list) and isinstance(value[0], list):
            value = value[0]
        row = value if isinstance(value, list) else [value]
        yield ", ".join(f"{x:.4f}" if isinstance(x, float) else f"{x:,}" for x in row)


def test_the_table_of_the_book_s_figures_is_the_book_s():
    text = "\n".join(c.source for c in cells(ROOT / "ch02/ch02.ipynb", "markdown"))
    value = {id_: figure["value"] for id_, figure in BOOK_FIGURES.items()}
    for figure in (
        f"{value['ch02.verdict.chars']:,}",
        f"{value['ch02.vocab.size']:,}",
        f"{value['ch02.vocab2.size']:,}",
        f"{value['ch02.bpe.n_vocab']:,}",
        ", ".join(str(i) for i in value["ch02.loader.b8.inputs"][0]),
        f"{value['ch02.loader.lengths'][0][0]:,}",
        ", ".join(f"{x:.4f}" for x in value["ch02.emb.weight"][3]),
    ):
        assert f"| {figure} |" in text


@pytest.mark.parametrize(
    ("chapter", "ids"),
    [
        ("ch03", "simple.scores2 qkv.context2 causal_attention mha ex31 ex33.params"),
        ("ch03", "ex32.values"),
        ("ch04", "dummy.logits ln.layer_out ln.normalised grads.no_shortcut"),
        ("ch04", "grads.shortcut ex41.params"),
    ],
)
def test_the_tables_of_chapters_3_and_4_are_the_book_s(chapter, ids):
    code = cells(ROOT / f"{chapter}/{chapter}.ipynb", "markdown")
    text = "\n".join(cell.source for cell in code)
    for row in the_book_s_rows(chapter, *ids.split()):
        assert f"| {row} |" in text


@pytest.mark.parametrize("chapter", sorted(Path(ROOT).glob("ch0*/README.md")))
def test_chapter_readmes_link_to_files_that_exist(chapter):
    for target in re.findall(r"\]\(([^)#]+)\)", chapter.read_text("utf-8")):
        assert target.startswith("https://") or (chapter.parent / target).exists()
