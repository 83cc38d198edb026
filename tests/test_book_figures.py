"""The figures printed in the book come out of this course's code.

`book_figures.json` holds them by id, each with its tolerance; below is one recipe per
id. Figures marked "verdict" need the book's text (see LLM_COURSE_DATA in the README).
"""

import json
import re
from functools import cache
from itertools import pairwise

import nbformat
import pandas as pd
import pytest
import torch
from conftest import ROOT
from torch import nn
from torch.utils.data import DataLoader, Subset

from appendix_e.lora import LoRALayer
from ch02.dataloader import (
    SimpleTokenizerV1,
    create_dataloader_v1,
    get_tokenizer,
    load_text,
)
from ch03.attention import (
    INPUTS,
    CausalAttention,
    MultiHeadAttention,
    MultiHeadAttentionWrapper,
    SelfAttention_v1,
    SelfAttention_v2,
)
from ch04 import gpt
from ch04.gpt import GELU, GPT_CONFIG_124M, GPTModel, LayerNorm, TransformerBlock
from ch05 import gpt_train
from ch05.gpt_train import MODELS, create_loaders, train_model_simple
from ch06.classifier import as_classifier
from ch06.gpt_class_finetune import create_balanced_dataset, random_split

FIGURES = json.loads((ROOT / "tests/book_figures.json").read_text("utf-8"))
RECIPES = {}


def figure(*ids):
    """Register a function as the recipe of one id, or of several as a tuple."""

    def register(recipe):
        for index, id_ in enumerate(ids):
            RECIPES[id_] = (recipe, index if len(ids) > 1 else None)
        return recipe

    return register


@pytest.mark.parametrize("id_", FIGURES)
def test_figure(id_, request, capsys):
    expected = FIGURES[id_]
    if expected.get("verdict"):
        request.getfixturevalue("the_verdict")
    recipe, index = RECIPES[id_]
    ours = recipe(capsys) if recipe.__code__.co_argcount else recipe()
    ours = ours if index is None else ours[index]
    assert_close(plain(ours), expected["value"], expected["tolerance"])


def test_every_figure_has_a_recipe_and_every_recipe_a_figure():
    assert RECIPES.keys() == FIGURES.keys()


