"""`xengrant peek console`: the state of a guest's console, its last output, and with --follow what comes then."""

from __future__ import annotations

import argparse
import base64
import contextlib
from collections.abc import Iterator

import xengrant
from xengrant.abi import console as abi
from xengrant.arguments import MAX_U32
from xengrant.cli import arguments, output
from xengrant.cli.dump import escape
from xengrant.cli.hold import Hold
from xengrant.cli.peek.page import GuestPage, check_possible, describe, emit_rings, open_page
from xengrant.rings.byte_ring import ConsoleRing
from xengrant.rings.byte_ring_look import RingLook, look

NAME = "console"
HELP = "how far a guest's console and its daemon are, and the last that the guest wrote"

_INTERVAL = 0.1
_CONNECTION = {abi.CONNECTED: "connected", abi.DISCONNECTED: "disconnected"}


def configure(parser: argparse.ArgumentParser) -> None:
    arguments.add_common(parser)
    parser.description = (
        "Shows how many bytes the guest and the console daemon have put into the console's rings and taken out, and\n"
        "the last output, up to 2048 bytes, which stays in the page when the daemon has read it. A line begins with |\n"
        "where the daemon has read it and with > where it has not yet; one that ends with a single \\ goes on in the\n"
        "next. What does not print is written \\xNN. What was typed is not shown."
    )
    parser.add_argument("domain", metavar="DOMAIN", help="domid or name of the guest")
    parser.add_argument(
        "--follow",
        action="store_true",
        help="then print new output as it comes; until interrupted or the guest is gone",
    )
    parser.add_argument(
        "-i",
        "--interval",
        metavar="S",
        type=arguments.interval,
        help=f"with --follow, look every S seconds (default {_INTERVAL:g}); of more than 2048 bytes between two looks "
        "the first are missed, and it is said how many",
    )
    parser.epilog = arguments.examples(
        """
        xengrant peek console web
        xengrant peek console 3 --follow
        xengrant peek console 3 --json | jq -r .output.base64 | base64 -d | cat -v
        """
    )
    parser.set_defaults(action=_run, parser=parser)


def _run(args: argparse.Namespace) -> int:
    if args.interval is not None and not args.follow:
        args.parser.error("--interval is for --follow")
    if not args.follow:
        with open_page(args, xengrant.GrantRef.CONSOLE) as page:
            return _show(args, page, look(page.mapping, ConsoleRing.TO_BACK))
    with Hold() as hold, open_page(args, xengrant.GrantRef.CONSOLE) as page:
        seen = look(page.mapping, ConsoleRing.TO_BACK)
        _show(args, page, seen)
        return _Follow(page, seen, json=args.json).run(hold, args.interval or _INTERVAL)


def _show(args: argparse.Namespace, page: GuestPage, out: RingLook) -> int:
    into = look(page.mapping, ConsoleRing.TO_FRONT)
    connection = page.mapping[abi.CONNECTION]
    facts = {"connection": _CONNECTION.get(connection, f"unknown ({connection})")}
    rings = {"output": ("guest", out), "input": ("daemon", into)}
    if args.json:
        output.emit_json(
            event="looked",
            domid=page.domid,
            name=page.name,
            output={**describe(out), "base64": base64.b64encode(out.tail).decode()},
            input=describe(into),
            **facts,
        )
    else:
        emit_rings(page, "console", rings, facts)
        for mark, text in (("|", out.read), (">", out.unread)):
            for line in _lines(text, mark):
                output.emit(line)
    return check_possible(page, rings)


def _lines(text: bytes, mark: str) -> Iterator[str]:
    r"""The text in lines; the end of one, \n or \r\n, is not written, and where the last has none, a single \ is."""
    *lines, rest = text.split(b"\n")
    for line in lines:
        shown = escape(line.removesuffix(b"\r"))
        yield f"{mark} {shown}" if shown else mark
    if rest:
        yield f"{mark} {escape(rest)}\\"


class _Follow:
    """What a guest writes from a look on, told as it comes."""

    def __init__(self, page: GuestPage, seen: RingLook, *, json: bool) -> None:
        self._page = page
        self._json = json
        self._at = seen.produced
        self._begun = b""  # of a line whose end has not come

    def run(self, hold: Hold, interval: float) -> int:
        page = self._page
        with page.domain.peer(page.domid) as peer:
            peer.on_gone(hold.end)  # not only at the next look: while the page is mapped, a destroyed domain stays
            output.say(f"following {page.called}; Ctrl-C ends it")
            with contextlib.suppress(xengrant.PeerClosed):
                while not hold.wait(interval):
                    self._look()
                self._look()
                self._flush()
                peer.check()
                return 0
        if self._json:
            output.emit_json(event="gone", domid=page.domid)
        output.say(f"{page.called} is gone")
        return 0

    def _look(self) -> None:
        now = look(self._page.mapping, ConsoleRing.TO_BACK)
        came = (now.produced - self._at) & MAX_U32
        self._at = now.produced
        if not came:
            self._flush()  # a prompt ends no line
        elif came > MAX_U32 // 2:
            self._flush()
            output.say("the guest's index went backwards: what it wrote meanwhile is not known")
        else:
            text = now.tail[-came:]
            self._tell(text, came - len(text))

    def _tell(self, text: bytes, missed: int) -> None:
        if missed:
            self._flush()
            output.say(f"missed {missed} bytes, written faster than they were looked at: --interval makes that rarer")
        if self._json:
            encoded = base64.b64encode(text).decode()
            output.emit_json(event="output", domid=self._page.domid, missed=missed, base64=encoded)
            return
        whole, end, self._begun = (self._begun + text).rpartition(b"\n")
        for line in _lines(whole + end, "|"):
            output.emit(line)
        if len(self._begun) > abi.OUT_SIZE:
            self._flush()

    def _flush(self) -> None:
        for line in _lines(self._begun, "|"):
            output.emit(line)
        self._begun = b""
