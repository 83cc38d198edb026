"""Train ch04's GPTModel on the characters of any text.

A step takes windows that begin anywhere in the text; an epoch is a number of steps.
Ctrl-C saves; `--resume` continues bit for bit. The characters are part of the
checkpoint. Run it: `python -m appendix_a.character_gpt.train` trains on the course's
story and prints a sample after each epoch; `complete.py` goes on from there.
"""

import math
from pathlib import Path

import torch

from appendix_a.character_gpt.characters import create_loaders, open_corpus, read_text
from ch02.cli import (
    Parser,
    exit_on_input_error,
    positive_float,
    positive_int,
    seed,
)
from ch04.gpt import GPT_CONFIG_124M, GPTModel
from ch05.decoding.sampler import Sampler, sample
from ch05.device import ACCELERATORS, pick_device, reuse_freed_memory
from ch05.gpt_train import (
    calc_loss_batch,
    create_optimizer,
    text_to_token_ids,
    token_ids_to_text,
)
from ch05.resumable import ResumableTraining, open_run

CONFIG = {  # all but vocab_size, which the text decides
    **GPT_CONFIG_124M,
    "context_length": 64,
    "emb_dim": 96,
    "n_heads": 4,
    "n_layers": 3,
}
SHAPE = ("emb_dim", "n_layers", "n_heads", "context_length")
EVAL_BATCHES = 20
SAMPLER = Sampler(temperature=0.8)


@torch.no_grad()
def bits_per_character(model, loader, device):
    """Mean cross-entropy over all targets of a loader, in bits; without dropout."""
    nats = characters = 0
    model.eval()
    for inputs, targets in loader:
        loss = calc_loss_batch(inputs, targets, model, device)
        nats += loss.item() * targets.numel()
        characters += targets.numel()
    model.train()
    return nats / math.log(2) / characters


class CharacterTraining(ResumableTraining):
    """A run of `ch05.resumable` that measures in bits and samples characters."""

    def end_epoch(self):
        """Print bits per character of the validation part, and a sample.

        What is drawn comes from a generator of its own: the training does not notice.
        """
        bits = bits_per_character(self.model, self.val_loader, self.device)
        generator = torch.Generator(self.device).manual_seed(self.settings["seed"])
        idx = text_to_token_ids(self.start_context, self.tokenizer).to(self.device)
        self.model.eval()
        ids = sample(
            self.model,
            idx,
            200,
            self.config["context_length"],
            SAMPLER,
            generator=generator,
        )
        self.model.train()
        text = token_ids_to_text(ids, self.tokenizer)
        print(f"Ep {self.position['epoch']}: {bits:.3f} bits per character\n{text}\n")


def parse_args(argv=None):
    """Read the command line."""
    parser = Parser(
        prog="train",
        description="Train a GPT on the characters of a text and let it write a sample "
        "per epoch. The default run takes less than two minutes on a CPU.",
    )
    add = parser.add_argument
    one_of = parser.add_mutually_exclusive_group().add_argument
    one_of("--text", help="bundled, the-verdict, or a UTF-8 file (default: bundled)")
    one_of("--data", metavar="DIR", help="a corpus of extract.py, read from disk")
    for name in SHAPE:
        add(f"--{name.replace('_', '-')}", type=positive_int, metavar="N",
            default=CONFIG[name], help="(default: %(default)s)")  # fmt: skip
    add("--epochs", type=positive_int, default=5, help="(default: %(default)s)")
    add("--epoch-steps", type=positive_int, default=250, metavar="N",
        help="steps of an epoch (default: %(default)s)")  # fmt: skip
    add("--batch-size", type=positive_int, default=16, metavar="N",
        help="windows per step (default: %(default)s)")  # fmt: skip
    add("--lr", type=positive_float, default=2e-3, help="(default: %(default)s)")
    add("--prompt", help="start of the samples (default: the text's first character)")
    add("--seed", type=seed, default=123, help="of weights, windows and dropout")
    add("--device", default="auto", help=f"auto, cpu, {', '.join(ACCELERATORS)}")
    add("--out-dir", type=Path, default="runs/character-gpt", metavar="DIR",
        help="(default: %(default)s)")  # fmt: skip
    add("--resume", action="store_true", help="continue the run in --out-dir")
    add("--save-every", type=positive_int, default=100, help="steps per checkpoint")
    args = parser.parse_args(argv)
    if args.prompt == "":
        parser.error("--prompt is empty")
    if args.emb_dim % args.n_heads:
        parser.error("--emb-dim must be a multiple of --n-heads")
    return args


def main(argv=None):
    """Command line: train, evaluate, sample, checkpoint."""
    args = parse_args(argv)
    with exit_on_input_error("train"):
        training = prepare(args)
        stopped_by = training.train()
    if stopped_by:
        print(f"\nStopped and saved in {args.out_dir}; --resume continues this run.")
        raise SystemExit(128 + stopped_by)
    print(f"Saved in {args.out_dir}: checkpoints/ and metrics.jsonl")
    print(
        f"Try: python -m appendix_a.character_gpt.complete --checkpoint {args.out_dir} "
        '--temperature 0.8 --prompt "..."'
    )


def prepare(args):
    """The `CharacterTraining` of a command line, at its checkpoint if there is one."""
    device = pick_device(args.device)
    reuse_freed_memory()
    source = open_corpus(args.data) if args.data else read_text(args.text)
    tokenizer, train_ids, val_ids, digest = source
    start_context = args.prompt or tokenizer.decode(train_ids[:1])
    tokenizer.encode(start_context)  # complains now, not after the first epoch
    shape = {name: getattr(args, name) for name in SHAPE}
    config = {**CONFIG, **shape, "vocab_size": tokenizer.n_vocab}
    settings = {
        "config": config,
        "text": digest,
        "batch_size": args.batch_size,
        "learning_rate": args.lr,
        "weight_decay": 0.1,
        "eval_freq": args.epoch_steps,
        "eval_iter": 20,
        "seed": args.seed,
        "dtype": "fp32",
    }
    loaders = create_loaders(
        train_ids, val_ids, config["context_length"], args.batch_size, args.epoch_steps
    )
    checkpoint = open_run(args.out_dir, settings, args.epochs, args.resume)

    torch.manual_seed(args.seed)
    model = GPTModel(config).to(device)
    print(
        f"Model   {sum(p.numel() for p in model.parameters()):,} parameters, {device}"
    )
    print(
        f"Text    {len(train_ids):,} characters, {len(val_ids):,} more to validate, "
        f"{tokenizer.n_vocab} different ones"
    )
    print(
        f"Run     {args.epochs} epochs of {args.epoch_steps} steps, each "
        f"{args.batch_size} x {args.context_length} characters -> {args.out_dir}"
    )
    print(f"Expect  a guess costs {math.log2(tokenizer.n_vocab):.1f} bits\n")
    training = CharacterTraining(
        model,
        {**config, "characters": tokenizer.characters},
        *loaders,
        create_optimizer(model, settings),
        device,
        args.out_dir,
        settings,
        num_epochs=args.epochs,
        save_every=args.save_every,
        tokenizer=tokenizer,
        start_context=start_context,
    )
    if checkpoint:
        training.restore(checkpoint)
        print(f"Going on after step {training.position['step']}.")
    return training


if __name__ == "__main__":
    main()
