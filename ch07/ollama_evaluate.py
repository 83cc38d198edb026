"""Let another model judge answers, from 0 to 100 (section 7.8).

The book's functions, and what a long run needs: scores are read strictly, requests run
side by side, each score is on disk at once, and nothing is judged twice. Beside them
stand figures that need no judge (`reference_metrics.py`). Run it with Ollama running:
`python -m ch07.ollama_evaluate --file-path ANSWERS.json`. `--url` names other servers:
`python -m ch07.serve`, or one that speaks OpenAI's protocol.
"""

import json
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

from ch02.cli import InputError, Parser, exit_on_input_error, positive_int
from ch07.chat_client import SEED, URL, Refusal, ask, models_at
from ch07.entries import check_entries, read_json
from ch07.gpt_instruction_finetuning import format_input
from ch07.reference_metrics import agreement, reference_metrics

ATTEMPTS = 3  # to get a score; from the second on, the answer is drawn
SCORE_SCHEMA = {
    "type": "object",
    "properties": {"score": {"type": "integer", "minimum": 0, "maximum": 100}},
    "required": ["score"],
    "additionalProperties": False,
}
NUMBER = "(100|[1-9]?[0-9])"
SCORE = re.compile(rf'{NUMBER}|\{{\s*"score"\s*:\s*{NUMBER}\s*\}}')


def check_if_running(process_name):
    """Whether a program with this in its name is running (section 7.8)."""
    import psutil

    return any(
        process_name in (process.info["name"] or "")
        for process in psutil.process_iter(["name"])
    )


def query_model(prompt, model="llama3", url=URL):
    """What a model on a server answers to a prompt; a string (section 7.8).

    The same prompt gets the same answer: no temperature, a fixed seed. Raises
    InputError if the server does not answer completely.
    """
    return ask(prompt, model, url)


def judge_prompt(entry, response):
    """What the judge is asked about a response to an entry; a string."""
    return (
        "You grade answers. Compare the answer with the reference and give it a score "
        "from 0 (useless) to 100 (perfect).\n\n"
        f"The task:\n{format_input(entry)}\n\n"
        f"The reference:\n{entry['output']}\n\n"
        f"The answer:\n{response}\n\n"
        "Respond with the integer only."
    )


def read_score(text):
    """The score in a judge's answer, 0 to 100, or None. Nothing is guessed.

    Accepted are a whole number alone, and a JSON object with the one key "score".
    """
    match = SCORE.fullmatch(text.strip())
    return int(match[1] or match[2]) if match else None


def generate_model_scores(json_data, json_key, model="llama3"):
    """Scores of the responses under json_key; what is no score is printed, left out.

    (Section 7.8.) An empty response gets 0 without asking. Returns a list of int.
    """
    judge = Judge(model, URL)
    scores = judge.score_all(json_data, json_key)
    for reason in judge.refused:
        print(reason)
    return [score for score in scores if score is not None]


