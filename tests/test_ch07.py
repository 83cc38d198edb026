"""Chapter 7: entries, prompts, batches, runs. Judging answers is tested elsewhere."""

import json

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from ch02.cli import InputError
from ch02.dataloader import get_tokenizer
from ch04.gpt import GPTModel
from ch05.checkpoint import load_model
from ch05.gpt_train import calc_loss_batch
from ch07 import finetuning
from ch07.entries import load_entries, split
from ch07.finetuning import TEST_CONFIG
from ch07.gpt_instruction_finetuning import (
    RESPONSE,
    InstructionDataset,
    cli,
    custom_collate_fn,
    extract_response,
    format_input,
    format_input_phi,
)

ENTRY = {"instruction": "Name the opposite.", "input": "hot", "output": "cold"}
BARE = {"instruction": "Say hello.", "input": "", "output": "Hello!"}
PREAMBLE = (
    "Below is an instruction that describes a task. Write a response that "
    "appropriately completes the request."
)
PAD = 50256


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer():
    return get_tokenizer()


# Entries


def test_the_bundled_entries_are_split_in_file_order():
    entries = load_entries()
    train, val, test = split(entries)
    assert train + test + val == entries
    n = len(entries)
    assert (len(train), len(test)) == (int(0.85 * n), int(0.1 * n))
    assert [len(part) for part in split(list(range(1100)))] == [935, 55, 110]  # book
    with pytest.raises(InputError, match="too few"):
        split(entries[:5])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "line 1, column 1: not JSON"),
        ('[\n {"instruction": "a",}\n]', "line 2, column 22: not JSON"),
        ("{}", "is not a list of entries"),
        ("[]", "is not a list of entries"),
        ("[7]", "entry 0 is no entry but 7"),
        (json.dumps([ENTRY, {"instruction": "a", "output": "b"}]),
         "entry 1 has no field 'input'"),
        (json.dumps([{**ENTRY, "output": " "}]), "entry 0: output is empty"),
        (json.dumps([{**ENTRY, "instruction": ""}]), "entry 0: instruction is empty"),
        (json.dumps([{**ENTRY, "output": 5}]), "entry 0: output is not text"),
        (json.dumps([{**ENTRY, "input": None}]), "entry 0: input is not text"),
    ],
)  # fmt: skip
def test_bad_entries_get_one_line(content, message, tmp_path):
    path = tmp_path / "data.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        load_entries(path)
    assert len(str(caught.value).splitlines()) == 1
    assert str(path) in str(caught.value)


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="'bundled', 'book' or 'alpaca'"):
        load_entries(tmp_path / "none.json")
    (tmp_path / "latin.json").write_bytes(b'["caf\xe9"]')
    with pytest.raises(InputError, match="not UTF-8"):
        load_entries(tmp_path / "latin.json")
    monkeypatch.setenv("LLM_COURSE_DATA", str(tmp_path))
    monkeypatch.setattr("ch07.entries.URLS", {"book": "http://127.0.0.1:9/x.json"})
    with pytest.raises(InputError, match="no connection"):
        load_entries("book")
    path = tmp_path / "instruction-data-book.json"
    path.write_text(json.dumps([ENTRY]), encoding="utf-8")
    assert load_entries("book") == [ENTRY]


# Prompts


def test_the_prompts_are_the_book_s():
    assert format_input(ENTRY) == (
        f"{PREAMBLE}\n\n### Instruction:\nName the opposite.\n\n### Input:\nhot"
    )
    assert format_input(BARE) == f"{PREAMBLE}\n\n### Instruction:\nSay hello."
    assert format_input_phi(ENTRY) == "<|user|>\nName the opposite.\nhot"
    assert RESPONSE[format_input] == "\n\n### Response:\n"
    assert RESPONSE[format_input_phi] == "\n<|assistant|>:\n"


def test_responses_are_found_behind_the_prompt():
    for style in (format_input, format_input_phi):
        for prompt in (style(ENTRY), style(ENTRY) + RESPONSE[style]):
            text = style(ENTRY) + RESPONSE[style] + "cold\n"
            assert extract_response(text, prompt) == "cold"


def test_items_hold_prompt_and_response(tokenizer):
    dataset = InstructionDataset([ENTRY, BARE], tokenizer)
    assert len(dataset) == 2
    expected = format_input(BARE) + "\n\n### Response:\nHello!"
    assert tokenizer.decode(dataset[1]) == expected
    masked = InstructionDataset([ENTRY], tokenizer, format_input_phi, with_lengths=True)
    length, ids = masked[0]
    assert tokenizer.decode(ids[:length]) == format_input_phi(ENTRY)
    assert tokenizer.decode(ids[length:]) == "\n<|assistant|>:\ncold"
    quoting = InstructionDataset([{**BARE, "output": "<|endoftext|>"}], tokenizer)
    assert PAD not in quoting[0]


# Batches


TOY = [[0, 1, 2, 3, 4], [5, 6], [7, 8, 9]]


