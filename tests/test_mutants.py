"""Classic mistakes, put into our code one at a time: each check must notice.

A mutant is a component with one piece of its source replaced. A mutant that survives
means that a check is too weak.
"""

import inspect
import sys

import checks
import pytest

from ch02.dataloader import GPTDatasetV1
from ch03.attention import (
    CausalAttention,
    MultiHeadAttention,
    MultiHeadAttentionWrapper,
    SelfAttention_v1,
    SelfAttention_v2,
    softmax_naive,
)
from ch04.gpt import GELU, FeedForward, GPTModel, LayerNorm, TransformerBlock
from ch05.gpt_generate import generate
from ch05.gpt_train import calc_loss_batch

MUTANTS = {
    (softmax_naive, checks.check_softmax): {
        "not normalised": ("/ torch.exp(x).sum(dim=0)", ""),
        "normalised without exp": ("/ torch.exp(x).sum(dim=0)", "/ x.sum(dim=0)"),
    },
    (SelfAttention_v1, checks.check_self_attention): {
        "no scale": ("/ keys.shape[-1] ** 0.5", ""),
        "scaled by d instead of its root": ("** 0.5", ""),
        "softmax over the queries": ("dim=-1", "dim=0"),
        "weights times keys": ("attn_weights @ values", "attn_weights @ keys"),
    },
    (SelfAttention_v2, checks.check_self_attention): {
        "scaled by the number of tokens": ("keys.shape[-1]", "keys.shape[0]"),
        "scores transposed": ("queries @ keys.T", "keys @ queries.T"),
    },
    (CausalAttention, checks.check_causal_attention): {
        "mask transposed": ("[:num_tokens, :num_tokens]",
                            "[:num_tokens, :num_tokens].T"),
        "one token of the future visible": ("diagonal=1", "diagonal=2"),
        "the token itself hidden": ("diagonal=1", "diagonal=0"),
        "masked with 0 instead of -inf": ("-torch.inf", "0.0"),
        "mask forgotten": ("attn_scores.masked_fill_", "attn_scores.masked_fill"),
        "batch transposed": ("keys.transpose(1, 2)", "keys.transpose(0, 2).mT"),
        "no bias": ("bias=qkv_bias", "bias=False"),
    },
    (MultiHeadAttentionWrapper, checks.check_wrapper): {
        "heads added": ("torch.cat([head(x) for head in self.heads], dim=-1)",
                        "sum(head(x) for head in self.heads)"),
        "one head used for all": ("head(x) for head", "self.heads[0](x) for head"),
    },
    (MultiHeadAttention, checks.check_multi_head_attention): {
        "scaled by the full width": ("D**0.5", "self.d_out**0.5"),
        "no scale": ("/ D**0.5", ""),
        "view where a transpose was meant": (
            "self.W_query(x).view(B, T, H, D).transpose(1, 2)",
            "self.W_query(x).view(B, H, T, D)",
        ),
        "heads not put back beside their token": (
            "(attn_weights @ values).transpose(1, 2)",
            "(attn_weights @ values)",
        ),
        "mask transposed": ("[:T, :T]", "[:T, :T].T"),
        "one token of the future visible": ("diagonal=1", "diagonal=2"),
        "softmax over the queries": ("dim=-1", "dim=-2"),
        "no output projection": ("return self.out_proj(context_vec)",
                                 "return context_vec"),
        "query and key layers swapped": (
            "queries = self.W_query(x)", "queries = self.W_key(x)"),
    },
    (LayerNorm, checks.check_layer_norm): {
        "variance over n - 1": (".mean(dim=-1, keepdim=True)\n        norm_x",
                                ".sum(-1, True) / (x.shape[-1] - 1)\n        norm_x"),
        "eps forgotten": ("var + self.eps", "var"),
        "eps outside the root": ("torch.sqrt(var + self.eps)",
                                 "(torch.sqrt(var) + self.eps)"),
        "not centred": ("x - x.mean(dim=-1, keepdim=True)", "x"),
        "over the tokens": ("x.mean(dim=-1", "x.mean(dim=-2"),
        "no scale": ("self.scale * norm_x", "norm_x"),
        "no shift": ("+ self.shift", ""),
    },
    (GELU, checks.check_gelu): {
        "square instead of cube": ("torch.pow(x, 3)", "torch.pow(x, 2)"),
        "constant ten times too large": ("0.044715", "0.44715"),
        "no root": ("(2 / torch.pi) ** 0.5", "(2 / torch.pi)"),
        "not halved": ("0.5 * x", "x"),
    },
    (FeedForward, checks.check_feed_forward): {
        "not widened": ("4 * cfg", "1 * cfg"),
        "no activation": ("GELU()", "nn.Identity()"),
        "ReLU": ("GELU()", "nn.ReLU()"),
    },
    (TransformerBlock, checks.check_gpt_model): {
        "no shortcut around attention": ("x + self.drop_shortcut(self.att",
                                         "self.drop_shortcut(self.att"),
        "no shortcut around feed forward": ("x + self.drop_shortcut(self.ff",
                                            "self.drop_shortcut(self.ff"),
        "norm after instead of before": ("self.att(self.norm1(x))",
                                         "self.norm1(self.att(x))"),
        "first norm used twice": ("self.ff(self.norm2(x))", "self.ff(self.norm1(x))"),
    },
    (GPTModel, checks.check_gpt_model): {
        "no positions": ("tok_embeds + pos_embeds", "tok_embeds"),
        "positions from 1": ("self.pos_emb(positions)", "self.pos_emb(positions - 1)"),
        "no final norm": ("x = self.final_norm(x)", "x = x"),
        "one block too few": ('range(cfg["n_layers"])', 'range(cfg["n_layers"] - 1)'),
        "one block repeated": (
            '*[TransformerBlock(cfg) for _ in range(cfg["n_layers"])]',
            '*[TransformerBlock(cfg)] * cfg["n_layers"]',
        ),
    },
    (GPTDatasetV1, checks.check_dataset): {
        "targets not shifted": ("[i + 1 : i + max_length + 1]", "[i : i + max_length]"),
        "targets shifted by two": ("[i + 1 : i + max_length + 1]",
                                   "[i + 2 : i + max_length + 2]"),
        "last window lost": ("len(token_ids) - max_length, stride",
                             "len(token_ids) - max_length - 1, stride"),
        "last target outside": ("len(token_ids) - max_length, stride",
                                "len(token_ids) - max_length + 1, stride"),
        "stride ignored": ("- max_length, stride)", "- max_length, 1)"),
    },
    (calc_loss_batch, checks.check_loss_batch): {
        "probabilities instead of logits": ("logits.flatten(0, 1)",
                                            "logits.softmax(-1).flatten(0, 1)"),
        "targets in another order": ("target_batch.flatten()",
                                     "target_batch.T.flatten()"),
        "inputs as targets": ("target_batch.flatten()", "input_batch.flatten()"),
    },
    (generate, checks.check_generate): {
        "context cropped from the wrong end": ("idx[:, -context_size:]",
                                               "idx[:, :context_size]"),
        "context not cropped": ("idx[:, -context_size:]", "idx"),
        "first position instead of last": ("[:, -1, :]", "[:, 0, :]"),
        "multiplied by temperature": ("logits / temperature", "logits * temperature"),
        "the k-th dropped too": ("logits < kth_largest", "logits <= kth_largest"),
        "masked with 0": ("-torch.inf", "0.0"),
        "end token appended": (
            "            break\n        idx = torch.cat((idx, idx_next), dim=1)",
            "            return torch.cat((idx, idx_next), dim=1)\n"
            "        idx = torch.cat((idx, idx_next), dim=1)",
        ),
        "always greedy": ("temperature > 0.0", "False"),
    },
}  # fmt: skip


