"""Let a trained model write (sections 5.3 to 5.5).

Holds the book's `generate`, how OpenAI's weights get into our model, and a command line
that prints each token as soon as it is there, chosen by the `Sampler` of `decoding/`.
Run it: `python -m ch05.gpt_generate --prompt "The river"` continues the text with the
course's mini model; `--checkpoint runs/gpt2-nano` takes the one that
`python -m ch05.gpt_train` saved, `--model gpt2-small` OpenAI's.

Letters: B batch, T tokens, V vocabulary.
"""

import codecs
import sys

import numpy as np
import torch

from ch02.cli import InputError, Parser, exit_on_input_error, positive_int, seed
from ch02.dataloader import get_tokenizer
from ch02.download import data_dir
from ch04.gpt import GPTModel
from ch05.checkpoint import load_model
from ch05.decoding.sampler import Sampler, add_sampler_options, sample, sampler_from
from ch05.device import ACCELERATORS, pick_device
from ch05.gpt_download import download_and_load_gpt2
from ch05.gpt_train import text_to_token_ids, token_ids_to_text
from ch05.mini_model import load_mini_model

# What `--model` offers, with OpenAI's name of the size; the first comes with the course
MODELS = {
    "gpt2-mini": None,
    "gpt2-small": "124M",
    "gpt2-medium": "355M",
    "gpt2-large": "774M",
    "gpt2-xl": "1558M",
}
GREEDY = Sampler()


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


