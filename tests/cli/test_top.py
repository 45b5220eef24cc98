"""`top` as a user sees it: on terminals of several sizes, and line by line."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pyte
import pytest

import xengrant
from xengrant.embedded import Machine

from .shell import DEADLINE, TOOL, User, one_line, sharing

Users = Callable[[int], User]

# All but stderr, which is told apart.
_TAKE_THE_TERMINAL = """
import os, signal, sys
error = os.dup(2)
os.login_tty(0)
os.dup2(error, 2)
if "NOHUP" in os.environ:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """A terminal with `xengrant top` in it, and what it shows."""

    def __init__(self, machine: Machine, columns: int, lines: int, *arguments: str, **env: str) -> None:
        self._own, self._its = pty.openpty()
        self.screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self.screen)
        self.resize(columns, lines)
        self.modes = termios.tcgetattr(self._its)
        drop = ("NO_COLOR", "XENGRANT_URL", "COLUMNS", "LINES", "LC_ALL")
        environment = {name: value for name, value in os.environ.items() if name not in drop}
        # As pyte is one: of what else there is it knows not all that curses makes use of.
        environment |= {"TERM": "linux", "LANG": "C.UTF-8", **env}
        self._stderr, stderr = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _TAKE_THE_TERMINAL, *TOOL, "top", "--url", machine.url(0), *arguments],
            stdin=self._its,
            stdout=self._its,
            stderr=stderr,
            env=environment,
        )
        os.close(stderr)
        self._pidfd = os.pidfd_open(self._process.pid)
        self.raw = b""

    def resize(self, columns: int, lines: int) -> None:
        self.screen.resize(lines, columns)
        fcntl.ioctl(self._own, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))

    def press(self, keys: bytes) -> None:
        os.write(self._own, keys)

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def until(self, true: Callable[[list[str]], Any], what: str) -> list[str]:
        """The lines on the screen as soon as that is true of them."""
        deadline = time.monotonic() + DEADLINE
        while not true(self.screen.display):
            left = deadline - time.monotonic()
            ended = left <= 0 or not self._pump(left)
            assert not ended or true(self.screen.display), f"not on the screen: {what}\n{self}"
        return list(self.screen.display)

    def shows(self, text: str) -> list[str]:
        return self.until(lambda lines: any(text in line for line in lines), text)

    def ended(self) -> tuple[int, str]:
        """(exit status, what it said on stderr), and the terminal is as it was before."""
        deadline = time.monotonic() + DEADLINE
        while self._pump(max(deadline - time.monotonic(), 0)):
            pass
        status = self._process.wait(0.1)
        with open(self._stderr, "rb", closefd=False) as stderr:
            said = stderr.read().decode()
        assert termios.tcgetattr(self._its) == self.modes
        entered, left = self.raw.rfind(b"\x1b[?1049h"), self.raw.rfind(b"\x1b[?1049l")
        assert entered <= left, "the screen that was there before is shown again"
        assert self.raw.rfind(b"\x1b[?25l") <= self.raw.rfind(b"\x1b[?25h"), "the cursor is to be seen again"
        return status, said

    def __str__(self) -> str:
        return "\n".join([*map(str.rstrip, self.screen.display), repr(self.raw[-200:])])

    def hang_up(self) -> int:
        os.close(self._own)
        os.close(self._its)
        self._own = self._its = -1
        return self._process.wait(DEADLINE)

    def _pump(self, seconds: float) -> bool:
        """Take what it wrote; False once it has ended and there is no more."""
        ready = select.select([self._own, self._pidfd], [], [], seconds)[0]
        assert ready, f"nothing more comes from it\n{self}"
        if self._own not in ready:
            return False
        data = os.read(self._own, 65536)
        self.raw += data
        self._stream.feed(data)
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.wait()
        for descriptor in (self._own, self._its, self._pidfd, self._stderr):
            with contextlib.suppress(OSError):
                os.close(descriptor)


@pytest.fixture
def terminal(machine: Machine, stack: contextlib.ExitStack) -> Callable[..., Terminal]:
    """`terminal(80, 24)` has `xengrant top` in it, which looks five times a second."""

    def make(columns: int = 80, lines: int = 24, *arguments: str, **env: str) -> Terminal:
        return stack.enter_context(Terminal(machine, columns, lines, "-d", "0.2", *arguments, **env))

    return make


