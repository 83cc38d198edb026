"""Input that cannot be used: one clear line, exit code 2, nothing lost.

Everything goes through the command lines, in this process. What the machine of a test
cannot offer (no rights, a full disk, no GPU) is simulated at the edge of Python.
"""

import errno
import io
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_resume import TEXT_LENGTH, TINY

from ch02 import dataloader
from ch02.dataloader import get_tokenizer, load_text
from ch04 import gpt
from ch04.gpt import GPTModel
from ch05 import checkpoint, gpt_generate, gpt_train, resumable
from ch05.checkpoint import TRAINING, WEIGHTS, checkpoints, latest_checkpoint

CONTEXT = TINY[0]["context_length"]
NAMES = {dataloader.main: "dataloader", gpt.cli: "gpt", gpt_train.cli: "gpt_train"}
NAMES[gpt_generate.cli] = "gpt_generate"


@pytest.fixture(scope="module", autouse=True)
def story():
    """Add the tiny model to `--model`, on one thread; the text it trains on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(gpt_train.MODELS, "tiny", TINY)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield load_text("bundled")[:TEXT_LENGTH]
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def finished(story, tmp_path_factory):
    """A finished run with the text it was trained on. Not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "story.txt").write_text(story, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpt_train, "save_plot", lambda *_: None)
        gpt_train.cli(train_options(folder))
    return folder


@pytest.fixture
def folder(finished, tmp_path, monkeypatch):
    """A copy of the finished run to spoil; no plots, which only cost time here."""
    monkeypatch.setattr(gpt_train, "save_plot", lambda *_: None)
    return shutil.copytree(finished, tmp_path / "copy")


def train_options(folder, *options):
    """Arguments of gpt_train for the run in folder/run on the text beside it."""
    fixed = ("--model", "tiny", "--device", "cpu", "--save-every", 4)
    paths = ("--text", folder / "story.txt", "--out-dir", folder / "run")
    return [str(option) for option in (*fixed, *paths, *options)]


def generate_options(folder, *options):
    """Arguments of gpt_generate for the run in folder/run."""
    fixed = ("--checkpoint", folder / "run", "--device", "cpu", "--max-new-tokens", 3)
    return [str(option) for option in (*fixed, *options)]


@pytest.fixture
def refused(capsys):
    """Run a command line that must refuse; returns the one line it says."""

    def run(cli, *options):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli([str(option) for option in options])
        error = capsys.readouterr().err
        assert end.value.code == 2, error
        assert error.startswith(f"{NAMES[cli]}: ")
        assert error.endswith("\n")
        assert len(error.splitlines()) == 1, error
        return error

    return run


@pytest.fixture
def written(capsys):
    """Run a command line that must work; returns (standard output, standard error)."""

    def run(cli, *options):
        capsys.readouterr()
        cli([str(option) for option in options])
        return capsys.readouterr()

    return run


def snapshot(folder):
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder): path.read_bytes() for path in files}


