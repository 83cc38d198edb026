"""Train one model in several processes that share every batch (section A.9.3).

Each process is a rank: on a GPU of its own with NCCL, or on the CPU with gloo. This
script starts them itself, with `mp.spawn`; DDP-script-torchrun.py leaves that to
torchrun. Run it: `python DDP-script.py`. It prints the loss of every batch, which does
not depend on how many processes share it.
"""

import os
import socket
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from ch02.cli import InputError, Parser, exit_on_input_error, positive_int

NAME = "DDP-script"
PORT = "12345"
COPIES = 8  # of the five training points


def ddp_setup(rank, world_size, backend="auto", timeout=60):
    """Meet the other ranks and form a process group; returns this rank's device.

    They meet where MASTER_ADDR and MASTER_PORT say, by default localhost and 12345.
    Raises InputError if the port is taken, and after `timeout` seconds without a rank
    with its name.
    """
    host = os.environ.get("MASTER_ADDR", "localhost")
    port = environment("MASTER_PORT", PORT, 1, 65535)
    # Rank 0 keeps the list of who is there, unless torchrun does
    by_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    keeps_list = rank == 0 and not by_torchrun
    if keeps_list:
        check_port(port)
    else:
        find_rank_0(host, port, rank, timeout)
    wait = timedelta(seconds=timeout)
    store = dist.TCPStore(
        host,
        port,
        is_master=keeps_list,
        timeout=wait,
        wait_for_workers=False,
        use_libuv=sys.platform != "win32",
    )
    wait_for_all(store, rank, world_size, timeout)

    backend = pick_backend(backend)
    device = torch.device("cpu")
    if backend == "nccl":
        local_rank = environment("LOCAL_RANK", str(rank), 0, 9999)
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=world_size, timeout=wait
    )
    say(rank, f"joined as one of {world_size}, {backend}, {device}")
    return device


def environment(name, default, lowest, highest):
    """Return the whole number in an environment variable; InputError if it is none."""
    value = os.environ.get(name, default)
    if not value.isdecimal() or not lowest <= int(value) <= highest:
        raise InputError(
            f"{name} is {value!r}, not a whole number from {lowest} to {highest}: "
            "correct it, or leave it to torchrun"
        )
    return int(value)


def check_port(port):
    """Raise InputError unless this machine lets us listen on the port."""
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        raise InputError(
            f"port {port} cannot be used ({os.strerror(error.errno)}): choose another, "
            "with --port or in MASTER_PORT"
        ) from None


def find_rank_0(host, port, rank, timeout):
    """Wait until somebody listens there; InputError after `timeout` seconds."""
    end = time.monotonic() + timeout
    while True:
        try:
            return socket.create_connection((host, port), timeout=1).close()
        except OSError:
            if time.monotonic() > end:
                raise InputError(
                    f"rank {rank} did not find rank 0 at {host}:{port} within "
                    f"{timeout} s: start rank 0 too, or correct MASTER_ADDR and "
                    "MASTER_PORT"
                ) from None
        time.sleep(0.1)


def wait_for_all(store, rank, world_size, timeout):
    """Put this rank on the list and wait until the list is complete.

    Raises InputError with the ranks that are missing after `timeout` seconds, or when
    another rank stops waiting.
    """
    ranks = [f"rank {r}" for r in range(world_size)]
    store.set(ranks[rank], "here")
    end = time.monotonic() + timeout
    while not store.check(ranks):
        if time.monotonic() > end or store.check(["over"]):
            store.set("over", "")
            missing = [name for name in ranks if not store.check([name])]
            if rank == 0:
                time.sleep(1)  # the list goes with rank 0: let the others read it
            raise InputError(
                f"{', '.join(missing)} did not join in time: start every rank from 0 "
                f"to {world_size - 1} within {timeout} s (--timeout)"
            )
        time.sleep(0.05)


