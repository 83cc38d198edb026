"""Characters (appendix A, bonus): the models of the notebook, the corpus, the scripts.

The checks take the notebook's classes as an argument: they get ours, which must pass,
and ours with a classic mistake in it, which must not.
"""

import ast
import itertools
import json
import lzma
import random
import signal
import tarfile
from collections import Counter
from io import BytesIO

import numpy as np
import pytest
import torch
from checks import close
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_mutants import NOTICED
from test_notebooks import cells
from torch import nn
from torch.nn import functional as F

from appendix_a.character_gpt import characters, complete, train
from appendix_a.character_gpt import extract as extractor
from appendix_a.character_gpt.characters import (
    CharacterTokenizer,
    CharacterWindows,
    create_loaders,
    open_corpus,
    read_text,
)
from appendix_a.character_gpt.extract import extract
from ch02.cli import InputError
from ch02.dataloader import load_text
from ch04.gpt import GPTModel
from ch05 import gpt_generate
from ch05.checkpoint import WEIGHTS, latest_checkpoint, save_weights

FOLDER = ROOT / "appendix-A/character_gpt"
repeatable = settings(derandomize=True, database=None, deadline=None, max_examples=60)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _ctrl_c_works():
    """Also where the tests run in the background, for which a shell ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


# The models of the notebook


def notebook(old="", new=""):
    """The classes of the notebook, one piece of their source replaced, by name."""
    source = "\n".join(c.source for c in cells(FOLDER / "character_gpt.ipynb", "code"))
    parts = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    source = "\n".join(ast.get_source_segment(source, part) for part in parts)
    assert old in source, f"the notebook no longer contains {old!r}"
    space = {"torch": torch, "nn": nn, "F": F}
    space |= {"vocab_size": 11, "context_length": 6, "width": 8}
    exec(source.replace(old, new, 1), space)
    return space


def check_bigram(models):
    """Its optimum is the table of counted frequencies, and no loss is below theirs."""
    ids = torch.tensor([0, 1, 2, 0, 1, 1, 2, 2, 0, 2, 1, 0, 1, 2, 0, 1, 3, 0])
    current, following = ids[:-1], ids[1:]
    counts = Counter(zip(current.tolist(), following.tolist(), strict=True))
    rows = Counter(current.tolist())
    share = {pair: n / rows[pair[0]] for pair, n in counts.items()}
    floor = -sum(n * np.log(share[pair]) for pair, n in counts.items()) / 17

    model = models["BigramModel"](4)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=300)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(current[None])[0], following)
        loss.backward()
        assert loss.item() > floor - 1e-6
        return loss

    for _ in range(3):
        optimizer.step(closure)
    assert closure().item() == pytest.approx(floor, abs=1e-3)
    learned = torch.softmax(model.table.weight, dim=-1)
    for pair in itertools.product(range(4), repeat=2):
        assert learned[pair].item() == pytest.approx(share.get(pair, 0), abs=0.01)


def check_head(models):
    head, x = models["Head"](8, 5), torch.randn(3, 7, 8)
    q, k, v = head.query(x), head.key(x), head.value(x)
    assert q.shape == (3, 7, 5)
    close(head(x), F.scaled_dot_product_attention(q, k, v, is_causal=True))


def check_gpt(models):
    """Against ch04's model, after the weights are copied by position, not by name."""
    blocks = [models["Block"](8, 2) for _ in range(2)]
    ours = models["CharacterModel"](nn.Sequential(*blocks, nn.LayerNorm(8)))
    for parameter in ours.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    config = {"vocab_size": 11, "context_length": 6, "emb_dim": 8, "n_heads": 2,
              "n_layers": 2, "drop_rate": 0.0, "qkv_bias": False}  # fmt: skip
    theirs = GPTModel(config)
    theirs.tok_emb, theirs.pos_emb = ours.tok_emb, ours.pos_emb
    theirs.out_head = ours.out_head
    norms = [(theirs.final_norm, ours.body[2])]
    for block, other in zip(theirs.trf_blocks, ours.body, strict=False):
        norms += [(block.norm1, other.norm1), (block.norm2, other.norm2)]
        for name, part in (
            ("W_query", "query"),
            ("W_key", "key"),
            ("W_value", "value"),
        ):
            rows = [getattr(h, part).weight.data for h in other.attention.heads]
            getattr(block.att, name).weight.data = torch.cat(rows)
        block.att.out_proj = other.attention.out_proj
        for i in (0, 2):
            block.ff.layers[i] = other.feed_forward[i]
    for norm, other in norms:
        norm.scale.data, norm.shift.data = other.weight.data, other.bias.data
    idx = torch.randint(11, (3, 6))
    close(ours(idx), theirs(idx), 1e-4)
    close(ours(idx[:, :4]), theirs(idx[:, :4]), 1e-4)


