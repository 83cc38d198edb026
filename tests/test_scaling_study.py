"""Every shape of the scaling study gets the same number of operations."""

import json

import pytest

from ch02.dataloader import get_tokenizer, load_text
from ch05.gutenberg import scaling_study
from ch05.gutenberg.recipe import flops_per_token
from ch05.gutenberg.shards import write_shards

SHAPES, BUDGET = ((64, 1), (64, 2)), 2e11


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Run a study of two small shapes; returns its records."""
    text = load_text("bundled")
    books = []
    for split, part in (("train", text[:12_000]), ("val", text[12_000:])):
        record = {"split": split, "bytes": len(part.encode())}
        books.append((record, get_tokenizer().encode_ordinary(part)))
    write_shards(tmp_path / "data", books)
    monkeypatch.setattr(scaling_study, "SHAPES", SHAPES)
    monkeypatch.setattr(scaling_study, "BUDGETS", (BUDGET,))

    def run():
        options = ("--data", "data", "--runs-dir", "runs", "--out-dir", "out")
        scaling_study.main(
            [o if o.startswith("--") else str(tmp_path / o) for o in options]
        )
        return json.loads((tmp_path / "out/scaling_study.json").read_text("utf-8"))

    return run


def test_equal_arithmetic_results_and_plot(study, tmp_path, capfd):
    records = study()
    assert [(r["emb_dim"], r["n_layers"]) for r in records] == list(SHAPES)
    for record, shape in zip(records, SHAPES, strict=True):
        per_token = flops_per_token(scaling_study.config_of(*shape))
        # To within one step of 8 windows of 256 tokens
        assert abs(record["tokens"] - BUDGET / per_token) <= 8 * 256
        assert 0 < record["val_bits_per_byte"] < 4
    assert (tmp_path / "out/scaling_study.png").read_bytes().startswith(b"\x89PNG")
    printed = capfd.readouterr().out
    assert all(f"{record['val_bits_per_byte']:.4f}" in printed for record in records)

    # Begun again it has nothing to do, and says the same
    again = study()
    assert again == records
    assert capfd.readouterr().out.count("holds this run, finished") == len(SHAPES)


def test_the_results_in_the_repository_say_what_the_readme_says():
    records = json.loads(scaling_study.RESULTS.read_text("utf-8"))
    assert scaling_study.PLOT.is_file()
    bits = {}
    for r in records:
        shape = r["emb_dim"], r["n_layers"]
        per_token = flops_per_token(scaling_study.config_of(*shape))
        assert abs(r["tokens"] - r["flops"] / per_token) <= 8 * 256
        bits[r["flops"], shape] = r["val_bits_per_byte"]
    less, more = scaling_study.BUDGETS
    narrow, *wider = scaling_study.SHAPES
    for shape in wider:
        # The narrowest is ahead, by less where there is more to compute
        lead, lead_later = (bits[b, shape] - bits[b, narrow] for b in (less, more))
        assert lead > lead_later > 0
