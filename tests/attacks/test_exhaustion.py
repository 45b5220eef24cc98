"""Using up what the machine has: memory, descriptors, connections, time."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.attacks.conftest import Outcome, Refused, check_served
from tests.attacks.raw import Raw, Store, connect, hello, refuses_descriptors, send_descriptors
from xengrant.abi import gntdev, kernelspace, xs_wire
from xengrant.abi.xen import PAGE_SIZE
from xengrant.abi.xs_wire import Operation
from xengrant.devices import wire
from xengrant.devices.wire import Direction, Kind
from xengrant.embedded import Machine, connection, files, xenstore_tree
from xengrant.embedded.descriptors import Descriptors
from xengrant.embedded.stream import Stream

THROUGH = "the machine's connections"

MIB = 1 << 20


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    """How many descriptors a domain may have: as few as where a process may have 128."""
    monkeypatch.setattr(resource, "getrlimit", lambda what: (128, 128))
    return 64


@pytest.fixture
def crowd() -> Iterator[contextlib.ExitStack]:
    """Closes the connections that are put in it."""
    with contextlib.ExitStack() as stack:
        yield stack


def resident() -> int:
    """Bytes of memory that this process, with the machine in it, has."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * PAGE_SIZE


def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, what
        os.sched_yield()


def test_grants_without_end(machine: Machine, refused: Refused) -> None:
    """share pages without end, over many connections"""
    with contextlib.ExitStack() as opened, refused(errno.ENOSPC):
        for _ in range(100):
            device = opened.enter_context(Raw(machine, "gntalloc"))
            for _ in range(20):
                device.alloc(1, 8)


def test_maps_without_end(machine: Machine, refused: Refused) -> None:
    """make maps without end, all of one's own refs"""
    machine.configure(3, gntdev_limit=4096, gntdev_total=10_000)
    with Raw(machine, "gntdev") as device:
        with refused(errno.EINVAL):
            device.add_map(*[(3, 8)] * 4097)
        with refused(errno.ENOMEM):
            while True:
                device.add_map(*[(3, 8)] * 4096)


