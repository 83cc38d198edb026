"""The instruction data of chapter 7: found, read, checked, split.

A file is a JSON list of entries with the fields instruction, input and output, all of
them text; input may be empty. Not here: prompts and batches
(`gpt_instruction_finetuning.py`).
"""

import json
from pathlib import Path

from ch02.cli import InputError
from ch02.download import data_dir

BUNDLED = Path(__file__).with_name("instruction-data.json")
FIELDS = ("instruction", "input", "output")
URLS = {
    "book": "https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main/"
    "ch07/01_main-chapter-code/instruction-data.json",
    "alpaca": "https://raw.githubusercontent.com/tatsu-lab/stanford_alpaca/main/"
    "alpaca_data.json",
}


def load_entries(source="bundled"):
    """Return the entries of a source as a list of dicts.

    source: "bundled", "book" or "alpaca" (downloaded once), or the path of a JSON file.
    Raises InputError that names the first entry that cannot be used.
    """
    from ch07.gpt_instruction_finetuning import download_and_load_file

    source = str(source)
    if source in URLS:
        path = data_dir() / f"instruction-data-{source}.json"
        entries = download_and_load_file(path, URLS[source])
    else:
        path = BUNDLED if source == "bundled" else Path(source).expanduser()
        entries = read_json(path)
    check_entries(path, entries)
    return entries


def read_json(path):
    """What a JSON file holds; an InputError names line and column of a mistake."""
    try:
        return json.loads(Path(path).read_text("utf-8-sig"))
    except FileNotFoundError:
        raise InputError(
            f"no instruction data called '{path}': give the path of a JSON file, or "
            "'bundled', 'book' or 'alpaca'"
        ) from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8: save it as UTF-8 first") from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}, line {error.lineno}, column {error.colno}: not JSON ({error.msg})"
        ) from None


def check_entries(path, entries):
    """Raise an InputError that names the first entry that cannot be used."""
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path} is not a list of entries")
    for number, entry in enumerate(entries):
        where = f"{path}, entry {number}"
        if not isinstance(entry, dict):
            raise InputError(f"{where} is no entry but {json.dumps(entry)[:40]}")
        for field in FIELDS:
            if field not in entry:
                raise InputError(f"{where} has no field {field!r}")
            if not isinstance(entry[field], str):
                raise InputError(f"{where}: {field} is not text")
            if field != "input" and not entry[field].strip():
                raise InputError(f"{where}: {field} is empty")


def split(entries):
    """(training, validation, test) entries: in file order 85 %, then 10 % test (7.2).

    The last 5 % are for validation. Raises InputError if a part would be empty.
    """
    train_end = int(len(entries) * 0.85)
    test_end = train_end + int(len(entries) * 0.1)
    parts = entries[:train_end], entries[test_end:], entries[train_end:test_end]
    if not all(parts):
        raise InputError(f"{len(entries)} entries are too few for three parts")
    return parts
