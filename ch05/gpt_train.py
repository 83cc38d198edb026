"""Pretrain a GPT on one text (chapter 5): the book's functions and a command line.

`main` is the book's run. The command line adds what long runs need: progress,
metrics, checkpoints, and `--resume`, which continues bit for bit. Pretraining on many
books is not here. Run it: `python -m ch05.gpt_train` trains a small model on the
course's story in less than two minutes and prints a sample after each epoch.

Letters: B batch, T tokens, V vocabulary.
"""

import math
from hashlib import sha256
from pathlib import Path

import torch

from ch02.cli import (
    InputError,
    Parser,
    exit_on_input_error,
    positive_float,
    positive_int,
    seed,
)
from ch02.dataloader import create_dataloader_v1, get_tokenizer, load_text
from ch04.gpt import GPT_CONFIG_124M, GPTModel, generate_text_simple
from ch05.device import (
    ACCELERATORS,
    pick_device,
    reuse_freed_memory,
    use_cheap_dropout,
)

# What `--model` offers: a config and the settings that suit it on one short text
MODELS = {
    "gpt2-nano": (
        {
            **GPT_CONFIG_124M,
            "context_length": 128,
            "emb_dim": 128,
            "n_heads": 4,
            "n_layers": 4,
        },
        {
            "learning_rate": 2e-3,
            "num_epochs": 20,
            "batch_size": 2,
            "weight_decay": 0.1,
            "eval_freq": 10,
        },
    ),
    "gpt2-small": (
        {**GPT_CONFIG_124M, "context_length": 256},
        {
            "learning_rate": 5e-4,
            "num_epochs": 10,
            "batch_size": 2,
            "weight_decay": 0.1,
            "eval_freq": 5,
        },
    ),
}


def text_to_token_ids(text, tokenizer):
    """Text to a batch of one: int64 of shape (1, T)."""
    encoded = tokenizer.encode(text, allowed_special={"<|endoftext|>"})
    return torch.tensor(encoded).unsqueeze(0)  # (1, T)


def token_ids_to_text(token_ids, tokenizer):
    """A batch of one, (1, T), back to text."""
    return tokenizer.decode(token_ids.squeeze(0).tolist())


def calc_loss_batch(input_batch, target_batch, model, device):
    """Mean cross-entropy, in nats per token, of one batch; a scalar tensor."""
    input_batch, target_batch = input_batch.to(device), target_batch.to(device)
    logits = model(input_batch)  # (B, T, V)
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1),  # (B * T, V)
        target_batch.flatten(),  # (B * T,)
    )


def calc_loss_loader(data_loader, model, device, num_batches=None):
    """Mean loss of the first num_batches batches (default: all); nan if there are none.

    Returns a float.
    """
    if len(data_loader) == 0:
        return float("nan")
    if num_batches is None:
        num_batches = len(data_loader)
    num_batches = min(num_batches, len(data_loader))
    losses = []
    for i, (input_batch, target_batch) in enumerate(data_loader):
        if i == num_batches:
            break
        losses.append(calc_loss_batch(input_batch, target_batch, model, device))
    # One transfer from the device at the end instead of one per batch
    return torch.stack(losses).mean().item()


def evaluate_model(model, train_loader, val_loader, device, eval_iter):
    """(training loss, validation loss) over eval_iter batches each, without dropout."""
    model.eval()
    with torch.no_grad():
        train_loss = calc_loss_loader(train_loader, model, device, eval_iter)
        val_loss = calc_loss_loader(val_loader, model, device, eval_iter)
    model.train()
    return train_loss, val_loss


def generate_and_print_sample(model, tokenizer, device, start_context):
    """Print 50 greedy tokens after start_context on one line."""
    model.eval()
    context_size = model.pos_emb.weight.shape[0]
    encoded = text_to_token_ids(start_context, tokenizer).to(device)
    token_ids = generate_text_simple(
        model=model, idx=encoded, max_new_tokens=50, context_size=context_size
    )
    print(token_ids_to_text(token_ids, tokenizer).replace("\n", " "))
    model.train()


