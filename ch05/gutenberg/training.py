"""One pretraining run on token shards, alone or in several processes.

`Pretraining` puts the parts of `recipe.py` together: micro-batches whose gradients are
added up, clipping, bits per byte, metrics, checkpoints that continue bit for bit.
`World` is where the processes that torchrun starts meet. The command line is
`pretrain.py`.
"""

import math
import os
import signal
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from ch02.cli import InputError
from ch02.dataloader import get_tokenizer
from ch05.checkpoint import load_checkpoint, save_checkpoint
from ch05.decoding.sampler import Sampler, sample
from ch05.device import pick_device
from ch05.gpt_train import calc_loss_batch, text_to_token_ids, token_ids_to_text
from ch05.gutenberg.recipe import (
    Windows,
    create_model,
    create_optimizer,
    learning_rate,
    token_lengths,
)
from ch05.resumable import (
    append_metrics,
    get_rng_states,
    read_metrics,
    set_rng_states,
    stop_requests,
    write_metrics,
)

SAMPLER = Sampler(temperature=0.8, top_k=50)


class World:
    """This process among those of the run: alone, or one of torchrun's."""

    def __init__(self, device_name):
        self.size = int(os.environ.get("WORLD_SIZE", 1))
        self.rank = int(os.environ.get("RANK", 0))
        if self.size > 1 and device_name == "auto":
            device_name = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = pick_device(device_name)
        if self.size > 1:
            if self.device.type == "cuda":
                number, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
                if number >= gpus:
                    raise InputError(f"--nproc-per-node is at most {gpus}, one per GPU")
                self.device = torch.device("cuda", number)
                torch.cuda.set_device(self.device)
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")

    def sum(self, *numbers):
        """Add numbers up over all processes; returns a list of floats."""
        if self.size == 1:
            return list(numbers)
        values = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(values)
        return values.tolist()

    def wait(self):
        """Go on when every process is here."""
        if self.size > 1:
            dist.barrier()

    def close(self):
        """Leave the other processes."""
        if dist.is_initialized():
            dist.destroy_process_group()


