"""Messages from a grammar: reads `wordings/*.txt`, expands one intent at a time.

    [late] person 90             intent, register, how many messages; rules follow plans
        {hey?} {why}, {eta}.     a plan: `{rule}`, `{rule?}` (or not), `{this|that}`
    why = the bus broke down | traffic is {bad|awful}
    eta := ten minutes | one     `:=` draws once a message: the same wherever it stands
Rules above all intents hold for the whole file; `{price}` etc. are from `amounts.py`.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from ch02.cli import InputError
from ch06.spam.amounts import NUMBERS, Place

WORDINGS = Path(__file__).parent / "wordings"
BRACES = re.compile(r"\{([^{}]*)\}")


@dataclass
class Rule:
    """Alternative wordings; `once`: one draw holds for the whole message."""

    once: bool
    wordings: list[str] = field(default_factory=list)


@dataclass
class Intent:
    """What somebody wants to say: plans of whole messages, and rules of its own."""

    label: str
    name: str
    register: str
    count: int
    plans: list[str] = field(default_factory=list)
    rules: dict[str, Rule] = field(default_factory=dict)


def read_wordings():
    """The intents of both labels, in the order of the files."""
    _, shared = _read("common", {})
    return [i for label in ("ham", "spam") for i in _read(label, shared)[0]]


def _read(name, shared):
    """The intents of one file, and the rules above the first of them."""
    intents, above, rule = [], dict(shared), None
    rules = above
    lines = (WORDINGS / f"{name}.txt").read_text("utf-8").splitlines()
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        if head := re.fullmatch(r"\[(\w+)\] (\w+) (\d+)", line):
            rules = dict(above)
            intents.append(Intent(name, head[1], head[2], int(head[3]), [], rules))
        elif head := re.fullmatch(r"(\w+) (:?=) (.*)", line):
            if head[1] in NUMBERS:
                raise InputError(f"{name}.txt: {head[1]} is a number, not a rule")
            rule = rules[head[1]] = Rule(head[2] == ":=")
            rule.wordings += _alternatives(head[3])
        elif line.lstrip().startswith("| "):
            rule.wordings += _alternatives(line.strip().removeprefix("| "))
        elif line.startswith("    "):
            intents[-1].plans.append(line.strip())
        else:
            raise InputError(f"{name}.txt: what is {line!r}?")
    return intents, above


def _alternatives(text):
    """Split at the bars outside braces; an empty piece stands for saying nothing."""
    pieces, depth = [""], 0
    for char in text:
        depth += (char == "{") - (char == "}")
        if char == "|" and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += char
    return [piece.strip() for piece in pieces]


def expand(intent, rng):
    """One message of the intent, in careful spelling."""
    place, drawn, used = Place(rng), {}, set()

    def choose(match):
        inner = match[1]
        if "|" in inner:
            return rng.choice(inner.split("|"))
        name = inner.removesuffix("?")
        if name != inner and rng.random() < 0.5:
            return ""
        if name not in intent.rules:
            return NUMBERS[name](place)
        rule = intent.rules[name]
        if rule.once and name in drawn:
            return drawn[name]
        # Nobody says the same twice in one message
        fresh = [w for w in rule.wordings if (name, w) not in used] or rule.wordings
        wording = rng.choice(fresh)
        used.add((name, wording))
        if rule.once:
            drawn[name] = fill(wording)
            return drawn[name]
        return wording

    def fill(text):
        while BRACES.search(text):
            text = BRACES.sub(choose, text)
        return text

    return tidy(fill(rng.choice(intent.plans)))


def tidy(text):
    """Mend what joining pieces leaves: spaces, stops, capitals, `a` before a vowel."""
    text = re.sub(r"\s+", " ", text).strip(" ,")
    text = re.sub(r" ([.,!?;:](?!\w|[)(/]))", r"\1", text)
    text = re.sub(r"([,.;!?])(?:,|(?<=[!?])\.)(?!\w)", r"\1", text)
    text = re.sub(r"\b([Aa]) (?=[aeioAEIO](?!ne\b|nce\b|uro))", r"\1n ", text)
    return re.sub(
        r"(^|[.!?] )([a-z])(?!\S*\w\.\w)", lambda m: m[1] + m[2].upper(), text
    )