def granted(name: str, lines: list[str]) -> str | None:
    """The grants of the domain of that name; None while its line is not there, or half painted."""
    found = [line.split() for line in lines if line.split()[1:2] == [name]]
    return found[0][2] if len(found) == 1 and len(found[0]) > 3 else None


@contextlib.contextmanager
def renamed(machine: Machine, domid: int, name: bytes) -> Iterator[None]:
    with xengrant.connect(machine.url(0)) as dom0, dom0.xenstore() as store:
        store.write(f"/local/domain/{domid}/name", name)
        yield


@pytest.mark.parametrize(("columns", "lines"), [(100, 24), (40, 12)])
def test_domains_are_listed_sorted_filtered_and_looked_into(
    machine: Machine, terminal: Callable[..., Terminal], columns: int, lines: int
) -> None:
    with sharing(machine.url(2), 3, pages=5):
        top = terminal(columns, lines)
        shown = top.until(
            lambda shown: [line.split()[:1] for line in shown[4:7]] == [["2"], ["1"], ["3"]],
            "those with the most first",
        )
        assert shown[0].startswith(" xengrant top ")
        assert "3 domains" in shown[1]
        assert granted("domain-2", shown) == "7", "5 and the builder's 2"
        top.press(b"1")
        top.until(lambda shown: [line.split()[:1] for line in shown[4:7]] == [["1"], ["2"], ["3"]], "sorted by domid")
        top.press(b"\x1b[B\r")
        top.until(
            lambda shown: " domain 2  domain-2" in shown[2] and granted("domain-3", shown) == "5",
            "what is granted to 3",
        )
        top.press(b"\x1b")
        top.shows("▲domid")
        top.press(b"/main-3\r")
        top.until(lambda shown: shown[4].split()[:1] == ["3"] and not shown[5].split(), "only what matches")
        top.press(b"?")
        top.shows("Keys")
        top.press(b"q")
        assert top.ended() == (0, "")


def test_grants_are_seen_to_come_and_go(machine: Machine, terminal: Callable[..., Terminal]) -> None:
    top = terminal(100)
    top.shows("domain-1")
    with sharing(machine.url(1), 2, pages=30):
        top.until(lambda lines: granted("domain-1", lines) == "32", "30 grants more")
        assert "▁" in next(line for line in top.shows("▇") if "▇" in line)
    top.until(lambda lines: granted("domain-1", lines) == "2", "and no more")


def test_a_new_size_is_filled_at_once(terminal: Callable[..., Terminal]) -> None:
    top = terminal(100, 24, "-d", "3600")
    top.until(lambda lines: "q quit" in lines[23], "the keys in the last line")
    top.resize(60, 12)
    shown = top.until(lambda lines: "q quit" in lines[11] and "rate/s" in lines[3], "a smaller screen")
    assert "with" not in shown[3].split()
    top.resize(150, 40)
    top.until(
        lambda lines: "q quit" in lines[39] and " with" in lines[3] and granted("domain-3", lines), "a larger screen"
    )


def test_a_domain_that_dies_is_marked_and_vanishes(machine: Machine, terminal: Callable[..., Terminal]) -> None:
    top = terminal()
    top.shows("domain-2")
    top.press(b"\x1b[B")
    machine.destroy(2)
    top.until(lambda lines: any("domain-2" in line and "gone" in line for line in lines), "domain 2 is gone")
    top.until(lambda lines: not any("domain-2" in line for line in lines), "domain 2 is forgotten")
    top.press(b"q")
    assert top.ended() == (0, "")


def test_a_pause_holds_what_is_shown(machine: Machine, terminal: Callable[..., Terminal]) -> None:
    top = terminal()
    top.shows("domain-1")
    top.press(b" ")
    top.shows("PAUSED")
    with sharing(machine.url(1), 2, pages=30):
        top.press(b"2")  # something that is to be seen, after any look that there might have been
        top.shows("name▲")
        assert granted("domain-1", top.screen.display) == "2"
        top.press(b" ")
        top.until(lambda lines: granted("domain-1", lines) == "32", "looked at again")


def test_a_hostile_name_does_nothing_to_the_terminal(machine: Machine, terminal: Callable[..., Terminal]) -> None:
    with renamed(machine, 1, b"a\x1b[2J\x1b]0;boo\x07\xff\xe2\x80\xae"):
        top = terminal(200)
        top.shows("a\\x1b[2J\\x1b]0;boo\\x07")
        top.press(b"\r")
        top.shows("domain ")
        assert b"\x1b]0" not in top.raw
        assert b"\x07" not in top.raw
        assert "\u202e".encode() not in top.raw


