"""Appendix A: the book's figures, devices, and processes that train one network.

The processes are real, with gloo on the CPU. Their losses are held against a loop that
knows nothing of processes; classic mistakes in the script must make them differ.
"""

import contextlib
import inspect
import io
import json
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from conftest import ROOT
from matplotlib import pyplot as plt
from test_book_figures import assert_close, plain
from test_notebooks import cells, definitions, output_text

from ch02.cli import InputError, Parser

FOLDER = ROOT / "appendix-A"
NAMES = ("DDP-script", "DDP-script-torchrun")
TOLERANCE = 1e-6  # of a loss, between 1, 2 and 4 processes


@pytest.fixture(scope="module", autouse=True)
def scripts():
    """Both scripts as modules; their folder is where Python finds them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        for variable in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
            patch.delenv(variable, raising=False)
        yield [import_module(name) for name in NAMES]


@pytest.fixture(autouse=True)
def _environment():
    """The scripts hand the port on in the environment; a test leaves none behind."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture(scope="module")
def ddp(scripts):
    return scripts[0]


def free_port():
    with socket.create_server(("", 0)) as server:
        return str(server.getsockname()[1])


# ------------------------------------------------------------ the book's figures

# id: tolerance, value; ids and values as in the book
BOOK = {
    "appA.copy": (0, [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]),
    "appA.share": (0, [[[999, 2], [3, 4]], [[5, 6], [7, 8]]]),
    "appA.dtypes": (0, ["torch.int64", "torch.float32", "torch.float32"]),
    "appA.ops": (
        0,
        [
            [[1, 2], [3, 4], [5, 6]],
            [[1, 2], [3, 4], [5, 6]],
            [[1, 4], [2, 5], [3, 6]],
            [[14, 32], [32, 77]],
        ],
    ),
    "appA.bce": (5e-5, 0.0852),
    "appA.grads": (5e-5, [-0.0898, -0.0817]),
    "appA.nn.params": (0, 2213),
    "appA.nn.out": (5e-5, [[-0.1262, 0.1080, -0.1792]]),
    "appA.nn.softmax": (5e-5, [[0.3113, 0.3934, 0.2952]]),
    "appA.loader.batches": (
        5e-5,
        [
            [[[2.3, -1.1], [-0.9, 2.9]], [1, 0]],
            [[[-1.2, 3.1], [-0.5, 2.6]], [0, 0]],
            [[[2.7, -1.5]], [1]],
        ],
    ),
    "appA.train.losses": (0, ["0.75", "0.65", "0.44", "0.13", "0.03", "0.00"]),
    "appA.train.outputs": (
        2e-4,
        [
            [2.8569, -4.1618],
            [2.5382, -3.7548],
            [2.0944, -3.1820],
            [-1.4814, 1.4816],
            [-1.7176, 1.7342],
        ],
    ),
    "appA.train.probas": (
        5e-5,
        [
            [0.9991, 0.0009],
            [0.9982, 0.0018],
            [0.9949, 0.0051],
            [0.0491, 0.9509],
            [0.0307, 0.9693],
        ],
    ),
    "appA.train.pred": (0, [[0, 0, 0, 1, 1], 5]),
    "appA.accuracy": (0, [1.0, 1.0]),
    "appA.exA3": (0, 752),
}


@pytest.fixture(scope="module")
def notebook():
    """Part 1 run in this process: what each cell knows, and what it prints."""
    known, printed, values = {}, {}, {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plt, "show", lambda: plt.close("all"))
        for cell in cells(FOLDER / "code-part1.ipynb", "code"):
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(cell.source, cell.id, "exec"), values)  # our own source
            known[cell.id], printed[cell.id] = dict(values), out.getvalue()
    torch.set_printoptions(profile="default")
    values["folder"].cleanup()
    return known, printed


