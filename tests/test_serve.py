"""The server as a process of its own, asked by programs that others have written.

The `ollama` and `openai` clients read what it sends; its texts are those of `generate`.
The model is tiny and random. `serving` starts a server for other tests too.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from hashlib import sha256

import ollama
import openai
import pytest
import requests
import torch
from safetensors.torch import load_file

from ch02.cli import InputError
from ch02.dataloader import get_tokenizer
from ch04.gpt import GPT_CONFIG_124M, GPTModel
from ch05.checkpoint import load_model, save_weights
from ch05.gpt_generate import generate
from ch05.gpt_train import text_to_token_ids
from ch07 import serve
from ch07.answering import Answer, Served, texts_of
from ch07.gpt_instruction_finetuning import RESPONSE, format_input

CONFIG = {
    **GPT_CONFIG_124M,
    "context_length": 256,
    "emb_dim": 12,
    "n_heads": 2,
    "n_layers": 1,
    "drop_rate": 0.0,
}
LIMIT = 9  # tokens of an answer
SCHEMA = {
    "type": "object",
    "properties": {"score": {"type": "integer", "minimum": 0, "maximum": 100}},
    "required": ["score"],
    "additionalProperties": False,
}
HELLO = [{"role": "user", "content": "Say hello."}]
GREEDY = {"temperature": 0}


def save_tiny_model(folder, **changes):
    """A random model in a file; returns the path."""
    torch.manual_seed(3)
    config = {**CONFIG, **changes}
    path = folder / "tiny.safetensors"
    save_weights(path, GPTModel(config), config)
    return path


def http(method, url, **options):
    """A request to this computer, whatever proxy the environment names."""
    with requests.Session() as session:
        session.trust_env = False
        return session.request(method, url, timeout=60, **options)


@contextmanager
def serving(*options):
    """A process of `ch07.serve` on a free port; yields its address."""
    command = [sys.executable, "-m", "ch07.serve", "--port", "0", "--device", "cpu"]
    with subprocess.Popen(
        [*command, *map(str, options)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        try:
            line = process.stdout.readline()  # empty if the process ends
            assert " answers at " in line, process.communicate()[1]
            url = line.split(" answers at ")[1].split(" ")[0]
            assert http("GET", f"{url}/api/tags").ok  # waits until it is ready
            yield url
        finally:
            process.send_signal(signal.SIGINT if os.name != "nt" else signal.SIGTERM)
            _, errors = process.communicate(timeout=60)
    assert errors == ""
    assert process.returncode == 0 or os.name == "nt"  # Ctrl-C is how it ends


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def url(checkpoint):
    with serving("--checkpoint", checkpoint, "--max-new-tokens", LIMIT) as url:
        yield url


@pytest.fixture
def client(url):
    return ollama.Client(url, trust_env=False)


@pytest.fixture
def openai_client(url):
    return openai.OpenAI(
        base_url=f"{url}/v1",
        api_key="none",
        max_retries=0,
        http_client=openai.DefaultHttpxClient(trust_env=False),
    )


@pytest.fixture(scope="module")
def served(checkpoint):
    model, config = load_model(checkpoint)
    return Served("tiny", model, config, torch.device("cpu"), None, LIMIT)


def post(url, path, **body):
    body = {"model": "tiny", "messages": HELLO, **body}
    return http("POST", f"{url}{path}", json=body)


def prompt_ids(message="Say hello."):
    prompt = format_input({"instruction": message, "input": ""})
    return text_to_token_ids(prompt + RESPONSE[format_input], get_tokenizer())


def expected_text(served, n):
    """What the book's `generate` makes of the prompt."""
    ids = prompt_ids()
    longer = generate(served.model, ids, n, CONFIG["context_length"])
    tokens = longer[0, ids.shape[1] :].tolist()
    assert get_tokenizer().eot_token not in tokens
    return get_tokenizer().decode(tokens)


# Ollama's protocol


def test_the_stream_has_ollama_s_form(url, served):
    response = post(url, "/api/chat", options=GREEDY)
    assert response.headers["content-type"].startswith("application/x-ndjson")
    *pieces, last = [json.loads(line) for line in response.text.splitlines()]
    assert len(pieces) > 1
    for piece in pieces:
        assert set(piece) == {"model", "created_at", "message", "done"}
        assert piece["done"] is False
        assert piece["message"]["content"]
    for piece in (*pieces, last):
        assert piece["model"] == "tiny"
        assert datetime.fromisoformat(piece["created_at"]).tzinfo
        assert set(piece["message"]) == {"role", "content"}
        assert piece["message"]["role"] == "assistant"
    text = "".join(piece["message"]["content"] for piece in pieces)
    assert text == expected_text(served, LIMIT)
    assert last["message"]["content"] == ""
    assert (last["done"], last["done_reason"]) == (True, "length")
    assert last["prompt_eval_count"] == prompt_ids().shape[1]
    assert last["eval_count"] == LIMIT
    assert all(
        isinstance(last[name], int)
        for name in (
            "total_duration", "load_duration", "prompt_eval_duration", "eval_duration",
        )
    )  # fmt: skip