class Pretraining:
    """One run: what it trains on what, and how far it is.

    settings: what makes the run what it is, as `cli` collects it. train, val:
    TokenShards. compiled: whether torch.compile is used. board: a SummaryWriter.
    """

    def __init__(
        self, settings, train, val, world, run_dir, compiled=False, board=None
    ):
        self.settings, self.world, self.run_dir = settings, world, Path(run_dir)
        self.board = board
        config, T = settings["config"], settings["config"]["context_length"]
        self.tokens_per_step = settings["batch_size"] * T
        self.windows = Windows(train, T, settings["seed"], settings["shuffle"])
        self.val_windows = Windows(val, T, shuffle=False)
        self.token_lengths = token_lengths(get_tokenizer())
        torch.manual_seed(settings["seed"])
        self.model = create_model(config).to(world.device)
        self.optimizer = create_optimizer(
            self.model, settings["learning_rate"], settings["weight_decay"]
        )
        self.trained = self.model  # or the same weights behind a wrapper
        if compiled:
            self.trained = torch.compile(self.trained)
        if world.size > 1:
            self.trained = DistributedDataParallel(self.trained)
        self.mixed_precision = torch.autocast(
            world.device.type, torch.bfloat16, enabled=settings["dtype"] == "bf16"
        )
        self.step = 0  # how many are done
        self.loss_sum = torch.zeros((), device=world.device)  # since the last record
        self.seconds_before = 0.0
        self.started = time.perf_counter()

    def restore(self, checkpoint):
        """Go back to a checkpoint; what was recorded after it is dropped."""
        rng_states, position = load_checkpoint(checkpoint, self.model, self.optimizer)
        set_rng_states(self.world.device, rng_states)
        self.step = position["step"]
        self.loss_sum.fill_(position["loss_sum"])
        self.seconds_before = position["seconds"]
        if self.world.rank == 0:
            records = read_metrics(self.run_dir, before_step=self.step + 1)
            write_metrics(self.run_dir, records)

    def my_windows(self, step):
        """The numbers of this process's windows in a step, as a list per micro-batch.

        All processes together take the windows that one process alone would take.
        """
        batch_size, micro = self.settings["batch_size"], self.settings["micro_batch"]
        mine = range(self.world.rank, batch_size, self.world.size)
        numbers = [step * batch_size + i for i in mine]
        return [numbers[i : i + micro] for i in range(0, len(numbers), micro)]

    def loss(self, numbers):
        """Mean cross-entropy of the training windows with these numbers."""
        inputs, targets = self.windows.batch(numbers)
        with self.mixed_precision:
            return calc_loss_batch(inputs, targets, self.trained, self.world.device)

    def train_step(self):
        """One update of the weights, on batch_size windows."""
        s = self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(
                self.step, s["num_steps"], s["warmup_steps"], s["learning_rate"]
            )
        micro_batches = self.my_windows(self.step)
        for i, numbers in enumerate(micro_batches, start=1):
            with self._exchanging_gradients(i == len(micro_batches)):
                # The mean over micro-batches of one size is the mean over all windows
                loss = self.loss(numbers) / len(micro_batches)
                loss.backward()
            self.loss_sum += loss.detach()
        nn.utils.clip_grad_norm_(self.model.parameters(), s["max_norm"])
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1

    def _exchanging_gradients(self, wanted=True):
        """Processes exchange gradients once a step, with the last micro-batch's."""
        alone = self.world.size == 1
        return nullcontext() if wanted or alone else self.trained.no_sync()

    @torch.no_grad()
    def evaluate(self):
        """Bits per byte of text on windows spread evenly over the validation split.

        Unlike the loss per token it does not depend on how text is cut into tokens.
        `compare.py` measures the whole split.
        """
        windows, micro = self.val_windows, self.settings["micro_batch"]
        count = min(self.settings["eval_windows"], windows.count)
        chosen = [i * windows.count // count for i in range(count)]
        mine = chosen[self.world.rank :: self.world.size]
        nats = num_bytes = 0.0
        self.model.eval()
        for i in range(0, len(mine), micro):
            inputs, targets = windows.batch(mine[i : i + micro])
            with self.mixed_precision:
                loss = calc_loss_batch(inputs, targets, self.model, self.world.device)
            nats += loss.item() * targets.numel()
            num_bytes += self.token_lengths[targets].sum().item()
        self.model.train()
        nats, num_bytes = self.world.sum(nats, num_bytes)
        return nats / math.log(2) / num_bytes

    def record(self, steps, start_context):
        """Evaluate, write one line of metrics, print it and a sample.

        steps: how many the training loss is the mean of.
        """
        (loss,) = self.world.sum(self.loss_sum.item() / steps / self.world.size)
        self.loss_sum.zero_()
        bits_per_byte = self.evaluate()  # of weights that are newer than the loss
        if not math.isfinite(loss + bits_per_byte):
            raise InputError(
                f"the loss is not finite any more at step {self.step}: lower --lr"
            )
        record = {
            "step": self.step,
            "tokens_seen": self.step * self.tokens_per_step,
            "train_loss": loss,
            "val_bits_per_byte": bits_per_byte,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "seconds": round(self.seconds(), 2),
        }
        if self.world.rank > 0:
            return
        append_metrics(self.run_dir, record)
        if self.board:
            for name in ("train_loss", "val_bits_per_byte", "learning_rate"):
                self.board.add_scalar(name, record[name], record["tokens_seen"])
        with tqdm.external_write_mode(file=sys.stdout):
            print(
                f"Step {self.step:6d}, {record['tokens_seen']:,} tokens: "
                f"train loss {loss:.3f}, "
                f"val {bits_per_byte:.4f} bits per byte\n"
                f"    {self.continuation(start_context)}"
            )

    def continuation(self, start_context):
        """What the model writes after a prompt, on one line; the draws are the same."""
        tokenizer, device = get_tokenizer(), self.world.device
        idx = text_to_token_ids(start_context, tokenizer).to(device)
        T = self.settings["config"]["context_length"]
        generator = torch.Generator(device).manual_seed(self.settings["seed"])
        self.model.eval()
        ids = sample(self.model, idx, 40, T, SAMPLER, tokenizer.eot_token, generator)
        self.model.train()
        return " ".join(token_ids_to_text(ids, tokenizer).split())

    def save(self):
        """Write a checkpoint; one process does."""
        (loss_sum,) = self.world.sum(self.loss_sum.item() / self.world.size)
        if self.world.rank > 0:
            return
        if not all(p.isfinite().all() for p in self.model.parameters()):
            raise InputError(
                f"weights are not finite after step {self.step}: lower --lr"
            )
        position = {
            "step": self.step,
            "tokens_seen": self.step * self.tokens_per_step,
            "seconds": self.seconds(),
            "settings": self.settings,
            "loss_sum": loss_sum,
        }
        save_checkpoint(
            self.run_dir,
            self.model,
            self.settings["config"],
            self.optimizer,
            get_rng_states(self.world.device),
            position,
        )

    def seconds(self):
        """Time spent on this run, that before an interruption included."""
        return self.seconds_before + time.perf_counter() - self.started

    def seconds_per_step(self):
        """Judged by one micro-batch, there and back; nothing is learned from it."""
        numbers = self.my_windows(0)[0]
        rng_states = get_rng_states(self.world.device)
        with self._exchanging_gradients(False):
            for _ in range(2):
                started = time.perf_counter()
                loss = self.loss(numbers)
                loss.backward()
                loss.item()  # an accelerator is waited for
        self.optimizer.zero_grad()
        set_rng_states(self.world.device, rng_states)
        return (time.perf_counter() - started) * len(self.my_windows(0))

    def train(self, start_context, eval_freq, save_every):
        """Train to the end or until a signal asks to stop; returns its number or None.

        In either case all that was done is saved.
        """
        self.started = time.perf_counter()
        num_steps = self.settings["num_steps"]
        self.model.train()
        with stop_requests() as stop, self._progress_bar() as bar:
            while self.step < num_steps:
                self.train_step()
                bar.update(self.tokens_per_step)
                done = self.step == num_steps
                if self.step % eval_freq == 0 or done:
                    self.record((self.step - 1) % eval_freq + 1, start_context)
                # Processes stop together, or some would wait for the others for ever
                (stopping,) = self.world.sum(stop["signal"] or 0)
                if self.step % save_every == 0 or done or stopping:
                    self.save()
                if stopping and not done:
                    return stop["signal"] or signal.SIGTERM
        return None

    def _progress_bar(self):
        """Tokens done, time left, tokens per second; on stderr, only on a terminal."""
        return tqdm(
            total=self.settings["num_steps"] * self.tokens_per_step,
            initial=self.step * self.tokens_per_step,
            unit="tok",
            unit_scale=True,
            dynamic_ncols=True,
            leave=False,
            disable=True if self.world.rank else None,
        )
