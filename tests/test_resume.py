"""A run that was stopped, in whatever way, continues bit for bit.

The runs are tiny but complete: the course's tokenizer, dropout, evaluation, samples. A
stop is an exception, a signal, or a real `kill -9` of a process of its own, at places
chosen one by one and at random.
"""

import io
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import partial

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ch02.dataloader import load_text
from ch04.gpt import GPT_CONFIG_124M, GPTModel
from ch05 import checkpoint, gpt_train, resumable
from ch05.checkpoint import TRAINING, WEIGHTS, checkpoints, latest_checkpoint

TINY = (
    {
        **GPT_CONFIG_124M,  # with its dropout: random numbers matter
        "context_length": 8,
        "emb_dim": 8,
        "n_heads": 2,
        "n_layers": 1,
    },
    {
        "learning_rate": 1e-2,
        "num_epochs": 2,
        "batch_size": 2,
        "weight_decay": 0.1,
        "eval_freq": 3,
    },
)
TEXT_LENGTH = 800  # characters of the story: 21 windows, of which 20 fill batches
STEPS = 20  # of the tiny run: 2 epochs of 10
SAVE_EVERY = 4
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows ends a process by either


class Died(BaseException):
    """Stands for a sudden end: nothing in the code under test may catch it."""


class Reached(BaseException):
    """Ends a run that came as far as the test wants."""


