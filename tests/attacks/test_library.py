"""What a peer, or whoever wrote the command line, says to the library and the tool: nothing raw reaches a terminal."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import logging
import os
import pty
import resource
import signal
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import NamedTuple

import pytest

import xengrant
from tests.attacks.conftest import Outcome
from tests.cli.shell import sharing
from tests.cli.test_terminal import on_a_terminal as in_a_process
from xengrant.abi import console as console_abi
from xengrant.abi import xs_wire
from xengrant.abi.xen import PAGE_SIZE
from xengrant.cli import _logged, main, selftest, statuses
from xengrant.cli.block import attach
from xengrant.cli.progress import progress
from xengrant.embedded import Machine
from xengrant.meeting import parse
from xengrant.testing.result import Result

THROUGH = "what the tool shows"

SECONDS = 60

CONTROLS = {
    "ESC": b"\x1b[2J\x1b[41mPWNED",
    "CSI of 8 bits": b"\x9b41mPWNED",
    "CSI of 8 bits in UTF-8": "\x9b41mPWNED".encode(),
    "a character whose UTF-8 has CSI": "\u069b41mPWNED".encode(),
    "OSC 0, a title": b"\x1b]0;PWNED\x07",
    "OSC 8, a link": b"\x1b]8;;http://evil.example/\x1b\\PWNED\x1b]8;;\x1b\\",
    "OSC 52, the clipboard": b"\x1b]52;c;UFdORUQ=\x07",
    "DCS, a query": b"\x1bP$qm\x1b\\\x1b[6n\x05",
    "BEL and BS": b"safe\x07\x08\x08\x08\x08PWNED",
    "line ends": b"\r\n\x0b\x0c\x85xengrant: PWNED",
    "line ends of Unicode": "\u2028xengrant: \u2029\x85PWNED".encode(),
    "bidi overrides": "\u202eDENWP\u2066\u200f".encode(),
    "zero width": "P\u200bW\u200dN\ufeffE\u00adD".encode(),
    "invalid UTF-8": b"\xff\xfe\xc3(\xed\xa0\x80\xf4\x90\x80\x80PWNED",
    "shift out": b"\x0e\x0fPWNED\x7f",
    "markup": b"[red]PWNED[/red]{0}%s%n\\",
}
ALL = b" ".join(CONTROLS.values())


class Done(NamedTuple):
    """What a command did on a terminal: its exit status and all that it wrote there."""

    status: int
    text: str

    def check(self) -> str:
        """The text, in which only the ends of lines are control characters."""
        raw = [char for char in self.text.replace("\r\n", "") if not char.isprintable()]
        assert not raw, f"{raw[:5]} in {self.text[:2000]!r}"
        assert "Traceback" not in self.text
        return self.text


def on_a_terminal(*arguments: str, encoding: str = "utf-8") -> Done:
    """`xengrant ARGUMENTS` in this process, with a terminal of that encoding."""
    own, its = pty.openpty()
    shown: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # EIO: everybody has closed the terminal
            while data := os.read(own, 65536):
                shown.append(data)

    def too_late(number: int, frame: object) -> None:
        raise TimeoutError(f"xengrant {arguments} takes longer than {SECONDS} seconds")

    reader = threading.Thread(target=read)
    reader.start()
    before = signal.signal(signal.SIGALRM, too_late)
    signal.alarm(SECONDS)
    try:
        with (
            open(its, "w", encoding=encoding) as terminal,
            contextlib.redirect_stdout(terminal),
            contextlib.redirect_stderr(terminal),
        ):
            try:
                status = main(arguments)
            except SystemExit as exit_:
                status = int(exit_.code or 0)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        reader.join()
        os.close(own)
    return Done(status, b"".join(shown).decode(encoding))


@pytest.fixture(autouse=True)
def _plain(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """As dom0, on a wide terminal without colours."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100000")
    monkeypatch.setenv("XENGRANT_URL", machine.url(0))


def shown(*arguments: str, encoding: str = "utf-8") -> str:
    """What a command shows that does not fail for what a peer said."""
    done = on_a_terminal(*arguments, encoding=encoding)
    assert done.status in (0, 1), done
    return done.check()


@pytest.fixture
def named(machine: Machine, request: pytest.FixtureRequest) -> Iterator[bytes]:
    """Domain 2 has the name that the test's parameter is, as its toolstack could be talked into."""
    name: bytes = getattr(request, "param", ALL)
    with xengrant.connect(machine.url(0)) as dom0, dom0.xenstore() as store:
        store.write("/local/domain/2/name", name)
        yield name
        store.write("/local/domain/2/name", b"domain-2")