def pick_backend(name="auto"):
    """Return "nccl" or "gloo"; "auto" takes NCCL where there are GPUs."""
    if name != "auto":
        return name
    has_gpus = torch.cuda.is_available() and dist.is_nccl_available()
    return "nccl" if has_gpus else "gloo"


def say(rank, words):
    """Print a line that names its rank, at once and in one piece."""
    print(f"[rank {rank}] {words}\n", end="", flush=True)


class ToyDataset(Dataset):
    """Points with two coordinates, and the class of each."""

    def __init__(self, X, y):
        self.features = X
        self.labels = y

    def __getitem__(self, index):
        return self.features[index], self.labels[index]

    def __len__(self):
        return self.labels.shape[0]


class NeuralNetwork(torch.nn.Module):
    """Two hidden layers: (B, num_inputs) -> (B, num_outputs)."""

    def __init__(self, num_inputs, num_outputs):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(num_inputs, 30),
            torch.nn.ReLU(),
            torch.nn.Linear(30, 20),
            torch.nn.ReLU(),
            torch.nn.Linear(20, num_outputs),
        )

    def forward(self, x):
        return self.layers(x)


def prepare_dataset(batch_size=8):
    """Return the train and test loaders of this rank; needs the process group.

    `batch_size` counts the points of all ranks together. The ranks take the points of
    one shuffled order in turn, so that together they always hold the same batches.
    """
    points = [[-1.2, 3.1], [-0.9, 2.9], [-0.5, 2.6], [2.3, -1.1], [2.7, -1.5]]
    labels = torch.tensor([0, 0, 0, 1, 1])
    # Copies of the notebook's five points, each moved a little
    X_train = torch.tensor(points).repeat(COPIES, 1)
    generator = torch.Generator().manual_seed(123)
    X_train += 0.3 * torch.randn(X_train.shape, generator=generator)
    train_ds = ToyDataset(X_train, labels.repeat(COPIES))
    test_ds = ToyDataset(torch.tensor([[-0.8, 2.8], [2.6, -1.6]]), torch.tensor([0, 1]))

    train_loader = DataLoader(
        train_ds,
        batch_size=batch_size // dist.get_world_size(),
        sampler=DistributedSampler(train_ds, seed=123, drop_last=True),
        drop_last=True,
    )
    return train_loader, DataLoader(test_ds, batch_size=2)