def train_model_simple(
    model,
    train_loader,
    val_loader,
    optimizer,
    device,
    num_epochs,
    eval_freq,
    eval_iter,
    start_context,
    tokenizer,
):
    """The pretraining loop (section 5.2).

    Evaluates every eval_freq steps and prints a sample after each epoch. Returns
    (train_losses, val_losses, track_tokens_seen), one entry per evaluation.
    """
    train_losses, val_losses, track_tokens_seen = [], [], []
    tokens_seen, global_step = 0, -1

    for epoch in range(num_epochs):
        model.train()
        for input_batch, target_batch in train_loader:
            optimizer.zero_grad()
            loss = calc_loss_batch(input_batch, target_batch, model, device)
            loss.backward()
            optimizer.step()
            tokens_seen += input_batch.numel()
            global_step += 1

            if global_step % eval_freq == 0:
                train_loss, val_loss = evaluate_model(
                    model, train_loader, val_loader, device, eval_iter
                )
                train_losses.append(train_loss)
                val_losses.append(val_loss)
                track_tokens_seen.append(tokens_seen)
                print(
                    f"Ep {epoch + 1} (Step {global_step:06d}): "
                    f"Train loss {train_loss:.3f}, Val loss {val_loss:.3f}"
                )
        generate_and_print_sample(model, tokenizer, device, start_context)

    return train_losses, val_losses, track_tokens_seen