def check_causality(models):
    """A later character changes no earlier logit, and has no gradient there."""
    model = models["CharacterModel"](models["Block"](8, 2))
    idx = torch.randint(11, (2, 6))
    for t in range(1, 6):
        changed = idx.clone()
        changed[:, t:] = (changed[:, t:] + 1) % 11
        assert torch.equal(model(idx)[:, :t], model(changed)[:, :t])
    x = torch.randn(1, 6, 8, requires_grad=True)
    model.body(x)[0, 2].sum().backward()
    assert (x.grad[0, 3:] == 0).all()
    assert (x.grad[0, :3] != 0).any(dim=1).all()


CHECKS = (check_bigram, check_head, check_gpt, check_causality)
MISTAKES = {
    "a table that knows one answer": (
        check_bigram, "nn.Embedding(vocab_size, vocab_size)",
        "nn.Embedding(vocab_size, 1)"),
    "no scale": (check_head, " / k.shape[-1] ** 0.5", ""),
    "scaled by d instead of its root": (check_head, "** 0.5", ""),
    "scores transposed": (check_head, "q @ k.transpose(1, 2)", "k @ q.transpose(1, 2)"),
    "softmax over the queries": (check_head, "dim=-1) @ v", "dim=1) @ v"),
    "masked with 0": (check_head, "-torch.inf", "0.0"),
    "mask transposed": (check_causality, ".tril()", ".triu()"),
    "one character of the future visible": (check_causality, ".tril()", ".tril(1)"),
    "no shortcut around attention": (
        check_gpt, "x = x + self.attention", "x = self.attention"),
    "no shortcut around feed forward": (
        check_gpt, "return x + self.feed_forward", "return self.feed_forward"),
    "norm after instead of before": (
        check_gpt, "self.attention(self.norm1(x))", "self.norm1(self.attention(x))"),
    "first norm used twice": (
        check_gpt, "feed_forward(self.norm2(x))", "feed_forward(self.norm1(x))"),
    "positions forgotten": (check_gpt, " + self.pos_emb(positions)", ""),
    "one head used for all": (check_gpt, "head(x) for head", "self.heads[0](x) for _"),
    "mixing forgotten": (
        check_gpt, "self.out_proj(torch.cat(joined, dim=-1))",
        "torch.cat(joined, dim=-1)"),
    "another GELU": (check_gpt, 'nn.GELU(approximate="tanh")', "nn.ReLU()"),
}  # fmt: skip


@pytest.mark.parametrize("check", CHECKS)
def test_the_notebook_s_models(check):
    check(notebook())


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_caught(name):
    check, old, new = MISTAKES[name]
    with pytest.raises((*NOTICED, AttributeError)):
        check(notebook(old, new))


# Characters


@repeatable
@given(st.text(st.characters(exclude_categories=("Cs",)), min_size=1))
def test_any_text_comes_back(text):
    tokenizer = CharacterTokenizer(text)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert set(ids) == set(range(tokenizer.n_vocab))
    points = np.array([ord(c) for c in text], dtype=np.uint32)
    assert tokenizer.encode_points(points).tolist() == ids
    pieces = [tokenizer.decode_single_token_bytes(i) for i in ids]
    assert b"".join(pieces).decode() == text
    shuffled = random.Random(0).sample(text, len(text))
    assert CharacterTokenizer(shuffled).characters == tokenizer.characters


