"""On a terminal: colours unless NO_COLOR, tables, and no byte of a peer's as it is."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

import xengrant
from xengrant.embedded import Machine

from .shell import DEADLINE, TOOL, sharing


def on_a_terminal(*arguments: str, meanwhile: Callable[[], None] | None = None, **env: str) -> tuple[int, str]:
    """(exit status, what stdout showed) of `xengrant ARGUMENTS` on a terminal, while `meanwhile` is done here."""
    own, its = pty.openpty()
    environ = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "XENGRANT_URL")}
    process = subprocess.Popen(
        [*TOOL, *arguments],
        stdin=its,
        stdout=its,
        stderr=subprocess.DEVNULL,
        env={**environ, "TERM": "xterm", "PYTHONIOENCODING": "utf-8", "COLUMNS": "150", **env},
    )
    os.close(its)
    shown = b""
    deadline = time.monotonic() + DEADLINE
    try:
        if meanwhile is not None:
            meanwhile()
        with contextlib.suppress(OSError):  # EIO: everybody has closed the terminal
            while data := os.read(own, 65536):
                shown += data
                assert select.select([own], [], [], deadline - time.monotonic())[0], f"{arguments}: {shown!r}"
        return process.wait(DEADLINE), shown.decode()
    finally:
        os.close(own)
        process.kill()
        process.wait()


def test_the_demo_is_coloured_on_a_terminal() -> None:
    status, shown = on_a_terminal("demo")
    assert status == 0
    assert "\x1b[32m✓\x1b[0m" in shown


def test_no_color_is_respected() -> None:
    for arguments in (["demo"], ["doctor"]):
        _, shown = on_a_terminal(*arguments, NO_COLOR="1")
        assert "\x1b" not in shown, arguments


def test_a_table_that_is_wider_than_the_terminal_is_plain_lines(machine: Machine) -> None:
    pytest.importorskip("rich")
    machine.create(7, name="a-name-that-is-not-torn-apart")
    shown = {width: on_a_terminal("ls", "--url", machine.url(0), COLUMNS=width)[1] for width in ("150", "60")}
    assert "─" in shown["150"]
    assert "─" not in shown["60"]
    for text in shown.values():
        assert "a-name-that-is-not-torn-apart" in text
        assert "max_frames" in text


@pytest.mark.parametrize("no_color", ["", "1"])
def test_tables_escape_what_the_terminal_has_no_letter_for(machine: Machine, no_color: str) -> None:
    machine.create(4, name="größe")
    status, shown = on_a_terminal("ls", "--url", machine.url(0), NO_COLOR=no_color, PYTHONIOENCODING="ascii")
    assert status == 0
    assert r"gr\xf6\xdfe" in shown


@pytest.mark.parametrize("no_color", ["", "1"], ids=["drawn by rich", "plain"])
def test_tables_escape_what_others_wrote(machine: Machine, no_color: str) -> None:
    if not no_color:
        pytest.importorskip("rich")
    machine.create(7, name="web")
    with xengrant.connect(machine.url(0)) as dom0, dom0.xenstore() as store:
        store.write("/local/domain/7/name", b"[red]\x1b[2Jboo")
    status, shown = on_a_terminal("doctor", "--url", machine.url(0), NO_COLOR=no_color)
    assert status == 0
    assert "[red]\\x1b[2Jboo's grant table" in shown
    assert "\x1b[2J" not in shown
    status, shown = on_a_terminal("machine", "status", "--dir", machine.directory, NO_COLOR=no_color)
    assert status == 0
    assert "web" in shown
    assert ("\x1b[" in shown) == (not no_color)


def test_a_peers_bytes_never_reach_the_terminal_as_they_are(machine: Machine) -> None:
    with sharing(machine.url(1), 2) as share:
        share.mapping[:8] = b"\x1b[2J\x07\x9b\x00\x08"
        ref = str(share.refs[0])
        status, shown = on_a_terminal("map", "1", ref, "--url", machine.url(2))
        assert status == 0
        assert "1b 5b 32 4a 07 9b 00 08" in shown
        assert shown.replace("\r\n", "").isprintable()
        assert on_a_terminal("map", "1", ref, "--output", "-", "--url", machine.url(2)) == (64, "")
        assert on_a_terminal("map", "1", ref, "--output", "/dev/stdout", "--url", machine.url(2)) == (1, "")


def test_a_traceback_is_escaped_too() -> None:
    command = [*TOOL, "--debug", "--url", "embedded:/\x1b[2J?domid=1", "map", "1", "8"]
    told = subprocess.run(command, capture_output=True, timeout=DEADLINE, check=False).stderr
    assert b"Traceback" in told
    assert b"\x1b" not in told


@pytest.mark.parametrize(
    ("arguments", "when", "wanted"), [(["share", "--to", "2"], "Ctrl-C ends it", 0), (["demo"], "allocates", 130)]
)
def test_ctrl_c_at_the_keyboard_is_a_clean_end(machine: Machine, arguments: list[str], when: str, wanted: int) -> None:
    own, its = pty.openpty()
    take_the_terminal = "import os, sys; os.login_tty(0); os.execv(sys.argv[1], sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", take_the_terminal, *TOOL, *arguments, "--url", machine.url(1)],
        stdin=its,
        stdout=its,
        stderr=its,
    )
    os.close(its)
    try:
        shown = b""
        with contextlib.suppress(OSError):  # EIO: everybody has closed the terminal
            while data := os.read(own, 65536):
                pressed = when.encode() in shown
                shown += data
                if when.encode() in shown and not pressed:
                    os.write(own, b"\x03")
                assert select.select([own], [], [], DEADLINE)[0], shown
        assert process.wait(DEADLINE) == wanted, shown
        assert b"Traceback" not in shown
    finally:
        os.close(own)
        process.kill()
        process.wait()