def plain(value):
    """Tensors, shapes and tuples as the nested lists JSON holds."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def assert_close(ours, book, tolerance):
    if isinstance(book, dict):
        assert ours.keys() == book.keys()
        for key in book:
            assert_close(ours[key], book[key], tolerance)
    elif isinstance(book, list):
        assert len(ours) == len(book)
        for ours_item, book_item in zip(ours, book, strict=True):
            assert_close(ours_item, book_item, tolerance)
    elif isinstance(book, float):
        # Half a unit of float32's last place: the book's figure is itself rounded
        assert ours == pytest.approx(book, abs=tolerance + 1e-7, rel=0)
    else:
        assert ours == book


# ---------------------------------------------------------------- chapter 2

SENTENCE = "Hello, world. This, is a test."
SEPARATORS = r'([,.:;?_!"()\']|--|\s)'
QUOTE = (
    '"It\'s the last he painted, you know,"\n'
    "           Mrs. Gisburn said with pardonable pride."
)


def split_words(text):
    return [word.strip() for word in re.split(SEPARATORS, text) if word.strip()]


@cache
def verdict_vocab():
    words = sorted(set(split_words(load_text("the-verdict"))))
    return {word: i for i, word in enumerate(words)}


@figure("ch02.verdict.chars")
def characters():
    return len(load_text())


@figure(
    "ch02.split.whitespace",
    "ch02.split.punct",
    "ch02.split.stripped",
    "ch02.split.full",
)
def splits():
    with_punctuation = re.split(r"([,.]|\s)", SENTENCE)
    return (
        re.split(r"(\s)", SENTENCE),
        with_punctuation,
        [word for word in with_punctuation if word.strip()],
        split_words("Hello, world. Is this-- a test?"),
    )


@figure("ch02.preprocessed.first30")
def first_words():
    return split_words(load_text())[:30]


@figure(
    "ch02.vocab.size", "ch02.vocab.first51", "ch02.vocab2.size", "ch02.vocab2.last5"
)
def vocabularies():
    vocab = verdict_vocab()
    extended = [*vocab, "<|endoftext|>", "<|unk|>"]
    numbered = [(word, i) for i, word in enumerate(extended)]
    return len(vocab), list(vocab.items())[:51], len(extended), numbered[-5:]


@figure("ch02.tokv1.encode", "ch02.tokv1.decode")
def simple_tokenizer():
    tokenizer = SimpleTokenizerV1(verdict_vocab())
    ids = tokenizer.encode(QUOTE)
    return ids, tokenizer.decode(ids)


@figure("ch02.bpe.encode", "ch02.bpe.decode", "ch02.bpe.n_vocab")
def bpe():
    tokenizer = get_tokenizer()
    text = (
        "Hello, do you like tea? <|endoftext|> In the sunlit terraces"
        "of someunknownPlace."
    )
    ids = tokenizer.encode(text, allowed_special={"<|endoftext|>"})
    return ids, tokenizer.decode(ids), tokenizer.n_vocab


@figure("ch02.loader.b1.first", "ch02.loader.b1.second")
def stride_one():
    batches = iter(create_dataloader_v1(load_text(), 1, 4, 1, shuffle=False))
    return next(batches), next(batches)


@figure("ch02.loader.b8.inputs", "ch02.loader.b8.targets")
def stride_four():
    return next(iter(create_dataloader_v1(load_text(), 8, 4, 4, shuffle=False)))


@figure("ch02.loader.lengths")
def loader_lengths():
    loaders = [
        create_dataloader_v1(load_text(), batch_size, max_length, stride, False, drop)
        for batch_size, max_length, stride, drop in (
            (1, 4, 1, True),
            (8, 4, 4, True),
            (4, 256, 128, True),
            (4, 256, 128, False),
        )
    ]
    return [(len(loader.dataset), len(loader)) for loader in loaders]


@figure("ch02.emb.weight", "ch02.emb.not_reseeded")
def embeddings():
    torch.manual_seed(123)
    small = nn.Embedding(6, 3)
    tokens = nn.Embedding(50257, 256)
    # Between the two the chapter opens a loader, which draws one seed
    next(iter(create_dataloader_v1(load_text(), 8, 4, 4, shuffle=False)))
    positions = nn.Embedding(4, 256)
    return small.weight, (tokens.weight[0, :4], positions.weight[0, :4])


@figure("ch02.ex21.ids", "ch02.ex21.roundtrip")
def unknown_words():
    ids = get_tokenizer().encode("Akwirw ier")
    return ids, get_tokenizer().decode(ids)


@figure("ch02.ex22.len2")
def short_windows():
    inputs, _ = next(iter(create_dataloader_v1(load_text(), 4, 2, 2, shuffle=False)))
    return inputs


# ---------------------------------------------------------------- chapter 3

inputs = torch.tensor(INPUTS)
batch = torch.stack((inputs, inputs))


@figure("ch03.inputs", "ch03.batch.shape")
def toy_inputs():
    return inputs, batch.shape


@figure("ch03.simple.scores2", "ch03.simple.weights2_sum", "ch03.simple.weights")
def attention_without_weights():
    scores = inputs @ inputs[1]
    return scores, scores / scores.sum(), torch.softmax(inputs @ inputs.T, dim=-1)


@figure(
    "ch03.qkv.query2",
    "ch03.qkv.shapes",
    "ch03.qkv.score22",
    "ch03.qkv.weights2",
    "ch03.qkv.context2",
)
def queries_keys_values():
    torch.manual_seed(123)
    W_query, W_key, W_value = (torch.rand(3, 2) for _ in range(3))
    query, keys, values = inputs[1] @ W_query, inputs @ W_key, inputs @ W_value
    weights = torch.softmax(query @ keys.T / 2**0.5, dim=-1)
    shapes = (keys.shape, values.shape)
    return query, shapes, query @ keys[1], weights, weights @ values


@figure("ch03.sa_v1")
def self_attention():
    torch.manual_seed(123)
    return SelfAttention_v1(3, 2)(inputs)


@figure(
    "ch03.causal.masked_simple", "ch03.causal.masked_simple_norm", "ch03.causal.weights"
)
def causal_weights():
    torch.manual_seed(789)
    attention = SelfAttention_v2(3, 2)
    scores = attention.W_query(inputs) @ attention.W_key(inputs).T
    masked = torch.softmax(scores / 2**0.5, dim=-1).tril()
    future = torch.ones(6, 6).triu(diagonal=1).bool()
    weights = torch.softmax(scores.masked_fill(future, -torch.inf) / 2**0.5, dim=-1)
    return masked, masked / masked.sum(dim=-1, keepdim=True), weights


@figure("ch03.dropout.ones")
def dropout():
    torch.manual_seed(123)
    return nn.Dropout(0.5)(torch.ones(6, 6))


@figure("ch03.causal_attention", "ch03.mha_wrapper", "ch03.mha")
def attention_classes():
    outputs = []
    for attention, more in (
        (CausalAttention, ()),
        (MultiHeadAttentionWrapper, (2,)),
        (MultiHeadAttention, (2,)),
    ):
        torch.manual_seed(123)
        outputs.append(attention(3, 2, 6, 0.0, *more)(batch))
    return outputs


@figure("ch03.batched_matmul.heads")
def batched_matmul():
    a = torch.tensor(
        [
            [
                [0.2745, 0.6584, 0.2775, 0.8573],
                [0.8993, 0.0390, 0.9268, 0.7388],
                [0.7179, 0.7058, 0.9156, 0.4340],
            ],
            [
                [0.0772, 0.3565, 0.1479, 0.5331],
                [0.4066, 0.2318, 0.4545, 0.9737],
                [0.4606, 0.5159, 0.4220, 0.5786],
            ],
        ]
    )
    return a @ a.transpose(1, 2)


@figure("ch03.ex31")
def copied_weights():
    torch.manual_seed(123)
    v1 = SelfAttention_v1(3, 2)
    torch.manual_seed(123)
    v2 = SelfAttention_v2(3, 2)
    for name in ("W_query", "W_key", "W_value"):
        getattr(v1, name).data = getattr(v2, name).weight.T.detach().clone()
    return v1(inputs), v2(inputs)


@figure("ch03.ex32.values")
def narrow_heads():
    torch.manual_seed(123)
    return MultiHeadAttentionWrapper(3, 1, 6, 0.0, num_heads=2)(batch)


@figure(
    "ch03.ex33.params",
    "ch03.mha.state_keys",
    "ch03.causal.state_keys",
    "ch03.wrapper.state_keys",
)
def attention_modules():
    with torch.device("meta"):
        gpt2_sized = MultiHeadAttention(768, 768, 1024, 0.0, 12)
        modules = (
            gpt2_sized,
            CausalAttention(3, 2, 6, 0.0),
            MultiHeadAttentionWrapper(3, 2, 6, 0.0, num_heads=2),
        )
    return count(gpt2_sized), *(list(module.state_dict()) for module in modules)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


# ---------------------------------------------------------------- chapter 4


@figure("ch04.batch")
def text_batch():
    texts = "Every effort moves you", "Every day holds a"
    return [get_tokenizer().encode(text) for text in texts]


@cache
@figure("ch04.dummy.logits", "ch04.dummy.logits_alt")
def dummy_model():
    # Blocks and norms of the dummy model pass their input on
    torch.manual_seed(123)
    model = nn.ModuleList(
        (nn.Embedding(50257, 768), nn.Embedding(1024, 768), nn.Dropout(0.1))
    )
    out_head = nn.Linear(768, 50257, bias=False)
    token_ids = torch.tensor(text_batch())
    logits = out_head(model[2](model[0](token_ids) + model[1](torch.arange(4))))
    corner = torch.cat((logits[..., :3], logits[..., -3:]), dim=-1)
    return corner, corner


@figure(
    "ch04.ln.layer_out",
    "ch04.ln.mean_var",
    "ch04.ln.normalised",
    "ch04.ln.class_mean_var",
)
def layer_norm():
    torch.manual_seed(123)
    example = torch.randn(2, 5)
    out = nn.Sequential(nn.Linear(5, 6), nn.ReLU())(example)
    mean, var = out.mean(-1, keepdim=True), out.var(-1, keepdim=True)
    normed = LayerNorm(6)(out)
    return (
        out,
        (mean, var),
        (out - mean) / torch.sqrt(var),
        (normed.mean(-1, keepdim=True), normed.var(-1, keepdim=True, unbiased=False)),
    )


@figure("ch04.gelu.values")
def gelu():
    return GELU()(torch.tensor([-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0]))


@figure("ch04.grads.no_shortcut", "ch04.grads.shortcut")
def gradients_with_and_without_shortcut():
    sizes = [3, 3, 3, 3, 3, 1]
    means = []
    for use_shortcut in (False, True):
        torch.manual_seed(123)
        layers = nn.ModuleList(
            nn.Sequential(nn.Linear(*pair), GELU()) for pair in pairwise(sizes)
        )
        x = torch.tensor([[1.0, 0.0, -1.0]])
        for layer in layers:
            out = layer(x)
            x = x + out if use_shortcut and x.shape == out.shape else out
        nn.MSELoss()(x, torch.tensor([[0.0]])).backward()
        means.append([layer[0].weight.grad.abs().mean().item() for layer in layers])
    return means


@figure("ch04.block.eval_values", "ch04.ex41.params", "ch04.ex41.repr")
def block():
    torch.manual_seed(123)
    x = torch.rand(2, 4, 768)
    transformer_block = TransformerBlock(GPT_CONFIG_124M).eval()
    y = transformer_block(x)
    sizes = count(transformer_block.ff), count(transformer_block.att)
    return (y[0, 0, :4], y[1, 3, -4:]), sizes, repr(transformer_block)


@figure("ch04.gpt.state_keys_block0")
def state_keys():
    with torch.device("meta"):
        model = GPTModel(GPT_CONFIG_124M)
    return [
        key for key in model.state_dict() if not re.match(r"trf_blocks\.[1-9]", key)
    ]


@figure(
    "ch04.gen.encoded",
    "ch04.gen.ids6",
    "ch04.gen.text6",
    "ch04.gptpy.stdout",
    "ch04.gptpy.ids",
)
def untrained_generation(capsys):
    if not generated:
        gpt.main()
        generated.append(capsys.readouterr().out)
    lines = [line.rstrip() for line in generated[0].splitlines()]
    printed = " ".join(lines)
    ids = json.loads(re.search(r"Output: tensor\(\[(\[.*?\])\]\)", printed)[1])
    encoded = json.loads(re.search(r"Encoded input text: (\[.*?\])", printed)[1])
    return encoded, [ids[:10]], get_tokenizer().decode(ids[:10]), lines, ids


generated = []  # the 124M model is built once


# ---------------------------------------------------------------- chapter 5

every_effort = torch.tensor([[16833, 3626, 6100], [40, 1107, 588]])
moves_you = torch.tensor([[3626, 6100, 345], [1107, 588, 11311]])


@cache
def untrained_model():
    torch.manual_seed(123)
    return GPTModel(MODELS["gpt2-small"][0]).eval()


@figure("ch05.untrained.text")
def untrained_text():
    idx = gpt_train.text_to_token_ids("Every effort moves you", get_tokenizer())
    idx = gpt.generate_text_simple(untrained_model(), idx, 10, 256)
    return gpt_train.token_ids_to_text(idx, get_tokenizer())


@figure(
    "ch05.probas.shape",
    "ch05.argmax_ids",
    "ch05.target_probas",
    "ch05.log_probas",
    "ch05.perplexity",
    "ch05.flat_shapes",
)
def six_predictions():
    with torch.no_grad():
        logits = untrained_model()(every_effort)
    probas = torch.softmax(logits, dim=-1)
    of_targets = probas.gather(2, moves_you.unsqueeze(-1)).squeeze(-1)
    loss = gpt_train.calc_loss_batch(
        every_effort, moves_you, lambda ids: logits, torch.device("cpu")
    )
    return (
        probas.shape,
        probas.argmax(dim=-1, keepdim=True),
        of_targets,
        of_targets.log().flatten(),
        loss.exp(),
        (logits.flatten(0, 1).shape, moves_you.flatten().shape),
    )


@figure("ch05.loaders.batches", "ch05.loaders.tokens")
def training_batches():
    loaders = create_loaders(load_text(), MODELS["gpt2-small"][0], 2)
    tokens = [sum(inputs.numel() for inputs, _ in loader) for loader in loaders]
    return [len(loader) for loader in loaders], (*tokens, sum(tokens))


WORDS = ("closer", "every", "effort", "forward", "inches", "moves", "pizza", "toward")
toy_logits = torch.tensor([4.51, 0.89, -1.90, 6.75, 1.63, -1.62, -1.89, 6.28, 1.79])


@figure(
    "ch05.toy.argmax",
    "ch05.toy.multinomial",
    "ch05.toy.counts_T1",
    "ch05.toy.scaled_probas",
)
def temperatures():
    probas = torch.softmax(toy_logits, dim=0)
    torch.manual_seed(123)
    drawn = [torch.multinomial(probas, 1).item() for _ in range(1000)]
    scaled = [torch.softmax(toy_logits / T, dim=0) for T in (1, 0.1, 5)]
    counts = torch.bincount(torch.tensor(drawn), minlength=9)
    return WORDS[probas.argmax()], WORDS[drawn[0]], counts, scaled


@figure("ch05.toy.topk", "ch05.toy.masked_logits", "ch05.toy.topk_probas")
def top_k():
    top = torch.topk(toy_logits, 3)
    masked = toy_logits.masked_fill(toy_logits < top.values[-1], -torch.inf)
    written = ["-inf" if x == -torch.inf else x for x in masked.tolist()]
    return (top.values, top.indices), written, torch.softmax(masked, dim=0)


@figure("ch05.gpt_train.tiny.losses")
def tiny_run():
    config = {
        **GPT_CONFIG_124M,
        "context_length": 12,
        "emb_dim": 32,
        "n_heads": 4,
        "n_layers": 2,
    }
    settings = {**MODELS["gpt2-small"][1], "num_epochs": 1}
    train_losses, val_losses, tokens_seen, _ = gpt_train.main(config, settings)
    curves = {"train": train_losses, "val": val_losses, "tokens": tokens_seen}
    return {name: [curve[0], curve[-1]] for name, curve in curves.items()}


@figure("ch05.test.GPTModel")
def one_window():
    config, settings = MODELS["gpt2-small"]
    torch.manual_seed(123)
    model = GPTModel(config)
    optimizer = gpt_train.create_optimizer(model, settings)
    train_loader, val_loader = (
        DataLoader(Subset(loader.dataset, [0]), shuffle=is_training)
        for loader, is_training in zip(
            create_loaders(load_text(), config, 1), (True, False), strict=True
        )
    )
    train_losses, val_losses, _ = train_model_simple(
        model,
        train_loader,
        val_loader,
        optimizer,
        torch.device("cpu"),
        num_epochs=2,
        eval_freq=1,
        eval_iter=1,
        start_context="Every effort moves you",
        tokenizer=get_tokenizer(),
    )
    return round(train_losses[0], 1), round(val_losses[0], 1)


@figure("ch05.gpt_train.full", "ch05.gpt_train.samples")
def full_run(capsys):
    """The book's pretraining run: about five minutes on two CPU cores."""
    if not full_run_results:
        train_losses, val_losses, _, _ = gpt_train.main(*MODELS["gpt2-small"])
        printed = capsys.readouterr().out
        curve = zip(range(0, 90, 5), train_losses, val_losses, strict=True)
        full_run_results.extend((list(curve), samples(printed)))
    return full_run_results