def test_the_ollama_client(client, served):
    whole = client.chat("tiny", HELLO, options={**GREEDY, "num_predict": 4})
    assert whole.message.content == expected_text(served, 4)
    assert (whole.done, whole.eval_count) == (True, 4)
    pieces = list(client.chat("tiny", HELLO, options=GREEDY, stream=True))
    text = "".join(piece.message.content for piece in pieces)
    assert text == expected_text(served, LIMIT)
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    no_limit = client.chat("tiny:latest", HELLO, options={**GREEDY, "num_predict": -1})
    assert no_limit.message.content == text


def test_the_list_of_models(client, checkpoint, served):
    (model,) = client.list().models
    assert model.model == "tiny"
    assert model.modified_at.tzinfo
    tensors = load_file(checkpoint)
    names = [name for name, _ in served.model.named_parameters()]
    content = b"".join(tensors[name].numpy().tobytes() for name in names)
    assert model.digest == sha256(content).hexdigest()
    assert model.size == len(content)
    assert model.details.parameter_size == f"{len(content) / 4e6:.1f}M"


# OpenAI's


def test_the_events_have_openai_s_form(url, served):
    response = post(url, "/v1/chat/completions", stream=True, temperature=0)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.split("\n\n")
    assert all(event.startswith("data: ") for event in events[:-1])
    assert events[-2:] == ["data: [DONE]", ""]
    first, *pieces, last = [json.loads(event[6:]) for event in events[:-2]]
    assert {piece["id"] for piece in (first, *pieces, last)} == {first["id"]}
    assert first["object"] == "chat.completion.chunk"
    (choice,) = first["choices"]
    assert choice["delta"] == {"role": "assistant", "content": ""}
    assert choice["finish_reason"] is None
    text = "".join(piece["choices"][0]["delta"]["content"] for piece in pieces)
    assert text == expected_text(served, LIMIT)
    assert last["choices"][0]["delta"] == {}
    assert last["choices"][0]["finish_reason"] == "length"


def test_the_openai_client(openai_client, served):
    create = openai_client.chat.completions.create
    fixed = {"model": "tiny", "messages": HELLO, "temperature": 0}
    whole = create(**fixed, max_completion_tokens=4)
    assert whole.object == "chat.completion"
    assert whole.choices[0].message.content == expected_text(served, 4)
    assert whole.choices[0].message.role == "assistant"
    assert whole.choices[0].finish_reason == "length"
    n_prompt = prompt_ids().shape[1]
    assert whole.usage.prompt_tokens == n_prompt
    assert whole.usage.completion_tokens == 4
    assert whole.usage.total_tokens == n_prompt + 4
    usage = {"stream_options": {"include_usage": True}}
    *chunks, last = create(**fixed, stream=True, **usage)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == expected_text(served, LIMIT)
    assert last.choices == []
    assert last.usage.completion_tokens == LIMIT


# What is chosen


def test_seeds_and_requests_side_by_side(client):
    def ask(seed):
        options = {"temperature": 1.5, "top_k": 0, "seed": seed}
        return client.chat("tiny", HELLO, options=options).message.content

    alone = [ask(seed) for seed in range(4)]
    assert len(set(alone)) == 4
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(4))) == alone


def test_an_answer_kept_to_a_format(client, openai_client):
    texts = {json.dumps({"score": n}) for n in range(101)}
    seen = set()
    for seed in range(5):
        options = {"temperature": 2, "seed": seed}
        answer = client.chat("tiny", HELLO, format=SCHEMA, options=options)
        assert answer.done_reason == "stop"
        seen.add(answer.message.content)
    assert seen < texts
    assert len(seen) > 1
    named = {"name": "answer", "schema": SCHEMA, "strict": True}
    answer = openai_client.chat.completions.create(
        model="tiny",
        messages=HELLO,
        temperature=0,
        response_format={"type": "json_schema", "json_schema": named},
    )
    same = client.chat("tiny", HELLO, format=SCHEMA, options=GREEDY)
    assert answer.choices[0].message.content == same.message.content
    assert same.message.content in texts


def test_a_format_leaves_the_likeliest_of_what_it_allows(served):
    """Against the definition: forward passes, tokens that lead on, the likeliest."""
    tokenizer = get_tokenizer()
    end = [tokenizer.eot_token]
    choices = [tokenizer.encode(text) + end for text in texts_of(SCHEMA)]
    ids, written = tokenizer.encode("How good is it?"), []
    while written[-1:] != end:
        logits = served.model(torch.tensor([ids + written]))[0, -1]
        n = len(written)
        going_on = {choice[n] for choice in choices if choice[:n] == written}
        written.append(max(going_on, key=lambda token: logits[token].item()))
    answer = Answer(served, "How good is it?", GREEDY, SCHEMA)
    assert "".join(answer) == tokenizer.decode(written[:-1])
    assert (answer.n_tokens, answer.reason) == (len(written) - 1, "stop")


