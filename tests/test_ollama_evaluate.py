"""Judging answers: the course's own server as the judge, and one that misbehaves.

A score is never guessed, and what was judged is on disk whatever happens afterwards.
The figures that need no judge are compared with their definitions.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import psutil
import pytest
from helpers_server import Handler, serve
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from test_serve import LIMIT, save_tiny_model, serving

from ch02.cli import InputError
from ch07 import chat_client, ollama_evaluate
from ch07.chat_client import ask, endpoint
from ch07.ollama_evaluate import (
    SCORE_SCHEMA,
    Judge,
    check_if_running,
    cli,
    generate_model_scores,
    judge_prompt,
    query_model,
    read_score,
)
from ch07.reference_metrics import (
    agreement,
    chrf,
    exact_match,
    reference_metrics,
    token_f1,
)

repeatable = settings(max_examples=200, derandomize=True, database=None, deadline=None)
PATHS = {"ollama": "/api/chat", "openai": "/v1/chat/completions"}


def entry(n, response=None):
    return {
        "instruction": "Give the plural of this noun.",
        "input": f"cat{n}",
        "output": f"cat{n}s",
        "model_response": f"cat{n}s" if response is None else response,
    }


ENTRIES = [entry(n) for n in range(6)]


@pytest.fixture
def answers(tmp_path):
    """Write entries to a file; returns its path."""

    def write(entries=ENTRIES):
        path = tmp_path / "answers.json"
        path.write_text(json.dumps(entries), encoding="utf-8")
        return path

    return write


def scores_on_disk(path):
    lines = path.with_name(f"{path.name}.scores.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["score"] for line in lines]


def run(*options):
    try:
        cli([str(option) for option in options])
    except SystemExit as end:
        return end.code
    return 0


def failure(capsys, *options):
    """The one line of a command that must fail."""
    assert run(*options) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1, error
    assert error.startswith("ollama_evaluate: ")
    return error


# Scores


def check_read_score(read_score):
    """A whole number from 0 to 100, alone or under "score": nothing else is a score."""
    for n in range(101):
        assert read_score(str(n)) == n
        assert read_score(f' {{"score": {n}}}\n') == n
        assert read_score(f'{{\n  "score":{n}\n}}') == n
    for text in (
        "", " ", "101", "-1", "1000", "85.0", "8.5", "1e2", "007", "٣", "²", "85%",
        "Score: 85", "85/100", "85 out of 100", "eighty", "null", "true", "[85]",
        '{"score": "85"}', '{"score": 101}', '{"score": -1}', '{"score": 85.5}',
        '{"score": true}', '{"score": null}', '{"grade": 85}', '{"score": 85',
        '{"score": 85} {"score": 20}', '{"score": 85, "score": 20}', "85\n20", '"85"',
        "I'd say 7 of 10, so 70", "```json\n85\n```", "[" * 100_000, "9" * 5000,
    ):  # fmt: skip
        assert read_score(text) is None, text


@repeatable
@given(st.text(st.sampled_from('0123456789 {}":scoret.-e%\n')))
def test_what_is_read_stands_there(text):
    score = read_score(text)
    if score is not None:
        bare = "".join(text.split())
        assert bare in (str(score), f'{{"score":{score}}}')


def first_number(text):
    import re

    match = re.search(r"\d+", text)
    return int(match[0]) if match else None


def any_json(text):
    try:
        value = json.loads(text)
        return value["score"] if isinstance(value, dict) else int(value)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def unbounded(text):
    try:
        return int(text)
    except ValueError:
        return read_score(text)


def test_scores_are_read_strictly():
    check_read_score(read_score)
    for mutant in (first_number, any_json, unbounded):
        with pytest.raises(AssertionError):
            check_read_score(mutant)


# Figures that need no judge


def test_exact_match_and_token_f1():
    assert exact_match("a  cat\n", "a cat")
    assert not exact_match("A cat", "a cat")
    assert not exact_match("a cat.", "a cat")
    assert token_f1("The cat, the DOG", "the dog!") == pytest.approx(2 * 2 / (4 + 2))
    assert token_f1("the the the", "the") == pytest.approx(2 * 1 / (3 + 1))
    assert token_f1("", "cat") == 0
    assert token_f1("?", "!") == 1
    assert token_f1("cat dog", "dog cat") == 1


@repeatable
@given(st.text("ab c"), st.text("ab c"))
def test_token_f1_is_the_harmonic_mean(one, two):
    ours, theirs = Counter(one.split()), Counter(two.split())
    shared = sum(min(ours[word], theirs[word]) for word in ours)
    assert token_f1(one, two) == token_f1(two, one)
    if shared:
        precision, recall = shared / ours.total(), shared / theirs.total()
        mean = 2 * precision * recall / (precision + recall)
        assert token_f1(one, two) == pytest.approx(mean)


def chrf_by_definition(responses, references):
    """Mean over n of precision and of recall of n-grams, then F with beta 2."""
    precisions, recalls = [], []
    for n in range(1, 7):
        shared = ours = theirs = 0
        for texts in zip(responses, references, strict=True):
            texts = ["".join(text.split()) for text in texts]
            grams = [
                Counter(t[i : i + n] for i in range(len(t) - n + 1)) for t in texts
            ]
            shared += (grams[0] & grams[1]).total()
            ours += grams[0].total()
            theirs += grams[1].total()
        precisions.append(shared / ours)
        recalls.append(shared / theirs)
    precision, recall = sum(precisions) / 6, sum(recalls) / 6
    return 100 * 5 * precision * recall / (4 * precision + recall)


def test_chrf():
    responses = ["the cat sat on a mat", "nothing was seen there"]
    references = ["a cat sat on the mat.", "nobody was seen there!"]
    expected = chrf_by_definition(responses, references)
    assert 50 < expected < 90
    assert chrf(responses, references) == pytest.approx(expected)
    assert chrf(references, references) == pytest.approx(100)
    assert chrf(["", ""], references) == 0


def test_the_figures_of_a_file():
    free = {"instruction": "Tell a joke.", "input": "", "output": "Ha."}
    entries = [entry(1), entry(2, "dogs"), {**free, "model_response": "ha"}]
    figures, verdicts = reference_metrics(entries, "model_response")
    assert verdicts == [True, False, None]
    assert figures["Exact match"] == pytest.approx(100 / 3)
    assert figures["Token F1"] == pytest.approx(200 / 3)
    assert figures["Checker"] == 50
    assert "Checker" not in reference_metrics(entries[2:], "model_response")[0]


@repeatable
@given(st.lists(st.tuples(st.none() | st.integers(0, 100), st.none() | st.booleans())))
def test_agreement_is_the_area_under_the_roc_curve(pairs):
    found = agreement([score for score, _ in pairs], [verdict for _, verdict in pairs])
    both = [pair for pair in pairs if None not in pair]
    if len({verdict for _, verdict in both}) < 2:
        assert found is None
        return
    scores, verdicts = zip(*both, strict=True)
    right, wrong, wins = found
    assert wins == pytest.approx(100 * roc_auc_score(verdicts, scores))
    assert right == pytest.approx(sum(s for s, v in both if v) / sum(verdicts))
    assert wrong == pytest.approx(
        sum(s for s, v in both if not v) / (len(both) - sum(verdicts))
    )


# A judge that behaves as its address says


class FaultyJudge(Handler):
    """The first part of the path is the behaviour, the rest that of a protocol."""

    def do_POST(self):
        behaviour = self.path.split("/")[1]
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        headers = {**self.headers, "behaviour": behaviour}
        self.server.requests.append((body, headers))
        getattr(self, f"answer_{behaviour}")(body)

    def do_GET(self):
        names = self.path.split("/")[1].split("+")
        models = [{"name": name} for name in names if name]
        self.answer(json.dumps({"models": models}).encode())

    def say(self, text):
        """An answer in the protocol that was asked for."""
        if self.path.endswith(PATHS["openai"]):
            message = {"role": "assistant", "content": text}
            self.answer(json.dumps({"choices": [{"message": message}]}).encode())
            return
        self.answer("".join(self.lines(text)).encode())

    def lines(self, text):
        for piece in (*text, None):
            message = {"role": "assistant", "content": piece or ""}
            yield json.dumps({"message": message, "done": piece is None}) + "\n"

    def answer_number(self, body):
        self.say("70")

    def answer_schema(self, body):
        self.say('{"score": 70}')

    def answer_words(self, body):
        self.say("A fine answer: 95!")

    def answer_second(self, body):
        attempts = [b for b, _ in self.server.requests]
        same = [b for b in attempts if b["messages"] == body["messages"]]
        self.say("hm" if len(same) == 1 else "42")

    def answer_busy(self, body):
        if len(self.server.requests) == 1:
            self.answer(b"", status=503)
        else:
            self.say("70")

    def answer_crash(self, body):
        self.answer(b'{"error": "out of\\nmemory"}', status=500)

    def answer_cut(self, body):
        """A stream that ends before the end."""
        self.answer("".join(list(self.lines("70"))[:1]).encode())

    def answer_torn(self, body):
        """Fewer bytes than announced."""
        self.answer(b'{"message', length=500)

    def answer_closed(self, body):
        self.close_connection = True

    def answer_stalled(self, body):
        self.server.content = b'{"message": {"content": "7"}, "done": false}\n' * 2
        self.answer_stall()

    def answer_quiet(self, body):
        self.answer_silent()

    def answer_html(self, body):
        self.answer(b"<html>Please log in</html>")

    def answer_list(self, body):
        self.answer(b"[]\n")

    def answer_foreign(self, body):
        self.answer(b'{"answer": "70"}\n')

    def answer_numbers(self, body):
        self.answer(b'{"message": {"content": 7}, "done": true, "choices": [{"message":'
                    b' {"content": 7}}]}\n')  # fmt: skip

    def answer_error(self, body):
        self.answer(b'{"error": "the model ran away"}\n')

    def answer_three(self, body):
        """Three numbers, then nothing."""
        if len(self.server.requests) <= 3:
            self.say("70")
        else:
            self.answer_silent()

    def answer_crash3(self, body):
        self.say("70") if len(self.server.requests) <= 3 else self.answer_crash(body)

    def answer_long(self, body):
        """Refuses what is too long for it."""
        if "cat3" in body["messages"][0]["content"]:
            self.answer(b'{"error": "input too long"}', status=400)
        else:
            self.say("70")

    def answer_meet(self, body):
        """Answers when as many requests are there as the test expects."""
        self.server.content.wait(20)
        self.say("70")


@pytest.fixture
def judge_server(monkeypatch):
    monkeypatch.setattr(chat_client, "TIMEOUT", (5, 1))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serve(None, FaultyJudge) as server:
        yield server


def address(server, behaviour, protocol="ollama"):
    return f"http://127.0.0.1:{server.server_port}/{behaviour}{PATHS[protocol]}"


def test_what_is_sent(judge_server, monkeypatch):
    url = address(judge_server, "number")
    assert query_model("How good?", "phi3", url) == "70"
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    ask("How good?", "gpt", address(judge_server, "number", "openai"), 7, 0.5,
        SCORE_SCHEMA)  # fmt: skip
    ask("How good?", "phi3", url, schema=SCORE_SCHEMA)
    (first, headers), (second, second_headers), (third, _) = judge_server.requests
    message = {"role": "user", "content": "How good?"}
    assert first["model"] == "phi3"
    assert first["messages"] == [message]
    options = first["options"]
    assert (options["seed"], options["temperature"]) == (123, 0)
    assert options["num_ctx"] == 2048
    assert "Authorization" not in headers
    assert second_headers["Authorization"] == "Bearer secret"
    assert second["messages"] == [message]
    assert (second["seed"], second["temperature"]) == (7, 0.5)
    assert second["response_format"]["json_schema"]["schema"] == SCORE_SCHEMA
    assert third["format"] == SCORE_SCHEMA


FAULTS = {
    "crash": "answers 500: out of memory",
    "torn": "no whole answer from",
    "closed": "no whole answer from",
    "stalled": "no whole answer from",
    "quiet": "is silent for 1 seconds",
    "html": "does not speak the protocol",
    "list": "does not speak the protocol",
    "foreign": "does not speak the protocol",
}
# Where the protocols differ; an answer of OpenAI's comes in one piece
OLLAMA_FAULTS = {
    "cut": "broke off before its end",
    "numbers": "does not speak the protocol",
    "error": "the model ran away",
}
OPENAI_FAULTS = {
    "numbers": "no text but 7",
    "error": "does not speak the protocol",
}


@pytest.mark.parametrize(
    ("protocol", "behaviour", "message"),
    [
        *[("ollama", *fault) for fault in (FAULTS | OLLAMA_FAULTS).items()],
        *[("openai", *fault) for fault in (FAULTS | OPENAI_FAULTS).items()],
    ],
)
def test_a_fault_is_one_line(
    protocol, behaviour, message, judge_server, answers, capsys
):
    url = address(judge_server, behaviour, protocol)
    options = ("--file-path", answers(), "--url", url, "--model", "m")
    assert message in failure(capsys, *options)


def test_a_server_that_is_down(answers, capsys, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    for options in ((), ("--model", "m")):
        error = failure(capsys, "--file-path", answers(), "--url",
                        "http://127.0.0.1:9", *options)  # fmt: skip
        assert "no server answers at http://127.0.0.1:9/api/" in error
        assert "python -m ch07.serve" in error


def test_a_proxy_is_not_asked_about_this_computer(judge_server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert ask("?", "m", address(judge_server, "number")) == "70"


@pytest.mark.parametrize(
    ("url", "full"),
    [
        ("http://a:1", "http://a:1/api/chat"),
        ("http://a:1/", "http://a:1/api/chat"),
        ("http://a:1/api/chat", "http://a:1/api/chat"),
        ("https://a/v1", "https://a/v1/chat/completions"),
        ("https://a/x/v1/", "https://a/x/v1/chat/completions"),
        ("https://a/v1/chat/completions?v=2", "https://a/v1/chat/completions?v=2"),
    ],
)
def test_addresses(url, full):
    assert endpoint(url) == full
    assert chat_client.is_openai(full) == ("/v1" in full)
    for wrong in (
        "localhost:11434",
        "ftp://a",
        "http://",
        "http://a:99999",
        "http://a/b",
    ):
        with pytest.raises(InputError):
            endpoint(wrong)


# Runs


@pytest.mark.parametrize("protocol", PATHS)
@pytest.mark.parametrize("behaviour", ["number", "schema", "busy"])
def test_a_run(behaviour, protocol, judge_server, answers, capsys):
    path = answers()
    url = address(judge_server, behaviour, protocol)
    options = ("--file-path", path, "--url", url, "--model", "m", "--workers", 1)
    assert run(*options) == 0
    out = capsys.readouterr().out
    assert "Number of scores: 6 of 6\nAverage score: 70.00\n" in out
    assert scores_on_disk(path) == [70] * 6
    asked = len(judge_server.requests)
    assert asked == 6 + (behaviour == "busy")
    assert run(*options) == 0  # everything is known
    assert len(judge_server.requests) == asked
    assert capsys.readouterr().out == out
    assert run(*options, "--model", "other") == 0  # another judge
    assert len(judge_server.requests) == asked + 6


def test_words_are_no_score_and_asked_again(judge_server, answers, capsys):
    path = answers(ENTRIES[:2])
    fixed = ("--file-path", path, "--model", "m", "--workers", 1, "--url")
    assert run(*fixed, address(judge_server, "words")) == 0
    out = capsys.readouterr().out
    assert out.count("Could not convert score: 'A fine answer: 95!'") == 2
    assert "Number of scores: 0 of 2\n" in out
    assert "Average" not in out
    assert len(judge_server.requests) == 2 * 3
    options = [body["options"] for body, _ in judge_server.requests[:3]]
    assert [o["seed"] for o in options] == [123, 124, 125]
    assert options[0]["temperature"] == 0
    assert min(o["temperature"] for o in options[1:]) > 0
    # What has no score yet is judged by the next run
    judge_server.requests.clear()
    assert run(*fixed, address(judge_server, "second")) == 0
    assert "Number of scores: 2 of 2\nAverage score: 42.00" in capsys.readouterr().out
    assert len(judge_server.requests) == 2 * 2


def test_an_interrupted_run_goes_on(judge_server, answers, capsys):
    path = answers()
    fixed = ("--file-path", path, "--model", "m", "--workers", 1, "--url")
    assert "answers 500" in failure(capsys, *fixed, address(judge_server, "crash3"))
    assert scores_on_disk(path) == [70] * 3
    cache = path.with_name(f"{path.name}.scores.jsonl")
    with cache.open("a") as file:
        file.write('{"model": "m", "prompt": "You gr')  # cut off by a kill
    assert run(*fixed, address(judge_server, "number")) == 0
    asked = [headers["behaviour"] for _, headers in judge_server.requests]
    assert asked.count("number") == 3
    assert "Number of scores: 6 of 6" in capsys.readouterr().out
    assert run(*fixed, address(judge_server, "crash")) == 0  # nothing left to ask
    assert len(cache.read_text().splitlines()) == 7


def test_a_prompt_that_is_too_long_does_not_end_the_run(judge_server, answers, capsys):
    path = answers()
    options = ("--file-path", path, "--model", "m", "--url")
    error = failure(capsys, *options, address(judge_server, "long"))
    assert "entry 3: " in error
    assert "answers 400: input too long" in error
    assert scores_on_disk(path) == [70] * 5


def test_equal_questions_and_empty_answers(judge_server):
    entries = [entry(1), entry(2, " \n"), entry(1), entry(3)]
    judge = Judge("m", address(judge_server, "number"))
    assert judge.score_all(entries, "model_response") == [70, 0, 70, 70]
    assert len(judge_server.requests) == 2


def test_requests_run_side_by_side(judge_server):
    judge_server.content = threading.Barrier(3)
    judge = Judge("m", address(judge_server, "meet"), workers=3)
    assert judge.score_all(ENTRIES, "model_response") == [70] * 6
    assert not judge_server.content.broken


INTERRUPTED = """
import signal, sys
from ch07.ollama_evaluate import cli

