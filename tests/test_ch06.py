"""Chapter 6: the classifier, its data, its runs.

The models are tiny and random. What the pretrained mini model reaches is measured in
`ch06/additional_experiments/`; that the notebook says the same is shown by nbval.
"""

import io
import json
import re
import signal
import zipfile

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from sklearn.metrics import accuracy_score, log_loss
from test_gpt_download import TINY, published, transformers_gpt2
from test_resume import assert_same
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ch02.cli import InputError
from ch02.dataloader import get_tokenizer
from ch04.gpt import GPTModel
from ch05 import gpt_generate
from ch05.checkpoint import load_model, save_weights
from ch05.gpt_download import SETTINGS
from ch05.gpt_generate import load_pretrained_or_mini
from ch06 import classify, finetuning, gpt_class_finetune, spam_data
from ch06.classifier import (
    GPTClassifier,
    as_classifier,
    classifier_config,
    load_classifier,
    message_lengths,
    spam_probabilities,
    train_only,
)
from ch06.finetuning import TEST_CONFIG
from ch06.gpt_class_finetune import (
    SpamDataset,
    calc_accuracy_loader,
    calc_loss_batch,
    calc_loss_loader,
    classify_review,
    cli,
    create_balanced_dataset,
    download_and_unzip_spam_data,
    random_split,
    train_classifier_simple,
)
from ch06.spam_data import load_messages, unzip

CPU = torch.device("cpu")
PAD_TOKEN_ID = 50256
CONFIG = {**TEST_CONFIG, "context_length": 32, "emb_dim": 16, "n_layers": 2}
WORDS = ("sun", "river", "prize", "call", "now", "mum", "claim", "tea", "7", "?")


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def model():
    torch.manual_seed(1)
    return as_classifier(GPTModel(CONFIG), CONFIG).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return get_tokenizer()


@pytest.fixture
def messages_file(tmp_path):
    """140 messages whose first word tells the label, a quarter of them spam."""
    generator = torch.Generator().manual_seed(0)
    lines = []
    for number in range(140):
        label = "ham" if number % 4 else "spam"
        picks = torch.randint(len(WORDS), (number % 9 + 1,), generator=generator)
        text = " ".join(WORDS[i] for i in picks)
        lines.append(f"{label}\t{'claim' if label == 'spam' else 'hi'} {text} {number}")
    path = tmp_path / "messages.tsv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


# The answer does not depend on the padding


messages = st.lists(
    st.lists(st.integers(0, PAD_TOKEN_ID - 1), min_size=1, max_size=10),
    min_size=1,
    max_size=5,
)


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(rows=messages, padding=st.integers(0, 20))
def test_the_answer_depends_neither_on_padding_nor_on_the_batch(rows, padding):
    torch.manual_seed(1)
    model = as_classifier(GPTModel(CONFIG), CONFIG).eval()
    width = max(map(len, rows)) + padding
    batch = torch.tensor([row + [PAD_TOKEN_ID] * (width - len(row)) for row in rows])
    together = model(batch)
    assert together.shape == (len(rows), 1, 2)
    for row, answer in zip(rows, together, strict=True):
        alone = model(torch.tensor([row]))[0]
        torch.testing.assert_close(answer, alone, atol=1e-5, rtol=1e-5)


def test_the_last_position_of_a_padded_row_does_depend_on_it(tokenizer):
    """What the book reads: the reason for GPTClassifier."""
    torch.manual_seed(1)
    model = GPTModel(CONFIG).eval()
    row = tokenizer.encode("see you at the river")
    answers = [
        model(torch.tensor([row + [PAD_TOKEN_ID] * padding]))[0, -1]
        for padding in (0, 1, 12)
    ]
    assert (answers[0] - answers[1]).abs().max() > 1e-2
    assert (answers[1] - answers[2]).abs().max() > 1e-2


def test_tokens_after_the_end_get_no_gradient(model):
    batch = torch.full((2, 9), PAD_TOKEN_ID)
    batch[0, :5] = torch.arange(5)
    batch[1, :9] = torch.arange(10, 19)
    entered = []
    hook = model.tok_emb.register_forward_hook(lambda *args: entered.append(args[-1]))
    logits = model(batch)
    hook.remove()
    entered[0].retain_grad()
    logits[0].sum().backward()
    gradient = entered[0].grad.abs().sum(dim=-1)  # (B, T)
    assert (gradient[0, :5] > 0).all()
    assert (gradient[0, 5:] == 0).all()
    assert (gradient[1] == 0).all()


