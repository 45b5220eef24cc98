"""`xengrant peek`: what lies in the page of a guest's console or of its xenstore connection, from dom0.

`console.py` and `xenstore.py` show one each; `page.py` maps it, read-only, or says why that cannot be.
"""

from __future__ import annotations

import argparse
from typing import Any

from xengrant.cli import arguments
from xengrant.cli.peek import console, xenstore


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Maps the page through which a guest speaks with the console daemon or with xenstored, read-only, and shows\n"
        "what lies there: how far each side is, what is under way, and what went through last, which is still in the\n"
        "page. Neither side notices."
    )
    parser.epilog = arguments.examples(
        """
        xengrant peek console web            the state of its console, and its last output
        xengrant peek console web --follow   and what comes then
        xengrant peek xenstore 3             the messages between domain 3 and xenstored
        """
    )
    actions = parser.add_subparsers(title="what to look into", metavar="RING", required=True)
    for ring in (console, xenstore):
        ring.configure(actions.add_parser(ring.NAME, help=ring.HELP, **_FORMAT))


def run(args: argparse.Namespace) -> int:
    action = args.action
    return int(action(args))


_FORMAT: dict[str, Any] = {
    "formatter_class": argparse.RawDescriptionHelpFormatter,
    "conflict_handler": "resolve",
}