def assert_same_weights(run_dir, other_dir):
    ours, theirs = (
        load_file(latest_checkpoint(run) / WEIGHTS) for run in (run_dir, other_dir)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


# Texts

TEXTS = {
    "empty": (b"", "is empty"),
    "only blanks": (b" \n\t\r\n \xc2\xa0\n", "is empty"),
    "binary": (b"A text\0with zeros", "binary"),
    "UTF-16": ("Prosit!".encode("utf-16"), "binary"),
    "Latin-1": ("Es grünt so grün".encode("latin-1"), "not UTF-8 (byte 5): save it"),
    "cut inside a character": ("grün".encode()[:3], "not UTF-8"),
    "too short": (b"Hello, world", f"a window of {CONTEXT} needs"),
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("script", [gpt_train.cli, dataloader.main])
def test_text_that_cannot_be_used(script, name, tmp_path, refused):
    content, words = TEXTS[name]
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    options = ["--text", path]
    if script is gpt_train.cli:
        options = train_options(tmp_path, *options)
    else:
        options += ["--max-length", CONTEXT]
    error = refused(script, *options)
    assert words in error
    # A text that was read is named by the option, another one by its path
    assert ("text" if name == "too short" else str(path)) in error


@pytest.mark.parametrize("script", [gpt_train.cli, dataloader.main])
def test_text_that_is_not_there(script, tmp_path, refused, monkeypatch):
    missing = tmp_path / "missing.txt"
    error = refused(script, "--text", missing)
    assert str(missing) in error
    assert "'bundled'" in error
    assert "'the-verdict'" in error
    monkeypatch.setenv("LLM_COURSE_TEXT", str(missing))
    assert str(missing) in refused(script)


@pytest.mark.parametrize("script", [gpt_train.cli, dataloader.main])
def test_text_that_cannot_be_read(script, tmp_path, refused, monkeypatch):
    assert str(tmp_path) in refused(script, "--text", tmp_path)  # a folder
    refused(script, "--text", "a whole text instead of its path " * 200)
    refused(script, "--text", "~nobody-of-this-name/text.txt")

    def no_rights(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", no_rights)
    assert "Permission denied" in refused(script, "--text", "secret.txt")


def test_text_with_too_few_windows(story, tmp_path, refused):
    path = tmp_path / "story.txt"
    path.write_text(story, encoding="utf-8")
    error = refused(gpt_train.cli, *train_options(tmp_path, "--batch-size", 50))
    assert "too short" in error
    assert "batch of 50" in error
    error = refused(dataloader.main, "--text", path, "--batch-size", 500)
    assert "batch of 500" in error
    # Enough to train on, too little to validate
    path.write_text(story[:250], encoding="utf-8")
    error = refused(gpt_train.cli, *train_options(tmp_path))
    assert f"a window of {CONTEXT} needs" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("script", [gpt_train.cli, dataloader.main])
def test_text_the_tokenizer_gives_up_on(script, tmp_path, refused, monkeypatch):
    """A million blanks in a row are too much for its regular expression."""
    monkeypatch.setattr(gpt_train, "GPTModel", None)  # no training if it succeeds
    path = tmp_path / "story.txt"
    path.write_text(("a" + " " * 1_500_000 + "b") * 2, encoding="utf-8")
    trained = train_options(tmp_path)
    options = trained if script is gpt_train.cli else ["--text", path]
    assert "short" not in refused(script, *options)


def test_byte_order_mark_and_line_ends_do_not_matter(story, tmp_path):
    plain, windows = tmp_path / "plain.txt", tmp_path / "windows.txt"
    story += " é € 😀 汉字 العربية\n"
    plain.write_bytes(story.encode())
    windows.write_bytes(b"\xef\xbb\xbf" + story.replace("\n", "\r\n").encode())
    assert "\n" in story
    assert load_text(plain) == load_text(windows) == story


# Options

NOT_WHOLE_POSITIVE = ("0", "-1", "nan", "inf", "abc", "1.5", "", "1e3")
NOT_POSITIVE = ("0", "-1", "nan", "inf", "abc", "", "1e-999")
NOT_A_SEED = ("1.5", "abc", "nan", "", "9" * 30, "-" + "9" * 30)
WRONG = [
    (dataloader.main, "--batch-size", NOT_WHOLE_POSITIVE),
    (dataloader.main, "--max-length", NOT_WHOLE_POSITIVE),
    (dataloader.main, "--stride", NOT_WHOLE_POSITIVE),
    (gpt.cli, "--max-new-tokens", NOT_WHOLE_POSITIVE),
    (gpt.cli, "--prompt", ("",)),
    (gpt_train.cli, "--epochs", NOT_WHOLE_POSITIVE),
    (gpt_train.cli, "--batch-size", NOT_WHOLE_POSITIVE),
    (gpt_train.cli, "--eval-freq", NOT_WHOLE_POSITIVE),
    (gpt_train.cli, "--save-every", NOT_WHOLE_POSITIVE),
    (gpt_train.cli, "--lr", NOT_POSITIVE),
    (gpt_train.cli, "--seed", NOT_A_SEED),
    (gpt_train.cli, "--prompt", ("", "  ")),
    (gpt_train.cli, "--model", ("gpt3", "", "Tiny")),
    (gpt_train.cli, "--dtype", ("fp16", "")),
    (gpt_train.cli, "--device", ("gpu", "", "cuda:99", "CPU")),
    (gpt_train.cli, "--no-such-option", ("1",)),
    (gpt_generate.cli, "--max-new-tokens", NOT_WHOLE_POSITIVE),
    (gpt_generate.cli, "--top-k", NOT_WHOLE_POSITIVE),
    (gpt_generate.cli, "--temperature", ("-1", "nan", "inf", "abc", "")),
    (gpt_generate.cli, "--top-p", ("0", "-1", "1.1", "nan", "abc", "")),
    (gpt_generate.cli, "--min-p", ("-0.1", "1.1", "nan", "abc", "")),
    (gpt_generate.cli, "--repetition-penalty", ("0", "-1", "nan", "inf", "abc", "")),
    (gpt_generate.cli, "--seed", NOT_A_SEED),
    (gpt_generate.cli, "--device", ("gpu", "", "cuda:99")),
    (gpt_generate.cli, "--prompt", ("",)),
]


@pytest.mark.parametrize(
    ("script", "option", "values"), WRONG, ids=lambda x: NAMES.get(x, str(x)[:16])
)
def test_wrong_option(script, option, values, finished, tmp_path, refused):
    # A text and a checkpoint that are there: the option must be what is refused
    options = {
        gpt_train.cli: ["--model", "tiny", "--text", finished / "story.txt"],
        gpt_generate.cli: generate_options(finished, "--prompt", "The"),
    }.get(script, [])
    if script is gpt_train.cli:
        options += ["--out-dir", tmp_path / "run"]
    for value in values:
        error = refused(script, *options, f"{option}={value}")
        assert option.strip("-").replace("-", "_") in error.replace("-", "_")
    assert not (tmp_path / "run").exists()


def test_unknown_choices_are_answered_with_the_known_ones(refused):
    assert "gpt2-nano" in refused(gpt_train.cli, "--model", "gpt3")
    for name in ("auto", "cpu", "cuda", "mps", "xpu"):
        assert name in refused(gpt_train.cli, "--device", "tpu")


@pytest.mark.parametrize("temperature", ["1e-320", "1e-50", "1e39", "1e300"])
def test_extreme_temperatures(temperature, finished, capsys):
    """Used or refused, but never a crash in the middle of a text."""
    options = ("--prompt", "The", "--top-k", 5, "--temperature", temperature)
    code = 0
    try:
        gpt_generate.cli(generate_options(finished, *options))
    except SystemExit as end:
        code = end.code
    assert (code, capsys.readouterr().err.count("\n")) in ((0, 0), (2, 1))


# Devices


@pytest.fixture
def no_accelerator(monkeypatch):
    """A machine that has a CPU and nothing else."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: False)


@pytest.mark.parametrize("device", ["cuda", "mps", "xpu"])
def test_device_that_is_not_there(device, no_accelerator, finished, tmp_path, refused):
    options = ("--text", finished / "story.txt", "--out-dir", tmp_path / "run")
    for script, more in (
        (gpt_train.cli, options),
        (gpt_generate.cli, generate_options(finished, "--prompt", "The")),
    ):
        error = refused(script, *more, "--device", device)
        assert f"no {device} device" in error
        assert "--device auto" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_a_cpu_machine_never_starts_cuda(
    device, no_accelerator, folder, written, monkeypatch
):
    def started(*_):
        raise AssertionError("CUDA was initialised")

    monkeypatch.setattr(torch.cuda, "_lazy_init", started)
    monkeypatch.setattr(torch._C, "_cuda_init", started, raising=False)
    with pytest.raises(AssertionError, match="CUDA"):
        torch.cuda.current_device()  # the trap works

    shutil.rmtree(folder / "run")
    written(gpt_train.cli, *train_options(folder, "--device", device))
    options = ("--prompt", "The", "--device", device, "--temperature", 1)
    written(gpt_generate.cli, *generate_options(folder, *options))


def test_nothing_imports_another_framework(run):
    """A process that notes every attempt to import one, installed or not."""
    program = """
import sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tensorflow", "keras", "jax", "flax"):
            print("imports", name)

sys.meta_path.insert(0, Watch())
import ch02.dataloader, ch02.download, ch03.attention, ch04.gpt
import ch05.checkpoint, ch05.device, ch05.gpt_generate, ch05.gpt_train, ch05.resumable
ch02.dataloader.get_tokenizer()
print("tensorflow" in sys.modules)
"""
    result = run("python", "-c", program)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "False\n"


# Checkpoints


def refused_by_both(refused, folder):
    """What the two scripts say to a spoiled checkpoint, which they leave alone."""
    before = snapshot(folder)
    errors = [
        refused(gpt_generate.cli, *generate_options(folder, "--prompt", "The")),
        refused(gpt_train.cli, *train_options(folder, "--resume", "--epochs", 3)),
    ]
    assert snapshot(folder) == before
    return errors


def refused_when_resuming(refused, folder):
    """The same for a checkpoint whose weights are fine."""
    before = snapshot(folder)
    error = refused(gpt_train.cli, *train_options(folder, "--resume", "--epochs", 3))
    assert snapshot(folder) == before
    return error


def rewrite(path, change_tensors=dict, change_metadata=dict):
    """Save a file's tensors and metadata again, changed."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    save_file(change_tensors(tensors), path, change_metadata(metadata))


def without(name):
    return lambda tensors: {k: v for k, v in tensors.items() if k != name}


def test_checkpoint_that_is_not_there(tmp_path, refused):
    for path in (tmp_path, tmp_path / "missing", "x" * 5000):
        error = refused(gpt_generate.cli, "--checkpoint", path, "--prompt", "The")
        assert str(path) in error
    assert "python -m ch05.gpt_train" in refused(
        gpt_generate.cli, "--checkpoint", tmp_path, "--prompt", "The"
    )


@pytest.mark.parametrize("name", [WEIGHTS, TRAINING])
@pytest.mark.parametrize("length", [0, 7, 8, 200, 0.5, -1])
def test_truncated_checkpoint(name, length, folder, refused):
    path = latest_checkpoint(folder / "run") / name
    content = path.read_bytes()
    length = int(len(content) * length) if isinstance(length, float) else length
    path.write_bytes(content[:length])
    if name == WEIGHTS:
        errors = refused_by_both(refused, folder)
    else:
        errors = [refused_when_resuming(refused, folder)]
    for error in errors:
        assert str(path) in error
        assert "damaged or cut off" in error
        assert re.search("delete|another|before", error)  # what to do

    # The checkpoint before it is still good, once the damaged one is away
    shutil.rmtree(path.parent)
    gpt_train.cli(train_options(folder, "--resume"))
    gpt_generate.cli(generate_options(folder, "--prompt", "The"))


@pytest.mark.parametrize("name", [WEIGHTS, TRAINING])
def test_checkpoint_of_anything_else(name, folder, refused):
    path = latest_checkpoint(folder / "run") / name
    both = refused_by_both if name == WEIGHTS else refused_when_resuming
    size = path.stat().st_size
    random_bytes = torch.randint(256, (size,), dtype=torch.uint8).numpy().tobytes()
    for content in (b"The river", b"\0" * size, random_bytes):
        path.write_bytes(content)
        assert str(path) in str(both(refused, folder))
    path.unlink()
    both(refused, folder)
    path.mkdir()
    assert str(path) in str(both(refused, folder))


METADATA = {
    "none at all": (lambda m: {}, "not written by this course"),
    "no version": (
        lambda m: {k: m[k] for k in m if k != "format_version"},
        "not written by this course",
    ),
    "later version": (lambda m: {**m, "format_version": "2"}, "update the course"),
    "odd version": (lambda m: {**m, "format_version": "²"}, "not written by this"),
    "only a version": (lambda m: {"format_version": "1"}, ""),
    "not JSON": (lambda m: {**dict.fromkeys(m, "{"), "format_version": "1"}, ""),
    "other JSON": (lambda m: {**dict.fromkeys(m, "[7]"), "format_version": "1"}, ""),
}


@pytest.mark.parametrize("case", METADATA)
def test_checkpoint_with_other_metadata(case, folder, refused):
    change, words = METADATA[case]
    newest = latest_checkpoint(folder / "run")
    rewrite(newest / TRAINING, change_metadata=change)
    error = refused_when_resuming(refused, folder)
    assert str(newest / TRAINING) in error
    assert words in error

    rewrite(newest / WEIGHTS, change_metadata=change)
    options = generate_options(folder, "--prompt", "The")
    error = refused(gpt_generate.cli, *options)
    assert str(newest / WEIGHTS) in error
    assert words in error


OTHER_WEIGHTS = {
    "missing": without("final_norm.scale"),
    "surplus": lambda tensors: {**tensors, "lm_head.bias": torch.zeros(3)},
    "shape": lambda tensors: {**tensors, "final_norm.scale": torch.zeros(3)},
    "kind": lambda tensors: {**tensors, "final_norm.scale": torch.ones(8).int()},
    "none": lambda tensors: {},
}


@pytest.mark.parametrize("case", OTHER_WEIGHTS)
def test_checkpoint_of_another_architecture(case, folder, refused):
    path = latest_checkpoint(folder / "run") / WEIGHTS
    rewrite(path, OTHER_WEIGHTS[case])
    for error in refused_by_both(refused, folder):
        assert str(path) in error
        assert "another architecture" in error


OTHER_CONFIGS = {
    "key missing": lambda config: {k: config[k] for k in config if k != "n_heads"},
    "key surplus": lambda config: {**config, "n_kv_groups": 2},
    "wider": lambda config: {**config, "emb_dim": 16},
    "more layers": lambda config: {**config, "n_layers": 2},
    "heads that do not fit": lambda config: {**config, "n_heads": 3},
    "no heads": lambda config: {**config, "n_heads": 0},
    "not a number": lambda config: {**config, "emb_dim": "8"},
    "nothing": lambda config: {**config, "context_length": None},
    "negative": lambda config: {**config, "emb_dim": -8},
    "impossible dropout": lambda config: {**config, "drop_rate": 7},
    "a list": lambda config: list(config),
}


@pytest.mark.parametrize("case", OTHER_CONFIGS)
def test_checkpoint_with_another_config(case, folder, refused):
    path = latest_checkpoint(folder / "run") / WEIGHTS
    config = json.dumps(OTHER_CONFIGS[case](TINY[0]))
    rewrite(path, change_metadata=lambda metadata: {**metadata, "config": config})
    options = generate_options(folder, "--prompt", "The")
    assert str(path) in refused(gpt_generate.cli, *options)


@pytest.mark.parametrize("vocab_size", [100, 60_000])
def test_checkpoint_with_another_vocabulary(vocab_size, tmp_path, refused):
    config = {**TINY[0], "vocab_size": vocab_size}
    path = tmp_path / "other.safetensors"
    checkpoint.save_weights(path, GPTModel(config), config)
    error = refused(gpt_generate.cli, "--checkpoint", path, "--prompt", "The")
    assert str(path) in error
    assert str(vocab_size) in error.replace(",", "")


MOMENTS = "optimizer.0.exp_avg"
OTHER_TRAINING = {
    "moments missing": without(MOMENTS),
    "moments of another shape": lambda t: {**t, MOMENTS: torch.zeros(3)},
    "moments of one more weight": lambda t: {**t, "optimizer.99.step": torch.ones(())},
    "surplus": lambda t: {**t, "surplus": torch.zeros(3)},
    "optimizer without a number": lambda t: {**t, "optimizer.step": torch.ones(())},
    "random state missing": without("rng.cpu"),
    "random state of the epoch missing": without("rng.epoch_start"),
    "random state too short": lambda t: {**t, "rng.cpu": t["rng.cpu"][:5].clone()},
    "random state of another kind": lambda t: {**t, "rng.cpu": t["rng.cpu"].float()},
}


@pytest.mark.parametrize("case", OTHER_TRAINING)
def test_checkpoint_with_another_training_state(case, folder, refused):
    # One in mid-epoch, where all of it is needed
    shutil.rmtree(latest_checkpoint(folder / "run"))
    path = latest_checkpoint(folder / "run") / TRAINING
    rewrite(path, OTHER_TRAINING[case])
    assert str(path.parent) in refused_when_resuming(refused, folder)


# Folders that cannot be written


def test_out_dir_that_is_a_file(folder, refused):
    for out_dir in (folder / "story.txt", folder / "story.txt" / "run"):
        error = refused(gpt_train.cli, *train_options(folder, "--out-dir", out_dir))
        assert str(out_dir) in error
        assert "cannot write" in error


@pytest.mark.parametrize("method", ["mkdir", "touch"])
def test_out_dir_without_the_right_to_write(method, folder, refused, monkeypatch):
    def no_rights(path, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    before = snapshot(folder)
    monkeypatch.setattr(Path, method, no_rights)
    error = refused(gpt_train.cli, *train_options(folder, "--resume", "--epochs", 3))
    assert f"cannot write to {folder / 'run'}: Permission denied" in error
    assert snapshot(folder) == before


def test_a_folder_where_the_metrics_belong(folder, refused):
    (folder / "run" / "metrics.jsonl").unlink()
    (folder / "run" / "metrics.jsonl").mkdir()
    before = snapshot(folder)
    error = refused(gpt_train.cli, *train_options(folder, "--resume", "--epochs", 3))
    assert "metrics.jsonl" in error
    assert snapshot(folder) == before


def test_a_plot_that_cannot_be_written(finished, tmp_path, refused):
    folder = shutil.copytree(finished, tmp_path / "copy")
    (folder / "run" / "loss-plot.png").mkdir()
    error = refused(gpt_train.cli, *train_options(folder, "--resume"))
    assert str(folder / "run" / "loss-plot.png") in error
    assert_same_weights(folder / "run", finished / "run")


def test_an_old_checkpoint_that_cannot_be_removed(folder, finished, monkeypatch):
    """On Windows another program that reads it is enough; training goes on."""

    def unless_in_use(function):
        def checked(path, *args, **kwargs):
            if Path(path).name != "step-000004":
                return function(path, *args, **kwargs)
            if not kwargs.get("ignore_errors"):
                raise PermissionError(errno.EACCES, "The file is in use", str(path))

        return checked

    shutil.rmtree(folder / "run")
    for module, name in ((os, "replace"), (os, "rename"), (shutil, "rmtree")):
        monkeypatch.setattr(module, name, unless_in_use(getattr(module, name)))
    gpt_train.cli(train_options(folder))
    assert_same_weights(folder / "run", finished / "run")
    assert (folder / "run" / "checkpoints" / "step-000004").is_dir()


# A full disk


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("file", [1, 2])
def test_disk_full_while_saving(file, folder, finished, refused, monkeypatch):
    shutil.rmtree(folder / "run")
    save, calls = checkpoint.save_file, []

    def save_until_full(tensors, path, metadata):
        calls.append(path)
        if len(calls) == 2 + file:  # of the second checkpoint
            path.write_bytes(b"half a file")
            no_space()
        save(tensors, path, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", save_until_full)
        error = refused(gpt_train.cli, *train_options(folder))
    assert "No space left" in error
    assert "step-000004 is intact" in error
    assert [path.name for path in checkpoints(folder / "run")] == ["step-000004"]
    assert len(list((folder / "run" / "checkpoints").iterdir())) == 1
    gpt_generate.cli(generate_options(folder, "--prompt", "The"))
    gpt_train.cli(train_options(folder, "--resume"))
    assert_same_weights(folder / "run", finished / "run")


def test_disk_full_at_the_first_checkpoint(folder, refused, monkeypatch):
    shutil.rmtree(folder / "run")
    monkeypatch.setattr(checkpoint, "save_file", no_space)
    error = refused(gpt_train.cli, *train_options(folder))
    assert "there is no earlier one" in error


def test_the_system_stops_a_file_from_growing(folder, finished, refused, monkeypatch):
    """For real: the weights still fit, the optimizer's state does not."""
    resource = pytest.importorskip("resource")
    size = (latest_checkpoint(folder / "run") / WEIGHTS).stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    save = resumable.save_checkpoint

    def save_with_limit(*args):
        step = args[-1]["step"]
        limit = size + 1000 if step > 4 else soft
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            return save(*args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    shutil.rmtree(folder / "run")
    with monkeypatch.context() as patch:
        patch.setattr(resumable, "save_checkpoint", save_with_limit)
        error = refused(gpt_train.cli, *train_options(folder))
    assert "step-000004 is intact" in error
    assert len(list((folder / "run" / "checkpoints").iterdir())) == 1
    gpt_train.cli(train_options(folder, "--resume"))
    assert_same_weights(folder / "run", finished / "run")


def test_disk_full_while_writing_metrics(folder, finished, refused, monkeypatch):
    shutil.rmtree(folder / "run")
    dumps, calls = json.dumps, []

    def dumps_until_full(record, *args, **kwargs):
        if isinstance(record, dict) and "train_loss" in record:
            calls.append(record)
            if len(calls) == 5:
                no_space()
        return dumps(record, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(json, "dumps", dumps_until_full)
        error = refused(gpt_train.cli, *train_options(folder))
    assert "metrics.jsonl" in error
    gpt_train.cli(train_options(folder, "--resume"))
    assert_same_weights(folder / "run", finished / "run")


def test_disk_full_while_drawing(finished, tmp_path, refused, monkeypatch):
    folder = shutil.copytree(finished, tmp_path / "copy")
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", no_space)
    error = refused(gpt_train.cli, *train_options(folder, "--resume"))
    assert "loss-plot.png" in error
    assert_same_weights(folder / "run", finished / "run")


# A run that diverges


def test_a_learning_rate_that_is_too_high(folder, refused):
    error = refused(
        gpt_train.cli, *train_options(folder, "--lr", "1e30", "--out-dir", folder / "x")
    )
    assert "lower --lr" in error
    for path in (folder / "x").glob("metrics.jsonl"):
        for line in path.read_text("utf-8").splitlines():
            json.loads(line, parse_constant=pytest.fail)  # JSON has no NaN


def test_broken_weights_do_not_replace_good_ones(folder, refused, monkeypatch):
    shutil.rmtree(folder / "run")
    loss_of, calls = resumable.calc_loss_batch, []

    def diverge(*args):
        calls.append(args)
        return loss_of(*args) * (float("nan") if len(calls) > 9 else 1)

    monkeypatch.setattr(resumable, "calc_loss_batch", diverge)
    options = ("--eval-freq", 100, "--save-every", 1)
    assert "--lr" in refused(gpt_train.cli, *train_options(folder, *options))
    assert [folder.name for folder in checkpoints(folder / "run")] == [
        "step-000008",
        "step-000009",
    ]
    for tensor in load_file(latest_checkpoint(folder / "run") / WEIGHTS).values():
        assert tensor.isfinite().all()


# Prompts

FOREIGN = "Zürich 5 € 😀 👩‍👩‍👧 汉字 العربية e\u0301 <|endoftext|>"


def standard_input(monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_long_prompt_is_cropped(finished, written, refused):
    words = " ".join(["river"] * 3 * CONTEXT)
    out, err = written(gpt_generate.cli, *generate_options(finished, "--prompt", words))
    assert out.startswith(words)
    assert err.count("\n") == 1
    assert f"{3 * CONTEXT} tokens" in err
    assert f"the last {CONTEXT}" in err

    # What the model saw are the last tokens
    last = " ".join(["river"] * CONTEXT)
    expected = written(
        gpt_generate.cli, *generate_options(finished, "--prompt", f" {last}")
    )
    assert out[len(words) :] == expected.out[len(last) + 1 :]
    assert expected.err == ""


def test_long_prompt_for_the_samples(folder, written):
    shutil.rmtree(folder / "run")
    words = " ".join(["river"] * 3 * CONTEXT)
    out, _ = written(gpt_train.cli, *train_options(folder, "--prompt", words))
    assert out.count(words) == 2


def test_prompt_from_standard_input(finished, written, refused, monkeypatch):
    options = generate_options(finished)
    expected = written(gpt_generate.cli, *options, "--prompt", FOREIGN).out
    for content in (
        FOREIGN.encode(),
        f"{FOREIGN}\n".encode(),
        f"{FOREIGN}\r\n".encode(),
        f"\ufeff{FOREIGN}\n".encode(),  # as PowerShell pipes it
    ):
        standard_input(monkeypatch, content)
        assert written(gpt_generate.cli, *options).out == expected
    for content in (b"", b"\n", b"\r\n"):
        standard_input(monkeypatch, content)
        assert "--prompt" in refused(gpt_generate.cli, *options)
    monkeypatch.setattr(sys, "stdin", None)  # closed, as a service starts programs
    assert "--prompt" in refused(gpt_generate.cli, *options)
    standard_input(monkeypatch, "Zürich".encode("latin-1"))
    assert "not UTF-8" in refused(gpt_generate.cli, *options)
    # Given as an option, standard input is left alone
    standard_input(monkeypatch, b"\xff")
    assert written(gpt_generate.cli, *options, "--prompt", FOREIGN).out == expected


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii"])
def test_prompt_outside_ascii(encoding, folder, monkeypatch):
    """Also where the terminal, or a redirected output on Windows, lacks characters."""
    small = {**TINY[0], "n_layers": 1}
    monkeypatch.setattr(gpt, "GPT_CONFIG_124M", small)
    shutil.rmtree(folder / "run")
    for script, options in (
        (gpt_train.cli, train_options(folder, "--epochs", 1, "--prompt", FOREIGN)),
        (gpt_generate.cli, generate_options(folder, "--prompt", FOREIGN)),
        (gpt.cli, ["--prompt", FOREIGN, "--max-new-tokens", "3"]),
    ):
        output = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
        monkeypatch.setattr(sys, "stdout", output)
        script(options)
        shown = FOREIGN.encode(encoding, errors="replace")
        assert shown in output.buffer.getvalue(), NAMES[script]


def test_prompt_the_shell_could_not_decode(finished, written):
    """Bytes that are no UTF-8 reach Python as lone surrogates."""
    prompt = os.fsdecode(b"Z\xfcrich") if os.name != "nt" else "Z\udcfcrich"
    out, _ = written(gpt_generate.cli, *generate_options(finished, "--prompt", prompt))
    assert "rich" in out


def test_the_end_token_in_a_prompt_is_one_token(finished):
    ids = gpt_train.text_to_token_ids("<|endoftext|>", get_tokenizer())
    assert ids.tolist() == [[50256]]