def test_unknown_characters_are_named_with_their_place():
    tokenizer = CharacterTokenizer("abc\n")
    with pytest.raises(InputError) as caught:
        tokenizer.encode("abc\nab€c5\n€")
    message = str(caught.value)
    assert "'€' '5', first at line 2, character 3" in message
    assert "\n" not in message
    with pytest.raises(
        InputError, match=r"'9' and 2 more, first at line 1, character 1"
    ):
        tokenizer.encode("0123456789xy")


def test_too_many_characters():
    every = [chr(i) for i in range(0x10000, 0x20001)]
    with pytest.raises(InputError, match="65,537 different characters"):
        CharacterTokenizer(every)
    assert CharacterTokenizer(every[1:]).encode(every[-1]) == [65535]


def test_windows_are_all_pieces_of_the_text():
    ids = np.arange(9, dtype=np.uint16)
    windows = CharacterWindows(ids, 4)
    assert len(windows) == 5
    for start, (inputs, targets) in enumerate(map(windows.__getitem__, range(5))):
        assert inputs.tolist() == [start + i for i in range(4)]
        assert targets.tolist() == [start + i + 1 for i in range(4)]
        assert inputs.dtype == torch.int64


def test_loaders():
    ids = np.arange(40, dtype=np.uint16)
    train_loader, val_loader = create_loaders(ids, ids, 4, 3, 200)
    batches = [inputs for inputs, _ in train_loader]
    assert [tuple(inputs.shape) for inputs in batches] == [(3, 4)] * 200
    # Every place is a beginning, the first and the last included
    assert set(torch.cat(batches)[:, 0].tolist()) == set(range(36))
    validated = torch.cat([inputs for inputs, _ in val_loader])
    assert validated.flatten().tolist() == list(range(36))


def test_validation_of_a_long_text_is_bounded(monkeypatch):
    monkeypatch.setattr(characters, "MAX_VAL_WINDOWS", 7)
    ids = np.arange(1000, dtype=np.uint16)
    _, val_loader = create_loaders(ids, ids, 4, 3, 1)
    starts = torch.cat([inputs for inputs, _ in val_loader])[:, 0].tolist()
    assert len(starts) <= 7
    assert starts[-1] > 800


def test_no_character_is_in_both_parts(tmp_path):
    text = load_text()[:1005]
    path = tmp_path / "story.txt"
    path.write_text(text, "utf-8")
    tokenizer, train_ids, val_ids, _ = read_text(path)
    assert (len(train_ids), len(val_ids)) == (905, 100)
    assert tokenizer.decode(train_ids) + tokenizer.decode(val_ids) == text


# The extractor