full_run_results = []


@figure(
    "ch05.train.losses",
    "ch05.train.samples",
    "ch05.greedy25",
    "ch05.sampled15",
    "ch05.ex54.losses",
    "ch05.ex54.sample",
)
def notebook_run(capsys):
    """Chapter 5's notebook in the book's size, up to the sampled text of 5.3.3.

    Then one more epoch, as in exercise 5.4. About ten minutes on two CPU cores.
    """
    if notebook_run_results:
        return notebook_run_results
    notebook = nbformat.read(ROOT / "ch05/ch05.ipynb", as_version=4)
    cells = {c.id: c.source for c in notebook.cells if c.cell_type == "code"}
    values, printed = {}, {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_COURSE_SIZE", "book")
        patch.setattr("matplotlib.pyplot.show", lambda: None)
        for id_, source in cells.items():
            exec(compile(source, id_, "exec"), values)
            printed[id_] = capsys.readouterr().out
            if id_ == "5-3-20":
                break
        exec(cells["5-1-32"], values)  # the loaders, seeded
    one_more = train_model_simple(
        *(values[n] for n in ("model", "train_loader", "val_loader", "optimizer")),
        values["device"],
        num_epochs=1,
        eval_freq=5,
        eval_iter=5,
        start_context="Every effort moves you",
        tokenizer=get_tokenizer(),
    )
    losses = values["train_losses"], values["val_losses"]
    notebook_run_results.extend(
        (
            list(zip(range(0, 90, 5), *losses, strict=True)),
            samples(printed["5-2-10"]),
            values["sample"],
            printed["5-3-20"].rstrip("\n"),
            list(zip((0, 5), *one_more[:2], strict=True)),
            samples(capsys.readouterr().out),
        )
    )
    return notebook_run_results


notebook_run_results = []


def samples(output):
    """The lines a training run has written after each epoch."""
    lines = output.splitlines()
    return [line for line in lines if line.startswith("Every effort moves you")]


# ---------------------------------------------------------------- chapter 6


@figure("ch06.split.sizes", "ch06.batches")
def sets_of_the_sms_collection():
    """Only the numbers of ham and spam matter: 4,825 and 747 in the collection."""
    labels = ["ham"] * 4825 + ["spam"] * 747
    balanced = create_balanced_dataset(pd.DataFrame({"Label": labels}))
    sets = random_split(balanced, 0.7, 0.1)
    loaders = [DataLoader(sets[0], 8, drop_last=True)]
    loaders += [DataLoader(part, 8) for part in sets[1:]]
    return [len(part) for part in sets], [len(loader) for loader in loaders]


@figure("ch06.pad_id", "ch06.prompt_ids")
def ids_of_chapter_6():
    tokenizer = get_tokenizer()
    end = tokenizer.encode("<|endoftext|>", allowed_special={"<|endoftext|>"})
    return end, [tokenizer.encode("Do you have time")]


@figure("ch06.head.init")
def a_new_head():
    small = {**GPT_CONFIG_124M, "vocab_size": 10, "context_length": 4, "n_layers": 1}
    gpt_model = GPTModel(small)
    torch.manual_seed(123)
    head = as_classifier(gpt_model, small).out_head
    return {"w": head.weight[:, :3], "b": head.bias}


# ---------------------------------------------------------------- appendix E


@figure("appE.lora.init", "appE.lora.scaling")
def a_lora_layer():
    torch.manual_seed(123)
    layer = LoRALayer(4, 3, rank=2, alpha=8)
    start = {"A": layer.A.tolist(), "B": layer.B.tolist()}
    nn.init.ones_(layer.B)
    return start, layer(torch.ones(1, 4))
