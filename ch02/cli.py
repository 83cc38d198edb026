"""What the command lines of the course share.

Input a script cannot use gets one line on stderr and exit code 2, never a stack trace:
`Parser` does so for options, `exit_on_input_error` for everything found out later.
Output nobody reads any more, as in `... | head`, ends a script without a word.
"""

import argparse
import os
import sys
from contextlib import contextmanager


class InputError(ValueError):
    """Something the reader handed in cannot be used; the message says what to do."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that answers a wrong option in one line."""

    def parse_args(self, *args, **kwargs):
        if hasattr(sys.stdout, "reconfigure"):
            # A terminal that lacks a character shows a stand-in, not an error
            sys.stdout.reconfigure(errors="replace")
        return super().parse_args(*args, **kwargs)

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (--help explains the options)\n")


@contextmanager
def exit_on_input_error(script):
    """Turn an `InputError` into one line on stderr and exit code 2."""
    try:
        yield
        sys.stdout.flush()
    except InputError as error:
        print(f"{script}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:
        # What is still to be written on the way out goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


def positive_int(text):
    """Option type: a whole number of at least 1."""
    return _number(int, text, lambda n: n >= 1, "a whole number of at least 1")


def seed(text):
    """Option type: what `torch.manual_seed` takes, without the negative numbers."""
    return _number(int, text, lambda n: 0 <= n < 2**63, "a whole number from 0 to 2^63")


def positive_float(text):
    """Option type: a finite number above 0."""
    return _number(float, text, lambda x: 0 < x < float("inf"), "a number above 0")


def _number(kind, text, is_right, description):
    try:
        number = kind(text)
    except ValueError:
        number = None
    if number is None or not is_right(number):
        raise argparse.ArgumentTypeError(f"{text!r} is not {description}")
    return number