class Judge:
    """A model on a server that scores responses and remembers every score.

    cache: path of a file with one JSON object per line, made if it is not there; None:
    scores are remembered as long as this object lives.
    """

    def __init__(self, model, url, cache=None, workers=4):
        self.model, self.url, self.workers = model, url, workers
        self.cache, self.lock = cache, threading.Lock()
        self.known = read_cache(cache) if cache else {}  # by (model, prompt)
        self.refused = []  # why the server did not judge an entry

    def score_all(self, entries, json_key):
        """One score per entry, in their order; None where the judge gave none.

        What the server says about entries that it refuses is in `refused` afterwards.
        Raises InputError if the server fails; the scores so far are kept.
        """
        keys, asked = [], {}  # asked: equal questions once, each with an entry's number
        for number, entry in enumerate(entries):
            key = self.model, judge_prompt(entry, entry[json_key])
            keys.append(key)
            if not entry[json_key].strip():
                self.known[key] = 0
            elif self.known.get(key) is None:
                asked.setdefault(key, number)
        pool = ThreadPoolExecutor(self.workers)
        futures = [pool.submit(self.score, key, asked[key]) for key in asked]
        try:
            for future in tqdm(
                as_completed(futures),
                total=len(entries),
                initial=len(entries) - len(futures),
                unit="score",
                disable=None,
            ):
                future.result()
        finally:
            # After an error or Ctrl-C no new requests, and no waiting for the last
            pool.shutdown(wait=False, cancel_futures=True)
        return [self.known.get(key) for key in keys]

    def score(self, key, number):
        """Ask for one score, if need be several times, and remember it."""
        model, prompt = key
        for attempt in range(ATTEMPTS):
            # The same question without temperature would get the same answer
            temperature = 0.8 if attempt else 0
            try:
                answer = ask(prompt, model, self.url, SEED + attempt, temperature,
                             SCORE_SCHEMA)  # fmt: skip
            except Refusal as error:  # too long, for example; others may be shorter
                self.refused.append(f"entry {number}: {error}")
                return
            score = read_score(answer)
            if score is not None:
                break
        else:
            tqdm.write(f"Could not convert score: {answer[:200]!r} (entry {number})")
        with self.lock:
            self.remember(key, score, answer)

    def remember(self, key, score, answer):
        """Keep a score in memory and on disk."""
        self.known[key] = score
        if self.cache is None:
            return
        model, prompt = key
        record = {"model": model, "prompt": prompt, "answer": answer, "score": score}
        try:
            with open(self.cache, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise InputError(f"cannot write {self.cache}: {error.strerror}") from None


def read_cache(path):
    """The scores in a cache file by (model, prompt); the file is made if need be."""
    try:
        with open(path, "a+", encoding="utf-8") as file:
            file.seek(0)
            lines = file.read().split("\n")
            if lines[-1]:  # cut off by a kill: the next line is to be one of its own
                file.write("\n")
    except OSError as error:
        raise InputError(f"cannot use {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} holds no scores: name another --cache") from None
    known = {}
    for line in lines:
        try:
            record = json.loads(line)
            key = record["model"], record["prompt"]
            known[key] = read_score(str(record["score"]))
        except (ValueError, LookupError, TypeError, RecursionError):
            continue
    return known


def read_answers(path, json_key):
    """The entries of a file of answers; InputError names the first that is none."""
    if not Path(path).exists():
        raise InputError(
            f"no file {path}: python -m ch07.gpt_instruction_finetuning writes one"
        )
    entries = read_json(path)
    check_entries(path, entries)
    for number, entry in enumerate(entries):
        if not isinstance(entry.get(json_key), str):
            kind = "is not text" if json_key in entry else "is missing"
            raise InputError(f"{path}, entry {number}: {json_key} {kind}")
    return entries


def main(file_path):
    """The book's run: the answers of a file, judged by llama3 in Ollama."""
    cli(["--file-path", str(file_path)])


def choose_model(url):
    """The judge if none is named: the book's llama3, or the only model there is."""
    names = models_at(url)
    if "llama3:latest" in names:
        return "llama3"
    if len(names) == 1:
        return names[0]
    there = ", ".join(names) or "none yet (ollama pull llama3)"
    raise InputError(f"name the judge with --model; models at {url}: {there}")


def parse_args(argv=None):
    """Read the command line."""
    parser = Parser(
        prog="ollama_evaluate",
        description="Score answers: against references, and by a model as judge.",
    )
    add = parser.add_argument
    add("--file-path", "--file_path", required=True, type=Path, metavar="PATH",
        help="JSON with output and model_response, as the finetuning writes it"
        )  # fmt: skip
    add("--key", default="model_response",
        help="the field to judge (default: model_response)")  # fmt: skip
    add("--offline", action="store_true", help="only what needs no judge")
    add("--model", help="the judge (default: llama3, or the only one at --url)")
    add("--url", default=URL,
        help=f"of the server (default: {URL}); one that ends in /v1 is asked in "
        "OpenAI's protocol, with the key in OPENAI_API_KEY")  # fmt: skip
    add("--workers", type=positive_int, default=4,
        help="requests at a time (default: 4)")  # fmt: skip
    add("--cache", type=Path, metavar="FILE",
        help="where scores are kept (default: PATH.scores.jsonl)")  # fmt: skip
    return parser.parse_args(argv)


def cli(argv=None):
    """Command line: print how good the answers of a file are."""
    args = parse_args(argv)
    with exit_on_input_error("ollama_evaluate"):
        entries = read_answers(args.file_path, args.key)
        figures, verdicts = reference_metrics(entries, args.key)
        print(f"{len(entries)} answers against their references, from 0 to 100:")
        for name, figure in figures.items():
            print(f"  {name:<12}{figure:6.2f}")
        if args.offline:
            return
        try:
            judge_answers(args, entries, verdicts)
        except KeyboardInterrupt:
            print("\nStopped. The same command goes on from here.", flush=True)
            os._exit(130)  # threads that wait for the server would hold us up


def judge_answers(args, entries, verdicts):
    """Let the judge score the entries; print the scores, and what the checker says."""
    model = args.model or choose_model(args.url)
    cache = args.cache or Path(f"{args.file_path}.scores.jsonl")
    judge = Judge(model, args.url, cache, args.workers)
    print(f"\nJudged by {model}, each score kept in {cache}:", flush=True)
    scores = judge.score_all(entries, args.key)
    found = [score for score in scores if score is not None]
    print(f"Number of scores: {len(found)} of {len(scores)}")
    if found:
        print(f"Average score: {sum(found) / len(found):.2f}")
    if compared := agreement(scores, verdicts):
        right, wrong, wins = compared
        print("Does the judge agree with the checker?")
        print(f"  mean score: of right answers {right:.2f}, of wrong ones {wrong:.2f}")
        print(
            f"  a right answer beats a wrong one in {wins:.2f} % of pairs (chance: 50)"
        )
    if judge.refused:
        first, *more = judge.refused
        raise InputError(first + (f" (and {len(more)} more)" if more else ""))


if __name__ == "__main__":
    cli()
