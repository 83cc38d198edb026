"""The mini model can be made again by one command."""

import json
import math
from hashlib import sha256

import pytest
import torch
from safetensors import safe_open

from ch02.cli import InputError
from ch02.dataloader import get_tokenizer, load_text
from ch05 import mini_model
from ch05.checkpoint import is_tied, load_model
from ch05.gpt_train import calc_loss_batch
from ch05.gutenberg.recipe import CONFIG_MINI
from ch05.gutenberg.shards import write_shards
from ch05.mini_model import make

TINY = "--emb-dim 16 --n-layers 1 --n-heads 2 --context-length 32"
TINY += " --tokens 256 --batch-size 2 --eval-freq 2 --eval-windows 4 --device cpu"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder as `make` writes it, from a story cut in two."""
    tmp_path = tmp_path_factory.mktemp("mini")
    text = load_text("bundled")
    books = []
    for split, part in (("train", text[:6000]), ("val", text[6000:8000])):
        record = {"split": split, "bytes": len(part.encode())}
        books.append((record, get_tokenizer().encode_ordinary(part)))
    write_shards(tmp_path / "data", books)
    options = ["--data", tmp_path / "data", "--run-dir", tmp_path / "run"]
    options += ["--folder", tmp_path / "model", *TINY.split()]
    make.main([str(option) for option in options])
    return tmp_path / "model"


def test_the_weights_are_one_tied_bfloat16_file(made):
    with safe_open(made / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
        assert "out_head.weight" not in names
        assert {file.get_slice(name).get_dtype() for name in names} == {"BF16"}
    model, config = load_model(made / "model.safetensors")
    assert is_tied(model)
    assert config == json.loads((made / "config.json").read_text("utf-8"))
    assert config["qkv_bias"]


def test_log_plot_and_card_describe_that_run(made):
    log = (made / "training.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["step"] for line in log] == [2, 4]
    assert (made / "loss-plot.png").read_bytes().startswith(b"\x89PNG")
    card = (made / "README.md").read_text("utf-8")
    model, _ = load_model(made / "model.safetensors")
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in card
    assert "4 steps of 2 windows, 256 tokens" in card
    assert "{" not in card
    assert sha256((made / "model.safetensors").read_bytes()).hexdigest() in card
    # The figure of the card is that of the file beside it, in the table
    (row,) = (line for line in card.splitlines() if line.startswith(make.NAME))
    bits = float(row.split()[1])
    assert f"**{bits:.3f} bits per byte**" in card
    assert "Kneser-Ney, order 6" in card
    samples = [line for line in card.splitlines() if line[:1].isdigit()]
    assert [line.split("**")[1] for line in samples] == list(make.PROMPTS)


def test_a_model_in_its_place_is_loaded_in_one_line(made, monkeypatch):
    monkeypatch.setattr(mini_model, "WEIGHTS", made / "model.safetensors")
    model, config = mini_model.load_mini_model()
    assert not model.training
    assert model(torch.tensor([[1, 2]])).shape == (1, 2, config["vocab_size"])
    monkeypatch.setattr(mini_model, "WEIGHTS", made / "nothing")
    with pytest.raises(InputError, match="is missing"):
        mini_model.load_mini_model()


def test_the_model_that_ships_is_the_one_its_card_describes():
    card = (mini_model.WEIGHTS.parent / "README.md").read_text("utf-8")
    assert sha256(mini_model.WEIGHTS.read_bytes()).hexdigest() in card
    assert mini_model.WEIGHTS.stat().st_size <= 40e6
    model, config = mini_model.load_mini_model()
    assert is_tied(model)
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in card
    assert config == CONFIG_MINI
    log = (mini_model.WEIGHTS.parent / "training.jsonl").read_text("utf-8")
    last = json.loads(log.splitlines()[-1])
    assert f"{last['tokens_seen']:,} tokens" in card


def test_it_predicts_english_far_better_than_chance():
    """The course's story, which it has not read: perplexity below 100, not 50257."""
    model, config = mini_model.load_mini_model()
    ids = get_tokenizer().encode(load_text("bundled"))
    windows = torch.tensor(ids).unfold(0, config["context_length"] + 1, 256)[:8]
    with torch.no_grad():
        loss = calc_loss_batch(windows[:, :-1], windows[:, 1:], model, "cpu")
    assert 3.5 < loss < math.log(100)
