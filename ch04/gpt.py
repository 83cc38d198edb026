"""The GPT model of chapter 4: layer norm, GELU, feed forward, block, model, generation.

Attention comes from chapter 3. Not here: training (chapter 5), pretrained weights, a KV
cache. Run it: `python -m ch04.gpt` builds the untrained 124M model and lets it write
ten tokens (nonsense, the same nonsense as in the book).

Letters: B batch, T tokens, C width (emb_dim), V vocabulary.
"""

import torch
from torch import nn

from ch02.cli import Parser, exit_on_input_error, positive_int
from ch02.dataloader import get_tokenizer
from ch03.attention import MultiHeadAttention

GPT_CONFIG_124M = {
    "vocab_size": 50257,  # GPT-2's byte-pair encoding
    "context_length": 1024,  # the most tokens the model sees at once
    "emb_dim": 768,
    "n_heads": 12,
    "n_layers": 12,
    "drop_rate": 0.1,
    "qkv_bias": False,  # no bias in the query, key and value layers
}


class LayerNorm(nn.Module):
    """Give each token mean 0 and variance 1, then scale and shift (section 4.2).

    Shape: (..., emb_dim) -> (..., emb_dim).
    """

    def __init__(self, emb_dim):
        super().__init__()
        self.eps = 1e-5
        self.scale = nn.Parameter(torch.ones(emb_dim))
        self.shift = nn.Parameter(torch.zeros(emb_dim))

    def forward(self, x):
        centered = x - x.mean(dim=-1, keepdim=True)
        # The mean square: GPT-2 divides by n, where x.var() divides by n - 1
        var = centered.pow(2).mean(dim=-1, keepdim=True)
        norm_x = centered / torch.sqrt(var + self.eps)
        return self.scale * norm_x + self.shift


class GELU(nn.Module):
    """A smooth ReLU, in the tanh approximation GPT-2 was trained with (section 4.3).

    Source: Hendrycks and Gimpel, https://arxiv.org/abs/1606.08415
    """

    def forward(self, x):
        inner = (2 / torch.pi) ** 0.5 * (x + 0.044715 * torch.pow(x, 3))
        return 0.5 * x * (1 + torch.tanh(inner))


class FeedForward(nn.Module):
    """Two linear layers around GELU, widening each token four times (section 4.3).

    Shape: (B, T, C) -> (B, T, C).
    """

    def __init__(self, cfg):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(cfg["emb_dim"], 4 * cfg["emb_dim"]),
            GELU(),
            nn.Linear(4 * cfg["emb_dim"], cfg["emb_dim"]),
        )

    def forward(self, x):
        return self.layers(x)


class TransformerBlock(nn.Module):
    """Attention, then feed forward, each on a normalised copy and added back.

    Shape: (B, T, C) -> (B, T, C). Section 4.5.
    """

    def __init__(self, cfg):
        super().__init__()
        self.att = MultiHeadAttention(
            d_in=cfg["emb_dim"],
            d_out=cfg["emb_dim"],
            context_length=cfg["context_length"],
            dropout=cfg["drop_rate"],
            num_heads=cfg["n_heads"],
            qkv_bias=cfg["qkv_bias"],
        )
        self.ff = FeedForward(cfg)
        self.norm1 = LayerNorm(cfg["emb_dim"])
        self.norm2 = LayerNorm(cfg["emb_dim"])
        self.drop_shortcut = nn.Dropout(cfg["drop_rate"])

    def forward(self, x):
        x = x + self.drop_shortcut(self.att(self.norm1(x)))
        x = x + self.drop_shortcut(self.ff(self.norm2(x)))
        return x


class GPTModel(nn.Module):
    """Token ids in, one logit per vocabulary entry and position out (section 4.6).

    cfg: a dict like `GPT_CONFIG_124M`.
    Shape: (B, T) int -> (B, T, V), T <= cfg["context_length"].
    """

    def __init__(self, cfg):
        super().__init__()
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        self.trf_blocks = nn.Sequential(
            *[TransformerBlock(cfg) for _ in range(cfg["n_layers"])]
        )
        self.final_norm = LayerNorm(cfg["emb_dim"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)

    def forward(self, in_idx):
        _, seq_len = in_idx.shape
        tok_embeds = self.tok_emb(in_idx)  # (B, T, C)
        positions = torch.arange(seq_len, device=in_idx.device)
        pos_embeds = self.pos_emb(positions)  # (T, C)
        x = self.drop_emb(tok_embeds + pos_embeds)  # (B, T, C)
        x = self.trf_blocks(x)  # (B, T, C)
        x = self.final_norm(x)  # (B, T, C)
        return self.out_head(x)  # (B, T, V)


def generate_text_simple(model, idx, max_new_tokens, context_size):
    """Append the most likely next token, max_new_tokens times (section 4.7).

    Shape: (B, T) int -> (B, T + max_new_tokens). Only the last context_size tokens are
    shown to the model.
    """
    for _ in range(max_new_tokens):
        idx_cond = idx[:, -context_size:]  # (B, T)
        with torch.no_grad():
            logits = model(idx_cond)  # (B, T, V)
        logits = logits[:, -1, :]  # (B, V)
        idx_next = torch.argmax(logits, dim=-1, keepdim=True)  # (B, 1)
        idx = torch.cat((idx, idx_next), dim=1)  # (B, T + 1)
    return idx


def main(start_context="Hello, I am", max_new_tokens=10):
    """Let an untrained 124M model continue a text and print every step."""
    torch.manual_seed(123)
    model = GPTModel(GPT_CONFIG_124M)
    model.eval()  # no dropout

    tokenizer = get_tokenizer()
    encoded = tokenizer.encode(start_context, allowed_special={"<|endoftext|>"})
    encoded_tensor = torch.tensor(encoded).unsqueeze(0)  # (1, T)

    print(f"\n{50 * '='}\n{22 * ' '}IN\n{50 * '='}")
    print("\nInput text:", start_context)
    print("Encoded input text:", encoded)
    print("encoded_tensor.shape:", encoded_tensor.shape)

    out = generate_text_simple(
        model=model,
        idx=encoded_tensor,
        max_new_tokens=max_new_tokens,
        context_size=GPT_CONFIG_124M["context_length"],
    )
    decoded_text = tokenizer.decode(out.squeeze(0).tolist())

    print(f"\n\n{50 * '='}\n{22 * ' '}OUT\n{50 * '='}")
    print("\nOutput:", out)
    print("Output length:", len(out[0]))
    print("Output text:", decoded_text)


def cli(argv=None):
    """Command line of `main`."""
    parser = Parser(
        prog="gpt",
        description="Let an untrained GPT of 124M parameters continue a text.",
    )
    parser.add_argument("--prompt", default="Hello, I am", help="text to continue")
    parser.add_argument(
        "--max-new-tokens", type=positive_int, default=10, help="tokens to add"
    )
    args = parser.parse_args(argv)
    if not args.prompt:
        parser.error("--prompt is empty")
    with exit_on_input_error("gpt"):
        main(args.prompt, args.max_new_tokens)


if __name__ == "__main__":
    cli()
