"""An embedded machine's devices that are read and polled: `EvtchnDevice` and `XenbusDevice`, opened by `socket.py`."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import threading
from collections.abc import Sequence

from xengrant._native import Descriptor, Doorbell
from xengrant.abi import evtchn as abi
from xengrant.abi.xen import PAGE_SIZE
from xengrant.abi.xs_wire import DEVICE_MESSAGE_MAX, Splitter, TooLongError, pack_message
from xengrant.devices import Pointer
from xengrant.devices.client import Client, DescriptorsLostError
from xengrant.devices.socket import SocketDevice

_BINDS = (abi.BIND_UNBOUND_PORT, abi.BIND_INTERDOMAIN, abi.BIND_VIRQ)
_ARMED = select.EPOLLIN | select.EPOLLONESHOT
_DRAIN_SIZE, _DRAIN_MOST = 1 << 12, 16  # one receive takes all that is pending, but for a peer that floods


class EvtchnDevice(SocketDevice):
    """evtchn. Binding hands out a socket, connected with the other side's.

    What lies in it is the pending bit, and what is sent through it is an event to the other side. All are in one epoll,
    which is what `fileno` gives: a port that was read is disarmed there, which masks it, until its number is written
    back. The peer, which holds the other end, may fill it or shut it down: that costs its own events and nothing else.
    """

    def __init__(self, name: str, client: Client) -> None:
        super().__init__(name, client)
        self._table = threading.Lock()
        self._epoll = select.epoll()
        self._ports: dict[int, socket.socket] = {}
        self._numbers: dict[int, int] = {}  # descriptor -> number
        self._bells: dict[int, list[Descriptor]] = {}
        # The machine's end makes the file readable, and read() tells it.
        self._epoll.register(client.sock, select.EPOLLRDHUP)

    def ioctl(self, request: int, arg: bytearray, pointers: Sequence[Pointer] = ()) -> int:
        self._check_open()
        if request == abi.NOTIFY:
            return self._notify(abi.unpack_word(arg))
        if request == abi.RESET:
            return 0  # the ring has an entry for each port, so it never overflows
        if request == abi.UNBIND:
            self._drop(abi.unpack_word(arg))
        if request in _BINDS:
            return self._bind(request, arg)
        return super().ioctl(request, arg, pointers)

    def read(self, size: int) -> bytes:
        """Take pending ports, which masks them. `InterfaceUnavailable` when the machine is gone."""
        self._check_open()
        room = min(size, PAGE_SIZE) // abi.PORT_SIZE
        if room == 0:
            return b""
        with self._table:
            self._check_open()
            ready = self._epoll.poll(0, room)  # each is disarmed by that, so none may be left out
            ports = [self._numbers[fd] for fd, _ in ready if fd in self._numbers]
            pending = [number for number in ports if _drain(self._ports[number])]
        if pending:
            return abi.pack_ports(pending)
        if len(ready) > len(ports):
            raise self._client.gone()
        raise BlockingIOError(errno.EAGAIN, "no event is pending")

    def write(self, data: bytes) -> int:
        """Unmask the ports whose numbers are written; others are ignored."""
        self._check_open()
        numbers = abi.unpack_ports(data[:PAGE_SIZE])
        with self._table:
            self._check_open()
            for number in numbers:
                if number in self._ports:
                    self._epoll.modify(self._ports[number], _ARMED)
        return len(numbers) * abi.PORT_SIZE

    def doorbell(self, port: int) -> Doorbell:
        with self._table:
            self._check_open()
            bell = Descriptor(os.dup(self._ports[port].fileno()))
            life = Descriptor(os.dup(self._client.sock.fileno()))
            self._bells.setdefault(port, []).extend((bell, life))
        return Doorbell(bell, -1, life)

    def fileno(self) -> int:
        self._check_open()
        return self._epoll.fileno()

    def abandon(self) -> None:
        super().abandon()
        self._table = threading.Lock()
        for bells in self._bells.values():
            for bell in bells:
                bell.abandon()
        self._bells.clear()
        self._close_descriptors()

    def _closing(self) -> None:
        with self._table:
            self._close_descriptors()

    def _close_descriptors(self) -> None:
        self._epoll.close()
        ports, self._ports = self._ports, {}
        self._numbers.clear()
        for number, end in ports.items():
            self._close_bells(number)
            end.close()

    def _notify(self, number: int) -> int:
        with self._table:
            self._check_open()
            if number not in self._ports:
                raise OSError(errno.ENOTCONN, f"port {number} is not bound through this file")
            # No room: an event is pending there already. Shut down: nobody is there, which is no error.
            with contextlib.suppress(BlockingIOError, ConnectionError):
                self._ports[number].send(b"\0", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        return 0

    def _bind(self, request: int, arg: bytearray) -> int:
        try:
            reply, _ = self._ioctl(request, arg, ())
        except DescriptorsLostError as error:
            super().ioctl(abi.UNBIND, abi.pack_word(error.result))
            raise
        with self._table:
            self._check_open()
            end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, reply.fds.pop())
            end.setblocking(False)  # else Python itself waits, where the program has a default timeout
            self._epoll.register(end, _ARMED)
            self._ports[reply.result] = end
            self._numbers[end.fileno()] = reply.result
        return reply.result

    def _drop(self, number: int) -> None:
        with self._table:
            end = self._ports.pop(number, None)
            if end is not None:
                self._epoll.unregister(end)
                del self._numbers[end.fileno()]
                self._close_bells(number)
                end.close()

    def _close_bells(self, number: int) -> None:
        for bell in self._bells.pop(number, ()):
            bell.close()


def _drain(end: socket.socket) -> bool:
    """Take what is pending. False where it is only that the other end is gone: no event, nor will one ever come."""
    taken = 0
    try:
        for _ in range(_DRAIN_MOST):
            size = len(end.recv(_DRAIN_SIZE, socket.MSG_DONTWAIT))
            taken += size
            if size < _DRAIN_SIZE:
                break
    except BlockingIOError:
        return True
    except ConnectionError:
        pass
    return taken > 0


class XenbusDevice(SocketDevice):
    """xenbus: after HELLO the connection is xenstore's own protocol; writing keeps Linux's limits.

    Linux drivers/xen/xenbus/xenbus_dev_frontend.c: a message may come in several writes, and has 4096 bytes at most.
    """

    def __init__(self, name: str, client: Client) -> None:
        super().__init__(name, client)
        self._partial = b""

    def read(self, size: int) -> bytes:
        self._check_open()
        try:
            return self._client.sock.recv(size, socket.MSG_DONTWAIT)
        except ConnectionError:
            return b""

    def write(self, data: bytes) -> int:
        """Take a message or a part of one; `BlockingIOError` where xenstored is too busy to take it."""
        self._check_open()
        message, self._partial = self._partial + bytes(data), b""
        if len(message) > DEVICE_MESSAGE_MAX:
            raise OSError(errno.EINVAL, f"{len(message)} bytes: {DEVICE_MESSAGE_MAX} is what the device takes")
        whole = _first_message(message)
        if whole is None:
            self._partial = message
            return len(data)
        try:
            self._client.sock.send(whole, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            self._partial = message[: len(message) - len(data)]
            raise
        except ConnectionError:
            raise self._client.gone() from None
        return len(data)

    def _release(self) -> None:
        """When this returns the machine has ended the connection."""
        with contextlib.suppress(OSError):
            self._client.sock.shutdown(socket.SHUT_WR)
            while self._client.sock.recv(1 << 16):
                pass
        self._client.close()


def _first_message(data: bytes) -> bytes | None:
    """The message that `data` begins with, None where it is not whole yet."""
    splitter = Splitter()
    splitter.feed(data)
    try:
        message = splitter.next()
    except TooLongError as error:
        raise OSError(errno.E2BIG, str(error)) from None
    return None if message is None else pack_message(*message)
