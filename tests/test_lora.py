"""LoRA: equal to the peft library, and nothing changed that should not be."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, inject_adapter_in_model
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from appendix_e.lora import (
    LinearWithLoRA,
    LoRALayer,
    adapted_layers,
    added_weight,
    linear_layers,
    load_lora,
    merge_lora,
    num_adapter_parameters,
    replace_linear_with_lora,
    save_lora,
    unmerge_lora,
)
from ch02.cli import InputError
from ch04.gpt import GPT_CONFIG_124M, GPTModel

CONFIG = {
    "vocab_size": 53,
    "context_length": 12,
    "emb_dim": 16,
    "n_heads": 4,
    "n_layers": 2,
    "drop_rate": 0.0,
    "qkv_bias": True,
}
ATTENTION = ("W_query", "W_value")
IDS = torch.arange(24).view(2, 12) % 53


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def model():
    torch.manual_seed(3)
    return GPTModel(CONFIG).eval()


def adapted(model, rank=3, alpha=6, only=None, noise=0.1):
    """A copy with adapters that add something."""
    model = copy.deepcopy(model).requires_grad_(False)
    replace_linear_with_lora(model, rank, alpha, only)
    for module in adapted_layers(model).values():
        nn.init.normal_(module.lora.B, std=noise)
    return model


# The same as the peft library


@pytest.mark.parametrize(("rank", "alpha"), [(1, 1), (2, 8), (4, 4), (8, 2)])
@pytest.mark.parametrize("only", [ATTENTION, None])
def test_logits_and_gradients_are_those_of_peft(model, rank, alpha, only):
    ours = adapted(model, rank, alpha, only)
    names = list(linear_layers(model, only))
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=names)
    theirs = inject_adapter_in_model(config, copy.deepcopy(model)).eval()
    assert set(adapted_layers(ours)) == set(names)
    for name, module in adapted_layers(ours).items():
        layer = theirs.get_submodule(name)
        layer.lora_A["default"].weight.data = module.lora.A.detach().T.clone()
        layer.lora_B["default"].weight.data = module.lora.B.detach().T.clone()
    expected = theirs(IDS)
    assert (ours(IDS) - expected).abs().max() < 1e-6
    assert (expected - model(IDS)).abs().max() > 1e-3

    for network in (ours, theirs):
        loss = nn.functional.cross_entropy(network(IDS).flatten(0, 1), IDS.flatten())
        loss.backward()
    for name, module in adapted_layers(ours).items():
        layer = theirs.get_submodule(name)
        for mine, name_there in ((module.lora.A, "lora_A"), (module.lora.B, "lora_B")):
            gradient = getattr(layer, name_there)["default"].weight.grad.T
            torch.testing.assert_close(mine.grad, gradient, atol=1e-6, rtol=1e-4)
    # Both train the same numbers and no others
    ours_trained = sum(p.numel() for p in ours.parameters() if p.requires_grad)
    theirs_trained = sum(p.numel() for p in theirs.parameters() if p.requires_grad)
    assert ours_trained == theirs_trained


def test_one_layer_by_hand():
    torch.manual_seed(0)
    layer = LoRALayer(5, 4, rank=2, alpha=6)
    nn.init.normal_(layer.B)
    x = torch.randn(3, 5)
    weight = torch.zeros(4, 5)
    for out in range(4):
        for inp in range(5):
            for r in range(2):
                weight[out, inp] += 3 * layer.A[inp, r].item() * layer.B[r, out].item()
    torch.testing.assert_close(layer(x), x @ weight.T)
    torch.testing.assert_close(added_weight(layer), weight)


# What must not change


def test_new_adapters_change_nothing(model):
    before = model(IDS)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    replace_linear_with_lora(model, 4, 8)
    assert torch.equal(model(IDS), before)
    for name, module in adapted_layers(model).items():
        assert torch.equal(module.linear.weight, state[f"{name}.weight"])
        assert module.lora.A.abs().sum() > 0
        assert (module.lora.B == 0).all()


def test_frozen_weights_stay_bit_for_bit(model):
    model.requires_grad_(False)
    replace_linear_with_lora(model, 4, 8)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        logits = model(IDS[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), IDS[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != (".lora." in name), name


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(rank=st.integers(1, 20), alpha=st.floats(0.1, 64))
def test_merged_weights_give_the_same_logits(rank, alpha):
    torch.manual_seed(3)
    model = GPTModel(CONFIG).eval()
    ours = adapted(model, rank, alpha, noise=0.02)
    with torch.no_grad():
        split = ours(IDS)
        adapters = merge_lora(ours)
        assert (ours(IDS) - split).abs().max() <= 1e-5
        assert ours.state_dict().keys() == model.state_dict().keys()
        unmerge_lora(ours, adapters)
        assert torch.equal(ours(IDS), split)


def test_merging_leaves_a_tied_embedding_alone(model):
    model.out_head.weight = model.tok_emb.weight
    ours = adapted(model, only=("out_head",))
    embedding = ours.tok_emb.weight.clone()
    with torch.no_grad():
        split = ours(IDS)
        merge_lora(ours)
        assert torch.equal(ours.tok_emb.weight, embedding)
        assert (ours(IDS) - split).abs().max() <= 1e-5


# Which layers, how many numbers


def test_which_layers_are_wrapped(model):
    everything = copy.deepcopy(model)
    replace_linear_with_lora(everything, 2, 2)
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert len(adapted_layers(everything)) == len(linears) == 2 * 6 + 1
    assert isinstance(everything.out_head, LinearWithLoRA)

    replace_linear_with_lora(model, 2, 2, only=ATTENTION)
    assert list(adapted_layers(model)) == [
        f"trf_blocks.{i}.att.{name}" for i in range(2) for name in ATTENTION
    ]
    # Adapters are not adapted again
    replace_linear_with_lora(model, 2, 2, only=("W_key",))
    assert len(adapted_layers(model)) == 6


@pytest.mark.parametrize("rank", [1, 3, 16])
@pytest.mark.parametrize("only", [None, ATTENTION, ("ff",)])
def test_the_closed_formula_counts_them(model, rank, only):
    expected = num_adapter_parameters(linear_layers(model, only), rank)
    model.requires_grad_(False)
    replace_linear_with_lora(model, rank, 1, only)
    assert expected == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_the_count_of_the_book():
    """Appendix E: rank 16 in every linear layer of the 124M classifier."""
    with torch.device("meta"):
        model = GPTModel({**GPT_CONFIG_124M, "qkv_bias": True})
        model.out_head = nn.Linear(768, 2)
        model.requires_grad_(False)
        replace_linear_with_lora(model, rank=16, alpha=16)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == 2_666_528


# Files


def test_adapters_alone_are_saved_and_loaded(model, tmp_path):
    ours = adapted(model, rank=3, alpha=6, only=ATTENTION)
    save_lora(tmp_path / "a.safetensors", ours)
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        sizes = [file.get_tensor(name).numel() for name in file.keys()]  # noqa: SIM118
    assert sum(sizes) == num_adapter_parameters(linear_layers(model, ATTENTION), 3)
    load_lora(tmp_path / "a.safetensors", model)
    assert torch.equal(model(IDS), ours(IDS))
    # A second set for the same weights
    other = adapted(GPTModel(CONFIG), rank=1)
    save_lora(tmp_path / "b.safetensors", other)


def test_files_that_do_not_fit_are_refused(model, tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(InputError, match="no adapters to save"):
        save_lora(path, model)
    save_lora(path, adapted(GPTModel({**CONFIG, "emb_dim": 8})))
    before = list(model.state_dict())
    with pytest.raises(InputError, match="another architecture"):
        load_lora(path, model)
    save_lora(path, adapted(GPTModel({**CONFIG, "n_layers": 3})))
    with pytest.raises(InputError, match=r"trf_blocks\.2.* missing here"):
        load_lora(path, model)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="holds no adapters"):
        load_lora(path, model)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(InputError, match="holds no adapters"):
        load_lora(path, model)
    with pytest.raises(InputError, match="holds no adapters"):
        load_lora(tmp_path / "missing", model)
    with pytest.raises(InputError, match="cannot save"):
        save_lora(tmp_path / "no folder" / "a", adapted(model))
    assert list(model.state_dict()) == before
    assert not list(tmp_path.glob("*.partial"))


def test_wrong_settings_get_one_line(model):
    with pytest.raises(InputError, match="at least 1"):
        replace_linear_with_lora(model, 0, 1)
    with pytest.raises(InputError, match="no linear layer"):
        replace_linear_with_lora(model, 1, 1, only=("W_querry",))
    assert not adapted_layers(model)


# The book's figures, and classic mistakes


def test_the_start_of_the_book():
    """A under seed 123, and what it adds, scaled by alpha / rank."""
    torch.manual_seed(123)
    layer = LoRALayer(4, 3, rank=2, alpha=8)
    expected = torch.tensor(
        [
            [-0.288341253996, 0.0234226044267],
            [-0.351190626621, 0.266659557819],
            [-0.602493882179, 0.518340289593],
            [-0.51395368576, -0.562179505825],
        ]
    )
    torch.testing.assert_close(layer.A.detach(), expected, atol=1e-6, rtol=0)
    nn.init.ones_(layer.B)
    output = layer(torch.ones(1, 4))
    torch.testing.assert_close(
        output, torch.full((1, 3), -6.03894615173), atol=1e-5, rtol=0
    )


def scaled_by_alpha(self, x):
    return self.alpha * (x @ self.A @ self.B)


def not_scaled(self, x):
    return x @ self.A @ self.B


def scaled_by_rank(self, x):
    return (self.rank / self.alpha) * (x @ self.A @ self.B)


@pytest.mark.parametrize("forward", [scaled_by_alpha, not_scaled, scaled_by_rank])
def test_another_scaling_is_not_that_of_peft(model, forward, monkeypatch):
    monkeypatch.setattr(LoRALayer, "forward", forward)
    with pytest.raises(AssertionError):
        test_logits_and_gradients_are_those_of_peft(model, 2, 8, ATTENTION)
