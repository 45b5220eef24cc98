"""An embedded machine's devices: `SocketSystem`, from ``embedded:DIRECTORY?domid=N``, and the files it opens.

`open_system` makes the system; nothing else imports this. One connection is one open file. Requests that only concern
this process are answered here: the address of a mapping (gntdev), and everything that is done with a bound port
(`socket_events.py`). Ioctls with pointers carry the bytes along.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import sys
import threading
import warnings
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote

from xengrant.abi import gntalloc, gntdev
from xengrant.abi.grant_table import GNTST_BAD_PAGE, GNTST_OKAY
from xengrant.abi.xen import DOMID_FIRST_RESERVED, PAGE_SIZE
from xengrant.descriptors import needing_descriptors
from xengrant.devices import Device, Pointer, System, wire
from xengrant.devices.client import Client, Reply, ask
from xengrant.devices.pages import replace_pages
from xengrant.devices.wire import Direction, Kind
from xengrant.errors import InterfaceUnavailable
from xengrant.memory import Mapping

__all__ = ["SocketDevice", "SocketSystem"]

_DIRECTIONS = {"in": Direction.IN, "out": Direction.OUT, "inout": Direction.INOUT, "map": Direction.MAP}


class SocketSystem(System):
    """A domain of an embedded machine.

    The URL is ``embedded:DIRECTORY?domid=N``, the directory percent-encoded where it has to be. `ValueError` for
    another; whether the machine runs is seen when a device is opened.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        scheme, _, rest = url.partition(":")
        path, _, query = rest.partition("?")
        fields = dict(parse_qsl(query, keep_blank_values=True))
        domid = fields.pop("domid", "")
        kernel = fields.pop("kernel", "0")
        valid = scheme == "embedded" and path and not fields and kernel in ("0", "1")
        if not valid or not domid.isascii() or not domid.isdigit():
            raise ValueError(f"{url!r}: an embedded machine's URL is embedded:DIRECTORY?domid=N, or with &kernel=1")
        self.directory = os.path.abspath(unquote(path))
        self.domid = int(domid)
        self.is_kernel = kernel == "1"
        if self.domid >= DOMID_FIRST_RESERVED:
            raise ValueError(f"{url!r}: domid {domid} is outside 0..{DOMID_FIRST_RESERVED - 1:#x}")

    def __repr__(self) -> str:
        return f"<SocketSystem {self.url}>"

    def open(self, name: str) -> Device:
        with needing_descriptors():  # already to import what serves the device
            return self._open(name)

    def _open(self, name: str) -> Device:
        from xengrant.devices.socket_events import EvtchnDevice, XenbusDevice

        opened: dict[str, Callable[[str, Client], Device]] = {
            "gntalloc": GntallocDevice,
            "gntdev": GntdevDevice,
            "privcmd": PrivcmdDevice,
            "kernel": SocketDevice,
            "evtchn": EvtchnDevice,
            "xenbus": XenbusDevice,
        }
        if name not in opened:
            raise InterfaceUnavailable(errno.ENOENT, f"an embedded machine has no device {name!r}")
        client = Client(self.directory, self.domid, name, kernel=self.is_kernel)
        try:
            return opened[name](name, client)
        except BaseException:
            client.close()
            raise

    def parameter(self, module: str, name: str) -> str | None:
        value: str | None = ask(self.directory, "parameter", domid=self.domid, module=module, name=name)
        return value

    def kernel_log(self, seconds: float) -> list[str]:
        lines: list[str] = ask(self.directory, "kernel_log", domid=self.domid, seconds=seconds)
        return lines


class _Place(NamedTuple):
    """Where a mapping is: its address here, and the file's bytes that it shows."""

    address: int
    offset: int
    length: int