signal.signal(signal.SIGINT, signal.default_int_handler)
cli(sys.argv[1:])
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_ctrl_c_loses_nothing(judge_server, answers, capsys):
    path = answers()
    fixed = ("--file-path", path, "--model", "m", "--workers", 2, "--url")
    url = address(judge_server, "three")
    command = [sys.executable, "-c", INTERRUPTED, *fixed, url]
    with subprocess.Popen(
        [str(part) for part in command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        cache = path.with_name(f"{path.name}.scores.jsonl")
        while process.poll() is None:
            if cache.exists() and cache.read_text().count("\n") == 3:
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors == ""
    assert out.endswith("Stopped. The same command goes on from here.\n")
    assert scores_on_disk(path) == [70] * 3
    judge_server.requests.clear()
    assert run(*fixed, address(judge_server, "number")) == 0
    assert len(judge_server.requests) == 3
    assert "Number of scores: 6 of 6" in capsys.readouterr().out


def test_the_book_s_functions(judge_server, monkeypatch, capsys):
    monkeypatch.setattr(ollama_evaluate, "URL", address(judge_server, "second"))
    assert generate_model_scores(ENTRIES, "output") == [42] * 6
    monkeypatch.setattr(ollama_evaluate, "URL", address(judge_server, "long"))
    assert generate_model_scores(ENTRIES[2:4], "output") == [70]
    assert "entry 1: " in capsys.readouterr().out
    monkeypatch.setattr(ollama_evaluate, "URL", address(judge_server, "words"))
    assert generate_model_scores([entry(7), entry(8, "")], "model_response") == [0]
    assert "Could not convert score: 'A fine answer: 95!'" in capsys.readouterr().out
    assert {body["model"] for body, _ in judge_server.requests} == {"llama3"}
    assert check_if_running(psutil.Process().name())
    assert not check_if_running("no program has such a name")


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ("a+llama3:latest+b", "llama3"),
        ("tiny", "tiny"),
        ("a+b", "models at .*: a, b"),
        ("+", "none yet"),
    ],
)
def test_the_judge_that_is_taken(names, chosen, judge_server):
    url = f"http://127.0.0.1:{judge_server.server_port}/{names}/api/chat"
    if names in ("a+b", "+"):
        with pytest.raises(InputError, match=chosen):
            ollama_evaluate.choose_model(url)
    else:
        assert ollama_evaluate.choose_model(url) == chosen


