"""The bundled text messages of chapter 6: format, variety, how hard, how made."""

import random
import re
from collections import Counter, defaultdict
from hashlib import sha256

import pytest
from conftest import ROOT

from ch02.cli import InputError
from ch06.spam import card, generate, grammar
from ch06.spam.spelling import HABITS, spell

FOLDER = ROOT / "ch06/spam"
RAW = (FOLDER / "spam.tsv").read_bytes()
TEXT = RAW.decode("utf-8")
MESSAGES = [tuple(line.split("\t")) for line in TEXT.split("\n")[:-1]]
TEXTS = [text for _, text in MESSAGES]
README = (FOLDER / "README.md").read_text("utf-8")
# Ranges for fiction: Ofcom's, and 555-01xx
PHONES = re.compile(
    r"(07700900|02079460|01632960|01614960|08081570)\d{3}|(555)?55501\d\d"
)
# Not all there are, but those that such messages name
BRANDS = re.compile(
    r"\b(amazon|google|microsoft|facebook|instagram|whats ?app|telegram|tiktok|paypal|"
    r"venmo|m-?pesa|zelle|netflix|spotify|disney|youtube|ebay|vinted|tesco|walmart|"
    r"asda|lidl|aldi|ikea|nike|dhl|fedex|usps|hermes|evri|royal mail|barclays|hsbc|"
    r"lloyds|natwest|santander|citibank|wells fargo|sbi|icici|hdfc|gtbank|visa card|"
    r"mastercard|amex|nokia|samsung|i ?phone|android|vodafone|mtn|airtel|jio|uber|"
    r"safaricom|airbnb|ryanair|coca.cola|hmrc|irs|binance|coinbase|western union|"
    r"moneygram|aadhaa?r)\b",
    re.I,
)


def words(text):
    """Lower-case words; numbers all alike, apostrophes gone."""
    text = re.sub(r"\d+", " 0 ", text.lower().replace("'", "").replace("’", ""))
    return re.sub(r"[\W_]+", " ", text).split()


def runs(text, length):
    found = words(text)
    return {" ".join(found[i : i + length]) for i in range(len(found) - length + 1)}


@pytest.fixture(scope="module")
def df():
    return card.messages()


def test_format():
    assert "\r" not in TEXT
    assert "\ufeff" not in TEXT
    assert TEXT.endswith("\n")
    assert not TEXT.endswith("\n\n")
    for message in MESSAGES:
        assert len(message) == 2, message
        label, text = message
        assert label in {"ham", "spam"}
        assert text == text.strip()
        assert "  " not in text
        assert text.isprintable() or any(ord(char) > 0x2190 for char in text), text


def test_pandas_reads_it_with_and_without_quoting(df):
    # The book's call has neither quoting=3 nor keep_default_na=False
    assert list(zip(df.Label, df.Text, strict=True)) == MESSAGES


def test_counts_and_lengths():
    spam = sum(label == "spam" for label, _ in MESSAGES)
    assert 4800 <= len(MESSAGES) <= 5200
    assert spam >= 700
    assert 0.14 <= spam / len(MESSAGES) <= 0.15
    lengths = sorted(map(len, TEXTS))
    assert 3 <= lengths[0] <= 5
    assert lengths[-1] <= 300
    assert sum(length > 200 for length in lengths) >= 40
    assert sum(length < 20 for length in lengths) >= 80


def test_no_message_twice():
    assert len(set(TEXTS)) == len(TEXTS)
    bare = Counter(re.sub(r"[\W\d_]", "", text.lower()) or text for text in TEXTS)
    assert not [text for text, count in bare.items() if count > 1]


def test_no_near_duplicates():
    """The rule of the README, computed again without the generator's code."""
    triples = [runs(text, 3) for text in TEXTS]
    holders = defaultdict(list)
    for number, own in enumerate(triples):
        for triple in own:
            holders[triple].append(number)
    for number, own in enumerate(triples):
        common = Counter(i for triple in own for i in holders[triple] if i < number)
        for other, count in common.items():
            smaller = min(len(own), len(triples[other]))
            union = len(own) + len(triples[other]) - count
            share = count / (smaller if smaller >= 4 else union)
            assert share <= 0.4, (TEXTS[number], TEXTS[other])


def test_no_wording_stands_in_many_messages():
    seen = Counter(run for text in TEXTS for run in runs(text, 5))
    run, count = seen.most_common(1)[0]
    assert count <= 8, run


