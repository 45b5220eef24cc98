"""include/uapi/xen/gntdev.h: /dev/xen/gntdev, pages that another domain offered."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from struct import Struct

MAP_GRANT_REF = 0x00184700
UNMAP_GRANT_REF = 0x00104701
GET_OFFSET_FOR_VADDR = 0x00184702
SET_UNMAP_NOTIFY = 0x00104707
GRANT_COPY = 0x00104708

COPY_SOURCE_GREF = 1
COPY_DEST_GREF = 2

_MAP = Struct("<IIQ")  # count, pad, index (out); then {domid u32, ref u32} each
_MAP_SIZEOF = 24
_INDEX = Struct("<Q")
_UNMAP = Struct("<QI4x")  # index, count
_OFFSET = Struct("<QQI4x")  # vaddr, offset (out), count (out)
_COPY = Struct("<I4xQ")  # count, pointer to segments
_SEGMENT_GREF = Struct("<IHH")  # ref, offset, domid
_SEGMENT_TAIL = Struct("<HHh2x")  # len, flags, status (out)

_STATUS = Struct("<20xh2x")

COPY_SEGMENTS_POINTER = 8
SEGMENT_SIZE = 24
SEGMENT_SOURCE = 0
SEGMENT_DEST = 8


def pack_map(grants: Sequence[tuple[int, int]]) -> bytearray:
    """MAP_GRANT_REF's argument for (domid, ref) each."""
    arg = bytearray(_MAP.pack(len(grants), 0, 0))
    arg += Struct(f"<{2 * len(grants)}I").pack(*[word for grant in grants for word in grant])
    return arg.ljust(_MAP_SIZEOF, b"\0")


def unpack_map(arg: bytes | bytearray) -> list[tuple[int, int]]:
    """[(domid, ref)]; ValueError where the argument is shorter than its count says."""
    count, _pad, _index = _MAP.unpack_from(arg)
    if len(arg) < 16 + 8 * count:
        raise ValueError(f"MAP_GRANT_REF of {count} grants in {len(arg)} bytes")
    words = Struct(f"<{2 * count}I").unpack_from(arg, 16)
    return list(zip(words[::2], words[1::2], strict=True))


def map_count(arg: bytearray) -> int:
    return int.from_bytes(arg[:4], "little")


def fill_map(arg: bytearray, index: int) -> None:
    arg[8:16] = _INDEX.pack(index)


def map_result(arg: bytearray) -> int:
    """index: the mmap offset in bytes."""
    index: int = _INDEX.unpack_from(arg, 8)[0]
    return index


def pack_unmap(index: int, count: int) -> bytearray:
    return bytearray(_UNMAP.pack(index, count))


def unpack_unmap(arg: bytearray) -> tuple[int, int]:
    """(index, count)."""
    index, count = _UNMAP.unpack(arg)
    return index, count


def pack_offset(vaddr: int) -> bytearray:
    return bytearray(_OFFSET.pack(vaddr, 0, 0))


def unpack_offset(arg: bytearray) -> int:
    vaddr, _offset, _count = _OFFSET.unpack(arg)
    return int(vaddr)


def fill_offset(arg: bytearray, offset: int, count: int) -> None:
    arg[8:20] = _OFFSET.pack(0, offset, count)[8:20]


def offset_result(arg: bytearray) -> tuple[int, int]:
    """(index in bytes, count of pages)."""
    _vaddr, offset, count = _OFFSET.unpack(arg)
    return offset, count


def pack_copy(count: int) -> bytearray:
    """GRANT_COPY's argument; the pointer at COPY_SEGMENTS_POINTER is the device's to fill."""
    return bytearray(_COPY.pack(count, 0))


def copy_count(arg: bytearray) -> int:
    return int.from_bytes(arg[:4], "little")


def pack_segment(source: tuple[int, int, int] | None, dest: tuple[int, int, int] | None, length: int) -> bytes:
    """One copy of `length` bytes; each side is (ref, offset, domid), or None for local memory (a pointer to fill)."""
    flags = (COPY_SOURCE_GREF if source else 0) | (COPY_DEST_GREF if dest else 0)
    sides = b"".join(_SEGMENT_GREF.pack(*side) if side else bytes(8) for side in (source, dest))
    return sides + _SEGMENT_TAIL.pack(length, flags, 0)


def pack_run(
    domid: int, refs: Sequence[int], offsets: Sequence[int], lengths: Sequence[int], address: int, *, to_grants: bool
) -> bytes:
    """Segments between pages of `domid` and local memory from `address` on, where they lie one behind the other."""
    words: list[int] = []
    for ref, offset, length in zip(refs, offsets, lengths, strict=True):
        if to_grants:
            words += (address, ref, offset, domid, length, COPY_DEST_GREF, 0)
        else:
            words += (ref, offset, domid, address, length, COPY_SOURCE_GREF, 0)
        address += length
    return _run(len(refs), to_grants).pack(*words)


@cache
def _run(count: int, to_grants: bool) -> Struct:
    return Struct("<" + count * ("QIHHHHh2x" if to_grants else "IHHQHHh2x"))


def segment_statuses(segments: bytearray) -> list[int]:
    """GNTST statuses of all segments."""
    return [status for (status,) in _STATUS.iter_unpack(segments)]


def unpack_segment(segments: bytes | bytearray, i: int) -> tuple[tuple[int, int, int], tuple[int, int, int], int, int]:
    """(source, dest, length, flags), a side being (ref, offset, domid) where its flag is set."""
    at = i * SEGMENT_SIZE
    length, flags, _status = _SEGMENT_TAIL.unpack_from(segments, at + 16)
    source = _SEGMENT_GREF.unpack_from(segments, at + SEGMENT_SOURCE)
    dest = _SEGMENT_GREF.unpack_from(segments, at + SEGMENT_DEST)
    return source, dest, length, flags


def fill_segment(segments: bytearray, i: int, status: int) -> None:
    at = i * SEGMENT_SIZE + 20
    segments[at : at + 2] = status.to_bytes(2, "little", signed=True)


def segment_status(segments: bytearray, i: int) -> int:
    """GNTST status of segment i."""
    at = i * SEGMENT_SIZE + 20
    return int.from_bytes(segments[at : at + 2], "little", signed=True)
