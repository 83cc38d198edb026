"""A device is used only if it is there and computes what the CPU computes."""

import platform

import pytest
import torch

from ch02.cli import InputError
from ch05 import device
from ch05.device import device_error, pick_device


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
