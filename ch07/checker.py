"""Is a response right? What a program can say about the tasks of instruction-data.json.

`kind_of(entry)` recognises the kind of task by its wording; `check(entry, response)` is
True or False, or None where no program can judge. Answers are computed from the task
where that is possible. Case, outer quotes and a final full stop don't matter, unless
they are the task. Reading a free text for its meaning is left to a judge
(`ollama_evaluate.py`).
"""

import functools
import json
import re

from ch07.instruction_data import HANDWRITTEN, LEXICON, WORDINGS

FACTS = {question: answers for question, *answers in HANDWRITTEN["fact"]}
PRONOUNS = {name: p for p, names in LEXICON["names"].items() for name in names}
THIRD_TO_PAST = {third: past for third, past, _ in LEXICON["verbs"].values()}
PARTICIPLE = {past: participle for _, past, participle in LEXICON["verbs"].values()}
PAST = {participle: past for past, participle in PARTICIPLE.items()}

IRREGULAR_PLURALS = {
    "leaf": "leaves", "wolf": "wolves", "knife": "knives", "loaf": "loaves",
    "child": "children", "woman": "women", "foot": "feet", "tooth": "teeth",
    "mouse": "mice", "goose": "geese",
}  # fmt: skip
AN_THOUGH_CONSONANT = {"hour", "honest"}
A_THOUGH_VOWEL = {"university", "uniform"}
AUXILIARIES = {
    "is", "are", "was", "were", "can", "will", "has", "have", "should", "could",
}  # fmt: skip
CONTRACTIONS = {
    "can't": "cannot", "won't": "will not", "let's": "let us",
    "n't": " not", "'m": " am", "'re": " are", "'ve": " have", "'ll": " will",
}  # fmt: skip
ASKS = AUXILIARIES | {
    "where", "who", "what", "why", "when", "which", "whose", "how", "do", "does", "did",
}  # fmt: skip
NUMBERS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
    "ten", "eleven", "twelve",
]  # fmt: skip


@functools.cache
def patterns():
    """Return [(kind, compiled regular expression)] of all wordings."""
    found = []
    for kind, wordings in WORDINGS.items():
        for wording in wordings:
            pattern = re.escape(wording).replace(r"\{input\}", "(?P<input>.+)")
            pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>[\\w-]+)", pattern)
            found.append((kind, re.compile(pattern, re.DOTALL)))
    return found


@functools.lru_cache(maxsize=10_000)
def read_task(instruction, text):
    """Return (kind or None, what the wording is about, by name)."""
    if instruction in FACTS and not text:
        return "fact", {"input": instruction}
    for kind, pattern in patterns():
        match = pattern.fullmatch(instruction)
        # What the wording is about stands in one place: inside, or in the input
        if match and ("input" in match.groupdict()) == (not text):
            return kind, {"input": text, **match.groupdict()}
    return None, {}


def kind_of(entry):
    """Return the name of the kind of task, None if the instruction is of no kind."""
    return read_task(entry["instruction"], entry["input"])[0]


def check(entry, response):
    """Return if the response is right: True, False, or None if no program can judge.

    entry: a dict with the strings "instruction", "input" and "output". The output is
    looked at only where the answer is a label that somebody has chosen.
    """
    kind, task = read_task(entry["instruction"], entry["input"])
    if kind not in ANSWERS:
        return None
    answers, read = ANSWERS[kind]
    try:
        accepted = [read(text) for text in answers(task | {"output": entry["output"]})]
    except (ValueError, LookupError):
        accepted = []
    if not accepted:
        return None  # the wording of a kind around something the kind is not about
    try:
        return read(response) in accepted
    except (ValueError, RecursionError):
        return False


# How a response is read


def exact(text):
    """One line with single blanks, without outer quotes."""
    text = " ".join(text.replace("\u2019", "'").split())
    inner = text[1:-1]
    if text[:1] + text[-1:] in ('""', "''", "\u201c\u201d") and '"' not in inner:
        text = inner.strip()
    return text


def plain(text):
    """As `exact`, in lower case and without a final full stop."""
    return exact(exact(text).removesuffix(".")).lower()


def no_blanks(text):
    return exact(text).replace(" ", "").replace(".", "")


def items(text):
    """The items of a list with commas."""
    return [item.strip() for item in plain(text).split(",")]


