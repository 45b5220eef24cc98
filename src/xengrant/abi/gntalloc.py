"""include/uapi/xen/gntalloc.h: /dev/xen/gntalloc, pages of one's own offered to another domain."""

from __future__ import annotations

from struct import Struct

ALLOC_GREF = 0x00184705
DEALLOC_GREF = 0x00104706
SET_UNMAP_NOTIFY = 0x00104707

FLAG_WRITABLE = 1

_ALLOC = Struct("<HHIQ")  # domid, flags, count, index (out); then the refs (out), u32 each
_DEALLOC = Struct("<QI4x")  # index, count

INDEX_AT = 8  # of the index in ALLOC's argument

# The kernel copies sizeof(struct) back even for one ref.
_ALLOC_SIZEOF = 24


def pack_alloc(domid: int, flags: int, count: int) -> bytearray:
    """ALLOC_GREF's argument, with room for `count` refs."""
    return bytearray(_ALLOC.pack(domid, flags, count, 0)).ljust(max(_ALLOC_SIZEOF, 16 + 4 * count), b"\0")


def unpack_alloc(arg: bytearray) -> tuple[int, int, int]:
    """(domid, flags, count)."""
    domid, flags, count, _index = _ALLOC.unpack_from(arg)
    return domid, flags, count


def fill_alloc(arg: bytearray, index: int, refs: list[int]) -> None:
    arg[8:16] = index.to_bytes(8, "little")
    arg[16 : 16 + 4 * len(refs)] = Struct(f"<{len(refs)}I").pack(*refs)


def alloc_result(arg: bytearray, count: int) -> tuple[int, tuple[int, ...]]:
    """(index: the mmap offset in bytes, refs in page order)."""
    index, *refs = _result(count).unpack_from(arg, 8)
    return index, tuple(refs)


def _result(count: int) -> Struct:
    return Struct(f"<Q{count}I")


def pack_dealloc(index: int, count: int) -> bytearray:
    return bytearray(_DEALLOC.pack(index, count))


def unpack_dealloc(arg: bytearray) -> tuple[int, int]:
    """(index, count)."""
    index, count = _DEALLOC.unpack(arg)
    return index, count
