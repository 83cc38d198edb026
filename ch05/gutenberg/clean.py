"""One Project Gutenberg file in, the bare text of an English book out.

Pure functions from bytes to text: no files, no clock, nothing random. `clean_book` does
all steps; a file that holds no usable English book raises `Dropped` with the reason.
Poems, tables and lists keep their lines; paragraphs become one line each. Spelling and
punctuation stay as they are: straight and curly quotes, American and British words.
"""

import codecs
import html
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass

from ch05.gutenberg.paragraphs import blocks, unwrap

MIN_CHARACTERS = 1000
FREQUENT = (
    "the and of to that with his it which you she he they this from have my be at"
)
ENGLISH = frozenset(FREQUENT.split())


class Dropped(Exception):
    """This file is left out of the corpus; the message says why."""


@dataclass(frozen=True)
class Book:
    """A cleaned book; title and author are "" where the header names none."""

    title: str
    author: str
    text: str


def clean_book(raw):
    """Bytes of a file to a Book. Raises Dropped if there is no English book in it."""
    text = decode(raw)
    header, body = split_licence(text)
    language = field(header, "Language")
    if language and "english" not in language.lower():
        raise Dropped(f"language: {language}")
    if "</p>" in body:
        raise Dropped("HTML, not plain text")
    body = unwrap(drop_notes(blocks(remove_tags(body))))
    check_text(body)
    title, author = field(header, "Title"), field(header, "Author", ", ")
    if not title and (old := OLD_TITLE.search(header)):
        title, author = " ".join(old[1].split()), " ".join(old[2].split())
    return Book(title, author, body)


# From bytes to characters

DECLARED = re.compile(
    rb"(?i)character set encoding:\s*"
    rb"((?:iso-?8859-?|latin-?|cp-?|windows-?)\d+|mac-?roman)\s"
)
LATIN_1 = re.compile(r"(?:iso-?8859-?|latin-?)1", re.I)
# UTF-8 that was read as CP1252: only what no English text contains on purpose
HIGH = "\x80-\xbf" + bytes(range(0x80, 0xA0)).decode("cp1252", errors="ignore")
MOJIBAKE = re.compile(f"Ã[{HIGH}]|Â[\xa0-\xbf]|â€[{HIGH}]")
ENTITY = re.compile(r"&(?:#\d{2,4}|[a-zA-Z]{2,8});")


def decode(raw):
    """Bytes in any encoding that Project Gutenberg has used, to text with \\n ends.

    UTF-8 and UTF-16 with or without a mark, what the header declares, else CP1252.
    Text that was encoded twice is repaired. Raises Dropped for empty and binary files.
    """
    if not raw.strip(b"\0 \t\r\n"):
        raise Dropped("empty")
    encodings = ["utf-8-sig"]
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encodings = ["utf-16"]
    elif raw[1::2].count(0) > len(raw) // 3:
        encodings = ["utf-16-le"]
    elif raw[::2].count(0) > len(raw) // 3:
        encodings = ["utf-16-be"]
    elif b"\0" in raw:
        raise Dropped("binary file")
    elif declared := DECLARED.search(raw):
        encodings.append(declared[1].decode())
    # What calls itself Latin-1 may use the places that CP1252 has beyond it
    encodings = [name for name in encodings if not LATIN_1.fullmatch(name)]
    for encoding in (*encodings, "cp1252", "latin-1"):
        try:
            text = raw.decode(encoding)
            break
        except (UnicodeDecodeError, LookupError):
            pass
    text = MOJIBAKE.sub(_undo_mojibake, text)
    for line_end in ("\r\r\n", "\r\n", "\r", "\v", "\f", "\x85", "\u2028", "\u2029"):
        text = text.replace(line_end, "\n")
    text = ENTITY.sub(lambda entity: html.unescape(entity[0]), text)
    text = re.sub("[\xa0\u2000-\u200a\u202f\u205f\u3000]", " ", text)
    text = re.sub("[\xad\u200b\u200c\u200d\u2060\ufeff]", "", text).expandtabs()
    text = "\n".join(line.rstrip(" ") for line in text.split("\n"))
    controls = re.compile("[\0-\x09\x0b-\x1f\x7f-\x9f\ufffd]")
    if len(controls.findall(text)) > len(text) / 200:
        raise Dropped("binary file")
    return unicodedata.normalize("NFC", controls.sub("", text))


def _undo_mojibake(match):
    # Python's cp1252 leaves five bytes out, which Windows maps to control characters
    codes = ("latin-1" if char <= "\xff" else "cp1252" for char in match[0])
    return b"".join(map(str.encode, match[0], codes)).decode()


# The licence around the book

START = re.compile(
    r"\*\*\* ?START OF (?:TH(?:E|IS) )?PROJECT GUTENBERG(?:[^*\n]|\n(?! *\n))*\**", re.I
)
END = re.compile(r"\*\*\* ?END OF (?:TH(?:E|IS) )?PROJECT GUTENBERG", re.I)
# Before about 2003 the licence stood first and ended so; nothing marked the book's end
OLD_START = re.compile(r"^\**END ?\** ?THE SMALL PRINT!.*$", re.M | re.I)
OLD_TITLE = re.compile(
    r"Project Gutenberg E-?(?:text|book),? (?:of )?"
    r"([^\n]+?(?:\n[^\n]+?)?),?\s+by ([^\n*]+)",
    re.I,
)
OLD_END = re.compile(
    r"^\W*(?:End (?:of )?(?:the |this )?)?Project Gutenberg", re.M | re.I
)


