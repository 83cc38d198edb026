"""What must hold for every attention and model class of the registry."""

import math

import pytest
import torch
from registry import CASES, CONTEXT, TINY_CONFIG
from safetensors.torch import load_file, save_file

ALL = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
BATCHED = pytest.mark.parametrize(
    "case", [case for case in CASES if case.batched], ids=lambda case: case.name
)
CAUSAL = pytest.mark.parametrize(
    "case", [case for case in CASES if case.causal], ids=lambda case: case.name
)
MODELS = pytest.mark.parametrize(
    "case", [case for case in CASES if case.is_model], ids=lambda case: case.name
)


def close(ours, theirs, tolerance=1e-5):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@CAUSAL
@torch.no_grad()
def test_a_later_token_cannot_change_an_earlier_output(case):
    module, x = case.module(), case.example()
    before = module(x)
    for position in (1, CONTEXT // 2, CONTEXT - 1):
        changed = x.clone()
        other = case.example()
        changed[:, position:] = other[:, position:]
        after = module(changed)
        close(after[:, :position], before[:, :position])
        assert not torch.allclose(after[:, position:], before[:, position:])


@CAUSAL
def test_gradient_of_an_output_with_respect_to_later_tokens_is_zero(case):
    module, x = case.module(), case.example()
    inputs = []
    if case.is_model:
        # Ids have no gradient; their embeddings do
        def remember(_, __, output):
            output.retain_grad()
            inputs.append(output)

        module.tok_emb.register_forward_hook(remember)
    else:
        x.requires_grad_()
        inputs.append(x)
    position = CONTEXT // 2
    module(x)[:, position].sum().backward()
    gradient = inputs[0].grad
    assert (gradient[:, position + 1 :] == 0).all()
    assert (gradient[:, : position + 1] != 0).any(dim=-1).all()


@pytest.mark.parametrize(
    "case", [case for case in CASES if not case.causal], ids=lambda case: case.name
)
@torch.no_grad()
def test_without_a_mask_order_does_not_matter(case):
    module, x = case.module(), case.example()
    order = torch.randperm(x.shape[-2])
    close(module(x)[order], module(x[order]))


@BATCHED
@torch.no_grad()
def test_a_batch_gives_what_its_rows_give_alone(case):
    module, x = case.module(), case.example()
    together = module(x)
    for row in range(len(x)):
        close(module(x[row : row + 1]), together[row : row + 1])


@BATCHED
@torch.no_grad()
def test_padding_on_the_right_changes_nothing_before_it(case):
    module, x = case.module(), case.example()
    padded = x.clone()
    lengths = (3, CONTEXT // 2, CONTEXT)
    for row, length in enumerate(lengths):
        padded[row, length:] = 0
    together = module(padded)
    for row, length in enumerate(lengths):
        close(together[row, :length], module(x[row : row + 1, :length])[0])


@BATCHED
@torch.no_grad()
def test_order_of_the_batch_does_not_matter(case):
    module, x = case.module(), case.example()
    order = torch.tensor([2, 0, 1])
    close(module(x)[order], module(x[order]))


@ALL
@torch.no_grad()
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-4), (torch.bfloat16, 0.1)]
)
def test_other_precisions_give_the_same_up_to_rounding(case, dtype, tolerance):
    module, x = case.module(), case.example()
    expected = module(x)
    ours = module.to(dtype)(x if case.is_model else x.to(dtype))
    assert ours.dtype == dtype
    close(ours.float(), expected, tolerance)


@ALL
@torch.no_grad()
def test_saved_and_loaded_weights_give_the_same_output(case, tmp_path):
    module, x = case.module(), case.example()
    save_file(module.state_dict(), tmp_path / "weights.safetensors")
    torch.manual_seed(999)
    other = case.build().eval()
    assert not torch.equal(other(x), module(x))
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert torch.equal(other(x), module(x))


@ALL
@torch.no_grad()
def test_dropout_acts_in_training_only(case):
    module, x = case.module(), case.example()
    assert torch.equal(module(x), module(x))
    has_dropout = any(isinstance(m, torch.nn.Dropout) for m in module.modules())
    module.train()
    assert torch.equal(module(x), module(x)) != has_dropout


@ALL
def test_every_parameter_learns(case):
    module, x = case.module(), case.example()
    module(x).square().sum().backward()
    for name, parameter in module.named_parameters():
        if name == "tok_emb.weight":
            continue  # only the rows that occur
        assert parameter.grad.abs().sum() > 0, name


@MODELS
@torch.no_grad()
def test_untrained_loss_is_that_of_a_guess(case):
    torch.manual_seed(123)
    model = case.build().eval()
    token_ids = torch.randint(TINY_CONFIG["vocab_size"], (64, CONTEXT + 1))
    logits = model(token_ids[:, :-1])
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), token_ids[:, 1:].flatten()
    )
    assert loss.item() == pytest.approx(math.log(TINY_CONFIG["vocab_size"]), abs=0.25)


@MODELS
@torch.no_grad()
def test_a_text_longer_than_the_context_is_refused(case):
    with pytest.raises((IndexError, RuntimeError)):
        case.module()(case.example(num_tokens=CONTEXT + 1))


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.cached],
    ids=lambda case: case.name,
)
@pytest.mark.parametrize("chunks", [(CONTEXT,), (1,) * CONTEXT, (5, 1, 7, 3)])
@torch.no_grad()
def test_cached_equals_uncached(case, chunks):
    module, x = case.module(), case.example()
    close(case.cached(module, x, chunks), module(x))