def test_the_batch_of_the_book():
    inputs, targets = custom_collate_fn(TOY)
    P, X = PAD, -100
    assert inputs.tolist() == [[0, 1, 2, 3, 4], [5, 6, P, P, P], [7, 8, 9, P, P]]
    assert targets.tolist() == [[1, 2, 3, 4, P], [6, P, X, X, X], [8, 9, P, X, X]]
    inputs, targets = custom_collate_fn(TOY, allowed_max_length=3)
    assert inputs.tolist() == [[0, 1, 2], [5, 6, P], [7, 8, 9]]
    assert targets.tolist() == [[1, 2, 3], [6, P, X], [8, 9, P]]
    assert custom_collate_fn([[1], [1, 2]], 7, -1)[1].tolist() == [[7, -1], [2, 7]]


def test_masked_prompts():
    """Exercise 7.2: the targets of a prompt's tokens do not count."""
    _, targets = custom_collate_fn([(3, [0, 1, 2, 3, 4]), (1, [5, 6]), (0, [7])])
    X = -100
    assert targets.tolist() == [[X, X, 3, 4, PAD], [6, PAD, X, X, X], [PAD, X, X, X, X]]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GPTModel(TEST_CONFIG)


def test_only_what_counts_carries_gradient(model, tokenizer):
    """Of the logits: none at a masked prompt, none at padding, one at the end token."""
    long = {**ENTRY, "output": "cold, and then much colder still"}
    dataset = InstructionDataset([ENTRY, long], tokenizer, with_lengths=True)
    loader = DataLoader(dataset, 2, collate_fn=custom_collate_fn)
    inputs, targets = next(iter(loader))
    kept = []
    hook = model.register_forward_hook(lambda *args: kept.append(args[-1]))
    calc_loss_batch(inputs, targets, model, "cpu").backward(retain_graph=True)
    hook.remove()
    (logits,) = kept
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    (gradient,) = torch.autograd.grad(loss, logits)
    counts = gradient.abs().sum(dim=-1) > 0  # (B, T)
    for row in range(2):
        length, ids = dataset[row]
        expected = torch.zeros(inputs.shape[1], dtype=torch.bool)
        expected[length - 1 : len(ids)] = True  # the last of them predicts the end
        assert torch.equal(counts[row], expected)
        assert (targets[row] == PAD).sum() == 1


def test_padding_does_not_change_the_loss(model, tokenizer):
    dataset = InstructionDataset(
        [ENTRY, BARE, {**BARE, "output": "x " * 30}], tokenizer
    )
    together = custom_collate_fn([dataset[i] for i in range(3)])
    model.eval()
    with torch.no_grad():
        loss = calc_loss_batch(*together, model, "cpu").item()
        parts = [custom_collate_fn([dataset[i]]) for i in range(3)]
        sums = [
            calc_loss_batch(*part, model, "cpu").item() * (part[1] != -100).sum().item()
            for part in parts
        ]
    number = sum((part[1] != -100).sum().item() for part in parts)
    assert loss == pytest.approx(sum(sums) / number, rel=1e-5)


# Runs


def run(*options):
    try:
        cli([str(option) for option in ("--test-mode", *options)])
    except SystemExit as end:
        return end.code
    return 0


@pytest.fixture
def short(monkeypatch):
    """Answers of two tokens."""
    answer = finetuning.answer
    monkeypatch.setattr(
        finetuning, "answer", lambda *args: answer(*args, max_new_tokens=2)
    )


@pytest.mark.parametrize(
    "options",
    [(), ("--lora",), ("--mask-instructions",), ("--prompt-style", "phi3")],
)
def test_a_run_leaves_weights_and_answers(options, short, tmp_path, capsys):
    out = tmp_path / "run"
    fixed = ("--out-dir", out, "--epochs", 1, "--batch-size", 4, "--eval-freq", 1)
    assert run(*fixed, *options) == 0
    answers = json.loads((out / finetuning.ANSWERS).read_text("utf-8"))
    _, _, test = split(load_entries())
    assert [{k: a[k] for k in ENTRY} for a in answers] == test[:10]
    assert all(isinstance(a["model_response"], str) for a in answers)
    assert load_model(out)[1] == TEST_CONFIG
    assert (out / "loss-plot.png").read_bytes().startswith(b"\x89PNG")
    trained = capsys.readouterr().out.splitlines()[0]
    assert ("1,209,480 of 1,209,480" in trained) != ("--lora" in options)


def test_interrupted_answers_are_on_disk(tmp_path, monkeypatch):
    """Ctrl-C while the answers are written: those so far can be read."""
    calls = []

    def answer(*args):
        calls.append(0)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return "yes"

    monkeypatch.setattr(finetuning, "answer", answer)
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run("--out-dir", out, "--epochs", 1)
    answers = json.loads((out / finetuning.ANSWERS).read_text("utf-8"))
    assert [a["model_response"] for a in answers] == ["yes"] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data", "missing.json"), "no instruction data called"),
        (("--epochs", 0), "at least 1"),
        (("--prompt-style", "chatml"), "invalid choice"),
        (("--batch-size", 100), "do not fill one batch"),
    ],
)
def test_wrong_options_get_one_line(options, message, tmp_path, capsys):
    assert run("--out-dir", tmp_path / "run", *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_cut_entries_are_counted(short, tmp_path, capsys):
    assert run("--out-dir", tmp_path / "run", "--epochs", 1, "--max-length", 20) == 0
    assert "Note    10 entries are cut to 20 tokens" in capsys.readouterr().out
