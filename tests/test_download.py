"""Downloads against a server of our own: right, wrong, cut off, slow, not there.

Whatever the server does, the file under its final name is the right one or is not
there, and the message says what was tried and what to do.
"""

import errno
import hashlib
import socket
from pathlib import Path

import pooch
import pytest
from helpers_server import serve

from ch02 import dataloader, download
from ch02.cli import InputError
from ch02.dataloader import load_text
from ch02.download import THE_VERDICT, CourseFile, data_dir, fetch
from ch05 import gpt_train

CONTENT = b"The river came into the printing house.\n" * 2000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(scope="module")
def server():
    with serve(CONTENT) as running:
        yield running


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, server):
    """LLM_COURSE_DATA: a folder that does not exist yet. No proxy on the way."""
    monkeypatch.setenv("LLM_COURSE_DATA", str(tmp_path / "data"))
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setattr("pooch.downloaders.DEFAULT_TIMEOUT", 1)
    server.requests.clear()
    return tmp_path / "data"


def course_file(*urls):
    return CourseFile("file.txt", SHA256, urls, "read something else")


def unreachable():
    """The address of a port where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return f"http://127.0.0.1:{port}/file.txt"


def fails(file):
    with pytest.raises(InputError) as caught:
        fetch(file)
    return str(caught.value)


def assert_only_the_right_file(folder):
    assert [path.name for path in folder.iterdir()] == ["file.txt"]
    assert (folder / "file.txt").read_bytes() == CONTENT


@pytest.mark.parametrize("behaviour", ["right", "moved"])
def test_a_file_arrives_once(behaviour, server, folder):
    file = course_file(server.url(behaviour))
    assert fetch(file) == folder / "file.txt"
    assert_only_the_right_file(folder)
    requests = list(server.requests)
    assert fetch(file) == folder / "file.txt"
    assert server.requests == requests  # the second time nobody is asked


BAD = {
    "wrong": "SHA-256|hash",
    "empty": "SHA-256|hash",
    "cut": "IncompleteRead|incomplete|cut off|connection",
    "missing": "404",
    "busy": "503",
    "circle": "redirect",
    "silent": "connection|timed out|no answer",
    "stall": "connection|timed out|no answer",
}


@pytest.mark.parametrize("behaviour", BAD)
def test_a_bad_source_leaves_nothing_behind(behaviour, server, folder):
    url = server.url(behaviour)
    message = fails(course_file(url))
    # What was tried, with the reason; one line each
    (reason,) = [line for line in message.splitlines() if url in line]
    assert any(word in reason for word in BAD[behaviour].split("|")), reason
    assert behaviour in server.requests
    assert not folder.exists() or list(folder.iterdir()) == []


@pytest.mark.parametrize("behaviour", BAD)
def test_the_second_source_steps_in(behaviour, server, folder):
    assert fetch(course_file(server.url(behaviour), server.url("right")))
    assert_only_the_right_file(folder)


def test_nobody_answers(server, folder):
    first, second = unreachable(), server.url("missing")
    message = fails(course_file(first, second))
    assert message.startswith("file.txt could not be downloaded")
    tried = message.splitlines()[1:-1]
    assert len(tried) == 2
    assert first in tried[0]
    assert "no connection" in tried[0]
    assert second in tried[1]
    assert "404" in tried[1]
    # Where to put it by hand, how to recognise it, what to do without it
    last_line = message.splitlines()[-1]
    for words in (str(folder / "file.txt"), SHA256, "read something else"):
        assert words in last_line
    assert fetch(course_file(first, second, server.url("right")))


def test_a_server_without_tls_is_not_called_unreachable(server, folder):
    message = fails(course_file(server.url("right").replace("http:", "https:")))
    assert "file.txt: no secure connection (TLS)" in message


def test_a_file_put_there_by_hand_needs_no_network(server, folder, monkeypatch):
    folder.mkdir()
    (folder / "file.txt").write_bytes(CONTENT)
    monkeypatch.setattr(pooch, "retrieve", pytest.fail)
    assert fetch(course_file(server.url("right"))) == folder / "file.txt"
    assert server.requests == []


def test_a_wrong_file_put_there_by_hand_is_reported(server, folder):
    folder.mkdir()
    (folder / "file.txt").write_bytes(b"something else")
    message = fails(course_file(server.url("wrong"), server.url("cut")))
    assert f"{folder / 'file.txt'}: there, but its SHA-256" in message
    # It is the reader's: only the right file may replace it
    assert (folder / "file.txt").read_bytes() == b"something else"
    assert len(list(folder.iterdir())) == 1
    fetch(course_file(server.url("right")))
    assert_only_the_right_file(folder)


def test_the_folder_may_begin_with_a_tilde(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("LLM_COURSE_DATA", "~/data")
    assert fetch(course_file(server.url("right"))) == tmp_path / "data" / "file.txt"
    monkeypatch.delenv("LLM_COURSE_DATA")
    assert "llm-from-scratch" in str(data_dir())


@pytest.mark.parametrize("content", ["file", "file in the path"])
def test_a_folder_that_is_a_file(content, server, folder, monkeypatch):
    folder.write_bytes(b"a file")
    target = folder if content == "file" else folder / "deeper"
    monkeypatch.setenv("LLM_COURSE_DATA", str(target))
    message = fails(course_file(server.url("right")))
    assert str(target) in message
    assert folder.read_bytes() == b"a file"


def no_rights(*args, **kwargs):
    raise PermissionError(errno.EACCES, "Permission denied")


@pytest.mark.parametrize("function", ["os.makedirs", "tempfile.NamedTemporaryFile"])
def test_a_folder_without_the_right_to_write(function, server, folder, monkeypatch):
    if function != "os.makedirs":
        folder.mkdir()
    monkeypatch.setattr(function, no_rights)
    message = fails(course_file(server.url("right")))
    assert "denied" in message
    assert str(folder) in message


def test_a_file_without_the_right_to_read(server, folder, monkeypatch):
    folder.mkdir()
    (folder / "file.txt").write_bytes(CONTENT)
    monkeypatch.setattr(Path, "open", no_rights)
    message = fails(course_file(server.url("missing")))
    assert str(folder / "file.txt") in message


def test_disk_full_while_downloading(server, folder, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.move", full)
    monkeypatch.setattr("os.replace", full)
    message = fails(course_file(server.url("right")))
    assert "No space left" in message
    assert list(folder.iterdir()) == []


def test_the_books_text_through_the_command_lines(server, folder, monkeypatch, capsys):
    """Reached by name; without a network a message, and then the bundled text."""
    sources = {"urls": (unreachable(), server.url("wrong")), "sha256": SHA256}
    book = CourseFile(**{**vars(THE_VERDICT), **sources})
    monkeypatch.setattr(dataloader, "THE_VERDICT", book)
    for script in (dataloader.main, gpt_train.cli):
        with pytest.raises(SystemExit) as end:
            script(["--text", "the-verdict"])
        assert end.value.code == 2
        error = capsys.readouterr().err
        assert "Traceback" not in error
        assert error.count("the-verdict.txt could not be downloaded") == 1
        assert "--text bundled" in error
    monkeypatch.setattr(
        dataloader,
        "THE_VERDICT",
        CourseFile(**{**vars(book), "urls": (server.url("right"),)}),
    )
    assert load_text("the-verdict") == CONTENT.decode()
    assert (folder / "the-verdict.txt").read_bytes() == CONTENT


def test_every_course_file_has_two_sources_and_an_alternative():
    files = [file for file in vars(download).values() if isinstance(file, CourseFile)]
    assert THE_VERDICT in files
    for file in files:
        assert len(file.sha256) == 64
        assert int(file.sha256, 16)
        assert len({url.split("/")[2] for url in file.urls}) >= 2
        assert all(url.startswith("https://") for url in file.urls)
        assert file.instead
