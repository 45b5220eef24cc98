"""An embedded machine's devices that are read and polled: `EvtchnDevice` and `XenbusDevice`, opened by `socket.py`."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import threading
from collections.abc import Sequence

from xengrant.abi import evtchn as abi
from xengrant.abi.xen import PAGE_SIZE
from xengrant.abi.xs_wire import DEVICE_MESSAGE_MAX, Splitter, TooLongError, pack_message
from xengrant.devices import Pointer
from xengrant.devices.client import Client, DescriptorsLostError
from xengrant.devices.socket import SocketDevice

_BINDS = (abi.BIND_UNBOUND_PORT, abi.BIND_INTERDOMAIN, abi.BIND_VIRQ)
_ARMED = select.EPOLLIN | select.EPOLLONESHOT


class EvtchnDevice(SocketDevice):
    """evtchn. Binding hands out two eventfds: the port's own, and the other side's.

    The own one's counter is the pending bit. All own ones are in one epoll, which is what `fileno` gives: a port that
    was read is disarmed there, which masks it, until its number is written back.
    """

    def __init__(self, name: str, client: Client) -> None:
        super().__init__(name, client)
        self._table = threading.Lock()
        self._epoll = select.epoll()
        self._ports: dict[int, tuple[int, int]] = {}  # number -> (own, other side's)
        self._numbers: dict[int, int] = {}  # own -> number
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
            for number in ports:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._ports[number][0])
        if ports:
            return abi.pack_ports(ports)
        if ready:
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
                    self._epoll.modify(self._ports[number][0], _ARMED)
        return len(numbers) * abi.PORT_SIZE

    def fileno(self) -> int:
        self._check_open()
        return self._epoll.fileno()

    def abandon(self) -> None:
        super().abandon()
        self._table = threading.Lock()
        self._close_descriptors()

    def _closing(self) -> None:
        with self._table:
            self._close_descriptors()

    def _close_descriptors(self) -> None:
        self._epoll.close()
        ports, self._ports = self._ports, {}
        self._numbers.clear()
        for pair in ports.values():
            for fd in pair:
                os.close(fd)

    def _notify(self, number: int) -> int:
        with self._table:
            self._check_open()
            if number not in self._ports:
                raise OSError(errno.ENOTCONN, f"port {number} is not bound through this file")
            with contextlib.suppress(BlockingIOError):
                os.eventfd_write(self._ports[number][1], 1)
        return 0

    def _bind(self, request: int, arg: bytearray) -> int:
        try:
            reply, _ = self._ioctl(request, arg, ())
        except DescriptorsLostError as error:
            super().ioctl(abi.UNBIND, abi.pack_word(error.result))
            raise
        with self._table:
            self._check_open()
            own, other = reply.fds
            self._epoll.register(own, _ARMED)
            self._ports[reply.result] = own, other
            self._numbers[own] = reply.result
            reply.fds.clear()  # they are the port's now
        return reply.result

    def _drop(self, number: int) -> None:
        with self._table:
            pair = self._ports.pop(number, None)
            if pair is not None:
                self._epoll.unregister(pair[0])
                del self._numbers[pair[0]]
                for fd in pair:
                    os.close(fd)


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
