"""What every command-line program needs: its parser, and how it ends."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO, NoReturn

from ..errors import UserError
from ..terminal import printable

STDIN = "-"


class CommandParser(argparse.ArgumentParser):
    """A parser under the command's own name, with the module's docstring as its help."""

    def __init__(self, prog: str, description: str | None):
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=prog, description=description, formatter_class=formatter)

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def stdin() -> BinaryIO:
    """The bytes of standard input.

    Raises:
        UserError: it is closed.
    """
    if sys.stdin is None:
        raise UserError("standard input is closed: name the files to read")
    return sys.stdin.buffer


def escape_output(encoding: str | None = None) -> None:
    """Lets standard output take any text: what its encoding lacks is escaped."""
    if hasattr(sys.stdout, "reconfigure"):  # not where it is closed or captured
        sys.stdout.reconfigure(encoding=encoding, errors="backslashreplace")


def flush_output() -> None:
    """Writes out what was printed.

    Raises:
        OSError: it cannot be; it is dropped, for at its exit Python would try, and fail, again.
    """
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def run_command(prog: str, run: Callable[[], int | None], encoding: str | None = None) -> int:
    """Runs a command and returns its exit status.

    Args:
        prog: its name, for errors.
        run: what it does; the status it returns, or None for 0.
        encoding: of standard output (default: the terminal's, where other characters are escaped).

    Raises:
        SystemExit: with a line about what the user has to change, or 130 after Ctrl-C.
    """
    escape_output(encoding)
    try:
        status = run() or 0
        flush_output()
        return status
    except BrokenPipeError:  # the reader has seen enough
        with suppress(OSError):
            flush_output()
        return 1
    except (UserError, OSError) as error:
        with suppress(OSError):
            flush_output()
        raise SystemExit(f"{prog}: error: {printable(error)}") from error
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def whole_number(text: str, least: int = 0) -> int:
    """Argument type: a whole number from `least`, of at most nine digits."""
    if not text.isdecimal() or len(text) > 9 or int(text) < least:
        raise argparse.ArgumentTypeError(
            f"{text[:30]!r} is no whole number from {least} to 999999999"
        )
    return int(text)


def positive(text: str) -> int:
    """Argument type: a whole number above 0."""
    return whole_number(text, 1)
