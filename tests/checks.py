"""Each component against an independent implementation.

The checks take the implementation as an argument: `test_oracles.py` hands them ours,
`test_mutants.py` hands them ours with a classic mistake in it.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from ch02.dataloader import get_tokenizer
from ch04.gpt import GPTModel

BATCH, TOKENS, WIDTH = 3, 10, 24


def close(ours, theirs, tolerance=1e-5):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def perturb(module):
    """Move biases off 0 and norms off 1, where many a bug would not show."""
    for parameter in module.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return module


def check_softmax(softmax):
    x = torch.randn(7)
    close(softmax(x), torch.softmax(x, dim=0))


def check_self_attention(attention):
    module, x = attention(WIDTH, 8), torch.randn(TOKENS, WIDTH)
    weights = (module.W_query, module.W_key, module.W_value)
    matrices = [w.weight.T if isinstance(w, nn.Linear) else w for w in weights]
    close(module(x), F.scaled_dot_product_attention(*(x @ m for m in matrices)))


def check_causal_attention(attention):
    module = perturb(attention(WIDTH, 8, TOKENS + 2, 0.0, qkv_bias=True))
    assert all(layer.bias is not None for layer in (module.W_query, module.W_key))
    x = torch.randn(BATCH, TOKENS, WIDTH)
    expected = F.scaled_dot_product_attention(
        module.W_query(x), module.W_key(x), module.W_value(x), is_causal=True
    )
    close(module(x), expected)


def check_wrapper(attention):
    module = attention(WIDTH, 8, TOKENS, 0.0, num_heads=3)
    x = torch.randn(BATCH, TOKENS, WIDTH)
    outputs = [
        F.scaled_dot_product_attention(
            head.W_query(x), head.W_key(x), head.W_value(x), is_causal=True
        )
        for head in module.heads
    ]
    close(module(x), torch.cat(outputs, dim=-1))


def check_multi_head_attention(attention):
    """Against nn.MultiheadAttention, a different implementation with the same maths."""
    ours = perturb(attention(WIDTH, WIDTH, TOKENS + 2, 0.0, num_heads=3, qkv_bias=True))
    theirs = nn.MultiheadAttention(WIDTH, num_heads=3, batch_first=True)
    layers = (ours.W_query, ours.W_key, ours.W_value)
    theirs.in_proj_weight.data = torch.cat([layer.weight for layer in layers]).detach()
    theirs.in_proj_bias.data = torch.cat([layer.bias for layer in layers]).detach()
    theirs.out_proj.load_state_dict(ours.out_proj.state_dict())

    x = torch.randn(BATCH, TOKENS, WIDTH)
    future = nn.Transformer.generate_square_subsequent_mask(TOKENS)
    expected, _ = theirs(x, x, x, attn_mask=future, need_weights=False)
    close(ours(x), expected)


def check_layer_norm(layer_norm):
    ours, theirs = perturb(layer_norm(WIDTH)), nn.LayerNorm(WIDTH)
    theirs.weight.data, theirs.bias.data = ours.scale.data, ours.shift.data
    # Small values, so that eps counts; off centre, so that the mean does
    x = 0.01 * torch.randn(BATCH, TOKENS, WIDTH) + 0.5
    x.requires_grad_()
    close(ours(x), theirs(x), 1e-4)
    weights = torch.randn_like(x)
    gradients = [
        torch.autograd.grad((norm(x) * weights).sum(), x)[0] for norm in (ours, theirs)
    ]
    close(*gradients, 1e-3)


def check_gelu(gelu):
    x = torch.linspace(-6, 6, 1001, requires_grad=True)
    theirs = nn.GELU(approximate="tanh")
    close(gelu()(x), theirs(x), 1e-6)
    gradients = [torch.autograd.grad(f(x).sum(), x)[0] for f in (gelu(), theirs)]
    close(*gradients)


def check_feed_forward(feed_forward):
    module = perturb(feed_forward({"emb_dim": WIDTH}))
    x = torch.randn(BATCH, TOKENS, WIDTH)
    first, _, second = module.layers
    assert first.out_features == 4 * WIDTH
    close(module(x), second(F.gelu(first(x), approximate="tanh")))


GPT_CONFIG = {
    "vocab_size": 97,
    "context_length": 16,
    "emb_dim": WIDTH,
    "n_heads": 3,
    "n_layers": 2,
    "drop_rate": 0.0,
    "qkv_bias": True,
}


def random_gpt2():
    """A tiny GPT-2 of the transformers library with random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=97,
        n_positions=16,
        n_embd=WIDTH,
        n_head=3,
        n_layer=2,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        attn_implementation="eager",
        tie_word_embeddings=False,
    )
    return perturb(GPT2LMHeadModel(config)).eval()