def test_mappings_without_end(machine: Machine, monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    """mmap the same pages without end, over many connections"""
    monkeypatch.setattr(files, "MAX_PAGES", 10_000)
    with contextlib.ExitStack() as opened, refused(errno.ENOMEM):
        for _ in range(20):
            device = opened.enter_context(Raw(machine, "gntalloc"))
            index, _ = device.alloc(1, 30)
            for _ in range(40):
                device.mmap(30 * PAGE_SIZE, index, writable=True)
                os.close(device.fds.pop())
    until(lambda: machine._server.hypervisor.domains[3].mmapped == 0, "nothing is mapped any more")


@pytest.mark.parametrize("what", ["shares", "prepared memory", "ports", "pages of a kernel", "connections"])
def test_descriptors_without_end(
    machine: Machine, few: int, crowd: contextlib.ExitStack, what: str, refused: Refused
) -> None:
    """take all of the machine's descriptors"""
    with refused(errno.EMFILE if what == "connections" else errno.ENOMEM):
        if what == "connections":
            for _ in range(1000):
                crowd.enter_context(Raw(machine, "gntdev"))
        elif what == "shares":
            device = crowd.enter_context(Raw(machine, "gntalloc"))
            for _ in range(1000):
                device.alloc(1, 8)
        elif what == "prepared memory":
            device = crowd.enter_context(Raw(machine, "gntalloc"))
            for cookie in range(1, 1000):
                device.ask(Kind.PREPARE, wire.pack_prepare(cookie, 1))
                os.close(device.fds.pop())
        elif what == "ports":
            device = crowd.enter_context(Raw(machine, "evtchn"))
            for _ in range(1000):
                device.bind_unbound(1)
                os.close(device.fds.pop())
        else:
            device = crowd.enter_context(Raw(machine, "kernel", 5, kernel=True))
            for _ in range(1000):
                device.ioctl(kernelspace.ALLOC_PAGES, kernelspace.pack_run(1))
    taken = [domain.descriptors.taken for domain in machine._server.hypervisor.domains.values() if domain.domid > 2]
    assert few - 2 <= max(taken) <= few
    check_served(machine)


def test_prepared_memory_without_end(machine: Machine, refused: Refused) -> None:
    """have memory prepared for read-only shares that never come, over many connections"""
    with contextlib.ExitStack() as opened, refused(errno.ENOMEM):
        for cookie in range(20):
            device = opened.enter_context(Raw(machine, "gntalloc"))
            device.ask(Kind.PREPARE, wire.pack_prepare(cookie, 200))
    until(lambda: machine._server.hypervisor.domains[3].linux.prepared_pages == 0, "nothing is prepared any more")


def test_domains_without_end(machine: Machine, few: int, refused: Refused) -> None:
    """bring domains into being without end, by attaching as each"""
    born = 0
    with refused(errno.ENOMEM):
        for domid in range(100, 200):
            Raw(machine, "gntdev", domid).close()
            born += 1
    assert 0 < born < few
    for domid in range(100, 100 + born):
        machine.destroy(domid)


def test_connections_that_say_nothing(machine: Machine, crowd: contextlib.ExitStack, outcome: Outcome) -> None:
    """open connections without end and say nothing"""
    for _ in range(300):
        crowd.enter_context(connect(machine))
        check = hello(machine, "gntdev", 1)  # each is served in between
        check.close()
    assert len(machine._server._connections) < 100
    outcome("the oldest of them gives way")


def test_requests_that_are_half_sent(machine: Machine, crowd: contextlib.ExitStack, outcome: Outcome) -> None:
    """send half of the largest request on every connection there may be"""
    before = resident()
    body = bytes(wire.MAX_BODY - 1)
    for _ in range(60):
        sock = crowd.enter_context(hello(machine, "gntdev", 3))
        sock.sendall(struct.pack("<IB3x", wire.MAX_BODY, Kind.IOCTL) + body)
    held = machine._server.held(machine._server.hypervisor.domains[3])
    assert held <= connection._MAX_HELD
    grown = resident() - before
    assert grown < 300 * MIB, f"{grown / MIB:.0f} MiB"
    with crowd.enter_context(hello(machine, "gntdev", 3)) as sock:
        sock.sendall(struct.pack("<IB3x", wire.MAX_BODY, Kind.IOCTL) + body + b"x")
        length, result, _ = wire.REPLY.unpack(sock.recv(wire.REPLY.size, socket.MSG_WAITALL))
        assert result == -errno.ENOMEM
        assert b"under way" in sock.recv(length, socket.MSG_WAITALL)
        sock.sendall(wire.pack_request(Kind.MUNMAP))  # what came after the refused one is understood
        assert sock.recv(wire.REPLY.size, socket.MSG_WAITALL) == wire.pack_reply(0)
    outcome(f"ENOMEM beyond {connection._MAX_HELD // MIB} MiB")


def test_answers_that_are_never_taken(machine: Machine, crowd: contextlib.ExitStack, outcome: Outcome) -> None:
    """ask shortly for the longest answer on every connection there may be, and take none"""
    before = resident()
    pointers = [
        (0, gntdev.COPY_SEGMENTS_POINTER, Direction.INOUT, 0, b""),
        (0, 100, Direction.OUT, wire.MAX_BODY - 64, b""),
    ]
    request = wire.pack_request(Kind.IOCTL, wire.pack_ioctl(gntdev.GRANT_COPY, gntdev.pack_copy(0), pointers))
    for _ in range(60):
        crowd.enter_context(hello(machine, "gntdev", 3)).sendall(request * 3)
    with crowd.enter_context(hello(machine, "gntdev", 3)) as sock:
        sock.sendall(request)
        _, result, _ = wire.REPLY.unpack(sock.recv(wire.REPLY.size, socket.MSG_WAITALL))
        assert result == -errno.ENOMEM
    grown = resident() - before
    assert grown < 300 * MIB, f"{grown / MIB:.0f} MiB"
    outcome(f"ENOMEM beyond {connection._MAX_HELD // MIB} MiB")


def test_descriptors_in_answers_that_are_never_taken(few: int, outcome: Outcome) -> None:
    """have the machine keep the descriptors of answers that one never takes"""

    class Handler:
        over = False

        def received(self, data: bytes) -> None: ...
        def drained(self) -> None: ...
        def ended(self) -> None:
            self.over = True

    loop, handlers, own = asyncio.new_event_loop(), [Handler(), Handler()], Descriptors(3)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(os.devnull))
        streams = []
        for handler in handlers:
            ours, theirs = map(stack.enter_context, socket.socketpair())
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            theirs.setblocking(False)
            streams.append(Stream(loop, ours, handler))
            streams[-1].descriptors = own
            streams[-1].send(bytes(1 << 22), [file.fileno()] * 250)  # the first batch is on its way at once
            streams[-1].send(bytes(10), [file.fileno()] * (few - 10))
        assert own.taken == few
        loop.run_until_complete(asyncio.sleep(0))
        assert [handler.over for handler in handlers] == [False, True]
        assert own.taken == few - 10
        streams[0].close()
        assert own.taken == 0
    loop.close()
    outcome("the connection that has more than its domain's share is dropped")


def test_descriptors_that_are_sent(machine: Machine, crowd: contextlib.ExitStack, outcome: Outcome) -> None:
    """flood the machine with descriptors, which nobody asked for"""
    before = machine.status()["descriptors"]
    with open(os.devnull, "rb") as file:
        for device in ("gntalloc", "control", "xenbus"):
            sock = crowd.enter_context(hello(machine, device, 3))
            for _ in range(20):
                send_descriptors(sock, b"", [file.fileno()] * 250)
                send_descriptors(sock, wire.pack_request(Kind.MUNMAP)[:1], [file.fileno()] * 250)
    crowd.close()
    until(lambda: machine.status()["descriptors"] <= before, "they are gone")
    outcome("EPERM, or closed at once")


