"""Ask a model on a server one question, in Ollama's protocol or in OpenAI's.

`ask` returns the whole answer or raises an InputError: half of an answer is none. A
server that says it is busy is asked again. Not here: conversations of several messages,
and any other proof of who asks than the key in OPENAI_API_KEY.
"""

import json
import os
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import NewConnectionError
from urllib3.util import Retry

from ch02.cli import InputError

URL = "http://localhost:11434/api/chat"
SEED, NUM_CTX = 123, 2048  # the book's
TIMEOUT = (5, 300)  # seconds to connect, and between two pieces of an answer
BUSY = (429, 502, 503)  # answers after which a server is asked again
LOCAL = ("localhost", "127.0.0.1", "::1")


class Refusal(InputError):
    """The server works, but not with this prompt."""


def ask(prompt, model, url=URL, seed=SEED, temperature=0, schema=None):
    """What a model answers to a prompt; a string.

    url: ends in /chat/completions or /v1 for OpenAI's protocol, else it is Ollama's.
    schema: the JSON schema that the answer is to follow. Raises InputError.
    """
    url = endpoint(url)
    body = {"model": model, "messages": [{"role": "user", "content": prompt}]}
    headers = {}
    if is_openai(url):
        read = read_completion
        body |= {"seed": seed, "temperature": temperature}
        if schema:
            named = {"name": "answer", "schema": schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
    else:
        read = read_stream
        # As much as the window holds: a model that finds no end is stopped
        limits = {"num_ctx": NUM_CTX, "num_predict": NUM_CTX}
        body["options"] = {"seed": seed, "temperature": temperature, **limits}
        # Newer servers then refuse a prompt that they would otherwise cut
        body["truncate"] = False
        if schema:
            body["format"] = schema
    return send("POST", url, read, json=body, headers=headers)


def models_at(url):
    """The names of the models that an Ollama server has."""
    url = endpoint(url)
    if is_openai(url):
        raise InputError(f"name the --model at {url}")
    return send("GET", url.removesuffix("chat") + "tags", read_tags)


def endpoint(url):
    """The address to post to: the part of it that may be left out is added."""
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError
        _ = parts.port  # raises ValueError
    except ValueError:
        raise InputError(f"{url!r} is not an address such as {URL}") from None
    path = parts.path.rstrip("/")
    if path == "":
        path = "/api/chat"
    elif path.endswith("/v1"):
        path += "/chat/completions"
    elif not path.endswith(("/api/chat", "/chat/completions")):
        raise InputError(f"{url} must end in /api/chat or in /v1/chat/completions")
    return parts._replace(path=path).geturl()


def is_openai(url):
    return urlsplit(url).path.endswith("/chat/completions")


def send(method, url, read, **request):
    """What `read` makes of the response to a request; InputError if it is not 200."""
    with requests.Session() as session:
        # A proxy to the internet cannot know a server on this computer
        session.trust_env = urlsplit(url).hostname not in LOCAL
        # As requests does it, but a busy server is asked three times more
        again = Retry(None, connect=0, read=False, status=3, status_forcelist=BUSY,
                      backoff_factor=1, allowed_methods=None,
                      raise_on_status=False)  # fmt: skip
        session.mount(url, HTTPAdapter(max_retries=again))
        request |= {"stream": True, "timeout": TIMEOUT}
        try:
            with session.request(method, url, **request) as response:
                if response.status_code == 200:
                    return read(response)
                reason = reason_of(response)
        except InputError as error:
            raise InputError(f"{url}: {error}") from None
        except requests.ReadTimeout:
            raise InputError(f"{url} is silent for {TIMEOUT[1]} seconds") from None
        except requests.RequestException as error:
            reason = error.args[0] if error.args else None
            if isinstance(getattr(reason, "reason", None), NewConnectionError):
                raise InputError(
                    f"no server answers at {url}: start Ollama (ollama serve), or the "
                    "course's own (python -m ch07.serve), or name another --url"
                ) from None
            raise InputError(f"no whole answer from {url}: {error}") from None
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise InputError(f"{url} does not speak the protocol: {error!r}") from None
    kind = Refusal if response.status_code == 400 else InputError
    raise kind(f"{url} answers {response.status_code}: {reason}")


def reason_of(response):
    """What a server says about its refusal, in one line."""
    reason = response.text
    try:
        reason = json.loads(reason)["error"]  # Ollama's: a text
        reason = reason["message"]  # OpenAI's
    except (ValueError, LookupError, TypeError, RecursionError):
        pass
    return " ".join(str(reason).split())[:300]


def read_stream(response):
    """The text of Ollama's answer, which comes as one JSON object per line."""
    pieces = []
    for line in filter(None, response.iter_lines()):
        piece = json.loads(line)
        if "error" in piece:
            raise InputError(str(piece["error"]))
        pieces.append(piece["message"]["content"])
        if piece.get("done"):
            return "".join(pieces)
    raise InputError("the answer broke off before its end")


def read_completion(response):
    """The text of an answer in OpenAI's protocol, which comes in one piece."""
    text = json.loads(response.content)["choices"][0]["message"]["content"]
    if not isinstance(text, str):
        raise InputError(f"the answer holds no text but {text!r}")
    return text


def read_tags(response):
    """The names in an answer to /api/tags."""
    return [str(model["name"]) for model in json.loads(response.content)["models"]]
