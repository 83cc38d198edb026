"""Draw the figures of chapter 2. Run it: `python -m figures.ch02`.

Every token, id, count and shape comes from the chapter's own code, so a figure cannot
say anything else than the notebook beside it.
"""

import re
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch

from ch02.dataloader import (
    GPTDatasetV1,
    SimpleTokenizerV1,
    SimpleTokenizerV2,
    create_dataloader_v1,
    get_tokenizer,
    load_text,
)
from figures.svg import Figure, chip_width, save_all

ROOT = Path(__file__).parents[1]
WIDTH = 760


class Echo(dict):
    """A vocabulary that knows every word: `encode` hands back the words themselves."""

    def __missing__(self, word):
        return word


def split_words(text):
    """Words and punctuation marks, as the chapter's first tokenizer cuts them."""
    return SimpleTokenizerV1(Echo()).encode(text)


@cache
def story_vocabulary():
    """The story's sorted unique words with their ids (section 2.3)."""
    words = sorted(set(split_words(load_text("bundled"))))
    return {word: i for i, word in enumerate(words)}


def visible(token):
    """A token with its spaces shown as dots."""
    return token.replace(" ", "·")


def bpe(text):
    """The GPT-2 tokens of `text`, spaces shown, and their ids."""
    tokenizer = get_tokenizer()
    token_ids = tokenizer.encode(text)
    return [visible(tokenizer.decode([i])) for i in token_ids], token_ids


def story_start(count):
    """The first GPT-2 tokens of the story."""
    return bpe(load_text("bundled")[:500])[0][:count]


@cache
def first_batch():
    """Inputs and targets, (B, T) each, of the story's first batch (section 2.6)."""
    loader = create_dataloader_v1(load_text("bundled"), 8, 4, 4, shuffle=False)
    return next(iter(loader))


@cache
def embedding_layers():
    """The token and the position layer of section 2.8, as the notebook draws them."""
    torch.manual_seed(123)
    torch.nn.Embedding(6, 3)  # section 2.7
    layer = torch.nn.Embedding(get_tokenizer().n_vocab, 256)
    first_batch()
    return layer, torch.nn.Embedding(4, 256)


def shape(tensor):
    """A tensor's shape as the notebook would write it."""
    return str(tuple(tensor.shape))


def row_width(words, size=14, gap=6):
    """Pixels that a row of chips takes."""
    return sum(chip_width(word, size) + gap for word in words) - gap


def embedding_space():
    """2.1: related words lie near each other."""
    fig = Figure(
        WIDTH,
        390,
        "Words with related meanings lie near each other",
        "Words of the story as points in a plane: river, weir, heron and flood form "
        "one group, ink, letter, page and print a second, kettle, tea and stove a "
        "third. The two coordinates of a word are its embedding.",
    )
    groups = [  # name, middle and radii in units of 100 pixels
        ("water", (1.75, 1.9), (1.25, 0.62)),
        ("printing", (5.25, 1.9), (1.25, 0.62)),
        ("kitchen", (3.55, 0.6), (1.15, 0.44)),
    ]
    words = {
        "heron": (1.0, 2.15),
        "flood": (1.95, 2.2),
        "river": (1.1, 1.7),
        "weir": (2.05, 1.65),
        "ink": (4.6, 2.1),
        "letter": (4.5, 1.7),
        "page": (5.45, 2.2),
        "print": (5.6, 1.75),
        "kettle": (2.8, 0.65),
        "tea": (3.9, 0.75),
        "stove": (3.7, 0.4),
    }

    assert words.keys() <= story_vocabulary().keys()

    def place(x, y):
        return 66 + 100 * x, 332 - 100 * y

    origin = place(0, 0)
    fig.arrow(origin, (origin[0], 58))
    fig.arrow(origin, (728, origin[1]))
    for name, (x, y), (rx, ry) in groups:
        fig.oval(*place(x, y), 100 * rx, 100 * ry, "muted")
        fig.text(*place(x, y + ry + 0.12), name, "muted", 13)
    x, y = words["river"]
    fig.arrow(place(0, y), place(x, y), place(x, 0), head=False, dash="2 4")
    fig.text(*place(x, -0.15), str(x), size=13, mono=True)
    fig.text(*place(-0.07, y), str(y), "ink", 13, "end", mono=True)
    for word, at in words.items():
        dot = place(*at)
        fig.oval(*dot, 5.5, 5.5, "embeddings")
        fig.text(dot[0] + 12, dot[1], word, "embeddings", 15, "start", bold=True)
    note = "Placed by hand in two dimensions, as an illustration: a GPT uses hundreds."
    fig.text(WIDTH / 2, 372, note, "muted", 13)
    return fig


