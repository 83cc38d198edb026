"""The pretraining loop of chapter 5, made safe to interrupt.

Same steps, same random numbers, same losses as `train_model_simple`. Added: a progress
bar, `metrics.jsonl`, checkpoints, and a clean exit on Ctrl-C or SIGTERM. A run that was
stopped in any way, `kill -9` included, continues bit for bit from its last checkpoint:
weights, optimizer, random numbers and the place in the shuffled data are restored.
"""

import json
import math
import os
import shutil
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from ch02.cli import InputError
from ch05.checkpoint import (
    checkpoints,
    discard,
    latest_checkpoint,
    load_checkpoint,
    load_position,
    save_checkpoint,
)
from ch05.gpt_train import calc_loss_batch, evaluate_model, generate_and_print_sample

# What a position tells besides what every position does
EPOCHS = frozenset({"epoch", "batch", "num_epochs"})


def open_run(run_dir, settings, num_epochs, resume):
    """Create or reopen a run's folder; returns the checkpoint to continue, or None.

    settings: what must be the same for a run to be continued. Raises InputError rather
    than overwrite a run that cannot be reproduced by the same command.
    """
    newest, position = find_run(run_dir, settings, resume, EPOCHS)
    if newest is None or resume:
        return newest
    if position["epoch"] < position["num_epochs"]:
        raise unfinished(run_dir, position)
    if position["num_epochs"] != num_epochs:
        raise InputError(
            f"{run_dir} holds a run of {position['num_epochs']} epochs: add --resume "
            f"to train it up to {num_epochs}, or choose another --out-dir"
        )
    # A finished run of the same settings: this one gives the same result again
    for old in checkpoints(run_dir):
        discard(old)
    write_metrics(run_dir, [])
    return None


