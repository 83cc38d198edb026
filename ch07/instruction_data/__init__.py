"""Chapter 7's instruction data: what it is made of, and how it is made.

The words, the wordings and the entries written by hand are JSON files beside this one.
"""

import json
from pathlib import Path

FOLDER = Path(__file__).parent


def read(name):
    """Return what one of the JSON files in this folder holds."""
    return json.loads((FOLDER / f"{name}.json").read_text("utf-8"))


# {group: {kind: wordings}}; a fact is asked for in its own words
GROUPS = read("wordings")
WORDINGS = {kind: known for kinds in GROUPS.values() for kind, known in kinds.items()}
LEXICON = read("lexicon")
HANDWRITTEN = read("handwritten")
