"""Chapter 7's instruction data and its checker: right, varied, always the same bytes.

What the generator builds from parts, the checker works out from the text; `datetime`
and `json` are asked as well. Wrong answers of a plausible kind must be called wrong.
"""

import json
import re
from collections import Counter
from datetime import datetime
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_mutants import each_of, mutate

from ch02.cli import InputError
from ch07 import checker
from ch07.checker import ANSWERS, check, kind_of, plain, read_task
from ch07.entries import BUNDLED, split
from ch07.instruction_data import (
    FOLDER,
    GROUPS,
    HANDWRITTEN,
    LEXICON,
    WORDINGS,
    card,
    generate,
)
from ch07.instruction_data.baseline import nearest_answers

RAW = BUNDLED.read_bytes()
ENTRIES = json.loads(RAW)
OF_KIND = {kind: [e for e in ENTRIES if kind_of(e) == kind] for kind in WORDINGS}
# Kinds with a few answers, which a lazy neighbour could get right by luck
FEW_ANSWERS = [
    kind for kind in ANSWERS if len({entry["output"] for entry in OF_KIND[kind]}) <= 12
]


def task_of(entry):
    return read_task(entry["instruction"], entry["input"])[1]


def words(text):
    return set(re.findall(r"[a-z0-9'-]+", text.lower()))


# The file


def test_the_format():
    assert 1600 <= len(ENTRIES) <= 2200
    for entry in ENTRIES:
        assert list(entry) == ["instruction", "input", "output"]
        assert all(isinstance(text, str) for text in entry.values())
        for text in entry.values():
            assert text == text.strip()
            assert text.isascii()
            assert "  " not in text
            assert "{" not in text
        assert entry["instruction"]
        assert entry["output"]
    assert b"\r" not in RAW
    assert RAW.endswith(b"}\n]\n")
    lengths = [len(entry["output"].split()) for entry in ENTRIES]
    assert sum(length < 20 for length in lengths) > 0.95 * len(lengths)


def test_the_generator_writes_the_same_bytes_again(run, tmp_path, monkeypatch):
    # Sets come in another order
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    out = tmp_path / "data.json"
    done = run("python", "-m", "ch07.instruction_data.generate", "--out", out)
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == RAW
    assert generate.to_json(generate.generate()).encode() == RAW
    assert generate.generate(seed=1) != ENTRIES
    assert [path.name for path in tmp_path.iterdir()] == ["data.json"]


def test_the_generator_names_a_folder_that_is_not_there(tmp_path, capsys):
    out = tmp_path / "nowhere" / "data.json"
    with pytest.raises(SystemExit) as caught:
        generate.main(["--out", str(out)])
    assert caught.value.code == 2
    assert str(out) in capsys.readouterr().err


def test_every_entry_is_of_one_kind_and_every_kind_in_every_part():
    for entry in ENTRIES:
        kinds = {
            kind
            for kind, pattern in checker.patterns()
            if (match := pattern.fullmatch(entry["instruction"]))
            and ("input" in match.groupdict()) == (not entry["input"])
        }
        if entry["instruction"] in checker.FACTS:
            kinds = {"fact"}
        assert kinds == {kind_of(entry)}
    train, val, test = (Counter(map(kind_of, part)) for part in split(ENTRIES))
    for kind in WORDINGS:
        assert len(OF_KIND[kind]) >= 40, kind
        assert train[kind] >= 30, kind
        assert test[kind] >= 4, kind
        assert val[kind] >= 2, kind
    checkable = sum(len(OF_KIND[kind]) for kind in ANSWERS)
    assert checkable > 0.8 * len(ENTRIES)
    assert card.written_by_hand() >= 350


def test_no_duplicates_and_no_near_duplicates():
    asked = [
        " ".join(f"{entry['instruction']} {entry['input']}".lower().split())
        for entry in ENTRIES
    ]
    assert len(set(asked)) == len(asked)
    for kind, entries in OF_KIND.items():
        about = [words(" ".join(task_of(entry).values())) for entry in entries]
        for a, b in combinations(about, 2):
            assert len(a & b) < generate.NEAR * len(a | b), (kind, a, b)


def test_the_generator_refuses_near_duplicates():
    pairs = [({"input": "The cat sat on the mat."}, ""), ({"input": "A dog."}, "")]
    generate.refuse_near_duplicates({"kind": pairs})
    pairs.append(({"input": "the cat sat on THE mat!"}, ""))
    with pytest.raises(InputError, match="kind"):
        generate.refuse_near_duplicates({"kind": pairs})


