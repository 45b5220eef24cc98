"""Any order of calls on both ends of a ring, against a model and against C; and a peer that lies about its index."""

from __future__ import annotations

import contextlib
import threading

from hypothesis import given
from hypothesis import strategies as st

from xengrant import ProtocolError
from xengrant._native import load32, store32
from xengrant.abi.xen import PAGE_SIZE
from xengrant.rings.byte_ring import RingLayout

from .byte_ring_oracle import Oracle, needed
from .test_byte_ring import KINDS, U32, directions, ends, kinds, put

# Where the indices begin: anywhere, and where they wrap as signed and as unsigned numbers.
indices = st.integers(0, U32) | st.integers(-4096, 64).map(lambda off: ((1 << 31) + off) & U32) | st.integers(-4096, 64)
lies_by = st.integers(-5000, 5000) | st.integers(-20, 20) | indices  # beyond where the index began
sizes = st.integers(0, 40) | st.integers(0, 3000)
calls = st.lists(st.tuples(st.sampled_from(["write", "read", "readinto", "reserve", "peek"]), sizes), max_size=25)


@needed
@kinds
@directions
@given(index=indices, calls=calls)
def test_any_order_of_calls_is_as_in_a_queue_and_in_c(
    kind: str, ring: str, index: int, calls: list[tuple[str, int]]
) -> None:
    oracle, page = Oracle(kind), bytearray(PAGE_SIZE)
    oracle.set(ring, index & U32, index & U32)
    put(page, KINDS[kind], ring, index, index)
    writer, reader = ends(page, KINDS[kind], ring)
    queue = bytearray()
    made = 0
    for call, count in calls:
        assert (reader.ready, writer.space) == (len(queue), writer.size - len(queue))
        data = bytes((made + i) % 251 for i in range(count))
        if call == "write":
            took = writer.write(data)
            assert took == min(count, writer.size - len(queue))
        elif call == "reserve":
            room = writer.reserve()
            assert bool(room) == (len(queue) < writer.size)
            took = min(len(room), count)
            room[:took] = data[:took]
            writer.commit(took)
        else:
            took = 0
            if call == "read":
                got = reader.read(count)
            elif call == "readinto":
                into = bytearray(count)
                got = bytes(into[: reader.readinto(into)])
            else:
                view = reader.peek()
                assert bool(view) == bool(queue)
                assert view == queue[: len(view)]
                got = bytes(view[:count])
                reader.consume(len(got))
            assert got == queue[: len(got)]
            assert len(got) == min(count, len(queue)) or call == "peek"
            assert oracle.read(ring, len(got)) == got
            del queue[: len(got)]
        assert oracle.write(ring, data[:took]) == took
        queue += data[:took]
        made += took
        assert page == oracle.page


# A peer that lies


def _guarded(kind: str, ring: str, index: int) -> tuple[bytearray, RingLayout]:
    """A page whose every byte outside of the ring and its indices is marked."""
    layout: RingLayout = getattr(KINDS[kind], ring.upper())
    page = bytearray(b"\xee" * PAGE_SIZE)
    for other in (KINDS[kind].TO_FRONT, KINDS[kind].TO_BACK):
        for word in (other.cons, other.prod):
            store32(page, word, index & U32)
    return page, layout


def _outside(page: bytearray, layout: RingLayout) -> bytes:
    left = bytearray(page)
    left[layout.start : layout.start + layout.size] = b""
    for word in sorted((layout.cons, layout.prod), reverse=True):
        del left[word - layout.size : word - layout.size + 4]
    return bytes(left)


