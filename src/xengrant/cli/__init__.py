"""The tool `xengrant`: one module for each subcommand, listed in `commands.py`; `main` parses, runs, and maps errors.

Exit statuses: 0 done, 1 an error, 2 usage or "busy, try again", 129, 130 and 143 interrupted before anything was held.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import traceback
from collections.abc import Iterator, Sequence
from typing import cast

from xengrant.cli import output
from xengrant.cli.commands import command_parser
from xengrant.cli.hold import terminates
from xengrant.errors import GrantBusy, GrantError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool with `argv` (the process's own arguments by default); the exit status."""
    with terminates(), _logged() as log:
        try:
            args = command_parser().parse_args(argv)
            if args.verbose:
                log.setLevel(logging.DEBUG)
            return _run(args)
        except output.ReaderGoneError:
            return 141  # as of a program that SIGPIPE ended
        except KeyboardInterrupt:
            return 130


class _Log(logging.Handler):
    """What the library logs, on stderr; others wrote some of it."""

    def emit(self, record: logging.LogRecord) -> None:
        output.say(f"{record.name}: {record.getMessage()}")
        if record.exc_info and record.exc_info[1]:
            output.say_lines(traceback.format_exception(record.exc_info[1]))


@contextlib.contextmanager
def _logged() -> Iterator[logging.Logger]:
    """Warnings are shown; the logger is what decides that."""
    log, handler = logging.getLogger(), _Log()
    level = log.level
    log.addHandler(handler)
    try:
        yield log
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def _run(args: argparse.Namespace) -> int:
    try:
        return cast("int", args.run(args))
    except (GrantBusy, output.NobodyThereError) as error:
        return _fail(args, error, 2)
    except (GrantError, OSError, ValueError) as error:
        return _fail(args, error, 1)


def _fail(args: argparse.Namespace, error: Exception, status: int) -> int:
    if args.verbose:
        output.say_lines(traceback.format_exception(error))
    output.say(f"xengrant: {_text(error)}")
    return status


def _text(error: Exception) -> str:
    """The error in one line, without Python's ``[Errno 2]``."""
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    reason = error.strerror or os.strerror(error.errno)
    return f"{error.filename}: {reason}" if error.filename is not None else reason