def separate(text):
    """The words or numbers of a list with commas or blanks."""
    return plain(text).replace(",", " ").split()


def amount(text):
    """As `plain`, without separators between thousands: 3,000 metres."""
    return re.sub(r"(?<=[0-9]),(?=[0-9]{3})", "", plain(text))


# What is accepted, as a list: a function for each kind that is computed, named like it.
# task: what the wording is about, as `read_task` returns it, and the output


def label(task):
    return [task["output"]]


def number_and_word(number):
    return [str(number), *(NUMBERS[number : number + 1] if number >= 0 else [])]


def yes_no(is_so):
    return ["Yes" if is_so else "No"]


def even_odd(task):
    return ["Odd" if int(task["input"]) % 2 else "Even"]


def vowel_start(task):
    return yes_no(plain(task["input"])[0] in "aeiou")


def words(sentence):
    return re.findall(r"[\w'-]+", sentence)


def contains_word(task):
    return yes_no(task["word"].lower() in words(task["input"].lower()))


def compare_numbers(task):
    a, relation, b = parse(r"(\d+) is (greater|less) than (\d+)\.", task["input"])
    difference = int(a) - int(b)
    is_so = difference > 0 if relation == "greater" else difference < 0
    return ["True" if is_so else "False"]


def first_word(task):
    return words(task["input"])[:1]


def last_word(task):
    return words(task["input"])[-1:]


def find_name(task):
    return [word for word in words(task["input"]) if word in PRONOUNS]


def plural(task):
    noun = task["input"]
    if noun in IRREGULAR_PLURALS:
        return [IRREGULAR_PLURALS[noun]]
    if re.search(r"(s|x|ch|sh)$", noun):
        return [noun + "es"]
    if re.search(r"[^aeiou]y$", noun):
        return [noun[:-1] + "ies"]
    return [noun + "s"]


def comparative(task):
    adjective = task["input"]
    if adjective in ("good", "bad"):
        return ["better" if adjective == "good" else "worse"]
    if adjective.endswith("y"):
        return [adjective[:-1] + "ier"]
    if len(re.findall("[aeiou]+", adjective.removesuffix("e"))) > 1:
        return ["more " + adjective]
    if re.search("[^aeiou][aeiou][bdgnt]$", adjective):
        return [adjective + adjective[-1] + "er"]
    return [adjective.removesuffix("e") + "er"]


def article(task):
    first = task["input"].split()[0]
    vowel = first[0] in "aeiou" and first not in A_THOUGH_VOWEL
    return [("an " if vowel or first in AN_THOUGH_CONSONANT else "a ") + task["input"]]


def antonym(task):
    return LEXICON["antonym"][task["input"]]


def synonym(task):
    return LEXICON["synonym"][task["input"]]


def lower_first(text):
    """The text as it goes on inside a sentence; a name keeps its capital."""
    first = text.split()[0]
    keeps = first in PRONOUNS or first in ("I", "Mr", "Mrs")
    return text if keeps else text[0].lower() + text[1:]


def upper_first(text):
    return text[:1].upper() + text[1:]


def split_at(sentence, known):
    """Return (what stands before, the first word that is known, what follows)."""
    parts = sentence.split()
    at = next((i for i, word in enumerate(parts) if word in known), 0)
    if at == 0:
        raise ValueError("a word that the task needs is missing")
    return " ".join(parts[:at]), parts[at], " ".join(parts[at + 1 :])


def to_question(task):
    subject, auxiliary, rest = split_at(task["input"].removesuffix("."), AUXILIARIES)
    return [f"{upper_first(auxiliary)} {lower_first(subject)} {rest}?"]


def negative(task):
    subject, auxiliary, rest = split_at(task["input"], AUXILIARIES)
    short = {"can": "can't", "will": "won't"}.get(auxiliary, auxiliary + "n't")
    forms = [f"{auxiliary} not", short, *(["cannot"] if auxiliary == "can" else [])]
    return [f"{subject} {form} {rest}" for form in forms]


def to_past(task):
    subject, verb, rest = split_at(task["input"].removesuffix("."), THIRD_TO_PAST)
    return [f"{subject} {THIRD_TO_PAST[verb]} {rest}"]


