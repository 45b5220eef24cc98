"""A xenstored for tests: `XenStored` in a thread, over socket pairs for domains and a Unix socket for Xen's tools."""

from __future__ import annotations

import contextlib
import os
import queue
import selectors
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from xengrant.abi import xs_wire
from xengrant.abi.xs_wire import Operation
from xengrant.devices import Device
from xengrant.embedded.xenstored import ProtocolViolation, StoreConnection, XenStored

from .worker import LONG, Worker

T = TypeVar("T")


class SocketDevice(Device):
    """A stream to xenstored, as an embedded machine's xenbus is."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__("xenbus")
        self.sock = sock
        sock.setblocking(False)

    def ioctl(self, *args: object, **kwargs: object) -> int:
        raise NotImplementedError

    def mmap(self, *args: object, **kwargs: object) -> None:  # type: ignore[override]
        raise NotImplementedError

    def read(self, size: int) -> bytes:
        self._check_open()
        return self.sock.recv(size)

    def write(self, data: bytes) -> int:
        self._check_open()
        return self.sock.send(data)

    def fileno(self) -> int:
        return self.sock.fileno()

    def close(self) -> None:
        self.closed = True
        self.sock.close()

    abandon = close


class NarrowDevice(SocketDevice):
    """Takes and gives 7 bytes at a time, and takes none but every other time; `room` is what it takes in all."""

    room: int | None = None
    _busy = False

    def read(self, size: int) -> bytes:
        return super().read(min(size, 7))

    def write(self, data: bytes) -> int:
        self._busy = not self._busy
        if self._busy or self.room == 0:
            raise BlockingIOError
        taken = super().write(data[: min(7, self.room or 7)])
        if self.room is not None:
            self.room -= taken
        return taken


class LinuxDevice(SocketDevice):
    """The habits of /dev/xen/xenbus (drivers/xen/xenbus/xenbus_dev_frontend.c).

    A message comes in one write, and none may come while another is under way: it would overwrite that one's body. A
    watch's reply has no request id, its refusal is write()'s own errno, and the ids of an event are whatever was on the
    kernel's stack.
    """

    refuse = 0
    under_way = 0

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._splitter = xs_wire.Splitter()

    def write(self, data: bytes) -> int:
        operation, _, _, length = struct.unpack("<4I", data[:16])
        assert len(data) == 16 + length, "the message came in parts"
        assert len(data) <= 4096
        assert not self.under_way, f"operation {operation} while {self.under_way} others are under way"
        if self.refuse and operation == Operation.WATCH:
            raise OSError(self.refuse, os.strerror(self.refuse))
        self.under_way += 1
        return super().write(data)

    def read(self, size: int) -> bytes:
        self._splitter.feed(super().read(size))
        out = b""
        while (message := self._splitter.next()) is not None:
            if message.operation in (Operation.WATCH, Operation.UNWATCH):
                message = message._replace(request_id=0)
            elif message.operation == Operation.WATCH_EVENT:
                message = message._replace(request_id=0xDEAD, transaction_id=0xBEEF)
            self.under_way -= message.operation != Operation.WATCH_EVENT
            out += xs_wire.pack_message(*message)
        if not out:
            raise BlockingIOError
        return out


class _Client:
    """One socket in the server's loop."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.out = bytearray()
        self.connection: StoreConnection | None = None

    def send(self, data: bytes) -> None:
        self.out += data
        self.flush()

    def flush(self) -> None:
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            while self.out:
                del self.out[: self.sock.send(self.out)]


class StoreServer:
    """The thread. `call(function)` runs something on the store in it."""

    def __init__(self, path: Path, **quotas: int) -> None:
        self.store = XenStored(**quotas)
        self.violations: list[ProtocolViolation] = []
        self.path = path
        self._selector = selectors.DefaultSelector()
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._waker = os.eventfd(0, os.EFD_CLOEXEC)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._clients: list[_Client] = []
        self._running = True
        self._thread = threading.Thread(target=self._run, name="xenstored", daemon=True)
        self._thread.start()

    def device(self, domid: int) -> SocketDevice:
        ours, theirs = socket.socketpair()
        self.call(lambda: self._add(theirs, domid))
        return SocketDevice(ours)

    def call(self, function: Callable[[], T]) -> T:
        answers: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

        def answer() -> None:
            try:
                answers.put((function(), None))
            except BaseException as error:
                answers.put((None, error))

        self._calls.put(answer)
        os.eventfd_write(self._waker, 1)
        result, error = answers.get(timeout=LONG)
        if error is not None:
            raise error
        return result  # type: ignore[return-value]

    def close(self) -> None:
        def stop() -> None:
            self._running = False

        self.call(stop)
        self._thread.join(LONG)
        assert not self._thread.is_alive(), "the server did not stop"

    def _add(self, sock: socket.socket, domid: int) -> None:
        sock.setblocking(False)
        client = _Client(sock)
        client.connection = self.store.connect(domid, client.send, backlog=lambda: len(client.out))
        self._clients.append(client)
        self._selector.register(sock, selectors.EVENT_READ, client)

    def _run(self) -> None:
        self._selector.register(self._waker, selectors.EVENT_READ)
        self._selector.register(self._listener, selectors.EVENT_READ)
        while self._running:
            for key, events in self._selector.select():
                if key.fd == self._waker:
                    os.eventfd_read(self._waker)
                    while not self._calls.empty():
                        self._calls.get()()
                elif key.fd == self._listener.fileno():
                    self._add(self._listener.accept()[0], 0)
                else:
                    self._serve(key.data, events)
            self._watch_what_is_needed()
        for client in list(self._clients):
            self._drop(client)
        self._selector.close()
        self._listener.close()
        os.close(self._waker)

    def _serve(self, client: _Client, events: int) -> None:
        if client not in self._clients:
            return
        assert client.connection is not None
        try:
            if events & selectors.EVENT_WRITE:
                client.flush()
                client.connection.drained()
            if events & selectors.EVENT_READ:
                data = client.sock.recv(65536)
                if not data:
                    self._drop(client)
                else:
                    client.connection.feed(data)
        except ProtocolViolation as violation:
            self.violations.append(violation)
            self._drop(client)
        except ConnectionError:
            self._drop(client)

    def _watch_what_is_needed(self) -> None:
        for client in list(self._clients):
            assert client.connection is not None
            if client.connection.closed:
                self._drop(client)
                continue
            wanted = selectors.EVENT_WRITE if client.out else selectors.EVENT_READ
            if self._selector.get_key(client.sock).events != wanted:
                self._selector.modify(client.sock, wanted, client)

    def _drop(self, client: _Client) -> None:
        assert client.connection is not None
        client.connection.close()
        self._clients.remove(client)
        self._selector.unregister(client.sock)
        client.sock.close()


def hold(server: StoreServer) -> threading.Event:
    """Stop the server until the event is set."""
    held, stopped = threading.Event(), threading.Event()

    def stop() -> None:
        stopped.set()
        held.wait(LONG)

    Worker(lambda: server.call(stop))
    assert stopped.wait(LONG)
    return held
