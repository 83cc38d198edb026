"""A device is used only if it is there and computes what the CPU computes."""

import platform

import pytest
import torch
from torch import nn

from ch02.cli import InputError
from ch04.gpt import GPTModel
from ch05 import device, gpt_train
from ch05.device import CheapDropout, device_error, pick_device, use_cheap_dropout
from ch05.gpt_train import MODELS


def pretend(monkeypatch, available, error):
    monkeypatch.setattr(device, "is_available", lambda name: name in available)

    def device_error(name):
        if isinstance(error, Exception):
            raise error
        return error

    monkeypatch.setattr(device, "device_error", device_error)


def test_auto_takes_the_first_accelerator_that_computes_correctly(monkeypatch):
    pretend(monkeypatch, {"mps", "xpu"}, 1e-6)
    assert pick_device().type == "mps"


@pytest.mark.parametrize("error", [0.5, float("nan"), RuntimeError("out of memory\n")])
def test_auto_falls_back_to_the_cpu_and_says_why(monkeypatch, capsys, error):
    pretend(monkeypatch, {"cuda"}, error)
    assert pick_device().type == "cpu"
    note = capsys.readouterr().err
    assert note.count("\n") == 1
    assert "cuda" in note


def test_a_named_device_is_not_second_guessed(monkeypatch):
    pretend(monkeypatch, {"cuda"}, 0.5)
    assert pick_device("cuda").type == "cuda"


def test_unknown_and_missing_devices_are_refused(monkeypatch):
    pretend(monkeypatch, set(), 0.0)
    for name in ("cuda", "mps", "xpu", "tpu"):
        with pytest.raises(InputError, match=name):
            pick_device(name)


def test_the_self_test_sees_a_wrong_gradient(monkeypatch):
    assert device_error("cpu") == 0
    right = torch.nn.functional.cross_entropy
    wrong = iter((1.1, 1.0))  # the device comes first, then the CPU
    monkeypatch.setattr(
        torch.nn.functional, "cross_entropy", lambda *a: right(*a) * next(wrong)
    )
    assert device_error("cpu") == pytest.approx(0.1, rel=1e-3)


def test_the_self_test_draws_no_random_numbers():
    torch.manual_seed(123)
    before = torch.get_rng_state()
    device_error("cpu")
    assert torch.equal(torch.get_rng_state(), before)


def test_cheap_dropout_drops_what_it_should_and_keeps_the_mean():
    dropout = CheapDropout(0.1)
    x = torch.ones(999, 1001, requires_grad=True)  # not a multiple of four
    y = dropout(x)
    y.sum().backward()
    dropped = (y == 0).double()
    assert torch.equal(y[y != 0], torch.full_like(y[y != 0], 1 / 0.9))
    assert torch.equal(x.grad, y)
    # One number decides four neighbours: each with the same odds, none on another
    lanes = dropped.flatten()[: 4 * (y.numel() // 4)].view(-1, 4)
    deviation = (0.1 * 0.9 / len(lanes)) ** 0.5
    assert ((lanes.mean(0) - 0.1).abs() < 4 * deviation).all()
    off_diagonal = torch.corrcoef(lanes.T) - torch.eye(4)
    assert (off_diagonal.abs() < 4 / len(lanes) ** 0.5).all()


def test_cheap_dropout_is_a_dropout():
    x = torch.randn(4, 6).T  # not contiguous
    torch.manual_seed(123)
    first = CheapDropout(0.5)(x)
    torch.manual_seed(123)
    assert torch.equal(CheapDropout(0.5)(x), first)
    assert first.count_nonzero() < x.numel()
    assert CheapDropout(0.5)(x.bfloat16()).dtype == torch.bfloat16
    assert CheapDropout(0.5).eval()(x) is x
    assert CheapDropout(0.0)(x) is x


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_only_bf16_on_a_cpu_draws_other_masks(dtype, monkeypatch, tmp_path):
    """fp32 keeps the random numbers, and so the losses, of the book."""
    used = []
    monkeypatch.setattr(gpt_train, "use_cheap_dropout", used.append)
    monkeypatch.setattr("ch05.resumable.ResumableTraining.train", lambda training: None)
    monkeypatch.setattr(gpt_train, "save_plot", lambda *arguments: None)
    arguments = ["--device", "cpu", "--dtype", dtype, "--out-dir", str(tmp_path)]
    gpt_train.cli(arguments)
    assert len(used) == (dtype == "bf16")


def test_every_dropout_of_a_model_is_replaced_and_no_weight():
    model = GPTModel({**MODELS["gpt2-nano"][0], "n_layers": 1})
    before = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    count = sum(type(module) is nn.Dropout for module in model.modules())
    use_cheap_dropout(model)
    assert {n: t.data_ptr() for n, t in model.state_dict().items()} == before
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(CheapDropout) == count == 3
    assert nn.Dropout not in kinds


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_reused_instead_of_mapped_again(run):
    """Counted in page faults: mapping a tensor afresh touches every page of it."""
    program = """
import resource, torch
from ch05.device import reuse_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(10_000_000)  # 40 MB, 10,000 pages or 20 huge ones
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

mapped = faults()
assert reuse_freed_memory()
for _ in range(3):
    faults()  # until the heap has grown enough
print(mapped, faults())
"""
    mapped, reused = map(int, run("python", "-c", program).stdout.split())
    assert reused < mapped / 10