def pipeline():
    """2.2: what happens to a phrase before the model sees it."""
    phrase = "Every effort moves you"
    assert phrase in load_text("bundled")
    tokens, token_ids = bpe(phrase)
    vectors = embedding_layers()[0](torch.tensor(token_ids))  # (T, C)
    fig = Figure(
        WIDTH,
        420,
        "A model never sees text: it sees one vector per token",
        f"The phrase '{phrase}' is cut into {len(tokens)} tokens; each becomes an id "
        f"({token_ids}), each id a vector; a position vector is added to it, and the "
        "sums enter the model.",
    )
    left, column = 146, 116
    wide = column * len(tokens)
    rows = {"text": 76, "tokens": 134, "token IDs": 192, "embeddings": 248}
    for name, y in (rows | {"+ positions": 288, "model": 358}).items():
        fig.text(28, y, name, anchor="start", bold=True)
    fig.box(left, 61, wide, 30, "text", phrase, mono=True)
    fig.box(left, 339, wide, 38, "weights", "GPT", bold=True)
    for i, (token, token_id) in enumerate(zip(tokens, token_ids, strict=True)):
        x = left + column * (i + 0.5)
        w = chip_width(token)
        fig.box(x - w / 2, 119, w, 30, "text", token, mono=True)
        fig.box(x - 30, 177, 60, 30, "ids", str(token_id), mono=True)
        fig.matrix(x - 40, 240, [[""] * 5], "embeddings", cell=(16, 16))
        fig.matrix(x - 40, 280, [[""] * 5], "weights", cell=(16, 16))
        fig.text(x, 268, "+", size=15)
        for top, bottom in ((95, 115), (153, 173), (211, 236), (300, 335)):
            fig.arrow((x, top), (x, bottom))
    shapes = {76: f"{len(phrase)} characters"}
    shapes |= {134: f"{len(tokens)} tokens", 192: f"({len(token_ids)},)"}
    for y, words in (shapes | {268: shape(vectors)}).items():
        fig.text(left + wide + 18, y, words, "muted", 13, "start", mono=True)
    note = "· is a space, part of its token; a strip stands for "
    fig.text(WIDTH / 2, 399, f"{note}{vectors.shape[1]} numbers", "muted", 12.5)
    return fig


def split(pattern, text):
    """The non-empty pieces of `re.split`."""
    return [piece for piece in re.split(pattern, text) if piece]


def splitting():
    """2.2: each separator added to the pattern cuts a little finer."""
    sentence = "Nell, is it ink--or rain?"
    fig = Figure(
        WIDTH,
        340,
        "Each separator added to the pattern cuts a little finer",
        f"The sentence '{sentence}' split three times: at spaces; at commas and full "
        "stops too; at the other marks and the double hyphen, with the spaces dropped.",
    )
    steps = [
        ("at spaces", r"(\s)", split(r"(\s)", sentence)),
        ("+ comma, full stop", r"([,.]|\s)", split(r"([,.]|\s)", sentence)),
        ("+ other marks, --", "spaces dropped", split_words(sentence)),
    ]
    fig.text(28, 78, "sentence", anchor="start", bold=True)
    fig.box(210, 62, chip_width(sentence), 32, "text", sentence, mono=True)
    before = {" "}
    for i, (name, detail, words) in enumerate(steps):
        y = 126 + 64 * i
        fig.text(28, y + 7, name, anchor="start", bold=True)
        fig.text(28, y + 26, detail, "muted", 12.5, "start", mono=i < 2)
        fig.arrow((232, y - 28), (232, y - 4))
        marks = {word for word in words if not word.isalpha() and len(word) < 3}
        roles = dict.fromkeys(marks - before, "highlight") | {" ": "muted"}
        fig.chips(
            210, y, [visible(w) for w in words], [roles.get(w, "text") for w in words]
        )
        before |= marks
    fig.box(210, 312, 14, 14, "highlight", radius=3)
    fig.text(232, 319, "cut off in this step", "muted", 12.5, "start")
    return fig


