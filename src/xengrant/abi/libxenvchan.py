"""xen/include/public/io/libxenvchan.h: the page that the two ends of a vchan share."""

from __future__ import annotations

from struct import Struct

from xengrant.abi.xen import PAGE_SIZE

NOTIFY_WRITE = 1  # tell me when you have written
NOTIFY_READ = 2  # tell me when you have read

# Left: the client writes, the server reads. Right: the other way.
LEFT_CONS = 0
LEFT_PROD = 4
RIGHT_CONS = 8
RIGHT_PROD = 12
LEFT_ORDER = 16  # u16: log2 of the ring's bytes, which says where it lies
RIGHT_ORDER = 18
CLI_LIVE = 20
SRV_LIVE = 21
CLI_NOTIFY = 22  # what the server asks the client to tell it
SRV_NOTIFY = 23  # what the client asks the server to tell it
GRANTS = 24  # u32 refs of the pages of rings of order 12 and more: left's, then right's

LIVE_GONE = 0
LIVE_CONNECTED = 1
LIVE_AWAITED = 2  # the client has not come yet

SMALL_ORDER = 10  # 1024 bytes at offset 1024 of the page
LARGE_ORDER = 11  # 2048 bytes at offset 2048
PAGE_ORDER = 12  # pages of its own from here on
MAX_ORDER = 20  # 1 MiB (tools/libs/vchan/init.c, MAX_RING_SHIFT)

_REF = Struct("<I")


def ring_pages(order: int) -> int:
    """The pages of its own that a ring has; 0 for a ring inside the shared page."""
    return 1 << (order - PAGE_ORDER) if order >= PAGE_ORDER else 0


def pack_refs(refs: list[int]) -> bytes:
    return b"".join(map(_REF.pack, refs))


def unpack_refs(data: bytes) -> list[int]:
    return [ref for (ref,) in _REF.iter_unpack(data)]


def fits(left_order: int, right_order: int) -> bool:
    """Whether these orders can be: each in range, not both in the same place, and no ring over the list of refs."""
    orders = (left_order, right_order)
    if not all(SMALL_ORDER <= order <= MAX_ORDER for order in orders):
        return False
    if left_order == right_order < PAGE_ORDER:
        return False
    refs_end = GRANTS + _REF.size * sum(map(ring_pages, orders))
    return refs_end <= min(1 << order if order < PAGE_ORDER else PAGE_SIZE for order in orders)
