"""The tool `xengrant`: one module for each subcommand, listed in `_commands`; `main` parses, runs, and maps errors.

A subcommand module has `NAME`, `HELP` (one line), `configure(parser)` and `run(args) -> exit status`. Exit statuses: 0
done, 1 an error, 2 usage or "busy, try again", 129, 130 and 143 interrupted before anything was held.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import traceback
from collections.abc import Iterator, Sequence
from typing import NoReturn, Protocol, cast

from xengrant import __version__
from xengrant.cli import arguments, output
from xengrant.cli.dump import printable
from xengrant.cli.hold import terminates
from xengrant.errors import GrantBusy, GrantError

__all__ = ["main"]


class _Command(Protocol):
    NAME: str
    HELP: str

    def configure(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace) -> int: ...


_DESCRIPTION = "Xen grant tables: share memory pages with another domain, and map pages that another shared."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool with `argv` (the process's own arguments by default); the exit status."""
    with terminates(), _logged() as log:
        try:
            args = _parser().parse_args(argv)
            if args.verbose:
                log.setLevel(logging.DEBUG)
            return _run(args)
        except output.ReaderGoneError:
            return 141  # as of a program that SIGPIPE ended
        except KeyboardInterrupt:
            return 130


def _commands() -> tuple[_Command, ...]:
    # Imported here: the demo's processes are modules of this package and need none of these.
    from xengrant.cli import block, cat, demo, doctor, ls, machine, map, metrics, peek, proxy, selftest, share, top

    commands = (demo, doctor, share, map, cat, proxy, block, ls, peek, metrics, top, machine, selftest)
    return cast("tuple[_Command, ...]", commands)


class _Parser(argparse.ArgumentParser):
    """argparse's, but what was typed, perhaps by a script that had it from elsewhere, is escaped where it is said."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


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


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="xengrant",
        description=_DESCRIPTION,
        epilog=arguments.examples(
            """
            xengrant demo                    see it work, no Xen needed
            xengrant doctor                  what this machine can do, and what is missing
            xengrant share --to 2 --pages 4  offer pages; prints their refs
            xengrant map 1 8-11              map and show them, in domain 2
            xengrant cat 1 chat              talk to domain 1 over a vchan
            xengrant ls                      who grants what to whom, in dom0
            """
        )
        + "\n\nxengrant COMMAND --help says more of each.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"xengrant {__version__}")
    arguments.add_common(parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in _commands():
        sub = commands.add_parser(
            command.NAME,
            help=command.HELP,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            conflict_handler="resolve",
        )
        arguments.add_common(sub)
        command.configure(sub)
        sub.set_defaults(run=command.run, parser=sub)
    parser.set_defaults(url=None, json=False, verbose=False)
    return parser


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
