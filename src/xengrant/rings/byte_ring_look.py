"""A ring of bytes as somebody sees it who takes no part in it: `look` copies it and changes nothing.

Called by `xengrant peek`; calls `_native`. Both ends go on meanwhile, and either may be hostile: what is made of a look
is for people to read, and decides nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from xengrant import _native
from xengrant.arguments import MAX_U32

if TYPE_CHECKING:
    from xengrant.memory import Mapping
    from xengrant.rings.byte_ring import RingLayout

__all__ = ["RingLook", "look"]

# Tries to catch a moment in which no index moves; each takes some 10 us.
_TRIES = 50


class RingLook(NamedTuple):
    """One ring at one moment.

    `consumed` and `produced` are its indices, which count bytes modulo 2^32. `tail` is what lies in it, at most `size`
    bytes, the last ones that were produced, the oldest first: the last `held` of them are not yet consumed, and the
    others were, and nobody has written over them. A producer writes before it says so, which nobody sees from
    outside: the oldest bytes may be newer than they seem.
    """

    size: int
    consumed: int
    produced: int
    tail: bytes

    @property
    def held(self) -> int:
        """Bytes that were produced and not consumed, as the indices say; more than `size` is a lie."""
        return (self.produced - self.consumed) & MAX_U32

    @property
    def possible(self) -> bool:
        """Whether the indices can be: an honest ring holds no more than its size."""
        return self.held <= self.size

    @property
    def read(self) -> bytes:
        """What of `tail` was consumed; nothing where the indices cannot be."""
        return self.tail[: max(0, len(self.tail) - self.held)]

    @property
    def unread(self) -> bytes:
        """What of `tail` was not consumed; all where the indices cannot be."""
        return self.tail[max(0, len(self.tail) - self.held) :]


def look(page: Mapping | memoryview, layout: RingLayout) -> RingLook:
    """The ring that lies at `layout` in `page`, as it is now."""
    for _ in range(_TRIES):
        consumed, produced = _native.load32(page, layout.cons), _native.load32(page, layout.prod)
        data = bytes(page[layout.start : layout.start + layout.size])
        _native.fence()  # the bytes are read before the indices are read again
        after = (_native.load32(page, layout.cons), _native.load32(page, layout.prod))
        if after == (consumed, produced):
            break
    else:
        # Never still: of these three reads the indices may not fit each other, so the ring is taken to be full.
        if (produced - consumed) & MAX_U32 > layout.size:
            consumed = (produced - layout.size) & MAX_U32
    overwritten = (after[1] - produced) & MAX_U32
    at = produced % layout.size
    tail = (data[at:] + data[:at])[min(overwritten, layout.size) :]
    if produced < layout.size:  # not once round yet, unless the index has: a page begins zeroed
        blank = max(0, len(tail) - produced)
        tail = tail[:blank].lstrip(b"\0") + tail[blank:]
    return RingLook(layout.size, consumed, produced, tail)
