"""The tool `xengrant`: one module for each subcommand, listed in `commands.py`; `main` parses, runs, and maps errors.

Exit statuses: 0 done, 1 an error, 2 usage or "busy, try again", 129, 130 and 143 interrupted before anything was held.
"""

from __future__ import annotations

import argparse
import logging
import os
import traceback
from collections.abc import Sequence
from typing import cast

from xengrant.cli import output
from xengrant.cli.commands import command_parser
from xengrant.cli.hold import terminates
from xengrant.errors import GrantBusy, GrantError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool with `argv` (the process's own arguments by default); the exit status."""
    with terminates():
        try:
            args = command_parser().parse_args(argv)
            if args.verbose:
                logging.basicConfig(level=logging.DEBUG, format="%(name)s: %(message)s")
            return _run(args)
        except output.ReaderGoneError:
            return 141  # as of a program that SIGPIPE ended
        except KeyboardInterrupt:
            return 130


def _run(args: argparse.Namespace) -> int:
    try:
        return cast("int", args.run(args))
    except (GrantBusy, output.NobodyThereError) as error:
        return _fail(args, error, 2)
    except (GrantError, OSError, ValueError) as error:
        return _fail(args, error, 1)


def _fail(args: argparse.Namespace, error: Exception, status: int) -> int:
    if args.verbose:
        for line in "".join(traceback.format_exception(error)).splitlines():
            output.say(line)
    output.say(f"xengrant: {_text(error)}")
    return status


def _text(error: Exception) -> str:
    """The error in one line, without Python's ``[Errno 2]``."""
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    reason = error.strerror or os.strerror(error.errno)
    return f"{error.filename}: {reason}" if error.filename is not None else reason
