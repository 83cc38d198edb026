"""Careful English becomes a text message: small letters, short forms, slips, shouting.

Who writes decides (`HABITS`), never whether it is spam: both classes pass through here
in the same way.
"""

import re

# For each register, the share of messages with each habit; machines make fewer slips
HABITS = {
    "person": {
        "lower": 0.35,
        "short": 0.3,
        "bare": 0.3,
        "open_end": 0.5,
        "typo": 0.25,
        "shout": 0.06,
        "loud": 0.15,
        "dots": 0.07,
    },
    "work": {
        "lower": 0.1,
        "short": 0.1,
        "bare": 0.15,
        "open_end": 0.3,
        "typo": 0.15,
        "shout": 0.03,
        "loud": 0.05,
        "dots": 0.03,
    },
    "auto": {
        "lower": 0.04,
        "short": 0.07,
        "bare": 0.1,
        "open_end": 0.2,
        "typo": 0.08,
        "shout": 0.12,
        "loud": 0.08,
        "dots": 0.02,
    },
}
SHORT = {
    "about": "abt",
    "account": "acct",
    "and": "&",
    "appointment": "appt",
    "are": "r",
    "back": "bk",
    "because": "cos",
    "before": "b4",
    "between": "btwn",
    "birthday": "bday",
    "cannot": "cant",
    "could": "cud",
    "for": "4",
    "going": "goin",
    "good": "gud",
    "have": "hv",
    "hours": "hrs",
    "just": "jus",
    "kilos": "kg",
    "know": "kno",
    "love": "luv",
    "message": "msg",
    "minutes": "mins",
    "morning": "mornin",
    "number": "no.",
    "okay": "ok",
    "people": "ppl",
    "photo": "pic",
    "please": "pls",
    "probably": "prob",
    "really": "rly",
    "received": "rcvd",
    "see": "c",
    "should": "shud",
    "someone": "sum1",
    "something": "smth",
    "text": "txt",
    "thanks": "thx",
    "that": "dat",
    "the": "d",
    "though": "tho",
    "through": "thru",
    "to": "2",
    "tomorrow": "tmrw",
    "tonight": "2nite",
    "week": "wk",
    "weekend": "wkend",
    "what": "wat",
    "why": "y",
    "with": "w/",
    "years": "yrs",
    "you": "u",
    "you're": "ur",
    "your": "ur",
}
# Short forms that only some people use, one writer rarely all of them
RARE = {"to", "for", "the", "that", "with", "have", "see", "number", "what", "why"}
# The key to the right of each letter, or to the left at the edge
NEIGHBOURS = {
    letter: row[i + 1] if i + 1 < len(row) else row[i - 1]
    for row in ("qwertyuiop", "asdfghjkl", "zxcvbnm")
    for i, letter in enumerate(row)
}


def spell(text, register, rng):
    """The text as one writer of the register would type it."""
    habits = HABITS[register]
    has = {habit: rng.random() < share for habit, share in habits.items()}
    if has["short"]:
        text = shorten(text, rng)
    if has["typo"]:
        for _ in range(rng.choice([1, 1, 1, 2, 3]) if len(text) > 60 else 1):
            text = slip(text, rng)
    if has["bare"]:
        text = re.sub(r"(?<=\w)['’](?=\w)", "", text)
        text = re.sub(r",(?= )", "", text)
    if has["open_end"]:
        text = text.removesuffix(".")
    if has["loud"]:
        text = re.sub(r"!", lambda m: "!" * rng.randint(1, 3), text, count=2)
        text = re.sub(r"(?<=\w)\.$", "!" * rng.choice([1, 1, 2]), text)
    if has["dots"]:
        text = re.sub(r"(?<=\w\w)\. (?=\w)", rng.choice(["... ", "..", " - "]), text)
    if has["lower"]:
        return text.lower()
    if has["shout"]:
        text = shout(text, rng)
    return text


def words(text, wanted):
    """Where plain words stand: nothing with a digit, no part of a link."""
    return [
        m.span(1) for m in re.finditer(rf"(?<!\S)({wanted})(?=[.,!?:]*(?:\s|$))", text)
    ]


def shorten(text, rng):
    """Short forms for a good part of the words that have one."""
    dialect = {w for w in sorted(SHORT) if w not in RARE or rng.random() < 0.1}

    def short(match):
        word = match[0]
        if word.lower() not in dialect or rng.random() < 0.25:
            return word
        return SHORT[word.lower()]

    return re.sub(r"(?<![\w/.'-])[A-Za-z']+(?![\w/'-]|\.\w)", short, text)


def slip(text, rng):
    """One typing mistake in a longer word: a letter swapped, lost, doubled or off."""
    places = words(text, r"[a-z]{4,}")
    if not places:
        return text
    start, end = rng.choice(places)
    i = rng.randrange(start + 1, end - 1)
    kind = rng.choice(["swap", "lose", "double", "miss"])
    new = {
        "swap": text[i + 1] + text[i],
        "lose": text[i + 1],
        "double": text[i] * 2 + text[i + 1],
        "miss": NEIGHBOURS.get(text[i], text[i]) + text[i + 1],
    }[kind]
    return text[:i] + new + text[i + 2 :]


def shout(text, rng):
    """One word in capitals, now and then all of them."""
    if rng.random() < 0.2:
        return re.sub(
            r"\S+", lambda m: m[0] if "." in m[0][1:-1] else m[0].upper(), text
        )
    places = words(text, r"[A-Za-z]{3,}")
    if not places:
        return text
    start, end = rng.choice(places)
    return text[:start] + text[start:end].upper() + text[end:]