def test_lengths_of_messages():
    P = PAD_TOKEN_ID
    rows = torch.tensor([[1, 2, 3], [1, 2, P], [1, P, P], [P, P, P], [P, 1, P]])
    # One that holds nothing is read at its first pad; a pad inside belongs to the text
    assert message_lengths(rows).tolist() == [3, 2, 1, 1, 2]


def test_new_head_and_the_rest_of_the_weights():
    gpt = GPTModel(CONFIG)
    gpt.out_head.weight = gpt.tok_emb.weight  # tied, as the mini model is
    before = {name: tensor.clone() for name, tensor in gpt.state_dict().items()}
    torch.manual_seed(123)
    model = as_classifier(gpt, CONFIG)
    torch.manual_seed(123)
    head = nn.Linear(CONFIG["emb_dim"], 2)
    assert torch.equal(model.out_head.weight, head.weight)
    assert torch.equal(model.out_head.bias, head.bias)
    for name, tensor in model.state_dict().items():
        if not name.startswith("out_head"):
            assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(
    ("which", "prefixes"),
    [
        ("head", ("out_head.",)),
        ("last_block", ("trf_blocks.1.", "final_norm.", "out_head.")),
        ("all", ("",)),
    ],
)
def test_what_is_frozen_stays_bit_for_bit(model, which, prefixes):
    trained = train_only(model, which)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.1)
    batch, labels = torch.randint(100, (8, 12)), torch.arange(8) % 2
    for _ in range(3):
        optimizer.zero_grad()
        calc_loss_batch(batch, labels, model, CPU).backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        is_same = torch.equal(parameter, before[name])
        assert is_same != name.startswith(prefixes), name


# The book's functions


def frame(num_ham, num_spam):
    labels = ["ham"] * num_ham + ["spam"] * num_spam
    return pd.DataFrame(
        {"Label": labels, "Text": [f"m{i}" for i in range(len(labels))]}
    )


def test_balanced_and_split():
    df = frame(50, 20).sample(frac=1, random_state=1)
    balanced = create_balanced_dataset(df)
    assert balanced["Label"].value_counts().to_dict() == {"ham": 20, "spam": 20}
    assert balanced["Text"].is_unique
    # The very rows pandas draws under the book's seed
    ham = df[df.Label == "ham"].sample(20, random_state=123)
    assert balanced["Text"].tolist()[:20] == ham["Text"].tolist()
    parts = random_split(balanced, 0.7, 0.1)
    assert [len(part) for part in parts] == [28, 4, 8]
    assert sorted(pd.concat(parts)["Text"]) == sorted(balanced["Text"])


def test_data_set_pads_and_cuts(tmp_path, tokenizer):
    texts = ["a b c d", "null", "", 'say "hi", ok', "<|endoftext|>", "=1+1"]
    path = tmp_path / "train.csv"
    pd.DataFrame({"Label": [0, 1] * 3, "Text": texts}).to_csv(path, index=False)
    dataset = SpamDataset(path, tokenizer)
    encoded = [tokenizer.encode_ordinary(text) for text in texts]
    assert dataset.max_length == max(map(len, encoded)) == len(encoded[4])
    for (ids, label), row, expected in zip(dataset, encoded, [0, 1] * 3, strict=True):
        padded = row + [50256] * (dataset.max_length - len(row))
        assert (ids.tolist(), label.item()) == (padded, expected)
        assert ids.dtype == label.dtype == torch.int64
    assert [len(ids) for ids, _ in SpamDataset(path, tokenizer, 2)] == [2] * 6
    assert SpamDataset(path, tokenizer, 9, pad_token_id=7)[0][0].tolist()[4:] == [7] * 5


def test_loss_and_accuracy_are_those_of_scikit_learn(model):
    ids, labels = torch.randint(100, (22, 7)), torch.arange(22) % 2
    loader = DataLoader(TensorDataset(ids, labels), batch_size=4)
    logits = model(ids)[:, -1].detach().double()
    probas = torch.softmax(logits, dim=-1).numpy()
    expected = accuracy_score(labels, probas.argmax(axis=1))
    assert calc_accuracy_loader(loader, model, CPU) == pytest.approx(expected)
    first = accuracy_score(labels[:8], probas[:8].argmax(axis=1))
    assert calc_accuracy_loader(loader, model, CPU, 2) == pytest.approx(first)
    loss = log_loss(labels[:20], probas[:20])  # whole batches: a mean of means
    with torch.no_grad():
        assert calc_loss_loader(loader, model, CPU, 5) == pytest.approx(loss, rel=1e-5)
        assert calc_loss_loader(loader, model, CPU) == pytest.approx(
            calc_loss_loader(loader, model, CPU, 99)
        )
    empty = DataLoader(TensorDataset(ids[:0], labels[:0]))
    assert str(calc_loss_loader(empty, model, CPU)) == "nan"
    assert str(calc_accuracy_loader(empty, model, CPU)) == "nan"


