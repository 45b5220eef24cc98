"""An embedded machine's devices whose files are pages: gntalloc, gntdev and privcmd, as `SocketSystem` opens them.

What only concerns this process is answered here: which map lies at an address, and which memory is another domain's.
"""

from __future__ import annotations

import errno
import os
import weakref
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

from xengrant.abi import gntalloc, gntdev
from xengrant.abi.grant_table import GNTST_BAD_PAGE, GNTST_OKAY
from xengrant.abi.xen import PAGE_SIZE
from xengrant.devices import Pointer, wire
from xengrant.devices.client import Client, Reply
from xengrant.devices.pages import replace_pages
from xengrant.devices.socket import Place, SocketDevice, Unmapped, scatter
from xengrant.devices.wire import Direction, Kind
from xengrant.memory import Mapping

__all__ = ["GntallocDevice", "GntdevDevice", "PrivcmdDevice"]

# What this process has mapped of other domains.
_others_memory: weakref.WeakSet[Mapping] = weakref.WeakSet()


class GntallocDevice(SocketDevice):
    """gntalloc. The memory of a read-only ALLOC is mapped here before the machine seals it against writing."""

    def __init__(self, name: str, client: Client) -> None:
        super().__init__(name, client)
        self._mapped: dict[int, tuple[Mapping, Unmapped]] = {}  # by index, until mmap asks for it

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
        scatter(reply.body, arg, ())
        return reply.result

    def _prepare(self, count: int, notice: Unmapped) -> Mapping:
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

    def _map(self, reply: Reply, place: Place, writable: bool, notice: Unmapped) -> Mapping:
        fd = os.memfd_create("xengrant-privcmd", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, place.length)
            return Mapping(((fd, 0, place.length),), writable=writable, unmapped=notice)
        finally:
            os.close(fd)
