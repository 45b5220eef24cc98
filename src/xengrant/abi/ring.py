"""xen/include/public/io/ring.h: a ring of requests and responses, a header and then entries, in pages that two share.

`struct NAME_sring` of DEFINE_RING_TYPES; the type of an entry, the larger of request and response, is each protocol's.
"""

from __future__ import annotations

# Where the indices are, u32: what the front end has produced and the back end, and beside each from which index on its
# consumer wants to be notified.
REQ_PROD = 0
REQ_EVENT = 4
RSP_PROD = 8
RSP_EVENT = 12

PRIVATE = 16  # `pvt` and `__pad`, zeroed with the header; some protocols use the first bytes
HEADER_SIZE = 64  # here the entries begin

FIRST_INDEX = 0
FIRST_EVENT = 1


def ring_entries(length: int, entry_size: int) -> int:
    """__RING_SIZE: how many entries a ring of `length` bytes has, the largest power of two that fits; 0 for none."""
    room = (length - HEADER_SIZE) // entry_size
    return 1 << room.bit_length() - 1 if room > 0 else 0