def book_figures(known, printed):
    """Our values of the figures in BOOK."""
    ops, trained = known["A-2-10"]["tensor2d"], known["A-7-10"]
    loader = known["A-6-06"]["train_loader"]
    torch.manual_seed(123)  # as in the cell, just before the loader was made
    batches = [list(batch) for batch in loader]
    accuracy = trained["compute_accuracy"]
    loaders = [trained["train_loader"], trained["test_loader"]]
    return {
        "appA.copy": known["A-2-04"]["tensor3d_2"],
        "appA.share": known["A-2-04"]["tensor3d_3"],
        "appA.dtypes": printed["A-2-06"].split(),
        "appA.ops": [ops.reshape(3, 2), ops.view(3, 2), ops.T, ops @ ops.T],
        "appA.bce": known["A-3-02"]["loss"].item(),
        "appA.grads": [
            known["A-4-06"][f"grad_L_{name}"][0].item() for name in ("w1", "b")
        ],
        "appA.nn.params": known["A-5-04"]["num_params"],
        "appA.nn.out": known["A-5-12"]["out"],
        "appA.nn.softmax": known["A-5-14"]["out"],
        "appA.loader.batches": batches,
        "appA.train.losses": re.findall(r"Loss: (\S+)", printed["A-7-02"]),
        "appA.train.outputs": known["A-7-06"]["outputs"],
        "appA.train.probas": known["A-7-06"]["probas"],
        "appA.train.pred": [
            known["A-7-08"]["predictions"],
            (known["A-7-08"]["predictions"] == known["A-7-08"]["y_train"]).sum().item(),
        ],
        "appA.accuracy": [accuracy(trained["model"], loader) for loader in loaders],
        "appA.exA3": known["A-7-04"]["num_params"],
    }


def test_the_book_s_figures_come_out(notebook):
    ours = book_figures(*notebook)
    assert ours.keys() == BOOK.keys()
    for id_, (tolerance, value) in BOOK.items():
        assert_close(plain(ours[id_]), value, tolerance)


def test_the_loader_s_batches_are_also_those_the_notebook_prints(notebook):
    _, printed = notebook
    numbers = [float(n) for n in re.findall(r"-?\d+\.?\d*(?=[,\]])", printed["A-6-06"])]
    expected = [
        number
        for features, labels in BOOK["appA.loader.batches"][1]
        for number in [*(x for row in features for x in row), *labels]
    ]
    assert numbers == expected


def test_log_lines_are_the_book_s(notebook):
    expected = [
        f"Epoch: {epoch:03d}/003 | Batch {batch:03d}/002 | Train/Val Loss: "
        for epoch in (1, 2, 3)
        for batch in (1, 2)
    ]
    losses = BOOK["appA.train.losses"][1]
    expected = [line + loss for line, loss in zip(expected, losses, strict=True)]
    assert notebook[1]["A-7-02"].splitlines() == expected
    part_2 = {c.id: c for c in cells(FOLDER / "code-part2.ipynb", "code")}
    assert output_text(part_2["A-9-2-04"]).splitlines() == expected
    assert output_text(part_2["A-9-2-06"]).split() == ["1.0", "1.0"]


def test_the_tables_of_the_book_s_figures_are_the_book_s():
    text = "\n".join(c.source for c in cells(FOLDER / "code-part1.ipynb", "markdown"))
    value = {id_: value for id_, (_, value) in BOOK.items()}
    for row in (
        [value["appA.bce"]],
        value["appA.grads"],
        value["appA.nn.out"][0],
        value["appA.nn.softmax"][0],
        value["appA.train.outputs"][0],
    ):
        assert f"| {', '.join(f'{x:.4f}' for x in row)} |" in text
    for words in ("2,213", "752", ", ".join(value["appA.train.losses"])):
        assert f"| {words} |" in text


# -------------------------------------------------------- one definition of each

TAUGHT = {"NeuralNetwork", "ToyDataset", "compute_accuracy"}


def test_notebook_and_script_hold_the_same_definitions():
    source = [c.source for c in cells(FOLDER / "code-part1.ipynb", "code")]
    taught = definitions("\n".join(source))
    shipped = definitions((FOLDER / "DDP-script.py").read_text("utf-8"))
    assert taught.keys() & shipped.keys() == TAUGHT
    for name in TAUGHT:
        assert taught[name] == shipped[name], name


def test_nothing_is_defined_twice():
    part_2 = [c.source for c in cells(FOLDER / "code-part2.ipynb", "code")]
    sources = [(FOLDER / f"{name}.py").read_text("utf-8") for name in NAMES]
    names = [set(definitions(s)) for s in [*sources, "\n".join(part_2)]]
    assert names[0] & names[1] <= {"cli"}
    assert not (names[0] | names[1]) & names[2]


