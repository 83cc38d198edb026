"""The training of DDP-script.py in processes that torchrun starts (section A.9.3).

torchrun starts them on one machine or on several and tells each, in environment
variables, which rank it is. Nothing but the start differs, so the rest is imported.
Run it: `torchrun --standalone --nproc-per-node 2 DDP-script-torchrun.py`. It prints
what DDP-script.py prints.
"""

from importlib import import_module

from ch02.cli import Parser, exit_on_input_error

# A name with a dash cannot stand in an import statement
ddp = import_module("DDP-script")
NAME = "DDP-script-torchrun"


def cli(argv=None):
    """The command line of one process."""
    parser = Parser(
        prog=NAME,
        description="Train a small network in the processes that torchrun starts: "
        f"torchrun --standalone --nproc-per-node 2 {NAME}.py. Each takes an equal "
        "share of every batch, and after every step all hold the same weights. "
        "Without torchrun it is one process, or the one that RANK and WORLD_SIZE name.",
    )
    ddp.add_options(parser)
    args = parser.parse_args(argv)
    with exit_on_input_error(NAME):
        world_size = ddp.environment("WORLD_SIZE", "1", 1, 9999)
        rank = ddp.environment("RANK", "0", 0, world_size - 1)
        # One process per machine speaks for all; torchrun then ends the others
        if ddp.environment("LOCAL_RANK", "0", 0, 9999) == 0:
            processes_here = ddp.environment("LOCAL_WORLD_SIZE", "1", 1, 9999)
            ddp.check(args.batch_size, args.backend, world_size, processes_here)
        ddp.main(
            rank, world_size, args.epochs, args.batch_size, args.backend, args.timeout
        )


if __name__ == "__main__":
    cli()
