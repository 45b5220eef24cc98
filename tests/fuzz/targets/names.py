"""What the tool is given on its command line, and what others write into xenstore: refs, domids, paths, sizes, URLs.

What is taken is within its bounds and means what it says: an independent reading agrees, and it is written and read
back the same. All else is an error that says so.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, NoReturn

import xengrant
from xengrant import meeting
from xengrant.cli import arguments, sockets, statuses
from xengrant.cli.block import vdev
from xengrant.cli.commands import command_parser
from xengrant.devices.socket import SocketSystem
from xengrant.errors import GrantError, ProtocolError
from xengrant.gnttab import MAX_GRANTS
from xengrant.vchan import keys
from xengrant.xenstore_core import checked_path

from ..target import Step, Steps, Target, data, number, quick
from .machine import machine_with

__all__ = ["Names"]

_MAX_U32 = 0xFFFFFFFF
_TEXTS = [
    *("8", "8-23", "8-23,40", "0", "4294967295", "4294967296", "4294967295-4294967295", "0-65535", "0-65536", "9-8"),
    *("", ",", "8,", "-", "8-", "-8", "08", "+8", " 8", "8 ", "8\n", "0x10", "0X1f", "1_0", "\xb2", "\xd9\xa3", "1e3"),
    *("64K", "1M", "2M", "1048576", "1.5", "nan", "inf", "1e309", "-0", "xvda", "xvdb3", "xvda16", "xvdzzzz", "0123"),
    *("unix:/tmp/x", "unix:", "/tmp/x", "host:1", "[::1]:5", ":0", ":65536", "a:b:1", "embedded:/x?domid=1"),
    *("embedded:/x?domid=1&kernel=1", "embedded:?domid=1", "embedded:/%00?domid=1", "embedded:/x?domid=32752", "xen:"),
    *("embedded:/x?domid=\xb2", "data/a", "/local/domain/1", "a//b", "/", "@releaseDomain", "a" * 3073, "\x00", "\xff"),
    *("--at", "--json", "--to", "--", "-v", "ls", "map", "share", "cat", "block", "serve", "attach", "peek", "top"),
    *("console", "proxy", "metrics", "machine", "1", "2", "web", "--url", "--pages", "--timeout", "--fields", "ref"),
]
_READERS = ["refs", "number", "count", "ring size", "seconds", "disk", "socket", "url", "path", "key path", "domid"]


class _Refusing(argparse.ArgumentParser):
    """Raises what argparse would print."""

    def error(self, message: str) -> NoReturn:
        raise argparse.ArgumentTypeError(message)


_REFUSING = _Refusing()
_DOMID = (3, 4)  # who tells, and who reads


class Names(Target):
    name = "names"
    about = "refs, domids, paths and sizes, from the command line and from another domain's nodes"
    guides = ("cli/arguments.py", "cli/sockets.py", "cli/block/vdev.py", "meeting.py", "vchan/keys.py", "arguments.py")
    short = 60

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        with machine_with(*_DOMID) as machine, contextlib.ExitStack() as held:
            self._writer = held.enter_context(xengrant.connect(machine.url(_DOMID[0])))
            self._reader = held.enter_context(xengrant.connect(machine.url(_DOMID[1])))
            self._store = held.enter_context(self._writer.xenstore())
            self._parser = command_parser()
            self._dom0 = held.enter_context(xengrant.connect(machine.url(0)))
            yield

    def step(self, chance: Random) -> Step:
        texts = [chance.choice((*_TEXTS, _refs(chance))) for _ in range(chance.randrange(1, 6))]
        kind = chance.randrange(12)
        if kind < 7:
            return ["read", chance.choice(_READERS), texts[0]]
        if kind == 7:
            return ["command", texts]
        if kind == 8:
            return ["keys", chance.choice(texts), texts[0]]
        if kind == 9:
            return ["parse", chance.choice((str(_DOMID[0]), texts[0])), [_refs(chance), *texts[:2]]]
        return ["find", chance.choice((str(_DOMID[0]), str(_DOMID[0]), texts[0])), [_refs(chance), *texts[1:2]]]

    def run(self, steps: Steps) -> None:
        for kind, *rest in steps:
            if kind == "read":
                with contextlib.suppress(argparse.ArgumentTypeError, GrantError, ValueError):
                    self._read(*rest)
            elif kind == "command":
                self._command(rest[0])
            elif kind == "keys":
                with contextlib.suppress(ProtocolError):
                    found = keys._parse("path", data(rest[0]), data(rest[1]))
                    assert all(0 <= value <= _MAX_U32 for value in found), found
            elif kind == "parse":
                owner, texts = rest
                with contextlib.suppress(ProtocolError):
                    _check_grants(meeting.parse(_DOMID[0], "path", data(owner), list(map(data, texts))), texts)
            elif kind == "find":
                self._find(*rest)

    def _read(self, kind: str, text: str) -> None:
        if kind == "path":
            path = checked_path(text, special=True)
            assert len(path) <= 3072
            assert not set(path) & set(b"\0\x1b \n")
            return
        readers: dict[str, Callable[[str], Any]] = {
            "refs": lambda text: arguments.refs(_REFUSING, [text]),
            "number": arguments.number,
            "count": arguments.count,
            "ring size": arguments.ring_size,
            "seconds": arguments.seconds,
            "disk": vdev.number,
            "socket": sockets.address,
            "url": SocketSystem,
            "key path": lambda path: keys.key_path(1, 2, path),
            "domid": lambda name: arguments.resolve_domid(self._dom0, name),
        }
        if kind not in readers:
            return
        value = readers[kind](text)
        if kind == "refs":
            _check_refs(value, [text])
        elif kind in ("number", "count"):
            assert value == int(text, 16 if "x" in text.lower() else 10)
            assert value >= (kind == "count")
        elif kind == "ring size":
            assert 0 <= value <= 1 << 20
        elif kind == "seconds":
            assert 0 <= value < 1e9
        elif kind == "disk":
            assert vdev.number(vdev.name(value)) == value
        elif kind == "domid":
            assert 0 <= value < 0x7FF0
        elif kind == "url":
            assert 0 <= value.domid < 0x7FF0

    def _command(self, texts: list[str]) -> None:
        """The tool's parser takes it, or ends with wrong usage."""
        argv = [data(one).decode("utf-8", "surrogateescape") for one in texts]
        told = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace")
        try:
            with contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
                self._parser.parse_args(argv)
        except SystemExit as end:
            if end.code not in (0, statuses.USAGE):
                raise AssertionError(f"exit status {end.code}") from None

    def _find(self, owner: str, texts: list[str]) -> None:
        """What domain 3 writes at a path, domain 4 looks for."""
        store = self._store
        with contextlib.suppress(xengrant.XenStoreError):
            store.rm("data/fuzz")
            store.mkdir("data/fuzz")
            granter, mapper = _DOMID
            store.set_permissions("data/fuzz", [xengrant.Permission(granter, "n"), xengrant.Permission(mapper, "r")])
            store.write("data/fuzz/domid", data(owner, 1900))
            for at, one in enumerate(texts):
                store.write(f"data/fuzz/refs/{at}", data(one, 1900))
        with quick("find"), contextlib.suppress(ProtocolError, TimeoutError):
            _check_grants(self._reader.find(_DOMID[0], "data/fuzz", timeout=0), texts)


