"""Draw the figures of chapter 6. Run it: `python -m figures.ch06`.

Ids, splits, shapes, counts and losses come from the chapter's own code. No figure
trains a model: where a message is read is shown with a tiny untrained one.
"""

from functools import cache
from io import StringIO
from pathlib import Path

import pandas as pd
import torch

from ch02.dataloader import get_tokenizer
from ch04.gpt import GPT_CONFIG_124M, GPTModel
from ch05.gutenberg.recipe import CONFIG_MINI
from ch06.classifier import as_classifier, message_lengths, train_only
from ch06.finetuning import BOOK, MINI
from ch06.gpt_class_finetune import (
    SpamDataset,
    create_balanced_dataset,
    random_split,
)
from ch06.spam_data import LABELS
from figures.ch02 import bpe, shape
from figures.ch03 import legend
from figures.ch04 import count, tokens_of
from figures.svg import Figure, save_all, text_width

ROOT = Path(__file__).parents[1]
WIDTH = 760
PAD_TOKEN_ID = get_tokenizer().eot_token
MESSAGE = "You have won a prize"
ANSWERS = ["not spam", "spam"]  # as classify_review writes the labels 0 and 1
CONFIGS = {
    "gpt2-mini": CONFIG_MINI,
    "gpt2-small": {**GPT_CONFIG_124M, "drop_rate": 0.0, "qkv_bias": True},
}
UCI = {"ham": 4825, "spam": 747}  # the book, section 6.2


@cache
def gpt(size):
    """A pretrained model's shapes, without memory for its weights."""
    with torch.device("meta"):
        return GPTModel(CONFIGS[size])


def classifier(size):
    """The classifier of the same size, also without memory."""
    with torch.device("meta"):
        return as_classifier(gpt(size), CONFIGS[size])


def stages():
    """6.1: pretraining, then one of two ways of finetuning."""
    fig = Figure(
        WIDTH,
        400,
        "One base model, two roads: to a label or to an answer in words",
        "Much text without labels becomes, by pretraining in chapter 5, a base model "
        "that continues a text. From it two roads: finetuning to classify, with "
        "messages and labels, gives a classifier that says spam or not spam (this "
        "chapter); finetuning to follow instructions, with instructions and responses, "
        "gives an assistant (chapter 7).",
    )
    up, middle, low = 140, 220, 300
    fig.box(28, middle - 30, 100, 60, "text", "much text,\nno labels", 13)
    fig.arrow((134, middle), (232, middle), label="pretraining")
    fig.text(183, middle + 15, "chapter 5", "muted", 12.5)
    for i in range(5):
        fig.box(240, middle - 40 + 17 * i, 92, 13, "weights", radius=3)
    fig.text(286, middle - 56, "base model", "weights", 14, bold=True)
    fig.text(286, middle + 58, "continues a text", "muted", 13)
    for y in (up, low):
        fig.arrow((338, middle), (360, middle), (360, y), (386, y))
        fig.arrow((570, y), (596, y))
    fig.box(392, up - 28, 172, 56, "highlight", "finetuning\nto classify", bold=True)
    fig.box(392, low - 28, 172, 56, "ink", "finetuning to\nfollow instructions")
    fig.box(392, up - 78, 172, 28, "text", "messages + labels", 12.5)
    fig.arrow((478, up - 46), (478, up - 32))
    fig.box(392, low + 50, 172, 28, "text", "instruction + response", 12.5)
    fig.arrow((478, low + 46), (478, low + 32))
    fig.text(478, up + 44, "chapter 6: here", "highlight", 13, bold=True)
    fig.text(478, low - 44, "chapter 7", "muted", 13)

    fig.text(667, up - 44, "classifier", "weights", 14, bold=True)
    fig.box(602, up - 28, 130, 26, "text", ANSWERS[1], 13, mono=True)
    fig.box(602, up + 2, 130, 26, "text", ANSWERS[0], 13, mono=True)
    fig.text(667, up + 44, "one of its labels", "muted", 13)
    fig.text(667, low - 44, "assistant", "weights", 14, bold=True)
    words = "The plural of\nmouse is mice."
    fig.box(602, low - 28, 130, 56, "text", words, 13, mono=True)
    fig.text(667, low + 44, "any text", "muted", 13)
    return fig


