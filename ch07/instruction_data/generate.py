"""Make instruction-data.json again: `python -m ch07.instruction_data.generate`.

Tasks come from what people wrote (handwritten.json) and from word lists (lexicon.json).
Each is put into one of its kind's wordings (wordings.json). The same seed gives the
same bytes. Near-duplicates stop the run.
"""

import json
import os
import random
import re
from itertools import combinations
from pathlib import Path

from ch02.cli import InputError, Parser, exit_on_input_error
from ch07.entries import BUNDLED
from ch07.instruction_data import GROUPS, HANDWRITTEN, LEXICON, WORDINGS

SEED = 123
NEAR = 0.75  # two tasks of one kind share fewer of their words than this


def words(text):
    """Return the set of words and numbers of a text, in lower case."""
    return set(re.findall(r"[\w'-]+", text.lower()))


def similarity(a, b):
    """Return the share of the words of two sets that both have (Jaccard)."""
    return len(a & b) / len(a | b) if a | b else 1.0


def tasks(rng):
    """Return {kind: [(what the wording is filled with, output)]}."""
    found = {}
    for kind in GROUPS["free"]:
        found[kind] = [({"input": task}, output) for task, output in HANDWRITTEN[kind]]
    for kind, words_or_texts in (
        *((kind, HANDWRITTEN[kind]) for kind in
          ("sentence_type", "sentiment", "topic", "tense_name")),
        *((kind, LEXICON[kind]) for kind in ("word_class", "living")),
    ):  # fmt: skip
        found[kind] = [
            ({"input": text}, label)
            for label, texts in words_or_texts.items()
            for text in texts
        ]
    for make in MAKERS:
        found |= {
            kind: [
                (task if isinstance(task, dict) else {"input": task}, output)
                for task, output in pairs
            ]
            for kind, pairs in make(rng).items()
        }
    return found


def about_words(rng):
    """Tasks about single words and names."""
    return {
        "fact": [(row[0], row[1]) for row in HANDWRITTEN["fact"]],
        "plural": LEXICON["plural"].items(),
        "comparative": LEXICON["comparative"].items(),
        "antonym": [(word, known[0]) for word, known in LEXICON["antonym"].items()],
        "synonym": [(word, known[0]) for word, known in LEXICON["synonym"].items()],
        "vowel_start": [
            (word, "Yes" if word[0] in "aeiou" else "No")
            for word in LEXICON["vowel_start"]
        ],
        "article": [
            (phrase, f"{article} {phrase}")
            for article, phrases in LEXICON["article"].items()
            for phrase in phrases
        ],
        "backwards": [(word, word[::-1]) for word in LEXICON["short_words"]],
        "count_letters": [(word, str(len(word))) for word in LEXICON["letter_words"]],
        "upper": [(phrase, phrase.upper()) for phrase in LEXICON["phrases"]],
        "capital": [
            (country, f"The capital of {country} is {city}.")
            for country, city in LEXICON["capital"].items()
        ],
    }


def about_people(rng):
    """Tasks about sentences with names, and about names."""
    she_and_he = list(LEXICON["names"].values())
    names = [name for pair in zip(*she_and_he, strict=True) for name in pair]
    found = {"initials": [], "pronoun": []}
    found["find_name"] = [
        (text.format(names[i % 30]), names[i % 30])
        for i, text in enumerate(LEXICON["find_name"])
    ]
    for i, what in enumerate(LEXICON["pronoun"]):
        who, other = names[i % 30], names[(i + 7) % 30]
        if i % 3 == 2:
            found["pronoun"].append((f"{who} and {other} {what}", f"They {what}"))
        else:
            pronoun = "She" if who in LEXICON["names"]["she"] else "He"
            found["pronoun"].append((f"{who} {what}", f"{pronoun} {what}"))
    for i, first in enumerate(rng.sample(names, 28) + names[:12]):
        name = [first, LEXICON["surnames"][i % 20]]
        if i % 3 == 0:
            alike = next(group for group in she_and_he if first in group)
            name.insert(1, alike[alike.index(first) - 1])
        output = " ".join(f"{part[0]}." for part in name)
        found["initials"].append((" ".join(name), output))
    return found


