"""How good are responses, without a model that judges them? Figures from 0 to 100.

Exact match, token F1 and chrF compare a response with the reference text; the checker
(`checker.py`) computes whether the response to a checkable task is right. `agreement`
says how far a judge's scores follow the checker. Run it: `ollama_evaluate.py` prints
all of them.
"""

import re
from collections import Counter

from ch02.cli import InputError
from ch07.checker import check


def exact_match(response, reference):
    """Whether two texts are the same, blanks aside."""
    return response.split() == reference.split()


def token_f1(response, reference):
    """How many words two texts share: 2 x shared / (words of both), from 0 to 1.

    Case, punctuation and order don't count, how often a word occurs does. Two texts
    without words are the same (SQuAD, Rajpurkar et al. 2016, arXiv:1606.05250).
    """
    ours, theirs = (
        Counter(re.findall(r"\w+", text.lower())) for text in (response, reference)
    )
    total = ours.total() + theirs.total()
    return 2 * (ours & theirs).total() / total if total else 1.0


def chrf(responses, references):
    """chrF of a list of responses: shared runs of 1 to 6 characters, from 0 to 100.

    (Popovic 2015, W15-3049), by the package sacrebleu.
    """
    try:
        from sacrebleu.metrics import CHRF
    except ImportError:
        raise InputError("chrF needs a package: pip install sacrebleu") from None
    return CHRF().corpus_score(responses, [references]).score


def reference_metrics(entries, json_key):
    """Return (figures by name, from 0 to 100; verdicts of the checker, one per entry).

    entries: dicts with instruction, input, output, and the response under json_key. A
    verdict is True, False, or None where no program can judge.
    """
    pairs = [(entry[json_key], entry["output"]) for entry in entries]
    verdicts = [check(entry, entry[json_key]) for entry in entries]
    figures = {
        "Exact match": 100 * sum(exact_match(*pair) for pair in pairs) / len(pairs),
        "Token F1": 100 * sum(token_f1(*pair) for pair in pairs) / len(pairs),
        "chrF": chrf(*zip(*pairs, strict=True)),
    }
    checked = [verdict for verdict in verdicts if verdict is not None]
    if checked:
        figures["Checker"] = 100 * sum(checked) / len(checked)
    return figures, verdicts


def agreement(scores, verdicts):
    """How far a judge's scores follow the checker's verdicts, or None.

    Returns (mean score of what is right, mean score of what is wrong, how often of a
    right and a wrong response the right one has the higher score, in percent; a tie
    counts half, 50 is chance). Entries without score or verdict are left out; None if
    nothing is right or nothing is wrong.
    """
    both = [
        (score, verdict)
        for score, verdict in zip(scores, verdicts, strict=True)
        if score is not None and verdict is not None
    ]
    right = [score for score, verdict in both if verdict]
    wrong = [score for score, verdict in both if not verdict]
    if not right or not wrong:
        return None
    from sklearn.metrics import roc_auc_score  # slow to import

    # What is asked is the area under the ROC curve
    area = roc_auc_score([1] * len(right) + [0] * len(wrong), right + wrong)
    return sum(right) / len(right), sum(wrong) / len(wrong), 100 * area