def split_licence(text):
    """(header, body) of a file. Raises Dropped without a start and an end marker."""
    start = START.search(text) or OLD_START.search(text)
    if not start:
        raise Dropped("no start marker")
    end = END.search(text, start.end()) or OLD_END.search(
        text, (start.end() + len(text)) // 2
    )
    if not end:
        raise Dropped("no end marker")
    return text[: start.start()], text[start.end() : end.start()]


def field(header, name, joint=" "):
    """What the header says after "Title:" and the like; its lines joined, or ""."""
    match = re.search(rf"^{name}:([^\n]*(?:\n +\S[^\n]*)*)", header, re.M | re.I)
    lines = match[1].split("\n") if match else []
    return joint.join(" ".join(line.split()) for line in lines)


def check_text(text):
    """Raise Dropped unless this is an English text of some length."""
    if len(text) < MIN_CHARACTERS:
        raise Dropped(f"shorter than {MIN_CHARACTERS} characters")
    words = re.findall(r"[^\W\d_]+", text.lower())
    if sum(map(len, words)) < 0.8 * sum(map(len, text.split())):
        raise Dropped("more figures and signs than a text has")
    # Far more in English, in plays and dialect too; far less in other languages
    if sum(map(ENGLISH.__contains__, words)) < 0.1 * len(words):
        raise Dropped("the text is not English")


# What transcribers added

TAGS = re.compile(
    r"\[ *(?:Illustrat(?:ion|or)s?|Frontispiece|Picture|Image|Map|Music|Footnote"
    r"|Endnote|Sidenote|Blank Page|Decoration|(?:Transcriber|Redactor)['’]?s?|TN"
    r"|Note \d+)\b"
    r"(?:[^\[\]]++|\[[^\[\]]*+\]){0,200}+\]|\[[^\[\]\n]{1,60}\.(?:jpe?g|png|gif)\]",
    re.I,
)
LABEL = r"[\[{](?:\d{1,3}[a-z]?|[A-Z]|\*+|†)[\]}]"
NOTE_TEXT = re.compile(
    rf"(?<=\n\n) *(?:({LABEL}) *\S|Footnote \d+:\s*\S).*(?:\n.*\S.*)*"
)
PAGE = re.compile(
    r" ?(?<!_)(?:\[(?:Pg\.? |Page |p\. ?)?\d{1,3}[a-z]?\]|\{(?:p\. ?)?\d{1,3}[a-z]?\}"
    r"|\{[ivxlc]{1,7}\})|(?<=\S)(?:\[[A-Z]\]| ?\[(?:\*+|†)\])"
)


def remove_tags(text):
    """Take out illustrations, notes and page numbers in brackets, boxes, rules, markup.

    A note under the text goes with its mark: a paragraph that begins with [7], if [7]
    stands elsewhere too. Underscores stood for italics; they are no part of the
    book, and a model would only learn to scatter them. Runs of them are blanks to be
    filled in and stay.
    """
    text = TAGS.sub("", text)
    marks = Counter(re.findall(LABEL, text))
    text = NOTE_TEXT.sub(
        lambda note: note[0] if note[1] and marks[note[1]] < 2 else "", text
    )
    text = PAGE.sub("", text)
    text = re.sub(r"\[Greek: ([^\[\]]*)\]", r"\1", text)
    text = re.sub(r"(?<!\S)=(\w[^=]{,300})=(?!\w)", r"\1", text)
    text = re.sub("(?<!_)_(?!_)", "", text)
    text = re.sub(r"(?m)^ *(?:[+|][-=_ ]+[+|]|[-=_~]{5,}) *$", "", text)
    text = re.sub(r"(?m)^ *\|(.*)\| *$", r"\1", text)
    text = re.sub(r"(?im)^ *footnotes?[:.]? *$", "", text)
    return re.sub(r"(?m)^ *(?:\* *){3,}$", "* * *", text)


CREDIT = re.compile(
    r"\W*(?:This )?(?:E-?text|E-?book|file|HTML|Text file|Digiti[sz]ed|Scanned|Produced"
    r"|Prepared|Transcribed|Proofread|Typed)\b.{0,60}?\b(?:by|from)\b",
    re.I | re.S,
)
NOTE = re.compile(
    r"\W*(?:Original )?(?:Transcriber|Redactor)['’]?s?['’]? *"
    r"(?:(?:end)?notes?|changes)\b",
    re.I,
)
# Nobody wrote these before 1971. The blanks tell an ebook from a notebook
MODERN = (
    "project gutenberg",
    "distributed proofread",
    "internet archive",
    "pgdp.net",
    "http://",
    "https://",
    "www.",
    " ebook",
    " e-book",
    " etext",
    " e-text",
    " html ",
)


def drop_notes(paragraphs):
    """Leave out credits, transcribers' notes and what speaks of Project Gutenberg.

    A note at the beginning goes on until a gap of two lines, one near the end until the
    end of the book.
    """
    kept, in_note, n = [], False, len(paragraphs)
    for i, (gap, lines) in enumerate(paragraphs):
        text = "\n".join(lines)
        near_start, near_end = i < 40, i > 0.9 * n
        if NOTE.match(text):
            if near_end:
                break
            in_note, said = near_start, len(lines) > 1
        elif in_note and (gap < 2 or not said):
            said = True
        else:
            in_note = False
            credit = (i < 12 or near_end) and CREDIT.match(text)
            flat = f" {' '.join(text.lower().split())} "
            if not credit and not any(word in flat for word in MODERN):
                kept.append(lines)
    return kept