def about_clauses(rng):
    """Tasks that change a sentence, made from its parts."""
    names = sum(LEXICON["names"].values(), ["Mr", "Mrs"])

    def inside(text):
        """A subject as it is written inside a sentence."""
        return text if text.split()[0] in names else text[0].lower() + text[1:]

    found = {kind: [] for kind in ("to_question", "negative", "to_past")}
    found["expand"] = HANDWRITTEN["expand"]
    statements = [row.split("|") for row in LEXICON["statements"]]
    rng.shuffle(statements)
    for who, verb, rest in statements[:44]:
        asked = f"{verb.capitalize()} {inside(who)} {rest[:-1]}?"
        found["to_question"].append((f"{who} {verb} {rest}", asked))
    for who, verb, rest in statements[44:]:
        negated = "cannot" if verb == "can" else f"{verb} not"
        found["negative"].append((f"{who} {verb} {rest}", f"{who} {negated} {rest}"))

    for who, verb, rest in (row.split("|") for row in LEXICON["to_past"]):
        third, past, _ = LEXICON["verbs"][verb]
        found["to_past"].append((f"{who} {third} {rest}", f"{who} {past} {rest}"))

    voices = []
    for who, verb, what, be in (row.split("|") for row in LEXICON["passive"]):
        _, past, participle = LEXICON["verbs"][verb]
        passive = f"{what[0].upper()}{what[1:]} {be} {participle} by {inside(who)}."
        voices.append((f"{who} {past} {what}.", passive))
    rng.shuffle(voices)
    found["passive"] = voices[:40]
    found["active"] = [(passive, active) for active, passive in voices[40:]]
    return found


def about_sentences(rng):
    """Tasks about the words and the marks of a sentence."""
    found = {"punctuation": [(text[:-1], text) for text in LEXICON["unmarked"]]}
    sentences = rng.sample(LEXICON["sentences"], len(LEXICON["sentences"]))
    split = [re.findall(r"[\w'-]+", sentence) for sentence in sentences]
    found["first_word"] = [(sentences[i], split[i][0]) for i in range(44)]
    found["last_word"] = [(sentences[i], split[i][-1]) for i in range(44, 88)]
    found["count_words"] = [(sentences[i], str(len(split[i]))) for i in range(40)]
    found["contains_word"] = []
    for i in range(44, 88):
        inside_it = i % 2 == 0
        # Each word looked for is from a sentence: its own, or the next one
        known = {word for word in split[i if inside_it else i + 1] if len(word) > 3}
        word = rng.choice(sorted(known - (set() if inside_it else set(split[i]))))
        task = {"input": sentences[i], "word": word.lower()}
        found["contains_word"].append((task, "Yes" if inside_it else "No"))
    return found


def distinct(number, make):
    """Return make(0), make(1), ...: each drawn again until there is something to do.

    Again, too, while it is a near-duplicate of one that was drawn before.
    """
    found, known = [], []
    while len(found) < number:
        task, output = make(len(found))
        content = words(" ".join(task.values()) if isinstance(task, dict) else task)
        is_new = all(similarity(content, other) < NEAR for other in known)
        if is_new and task != output:
            found.append((task, output))
            known.append(content)
    return found