def test_colours_unless_no_color(terminal: Callable[..., Terminal]) -> None:
    def colours(top: Terminal) -> set[str]:
        top.shows("domain-3")
        return {cell.fg for line in top.screen.buffer.values() for cell in line.values()}

    assert len(colours(terminal(TERM="screen-256color"))) > 3
    plain = terminal(NO_COLOR="1")
    assert colours(plain) == {"default"}
    assert any(cell.reverse for cell in plain.screen.buffer[4].values()), "the cursor is seen all the same"
    assert "cyan" in colours(terminal()), "one of the eight that it has"


def test_where_the_locale_is_ascii_so_is_everything(machine: Machine, terminal: Callable[..., Terminal]) -> None:
    with renamed(machine, 1, "日本".encode()):
        top = terminal(120, LC_ALL="C")
        top.shows("domain-3")
        top.until(lambda lines: any("\\u65e5" in line for line in lines), "the name escaped")
        assert top.raw.isascii()


@pytest.mark.parametrize("how", ["Ctrl-C", signal.SIGTERM, signal.SIGHUP])
def test_signals_end_it_and_leave_the_terminal_clean(terminal: Callable[..., Terminal], how: str | int) -> None:
    top = terminal(80, 24, "-d", "3600", TERM="screen-256color")
    top.shows("domain-3")
    assert b"\x1b[?1049h" in top.raw, "the screen that was there is kept aside"
    if isinstance(how, str):
        top.press(b"\x03")
    else:
        top.signal(how)
    assert top.ended() == (0, "")


@pytest.mark.parametrize("env", [{}, {"NOHUP": "1"}], ids=["", "nohup"])
def test_it_ends_with_its_terminal(terminal: Callable[..., Terminal], env: dict[str, str]) -> None:
    top = terminal(**env)
    top.shows("domain-3")
    assert top.hang_up() == 0


def test_it_ends_after_so_many_looks(terminal: Callable[..., Terminal]) -> None:
    assert terminal(80, 24, "-i", "2").ended() == (0, "")


def test_a_machine_that_stops_is_said_on_a_clean_terminal(machine: Machine, terminal: Callable[..., Terminal]) -> None:
    top = terminal()
    top.shows("domain-3")
    machine.close()
    status, said = top.ended()
    assert status == 1
    assert re.fullmatch(r"xengrant: [^\n]*it was stopped[^\n]*\n", said)


def test_a_guest_is_told_that_it_is_for_dom0(user: Users, terminal: Callable[..., Terminal], machine: Machine) -> None:
    assert "dom0" in one_line(user(1).run("top", "-b"), 1)
    status, said = terminal(80, 24, "--url", machine.url(1)).ended()
    assert status == 1
    assert said.startswith("xengrant: ")
    assert "dom0" in said


def test_without_a_terminal_that_can_paint_it_says_to_use_batch(user: Users, terminal: Callable[..., Terminal]) -> None:
    done = user(0).run("top")
    assert (done.returncode, done.stdout) == (64, b"")
    assert b"this is no terminal: write to stdout with -b" in done.stderr
    for name in ("dumb", "no-such-terminal"):
        status, said = terminal(TERM=name).ended()
        assert status == 64
        assert "write to stdout with -b" in said


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["-d", "0"], "at least 0.1"),
        (["-d", "soon"], "not a number of seconds"),
        (["-i", "0"], "at least 1"),
        (["--sort", "colour"], "invalid choice"),
    ],
)
def test_wrong_usage_is_status_64(user: Users, arguments: list[str], text: str) -> None:
    done = user(0).run("top", "-b", *arguments)
    assert (done.returncode, done.stdout) == (64, b"")
    assert text in done.stderr.decode()