def two_kinds():
    """6.1: the same message through a classifier and an instruction model."""
    asked = [
        ("Is this spam? Why?", "Yes: it wants a\nreply for a prize."),
        ("Say it in French.", "Prix gratuit !\nRépondez WIN."),
    ]
    fig = Figure(
        WIDTH,
        400,
        "A classifier picks a label, an instruction model writes text",
        "The message 'Free prize! Reply WIN.' goes into a classifier, which can only "
        "say spam or not spam, and into an instruction model together with an "
        "instruction. "
        + " ".join(
            f"Asked '{instruction}', it answers '{' '.join(answer.split())}'."
            for instruction, answer in asked
        )
        + " The answers are made up for the picture.",
    )
    top, lanes = 110, (248, 322)
    fig.text(28, 148, "a message", "text", 14, "start", bold=True)
    fig.box(28, 162, 124, 50, "text", "Free prize!\nReply WIN.", 13, mono=True)
    fig.arrow((158, 187), (190, 187), head=False)
    fig.arrow((190, 187), (190, top), (388, top))
    fig.arrow((190, 187), (190, lanes[0]), (208, lanes[0]))
    fig.arrow((190, lanes[0]), (190, lanes[1]), (208, lanes[1]))
    fig.text(289, top - 15, "no instruction", "muted", 12.5)
    fig.box(394, top - 27, 136, 54, "highlight", "classifier\nchapter 6", 13)
    fig.arrow((534, top), (560, top))
    fig.box(566, top - 27, 166, 25, "highlight", ANSWERS[1], 13, mono=True)
    fig.box(566, top + 2, 166, 25, "muted", ANSWERS[0], 13, mono=True)
    words = "one of two answers, always"
    fig.text(649, top + 43, words, "highlight", 12.5)

    tall = lanes[1] - lanes[0] + 54
    label = "instruction\nmodel\nchapter 7"
    fig.box(394, lanes[0] - 27, 136, tall, "weights", label, 13)
    for y, (instruction, answer) in zip(lanes, asked, strict=True):
        fig.box(214, y - 17, 148, 34, "text", instruction, 12.5)
        fig.arrow((366, y), (388, y))
        fig.arrow((534, y), (560, y))
        fig.box(566, y - 27, 166, 54, "text", answer, 13, mono=True)
    fig.text(288, lanes[0] - 33, "+ an instruction", "text", 12.5)
    fig.text(649, lanes[1] + 43, "any text, token by token", "text", 12.5)
    words = "The answers are made up for the picture."
    fig.text(28, 376, words, "muted", 12.5, "start")
    return fig


