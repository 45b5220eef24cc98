"""Rings of bytes in a shared page: a guest's console, and its way to xenstored (Xen public/io/console.h, io/xs_wire.h).

Called by users, and by back ends and front ends of their own. The rings themselves are `_native`'s: this says where
they lie in a page, who is which end, and gives views of the bytes in place. Nothing here waits or notifies: after a
read or a write that moved something, notify the peer's event channel; when there was nothing to do, wait for yours.

    from xengrant.rings.byte_ring import ConsoleRing

    ring = ConsoleRing.back(mapped.mapping)     # a console daemon's end; the guest's is ConsoleRing.front(...)
    text = ring.input.read(2048)                # b"" where there is nothing
    count = ring.output.write(b"hello\\n")       # fewer bytes, even 0, where the ring is full
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

from xengrant import _native
from xengrant.abi import console, xs_wire
from xengrant.abi.xen import PAGE_SIZE

if TYPE_CHECKING:
    from typing import TypeAlias

    from typing_extensions import Buffer

    from xengrant.memory import Mapping

    Page: TypeAlias = Mapping | memoryview | bytearray

__all__ = ["ByteReader", "ByteWriter", "ConsoleRing", "RingLayout", "XenstoreRing"]


class RingLayout(NamedTuple):
    """Where one ring lies in its page: its bytes (a power of two of them), and its two indices of 32 bits."""

    start: int
    size: int
    cons: int
    prod: int


class ByteReader:
    """The consuming end of a ring of bytes.

    `read` and `readinto` copy and acknowledge at once. `peek` and `consume` do so in two steps: what was not consumed
    is there again for whoever attaches after a crash. Every call may raise `ProtocolError`: the producer's index cannot
    be, and nothing of it was believed. That ends a connection: what comes next is not known.

    Views pin the mapping, as any view of it; between calls the ring itself does not.

    Threads: one call at a time; another's waits for its end.
    """

    def __init__(self, page: Page, layout: RingLayout) -> None:
        self._page = page
        self._ring = _native.RingReader(page, layout.cons, layout.prod, page, layout.start, layout.size)

    @property
    def size(self) -> int:
        """Bytes that the ring has room for."""
        return self._ring.size

    @property
    def ready(self) -> int:
        """Bytes that can be read now."""
        return self._ring.ready

    def read(self, most: int) -> bytes:
        """The next bytes, at most `most`, fewer where fewer are there, b"" where none are. `ValueError` below 0."""
        return self._ring.read(most)

    def readinto(self, buffer: Buffer) -> int:
        """As `read`, into `buffer` as far as it goes; how many bytes."""
        return self._ring.readinto(buffer)

    def peek(self) -> memoryview:
        """The next bytes in place, read-only: up to the ring's end or the last byte that is there; empty for none.

        What has gone round the ring's end comes with the next `peek`, after a `consume`. The producer can still write
        there, if it is hostile: copy what decides something, and then look at the copy. After `consume` an honest one
        writes there too.
        """
        at, length = self._ring.peek()
        return memoryview(self._page)[at : at + length].toreadonly() if length else memoryview(b"")

    def consume(self, count: int) -> None:
        """Acknowledge `count` bytes: the producer may use their room. `ValueError` for more than were seen."""
        self._ring.consume(count)

    def __repr__(self) -> str:
        return f"<ByteReader of a ring of {self.size} bytes, at {self._ring.cons}>"


class ByteWriter:
    """The producing end of a ring of bytes.

    `write` copies and shows at once, `reserve` and `commit` do so in two steps: what was not committed the consumer
    does not see. Every call may raise `ProtocolError`: the consumer's index cannot be.

    Threads: one call at a time; another's waits for its end.
    """

    def __init__(self, page: Page, layout: RingLayout) -> None:
        self._page = page
        self._ring = _native.RingWriter(page, layout.cons, layout.prod, page, layout.start, layout.size)

    @property
    def size(self) -> int:
        """Bytes that the ring has room for."""
        return self._ring.size

    @property
    def space(self) -> int:
        """Bytes that can be written now."""
        return self._ring.space

    def write(self, data: Buffer) -> int:
        """Write as much of `data` as there is room for; how many bytes, 0 where the ring is full."""
        return self._ring.write(data)

    def reserve(self) -> memoryview:
        """The free room in place, writable: up to the ring's end or the first byte that is not free; empty for none.

        What lies there is stale or the consumer's doing. Filled from its start, it is shown by `commit`.
        """
        at, length = self._ring.reserve()
        return memoryview(self._page)[at : at + length] if length else memoryview(bytearray())

    def commit(self, count: int) -> None:
        """Show the consumer the first `count` bytes of the room. `ValueError` for more than was seen free."""
        self._ring.commit(count)

    def __repr__(self) -> str:
        return f"<ByteWriter of a ring of {self.size} bytes, at {self._ring.prod}>"


class _TwoRings:
    """A page with a ring in each direction, and one side of it: `input` is what this side reads.

    Attaching, by `front` or `back`, goes on from the indices that are there, so that neither side loses what the
    other has written before it came. Only who makes a page calls `init`, once, before the peer knows of it; a page
    that is new and zeroed needs none.
    """

    TO_FRONT: ClassVar[RingLayout]
    TO_BACK: ClassVar[RingLayout]

    def __init__(self, page: Page, reads: RingLayout, writes: RingLayout) -> None:
        self.input = ByteReader(page, reads)
        self.output = ByteWriter(page, writes)

    @classmethod
    def front(cls, page: Page) -> Self:
        """The guest's side, as its indices are now. `ProtocolError` where they cannot be."""
        return cls(page, cls.TO_FRONT, cls.TO_BACK)

    @classmethod
    def back(cls, page: Page) -> Self:
        """The other domain's side, a daemon's, as its indices are now. `ProtocolError` where they cannot be."""
        return cls(page, cls.TO_BACK, cls.TO_FRONT)

    @classmethod
    def init(cls, page: Page) -> None:
        """Zero the page: both rings are empty then. For a page that no peer uses yet."""
        with memoryview(page) as view, view[:PAGE_SIZE] as first:
            first[:] = bytes(len(first))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.input!r} {self.output!r}>"


class ConsoleRing(_TwoRings):
    """A guest's console, the page behind reference 0: 1024 bytes to the guest, 2048 from it (struct xencons_interface).

    The front reads what was typed and writes what is shown; the back is the console daemon.
    """

    TO_FRONT = RingLayout(console.IN, console.IN_SIZE, console.IN_CONS, console.IN_PROD)
    TO_BACK = RingLayout(console.OUT, console.OUT_SIZE, console.OUT_CONS, console.OUT_PROD)


class XenstoreRing(_TwoRings):
    """A guest's way to xenstored, the page behind reference 1: 1024 bytes each way (struct xenstore_domain_interface).

    The front writes requests and reads replies and events; the back is xenstored. The bytes are a stream of messages,
    some longer than the ring.
    """

    TO_FRONT = RingLayout(xs_wire.RSP, xs_wire.RING_SIZE, xs_wire.RSP_CONS, xs_wire.RSP_PROD)
    TO_BACK = RingLayout(xs_wire.REQ, xs_wire.RING_SIZE, xs_wire.REQ_CONS, xs_wire.REQ_PROD)
