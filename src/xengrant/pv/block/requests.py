"""A front end's requests, copied and checked: `Reader` makes a `Request` of each entry, and refuses what cannot be.

Called by the back end's queues. An entry is a private copy; the segments of an indirect request are copied out of the
page that holds them before anybody looks. What is wrong gets the status that answers it and a `fault` for the log; only
what is right has anything to be done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from xengrant.abi import blkif
from xengrant.abi.blkif import Layout
from xengrant.abi.xen import PAGE_SIZE

__all__ = ["Limits", "Reader", "Request"]

_NAMES = {blkif.READ: "read", blkif.WRITE: "write", blkif.FLUSH_DISKCACHE: "flush", blkif.DISCARD: "discard"}


@dataclass(slots=True)
class Limits:
    """What requests may ask of a disk; `sectors`, of 512 bytes, may change at any time.

    `max_segments` is that of an indirect request, 0 where there are none. `sector_size` in bytes.
    """

    sectors: int
    sector_size: int = blkif.SECTOR_SIZE
    writable: bool = True
    max_segments: int = 0
    can_discard: bool = False
    can_flush: bool = True


class Request:
    """One request. `action` is what is to be done, an operation of blkif.h; `operation` what the response names.

    `offset` and `length` are bytes of the disk; `refs` the pages of its data, each with its `spans` of sectors, in
    order; `whole` whether all of them are whole pages. `tables` are the refs of pages whose segments are to be read
    first. `status` is the response's, None until it is known. `buffers` are the guest's pages, or copies of them, as
    whoever moves data has it.
    """

    __slots__ = (
        "action",
        "buffers",
        "count",
        "fault",
        "id",
        "length",
        "offset",
        "operation",
        "refs",
        "spans",
        "status",
        "tables",
        "whole",
    )

    def __init__(self, number: int, operation: int, action: int, offset: int) -> None:
        self.id = number
        self.operation = operation
        self.action = action
        self.offset = offset
        self.length = 0
        self.count = 0
        self.refs: tuple[int, ...] = ()
        self.spans: tuple[int, ...] = ()
        self.whole = True
        self.tables: tuple[int, ...] = ()
        self.status: int | None = None
        self.fault = ""
        self.buffers: list[memoryview] = []

    def refuse(self, fault: str, status: int = blkif.RSP_ERROR) -> None:
        """Answer it so, and do nothing of it."""
        self.status = status
        self.fault = fault
        self.refs = self.tables = ()

    def __repr__(self) -> str:
        name = _NAMES.get(self.action, f"operation {self.action}")
        return f"<Request {self.id}: {name} of {self.length} bytes at {self.offset}, status {self.status}>"


class Reader:
    """Makes requests of entries of a `Layout`. Threads: any."""

    def __init__(self, layout: Layout, limits: Limits) -> None:
        self.layout = layout
        self.limits = limits

    def read(self, entry: bytes) -> Request:
        """The request of a private copy of a slot; with `tables`, it is finished by `read_segments`."""
        layout = self.layout
        operation, small, word, number, sector = layout.unpack_head(entry)
        if operation <= blkif.WRITE:
            request = Request(number, operation, operation, sector * blkif.SECTOR_SIZE)
            if not 0 < small <= blkif.MAX_SEGMENTS_PER_REQUEST:
                request.refuse(f"{small} segments")
            else:
                self._set_segments(request, blkif.segments_reader(small)(entry, layout.tail))
            return request
        if operation == blkif.INDIRECT:
            return self._read_indirect(entry, Request(number, small, small, sector * blkif.SECTOR_SIZE), word)
        request = Request(number, operation, operation, sector * blkif.SECTOR_SIZE)
        if operation == blkif.FLUSH_DISKCACHE and self.limits.can_flush:
            # Linux's back end takes one with data, too: it flushes, then writes (xen-blkback/blkback.c).
            if small > blkif.MAX_SEGMENTS_PER_REQUEST:
                request.refuse(f"a flush of {small} segments")
            elif small:
                self._set_segments(request, blkif.segments_reader(small)(entry, layout.tail))
        elif operation == blkif.DISCARD and self.limits.can_discard:
            self._read_discard(entry, request, small)
        else:
            request.refuse(f"operation {operation} is not offered", blkif.RSP_EOPNOTSUPP)
        return request

    def read_segments(self, request: Request, pages: Sequence[memoryview]) -> None:
        """Copy the segments of an indirect request out of its pages, and check them."""
        size = request.count * blkif.SEGMENT_SIZE
        table = bytes(pages[0][:size]) if len(pages) == 1 else b"".join(pages)[:size]
        request.tables = ()
        self._set_segments(request, blkif.segments_reader(request.count)(table, 0))

    def _read_indirect(self, entry: bytes, request: Request, count: int) -> Request:
        if request.action > blkif.WRITE or not self.limits.max_segments:
            request.refuse(f"operation {request.action}, indirect, is not offered", blkif.RSP_EOPNOTSUPP)
        elif not 0 < count <= self.limits.max_segments:
            request.refuse(f"{count} segments, where {self.limits.max_segments} were offered")
        else:
            request.count = count
            request.tables = self.layout.indirect_refs(entry)[: blkif.indirect_pages(count)]
        return request

    def _read_discard(self, entry: bytes, request: Request, flags: int) -> None:
        request.length = self.layout.discard_sectors(entry) * blkif.SECTOR_SIZE
        if flags & blkif.DISCARD_SECURE:
            request.refuse("a secure discard is not offered", blkif.RSP_EOPNOTSUPP)
        elif not self.limits.writable:
            request.refuse("a discard of a read-only disk")
        elif not request.length:
            request.refuse("a discard of nothing")
        else:
            self._check_range(request)

    def _set_segments(self, request: Request, flat: tuple[int, ...]) -> None:
        """`flat` is ref, span, ref, span..."""
        request.spans = spans = flat[1::2]
        request.count = count = len(spans)
        if spans == _whole_pages(count):
            request.length = count * PAGE_SIZE
        elif not self._sum_spans(request, spans):
            return
        if request.action != blkif.READ and not self.limits.writable:
            request.refuse("a write to a read-only disk")
        elif self._check_range(request):
            request.refs = flat[::2]

    def _sum_spans(self, request: Request, spans: tuple[int, ...]) -> bool:
        unit = self.limits.sector_size // blkif.SECTOR_SIZE
        sectors = 0
        for span in spans:
            first, last = span & 0xFF, span >> 8
            if not first <= last < blkif.SECTORS_PER_PAGE or first % unit or (last + 1) % unit:
                request.refuse(f"a segment of the sectors {first} to {last}")
                return False
            sectors += last + 1 - first
        request.length = sectors * blkif.SECTOR_SIZE
        request.whole = sectors == len(spans) * blkif.SECTORS_PER_PAGE
        return True

    def _check_range(self, request: Request) -> bool:
        limits = self.limits
        end = request.offset + request.length
        if end > limits.sectors * blkif.SECTOR_SIZE:
            request.refuse(f"{request.length} bytes at {request.offset} of a disk of {limits.sectors} sectors")
        elif (request.offset | request.length) % limits.sector_size:
            request.refuse(f"{request.length} bytes at {request.offset}, where sectors have {limits.sector_size}")
        else:
            return True
        return False


@cache
def _whole_pages(count: int) -> tuple[int, ...]:
    """The spans of so many whole pages, as nearly every request has them."""
    return (blkif.WHOLE_PAGE,) * count