def xz(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(lzma.compress(text.encode() if isinstance(text, str) else text))


@pytest.fixture
def archives(tmp_path):
    """A folder with good files and bad ones."""
    folder = tmp_path / "archives"
    xz(folder / "a.xz", "first text é\r\nof two lines" * 20)
    xz(folder / "sub" / "b.xz", "\ufeffthe second, 汉字" * 20)
    (folder / "c.txt").write_text("plain 😀 text\n" * 20, "utf-8")
    members = BytesIO()
    with tarfile.open(fileobj=members, mode="w") as archive:
        for name, text in (("x.txt", "in a tar Ü"), ("y.txt", "archive")):
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            archive.addfile(info, BytesIO(text.encode()))
    xz(folder / "tar.xz", members.getvalue())
    whole = lzma.compress(random.Random(0).randbytes(5000).hex().encode())
    (folder / "cut.xz").write_bytes(whole[:-200])
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 1
    (folder / "damaged.xz").write_bytes(damaged)
    (folder / "no-xz.xz").write_bytes(b"hello")
    (folder / "latin.txt").write_bytes("café".encode("latin-1"))
    (folder / "binary.txt").write_bytes(b"a\0b")
    (folder / "empty.xz").write_bytes(lzma.compress(b""))
    (folder / "ignored.md").write_text("§ not read")
    return folder


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_corpus_is_the_same_for_any_number_of_workers(archives, tmp_path):
    record = extract(archives, tmp_path / "one", workers=1)
    assert record["files"] == 4
    reasons = {name: reason.split()[1] for name, reason in record["skipped"].items()}
    assert reasons == {
        "binary.txt": "a", "cut.xz": "damaged", "damaged.xz": "damaged",
        "empty.xz": "empty", "latin.txt": "not", "no-xz.xz": "damaged",
    }  # fmt: skip
    one = content(tmp_path / "one")
    assert one.keys() == {"corpus.json", "train.bin", "val.bin"}
    for workers in (2, 3):
        extract(archives, tmp_path / str(workers), workers=workers)
        assert content(tmp_path / str(workers)) == one

    texts = [
        "first text é\nof two lines" * 20,
        "plain 😀 text\n" * 20,
        "in a tar Ü\n\narchive\n\n",
        # Folders come after files; a BOM is one at the beginning only
        "the second, 汉字" + "\ufeffthe second, 汉字" * 19,
    ]
    tokenizer, train_ids, val_ids, _ = open_corpus(tmp_path / "one")
    assert tokenizer.characters == "".join(sorted(set("".join(texts))))
    ends = [len(text) - len(text) // 10 for text in texts]
    pieces = list(zip(texts, ends, strict=True))
    assert tokenizer.decode(train_ids) == "".join(text[:end] for text, end in pieces)
    assert tokenizer.decode(val_ids) == "".join(text[end:] for text, end in pieces)
    assert isinstance(train_ids, np.memmap)
    assert not train_ids.flags.writeable


def test_pieces_do_not_show(archives, tmp_path, monkeypatch):
    extract(archives, tmp_path / "large")
    monkeypatch.setattr(extractor, "CHUNK", 7)
    extract(archives, tmp_path / "small")
    assert content(tmp_path / "small") == content(tmp_path / "large")


def test_an_interrupted_extraction_goes_on(archives, tmp_path, monkeypatch, capsys):
    extract(archives, tmp_path / "whole")
    unpacked = []
    text_chunks = extractor.text_chunks

    def stop_at_the_second(path):
        if len(unpacked) == 1:
            raise KeyboardInterrupt
        unpacked.append(path.name)
        yield from text_chunks(path)

    arguments = ["--source", str(archives), "--out-dir", str(tmp_path / "out")]
    monkeypatch.setattr(extractor, "text_chunks", stop_at_the_second)
    with pytest.raises(SystemExit) as stopped:
        extractor.main([*arguments, "--workers", "1"])
    assert stopped.value.code == 130
    assert not (tmp_path / "out").exists()

    def note(path):
        unpacked.append(path.name)
        yield from text_chunks(path)

    monkeypatch.setattr(extractor, "text_chunks", note)
    extractor.main([*arguments, "--workers", "1"])
    assert unpacked.count("a.xz") == 1
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert "Skipped  cut.xz is damaged or cut off" in capsys.readouterr().out


def fails(capsys, main, *arguments):
    """The one line a command ends with, exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    message = capsys.readouterr().err
    assert stopped.value.code == 2
    assert message.count("\n") == 1
    return message


def test_sources_that_cannot_be_used(archives, tmp_path, capsys):
    def message(source, out_dir=tmp_path / "out"):
        return fails(capsys, extractor.main, "--source", source, "--out-dir", out_dir,
                     "--workers", 1)  # fmt: skip

    assert "nothing: No such file" in message(tmp_path / "nothing")
    assert "latin.txt is not UTF-8" in message(archives / "latin.txt")
    assert "damaged.xz is damaged" in message(archives / "damaged.xz")
    assert "has no .txt or .xz file" in message(archives / "ignored.md")
    assert "is there already" in message(archives, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["archives"]


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_altered_corpus_is_refused(archives, tmp_path, split):
    out_dir = tmp_path / "out"
    extract(archives, out_dir)
    file = out_dir / f"{split}.bin"
    whole = file.read_bytes()
    for raw in (whole[:-2], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        file.write_bytes(raw)
        with pytest.raises(InputError, match=rf"{split}.bin was altered or cut off"):
            open_corpus(out_dir)
    file.unlink()
    with pytest.raises(InputError, match=rf"cannot read .*{split}.bin"):
        open_corpus(out_dir)
    for text in ("{", "[]", '{"characters": 3}', json.dumps({"characters": "ab"})):
        (out_dir / "corpus.json").write_text(text)
        with pytest.raises(InputError):
            open_corpus(out_dir)


# Training and completing

SMALL = ["--emb-dim", 8, "--n-layers", 1, "--n-heads", 2, "--context-length", 8,
         "--batch-size", 2, "--epochs", 2, "--epoch-steps", 6,
         "--save-every", 4, "--device", "cpu"]  # fmt: skip


@pytest.fixture
def story(tmp_path):
    path = tmp_path / "story.txt"
    path.write_text(load_text()[:1500], "utf-8")
    return path


def run_train(*arguments):
    train.main([str(argument) for argument in (*SMALL, *arguments)])


def weights(run_dir):
    return load_file(latest_checkpoint(run_dir) / WEIGHTS)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("stop_at", [1, 5, 6, 9])
def test_ctrl_c_saves_and_resume_continues_bit_for_bit(
    story, tmp_path, monkeypatch, capsys, stop_at
):
    run_train("--text", story, "--out-dir", tmp_path / "whole")
    steps = 0
    calc_loss = train.CharacterTraining.calc_loss

    def stop(self, *batch):
        nonlocal steps
        steps += 1
        if steps == stop_at:
            signal.raise_signal(signal.SIGINT)
        return calc_loss(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(train.CharacterTraining, "calc_loss", stop)
        with pytest.raises(SystemExit) as stopped:
            run_train("--text", story, "--out-dir", tmp_path / "parts")
    assert stopped.value.code == 128 + signal.SIGINT
    assert not same(weights(tmp_path / "parts"), weights(tmp_path / "whole"))
    message = fails(capsys, run_train_main, "--text", story, "--out-dir",
                    tmp_path / "parts")  # fmt: skip
    assert "add --resume" in message

    run_train("--text", story, "--out-dir", tmp_path / "parts", "--resume")
    assert steps == stop_at
    assert f"Going on after step {stop_at}." in capsys.readouterr().out
    assert same(weights(tmp_path / "parts"), weights(tmp_path / "whole"))

    def losses(run):
        lines = (tmp_path / run / "metrics.jsonl").read_text().splitlines()
        return [
            (r["step"], r["train_loss"], r["val_loss"]) for r in map(json.loads, lines)
        ]

    assert losses("parts") == losses("whole")


def run_train_main(arguments):
    train.main([*map(str, SMALL), *arguments])


def test_a_corpus_trains_as_the_text_it_was_made_of(story, tmp_path):
    extract(story, tmp_path / "corpus")
    run_train("--text", story, "--out-dir", tmp_path / "memory")
    run_train("--data", tmp_path / "corpus", "--out-dir", tmp_path / "disk")
    assert same(weights(tmp_path / "memory"), weights(tmp_path / "disk"))


def test_training_lowers_the_loss_to_less_than_a_guess(story, tmp_path, capsys):
    run_train("--text", story, "--out-dir", tmp_path / "run", "--epochs", 4,
              "--epoch-steps", 100, "--save-every", 400, "--lr", 0.01)  # fmt: skip
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    first, last = (json.loads(lines[i])["val_loss"] for i in (0, -1))
    assert last < 0.85 * first
    printed = capsys.readouterr().out
    assert printed.count("bits per character") == 4


def test_completion_is_drawn_from_the_vocabulary(story, tmp_path, capsys):
    run_dir = tmp_path / "run"
    run_train("--text", story, "--out-dir", run_dir)
    options = [
        "--checkpoint",
        str(run_dir),
        "--max-new-tokens",
        "30",
        "--device",
        "cpu",
    ]
    printed = []
    for more in ([], [], ["--temperature", "1"], ["--temperature", "1", "--seed", "5"]):
        capsys.readouterr()
        complete.main([*options, "--prompt", "The river", *more])
        printed.append(capsys.readouterr().out)
    assert all(len(text) == len("The river") + 31 for text in printed)
    assert all(text.startswith("The river") for text in printed)
    assert set("".join(printed)) <= set(story.read_text("utf-8"))
    assert printed[0] == printed[1]
    assert len(set(printed)) == 3

    message = fails(capsys, complete.main, *options, "--prompt", "Tür")
    assert "'ü', first at line 1, character 2" in message
    message = fails(capsys, complete.main, "--checkpoint", tmp_path / "none",
                    "--prompt", "T")  # fmt: skip
    assert "train a model first" in message
    # The generator of chapter 5 does not read it with GPT-2's vocabulary
    message = fails(capsys, gpt_generate.cli, "--checkpoint", run_dir, "--prompt", "T")
    assert "config" in message


def test_a_checkpoint_keeps_its_vocabulary(tmp_path):
    tokenizer = CharacterTokenizer("abc €\n")
    config = {**train.CONFIG, "vocab_size": 6, "emb_dim": 8, "context_length": 4}
    model = GPTModel(config).eval()
    path = tmp_path / "model.safetensors"
    save_weights(path, model, {**config, "characters": tokenizer.characters})
    loaded, its_tokenizer, _ = complete.load_character_gpt(path)
    idx = torch.tensor([its_tokenizer.encode("a€b\n")])
    assert torch.equal(loaded(idx), model(idx))
    assert its_tokenizer.characters == tokenizer.characters

    for wrong in ({}, {"characters": "abc"}, {"characters": "aaaaaa"}):
        save_weights(path, model, {**config, **wrong})
        with pytest.raises(InputError, match="not a checkpoint"):
            complete.load_character_gpt(path)


@pytest.mark.parametrize(
    ("raw", "part"),
    [
        (b"", "is empty"),
        (b"short", "too short: its training part"),
        (b"longer, but without validation", "too short: its validation part"),
        ("café".encode("latin-1"), "is not UTF-8 (byte 3)"),
        (b"a\0b", "binary"),
    ],
)
def test_texts_that_cannot_be_used(tmp_path, capsys, raw, part):
    path = tmp_path / "text.txt"
    path.write_bytes(raw)
    message = fails(capsys, run_train_main, "--text", path, "--out-dir", tmp_path / "o")
    assert part in message


def test_options_that_cannot_be_used(story, tmp_path, capsys):
    def message(*arguments):
        return fails(capsys, run_train_main, "--out-dir", tmp_path / "o", *arguments)

    assert "multiple of --n-heads" in message("--n-heads", 3)
    assert "--prompt is empty" in message("--prompt", "")
    assert "not in the vocabulary: '€'" in message(
        "--text", story, "--prompt", "5 €"[2:]
    )
    assert "no text called" in message("--text", tmp_path / "none")
    assert "cannot read" in message("--data", tmp_path / "none")
    assert "not allowed with" in message("--data", tmp_path, "--text", story)
    assert not (tmp_path / "o").exists()


def test_scripts_start_by_path_from_anywhere(run, tmp_path):
    """All in one process: it is the imports that take the time."""
    code = (
        "import contextlib, runpy, sys\n"
        "for sys.argv in [[path, '--help'] for path in sys.argv[1:]]:\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    scripts = ("train", "complete", "extract")
    paths = [FOLDER / f"{script}.py" for script in scripts]
    ran = run("python", "-c", code, *paths, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    for script in scripts:
        assert f"usage: {script} " in ran.stdout