def vocabulary_rows(words, token_ids):
    """The table's first and last entry and those of `token_ids`, with gaps between."""
    rows, paint = [], {}
    shown = sorted({0, len(words) - 1, *token_ids})
    for before, i in pairwise([-1, *shown]):
        if i > before + 1:
            rows.append(["…", "…"])
        if i in token_ids:
            paint |= {(len(rows), 0): "text", (len(rows), 1): "ids"}
        rows.append([words[i], str(i)])
    return rows, paint


def vocabulary():
    """2.3: a sorted list of words turns words into ids and ids into words."""
    vocab, text = story_vocabulary(), "mind the step."
    tokenizer = SimpleTokenizerV1(vocab)
    token_ids = tokenizer.encode(text)
    assert tokenizer.decode(token_ids) == text
    fig = Figure(
        WIDTH,
        390,
        "A vocabulary numbers the words, so it can be read both ways",
        f"A table of {len(vocab)} sorted words with their ids stands between the text "
        f"'{text}' and its ids {token_ids}: encoding goes from word to id, decoding "
        "from id to word.",
    )
    rows, paint = vocabulary_rows(list(vocab), token_ids)
    table = fig.matrix(290, 86, rows, "muted", cell=(90, 23), paint=paint)
    fig.text(335, 72, "word", "text", 14, bold=True)
    fig.text(425, 72, "id", "ids", 14, bold=True)
    note = f"the story's {len(vocab)} different words and marks, sorted"
    fig.text(WIDTH / 2, table.bottom[1] + 22, note, "muted", 13)

    y = table.left[1]
    fig.box(28, y - 36, 146, 72, "text", text, mono=True)
    ids = fig.box(566, y - 36, 166, 72, "ids", str(token_ids), 13, mono=True)
    for x0, x1 in ((178, 284), (476, ids.x - 4)):
        fig.arrow((x0, y - 16), (x1, y - 16), label="encode")
        fig.arrow((x1, y + 16), (x0, y + 16))
        fig.text((x0 + x1) / 2, y + 30, "decode", "muted", 12.5, mono=True)
    return fig


def special_tokens():
    """2.4: <|endoftext|> separates two texts, <|unk|> stands for an unknown word."""
    first, second, unknown = "The kettle was cold.", "Wick has a robot.", "robot"
    specials = ["<|endoftext|>", "<|unk|>"]
    words = [*story_vocabulary(), *specials]
    tokenizer = SimpleTokenizerV2({word: i for i, word in enumerate(words)})
    token_ids = tokenizer.encode(f"{first} {specials[0]} {second}")
    tokens = [tokenizer.int_to_str[i] for i in token_ids]
    border = tokens.index(specials[0])
    assert unknown not in words
    fig = Figure(
        WIDTH,
        290,
        "Two special tokens: one for a new text, one for an unknown word",
        f"'{first}' and '{second}' are joined with {specials[0]} between them; the "
        f"word {unknown}, which the vocabulary lacks, becomes {specials[1]}. "
        f"Ids: {token_ids}.",
    )
    roles = ["highlight" if token in specials else "text" for token in tokens]
    left = (WIDTH - row_width(tokens)) / 2
    chips = fig.chips(left, 134, tokens, roles)
    for text, part in ((first, chips[:border]), (second, chips[border + 1 :])):
        x, w = part[0].x, part[-1].right[0] - part[0].x
        box = fig.box(x, 64, w, 32, "text", text, mono=True)
        fig.arrow((box.bottom[0], 100), (box.bottom[0], 130))
    for chip, token_id, role in zip(chips, token_ids, roles, strict=True):
        role = "ids" if role == "text" else role
        fig.text(chip.bottom[0], 184, str(token_id), role, 13, mono=True)
    notes = ["a new, unrelated\ntext begins", f"the vocabulary\nlacks “{unknown}”"]
    for token, note in zip(specials, notes, strict=True):
        x = chips[tokens.index(token)].bottom[0]
        fig.arrow((x, 232), (x, 200), role="highlight")
        fig.text(x, 250, note, "highlight", 13)
    fig.text(28, 184, "ids", anchor="start", bold=True)
    return fig


