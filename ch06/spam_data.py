"""The messages of chapter 6: found or downloaded, checked, read.

A file of messages has one per line, `label<TAB>text`, without a header; a label is ham
or spam. `load_messages` takes the course's own file, the SMS Spam Collection of the
book, or the reader's. Not here: balancing and splitting (`gpt_class_finetune.py`).
"""

import hashlib
import shutil
import zipfile
from pathlib import Path

from ch02.cli import InputError
from ch02.download import data_dir

BUNDLED = Path(__file__).with_name("spam") / "spam.tsv"
LABELS = ("ham", "spam")  # the number of a label is its place

# The SMS Spam Collection (Almeida and Gómez Hidalgo 2011), as the book reads it
UCI_URLS = (
    "https://archive.ics.uci.edu/static/public/228/sms+spam+collection.zip",
    "https://f001.backblazeb2.com/file/LLMs-from-scratch/sms%2Bspam%2Bcollection.zip",
)
UCI_MEMBER = "SMSSpamCollection"
UCI_SHA256 = "7d039a24a608"  # how it begins


def load_messages(source="bundled"):
    """Return the messages as a DataFrame with the columns Label and Text.

    source: "bundled", "uci" (downloaded once) or the path of a UTF-8 file. Raises
    InputError if there is no such file or a line of it cannot be used.
    """
    import pandas as pd

    source = str(source)
    path = {"bundled": lambda: BUNDLED, "uci": find_uci}.get(source, lambda: source)()
    path = Path(path)
    check_messages(path)
    return pd.read_csv(
        path,
        sep="\t",
        header=None,
        names=["Label", "Text"],
        encoding="utf-8-sig",
        keep_default_na=False,  # "null" is a message, too
    )


def check_messages(path):
    """Raise an InputError that names the first line that is not label<TAB>text."""
    try:
        raw = path.expanduser().read_bytes()
    except FileNotFoundError:
        raise InputError(
            f"no messages called '{path}': give the path of a file, or 'bundled' or "
            "'uci'"
        ) from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = raw.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}, line {number}: not UTF-8; save the file as UTF-8 first"
        ) from None
    if not text.strip():
        raise InputError(f"{path} is empty")
    found = set()
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        if not line.strip():
            continue
        label, *texts = line.split("\t")
        if label not in LABELS:
            raise InputError(
                f"{path}, line {number}: the label is {label[:20]!r}; a line is ham or "
                "spam, a tab, and the message"
            )
        if len(texts) != 1:
            raise InputError(
                f"{path}, line {number}: {len(texts) + 1} columns instead of 2"
            )
        found.add(label)
    if missing := set(LABELS) - found:
        raise InputError(f"{path} holds no {missing.pop()}: nothing can be learned")


def find_uci():
    """Return the path of the SMS Spam Collection, downloading it if need be."""
    from ch06.gpt_class_finetune import download_and_unzip_spam_data

    folder = data_dir() / "sms_spam_collection"
    path, zip_path = folder / f"{UCI_MEMBER}.tsv", folder.with_suffix(".zip")
    problems = []
    for url in UCI_URLS:
        try:
            download_and_unzip_spam_data(url, zip_path, folder, path)
            return path
        except InputError as error:
            problems.append(f"\n  {error}")
    raise InputError(
        f"the SMS Spam Collection could not be had. Tried:{''.join(problems)}\n"
        f"Put its zip file there by hand: {zip_path}, or use --data bundled."
    )


def unzip(zip_path, folder):
    """Unpack the SMS Spam Collection's zip; returns the path of the messages.

    Raises InputError, with nothing unpacked, if the archive is damaged, names a path
    outside the folder, or holds something else.
    """
    zip_path, folder = Path(zip_path), Path(folder)
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        with zipfile.ZipFile(zip_path) as archive:
            for name in archive.namelist():
                target = (partial / name).resolve()
                if not target.is_relative_to(partial.resolve()):
                    raise InputError(f"{zip_path} names a path outside: {name!r}")
            if UCI_MEMBER not in archive.namelist():
                raise InputError(f"{zip_path} holds no {UCI_MEMBER}")
            if not is_uci(archive.read(UCI_MEMBER)):
                raise InputError(f"{zip_path}: {UCI_MEMBER} is not the one published")
            shutil.rmtree(partial, ignore_errors=True)
            archive.extractall(partial)
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(partial.iterdir()):
            path.replace(folder / path.name)
    except (zipfile.BadZipFile, EOFError) as error:
        raise InputError(f"{zip_path} is not a whole zip file: {error}") from None
    except OSError as error:
        raise InputError(f"cannot unpack {zip_path}: {error.strerror}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder / UCI_MEMBER


def is_uci(content):
    """Whether these bytes are those of the SMS Spam Collection."""
    return hashlib.sha256(content).hexdigest().startswith(UCI_SHA256)