def about_lists(rng):
    """Tasks about lists of words or numbers."""
    groups = list(LEXICON["groups"].values())

    def group(i):
        known = rng.sample(groups[i % 10], 4 if i // 10 % 2 else 3)
        return f"{', '.join(known[:-1])} and {known[-1]}", known

    def alphabet(i):
        known = rng.sample(LEXICON["words"], 3 + i % 2)
        return ", ".join(known), ", ".join(sorted(known))

    def size(i):
        known = rng.sample(range(1, 100 if i % 2 else 1000), 3 + i % 3)
        in_order = ", ".join(str(number) for number in sorted(known))
        return ", ".join(map(str, known)), in_order

    lists = distinct(80, group)
    return {
        "json_list": [(text, json.dumps(known)) for text, known in lists[::2]],
        "csv_line": [(text, ",".join(known)) for text, known in lists[1::2]],
        "sort_words": distinct(40, alphabet),
        "sort_numbers": distinct(40, size),
    }


def about_numbers(rng):
    """Tasks about numbers, amounts and dates."""
    halves = rng.sample(range(1, 500), 44)

    def comparison(i):
        a, b = sorted(rng.sample(range(1, 100), 2), reverse=i % 4 < 2)
        is_so = (a > b) == bool(i % 2)
        relation = "greater" if i % 2 else "less"
        return f"{a} is {relation} than {b}.", "True" if is_so else "False"

    def calculation(i):
        sign = ("plus", "minus", "times", "+", "-", "times")[i % 6]
        if sign == "times":
            a, b = rng.sample(range(2, 13), 2)
            return f"{a} times {b}", str(a * b)
        b, a = sorted(rng.sample(range(2, 50), 2))
        units = (" kilograms", " litres", " metres", " minutes", "", "", "", "")
        unit = units[i // 6]
        result = a + b if sign in ("plus", "+") else a - b
        return f"{a}{unit} {sign} {b}{unit}", f"{result}{unit}"

    def conversion(i):
        unit, (smaller, factor) = list(LEXICON["units"].items())[i % 11]
        number = rng.randint(2, 20)
        amounts = [f"{number} {unit}", f"{number * factor} {smaller}"]
        task, output = amounts if i // 11 % 2 else amounts[::-1]
        return {"input": task, "unit": output.split()[1]}, output

    def day(_):
        day, month = rng.randint(1, 28), rng.randint(1, 12)
        year, name = rng.randint(1800, 2020), LEXICON["months"][month - 1]
        return f"{day} {name} {year}", f"{year}-{month:02}-{day:02}"

    return {
        "even_odd": [
            (str(2 * half + i % 2), "Odd" if i % 2 else "Even")
            for i, half in enumerate(halves)
        ],
        "compare_numbers": distinct(48, comparison),
        "arithmetic": distinct(48, calculation),
        "convert": distinct(44, conversion),
        "date": distinct(40, day),
    }


MAKERS = (
    about_words,
    about_people,
    about_clauses,
    about_sentences,
    about_lists,
    about_numbers,
)


def put_into_words(kind, pairs, rng):
    """Return the entries of one kind; the wordings do not depend on the answers."""
    pairs = sorted(pairs, key=lambda pair: (pair[1], rng.random()))
    entries = []
    for i, (task, output) in enumerate(pairs):
        wordings = WORDINGS[kind] or ["{input}"]
        wording = wordings[i % len(wordings)]
        entries.append(
            {
                "instruction": wording.format(**task),
                "input": "" if "{input}" in wording else task["input"],
                "output": output,
            }
        )
    return entries


def refuse_near_duplicates(found):
    """Raise an InputError for two tasks of one kind that share too many words."""
    for kind, pairs in found.items():
        texts = [" ".join(task.values()) for task, _ in pairs]
        for a, b in combinations(texts, 2):
            if similarity(words(a), words(b)) >= NEAR:
                raise InputError(f"near-duplicates of the kind {kind}: {a!r}, {b!r}")


def generate(seed=SEED):
    """Return the entries, in an order in which each stretch has its share of a kind."""
    rng = random.Random(seed)
    found = tasks(rng)
    refuse_near_duplicates(found)
    placed = []
    for kind, pairs in found.items():
        entries = put_into_words(kind, pairs, rng)
        rng.shuffle(entries)
        for i, entry in enumerate(entries):
            # Spread evenly over the file, each at random inside its own stretch of it
            placed.append(((i + rng.uniform(0.4, 0.6)) / len(entries), entry))
    placed.sort(key=lambda pair: pair[0])
    return [entry for _, entry in placed]


def to_json(entries):
    """Return the entries as JSON, one to a line."""
    lines = [json.dumps(entry, ensure_ascii=False) for entry in entries]
    return "[\n" + ",\n".join(lines) + "\n]\n"


def write(path, text):
    """Write a text file that appears complete or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_text(text, "utf-8", newline="\n")
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


def main(argv=None):
    """The command line: write the file and say how many entries it holds."""
    parser = Parser(prog="generate.py", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=BUNDLED, help="the file to write")
    args = parser.parse_args(argv)
    with exit_on_input_error("generate.py"):
        entries = generate()
        write(args.out, to_json(entries))
        print(f"{len(entries)} entries in {args.out}")


if __name__ == "__main__":
    main()
