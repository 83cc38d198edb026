"""Serve a model of the course to programs that know Ollama's protocol or OpenAI's.

Answers /api/tags, /api/chat and /v1/chat/completions, in pieces or whole. A chat has no
memory here: the last message is all that the model reads. Needs the extra `serve`
(`pip install -e ".[serve]"`). Run it: `python -m ch07.serve` offers the mini model on
port 11434 of this computer, `--checkpoint runs/instructions-gpt2-mini` your own.
"""

import json
import socket
import time
from contextlib import suppress
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from ch02.cli import InputError, Parser, exit_on_input_error, positive_int
from ch02.dataloader import get_tokenizer
from ch05.checkpoint import load_model
from ch05.device import ACCELERATORS, pick_device
from ch05.gpt_generate import MODELS, load_pretrained
from ch07.answering import Answer, Served
from ch07.gpt_instruction_finetuning import PROMPT_STYLES

# What the protocols send


def now():
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def ollama_objects(name, answer):
    """Yield a dict per piece of an answer, the last without text but with counts."""

    def piece_of(text, **more):
        message = {"role": "assistant", "content": text}
        return {"model": name, "created_at": now(), "message": message, **more}

    start = time.perf_counter_ns()
    for piece in answer:
        yield piece_of(piece, done=False)
    nanoseconds = time.perf_counter_ns() - start
    yield piece_of(
        "",
        done=True,
        done_reason=answer.reason,
        total_duration=nanoseconds,
        load_duration=0,
        prompt_eval_count=len(answer.ids),
        prompt_eval_duration=0,  # the model reads the prompt again for every token
        eval_count=answer.n_tokens,
        eval_duration=nanoseconds,
    )


def openai_objects(name, answer):
    """Yield a dict per piece of an answer, the last with the token counts."""
    start = {
        "id": f"chatcmpl-{time.time_ns()}",
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": name,
    }

    def piece_of(delta, reason=None):
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return {**start, "choices": [choice]}

    yield piece_of({"role": "assistant", "content": ""})
    for piece in answer:
        yield piece_of({"content": piece})
    yield piece_of({}, answer.reason)
    n_prompt, n_answer = len(answer.ids), answer.n_tokens
    usage = {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_answer,
        "total_tokens": n_prompt + n_answer,
    }
    yield {**start, "choices": [], "usage": usage}


def create_app(served):
    """The web application (FastAPI) that lets a served model answer."""
    from fastapi import Depends, FastAPI, Request
    from fastapi.responses import JSONResponse, StreamingResponse
    from starlette.exceptions import HTTPException

    app = FastAPI()
    tags = {"models": [{**served.describe(), "modified_at": now()}]}

    async def read_body(request: Request):
        # Not left to FastAPI: curl sends JSON under the name of a form
        try:
            body = json.loads(await request.body())
        except (ValueError, RecursionError) as error:
            raise InputError(f"the request is not JSON: {error}") from None
        if not isinstance(body, dict):
            raise InputError("the request is not a JSON object")
        name = body.get("model")
        if name not in (served.name, f"{served.name}:latest"):
            raise HTTPException(404, f"no model {name!r} here, only {served.name!r}")
        return body

    Body = Annotated[dict, Depends(read_body)]

    @app.exception_handler(InputError)
    @app.exception_handler(HTTPException)
    async def refuse(request, error):
        message = getattr(error, "detail", str(error))
        if request.url.path.startswith("/v1/"):
            message = {"message": message, "type": "invalid_request_error"}
        status = getattr(error, "status_code", 400)
        return JSONResponse({"error": message}, status)

    @app.get("/api/tags")
    async def list_models():
        return tags

    # Not async: FastAPI gives these threads, so that requests don't wait for each other
    @app.post("/api/chat")
    def chat(body: Body):
        answer = Answer(served, *ollama_request(body))
        objects = ollama_objects(served.name, answer)
        if body.get("stream", True):
            lines = (json.dumps(piece) + "\n" for piece in objects)
            return StreamingResponse(lines, media_type="application/x-ndjson")
        *pieces, whole = objects
        text = "".join(piece["message"]["content"] for piece in pieces)
        return {**whole, "message": {"role": "assistant", "content": text}}

    @app.post("/v1/chat/completions")
    def chat_completions(body: Body):
        answer = Answer(served, *openai_request(body))
        objects = openai_objects(served.name, answer)
        if body.get("stream"):
            return StreamingResponse(
                server_sent_events(objects, body), media_type="text/event-stream"
            )
        *pieces, last = objects
        text = "".join(p["choices"][0]["delta"].get("content", "") for p in pieces)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "logprobs": None,
            "finish_reason": answer.reason,
        }
        return {**last, "object": "chat.completion", "choices": [choice]}

    return app


