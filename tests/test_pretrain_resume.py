"""Runs of ch05/gutenberg/pretrain.py: stopped, resumed, shared out, refused.

The runs are tiny but complete: real shards, the course's tokenizer, evaluations,
samples. A stop is an exception, a signal, or a real `kill -9`; several processes are
those of torchrun.
"""

import math
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from itertools import count
from pathlib import Path
from subprocess import PIPE
from types import SimpleNamespace

import pytest
import test_resume
import torch
from conftest import ROOT
from safetensors.torch import load_file
from test_resume import (
    KILL,
    Died,
    act_at_call,
    assert_checkpoints_are_whole,
    die,
    is_any_call,
    is_replace,
    leftovers,
    snapshot,
)

from ch02.cli import InputError
from ch02.dataloader import get_tokenizer, load_text
from ch04.gpt import GPT_CONFIG_124M
from ch05 import checkpoint, gpt_generate, gpt_train
from ch05.checkpoint import (
    WEIGHTS,
    checkpoints,
    is_tied,
    latest_checkpoint,
    load_model,
    load_position,
)
from ch05.gutenberg import pretrain, training
from ch05.gutenberg.recipe import (
    Windows,
    learning_rate,
    memory_needed,
    token_lengths,
)
from ch05.gutenberg.shards import TokenShards, write_shards
from ch05.gutenberg.training import SAMPLER

STEPS, EVAL_FREQ, SAVE_EVERY = 12, 5, 4
OPTIONS = {
    "--emb-dim": 8,
    "--n-layers": 1,
    "--n-heads": 2,
    "--context-length": 8,
    "--tokens": STEPS * 4 * 8,
    "--batch-size": 4,
    "--lr": 1e-2,
    "--warmup": 3,
    "--dtype": "fp32",
    "--device": "cpu",
    "--eval-freq": EVAL_FREQ,
    "--eval-windows": 3,
    "--save-every": SAVE_EVERY,
}


@pytest.fixture(autouse=True, scope="module")
def _small_and_quick():
    """One thread; the lengths of all tokens are counted once."""
    lengths, threads = token_lengths(get_tokenizer()), torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "token_lengths", lambda _: lengths)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _ctrl_c_works():
    """Also where the tests run in the background, for which a shell ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three books, in shards of 100 tokens; 12 steps pass over them more than once."""
    folder, text = tmp_path_factory.mktemp("data"), load_text("bundled")
    pieces = text[:600], text[600:1200], text[1200:1600]
    books = zip(("train", "train", "val"), pieces, strict=True)
    write_shards(
        folder,
        (
            (
                {"split": split, "bytes": len(book.encode())},
                get_tokenizer().encode(book),
            )
            for split, book in books
        ),
        shard_tokens=100,
    )
    assert len(list(folder.glob("train-*.bin"))) > 1
    assert 32 < Windows(TokenShards(folder, "train"), 8).count < STEPS * 4
    return folder


def arguments(data, out_dir, *options):
    """A command line: OPTIONS and what replaces or adds to them."""
    fixed = {**OPTIONS, "--data": data, "--out-dir": out_dir}
    return [str(part) for pair in fixed.items() for part in pair] + [
        str(option) for option in options
    ]


@pytest.fixture(scope="module")
def train(data):
    """Run the command line; returns its exit code."""

    def run(out_dir, *options):
        try:
            pretrain.cli(arguments(data, out_dir, *options))
        except SystemExit as end:
            return end.code
        return 0

    return run


@pytest.fixture(scope="module")
def finished(train, tmp_path_factory):
    """The folders of two runs that nothing interrupted."""
    folder = tmp_path_factory.mktemp("finished")
    for dtype in ("fp32", "bf16"):
        assert train(folder / dtype, "--dtype", dtype) == 0
    return folder


@pytest.fixture
def run_dir(tmp_path):
    return tmp_path / "run"


# As of gpt_train's runs, but their records have another time
metrics = partial(test_resume.metrics, times=("seconds",))
assert_same = partial(test_resume.assert_same, read=metrics)


