"""The recipe of ch05/gutenberg/pretrain.py and one run of it, in one process.

Each part is compared with an independent one: a plain loop, PyTorch's own schedules,
counters and optimizers, the plain list of tokens. The checks take the part as an
argument: they get ours, which must pass, and ours with a classic mistake in it, which
must not. Stops, resumes and several processes are in test_pretrain_resume.py.
"""

import copy
import itertools
import json
import math
import platform
import random
import re
import sys
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from test_mutants import NOTICED, each_of, mutate
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from ch02.cli import InputError
from ch02.dataloader import get_tokenizer, load_text
from ch04.gpt import GPTModel
from ch05.checkpoint import (
    is_tied,
    load_checkpoint,
    load_model,
    load_weights,
    save_checkpoint,
    save_weights,
)
from ch05.device import reuse_freed_memory
from ch05.gpt_train import calc_loss_batch
from ch05.gutenberg import pretrain
from ch05.gutenberg.recipe import (
    CONFIG_MINI,
    Windows,
    create_model,
    create_optimizer,
    flops_per_token,
    learning_rate,
    memory_needed,
    parameter_count,
    token_lengths,
)
from ch05.gutenberg.shards import END_OF_TEXT, TokenShards, write_shards
from ch05.gutenberg.training import Pretraining, World
from ch05.memory_efficient_loading.measure import run_alone

repeatable = settings(derandomize=True, database=None, deadline=None, max_examples=40)
TINY = CONFIG_MINI | {
    "vocab_size": 97,
    "context_length": 8,
    "emb_dim": 16,
    "n_heads": 2,
    "n_layers": 2,
}
CONFIGS = [
    TINY,
    TINY | {"qkv_bias": False, "n_heads": 4, "n_layers": 3, "vocab_size": 31},
    TINY | {"emb_dim": 12, "n_heads": 3, "n_layers": 1, "context_length": 5},
]
SETTINGS = {
    "config": TINY,
    "num_steps": 8,
    "batch_size": 4,
    "micro_batch": 4,
    "learning_rate": 1e-3,
    "warmup_steps": 3,
    "weight_decay": 0.1,
    "max_norm": 0.2,  # small enough to be felt
    "shuffle": True,
    "seed": 5,
    "dtype": "fp32",
    "eval_windows": 6,
}


