"""Where a block back end notes the response that it is about to write: in the padding of the ring's header.

No header of Xen has this: io/ring.h leaves the bytes 16 to 63 of a ring's first page to whoever wants them (`pvt`,
`__pad`), a front end zeroes them with the ring, and block devices use none. The response is written before the index.
"""

from __future__ import annotations

MAGIC_AT = 44
MAGIC = b"xgbk"
INDEX_AT = 48  # u32: of the request that the response answers
RESPONSE_AT = 52  # id u64, operation u8, status s16 at 10, as both layouts have them
RESPONSE_SIZE = 12


def unpack_note(header: bytes) -> tuple[int, bytes] | None:
    """The index and the response of the note in a ring's header; None where there is none."""
    if header[MAGIC_AT:INDEX_AT] != MAGIC:
        return None
    return int.from_bytes(header[INDEX_AT:RESPONSE_AT], "little"), header[RESPONSE_AT : RESPONSE_AT + RESPONSE_SIZE]