def test_training_learns_and_reports(model, capsys):
    torch.manual_seed(0)
    ids = torch.randint(100, (40, 6))
    labels = (ids[:, 0] < 50).long()
    loader = DataLoader(TensorDataset(ids, labels), batch_size=8, shuffle=True)
    optimizer = torch.optim.AdamW(train_only(model, "all"), lr=3e-3)
    results = train_classifier_simple(model, loader, loader, optimizer, CPU, 20, 25, 5)
    train_losses, val_losses, train_accs, val_accs, examples_seen = results
    assert examples_seen == 800
    assert len(train_losses) == len(val_losses) == 4
    assert train_losses[-1] < 0.2 < train_losses[0]
    assert train_accs == val_accs
    assert (len(train_accs), train_accs[-1]) == (20, 1.0)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        f"Ep 1 (Step 000000): Train loss {train_losses[0]:.3f}, "
        f"Val loss {val_losses[0]:.3f}"
    )
    assert lines[-1] == "Training accuracy: 100.00% | Validation accuracy: 100.00%"


def test_classify_review(tokenizer):
    """Read at the last position, padded only where a length is asked for."""
    seen = []

    class Spy(GPTModel):
        def forward(self, in_idx):
            seen.append(in_idx[0].tolist())
            return torch.tensor([[[0.0, 1.0]]])

    model = Spy(CONFIG)
    ids = tokenizer.encode("you won a prize")
    assert classify_review("you won a prize", model, tokenizer, CPU) == "spam"
    classify_review("you won a prize", model, tokenizer, CPU, max_length=6)
    classify_review("you won a prize", model, tokenizer, CPU, max_length=2)
    classify_review("won " * 100, model, tokenizer, CPU)
    classify_review("won", model, tokenizer, CPU, max_length=100)
    classify_review("", model, tokenizer, CPU)
    assert seen[0] == ids
    assert seen[1] == ids + [50256] * (6 - len(ids))
    assert seen[2] == ids[:2]
    assert [len(row) for row in seen[3:]] == [32, 32, 1]


def test_probabilities_of_several_messages(model, tokenizer):
    texts = ["hello", "you won a prize, call now", "", "x " * 100]
    together = spam_probabilities(texts, model, tokenizer, CPU)
    assert all(0 < p < 1 for p in together)
    for text, probability in zip(texts, together, strict=True):
        (alone,) = spam_probabilities([text], model, tokenizer, CPU)
        assert probability == pytest.approx(alone, abs=1e-5)
        said = classify_review(text, model, tokenizer, CPU)
        assert said == ("spam" if probability > 0.5 else "not spam")


# Data


def test_messages_are_read_as_they_are(tmp_path):
    path = tmp_path / "m.tsv"
    path.write_bytes("\ufeffham\tnull\r\nspam\tWin 5 €\n\nham\tNA\u2028x\n".encode())
    df = load_messages(path)
    assert list(df.columns) == ["Label", "Text"]
    assert df.to_numpy().tolist()[:2] == [["ham", "null"], ["spam", "Win 5 €"]]
    assert len(df) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"label\ttext\nham\thi\n", "line 1: the label is 'label'"),
        (b"ham\thi\nSPAM\twin\n", "line 2: the label is 'SPAM'"),
        (b"ham,hi\nspam,win\n", "line 1: the label is 'ham,hi'"),
        (b"ham\thi\nspam\twin\tnow\n", "line 2: 3 columns instead of 2"),
        (b"ham\thi\nspam\n", "line 2: 1 columns instead of 2"),
        (b"ham\thi\nham\tho\n", "holds no spam"),
        (b"spam\thi\n", "holds no ham"),
        (b"ham\thi\nspam\tcaf\xe9\n", "line 2: not UTF-8"),
        ("ham\thi\nspam\tho\n".encode("utf-16"), "line 1: not UTF-8"),
    ],
)
def test_bad_messages_get_one_line(tmp_path, content, message):
    path = tmp_path / "m.tsv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_messages(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_no_such_messages(tmp_path):
    with pytest.raises(InputError, match="'bundled' or 'uci'"):
        load_messages(tmp_path / "nothing.tsv")
    with pytest.raises(InputError, match="cannot read"):
        load_messages(tmp_path)


