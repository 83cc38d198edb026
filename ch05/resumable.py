"""The pretraining loop of chapter 5, made safe to interrupt.

Same steps, same random numbers, same losses as `train_model_simple`. Added: a progress
bar, `metrics.jsonl`, checkpoints, and a clean exit on Ctrl-C or SIGTERM. A run that was
stopped in any way, `kill -9` included, continues bit for bit from its last checkpoint:
weights, optimizer, random numbers and the place in the shuffled data are restored.
"""

import json
import math
import shutil
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from ch02.cli import InputError
from ch05.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    load_position,
    save_checkpoint,
)
from ch05.gpt_train import calc_loss_batch, evaluate_model, generate_and_print_sample


def open_run(run_dir, settings, resume):
    """Create or reopen a run's folder; returns the checkpoint to continue, or None.

    settings: what must be the same for a run to be continued. Raises InputError rather
    than overwrite a run that cannot be reproduced by the same command.
    """
    run_dir = Path(run_dir)
    try:
        (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
        # Access rights alone do not tell, for instance for root
        (run_dir / "checkpoints" / "writable").touch()
        (run_dir / "checkpoints" / "writable").unlink()
    except OSError as error:
        raise InputError(f"cannot write to {run_dir}: {error.strerror}") from None
    for partial in run_dir.glob("checkpoints/partial-*"):
        shutil.rmtree(partial)  # of a run that was killed while saving
    newest = latest_checkpoint(run_dir)
    if newest is None:
        (run_dir / "metrics.jsonl").unlink(missing_ok=True)
        if resume:
            print(f"No checkpoint in {run_dir} yet: starting from the beginning.")
        return None

    position = load_position(newest)
    changed = [
        f"{key} {position['settings'].get(key)!r} there, {value!r} now"
        for key, value in settings.items()
        if position["settings"].get(key) != value
    ]
    if resume:
        if changed:
            raise InputError(f"cannot resume {newest}: {'; '.join(changed)}")
        return newest
    if changed:
        raise InputError(
            f"{run_dir} holds another run ({'; '.join(changed)}): choose another "
            "--out-dir"
        )
    if position["epoch"] < position["num_epochs"]:
        raise InputError(
            f"{run_dir} holds an unfinished run (step {position['step']}): add "
            "--resume to continue it, or choose another --out-dir"
        )
    # A finished run of the same settings: this one gives the same result again
    shutil.rmtree(run_dir / "checkpoints")
    (run_dir / "metrics.jsonl").unlink(missing_ok=True)
    return None


def read_metrics(run_dir, before_step=math.inf):
    """The records of metrics.jsonl with a step below before_step, a list of dicts."""
    path = Path(run_dir) / "metrics.jsonl"
    records = []
    if path.is_file():
        for line in path.read_text("utf-8").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                break  # cut off by a kill in mid-line; it is written again
            if record["step"] < before_step:
                records.append(record)
    return records


def train_resumable(
    model,
    config,
    train_loader,
    val_loader,
    optimizer,
    device,
    tokenizer,
    run_dir,
    settings,
    checkpoint,
    num_epochs,
    start_context,
    save_every,
):
    """Train until num_epochs are done or a signal asks to stop.

    checkpoint: what `open_run` returned. settings: as given to `open_run`, among them
    eval_freq, eval_iter (as in `train_model_simple`) and dtype ("fp32" or "bf16").
    Returns (metrics records, signal number or None).
    """
    position = {"epoch": 0, "batch": 0, "step": 0, "tokens_seen": 0, "seconds": 0.0}
    rng_states = None
    if checkpoint:
        rng_states, position = load_checkpoint(checkpoint, model, optimizer)
    metrics = _rewrite_metrics(run_dir, position["step"])
    started = time.perf_counter() - position["seconds"]
    steps = num_epochs * len(train_loader)
    mixed_precision = torch.autocast(
        device.type, torch.bfloat16, enabled=settings["dtype"] == "bf16"
    )

    def save():
        position["seconds"] = time.perf_counter() - started
        position.update(settings=settings, num_epochs=num_epochs)
        states = {**_get_rng_states(device), "epoch_start": epoch_start}
        save_checkpoint(run_dir, model, config, optimizer, states, position)

    with _stop_requests() as stop, _progress_bar(position, steps, train_loader) as bar:
        for epoch in range(position["epoch"], num_epochs):
            model.train()
            skip = position["batch"]
            if rng_states:
                _set_rng_states(device, rng_states, at_epoch_start=skip > 0)
            epoch_start = torch.get_rng_state()

            for batch, (input_batch, target_batch) in enumerate(train_loader, start=1):
                # Seen before the checkpoint: drawn again only to reach the same place
                if batch <= skip:
                    if batch == skip:
                        _set_rng_states(device, rng_states)
                    continue
                optimizer.zero_grad()
                with mixed_precision:
                    loss = calc_loss_batch(input_batch, target_batch, model, device)
                loss.backward()
                optimizer.step()
                step = position["step"]
                position["step"] += 1
                position["tokens_seen"] += input_batch.numel()
                position["batch"] = batch
                bar.update(input_batch.numel())

                if step % settings["eval_freq"] == 0:
                    with mixed_precision:
                        train_loss, val_loss = evaluate_model(
                            model,
                            train_loader,
                            val_loader,
                            device,
                            settings["eval_iter"],
                        )
                    seconds = time.perf_counter() - started
                    record = {
                        "step": step,
                        "epoch": epoch + 1,
                        "tokens_seen": position["tokens_seen"],
                        "train_loss": train_loss,
                        "val_loss": val_loss,
                        "learning_rate": optimizer.param_groups[0]["lr"],
                        "seconds": round(seconds, 2),
                        "tokens_per_second": round(position["tokens_seen"] / seconds),
                    }
                    metrics.append(record)
                    _append_metrics(run_dir, record)
                    with tqdm.external_write_mode(file=sys.stdout):
                        print(
                            f"Ep {epoch + 1} (Step {step:06d}): "
                            f"Train loss {train_loss:.3f}, Val loss {val_loss:.3f}"
                        )
                    if not math.isfinite(train_loss):
                        raise InputError(
                            f"the loss is {train_loss} at step {step}: lower --lr"
                        )

                if batch == len(train_loader):
                    position["epoch"], position["batch"] = epoch + 1, 0
                    with tqdm.external_write_mode(file=sys.stdout), mixed_precision:
                        generate_and_print_sample(
                            model, tokenizer, device, start_context
                        )
                done = position["epoch"] == num_epochs
                if done or stop["signal"] or position["step"] % save_every == 0:
                    save()
                if stop["signal"] and not done:
                    return metrics, stop["signal"]
            rng_states = None
    return metrics, None


def _get_rng_states(device):
    """The random number generators a training step uses, as uint8 tensors by name."""
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = getattr(torch, device.type).get_rng_state()
    return states


def _set_rng_states(device, states, at_epoch_start=False):
    torch.set_rng_state(states["epoch_start" if at_epoch_start else "cpu"])
    if device.type in states and device.type != "cpu":
        getattr(torch, device.type).set_rng_state(states[device.type])


@contextmanager
def _stop_requests():
    """Note Ctrl-C and SIGTERM instead of dying from them; a second one gets through."""
    stop = {"signal": None}

    def note(signum, frame):
        stop["signal"] = signum
        signal.signal(signum, previous[signum])
        print("\nStopping: this step is finished and saved first.", file=sys.stderr)

    previous = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def _progress_bar(position, steps, train_loader):
    """Tokens done, time left, tokens per second; on stderr, and only on a terminal."""
    inputs, _ = train_loader.dataset[0]
    tokens_per_batch = train_loader.batch_size * len(inputs)
    return tqdm(
        total=steps * tokens_per_batch,
        initial=position["tokens_seen"],
        unit="tok",
        unit_scale=True,
        dynamic_ncols=True,
        leave=False,
        disable=None,
    )


def _append_metrics(run_dir, record):
    try:
        with open(Path(run_dir) / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise InputError(f"cannot write {run_dir}/metrics.jsonl: {error}") from None


def _rewrite_metrics(run_dir, before_step):
    """Drop what was recorded after the checkpoint; returns the records that stay."""
    records = read_metrics(run_dir, before_step)
    (Path(run_dir) / "metrics.jsonl").unlink(missing_ok=True)
    for record in records:
        _append_metrics(run_dir, record)
    return records
