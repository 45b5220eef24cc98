"""Descriptors that run out, in the machine and in its clients; nobody may hang or lose what it had."""

from __future__ import annotations

import errno
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xengrant.devices import open_system, wire
from xengrant.embedded import Machine, connection

from .conftest import Open
from .ioctls import alloc, bind_unbound, eventually, share
from .process import Process

CODE = "import sys; from xengrant.embedded import Machine; m = Machine(sys.argv[1]); print(flush=True); m.run()"


@pytest.fixture
def small_machine(tmp_path: Path) -> Iterator[str]:
    """The directory of a machine whose process may have 64 descriptors."""
    directory = str(tmp_path / "xen")
    command = ["sh", "-c", 'ulimit -n 64; exec "$@"', "sh", sys.executable, "-c", CODE, directory]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        yield directory
        process.terminate()
        assert process.wait(20) == 0


def fails(call: Callable[[], object]) -> int | None:
    """The errno with which one of many calls fails, for want of descriptors in the machine."""
    for _ in range(100):
        try:
            call()
        except OSError as error:
            return error.errno if "Too many open files" in str(error) else None
    return None


def test_a_machine_without_descriptors_says_so_and_recovers(small_machine: str) -> None:
    system = open_system(f"embedded:{small_machine}?domid=1")
    device, events = system.open("gntalloc"), system.open("evtchn")
    assert fails(lambda: alloc(device, 2)) == errno.ENOMEM
    assert fails(lambda: alloc(device, 2, writable=False)) == errno.ENOMEM
    assert fails(lambda: bind_unbound(events, 2)) == errno.ENOMEM
    device.close()
    bind_unbound(events, 2)
    device = system.open("gntalloc")
    _, mine = share(device, 2)
    for closing in (mine, device, events):
        closing.close()


def test_more_clients_than_descriptors_wait_their_turn(small_machine: str) -> None:
    crowd = []
    for _ in range(100):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(f"{small_machine}/{wire.MACHINE_SOCKET}")
        crowd.append(sock)
    for sock in crowd:
        sock.close()
    device = open_system(f"embedded:{small_machine}?domid=1").open("gntalloc")
    alloc(device, 2)
    device.close()


def test_a_client_without_descriptors_is_told_and_loses_nothing(opened: Open, machine: Machine) -> None:
    device = opened(1, "gntalloc")
    refs = [alloc(device, 2)[1][0] for _ in range(40)]
    with Process(machine.url(2), "map_without_descriptors", peer=1, refs=refs) as process:
        assert process.result == {"errno": errno.EMFILE, "left": 0}
        assert machine.status()["domains"][2]["maps"] == 0


def test_a_client_that_never_says_hello_is_dropped(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_HELLO_TIMEOUT", 0.05)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(f"{machine.directory}/{wire.MACHINE_SOCKET}")
        assert sock.recv(1) == b""
    eventually(lambda: not machine._server._connections, "the connection is forgotten")