@pytest.fixture
def collection(tmp_path, monkeypatch):
    """A stand-in for the SMS Spam Collection; returns a maker of zip files."""
    content = b"ham\thi\nspam\twin\n"
    monkeypatch.setattr(spam_data, "is_uci", lambda found: found == content)

    def make(*names, content=content):
        path = tmp_path / "made.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, content)
        return path

    return make


def test_the_zip_is_unpacked(collection, tmp_path):
    path = unzip(collection("SMSSpamCollection", "readme"), tmp_path / "out")
    assert path.read_bytes() == b"ham\thi\nspam\twin\n"
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "SMSSpamCollection",
        "readme",
    }


@pytest.mark.parametrize(
    "name", ["../evil", "/tmp/evil", "a/../../evil", "..\\..\\evil/../../../evil"]
)
def test_a_path_outside_is_refused(collection, tmp_path, name):
    with pytest.raises(InputError, match="names a path outside"):
        unzip(collection("SMSSpamCollection", name), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "evil").exists()


def test_other_zip_files_are_refused(collection, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(InputError, match="holds no SMSSpamCollection"):
        unzip(collection("readme"), out)
    with pytest.raises(InputError, match="not the one published"):
        unzip(collection("SMSSpamCollection", content=b"ham\tx\n"), out)
    whole = collection("SMSSpamCollection").read_bytes()
    for cut in (b"", whole[:40], b"<html>log in</html>"):
        (tmp_path / "cut.zip").write_bytes(cut)
        with pytest.raises(InputError, match="not a whole zip file"):
            unzip(tmp_path / "cut.zip", out)
    with pytest.raises(InputError, match="cannot unpack"):
        unzip(tmp_path / "missing.zip", out)
    assert not out.exists()


def test_the_collection_is_downloaded_once(collection, tmp_path, capsys):
    """The zip lies there already, as one put there by hand does."""
    path = tmp_path / "collection" / "SMSSpamCollection.tsv"
    arguments = ("https://nowhere.invalid/x.zip", collection("SMSSpamCollection"))
    for _ in range(2):
        download_and_unzip_spam_data(*arguments, tmp_path / "collection", path)
    assert "is there already" in capsys.readouterr().out
    assert load_messages(path)["Label"].tolist() == ["ham", "spam"]


def test_a_source_with_a_wrong_file_does_not_hide_the_next(
    collection, tmp_path, monkeypatch
):
    """The first source answers with a web page, the second with the collection."""
    monkeypatch.setenv("LLM_COURSE_DATA", str(tmp_path / "data"))
    content = collection("SMSSpamCollection").read_bytes()
    pages = {
        "https://a.invalid/x": b"<html>log in</html>",
        "https://b.invalid/x": content,
    }

    def retrieve(url, path):
        if not path.is_file():  # as `retrieve` without a known hash
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(pages[url])

    monkeypatch.setattr(gpt_class_finetune, "retrieve", retrieve)
    monkeypatch.setattr(spam_data, "UCI_URLS", tuple(pages))
    assert len(load_messages("uci")) == 2


def test_every_source_is_tried(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_COURSE_DATA", str(tmp_path))
    urls = ("http://127.0.0.1:9/a.zip", "http://127.0.0.1:9/b.zip")
    monkeypatch.setattr(spam_data, "UCI_URLS", urls)
    with pytest.raises(InputError) as caught:
        load_messages("uci")
    for part in (*urls, "no connection", "sms_spam_collection.zip", "--data bundled"):
        assert part in str(caught.value)


# Runs


def finetune(*options):
    """The command line in test mode; returns its exit code."""
    try:
        cli([str(option) for option in ("--test-mode", *options)])
    except SystemExit as end:
        return end.code
    return 0


def run_options(messages_file, out_dir):
    return ["--data", messages_file, "--out-dir", out_dir, "--epochs", 5,
            "--trainable", "all", "--lr", 2e-2, "--schedule", "rise-and-fall",
            "--batch-size", 4, "--eval-freq", 3, "--save-every", 2]  # fmt: skip


@pytest.fixture
def finished(messages_file, tmp_path):
    assert finetune(*run_options(messages_file, tmp_path / "run")) == 0
    return tmp_path / "run"


def test_a_run_leaves_a_classifier_that_can_be_used(capsys, finished, monkeypatch):
    printed = capsys.readouterr().out
    assert "Training accuracy: 100.00%\n" in printed  # one word tells the label
    assert float(re.search(r"Test accuracy: (.*)%", printed)[1]) > 75
    for name in ("loss-plot.png", "accuracy-plot.png"):
        assert (finished / name).read_bytes().startswith(b"\x89PNG")
    assert [len(pd.read_csv(finished / f"{name}.csv")) for name in
            ("train", "validation", "test")] == [49, 7, 14]  # fmt: skip

    learned = pd.read_csv(finished / "train.csv")[:6]
    answers = {
        row.Text: "spam" if row.Label else "not spam" for row in learned.itertuples()
    }
    assert len(set(answers.values())) == 2
    classify.cli(["--checkpoint", str(finished), *answers])
    printed = capsys.readouterr().out
    for line, (text, label) in zip(printed.splitlines(), answers.items(), strict=True):
        said, probability, message = line.split("\t")
        assert (said, message) == (label, text)
        assert (float(probability) > 0.5) == (label == "spam")

    (finished / "in.txt").write_text("\n".join([*answers, ""]), encoding="utf-8")
    classify.cli(["--checkpoint", str(finished), "--file", str(finished / "in.txt")])
    assert capsys.readouterr().out == printed
    stdin = io.TextIOWrapper(io.BytesIO("\r\n".join(answers).encode()))
    monkeypatch.setattr("sys.stdin", stdin)
    classify.cli(["--checkpoint", str(finished)])
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize("steps", [1, 2, 7, 12, 13, 30, 59])
def test_an_interrupted_run_continues_bit_for_bit(
    steps, finished, messages_file, tmp_path, monkeypatch
):
    calls, calc_loss = [], finetuning.ClassifierTraining.calc_loss

    def interrupted(training, *batch):
        calls.append(0)
        if len(calls) == steps:
            signal.raise_signal(signal.SIGTERM)
        return calc_loss(training, *batch)

    options = run_options(messages_file, tmp_path / "again")
    with monkeypatch.context() as patch:
        patch.setattr(finetuning.ClassifierTraining, "calc_loss", interrupted)
        assert finetune(*options) == 128 + signal.SIGTERM
    assert len(calls) == steps
    assert finetune(*options, "--resume") == 0
    assert_same(tmp_path / "again", finished, read=metrics)


def metrics(run_dir):
    lines = (run_dir / "metrics.jsonl").read_text("utf-8").splitlines()
    times = {"seconds", "tokens_per_second"}
    return [{k: v for k, v in json.loads(x).items() if k not in times} for x in lines]


def test_a_run_is_that_of_the_books_function(finished, messages_file, tmp_path):
    """Progress, checkpoints and bookkeeping change none of the numbers."""
    torch.manual_seed(123)
    gpt = GPTModel(TEST_CONFIG)
    torch.manual_seed(123)
    train_loader, val_loader, _ = finetuning.create_loaders(
        load_messages(messages_file), get_tokenizer(), 4, 120, tmp_path
    )
    torch.manual_seed(123)
    model = as_classifier(gpt, TEST_CONFIG)
    optimizer = torch.optim.AdamW(train_only(model, "all"), lr=2e-2, weight_decay=0.1)
    finetuning.rise_and_fall(optimizer, 60)
    torch.manual_seed(123)
    train_losses, val_losses, train_accs, val_accs, _ = train_classifier_simple(
        model, train_loader, val_loader, optimizer, CPU, 5, 3, 5
    )
    records = metrics(finished)
    losses = [r for r in records if "train_loss" in r]
    accuracies = [r for r in records if "train_accuracy" in r]
    assert [r["step"] for r in losses] == list(range(0, 60, 3))
    assert [r["train_loss"] for r in losses] == train_losses
    assert [r["val_loss"] for r in losses] == val_losses
    assert [r["train_accuracy"] for r in accuracies] == train_accs
    assert [r["val_accuracy"] for r in accuracies] == val_accs
    assert [r["epoch"] for r in accuracies] == [1, 2, 3, 4, 5]
    # Sixty steps: up over the first six, then down
    for record in losses:
        done = record["step"] + 1
        rate = 2e-2 * min((done + 1) / 6, (60 - done) / 54)
        assert record["learning_rate"] == pytest.approx(rate)


def test_resuming_another_run_is_refused(finished, messages_file, capsys):
    options = run_options(messages_file, finished)
    for change in (("--lr", 1e-3), ("--seed", 7), ("--trainable", "head"),
                   ("--schedule", "constant"), ("--epochs", 6)):  # fmt: skip
        assert finetune(*options, *change, "--resume") == 2
        assert "cannot resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "missing.tsv"], "no messages called"),
        (["--epochs", "0"], "whole number of at least 1"),
        (["--lr", "-1"], "number above 0"),
        (["--model", "gpt5"], "invalid choice"),
        (["--trainable", "some"], "invalid choice"),
        (["--batch-size", "1000"], "messages are too few"),
    ],
)
def test_wrong_options_get_one_line(options, message, messages_file, tmp_path, capsys):
    given_ = ["--data", messages_file, "--out-dir", tmp_path / "run", *options]
    assert finetune(*given_) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_long_messages_are_cut_and_counted(messages_file, tmp_path, capsys):
    with messages_file.open("a") as file:
        file.writelines(f"spam\t{'win ' * 200}{i}\n" for i in range(50))
    options = ["--data", messages_file, "--out-dir", tmp_path / "run", "--epochs", 1]
    assert finetune(*options) == 0
    assert "Note    50 messages are cut to 120 tokens" in capsys.readouterr().out