@pytest.mark.parametrize(
    ("name", "parameters"),
    {
        "ddp_setup": "rank world_size",
        "prepare_dataset": "",
        "main": "rank world_size num_epochs",
        "compute_accuracy": "model dataloader device",
        "ToyDataset": "X y",
        "NeuralNetwork": "num_inputs num_outputs",
    }.items(),
)
def test_signatures_begin_as_the_book_s(ddp, name, parameters):
    ours = inspect.signature(getattr(ddp, name)).parameters.values()
    names = parameters.split()
    assert [p.name for p in ours][: len(names)] == names
    assert all(p.default is not p.empty for p in list(ours)[len(names) :])


def test_attributes_are_the_book_s(ddp):
    dataset = ddp.ToyDataset(torch.zeros(3, 2), torch.tensor([0, 1, 0]))
    assert len(dataset) == 3
    assert [tuple(x.shape) for x in dataset[1]] == [(2,), ()]
    assert dataset.features.shape == (3, 2)
    kinds = [type(layer).__name__ for layer in ddp.NeuralNetwork(2, 2).layers]
    assert kinds == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]


def test_accuracy_counts_points_not_batches(ddp):
    """Three batches of 4, 4 and 1 points with 4, 2 and 0 right."""
    logits = torch.eye(2)[[0] * 9]  # always class 0
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1])
    loader = [(x, y) for x, y in zip(logits.split(4), labels.split(4), strict=True)]
    model = torch.nn.Identity().train()
    assert ddp.compute_accuracy(model, loader) == pytest.approx(6 / 9)
    assert not model.training


# ------------------------------------------------- one, two and four processes