def stop_in(monkeypatch, name, call, stop):
    """Let `stop` happen in a certain call of a function the run uses."""
    original, calls = getattr(training, name), count(1)

    def stopping(*args, **kwargs):
        if next(calls) == call:
            stop()
        return original(*args, **kwargs)

    monkeypatch.setattr(training, name, stopping)


# One run


def test_what_a_run_tells_and_keeps(train, run_dir, capsys):
    assert train(run_dir) == 0
    out = capsys.readouterr().out
    records = metrics(run_dir)
    steps = [5, 10, 12]  # every EVAL_FREQ steps, and the last
    assert [record["step"] for record in records] == steps
    for record in records:
        step = record["step"]
        assert record["tokens_seen"] == step * 4 * 8
        assert record["learning_rate"] == learning_rate(step - 1, STEPS, 3, 1e-2)
        assert f"Step {step:6d}, {step * 32} tokens: train loss" in out
        assert f"val {record['val_bits_per_byte']:.4f} bits per byte" in out
    assert out.count("    It was a") == 3
    assert records[0]["train_loss"] > 10  # near ln 50257
    assert records[-1]["train_loss"] < records[0]["train_loss"] - 0.1
    names = [folder.name for folder in checkpoints(run_dir)]
    assert names == ["step-000008", "step-000012"]
    assert f"--checkpoint {run_dir}" in out


def test_generates_from_a_run(finished, capsys):
    model, config = load_model(finished / "fp32")
    assert is_tied(model)
    assert config["emb_dim"] == 8
    tokenizer = get_tokenizer()
    ids = torch.tensor([tokenizer.encode("It was a")])
    expected = tokenizer.decode(gpt_generate.generate(model, ids, 5, 8)[0].tolist())
    command = ["--checkpoint", finished / "fp32", "--prompt", "It was a"]
    command += ["--max-new-tokens", 5, "--device", "cpu"]
    gpt_generate.cli([str(part) for part in command])
    assert capsys.readouterr().out == expected + "\n"


def test_samples_do_not_depend_on_when_they_are_drawn(data, finished):
    run = SimpleNamespace(
        settings={"config": {"context_length": 8}, "seed": 123},
        world=SimpleNamespace(device=torch.device("cpu")),
        model=load_model(finished / "fp32")[0],
    )
    texts = {training.Pretraining.continuation(run, "It was") for _ in range(2)}
    assert len(texts) == 1
    assert texts.pop().startswith("It was")
    assert run.model.training
    assert SAMPLER.temperature > 0


# Stopped at one place


@pytest.mark.parametrize(
    ("function", "call", "dtype"),
    [
        ("calc_loss_batch", 2, "fp32"),  # before the first step
        ("calc_loss_batch", 5, "fp32"),  # before the first checkpoint
        ("calc_loss_batch", 10, "bf16"),  # between two evaluations
        ("append_metrics", 2, "fp32"),  # evaluated, but not recorded
        ("sample", 2, "bf16"),  # recorded, but not saved
        ("save_checkpoint", 2, "fp32"),
        ("save_checkpoint", 3, "bf16"),  # all steps done, but not saved
    ],
)
def test_dies_and_resumes(function, call, dtype, train, finished, run_dir, monkeypatch):
    with monkeypatch.context() as patch:
        stop_in(patch, function, call, die)
        with pytest.raises(Died):
            train(run_dir, "--dtype", dtype)
    assert train(run_dir, "--dtype", dtype, "--resume") == 0
    assert_same(run_dir, finished / dtype)


