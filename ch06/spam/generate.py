"""Write `spam.tsv`: handwritten messages and generated ones, mixed.

The wordings are data (`wordings/`, `handwritten.tsv`). This file has them spelled as
people do, refuses what is too much like a message it has, and writes all in random
order, byte for byte the same on every run:

    python -m ch06.spam.generate
"""

import os
import random
import re
from collections import Counter, defaultdict
from pathlib import Path

from ch02.cli import InputError, Parser, exit_on_input_error
from ch06.spam.grammar import expand, read_wordings
from ch06.spam.spelling import spell

FOLDER = Path(__file__).parent
SEED = 6
MAX_LENGTH = 300  # characters
# Two messages are near-duplicates if they share more than this of their word triples,
# as a share of the one that has fewer; of two very short ones, of all their triples
MAX_SHARED = 0.4
VERY_SHORT = 4  # triples
# Five words in a row may stand in at most so many messages
MAX_RUN = 8


def words_of(text):
    """What comparing looks at: lower case, every number a 0, no punctuation."""
    text = re.sub(r"['’]", "", text.lower())
    return re.findall(r"[^\W\d_]+|0", re.sub(r"\d+", "0", text))


def runs_of(text, length):
    """All runs of so many words, each once."""
    words = words_of(text)
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}


def letters_of(text):
    """The text without digits, punctuation, spaces and capitals: no two are equal."""
    return "".join(char for char in text.lower() if char.isalpha()) or text


class Collection:
    """Messages so far, and what a new one is refused for."""

    def __init__(self):
        self.triples = []  # a set for each message
        self.holders = defaultdict(list)  # triple -> its messages
        self.letters = set()
        self.runs = Counter()

    def closest(self, text):
        """The largest share of word triples held in common, and with which message."""
        triples = runs_of(text, 3)
        common = Counter(i for triple in triples for i in self.holders[triple])
        best = (0.0, None)
        for i, count in common.items():
            smaller = min(len(triples), len(self.triples[i]))
            union = len(triples) + len(self.triples[i]) - count
            share = count / (smaller if smaller >= VERY_SHORT else union)
            best = max(best, (share, i))
        return best

    def accepts(self, text):
        """No duplicate, no near-duplicate, no run of words that is used up."""
        return (
            letters_of(text) not in self.letters
            and all(self.runs[run] < MAX_RUN for run in runs_of(text, 5))
            and self.closest(text)[0] <= MAX_SHARED
        )

    def add(self, text):
        triples = runs_of(text, 3)
        for triple in triples:
            self.holders[triple].append(len(self.triples))
        self.triples.append(triples)
        self.letters.add(letters_of(text))
        self.runs.update(runs_of(text, 5))


def handwritten():
    """Label and text of every message that somebody wrote out."""
    lines = (FOLDER / "handwritten.tsv").read_text("utf-8").splitlines()
    return [tuple(line.split("\t")) for line in lines]


def generated(careful, spelled):
    """Label and text from the grammar, compared as meant and as spelled.

    Two messages that differ in typing mistakes alone are equal as they were meant.
    """
    for intent in read_wordings():
        # A stream for each intent: more wordings of one leave the others as they were
        rng = random.Random(f"{SEED} {intent.label} {intent.name}")
        found = 0
        for _ in range(300 * intent.count):
            if found == intent.count:
                break
            meant = expand(intent, rng)
            text = spell(meant, intent.register, rng)
            if not 3 <= len(text) <= MAX_LENGTH:
                continue
            if careful.accepts(meant) and spelled.accepts(text):
                careful.add(meant)
                spelled.add(text)
                found += 1
                yield intent.label, text
        else:
            raise InputError(
                f"{intent.label} [{intent.name}]: its wordings give {found} messages, "
                f"not {intent.count}; write more of them or ask for fewer"
            )


def build():
    """All messages in their final order, as pairs of label and text."""
    careful, spelled = Collection(), Collection()
    messages = handwritten()
    for _, text in messages:
        if not spelled.accepts(text):
            raise InputError(f"handwritten.tsv: too much like another one: {text!r}")
        careful.add(text)
        spelled.add(text)
    messages += generated(careful, spelled)
    random.Random(SEED).shuffle(messages)
    return messages


def main(argv=None):
    """The command line: writes the file, prints how many messages it holds."""
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=FOLDER / "spam.tsv")
    path = parser.parse_args(argv).out
    with exit_on_input_error(parser.prog):
        if not path.parent.is_dir():
            raise InputError(f"no folder {path.parent}: make it, or give another --out")
        write(path, build())


def write(path, messages):
    """One line a message, label, tab, text; prints the counts."""
    unfinished = path.with_name(path.name + ".tmp")
    lines = "".join(f"{label}\t{text}\n" for label, text in messages)
    unfinished.write_text(lines, "utf-8", newline="\n")
    os.replace(unfinished, path)
    spam = sum(label == "spam" for label, _ in messages)
    print(f"{len(messages)} messages, {spam} of them spam: {path.name}")


if __name__ == "__main__":
    main()