def data():
    """6.2: balance, shuffle, cut in three."""
    messages = pd.DataFrame({"Label": [k for k, n in UCI.items() for _ in range(n)]})
    balanced = create_balanced_dataset(messages)
    parts = random_split(balanced, 0.7, 0.1)
    sizes = [len(part) for part in parts]
    ham, spam = UCI.values()
    fig = Figure(
        WIDTH,
        420,
        "As many ham as spam, shuffled, then cut into three parts",
        f"Of {ham:,} ham and {spam} spam messages, as many ham as spam are drawn under "
        f"a seed: {spam} of each. Shuffled, they are cut: 70 percent ({sizes[0]:,}) to "
        f"train on, 10 percent ({sizes[1]}) to validate, 20 percent ({sizes[2]}) to "
        "test.",
    )
    roles, end, h = {"ham": "text", "spam": "target"}, 732, 30
    scale = 704 / len(messages)
    seam, start = end - scale * spam, end - scale * len(balanced)
    for y, x, number in ((82, 28, ham), (170, start, spam)):
        fig.box(x, y, seam - x, h, "text", f"ham {number:,}", 13, radius=0)
        fig.box(seam, y, end - seam, h, "target", f"spam {spam}", 13, radius=0)
    fig.text(28, 66, "all messages", anchor="start", bold=True)
    fig.text((28 + seam) / 2, 66, "ham: label 0", "text", 13)
    fig.text(end, 66, "spam: label 1", "target", 13, "end")
    for x0, x1 in ((28, start), (seam, seam), (end, end)):
        fig.arrow((x0, 118), (x1, 164), head=False, dash="3 4")
    fig.text(28, 178, "equal shares", anchor="start", bold=True)
    words = "all spam, and as many ham drawn at random, seed 123"
    fig.text(28, 198, words, "muted", 12.5, "start")

    y, gap, step = 262, 6, 10
    for x0, x1 in ((start, 28), (end, end)):
        fig.arrow((x0, 206), (x1, y - 6), head=False, dash="3 4")
    fig.text(560, 232, "shuffled, seed 123, then cut", "muted", 12.5)
    left, scale = 28, (704 - 2 * gap) / len(balanced)
    names = ["train\n70 %", "validation\n10 %", "test\n20 %"]
    uses = ["the weights learn from these", "watched while\ntraining"]
    uses.append("measured once,\nat the end")
    for part, name, use in zip(parts, names, uses, strict=True):
        stripes = len(part) // step
        w = len(part) * scale / stripes
        for i in range(stripes):
            label = part["Label"].iloc[i * len(part) // stripes]
            fig.box(left + w * i, y, w, h, roles[label], radius=0)
        right = left + len(part) * scale
        fig.bracket(left + 2, right - 2, y + h + 12, name, up=False)
        middle = (left + right) / 2
        fig.text(middle, y + h + 64, f"{len(part):,}", "muted", 13, mono=True)
        fig.text(middle, y + h + 83, use, "muted", 12.5)
        left = right + gap
    words = "One stripe per ten messages. Counts: the book's collection."
    fig.text(28, 400, words, "muted", 12.5, "start")
    return fig


def padding():
    """6.3: messages of different length become one rectangle."""
    messages = ["See you at six", "Free prize: reply WIN now!", "Are you home yet?"]
    labels = ["ham", "spam", "ham"]
    frame = pd.DataFrame({"Text": messages, "Label": map(LABELS.index, labels)})
    dataset = SpamDataset(StringIO(frame.to_csv(index=False)), get_tokenizer())
    inputs, targets = map(torch.stack, zip(*dataset, strict=True))
    lengths = message_lengths(inputs).tolist()
    b, t = inputs.shape
    fig = Figure(
        WIDTH,
        396,
        f"Every row gets as long as the longest, filled up with {PAD_TOKEN_ID}",
        " ".join(
            f"'{words}' has {length} tokens: {ids}, label {label}."
            for words, length, ids, label in zip(
                messages, lengths, inputs.tolist(), targets.tolist(), strict=True
            )
        )
        + f" Inputs are {shape(inputs)}, labels {shape(targets)}.",
    )
    x, w, h = 92, 70, 30
    tops = [118 + 66 * i for i in range(b)]
    end = x + w * t
    fig.bracket(x, end, 82, f"T = {t}, the longest message")
    low = tops[-1] + h
    fig.arrow((82, tops[0]), (75, tops[0]), (75, low), (82, low), head=False)
    fig.text(67, (tops[0] + low) / 2, f"B = {b}", "ink", 13, "end", bold=True)
    rows = zip(tops, inputs, lengths, targets, labels, strict=True)
    for y, ids, length, label, name in rows:
        paint = {(0, i): "muted" for i in range(length, t)}
        grid = fig.matrix(
            x, y, [[str(i) for i in ids.tolist()]], "ids", (w, h), paint=paint
        )
        for i, token in enumerate(tokens_of(ids[:length].tolist())):
            fig.text(grid.at(0, i).top[0], y - 12, token, "text", 13, mono=True)
        fig.box(622, y, 44, h, "target", str(label.item()), 13, mono=True)
        fig.text(676, y + h / 2, name, "target", 13, "start")
    fig.text(644, 76, "labels", "target", 14, bold=True)
    y = low + 20
    words = f"token IDs (B, T) = {shape(inputs)}"
    fig.text(x + w * t / 2, y, words, "ids", 13, mono=True)
    fig.text(644, y, f"(B,) = {shape(targets)}", "target", 13, mono=True)
    legend(fig, x, 336, "ids", "the message")
    pad = tokens_of([PAD_TOKEN_ID])[0]
    legend(fig, x + 130, 336, "muted", f"padding: {PAD_TOKEN_ID} is {pad}")
    words = "In the chapter T is the length of the longest training message; longer "
    fig.text(x, 374, f"{words}ones are cut.", "muted", 12.5, "start")
    return fig


def new_head():
    """6.5: the output layer from C to V makes room for one from C to 2."""
    rows = []
    for size in CONFIGS:
        old, new = gpt(size).out_head, classifier(size).out_head
        assert old.in_features == new.in_features == CONFIGS[size]["emb_dim"]
        rows.append((size, old.in_features, count(old), count(new)))
    vocabulary, classes = old.out_features, new.out_features
    assert (old.bias is None, new.bias is None) == (True, False)
    fig = Figure(
        WIDTH,
        412,
        f"Only the last layer changes: {classes} scores per token instead of V",
        "Token ids (B, T) pass embeddings, blocks and final norm and become (B, T, C). "
        f"The old output layer, C to V = {vocabulary:,}, gave (B, T, V) and is taken "
        f"off. The new one from C to {classes} gives (B, T, {classes}). "
        + " ".join(
            f"{size}, C = {c}: {before:,} numbers before, {after:,} after."
            for size, c, before, after in rows
        ),
    )
    middle, before, after = 184, 122, 246
    fig.box(28, middle - 27, 78, 54, "ids", "token IDs\n(B, T)", 13)
    fig.arrow((110, middle), (132, middle))
    fig.box(138, middle - 74, 134, 148, "ink", radius=8)
    fig.text(205, middle - 90, "the trunk stays", "weights", 13, bold=True)
    for i, name in enumerate(("tok_emb, pos_emb", "N blocks", "final_norm")):
        y = middle - 62 + 44 * i
        fig.box(144, y, 122, 36, "weights", name, 12.5)
    fig.arrow((276, middle), (302, middle))
    blank = [[""] * 6] * 4
    fig.stack(308, middle - 38, blank, "embeddings", 2, cell=(12, 18))
    fig.text(346, middle + 57, "(B, T, C)", "embeddings", 13, mono=True)
    fig.text(346, middle - 56, "vectors", "embeddings", 13, bold=True)
    lanes = [
        (before, "muted", "out_head\nC → V", 12, "(B, T, V)", "taken off"),
        (after, "highlight", f"out_head\nC → {classes}", classes, "(B, T, 2)", "new"),
    ]
    for y, role, label, columns, caption, state in lanes:
        fig.arrow((394, middle), (412, middle), (412, y), (436, y), role="ink")
        dash = "4 3" if role == "muted" else None
        fig.box(442, y - 25, 104, 50, role, label, 13, dash=dash, mono=True)
        fig.text(494, y - 38, state, role, 13, bold=role == "highlight")
        fig.arrow((550, y), (576, y))
        w = 10 if columns > classes else 20
        shown = "muted" if role == "muted" else "embeddings"
        cell = {"cell": (w, 16), "caption": caption}
        fig.stack(582, y - 37, [[""] * columns] * 4, shown, 2, **cell)
    fig.text(710, before - 52, f"V = {vocabulary:,}", "muted", 13, "end")
    words = "a score for\nnot spam and\none for spam,\nat each token"
    fig.text(640, after - 26, words, "embeddings", 13, "start")

    for x, words in ((28, "numbers in out_head"), (200, "before"), (500, "after")):
        fig.text(x, 346, words, "ink", 13, "start", bold=True)
    for i, (size, c, old_count, new_count) in enumerate(rows):
        y = 370 + 22 * i
        fig.text(28, y, f"{size}, C = {c}", "muted", 13, "start")
        words = f"{c} × {vocabulary:,} = {old_count:,}"
        fig.text(200, y, words, "muted", 13, "start", mono=True)
        words = f"{c} × {classes} + {classes} = {new_count:,}"
        fig.text(500, y, words, "highlight", 13, "start", mono=True)
    return fig


def what_is_trained():
    """6.5: the book's choice beside training everything."""
    choices = [
        (BOOK["trainable"], "the book's choice", 28),
        (MINI["trainable"], "our choice for gpt2-mini", 398),
    ]
    assert [which for which, *_ in choices] == ["last_block", "all"]
    names = ["tok_emb, pos_emb", "block 1", "block 2", "\N{VERTICAL ELLIPSIS}"]
    names += ["block N", "final_norm", "out_head"]
    trained, numbers = {}, {}
    for which, *_ in choices:
        for size in CONFIGS:
            model = classifier(size)
            some = sum(p.numel() for p in train_only(model, which))
            numbers[which, size] = f"{some:,} of {count(model):,}"
            blocks = [model.trf_blocks[i] for i in (0, 1, 2, -1)]
            parts = [model.tok_emb, *blocks, model.final_norm, model.out_head]
            trained[which] = [
                all(p.requires_grad for p in part.parameters()) for part in parts
            ]
    fig = Figure(
        WIDTH,
        420,
        "Train the last block, the norm and the head, or everything",
        " ".join(
            f"{which}, {whose}: trained are "
            + ", ".join(
                name
                for name, on in zip(names, trained[which], strict=True)
                if on and name.isascii()
            )
            + "; parameters trained: "
            + ", ".join(f"{size} {numbers[which, size]}" for size in CONFIGS)
            + "."
            for which, whose, _ in choices
        ),
    )
    top, pitch, h, w = 96, 34, 26, 150
    bottom = top + pitch * (len(names) - 1) + h
    for which, whose, x in choices:
        fig.text(x, 70, which, "ink", 15, "start", mono=True, bold=True)
        after = x + text_width(which, 15, mono=True) + 14
        fig.text(after, 71, whose, "muted", 13, "start")
        left = x + 44
        for i, (name, on) in enumerate(zip(names, trained[which], strict=True)):
            role, y = "highlight" if on else "muted", top + pitch * i
            fig.box(left, y, w, h, role, name, 13)
            state = "trained" if on else "frozen"
            fig.text(left + w + 12, y + h / 2, state, role, 13, "start", bold=on)
        end = top + pitch * trained[which].index(True)
        fig.arrow((x + 24, bottom), (x + 24, end), role="target")
        for i, size in enumerate(CONFIGS):
            y = 352 + 21 * i
            fig.text(x, y, size, "muted", 13, "start")
            words = f"{numbers[which, size]} trained"
            fig.text(x + 80, y, words, "highlight", 12.5, "start")
    fig.arrow((28, 399), (52, 399), role="target")
    fig.text(60, 399, "how far the gradient goes", "target", 12.5, "start")
    words = "N blocks: 6 in gpt2-mini, 12 in gpt2-small"
    assert [CONFIGS[size]["n_layers"] for size in CONFIGS] == [6, 12]
    fig.text(398, 399, words, "muted", 12.5, "start")
    return fig


def last_token():
    """6.6: which output has seen the whole message."""
    words, ids = bpe(MESSAGE)
    n = len(ids)
    fig = Figure(
        WIDTH,
        388,
        "Only the last token has seen the whole message",
        f"A causal mask of the message '{MESSAGE}', {n} tokens: the first token sees "
        f"itself only, each later one a token more, the last all {n}. Of the outputs, "
        f"(1, {n}, {len(LABELS)}), one row per token, the last row is read.",
    )
    x, y, w, h = 118, 112, 64, 38
    paint = {(r, c): "attention" for r in range(n) for c in range(r + 1)}
    paint |= {(n - 1, c): "highlight" for c in range(n)}
    grid = fig.matrix(x, y, [[""] * n] * n, "muted", (w, h), paint=paint)
    fig.text(grid.top[0], 74, "the token that is looked at", "muted", 13)
    fig.text(x - 10, 82, "the token\nthat looks", "muted", 13, "end")
    lit = {(n - 1, c): "highlight" for c in range(len(LABELS))}
    cells = [[""] * len(LABELS)] * n
    logits = fig.matrix(570, y, cells, "embeddings", (30, h), paint=lit)
    fig.text(logits.top[0], 82, "logits", "embeddings", 14, bold=True)
    caption = f"(B, T, {len(LABELS)})"
    fig.text(logits.top[0], 100, caption, "embeddings", 13, mono=True)
    for i, word in enumerate(words):
        role = "highlight" if i == n - 1 else "text"
        fig.text(grid.at(0, i).top[0], 98, word, "text", 13, mono=True)
        middle = grid.at(i, 0).left[1]
        fig.text(x - 10, middle, word, role, 13, "end", mono=True)
        role = "highlight" if i == n - 1 else "muted"
        fig.text(456, middle, f"sees {i + 1} of {n}", role, 13, "start")
        fig.arrow((542, middle), (564, middle), role="ink")
    fig.arrow((636, middle), (658, middle), role="highlight")
    words = "read\nthis one"
    fig.text(664, middle - 9, words, "highlight", 13, "start", bold=True)
    legend(fig, x, 330, "attention", "allowed")
    legend(fig, x + 106, 330, "muted", "masked: still the future")
    words = "logits[:, -1, :]"
    fig.text(732, 338, words, "highlight", 13, "end", mono=True)
    words = f"Every token has its row of logits: {n} come out, one is used."
    fig.text(x, 366, words, "muted", 12.5, "start")
    return fig


@torch.no_grad()
def padded_answers(lengths, seed=2):
    """P(spam) of MESSAGE padded to each length: read at the end, at its last token."""
    config = {**GPT_CONFIG_124M, "context_length": 16, "emb_dim": 12, "n_heads": 2}
    config |= {"n_layers": 1, "drop_rate": 0.0}
    torch.manual_seed(seed)
    own = as_classifier(GPTModel(config), config).eval()
    book = GPTModel(config).eval()
    book.out_head = own.out_head
    book.load_state_dict(own.state_dict())
    ids, answers = bpe(MESSAGE)[1], []
    for length in lengths:
        padded = torch.tensor([ids + [PAD_TOKEN_ID] * (length - len(ids))])  # (1, T)
        logits = [model(padded)[:, -1, :] for model in (book, own)]
        answers.append([row.softmax(dim=-1)[0, 1].item() for row in logits])
    return answers


def where_to_read():
    """6.6: what more padding does to the answer."""
    lengths = (6, 9)
    answers = padded_answers(lengths)
    (book, own), (book_longer, own_longer) = answers
    assert abs(own - own_longer) < 1e-6 < abs(book - book_longer)
    words, ids = bpe(MESSAGE)
    pad = str(PAD_TOKEN_ID)
    fig = Figure(
        WIDTH,
        396,
        "Read at its own last token, a message is safe from its padding",
        f"'{MESSAGE}', {len(ids)} tokens, padded to {lengths[0]} and to {lengths[1]}. "
        f"The last position is a pad token both times, and its answer changes, from "
        f"{book:.2f} to {book_longer:.2f}; the message's own last token answers "
        f"{own:.2f} both times.",
    )
    x, w, h, tops = 28, 58, 32, (134, 266)
    columns = (604, 694)
    names = ["the last\nposition", "its own\nlast token"]
    for middle, name, role in zip(columns, names, ("target", "highlight"), strict=True):
        fig.text(middle, 66, name, role, 13, bold=True)
    fig.text(x, 66, "the same message, padded to two lengths", "text", 13, "start",
             bold=True)  # fmt: skip
    last = len(ids) - 1
    for y, length, (at_end, at_own) in zip(tops, lengths, answers, strict=True):
        row = [*words, *[pad] * (length - len(ids))]
        paint = {(0, i): "muted" for i in range(len(ids), length)}
        grid = fig.matrix(x, y, [row], "text", (w, h), paint=paint)
        fig.text(x, y - 16, f"T = {length}", "muted", 13, "start", mono=True)
        (end, high), (own_end, low) = (
            grid.at(0, length - 1).top,
            grid.at(0, last).bottom,
        )
        corners = (end, high - 2), (end, y - 22), (columns[0], y - 22)
        fig.arrow(*corners, (columns[0], y - 6), role="target")
        fig.text(end - 10, y - 22, "reads a pad token", "target", 12.5, "end")
        corners = (own_end, low + 2), (own_end, y + h + 22), (columns[1], y + h + 22)
        fig.arrow(*corners, (columns[1], y + h + 6), role="highlight")
        words_read = f"reads {words[last]}"
        fig.text(own_end - 10, y + h + 22, words_read, "highlight", 12.5, "end")
        for middle, role, answer in zip(
            columns, ("target", "highlight"), (at_end, at_own), strict=True
        ):
            fig.box(middle - 36, y - 2, 72, h + 4, role, f"{answer:.2f}", 15, mono=True)
    middle = (tops[0] + tops[1] + h) / 2 + 2
    for x0, sign, role in zip(columns, "≠=", ("target", "highlight"), strict=True):
        fig.text(x0, middle, sign, role, 20, bold=True)
    words = "Numbers: P(spam) of a tiny untrained model. The book reads the last "
    words += "position and pads all\nmessages to one length; GPTClassifier finds each "
    words += "message's last token before the padding."
    fig.text(x, 348, words, "muted", 12.5, "start")
    return fig


def logits_to_label():
    """6.6: from the output to a label, and from the same logits to the loss."""
    logits = torch.tensor([[2.1, -0.4], [0.3, 1.2]])  # (B, 2), chosen by hand
    labels = torch.tensor([0, 1])  # (B,)
    probas = logits.softmax(dim=-1)
    found = probas.argmax(dim=-1)
    loss = torch.nn.functional.cross_entropy(logits, labels)

    def rows_of(tensor, digits):
        minus = "\N{MINUS SIGN}"
        return [[f"{v:.{digits}f}".replace("-", minus) for v in r] for r in tensor]

    fig = Figure(
        WIDTH,
        420,
        "The same two logits give the answer and the loss",
        f"Of the output (B, T, 2) the row at the last token is taken, (B, 2): "
        f"{logits.tolist()}. To answer: softmax gives {rows_of(probas, 2)}, argmax "
        f"{[ANSWERS[i] for i in found]}. To train: cross_entropy with the labels "
        f"{labels.tolist()} gives the loss {loss:.4f}. The logits are made up.",
    )
    middle, up, low = 226, 132, 306
    lit = {(4, c): "highlight" for c in range(2)}
    blank = [[""] * 2] * 5
    fig.text(68, middle - 84, "output", "embeddings", 14, bold=True)
    cell = {"cell": (36, 26), "paint": lit, "caption": "(B, T, 2)"}
    fig.stack(28, middle - 68, blank, "embeddings", 2, **cell)
    y = middle - 68 + 5 + 26 * 4.5
    fig.arrow((106, y), (126, y), (126, middle), (166, middle), role="highlight")
    fig.text(134, middle + 54, "last\ntoken", "highlight", 12.5, "start")
    fig.text(236, middle - 64, "logits", "embeddings", 14, bold=True)
    grid = fig.matrix(
        172, middle - 30, rows_of(logits, 1), "highlight", (64, 30), caption="(B, 2)"
    )
    for i, name in enumerate(ANSWERS):
        fig.text(grid.at(0, i).top[0], middle - 42, name, "muted", 12.5)
    fork = 326
    fig.arrow((grid.right[0] + 6, middle), (fork, middle), head=False)
    fig.arrow((fork, middle), (fork, up), (418, up), label="softmax")
    fig.arrow((fork, middle), (fork, low), (418, low))

    fig.text(fork + 10, 66, "to answer", "ink", 14, "start", bold=True)
    fig.text(488, up - 64, "probas", "embeddings", 14, bold=True)
    grid = fig.matrix(
        424, up - 30, rows_of(probas, 2), "embeddings", (64, 30), caption="(B, 2)"
    )
    for i, name in enumerate(ANSWERS):
        fig.text(grid.at(0, i).top[0], up - 42, name, "muted", 12.5)
    fig.arrow((grid.right[0] + 6, up), (grid.right[0] + 66, up), label="argmax")
    column = [[f"{i} {ANSWERS[i]}"] for i in found.tolist()]
    fig.text(678, up - 64, "answer", "text", 14, bold=True)
    fig.matrix(624, up - 30, column, "text", (108, 30), caption="(B,)")

    fig.text(fork + 10, low - 40, "to train", "ink", 14, "start", bold=True)
    fig.box(424, low - 25, 128, 50, "target", "cross_entropy", 13, mono=True)
    fig.arrow((558, low), (618, low))
    fig.box(624, low - 25, 108, 50, "target", f"{loss:.4f}", 15, mono=True, bold=True)
    fig.text(678, low - 40, "loss", "target", 14, bold=True)
    fig.text(678, low + 43, "a scalar", "target", 13, mono=True)
    column = [[str(i)] for i in labels.tolist()]
    grid = fig.matrix(466, low + 50, column, "target", (44, 24))
    fig.arrow((grid.top[0], grid.top[1] - 4), (grid.top[0], low + 29))
    fig.text(456, grid.left[1], "labels", "target", 13, "end", bold=True)
    fig.text(520, grid.left[1], "(B,)", "target", 13, "start", mono=True)
    words = "The logits are made up,\nthe arithmetic is real."
    fig.text(28, 376, words, "muted", 12.5, "start")
    return fig


def loops():
    """6.7: the loop of train_classifier_simple."""
    fig = Figure(
        WIDTH,
        420,
        "The loop of chapter 5, with one answer per message to learn",
        "Two nested loops. Outer: for each epoch. Inner: for each batch, zero_grad; "
        "calc_loss_batch, which takes the model's output at the last token and "
        "cross_entropy; backward; step. Every eval_freq steps evaluate_model, after "
        "each epoch calc_accuracy_loader. Names as in train_classifier_simple.",
    )
    fig.box(28, 56, 704, 312, "muted", radius=10)
    words = "for epoch in range(num_epochs):"
    fig.text(44, 75, words, "ink", 13, "start", mono=True)
    fig.box(44, 92, 672, 216, "card", radius=8)
    words = "for input_batch, target_batch in train_loader:"
    fig.text(60, 110, words, "ink", 13, "start", mono=True)
    steps = [
        ("optimizer\n.zero_grad()", 102, "weights", "forget the\nold gradients"),
        ("model(input_batch)\n[:, -1, :]", 150, "highlight", "logits at the last\n"
         "token, (B, 2)"),
        ("cross_entropy", 110, "target", "how wrong?\na scalar"),
        ("loss\n.backward()", 90, "target", "which way\nto move?"),
        ("optimizer\n.step()", 84, "weights", "move\na little"),
    ]  # fmt: skip
    x, y, edges = 72, 158, []
    for i, (code, w, role, note) in enumerate(steps):
        fig.box(x, y, w, 44, role, code, 12.5, mono=True)
        fig.text(x + w / 2, y + 58, note, "ink", 12.5)
        edges.append((x, x + w))
        if i < len(steps) - 1:
            fig.arrow((x + w + 3, y + 22), (x + w + 17, y + 22))
        x += w + 20
    fig.bracket(edges[1][0], edges[2][1], 147, "calc_loss_batch", "target")
    end, back = edges[-1][1], y + 94
    corners = (end + 4, y + 22), (end + 16, y + 22), (end + 16, back), (58, back)
    fig.arrow(*corners, (58, y + 22), (69, y + 22), role="highlight")
    fig.text(end + 16, back + 13, "next batch", "highlight", 12.5, "end")
    rows = [
        (282, "every eval_freq steps", "evaluate_model", "losses"),
        (338, "after each epoch", "calc_accuracy_loader", "accuracies"),
    ]
    for y, when, name, what in rows:
        fig.text(60, y, when, "muted", 13, "start")
        fig.arrow((198, y), (222, y))
        fig.box(228, y - 16, 172, 32, "embeddings", name, 13, mono=True)
        words = f"{what} on training and validation data"
        fig.text(410, y, words, "ink", 12.5, "start")
    words = "return train_losses, val_losses, train_accs, val_accs, examples_seen"
    fig.text(44, 392, words, "ink", 13, "start", mono=True)
    return fig


FIGURES = [
    stages,
    two_kinds,
    data,
    padding,
    new_head,
    what_is_trained,
    last_token,
    where_to_read,
    logits_to_label,
    loops,
]


def draw_all(root=ROOT):
    """Write the chapter's figures to `root`/ch06/figures."""
    save_all(FIGURES, Path(root, "ch06", "figures"))


if __name__ == "__main__":
    draw_all()
