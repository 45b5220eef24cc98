"""The tool `xengrant`: one module for each subcommand, listed in `commands.py`; `main` parses, runs, and maps errors.

What it ends with, `statuses.py` says.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import cast

from xengrant import __version__
from xengrant.cli import output, statuses
from xengrant.cli.commands import command_parser
from xengrant.cli.hold import terminates
from xengrant.errors import GrantError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool with `argv` (the process's own arguments by default); the exit status."""
    output.open_closed()
    debug = False
    with terminates(), _logged() as log:
        try:
            args = command_parser().parse_args(argv)
            debug = args.debug
            if args.verbose or debug:
                log.setLevel(logging.DEBUG)
            return cast("int", args.run(args))
        except output.ReaderGoneError:
            return statuses.READER_GONE
        except KeyboardInterrupt:
            return statuses.INTERRUPTED
        except (GrantError, OSError, ValueError, MemoryError) as error:
            return _fail(error, debug=debug)
        except Exception as error:
            return _confess(error, debug=debug)


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


def _fail(error: Exception, *, debug: bool) -> int:
    """An error that was to be expected, in one line."""
    _show_traceback(error, shown=debug)
    output.say(f"xengrant: {_text(error)}")
    return statuses.of(error)


def _confess(error: Exception, *, debug: bool) -> int:
    """Any other is our own mistake."""
    _show_traceback(error, shown=debug)
    output.say(f"xengrant: {type(error).__name__}: {error}")
    versions = f"xengrant {__version__}, Python {sys.version.split()[0]}, Linux {os.uname().release}"
    shown = "all of the above" if debug else "what the same command prints with --debug"
    output.say(f"This is a bug in {versions}. Please report it to xengrant's issue tracker, with {shown}.")
    return statuses.FAILED


def _show_traceback(error: Exception, *, shown: bool) -> None:
    if shown:
        output.say_lines(traceback.format_exception(error))


def _text(error: Exception) -> str:
    """The error in one line, without Python's ``[Errno 2]``."""
    if isinstance(error, MemoryError):
        return "there is not enough memory for that"
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    reason = error.strerror or os.strerror(error.errno)
    return f"{error.filename}: {reason}" if error.filename is not None else reason
