"""The command line: the subcommands there are, and the parser, which imports a subcommand when that is used.

`main` parses with it; what is built of it, manual pages and completions, takes `whole_parser`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn, Protocol, cast

from xengrant import __version__
from xengrant.cli import arguments, statuses

__all__ = ["COMMANDS", "command_parser", "whole_parser"]

COMMANDS = {
    "demo": "see it work, step by step; needs no Xen",
    "doctor": "what this machine can do, and what to do about the rest",
    "share": "grant pages to another domain, until interrupted",
    "map": "map pages that another domain granted, and show them",
    "cat": "send stdin to another domain over a vchan, and print what it sends",
    "proxy": "carry connections of a local socket over a vchan, or those of a vchan to a local socket",
    "block": "serve a disk to a guest, or use one that another domain serves",
    "ls": "who grants what to whom: the grant tables of other domains, from dom0",
    "peek": "look into a guest's console or xenstore ring, from dom0",
    "metrics": "the figures of other domains' grant tables for Prometheus, from dom0",
    "top": "all domains' grants live, from dom0",
    "machine": "run an embedded machine, which needs no Xen",
    "selftest": "run the conformance suite: on an embedded machine by itself, or with an agent in another domain",
}
"""Each is a module or a package beside this file, with `configure(parser)` and `run(args) -> exit status`."""

_DESCRIPTION = "Xen grant tables: share memory pages with another domain, and map pages that another shared."
_EPILOG = """
xengrant demo                    see it work, no Xen needed
xengrant doctor                  what this machine can do, and what is missing
xengrant share --to 2 --pages 4  offer pages; prints their refs
xengrant map 1 8-11              map and show them, in domain 2
xengrant cat 1 chat              talk to domain 1 over a vchan
xengrant ls                      who grants what to whom, in dom0
"""


class _Command(Protocol):
    def configure(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace) -> int: ...


class _Parser(argparse.ArgumentParser):
    """argparse's, but help begins with the examples, which are the epilog, and wrong usage has a status of its own.

    What was typed, perhaps by a script that had it from elsewhere, is escaped where it is said.
    """

    def format_help(self) -> str:
        formatter = self._get_formatter()
        formatter.add_text(self.epilog)
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        for group in self._action_groups:
            formatter.start_section(group.title)
            formatter.add_text(group.description)
            formatter.add_arguments(group._group_actions)
            formatter.end_section()
        return formatter.format_help()

    def _print_message(self, message: str, file: Any = None) -> None:
        """argparse's own would drop what stdout does not take, and say nothing; all else is for stderr."""
        from xengrant.cli import output

        if file is sys.stdout:
            output.emit_text(message)
        else:
            output.say_text(message)

    def error(self, message: str) -> NoReturn:
        from xengrant.cli.dump import printable

        self.print_usage(sys.stderr)
        self.exit(statuses.USAGE, f"{self.prog}: error: {printable(message)}\n")


class _Subparser(_Parser):
    """A subcommand's, without its arguments until it parses; an action's of a subcommand, which names no `command`."""

    def __init__(self, *args: Any, command: str | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._command = command

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]  # as argparse has it
        self.load()
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:  # else the tool's own parser refuses them, and shows a usage that is not theirs
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._meant(unknown)}")
        return parsed, unknown

    def _meant(self, unknown: Sequence[str]) -> str:
        from difflib import get_close_matches

        for text in unknown:
            close = get_close_matches(text.partition("=")[0], self._option_string_actions, 1)
            if text.startswith("--") and close:
                return f"; did you mean {close[0]}?"
        return ""

    def load(self) -> None:
        """Import the subcommand and let it add its arguments."""
        if self._command is None:
            return
        command = cast("_Command", import_module(f"xengrant.cli.{self._command}"))
        self._command = None
        arguments.add_common(self)
        command.configure(self)
        self.set_defaults(run=command.run, parser=self)


def command_parser() -> argparse.ArgumentParser:
    """The tool's parser."""
    return _parsers()[0]


def whole_parser() -> argparse.ArgumentParser:
    """The same with all that its subcommands take, for whoever looks at it from outside."""
    parser, subparsers = _parsers()
    for subparser in subparsers:
        subparser.load()
    return parser


def _parsers() -> tuple[argparse.ArgumentParser, Sequence[_Subparser]]:
    parser = _Parser(
        prog="xengrant",
        description=_DESCRIPTION,
        epilog=arguments.examples(_EPILOG),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"xengrant {__version__}")
    arguments.add_common(parser)
    commands = parser.add_subparsers(
        title="commands",
        description="xengrant COMMAND --help has examples of each, and says more.",
        metavar="COMMAND",
        required=True,
        parser_class=_Subparser,
    )
    subparsers = [
        commands.add_parser(
            name,
            help=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            conflict_handler="resolve",
            command=name,
        )
        for name, text in COMMANDS.items()
    ]
    parser.set_defaults(url=None, json=False, verbose=False, debug=False)
    return parser, subparsers