def test_a_prompt_without_style_is_the_message(served):
    answer = Answer(served, "Say <|endoftext|>", GREEDY)
    assert get_tokenizer().decode(answer.ids) == "Say <|endoftext|>"
    assert get_tokenizer().eot_token not in answer.ids
    drawn = ["".join(Answer(served, "a", {"temperature": 9})) for _ in range(3)]
    assert len(set(drawn)) > 1  # no seed is not always the same seed


# Requests that cannot be answered

LONG = [{"role": "user", "content": "word " * 300}]
TOO_LONG = f"the prompt has {prompt_ids('word ' * 300).shape[1]} tokens, tiny reads"
BAD = {
    "too long": ({"messages": LONG}, 400, TOO_LONG),
    "another model": ({"model": "llama3"}, 404, "no model 'llama3' here, only 'tiny'"),
    "no messages": ({"messages": []}, 400, "messages must be a list"),
    "no text": ({"messages": [{"role": "user", "content": 7}]}, 400, "messages must"),
    "temperature": ({"temperature": -1}, 400, "temperature must be 0 or"),
    "temperature as text": ({"temperature": "hot"}, 400, "temperature must be"),
    "seed": ({"seed": 1.5}, 400, "seed must be a whole number"),
    "top_p": ({"top_p": 7}, 400, "top_p must be"),
}


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
@pytest.mark.parametrize("case", BAD)
def test_bad_requests_get_one_line(case, path, url):
    body, status, message = BAD[case]
    if path == "/api/chat" and not {"messages", "model"} & set(body):
        body = {"options": body}
    response = post(url, path, **body)
    error = response.json()["error"]
    if path == "/v1/chat/completions":
        assert error["type"] == "invalid_request_error"
        error = error["message"]
    assert response.status_code == status
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b'{"model": "tiny",', "not JSON: Expecting property name"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"model": "tiny", "messages": [{"content": "x"}], "options": 1}', "options"),
        (
            b'{"model": "tiny", "messages": [{"content": "x"}], "format": "json"}',
            "only f",
        ),
    ],
)
def test_bodies_that_are_no_request(content, message, url):
    response = http("POST", f"{url}/api/chat", data=content)
    assert response.status_code == 400
    assert message in response.json()["error"]


def test_other_programs_understand_the_errors(url, client, openai_client):
    with pytest.raises(ollama.ResponseError, match=TOO_LONG) as caught:
        client.chat("tiny", LONG)
    assert caught.value.status_code == 400
    with pytest.raises(openai.BadRequestError, match=TOO_LONG):
        openai_client.chat.completions.create(model="tiny", messages=LONG)
    with pytest.raises(openai.NotFoundError, match="only 'tiny'"):
        openai_client.chat.completions.create(model="gpt-4", messages=HELLO)
    assert http("GET", f"{url}/none").json() == {"error": "Not Found"}


def test_a_client_that_leaves_does_no_harm(client):
    for _ in range(3):
        stream = client.chat("tiny", HELLO, options=GREEDY, stream=True)
        next(stream)
        stream.close()
    assert client.chat("tiny", HELLO, options=GREEDY).done


@pytest.mark.parametrize(
    "schema", [{}, {"properties": {}}, {"properties": {"a": {"type": "string"}}}, 5,
               {"properties": {"a": {"type": "integer", "minimum": 5, "maximum": 1}}}]
)  # fmt: skip
def test_formats_that_cannot_be_kept(schema):
    with pytest.raises(InputError, match="an object with one integer"):
        texts_of(schema)


# The command line


@pytest.fixture
def refused(capsys):
    def run(*options):
        with pytest.raises(SystemExit) as end:
            serve.cli([*map(str, options), "--device", "cpu"])
        error = capsys.readouterr().err
        assert end.value.code == 2, error
        assert len(error.splitlines()) == 1, error
        assert error.startswith("serve: ")
        return error

    return run


def test_wrong_options_get_one_line(refused, tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "another --port" in refused("--port", taken.getsockname()[1])
    assert "another --port" in refused("--port", 99999)
    assert "cannot listen on no.such.host.invalid" in refused(
        "--host", "no.such.host.invalid"
    )
    assert "no checkpoint in" in refused("--port", 0, "--checkpoint", tmp_path)
    other = save_tiny_model(tmp_path, vocab_size=99)
    assert "another vocabulary" in refused("--port", 0, "--checkpoint", other)
    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    assert 'pip install -e ".[serve]"' in refused("--port", 0)