def passive(task):
    doer, verb, thing = split_at(task["input"].removesuffix("."), PARTICIPLE)
    be = "were" if re.search("[^s]s$", thing) else "was"
    return [f"{upper_first(thing)} {be} {PARTICIPLE[verb]} by {lower_first(doer)}"]


def active(task):
    thing, participle, doer = parse(r"(.+) (?:was|were) (\w+) by (.+)\.", task["input"])
    return [f"{upper_first(doer)} {PAST[participle]} {lower_first(thing)}"]


def pronoun(task):
    first, *more = task["input"].split()
    if more[0] == "and":
        return [" ".join(["They", *more[2:]])]
    return [" ".join([PRONOUNS[first], *more])]


def expand(task):
    text = task["input"]
    for short, full in CONTRACTIONS.items():
        text = re.sub(short, full, text, flags=re.IGNORECASE)
    return [text, text.replace("cannot", "can not")]


def punctuation(task):
    asks = task["input"].split()[0].lower() in ASKS
    return [task["input"] + ("?" if asks else ".")]


def upper(task):
    return [task["input"].upper()]


def initials(task):
    return ["".join(name[0] for name in task["input"].split())]


def date(task):
    day, month, year = parse(r"(\d+) (\w+) (\d{4})", task["input"])
    number = LEXICON["months"].index(month) + 1
    return [f"{year}-{number:02}-{int(day):02}"]


def listed(text):
    """The items of "red, green and blue"."""
    return re.split(r", | and ", text)


def json_list(task):
    return [json.dumps(listed(task["input"]))]


def csv_line(task):
    return [",".join(listed(task["input"]))]


def backwards(task):
    return [task["input"][::-1]]


def sort_words(task):
    return [" ".join(sorted(separate(task["input"])))]


def sort_numbers(task):
    return [" ".join(sorted(separate(task["input"]), key=int))]


def count_words(task):
    return number_and_word(len(words(task["input"])))


def count_letters(task):
    return number_and_word(len(task["input"]))


def arithmetic(task):
    a, unit, sign, b = parse(
        r"(\d+)( \w+)? (\+|plus|-|minus|times) (\d+)(?(2)\2)", task["input"]
    )
    a, b, unit = int(a), int(b), unit or ""
    result = {"+": a + b, "p": a + b, "-": a - b, "m": a - b, "t": a * b}[sign[0]]
    return [f"{result}{unit}", *number_and_word(result)]


def convert(task):
    value, unit = parse(r"(\d+) (\w+)", task["input"])
    smaller, factor = LEXICON["units"].get(unit, (None, 0))
    if smaller == task["unit"]:
        result = int(value) * factor
    else:
        smaller, factor = LEXICON["units"][task["unit"]]
        if smaller != unit or int(value) % factor:
            raise ValueError("no such conversion")
        result = int(value) // factor
    return [f"{result} {task['unit']}", str(result)]


def capital(task):
    country = task["input"]
    city = LEXICON["capital"][country]
    return [
        city,
        f"The capital of {country} is {city}",
        f"{city} is the capital of {country}",
    ]


def fact(task):
    return FACTS[task["input"]]


def parse(pattern, text):
    """Return the groups of a pattern that the whole text must match."""
    match = re.fullmatch(pattern, text)
    if not match:
        raise ValueError("the task is not written as its kind is")
    return match.groups()


LABELS = (
    "sentence_type", "sentiment", "topic", "word_class", "living", "tense_name",
)  # fmt: skip
COMPUTED = (
    even_odd, vowel_start, contains_word, compare_numbers, first_word, last_word,
    find_name, plural, comparative, article, antonym, synonym, to_question, negative,
    to_past, passive, active, pronoun, expand, date, backwards, count_words,
    count_letters, capital, fact,
)  # fmt: skip
# Kind: (what is accepted, how it is read)
ANSWERS = {
    **dict.fromkeys(LABELS, (label, plain)),
    **{answers.__name__: (answers, plain) for answers in COMPUTED},
    "punctuation": (punctuation, exact),
    "upper": (upper, exact),
    "initials": (initials, no_blanks),
    "json_list": (json_list, json.loads),
    "csv_line": (csv_line, items),
    "sort_words": (sort_words, separate),
    "sort_numbers": (sort_numbers, separate),
    "arithmetic": (arithmetic, amount),
    "convert": (convert, amount),
}
