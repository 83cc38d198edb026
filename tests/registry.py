"""Every attention and model class, in one list, for the tests that hold for all.

A new class gets all invariants of `test_invariants.py` by one entry here.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ch03.attention import (
    CausalAttention,
    MultiHeadAttention,
    MultiHeadAttentionWrapper,
    SelfAttention_v1,
    SelfAttention_v2,
)
from ch04.gpt import GPT_CONFIG_124M, GPTModel, TransformerBlock

TINY_CONFIG = {
    **GPT_CONFIG_124M,
    "vocab_size": 61,
    "context_length": 16,
    "emb_dim": 32,
    "n_heads": 4,
    "n_layers": 2,
}
CONTEXT = TINY_CONFIG["context_length"]
WIDTH = TINY_CONFIG["emb_dim"]


@dataclass(frozen=True)
class Case:
    """One class under test.

    build: () -> module. is_model: takes ids (B, T) and returns logits (B, T, V), else
    vectors (B, T, C) to (B, T, any). batched: takes a batch dimension. causal: a later
    token cannot change an earlier output. cached: (module, ids, chunk sizes) -> logits
    computed piece by piece with the class's KV cache, or None if it has none.
    """

    name: str
    build: Callable[[], nn.Module]
    is_model: bool = False
    batched: bool = True
    causal: bool = True
    cached: Callable | None = None

    def module(self):
        """A fresh module in eval mode with no parameter left at a special value."""
        torch.manual_seed(123)
        module = self.build().eval()
        for parameter in module.parameters():
            # Biases start at 0 and norms at 1, where many a bug would not show
            if parameter.dim() == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
        return module

    def example(self, batch_size=3, num_tokens=CONTEXT):
        """Random input: ids (B, T), or vectors (B, T, C); (T, C) if not batched."""
        if self.is_model:
            return torch.randint(TINY_CONFIG["vocab_size"], (batch_size, num_tokens))
        x = torch.randn(batch_size, num_tokens, WIDTH)
        return x if self.batched else x[0]


CASES = [
    Case(
        "SelfAttention_v1",
        lambda: SelfAttention_v1(WIDTH, 8),
        batched=False,
        causal=False,
    ),
    Case(
        "SelfAttention_v2",
        lambda: SelfAttention_v2(WIDTH, 8),
        batched=False,
        causal=False,
    ),
    Case("CausalAttention", lambda: CausalAttention(WIDTH, 8, CONTEXT, 0.1)),
    Case(
        "MultiHeadAttentionWrapper",
        lambda: MultiHeadAttentionWrapper(WIDTH, 8, CONTEXT, 0.1, num_heads=4),
    ),
    Case(
        "MultiHeadAttention",
        lambda: MultiHeadAttention(WIDTH, WIDTH, CONTEXT, 0.1, num_heads=4),
    ),
    Case(
        "MultiHeadAttention, biased, other width",
        lambda: MultiHeadAttention(WIDTH, 24, CONTEXT, 0.1, num_heads=3, qkv_bias=True),
    ),
    Case("TransformerBlock", lambda: TransformerBlock(TINY_CONFIG)),
    Case("GPTModel", lambda: GPTModel(TINY_CONFIG), is_model=True),
    Case(
        "GPTModel, biased",
        lambda: GPTModel({**TINY_CONFIG, "qkv_bias": True}),
        is_model=True,
    ),
]
