"""A client that is no library: `Raw` says what it likes on a device's connection, `Store` on xenstore's.

It takes the descriptors that come, and keeps them, whatever it was told they are for.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple, Self

from xengrant.abi import evtchn, gntalloc, gntdev, xs_wire
from xengrant.abi.xen import PAGE_SIZE
from xengrant.abi.xs_wire import Operation
from xengrant.devices import wire
from xengrant.devices.wire import Direction, Kind
from xengrant.embedded import Machine

DEADLINE = 30.0  # seconds
_ANCILLARY = socket.CMSG_SPACE(4 * 253)


def connect(machine: Machine, name: str = wire.MACHINE_SOCKET) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(DEADLINE)
    sock.connect(f"{machine.directory}/{name}")
    return sock


def hello(machine: Machine, device: str, domid: int = 1) -> socket.socket:
    sock = connect(machine)
    sock.sendall(wire.pack_request(Kind.HELLO, wire.pack_hello(domid, device)))
    assert sock.recv(wire.REPLY.size) == wire.pack_reply(0)
    return sock


def is_dropped(sock: socket.socket) -> bool:
    """Whether the machine ends the connection, whatever it answers before."""
    with sock:
        try:
            while sock.recv(1 << 16):
                pass
        except ConnectionResetError:
            pass
        return True


class Reply(NamedTuple):
    result: int
    body: bytes


class Raw:
    """One connection of a device, as domain `domid`. Refusals are `OSError`."""

    def __init__(self, machine: Machine, device: str, domid: int = 3, *, kernel: bool = False) -> None:
        self.sock = connect(machine)
        self.fds: list[int] = []
        self._cookie = 0
        try:
            self.ask(Kind.HELLO, wire.pack_hello(domid, device, kernel=kernel))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()
        while self.fds:
            os.close(self.fds.pop())

    def ask(self, kind: Kind, body: bytes = b"") -> Reply:
        self.sock.sendall(wire.pack_request(kind, body))
        return self.answer()

    def answer(self) -> Reply:
        """The next reply; its descriptors are kept in `fds`."""
        length, result, count = wire.REPLY.unpack(self._receive(wire.REPLY.size))
        body = self._receive(length + max(0, -(-count // wire.FDS_PER_BATCH) - 1))[:length]
        if result < 0:
            raise OSError(-result, body.decode())
        return Reply(result, body)

    def ioctl(
        self, request: int, arg: bytearray, pointers: Sequence[tuple[int, int, Direction, int, bytes]] = ()
    ) -> Reply:
        """The reply, with its body in `arg` as far as that goes."""
        reply = self.ask(Kind.IOCTL, wire.pack_ioctl(request, arg, pointers))
        arg[:] = reply.body[: len(arg)]
        return reply

    def mmap(self, length: int, offset: int, *, writable: bool) -> int:
        """The cookie."""
        self._cookie += 1
        self.ask(Kind.MMAP, wire.pack_mmap(self._cookie, length, offset, writable=writable))
        return self._cookie

    def munmap(self, cookie: int) -> None:
        self.ask(Kind.MUNMAP, wire.pack_munmap([cookie]))

    def alloc(self, domid: int, count: int = 1, *, writable: bool = True) -> tuple[int, tuple[int, ...]]:
        """gntalloc's ALLOC_GREF: (index, refs)."""
        arg = gntalloc.pack_alloc(domid, gntalloc.FLAG_WRITABLE if writable else 0, count)
        self.ioctl(gntalloc.ALLOC_GREF, arg)
        return gntalloc.alloc_result(arg, count)

    def dealloc(self, index: int, count: int = 1) -> None:
        self.ioctl(gntalloc.DEALLOC_GREF, gntalloc.pack_dealloc(index, count))

    def add_map(self, *grants: tuple[int, int]) -> int:
        """gntdev's MAP_GRANT_REF: the index."""
        arg = gntdev.pack_map(grants)
        self.ioctl(gntdev.MAP_GRANT_REF, arg)
        return gntdev.map_result(arg)

    def unmap(self, index: int, count: int = 1) -> None:
        self.ioctl(gntdev.UNMAP_GRANT_REF, gntdev.pack_unmap(index, count))

    def map(self, *grants: tuple[int, int], writable: bool) -> int:
        """MAP_GRANT_REF and mmap: the index. Whatever fails leaves no map."""
        index = self.add_map(*grants)
        try:
            self.mmap(len(grants) * PAGE_SIZE, index, writable=writable)
        except OSError:
            self.unmap(index, len(grants))
            raise
        return index

    def bind_unbound(self, remote: int) -> int:
        return self.ioctl(evtchn.BIND_UNBOUND_PORT, evtchn.pack_word(remote)).result

    def bind_interdomain(self, remote: int, port: int) -> int:
        return self.ioctl(evtchn.BIND_INTERDOMAIN, evtchn.pack_interdomain(remote, port)).result

    def _receive(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            piece, ancillary, *_ = self.sock.recvmsg(length - len(data), _ANCILLARY)
            self.fds += wire.received(ancillary)
            if not piece:
                raise ConnectionResetError("the machine hung up")
            data += piece
        return data


class Store(Raw):
    """One connection to xenstore; a refusal is `Refusal`."""

    def __init__(self, machine: Machine, domid: int = 3) -> None:
        super().__init__(machine, "xenbus", domid)
        self._splitter = xs_wire.Splitter()
        self.events: list[bytes] = []

    def do(self, operation: int, *strings: bytes | str, tail: bytes = b"", transaction: int = 0) -> bytes:
        """The answer's payload; watch events that come before it go to `events`."""
        encoded = [text.encode() if isinstance(text, str) else text for text in strings]
        self.sock.sendall(xs_wire.pack_message(operation, 1, transaction, xs_wire.pack_strings(*encoded) + tail))
        while True:
            message = self._next()
            if message.operation == Operation.WATCH_EVENT:
                self.events.append(message.payload)
            elif message.operation == Operation.ERROR:
                raise OSError(*xs_wire.unpack_error(message.payload))
            else:
                return message.payload

    def start(self) -> int:
        """A transaction's id."""
        return int(self.do(Operation.TRANSACTION_START, "").rstrip(b"\0"))

    def _next(self) -> xs_wire.Message:
        while (message := self._splitter.next()) is None:
            data = self.sock.recv(1 << 16)
            if not data:
                raise ConnectionResetError("xenstore hung up")
            self._splitter.feed(data)
        return message


def send_descriptors(sock: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    """As far as the kernel lets them pass."""
    with contextlib.suppress(PermissionError):
        sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


def refuses_descriptors(sock: socket.socket) -> bool:
    """Whether this kernel lets a socket refuse them: what any end says of itself."""
    try:
        sock.getsockopt(socket.SOL_SOCKET, wire._SO_PASSRIGHTS)
    except OSError:
        return False
    return True
