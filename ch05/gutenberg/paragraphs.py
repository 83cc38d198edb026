"""Lines to paragraphs: undoes the line breaks of a wrapped text, and only those.

Project Gutenberg's files are broken at about 70 characters. In prose these breaks mean
nothing, in verse, tables and lists they are part of the text. Nothing marks which is
which: what tells them apart is how full the lines are, how they begin and end, and
their margins.
"""

import re
from itertools import pairwise


def blocks(text):
    """Paragraphs as (empty lines before it, its lines), a list."""
    found, gap, lines = [], 0, []
    for line in text.split("\n"):
        line = line.rstrip()
        if line:
            lines.append(line)
        elif lines:
            found.append((gap, lines))
            gap, lines = 1, []
        else:
            gap += 1
    if lines:
        found.append((gap, lines))
    return found


def unwrap(paragraphs):
    """Paragraphs (lists of lines) to the text of the book.

    A wrapped paragraph becomes one line. Verse, tables, lists and letter heads keep
    their lines. A paragraph that a picture or a page number had split is put together
    again.
    """
    lengths = sorted(
        max(map(len, lines))
        for lines in paragraphs
        if len(lines) > 3 and not lines[1].startswith(" ")
    )
    width = lengths[len(lengths) // 2] if lengths else 70
    everything = " ".join(map(" ".join, paragraphs)).lower().replace("--", " ")
    words = set(re.findall(r"[\w-]+", everything))
    texts, is_open = [], False
    for lines in paragraphs:
        text, is_prose = reflow(lines, width, words)
        if is_open and is_prose and text[0].islower():
            texts[-1].append(text)
        else:
            texts.append([text])
        ends = text[-1] not in ",;-" and not text[-1].isalpha()
        is_open = is_prose and not ends and len(text) > width
    return "\n\n".join(
        join(parts, words) if len(parts) > 1 else parts[0] for parts in texts
    )


def reflow(lines, width, words):
    """One paragraph: (text, whether it is prose and nothing else)."""
    parts = split_at_margins(lines, width)
    units = []  # (margin, text, last line as it was, is a whole paragraph)
    for part in parts:
        if len(part) > 1 and is_wrapped(part, width, len(parts) == 1):
            text = join(part, words)
            units.append((margin(part[0]), text, part[-1], True))
            continue
        for line in part:
            word = line.split()[0]
            if units and begins_small(line) and is_full(units[-1][2], word, width):
                # Also verse goes on in the next line if it is too long for one
                left, text, _, whole = units.pop()
                units.append((left, join([text, line], words), line, whole))
            else:
                text = re.sub(r"(?<=\S) {3,}", "  ", line.strip())
                units.append((margin(line), text, line, False))
    if len(units) == 1:
        return " ".join(units[0][1].split()), True
    centred = all(
        abs(2 * margin(line) + len(line.strip()) - width) < 8 and margin(line)
        for line in lines
    )
    least = min(left for left, *_ in units)
    text = ""
    for i, (left, line, _, whole) in enumerate(units):
        if i:
            text += "\n\n" if whole and units[i - 1][3] else "\n"
        # More than four blanks would say nothing more, and each is a token
        text += " " * (0 if centred or whole else min(left - least, 4)) + line
    return text, False


def margin(line):
    """Number of blanks before a line's first character."""
    return len(line) - len(line.lstrip())


def is_full(line, next_word, width):
    """Whether the next word would not have fitted on this line."""
    return len(line) + 1 + len(next_word) >= width - 3


def begins_small(line):
    """Whether the first letter is a small one, as inside a sentence."""
    return line.lstrip(" '\"“‘(—-")[:1].islower()


def split_at_margins(lines, width):
    """The lines in groups of an even margin, the first line of prose aside."""
    parts = [[lines[0]]]
    for before, line in pairwise(lines):
        even = abs(margin(line) - margin(before)) < 2
        opens = is_full(before, line.split()[0], width) or (
            begins_small(line) and len(before) > 0.7 * width
        )
        if even or (opens and len(parts[-1]) == 1):
            parts[-1].append(line)
        else:
            parts.append([line])
    return parts


def is_wrapped(lines, width, alone):
    """Whether lines of an even margin are prose, broken to fit a width.

    Then either the next line's first word would not have fitted, or most lines begin
    with a small letter, which those of verse do not. alone: nothing else stands in
    the paragraph.
    """
    n = len(lines) - 1
    small = sum(map(begins_small, lines[1:]))
    if sum("   " in line.strip() for line in lines) > n / 2 > small:
        return False  # a table
    full = sum(
        is_full(line, after.split()[0], width) for line, after in pairwise(lines)
    )
    stops = sum(line[-1] in ",;:.!?—'\"’”" for line in lines[:-1])
    if not (small or (alone and n == 1)) and stops >= 0.5 * n:
        return False  # verse in long lines
    long = sum(map(len, lines[:-1])) > 0.55 * width * n
    return full > 0.8 * n or (long and small >= 0.5 * n)


DASHES = ("--", "—")


def join(lines, words):
    """Lines of prose as one line; words: those of the whole book.

    A hyphen at a line's end belongs to the word, unless the book elsewhere writes it
    without one and never with it.
    """
    pieces = [""]
    for line in lines:
        line = " ".join(line.split())
        before = pieces[-1]
        if before.endswith("-") and before[-2:-1].isalnum():
            left = re.search(r"\w*-$", before[-40:])[0].lower()
            right = re.match(r"\w*", line)[0].lower()
            if left[:-1] + right in words and left + right not in words:
                pieces[-1] = before[:-1]
        elif before and not (before.endswith(DASHES) or line.startswith(DASHES)):
            pieces.append(" ")
        pieces.append(line)
    return "".join(pieces)