@pytest.fixture(autouse=True, scope="module")
def _small_and_quick():
    """One thread; the lengths of all tokens are counted once."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ch05.gutenberg.training.token_lengths", lambda _: LENGTHS)
        yield
    torch.set_num_threads(threads)


def alone(rank=0, size=1):
    """A `World` that nobody else is in, whatever its size."""
    device = torch.device("cpu")
    return SimpleNamespace(
        rank=rank, size=size, device=device, sum=lambda *numbers: list(numbers)
    )


class PlainTokens(list):
    """Tokens in a list, asked like `TokenShards`."""

    def window(self, start, length):
        assert 0 <= start <= start + length <= len(self)
        return torch.tensor(self[start : start + length])


LENGTHS = token_lengths(get_tokenizer())
TOKENS = PlainTokens(random.Random(3).choices(range(97), k=203))


def training(component=Pretraining, tokens=TOKENS, **changed):
    """A run of its own; component: `Pretraining`, or that with a mistake in it."""
    return component(SETTINGS | changed, tokens, tokens, alone(), "nowhere")


# The model's start


def check_start(create_model):
    config = TINY | {"vocab_size": 2003, "emb_dim": 64, "n_layers": 8}
    model = create_model(config)
    assert model.out_head.weight is model.tok_emb.weight
    assert model.state_dict().keys() == GPTModel(config).state_dict().keys()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            writes = name.endswith((".att.out_proj", ".ff.layers.2"))
            std = 0.02 / 4 if writes else 0.02  # 4 is the root of two per block
            assert math.isclose(module.weight.std().item(), std, rel_tol=0.05), name
            assert abs(module.weight.mean().item()) < std / 10, name
            # Normal, not uniform: 0.3 % lie beyond three standard deviations
            far = (module.weight.abs() > 3 * std).float().mean().item()
            assert 0 < far < 0.01, name
            if getattr(module, "bias", None) is not None:
                assert (module.bias == 0).all(), name
        elif hasattr(module, "scale"):
            assert (module.scale == 1).all(), name
            assert (module.shift == 0).all(), name


def test_untrained_loss_is_a_guess():
    config = TINY | {"vocab_size": 5000, "emb_dim": 64}
    ids = torch.randint(5000, (64, 9))
    loss = calc_loss_batch(ids[:, :-1], ids[:, 1:], create_model(config), "cpu")
    assert abs(loss.item() - math.log(5000)) < 0.05


@pytest.mark.parametrize("config", CONFIGS)
def test_parameters_and_operations_are_counted_right(config):
    model = create_model(config)
    assert parameter_count(config) == sum(p.numel() for p in model.parameters())
    ids = torch.randint(config["vocab_size"], (2, config["context_length"] + 1))
    with FlopCounterMode(display=False) as counter:
        calc_loss_batch(ids[:, :-1], ids[:, 1:], model, "cpu").backward()
    # Both count matrix products and nothing else: no difference at all
    num_tokens = 2 * config["context_length"]
    assert flops_per_token(config) * num_tokens == counter.get_total_flops()


# The optimizer and its learning rate


def check_optimizer(create_optimizer):
    """A few steps, and every parameter in one group, as written out by hand."""
    model = create_model(TINY)
    for parameter in model.parameters():
        parameter.data += 0.1  # a bias of 0 cannot decay
    optimizer = create_optimizer(model, 1e-2, 0.3)
    owned = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(owned) == sorted(map(id, model.parameters()))

    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    first = {name: torch.zeros_like(p) for name, p in expected.items()}
    second = {name: torch.zeros_like(p) for name, p in expected.items()}
    for step in (1, 2, 3):
        optimizer.zero_grad()
        ids = torch.randint(97, (4, 9))
        calc_loss_batch(ids[:, :-1], ids[:, 1:], model, "cpu").backward()
        for name, p in model.named_parameters():
            first[name] = 0.9 * first[name] + 0.1 * p.grad
            second[name] = 0.95 * second[name] + 0.05 * p.grad**2
            m, v = first[name] / (1 - 0.9**step), second[name] / (1 - 0.95**step)
            is_matrix = re.search(r"(_emb|W_\w+|out_proj|layers\.\d)\.weight$", name)
            decay = 0.3 if is_matrix else 0.0
            expected[name] -= 1e-2 * (decay * expected[name] + m / (v.sqrt() + 1e-8))
        optimizer.step()
        for name, p in model.named_parameters():
            # Without a gradient in theory (a softmax does not feel it), noise divided
            # by noise in practice
            if not name.endswith("W_key.bias"):
                torch.testing.assert_close(p.data, expected[name], rtol=0, atol=1e-5)


def pytorch_schedule(num_steps, warmup_steps, peak):
    """The same learning rates from PyTorch's schedulers; the peak is the last of the
    warm-up."""
    optimizer = torch.optim.SGD([torch.zeros(1)], peak)
    parts = []
    if warmup_steps > 1:
        parts.append(
            torch.optim.lr_scheduler.LinearLR(
                optimizer, 1 / warmup_steps, 1.0, warmup_steps - 1
            )
        )
    if num_steps > warmup_steps:
        parts.append(
            torch.optim.lr_scheduler.CosineAnnealingLR(
                optimizer, num_steps - warmup_steps, 0.1 * peak
            )
        )
    if len(parts) == 2:
        parts = [
            torch.optim.lr_scheduler.SequentialLR(optimizer, parts, [warmup_steps - 1])
        ]
    rates = []
    for _ in range(num_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for part in parts:
            part.step()
    return rates


def check_learning_rate(learning_rate):
    shapes = [(20, 5), (20, 1), (20, 19), (20, 20), (2, 1), (1, 1), (300, 15)]
    for num_steps, warmup_steps in shapes:
        rates = [
            learning_rate(i, num_steps, warmup_steps, 3e-3) for i in range(num_steps)
        ]
        expected = pytorch_schedule(num_steps, warmup_steps, 3e-3)
        assert rates == pytest.approx(expected, rel=1e-9)
        assert rates[0] == pytest.approx(3e-3 / warmup_steps)
        assert rates[warmup_steps - 1] == max(rates) == pytest.approx(3e-3)
        if num_steps > warmup_steps:
            assert rates[-1] == pytest.approx(3e-4)


# The windows


def check_windows(Windows, tokens=TOKENS, T=8, seed=0):
    """Passes over a text against its plain list of tokens."""
    ids = list(tokens)
    starts = range(0, len(ids) - T, T)  # side by side, the last target still inside
    plain = [ids[i : i + T + 1] for i in starts]
    count = len(plain)

    def rows(windows, numbers):
        inputs, targets = windows.batch(numbers)
        assert inputs.shape == targets.shape == (len(numbers), T)
        assert inputs.dtype == targets.dtype == torch.int64
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        return [
            [*x, y[-1]] for x, y in zip(inputs.tolist(), targets.tolist(), strict=True)
        ]

    windows = Windows(tokens, T, seed)
    assert windows.count == count
    passes = [rows(windows, range(i * count, (i + 1) * count)) for i in range(3)]
    for window_rows in passes:
        assert sorted(window_rows) == sorted(plain)
    in_order = Windows(tokens, T, seed, shuffle=False)
    assert rows(in_order, range(2 * count)) == plain + plain

    # One by one, backwards, by another object: window i is a function of i
    expected = list(itertools.chain(*passes))
    again = Windows(tokens, T, seed)
    for number in reversed(range(3 * count)):
        assert rows(again, [number]) == [expected[number]]
    # A batch may lie across the border of two passes
    assert rows(again, range(count - 1, count + 1)) == expected[count - 1 : count + 1]

    other = rows(Windows(tokens, T, seed + 1), range(count))
    if len({tuple(row) for row in plain}) > 9:  # 9! orders
        assert passes[0] != plain
        assert passes[0] != passes[1] != passes[2] != passes[0]
        assert other not in passes


@repeatable
@given(st.data())
def test_windows_of_any_text_in_any_shards(data):
    T = data.draw(st.integers(1, 6))
    books = data.draw(
        st.lists(st.lists(st.integers(0, 60000), max_size=20), min_size=1)
    )
    plain = [i for book in books for i in (*book, END_OF_TEXT)]
    with TemporaryDirectory() as folder:
        records = [({"split": "train", "bytes": 1}, book) for book in books]
        records.append(({"split": "val", "bytes": 1}, [0]))
        write_shards(folder, records, shard_tokens=data.draw(st.integers(1, 9)))
        shards = TokenShards(folder, "train")
        assert shards.window(0, len(shards)).tolist() == plain
        tokens = PlainTokens(plain)
        tokens.window = shards.window
        if len(plain) > T:
            check_windows(Windows, tokens, T, data.draw(st.integers(0, 2**62)))
        else:
            with pytest.raises(InputError, match=f"{len(plain)} tokens.* {T + 1}"):
                Windows(shards, T)


def test_every_seed_has_an_order():
    orders = [Windows(TOKENS, 4, seed).order(2).tolist() for seed in (0, 2**63 - 1)]
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]


# Steps


def plain_run(num_steps=6):
    """The first steps of `SETTINGS` without any of the course's tricks.

    Returns (model, optimizer, mean loss of each step).
    """
    s = SETTINGS
    torch.manual_seed(s["seed"])
    model = create_model(s["config"])
    matrices = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    matrices += [model.tok_emb.weight, model.pos_emb.weight]
    matrices = list({id(p): p for p in matrices}.values())
    others = [p for p in model.parameters() if all(p is not m for m in matrices)]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others}],
        betas=(0.9, 0.95),
        weight_decay=0.0,
        foreach=False,
    )
    rates = pytorch_schedule(s["num_steps"], s["warmup_steps"], s["learning_rate"])
    order = Windows(TOKENS, 8, s["seed"]).order(0).tolist()
    losses = []
    for step in range(num_steps):
        ids = [TOKENS[8 * i : 8 * i + 9] for i in order[4 * step : 4 * step + 4]]
        ids = torch.tensor(ids)  # (B, T + 1)
        logits = model(ids[:, :-1])
        loss = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        gradients = [p.grad for p in model.parameters()]
        norm = sum((g**2).sum() for g in gradients).sqrt().item()
        assert norm > s["max_norm"]
        for gradient in gradients:
            gradient *= s["max_norm"] / norm
        for group in optimizer.param_groups:
            group["lr"] = rates[step]
        optimizer.step()
        losses.append(loss.item())
    return model, optimizer, losses


def check_steps(component):
    """Any size of micro-batch gives what a plain loop gives."""
    expected, optimizer, losses = plain_run()
    moments = {id(p): state for p, state in optimizer.state.items()}
    for micro_batch in (4, 2, 1):
        run = training(component, micro_batch=micro_batch)
        for step in range(len(losses)):
            run.train_step()
            assert run.step == step + 1
        assert run.loss_sum.item() == pytest.approx(sum(losses), rel=1e-6)
        pairs = zip(run.model.named_parameters(), expected.parameters(), strict=True)
        for (name, ours), theirs in pairs:
            assert ours.grad is None
            if name.endswith("W_key.bias"):
                continue  # noise, as above
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
            state = run.optimizer.state[ours], moments[id(theirs)]
            for key in ("exp_avg", "exp_avg_sq"):
                torch.testing.assert_close(
                    state[0][key], state[1][key], rtol=1e-4, atol=1e-8
                )


def check_shares(component):
    """The processes together take what one alone takes, each window once."""
    for size, micro_batch in ((1, 4), (2, 2), (2, 4), (4, 1), (8, 1)):
        for step in (0, 3):
            shares = []
            for rank in range(size):
                run = SimpleNamespace(
                    world=alone(rank, size),
                    settings={"batch_size": 8, "micro_batch": micro_batch},
                )
                batches = component.my_windows(run, step)
                assert {len(batch) for batch in batches} == {micro_batch}
                shares += itertools.chain(*batches)
            assert sorted(shares) == list(range(8 * step, 8 * step + 8))


def test_time_is_judged_without_a_trace():
    run = training(micro_batch=2, config=TINY | {"drop_rate": 0.1})
    before = {k: v.clone() for k, v in run.model.state_dict().items()}
    rng_state = torch.get_rng_state()
    assert run.seconds_per_step() > 0
    assert torch.equal(torch.get_rng_state(), rng_state)
    assert all(p.grad is None for p in run.model.parameters())
    assert not run.optimizer.state
    assert (run.step, run.loss_sum.item()) == (0, 0.0)
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


# Bits per byte


@repeatable
@given(st.text())
def test_lengths_of_tokens_sum_to_the_bytes_of_a_text(text):
    ids = get_tokenizer().encode(text, disallowed_special=())
    assert LENGTHS[ids].sum().item() == len(text.encode())


def check_token_lengths(token_lengths):
    lengths, tokenizer = token_lengths(get_tokenizer()), get_tokenizer()
    assert lengths.shape == (50257,)
    assert lengths[END_OF_TEXT] == 0
    text = load_text("bundled") + " déjà vu, 漢字, 🙂 <|endoftext|>"
    ids = tokenizer.encode(text, disallowed_special=())
    assert lengths[ids].sum() == len(text.encode())


@pytest.fixture(scope="module")
def story_tokens():
    """The story with ends of texts in it, as one list."""
    ids = get_tokenizer().encode(load_text("bundled"))[:243]
    ids[20] = ids[130] = END_OF_TEXT
    return PlainTokens(ids)


@pytest.fixture(scope="module")
def check_evaluate(story_tokens):
    """evaluate() against one window at a time and the bytes of the decoded text."""
    config = TINY | {"vocab_size": 50257, "drop_rate": 0.1}
    changed = {"config": config, "eval_windows": 7}

    def check(component):
        run = training(component, story_tokens, **changed)
        for parameter in run.model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        run.train_step()  # the optimizer has a state now
        model, tokenizer = run.model.eval(), get_tokenizer()
        nats = num_bytes = 0.0
        count = (len(story_tokens) - 1) // 8
        for i in range(7):
            start = 8 * (i * count // 7)
            ids = torch.tensor(story_tokens[start : start + 9])
            with torch.no_grad():
                logits = model(ids[None, :-1]).double()
            probas = logits[0].softmax(-1)[range(8), ids[1:]]
            nats -= probas.log().sum().item()
            text = [i for i in ids[1:].tolist() if i != END_OF_TEXT]
            num_bytes += len(tokenizer.decode_bytes(text))
        model.train()
        expected, text_bytes = nats / num_bytes / math.log(2), num_bytes

        state = json.dumps(run.optimizer.state_dict()["param_groups"])
        tensors = [*model.state_dict().values(), torch.get_rng_state()]
        for moments in run.optimizer.state.values():
            tensors += moments.values()
        before = [tensor.clone() for tensor in tensors]
        for micro_batch in (4, 1, 3, 100):
            run.settings["micro_batch"] = micro_batch
            assert run.evaluate() == pytest.approx(expected, rel=1e-6)
            assert model.training
        tensors[len(model.state_dict())] = torch.get_rng_state()
        assert all(map(torch.equal, tensors, before))
        assert all(p.grad is None for p in model.parameters())
        assert json.dumps(run.optimizer.state_dict()["param_groups"]) == state

        # Shared out among processes, some of which have nothing to do
        parts = []
        for rank in range(9):
            world = alone(rank, 9)
            world.sum = lambda *numbers: parts.append(numbers) or [0.0, 1.0]
            run.world = world
            run.evaluate()
        nats, num_bytes = map(sum, zip(*parts, strict=True))
        assert num_bytes == text_bytes
        assert nats / num_bytes / math.log(2) == pytest.approx(expected, rel=1e-6)

    return check


def test_evaluates_what_there_is_if_it_is_less(story_tokens):
    config = TINY | {"vocab_size": 50257, "context_length": 64}
    run = training(Pretraining, story_tokens, config=config, eval_windows=1000)
    nats = num_bytes = 0.0
    for start in (0, 64, 128):
        ids = torch.tensor(story_tokens[start : start + 65])
        loss = calc_loss_batch(ids[None, :-1], ids[None, 1:], run.model, "cpu")
        nats += 64 * loss.item()
        num_bytes += LENGTHS[ids[1:]].sum().item()
    expected = nats / num_bytes / math.log(2)
    assert run.evaluate() == pytest.approx(expected, rel=1e-6)


# Classic mistakes

MUTANTS = {
    (create_model, check_start): {
        "not tied": ("    model.out_head.weight = model.tok_emb.weight\n", ""),
        "what writes into the stream as large as the rest": ("if is_last", "if False"),
        "counted blocks, not writers": (
            '(2 * config["n_layers"])', 'config["n_layers"]'),
        "ten times too large": ("0.02", "0.2"),
        "biases as PyTorch starts them": (
            "            nn.init.zeros_(parameter)", "            pass"),
    },
    (create_optimizer, check_optimizer): {
        "decay of biases and norms": ('"weight_decay": 0.0', '"weight_decay": 0.3'),
        "no decay at all": ("weight_decay=weight_decay", "weight_decay=0"),
        "a group forgotten": ("p.dim() < 2", "p.dim() < 1"),
        "everything in both groups": ("p.dim() < 2", "True"),
        "PyTorch's betas": ("(0.9, 0.95)", "(0.9, 0.999)"),
    },
    (learning_rate, check_learning_rate): {
        "warm-up from 0 that never reaches its peak": (
            "(step + 1) / warmup_steps", "step / warmup_steps"),
        "the peak twice": ("(step + 1 - warmup_steps)", "(step - warmup_steps)"),
        "warm-up counted as cooling down": (
            "(num_steps - warmup_steps)", "num_steps"),
        "down to 0": ("(final + (1 - final) * cosine)", "cosine"),
        "final added": ("(1 - final) * cosine", "cosine"),
    },
    (Windows, check_windows): {
        "overlapping by one": (
            ".item() * self.context_length", ".item() * (self.context_length - 1)"),
        "shifted by two": (
            "ids[:, :-1], ids[:, 1:]",
            "ids[:, :-1], ids[:, 1:].roll(-1, 1)"),
        "one token between windows": (
            ".item() * self.context_length", ".item() * (self.context_length + 1)"),
        "last window lost": ("(len(shards) - 1)", "(len(shards) - 1 - context_length)"),
        "every pass in the same order": (" + epoch", ""),
        "another pass, another seed, the same order": (
            "self.seed * 1_000_003", "self.seed"),
        "order kept from another pass": (
            "if self._order[0] != epoch", "if self._order[1] is None"),
        "always shuffled": ("if self.shuffle:", "if True:"),
        "window 0 left out": ("torch.randperm(self.count, generator=generator)",
                              "torch.randperm(self.count, generator=generator) "
                              ".clamp(min=1)"),
    },
    (Pretraining, check_steps): {
        "accumulation without dividing": (" / len(micro_batches)", ""),
        "clipping skipped": ("nn.utils.clip_grad_norm_(", "(lambda *_: 0)("),
        "gradients never reset": (
            "        self.optimizer.zero_grad()\n        self.step += 1",
            "        self.step += 1"),
        "gradients reset for each micro-batch": (
            "loss.backward()\n            self.loss_sum",
            "self.optimizer.zero_grad(); loss.backward()\n            self.loss_sum"),
        "learning rate of the next step": (
            "                self.step, s[", "                self.step + 1, s["),
        "schedule forgotten": ('group["lr"] = ', "_ = "),
        "always the same windows": ("self.my_windows(self.step)", "self.my_windows(0)"),
    },
    (Pretraining, check_shares): {
        "second process takes the same windows": (
            "range(self.world.rank,", "range(0,"),
        "each process takes them all": ("batch_size, self.world.size)", "batch_size)"),
        "steps overlap": ("step * batch_size + i", "step + i"),
    },
    (token_lengths, check_token_lengths): {
        "end tokens counted as bytes": (
            "    lengths[tokenizer.eot_token] = 0\n", ""),
        "characters instead of bytes": (
            "len(token)", "len(token.decode(errors='replace'))"),
    },
}  # fmt: skip
EVALUATION = {
    (Pretraining, None): {
        "nats": (" / math.log(2) / num_bytes", " / num_bytes"),
        "mean of batches of any size": ("loss.item() * targets.numel()", "loss.item()"),
        "bytes of the inputs": ("self.token_lengths[targets]",
                                "self.token_lengths[inputs]"),
        "the first windows only": ("i * windows.count // count", "i"),
        "each process evaluates all": ("self.world.rank :: self.world.size", ":"),
        "with dropout": ("        self.model.eval()\n        for", "        for"),
        "left in eval mode": ("        self.model.train()\n        nats, num_bytes",
                              "        nats, num_bytes"),
        "of the training text": ("= self.val_windows, self.", "= self.windows, self."),
    },
}  # fmt: skip


@pytest.mark.parametrize(("component", "check"), MUTANTS)
def test_agrees_with_the_definition(component, check):
    check(component)


def test_evaluate_agrees_with_the_definition(check_evaluate):
    check_evaluate(Pretraining)


@each_of(MUTANTS)
def test_mutant_is_caught(component, check, old, new):
    with pytest.raises(NOTICED):
        check(mutate(component, old, new))


@each_of(EVALUATION)
def test_mutant_of_evaluate_is_caught(component, check, old, new, check_evaluate):
    mutant = mutate(component, old, new)
    with pytest.raises(NOTICED):
        check_evaluate(mutant)


# Memory


def anonymous_memory():
    """Bytes of this process that are not in a file (Linux)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"RssAnon:\s+(\d+)", status)[1])