def main(rank, world_size, num_epochs, batch_size=8, backend="auto", timeout=60):
    """Train as one of the ranks; returns the losses of all batches, the same on each.

    Also after an error this rank leaves the process group.
    """
    device = ddp_setup(rank, world_size, backend, timeout)
    try:
        train_loader, test_loader = prepare_dataset(batch_size)
        torch.manual_seed(123)
        model = NeuralNetwork(num_inputs=2, num_outputs=2).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        ddp_model = DDP(model)  # from now on backward() averages over the ranks

        losses = []
        for epoch in range(num_epochs):
            train_loader.sampler.set_epoch(epoch)  # else each has the same order
            model.train()
            for batch, (features, labels) in enumerate(train_loader):
                features, labels = features.to(device), labels.to(device)
                loss = F.cross_entropy(ddp_model(features), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

                # The mean over all ranks is the loss of the whole batch
                loss = loss.detach()
                dist.all_reduce(loss)
                losses.append(loss.item() / world_size)
                if rank == 0:
                    say(
                        rank,
                        f"Epoch: {epoch + 1:03d}/{num_epochs:03d}"
                        f" | Batch {batch + 1:03d}/{len(train_loader):03d}"
                        f" | Batchsize {world_size} x {len(labels)}"
                        f" | Loss: {losses[-1]:.4f}",
                    )
        train_accuracy = compute_accuracy(model, train_loader, device)
        test_accuracy = compute_accuracy(model, test_loader, device)
        weights = sum(p.sum().item() for p in model.parameters())
        say(
            rank,
            f"Accuracy on my share: {train_accuracy:.2f}, on the test set:"
            f" {test_accuracy:.2f}, sum of my weights: {weights:.4f}",
        )
        return losses
    finally:
        # DDP holds on to the group. If it were the last to let go, it would wait for
        # threads of gloo that wait for it (seen with PyTorch 2.13)
        ddp_model = None
        dist.destroy_process_group()


def compute_accuracy(model, dataloader, device="cpu"):
    """Return the share of points whose class the model gets right, from 0 to 1."""
    model.eval()
    correct, total = 0, 0
    for features, labels in dataloader:
        features, labels = features.to(device), labels.to(device)
        with torch.no_grad():
            logits = model(features)  # (B, num_outputs)
        predictions = torch.argmax(logits, dim=1)  # (B,)
        correct += (predictions == labels).sum().item()
        total += len(labels)
    return correct / total


def add_options(parser):
    """Add the options of both scripts."""
    parser.add_argument("--epochs", type=positive_int, default=3, help="default: 3")
    parser.add_argument(
        "--batch-size",
        type=positive_int,
        default=8,
        help="points in a batch, all processes together (default: 8)",
    )
    parser.add_argument(
        "--backend",
        choices=("auto", "gloo", "nccl"),
        default="auto",
        help="how processes talk: nccl between GPUs, gloo between CPUs; auto (the "
        "default) takes nccl where there are GPUs",
    )
    parser.add_argument(
        "--timeout",
        type=positive_int,
        default=60,
        help="seconds to wait for another process before giving up (default: 60)",
    )


def check(batch_size, backend, world_size, processes_here):
    """Raise InputError if the processes cannot share a batch, or lack GPUs."""
    if batch_size % world_size:
        raise InputError(
            f"{world_size} processes cannot share a batch of {batch_size} equally: "
            f"make --batch-size a multiple of {world_size}"
        )
    if batch_size > 5 * COPIES:
        raise InputError(
            f"a batch of {batch_size} is more than all {5 * COPIES} training points: "
            "choose a smaller --batch-size"
        )
    gpus = torch.cuda.device_count()
    if pick_backend(backend) == "nccl" and processes_here > gpus:
        raise InputError(
            f"NCCL needs a GPU for each process, and for {processes_here} processes "
            f"there are {gpus}: start fewer, or choose --backend gloo"
        )


def start(rank, *arguments):
    """What `mp.spawn` starts in each process: `main`, its errors in one line."""
    with exit_on_input_error(NAME):
        main(rank, *arguments)


def cli(argv=None):
    """The command line: start the processes and wait until all have ended."""
    parser = Parser(
        prog=NAME,
        description="Train a small network in several processes of this machine. Each "
        "takes an equal share of every batch, and after every step all hold the same "
        "weights. The losses printed are the same for 1, 2 and 4 processes.",
    )
    parser.add_argument(
        "--world-size",
        type=positive_int,
        default=torch.cuda.device_count() or 2,
        help="number of processes (default: one per GPU, 2 without GPUs)",
    )
    add_options(parser)
    parser.add_argument(
        "--port",
        type=positive_int,
        help="where they meet (default: MASTER_PORT, or 12345 if unset)",
    )
    args = parser.parse_args(argv)
    with exit_on_input_error(NAME):
        check(args.batch_size, args.backend, args.world_size, args.world_size)
        if args.port:
            os.environ["MASTER_PORT"] = str(args.port)
        check_port(environment("MASTER_PORT", PORT, 1, 65535))
        arguments = (args.epochs, args.batch_size, args.backend, args.timeout)
        try:
            mp.spawn(start, (args.world_size, *arguments), nprocs=args.world_size)
        except mp.ProcessExitedException as error:
            if error.exit_code < 0:  # ended by a signal
                raise
            raise SystemExit(error.exit_code) from None  # it has said why


if __name__ == "__main__":
    cli()
