"""Attention, from one head on one sentence to many heads on a batch (chapter 3).

Each class adds one idea to the one before it; `MultiHeadAttention` is what the GPT
model of chapter 4 uses. Faster variants of it are not here. Run it:
`python -m ch03.attention` prints every class's output for the six-token example.

Letters: B batch, T tokens, C width (d_in, d_out), H heads, D width of one head.
"""

import torch
from torch import nn

from ch02.cli import Parser, exit_on_input_error

# "Your journey starts with one step", three made-up numbers a word (section 3.3)
INPUTS = (
    (0.43, 0.15, 0.89),  # Your
    (0.55, 0.87, 0.66),  # journey
    (0.57, 0.85, 0.64),  # starts
    (0.22, 0.58, 0.33),  # with
    (0.77, 0.25, 0.10),  # one
    (0.05, 0.80, 0.55),  # step
)


def softmax_naive(x):
    """Softmax over the first dimension, as the formula says: overflows for large x."""
    return torch.exp(x) / torch.exp(x).sum(dim=0)


class SelfAttention_v1(nn.Module):
    """Scaled dot-product attention with bare weight matrices (section 3.4.2).

    Shape: (T, d_in) -> (T, d_out).
    """

    def __init__(self, d_in, d_out):
        super().__init__()
        self.W_query = nn.Parameter(torch.rand(d_in, d_out))
        self.W_key = nn.Parameter(torch.rand(d_in, d_out))
        self.W_value = nn.Parameter(torch.rand(d_in, d_out))

    def forward(self, x):
        queries = x @ self.W_query  # (T, d_out)
        keys = x @ self.W_key  # (T, d_out)
        values = x @ self.W_value  # (T, d_out)
        attn_scores = queries @ keys.T  # (T, T)
        attn_weights = torch.softmax(attn_scores / keys.shape[-1] ** 0.5, dim=-1)
        return attn_weights @ values  # (T, d_out)


class SelfAttention_v2(nn.Module):
    """The same with `nn.Linear`, whose initial weights train better (section 3.4.2).

    Shape: (T, d_in) -> (T, d_out).
    """

    def __init__(self, d_in, d_out, qkv_bias=False):
        super().__init__()
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)

    def forward(self, x):
        queries = self.W_query(x)  # (T, d_out)
        keys = self.W_key(x)  # (T, d_out)
        values = self.W_value(x)  # (T, d_out)
        attn_scores = queries @ keys.T  # (T, T)
        attn_weights = torch.softmax(attn_scores / keys.shape[-1] ** 0.5, dim=-1)
        return attn_weights @ values  # (T, d_out)


class CausalAttention(nn.Module):
    """One head that cannot see later tokens, with dropout, on batches (section 3.5.3).

    Shape: (B, T, d_in) -> (B, T, d_out), T <= context_length.
    """

    def __init__(self, d_in, d_out, context_length, dropout, qkv_bias=False):
        super().__init__()
        self.d_out = d_out
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.dropout = nn.Dropout(dropout)
        # A buffer moves with the model to its device, but no optimizer trains it
        self.register_buffer(
            "mask", torch.triu(torch.ones(context_length, context_length), diagonal=1)
        )

    def forward(self, x):
        _, num_tokens, _ = x.shape
        queries = self.W_query(x)  # (B, T, d_out)
        keys = self.W_key(x)  # (B, T, d_out)
        values = self.W_value(x)  # (B, T, d_out)
        attn_scores = queries @ keys.transpose(1, 2)  # (B, T, T)
        future = self.mask.bool()[:num_tokens, :num_tokens]
        attn_scores.masked_fill_(future, -torch.inf)
        attn_weights = torch.softmax(attn_scores / keys.shape[-1] ** 0.5, dim=-1)
        attn_weights = self.dropout(attn_weights)
        return attn_weights @ values  # (B, T, d_out)


class MultiHeadAttentionWrapper(nn.Module):
    """Several causal heads side by side, their outputs joined (section 3.6.1).

    Shape: (B, T, d_in) -> (B, T, num_heads * d_out).
    """

    def __init__(self, d_in, d_out, context_length, dropout, num_heads, qkv_bias=False):
        super().__init__()
        self.heads = nn.ModuleList(
            CausalAttention(d_in, d_out, context_length, dropout, qkv_bias)
            for _ in range(num_heads)
        )

    def forward(self, x):
        return torch.cat([head(x) for head in self.heads], dim=-1)  # (B, T, H * d_out)


class MultiHeadAttention(nn.Module):
    """All heads in one matrix product, then a projection (section 3.6.2).

    Shape: (B, T, d_in) -> (B, T, d_out), T <= context_length.
    Raises AssertionError unless num_heads divides d_out.
    """

    def __init__(self, d_in, d_out, context_length, dropout, num_heads, qkv_bias=False):
        super().__init__()
        assert d_out % num_heads == 0, f"{num_heads} heads cannot share {d_out} columns"
        self.d_out = d_out
        self.num_heads = num_heads
        self.head_dim = d_out // num_heads
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.out_proj = nn.Linear(d_out, d_out)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer(
            "mask", torch.triu(torch.ones(context_length, context_length), diagonal=1)
        )

    def forward(self, x):
        B, T, _ = x.shape
        H, D = self.num_heads, self.head_dim
        # Cut each token's columns into heads, then put the heads beside the batch
        queries = self.W_query(x).view(B, T, H, D).transpose(1, 2)  # (B, H, T, D)
        keys = self.W_key(x).view(B, T, H, D).transpose(1, 2)  # (B, H, T, D)
        values = self.W_value(x).view(B, T, H, D).transpose(1, 2)  # (B, H, T, D)

        attn_scores = queries @ keys.transpose(2, 3)  # (B, H, T, T)
        attn_scores.masked_fill_(self.mask.bool()[:T, :T], -torch.inf)
        attn_weights = torch.softmax(attn_scores / D**0.5, dim=-1)
        attn_weights = self.dropout(attn_weights)

        context_vec = (attn_weights @ values).transpose(1, 2)  # (B, T, H, D)
        context_vec = context_vec.contiguous().view(B, T, self.d_out)  # (B, T, C)
        return self.out_proj(context_vec)


def main(argv=None):
    """Command line: the output of every class for the six-token example."""
    parser = Parser(
        prog="attention",
        description="Every attention class of chapter 3 on its six-token example.",
    )
    parser.parse_args(argv)
    inputs = torch.tensor(INPUTS)  # (6, 3)
    batch = torch.stack((inputs, inputs))  # (2, 6, 3)
    d_in, d_out, context_length = 3, 2, 6
    torch.set_printoptions(precision=4, sci_mode=False)

    examples = (
        (123, inputs, SelfAttention_v1, (d_in, d_out)),
        (789, inputs, SelfAttention_v2, (d_in, d_out)),
        (123, batch, CausalAttention, (d_in, d_out, context_length, 0.0)),
        (123, batch, MultiHeadAttentionWrapper, (d_in, d_out, context_length, 0.0, 2)),
        (123, batch, MultiHeadAttention, (d_in, d_out, context_length, 0.0, 2)),
    )
    with exit_on_input_error("attention"):
        for seed, x, attention, arguments in examples:
            torch.manual_seed(seed)
            with torch.no_grad():
                context_vecs = attention(*arguments)(x)
            print(
                f"{attention.__name__}: {list(x.shape)} -> {list(context_vecs.shape)}"
            )
            print(context_vecs if x is inputs else context_vecs[0], "\n")


if __name__ == "__main__":
    main()