def bpe_unknown_word():
    """2.5: byte pair encoding spells an unknown word with pieces it knows."""
    fig = Figure(
        WIDTH,
        344,
        "BPE has no unknown words: it spells them with pieces it knows",
        "The common word river is one token; the rare word compositor and the "
        "invented word Nellwick are each spelled with several tokens of GPT-2's "
        "vocabulary.",
    )
    rows = {"common": "river", "rare": "compositor", "invented": "Nellwick"}
    for i, (kind, word) in enumerate(rows.items()):
        y = 66 + 84 * i
        tokens, token_ids = bpe(word)
        count = f"{len(tokens)} token" + "s" * (len(tokens) > 1)
        fig.text(28, y + 16, kind, anchor="start", bold=True)
        box = fig.box(140, y, chip_width(word), 32, "text", word, mono=True)
        fig.arrow(
            (box.right[0] + 6, y + 16), (374, y + 16), label="BPE" if i == 0 else ""
        )
        chips = fig.chips(384, y, tokens, h=32, gap=10)
        for chip, token_id in zip(chips, token_ids, strict=True):
            x = chip.bottom[0]
            fig.text(x, y + 46, str(token_id), "ids", 13, mono=True)
        fig.text(732, y + 16, count, "muted", 13, "end")
    tokenizer = get_tokenizer()
    assert all(tokenizer.encode_single_token(bytes([b])) < 256 for b in range(256))
    note = f"Every byte is among GPT-2's {tokenizer.n_vocab:,} tokens, so some spelling"
    fig.text(WIDTH / 2, 322, f"{note} always exists.", "muted", 13)
    return fig


def next_token():
    """2.6: every position of a text is one prediction task."""
    tokens = story_start(8)
    steps = 6
    fig = Figure(
        WIDTH,
        350,
        "Every position asks the same question: which token is next?",
        f"The story's first tokens {tokens}, once per row: the context grows by one "
        "token from row to row, the token after it is the one to predict, the rest "
        "is not seen.",
    )
    left = (WIDTH - row_width(tokens, gap=8)) / 2
    for step in range(1, steps + 1):
        rest = len(tokens) - step - 1
        roles = ["text"] * step + ["target"] + ["muted"] * rest
        fig.chips(left, 20 + 40 * step, tokens, roles, gap=8)
    legend = [("text", "context"), ("target", "to predict"), ("muted", "not seen yet")]
    for i, (role, words) in enumerate(legend):
        x = left + 150 * i
        fig.box(x, 316, 16, 16, role, radius=3)
        fig.text(x + 24, 324, words, size=13, anchor="start")
    return fig


class Positions:
    """A stand-in for a tokenizer: the ids of `count` tokens are 0, 1, 2 ..."""

    def __init__(self, count):
        self.count = count

    def encode(self, text, allowed_special=()):
        return list(range(self.count))


def sliding_window():
    """2.6: the target is the input one token later; the stride sets the overlap."""
    tokens, size = story_start(8), 4
    fig = Figure(
        WIDTH,
        410,
        "Targets run one token ahead; the stride sets the overlap",
        f"The input window covers the story's tokens 0 to {size - 1}, the target "
        f"window tokens 1 to {size}. Below: with stride 1 the windows overlap, with "
        f"stride {size} they do not.",
    )
    left = (WIDTH - row_width(tokens)) / 2
    roles = ["text"] * size + ["target"] + ["muted"] * (len(tokens) - size - 1)
    chips = fig.chips(left, 104, tokens, roles)
    fig.bracket(chips[0].x, chips[size - 1].right[0], 92, "input window", "text")
    end = chips[size].right[0]
    fig.bracket(chips[1].x, end, 146, "target window", "target", up=False)
    for x, stride, note in (
        (64, 1, f"a token is in up to {size} windows"),
        (440, size, "a token is in one window"),
    ):
        windows = GPTDatasetV1("", Positions(4 * size + 1), size, stride).input_ids[:4]
        paint = {(r, c): "text" for r, w in enumerate(windows) for c in w.tolist()}
        empty = [[""] * 4 * size for _ in windows]
        fig.text(x, 226, f"stride {stride}", anchor="start", bold=True)
        grid = fig.matrix(x, 246, empty, "muted", (18, 25), "0123", paint=paint)
        fig.text(grid.bottom[0], 362, note, "ink", 13)
    note = "each row is a window, each column a token of the text"
    fig.text(WIDTH / 2, 390, note, "muted", 12.5)
    return fig