class _Unmapped:
    """What a mapping calls when its memory is gone: tells the device, then whoever asked for the mapping.

    `later`: the machine is told with the next request. So is undone what failed or was interrupted, since a machine
    that does not answer must not keep anybody from giving up.
    """

    __slots__ = ("callback", "cookie", "device", "later")

    def __init__(self, device: SocketDevice, cookie: int, callback: Callable[[], None] | None) -> None:
        self.device = device
        self.cookie = cookie
        self.callback = callback
        self.later = False

    def __call__(self, *, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not is_finalizing():  # modules may be gone, and the process' end says it all
            self.device.unmapped(self)


class SocketDevice(Device):
    """One open file of an embedded machine.

    Closing it drops the descriptor's own reference: the connection ends with the last mapping, as the kernel's file
    would. Threads: any call from any thread; requests wait for each other. A mapping's end may be told by a finalizer
    in any thread, even inside a request of its own, so it is queued: whoever holds the lock tells the machine.
    """

    def __init__(self, name: str, client: Client) -> None:
        super().__init__(name)
        self._client = client
        self._lock = threading.Lock()
        self._unmapped: deque[_Unmapped] = deque()
        self._cookies = itertools.count(1)
        self._live: dict[int, _Place | None] = {}  # mappings by cookie
        # Holds the client, so that garbage collection does not end the connection before the mappings on it.
        weakref.finalize(self, _drop, client, name).atexit = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {'closed' if self.closed else 'open'}>"

    def ioctl(self, request: int, arg: bytearray, pointers: Sequence[Pointer] = ()) -> int:
        self._check_open()
        return self._ioctl(request, arg, pointers)[0].result

    def mmap(
        self, length: int, offset: int, *, writable: bool, unmapped: Callable[[], None] | None = None
    ) -> Mapping:
        self._check_open()
        place = _Place(0, offset, -(-length // PAGE_SIZE) * PAGE_SIZE)
        notice = self._notice(unmapped)
        try:
            reply = self.request(Kind.MMAP, wire.pack_mmap(notice.cookie, place.length, offset, writable=writable))
            try:
                mapping = self._map(reply, place, writable, notice)
                self._live[notice.cookie] = place._replace(address=mapping.address)
            finally:
                reply.close_fds()
        except BaseException:
            # The machine may have mapped it and we have not; a cookie that it does not know it ignores.
            notice.callback, notice.later = None, True
            notice()
            raise
        return mapping

    def read(self, size: int) -> bytes:
        raise OSError(errno.EINVAL, f"{self.name} cannot be read")

    def write(self, data: bytes) -> int:
        raise OSError(errno.EINVAL, f"{self.name} cannot be written")

    def fileno(self) -> int:
        self._check_open()
        return self._client.sock.fileno()

    def close(self) -> None:
        if not self.closed:
            self.closed = self._client.device_closed = True
            self._closing()
            self._flush()

    def abandon(self) -> None:
        self.closed = True
        self._client.close()
        self._lock = threading.Lock()  # another thread of the parent may have held it
        self._unmapped = deque()

    def request(self, kind: Kind, body: bytes = b"") -> Reply:
        """Ask the machine, after it was told of all that was unmapped before."""
        told: list[_Unmapped] = []
        try:
            with self._lock:
                told = self._tell()
                if self._client.dead:
                    self._check_open()
                return self._client.request(kind, body)
        except InterfaceUnavailable:
            self._check_open()  # it was the fork of a signal handler's, in the child
            raise
        finally:
            self._call_back(told)
            self._flush()

    def unmapped(self, notice: _Unmapped) -> None:
        """A mapping is gone; its `_Unmapped` calls this."""
        self._unmapped.append(notice)
        if notice.later:
            return
        if not wire.is_serving():
            self._flush()
        else:  # a finalizer in the machine's own thread, which cannot wait for itself
            with contextlib.suppress(RuntimeError):
                threading.Thread(target=self._flush, name="xengrant-unmap", daemon=True).start()

    def _ioctl(self, request: int, arg: bytearray, pointers: Sequence[Pointer]) -> tuple[Reply, bytes]:
        """Do it at the machine: the reply, and what came behind the argument and the pointers' bytes."""
        cookies = {place.address: cookie for cookie, place in list(self._live.items()) if place} if pointers else {}
        reply = self.request(Kind.IOCTL, _gather(request, arg, pointers, cookies))
        return reply, _scatter(reply.body, arg, pointers)

    def _notice(self, callback: Callable[[], None] | None) -> _Unmapped:
        notice = _Unmapped(self, next(self._cookies), callback)
        self._live[notice.cookie] = None
        return notice

    def _map(self, reply: Reply, place: _Place, writable: bool, notice: _Unmapped) -> Mapping:
        return Mapping(wire.unpack_parts(reply.body, reply.fds), writable=writable, unmapped=notice)

    def _flush(self) -> None:
        """Tell the machine of what was unmapped, unless another thread (or a caller of ours) is at it and will.

        That one looks again after it let go of the lock, so nothing is left behind.
        """
        while self._unmapped or self._is_over():
            acquired: list[bool] = []
            told: list[_Unmapped] = []
            lock = self._lock  # in a child that a signal handler forks here it is another afterwards
            try:
                acquired.extend(map(lock.acquire, (False,)))  # one step, see client._Exchange
                if not acquired[0]:
                    return
                told = self._tell()
                if self._is_over():
                    self._release()
            finally:
                if acquired and acquired[0]:
                    lock.release()
                self._call_back(told)

    def _tell(self) -> list[_Unmapped]:
        """Send one MUNMAP for all that is queued; holding the lock."""
        # One by one: others append, which without a GIL ends an iteration.
        unmapped = self._unmapped  # in a child that a signal handler forks here it is another afterwards
        told = [unmapped[number] for number in range(len(unmapped))]
        if told:
            with contextlib.suppress(OSError):  # the machine is gone, and so is what it held of ours
                self._client.request(Kind.MUNMAP, wire.pack_munmap(notice.cookie for notice in told))
            for notice in told:
                self._live.pop(notice.cookie, None)
                unmapped.popleft()  # others only append
        return told

    def _call_back(self, told: list[_Unmapped]) -> None:
        for notice in told:
            callback, notice.callback = notice.callback, None
            if callback is not None and not self._client.dead:
                with contextlib.suppress(InterfaceUnavailable):
                    callback()

    def _is_over(self) -> bool:
        """Whether the last reference is gone."""
        return self.closed and not self._client.closed and (not self._live or self._client.dead)

    def _release(self) -> None:
        """When this returns the machine has released the file."""
        if not self._client.dead:
            with contextlib.suppress(OSError):
                self._client.request(Kind.RELEASE)
        self._client.close()

    def _closing(self) -> None:
        """Give up what the descriptor itself holds in this process."""


def _drop(client: Client, name: str) -> None:
    """A device is gone that was not closed, or some mapping of which was not."""
    if client.closed:
        return
    client.close()
    if not client.device_closed:
        warnings.warn(f"unclosed {name} of an embedded machine", ResourceWarning, stacklevel=2)


class GntallocDevice(SocketDevice):
    """gntalloc. The memory of a read-only ALLOC is mapped here before the machine seals it against writing."""

    def __init__(self, name: str, client: Client) -> None:
        super().__init__(name, client)
        self._mapped: dict[int, tuple[Mapping, _Unmapped]] = {}  # by index, until mmap asks for it

    def ioctl(self, request: int, arg: bytearray, pointers: Sequence[Pointer] = ()) -> int:
        self._check_open()
        if request == gntalloc.ALLOC_GREF and len(arg) >= len(gntalloc.pack_alloc(0, 0, 0)):
            _domid, flags, count = gntalloc.unpack_alloc(arg)
            if count and not flags & gntalloc.FLAG_WRITABLE:
                return self._alloc_readonly(arg, count)
        result = super().ioctl(request, arg, pointers)
        if request == gntalloc.DEALLOC_GREF:
            self._forget(gntalloc.unpack_dealloc(arg)[0])
        return result

    def _alloc_readonly(self, arg: bytearray, count: int) -> int:
        mapping, notice = None, self._notice(None)
        try:
            try:
                mapping = self._prepare(count, notice)
            except OSError as error:
                if error.errno == errno.ENOMEM:  # for a moment, and without it the share could not be written
                    raise
                # else ALLOC itself will say what is wrong
            result = self._alloc(arg, notice.cookie)
        except BaseException:
            notice.later = True
            (notice if mapping is None else mapping.close)()
            raise
        if mapping is None:
            notice()
        else:
            self._mapped[gntalloc.alloc_result(arg, 1)[0]] = mapping, notice
        return result

    def _alloc(self, arg: bytearray, cookie: int) -> int:
        """ALLOC of the memory that was prepared under `cookie`."""
        named = (0, gntalloc.INDEX_AT, Direction.MAP, 8, wire.pack_cookie(cookie))
        reply = self.request(Kind.IOCTL, wire.pack_ioctl(gntalloc.ALLOC_GREF, arg, [named]))
        _scatter(reply.body, arg, ())
        return reply.result

    def _prepare(self, count: int, notice: _Unmapped) -> Mapping:
        reply = self.request(Kind.PREPARE, wire.pack_prepare(notice.cookie, count))
        try:
            return Mapping(wire.unpack_parts(reply.body, reply.fds), writable=True, unmapped=notice)
        finally:
            reply.close_fds()

    def mmap(
        self, length: int, offset: int, *, writable: bool, unmapped: Callable[[], None] | None = None
    ) -> Mapping:
        self._check_open()
        mapping, notice = self._mapped.get(offset, (None, None))
        if mapping is None or notice is None or not writable or len(mapping) != length:
            return super().mmap(length, offset, writable=writable, unmapped=unmapped)
        self.request(Kind.MMAP, wire.pack_mmap(notice.cookie, length, offset, writable=True)).close_fds()
        notice.callback = unmapped
        del self._mapped[offset]
        return mapping

    def _forget(self, index: int) -> None:
        mapping, _ = self._mapped.pop(index, (None, None))
        if mapping is not None:
            mapping.close()

    def _closing(self) -> None:
        for index in list(self._mapped):
            self._forget(index)


class GntdevDevice(SocketDevice):
    """gntdev. Which map lies at an address is known here, and which memory is another domain's."""

    def mmap(
        self, length: int, offset: int, *, writable: bool, unmapped: Callable[[], None] | None = None
    ) -> Mapping:
        mapping = super().mmap(length, offset, writable=writable, unmapped=unmapped)
        _others_memory.add(mapping)
        return mapping

    def ioctl(self, request: int, arg: bytearray, pointers: Sequence[Pointer] = ()) -> int:
        self._check_open()
        if request == gntdev.GET_OFFSET_FOR_VADDR:
            return self._offset_for_vaddr(arg)
        if request == gntdev.GRANT_COPY and len(arg) >= len(gntdev.pack_copy(0)):
            return self._grant_copy(arg, pointers)
        return super().ioctl(request, arg, pointers)

    def _grant_copy(self, arg: bytearray, pointers: Sequence[Pointer]) -> int:
        """In as many requests as it takes: Linux, too, goes through the segments one by one until one is wrong."""
        count, size = gntdev.copy_count(arg), gntdev.SEGMENT_SIZE
        table = next((p.target for p in pointers if p.holder is arg and p.at == gntdev.COPY_SEGMENTS_POINTER), None)
        if not isinstance(table, bytearray):
            return super().ioctl(gntdev.GRANT_COPY, arg, pointers)
        local: defaultdict[int, list[Pointer]] = defaultdict(list)
        for pointer in pointers:
            if pointer.holder is table:
                local[pointer.at // (wire.MAX_SEGMENTS * size)].append(pointer)
        for number, first in enumerate(range(0, max(count, 1), wire.MAX_SEGMENTS)):
            start, end = first * size, min(first + wire.MAX_SEGMENTS, count) * size
            part, part_arg = table[start:end], gntdev.pack_copy((end - start) // size)
            moved = [Pointer(part, p.at - start, p.target, p.direction) for p in local[number]]
            self._copy_segments(part_arg, part, moved)
            table[start : start + len(part)] = part
        return 0

    def _copy_segments(self, arg: bytearray, table: bytearray, local: Sequence[Pointer]) -> None:
        """One request. Xen leaves memory alone whose segment it refuses, so what comes is looked at first.

        It refuses to store into memory that is another domain's (grant_table.c, gnttab_copy_claim_buf).
        """
        dests = {p.at: memoryview(p.target).cast("B") for p in local if p.direction == "out"}
        came = [replace(p, target=bytearray(dests[p.at].nbytes)) if p.at in dests else p for p in local]
        segments = Pointer(arg, gntdev.COPY_SEGMENTS_POINTER, table, "inout")
        super().ioctl(gntdev.GRANT_COPY, arg, [segments, *came])
        for pointer in came:
            number = pointer.at // gntdev.SEGMENT_SIZE
            if pointer.at not in dests or gntdev.segment_status(table, number) != GNTST_OKAY:
                continue
            dest = dests[pointer.at]
            if dest.nbytes and isinstance(dest.obj, Mapping) and dest.obj in _others_memory:
                gntdev.fill_segment(table, number, GNTST_BAD_PAGE)
            else:
                dest[:] = pointer.target

    def _offset_for_vaddr(self, arg: bytearray) -> int:
        vaddr = gntdev.unpack_offset(arg)
        for place in list(self._live.values()):
            if place is not None and place.address <= vaddr < place.address + place.length:
                gntdev.fill_offset(arg, place.offset, place.length // PAGE_SIZE)
                return 0
        raise OSError(errno.EINVAL, f"no map of this file at address {vaddr:#x}")


class PrivcmdDevice(SocketDevice):
    """privcmd. A mapping is memory of this process until MMAP_RESOURCE puts a resource in its place."""

    def ioctl(self, request: int, arg: bytearray, pointers: Sequence[Pointer] = ()) -> int:
        self._check_open()
        targets = [pointer.target for pointer in pointers if pointer.direction == "map"]
        reply, rest = self._ioctl(request, arg, pointers)
        try:
            if targets and isinstance(targets[0], Mapping):
                replace_pages(targets[0], wire.unpack_parts(rest, reply.fds))
        finally:
            reply.close_fds()
        return reply.result

    def _map(self, reply: Reply, place: _Place, writable: bool, notice: _Unmapped) -> Mapping:
        fd = os.memfd_create("xengrant-privcmd", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, place.length)
            return Mapping(((fd, 0, place.length),), writable=writable, unmapped=notice)
        finally:
            os.close(fd)


# What this process has mapped of other domains.
_others_memory: weakref.WeakSet[Mapping] = weakref.WeakSet()


def _gather(request: int, arg: bytearray, pointers: Sequence[Pointer], cookies: dict[int, int]) -> bytes:
    """The ioctl with the bytes that go in. `cookies`: of this device's mappings, by address."""
    wire.check_pointers(len(pointers))
    holders = {id(arg): 0}
    packed = []
    for number, pointer in enumerate(pointers, 1):
        target = pointer.target
        if isinstance(target, Mapping):
            if pointer.direction != "map" or target.address not in cookies:
                raise OSError(errno.EINVAL, "the address is no mapping of this file")
            data = wire.pack_cookie(cookies[target.address])
            length = len(data)
        else:
            length = memoryview(target).nbytes
            data = b"" if pointer.direction == "out" else bytes(target)
        holders[id(target)] = number
        packed.append((holders[id(pointer.holder)], pointer.at, _DIRECTIONS[pointer.direction], length, data))
    body = wire.pack_ioctl(request, arg, packed)
    if len(body) > wire.MAX_BODY:
        raise OSError(errno.ENOMEM, f"an ioctl of {len(body)} bytes, where an embedded machine takes {wire.MAX_BODY}")
    return body


def _scatter(body: bytes, arg: bytearray, pointers: Sequence[Pointer]) -> bytes:
    """Put what came back where it belongs; the rest is returned."""
    arg[:] = body[: len(arg)]
    at = len(arg)
    for pointer in pointers:
        if pointer.direction in ("out", "inout") and not isinstance(pointer.target, Mapping):
            view = memoryview(pointer.target).cast("B")
            view[:] = body[at : at + len(view)]
            at += len(view)
    return body[at:]