def test_batch_writes_a_table_for_each_look(user: Users, machine: Machine) -> None:
    with sharing(machine.url(1), 2, pages=3, writable=False), renamed(machine, 3, "日本語\x1b[2J".encode()):
        done = user(0).run("top", "-b", "-i", "2", "-d", "0.1", "--sort", "domid", PYTHONIOENCODING="utf-8")
    assert (done.returncode, done.stderr) == (0, b"")
    first, second = done.stdout.decode().split("\n\n")
    time_of, totals = first.splitlines()[0].split("  ", 1)
    assert re.fullmatch(r"\d\d:\d\d:\d\d", time_of)
    assert totals == "3 domains  9 granted  6 mapped  3 read-only  6 writing  3/192 frames"
    head, *rows = first.splitlines()[1:]
    assert head.split() == ["▲domid", "name", "grants", "mapped", "r/o", "writing", "frames", "rate/s", "peers", "with"]
    assert rows[0].split() == ["1", "domain-1", "5", "2", "3", "2", "1/64", "2", "domain-2,", "Domain-0"]
    assert second.splitlines()[2].split()[7] == "0"
    assert rows[2].split()[1] == "日本語\\x1b[2J"
    assert "\x1b" not in first
    plain = user(0).run("top", "-b", "-i", "1", PYTHONIOENCODING="ascii")
    assert plain.returncode == 0, plain
    assert "\\u65e5" in plain.stdout.decode("ascii")


def test_json_is_an_object_for_each_look_and_sees_grants_come_and_go(user: Users, machine: Machine) -> None:
    top = user(0).start("top", "--json", "-d", "0.1")
    first = json.loads(top.line())
    assert set(first) == {"time", "seconds", "totals", "domains", "gone"}
    assert first["seconds"] is None
    assert abs(first["time"] - time.time()) < DEADLINE
    assert first["totals"] == {
        "domains": 3,
        "granted": 6,
        "mapped": 6,
        "readonly": 0,
        "writing": 6,
        "frames": 3,
        "max_frames": 192,
    }
    assert first["domains"][0] == {
        "domid": 1,
        "name": "domain-1",
        "version": 1,
        "frames": 1,
        "max_frames": 64,
        "entries": 512,
        "granted": 2,
        "readonly": 0,
        "mapped": 2,
        "writing": 2,
        "rate": None,
        "peers": [{"domid": 0, "granted": 2, "readonly": 0, "mapped": 2, "writing": 2}],
        "problem": "",
    }

    looks = [first]

    def look(wanted: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        deadline = time.monotonic() + DEADLINE
        while not wanted(look := json.loads(top.line())):
            assert time.monotonic() < deadline, look
            looks.append(look)
        assert isinstance(look, dict)
        return look

    def domain(look: dict[str, Any], domid: int) -> Any:
        return next(domain for domain in look["domains"] if domain["domid"] == domid)

    with sharing(machine.url(1), 2, pages=20):
        came = look(lambda look: domain(look, 1)["granted"] == 22)
    more = 22 - domain(looks[-1], 1)["granted"]  # a look may have come while they were granted
    assert domain(came, 1)["rate"] == pytest.approx(more / came["seconds"], rel=0.05)
    assert look(lambda look: domain(look, 1)["granted"] == 2)["gone"] == []
    machine.destroy(2)
    assert look(lambda look: look["gone"])["gone"] == [2]
    assert [domain["domid"] for domain in look(lambda look: True)["domains"]] == [1, 3]
    assert look(lambda look: not look["gone"])
    top.signal(signal.SIGINT)
    assert top.ended().returncode == 0


def test_json_is_filtered_and_ends_after_so_many_looks(user: Users) -> None:
    done = user(0).run("top", "--json", "-i", "3", "-d", "0.1", "--filter", "main-2")
    looks = [json.loads(line) for line in done.stdout.splitlines()]
    assert [[domain["domid"] for domain in look["domains"]] for look in looks] == [[2], [2], [2]]
    assert looks[0]["totals"]["domains"] == 3


def test_an_empty_machine_has_nothing_to_show(stack: contextlib.ExitStack) -> None:
    with Machine() as machine:
        user = User(stack, machine.url(0))
        assert json.loads(user.run("top", "--json", "-i", "1").stdout)["domains"] == []
        assert user.run("top", "-b", "-i", "1").stdout.splitlines()[0].endswith(b" 0/0 frames")
        top = stack.enter_context(Terminal(machine, 80, 24))
        top.shows("there is no other domain")
        top.press(b"\x1b[B\rjq")
        assert top.ended() == (0, "")


def test_every_key_and_option_is_in_the_docs(user: Users) -> None:
    docs = (Path(__file__).parents[2] / "docs/tool.md").read_text()
    section = docs.partition("\n## top\n")[2].partition("\n## ")[0]
    usage = user(0).run("top", "--help").stdout.decode().partition("examples:")[0]
    options = set(re.findall(r"(?<![\w-])--?[a-z]+", usage)) - {"--help", "-h", "--url", "-v", "--verbose"}
    assert {option for option in options if option not in section} == set()
    assert "rate" in section
