"""`xengrant top`: all domains' grant tables live, on a terminal (`screen`) or line by line (`batch`).

Both look by way of `cli.survey` and keep what they saw in a `state.State`, whose lines `view` makes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import xengrant
from xengrant.cli import arguments
from xengrant.cli.hold import Hold
from xengrant.cli.survey import Survey
from xengrant.cli.top import batch
from xengrant.cli.top.keys import LEAST_DELAY
from xengrant.cli.top.state import SORTS, State, observed


class _Hold(Hold):
    """To be waited for beside the keyboard."""

    def fileno(self) -> int:
        return self._reader


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Shows the grant tables of all other domains and how they change, in dom0: a line for each domain, sorted and\n"
        "filtered by keys; ? lists them. With -b it writes the lines to stdout instead, with --json as an object for\n"
        "each look."
    )
    parser.add_argument(
        "-d",
        "--delay",
        metavar="SECONDS",
        type=_delay,
        default=1.0,
        help=f"from one look to the next (default 1, at least {LEAST_DELAY:g})",
    )
    parser.add_argument("-b", "--batch", action="store_true", help="write to stdout, without a terminal")
    parser.add_argument(
        "-i", "--iterations", metavar="N", type=arguments.count, help="end after N looks (default: go on)"
    )
    parser.add_argument("--sort", choices=tuple(SORTS), default="grants", help="the column to sort by at first")
    parser.add_argument(
        "--filter", metavar="TEXT", default="", help="show only names with TEXT in them, or domids that begin with it"
    )
    parser.epilog = arguments.examples(
        """
        xengrant top
        xengrant top -d 0.5 --sort rate
        xengrant top -b -i 3                 three looks as text
        xengrant top -b --json --filter web  an object for each look, until interrupted
        """
    )


def run(args: argparse.Namespace) -> int:
    in_batch = args.batch or args.json
    if not in_batch and not (sys.stdin.isatty() and sys.stdout.isatty()):
        args.parser.error("this is no terminal: write to stdout with -b")
    with _Hold() as hold, xengrant.connect(args.url) as domain, Survey(domain) as survey:
        state = State(url=domain.url, delay=args.delay, sort=args.sort, filter=args.filter)
        look = _looks_with(survey)
        if in_batch:
            batch.write(state, look, hold, iterations=args.iterations, json=args.json)
        else:
            _show(args, state, look, hold)
    return 0


def _show(args: argparse.Namespace, state: State, look: Callable[[State], State], hold: _Hold) -> None:
    try:
        from xengrant.cli.top import screen  # a Python may be built without curses
    except ImportError:
        args.parser.error("this Python has no curses: write to stdout with -b")
    lacking = screen.lacking()
    if lacking is not None:
        args.parser.error(f"{lacking}: write to stdout with -b")
    screen.show(look(state), look, hold.fileno(), iterations=args.iterations)


def _looks_with(survey: Survey) -> Callable[[State], State]:
    def look(state: State) -> State:
        domains = survey.look()
        return observed(state, domains, survey.names, at=time.monotonic(), time=time.strftime("%H:%M:%S"))

    return look


def _delay(text: str) -> float:
    value = arguments.seconds(text)
    if value < LEAST_DELAY:
        raise argparse.ArgumentTypeError(f"must be at least {LEAST_DELAY:g}")
    return value