def peak_of_training(config, batch_size, dtype):
    """The most memory this process has had after a few steps and an evaluation."""
    reuse_freed_memory()
    ids = torch.randint(config["vocab_size"], (9 * config["context_length"] + 1,))
    peaks, done = [], threading.Event()

    def watch():
        while not done.wait(0.002):
            peaks.append(anonymous_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        changed = {"batch_size": batch_size, "micro_batch": batch_size, "dtype": dtype}
        tokens = PlainTokens(ids.tolist())
        run = training(Pretraining, tokens, config=config, **changed)
        for _ in range(5):
            run.train_step()
        run.evaluate()
    finally:  # or this process would never end
        done.set()
        watcher.join()
    return max(peaks)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured on Linux")
@pytest.mark.parametrize(
    ("shape", "batch_size", "dtype"),
    [
        ({"emb_dim": 96, "n_heads": 4, "n_layers": 4, "context_length": 64}, 4, "fp32"),
        ({"emb_dim": 64, "n_heads": 4, "n_layers": 2, "context_length": 64}, 6, "bf16"),
    ],
)
def test_memory_is_about_what_is_said(shape, batch_size, dtype):
    config = CONFIG_MINI | shape
    peak = run_alone(peak_of_training, config, batch_size, dtype)
    # Another C library may leave fewer gaps between its blocks
    too_much = 1.4 if platform.libc_ver() == ("glibc", "2.36") else 2
    assert 0.9 < memory_needed(config, batch_size) / peak < too_much


# Tied weights in files


@pytest.fixture
def tied():
    """A model whose parameters are all far from their start."""
    model = create_model(TINY)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(torch.arange(8)[None])


def test_a_tied_model_is_saved_once_and_comes_back_tied(tied, tmp_path):
    path = tmp_path / "tied.safetensors"
    save_weights(path, tied, TINY)
    with safe_open(path, framework="pt") as file:
        assert "out_head.weight" not in list(file.keys())
    rng_state = torch.get_rng_state()
    loaded, config = load_model(path)
    assert torch.equal(torch.get_rng_state(), rng_state)
    assert config == TINY
    assert is_tied(loaded)
    assert not loaded.training
    assert torch.equal(logits(loaded), logits(tied))
    assert parameter_count(TINY) == sum(p.numel() for p in loaded.parameters())
    # Still tied after a move, and by a step of training
    assert is_tied(loaded.to(torch.float64).to("cpu"))

    # One copy of a number: what an untied file has more is the output layer
    untied = copy.deepcopy(tied)
    untied.out_head.weight = nn.Parameter(tied.out_head.weight.detach().clone())
    save_weights(tmp_path / "untied.safetensors", untied, TINY)
    sizes = [(tmp_path / f"{n}.safetensors").stat().st_size for n in ("tied", "untied")]
    assert sizes[1] - sizes[0] == pytest.approx(4 * 97 * 16, abs=200)
    assert not is_tied(load_model(tmp_path / "untied.safetensors")[0])


def test_bfloat16_halves_the_file(tied, tmp_path):
    full, half = tmp_path / "full.safetensors", tmp_path / "half.safetensors"
    before = {name: t.clone() for name, t in tied.state_dict().items()}
    save_weights(full, tied, TINY)
    save_weights(half, tied, TINY, dtype=torch.bfloat16)
    numbers = sum(t.numel() for n, t in before.items() if n != "out_head.weight")
    assert full.stat().st_size - half.stat().st_size == pytest.approx(
        2 * numbers, abs=100
    )
    loaded, _ = load_model(half)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tied.state_dict()[name], before[name])
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, before[name].bfloat16().float()), name


