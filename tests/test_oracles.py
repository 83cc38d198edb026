"""Our components equal independent implementations of the same thing."""

import checks
import pytest
import torch
from checks import GPT_CONFIG, close, gpt2_pairs, perturb, random_gpt2

from ch02.dataloader import GPTDatasetV1
from ch03.attention import (
    CausalAttention,
    MultiHeadAttention,
    MultiHeadAttentionWrapper,
    SelfAttention_v1,
    SelfAttention_v2,
    softmax_naive,
)
from ch04.gpt import (
    GELU,
    GPT_CONFIG_124M,
    FeedForward,
    GPTModel,
    LayerNorm,
    generate_text_simple,
)
from ch05.gpt_generate import generate
from ch05.gpt_train import calc_loss_batch


@pytest.mark.parametrize(
    ("check", "ours"),
    [
        (checks.check_softmax, softmax_naive),
        (checks.check_self_attention, SelfAttention_v1),
        (checks.check_self_attention, SelfAttention_v2),
        (checks.check_causal_attention, CausalAttention),
        (checks.check_wrapper, MultiHeadAttentionWrapper),
        (checks.check_multi_head_attention, MultiHeadAttention),
        (checks.check_layer_norm, LayerNorm),
        (checks.check_gelu, GELU),
        (checks.check_feed_forward, FeedForward),
        (checks.check_gpt_model, GPTModel),
        (checks.check_dataset, GPTDatasetV1),
        (checks.check_loss_batch, calc_loss_batch),
        (checks.check_generate, generate),
    ],
    ids=lambda value: value.__name__,
)
def test_equals_the_oracle(check, ours):
    check(ours)


@torch.no_grad()
def test_transformers_computes_our_logits_with_our_weights():
    """The other direction: weights born in our model."""
    torch.manual_seed(123)
    ours, theirs = perturb(GPTModel(GPT_CONFIG)).eval(), random_gpt2()
    weights = {id(parameter): name for name, parameter in ours.named_parameters()}
    state = {}
    for tensor, other in gpt2_pairs(ours, theirs):
        other.copy_(tensor)  # chunks and transposes are views of their parameters
        state[weights[id(tensor)]] = tensor
    assert len(state) == len(weights)
    token_ids = torch.randint(97, (3, 16))
    close(theirs(token_ids).logits, ours(token_ids))


@torch.no_grad()
def test_greedy_generation_equals_transformers():
    theirs, ours = random_gpt2(), GPTModel(GPT_CONFIG).eval()
    for tensor, other in gpt2_pairs(ours, theirs):
        tensor.data = other.detach().clone()
    start = torch.randint(1, 97, (1, 4))
    expected = theirs.generate(
        start,
        attention_mask=torch.ones_like(start),
        max_new_tokens=12,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    assert torch.equal(generate_text_simple(ours, start, 12, 16), expected)
    assert torch.equal(generate(ours, start, 12, 16), expected)
    ended = generate(ours, start, 12, 16, eos_id=expected[0, 8].item())
    assert torch.equal(
        ended, expected[:, : (expected[0] == expected[0, 8]).nonzero()[0]]
    )


def test_parameter_count_is_that_of_the_closed_formula():
    V, T, C, L = 50257, 1024, 768, 12
    block = 3 * C * C + (C * C + C) + (4 * C * C + 4 * C) + (4 * C * C + C) + 4 * C
    with torch.device("meta"):
        model = GPTModel(GPT_CONFIG_124M)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert total == 2 * V * C + T * C + L * block + 2 * C == 163_009_536
    assert total - model.out_head.weight.numel() == 124_412_160
    assert f"{total * 4 / 2**20:.2f}" == "621.83"


def test_fused_adamw_takes_the_same_steps_as_the_book_s_optimizer():
    # A bias added to every key cancels in the softmax: its gradient is rounding noise,
    # which AdamW scales up to full steps. Without it all weights are comparable.
    config = {**GPT_CONFIG, "qkv_bias": False}
    results = []
    for fused in (False, True):
        torch.manual_seed(123)
        model = GPTModel(config)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=5e-4, weight_decay=0.1, fused=fused
        )
        for _ in range(20):
            token_ids = torch.randint(97, (4, 17))
            optimizer.zero_grad()
            loss = calc_loss_batch(token_ids[:, :-1], token_ids[:, 1:], model, "cpu")
            loss.backward()
            optimizer.step()
        results.append((loss, model.state_dict()))
    (loss, weights), (fused_loss, fused_weights) = results
    close(fused_loss, loss)
    for name in weights:
        close(fused_weights[name], weights[name])