# Runs in a process of its own, where forking is cheap: PyTorch is imported once.
# Arguments: a JSON list of [name, world size, [old, new] or null], and a folder.
HARNESS = """
import json, os, sys, types
from pathlib import Path
import torch._dynamo  # an optimizer would import it, in each process anew
import torch.distributed as dist
import torch.multiprocessing as mp

def train(rank, script, world_size, path):
    result = {"error": None, "losses": None}
    try:
        result["losses"] = script.main(rank, world_size, 3, timeout=200)
    except Exception as error:
        result["error"] = f"{type(error).__name__}: {error}"
    result["group left"] = not dist.is_initialized()
    Path(f"{path}-{rank}.json").write_text(json.dumps(result))

runs, folder, source_path, ports = map(json.loads, sys.argv[1:])
source = Path(source_path).read_text("utf-8")
for (name, world_size, change), port in zip(runs, ports):
    os.environ["MASTER_PORT"] = port
    if change:
        assert source.count(change[0]) == 1, change[0]
    script = types.ModuleType("script")
    exec(source.replace(*change) if change else source, vars(script))
    mp.start_processes(
        train, (script, world_size, f"{folder}/{name}-{world_size}"),
        nprocs=world_size, start_method="fork",
    )
"""
MUTANTS = {
    "no set_epoch": ("train_loader.sampler.set_epoch(epoch)", "pass"),
    "each rank takes a whole batch": (" // dist.get_world_size()", ""),
    "no exchange of gradients": ("DDP(model)", "model"),
    "no mean of the losses": (
        "losses.append(loss.item() / world_size)",
        "losses.append(loss.item())",
    ),
    "only rank 0's loss": (
        "dist.all_reduce(loss)",
        "dist.all_reduce(loss.clone()); loss *= world_size",
    ),
    "every rank sees the same points": (
        "DistributedSampler(train_ds, ",
        "DistributedSampler(train_ds, num_replicas=1, rank=0, ",
    ),
    "orders drawn from different seeds": (
        "seed=123, drop",
        "seed=dist.get_rank(), drop",
    ),
}
FAILURE = ("loss.backward()", "loss.backward() if rank == 0 or batch < 2 else 1 / 0")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What every rank of every run returned: {(name, world size): [results]}."""
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("this system cannot fork")
    folder = tmp_path_factory.mktemp("trained")
    runs = [["as it is", n, None] for n in (1, 2, 4)]
    runs += [[name, 2, change] for name, change in MUTANTS.items()]
    runs += [["rank 1 fails", 2, FAILURE]]
    arguments = [runs, str(folder), str(FOLDER / "DDP-script.py")]
    arguments += [[free_port() for _ in runs]]
    ran = subprocess.run(
        [sys.executable, "-c", HARNESS, *map(json.dumps, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    assert "destroy_process_group" not in ran.stderr
    return {
        (name, n): [
            json.loads(Path(f"{folder}/{name}-{n}-{r}.json").read_text("utf-8"))
            for r in range(n)
        ]
        for name, n, _ in runs
    }


@pytest.fixture
def alone(monkeypatch):
    """Pretend to be some rank of some world size, without a process group."""

    def be(rank, world_size):
        monkeypatch.setattr(dist, "get_rank", lambda *_: rank)
        monkeypatch.setattr(dist, "get_world_size", lambda *_: world_size)

    be(0, 1)
    return be


def plain_losses(ddp):
    """The training of the scripts as a loop of one process."""
    train_loader, _ = ddp.prepare_dataset(8)
    torch.manual_seed(123)
    model = ddp.NeuralNetwork(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = []
    for epoch in range(3):
        train_loader.sampler.set_epoch(epoch)
        for features, labels in train_loader:
            loss = F.cross_entropy(model(features), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_losses_do_not_depend_on_the_number_of_processes(
    world_size, trained, ddp, alone
):
    expected = plain_losses(ddp)
    assert len(expected) == 15
    assert expected[0] > 0.5 > 0.1 > expected[-1]
    for result in trained["as it is", world_size]:
        assert result["error"] is None
        assert result["losses"] == pytest.approx(expected, abs=TOLERANCE, rel=0)
        assert result["group left"]


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mistake_shows_in_the_losses(name, trained):
    right = trained["as it is", 1][0]["losses"]
    wrong = trained[name, 2][0]["losses"]
    assert wrong is not None
    assert wrong != pytest.approx(right, abs=1e-3, rel=0)


def test_after_an_error_every_rank_leaves_the_group(trained):
    other, failed = trained["rank 1 fails", 2]
    assert failed["error"].startswith("ZeroDivisionError")
    assert other["error"]  # it does not wait for ever for the one that is gone
    assert other["group left"]
    assert failed["group left"]


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_ranks_together_hold_the_batches_of_one(world_size, ddp, alone):
    def dealt(rank, world_size):
        alone(rank, world_size)
        loader, _ = ddp.prepare_dataset(8)
        loader.sampler.set_epoch(1)
        return [[tuple(x.tolist()) for x in features] for features, _ in loader]

    whole = dealt(0, 1)
    assert [len(batch) for batch in whole] == [8] * 5
    shares = [dealt(rank, world_size) for rank in range(world_size)]
    for number, batch in enumerate(whole):
        together = [point for share in shares for point in share[number]]
        assert sorted(together) == sorted(batch)


@pytest.mark.parametrize(("batch_size", "world_size"), [(12, 3), (14, 7), (36, 9)])
def test_points_left_over_do_not_give_one_rank_more_batches(
    batch_size, world_size, ddp, alone
):
    lengths = set()
    for rank in range(world_size):
        alone(rank, world_size)
        lengths.add(len(ddp.prepare_dataset(batch_size)[0]))
    assert lengths == {40 // batch_size}


# The commands as a reader types them


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """Each command's process result, started from a folder elsewhere."""
    options = ["--backend=gloo", "--timeout=250"]  # a busy machine starts slowly
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    spawn = [sys.executable, str(FOLDER / "DDP-script.py"), *options]
    script = [str(FOLDER / "DDP-script-torchrun.py"), *options]
    lines = {
        ("spawn", 2): [*spawn, "--port", free_port()],
        ("torchrun", 4): [*torchrun, "--nproc-per-node=4", *script],
        "refused": [*torchrun, "--nproc-per-node=2", *script, "--batch-size=7"],
    }

    def start(command):
        return subprocess.run(
            command,
            cwd=tmp_path_factory.mktemp("elsewhere"),
            capture_output=True,
            text=True,
            timeout=300,
        )

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(lines, pool.map(start, lines.values()), strict=True))