def test_resumes_after_every_single_step(train, finished, tmp_path, monkeypatch):
    """Between evaluations too: their mean loss is that of all steps since the last."""
    every = tmp_path / "every"
    with monkeypatch.context() as patch:
        save = checkpoint.save_checkpoint
        patch.setattr(training, "save_checkpoint", lambda *a: save(*a, keep=STEPS))
        assert train(every, "--save-every", 1) == 0
    saved = checkpoints(every)
    assert len(saved) == STEPS
    for folder in saved[:-1]:
        run_dir = tmp_path / folder.name
        shutil.copytree(folder, run_dir / "checkpoints" / folder.name)
        # With the records of later steps, as a killed run leaves them
        shutil.copy(every / "metrics.jsonl", run_dir)
        assert train(run_dir, "--resume", "--save-every", 100) == 0
        assert_same(run_dir, finished / "fp32")
        shutil.rmtree(run_dir)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("function", "call", "saved_at"),
    [("calc_loss_batch", 9, 6), ("append_metrics", 1, 5), ("save_checkpoint", 1, 5)],
)
def test_a_signal_saves_before_leaving(
    number, function, call, saved_at, train, finished, run_dir, monkeypatch, capsys
):
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        stop_in(patch, function, call, lambda: signal.raise_signal(number))
        assert train(run_dir) == 128 + number
    out, err = capsys.readouterr()
    assert f"saved in {run_dir}; --resume continues this run" in out
    assert "Traceback" not in err
    assert handlers == [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    assert latest_checkpoint(run_dir).name == f"step-{saved_at:06d}"
    assert train(run_dir, "--resume") == 0
    assert f"Going on after step {saved_at}." in capsys.readouterr().out
    assert_same(run_dir, finished / "fp32")


def test_a_signal_in_the_last_step_lets_the_run_finish(
    train, finished, run_dir, monkeypatch
):
    with monkeypatch.context() as patch:
        stop_in(patch, "append_metrics", 3, lambda: signal.raise_signal(signal.SIGINT))
        assert train(run_dir) == 0
    assert_same(run_dir, finished / "fp32")


# kill -9, in processes of their own


def in_process(arguments, log, moment, counts=is_any_call, number=KILL, environment=()):
    """What a child does: the command line, with a signal for itself at a moment.

    moment: how many calls after the optimizer was made, or None.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    os.environ.update(environment)
    create = training.create_optimizer

    def create_and_set_the_trap(*args):
        optimizer = create(*args)
        if moment is not None:
            act_at_call(counts, moment, lambda: os.kill(os.getpid(), number))
        return optimizer

    training.create_optimizer = create_and_set_the_trap
    with log.open("a") as file, redirect_stdout(file), redirect_stderr(file):
        pretrain.cli(arguments)


@pytest.fixture(scope="module")
def child():
    """Start a process that runs `in_process`; forked from one that has PyTorch."""
    if sys.platform == "linux":
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["ch05.gutenberg.training", "torch._dynamo"])
    else:
        context = multiprocessing.get_context("spawn")
    children = []

    def start(*args, **options):
        process = context.Process(target=in_process, args=args, kwargs=options)
        process.start()
        children.append(process)
        return process

    yield start
    for process in children:
        process.kill()


def test_kills_at_random_moments(child, data, train, finished, run_dir):
    """A moment is a number of function calls since the loop began, so it falls
    anywhere: in a forward pass, in an evaluation, in a half-saved checkpoint."""
    moments, reached = random.Random(2), [0]
    log = run_dir.with_name("log.txt")
    for kill in range(4):
        options = ["--save-every", 1, *(["--resume"] if kill else [])]
        moment = moments.randrange(6_000, 36_000)
        process = child(arguments(data, run_dir, *options), log, moment)
        process.join(120)
        assert process.exitcode == -KILL, log.read_text()
        assert_checkpoints_are_whole(run_dir)
        if newest := latest_checkpoint(run_dir):
            reached.append(load_position(newest)["step"])
    # Killed at different places, and never at the end
    assert reached == sorted(reached)
    assert len(set(reached)) > 2
    assert reached[-1] < STEPS
    assert train(run_dir, "--resume") == 0
    assert_same(run_dir, finished / "fp32")


def test_a_kill_while_a_checkpoint_is_written(child, data, train, finished, run_dir):
    log = run_dir.with_name("log.txt")
    process = child(arguments(data, run_dir), log, 1, is_replace)
    process.join(120)
    assert process.exitcode == -KILL, log.read_text()
    assert leftovers(run_dir)
    assert train(run_dir, "--resume") == 0
    assert not leftovers(run_dir)
    assert_same(run_dir, finished / "fp32")


# Two processes

INTERRUPT = """
import os, signal, time
from ch05.gutenberg import pretrain, training

signal.signal(signal.SIGINT, signal.default_int_handler)
train_step = training.Pretraining.train_step


def train_and_interrupt(self):
    train_step(self)
    if self.step == 7 and self.world.rank == 1:
        os.kill(os.getppid(), signal.SIGINT)  # torchrun, which passes it on
        while signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            time.sleep(0.01)  # until `stop_requests` has noted it


training.Pretraining.train_step = train_and_interrupt
pretrain.cli()
"""
needs_torchrun = pytest.mark.skipif(os.name == "nt", reason="needs gloo and signals")


@pytest.fixture(scope="module")
def stopped(data, tmp_path_factory):
    """The folder of a run of two processes under torchrun, stopped by Ctrl-C."""
    folder = tmp_path_factory.mktemp("stopped")
    script = folder / "interrupt.py"
    script.write_text(INTERRUPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", script]
    command += arguments(data, folder / "run", "--micro-batch", 1)
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=PIPE,
        stderr=PIPE,
        text=True,
        encoding="utf-8",
    ) as process:
        try:
            out, err = process.communicate(timeout=200)
        except subprocess.TimeoutExpired:
            process.terminate()  # torchrun ends its processes, then itself
            raise
    assert process.returncode not in (0, 2)  # torchrun says that it was interrupted
    assert "[rank" not in err, err  # where PyTorch shows a process's traceback
    assert out.count("--resume continues this run") == 1, err  # one of the two prints
    return folder / "run"


@pytest.fixture
def start_two(child, tmp_path):
    """Start two processes with what torchrun tells them; returns their exit codes."""

    def start(arguments):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        processes = []
        for rank in range(2):
            environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            environment |= {"RANK": str(rank), "WORLD_SIZE": "2"}
            log = tmp_path / f"log{rank}.txt"
            process = child(arguments, log, None, environment=environment)
            processes.append(process)
        for process in processes:
            process.join(120)
        return [process.exitcode for process in processes]

    return start


def assert_close(run_dir, expected_dir, tolerance):
    """Both are the same training, up to the order in which numbers were added."""
    ours, theirs = (latest_checkpoint(folder) for folder in (run_dir, expected_dir))
    assert ours.name == theirs.name
    weights, expected = load_file(ours / WEIGHTS), load_file(theirs / WEIGHTS)
    assert weights.keys() == expected.keys()
    for name, tensor in weights.items():
        # A softmax does not feel this bias: its gradient is noise
        if not name.endswith("W_key.bias"):
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=tolerance)
    records = zip(metrics(run_dir), metrics(expected_dir), strict=True)
    for record, expected in records:
        assert record == pytest.approx(expected, rel=tolerance)


@needs_torchrun
def test_two_processes_train_what_one_trains_and_go_on_after_a_stop(
    stopped, start_two, train, data, finished, tmp_path, capsys
):
    whole, two, one = (tmp_path / name for name in ("whole", "two", "one"))
    options = ["--micro-batch", 1]  # two of them in each process
    assert start_two(arguments(data, whole, *options)) == [0, 0]
    assert_close(whole, finished / "fp32", 1e-5)
    assert "Saved in" in (tmp_path / "log0.txt").read_text()
    assert (tmp_path / "log1.txt").read_text() == ""

    names = [folder.name for folder in checkpoints(stopped)]
    assert names == ["step-000004", "step-000007"]
    for run_dir in (two, one):
        shutil.copytree(stopped, run_dir)
    assert start_two(arguments(data, two, *options, "--resume")) == [0, 0]
    assert_close(two, whole, 1e-7)
    expected = load_file(latest_checkpoint(whole) / WEIGHTS)
    for name, tensor in load_file(latest_checkpoint(two) / WEIGHTS).items():
        assert torch.equal(tensor, expected[name]), name

    # One process goes on too, if its micro-batches stay as small
    assert train(one, "--resume") == 2
    assert "micro_batch 1 there, 4 now" in capsys.readouterr().err
    assert train(one, "--resume", *options) == 0
    assert_close(one, whole, 1e-5)


@needs_torchrun
def test_two_processes_that_are_refused_do_not_wait(
    start_two, data, finished, run_dir, tmp_path
):
    shutil.copytree(finished / "fp32", run_dir)
    before = snapshot(run_dir)
    codes = start_two(arguments(data, run_dir, "--seed", 7))
    assert codes[0] == 2
    assert codes[1] not in (0, None)
    assert "seed 123 there, 7 now" in (tmp_path / "log0.txt").read_text()
    assert snapshot(run_dir) == before


# Bad input


@pytest.fixture
def refused(train, capsys):
    """Expect exit code 2 and one line on stderr, which is returned."""

    def run(*args):
        capsys.readouterr()
        code = train(*args)
        error = capsys.readouterr().err
        assert code == 2, error
        assert error.count("\n") == 1, error
        assert error.startswith("pretrain: ")
        return error

    return run


@pytest.mark.parametrize(
    ("option", "values"),
    [
        (
            "--tokens",
            ["0", "-5", "0.4", "1e6", "20m", "M", "", "nan", "1.5.2", "9" * 400],
        ),
        ("--batch-size", ["0", "-1", "1.5", "x"]),
        ("--micro-batch", ["0", "3", "8"]),
        ("--lr", ["0", "-1", "nan", "inf"]),
        ("--weight-decay", ["-0.1", "nan", "inf", "x"]),
        ("--emb-dim", ["0", "9"]),  # not a multiple of 2 heads
        ("--n-heads", ["3", "16", "0"]),
        ("--n-layers", ["0"]),
        ("--seed", ["-1", str(2**63)]),
        ("--prompt", ["", "  "]),
        ("--order", ["reverse"]),
        ("--dtype", ["fp16"]),
        ("--device", ["gpu"]),
    ],
)
def test_wrong_option(option, values, run_dir, refused):
    for value in values:
        error = refused(run_dir, f"{option}={value}")
        assert option in error or (value and value in error), error
        assert not run_dir.exists()


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1", 1),
        ("384", 384),
        ("0.5k", 500),
        ("500k", 500_000),
        ("20M", 20_000_000),
        ("1.5B", 1_500_000_000),
    ],
)
def test_numbers_of_tokens(text, count, data):
    args = pretrain.parse_args(arguments(data, "run", "--tokens", text))
    assert args.tokens == count
    world = SimpleNamespace(size=1, device=torch.device("cpu"))
    steps = pretrain.collect_settings(args, world)["num_steps"]
    assert (steps - 1) * 32 < count <= steps * 32


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        (lambda: {"avx512_bf16": True}, "bf16"),
        (lambda: {"avx512_bf16": False}, "fp32"),
        (dict, "fp32"),  # another processor
        (None, "fp32"),  # an older PyTorch
    ],
)
def test_bf16_where_the_processor_computes_in_it(capabilities, dtype, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", capabilities, raising=False)
    if capabilities is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities")
    cpu = torch.device("cpu")
    assert pretrain.pick_dtype("auto", cpu) == dtype
    assert pretrain.pick_dtype("auto", torch.device("mps")) == "fp32"
    assert [pretrain.pick_dtype(name, cpu) for name in ("fp32", "bf16")] == [
        "fp32",
        "bf16",
    ]


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_every_seed_trains(seed, train, run_dir):
    assert train(run_dir, "--seed", seed, "--tokens", "0.064k") == 0
    assert latest_checkpoint(run_dir).name == "step-000002"


@pytest.mark.parametrize(
    ("case", "word"),
    [
        ("nothing", "prepare_dataset"),
        ("truncated", "train-0001.bin"),
        ("altered", "val-0000.bin"),
        ("missing", "train-0000.bin"),
        ("damaged", "manifest.json"),
        ("short", "lower --context-length"),
    ],
)
def test_data_that_cannot_be_used(case, word, data, tmp_path, refused):
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    options = ["--data", folder]
    if case == "nothing":
        options = ["--data", tmp_path / "nothing"]
    elif case == "truncated":
        os.truncate(folder / word, 198)
    elif case == "altered":
        content = bytearray((folder / word).read_bytes())
        content[7] ^= 1
        (folder / word).write_bytes(content)
    elif case == "missing":
        (folder / word).unlink()
    elif case == "damaged":
        (folder / word).write_text('{"splits": ')
    else:
        options += ["--context-length", 150]  # longer than the validation split
    assert word in refused(tmp_path / "run", *options)
    assert case == "short" or not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("size", "options", "micro_batch"),
    [
        (1, [], 4),
        (2, [], 2),
        (4, [], 1),
        (2, ["--micro-batch", 1], 1),
        (3, [], None),
        (8, [], None),  # fewer windows than processes
        (2, ["--micro-batch", 4], None),
        (2, ["--batch-size", 6, "--micro-batch", 2], None),
    ],
)
def test_a_batch_is_shared_out_evenly_or_not_at_all(size, options, micro_batch, data):
    args = pretrain.parse_args(arguments(data, "run", *options))
    world = SimpleNamespace(size=size, device=torch.device("cpu"))
    if micro_batch:
        assert pretrain.collect_settings(args, world)["micro_batch"] == micro_batch
    else:
        with pytest.raises(InputError, match="cannot be shared out"):
            pretrain.collect_settings(args, world)


def test_too_little_memory(train, finished, run_dir, refused, monkeypatch):
    config = load_model(finished / "fp32")[1]
    needed = memory_needed(config, 4)
    assert memory_needed(config, 2) < needed
    monkeypatch.setattr(pretrain, "free_memory", lambda: needed - 1)
    assert "choose a smaller --micro-batch" in refused(run_dir)
    assert not run_dir.exists()
    assert train(run_dir, "--micro-batch", 2) == 0
    for free in (needed, None):  # as much as it takes, or a system that does not tell
        monkeypatch.setattr(pretrain, "free_memory", lambda free=free: free)
        assert train(run_dir, "--out-dir", run_dir.with_name(f"{free}")) == 0


def test_too_little_memory_on_the_way(run_dir, refused, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\n20 MiB")

    for name in ("loss", "train_step"):
        with monkeypatch.context() as patch:
            patch.setattr(training.Pretraining, name, fail)
            assert "choose a smaller --micro-batch" in refused(run_dir)


def test_compile_without_a_compiler(run_dir, refused, monkeypatch):
    def fail(*_):
        raise RuntimeError("no working C++ compiler\nSet TORCH_LOGS")

    monkeypatch.setattr(torch, "compile", lambda model: fail)
    assert "no working C++ compiler): leave it out" in refused(run_dir, "--compile")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--seed", 7], "seed 123 there, 7 now"),
        (["--lr", 0.1], "learning_rate"),
        (["--tokens", "1k"], "num_steps"),
        (["--emb-dim", 16], "config"),
        (["--order", "sequential"], "shuffle"),
        (["--dtype", "bf16"], "dtype"),
        (["--eval-freq", 1], "eval_freq"),
    ],
)
@pytest.mark.parametrize("resume", [True, False])
def test_another_run_is_not_overwritten(
    options, word, resume, finished, run_dir, refused
):
    shutil.copytree(finished / "fp32", run_dir)
    before = snapshot(run_dir)
    error = refused(run_dir, *options, *(["--resume"] if resume else []))
    assert word in error
    assert ("cannot resume" if resume else "another --out-dir") in error
    assert snapshot(run_dir) == before


@pytest.mark.parametrize("options", [[], ["--resume"], ["--save-every", 3]])
def test_a_finished_run_stays_as_it_is(options, train, finished, run_dir, capsys):
    shutil.copytree(finished / "fp32", run_dir)
    before = snapshot(run_dir)
    assert train(run_dir, *options) == 0
    assert capsys.readouterr().out == f"{run_dir} holds this run, finished.\n"
    assert snapshot(run_dir) == before


def test_an_unfinished_run_is_not_overwritten(train, run_dir, refused, monkeypatch):
    with monkeypatch.context() as patch:
        stop_in(patch, "save_checkpoint", 2, die)
        with pytest.raises(Died):
            train(run_dir)
    before = snapshot(run_dir)
    error = refused(run_dir)
    assert "unfinished run (step 4): add --resume" in error
    assert snapshot(run_dir) == before


@pytest.mark.parametrize("lr", [1e30, 1e38])
@pytest.mark.parametrize("every", [(1, 100), (100, 1), (3, 3), (100, 100)])
def test_a_learning_rate_that_is_too_high(lr, every, run_dir, refused):
    eval_freq, save_every = every
    options = ["--lr", lr, "--eval-freq", eval_freq, "--save-every", save_every]
    error = refused(run_dir, *options)
    assert error.endswith("lower --lr\n")
    assert "finite" in error
    for record in metrics(run_dir):
        assert math.isfinite(record["train_loss"] + record["val_bits_per_byte"])
    for folder in checkpoints(run_dir):
        assert all(t.isfinite().all() for t in load_file(folder / WEIGHTS).values())


def test_folders_of_another_kind_of_training(
    data, train, finished, tmp_path, refused, monkeypatch, capsys
):
    sizes = {"context_length": 8, "emb_dim": 8, "n_heads": 2, "n_layers": 1}
    settings = {"learning_rate": 1e-2, "num_epochs": 1, "batch_size": 2}
    settings |= {"weight_decay": 0.1, "eval_freq": 3}
    tiny = (GPT_CONFIG_124M | sizes, settings)
    monkeypatch.setitem(gpt_train.MODELS, "tiny", tiny)
    monkeypatch.setattr(gpt_train, "save_plot", lambda *_: None)
    (tmp_path / "story.txt").write_text(load_text("bundled")[:500], "utf-8")
    command = ["--model", "tiny", "--device", "cpu", "--text", tmp_path / "story.txt"]
    command = [str(part) for part in (*command, "--out-dir")]
    gpt_train.cli([*command, str(tmp_path / "theirs")])
    shutil.copytree(finished / "fp32", tmp_path / "ours")

    for resume in ([], ["--resume"]):
        before = snapshot(tmp_path)
        error = refused(tmp_path / "theirs", *resume)
        assert "another kind of training" in error
        with pytest.raises(SystemExit) as end:
            gpt_train.cli([*command, str(tmp_path / "ours"), *resume])
        error = capsys.readouterr().err
        assert end.value.code == 2
        assert error.count("\n") == 1
        assert "another kind of training" in error
        assert "another --out-dir" in error
        assert snapshot(tmp_path) == before


def test_out_dir_that_cannot_be_written(finished, run_dir, refused, monkeypatch):
    run_dir.write_text("a file")
    assert f"cannot write to {run_dir}" in refused(run_dir)
    assert run_dir.read_text() == "a file"
    run_dir.unlink()
    shutil.copytree(finished / "fp32", run_dir)
    before = snapshot(run_dir)

    def no_rights(path, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "touch", no_rights)
    assert f"cannot write to {run_dir}: Permission denied" in refused(run_dir)
    assert snapshot(run_dir) == before


def test_tensorboard_that_is_not_there(run_dir, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert "pip install tensorboard" in refused(run_dir, "--tensorboard")


def test_tensorboard_shows_what_is_recorded(train, run_dir, monkeypatch):
    """Also after a stop: points of steps that are done again do not show twice."""
    pytest.importorskip("tensorboard", reason="an optional package")
    from tensorboard.backend.event_processing import event_accumulator

    with monkeypatch.context() as patch:
        stop_in(patch, "sample", 2, die)  # recorded at step 10, saved at step 8
        with pytest.raises(Died):
            train(run_dir, "--tensorboard")
    assert train(run_dir, "--tensorboard", "--resume") == 0
    events = event_accumulator.EventAccumulator(str(run_dir)).Reload()
    for name in ("train_loss", "val_bits_per_byte", "learning_rate"):
        points = [(event.step, event.value) for event in events.Scalars(name)]
        expected = [
            (record["tokens_seen"], record[name]) for record in metrics(run_dir)
        ]
        assert points == [pytest.approx(point) for point in expected]
