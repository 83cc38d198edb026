"""Let a trained model write (sections 5.3 and 5.4).

Holds the book's `generate` and a command line that prints each token as soon as it is
there. Pretrained weights to download, and more ways of choosing a token, are not here.
Run it: `python -m ch05.gpt_generate --prompt "The river"` continues the text with the
model that `python -m ch05.gpt_train` saved.

Letters: B batch, T tokens, V vocabulary.
"""

import codecs
import sys

import torch

from ch02.cli import InputError, Parser, exit_on_input_error, positive_int, seed
from ch02.dataloader import get_tokenizer
from ch05.checkpoint import load_model
from ch05.device import ACCELERATORS, pick_device
from ch05.gpt_train import text_to_token_ids


def generate(
    model,
    idx,
    max_new_tokens,
    context_size,
    temperature=0.0,
    top_k=None,
    eos_id=None,
):
    """Append max_new_tokens tokens, chosen greedily or by sampling (section 5.3.3).

    temperature: 0 always takes the likeliest token; larger values flatten the
    distribution. top_k: draw only from the k likeliest. Stops early at eos_id, which is
    not appended. Shape: (B, T) int -> (B, T + at most max_new_tokens).
    """
    for _ in range(max_new_tokens):
        idx_cond = idx[:, -context_size:]  # (B, T)
        with torch.no_grad():
            logits = model(idx_cond)[:, -1, :]  # (B, V)

        if top_k is not None:
            k = min(top_k, logits.shape[-1])
            kth_largest = torch.topk(logits, k).values[:, -1:]  # (B, 1)
            logits = logits.masked_fill(logits < kth_largest, -torch.inf)

        if temperature > 0.0:
            # The largest becomes 0, so that a tiny temperature cannot overflow
            logits = logits - logits.max(dim=-1, keepdim=True).values
            probas = torch.softmax(logits / temperature, dim=-1)  # (B, V)
            idx_next = torch.multinomial(probas, num_samples=1)  # (B, 1)
        else:
            idx_next = torch.argmax(logits, dim=-1, keepdim=True)  # (B, 1)

        if eos_id is not None and (idx_next == eos_id).all():
            break
        idx = torch.cat((idx, idx_next), dim=1)  # (B, T + 1)
    return idx


def stream(model, idx, max_new_tokens, context_size, tokenizer, **choice):
    """Generate for a batch of one, yielding the new text piece by piece.

    A character that spans several tokens is held back until it is whole. choice: as in
    `generate`.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for _ in range(max_new_tokens):
        longer = generate(model, idx, 1, context_size, **choice)
        if longer.shape == idx.shape:  # the end token
            break
        idx = longer
        token = tokenizer.decode_single_token_bytes(idx[0, -1].item())
        if piece := decoder.decode(token):
            yield piece
    if rest := decoder.decode(b"", final=True):
        yield rest


def read_prompt(prompt):
    """The prompt given as an option, else standard input, else the book's."""
    if prompt is None and sys.stdin is None:  # closed, as a service starts programs
        prompt = ""
    elif prompt is None and not sys.stdin.isatty():
        try:
            prompt = sys.stdin.buffer.read().decode("utf-8-sig").rstrip("\r\n")
        except UnicodeDecodeError:
            raise InputError("standard input is not UTF-8") from None
    elif prompt is None:
        prompt = "Every effort moves you"
    if not prompt:
        raise InputError("the prompt is empty: give --prompt TEXT or pipe a text in")
    return prompt


def parse_args(argv=None):
    """Read the command line."""
    parser = Parser(
        prog="gpt_generate", description="Continue a text with a trained model."
    )
    add = parser.add_argument
    add("--checkpoint", default="runs/gpt2-nano", metavar="PATH",
        help="a run's folder, a checkpoint folder or a .safetensors file "
        "(default: runs/gpt2-nano)")  # fmt: skip
    add("--prompt", help="text to continue (default: standard input)")
    add("--max-new-tokens", type=positive_int, default=50, help="(default: 50)")
    add("--temperature", type=float, default=0.0, help="0 (default): no randomness")
    add("--top-k", type=positive_int, help="draw only from the k likeliest tokens")
    add("--seed", type=seed, default=123, help="of the drawing, with a temperature")
    add("--device", default="auto", help=f"auto, cpu, {', '.join(ACCELERATORS)}")
    args = parser.parse_args(argv)
    if args.temperature != 0 and not 1e-3 <= args.temperature <= 1e3:
        parser.error("--temperature must be 0 or between 0.001 and 1000")
    return args


def cli(argv=None):
    """Command line: print the prompt and its continuation as it is produced."""
    args = parse_args(argv)
    with exit_on_input_error("gpt_generate"):
        prompt = read_prompt(args.prompt)
        device = pick_device(args.device)
        model, config = load_model(args.checkpoint, device)
        tokenizer = get_tokenizer()
        if config["vocab_size"] != tokenizer.n_vocab:
            raise InputError(
                f"{args.checkpoint} has {config['vocab_size']} tokens, the tokenizer "
                f"{tokenizer.n_vocab}: it was trained with another vocabulary"
            )
        idx = text_to_token_ids(prompt, tokenizer).to(device)
        context_size = config["context_length"]
        if idx.shape[1] > context_size:
            print(
                f"Note: the prompt has {idx.shape[1]} tokens, the model sees the last "
                f"{context_size}.",
                file=sys.stderr,
            )
        torch.manual_seed(args.seed)
        print(prompt, end="", flush=True)
        try:
            for piece in stream(
                model,
                idx,
                args.max_new_tokens,
                context_size,
                tokenizer,
                temperature=args.temperature,
                top_k=args.top_k,
                eos_id=tokenizer.eot_token,
            ):
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            pass  # what is printed stays
        print()


if __name__ == "__main__":
    cli()
