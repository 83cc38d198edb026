"""What every script of the course does with input it cannot use.

A script raises `InputError` where it notices the problem and wraps its work in
`exit_on_input_error`: the reader gets one line and exit code 2, never a stack trace.
"""

import sys
from contextlib import contextmanager


class InputError(ValueError):
    """Something the reader handed in cannot be used; the message says what to do."""


@contextmanager
def exit_on_input_error(script):
    """Turn an `InputError` into one line on stderr and exit code 2."""
    try:
        yield
    except InputError as error:
        print(f"{script}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