def stream(
    model, idx, max_new_tokens, context_size, tokenizer, sampler=GREEDY, eos_id=None
):
    """Generate for a batch of one, yielding the new text piece by piece.

    A character that spans several tokens is held back until it is whole. sampler: what
    chooses the tokens; eos_id: the token to stop at, which is not shown.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for _ in range(max_new_tokens):
        longer = sample(model, idx, 1, context_size, sampler, eos_id)
        if longer.shape == idx.shape:  # the end token
            break
        idx = longer
        token = tokenizer.decode_single_token_bytes(idx[0, -1].item())
        if piece := decoder.decode(token):
            yield piece
    if rest := decoder.decode(b"", final=True):
        yield rest


def assign(left, right):
    """A parameter with the values of the array right and all else of left (5.5)."""
    if tuple(left.shape) != tuple(right.shape):
        raise InputError(
            f"the shapes differ: {tuple(left.shape)} and {tuple(right.shape)}"
        )
    values = torch.tensor(right, dtype=left.dtype, device=left.device)
    return torch.nn.Parameter(values.contiguous())


def load_weights_into_gpt(gpt, params):
    """Put the weights from `download_and_load_gpt2` into a GPTModel (section 5.5).

    OpenAI's linear layers are transposed, one holds queries, keys and values side by
    side, and the token embedding is the output layer, which here gets a copy. Raises
    InputError, with the model unchanged, if they do not fit. The parameters are new: an
    optimizer is to be built afterwards.
    """
    new = {
        "tok_emb.weight": params["wte"],
        "pos_emb.weight": params["wpe"],
        "final_norm.scale": params["g"],
        "final_norm.shift": params["b"],
        "out_head.weight": params["wte"],
    }
    for i, block in enumerate(params["blocks"]):
        attn, mlp = block["attn"], block["mlp"]
        q_w, k_w, v_w = np.array_split(attn["c_attn"]["w"], 3, axis=-1)  # (C, C) each
        q_b, k_b, v_b = np.array_split(attn["c_attn"]["b"], 3, axis=-1)  # (C,) each
        for name, w, b in (
            ("att.W_query", q_w, q_b),
            ("att.W_key", k_w, k_b),
            ("att.W_value", v_w, v_b),
            ("att.out_proj", attn["c_proj"]["w"], attn["c_proj"]["b"]),
            ("ff.layers.0", mlp["c_fc"]["w"], mlp["c_fc"]["b"]),
            ("ff.layers.2", mlp["c_proj"]["w"], mlp["c_proj"]["b"]),
        ):
            new[f"trf_blocks.{i}.{name}.weight"] = w.T
            new[f"trf_blocks.{i}.{name}.bias"] = b
        for name, norm in (("norm1", block["ln_1"]), ("norm2", block["ln_2"])):
            new[f"trf_blocks.{i}.{name}.scale"] = norm["g"]
            new[f"trf_blocks.{i}.{name}.shift"] = norm["b"]

    old = dict(gpt.named_parameters(remove_duplicate=False))
    for name in sorted(old.keys() | new.keys()):
        ours, theirs = (
            tuple(side[name].shape) if name in side else "nothing"
            for side in (old, new)
        )
        if ours != theirs:
            raise InputError(
                f"for {name} the model has {ours}, the weights have {theirs}: "
                "build the model with the sizes in settings and qkv_bias True"
            )
    for name, array in new.items():
        module, _, attribute = name.rpartition(".")
        # Taken out of old, a replaced parameter gives its memory back
        new_parameter = assign(old.pop(name), array)
        setattr(gpt.get_submodule(module), attribute, new_parameter)


def as_config(settings):
    """The config of a GPTModel for the settings of `download_and_load_gpt2`."""
    return {
        "vocab_size": settings["n_vocab"],
        "context_length": settings["n_ctx"],
        "emb_dim": settings["n_embd"],
        "n_heads": settings["n_head"],
        "n_layers": settings["n_layer"],
        "drop_rate": 0.0,
        "qkv_bias": True,
    }


def load_gpt2(name, models_dir):
    """Return (one of OpenAI's MODELS as GPTModel in eval mode, its config)."""
    settings, params = download_and_load_gpt2(MODELS[name], models_dir)
    config = as_config(settings)
    # The weights drawn here are replaced: the reader's seed must not notice
    with torch.random.fork_rng(devices=[]):
        model = GPTModel(config)
    load_weights_into_gpt(model, params)
    return model.eval(), config


def load_pretrained(name, models_dir=None):
    """Return (one of MODELS as GPTModel in eval mode, its config).

    models_dir: where OpenAI's weights are kept (default: gpt2 in LLM_COURSE_DATA).
    """
    if MODELS[name] is None:
        return load_mini_model()
    return load_gpt2(name, models_dir or data_dir() / "gpt2")


def load_pretrained_or_mini(name, models_dir=None):
    """Return (name, model, config) as `load_pretrained` does, or the mini model.

    The mini model takes the place of weights that cannot be had; a note says so.
    """
    try:
        return name, *load_pretrained(name, models_dir)
    except InputError as error:
        if MODELS[name] is None:
            raise
        print(f"Note: {error}\nThe mini model takes the place of {name}.\n")
    return "gpt2-mini", *load_mini_model()


def main(gpt_config, input_prompt, model_size, device):
    """The book's run: 25 tokens from OpenAI's weights, kept in the folder gpt2."""
    _, params = download_and_load_gpt2(model_size, models_dir="gpt2")
    gpt = GPTModel(gpt_config)
    load_weights_into_gpt(gpt, params)
    gpt.to(device).eval()
    tokenizer = get_tokenizer()
    idx = text_to_token_ids(input_prompt, tokenizer).to(device)
    torch.manual_seed(123)
    token_ids = generate(
        gpt, idx, 25, gpt_config["context_length"], temperature=1.0, top_k=50
    )
    print("Output text:\n", token_ids_to_text(token_ids, tokenizer))


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
    one_of = parser.add_mutually_exclusive_group().add_argument
    one_of("--checkpoint", metavar="PATH",
        help="a run's folder, a checkpoint folder or a .safetensors file")  # fmt: skip
    one_of("--model", choices=MODELS, default="gpt2-mini",
        help="the course's mini model, or OpenAI's weights, downloaded if need be "
        "(default: gpt2-mini)")  # fmt: skip
    add("--models-dir", metavar="DIR",
        help="where OpenAI's are kept (default: gpt2 in LLM_COURSE_DATA)")  # fmt: skip
    add("--prompt", help="text to continue (default: standard input)")
    add("--max-new-tokens", type=positive_int, default=50, help="(default: 50)")
    add("--seed", type=seed, default=123, help="of the drawing, with a temperature")
    add("--device", default="auto", help=f"auto, cpu, {', '.join(ACCELERATORS)}")
    add_sampler_options(parser)
    args = parser.parse_args(argv)
    try:
        args.sampler = sampler_from(args)
    except InputError as error:
        parser.error(str(error))
    if args.models_dir is not None and MODELS[args.model] is None:
        parser.error("--models-dir is where OpenAI's weights for --model are kept")
    return args


def cli(argv=None):
    """Command line: print the prompt and its continuation as it is produced."""
    args = parse_args(argv)
    with exit_on_input_error("gpt_generate"):
        prompt = read_prompt(args.prompt)
        device = pick_device(args.device)
        if args.checkpoint:
            model, config = load_model(args.checkpoint, device)
        else:
            model, config = load_pretrained(args.model, args.models_dir)
            model.to(device)
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
                args.sampler,
                tokenizer.eot_token,
            ):
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            pass  # what is printed stays
        print()


if __name__ == "__main__":
    cli()