def test_a_near_duplicate_is_refused():
    collection = generate.Collection()
    collection.add("See you at the station at 5, bring the big umbrella please")
    for text in (
        "see you at the station at 7 bring the big umbrella please!!",  # numbers, case
        "See you at the station at 5, bring the blue umbrella please",
        "Hi mum, see you at the station at 5",  # contained in part
    ):
        assert not collection.accepts(text), text
    assert collection.accepts("The station is closed, shall we meet at the bridge?")
    short = generate.Collection()
    short.add("on my way home")
    assert short.accepts("on my way to see your brother")
    assert not short.accepts("On my way HOME.")


def test_no_run_of_words_is_used_up():
    collection = generate.Collection()
    run = "the bus never came today"
    for i in range(generate.MAX_RUN):
        pad = " ".join(chr(ord("a") + i) * n for n in range(2, 12))
        assert collection.accepts(f"{pad} {run}")
        collection.add(f"{pad} {run}")
    assert not collection.accepts(f"and so we all had to walk because {run} at all")


def test_links_lead_to_reserved_names():
    hosts = [
        host.lower()
        for text in TEXTS
        for host in re.findall(r"(?:[\w-]+\.)+[A-Za-z]{2,}\b", text)
    ]
    assert len(hosts) > 200
    reserved = re.compile(
        r"(.+\.)?(example\.(com|org|net)|[\w-]+\.(example|test|invalid))"
    )
    for host in hosts:
        assert reserved.fullmatch(host), host
    for text in TEXTS:
        for address in re.findall(r"(?i)(?:https?://|www\.)(\S+)", text):
            assert re.match(r"([\w-]+\.)+[a-z]+", address.lower()), text
        assert "@" not in text, text


def test_telephone_numbers_are_fiction():
    found = 0
    for text in TEXTS:
        bare = re.sub(r"\S*\.(example|test|invalid)\S*", "", text)
        for number in re.findall(r"\(?\d[\d ()-]{5,}\d", bare):
            digits = re.sub(r"\D", "", number)
            if len(digits) >= 7:
                assert PHONES.search(digits), text
                found += 1
    assert found > 100


def test_no_real_brand():
    assert not [text for text in TEXTS if BRANDS.search(text)]


def test_both_classes_hold_hard_cases():
    def count(label, pattern):
        return sum(
            own == label and bool(re.search(pattern, text, re.I))
            for own, text in MESSAGES
        )

    assert count("ham", r"\b(won|prize|raffle)\b") >= 50
    assert count("ham", r"\bcode\b") >= 80
    assert count("ham", r"parcel|deliver") >= 80
    assert count("ham", card.LINK.pattern) >= 100
    assert count("ham", r"\bbank\b") >= 80
    assert count("spam", r"\b(mum|mom|dad|mama)\b") >= 30
    plain = r"^[^\d!£$€₹₦]*$"
    assert (
        count("spam", plain) - count("spam", rf"(?=.*{card.LINK.pattern}){plain}") > 200
    )
    polite = [
        t
        for own, t in MESSAGES
        if own == "spam" and re.search("please|kindly", t, re.I)
    ]
    assert len(polite) >= 60
    assert sum(len(t) <= 40 for own, t in MESSAGES if own == "spam") >= 20


def test_spelling_treats_both_classes_alike():
    """Spelling gets no label; and each register is used by both."""
    registers = defaultdict(set)
    for intent in grammar.read_wordings():
        registers[intent.register].add(intent.label)
    assert dict(registers) == {name: {"ham", "spam"} for name in HABITS}


def test_spelling_leaves_links_numbers_and_meaning():
    text = "Please pay £12.50 at https://go.example/pay/x7k2 before 18:30 tomorrow."
    seen = set()
    for seed in range(400):
        spelled = spell(text, "person", random.Random(seed))
        seen.add(spelled)
        for part in ("12.50", "https://go.example/pay/x7k2", "18:30"):
            assert part in spelled, spelled
    assert len(seen) > 50


def test_surface_alone_does_not_tell(df):
    for name, (ham, spam) in card.shares(df).items():
        # The best one could do with this feature, of as many ham as spam
        assert 0.5 + abs(spam - ham) / 2 <= 0.62, name
        assert min(ham, spam) * len(df) >= 0.1, name
    emoji = card.FEATURES["an emoji"]
    for label in ("ham", "spam"):
        assert df.Text[df.Label == label].map(emoji).sum() >= 5, label


def test_neither_trivial_nor_noise():
    reading, blind = card.scores()
    assert 0.88 < reading[0] < 0.98  # the book's shuffle
    assert 0.88 < reading.mean() < 0.98
    assert blind.mean() < reading.mean() - 0.08


