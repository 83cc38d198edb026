"""Chapter 6's experiments: each does what its name says, and nothing is run twice."""

import json
import statistics

import pandas as pd
import pytest
import torch

from ch02.cli import InputError
from ch02.dataloader import get_tokenizer
from ch04.gpt import GPTModel
from ch06.additional_experiments import additional_experiments as experiments
from ch06.additional_experiments.additional_experiments import (
    EXPERIMENTS,
    RESULTS,
    Classifier,
    Experiment,
    build,
    cli,
    read_results,
    run,
    summary,
)
from ch06.classifier import as_classifier

CONFIG = {
    "vocab_size": 50257,
    "context_length": 256,
    "emb_dim": 8,
    "n_heads": 2,
    "n_layers": 3,
    "drop_rate": 0.0,
    "qkv_bias": True,
}
CPU = torch.device("cpu")
PAD = 50256


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Let the mini model be a tiny one with weights of its own."""

    def load(name):
        torch.manual_seed(5)
        return GPTModel(CONFIG), CONFIG

    monkeypatch.setattr(experiments, "load_pretrained", load)


@pytest.fixture
def messages(monkeypatch):
    texts = [
        f"{'claim' if i % 2 else 'hello'} {'now ' * (i % 5)}{i}" for i in range(80)
    ]
    df = pd.DataFrame({"Label": ["ham", "spam"] * 40, "Text": texts})
    monkeypatch.setattr(experiments, "load_messages", lambda source: df)
    return df


# What is read


def rows(*lengths, width=12):
    torch.manual_seed(0)
    batch = torch.randint(100, (len(lengths), width))
    for row, length in zip(batch, lengths, strict=True):
        row[length:] = PAD
    return batch


@pytest.mark.parametrize("read", ["end", "first", "last", "mean"])
def test_which_outputs_are_read(read):
    torch.manual_seed(1)
    gpt = as_classifier(GPTModel(CONFIG), CONFIG).eval()
    all_logits = super(type(gpt), gpt).forward  # of every position
    batch = rows(3, 7, 1)

    class Plain(GPTModel):
        forward = staticmethod(all_logits)

    plain = Plain(CONFIG)
    answers = Classifier(plain, read)(batch)
    assert answers.shape == (3, 1, 2)
    for row, length, answer in zip(batch, (3, 7, 1), answers, strict=True):
        logits = all_logits(row[None])[0]  # (T, 2)
        expected = {
            "end": logits[length - 1],
            "first": logits[0],
            "last": logits[-1],
            "mean": logits[:length].mean(dim=0),
        }[read]
        torch.testing.assert_close(answer[0], expected)


@pytest.mark.parametrize(
    ("name", "trained"),
    [
        ("head only", ("out_head.",)),
        ("last block", ("trf_blocks.2.", "final_norm.", "out_head.")),
        ("last two blocks", ("trf_blocks.1.", "trf_blocks.2.", "final_norm.",
                             "out_head.")),
        ("reference", ("",)),
    ],
)  # fmt: skip
def test_which_weights_are_trained(name, trained):
    classifier, parameters = build(EXPERIMENTS[name], "gpt2-mini", (), CPU)
    expected = {
        n for n, _ in classifier.gpt.named_parameters() if n.startswith(tuple(trained))
    }
    found = {n for n, p in classifier.gpt.named_parameters() if p.requires_grad}
    assert found == expected
    assert len(parameters) == len(expected)


def test_lora_trains_adapters_and_the_new_head():
    names = {}
    for name in ("LoRA, rank 4", "LoRA, rank 4, queries and values"):
        classifier, _ = build(EXPERIMENTS[name], "gpt2-mini", (), CPU)
        named = classifier.gpt.named_parameters()
        names[name] = {n for n, p in named if p.requires_grad}
    everywhere, two = names.values()
    assert two < everywhere
    for found in names.values():
        assert {n for n in found if ".lora." not in n} == {
            "out_head.weight",
            "out_head.bias",
        }
    assert {n.split(".")[3] for n in two if ".lora." in n} == {"W_query", "W_value"}


def test_pretrained_or_random():
    weights = [
        build(EXPERIMENTS[name], "gpt2-mini", (), CPU)[0].gpt.tok_emb.weight
        for name in ("reference", "random weights")
    ]
    torch.manual_seed(5)
    pretrained = GPTModel(CONFIG).tok_emb.weight
    assert torch.equal(weights[0], pretrained)
    assert not torch.equal(weights[1], pretrained)


def test_without_a_mask_the_first_token_sees_the_last():
    batch = rows(12)
    changed = batch.clone()
    changed[0, -1] = 101
    for name, sees in (("reference", False), ("no causal mask", True)):
        torch.manual_seed(2)
        classifier, _ = build(EXPERIMENTS[name], "gpt2-mini", (), CPU)
        first = Classifier(classifier.gpt.eval(), "first")
        with torch.no_grad():
            assert torch.equal(first(batch), first(changed)) != sees


# Runs


def test_small_batches_make_the_same_steps(messages):
    """Eight messages one at a time are a batch of eight: equal weights afterwards."""
    results = []
    for batch_size in (8, 1):
        experiment = Experiment(batch_size=batch_size, num_messages=56, epochs=2)
        results.append(run(experiment, 1, messages, "gpt2-mini", CPU))
        del results[-1]["seconds"]
    assert results[0] == results[1]


def test_runs_are_repeated_by_their_seed(messages):
    experiment = Experiment(epochs=1)
    same = [run(experiment, 1, messages, "gpt2-mini", CPU) for _ in "ab"]
    for result in same:
        assert result.pop("seconds") >= 0
    assert same[0] == same[1]
    assert set(same[0]) == {"train", "validation", "test", "trained"}


def test_what_is_read_first_is_learned_and_leaves_out_what_is_measured(
    messages, monkeypatch
):
    reading, seen = experiments.weights_after_reading.__wrapped__, []
    monkeypatch.setitem(experiments.READING, "epochs", 20)
    monkeypatch.setitem(experiments.READING, "learning_rate", 1e-2)

    def recorded(model_name, pretrained, texts, device):
        seen.append((pretrained, texts))
        return reading(model_name, pretrained, texts, device)

    monkeypatch.setattr(experiments, "weights_after_reading", recorded)
    for pretrained in (True, False):
        experiment = Experiment(read_first=True, epochs=1, pretrained=pretrained)
        run(experiment, 1, messages, "gpt2-mini", CPU)
    (first, texts), (second, same_texts) = seen
    assert (first, second) == (True, False)
    assert texts == same_texts
    _, *measured = experiments.split(messages)
    assert set(texts) == set(messages["Text"]) - set(pd.concat(measured)["Text"])

    def loss(weights):
        gpt = GPTModel(CONFIG)
        gpt.load_state_dict(weights)
        ids = torch.tensor([PAD, *get_tokenizer().encode(texts[0]), PAD])
        with torch.no_grad():
            return torch.nn.functional.cross_entropy(gpt(ids[None, :-1])[0], ids[1:])

    before = experiments.load_pretrained("gpt2-mini")[0].state_dict()
    after = reading("gpt2-mini", True, texts, CPU)
    assert loss(after) < loss(before) - 1


def test_the_rate_falls_over_all_steps(messages, monkeypatch):
    """Of 50 messages: 6 steps of 8 an epoch, also where they come one at a time."""
    asked = []
    monkeypatch.setattr(
        experiments, "rise_and_fall", lambda _, steps: asked.append(steps)
    )
    for changed in ({}, {"batch_size": 1}, {"epochs": 3}, {"schedule": "constant"}):
        experiment = Experiment(**{"epochs": 1, "num_messages": 50, **changed})
        run(experiment, 1, messages, "gpt2-mini", CPU)
    assert asked == [6, 6, 18]


def test_what_is_there_is_not_run_again(messages, tmp_path, monkeypatch, capsys):
    out = tmp_path / "results.json"
    calls = []

    def counted(experiment, seed, *_):
        calls.append((experiment.read, seed))
        if len(calls) == 3:
            raise KeyboardInterrupt
        result = {"train": 1.0, "validation": 0.9, "test": 0.8 + seed / 100}
        return {**result, "trained": 7, "seconds": 2.0}

    monkeypatch.setattr(experiments, "run", counted)
    options = ["reference", "first token", "--seeds", "2", "--out", str(out)]
    with pytest.raises(KeyboardInterrupt):
        cli(options)
    assert len(json.loads(out.read_text())) == 2
    cli(options)
    assert calls[3:] == [("first", 1), ("first", 2)]
    cli(options)
    assert len(calls) == 5
    table = capsys.readouterr().out.splitlines()
    assert table[-1] == (
        "| first token | 7 | 100.0 ± 0.0 % | 90.0 ± 0.0 % | 81.5 ± 0.7 % | 2 |"
    )


def test_bad_input_gets_one_line(tmp_path, capsys):
    for options, message in (
        (["no such"], "no experiment is called 'no such'"),
        (["--seeds", "0"], "at least 1"),
        (["--data", str(tmp_path / "none")], "no messages called"),
    ):
        with pytest.raises(SystemExit) as end:
            cli([*options, "--out", str(tmp_path / "r.json")])
        assert end.value.code == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1
    (tmp_path / "r.json").write_text("{")
    with pytest.raises(InputError, match="cannot read the results"):
        read_results(tmp_path / "r.json")


def test_the_results_that_ship_are_those_of_the_experiments():
    records = read_results(RESULTS)
    for record in records:
        experiment = EXPERIMENTS[record["experiment"]]
        for name, value in vars(experiment).items():
            expected = list(value) if isinstance(value, tuple) else value
            assert record[name] == expected, record["experiment"]
    seeds = {}
    for record in records:
        seeds.setdefault(record["experiment"], set()).add(record["seed"])
    assert all(len(found) >= 3 for found in seeds.values())
    assert summary(records).count("\n") == len(seeds) + 1


def test_the_page_s_table_and_claims_are_those_of_the_results():
    page = RESULTS.with_name("README.md").read_text("utf-8")
    records = read_results(RESULTS)
    assert summary(records) in page

    def accuracies(name):
        return [100 * r["test"] for r in records if r["experiment"] == name]

    few = "300 messages"
    gains = [
        accuracies(few + after) for after in ("", ", random weights",
        ", all read first", ", random weights, all read first")
    ]  # fmt: skip
    assert all(len(values) == 5 for values in gains)
    plain, random, read, random_read = gains
    assert min(read) > max(random_read)
    assert min(read) > max(random)
    assert 4.5 < statistics.mean(read) - statistics.mean(random_read) < 5.5
    assert 2 < statistics.mean(plain) - statistics.mean(random) < 3
    assert statistics.mean(accuracies("reference")) < 92.5