@kinds
@directions
@given(index=indices, lies=st.lists(st.tuples(lies_by, st.sampled_from("wrp"), sizes), max_size=20))
def test_a_lying_producer_is_a_protocol_error_or_gives_no_more_than_the_ring(
    kind: str, ring: str, index: int, lies: list[tuple[int, str, int]]
) -> None:
    page, layout = _guarded(kind, ring, index)
    _, reader = ends(page, KINDS[kind], ring)
    outside = _outside(page, layout)
    cons = seen = index & U32  # seen: the producer's index when it was last believed
    for by, call, count in lies:
        prod = index + by
        store32(page, layout.prod, prod & U32)
        ahead = (prod - cons) & U32
        backwards = ahead < ((seen - cons) & U32)
        try:
            if call == "w":
                got = len(reader.peek()[:count])
                reader.consume(got)
            elif call == "r":
                got = len(reader.read(count))
            else:
                into = bytearray(count)
                got = reader.readinto(into)
        except ProtocolError:
            assert ahead > layout.size or backwards, f"{prod} was refused, {ahead} ahead of {cons}"
        else:
            assert ahead <= layout.size
            assert not backwards
            assert got <= min(count, ahead)
            cons, seen = (cons + got) & U32, prod & U32
        assert load32(page, layout.cons) == cons
        assert load32(page, layout.prod) == prod & U32, "the reader wrote the producer's index"
        assert _outside(page, layout) == outside


@kinds
@directions
@given(index=indices, lies=st.lists(st.tuples(lies_by, st.booleans(), sizes), max_size=20))
def test_a_lying_consumer_is_a_protocol_error_or_leaves_no_more_room_than_the_ring(
    kind: str, ring: str, index: int, lies: list[tuple[int, bool, int]]
) -> None:
    page, layout = _guarded(kind, ring, index)
    writer, _ = ends(page, KINDS[kind], ring)
    outside = _outside(page, layout)
    prod = seen = index & U32
    for by, in_place, count in lies:
        cons = index + by
        store32(page, layout.cons, cons & U32)
        behind = (prod - cons) & U32
        backwards = behind > ((prod - seen) & U32)
        try:
            if in_place:
                room = writer.reserve()
                wrote = min(len(room), count)
                room[:wrote] = b"x" * wrote
                writer.commit(wrote)
            else:
                wrote = writer.write(b"x" * count)
        except ProtocolError:
            assert behind > layout.size or backwards, f"{cons} was refused, {behind} behind {prod}"
        else:
            assert behind <= layout.size
            assert not backwards
            assert wrote <= min(count, layout.size - behind)
            prod, seen = (prod + wrote) & U32, cons & U32
        assert load32(page, layout.prod) == prod
        assert load32(page, layout.cons) == cons & U32, "the writer wrote the consumer's index"
        assert _outside(page, layout) == outside


def test_our_own_index_is_not_taken_from_the_page() -> None:
    page = bytearray(PAGE_SIZE)
    writer, reader = ends(page, KINDS["console"], "to_back")
    writer.write(b"abcdef")
    assert reader.read(3) == b"abc"
    layout = KINDS["console"].TO_BACK
    store32(page, layout.cons, 0)
    assert reader.read(3) == b"def"
    assert load32(page, layout.cons) == 6
    store32(page, layout.prod, 1000)
    assert writer.write(b"g") == 1
    assert load32(page, layout.prod) == 7


def test_a_peer_that_scribbles_all_the_time_ends_nothing() -> None:
    page = bytearray(PAGE_SIZE)
    layout = KINDS["console"].TO_BACK
    writer, reader = ends(page, KINDS["console"], "to_back")
    ended = threading.Event()

    def scribble() -> None:
        number = 1
        while not ended.is_set():
            number = number * 1103515245 + 12345 & U32
            store32(page, layout.prod, number if number & 3 else number % 4096)
            store32(page, layout.cons, number >> 7 if number & 1 else number % 4096)

    scribbler = threading.Thread(target=scribble)
    scribbler.start()
    try:
        for _ in range(3000):
            with contextlib.suppress(ProtocolError):
                assert len(reader.read(4096)) <= layout.size
            with contextlib.suppress(ProtocolError):
                assert writer.write(b"y" * 4096) <= layout.size
            with contextlib.suppress(ProtocolError):
                reader.consume(min(1, len(reader.peek())))
    finally:
        ended.set()
        scribbler.join(20)
    assert not scribbler.is_alive()
