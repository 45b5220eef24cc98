"""Scripted devices: they answer as Linux does, write down each call in order, and fail where a test says so.

`FakeSystem.journal` is the story of all its devices: "ALLOC", "mmap", "NOTIFY", "DEALLOC", "munmap", ...
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from xengrant.abi import evtchn, gntalloc, gntdev
from xengrant.devices import Device, Pointer, System
from xengrant.errors import InterfaceUnavailable
from xengrant.memory import PAGE_SIZE, Mapping

_NAMES = {
    ("gntalloc", gntalloc.ALLOC_GREF): "ALLOC",
    ("gntalloc", gntalloc.DEALLOC_GREF): "DEALLOC",
    ("gntalloc", gntalloc.SET_UNMAP_NOTIFY): "NOTIFY",
    ("gntdev", gntdev.MAP_GRANT_REF): "MAP",
    ("gntdev", gntdev.UNMAP_GRANT_REF): "UNMAP",
    ("gntdev", gntdev.SET_UNMAP_NOTIFY): "NOTIFY",
    ("gntdev", gntdev.GRANT_COPY): "COPY",
    ("evtchn", evtchn.BIND_UNBOUND_PORT): "BIND",
    ("evtchn", evtchn.BIND_INTERDOMAIN): "BIND",
    ("evtchn", evtchn.UNBIND): "UNBIND",
    ("evtchn", evtchn.NOTIFY): "SEND",
    ("evtchn", evtchn.RESET): "RESET",
}


def error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class FakeDevice(Device):
    """One open file. `asked` holds the last argument of each ioctl; `held` what the kernel would still hold."""

    def __init__(self, name: str, system: FakeSystem) -> None:
        super().__init__(name)
        self.system = system
        self.journal = system.journal
        self.asked: dict[str, bytearray] = {}
        self.pointers: dict[str, Sequence[Pointer]] = {}
        self.held: set[tuple[int, int]] = set()
        self.statuses: dict[tuple[int, int], int] = {}  # by (domid, ref): GNTST of a copy
        self.unmasked: list[int] = []
        self._next_index = 0
        self._next_ref = 8
        self._next_port = 1
        self._ports: set[int] = set()
        self._events: deque[bytes | OSError] = deque()
        self._readable = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def _step(self, name: str) -> None:
        self._check_open()
        self.journal.append(name)
        hook = self.system.hooks.get(name)
        if hook is not None:
            hook()
        failure = self.system.failures.pop(name, None)
        if failure is not None:
            raise failure

    def ioctl(self, request: int, arg: bytearray, pointers: Sequence[Pointer] = ()) -> int:
        name = _NAMES[self.name, request]
        self.asked[name] = arg
        self.pointers[name] = pointers
        self._step(name)
        answer: Callable[[bytearray], int] = getattr(self, f"_{name.lower()}")
        return answer(arg)

    def _alloc(self, arg: bytearray) -> int:
        _domid, _flags, count = gntalloc.unpack_alloc(arg)
        index, self._next_index = self._next_index, self._next_index + count * PAGE_SIZE
        refs = list(range(self._next_ref, self._next_ref + count))
        self._next_ref += count
        gntalloc.fill_alloc(arg, index, refs)
        self.held.add((index, count))
        return 0

    def _dealloc(self, arg: bytearray) -> int:
        if gntalloc.unpack_dealloc(arg) not in self.held:
            raise error(errno.EINVAL)
        self.held.remove(gntalloc.unpack_dealloc(arg))
        return 0

    def _map(self, arg: bytearray) -> int:
        count = gntdev.map_count(arg)
        index, self._next_index = self._next_index, self._next_index + count * PAGE_SIZE
        gntdev.fill_map(arg, index)
        self.held.add((index, count))
        return 0

    def _unmap(self, arg: bytearray) -> int:
        if gntdev.unpack_unmap(arg) not in self.held:
            raise error(errno.ENOENT)
        self.held.remove(gntdev.unpack_unmap(arg))
        return 0

    def _notify(self, arg: bytearray) -> int:
        return 0

    def _copy(self, arg: bytearray) -> int:
        [table] = [bytearray(p.target) for p in self.pointers["COPY"] if p.holder is arg]
        for i in range(gntdev.copy_count(arg)):
            source, dest, _length, flags = gntdev.unpack_segment(table, i)
            ref, _offset, domid = source if flags & gntdev.COPY_SOURCE_GREF else dest
            target: Any = self.pointers["COPY"][0].target
            gntdev.fill_segment(target, i, self.statuses.get((domid, ref), 0))
        return 0

    def _bind(self, _arg: bytearray) -> int:
        port, self._next_port = self._next_port, self._next_port + 1
        self._ports.add(port)
        return port

    def _unbind(self, arg: bytearray) -> int:
        port = evtchn.unpack_word(arg)
        if port not in self._ports:
            raise error(errno.ENOTCONN)
        self._ports.remove(port)
        return 0

    def _send(self, arg: bytearray) -> int:
        if evtchn.unpack_word(arg) not in self._ports:
            raise error(errno.ENOTCONN)
        return 0

    def _reset(self, _arg: bytearray) -> int:
        return 0

    def mmap(self, length: int, offset: int, *, writable: bool, unmapped: Callable[[], None] | None = None) -> Mapping:
        self._step("mmap")
        memory = os.memfd_create("fake", os.MFD_CLOEXEC)
        try:
            os.ftruncate(memory, length)

            def told() -> None:
                self.journal.append("munmap")
                if unmapped is not None:
                    unmapped()

            return Mapping(((memory, 0, length),), writable=writable, unmapped=told)
        finally:
            os.close(memory)

    def deliver(self, *news: int | bytes | OSError) -> None:
        """Have the next reads give these: a port's number, bytes as they are, or an error."""
        for item in news:
            self._events.append(evtchn.pack_ports([item]) if isinstance(item, int) else item)
        os.eventfd_write(self._readable, 1)

    def read(self, size: int) -> bytes:
        self._check_open()
        if not self._events:
            raise BlockingIOError(errno.EAGAIN, "nothing")
        item = self._events.popleft()
        if not self._events:
            os.eventfd_read(self._readable)
        if isinstance(item, OSError):
            raise item
        assert len(item) <= size
        return item

    def write(self, data: bytes) -> int:
        self._check_open()
        self.unmasked += evtchn.unpack_ports(bytes(data))
        return len(data)

    def fileno(self) -> int:
        self._check_open()
        return self._readable

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.journal.append("close")
            self.held.clear()
            os.close(self._readable)

    abandon = close


class FakeSystem(System):
    """`failures` holds what the next call of a name raises, `hooks` what happens in it first."""

    url = "fake:"

    def __init__(self) -> None:
        self.journal: list[str] = []
        self.failures: dict[str, BaseException] = {}
        self.hooks: dict[str, Callable[[], object]] = {}
        self.parameters = {("xen_gntalloc", "limit"): "1024"}
        self.log: list[str] = []
        self.opened: list[FakeDevice] = []

    def open(self, name: str) -> FakeDevice:
        if f"open {name}" in self.failures:
            raise InterfaceUnavailable(errno.ENOENT, f"no {name}")
        device = FakeDevice(name, self)
        self.opened.append(device)
        return device

    def parameter(self, module: str, name: str) -> str | None:
        return self.parameters.get((module, name))

    def kernel_log(self, seconds: float) -> list[str]:
        assert seconds > 0
        return self.log

    def close(self) -> None:
        """What the test left behind: nothing may be held, and no device open."""
        left = [(device.name, device.held) for device in self.opened if device.held]
        for device in self.opened:
            device.close()
        assert not left, f"still held: {left}"
