"""The tool on dom0's terminal, showing what guests wrote: names, console output, messages to xenstore, pages.

What it writes is fed to a terminal (pyte), and looked at as it is: no control character but a line's end and the
colours of the tool's own, none that has another meaning, and nothing has changed but the text on the screen.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import sys
from collections.abc import Iterator
from random import Random
from unittest import mock

import pyte
from wcwidth import wcswidth

import xengrant
from xengrant import GrantRef, _native, cli
from xengrant.abi import console, xs_wire
from xengrant.abi.xen import PAGE_SIZE
from xengrant.cli import statuses
from xengrant.cli.commands import command_parser
from xengrant.cli.survey import Survey
from xengrant.cli.top import _looks_with
from xengrant.cli.top.keys import press
from xengrant.cli.top.state import State
from xengrant.cli.top.text import plain
from xengrant.cli.top.view import lines

from ..target import NUMBERS, Step, Steps, Target, choose, data, number, text
from .machine import machine_with

__all__ = ["Terminal"]

_COLUMNS, _LINES = 150, 50
_FED = 8192  # bytes that the terminal is given of each output, for the sake of speed
_EVIL = [
    *("web", "", "\x1b[2J", "\x1b]0;owned\x07", "\x1b[31mred", "\x1b[?1049h", "\x9b2J", "\x90q\x9c", "\x07\x08\r\n"),
    *("\xe2\x80\xae", "\xe2\x80\x8b", "\xff\xfe", "\xc2\x9b31m", "\xc2\x85", "\xed\xa0\x80", "\xf0\x9f\x98\x80"),
    *("[red]bold[/red]", "[link=x]", "\t", "a\xcc\x81", "\xe1\x85\xa0", "\\x1b", "x" * 300, "\xe6\x97\xa5\xe6\x9c\xac"),
    *("\xef\xbb\xbf", "\xe2\x80\xa8", "\xf3\xa0\x80\x81", "\x00", "\x7f", "\xc2\xad", "\x0e\x0f", "\x1b(0", "\x1bc"),
]
_COMMANDS = [
    ["ls"],
    ["ls", "1"],
    ["ls", "--json"],
    ["ls", "1", "--json"],
    ["ls", "NAME"],
    ["peek", "console", "1"],
    ["peek", "console", "1", "--json"],
    ["peek", "xenstore", "1"],
    ["peek", "xenstore", "1", "--json"],
    ["map", "1", "REF"],
    ["map", "1", "REF", "--json"],
    ["map", "1", "--at", "data/x", "--timeout", "0"],
    ["top", "-b", "-i", "1"],
    ["top", "-b", "-i", "1", "--json"],
    ["doctor"],
    ["metrics", "--output", "-"],
]
_SGR = re.compile("\x1b\\[[0-9;]*m")


class _Stdout(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


class Terminal(Target):
    name = "terminal"
    about = "what guests wrote, shown by ls, map, peek, top, doctor and metrics on a terminal"
    guides = ("cli/dump.py", "cli/output.py", "cli/ls.py", "cli/peek/", "cli/top/", "cli/map.py")
    short = 20

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        with machine_with(1, 2) as machine, contextlib.ExitStack() as held:
            self._machine = machine
            self._dom0 = held.enter_context(xengrant.connect(machine.url(0)))
            guest = held.enter_context(xengrant.connect(machine.url(1)))
            self._store = held.enter_context(self._dom0.xenstore())
            self._guest_store = held.enter_context(guest.xenstore())
            gnttab = held.enter_context(self._dom0.gnttab())
            pages = (GrantRef.CONSOLE, GrantRef.XENSTORE)
            mapped = [held.enter_context(gnttab.map((1, ref), writable=True)) for ref in pages]
            gntshr = held.enter_context(guest.gntshr())
            self._share = held.enter_context(gntshr.share_pages(0, 1, writable=True))
            self._pages = {"console": mapped[0].mapping, "store": mapped[1].mapping, "page": self._share.mapping}
            made_once = functools.cache(command_parser)  # which takes long
            held.enter_context(mock.patch.object(cli, "command_parser", made_once))
            held.enter_context(mock.patch.dict(os.environ, {"TERM": "xterm", "COLUMNS": str(_COLUMNS)}))
            yield

    def first(self, chance: Random) -> Steps:
        """Rings that something went through, as far as their indices say."""
        evil = "".join(chance.choice(_EVIL) for _ in range(8))
        return [
            ["bytes", "console", console.OUT + chance.randrange(console.OUT_SIZE), evil],
            ["word", "console", console.OUT_PROD, chance.choice((100, 2048, 5000))],
            ["word", "store", xs_wire.REQ_PROD, chance.choice((40, 1024, 3000))],
            ["word", "store", xs_wire.RSP_PROD, chance.choice((40, 1024, 3000))],
        ][: chance.randrange(5)]

    def step(self, chance: Random) -> Step:
        evil = "".join(chance.choice(_EVIL) for _ in range(chance.randrange(1, 4)))
        kind = chance.randrange(10)
        if kind == 0:
            return ["name", chance.randrange(3), evil]
        if kind < 3:
            message = xs_wire.pack_message(chance.choice(list(xs_wire.Operation)), 1, 0, data(evil))
            at = chance.choice((xs_wire.REQ, xs_wire.RSP)) + chance.randrange(900)
            return ["bytes", "store", at, text(message)]
        if kind < 5:
            return ["bytes", chance.choice(("console", "page")), chance.randrange(PAGE_SIZE), evil]
        if kind == 5:
            places = {"console": (console.OUT_CONS, console.OUT_PROD, console.IN_PROD, console.CONNECTION)}
            places["store"] = (xs_wire.REQ_CONS, xs_wire.REQ_PROD, xs_wire.RSP_PROD, xs_wire.ERROR)
            which = chance.choice(("console", "store"))
            return [
                "word",
                which,
                chance.choice(places[which]),
                chance.choice((*NUMBERS[:14], number(chance, 1 << 32))),
            ]
        if kind == 6:
            return ["node", chance.choice(("domid", "refs/0", "refs/\x1b")), evil]
        if kind == 7:
            return ["screen", chance.randrange(1, 200), chance.randrange(1, 60), chance.randrange(4)]
        return ["run", chance.randrange(len(_COMMANDS)), chance.randrange(4)]

    def run(self, steps: Steps) -> None:
        for mapping in self._pages.values():
            mapping[:] = bytes(len(mapping))
        name = b"guest"
        for kind, *rest in steps:
            if kind == "name":
                name = data(rest[1], 1000)
                self._store.write(f"/local/domain/{choose([0, 1, 2], rest[0])}/name", name)
            elif kind == "bytes" and rest[0] in self._pages:
                mapping = self._pages[rest[0]]
                at = rest[1] % len(mapping)
                written = data(rest[2], len(mapping) - at)
                mapping[at : at + len(written)] = written
            elif kind == "word" and rest[0] in self._pages:
                _native.store32(self._pages[rest[0]], rest[1] % PAGE_SIZE & ~3, rest[2] & 0xFFFFFFFF)
            elif kind == "node":
                with contextlib.suppress(xengrant.XenStoreError, ValueError):
                    self._guest_store.write(f"data/x/{rest[0]}", data(rest[1], 1000))
            elif kind == "screen":
                self._screen(*rest)
            elif kind == "run":
                self._show(choose(_COMMANDS, rest[0]), name, rest[1])

    def _show(self, command: list[str], name: bytes, how: int) -> None:
        """Run the tool: in colours or without, where the charset has everything or only ASCII."""
        values = {"NAME": name.decode("utf-8", "replace").replace("\0", "?") or "-", "REF": str(self._share.refs[0])}
        argv = [values.get(word, word) for word in command]
        if argv[-1].startswith("-") and command[-1] == "NAME":
            return
        coloured, encoding = how % 2 == 0, "utf-8" if how & 2 else "ascii"
        raw = io.BytesIO()
        out = _Stdout(raw, encoding, errors="strict", write_through=True)
        error = _Stdout(raw, encoding, errors="backslashreplace", write_through=True)  # as Python's own
        environment = {} if coloured else {"NO_COLOR": "1"}
        with mock.patch.dict(os.environ, environment), mock.patch.multiple(sys, stdout=out, stderr=error):
            try:
                status = cli.main([*argv, "--url", self._machine.url(0)])
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else 1
        assert status in (0, 1, 2, statuses.USAGE), status
        _check(raw.getvalue(), encoding, coloured=coloured, is_metrics=command[0] == "metrics")
        out.detach()
        error.detach()

    def _screen(self, columns: int, height: int, keys: int) -> None:
        """What `top` would paint."""
        width, height = columns % 200 + 1, height % 60 + 1
        with Survey(self._dom0) as survey:
            state = _looks_with(survey)(State(url=self._dom0.url))
        for key in ("", "enter", "?", "d")[keys % 4 : keys % 4 + 1]:
            state = press(state, key) if key else state
        painted = [plain(line) for line in lines(state, width, height)]
        assert len(painted) == height
        assert all(line.isprintable() for line in painted), painted
        assert all(0 <= wcswidth(line) <= width for line in painted), painted


def _check(shown: bytes, encoding: str, *, coloured: bool, is_metrics: bool) -> None:
    """Metrics are UTF-8 whatever the charset (Prometheus' text format)."""
    written = shown.decode()
    assert encoding != "ascii" or written.isascii() or is_metrics, "more than the charset has"
    rest = _SGR.sub("", written) if coloured else written
    wrong = sorted({char for char in rest if not char.isprintable() and char != "\n"})
    assert not wrong, f"{wrong} in {written!r}"
    screen = pyte.Screen(_COLUMNS, _LINES)
    modes = set(screen.mode)
    pyte.ByteStream(screen).feed(shown[:_FED].replace(b"\n", b"\r\n"))
    assert (screen.title, screen.icon_name, set(screen.mode)) == ("", "", modes)
    assert all(line.isprintable() for line in screen.display), screen.display