COMMANDS = {
    "ls": ("ls",),
    "ls of one": ("ls", "1"),
    "peek console": ("peek", "console", "2"),
    "peek xenstore": ("peek", "xenstore", "2"),
    "metrics": ("metrics",),
    "top -b": ("top", "-b", "--iterations", "1"),
    "top -b --json": ("top", "-b", "--iterations", "1", "--json"),
    "ls --json": ("ls", "--json"),
    "doctor": ("doctor",),
    "a name that is not": ("ls", "no-such-domain"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_name_of_a_domain(machine: Machine, named: bytes, command: str, outcome: Outcome) -> None:
    """have a domain's name, of all the controls below, reach a terminal"""
    with sharing(machine.url(1), 2):
        text = shown(*COMMANDS[command])
    if command != "a name that is not":
        assert "PWNED" in text
    outcome("escaped")


@pytest.mark.parametrize("named", CONTROLS.values(), ids=CONTROLS.keys(), indirect=True)
def test_each_control(machine: Machine, named: bytes, outcome: Outcome) -> None:
    """have a domain's name reach a terminal of 8 bits"""
    shown("metrics", encoding="latin-1")
    outcome("escaped")


def test_top_on_a_terminal(machine: Machine, named: bytes, outcome: Outcome) -> None:
    """have a domain's name reach a terminal through top"""
    status, text = in_a_process("top", "--iterations", "2", "-d", "0.1", "--url", machine.url(0))
    assert status == 0
    for raw in ("\x1b]", "\x1b[41m", "\x1bP", "\x9b", "\u202e", "\u2028", "\u200b", "\x07", "\x05"):
        assert raw not in text
    assert "x1b[2J" in text
    outcome("escaped")


def test_pages(machine: Machine, outcome: Outcome) -> None:
    """have a page reach a terminal through map"""
    with sharing(machine.url(1), 0) as share:
        share.mapping[: len(ALL)] = ALL
        assert "PWNED" in shown("map", "1", str(share.refs[0]))
        assert "PWNED" not in shown("map", "1", str(share.refs[0]), "--json")  # base64
        outcome("escaped; `map --output -` refuses a terminal")


def test_rings(machine: Machine, outcome: Outcome) -> None:
    """have console text and xenstore messages reach a terminal through peek"""
    message = xs_wire.pack_message(xs_wire.Operation.WRITE, 1, 0, ALL)
    with contextlib.ExitStack() as stack:
        gnttab = stack.enter_context(stack.enter_context(xengrant.connect(machine.url(0))).gnttab())
        console, store = (stack.enter_context(gnttab.map((2, ref), writable=True)) for ref in (0, 1))
        console.mapping[console_abi.OUT : console_abi.OUT + len(ALL)] = ALL
        xengrant._native.store32(console.mapping, console_abi.OUT_PROD, len(ALL))
        store.mapping[xs_wire.REQ : xs_wire.REQ + len(message)] = message
        xengrant._native.store32(store.mapping, xs_wire.REQ_PROD, len(message))
        for ring in ("console", "xenstore"):
            assert "PWNED" in shown("peek", ring, "2")
            shown("peek", ring, "2", "--json")
        for mapped in (console, store):
            mapped.mapping[:] = bytes(PAGE_SIZE)
    outcome("escaped")


@pytest.mark.parametrize("value", CONTROLS.values(), ids=CONTROLS.keys())
def test_values_in_errors(machine: Machine, value: bytes, outcome: Outcome) -> None:
    """have what stands in an advertisement reach a terminal in an error"""
    with xengrant.connect(machine.url(1)) as peer, peer.xenstore() as store:
        for name in ("domid", "refs/0", "writable"):
            store.write(f"data/lie/{name}", b"1" if name == "domid" else value)
        store.set_permissions("data/lie", [xengrant.Permission(1, "r")])
        with pytest.raises(xengrant.ProtocolError) as caught:
            parse(1, "data/lie", b"1", [value])
        assert str(caught.value).isprintable()
        with pytest.raises(xengrant.ProtocolError) as caught:
            parse(1, "data/lie", value, [b"8"])
        assert str(caught.value).isprintable()
        store.rm("data/lie")
    outcome("escaped")


NUMBERS = {
    "refs, 2^32 of them": ("map", "1", "0-4294967295"),
    "refs, 10^9 of them": ("map", "1", *["0-65535"] * 16000),
    "a ref of 2^32": ("map", "1", "4294967296"),
    "a ref that is negative": ("map", "1", "--", "-1"),
    "a ref of a million digits": ("map", "1", "9" * 100_000),
    "a ref in other digits": ("map", "1", "\u0661\u0662"),
    "a range backwards": ("map", "1", "9-8"),
    "a domid of 2^16": ("map", "65536", "8"),
    "a domid that is none": ("map", "32752", "8"),
    "a domid of 4000 digits": ("map", "9" * 4000, "8"),
    "a domid in other digits": ("map", "\u0661", "8"),
    "pages, 2^32": ("share", "--to", "2", "--pages", "4294967296"),
    "pages, 2^64": ("share", "--to", "2", "--pages", "18446744073709551616"),
    "pages, -1": ("share", "--to", "2", "--pages", "-1"),
    "a timeout of nan": ("map", "1", "--at", "data/x", "--timeout", "nan"),
    "a timeout that is negative": ("map", "1", "--at", "data/x", "--timeout=-1"),
    "a path with NUL's name": ("map", "1", "--at", "data/../x", "--timeout", "0"),
    "a path too long": ("map", "1", "--at", "x" * 5000, "--timeout", "0"),
    "a vchan's path of controls": ("cat", "1", "\x1b[2J/x", "--timeout", "0"),
    "a ring of 2^64": ("cat", "-l", "2", "x", "--read-size", "18446744073709551616"),
    "a port of 70000": ("metrics", "--listen", "70000"),
    "a port of 2^64": ("proxy", "1", "x", "localhost:99999"),
    "a disk of 2^32": ("block", "attach", "2", "--vdev", "9999999999", "info"),
    "a disk in octal": ("block", "attach", "2", "--vdev", "0800", "info"),
    "rings, 10^9": ("block", "attach", "2", "--rings", "1000000000", "info"),
    "a command that is none": ("\x1b]0;PWNED\x07",),
    "an option that is none": ("ls", "--\x1b[41mPWNED"),
    "an argument too many": ("ls", "1", "\x9b41m\u202ePWNED"),
    "a field that is none": ("ls", "--fields", "\x1b[41mPWNED"),
    "a name of controls": ("ls", "\x1b[41mPWNED"),
    "a URL of controls": ("ls", "--url", "embedded:/\x1b[41m?domid=0"),
    "a directory of controls": ("machine", "status", "--dir", "/\x1b[41m\udcff"),
    "a file of controls": ("share", "--to", "2", "--file", "/\x1b[41m\udcff"),
    "a domid to destroy of 2^70": ("machine", "destroy", "1180591620717411303424", "--dir", "/nowhere"),
}


@pytest.mark.parametrize("what", NUMBERS)
def test_what_stands_on_the_command_line(machine: Machine, what: str, outcome: Outcome) -> None:
    """give the tool what no one would type"""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    done = on_a_terminal(*NUMBERS[what])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB
    assert done.status in (statuses.FAILED, statuses.TRY_AGAIN, statuses.USAGE), done
    assert 0 < len(done.check().splitlines()) < 12
    outcome("one message")


def test_the_size_of_a_disk(outcome: Outcome) -> None:
    """tell a front end that a disk has 2^54 sectors"""

    class Disk:
        info = SimpleNamespace(sectors=1 << 54)

        async def read(self, sector: int, count: int) -> bytes:
            raise OSError(errno.EIO, "the first sectors are asked for, and no more")

    args = SimpleNamespace(sector=0, count=None, json=False)
    with pytest.raises(OSError, match="first sectors"):
        asyncio.run(attach._read(args, Disk()))  # type: ignore[arg-type]
    outcome("it is read piece by piece")


def test_what_is_logged(capsys: pytest.CaptureFixture[str], outcome: Outcome) -> None:
    """have controls reach a terminal by way of the library's log"""
    with _logged():
        logging.getLogger("xengrant.pv").warning("it said %s", ALL.decode("utf-8", "replace"))
        try:
            raise ValueError(ALL.decode("utf-8", "replace"))
        except ValueError:
            logging.getLogger("xengrant.pv").exception("it failed")
    text = capsys.readouterr().err
    assert "PWNED" in text
    assert text.replace("\n", "").isprintable()
    outcome("escaped")


def test_what_an_agent_says(capsys: pytest.CaptureFixture[str], outcome: Outcome) -> None:
    """as the other half of `xengrant selftest`, say controls"""
    with progress("selftest", 1, str) as shown:
        results = selftest._Results(argparse.Namespace(json=False, verbose=True), shown)
        results.add(Result("case", "title", "machine", "failed", 0.1, ALL.decode("utf-8", "replace")))
    text = capsys.readouterr().out
    assert "PWNED" in text
    assert text.replace("\n", "").isprintable()
    outcome("escaped")
