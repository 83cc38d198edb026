"""The corpus pipeline (ch05/gutenberg): cleaning, duplicates, splits, shards, restarts.

The checks take the component as an argument: they get ours, which must pass, and ours
with a classic mistake in it, which must not.
"""

import io
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import tarfile
import tempfile
import textwrap
import time
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from test_mutants import NOTICED, each_of, mutate

from ch02.cli import InputError
from ch02.dataloader import get_tokenizer
from ch05.gutenberg import paragraphs, prepare_dataset, raw, shards
from ch05.gutenberg.clean import (
    Dropped,
    check_text,
    clean_book,
    decode,
    drop_notes,
    field,
    remove_tags,
    split_licence,
)
from ch05.gutenberg.duplicates import drop_duplicates, sketch_of, split_of
from ch05.gutenberg.paragraphs import (
    blocks,
    is_wrapped,
    join,
    split_at_margins,
    unwrap,
)
from ch05.gutenberg.prepare_dataset import main
from ch05.gutenberg.shards import TokenShards, read_manifest, write_shards

SAMPLE = ROOT / "ch05" / "gutenberg" / "sample"
WORDS = re.findall(
    r"\w+",
    "the of and to in that was with he his which it for had as not her from they this "
    "lantern harbour kettle winter ledger window orchard bridge stair pocket candle "
    "river saddle garden cellar ribbon thunder whistle pepper marble",
)
repeatable = settings(derandomize=True, database=None, deadline=None, max_examples=60)


def prose(seed, n_words=400):
    """Paragraphs of random words, the same for a seed."""
    chosen = random.Random(seed).choices(WORDS, k=n_words)
    sentences = [" ".join(chosen[i : i + 19]) for i in range(0, n_words, 19)]
    sentences = [f"{s[0].upper()}{s[1:]}." for s in sentences]
    return "\n\n".join(
        " ".join(sentences[i : i + 4]) for i in range(0, len(sentences), 4)
    )


def fill(text, width=70):
    """Each paragraph wrapped, as in a raw file."""
    return "\n\n".join(textwrap.fill(p, width) for p in text.split("\n\n"))


def book(body, title="A Tale", author="A. Nobody", language="English"):
    """A raw file as a str, with the usual markers."""
    return (
        f"The Project Gutenberg EBook of {title}, by {author}\n\n"
        f"Title: {title}\n\nAuthor: {author}\n\nLanguage: {language}\n\n"
        f"*** START OF THIS PROJECT GUTENBERG EBOOK {title.upper()} ***\n\n\n"
        f"Produced by Somebody\n\n\n\n{body}\n\n\n"
        f"End of the Project Gutenberg EBook of {title}, by {author}\n\n"
        f"*** END OF THIS PROJECT GUTENBERG EBOOK {title.upper()} ***\n\nThe licence.\n"
    )


def reason(function, *args):
    """Why the text is dropped; None if it is not."""
    try:
        function(*args)
    except Dropped as dropped:
        return str(dropped)
    return None


# Checks: decoding and the licence


def check_decode(decode):
    text = "“Déjà vu,” said Zoë – £5 … naïve"
    for encoding in (
        "utf-8",
        "utf-8-sig",
        "cp1252",
        "utf-16",
        "utf-16-le",
        "utf-16-be",
    ):
        assert decode(text.encode(encoding)) == text, encoding
    assert decode("Göße ÿ".encode("latin-1")) == "Göße ÿ"
    greek = "Character set encoding: ISO-8859-7\r\nλόγος"
    assert decode(greek.encode("iso-8859-7")) == greek.replace("\r\n", "\n")
    # 0x93 is a quote in CP1252 and a control character in Latin-1
    assert decode(b"Character set encoding: ISO-8859-1\n\x93a\x94")[-3:] == "“a”"
    assert decode(b"Character set encoding: ISO-8859-15\n\xa4")[-1] == "€"
    # No such encoding: CP1252
    assert decode(b"Character set encoding: latin-77\n\xe9")[-1] == "é"
    # UTF-8 read as CP1252, where bytes without a character become controls
    twice = {"é": "Ã©", "”": "â€\x9d", "’": "â€™", "—": "â€”", "£": "Â£", "Í": "Ã\x8d"}
    for char, wrong in twice.items():
        assert decode(f"a{wrong}b".encode()) == f"a{char}b"
        assert decode(f"a{char}b".encode()) == f"a{char}b"
    assert decode("CAFÉ” É—".encode()) == "CAFÉ” É—"
    assert decode(b"a\r\nb\rc\r\r\nd\x0ce  \nf") == "a\nb\nc\nd\ne\nf"
    assert decode("a\xa0b\u2003c\tcol\xadour\ufeff".encode()) == "a b c   colour"
    assert decode(b"fa&ccedil;ade &#233; &mdash; R&D; &c.") == "façade é — R&D; &c."
    assert decode(b"bell\x07" + b"x" * 999)[:5] == "bellx"
    assert decode("e\u0301".encode()) == "é"
    for bad, expected in (
        (b"", "empty"),
        (b" \r\n\0\0\n", "empty"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 9, "binary file"),
        (bytes(range(1, 32)) * 20, "binary file"),
        (random.Random(0).randbytes(5000), "binary file"),
    ):
        assert reason(decode, bad) == expected


def check_split_licence(split_licence):
    for start, end in (
        ("*** START OF THIS PROJECT GUTENBERG EBOOK A TALE ***",
         "*** END OF THIS PROJECT GUTENBERG EBOOK A TALE ***"),
        ("*** START OF THE PROJECT GUTENBERG EBOOK, A TALE ***",
         "*** END OF THE PROJECT GUTENBERG EBOOK, A TALE ***"),
        ("***START OF THE PROJECT GUTENBERG EBOOK A TALE\n***",
         "***END OF THE PROJECT GUTENBERG EBOOK A TALE\n***"),
        ("*** START OF THIS PROJECT GUTENBERG EBOOK A VERY\nLONG TALE ***",
         "*** END OF THIS PROJECT GUTENBERG EBOOK A VERY\nLONG TALE ***"),
        ("***START**THE SMALL PRINT!**FOR PUBLIC DOMAIN ETEXTS**START***\nlegal\n"
         "*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*",
         "End of The Project Gutenberg Etext of A Tale"),
        ("*END THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.10/04/01*END*",
         "End Project Gutenberg's A Tale, by A. Nobody"),
        ("*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\n\n"
         "Project Gutenberg Etext of A Tale",
         "*Project Gutenberg Etext of A Tale*"),
        ("*** start of this project gutenberg ebook a tale ***",
         "*** end of this project gutenberg ebook a tale ***"),
    ):  # fmt: skip
        tale = prose(0)
        header, body = split_licence(
            f"Title: A Tale\n\n{start}\n\n{tale}\n\n{end}\n\nmore licence"
        )
        assert header.startswith("Title: A Tale\n")
        body = re.sub("^Project Gutenberg.*", "", body.strip()).strip()
        assert body == tale, start
    # A marker without its closing asterisks ends at the next empty line
    _, body = split_licence(
        "*** START OF THIS PROJECT GUTENBERG EBOOK A\n\nx\n\n"
        "*** END OF THIS PROJECT GUTENBERG EBOOK"
    )
    assert body.strip() == "x"
    for text, expected in (
        ("a\n\nb", "no start marker"),
        ("*** START OF THIS PROJECT GUTENBERG EBOOK A ***\n\ntext", "no end marker"),
        ("*** END OF THIS PROJECT GUTENBERG EBOOK A ***", "no start marker"),
    ):
        assert reason(split_licence, text) == expected


