"""The READMEs' commands run as they are written, shortened by their own flags."""

import re
import shlex

import pytest
from conftest import ROOT

from ch02.dataloader import load_text

READMES = sorted([ROOT / "README.md", *ROOT.glob("*/README.md")])
# Run by hand or by another test: they install, start a server, or are pytest itself
NOT_HERE = ("git ", "cd ", "pip ", "uv sync", "source ", "python -m venv")
SHORTER = {
    "ch05.gpt_train": ["--epochs", "1"],
    "ch05.gpt_generate": ["--max-new-tokens", "3"],
    "ch06.gpt_class_finetune": ["--epochs", "1"],
}


def commands(path):
    blocks = re.findall(r"```bash\n(.*?)```", path.read_text("utf-8"), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    for line in lines:
        for command in line.split(" && "):
            yield re.sub(r"^(\w+=\S+ )*(uv run )?", "", command.strip())


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with a text of the reader's own, where runs may be left."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "my-story.txt").write_text(load_text("bundled")[:9000], "utf-8")
    return folder


def modules():
    """Each command of a course module once, in the order of the READMEs."""
    found = dict.fromkeys(c for path in READMES for c in commands(path))
    return [c for c in found if c.startswith("python -m ch")]


@pytest.mark.parametrize("command", modules())
def test_command_of_a_readme(command, workplace, run, request):
    if "the-verdict" in command:
        request.getfixturevalue("the_verdict")
    if "gpt2-small" in command:
        pytest.skip("the book's full run: see test_book_figures.py")
    _, _, module, *options = shlex.split(command)
    shorter = SHORTER.get(module, [])
    ran = run("python", "-m", module, *options, *shorter, cwd=workplace)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip()


def test_other_commands_name_things_that_exist():
    for path in READMES:
        for command in commands(path):
            if command.startswith(("python -m ch", *NOT_HERE)) or not command:
                continue
            program, *arguments = shlex.split(command)
            programs = {"python", "pytest", "jupyter", "ruff", "torchrun"}
            assert program in programs, command
            for argument in arguments:
                if argument.endswith((".py", ".ipynb")):
                    assert (ROOT / argument).exists(), command


def test_links_lead_somewhere():
    for path in [*READMES, ROOT / "CONTRIBUTING.md", *ROOT.glob("setup/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text("utf-8")):
            assert target.startswith("https://") or (path.parent / target).exists(), (
                f"{path.name}: {target}"
            )


def test_ci_runs_the_readme_s_test_command():
    assert "\nuv run pytest\n" in (ROOT / ".ci/run").read_text("utf-8")
    assert "\nuv run pytest\n" in (ROOT / "README.md").read_text("utf-8")


def test_the_default_run_ends_in_sentences_of_the_story(tmp_path, run):
    """The README's first command as it stands: some 70 seconds on two CPU cores."""
    ran = run("python", "-m", "ch05.gpt_train", cwd=tmp_path, timeout=900)
    assert ran.returncode == 0, ran.stderr
    losses = re.findall(r"Train loss (\S+), Val loss (\S+)", ran.stdout)
    assert float(losses[0][0]) == pytest.approx(10.8, abs=0.3)
    assert float(losses[-1][0]) < 0.5
    assert float(losses[-1][1]) > 5  # learned by heart, not understood

    samples = [line for line in ran.stdout.splitlines() if line.startswith("Every eff")]
    story = " ".join(load_text("bundled").split())
    assert longest_quotation(samples[0], story) <= 4
    assert longest_quotation(samples[-1], story) >= 8
    assert (tmp_path / "runs/gpt2-nano/loss-plot.png").stat().st_size > 10_000


def longest_quotation(sample, story):
    """How many words of the sample stand in the story in one piece."""
    words = sample.split()
    return max(
        end - start
        for start in range(len(words))
        for end in range(start + 1, len(words) + 1)
        if " ".join(words[start:end]) in story
    )