def test_classify_says_what_is_wrong(finished, tmp_path, capsys, monkeypatch):
    config = {**TEST_CONFIG, "emb_dim": 12}
    save_weights(tmp_path / "gpt.safetensors", GPTModel(config), config)
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    for options, message in (
        (["hi", "--checkpoint", tmp_path / "gpt.safetensors"], "not a classifier"),
        (["hi", "--checkpoint", tmp_path / "nothing"], "no checkpoint in"),
        (["--file", tmp_path / "empty.txt"], "holds no message"),
        (["--file", tmp_path / "latin.txt"], "is not UTF-8"),
        (["--file", tmp_path / "nothing"], "cannot read"),
        (["hi", "--file", tmp_path / "empty.txt"], "not both"),
    ):
        options = ["--checkpoint", finished, *options]
        with pytest.raises(SystemExit) as end:
            classify.cli([str(option) for option in options])
        assert end.value.code == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(SystemExit):
        classify.cli(["--checkpoint", str(finished)])
    assert "no message" in capsys.readouterr().err


def test_a_classifier_is_not_a_language_model_nor_the_other_way_round(finished):
    with pytest.raises(InputError, match="num_classes"):
        load_model(finished)
    model, config = load_classifier(finished)
    assert isinstance(model, GPTClassifier)
    assert config == classifier_config(TEST_CONFIG)