def mutate(component, old, new):
    """The component with one piece of its source replaced, as if written that way."""
    source = inspect.getsource(component)
    assert old in source, f"{component.__name__} no longer contains {old!r}"
    module = vars(sys.modules[component.__module__])
    namespace = dict(module)
    exec(source.replace(old, new), namespace)  # our own source
    return namespace[component.__name__]


def put_into_model(mutant):
    """A GPTModel built with a mutated block."""

    def build(config):
        model = GPTModel(config)
        for i, block in enumerate(model.trf_blocks):
            model.trf_blocks[i] = mutant(config)
            model.trf_blocks[i].load_state_dict(block.state_dict())
        return model

    return build


def each_of(mutants):
    """One test for each classic mistake: parametrizes component, check, old, new."""
    return pytest.mark.parametrize(
        ("component", "check", "old", "new"),
        [
            pytest.param(component, check, old, new, id=f"{component.__name__}: {name}")
            for (component, check), mistakes in mutants.items()
            for name, (old, new) in mistakes.items()
        ],
    )


NOTICED = (AssertionError, RuntimeError, IndexError, ValueError)


@each_of(MUTANTS)
def test_mutant_is_caught(component, check, old, new):
    mutant = mutate(component, old, new)
    if component is TransformerBlock:
        mutant = put_into_model(mutant)
    with pytest.raises(NOTICED):
        check(mutant)


@pytest.mark.parametrize("component", [TransformerBlock])
def test_the_unmutated_block_passes(component):
    checks.check_gpt_model(put_into_model(component))