def batch():
    """2.6: inputs and targets of one batch, the targets one token later."""
    inputs, targets = first_batch()
    fig = Figure(
        WIDTH,
        360,
        "Each row of targets is its row of inputs, one token later",
        f"Two matrices of token ids, inputs and targets, {shape(inputs)} each. In the "
        f"first row {inputs[0].tolist()} and {targets[0].tolist()}: the last three "
        "inputs are the first three targets.",
    )
    sides = [("inputs", inputs, "ids", 64, 1), ("targets", targets, "target", 466, 0)]
    for name, ids, role, x, shared in sides:
        rows = [[str(i) for i in row] for row in ids.tolist()]
        paint = {(0, shared + c): "highlight" for c in range(3)}
        labels = [str(r) for r in range(len(rows))]
        caption = f"{name} {shape(ids)}"
        grid = fig.matrix(x, 92, rows, role, (64, 28), labels, caption, paint)
        for c, token_id in enumerate(ids[0].tolist()):
            word = visible(get_tokenizer().decode([token_id]))
            fig.text(grid.at(0, c).top[0], 78, word, "muted", 13, mono=True)
    fig.arrow((326, 106), (436, 106), role="highlight", label="shift")
    return fig


def embedding_lookup():
    """2.7: an embedding layer is a table, a token id picks its row."""
    torch.manual_seed(123)
    layer, token_id = torch.nn.Embedding(6, 3), 3
    rows = [[f"{v:.4f}" for v in row] for row in layer.weight.tolist()]
    vector = layer(torch.tensor([token_id]))
    fig = Figure(
        WIDTH,
        330,
        "An embedding layer is a table: the token ID picks a row",
        f"A weight matrix of shape {shape(layer.weight)}; token id {token_id} picks "
        f"row {token_id}, the vector {rows[token_id]}.",
    )
    size = (80, 34)
    labels = [str(r) for r in range(len(rows))]
    paint = {(token_id, c): "highlight" for c in range(len(rows[0]))}
    caption = f"weight {shape(layer.weight)}"
    table = fig.matrix(200, 80, rows, "weights", size, labels, caption, paint)
    row = table.at(token_id, 0, len(rows[0]))
    y = row.left[1]
    fig.box(52, y - 17, 44, 34, "ids", str(token_id), 15, mono=True)
    fig.text(74, y - 32, "token ID", "ids", 14, bold=True)
    fig.arrow((102, y), (174, y))
    caption = shape(vector)
    out = fig.matrix(492, row.y, [rows[token_id]], "embeddings", size, (), caption)
    fig.text(out.top[0], y - 32, "its embedding", "embeddings", 14, bold=True)
    fig.arrow((row.right[0] + 6, y), (486, y))
    return fig


def positions():
    """2.8: a position embedding makes two equal tokens different."""
    tokens, token_ids = bpe(" you look where you")
    assert tokens[0] == tokens[-1]
    tok_layer, pos_layer = embedding_layers()
    tok = tok_layer(first_batch()[0])  # (B, T, C)
    pos = pos_layer(torch.arange(len(tokens)))  # (T, C)
    fig = Figure(
        WIDTH,
        390,
        "The same token at another position becomes another vector",
        f"In '{''.join(tokens)}' the token {tokens[0]} stands at positions 0 and "
        f"{len(tokens) - 1}. Its token embedding is the same, the position embedding "
        f"and so the sum differ. Shapes: {shape(tok)} + {shape(pos)} = "
        f"{shape(tok + pos)}.",
    )
    word = tok_layer(torch.tensor(token_ids[0]))  # (C,)
    columns = [
        (176, "token embedding", "embeddings"),
        (372, "position embedding", "weights"),
        (568, "input embedding", "highlight"),
    ]
    for x, name, role in columns:
        fig.text(x + 81, 70, name, role, 14, bold=True)
    for y, p in ((88, 0), (134, len(tokens) - 1)):
        fig.text(28, y + 15, f"position {p}", anchor="start", bold=True)
        fig.chips(118, y, tokens[:1], size=13)
        vectors = [word, pos[p], word + pos[p]]
        values = [[f"{v:.2f}" for v in vector[:3].tolist()] for vector in vectors]
        for a, b, c in zip(*values, strict=True):
            assert round(float(a) + float(b), 2) == float(c), "adds up as printed"
        for row, (x, _, role) in zip(values, columns, strict=True):
            fig.matrix(x, y, [row], role, cell=(54, 30))
    note = f"the first {len(values[0])} of {len(word)} numbers"
    fig.text(columns[1][0] + 81, 184, note, "muted", 12.5)

    fig.text(28, 285, "a batch", anchor="start", bold=True)
    sheets, blank = len(tok), [[""] * 8 for _ in tokens]
    for tensor, (x, _, role) in zip((tok, pos, tok + pos), columns, strict=True):
        behind = "muted" if tensor is pos else None
        cell, caption = (12, 14), shape(tensor)
        x = x + 81 - (12 * 8 + 5 * (sheets - 1)) / 2
        fig.stack(x, 222, blank, role, sheets, behind, cell=cell, caption=caption)
    for y in (103, 149, 285):
        fig.text(columns[1][0] - 17, y, "+", size=18)
        fig.text(columns[2][0] - 17, y, "=", size=18)
    note = f"the same {len(pos)} rows are added to each of the {sheets} windows"
    fig.text(columns[1][0] + 81, 364, note, "muted", 12.5)
    return fig