def ollama_request(body):
    """(prompt, options, schema) of a request in Ollama's protocol."""
    return prompt_of(body), part(body, "options"), body.get("format") or None


def openai_request(body):
    """(prompt, options, schema) of a request in OpenAI's protocol."""
    limit = body.get("max_completion_tokens", body.get("max_tokens"))
    options = {name: body.get(name) for name in ("temperature", "top_p", "seed")}
    wanted = part(body, "response_format")
    schema = None
    if wanted and wanted.get("type") != "text":
        schema = part(wanted, "json_schema").get("schema", {})
    return prompt_of(body), {**options, "num_predict": limit}, schema


def prompt_of(body):
    """The text of the last message."""
    try:
        prompt = body["messages"][-1]["content"]
    except (KeyError, IndexError, TypeError):
        prompt = None
    if not isinstance(prompt, str):
        raise InputError("messages must be a list, its last one with a text")
    return prompt


def part(body, name):
    """The object under a name; an empty one if it is not there."""
    value = body.get(name) or {}
    if not isinstance(value, dict):
        raise InputError(f"{name} must be an object")
    return value


def server_sent_events(objects, body):
    """A line per object as OpenAI streams them; counts only for those who ask."""
    for piece in objects:
        if piece["choices"] or part(body, "stream_options").get("include_usage"):
            yield f"data: {json.dumps(piece)}\n\n"
    yield "data: [DONE]\n\n"


# The command line


def load_served(args):
    """The model that the options name, ready to answer."""
    device = pick_device(args.device)
    if args.checkpoint:
        model, config = load_model(args.checkpoint, device)
        path = Path(args.checkpoint).resolve()
        name = path.stem if path.is_file() else path.name
    else:
        model, config = load_pretrained(args.model)
        model.to(device)
        name = args.model
    if config["vocab_size"] != get_tokenizer().n_vocab:
        raise InputError(
            f"{name} has {config['vocab_size']} tokens, the tokenizer "
            f"{get_tokenizer().n_vocab}: it was trained with another vocabulary"
        )
    style = args.prompt_style or ("alpaca" if args.checkpoint else "none")
    format_prompt = PROMPT_STYLES.get(style)
    return Served(name, model, config, device, format_prompt, args.max_new_tokens)


def parse_args(argv=None):
    """Read the command line."""
    parser = Parser(
        prog="serve", description="Serve a model by Ollama's protocol and OpenAI's."
    )
    add = parser.add_argument
    one_of = parser.add_mutually_exclusive_group().add_argument
    one_of("--checkpoint", metavar="PATH",
        help="a run's folder, a checkpoint folder or a .safetensors file")  # fmt: skip
    one_of("--model", choices=MODELS, default="gpt2-mini",
        help="a pretrained model (default: gpt2-mini)")  # fmt: skip
    add("--prompt-style", choices=[*PROMPT_STYLES, "none"],
        help="what is put around a message; none: the model continues it as it is "
        "(default: alpaca with --checkpoint, else none)")  # fmt: skip
    add("--max-new-tokens", type=positive_int, default=256,
        help="of one answer, at most (default: 256)")  # fmt: skip
    add("--host", default="127.0.0.1", help="0.0.0.0 lets other computers ask "
        "(default: 127.0.0.1)")  # fmt: skip
    add("--port", type=int, default=11434, help="0 takes a free one (default: 11434)")
    add("--device", default="auto", help=f"auto, cpu, {', '.join(ACCELERATORS)}")
    return parser.parse_args(argv)


def cli(argv=None):
    """Command line: serve one model until Ctrl-C."""
    args = parse_args(argv)
    with exit_on_input_error("serve"):
        if not (find_spec("fastapi") and find_spec("uvicorn")):
            raise InputError('the extra "serve" is missing: pip install -e ".[serve]"')
        import uvicorn

        try:
            # Taken before the model is loaded, and not by uvicorn, which would exit
            listener = socket.create_server((args.host, args.port))
        except (OSError, OverflowError, UnicodeError) as error:
            raise InputError(
                f"cannot listen on {args.host}, port {args.port} ({error}): if Ollama "
                "runs there, choose another --port"
            ) from None
        served = load_served(args)
        app = create_app(served)
        host, port = listener.getsockname()
        print(f"{served.name} answers at http://{host}:{port} (Ctrl-C ends it)",
              flush=True)  # fmt: skip
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    cli()