def test_without_openais_weights_the_mini_model_takes_their_place(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.setenv("LLM_COURSE_DATA", str(tmp_path))
    stand_in = (GPTModel(CONFIG), CONFIG)
    monkeypatch.setattr(gpt_generate, "load_mini_model", lambda: stand_in)
    assert load_pretrained_or_mini("gpt2-small") == ("gpt2-mini", *stand_in)
    note = capsys.readouterr().out
    assert note.count("mini model takes the place of gpt2-small") == 1
    assert load_pretrained_or_mini("gpt2-mini") == ("gpt2-mini", *stand_in)
    assert capsys.readouterr().out == ""


def test_with_openais_weights_the_books_path_runs(
    messages_file, tmp_path, monkeypatch, capsys
):
    """A file in the published layout, with random weights, in LLM_COURSE_DATA."""
    monkeypatch.setenv("LLM_COURSE_DATA", str(tmp_path))
    monkeypatch.setitem(SETTINGS, "124M", {**TINY, "n_ctx": 64})
    theirs = transformers_gpt2(SETTINGS["124M"])
    folder = tmp_path / "gpt2" / "124M"
    folder.mkdir(parents=True)
    save_file(published(theirs), folder / "model.safetensors")
    options = ["--data", messages_file, "--out-dir", tmp_path / "run", "--epochs", 1]
    cli([str(option) for option in ("--model", "gpt2-small", *options)])
    printed = capsys.readouterr().out
    assert "Model   gpt2-small" in printed
    assert "Note" not in printed
    # Only the last block, the last norm and the head were trained: the book's choice
    model, _ = load_classifier(tmp_path / "run")
    assert torch.equal(model.tok_emb.weight, theirs.transformer.wte.weight)
    norm = theirs.transformer.ln_f.weight
    assert not torch.equal(model.final_norm.scale, norm)
