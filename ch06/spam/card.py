"""The figures of this folder's README: counts, surface features, how hard it is.

    python -m ch06.spam.card

prints the README's tables. Needs scikit-learn (the extra `dev`). What is scored is the
balanced split of section 6.2; another seed is another shuffle.
"""

import re
from functools import cache
from hashlib import sha256

import numpy as np
import pandas as pd

from ch06.spam.generate import FOLDER, handwritten

PATH = FOLDER / "spam.tsv"
SEEDS = (123, 1, 2, 3, 4)  # the book's, and four more
MONEY = re.compile(
    r"[£$€₹₦]|\b(rs|ksh|rm|r|n) ?\d|\d (quid|euro|dollars|pesos|dirhams)\b", re.I
)
LINK = re.compile(r"\w\.(example|test|invalid)\b|\bexample\.(com|org|net)\b", re.I)
# What can be seen of a message without reading it
FEATURES = {
    "longer than 95 characters": lambda text: len(text) > 95,
    "a digit": lambda text: any(map(str.isdigit, text)),
    "a word in capitals": lambda text: bool(re.search(r"\b[A-Z]{3,}\b", text)),
    "no capital letter": lambda text: text == text.lower(),
    "an exclamation mark": lambda text: "!" in text,
    "a question mark": lambda text: "?" in text,
    "a sum of money": lambda text: bool(MONEY.search(text)),
    "a link": lambda text: bool(LINK.search(text)),
    "an emoji": lambda text: any(ord(char) > 0x2190 for char in text),
    "an apostrophe": lambda text: "'" in text,
}


def messages():
    """The file as a DataFrame with the book's columns, Label and Text."""
    return pd.read_csv(PATH, sep="\t", header=None, names=["Label", "Text"])


def shares(df):
    """For each surface feature the share of ham and of spam that shows it."""
    ham, spam = (df.Text[df.Label == label] for label in ("ham", "spam"))
    return {
        name: (ham.map(f).mean(), spam.map(f).mean()) for name, f in FEATURES.items()
    }


def balanced_split(df, seed=123):
    """Train, validation and test part, made as in section 6.2 of the book."""
    spam = df[df.Label == "spam"]
    ham = df[df.Label == "ham"].sample(len(spam), random_state=seed)
    both = pd.concat([ham, spam]).sample(frac=1, random_state=seed)
    both = both.reset_index(drop=True)
    train_end = int(len(both) * 0.7)
    validation_end = train_end + int(len(both) * 0.1)
    return both[:train_end], both[train_end:validation_end], both[validation_end:]


def baseline(df, seed=123):
    """Test accuracy of words and pairs of words with logistic regression."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    train, _, test = balanced_split(df, seed)
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression())
    return model.fit(train.Text, train.Label).score(test.Text, test.Label)


def surface(df, seed=123):
    """Test accuracy of a random forest that sees counts and lengths, no words."""
    from sklearn.ensemble import RandomForestClassifier

    def look(texts):
        return np.array(
            [
                [len(text), len(text.split()), sum(map(str.isupper, text))]
                + [sum(map(str.isdigit, text)), *map(text.count, ".,!?'")]
                + [feature(text) for feature in FEATURES.values()]
                for text in texts
            ],
            dtype=float,
        )

    train, _, test = balanced_split(df, seed)
    model = RandomForestClassifier(100, min_samples_leaf=3, random_state=0)
    return model.fit(look(train.Text), train.Label).score(look(test.Text), test.Label)


@cache
def scores():
    """The baseline's accuracy for each of SEEDS, and the forest's, as two arrays."""
    df = messages()
    seen = [(baseline(df, seed), surface(df, seed)) for seed in SEEDS]
    return np.array(seen).T


def spread(accuracies):
    """Mean and standard deviation, in percent."""
    return f"{accuracies.mean():.1%} ± {accuracies.std(ddof=1):.1%}"


def table():
    """The README's figures, a line each."""
    df = messages()
    counts = df.Label.value_counts()
    lengths = df.Text.str.len()
    labels = [label for label, _ in handwritten()]
    reading, blind = scores()
    tests = len(balanced_split(df)[2])
    rows = [
        ("messages", f"{len(df):,}: {counts.ham:,} ham, {counts.spam} spam"),
        ("share of spam", f"{counts.spam / len(df):.1%}"),
        ("written by hand", f"{labels.count('ham')} ham, {labels.count('spam')} spam"),
        (
            "length in characters",
            f"{lengths.min()} to {lengths.max()}, median "
            f"{lengths[df.Label == 'ham'].median():.0f} ham, "
            f"{lengths[df.Label == 'spam'].median():.0f} spam",
        ),
        ("balanced set", f"{2 * counts.spam:,} messages, {tests} of them for the test"),
        ("baseline, the book's shuffle", f"{reading[0]:.1%} of the test messages"),
        ("baseline, five shuffles", spread(reading)),
        ("without reading, five shuffles", spread(blind)),
    ]
    lines = ["| what | figure |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)]
    lines += ["", "| has | of the ham | of the spam |", "|---|---|---|"]
    for name, (ham, spam) in shares(df).items():
        lines.append(f"| {name} | {ham:.0%} | {spam:.0%} |")
    return "\n".join(lines)


def main():
    """Print the table and the file's SHA-256."""
    print(table())
    print(f"\nSHA-256 {sha256(PATH.read_bytes()).hexdigest()}")


if __name__ == "__main__":
    main()
