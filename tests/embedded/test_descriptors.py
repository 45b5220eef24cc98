"""Descriptors that run out, in the machine and in its clients; nobody may hang or lose what it had."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xengrant.devices import Device, client, open_system, wire
from xengrant.devices.client import Client
from xengrant.devices.wire import Kind
from xengrant.embedded import Machine, connection
from xengrant.embedded.stream import Stream
from xengrant.errors import InterfaceUnavailable

from .conftest import Open
from .ioctls import alloc, bind_unbound, eventually, share
from .process import Process

CODE = "import sys; from xengrant.embedded import Machine; m = Machine(sys.argv[1]); print(flush=True); m.run()"


@pytest.fixture
def small_machine(tmp_path: Path) -> Iterator[str]:
    """The directory of a machine whose process may have 64 descriptors. All of them only dom0 may have."""
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
    system = open_system(f"embedded:{small_machine}?domid=0")
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


def test_clients_beyond_the_machines_descriptors_are_told(small_machine: str) -> None:
    system = open_system(f"embedded:{small_machine}?domid=0")
    devices: list[Device] = []

    def open_many() -> None:
        while len(devices) < 100:
            devices.append(system.open("gntdev"))

    with pytest.raises(InterfaceUnavailable, match="refused gntdev to domain 0: the machine: Too many open") as caught:
        open_many()
    assert caught.value.errno == errno.EMFILE
    for device in devices:
        device.close()
    system.open("gntdev").close()


def test_status_is_answered_with_the_last_descriptor(small_machine: str) -> None:
    control = Client(small_machine, 0, "control")
    crowd = []
    for _ in range(100):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(f"{small_machine}/{wire.MACHINE_SOCKET}")
        crowd.append(sock)
    crowd[-1].settimeout(10)
    assert b"Too many open files" in crowd[-1].recv(1000)  # so the machine has none left
    status = json.loads(control.request(Kind.CONTROL, b'{"do": "status"}').body)
    assert status["descriptors"] == 64
    control.close()
    for sock in crowd:
        sock.close()


def test_xens_own_tools_are_not_left_waiting_without_descriptors(small_machine: str) -> None:
    crowd = []
    for _ in range(100):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(10)
        sock.connect(f"{small_machine}/{wire.XENSTORED_SOCKET}")
        crowd.append(sock)
    assert crowd[-1].recv(1) == b""
    for sock in crowd:
        sock.close()


def test_a_machine_that_is_stuck_is_told_from_one_that_is_busy(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_HELLO_TIMEOUT", 0.05)
    go_on = threading.Event()
    machine._loop.call_soon_threadsafe(go_on.wait)
    try:
        with pytest.raises(InterfaceUnavailable, match="did not answer within") as caught:
            open_system(machine.url(1)).open("gntdev")
        assert caught.value.errno == errno.ETIMEDOUT
        with contextlib.ExitStack() as crowd:
            sock = crowd.enter_context(socket.socket(socket.AF_UNIX))
            sock.setblocking(False)
            while sock.connect_ex(f"{machine.directory}/{wire.MACHINE_SOCKET}") != errno.EAGAIN:  # room to wait in
                sock = crowd.enter_context(socket.socket(socket.AF_UNIX))
                sock.setblocking(False)
            with pytest.raises(InterfaceUnavailable, match="did not answer within"):
                open_system(machine.url(1)).open("gntdev")
    finally:
        go_on.set()
    monkeypatch.undo()
    open_system(machine.url(1)).open("gntdev").close()


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


def test_a_reply_that_cannot_be_kept_ends_the_stream_and_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client takes nothing, so the machine keeps the rest, and has no descriptors left to keep it with."""

    class Handler:
        over = False

        def received(self, data: bytes) -> None: ...
        def drained(self) -> None: ...
        def ended(self) -> None:
            self.over = True

    dup = os.dup
    kept: list[int] = []

    def scarce(fd: int) -> int:
        if len(kept) == 10:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        kept.append(dup(fd))
        return kept[-1]

    monkeypatch.setattr(os, "dup", scarce)
    loop, handler = asyncio.new_event_loop(), Handler()
    ours, theirs = socket.socketpair()
    with theirs, open(os.devnull) as file:
        stream = Stream(loop, ours, handler)
        stream.send(bytes(1 << 22), [file.fileno()] * 600)
        loop.run_until_complete(asyncio.sleep(0))
        assert (stream.closed, handler.over, len(kept)) == (True, True, 10)
        for fd in kept:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(fd)
    loop.close()


@pytest.mark.parametrize("name", ["gntshr", "gnttab", "evtchn", "xenstore"])
def test_a_process_without_descriptors_is_told_what_is_missing_and_loses_none(machine: Machine, name: str) -> None:
    with Process(machine.url(1), "open_without_descriptors", name=name) as process:
        said = process.result["said"]
        assert len(said) >= 2, "one for the directory, one for the socket"
        assert all("this process has no descriptors left: raise RLIMIT_NOFILE" in text for text in said), said
        assert process.result["left"] == 0