def test_tied_and_untied_files_do_not_fit_each_other(tied, tmp_path):
    torch.manual_seed(1)
    untied = GPTModel(TINY)
    for model, other in ((tied, untied), (untied, tied)):
        path = tmp_path / "model.safetensors"
        save_weights(path, model, TINY)
        before = {name: t.clone() for name, t in other.state_dict().items()}
        with pytest.raises(InputError, match=r"out_head\.weight") as refused:
            load_weights(other, path)
        assert "\n" not in str(refused.value)
        assert str(path) in str(refused.value)
        for name, tensor in other.state_dict().items():
            assert torch.equal(tensor, before[name]), name


def test_a_tied_model_goes_on_from_a_checkpoint(tmp_path):
    runs = [training(), training(seed=6)]
    for _ in range(2):
        runs[0].train_step()
    states = {"cpu": torch.get_rng_state()}
    position = {"step": 2, "tokens_seen": 64, "seconds": 1.5, "settings": {}}
    model, optimizer = runs[0].model, runs[0].optimizer
    folder = save_checkpoint(tmp_path, model, TINY, optimizer, states, position)
    other = runs[1].model, runs[1].optimizer
    assert load_checkpoint(folder, *other)[1] == position
    assert is_tied(other[0])
    runs[1].windows, runs[1].step = runs[0].windows, 2
    for run in runs:
        run.train_step()
    pairs = zip(runs[0].model.parameters(), runs[1].model.parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


# Processes that cannot compute


def test_more_processes_than_gpus(monkeypatch):
    for name, value in (("WORLD_SIZE", 2), ("RANK", 1), ("LOCAL_RANK", 1)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for device in ("auto", "cuda"):
        with pytest.raises(InputError, match="--nproc-per-node is at most 1"):
            World(device)


@pytest.mark.parametrize(
    ("device", "processes", "batch_size", "expected"),
    [
        ("cpu", 1, 16, 4),
        ("cpu", 2, 16, 4),
        ("cpu", 4, 8, 2),
        ("cpu", 1, 6, 2),
        ("cuda", 1, 16, 16),
        ("cuda", 2, 16, 8),
    ],
)
def test_default_micro_batch(device, processes, batch_size, expected, tmp_path):
    """On a CPU the same for one process and several, so that either can resume."""
    (tmp_path / "manifest.json").touch()
    options = ["--data", tmp_path, "--batch-size", batch_size, "--dtype", "fp32"]
    args = pretrain.parse_args([str(option) for option in options])
    world = SimpleNamespace(device=torch.device(device), size=processes)
    assert pretrain.collect_settings(args, world)["micro_batch"] == expected