def check_field(field):
    header = (
        "Title: O. T.\n       A  Danish Romance\nAuthor: Ann\n        Ben\n\n"
        "Language:  English \nRelease Date: 1\n"
    )
    assert field(header, "Title") == "O. T. A Danish Romance"
    assert field(header, "Author", ", ") == "Ann, Ben"
    assert field(header, "Language") == "English"
    assert field(header, "Editor") == ""


def check_check_text(check_text):
    english = prose(0)
    check_text(english)
    assert reason(check_text, english[:999]) == "shorter than 1000 characters"
    assert reason(check_text, english[:1000]) is None
    numbers = english + " 123456 +-*/=" * 200
    assert reason(check_text, numbers) == "more figures and signs than a text has"
    for text in OTHER_LANGUAGES.values():
        text = " ".join([text] * (1000 // len(text) + 1))
        assert reason(check_text, text) == "the text is not English"
        # A chapter of it inside an English book is no reason
        assert reason(check_text, f"{text} {prose(0, 800)}") is None
    assert reason(check_text, " ".join([SCOTS] * 8)) is None


OTHER_LANGUAGES = {
    "French": "Le garçon ouvrit la porte de la cave et regarda longtemps sans rien "
    "dire. Il n'y avait là que des pommes, un vélo et le chat, qui avait faim. « Tu "
    "peux entrer, dit-il, mais ne mange pas les pommes. » Le chat ne les aimait pas.",
    "German": "Am Abend ging der alte Lehrer noch einmal durch das Haus und löschte in "
    "jedem Zimmer das Licht. Er war so müde, dass er die Katze nicht sah, die auf der "
    "Treppe lag und auf ihn wartete. Es war still, und vor dem Fenster fiel Schnee.",
    "Latin": "Puella parva ad flumen cum matre ambulat et aquam portat. Mater dicit "
    "filiae suae fabulam de lupo et agno, sed puella non audit, quia pisces in aqua "
    "videt. Tum sol cadit et domum eunt, ubi pater eos iam diu exspectat.",
    "Spanish": "La niña dejó el libro sobre la mesa y salió al patio, donde su abuelo "
    "arreglaba una silla. No sabía qué decirle, porque nadie le había contado lo que "
    "pasó con el perro. Entonces él la miró y le dijo que todo estaba bien.",
    "Finnish": "Vanha kalastaja istui rannalla ja katseli järvelle, jossa sumu nousi "
    "hitaasti. Hän ei ollut saanut kalaa koko viikolla, mutta se ei haitannut häntä. "
    "Talossa odotti kissa, ja kahvi oli vielä kuumaa, kun hän tuli kotiin.",
    "Dutch": "De vrouw van de molenaar telde de zakken en het waren er elf. Zij wist "
    "dat het er gisteren nog twaalf waren, maar zij zei niets van wat zij dacht en "
    "ging naar buiten, waar haar man op de ladder stond en naar de wolken keek.",
    "Danish": "Drengen var gået ned til havnen for at se på skibene, men der lå kun "
    "et, og det var så gammelt, at ingen længere vidste, hvad det hed. Han satte sig "
    "på en kasse og ventede på, at hans far skulle komme hjem med fisk.",
    "Italian": "Il vecchio sarto non aveva mai visto il mare, e quando il nipote gli "
    "chiese che cosa fosse, prese un pezzo di stoffa azzurra e lo mosse piano davanti "
    "alla finestra. Il bambino rise, perché era proprio così che lo ricordava.",
    "Portuguese": "A menina abriu a janela da cozinha e viu que o gato tinha voltado "
    "com uma fita no pescoço. Ninguém na rua sabia de quem era, mas a avó disse que "
    "um gato que volta não precisa de explicar onde esteve.",
}  # fmt: skip
SCOTS = (
    "Fan Jock cam' ower the brig he had neither bonnet nor sheen, an' the rain was "
    "dingin' doon on's heid. 'Ye're gey weet, laddie,' quo' auld Kirsty, 'come awa' "
    "ben an' gie's yer crack.' But he wadna bide, for his coo was lost i' the moss. "
)


# Checks: tags, notes, paragraphs


def check_remove_tags(remove_tags):
    for before, after in (
        ("a [Illustration] b", "a  b"),
        ("a\n\n[Illustration: The cat [Tom] on\nthe mat]\n\nb", "a\n\n\n\nb"),
        ("[Picture: Book cover]x", "x"),
        ("[Frontispiece: He runs.]x", "x"),
        ("[Bookcover: 12.jpg]x", "x"),
        ("x [Sidenote: 1066]", "x "),
        ("x[Footnote 3: See _Ivanhoe_.] y", "x y"),
        ("[Transcriber's Note: sic]x", "x"),
        ("[Enter the KING.]", "[Enter the KING.]"),
        ("[Maple syrup]", "[Maple syrup]"),
        ("an unclosed [Illustration: cat", "an unclosed [Illustration: cat"),
        ("the end.[12] Then", "the end. Then"),
        ("the end {12} of", "the end of"),
        ("in {xii} May", "in May"),
        ("in [Pg 7] May", "in May"),
        ("it[A] is[*]", "it is"),
        ("[A] stays at the start", "[A] stays at the start"),
        ("x_{1} is a formula", "x{1} is a formula"),
        ("born [1832]", "born [1832]"),
        ("a ship[1].\n\n[1] A brig.\nOf oak.\n\nb", "a ship.\n\n\n\nb"),
        ("a ship {2a}\n\n  {2a}  A brig.\n\nb", "a ship\n\n\n\nb"),
        ("a page\n\n[8] not a note\n\nb", "a page\n\n not a note\n\nb"),
        ("x[1]\n[1] goes on\n\nb", "x\n goes on\n\nb"),
        ("FOOTNOTES:\n\nFootnote 1:\n\n  A brig.\n\nb", "\n\n\n\nb"),
        ("He _really\ndid_ it", "He really\ndid it"),
        ("Mr. ____ of __ Street", "Mr. ____ of __ Street"),
        ("a =bold\nword= here, x = y = z", "a bold\nword here, x = y = z"),
        ("[Greek: logos]", "logos"),
        ("a\n       *       *       *\nb", "a\n* * *\nb"),
        ("a\n*****\nb", "a\n* * *\nb"),
        ("a ** b", "a ** b"),
        ("a\n--------\nb\n  ______\nc\n. . . . .", "a\n\nb\n\nc\n. . . . ."),
        ("+-----+\n| Ads |\n+-----+", "\n Ads \n"),
        ("| a | b |", " a | b "),
    ):
        assert remove_tags(before) == after, before


def check_drop_notes(drop_notes):
    def kept(text):
        return [" ".join(lines) for lines in drop_notes(blocks(text))]

    many = "\n\n".join(f"Paragraph {i}." for i in range(60))
    for credit in (
        "Produced by David\nNobody",
        "E-text prepared by Ann",
        "This eBook was produced by Ann",
        "Transcribed from the 1897 edition by Ann",
        "Note: Project  Gutenberg also\nhas an HTML version",
        "See https://example.org/x",
        "Images of the book are at the Internet\nArchive",
    ):
        assert kept(f"{credit}\n\n\nONE\n\nTwo") == ["ONE", "Two"], credit
    assert kept("A notebook, produced by hand.") == ["A notebook, produced by hand."]
    assert "Produced by the sun." in kept(f"{many}\n\nProduced by the sun.\n\n{many}")
    for note in (
        "Transcriber's Note:\n\nSpelling kept.\n\nItalics kept.",
        "TRANSCRIBER’S NOTES\n\n\nSpelling kept.\n\nItalics kept.",
        "+----+\n| Transcriber's note: kept. |\n+----+",
        "[Transcribers' endnote]\n\nKept.",
        "Original Transcriber's notes: spelling\nkept.",
        "REDACTOR'S NOTE\n\nKept.",
    ):
        assert kept(f"{note}\n\n\n\nONE\n\nTwo") == ["ONE", "Two"], note
        assert kept(f"{many}\n\n\n{note}")[-1] == "Paragraph 59.", note
        # In the middle only the paragraph itself goes
        assert "Then." in kept(f"{many}\n\n{note}\n\nThen.\n\n{many}")
    assert kept(many)[0] == "Paragraph 0."
    assert len(kept(many)) == 60


def check_unwrap(unwrap):
    long = fill(prose(1))

    def unwrapped(text):
        result = unwrap(blocks_of(f"{long}\n\n{text}"))
        assert result.startswith(prose(1) + "\n\n")
        return result[len(prose(1)) + 2 :]

    first = (
        "    He came to the harbour in the winter, when the river was frozen,\n"
        "and stayed until the orchard was in flower.  Nobody asked him why; it\n"
        "was a small town."
    )
    flat = " ".join(first.split())
    for before, after in (
        (first, flat),
        (textwrap.indent(textwrap.dedent(first), "    "), flat),
        ("A book whose lines were printed with a margin of\ntheir own, shorter than "
         "most and\nof several lengths, is prose all the same, is\nit not?",
         "A book whose lines were printed with a margin of their own, shorter than "
         "most and of several lengths, is prose all the same, is it not?"),
        (f"{first}\n  And then he left again, which surprised the whole of the small\n"
         "town of all.", f"{flat}\n\nAnd then he left again, which surprised the whole "
         "of the small town of all."),
        ("     The needle trembles, then it stands:\n       The night has lost a tenth",
         "The needle trembles, then it stands:\n  The night has lost a tenth"),
        ("Of all the ships that ever sailed upon the sea, the finest one,\n"
         "And all the men that ever were on board of her, are gone, are gone;\n"
         "And nobody remembers now the colour of her sail in the sun.",) * 2,
        ("A line of verse that is as long as any line of prose could ever be in\n"
         "        width,\nAnd one of its own.",
         "A line of verse that is as long as any line of prose could ever be in "
         "width,\nAnd one of its own."),
        ("CHAPTER I       Of Lamps       1\nCHAPTER II      Of Tides       9",
         "CHAPTER I  Of Lamps  1\nCHAPTER II  Of Tides  9"),
        ("                      THE MAP OF LAMPS", "THE MAP OF LAMPS"),
        ("\n".join(s.center(70).rstrip() for s in ("THE MAP", "by", "IDA QUILL")),
         "THE MAP\nby\nIDA QUILL"),
        (f"                                     PELLOW, May 1.\n{first[4:]}\n"
         "                                          O. MARSH.",
         f"    PELLOW, May 1.\n{flat}\n    O. MARSH."),
        ("Dear Sir,\n\nYes.", "Dear Sir,\n\nYes."),
        # Put together again where a picture stood
        (first[4:-1] + "\n\nand a quiet one.", flat[:-1] + " and a quiet one."),
        (first[4:] + "\n\nand a quiet one.", flat + "\n\nand a quiet one."),
    ):  # fmt: skip
        assert unwrapped(before) == after, before
    assert unwrap([]) == ""


def blocks_of(text):
    return [lines for _, lines in blocks(text)]


def check_join(join):
    for lines, words, after in (
        (["a well-", "known man"], {"well-known"}, "a well-known man"),
        (["a well-", "known man"], set(), "a well-known man"),
        (["the light-", "house"], {"lighthouse"}, "the lighthouse"),
        (["the light-", "house"], {"lighthouse", "light-house"}, "the light-house"),
        (["The Light-", "House,"], {"lighthouse"}, "The LightHouse,"),
        (["he stopped--", "and went"], set(), "he stopped--and went"),
        (["he stopped", "--and went"], set(), "he stopped--and went"),
        (["he stopped—", "and went"], set(), "he stopped—and went"),
        (["pages 7-", "9"], set(), "pages 7-9"),
        (["a  b ", "  c"], set(), "a b c"),
        (["one"], set(), "one"),
    ):
        assert join(lines, words) == after


# Checks: duplicates and splits


def entry(file, text, split="train"):
    return {
        "file": file,
        "characters": len(text),
        "sha256": sha256(text.encode()).hexdigest(),
        "split": split,
        "sketch": sketch_of(text),
    }


def check_drop_duplicates(drop_duplicates):
    one, two, three = prose(1, 2000), prose(2, 3000), prose(3, 1500)
    texts = {
        "one": one,
        "two": two,
        "collection": "\n\n".join((one, prose(9, 600), three)),
        "one, other edition": one.upper().replace(".", " --").replace(" ", "\n", 50),
        "three, a bit more": three + prose(4, 300),
        "three, half new": three + prose(5, 1800),
        "copy of two": two,
        # Its halves stand in two larger books
        "mixed": one[: len(one) // 2] + prose(2, 1000),
        "tiny": "Nine words are too few for all this here.",
        "words": "Five words",
    }
    books = [entry(*item) for item in texts.items()]
    kept, dropped, leak = drop_duplicates(books)
    assert {book["file"] for book in kept} == {
        "copy of two", "collection", "three, half new", "tiny", "words",
    }  # fmt: skip
    reasons = {book["file"]: book["reason"] for book in dropped}
    assert reasons["one"] == "near-duplicate: 100 % of it, mostly in collection"
    assert "mostly in collection" in reasons["one, other edition"]
    assert re.search("near-duplicate: 8. %.*collection", reasons["three, a bit more"])
    assert reasons["two"] == "near-duplicate: 100 % of it, mostly in copy of two"
    assert re.search("near-duplicate: (9.|100) %", reasons["mixed"])
    assert leak == 0

    def result(books):
        kept, dropped, leak = drop_duplicates(books)
        key = [book["file"] for book in kept], [tuple(d.values()) for d in dropped]
        return key, leak

    assert result(books) == result(books[::-1])
    for seed in range(3):
        shuffled = random.Random(seed).sample(books, len(books))
        assert result(shuffled) == result(books)

    # A fifth in common is no reason in one split, but it is between the two
    common = prose(6, 400)
    large, small = common + prose(7, 2500), common + prose(8, 1600)
    for splits in (
        ("train", "train"),
        ("val", "val"),
        ("train", "val"),
        ("val", "train"),
    ):
        pair = [entry("large", large, splits[0]), entry("small", small, splits[1])]
        kept, dropped, leak = drop_duplicates(pair)
        assert len(kept) == (2 if splits[0] == splits[1] else 1)
        assert leak == 0
        if dropped:
            assert dropped[0]["file"] == "small"
            assert dropped[0]["reason"].startswith("too close to the other split: ")
    # What little is left in common is measured
    little = prose(10, 150)
    large, small = little + prose(11, 9000), little + prose(12, 8000)
    kept, _, leak = drop_duplicates(
        [entry("large", large, "train"), entry("small", small, "val")]
    )
    shared = np.intersect1d(kept[0]["sketch"], kept[1]["sketch"])
    assert len(kept) == 2
    assert leak == len(shared) / len(sketch_of(small)) > 0
    assert drop_duplicates([])[0] == []


def check_sketch(sketch_of):
    for seed in range(4):
        a, b, c = (prose(10 * seed + i, 3000) for i in range(3))
        first, second = sketch_of(f"{a}\n\n{b}"), sketch_of(f"{b}\n\n{c}")
        assert first.dtype == np.uint64
        assert (first[1:] > first[:-1]).all()
        shingles = []
        for text in (a + b, b + c):
            words = re.findall(r"\w+", text.lower())
            shingles.append({tuple(words[i : i + 8]) for i in range(len(words) - 7)})
        assert abs(len(first) * 16 / len(shingles[0]) - 1) < 0.25
        overlap = len(shingles[0] & shingles[1]) / len(shingles[0])
        found = len(np.intersect1d(first, second)) / len(first)
        assert abs(found - overlap) < 0.1
    # What differs in one word of eight has nothing in common
    words = prose(1, 4000).split()
    words[::8] = ["zebra"] * len(words[::8])
    assert (
        len(np.intersect1d(sketch_of(prose(1, 4000)), sketch_of(" ".join(words)))) == 0
    )
    # Neither has what holds the same words in another order
    other = prose(1, 4000).split()[::-1]
    assert (
        len(np.intersect1d(sketch_of(prose(1, 4000)), sketch_of(" ".join(other)))) == 0
    )
    assert len(sketch_of("")) == len(sketch_of("only seven words are in this one")) == 0
    # The same on every machine and on every day
    text = " ".join(f"word{i}" for i in range(60))
    assert [int(h) for h in sketch_of(text)] == SKETCH


SKETCH = [226430900928904716, 245783293490463044, 736269014854800270]


def check_split(split_of):
    titles = [f"Book {i}" for i in range(20_000)]
    chosen = {t for t in titles if split_of("f", t, "Ann", 0.02) == "val"}
    assert 320 < len(chosen) < 480
    # A larger share adds books and takes none away
    assert chosen < {t for t in titles if split_of("f", t, "Ann", 0.03) == "val"}
    assert not any(split_of("f", t, "Ann", 0) == "val" for t in titles)
    title = min(chosen)
    assert split_of("other/name.txt", f" {title.upper()}! ", "“Ann”", 0.02) == "val"
    assert any(split_of("f", title, f"Ann {i}", 0.02) == "train" for i in range(3))
    # Without a title the name of the file decides, wherever it lies
    names = [f"{i}.txt" for i in range(1000)]
    unnamed = [split_of(name, "", "", 0.5) for name in names]
    assert 400 < unnamed.count("val") < 600
    assert unnamed == [split_of(f"some/folder/{name}", "", "", 0.5) for name in names]
    # The same on every machine and on every day
    assert [split_of("f", f"Book {i}", "Ann", 0.5)[0] for i in range(24)] == SPLITS


SPLITS = list("vtvvvvvtvvttvtttttttttvv")

CHECKS = [
    (decode, check_decode),
    (split_licence, check_split_licence),
    (field, check_field),
    (check_text, check_check_text),
    (remove_tags, check_remove_tags),
    (drop_notes, check_drop_notes),
    (unwrap, check_unwrap),
    (join, check_join),
    (sketch_of, check_sketch),
    (split_of, check_split),
    (drop_duplicates, check_drop_duplicates),
]


@pytest.mark.parametrize(
    ("component", "check"), CHECKS, ids=lambda thing: thing.__name__
)
def test_does_what_its_docstring_says(component, check):
    check(component)


def in_place_of(name, check, component):
    """A check of a part of a module, made by checking what uses it."""

    def check_part(part):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(paragraphs, name, part)
            check(component)

    check_part.__name__ = f"{check.__name__} with another {name}"
    return check_part


def check_token_shards(shards_class):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "TokenShards", shards_class)
        for shard_tokens in (1, 3, 7, 100):
            check_windows(["Hello, world", "", "a\n\nb", "naïve ≥"] * 2, shard_tokens)


def check_windows(texts, shard_tokens, starts=None):
    """Shards of texts, alternately for train and val, against plain lists."""
    tokenizer = get_tokenizer()
    plain = {"train": [], "val": []}
    with tempfile.TemporaryDirectory() as folder:
        books = []
        for i, text in enumerate(texts):
            split = "val" if i % 3 == 1 else "train"
            ids = tokenizer.encode_ordinary(text)
            plain[split] += [*ids, 50256]
            record = {"file": str(i), "split": split, "bytes": len(text.encode())}
            books.append((record, ids))
        manifest = write_shards(folder, iter(books), [], shard_tokens)
        assert json.loads(Path(folder, "manifest.json").read_text("utf-8")) == manifest
        for split, ids in plain.items():
            mine = [
                text for i, text in enumerate(texts) if (i % 3 == 1) == (split == "val")
            ]
            files = sorted(Path(folder).glob(f"{split}-*.bin"))
            assert (
                b"".join(file.read_bytes() for file in files)
                == np.array(ids, dtype="<u2").tobytes()
            )
            sizes = [file.stat().st_size // 2 for file in files]
            assert all(size == shard_tokens for size in sizes[:-1])
            if not mine:
                continue
            data = shards.TokenShards(folder, split)
            assert len(data) == data.num_tokens == len(ids)
            assert data.num_bytes == sum(len(text.encode()) for text in mine)
            assert [text for _, text in data.texts()] == mine
            assert [book["file"] for book, _ in data.texts()] == [
                b["file"] for b in data.books
            ]
            for start in range(len(ids) + 1) if starts is None else starts:
                for length in {0, 1, 2, 5, len(ids) - start}:
                    if 0 <= length <= len(ids) - start:
                        window = data.window(start, length)
                        assert window.dtype == torch.int64
                        assert window.tolist() == ids[start : start + length]
            for start, length in ((-1, 2), (0, len(ids) + 1), (len(ids), 1), (2, -1)):
                with pytest.raises(IndexError):
                    data.window(start, length)


# Classic mistakes

MUTANTS = {
    (decode, check_decode): {
        "Latin-1 instead of CP1252": ('"cp1252", "latin-1"', '"latin-1"'),
        "the declared encoding ignored": ("encodings.append(declared", "str(declared"),
        "Windows marks UTF-8 in vain": ('"utf-8-sig"', '"ascii"'),
        "mojibake left in": ("MOJIBAKE.sub(_undo_mojibake, text)", "text"),
        "line ends of Windows left in": ('"\\r\\r\\n", "\\r\\n", "\\r", ', ""),
    },
    (split_licence, check_split_licence): {
        "header kept": ("text[start.end() : end.start()]", "text[: end.start()]"),
        "new markers only": (" or OLD_START.search(text)", ""),
        "end searched from the beginning": ("(start.end() + len(text)) // 2",
                                            "start.end()"),
    },
    (check_text, check_check_text): {
        "any language": ("< 0.1 *", "< 0.0 *"),
        "only the most English": ("< 0.1 *", "< 0.25 *"),
        "one too long": ("len(text) < MIN", "len(text) <= MIN"),
    },
    (remove_tags, check_remove_tags): {
        "notes kept": ("marks[note[1]] < 2", "True"),
        "a bracket is always a note": ("marks[note[1]] < 2", "False"),
        "all underscores gone": ('"(?<!_)_(?!_)"', '"_"'),
        "page numbers kept": ('PAGE.sub("", text)', "text"),
    },
    (drop_notes, check_drop_notes): {
        "note ends at the first gap": ("gap < 2 or not said", "gap < 2 and said"),
        "note never ends": ("gap < 2 or not said", "True"),
        "credits dropped anywhere": ("(i < 12 or near_end)", "True"),
        "rest kept after a note": ("break", "continue"),
    },
    (is_wrapped, in_place_of("is_wrapped", check_unwrap, unwrap)): {
        "verse joined": ("return False  # verse in long lines", "pass"),
        "tables joined": ("return False  # a table", "return True"),
        "only full lines": ("or (long and small >= 0.5 * n)", ""),
    },
    (split_at_margins, in_place_of("split_at_margins", check_unwrap, unwrap)): {
        "one margin for all": ("if even or", "if True or"),
        "no indented first line": ("(opens and len(parts[-1]) == 1)", "False"),
    },
    (unwrap, check_unwrap): {
        "split paragraphs stay split": ("is_open and is_prose", "False"),
        "everything put together": ("is_prose and not ends", "is_prose"),
    },
    (join, check_join): {
        "hyphens always removed": ("in words and left + right not in words", "!= ''"),
        "hyphens always kept": ("pieces[-1] = before[:-1]", "pass"),
        "blank after a dash": ("before.endswith(DASHES) or", "False or"),
    },
    (sketch_of, check_sketch): {
        "bags of words": ("np.uint64(0x9E3779B97F4A7C15)", "np.uint64(1)"),
        "hash of this process alone": (
            'int.from_bytes(blake2b(word.encode(), digest_size=8).digest(), "little")',
            "hash(word) % 2**64",
        ),
        "everything kept": ("hashes < np.uint64(2**60)", "hashes >= 0"),
    },
    (split_of, check_split): {
        "the file decides": ('" ".join(names).strip() or ', ""),
        "hash of this process alone": ("int(sha256(key.encode()).hexdigest()[:12], 16)",
                                       "(hash(key) % 16**12)"),
    },
    (drop_duplicates, check_drop_duplicates): {
        "smaller book kept": ('-b["characters"]', 'b["characters"]'),
        "order of files decides": (
            'sorted(books, key=lambda b: (-b["characters"], b["sha256"], b["file"]))',
            "books",
        ),
        "ties left to chance": (', b["sha256"], b["file"])', ",)"),
        "share of the larger book": ("limit * len(own)", "limit * len(ids)"),
        "hashes rounded to floats": ("[np.empty(0, dtype=np.uint64), *sketches])",
                                     "[[], *sketches]).astype(np.uint64)"),
        "no care between the splits": ("CONTAINED_ACROSS, ", "2, "),
        "as strict inside a split": ("(anywhere, CONTAINED,", "(anywhere, 0.05,"),
    },
    (TokenShards, check_token_shards): {
        "stops at a shard's end": ("while done < length:", "if done < length:"),
        "too much after a border": ("+ length - done]", "+ length]"),
        "end token not skipped": ('book["tokens"]).tolist()',
                                  'book["tokens"] + 1).tolist()'),
        "ids of another type": ("dtype=np.int64", "dtype=np.int32"),
    },
}  # fmt: skip


@each_of(MUTANTS)
def test_mutant_is_caught(component, check, old, new):
    mutant = mutate(component, old, new)
    with pytest.raises((*NOTICED, Dropped)):
        check(mutant)


# Whatever comes in

MARKUP = st.sampled_from(
    ["\n", "\n\n", "\n\n\n", "  ", "        ", "[", "]", "{", "}", "_", "=", "|", "*",
     "-", "--", "—", "[1]", "[Illustration", "[Footnote 1: ", "Transcriber's Note:",
     "Ã©", "* * * * *", "+-----+", "&mdash;", "Produced by ", "\r", "\t", "\0", "é",
     "Project Gutenberg", "*** END OF THE PROJECT GUTENBERG EBOOK X ***"]
)  # fmt: skip


@repeatable
@given(st.binary(max_size=400))
def test_no_bytes_crash_the_cleaning(data):
    with pytest.raises(Dropped):
        clean_book(data)


@repeatable
@given(
    st.lists(st.text(max_size=9) | MARKUP, max_size=60).map("".join), st.integers(0, 2)
)
def test_no_text_crashes_the_cleaning(text, place):
    body = [fill(prose(0)), fill(prose(1))]
    body.insert(place, text)
    raw_bytes = book("\n\n".join(body)).encode("utf-8", "replace")
    try:
        cleaned = clean_book(raw_bytes)
    except Dropped:
        return
    assert not re.search(r"[\0-\x09\x0b-\x1f]|\n\n\n|^\s|\s$", cleaned.text)
    assert "project gutenberg" not in " ".join(cleaned.text.lower().split())


@repeatable
@given(
    st.lists(
        st.lists(st.text("abcdefgh", min_size=1, max_size=12), min_size=1, max_size=60),
        min_size=1,
        max_size=8,
    ),
    st.integers(40, 80),
    st.integers(0, 6),
)
def test_wrapping_is_undone(paragraphs_of_words, width, indent):
    texts = [f"A{' '.join(words)}." for words in paragraphs_of_words]
    wrapped = [textwrap.fill(t, width, initial_indent=" " * indent) for t in texts]
    # The rest of a book tells the width
    wrapped.append(textwrap.fill(prose(3).replace("\n\n", " "), width))
    result = unwrap(blocks_of("\n\n".join(wrapped)))
    assert result.split("\n\n")[:-1] == texts


@repeatable
@given(st.lists(st.text(max_size=30), max_size=7), st.integers(1, 12))
def test_a_window_equals_the_concatenation(texts, shard_tokens):
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    check_windows(
        texts, shard_tokens, starts=(0, 1, shard_tokens, 2 * shard_tokens - 1)
    )


# A whole corpus


def write_corpus(folder):
    """Raw files of all kinds; returns the reasons for those that are to be dropped."""
    inner = prose(100, 900)
    files = {f"tale-{i}.txt": book(fill(prose(i, 900)), f"Tale {i}") for i in range(9)}
    files["tale-3.txt"] = (
        files["tale-3.txt"].replace("Tale 3", "Zoë’s").encode("cp1252")
    )
    files |= {
        "sub/collection.txt": book(fill(f"{prose(101, 900)}\n\n{inner}"), "Two Tales"),
        "sub/inner.txt": book(fill(inner, 60), "Inner", "Somebody else"),
        "tale-2, again.txt": files["tale-2.txt"],
        "french.txt": book(fill(prose(102)), "Conte", language="French"),
        "german.txt": book(fill(OTHER_LANGUAGES["German"] * 5), "Geschichte"),
        "short.txt": book("Once."),
        "page.txt": book(f"<p>{prose(103)}</p>"),
        "cut-off.txt": book(fill(prose(104)))[:2000],
        "bare.txt": prose(105),
        "empty.txt": "",
        "cover.png": b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 9,
    }
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return {
        "bare.txt": "no start marker",
        "cover.png": "binary file",
        "cut-off.txt": "no end marker",
        "empty.txt": "empty",
        "french.txt": "language: French",
        "german.txt": "the text is not English",
        "page.txt": "HTML, not plain text",
        "short.txt": "shorter than 1000 characters",
        "sub/inner.txt": "near-duplicate: 100 % of it, mostly in sub/collection.txt",
        "tale-2.txt": "near-duplicate: 100 % of it, mostly in tale-2, again.txt",
    }


OPTIONS = ("--val-share", 0.3, "--shard-tokens", 4000)


def run_main(source, out_dir, *options, workers=1):
    options = ("--raw", source, "--out-dir", out_dir, "--workers", workers, *options)
    main([str(option) for option in options])


def contents(folder):
    """All files below a folder, as a dict from name to bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder with raw/, and prepared/, made from it in one go. Not to be changed."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "reasons.json").write_text(json.dumps(write_corpus(folder / "raw")))
    run_main(folder / "raw", folder / "prepared", *OPTIONS)
    return folder


def test_the_manifest_says_what_is_there(corpus):
    folder = corpus / "prepared"
    manifest = read_manifest(folder)
    assert list(manifest) == [
        "format_version", "tokenizer", "made_from", "splits", "books", "dropped",
    ]  # fmt: skip
    dropped = {book["file"]: book["reason"] for book in manifest["dropped"]}
    assert dropped == json.loads((corpus / "reasons.json").read_text())
    assert [*dropped] == sorted(dropped)
    names = [book["file"] for book in manifest["books"]]
    assert names == sorted(set(contents(corpus / "raw")) - set(dropped))
    streams = {"train": [], "val": []}
    num_bytes = dict.fromkeys(streams, 0)
    for record in manifest["books"]:
        raw_bytes = (corpus / "raw" / record["file"]).read_bytes()
        text = clean_book(raw_bytes).text
        ids = get_tokenizer().encode(text)
        split = split_of(record["file"], record["title"], record["author"], 0.3)
        assert record == {
            "file": record["file"],
            "title": re.search(r"\nTitle: (.*)\n", decode(raw_bytes))[1],
            "author": re.search(r"\nAuthor: (.*)\n", decode(raw_bytes))[1],
            "characters": len(text),
            "bytes": len(text.encode()),
            "sha256": sha256(text.encode()).hexdigest(),
            "split": split,
            "start": len(streams[split]),
            "tokens": len(ids),
        }
        streams[split] += [*ids, 50256]
        num_bytes[split] += len(text.encode())
    files = {"manifest.json"}
    for split, ids in streams.items():
        entry = manifest["splits"][split]
        assert entry["tokens"] == len(ids) > 0
        assert entry["bytes"] == num_bytes[split]
        content = b""
        for i, shard in enumerate(entry["shards"]):
            data = (folder / shard["file"]).read_bytes()
            assert shard["file"] == f"{split}-{i:04d}.bin"
            assert shard["tokens"] * 2 == len(data)
            assert shard["sha256"] == sha256(data).hexdigest()
            content += data
            files.add(shard["file"])
        assert np.frombuffer(content, "<u2").tolist() == ids
        texts = [text for _, text in TokenShards(folder, split).texts()]
        assert "<|endoftext|>".join([*texts, ""]) == get_tokenizer().decode(ids)
    assert set(contents(folder)) == files, "something was left behind"
    assert len(manifest["splits"]["train"]["shards"]) > 1


def test_the_books_read_as_they_should(corpus):
    books = {
        book["file"]: text
        for split in ("train", "val")
        for book, text in TokenShards(corpus / "prepared", split).texts()
    }
    assert books["tale-4.txt"] == prose(4, 900)
    assert books["sub/collection.txt"] == f"{prose(101, 900)}\n\n{prose(100, 900)}"


def tar(source, path, mode, names=None, extra=()):
    names = names or list(contents(source))
    with tarfile.open(path, mode) as archive:
        for member in extra:
            archive.addfile(member, io.BytesIO(b"x" * member.size))
        for name in names:
            archive.add(source / name, f"./some/folder/{name}")
    return path


def test_order_archive_and_workers_change_nothing(corpus, tmp_path):
    expected = contents(corpus / "prepared")
    names = list(contents(corpus / "raw"))
    for seed, mode in enumerate(("w", "w:gz", "w:xz")):
        shuffled = random.Random(seed).sample(names, len(names))
        archive = tar(corpus / "raw", tmp_path / f"{seed}.tar", mode, shuffled)
        run_main(archive, tmp_path / str(seed), *OPTIONS)
        assert contents(tmp_path / str(seed)) == expected


def test_adding_books_moves_no_other(corpus, tmp_path):
    write_corpus(tmp_path / "raw")
    for i in range(200, 206):
        raw_bytes = book(fill(prose(i, 900)), f"Tale {i}").encode()
        (tmp_path / "raw" / f"a-new-{i}.txt").write_bytes(raw_bytes)
    # One that contains a book of each split
    old = read_manifest(corpus / "prepared")["books"]
    both = {book["split"]: book["file"] for book in old if "tale-" in book["file"]}
    texts = [clean_book((corpus / "raw" / f).read_bytes()).text for f in both.values()]
    volume = book(fill("\n\n".join(texts)), "All of it").encode()
    (tmp_path / "raw" / "volume.txt").write_bytes(volume)
    run_main(tmp_path / "raw", tmp_path / "prepared", *OPTIONS)
    manifest = read_manifest(tmp_path / "prepared")
    new = {book["file"]: book["split"] for book in manifest["books"]}
    before = {book["file"]: book["split"] for book in old}
    assert set(both.values()).isdisjoint(new)
    assert {file: new[file] for file in before if file in new} == {
        file: split for file, split in before.items() if file not in both.values()
    }


def test_no_validation_text_is_in_the_training_data(corpus):
    train, val = (
        "\n".join(text for _, text in TokenShards(corpus / "prepared", split).texts())
        for split in ("train", "val")
    )
    found = np.isin(sketch_of(val), sketch_of(train)).mean()
    assert found < 0.01


# Interrupted


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


def in_a_copy_of_this_process(work):
    """Start `work` without the time that a new process would take; returns its id."""
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            work()
        finally:
            os._exit(0)
    return pid


@needs_fork
def test_killed_at_some_moment_it_goes_on_to_the_same_bytes(corpus, tmp_path):
    expected, chance = contents(corpus / "prepared"), random.Random(0)
    begun = time.perf_counter()
    run_main(corpus / "raw", tmp_path / "whole", *OPTIONS)
    whole = time.perf_counter() - begun
    for i in range(6):
        job = (corpus / "raw", tmp_path / str(i), *OPTIONS)
        pid = in_a_copy_of_this_process(partial(run_main, *job))
        time.sleep(chance.random() * whole)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        run_main(*job)
        assert contents(tmp_path / str(i)) == expected


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Like `corpus`, with three files, and an older data set in old/."""
    folder = tmp_path_factory.mktemp("small")
    for i in range(2):
        (folder / "raw").mkdir(exist_ok=True)
        (folder / "raw" / f"{i}.txt").write_text(book(fill(prose(i)), f"Tale {i}"))
    (folder / "raw" / "bare.txt").touch()
    run_main(folder / "raw", folder / "prepared", "--shard-tokens", 120)
    run_main(SAMPLE, folder / "old", "--shard-tokens", 150)
    return folder


@needs_fork
@pytest.mark.parametrize("name", ["replace", "unlink"])
def test_killed_around_each_change_of_a_file(small, tmp_path, monkeypatch, name):
    """Before and after each call of os.replace or os.unlink, replacing other data."""
    expected, out_dir = contents(small / "prepared"), tmp_path / "out"
    original = getattr(os, name)
    job = (small / "raw", out_dir, "--shard-tokens", 120, "--force")

    def run_until(moment):
        calls = 0

        def kill(*args, **kwargs):
            nonlocal calls
            calls += 1
            if 2 * calls - 1 == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*args, **kwargs)
            if 2 * calls == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        monkeypatch.setattr(os, name, kill)
        run_main(*job)

    finished, moment = False, 0
    while not finished:
        moment += 1
        shutil.rmtree(out_dir, ignore_errors=True)
        shutil.copytree(small / "old", out_dir)
        pid = in_a_copy_of_this_process(partial(run_until, moment))
        finished = os.waitpid(pid, 0)[1] == 0
        if (out_dir / "manifest.json").exists():
            TokenShards(out_dir, "train")  # what counts as complete is intact
        run_main(*job)
        assert contents(out_dir) == expected
    assert moment > 8


def test_ctrl_c_with_workers(corpus, tmp_path, monkeypatch, capfd):
    """Two processes: Ctrl-C says one line and leaves none; then the same bytes."""

    def interrupted(source):
        for i, item in enumerate(raw.read_raw(source)):
            yield item
            if i == 3:  # the processes are about to start
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(60)

    with monkeypatch.context() as patch:
        patch.setattr(prepare_dataset, "read_raw", interrupted)
        with pytest.raises(SystemExit) as stopped:
            run_main(corpus / "raw", tmp_path / "out", *OPTIONS, workers=2)
    assert stopped.value.code == 130
    assert multiprocessing.active_children() == []
    output = capfd.readouterr()
    assert output.err.strip() == "Stopped; the same command goes on where it was."
    assert output.out == ""
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    done = len(list((tmp_path / "out" / "work").glob("*/*.npz")))
    run_main(corpus / "raw", tmp_path / "out", *OPTIONS, workers=2)
    assert contents(tmp_path / "out") == contents(corpus / "prepared")
    assert done < len(contents(corpus / "raw"))


def test_what_is_done_is_not_done_again(corpus, tmp_path, monkeypatch):
    done = []

    def process(raw_bytes, path):
        if len(done) == 7:
            raise KeyboardInterrupt
        done.append(path)
        prepare(raw_bytes, path)

    prepare = prepare_dataset.process
    monkeypatch.setattr(prepare_dataset, "process", process)
    with pytest.raises(SystemExit):
        run_main(corpus / "raw", tmp_path / "out", *OPTIONS)
    assert len(done) == 7
    # A work file that was cut off, and one of other code
    done[2].write_bytes(done[2].read_bytes()[:100])
    other = tmp_path / "out" / "work" / "other"
    other.mkdir()
    again = []
    monkeypatch.setattr(
        prepare_dataset, "process", lambda *job: [again.append(job[1]), prepare(*job)]
    )
    run_main(corpus / "raw", tmp_path / "out", *OPTIONS)
    assert set(done) & set(again) == {done[2]}
    assert contents(tmp_path / "out") == contents(corpus / "prepared")


# Bad input


@pytest.fixture
def refused(capsys):
    """Run the command line, which must refuse; returns the one line it says."""

    def run(*args, **kwargs):
        with pytest.raises(SystemExit) as refusal:
            run_main(*args, **kwargs)
        assert refusal.value.code == 2
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err.count("\n") == 1
        assert output.err.startswith("prepare_dataset: ")
        return output.err

    return run


def test_unusable_sources(corpus, tmp_path, refused):
    assert "there is no " in refused(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "text.txt").write_text(prose(0))
    assert "intact tar archive" in refused(tmp_path / "text.txt", tmp_path / "out")
    (tmp_path / "none").mkdir()
    assert "no files in" in refused(tmp_path / "none", tmp_path / "out")
    (tmp_path / "none" / "a.txt").write_text("text")
    error = refused(tmp_path / "none", tmp_path / "out")
    assert "no usable book" in error
    assert "a.txt: no start marker" in error
    assert "--out-dir lies inside --raw" in refused(
        corpus / "raw", corpus / "raw" / "sub" / "out"
    )
    assert "'2' is not a number from 0" in refused(
        corpus / "raw", tmp_path / "x", "--val-share", 2
    )
    assert "'much' is not a number" in refused(
        corpus / "raw", tmp_path / "x", "--val-share", "much"
    )
    for mode in ("w", "w:gz", "w:xz", "w:bz2"):
        archive = tar(corpus / "raw", tmp_path / "cut.tar", mode)
        archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
        assert "intact tar archive" in refused(archive, tmp_path / f"out-{mode[2:]}")
        spoiled = bytearray(tar(corpus / "raw", archive, mode).read_bytes())
        spoiled[len(spoiled) // 2] ^= 255
        archive.write_bytes(spoiled)
        if mode != "w":  # a plain tar has no checksum of its content
            assert "intact tar archive" in refused(archive, tmp_path / f"sp-{mode[2:]}")


def test_archives_cannot_reach_out(corpus, tmp_path, monkeypatch):
    def member(name, kind=tarfile.REGTYPE, size=3, link=""):
        info = tarfile.TarInfo(name)
        info.type, info.size, info.linkname = kind, size, link
        return info

    monkeypatch.setattr(raw, "MAX_BYTES", 30_000)
    extra = [
        member("../../escape.txt"),
        member("/tmp/absolute.txt"),
        member("link.txt", tarfile.SYMTYPE, 0, "/etc/passwd"),
        member("hard.txt", tarfile.LNKTYPE, 0, "some/folder/tale-1.txt"),
        member("pipe", tarfile.FIFOTYPE, 0),
        member("bomb.txt", size=30_001),
        member("folder", tarfile.DIRTYPE, 0),
        member("odd \udcff name\n.txt"),
    ]
    archive = tar(corpus / "raw", tmp_path / "a.tar", "w", extra=extra)
    (tmp_path / "in").mkdir()
    run_main(archive, tmp_path / "in" / "out", *OPTIONS)
    manifest = read_manifest(tmp_path / "in" / "out")
    reasons = {book["file"]: book["reason"] for book in manifest["dropped"]}
    assert reasons["escape.txt"] == "no start marker"
    assert reasons["tmp/absolute.txt"] == "no start marker"
    assert reasons["bomb.txt"].startswith("larger than ")
    for name in ("link.txt", "hard.txt", "pipe"):
        assert reasons[name] == "link or special file"
    assert "odd ? name\n.txt" in reasons
    assert "folder" not in reasons
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar", "in"}
    assert {path.name for path in (tmp_path / "in").iterdir()} == {"out"}
    books = [book["file"] for book in manifest["books"]]
    assert books[0] == "some/folder/sub/collection.txt"


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="needs links")
def test_links_in_a_folder_are_not_followed(tmp_path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "a.txt").write_text(book(fill(prose(1))))
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "b.txt").write_text(book(fill(prose(2))))
    (tmp_path / "raw" / "folder").symlink_to(tmp_path / "secret")
    (tmp_path / "raw" / "a.txt").symlink_to(tmp_path / "secret" / "a.txt")
    (tmp_path / "raw" / "dangling.txt").symlink_to(tmp_path / "nowhere")
    run_main(tmp_path / "raw", tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    assert [book["file"] for book in manifest["books"]] == ["b.txt"]
    assert manifest["dropped"] == []


def test_what_cannot_be_read(corpus, tmp_path, monkeypatch, refused):
    """A file is left out and named; a folder might hold anything."""
    scandir = os.scandir

    def no_entry(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", no_entry)
        assert re.search(
            "cannot use .*sub: Permission denied",
            refused(corpus / "raw", tmp_path / "x"),
        )

    read_bytes = Path.read_bytes

    def fail(path):
        if path.name == "tale-0.txt":
            raise PermissionError(13, "Permission denied")
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", fail)
    run_main(corpus / "raw", tmp_path / "out", *OPTIONS)
    dropped = read_manifest(tmp_path / "out")["dropped"]
    assert {
        "file": "tale-0.txt",
        "reason": "cannot be read: Permission denied",
    } in dropped


def test_a_folder_that_is_in_use(corpus, tmp_path, refused, capsys):
    out_dir = shutil.copytree(corpus / "prepared", tmp_path / "out")
    before = contents(out_dir)
    run_main(corpus / "raw", out_dir, *OPTIONS)
    assert "is up to date" in capsys.readouterr().out
    assert contents(out_dir) == before
    assert "choose another --out-dir" in refused(corpus / "raw", out_dir)
    assert "holds data of other files" in refused(
        corpus / "raw" / "sub", out_dir, *OPTIONS
    )
    assert contents(out_dir) == before
    run_main(corpus / "raw" / "sub", out_dir, "--force")
    capsys.readouterr()
    assert set(contents(out_dir)) == {"manifest.json", "train-0000.bin"}
    with open(out_dir / "train-0000.bin", "r+b") as file:
        file.write(b"xx")
    assert "train-0000.bin was altered" in refused(corpus / "raw" / "sub", out_dir)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train-0000.bin").write_text("mine")
    assert "holds other files" in refused(corpus / "raw", tmp_path / "mine")
    assert (tmp_path / "mine" / "train-0000.bin").read_text() == "mine"
    (tmp_path / "file").touch()
    assert f"cannot use {tmp_path / 'file'}" in refused(
        corpus / "raw", tmp_path / "file"
    )


def test_a_full_disk(corpus, tmp_path, monkeypatch, refused):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        assert "No space left" in refused(corpus / "raw", tmp_path / "out")
    run_main(corpus / "raw", tmp_path / "out", *OPTIONS)
    assert contents(tmp_path / "out") == contents(corpus / "prepared")


def test_damaged_shards_are_named(corpus, tmp_path):
    def damaged(file, change):
        folder = tmp_path / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(corpus / "prepared", folder)
        change(folder / file)
        with pytest.raises(InputError) as refusal:
            TokenShards(folder, "train")
        assert file in str(refusal.value)
        assert "\n" not in str(refusal.value)
        return str(refusal.value)

    def cut(path):
        path.write_bytes(path.read_bytes()[:-2])

    def alter(path):
        content = bytearray(path.read_bytes())
        content[100] ^= 1
        path.write_bytes(content)

    def rewrite(**changes):
        def change(path):
            manifest = json.loads(path.read_text("utf-8")) | changes
            path.write_text(json.dumps(manifest), "utf-8")

        return change

    assert "is missing" in damaged("train-0001.bin", Path.unlink)
    assert "bytes, not" in damaged("train-0001.bin", cut)
    assert "was altered" in damaged("train-0001.bin", alter)
    assert "damaged" in damaged("manifest.json", cut)
    assert "damaged" in damaged("manifest.json", lambda path: path.write_bytes(b"\xff"))
    assert "damaged" in damaged("manifest.json", lambda path: path.write_text("[]"))
    assert "format 9" in damaged("manifest.json", rewrite(format_version=9))
    assert "no usable entry" in damaged("manifest.json", rewrite(splits={}))
    assert "no usable entry" in damaged("manifest.json", rewrite(splits={"train": 3}))
    splits = read_manifest(corpus / "prepared")["splits"]
    splits["train"]["shards"].pop()
    assert "shards of 'train' hold" in damaged("manifest.json", rewrite(splits=splits))
    # Unless it is asked to look, it does not notice what is altered
    shutil.rmtree(tmp_path / "damaged")
    shutil.copytree(corpus / "prepared", tmp_path / "damaged")
    alter(tmp_path / "damaged" / "train-0000.bin")
    TokenShards(tmp_path / "damaged", "train", verify=False)
    # What stands in a manifest is no way out of the folder
    splits = read_manifest(corpus / "prepared")["splits"]
    splits["train"]["shards"][0]["file"] = "../../train-0000.bin"
    rewrite(splits=splits)(tmp_path / "damaged" / "manifest.json")
    with pytest.raises(InputError, match=r"damaged.train-0000.bin was altered"):
        TokenShards(tmp_path / "damaged", "train")
    with pytest.raises(InputError, match="holds no prepared data"):
        TokenShards(tmp_path, "train")
    with pytest.raises(InputError, match="no usable entry"):
        TokenShards(corpus / "prepared", "test")


def test_the_sample(tmp_path, capsys):
    """A poem and two tales are kept, and nothing of the format is left in them."""
    run_main(SAMPLE, tmp_path / "out", "--val-share", 0.3)
    output = capsys.readouterr().out
    assert re.search(r"Kept +3 books, 4 files left out", output)
    for reason in ("near-duplicate", "language", "no start marker"):
        assert reason in output
    manifest = read_manifest(tmp_path / "out")
    books = {book["file"]: book["split"] for book in manifest["books"]}
    assert books == {
        "songs-of-the-weather-station.txt": "train",
        "the-clerk-of-the-tides.txt": "val",
        "the-map-of-forty-one-lamps.txt": "train",
    }
    texts = {
        book["file"]: text
        for split in ("train", "val")
        for book, text in TokenShards(tmp_path / "out", split).texts()
    }
    for text in texts.values():
        assert not re.search(r"gutenberg|produced by|prepared by|[\[\]_{}]", text, re.I)
    assert "£40" in texts["the-clerk-of-the-tides.txt"]
    assert "Renée" in texts["the-clerk-of-the-tides.txt"]
    assert "stands:\n  The night has" in texts["songs-of-the-weather-station.txt"]
    assert "says the ferry-man" not in texts["the-map-of-forty-one-lamps.txt"]
    assert sum(path.stat().st_size for path in SAMPLE.iterdir()) < 40_000
    run_main(SAMPLE, tmp_path / "default")
    assert "No book is for val: try another --val-share" in capsys.readouterr().out
    with pytest.raises(InputError, match="no book in the split 'val'"):
        TokenShards(tmp_path / "default", "val")
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "goes on where it was" in " ".join(capsys.readouterr().out.split())
