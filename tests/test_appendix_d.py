"""Appendix D: the schedule at its corners, clipping, and the combined loop."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from appendix_d import training_extras
from appendix_d.training_extras import (
    find_highest_gradient,
    learning_rate_at,
    train_model,
)
from ch02.dataloader import create_dataloader_v1, get_tokenizer, load_text
from ch04.gpt import GPTModel
from ch05.gpt_train import train_model_simple

CONFIG = {
    "vocab_size": 50257,
    "context_length": 16,
    "emb_dim": 8,
    "n_heads": 2,
    "n_layers": 1,
    "drop_rate": 0.1,
    "qkv_bias": False,
}
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# The schedule


def test_the_book_s_rates():
    """Sections D.1 and D.2: 15 epochs of 9 steps, a fifth of them to warm up."""
    rates = [learning_rate_at(s, 135, 27, 0.01, 0.0001, 1e-5) for s in range(135)]
    chosen = [rates[step] for step in (0, 26, 27, 28, 81, 134)]
    book = [0.0001, 0.00963333333333, 0.01, 0.00999788686566, 0.005005,
            1.21131343394e-05]  # fmt: skip
    assert chosen == pytest.approx(book, rel=1e-9)
    assert rates[1] == pytest.approx(0.000466666666667, rel=1e-9)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(warmup=st.integers(0, 30), rest=st.integers(1, 60))
def test_it_rises_to_the_peak_and_falls_towards_the_minimum(warmup, rest):
    total, peak, initial, minimum = warmup + rest, 1e-2, 1e-4, 1e-5
    rates = [
        learning_rate_at(step, total, warmup, peak, initial, minimum)
        for step in range(total)
    ]
    assert rates[0] == pytest.approx(initial if warmup else peak)
    assert max(rates) == rates[warmup] == pytest.approx(peak)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert min(rates[warmup:]) > minimum
    beyond = learning_rate_at(total, total, warmup, peak, initial, minimum)
    assert beyond == pytest.approx(minimum)


def test_one_step_in_all():
    assert learning_rate_at(0, 1, 0, 1e-3) == 1e-3


@pytest.mark.parametrize("warmup", [1, 5, 12])
def test_the_rates_are_those_of_pytorch_s_schedulers(warmup):
    total, peak, initial, minimum = 30, 1e-2, 1e-3, 1e-4
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = SequentialLR(
        optimizer,
        [
            LinearLR(optimizer, initial / peak, 1.0, warmup),
            CosineAnnealingLR(optimizer, total - warmup, minimum),
        ],
        [warmup],
    )
    for step in range(total):
        ours = learning_rate_at(step, total, warmup, peak, initial, minimum)
        assert ours == pytest.approx(scheduler.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        scheduler.step()


# Gradients


def test_the_highest_gradient():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    assert find_highest_gradient(model) is None
    model[0].weight.grad = torch.tensor([[1.0, -9.0], [3.0, 2.0]])
    model[1].bias.grad = torch.tensor([2.5])
    assert find_highest_gradient(model) == 3.0


# The loop


def loaders():
    text = load_text("bundled")[:900]
    return [
        create_dataloader_v1(part, 2, 16, 16, shuffle=shuffle, drop_last=shuffle)
        for part, shuffle in ((text[:700], True), (text[700:], False))
    ]


def train(train_function, learning_rate=1e-2, **options):
    torch.manual_seed(123)
    model = GPTModel(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=0.1)
    torch.manual_seed(123)
    train_loader, val_loader = loaders()
    arguments = (model, train_loader, val_loader, optimizer, CPU, 3, 2, 1, "The",
                 get_tokenizer())  # fmt: skip
    return train_function(*arguments, **options), model, train_loader


def test_the_rates_of_a_run_are_the_schedule_s(capsys):
    results, _, loader = train(
        train_model, warmup_steps=4, initial_lr=1e-5, min_lr=1e-4
    )
    train_losses, val_losses, tokens, rates = results
    total = 3 * len(loader)
    assert rates == [
        learning_rate_at(step, total, 4, 1e-2, 1e-5, 1e-4) for step in range(total)
    ]
    assert len(train_losses) == len(val_losses) == len(tokens) == -(-total // 2)
    assert tokens == [(2 * i + 1) * 32 for i in range(len(tokens))]
    lines = [x for x in capsys.readouterr().out.splitlines() if x.startswith("Ep ")]
    assert lines[1] == (
        f"Ep 1 (Iter 000002): Train loss {train_losses[1]:.3f}, "
        f"Val loss {val_losses[1]:.3f}"
    )


def test_without_its_additions_it_is_the_loop_of_chapter_5(monkeypatch, capsys):
    """A rate that neither rises nor falls, no clipping: the very same losses."""
    monkeypatch.setattr(training_extras, "learning_rate_at", lambda *_: 1e-2)
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda *_, **__: None)
    (ours, *_), model, _ = train(train_model, warmup_steps=0)
    (simple, *_), expected, _ = train(train_model_simple)
    assert ours[:3] == simple[:3]
    for parameter, other in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(parameter, other)


@pytest.mark.parametrize("warmup", [0, 4, 11])
def test_gradients_are_clipped_from_the_end_of_the_warm_up_on(
    warmup, monkeypatch, capsys
):
    norms, clip = [], nn.utils.clip_grad_norm_

    def noted(parameters, max_norm):
        parameters = list(parameters)
        clip(parameters, max_norm)
        norms.append(math.hypot(*(p.grad.norm().item() for p in parameters)))

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", noted)
    _, _, loader = train(train_model, warmup_steps=warmup)
    total = 3 * len(loader)
    assert len(norms) == total - warmup > 0
    assert max(norms) <= 1 + 1e-5