def find_run(run_dir, settings, resume, also=frozenset()):
    """Create a run's folder, or look into it: (newest checkpoint, its position).

    Both are None where there is no checkpoint yet. also: as in `load_position`. Raises
    InputError if the folder cannot be written or holds a run with other settings.
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
        # Left over from a run that was killed while saving
        shutil.rmtree(partial, ignore_errors=True)
    newest = latest_checkpoint(run_dir)
    if newest is None:
        write_metrics(run_dir, [])
        if resume:
            print(f"No checkpoint in {run_dir} yet: starting from the beginning.")
        return None, None

    position = load_position(newest, also)
    changed = [
        f"{key} {position['settings'].get(key)!r} there, {value!r} now"
        for key, value in settings.items()
        if position["settings"].get(key) != value
    ]
    if changed and resume:
        raise InputError(f"cannot resume {newest}: {'; '.join(changed)}")
    if changed:
        raise InputError(
            f"{run_dir} holds another run ({'; '.join(changed)}): choose another "
            "--out-dir"
        )
    return newest, position


def unfinished(run_dir, position):
    """The InputError for a run that is to be resumed, not begun again."""
    return InputError(
        f"{run_dir} holds an unfinished run (step {position['step']}): add --resume to "
        "continue it, or choose another --out-dir"
    )


def read_metrics(run_dir, before_step):
    """The records of metrics.jsonl with a step below before_step, a list of dicts."""
    path = Path(run_dir) / "metrics.jsonl"
    text = path.read_text("utf-8", errors="replace") if path.is_file() else ""
    records = []
    for line in text.splitlines():
        try:
            record = json.loads(line)
            if record["step"] < before_step:
                records.append(record)
        except (ValueError, TypeError, KeyError):
            pass  # cut off by a kill in mid-line; it is written again
    return records


def write_metrics(run_dir, records):
    """Replace metrics.jsonl, in one go."""
    path = Path(run_dir) / "metrics.jsonl"
    partial = path.with_suffix(".partial")
    try:
        with open(partial, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InputError(f"cannot write {path}: {error.strerror}") from None


def append_metrics(run_dir, record):
    """Add one record to metrics.jsonl."""
    path = Path(run_dir) / "metrics.jsonl"
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


@dataclass
class ResumableTraining:
    """One training run: what it trains on what, and how far it is.

    settings: as given to `open_run`, among them eval_freq (as in `train_model_simple`)
    and dtype ("fp32" or "bf16"). save_every: steps from one checkpoint to the next.
    Another kind of training has its own `calc_loss`, `evaluate` and `end_epoch`.
    """

    model: nn.Module
    config: dict
    train_loader: DataLoader
    val_loader: DataLoader
    optimizer: torch.optim.Optimizer
    device: torch.device
    run_dir: Path
    settings: dict
    num_epochs: int
    save_every: int
    tokenizer: object = None
    start_context: str = ""  # of the sample after each epoch

    def __post_init__(self):
        self.position = {"epoch": 0, "batch": 0, "step": 0, "tokens_seen": 0}
        self.seconds_before = 0.0
        self.rng_states = None  # those of a checkpoint, until they are put back
        self.metrics = []
        self.mixed_precision = torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.settings["dtype"] == "bf16"
        )

    def restore(self, checkpoint):
        """Go back to a checkpoint; what was recorded after it is dropped."""
        self.rng_states, position = load_checkpoint(
            checkpoint, self.model, self.optimizer, ("cpu", "epoch_start")
        )
        self.seconds_before = position["seconds"]
        self.position = {key: position[key] for key in self.position}
        self.metrics = read_metrics(self.run_dir, before_step=position["step"])
        write_metrics(self.run_dir, self.metrics)

    def train(self):
        """Train to the end, or until a signal asks to stop.

        Returns the signal's number or None. In either case all that was done is saved.
        """
        self.started = time.perf_counter() - self.seconds_before
        with stop_requests() as stop, self._progress_bar() as self.bar:
            while self.position["epoch"] < self.num_epochs:
                for input_batch, target_batch in self._remaining_batches():
                    self._train_step(input_batch, target_batch)
                    if (self.position["step"] - 1) % self.settings["eval_freq"] == 0:
                        self._evaluate()
                    if self.position["batch"] == len(self.train_loader):
                        self._end_epoch()
                    done = self.position["epoch"] == self.num_epochs
                    if done or stop["signal"] or self._checkpoint_is_due():
                        self._save()
                    if stop["signal"] and not done:
                        return stop["signal"]
        return None

    def _remaining_batches(self):
        """The batches of the current epoch that are not done yet, as an iterator."""
        self.model.train()
        done = self.position["batch"]
        if self.rng_states:
            set_rng_states(self.device, self.rng_states, at_epoch_start=done > 0)
        self.epoch_start = torch.get_rng_state()
        batches = iter(self.train_loader)
        if done:
            # Drawn again only to reach the same place in the shuffled data
            for _ in range(done):
                next(batches)
            set_rng_states(self.device, self.rng_states)
        self.rng_states = None
        return batches

    def _train_step(self, input_batch, target_batch):
        self.optimizer.zero_grad()
        with self.mixed_precision:
            loss = self.calc_loss(input_batch, target_batch)
        loss.backward()
        self.optimizer.step()
        self.position["step"] += 1
        self.position["batch"] += 1
        self.position["tokens_seen"] += input_batch.numel()
        self.bar.update()

    def calc_loss(self, input_batch, target_batch):
        """The loss of one batch, a scalar tensor."""
        return calc_loss_batch(input_batch, target_batch, self.model, self.device)

    def evaluate(self):
        """(training loss, validation loss), two floats."""
        return evaluate_model(
            self.model,
            self.train_loader,
            self.val_loader,
            self.device,
            self.settings["eval_iter"],
        )

    def end_epoch(self):
        """Show what the model can do after an epoch."""
        generate_and_print_sample(
            self.model, self.tokenizer, self.device, self.start_context
        )

    def _evaluate(self):
        with self.mixed_precision:
            train_loss, val_loss = self.evaluate()
        step, seconds = self.position["step"] - 1, self._seconds()
        if not math.isfinite(train_loss):
            raise InputError(f"the loss is {train_loss} at step {step}: lower --lr")
        record = {
            "step": step,
            "epoch": self.position["epoch"] + 1,
            "tokens_seen": self.position["tokens_seen"],
            "train_loss": train_loss,
            "val_loss": val_loss,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "seconds": round(seconds, 2),
            "tokens_per_second": round(self.position["tokens_seen"] / seconds),
        }
        self.metrics.append(record)
        append_metrics(self.run_dir, record)
        with tqdm.external_write_mode(file=sys.stdout):
            print(
                f"Ep {record['epoch']} (Step {step:06d}): "
                f"Train loss {train_loss:.3f}, Val loss {val_loss:.3f}"
            )

    def _end_epoch(self):
        self.position["epoch"] += 1
        self.position["batch"] = 0
        with tqdm.external_write_mode(file=sys.stdout), self.mixed_precision:
            self.end_epoch()

    def _checkpoint_is_due(self):
        return self.position["step"] % self.save_every == 0

    def _save(self):
        if not all(p.isfinite().all() for p in self.model.parameters()):
            step = self.position["step"]
            raise InputError(f"weights are not finite after step {step}: lower --lr")
        save_checkpoint(
            self.run_dir,
            self.model,
            self.config,
            self.optimizer,
            {**get_rng_states(self.device), "epoch_start": self.epoch_start},
            {
                **self.position,
                "seconds": self._seconds(),
                "num_epochs": self.num_epochs,
                "settings": self.settings,
            },
        )

    def _seconds(self):
        """Time spent on this run, that before an interruption included."""
        return time.perf_counter() - self.started

    def _progress_bar(self):
        """Steps done, time left, steps per second; on stderr, only on a terminal."""
        return tqdm(
            total=self.num_epochs * len(self.train_loader),
            initial=self.position["step"],
            unit="step",
            dynamic_ncols=True,
            leave=False,
            disable=None,
        )


def get_rng_states(device):
    """The random number generators a training step uses, as uint8 tensors by name."""
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = getattr(torch, device.type).get_rng_state()
    return states


def set_rng_states(device, states, at_epoch_start=False):
    """Put back what `get_rng_states` read.

    at_epoch_start: take the state of the CPU called "epoch_start" instead of "cpu".
    """
    torch.set_rng_state(states["epoch_start" if at_epoch_start else "cpu"])
    if device.type in states and device.type != "cpu":
        getattr(torch, device.type).set_rng_state(states[device.type])


@contextmanager
def stop_requests():
    """Note Ctrl-C and SIGTERM instead of dying from them; a second one gets through."""
    stop = {"signal": None}

    def note(signum, frame):
        stop["signal"] = signum
        signal.signal(signum, previous[signum])
        print("\nStopping: this step is finished and saved first.", file=sys.stderr)

    previous = {
        number: signal.signal(number, note)
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) != signal.SIG_IGN  # as a shell does for "... &"
    }
    try:
        yield stop
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