def input_pipeline():
    """2.8: the whole chapter, with every shape."""
    text = load_text("bundled")
    token_ids = torch.tensor(get_tokenizer().encode(text))  # (N,)
    inputs, _ = first_batch()
    embedded = embedding_layers()[0](inputs)  # (B, T, C)
    fig = Figure(
        WIDTH,
        310,
        "From a text to the tensor that enters the model",
        f"A text of {len(text):,} characters is encoded as {len(token_ids):,} ids; "
        f"windows of inputs and targets {shape(inputs)} are cut from it; the inputs "
        f"are embedded, positions added: {shape(embedded)}.",
    )
    lines = "The year the\nriver came\ninto the\nprinting …"
    assert text.startswith(lines[:-2].replace("\n", " "))
    fig.box(28, 92, 124, 112, "text", lines, 13, mono=True)
    column = [[str(i)] for i in token_ids[:5].tolist()] + [["…"]]
    fig.matrix(234, 88, column, "ids", cell=(56, 20))
    blank = [[""] * inputs.shape[1] for _ in inputs]
    fig.matrix(390, 84, blank, "target", cell=(14, 14))
    fig.matrix(374, 98, blank, "ids", cell=(14, 14))
    fig.text(426, 70, "targets", "target", 13)
    sheets, cells = len(inputs), [[""] * 8 for _ in range(inputs.shape[1])]
    fig.stack(542, 96, cells, "embeddings", sheets, cell=(13, 18))
    arrows = [
        (160, 226, "encode", "2.2–2.5"),
        (298, 364, "slide", "2.6"),
        (454, 532, "embed", "2.7–2.8"),
    ]
    for x0, x1, verb, sections in arrows:
        fig.arrow((x0, 148), (x1, 148), label=verb)
        fig.text((x0 + x1) / 2, 163, sections, "muted", 12.5)
    fig.arrow((690, 148), (732, 148), label="model")
    names = [
        (90, "text", "text", "str", f"{len(text):,} characters"),
        (262, "token IDs", "ids", "(N,)", shape(token_ids)),
        (410, "windows", "ids", "(B, T)", shape(inputs)),
        (611, "input embeddings", "embeddings", "(B, T, C)", shape(embedded)),
    ]
    for x, name, role, letters, numbers in names:
        fig.text(x, 242, name, role, 14, bold=True)
        fig.text(x, 264, letters, role, 13, mono=True)
        fig.text(x, 284, numbers, "muted", 13, mono=True)
    return fig


FIGURES = [
    embedding_space,
    pipeline,
    splitting,
    vocabulary,
    special_tokens,
    bpe_unknown_word,
    next_token,
    sliding_window,
    batch,
    embedding_lookup,
    positions,
    input_pipeline,
]


def draw_all(root=ROOT):
    """Write the chapter's figures to `root`/ch02/figures."""
    save_all(FIGURES, Path(root, "ch02", "figures"))


if __name__ == "__main__":
    draw_all()
