"""Ctrl-C in each command that takes long: it ends at once, without a traceback, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import xengrant
from xengrant.embedded import Machine
from xengrant.testing import exchange

from .shell import DEADLINE, SIGNALS, Running, User, sharing, until

Users = Callable[[int], User]

# In which domain, what is run, its status, and a text on which stream says that it is under way.
# What is held and given back is done (0); what was to come to an end by itself is interrupted (130).
LONG = [
    (1, "share --to 2", 0, "stderr", "Ctrl-C ends it"),
    (1, "share --to 2 --advertise data/x", 0, "stderr", "Ctrl-C ends it"),
    (2, "map 1 REF --hold", 0, "stderr", "Ctrl-C ends it"),
    (2, "map 1 --at data/none", 130, "stderr", "waiting for"),
    (2, "cat 1 none", 130, "stderr", "waiting for"),
    (1, "cat --listen 2 x", 130, "stderr", "waiting for"),
    (1, "cat --listen 2 x --keep-open", 130, "stderr", "waiting for"),
    (2, "proxy --listen FOLDER/socket --connect-vchan 1 x", 0, "stderr", "Ctrl-C ends it"),
    (1, "proxy --listen-vchan 2 x --connect FOLDER/socket", 0, "stderr", "Ctrl-C ends it"),
    (0, "block serve FOLDER/disk --to 1", 0, "stderr", "Ctrl-C unplugs it"),
    (0, "ls 1 --watch", 0, "stderr", "Ctrl-C ends it"),
    (0, "peek console 1 --follow", 0, "stderr", "Ctrl-C ends it"),
    (0, "metrics --output FOLDER/prom --interval 60", 0, "stderr", "Ctrl-C ends it"),
    (0, "metrics --listen 0", 0, "stderr", "Ctrl-C ends it"),
    (0, "top -b -d 60", 0, "stdout", "domid"),
    (0, "machine --dir FOLDER/machine", 0, "stderr", "Ctrl-C stops"),
    (0, "demo", 130, "stdout", "allocates"),
    (0, "selftest", 130, "stdout", "passed"),
    (0, "selftest --peer 1", 130, "", ""),
    (1, "selftest --agent", 130, "stderr", "Ctrl-C ends it"),
]


@pytest.mark.parametrize(
    ("domid", "command", "status", "stream", "text"), LONG, ids=[command for _, command, *_ in LONG]
)
def test_ctrl_c_ends_it_cleanly(
    user: Users,
    machine: Machine,
    tmp_path: Path,
    domid: int,
    command: str,
    status: int,
    stream: str,
    text: str,
) -> None:
    (tmp_path / "disk").write_bytes(bytes(1 << 16))
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    with sharing(machine.url(1), 2) as share:
        before = machine.leaks()
        words = command.replace("FOLDER", str(tmp_path)).replace("REF", str(share.refs[0])).split()
        reader, writer = os.pipe()  # a stdin that does not end
        running = user(domid).interruptible(*words, stdin=reader, TMPDIR=str(temporary))
        os.close(reader)
        _under_way(running, machine, stream, text)
        children = _children(running.pid)
        running.ctrl_c()
        done = running.ended()
        os.close(writer)
        # Where the signal falls into code that Python makes of text, as for a dataclass, `python -m` ends by SIGINT
        # once all is over, whatever the status is; of both a shell says 130.
        ended_by = 128 - done.returncode if done.returncode < 0 else done.returncode
        assert ended_by == status, done
        assert b"Traceback" not in done.stderr
        until(lambda: machine.leaks() == before, f"everything is given back: {machine.leaks()}")
    until(lambda: not any(map(_parent, children)), "its processes have ended")
    assert not list(temporary.iterdir()), "its directories are gone"
    assert not (tmp_path / "socket").exists()


def _under_way(running: Running, machine: Machine, stream: str, text: str) -> None:
    if not stream:
        with xengrant.connect(machine.url(0)) as dom0, dom0.xenstore() as store:
            until(lambda: store.exists(f"{exchange.ROOT}/1"), "it looks for the agent")
        return
    while text not in running.line(stream):
        pass


def _children(pid: int) -> list[int]:
    """The processes that it has started, and those that these have."""
    found = [int(name) for name in os.listdir("/proc") if name.isdigit() and _parent(int(name)) == pid]
    return [*found, *(deeper for child in found for deeper in _children(child))]


def _parent(pid: int) -> int:
    """Who started the process; 0 where it has ended."""
    try:
        state, parent, *_ = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if state == "Z" else int(parent)


_INTERRUPTED_WHILE_COLLECTING = """
import signal, sys, time
from xengrant.cli import doctor, main
class Garbage:
    def __del__(self):
        signal.raise_signal(int(sys.argv[1]))
def run(args):
    Garbage()
    time.sleep(60)
    return 0
doctor.run = run
sys.exit(main(["doctor"]))
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_falls_into_a_finalizer_is_not_lost(number: signal.Signals) -> None:
    command = [sys.executable, "-c", _INTERRUPTED_WHILE_COLLECTING, str(int(number))]
    done = subprocess.run(command, capture_output=True, timeout=DEADLINE, check=False)
    assert (done.returncode, done.stderr) == (128 + number, b"")
