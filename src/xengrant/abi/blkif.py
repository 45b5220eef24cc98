"""xen/include/public/io/blkif.h: the requests and responses of a block device, as 64-bit processors and 32-bit x86 lay
them out.

Sector numbers, `first_sect` and `last_sect` count 512 bytes whatever the disk's sector size is: so do Linux's drivers,
front and back (drivers/block/xen-blkfront.c, xen-blkback/).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from struct import Struct
from typing import NamedTuple

from xengrant.abi.xen import PAGE_SIZE

READ = 0
WRITE = 1
WRITE_BARRIER = 2
FLUSH_DISKCACHE = 3
DISCARD = 5
INDIRECT = 6

RSP_OKAY = 0
RSP_ERROR = -1
RSP_EOPNOTSUPP = -2

DISCARD_SECURE = 1

MAX_SEGMENTS_PER_REQUEST = 11
MAX_INDIRECT_PAGES_PER_REQUEST = 8

VDISK_CDROM = 1
VDISK_REMOVABLE = 2
VDISK_READONLY = 4

SECTOR_SIZE = 512
SECTORS_PER_PAGE = PAGE_SIZE // SECTOR_SIZE

SEGMENT_SIZE = 8
SEGMENTS_PER_INDIRECT_PAGE = PAGE_SIZE // SEGMENT_SIZE
MAX_INDIRECT_SEGMENTS = MAX_INDIRECT_PAGES_PER_REQUEST * SEGMENTS_PER_INDIRECT_PAGE

WHOLE_PAGE = (SECTORS_PER_PAGE - 1) << 8
"""A segment's span, `first_sect | last_sect << 8`, that is the whole page."""

_INDIRECT_TAIL = Struct("<H2x8I")  # handle, grefs
_DISCARD_TAIL = Struct("<Q")  # nr_sectors


class Head(NamedTuple):
    """What every request begins with.

    `small` and `word` are the bytes 1 and 2 to 3: nr_segments and handle of a read, write or flush; flag and handle of
    a discard; the inner operation and nr_segments of an indirect one.
    """

    operation: int
    small: int
    word: int
    id: int
    sector: int


class Layout:
    """Where a protocol has its fields: `X86_64`, `ARM` or `X86_32`, by the name that a front end writes as `protocol`.

    `entry_size` is that of a slot of the ring, `tail` where in a request the segments, an indirect request's handle and
    refs, or a discard's count begin; `unpack_head` gives a `Head`'s fields of a request.
    """

    __slots__ = ("_head", "_response", "entry_size", "pack_response", "protocol", "tail", "unpack_head")

    def __init__(self, protocol: str, head: str, response: str, entry_size: int) -> None:
        self.protocol = protocol
        self.entry_size = entry_size
        self._head = Struct(head)
        self._response = Struct(response)
        self.tail = self._head.size
        self.unpack_head = self._head.unpack_from
        self.pack_response = self._response.pack  # (id, operation, status)

    def unpack_response(self, entry: bytes) -> tuple[int, int, int]:
        """(id, operation, status)."""
        number, operation, status = self._response.unpack_from(entry)
        return number, operation, status

    def indirect_refs(self, request: bytes) -> tuple[int, ...]:
        """The refs of the pages that have the segments; those beyond what they take mean nothing."""
        _handle, *refs = _INDIRECT_TAIL.unpack_from(request, self.tail)
        return tuple(refs)

    def discard_sectors(self, request: bytes) -> int:
        count: int = _DISCARD_TAIL.unpack_from(request, self.tail)[0]
        return count

    def pack_rw(self, head: Head, segments: bytes) -> bytes:
        """A read, write or flush with its segments, `pack_segments` of at most 11."""
        return self._head.pack(*head) + segments

    def pack_discard(self, head: Head, nr_sectors: int) -> bytes:
        return self._head.pack(*head) + _DISCARD_TAIL.pack(nr_sectors)

    def pack_indirect(self, head: Head, handle: int, refs: Sequence[int]) -> bytes:
        room = [*refs, *[0] * (MAX_INDIRECT_PAGES_PER_REQUEST - len(refs))]
        return self._head.pack(*head) + _INDIRECT_TAIL.pack(handle, *room)

    def __repr__(self) -> str:
        return f"<Layout {self.protocol}>"


X86_64 = Layout("x86_64-abi", "<BBH4xQQ", "<QBxh4x", 112)
ARM = Layout("arm-abi", "<BBH4xQQ", "<QBxh4x", 112)
X86_32 = Layout("x86_32-abi", "<BBHQQ", "<QBxh", 108)
LAYOUTS = {layout.protocol: layout for layout in (X86_64, ARM, X86_32)}

NATIVE = ARM if os.uname().machine == "aarch64" else X86_64
"""This processor's, which Linux's front end writes (xen/include/public/io/protocols.h)."""


@cache
def _segments(count: int) -> Struct:
    return Struct("<" + count * "IHxx")


@cache
def segments_reader(count: int) -> Callable[[bytes, int], tuple[int, ...]]:
    """`read(data, at)` for `count` segments: of one after the other its gref and its span."""
    return _segments(count).unpack_from


def span(first_sect: int, last_sect: int) -> int:
    """The sectors of a page that a segment is, both inclusive."""
    return first_sect | last_sect << 8


def pack_segments(refs: Sequence[int], spans: Sequence[int]) -> bytes:
    flat = [word for pair in zip(refs, spans, strict=True) for word in pair]
    return _segments(len(refs)).pack(*flat)


def indirect_pages(count: int) -> int:
    """How many pages `count` segments take."""
    return -(-count // SEGMENTS_PER_INDIRECT_PAGE)
