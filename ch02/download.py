"""Files that are not part of the course: looked for, downloaded, checked, cached.

`fetch` looks in one folder, LLM_COURSE_DATA (default: the user's cache folder).
A file put there by hand counts as downloaded once its SHA-256 is right. Nothing is
half-written: pooch downloads to a temporary name and renames it after the check.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from ch02.cli import InputError


@dataclass(frozen=True)
class CourseFile:
    """A file the course may download: where it can be had and how to recognise it."""

    name: str
    sha256: str
    urls: tuple[str, ...]
    instead: str  # what the reader can do without the file


THE_VERDICT = CourseFile(
    name="the-verdict.txt",
    sha256="b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f",
    urls=(
        "https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main/"
        "ch02/01_main-chapter-code/the-verdict.txt",
        "https://cdn.jsdelivr.net/gh/rasbt/LLMs-from-scratch@main/"
        "ch02/01_main-chapter-code/the-verdict.txt",
    ),
    instead="use the course's own story (LLM_COURSE_TEXT=bundled or --text bundled)",
)


def data_dir():
    """Return the folder of downloaded files (LLM_COURSE_DATA or the user's cache)."""
    if folder := os.environ.get("LLM_COURSE_DATA"):
        return Path(folder).expanduser()
    import pooch

    return Path(pooch.os_cache("llm-from-scratch"))


def has_right_checksum(path, sha256):
    """Whether the file exists and has this SHA-256."""
    import hashlib

    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


def fetch(file):
    """Return the local path of a `CourseFile`, downloading it if need be.

    Raises InputError, with what to put where, if no source delivers the right bytes.
    """
    path = data_dir() / file.name
    try:
        if has_right_checksum(path, file.sha256):
            return path
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None

    problems = []
    if path.is_file():
        problems.append(f"{path}: there, but its SHA-256 is not the expected one")
    for url in file.urls:
        try:
            return retrieve(url, path, f"sha256:{file.sha256}")
        except InputError as error:
            problems.append(str(error))
    tried = "".join(f"\n  {problem}" for problem in problems)
    raise InputError(
        f"{file.name} could not be downloaded. Tried:{tried}\n"
        f"Put the file there by hand: {path} (SHA-256 {file.sha256}), "
        f"or {file.instead}."
    )


def retrieve(url, path, known_hash=None):
    """Download one file, with a progress bar, and return its path.

    known_hash: "sha256:..." of the right bytes; None takes what is there, or what
    comes. Raises InputError "url: reason".
    """
    import pooch
    from requests.exceptions import ConnectionError, SSLError, Timeout

    pooch.get_logger().setLevel("ERROR")
    try:
        pooch.retrieve(
            url, known_hash, fname=path.name, path=path.parent, progressbar=True
        )
    except SSLError:  # also a ConnectionError
        raise InputError(f"{url}: no secure connection (TLS)") from None
    except (ConnectionError, Timeout):
        raise InputError(f"{url}: no connection") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{url}: {error}") from None
    return path
