"""Write the data card: `python -m ch07.instruction_data.card` rewrites README.md.

Every figure in it is measured here, on instruction-data.json as it is.
"""

import hashlib
import json
from collections import Counter

from ch02.dataloader import get_tokenizer
from ch07.checker import ANSWERS, check, kind_of
from ch07.entries import BUNDLED, split
from ch07.instruction_data import FOLDER, GROUPS, HANDWRITTEN, LEXICON, WORDINGS
from ch07.instruction_data.baseline import nearest_answers, question
from ch07.instruction_data.generate import NEAR, SEED, write

HEAD = (
    "| kind | entries | training / validation / test | answers | commonest "
    "| neighbour, kind | neighbour, test |\n|---|--:|--:|--:|--:|--:|--:|"
)


def statistics(entries):
    """Return {kind: what the table says about it}, in the order of wordings.json."""
    of_kind = {kind: [] for kind in WORDINGS}
    for entry in entries:
        of_kind[kind_of(entry)].append(entry)
    parts = split(entries)
    counts = [Counter(map(kind_of, part)) for part in parts]
    right, (train, _, test) = Counter(), parts
    for entry, answer in zip(test, nearest_answers(train, test), strict=True):
        right[kind_of(entry)] += check(entry, answer) is True

    found = {}
    for kind, known in of_kind.items():
        answers = Counter(entry["output"] for entry in known)
        pairs = zip(known, nearest_answers(known, known), strict=True)
        found[kind] = {
            "entries": len(known),
            "split": [count[kind] for count in counts],
            "answers": len(answers),
            "commonest": answers.most_common(1)[0][1] / len(known),
            "nearest": sum(check(*pair) is True for pair in pairs) / len(known),
            "nearest_in_test": right[kind],
        }
    return found


def table(found):
    """Return the statistics in Markdown, with a line that adds up each group."""
    lines = [HEAD]
    for group, kinds in GROUPS.items():
        rows = [found[kind] for kind in kinds]
        parts = [sum(row["split"][part] for row in rows) for part in range(3)]
        right = sum(row["nearest_in_test"] for row in rows)
        by_program = ANSWERS.keys() >= kinds.keys()
        lines.append(
            f"| **{group}** | **{sum(row['entries'] for row in rows)}** "
            f"| **{' / '.join(map(str, parts))}** | | | "
            f"| {f'**{right} of {parts[2]}**' if by_program else '–'} |"
        )
        for kind, row in zip(kinds, rows, strict=True):
            nearest = f"{row['nearest']:.0%}"
            in_test = f"{row['nearest_in_test']} of {row['split'][2]}"
            lines.append(
                f"| {kind} | {row['entries']} | {' / '.join(map(str, row['split']))} "
                f"| {row['answers']} | {row['commonest']:.0%} "
                f"| {nearest if by_program else '–'} "
                f"| {in_test if by_program else '–'} |"
            )
    return "\n".join(lines)


def lengths(texts):
    """Return a phrase that says how many GPT-2 tokens the texts have."""
    tokenizer = get_tokenizer()
    counts = sorted(len(tokenizer.encode(text)) for text in texts)
    return (
        f"{counts[len(counts) // 2]} GPT-2 tokens (median), "
        f"{counts[int(len(counts) * 0.95)]} or fewer in 95 % of the entries, "
        f"at most {counts[-1]}"
    )


def written_by_hand():
    """Count the entries whose answer or label was written one by one."""
    labelled = [LEXICON["word_class"], LEXICON["living"]]
    labelled += [known for known in HANDWRITTEN.values() if isinstance(known, dict)]
    lists = [texts for known in labelled for texts in known.values()]
    lists += [pairs for pairs in HANDWRITTEN.values() if isinstance(pairs, list)]
    return sum(map(len, lists))


def render():
    """Return the data card as Markdown."""
    raw = BUNDLED.read_bytes()
    entries = json.loads(raw)
    found = statistics(entries)
    train, val, test = map(len, split(entries))
    checkable = sum(found[kind]["entries"] for kind in ANSWERS)
    template = (FOLDER / "card-template.md").read_text("utf-8")
    return template.format(
        entries=len(entries),
        example=json.dumps(entries[0], indent=2),
        kinds=len(found),
        groups=len(GROUPS),
        checkable=checkable / len(entries),
        by_hand=written_by_hand(),
        asked=lengths(map(question, entries)),
        answered=lengths(entry["output"] for entry in entries),
        train=train,
        test=test,
        val=val,
        sha256=hashlib.sha256(raw).hexdigest(),
        seed=SEED,
        near=NEAR,
        fewest=min(row["split"][2] for row in found.values()),
        most=max(row["split"][2] for row in found.values()),
        table=table(found),
    )


if __name__ == "__main__":
    write(FOLDER / "README.md", render())
