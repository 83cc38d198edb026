"""Continue a text with a character GPT that `train.py` has saved.

Run it: `python -m appendix_a.character_gpt.complete --prompt "The "` prints each
character as soon as it is there; with `--temperature 0.8` they are drawn.
"""

from pathlib import Path

import torch

from appendix_a.character_gpt.characters import CharacterTokenizer
from ch02.cli import InputError, Parser, exit_on_input_error, positive_int, seed
from ch04.gpt import GPT_CONFIG_124M, GPTModel
from ch05.checkpoint import load_model
from ch05.decoding.sampler import add_sampler_options, sampler_from
from ch05.device import ACCELERATORS, pick_device
from ch05.gpt_generate import read_prompt, stream
from ch05.gpt_train import text_to_token_ids


def build_character_gpt(config):
    """The `GPTModel` of a config that has the characters of the vocabulary besides."""
    if config.keys() != GPT_CONFIG_124M.keys() | {"characters"}:
        raise ValueError(f"its config has the keys {', '.join(config)}")
    if len(set(config["characters"])) != config["vocab_size"]:
        raise ValueError("its characters are not as many as its vocabulary")
    return GPTModel(config)


def load_character_gpt(path, device="cpu"):
    """(model in eval mode, tokenizer, config) of a run, a checkpoint or a file.

    Raises InputError if there is none or it cannot be used.
    """
    if not Path(path).exists():
        raise InputError(
            f"there is no {path}: train a model first "
            "(python -m appendix_a.character_gpt.train), or name another --checkpoint"
        )
    model, config = load_model(path, device, build_character_gpt)
    return model, CharacterTokenizer(config["characters"]), config


def main(argv=None):
    """Command line: print the prompt and its continuation as it is produced."""
    parser = Parser(
        prog="complete", description="Continue a text, one character at a time."
    )
    add = parser.add_argument
    add("--checkpoint", default="runs/character-gpt", metavar="PATH",
        help="a run's folder, a checkpoint folder or a .safetensors file "
        "(default: %(default)s)")  # fmt: skip
    add("--prompt", help="text to continue (default: standard input)")
    add("--max-new-tokens", type=positive_int, default=300, metavar="N",
        help="characters to add (default: %(default)s)")  # fmt: skip
    add("--seed", type=seed, default=123, help="of the drawing, with a temperature")
    add("--device", default="auto", help=f"auto, cpu, {', '.join(ACCELERATORS)}")
    add_sampler_options(parser)
    args = parser.parse_args(argv)
    with exit_on_input_error("complete"):
        sampler, prompt = sampler_from(args), read_prompt(args.prompt)
        device = pick_device(args.device)
        model, tokenizer, config = load_character_gpt(args.checkpoint, device)
        idx = text_to_token_ids(prompt, tokenizer).to(device)
        torch.manual_seed(args.seed)
        print(prompt, end="", flush=True)
        length, context_size = args.max_new_tokens, config["context_length"]
        try:
            for piece in stream(model, idx, length, context_size, tokenizer, sampler):
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            pass  # what is printed stays
        print()


if __name__ == "__main__":
    main()