def check_output(output, world_size, expected):
    """The losses are the expected ones, and every rank says the same at the end."""
    lines = output.splitlines()
    assert all(line.startswith("[rank ") for line in lines)
    progress = [line for line in lines if "Epoch" in line]
    assert all(line.startswith("[rank 0]") for line in progress)
    assert f"| Batchsize {world_size} x {8 // world_size} |" in progress[0]
    losses = [float(line.split("Loss: ")[1]) for line in progress]
    rounding = 0.5e-4  # four decimals are printed
    assert losses == pytest.approx(expected, abs=rounding + TOLERANCE, rel=0)

    ends = [line for line in lines if "Accuracy" in line]
    assert sorted(line[6] for line in ends) == [str(r) for r in range(world_size)]
    assert all("share: 1.00, on the test set: 1.00" in line for line in ends)
    assert len({line.split("weights: ")[1] for line in ends}) == 1


@pytest.mark.parametrize("command", [("spawn", 2), ("torchrun", 4)], ids=str)
def test_command_prints_the_losses_and_a_line_per_rank(command, commands, ddp, alone):
    ran = commands[command]
    assert ran.returncode == 0, ran.stderr
    assert "Traceback" not in ran.stderr
    check_output(ran.stdout, command[1], plain_losses(ddp))


def test_without_torchrun_its_script_is_one_process(scripts, capsys, monkeypatch):
    monkeypatch.setenv("MASTER_PORT", free_port())
    scripts[1].cli(["--backend", "gloo"])
    assert not dist.is_initialized()
    output = capsys.readouterr().out
    monkeypatch.setattr(dist, "get_rank", lambda *_: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda *_: 1)
    check_output(output, 1, plain_losses(scripts[0]))


def test_torchrun_passes_the_one_line_on(commands):
    ran = commands["refused"]
    assert ran.returncode != 0
    assert not ran.stdout
    said = [s for s in ran.stderr.splitlines() if s.startswith("DDP-script-torchrun: ")]
    assert len(said) == 1, ran.stderr
    assert "2 processes cannot share a batch of 7" in said[0]


# ----------------------------------------------------------------- bad input


@pytest.fixture
def refused(capsys, scripts):
    """Run a script that must refuse; returns the one line it says."""

    def run(name, *options):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            scripts[NAMES.index(name)].cli([str(option) for option in options])
        error = capsys.readouterr().err
        assert end.value.code == 2, error
        assert error.startswith(f"{name}: ")
        assert len(error.splitlines()) == 1, error
        return error

    return run


@pytest.mark.parametrize("value", ["0", "-2", "two", "2.5"])
@pytest.mark.parametrize(
    "option", ["--world-size", "--epochs", "--batch-size", "--timeout", "--port"]
)
def test_options_must_be_whole_numbers(option, value, refused):
    assert option in refused("DDP-script", f"{option}={value}")


def test_world_size_must_divide_the_batch(refused, monkeypatch):
    error = refused("DDP-script", "--world-size", 3, "--batch-size", 8)
    assert "3 processes cannot share a batch of 8" in error
    assert "--batch-size a multiple of 3" in error
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert "multiple of 3" in refused("DDP-script-torchrun")


def test_a_batch_needs_that_many_points(refused):
    error = refused("DDP-script", "--world-size", 2, "--batch-size", 42)
    assert "42" in error
    assert "40 training points" in error


def test_a_port_in_use_is_named(refused, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for options in (["--port", port], []):
            error = refused("DDP-script", *options)
            assert f"port {port} cannot be used" in error
            assert "--port" in error
            monkeypatch.setenv("MASTER_PORT", str(port))
        assert f"port {port}" in refused("DDP-script-torchrun")


@pytest.mark.parametrize("port", ["65536", "99999999999999999999"])
def test_a_port_must_exist(port, refused, monkeypatch):
    assert f"'{port}'" in refused("DDP-script", "--port", port)
    monkeypatch.setenv("MASTER_PORT", port)
    assert "MASTER_PORT" in refused("DDP-script-torchrun")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WORLD_SIZE", "two"),
        ("WORLD_SIZE", ""),
        ("WORLD_SIZE", "0"),
        ("RANK", "1"),  # of a world of one
        ("RANK", "-1"),
        ("LOCAL_RANK", "x"),
        ("MASTER_PORT", "0"),
        ("MASTER_PORT", "12345x"),
    ],
)
def test_environment_that_makes_no_sense(name, value, refused, monkeypatch):
    monkeypatch.setenv(name, value)
    error = refused("DDP-script-torchrun")
    assert f"{name} is {value!r}" in error


