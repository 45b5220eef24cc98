"""NO_COLOR, in every command: on a terminal, stdout and stderr, no escape is written at all."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
from pathlib import Path

import pytest

from xengrant.embedded import Machine

from .shell import DEADLINE, TOOL, sharing

# In which domain, what is run, and for what does not end by itself what to wait for.
COMMANDS = [
    (0, "--help", ""),
    (0, "demo", ""),
    (0, "doctor", ""),
    (1, "share --to 2", "Ctrl-C"),
    (2, "map 1 REF", ""),
    (2, "map 1 REF --output FOLDER/file", ""),
    (2, "map 1 --at data/none", "waiting for"),
    (1, "cat --listen 2 x", "waiting for"),
    (1, "proxy --listen-vchan 2 x --connect FOLDER/socket", "Ctrl-C"),
    (0, "block serve FOLDER/disk --to 1", "requests/s"),
    (0, "ls", ""),
    (0, "ls 1", ""),
    (0, "ls 1 --watch", "Ctrl-C"),
    (0, "peek console 1", ""),
    (0, "peek xenstore 1", ""),
    (0, "metrics", ""),
    (0, "top -b -i 1", ""),
    (0, "machine status --dir MACHINE", ""),
    (0, "selftest -k pages_are_zeroed", ""),
    (0, "selftest --list", ""),
    (0, "share --to nobody", ""),
    (0, "share", ""),
]


def shown(machine: Machine, domid: int, words: list[str], until: str, **env: str) -> str:
    """What a terminal shows of it; it gets Ctrl-C when `until` has been shown."""
    own, its = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k != "NO_COLOR"}
    process = subprocess.Popen(
        [*TOOL, *words, "--url", machine.url(domid)],
        stdin=its,
        stdout=its,
        stderr=its,
        env={**environment, "TERM": "xterm-256color", "FORCE_COLOR": "", "COLUMNS": "150", **env},
    )
    os.close(its)
    data = b""
    try:
        with contextlib.suppress(OSError):  # EIO: everybody has closed the terminal
            while True:
                assert select.select([own], [], [], DEADLINE)[0], data
                data += os.read(own, 65536)
                if until and until.encode() in data:
                    process.send_signal(signal.SIGINT)
                    until = ""
        process.wait(DEADLINE)
    finally:
        os.close(own)
        process.kill()
        process.wait()
    assert not until, data
    return data.decode()


@pytest.mark.parametrize(("domid", "command", "until"), COMMANDS, ids=[command for _, command, _ in COMMANDS])
def test_no_escape_is_written(machine: Machine, tmp_path: Path, domid: int, command: str, until: str) -> None:
    (tmp_path / "disk").write_bytes(bytes(1 << 16))
    with sharing(machine.url(1), 2) as share:
        filled = command.replace("FOLDER", str(tmp_path)).replace("MACHINE", machine.directory)
        said = shown(machine, domid, filled.replace("REF", str(share.refs[0])).split(), until, NO_COLOR="1")
    assert said
    assert "\x1b" not in said


def test_without_it_there_are_some(machine: Machine) -> None:
    assert "\x1b[32m" in shown(machine, 0, ["demo"], "")