def test_descriptors_whose_closing_takes_long(machine: Machine, crowd: contextlib.ExitStack, outcome: Outcome) -> None:
    """send the machine a TCP connection that lingers, for it to close"""
    listener = crowd.enter_context(socket.create_server(("127.0.0.1", 0)))
    lingering = crowd.enter_context(socket.create_connection(listener.getsockname()))
    crowd.enter_context(listener.accept()[0])
    lingering.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            lingering.send(bytes(65536))
    lingering.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 5))
    sock = crowd.enter_context(hello(machine, "gntalloc", 3))
    if not refuses_descriptors(sock):
        outcome("gets through before Linux 6.16, as docs/differences.md says")
        return
    with pytest.raises(PermissionError):
        socket.send_fds(sock, [wire.pack_request(Kind.MUNMAP)], [lingering.fileno()])
    lingering.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    outcome("EPERM")


@contextlib.contextmanager
def flooding(sock: socket.socket, request: bytes) -> Iterator[None]:
    """Keep sending, and read what comes."""
    over = threading.Event()

    def send() -> None:
        with contextlib.suppress(OSError):
            while not over.is_set():
                sock.sendall(request)

    def receive() -> None:
        with contextlib.suppress(OSError):
            while sock.recv(1 << 20):
                pass

    threads = [threading.Thread(target=work) for work in (send, receive)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        sock.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("device", ["gntdev", "xenbus"])
def test_requests_without_a_pause(
    machine: Machine, crowd: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch, device: str, outcome: Outcome
) -> None:
    """ask without a pause, a thousand slow requests at a time"""
    turns: list[Stream] = []
    give_way = Stream.give_way

    def noted(stream: Stream) -> None:
        turns.append(stream)
        give_way(stream)

    monkeypatch.setattr(Stream, "give_way", noted)
    if device == "gntdev":
        sock = crowd.enter_context(hello(machine, "gntdev", 3))
        grants = gntdev.pack_map([(3, 1 << 30)] * 2000)  # each found not to be there, one by one
        sock.sendall(wire.pack_request(Kind.IOCTL, wire.pack_ioctl(gntdev.MAP_GRANT_REF, grants, [])))
        arg = gntdev.pack_map([(3, 1 << 30)])
        request = wire.pack_request(Kind.IOCTL, wire.pack_ioctl(gntdev.MAP_GRANT_REF, arg, [])) * 1000
    else:
        store = crowd.enter_context(Store(machine, 3))
        sock = store.sock
        path = "data" + "/x" * 800
        store.do(Operation.MKDIR, path)
        request = xs_wire.pack_message(Operation.WRITE, 1, 0, xs_wire.pack_strings(path.encode())) * 40
    with flooding(sock, request):
        until(lambda: len(turns) > 3, "it has its turns as all others")
        for _ in range(3):
            check_served(machine)
    if device == "xenbus":
        with Store(machine, 3) as store:
            store.do(Operation.RM, "data/x")
    outcome("it waits for its turn as all others do")


def test_a_transaction_whose_end_is_long(machine: Machine, monkeypatch: pytest.MonkeyPatch, outcome: Outcome) -> None:
    """change a thousand nodes, each below the last, in one transaction, all watched from above"""
    deep, steps = 900, 0
    above = xenstore_tree.parent_of

    def counted(path: str) -> str:
        nonlocal steps
        steps += 1
        return above(path)

    with Store(machine, 3) as store:
        store.do(Operation.WATCH, "data", "token")
        number = store.start()
        paths = ["data" + "/x" * level for level in range(1, deep + 1)]
        for path in paths:
            store.do(Operation.WRITE, path, tail=b"", transaction=number)
        store.do(Operation.READ, "data")
        store.events.clear()  # of the watch itself
        monkeypatch.setattr(xenstore_tree, "parent_of", counted)
        store.do(Operation.TRANSACTION_END, "T", transaction=number)
        for _ in range(deep):  # what was held back comes before later answers
            store.do(Operation.READ, "data")
        assert [event.split(b"\0")[0].decode() for event in store.events] == paths
        assert steps < 5 * deep
        store.do(Operation.RM, "data/x")
    outcome("a few steps for each node")


def test_more_unmapped_at_once_than_a_file_can_map(machine: Machine, outcome: Outcome) -> None:
    """say of a million mappings that never were that they are gone, in one request"""
    most = 2 * files.MAX_MAPPINGS
    with Raw(machine, "gntdev") as device:
        device.ask(Kind.MUNMAP, wire.pack_munmap(range(1, most + 1)))
        with pytest.raises(ConnectionError):
            device.ask(Kind.MUNMAP, wire.pack_munmap(range(1, most + 2)))
    outcome("dropped")


def test_events_of_a_slow_watcher(machine: Machine, outcome: Outcome) -> None:
    """watch everything one may and read no event"""
    with Store(machine, 3) as slow, Store(machine, 3) as writer:
        for number in range(60):
            slow.do(Operation.WATCH, "data", f"{number}" + "t" * 1000)
        for number in range(300):
            writer.do(Operation.WRITE, f"data/{number}", tail=b"")
        (own,) = (c for c in machine._server.store.connections if c._watches)
        assert len(own._held) <= 1024
        writer.do(Operation.RM, "data/0")
        for number in range(1, 300):
            writer.do(Operation.RM, f"data/{number}")
    outcome("events are held back, each once, 1024 at most")