def _check_grants(grants: list[xengrant.Grant], texts: list[str]) -> None:
    assert {grant.domid for grant in grants} == {_DOMID[0]}
    _check_refs([grant.ref for grant in grants], texts)


def _check_refs(refs: list[int], texts: list[str]) -> None:
    """They are what a plain reading of the texts says, in order, and survive being written and read again."""
    plain: list[int] = []
    for item in ",".join(texts).split(","):
        first, _, last = item.partition("-")
        assert re.fullmatch("[0-9]+", first), item
        assert int(first) <= int(last or first), item
        plain += range(int(first), int(last or first) + 1)
    assert refs == plain
    assert 0 < len(refs) <= MAX_GRANTS
    assert max(refs) <= _MAX_U32
    lines = meeting.format_refs(tuple(refs))
    assert all(len(line) < 2000 for line in lines)
    again = meeting.parse(0, "path", b"0", [line.encode() for line in lines])
    assert [grant.ref for grant in again] == refs


def _refs(chance: Random) -> str:
    items = []
    for _ in range(chance.choice((1, 1, 2, 3, 40))):
        first = chance.choice((chance.randrange(60), number(chance, 1 << 33)))
        items.append(str(first) if chance.randrange(2) else f"{first}-{first + chance.choice((0, 1, 7, 70000, -1))}")
    return ",".join(items)