# Files that cannot be used


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "line 1, column 1: not JSON"),
        ('[\n {"instruction": "a",}\n]', "line 2, column 22: not JSON"),
        ("{}", "is not a list of entries"),
        ("[]", "is not a list of entries"),
        ("[7]", "entry 0 is no entry but 7"),
        (json.dumps([entry(1), {**entry(1), "output": ""}]),
         "entry 1: output is empty"),
        (json.dumps([{**entry(1), "output": 5}]), "entry 0: output is not text"),
        (json.dumps([{"output": "a"}]), "entry 0 has no field 'instruction'"),
        (json.dumps([entry(1), {**entry(1), "model_response": None}]),
         "entry 1: model_response is not text"),
        (json.dumps([{k: v for k, v in entry(1).items() if k != "model_response"}]),
         "entry 0: model_response is missing"),
    ],
)  # fmt: skip
def test_bad_answers_get_one_line(content, message, tmp_path, capsys):
    path = tmp_path / "answers.json"
    path.write_text(content, encoding="utf-8")
    error = failure(capsys, "--file-path", path, "--offline")
    assert message in error
    assert str(path) in error


def test_other_files_and_options(answers, tmp_path, capsys):
    assert "no file" in failure(capsys, "--file-path", tmp_path / "none.json")
    path = answers()
    url = ("--url", "http://127.0.0.1:9", "--model", "m")
    error = failure(capsys, "--file-path", path, *url, "--cache", tmp_path)
    assert "cannot use" in error
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "holds no scores" in failure(
        capsys, "--file-path", path, *url, "--cache", binary
    )
    assert binary.read_bytes() == b"\xff\xfe\x00"
    assert "--file-path" in failure(capsys)
    assert "whole number" in failure(capsys, "--file-path", path, "--workers", 0)
    assert run("--file-path", path, "--offline", "--key", "output") == 0
    assert "Exact match 100.00" in capsys.readouterr().out


