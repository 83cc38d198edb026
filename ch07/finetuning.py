"""One finetuning run of chapter 7, from the entries to the answers on disk.

`finetune` is what the command line of `gpt_instruction_finetuning.py` does; the loop is
chapter 5's, because the loss is: the next token, where the target says that it counts.
"""

import json
import os
from functools import partial
from hashlib import sha256
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from appendix_e.lora import merge_lora, replace_linear_with_lora
from ch02.cli import InputError
from ch02.dataloader import get_tokenizer
from ch04.gpt import GPTModel
from ch05.checkpoint import WEIGHTS, save_weights
from ch05.device import pick_device, reuse_freed_memory
from ch05.gpt_generate import generate, load_pretrained_or_mini
from ch05.gpt_train import save_plot, text_to_token_ids, token_ids_to_text
from ch05.resumable import ResumableTraining, open_run
from ch06.finetuning import TEST_CONFIG
from ch07.entries import load_entries, split
from ch07.gpt_instruction_finetuning import (
    PROMPT_STYLES,
    RESPONSE,
    InstructionDataset,
    custom_collate_fn,
    extract_response,
)

BOOK = {"epochs": 2, "learning_rate": 5e-5}
MINI = {"epochs": 4, "learning_rate": 5e-4}
RANK = 16  # of --lora, and its alpha: exercise 7.4
EVAL_ITER = 5  # batches of an evaluation
ANSWERS = "instruction-data-with-response.json"


def finetune(args):
    """Do what the parsed command line asks for; see `parse_args`."""
    device = pick_device(args.device)
    reuse_freed_memory()
    torch.manual_seed(args.seed)
    parts = split(load_entries(args.data))
    if args.test_mode:
        parts = [part[:10] for part in parts]
        name, model, config = "test-mode", GPTModel(TEST_CONFIG), TEST_CONFIG
    else:
        name, model, config = load_pretrained_or_mini(args.model)
    defaults = MINI if name == "gpt2-mini" else BOOK
    epochs = args.epochs or defaults["epochs"]
    out_dir = args.out_dir or Path("runs") / f"instructions-{name}"
    max_length = min(args.max_length or config["context_length"],
                     config["context_length"])  # fmt: skip
    settings = {
        "model": name,
        "config": config,
        "entries": sha256(json.dumps(parts).encode()).hexdigest(),
        "prompt_style": args.prompt_style,
        "mask_instructions": args.mask_instructions,
        "lora": args.lora,
        "max_length": max_length,
        "learning_rate": args.lr or defaults["learning_rate"],
        "batch_size": args.batch_size,
        "eval_freq": args.eval_freq,
        "eval_iter": EVAL_ITER,
        "seed": args.seed,
        "dtype": "fp32",
    }
    checkpoint = open_run(out_dir, settings, epochs, args.resume)

    tokenizer, style = get_tokenizer(), PROMPT_STYLES[args.prompt_style]
    torch.manual_seed(args.seed)
    train_loader, val_loader = create_loaders(parts, tokenizer, settings)
    if args.lora:
        # A tied output layer gets a correction of its own
        model.out_head.weight = nn.Parameter(model.out_head.weight.detach().clone())
        model.requires_grad_(False)
        replace_linear_with_lora(model, RANK, RANK)
    trained = [p for p in model.to(device).parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=settings["learning_rate"], weight_decay=0.1
    )
    torch.manual_seed(args.seed)
    print(f"Model   {name}, {sum(p.numel() for p in trained):,} of "
          f"{sum(p.numel() for p in model.parameters()):,} parameters are trained, "
          f"{device}")  # fmt: skip
    print(
        f"Data    {len(parts[0])} entries to train on, {len(parts[1])} to validate, "
        f"{len(parts[2])} to test"
    )
    print_cut_off(train_loader.dataset, max_length)
    print(
        f"Run     {epochs} epochs of {len(train_loader)} steps, each {args.batch_size} "
        f"entries -> {out_dir}\n"
    )
    training = ResumableTraining(
        model,
        config,
        train_loader,
        val_loader,
        optimizer,
        device,
        out_dir,
        settings,
        epochs,
        args.save_every,
        tokenizer,
        style(parts[1][0]) + RESPONSE[style],
    )
    if checkpoint:
        training.restore(checkpoint)
        print(f"Going on after step {training.position['step']}.")
    stopped_by = training.train()
    save_plot(training.metrics, len(train_loader), out_dir / "loss-plot.png")
    if stopped_by:
        print(f"\nStopped and saved in {out_dir}; --resume continues this run.")
        raise SystemExit(128 + stopped_by)

    merge_lora(model)
    model.eval()
    save_weights(out_dir / WEIGHTS, model, config)
    path = out_dir / ANSWERS
    answer_all(parts[2], model, config, tokenizer, device, path, style)
    print(f"\nSaved in {out_dir}: {WEIGHTS}, {path.name}, metrics.jsonl, loss-plot.png")
    print(f"Judge: python -m ch07.ollama_evaluate --file-path {path}")
    print(f"Ask: python -m ch07.serve --checkpoint {out_dir}")


def create_loaders(parts, tokenizer, settings):
    """(training loader, validation loader) of the entries (section 7.4)."""
    collate = partial(custom_collate_fn, allowed_max_length=settings["max_length"])
    style = PROMPT_STYLES[settings["prompt_style"]]
    loaders = []
    for entries, is_train in ((parts[0], True), (parts[1], False)):
        dataset = InstructionDataset(
            entries, tokenizer, style, settings["mask_instructions"]
        )
        loaders.append(
            DataLoader(
                dataset,
                settings["batch_size"],
                collate_fn=collate,
                shuffle=is_train,
                drop_last=is_train,
            )
        )
    if len(loaders[0]) == 0:
        raise InputError(
            f"{len(parts[0])} entries do not fill one batch of {settings['batch_size']}"
        )
    return loaders


def print_cut_off(dataset, max_length):
    """Say how many entries are longer than what is used of them."""
    longer = sum(len(ids) + 1 > max_length for ids in dataset.encoded_texts)
    if longer:
        print(f"Note    {longer} entries are cut to {max_length} tokens")


def answer(entry, model, config, tokenizer, device, style, max_new_tokens=256):
    """What the model answers to an entry, greedily; a string (section 7.7)."""
    prompt = style(entry) + RESPONSE[style]
    token_ids = generate(
        model=model,
        idx=text_to_token_ids(prompt, tokenizer).to(device),
        max_new_tokens=max_new_tokens,
        context_size=config["context_length"],
        eos_id=tokenizer.eot_token,
    )
    return extract_response(token_ids_to_text(token_ids, tokenizer), prompt)


def answer_all(entries, model, config, tokenizer, device, path, style):
    """Write entries with the field model_response to a JSON file, as they come.

    What is done when it is interrupted is on disk.
    """
    answered = []
    for entry in tqdm(entries, unit="answer", disable=None):
        response = answer(entry, model, config, tokenizer, device, style)
        answered.append({**entry, "model_response": response})
        write_json(path, answered)
    return answered


def write_json(path, content):
    """Replace a JSON file, in one go."""
    partial_path = Path(f"{path}.partial")
    try:
        text = json.dumps(content, indent=4, ensure_ascii=False)
        partial_path.write_text(text + "\n", "utf-8")
        os.replace(partial_path, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None