def plot_losses(epochs_seen, tokens_seen, train_losses, val_losses):
    """Losses over epochs, with the tokens seen on a second axis; returns the figure."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    fig, ax1 = plt.subplots(figsize=(5, 3))
    ax1.plot(epochs_seen, train_losses, label="Training loss")
    ax1.plot(epochs_seen, val_losses, linestyle="-.", label="Validation loss")
    ax1.set_xlabel("Epochs")
    ax1.set_ylabel("Loss (nats per token)")
    ax1.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax1.legend(loc="upper right")

    ax2 = ax1.twiny()
    # An invisible curve stretches the second axis to the first
    ax2.plot(tokens_seen, train_losses, alpha=0)
    ax2.set_xlabel("Tokens seen")
    fig.tight_layout()
    return fig


def create_loaders(text, config, batch_size, train_ratio=0.9):
    """Split a text by characters; windows of one context, not overlapping.

    Returns (train_loader, val_loader). Raises InputError if one of them would be empty.
    """
    split_idx = int(train_ratio * len(text))
    loaders = []
    for part, is_training in ((text[:split_idx], True), (text[split_idx:], False)):
        try:
            loader = create_dataloader_v1(
                part,
                batch_size=batch_size,
                max_length=config["context_length"],
                stride=config["context_length"],
                shuffle=is_training,
                drop_last=is_training,
            )
        except ValueError as error:
            raise InputError(f"this text cannot be used: {error}") from None
        if len(loader) == 0:
            raise InputError(
                f"the text is too short: {len(loader.dataset)} training windows do not "
                f"fill one batch of {batch_size}"
            )
        loaders.append(loader)
    return loaders


def main(gpt_config, settings):
    """The book's run, on the text LLM_COURSE_TEXT names.

    settings: learning_rate, num_epochs, batch_size, weight_decay. Returns
    (train_losses, val_losses, tokens_seen, model).
    """
    torch.manual_seed(123)
    device = pick_device()
    reuse_freed_memory()
    text = load_text()
    model = GPTModel(gpt_config).to(device)
    optimizer = create_optimizer(model, settings)
    train_loader, val_loader = create_loaders(text, gpt_config, settings["batch_size"])
    train_losses, val_losses, tokens_seen = train_model_simple(
        model,
        train_loader,
        val_loader,
        optimizer,
        device,
        num_epochs=settings["num_epochs"],
        eval_freq=5,
        eval_iter=1,
        start_context="Every effort moves you",
        tokenizer=get_tokenizer(),
    )
    return train_losses, val_losses, tokens_seen, model


def create_optimizer(model, settings):
    """AdamW, fused: one pass over all weights instead of a loop over the tensors."""
    return torch.optim.AdamW(
        model.parameters(),
        lr=settings["learning_rate"],
        weight_decay=settings["weight_decay"],
        fused=True,
    )


def parse_args(argv=None):
    """Read the command line; settings not given are those of the chosen model."""
    parser = Parser(
        prog="gpt_train",
        description="Pretrain a GPT on one text and let it write a sample per epoch. "
        "The default run takes less than two minutes on a CPU.",
    )
    add = parser.add_argument
    add("--text", help="bundled, the-verdict, or a UTF-8 file (default: bundled)")
    add("--model", choices=MODELS, default="gpt2-nano", help="(default: gpt2-nano)")
    add("--epochs", type=positive_int, help="passes over the training text")
    add("--batch-size", type=positive_int, help="windows per step")
    add("--lr", type=positive_float, help="learning rate of AdamW")
    add("--eval-freq", type=positive_int, help="steps between evaluations")
    add("--prompt", default="Every effort moves you", help="start of the samples")
    add("--seed", type=seed, default=123, help="of weights, shuffling and dropout")
    add("--device", default="auto", help=f"auto, cpu, {', '.join(ACCELERATORS)}")
    add("--dtype", choices=("fp32", "bf16"), default="fp32", help="bf16: autocast")
    add("--out-dir", type=Path, help="(default: runs/MODEL)")
    add("--resume", action="store_true", help="continue the run in --out-dir")
    add("--save-every", type=positive_int, default=100, help="steps per checkpoint")
    args = parser.parse_args(argv)
    if not args.prompt.strip():
        parser.error("--prompt is empty")
    args.out_dir = args.out_dir or Path("runs") / args.model
    settings = MODELS[args.model][1]
    args.epochs = args.epochs or settings["num_epochs"]
    args.batch_size = args.batch_size or settings["batch_size"]
    args.lr = args.lr or settings["learning_rate"]
    args.eval_freq = args.eval_freq or settings["eval_freq"]
    return args


def cli(argv=None):
    """Command line: train, evaluate, sample, checkpoint, plot."""
    from ch05.resumable import ResumableTraining, open_run

    args = parse_args(argv)
    with exit_on_input_error("gpt_train"):
        device = pick_device(args.device)
        reuse_freed_memory()
        text = load_text(args.text)
        config = MODELS[args.model][0]
        settings = {
            "config": config,
            "text": sha256(text.encode()).hexdigest(),
            "batch_size": args.batch_size,
            "learning_rate": args.lr,
            "weight_decay": MODELS[args.model][1]["weight_decay"],
            "eval_freq": args.eval_freq,
            "eval_iter": 1,
            "seed": args.seed,
            "dtype": args.dtype,
        }
        train_loader, val_loader = create_loaders(text, config, args.batch_size)
        checkpoint = open_run(args.out_dir, settings, args.epochs, args.resume)

        torch.manual_seed(args.seed)
        model = GPTModel(config).to(device)
        if args.dtype == "bf16" and device.type == "cpu":
            # Matrix products are fast then, and drawing random numbers is not
            use_cheap_dropout(model)
        optimizer = create_optimizer(model, settings)
        parameters = sum(p.numel() for p in model.parameters())
        print(
            f"Model   {args.model}, {parameters:,} parameters, {args.dtype}, {device}"
        )
        # Each weight is kept four times: itself, its gradient, AdamW's two averages
        print(f"Memory  {parameters * 16 / 1e9:.1f} GB and more for the activations")
        print(f"Text    {len(text):,} characters, 9/10 for training")
        print(
            f"Run     {args.epochs} epochs of {len(train_loader)} steps, each "
            f"{args.batch_size} x {config['context_length']} tokens -> {args.out_dir}"
        )
        print(
            f"Expect  a first loss near {math.log(config['vocab_size']):.1f}, a guess\n"
        )
        training = ResumableTraining(
            model,
            config,
            train_loader,
            val_loader,
            optimizer,
            device,
            args.out_dir,
            settings,
            num_epochs=args.epochs,
            save_every=args.save_every,
            tokenizer=get_tokenizer(),
            start_context=args.prompt,
        )
        if checkpoint:
            training.restore(checkpoint)
            print(f"Going on after step {training.position['step']}.")
        stopped_by = training.train()
        save_plot(training.metrics, len(train_loader), args.out_dir / "loss-plot.png")
    if stopped_by:
        print(f"\nStopped and saved in {args.out_dir}; --resume continues this run.")
        raise SystemExit(128 + stopped_by)
    print(f"\nSaved in {args.out_dir}: checkpoints/, metrics.jsonl, loss-plot.png")
    print(
        f'Try: python -m ch05.gpt_generate --checkpoint {args.out_dir} --prompt "..."'
    )


def save_plot(metrics, steps_per_epoch, path):
    """Draw the losses of a run's metrics to a PNG file."""
    import matplotlib.pyplot as plt

    plt.switch_backend("Agg")  # no window, also on a server without a display
    fig = plot_losses(
        [(record["step"] + 1) / steps_per_epoch for record in metrics],
        [record["tokens_seen"] for record in metrics],
        [record["train_loss"] for record in metrics],
        [record["val_loss"] for record in metrics],
    )
    try:
        fig.savefig(path, dpi=150)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None
    finally:
        plt.close(fig)


if __name__ == "__main__":
    cli()
