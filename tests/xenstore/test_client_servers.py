"""`XenStore` against what it may find below it: devices that do little at once, the kernel's, and servers that lie."""

from __future__ import annotations

import errno
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from xengrant.abi import xs_wire
from xengrant.abi.xs_wire import Operation
from xengrant.errors import ProtocolError, XenStoreError
from xengrant.xenstore import XenStore

from .store_server import LinuxDevice, NarrowDevice, SocketDevice, StoreServer, hold
from .worker import LONG, Worker, until


@contextmanager
def refused(number: int, says: str) -> Iterator[None]:
    with pytest.raises(XenStoreError, match=says) as caught:
        yield
    assert caught.value.errno == number


def test_a_device_that_takes_and_gives_a_few_bytes_at_a_time(server: StoreServer) -> None:
    with XenStore(NarrowDevice(server.device(1).sock)) as store, store.watch("data") as watch:
        store.write("data/a", bytes(2000))
        assert store.read("data/a") == bytes(2000)
        assert [watch.wait(LONG), watch.wait(LONG)] == ["data", "data/a"]


def test_a_device_that_takes_nothing_times_out_and_goes_on(server: StoreServer) -> None:
    device = NarrowDevice(server.device(1).sock)
    held = hold(server)
    with XenStore(device) as store:
        device.room = 5
        with pytest.raises(TimeoutError):
            store.write("data/a", "begun", timeout=0.01)
        with pytest.raises(TimeoutError):
            store.write("data/b", "not begun", timeout=0.01)
        device.room = None
        held.set()
        assert store.read("data/a") == b"begun"
        assert not store.exists("data/b")


def test_the_kernels_device(server: StoreServer) -> None:
    with XenStore(LinuxDevice(server.device(1).sock)) as store:
        with store.watch("data") as first, store.watch("data/a") as second:
            store.write("data/a", "1")
            assert [first.wait(LONG), first.wait(LONG)] == ["data", "data/a"]
            assert second.wait(LONG) == "data/a"
        store.run_transaction(lambda transaction: transaction.write("data/b", "2"))
        assert store.read("data/b") == b"2"


def test_the_kernels_device_has_one_request_at_a_time_whoever_asks(server: StoreServer) -> None:
    """Threads that read, and one whose transactions are aborted and whose watches end among that."""
    with XenStore(LinuxDevice(server.device(1).sock)) as store:
        store.write("data/a", "1")
        ended = threading.Event()

        def read() -> None:
            while not ended.is_set():
                assert store.read("data/a") == b"1"

        def abort() -> None:
            with store.transaction() as transaction:
                transaction.write("data/a", "2")
                raise KeyError

        readers = [Worker(read) for _ in range(3)]
        for _ in range(20):
            with pytest.raises(KeyError):
                abort()
            store.watch("data/a").close()
        ended.set()
        for reader in readers:
            reader.get()
        connections = server.store.connections
        assert server.call(lambda: [(len(c._watches), len(c._transactions)) for c in connections]) == [(0, 0)]


def test_what_is_undone_while_a_request_is_under_way_is_sent_when_that_is_answered(server: StoreServer) -> None:
    with XenStore(LinuxDevice(server.device(1).sock)) as store:
        transaction = store.transaction()
        held = hold(server)
        reader = Worker(lambda: store.read("domid"))
        until(lambda: bool(store._codec._requests), "the reader never asked")
        with pytest.raises(KeyError), transaction:
            raise KeyError
        held.set()
        reader.get()
        (connection,) = server.store.connections
        until(lambda: not server.call(lambda: len(connection._transactions)), "the transaction was not ended")


def test_the_kernels_device_refuses_a_watch_from_write(server: StoreServer) -> None:
    device = LinuxDevice(server.device(1).sock)
    with XenStore(device) as store:
        device.refuse = errno.E2BIG
        with refused(errno.E2BIG, "no watch on data"):
            store.watch("data")
        device.refuse = 0
        assert store.watch("data").wait(LONG) == "data"


@pytest.mark.parametrize(
    "lie",
    [
        pytest.param(xs_wire.pack_message(2, 1, 0, bytes(4097)), id="over-long"),
        pytest.param(xs_wire.pack_message(2, 99, 0, b""), id="never asked"),
        pytest.param(xs_wire.pack_message(11, 1, 0, b"OK\0"), id="other type"),
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n", id="another protocol"),
    ],
)
def test_a_lying_server_fails_everybody(pair: tuple[SocketDevice, socket.socket], lie: bytes) -> None:
    with XenStore(pair[0]) as store:
        waiting = [Worker(lambda: store.read("domid")) for _ in range(3)]
        until(lambda: bool(store._codec._requests) and bool(store._reader._pollers), "they never waited")
        pair[1].send(lie)
        for worker in waiting:
            with pytest.raises(ProtocolError):
                worker.get()
        with pytest.raises(ProtocolError):
            store.read("domid")


@pytest.mark.parametrize(
    ("ask", "answer"),
    [
        (lambda store: store.directory("d"), b"../name\0"),
        (lambda store: store.get_permissions("d"), b"x\0"),
        (lambda store: store.get_permissions("d"), b""),
        (lambda store: store.get_domain_path(1), b"/a b\0"),
        (lambda store: store.is_domain_introduced(1), b"maybe\0"),
        (lambda store: store.transaction(), b"0\0"),
        (lambda store: store.transaction(), b"99999999999\0"),
    ],
)
def test_answers_that_make_no_sense(
    pair: tuple[SocketDevice, socket.socket], ask: Callable[[XenStore], object], answer: bytes
) -> None:
    with XenStore(pair[0]) as store:
        asking = Worker(lambda: ask(store))
        operation = int.from_bytes(pair[1].recv(4096)[:4], "little")
        pair[1].send(xs_wire.pack_message(operation, 1, 0, answer))
        with pytest.raises(ProtocolError):
            asking.get()


def test_a_directory_that_never_ends(pair: tuple[SocketDevice, socket.socket]) -> None:
    with XenStore(pair[0]) as store:
        asking = Worker(lambda: store.directory("d"))

        def answer() -> None:
            operation, request_id, *_ = struct.unpack("<4I", pair[1].recv(4096)[:16])
            assert operation == Operation.DIRECTORY
            pair[1].send(xs_wire.pack_message(Operation.ERROR, request_id, 0, b"E2BIG\0"))
            while data := pair[1].recv(4096):
                operation, request_id, *_ = struct.unpack("<4I", data[:16])
                pair[1].send(xs_wire.pack_message(operation, request_id, 0, b"7\0" + b"name\0" * 800))

        answering = Worker(answer)
        with pytest.raises(ProtocolError, match="goes on listing"):
            asking.get()
    answering.get()