@pytest.fixture(scope="module", autouse=True)
def text():
    """Add the tiny model to `--model`, on one thread; the text it trains on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(gpt_train.MODELS, "tiny", TINY)
        patch.setattr(gpt_train, "save_plot", lambda *_: None)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield load_text("bundled")[:TEXT_LENGTH]
        torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _ctrl_c_works():
    """Also where the tests run in the background, for which a shell ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def text_file(text, tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "story.txt"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def train(text_file):
    """Run the command line; returns its exit code."""

    def run(out_dir, *options, save_every=SAVE_EVERY):
        code = 0
        try:
            gpt_train.cli(
                arguments(text_file, out_dir, *options, save_every=save_every)
            )
        except SystemExit as end:
            code = end.code
        return code

    return run


def arguments(text_file, out_dir, *options, save_every=SAVE_EVERY):
    fixed = ("--model", "tiny", "--device", "cpu", "--text", text_file)
    varying = ("--out-dir", out_dir, "--save-every", save_every, *options)
    return [str(argument) for argument in (*fixed, *varying)]


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


def final_state(run_dir, read=None):
    """All that a run leaves behind, without the times: dict from name to value."""
    newest = latest_checkpoint(run_dir)
    state = {"checkpoint": newest.name, "metrics": (read or metrics)(run_dir)}
    for name in (WEIGHTS, TRAINING):
        with safe_open(newest / name, framework="pt") as file:
            metadata = {k: json.loads(v) for k, v in file.metadata().items()}
        metadata.get("position", {}).pop("seconds", None)
        state[f"{name} metadata"] = metadata
        state |= {f"{name} {k}": t for k, t in load_file(newest / name).items()}
    return state


def metrics(run_dir, times=("seconds", "tokens_per_second")):
    """The lines of metrics.jsonl, each of them valid JSON, without the times."""
    lines = (run_dir / "metrics.jsonl").read_text("utf-8").splitlines()
    records = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    for record in records:
        for name in times:
            del record[name]
    return records


def assert_same(run_dir, expected_dir, read=None):
    ours, theirs = final_state(run_dir, read), final_state(expected_dir, read)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == theirs[name].dtype, name
            assert torch.equal(value, theirs[name]), name
        else:
            assert value == theirs[name], name


def stop_in(monkeypatch, name, count, stop):
    """Let `stop` happen in the count-th call of a function the loop uses."""
    original, calls = getattr(resumable, name), itertools.count(1)

    def stopping(*args, **kwargs):
        if next(calls) == count:
            stop()
        return original(*args, **kwargs)

    monkeypatch.setattr(resumable, name, stopping)


def die():
    raise Died


def reach():
    sys.setprofile(None)
    raise Reached


def snapshot(folder):
    """Every file below a folder with its content."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder): path.read_bytes() for path in files}


# The loop with extras is the book's loop


def test_the_command_line_computes_what_the_books_loop_computes(
    train, text_file, run_dir, monkeypatch
):
    monkeypatch.setenv("LLM_COURSE_TEXT", str(text_file))
    monkeypatch.setattr(gpt_train, "pick_device", lambda *_: torch.device("cpu"))
    train_losses, val_losses, tokens_seen, model = gpt_train.main(*TINY)

    # The book evaluates every 5 steps
    assert train(run_dir, "--eval-freq", 5) == 0
    records = metrics(run_dir)
    assert len(records) == STEPS // 5
    assert [record["train_loss"] for record in records] == train_losses
    assert [record["val_loss"] for record in records] == val_losses
    assert [record["tokens_seen"] for record in records] == tokens_seen
    weights = load_file(latest_checkpoint(run_dir) / WEIGHTS)
    assert weights.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(weights[name], tensor), name


def test_the_seed_matters_and_suffices(train, finished, tmp_path):
    assert train(tmp_path / "same") == 0
    assert_same(tmp_path / "same", finished / "fp32")
    assert train(tmp_path / "other", "--seed", 7) == 0
    assert metrics(tmp_path / "other") != metrics(finished / "fp32")


# Stopped at one place


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("function", "call"),
    [
        ("calc_loss_batch", 3),  # before the first checkpoint
        ("calc_loss_batch", 8),  # mid-epoch; steps since the checkpoint are lost
        ("calc_loss_batch", 11),  # at the first step of the second epoch
        ("evaluate_model", 4),  # its record is not written yet
        ("generate_and_print_sample", 1),  # after the last step of an epoch
        ("save_checkpoint", 2),
        ("generate_and_print_sample", 2),  # all steps done, but not saved
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
    """Epoch ends included: each checkpoint of a run leads to the same end."""
    every = tmp_path / "every"
    with monkeypatch.context() as patch:
        save = checkpoint.save_checkpoint
        patch.setattr(
            resumable, "save_checkpoint", lambda *args: save(*args, keep=STEPS)
        )
        assert train(every, save_every=1) == 0
    saved = checkpoints(every)
    assert [folder.name for folder in saved] == [
        f"step-{step:06d}" for step in range(1, STEPS + 1)
    ]
    for folder in saved:
        run_dir = tmp_path / folder.name
        shutil.copytree(folder, run_dir / "checkpoints" / folder.name)
        # With the records of later steps, as a killed run leaves them
        shutil.copy(every / "metrics.jsonl", run_dir)
        assert train(run_dir, "--resume", save_every=100) == 0
        assert_same(run_dir, finished / "fp32")
        shutil.rmtree(run_dir)


def test_dies_again_before_it_gets_anywhere(train, finished, run_dir, monkeypatch):
    for call in (6, 1, 2, 6, 3):
        with monkeypatch.context() as patch:
            stop_in(patch, "calc_loss_batch", call, die)
            with pytest.raises(Died):
                train(run_dir, "--resume")
    assert train(run_dir, "--resume") == 0
    assert_same(run_dir, finished / "fp32")


# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("function", "call"),
    [
        ("calc_loss_batch", 7),
        ("evaluate_model", 2),
        ("generate_and_print_sample", 1),
        ("save_checkpoint", 1),
    ],
)
def test_a_signal_saves_before_leaving(
    number, function, call, train, finished, run_dir, monkeypatch, capsys
):
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        stop_in(patch, function, call, lambda: signal.raise_signal(number))
        assert train(run_dir, save_every=5) == 128 + number
    out, err = capsys.readouterr()
    assert "--resume" in out
    assert "saved" in err
    assert "Traceback" not in err
    assert handlers == [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]

    # Not one finished step is lost
    saved_at = {"calc_loss_batch": 7, "evaluate_model": 4}
    saved_at |= {"generate_and_print_sample": 10, "save_checkpoint": 5}
    assert latest_checkpoint(run_dir).name == f"step-{saved_at[function]:06d}"
    assert train(run_dir, "--resume") == 0
    assert_same(run_dir, finished / "fp32")


def test_a_signal_in_the_last_step_lets_the_run_finish(
    train, finished, run_dir, monkeypatch
):
    with monkeypatch.context() as patch:
        stop_in(
            patch,
            "calc_loss_batch",
            STEPS,
            lambda: signal.raise_signal(signal.SIGINT),
        )
        assert train(run_dir) == 0
    assert_same(run_dir, finished / "fp32")


def test_an_ignored_ctrl_c_stays_ignored(train, finished, run_dir, monkeypatch):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with monkeypatch.context() as patch:
        stop_in(patch, "calc_loss_batch", 7, lambda: signal.raise_signal(signal.SIGINT))
        assert train(run_dir) == 0
    assert_same(run_dir, finished / "fp32")


def test_the_second_ctrl_c_gets_through(train, finished, run_dir, monkeypatch):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        stop_in(patch, "calc_loss_batch", 7, twice)
        with pytest.raises(KeyboardInterrupt):
            train(run_dir)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert train(run_dir, "--resume") == 0
    assert_same(run_dir, finished / "fp32")


# kill -9, in processes of their own


def act_at_call(counts, number, action):
    """From now on do `action` once, at the number-th call that `counts`.

    counts: takes what is being called, a C function or the code of a Python function.
    """
    seen = itertools.count(1)

    def profile(frame, event, called):
        if event not in ("call", "c_call"):
            return
        if counts(frame.f_code if event == "call" else called) and next(seen) == number:
            sys.setprofile(None)
            action()

    sys.setprofile(profile)


def is_any_call(called):
    return True


def is_replace(called):
    return called is os.replace


def is_fsync(called):
    return called is os.fsync


def touches_the_disk(called):
    module = getattr(called, "__module__", None)
    owner = getattr(called, "__self__", None)
    return module in ("posix", "nt", "io", "_io") or isinstance(owner, io.IOBase)


def end_process(number=KILL):
    os.kill(os.getpid(), number)


def send_twice(number):
    end_process(number)
    end_process(number)


def kill_at(counts, number, action=end_process):
    """A trap for `train_in_process`: where the process kills itself."""
    return partial(act_at_call, counts, number, action)


def kill_in_the_middle_of_a_file():
    """Another trap: the system kills whoever writes the millionth byte of a file."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))


def train_in_process(arguments, log, trap):
    """What a child process does: the command line, with a trap from the model on."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    gpt_train.MODELS["tiny"] = TINY
    gpt_train.save_plot = lambda *_: None
    create = gpt_train.create_optimizer

    def create_and_set_the_trap(*args):
        optimizer = create(*args)
        trap()
        return optimizer

    gpt_train.create_optimizer = create_and_set_the_trap
    with log.open("a") as file, redirect_stdout(file), redirect_stderr(file):
        gpt_train.cli(arguments)


@pytest.fixture(scope="module")
def killed(text_file):
    """Train in a process of its own that does not survive; returns its exit code.

    Where the system can, the processes are forked from one that has imported PyTorch
    but computed nothing, which saves seconds each.
    """
    if sys.platform == "linux":
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["ch05.resumable", "torch._dynamo"])
    else:
        context = multiprocessing.get_context("spawn")

    def run(trap, run_dir, *options, save_every=SAVE_EVERY):
        log = run_dir.with_name("log.txt")
        args = arguments(text_file, run_dir, *options, save_every=save_every)
        child = context.Process(target=train_in_process, args=(args, log, trap))
        child.start()
        child.join(120)
        if child.is_alive():
            child.kill()
            child.join()
            pytest.fail("the process did not end")
        assert child.exitcode not in (0, 1, 2), log.read_text()
        return child.exitcode

    return run


def assert_checkpoints_are_whole(run_dir):
    for folder in checkpoints(run_dir):
        assert load_file(folder / WEIGHTS)
        assert load_file(folder / TRAINING)


def leftovers(run_dir):
    """Whatever is beside the checkpoints."""
    return sorted(set((run_dir / "checkpoints").iterdir()) - set(checkpoints(run_dir)))


def test_five_kills_at_random_moments(killed, train, finished, run_dir):
    """A moment is a number of function calls since the loop began, so it falls
    anywhere: in a forward pass, in the data loader, in a half-saved checkpoint."""
    moments, reached = random.Random(4), [0]
    for kill in range(5):
        options = ["--resume"] if kill else []
        trap = kill_at(is_any_call, moments.randrange(5_000, 45_000))
        killed(trap, run_dir, *options, save_every=1)
        assert_checkpoints_are_whole(run_dir)
        if newest := latest_checkpoint(run_dir):
            reached.append(checkpoint.load_position(newest)["step"])
    # Killed at different places, and never at the end
    assert reached == sorted(reached)
    assert len(set(reached)) > 3
    assert reached[-1] < STEPS
    assert train(run_dir, "--resume") == 0
    assert_same(run_dir, finished / "fp32")


@pytest.mark.parametrize(
    "trap",
    [
        pytest.param(kill_at(is_replace, 2), id="written but not renamed"),
        pytest.param(kill_at(is_fsync, 3), id="one file of two written"),
        pytest.param(
            kill_in_the_middle_of_a_file,
            id="half a file written",
            marks=pytest.mark.skipif(os.name == "nt", reason="needs RLIMIT_FSIZE"),
        ),
    ],
)
def test_a_kill_while_a_checkpoint_is_written(trap, killed, train, finished, run_dir):
    killed(trap, run_dir)
    assert leftovers(run_dir)
    assert_checkpoints_are_whole(run_dir)
    # Other steps are saved now: the leftover must go all the same
    assert train(run_dir, "--resume", save_every=7) == 0
    assert not leftovers(run_dir)
    assert_same(run_dir, finished / "fp32")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize(
    ("send", "number", "code"),
    [
        (end_process, signal.SIGINT, 130),
        (end_process, signal.SIGTERM, 143),
        (send_twice, signal.SIGTERM, -signal.SIGTERM),
    ],
)
def test_what_the_system_sees_of_a_stopped_run(send, number, code, killed, run_dir):
    trap = kill_at(is_any_call, 10_000, partial(send, number))
    assert killed(trap, run_dir, save_every=1) == code
    assert_checkpoints_are_whole(run_dir)
    assert latest_checkpoint(run_dir)


# Dying at every single access to the disk


def dies_at(number, function):
    """Call the function, let it die at its number-th disk access; whether it did."""
    act_at_call(touches_the_disk, number, die)
    try:
        function()
    except Died:
        return True
    finally:
        sys.setprofile(None)
    return False


def test_no_moment_of_saving_endangers_a_checkpoint(tmp_path):
    config = {**TINY[0], "vocab_size": 11}
    model = GPTModel(config)
    optimizer = gpt_train.create_optimizer(model, TINY[1])
    loss = model(torch.tensor([[1, 2, 3]])).sum()
    loss.backward()
    optimizer.step()
    rng_states = {name: torch.get_rng_state() for name in ("cpu", "epoch_start")}

    def save(run_dir, step):
        model.out_head.weight.data.fill_(step)
        position = dict.fromkeys(checkpoint.POSITION, 0)
        position |= {"step": step, "settings": TINY[1]}
        checkpoint.save_checkpoint(
            run_dir, model, config, optimizer, rng_states, position
        )

    def newest_step(run_dir):
        fresh = GPTModel(config)
        _, position = checkpoint.load_checkpoint(
            latest_checkpoint(run_dir),
            fresh,
            gpt_train.create_optimizer(fresh, TINY[1]),
        )
        assert (fresh.out_head.weight == position["step"]).all()
        return position["step"]

    save(tmp_path / "before", 1)
    save(tmp_path / "before", 2)
    newest = []
    for number in itertools.count(1):
        run_dir = tmp_path / str(number)
        shutil.copytree(tmp_path / "before", run_dir)
        died = dies_at(number, partial(save, run_dir, 3))
        newest.append(newest_step(run_dir))
        assert_checkpoints_are_whole(run_dir)
        save(run_dir, 4)
        assert newest_step(run_dir) == 4
        assert len(checkpoints(run_dir)) == 2
        shutil.rmtree(run_dir)
        if not died:
            break
    # First the old one, from some moment on the new one
    assert newest == sorted(newest)
    assert newest[0] == 2
    assert newest.count(3) > 1


def test_no_moment_of_resuming_loses_a_metric(train, tmp_path, monkeypatch):
    stop_in(monkeypatch, "calc_loss_batch", 7, die)
    with pytest.raises(Died):
        train(tmp_path / "before")
    expected = metrics(tmp_path / "before")[:2]  # the checkpoint is at step 4
    assert [record["step"] for record in expected] == [0, 3]

    def resume_up_to_the_first_step(run_dir):
        with monkeypatch.context() as patch:
            stop_in(patch, "calc_loss_batch", 1, reach)
            with pytest.raises(Reached):
                train(run_dir, "--resume")

    for number in itertools.count(1):
        run_dir = tmp_path / str(number)
        shutil.copytree(tmp_path / "before", run_dir)
        died = dies_at(number, partial(resume_up_to_the_first_step, run_dir))
        assert_checkpoints_are_whole(run_dir)
        resume_up_to_the_first_step(run_dir)
        assert metrics(run_dir) == expected, f"died at disk access {number}"
        shutil.rmtree(run_dir)
        if not died:
            break
    assert number > 10


# What is kept, continued, refused


def test_only_the_two_newest_checkpoints_stay(train, run_dir):
    assert train(run_dir, save_every=3) == 0
    names = [folder.name for folder in checkpoints(run_dir)]
    assert names == ["step-000018", "step-000020"]


def test_newest_means_most_steps(tmp_path):
    """Also past a million steps, and whatever else a reader keeps in the folder."""
    names = ("step-000099", "step-999999", "step-1000000")
    for name in (*names, "step-1000000-mine", "step-notes"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert [folder.name for folder in checkpoints(tmp_path)] == list(names)
    assert latest_checkpoint(tmp_path).name == "step-1000000"


def test_more_epochs_continue_a_finished_run(train, tmp_path):
    assert train(tmp_path / "at once", "--epochs", 3) == 0
    assert train(tmp_path / "in parts", "--epochs", 1) == 0
    assert train(tmp_path / "in parts", "--epochs", 3, "--resume") == 0
    assert_same(tmp_path / "in parts", tmp_path / "at once")


@pytest.mark.parametrize("options", [(), ("--epochs", 1)])
def test_resuming_a_finished_run_changes_nothing(options, train, finished, run_dir):
    shutil.copytree(finished / "fp32", run_dir)
    before = snapshot(run_dir)
    assert train(run_dir, "--resume", *options) == 0
    assert snapshot(run_dir) == before


def test_a_finished_run_can_be_repeated(train, finished, run_dir):
    shutil.copytree(finished / "fp32", run_dir)
    assert train(run_dir) == 0
    assert_same(run_dir, finished / "fp32")


def assert_refused(code, run_dir, before, capsys, *words):
    error = capsys.readouterr().err
    assert code == 2, error
    assert error.count("\n") == 1
    for word in ("--out-dir", *words):
        assert word in error
    assert snapshot(run_dir) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--seed", 7), ("seed", "123", "7")),
        (("--lr", 0.1), ("learning_rate",)),
        (("--dtype", "bf16"), ("dtype", "fp32", "bf16")),
        (("--batch-size", 1), ("batch_size",)),
        (("--eval-freq", 1), ("eval_freq",)),
        (("--text", "bundled"), ("text",)),
        (("--epochs", 1), ("epochs",)),  # would replace two epochs by one
        (("--epochs", 3), ("epochs", "--resume")),  # would train two of them again
    ],
)
def test_another_run_in_the_folder_is_not_overwritten(
    options, words, train, finished, run_dir, capsys
):
    shutil.copytree(finished / "fp32", run_dir)
    before = snapshot(run_dir)
    code = train(run_dir, *options)
    assert_refused(code, run_dir, before, capsys, *words)


def test_an_unfinished_run_is_not_overwritten(train, run_dir, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_in(patch, "calc_loss_batch", 7, die)
        with pytest.raises(Died):
            train(run_dir)
    before = snapshot(run_dir)
    capsys.readouterr()
    code = train(run_dir)
    assert_refused(code, run_dir, before, capsys, "--resume", "unfinished")


@pytest.mark.parametrize(
    ("option", "value", "key"),
    [
        ("--seed", 7, "seed"),
        ("--lr", 0.1, "learning_rate"),
        ("--dtype", "bf16", "dtype"),
        ("--text", "bundled", "text"),
    ],
)
def test_nothing_is_resumed_with_other_settings(
    option, value, key, train, finished, run_dir, capsys
):
    shutil.copytree(finished / "fp32", run_dir)
    before = snapshot(run_dir)
    assert train(run_dir, "--resume", "--epochs", 3, option, value) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert key in error
    assert snapshot(run_dir) == before


def test_resume_without_a_checkpoint_starts_from_the_beginning(
    train, finished, run_dir, capsys
):
    assert train(run_dir, "--resume") == 0
    assert "from the beginning" in capsys.readouterr().out
    assert_same(run_dir, finished / "fp32")


def test_no_moment_of_repeating_a_run_leaves_it_stuck(
    train, finished, tmp_path, monkeypatch
):
    def repeat_up_to_the_first_step(run_dir, *options):
        with monkeypatch.context() as patch, suppress(Reached):
            stop_in(patch, "calc_loss_batch", 1, reach)
            assert train(run_dir, *options) == 0

    for number in itertools.count(1):
        run_dir = tmp_path / str(number)
        shutil.copytree(finished / "fp32", run_dir)
        died = dies_at(number, partial(repeat_up_to_the_first_step, run_dir))
        repeat_up_to_the_first_step(run_dir, "--resume")
        shutil.rmtree(run_dir)
        if not died:
            break
    assert number > 10


# metrics.jsonl


@pytest.mark.parametrize(
    "torn",
    [
        b'{"step": 18, "epo',
        b"\0" * 100,
        b'{"step": 18}\n{"step"',
        b"\xff\xfe\n",
        b"7\n",
    ],
    ids=["cut off", "zeros", "cut off later", "not UTF-8", "a number"],
)
def test_a_torn_metrics_file_is_repaired(torn, train, finished, run_dir, monkeypatch):
    with monkeypatch.context() as patch:
        stop_in(patch, "evaluate_model", 7, die)  # at step 18, saved at step 16
        with pytest.raises(Died):
            train(run_dir)
    with (run_dir / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    assert train(run_dir, "--resume") == 0
    assert_same(run_dir, finished / "fp32")


def test_metrics_say_what_happened_when(finished):
    path = finished / "fp32" / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [record["step"] for record in records] == list(range(0, STEPS, 3))
    for record in records:
        assert record["tokens_seen"] == (record["step"] + 1) * 2 * 8
        assert record["epoch"] == record["step"] // 10 + 1
        assert record["learning_rate"] == 1e-2
        assert record["tokens_per_second"] > 0
    seconds = [record["seconds"] for record in records]
    assert seconds == sorted(seconds)