def test_ranks_that_never_join_are_named_by_all_who_wait(ddp, monkeypatch):
    """Ranks 0 and 2 of four; 2 would wait longer, but 0 keeps the list."""
    monkeypatch.setenv("MASTER_PORT", free_port())
    errors = {}

    def join(rank, timeout):
        with pytest.raises(InputError) as refusal:
            ddp.ddp_setup(rank, 4, "gloo", timeout)
        errors[rank] = str(refusal.value)

    threads = [threading.Thread(target=join, args=a) for a in ((0, 2), (2, 100))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert errors.keys() == {0, 2}
    for error in errors.values():
        assert error.startswith("rank 1, rank 3 did not join in time")
        assert "\n" not in error
    assert not dist.is_initialized()


def test_a_missing_rank_0_is_named(refused, monkeypatch):
    port = free_port()
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, value)
    error = refused("DDP-script-torchrun", "--timeout", 1, "--backend", "gloo")
    assert f"rank 1 did not find rank 0 at localhost:{port} within 1 s" in error


@pytest.fixture
def gpus(monkeypatch):
    """Pretend that this machine has so many GPUs."""

    def have(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(dist, "is_nccl_available", lambda: True)

    return have


def test_nccl_needs_a_gpu_for_each_process(gpus, refused, monkeypatch):
    gpus(2)
    error = refused("DDP-script", "--world-size", 4)
    assert "for 4 processes there are 2" in error
    assert "--backend gloo" in error
    monkeypatch.setenv("WORLD_SIZE", "8")  # two machines
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert "for 4 processes there are 2" in refused("DDP-script-torchrun")
    gpus(0)
    assert "there are 0" in refused("DDP-script", "--backend", "nccl")


def test_the_backend_follows_the_gpus(gpus, ddp):
    gpus(0)
    assert ddp.pick_backend() == "gloo"
    gpus(2)
    assert ddp.pick_backend() == "nccl"
    assert ddp.pick_backend("gloo") == "gloo"


def test_with_nccl_each_rank_takes_the_gpu_of_its_local_rank(gpus, ddp, monkeypatch):
    gpus(2)
    chosen, joined = [], []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(dist, "TCPStore", lambda *_, **__: dist.HashStore())
    monkeypatch.setattr(ddp, "find_rank_0", lambda *_: None)
    monkeypatch.setattr(ddp, "wait_for_all", lambda *_: None)
    monkeypatch.setattr(
        dist, "init_process_group", lambda backend, **_: joined.append(backend)
    )
    assert ddp.ddp_setup(1, 4) == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert ddp.ddp_setup(2, 4) == torch.device("cuda", 0)
    assert chosen == [torch.device("cuda", 1), torch.device("cuda", 0)]
    assert joined == ["nccl", "nccl"]


def test_what_a_process_has_said_is_not_said_again(ddp, monkeypatch, capsys):
    def spawn(*_, **__):
        raise ddp.mp.ProcessExitedException("", 1, 7, exit_code)

    monkeypatch.setattr(ddp.mp, "spawn", spawn)
    options = ["--port", free_port(), "--backend", "gloo"]
    exit_code = 2
    with pytest.raises(SystemExit) as end:
        ddp.cli(options)
    assert end.value.code == 2
    assert capsys.readouterr().err == ""
    exit_code = -9  # killed, as by a machine that ran out of memory
    with pytest.raises(ddp.mp.ProcessExitedException):
        ddp.cli(options)


@pytest.mark.parametrize("name", NAMES)
def test_help_explains_every_option(name, scripts, monkeypatch, capsys):
    script = scripts[NAMES.index(name)]
    with pytest.raises(SystemExit) as end:
        script.cli(["--help"])
    assert end.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.startswith(f"usage: {name} ")
    parsers = []
    monkeypatch.setattr(Parser, "parse_args", lambda self, _: parsers.append(self))
    with pytest.raises(AttributeError):  # nothing was parsed
        script.cli([])
    assert all(option.help for option in parsers[0]._actions)
    for words in ("1, 2 and 4", "gloo between CPUs"):
        assert words in shown or name == NAMES[1]