def test_each_kind_is_asked_for_in_several_ways():
    for kind, wordings in WORDINGS.items():
        if kind == "fact":
            continue
        assert len(wordings) >= 5
        used = Counter()
        for entry in OF_KIND[kind]:
            used[next(w for w in wordings if is_wording(w, entry["instruction"]))] += 1
        assert set(used) == set(wordings)
        assert max(used.values()) <= len(OF_KIND[kind]) / len(wordings) + 1
        for a, b in combinations(wordings, 2):
            assert len(words(a) & words(b)) < 0.75 * len(words(a) | words(b)), (a, b)
    # Many have everything in the instruction, and more have a field of their own
    assert 0.3 < sum(not entry["input"] for entry in ENTRIES) / len(ENTRIES) < 0.5


def is_wording(wording, instruction):
    parts = re.split(r"{\w+}", wording)
    return re.fullmatch(".+".join(map(re.escape, parts)), instruction)


def test_a_wording_says_nothing_about_the_answer():
    for kind in FEW_ANSWERS:
        for wording in WORDINGS[kind]:
            used = [e for e in OF_KIND[kind] if is_wording(wording, e["instruction"])]
            ours = Counter(entry["output"] for entry in used)
            for output, count in Counter(e["output"] for e in OF_KIND[kind]).items():
                expected = count / len(WORDINGS[kind])
                assert abs(ours[output] - expected) <= 1, (kind, wording, output)


def test_the_lexicon_agrees_with_itself():
    for kind in ("antonym", "synonym"):
        for word, accepted in LEXICON[kind].items():
            assert len({word, *accepted}) == 1 + len(accepted)
    both = LEXICON["antonym"].keys() & LEXICON["synonym"].keys()
    assert both
    for word in both:
        assert not {*LEXICON["antonym"][word]} & {*LEXICON["synonym"][word]}, word
    assert len({*LEXICON["capital"].values()}) == len(LEXICON["capital"])
    for question, sentence, *answers in HANDWRITTEN["fact"]:
        assert answers, question
        # Nearly always the answer is a part of the sentence; else it is a number
        parts = words(sentence)
        assert any(words(answer) <= parts for answer in answers), question
    for _, past, participle in LEXICON["verbs"].values():
        assert checker.PARTICIPLE[past] == participle
        assert checker.PAST[participle] == past


# Copying


def test_the_baseline_finds_the_most_similar_entry():
    def entry(instruction, output):
        return {"instruction": instruction, "input": "", "output": output}

    known = [
        entry("Count the words in green apples", "a"),
        entry("Count the words in blue pears", "b"),
        entry("Name a river in Wales", "c"),
    ]
    asked = [entry("Count the blue things", "?"), entry("A river, please", "?")]
    assert nearest_answers(known, asked) == ["b", "c"]
    assert nearest_answers(known, [entry("zzz", "?")]) == ["a"]
    # Not its own neighbour
    assert nearest_answers(known, known)[:2] == ["b", "a"]
    assert nearest_answers(known, known[1:2]) == ["a"]


@pytest.fixture(scope="module")
def statistics():
    return card.statistics(ENTRIES)


def test_copying_is_right_no_more_often_than_chance(statistics):
    assert len(FEW_ANSWERS) >= 10
    for kind, row in statistics.items():
        if kind in FEW_ANSWERS:
            chance, n = row["commonest"], row["entries"]
            # Two standard deviations of a guess
            bound = chance + 2 * (chance * (1 - chance) / n) ** 0.5
            assert row["nearest"] <= bound, kind
        else:
            assert row["nearest"] <= 0.1, kind
            assert row["commonest"] <= 0.1, kind


def test_the_data_card_says_what_is_so(monkeypatch, statistics):
    monkeypatch.setattr(card, "statistics", lambda entries: statistics)
    assert card.render() == (FOLDER / "README.md").read_text("utf-8")


# The checker


def test_every_answer_in_the_file_is_right():
    for kind, entries in OF_KIND.items():
        for entry in entries:
            expected = True if kind in ANSWERS else None
            assert check(entry, entry["output"]) is expected, entry


@pytest.mark.parametrize("kind", ANSWERS)
def test_the_answer_to_another_task_is_wrong(kind):
    read = ANSWERS[kind][1]
    number_wrong = 0
    for entry in OF_KIND[kind]:
        for other in OF_KIND[kind]:
            equal = read(entry["output"]) == read(other["output"])
            if kind in ("antonym", "synonym"):
                accepted = LEXICON[kind][task_of(entry)["input"]]
                equal = other["output"] in accepted
            assert check(entry, other["output"]) is equal, (entry, other)
            number_wrong += not equal
    assert number_wrong > len(OF_KIND[kind])