# The course's own server


@pytest.fixture(scope="module")
def course_server(tmp_path_factory):
    checkpoint = save_tiny_model(tmp_path_factory.mktemp("tiny"))
    with serving("--checkpoint", checkpoint, "--max-new-tokens", LIMIT) as url:
        yield url


def test_two_terminals(course_server, answers, capsys):
    """Both protocols give the same scores; one answer is too long for the judge."""
    entries = [*ENTRIES, entry(9, "dogs")]
    path = answers(entries)
    assert run("--file-path", path, "--url", course_server) == 0
    out = capsys.readouterr().out
    assert "Judged by tiny" in out
    assert "Number of scores: 7 of 7" in out
    by_ollama, by_openai = (
        Judge("tiny", url).score_all(entries, "model_response")
        for url in (course_server, f"{course_server}/v1")
    )
    assert by_ollama == by_openai
    assert sorted(by_ollama) == sorted(scores_on_disk(path))
    assert f"Average score: {sum(by_ollama) / 7:.2f}\n" in out
    right, wrong = sum(by_ollama[:-1]) / 6, by_ollama[-1]
    assert f"of right answers {right:.2f}, of wrong ones {wrong:.2f}\n" in out

    path = answers([entry(10), entry(11, "word " * 300), entry(12)])
    error = failure(capsys, "--file-path", path, "--url", course_server)
    assert "entry 1: " in error
    assert "tokens, tiny reads 1 to 256" in error
    assert len(scores_on_disk(path)) == 7 + 2
    error = failure(capsys, "--file-path", path, "--url", course_server, "--model", "x")
    assert "answers 404: no model 'x' here, only 'tiny'" in error


def test_a_judge_that_writes_freely(course_server):
    answer = query_model("Say hello.", "tiny", course_server)
    assert answer == query_model("Say hello.", "tiny", f"{course_server}/v1")
    assert read_score(answer) is None
    assert "cat1s" in judge_prompt(entry(1), "cat1s")
