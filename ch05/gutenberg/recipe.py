"""What pretraining at scale adds to chapter 5's loop, piece by piece.

The model's start (a tied output layer, GPT-2's initialisation), AdamW that decays
matrices only, warm-up and cosine decay, windows of a corpus in an order that is a
function of the step, and what a run needs of memory and arithmetic.
`pretrain.py` puts them together.

Letters: B windows of a batch, T tokens of a window, C width, H heads, V vocabulary.
"""

import math

import torch
from torch import nn

from ch02.cli import InputError
from ch04.gpt import GPTModel

# Chosen after a look at scaling_study.json; in bfloat16 a file of 25 MB
CONFIG_MINI = {
    "vocab_size": 50257,
    "context_length": 256,
    "emb_dim": 192,
    "n_heads": 3,
    "n_layers": 6,
    "drop_rate": 0.0,  # most of the text is seen once: nothing to learn by heart
    "qkv_bias": True,
}


def create_model(config):
    """A GPTModel that starts as GPT-2 did, its output layer tied to the embedding.

    Weights come from N(0, 0.02²), biases are 0; the layers that write into the residual
    stream start smaller, by the square root of their number (Radford et al. 2019).
    """
    model = GPTModel(config)
    model.out_head.weight = model.tok_emb.weight
    into_residual = (2 * config["n_layers"]) ** -0.5
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.dim() == 2:
            is_last = name.endswith(("out_proj.weight", "ff.layers.2.weight"))
            std = 0.02 * (into_residual if is_last else 1)
            nn.init.normal_(parameter, std=std)
    return model


def create_optimizer(model, learning_rate, weight_decay):
    """Fused AdamW that decays matrices and embeddings, not biases and norms."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2]},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, learning_rate, (0.9, 0.95), weight_decay=weight_decay, fused=True
    )


def learning_rate(step, num_steps, warmup_steps, peak, final=0.1):
    """The learning rate of a step: up a straight line, then down half a cosine.

    The first step has peak / warmup_steps, the last one final * peak, unless all of
    them warm up.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = (step + 1 - warmup_steps) / (num_steps - warmup_steps)  # above 0, up to 1
    cosine = 0.5 * (1 + math.cos(math.pi * done))  # 1 to 0
    return peak * (final + (1 - final) * cosine)


class Windows:
    """The windows of a split in the order of training: window i is a function of i.

    So a run's place in its data is one number. The windows lie side by side; every pass
    over them has an order of its own, or that of the books with shuffle False.
    """

    def __init__(self, shards, context_length, seed=0, shuffle=True):
        self.shards, self.context_length = shards, context_length
        self.seed, self.shuffle = seed, shuffle
        self.count = (len(shards) - 1) // context_length
        if self.count < 1:
            raise InputError(
                f"a split of the data has {len(shards)} tokens, one window needs "
                f"{context_length + 1}: prepare more text or lower --context-length"
            )
        self._order = (None, None)  # of which pass, and what it is

    def order(self, epoch):
        """The windows of a pass in their order: int64 of shape (count,)."""
        if self._order[0] != epoch:
            order = torch.arange(self.count)
            if self.shuffle:
                seed = (self.seed * 1_000_003 + epoch) % 2**63  # as far as seeds go
                generator = torch.Generator().manual_seed(seed)
                order = torch.randperm(self.count, generator=generator)
            self._order = (epoch, order)
        return self._order[1]

    def batch(self, numbers):
        """(inputs, targets), each (B, T) int64, of the windows with these numbers."""
        rows = []
        for number in numbers:
            epoch, place = divmod(number, self.count)
            start = self.order(epoch)[place].item() * self.context_length
            rows.append(self.shards.window(start, self.context_length + 1))
        ids = torch.stack(rows)  # (B, T + 1)
        return ids[:, :-1], ids[:, 1:]


def token_lengths(tokenizer):
    """UTF-8 bytes of each token: (V,) int64; 0 for the end of a text."""
    tokens = (tokenizer.decode_single_token_bytes(i) for i in range(tokenizer.n_vocab))
    lengths = torch.tensor([len(token) for token in tokens])
    lengths[tokenizer.eot_token] = 0
    return lengths


def parameter_count(config):
    """Weights of a GPTModel whose output layer is its token embedding."""
    C = config["emb_dim"]
    biases = 3 * C if config["qkv_bias"] else 0
    block = 12 * C**2 + 10 * C + biases  # the matrices; their biases and two norms
    embeddings = (config["vocab_size"] + config["context_length"]) * C
    return embeddings + config["n_layers"] * block + 2 * C


def flops_per_token(config):
    """Floating-point operations of one training step, per token.

    Two for every weight of a matrix and every pair of positions forward, twice as many
    backward (Kaplan et al. 2020, arXiv:2001.08361); norms, softmax, GELU left out.
    """
    C, T, L = config["emb_dim"], config["context_length"], config["n_layers"]
    block = 12 * C**2 + 2 * T * C  # matrices; scores and their weighted sum
    return 6 * (L * block + C * config["vocab_size"])


def memory_needed(config, batch_size):
    """Bytes one process needs for training with this many windows at a time; a guess.

    Each weight is kept four times: itself, its gradient, AdamW's two averages. The rest
    is fitted to peaks of the command line on Linux, in fp32 and bf16, with 0.8 to 124
    million parameters and 64 to 4096 tokens at a time: it gave 0.9 to 1.4 of each. A
    good part is freed memory into whose gaps nothing fits (glibc 2.36).
    """
    C, T, H = config["emb_dim"], config["context_length"], config["n_heads"]
    per_token = 26 * config["vocab_size"] + config["n_layers"] * (180 * C + 2 * H * T)
    python = 450_000_000  # with PyTorch and the tokenizer
    return python + 16 * parameter_count(config) + batch_size * T * per_token