def test_case_quotes_and_a_final_stop_do_not_matter():
    for kind in ANSWERS.keys() - {"punctuation", "upper", "json_list", "initials"}:
        for entry in OF_KIND[kind]:
            output = entry["output"]
            bare = output.removesuffix(".")
            for text in (bare, f"{bare}.", f"  {output}\n", f'"{bare}"', f"'{bare}.'"):
                if '"' not in output:
                    assert check(entry, text) is True, (entry, text)
            assert check(entry, output.swapcase()) is True, entry


@pytest.mark.parametrize("kind", ANSWERS)
def test_a_rambling_or_empty_answer_is_wrong(kind):
    for entry in OF_KIND[kind]:
        output = entry["output"]
        for text in (
            "",
            ".",
            f"not {output}",
            f"{output} {output}",
            f"{output}\n\n### Instruction:\nCount the words.",
            f"{output} or something else",
            output[1:] if len(output) > 2 else output + "0",
        ):
            # Half a word may be another right one: an "s" less, a "1" less
            assert check(entry, text) is False, (entry, text)


def test_near_misses_are_wrong():
    for kind in ("count_words", "count_letters", "arithmetic", "convert", "even_odd"):
        for entry in OF_KIND[kind]:
            number = re.match(r"\d+", entry["output"])
            if number:
                for step in (-1, 1, 10):
                    near = str(int(number[0]) + step) + entry["output"][number.end() :]
                    assert check(entry, near) is False, (entry, near)
    for kind in ("sort_words", "sort_numbers", "json_list", "csv_line"):
        for entry in OF_KIND[kind]:
            of_json = kind == "json_list"
            known = (
                json.loads(entry["output"])
                if of_json
                else (entry["output"].replace(" ", "").split(","))
            )
            write = json.dumps if of_json else ", ".join
            assert check(entry, write(known)) is True
            for wrong in (known[::-1], known[1:], [*known, known[0]],
                          [known[1], known[0], *known[2:]]):  # fmt: skip
                assert check(entry, write(wrong)) is False, (entry, wrong)
    for entry in OF_KIND["upper"]:
        assert check(entry, entry["output"].lower()) is False
        assert check(entry, entry["output"].title()) is False
    for entry in OF_KIND["punctuation"]:
        swapped = entry["output"].translate(str.maketrans(".?", "?."))
        assert check(entry, swapped) is False
        assert check(entry, entry["output"][:-1]) is False
    for kind in ("passive", "active", "to_past", "negative", "pronoun", "expand"):
        for entry in OF_KIND[kind]:
            assert check(entry, task_of(entry)["input"]) is False, entry
    for entry in OF_KIND["to_question"]:
        assert check(entry, entry["output"].replace("?", ".")) is False
        assert check(entry, task_of(entry)["input"].replace(".", "?")) is False


def test_dates_and_lists_are_what_other_programs_read():
    for entry in OF_KIND["date"]:
        written = datetime.strptime(task_of(entry)["input"], "%d %B %Y")
        assert entry["output"] == written.strftime("%Y-%m-%d")
        swapped = written.strftime("%Y-%d-%m")
        assert check(entry, swapped) is (swapped == entry["output"])
    for entry in OF_KIND["json_list"]:
        known = json.loads(entry["output"])
        text = task_of(entry)["input"]
        assert f"{', '.join(known[:-1])} and {known[-1]}" == text
        assert check(entry, json.dumps(known, indent=1)) is True
        assert check(entry, str(known)) is False  # single quotes are not JSON


def entry(instruction, text="", output="?"):
    return {"instruction": instruction, "input": text, "output": output}


