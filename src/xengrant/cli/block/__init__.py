"""`xengrant block`: a disk that this domain serves to another, or one that another serves to this one.

`serve.py` and `attach.py` are its actions; `live.py` is what a server shows of itself, `vdev.py` the names of disks.
"""

from __future__ import annotations

import argparse
from typing import Any

from xengrant.cli import arguments
from xengrant.cli.block import attach, serve


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Serves an image as a paravirtual disk, which a Linux guest's own driver finds, or reads and writes a disk\n"
        "that another domain serves: Linux's, or another xengrant."
    )
    parser.epilog = arguments.examples(
        """
        xengrant block serve disk.img --to web               in dom0: /dev/xvdb in the guest
        xengrant block attach 0 info                         in a guest whose kernel does not use its xvdb
        xengrant block attach 0 read --count 8 | file -
        """
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    for action in (serve, attach):
        action.configure(actions.add_parser(action.NAME, help=action.HELP, **_FORMAT))


def run(args: argparse.Namespace) -> int:
    action = args.action
    return int(action(args))


_FORMAT: dict[str, Any] = {
    "formatter_class": argparse.RawDescriptionHelpFormatter,
    "conflict_handler": "resolve",
}