def test_handwritten_messages_obey_the_rules_too(monkeypatch):
    twice = [("ham", "see you at the pool at 5"), ("spam", "See you at the pool at 6!")]
    monkeypatch.setattr(generate, "handwritten", lambda: twice)
    with pytest.raises(InputError, match=r"the pool at 6"):
        generate.build()


def test_readme_has_the_figures():
    """Counts to the digit; accuracies may differ by a message or two."""
    now, then = card.table().splitlines(), README.splitlines()
    for line in now:
        if "%" not in line or "shuffle" not in line:
            assert line in then
            continue
        what = line.split("|")[1]
        (written,) = [own for own in then if own.startswith(f"|{what}|")]
        pairs = zip(
            re.findall(r"[\d.]+(?=%)", line),
            re.findall(r"[\d.]+(?=%)", written),
            strict=True,
        )
        for computed, read in pairs:
            assert float(computed) == pytest.approx(float(read), abs=1.0), what


def test_checksums():
    digest = sha256(RAW).hexdigest()
    assert digest in README
    assert digest in (FOLDER / "LICENSE").read_text("utf-8")


def test_split_is_the_book_s(df):
    train, validation, test = card.balanced_split(df)
    parts = (train, validation, test)
    both = 2 * (df.Label == "spam").sum()
    assert [len(part) for part in parts[:2]] == [int(both * 0.7), int(both * 0.1)]
    assert sum(map(len, parts)) == both
    assert sum((part.Label == "spam").sum() for part in parts) == both / 2
    texts = [text for part in parts for text in part.Text]
    assert len(set(texts)) == both


def test_handwritten_messages_are_in_the_file():
    labels = Counter(label for label, _ in generate.handwritten())
    assert labels["spam"] >= 150
    assert labels["ham"] >= 250
    assert set(generate.handwritten()) <= set(MESSAGES)


def test_made_again_byte_for_byte(tmp_path, run):
    ran = run("python", "-m", "ch06.spam.generate", "--out", tmp_path / "again.tsv")
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "again.tsv").read_bytes() == RAW
    assert [path.name for path in tmp_path.iterdir()] == ["again.tsv"]
    assert ran.stdout.startswith(f"{len(MESSAGES)} messages")


def test_a_folder_that_is_not_there(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        generate.main(["--out", str(tmp_path / "no/where.tsv")])
    assert stop.value.code == 2
    assert "no folder" in capsys.readouterr().err


def grammar_of(tmp_path, monkeypatch, text):
    """The intents of a ham file of its own."""
    monkeypatch.setattr(grammar, "WORDINGS", tmp_path)
    (tmp_path / "common.txt").write_text("name = Ana | Ben\n", "utf-8")
    (tmp_path / "ham.txt").write_text(text, "utf-8")
    (tmp_path / "spam.txt").write_text("", "utf-8")
    return grammar.read_wordings()


def test_grammar(tmp_path, monkeypatch):
    (intent,) = grammar_of(
        tmp_path,
        monkeypatch,
        "# a comment\nend = bye.\n"
        "[late] person 5\n    {why}, {name} and {name}. {end?}\n"
        "    {who} {why}, {who}!\nwhy = a {owl|cat} came | the bus left\n"
        "    | it rained\nwho := Kofi | Mei\n",
    )
    assert (intent.label, intent.name, intent.count) == ("ham", "late", 5)
    made = {grammar.expand(intent, random.Random(seed)) for seed in range(200)}
    assert "An owl came, Ana and Ben. Bye." in made
    assert "It rained, Ben and Ana." in made
    assert not any("Ana and Ana" in text for text in made)  # drawn anew, never again
    assert any(text.startswith("Kofi") and text.endswith("Kofi!") for text in made)
    assert not any("Kofi" in text and "Mei" in text for text in made)  # drawn once


@pytest.mark.parametrize(
    ("text", "named"),
    [("what is this\n", "what is this"), ("price = 3 | 4\n", "price")],
)
def test_wordings_nobody_can_read(tmp_path, monkeypatch, text, named):
    with pytest.raises(InputError, match=named):
        grammar_of(tmp_path, monkeypatch, text)


def test_too_few_wordings_are_named(tmp_path, monkeypatch):
    grammar_of(tmp_path, monkeypatch, "[late] person 9\n    the bus came late again\n")
    with pytest.raises(InputError, match=r"\[late\].*not 9"):
        list(generate.generated(generate.Collection(), generate.Collection()))