@pytest.mark.parametrize(
    ("asked", "right", "wrong"),
    [
        (entry("Make this sentence negative.", "Paul can whistle."),
         ["Paul cannot whistle", "Paul can't whistle.", "Paul can not whistle.",
          "Paul can\u2019t whistle."],
         ["Paul can whistle not.", "Paul cant whistle."]),
        (entry("Make this sentence negative.", "The snow will last."),
         ["The snow won't last.", "The snow will not last."], ["The snow will last."]),
        (entry("Calculate 6 times 2."), ["12", "twelve"], ["1 2", "12 12", "62"]),
        (entry("Calculate 2 - 5."), ["-3"], ["3", "ten", "three"]),
        (entry("Calculate 9 metres + 3 metres."), ["12 metres", "12", "Twelve."],
         ["12 litres", "12 metres 0"]),
        (entry("Convert 3 kilometres to metres."),
         ["3000 metres", "3,000 metres", "3000"], ["300 metres", "3 000", "3000 m 1"]),
        (entry("Convert 120 seconds to minutes."), ["2 minutes", "2"], ["2 seconds"]),
        (entry("Write the initials of this name.", "Ruth Ada Hall"),
         ["R. A. H.", "RAH", "R.A.H."], ["R. H.", "r. a. h.", "Ruth A. Hall"]),
        (entry("Sort these numbers from smallest to largest.", "100, 20, 3"),
         ["3, 20, 100", "3 20 100"], ["100, 20, 3", "3, 20", "3, 20, 100, 100"]),
        (entry("What is the capital of France?"),
         ["Paris", "The capital of France is Paris.", "Paris is the capital of France"],
         ["London", "The capital of France is not Paris.", "Paris or London"]),
        (entry("How many legs does a spider have?"),
         ["8", "Eight.", "A spider has eight legs."], ["Six", "A spider has legs."]),
        (entry("Give an antonym of this word.", "big"), ["small", "Little."],
         ["big", "large", "small little"]),
        (entry("Expand the short form in this sentence.", "We can't go."),
         ["We cannot go.", "We can not go."], ["We can't go.", "We can go."]),
        (entry("Write \"hour\" with the right indefinite article."), ["an hour"],
         ["a hour", "hour", "an"]),
        (entry("Write this in capital letters.", "red door"), ["RED DOOR"],
         ["Red Door", "RED DOOR.", "red door"]),
        (entry("Is the word \"golden\" in the text? Answer yes or no.", "Golden leaf"),
         ["Yes"], ["No", "Yes and no", ""]),
        (entry("Is the word \"old\" in the text? Answer yes or no.", "Golden leaf."),
         ["No"], ["Yes"]),
        (entry("Put this sentence into the passive voice.", "Mr Hall saw the glass."),
         ["The glass was seen by Mr Hall"], ["The glass were seen by Mr Hall."]),
        (entry("Make this sentence negative.", "Nothing to negate"), [], []),
    ],
)  # fmt: skip
def test_by_hand(asked, right, wrong):
    assert [check(asked, text) for text in right] == [True] * len(right)
    assert [check(asked, text) for text in wrong] == [False] * len(wrong)


def test_no_judgement_where_none_is_possible():
    assert kind_of(entry("Write a poem.")) is None
    assert check(entry("Write a poem."), "Roses are red.") is None
    assert check(entry("Correct the grammar of this sentence.", "She go."), "x") is None
    # The wording of a kind, but nothing the kind is about
    for asked in (
        entry("Make this sentence negative.", "Nothing to negate"),
        entry("Calculate a poem."),
        entry("Convert 3 kilometres to hours."),
        entry("Is this number even or odd?", "pear"),
        entry("What is the capital of Atlantis?"),
        entry("Find the name in the text.", "Nobody is here."),
    ):
        assert kind_of(asked) in ANSWERS
        assert check(asked, "anything") is None
    # Asked inside the instruction and beside it: about which of the two?
    assert kind_of(entry("Calculate 6 times 2.", "3 times 3")) is None
    assert kind_of(entry("Is this number even or odd?")) is None


TEXTS = st.text(max_size=30) | st.sampled_from(
    [text for e in ENTRIES[::7] for text in e.values()] + ["[" * 100_000, "9" * 5000]
)


@settings(derandomize=True, database=None, deadline=None, max_examples=200)
@given(st.data())
def test_nothing_makes_it_crash(data):
    kind = data.draw(st.sampled_from([kind for kind in WORDINGS if WORDINGS[kind]]))
    wording = data.draw(st.sampled_from(WORDINGS[kind]) | TEXTS)
    for name in ("input", "word", "unit"):
        if f"{{{name}}}" in wording:
            wording = wording.replace(f"{{{name}}}", data.draw(TEXTS))
    asked = entry(wording, data.draw(st.just("") | TEXTS), data.draw(TEXTS))
    assert kind_of(asked) in {None, *WORDINGS}
    assert check(asked, data.draw(TEXTS)) in (True, False, None)


@settings(derandomize=True, database=None, deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=8), st.randoms())
def test_any_numbers_are_sorted(numbers, random):
    shuffled = random.sample(numbers, len(numbers))
    text = ", ".join(map(str, shuffled))
    asked = entry("Sort these numbers from smallest to largest.", text)
    assert check(asked, ", ".join(map(str, sorted(numbers)))) is True
    assert check(asked, text) is (shuffled == sorted(numbers))


# Classic mistakes