def gpt2_pairs(ours, theirs):
    """Pairs (our tensor, its transformers tensor in our orientation)."""
    body = theirs.transformer
    yield ours.tok_emb.weight, body.wte.weight
    yield ours.pos_emb.weight, body.wpe.weight
    yield ours.final_norm.scale, body.ln_f.weight
    yield ours.final_norm.shift, body.ln_f.bias
    yield ours.out_head.weight, theirs.lm_head.weight
    for block, other in zip(ours.trf_blocks, body.h, strict=True):
        layers = (block.att.W_query, block.att.W_key, block.att.W_value)
        weights = other.attn.c_attn.weight.T.chunk(3)
        biases = other.attn.c_attn.bias.chunk(3)
        for layer, weight, bias in zip(layers, weights, biases, strict=True):
            yield layer.weight, weight
            yield layer.bias, bias
        for layer, conv in (
            (block.att.out_proj, other.attn.c_proj),
            (block.ff.layers[0], other.mlp.c_fc),
            (block.ff.layers[2], other.mlp.c_proj),
        ):
            yield layer.weight, conv.weight.T
            yield layer.bias, conv.bias
        for norm, other_norm in ((block.norm1, other.ln_1), (block.norm2, other.ln_2)):
            yield norm.scale, other_norm.weight
            yield norm.shift, other_norm.bias


def check_gpt_model(model_class):
    """Same weights, same logits, same loss and gradients as transformers' GPT-2."""
    theirs, ours = random_gpt2(), model_class(GPT_CONFIG).eval()
    pairs = list(gpt2_pairs(ours, theirs))
    covered = {id(tensor) for tensor, _ in pairs}
    assert covered == {id(parameter) for parameter in ours.parameters()}
    for tensor, other in pairs:
        assert tensor.shape == other.shape
        tensor.data = other.detach().clone()

    token_ids = torch.randint(97, (BATCH, 17))
    inputs, targets = token_ids[:, :-1], token_ids[:, 1:]
    logits, expected = ours(inputs), theirs(inputs).logits
    close(logits, expected)
    F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    F.cross_entropy(expected.flatten(0, 1), targets.flatten()).backward()
    close(ours.tok_emb.weight.grad, theirs.transformer.wte.weight.grad)
    close(ours.pos_emb.weight.grad, theirs.transformer.wpe.weight.grad)


def check_dataset(dataset_class):
    """Against windows cut by hand, for strides below, at and above the window."""
    text = "one two three four five six seven eight nine ten eleven twelve"
    tokenizer = get_tokenizer()
    ids = tokenizer.encode(text)
    for max_length, stride in ((4, 1), (4, 3), (4, 4), (2, 5)):
        dataset = dataset_class(text, tokenizer, max_length, stride)
        starts = [i for i in range(len(ids)) if i % stride == 0]
        # A window counts if its last target is still in the text
        starts = [i for i in starts if i + max_length < len(ids)]
        assert len(dataset) == len(starts)
        for start, (inputs, targets) in zip(starts, dataset, strict=True):
            assert inputs.tolist() == ids[start : start + max_length]
            assert targets.tolist() == ids[start + 1 : start + 1 + max_length]


def check_loss_batch(calc_loss_batch):
    """Against the definition, token by token; rows of unequal difficulty."""
    model = perturb(GPTModel(GPT_CONFIG)).eval()
    token_ids = torch.randint(97, (BATCH, 9))
    inputs, targets = token_ids[:, :-1], token_ids[:, 1:]
    logits = 5 * model(inputs)
    total = 0.0
    for row in range(BATCH):
        for position in range(8):
            exponentials = logits[row, position].exp()
            probability = exponentials[targets[row, position]] / exponentials.sum()
            total -= math.log(probability.item())
    loss = calc_loss_batch(inputs, targets, lambda x: 5 * model(x), "cpu")
    assert math.isclose(loss.item(), total / (BATCH * 8), rel_tol=1e-5)


def check_generate(generate):
    """Greedy, top-k, temperature, end token, cropping; on a model that is a table."""
    table = torch.tensor(
        [
            [0.0, 4.0, 2.0, 1.0],  # after 0: mostly 1
            [0.0, 0.0, 4.0, 3.0],  # after 1: mostly 2
            [5.0, 0.0, 0.0, 4.0],  # after 2: mostly 0
            [0.0, 0.0, 0.0, 9.0],
        ]
    )
    seen = []

    def model(idx):
        seen.append(idx.shape[1])
        return table[idx]

    def counts(n=4000, **choice):
        torch.manual_seed(123)
        idx = torch.zeros(n, 1, dtype=torch.long)
        drawn = generate(model, idx, 1, 4, **choice)[:, 1]
        return torch.bincount(drawn, minlength=4) / n

    start = torch.tensor([[0]])
    assert generate(model, start, 5, 3).tolist() == [[0, 1, 2, 0, 1, 2]]
    assert seen == [1, 2, 3, 3, 3]
    assert generate(model, start, 5, 3, eos_id=2).tolist() == [[0, 1]]
    for temperature in (0.5, 1.0, 3.0):
        expected = torch.softmax(table[0] / temperature, dim=-1)
        close(counts(temperature=temperature), expected, 0.03)
    expected = torch.softmax(torch.tensor([-torch.inf, 4.0, 2.0, -torch.inf]), dim=-1)
    close(counts(temperature=1.0, top_k=2), expected, 0.03)
    assert counts(temperature=1.0, top_k=2)[[0, 3]].sum() == 0
    assert counts(temperature=1e-40)[1] == 1
    assert counts(temperature=1.0, top_k=9)[0] > 0