def agrees_with_the_file(answers):
    """The answers it computes are those of the file, and no others are accepted."""
    kind = answers.__name__
    read = ANSWERS[kind][1]
    for entry in OF_KIND[kind]:
        accepted = [read(text) for text in answers(task_of(entry))]
        for other in OF_KIND[kind]:
            expected = read(entry["output"]) == read(other["output"])
            assert (read(other["output"]) in accepted) is expected


def reads_as_it_should(plain):
    assert plain(" 'Two  words.' ") == plain('"two words".') == "two words"
    assert plain("isn\u2019t it?") == "isn't it?"
    assert plain('"A" and "B"') == '"a" and "b"'
    assert plain("3.5") == "3.5"


MISTAKES = {
    (checker.plural, agrees_with_the_file): {
        "keys become keies": ("[^aeiou]y$", "y$"),
        "boxs": ("(s|x|ch|sh)$", "(s|ch|sh)$"),
        "childs": ("if noun in IRREGULAR_PLURALS", "if not noun"),
    },
    (checker.comparative, agrees_with_the_file): {
        "biger": ("[bdgnt]$", "[t]$"),
        "beautifuler": ("> 1", "> 9"),
        "happyer": ('endswith("y")', 'endswith("z")'),
        "gooder": ('in ("good", "bad")', 'in ("goods",)'),
    },
    (checker.article, agrees_with_the_file): {
        "an university": (" and first not in A_THOUGH_VOWEL", ""),
        "a hour": (" or first in AN_THOUGH_CONSONANT", ""),
    },
    (checker.even_odd, agrees_with_the_file): {"the other way": ("% 2", "% 2 == 0")},
    (checker.vowel_start, agrees_with_the_file): {"a vowel forgotten": ("aei", "ai")},
    (checker.compare_numbers, agrees_with_the_file): {
        "the other way": ("difference > 0", "difference < 0"),
        "as text": ("int(a) - int(b)", "1 if a > b else -1"),
    },
    (checker.to_question, agrees_with_the_file): {"full stop": ("?", ".")},
    (checker.to_past, agrees_with_the_file): {
        "the present stays": ("THIRD_TO_PAST[verb]", "verb"),
    },
    (checker.passive, agrees_with_the_file): {
        "always was": ("[^s]s$", "^$"),
        "past for participle": ("PARTICIPLE[verb]", "verb"),
    },
    (checker.active, agrees_with_the_file): {
        "participle for past": ("PAST[participle]", "participle"),
    },
    (checker.pronoun, agrees_with_the_file): {
        "the second name stays": ("*more[2:]", "*more"),
    },
    (checker.expand, agrees_with_the_file): {
        "capitals in the way": (", flags=re.IGNORECASE", ""),
    },
    (checker.punctuation, agrees_with_the_file): {"capitals": (".lower()", "")},
    (checker.date, agrees_with_the_file): {
        "months from 0": (" + 1", ""),
        "American": ("{number:02}-{int(day):02}", "{int(day):02}-{number:02}"),
        "without zeros": ("{int(day):02}", "{day}"),
    },
    (checker.sort_numbers, agrees_with_the_file): {"as text": (", key=int", "")},
    (checker.sort_words, agrees_with_the_file): {"as it was": ("sorted(", "(")},
    (checker.count_words, agrees_with_the_file): {
        "counts letters": ('len(words(task["input"]))', 'len(task["input"])'),
    },
    (checker.arithmetic, agrees_with_the_file): {
        "times is plus": ('"t": a * b', '"t": a + b'),
        "sum for difference": ('"m": a - b', '"m": a + b'),
    },
    (checker.convert, agrees_with_the_file): {
        "one way only": ("int(value) // factor", "int(value) * factor"),
    },
    (plain, reads_as_it_should): {
        "quotes stay": ("exact(exact(text)", "(exact(text)"),
        "every stop goes": ('.removesuffix(".")', '.replace(".", "")'),
        "stop stays": ('.removesuffix(".")', ""),
        "case stays": (".lower()", ""),
    },
}  # fmt: skip


@each_of(MISTAKES)
def test_mutant_is_caught(component, check, old, new):
    mutant = mutate(component, old, new)
    with pytest.raises((AssertionError, ValueError, LookupError)):
        check(mutant)


@pytest.mark.parametrize(
    ("component", "check"), MISTAKES, ids=lambda thing: thing.__name__
)
def test_the_unmutated_passes(component, check):
    check(component)


def test_the_groups_hold_every_kind_once():
    kinds = [kind for group in GROUPS.values() for kind in group]
    assert len(kinds) == len(set(kinds))
    assert kinds == list(WORDINGS)
    assert set(kinds) - ANSWERS.keys() == GROUPS["free"].keys()
