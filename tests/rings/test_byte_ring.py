"""Console and xenstore rings: both ends, against C on a page of its own, wherever the indices stand."""

from __future__ import annotations

import os

import pytest

import xengrant
from xengrant import ProtocolError
from xengrant._native import load32, store32
from xengrant.abi.xen import PAGE_SIZE
from xengrant.embedded import Machine
from xengrant.rings.byte_ring import ByteReader, ByteWriter, ConsoleRing, XenstoreRing

from .byte_ring_oracle import Oracle, needed

TwoRings = type[ConsoleRing] | type[XenstoreRing]
KINDS: dict[str, TwoRings] = {"console": ConsoleRing, "xenstore": XenstoreRing}
BOUNDARIES = [1 << 31, 1 << 32]
U32 = 0xFFFFFFFF

kinds = pytest.mark.parametrize("kind", KINDS)
directions = pytest.mark.parametrize("ring", ["to_front", "to_back"])


def put(page: bytearray, rings: TwoRings, ring: str, cons: int, prod: int) -> None:
    """Set the indices of one ring."""
    layout = getattr(rings, ring.upper())
    store32(page, layout.cons, cons & U32)
    store32(page, layout.prod, prod & U32)


def ends(page: bytearray, rings: TwoRings, ring: str) -> tuple[ByteWriter, ByteReader]:
    """Both ends of the ring `to_front` or `to_back`, of the two sides."""
    front, back = rings.front(page), rings.back(page)
    return (back.output, front.input) if ring == "to_front" else (front.output, back.input)


# As the C structures are laid out


@needed
@kinds
def test_an_initialised_page_is_cs(kind: str) -> None:
    page = bytearray(os.urandom(PAGE_SIZE))
    KINDS[kind].init(page)
    assert page == Oracle(kind).page


@needed
@kinds
@directions
def test_hello_is_the_same_bytes_in_both_pages_and_each_reads_the_others(kind: str, ring: str) -> None:
    oracle, page = Oracle(kind), bytearray(PAGE_SIZE)
    writer, reader = ends(page, KINDS[kind], ring)
    assert writer.write(b"hello") == oracle.write(ring, b"hello") == 5
    assert page == oracle.page
    assert (reader.read(16), oracle.read(ring, 16)) == (b"hello", b"hello")
    assert page == oracle.page
    assert writer.write(b"again") == 5
    oracle.page[:] = page
    assert oracle.read(ring, 16) == b"again"
    oracle.write(ring, b"from C")
    page[:] = oracle.page
    writer, reader = ends(page, KINDS[kind], ring)
    assert reader.read(16) == b"from C"


@needed
@kinds
@directions
@pytest.mark.parametrize("chunks", [(1024, 1024), (1023, 1024), (1024, 1023), (7, 4096), (4096, 1)], ids=str)
def test_a_stream_in_chunks_comes_through_as_in_c(kind: str, ring: str, chunks: tuple[int, int]) -> None:
    """The sizes of shared-memory-ring's own tests (read, write), and some that fit nothing."""
    most_read, most_written = chunks
    stream = os.urandom(64 * 1024 if most_read > 1 else 3000)
    oracle, page = Oracle(kind), bytearray(PAGE_SIZE)
    writer, reader = ends(page, KINDS[kind], ring)
    written, read = 0, bytearray()
    while len(read) < len(stream):
        chunk = stream[written : written + most_written]
        count = writer.write(chunk)
        assert oracle.write(ring, chunk) == count
        written += count
        assert page == oracle.page
        got = reader.read(most_read)
        assert got, "nothing moves any more"
        assert oracle.read(ring, most_read) == got
        read += got
    assert read == stream
    assert page == oracle.page


# Across 2^31 and 2^32, where shared-memory-ring 3.2.1 loses and repeats bytes


@needed
@kinds
@directions
@pytest.mark.parametrize("boundary", BOUNDARIES, ids=["2^31", "2^32"])
@pytest.mark.parametrize("before", [0, 1, 2, 3, 8])
def test_a_write_and_a_read_across_a_boundary_are_as_in_c(kind: str, ring: str, boundary: int, before: int) -> None:
    oracle, page = Oracle(kind), bytearray(PAGE_SIZE)
    at = (boundary - before) & U32
    oracle.set(ring, at, at)
    put(page, KINDS[kind], ring, at, at)
    writer, reader = ends(page, KINDS[kind], ring)
    text = b"sixteen letters."
    assert writer.write(text) == oracle.write(ring, text) == 16
    assert page == oracle.page
    assert reader.ready == 16
    assert reader.read(64) == oracle.read(ring, 64) == text
    assert reader.read(64) == b""
    assert page == oracle.page


@kinds
@directions
@pytest.mark.parametrize("boundary", BOUNDARIES, ids=["2^31", "2^32"])
def test_a_full_ring_that_straddles_a_boundary_is_full(kind: str, ring: str, boundary: int) -> None:
    page = bytearray(PAGE_SIZE)
    size = getattr(KINDS[kind], ring.upper()).size
    put(page, KINDS[kind], ring, boundary - size // 2, boundary + size // 2)
    writer, reader = ends(page, KINDS[kind], ring)
    assert (writer.space, writer.write(b"more"), len(writer.reserve())) == (0, 0, 0)
    assert reader.ready == size
    assert len(reader.read(4 * size)) == size
    assert (writer.space, reader.ready) == (size, 0)


# Short counts


@kinds
@directions
def test_a_full_ring_takes_a_part_and_then_nothing(kind: str, ring: str) -> None:
    page = bytearray(PAGE_SIZE)
    writer, reader = ends(page, KINDS[kind], ring)
    stream = bytes(range(256)) * 16
    size = writer.size
    assert writer.write(stream) == size
    assert writer.write(stream) == 0
    assert reader.read(10) == stream[:10]
    assert writer.write(stream[size:]) == 10
    assert reader.read(PAGE_SIZE) == stream[10 : size + 10]


@kinds
@directions
def test_an_empty_ring_gives_nothing(kind: str, ring: str) -> None:
    _, reader = ends(bytearray(PAGE_SIZE), KINDS[kind], ring)
    into = bytearray(b"untouched")
    assert (reader.read(100), reader.readinto(into), reader.ready) == (b"", 0, 0)
    assert into == b"untouched"
    assert len(reader.peek()) == 0


def test_readinto_fills_what_is_there() -> None:
    writer, reader = ends(bytearray(PAGE_SIZE), ConsoleRing, "to_back")
    writer.write(b"hello, world")
    into = bytearray(7)
    assert reader.readinto(into) == 7
    assert into == b"hello, "
    assert reader.readinto(memoryview(into)[2:]) == 5
    assert into == b"heworld"


def test_the_two_directions_do_not_touch_each_other() -> None:
    page = bytearray(PAGE_SIZE)
    front, back = ConsoleRing.front(page), ConsoleRing.back(page)
    assert (front.output.size, front.input.size) == (back.input.size, back.output.size) == (2048, 1024)
    front.output.write(b"o" * 4096)
    back.output.write(b"i" * 4096)
    assert back.input.read(4096) == b"o" * 2048
    assert front.input.read(4096) == b"i" * 1024


# Two steps


@kinds
@directions
def test_what_was_looked_at_is_there_again_until_it_is_consumed(kind: str, ring: str) -> None:
    page = bytearray(PAGE_SIZE)
    writer, reader = ends(page, KINDS[kind], ring)
    writer.write(b"journal me")
    before = bytes(page)
    assert bytes(reader.peek()) == b"journal me"
    assert page == before, "a look acknowledged something"
    del reader
    _, again = ends(page, KINDS[kind], ring)  # after a crash
    assert bytes(again.peek()) == b"journal me"
    again.consume(8)
    assert bytes(again.peek()) == b"me"
    assert writer.space == writer.size - 2
    with pytest.raises(ValueError, match="cannot consume 3 bytes: 2 were seen ready"):
        again.consume(3)


@kinds
@directions
def test_what_was_reserved_is_seen_when_it_is_committed(kind: str, ring: str) -> None:
    writer, reader = ends(bytearray(PAGE_SIZE), KINDS[kind], ring)
    room = writer.reserve()
    room[:5] = b"hello"
    assert reader.ready == 0
    writer.commit(4)
    assert reader.read(100) == b"hell"
    assert bytes(writer.reserve()[:1]) == b"o"
    with pytest.raises(ValueError, match="cannot commit"):
        writer.commit(writer.size + 1)
    with pytest.raises(ValueError, match="cannot commit"):
        writer.commit(-1)


@kinds
@directions
def test_views_end_where_the_ring_does(kind: str, ring: str) -> None:
    page = bytearray(PAGE_SIZE)
    size = getattr(KINDS[kind], ring.upper()).size
    put(page, KINDS[kind], ring, size - 3, size - 3)
    writer, reader = ends(page, KINDS[kind], ring)
    writer.reserve()[:] = b"end"
    writer.commit(3)
    room = writer.reserve()
    assert len(room) == size - 3
    room[:5] = b"start"
    writer.commit(5)
    assert bytes(reader.peek()) == b"end"
    reader.consume(3)
    assert bytes(reader.peek()) == b"start"


def test_a_view_to_read_from_cannot_be_written() -> None:
    writer, reader = ends(bytearray(PAGE_SIZE), ConsoleRing, "to_back")
    with pytest.raises(TypeError):
        reader.peek()[:] = b""
    writer.write(b"text")
    with pytest.raises(TypeError):
        reader.peek()[:1] = b"x"


# Attaching


@kinds
def test_a_back_end_that_comes_late_finds_what_was_written_before(kind: str) -> None:
    page = bytearray(os.urandom(PAGE_SIZE))
    KINDS[kind].init(page)
    front = KINDS[kind].front(page)
    front.output.write(b"first words")
    back = KINDS[kind].back(page)
    assert back.input.read(100) == b"first words"
    back.output.write(b"answer")
    assert KINDS[kind].front(page).input.read(100) == b"answer"


def test_attaching_writes_nothing() -> None:
    page = bytearray(PAGE_SIZE)
    ConsoleRing.front(page).output.write(b"x" * 5000)
    before = bytes(page)
    ConsoleRing.back(page)
    ConsoleRing.front(page)
    assert page == before


@kinds
@pytest.mark.parametrize("side", ["front", "back"])
def test_a_page_whose_indices_cannot_be_is_refused(kind: str, side: str) -> None:
    page = bytearray(PAGE_SIZE)
    put(page, KINDS[kind], "to_back", 1, 0)
    with pytest.raises(ProtocolError, match="cannot be"):
        getattr(KINDS[kind], side)(page)


def test_a_page_that_is_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match="does not lie in its buffers"):
        ConsoleRing.front(bytearray(3084))


# In shared pages


def test_two_domains_speak_through_a_shared_page(machine: Machine) -> None:
    with (
        xengrant.connect(machine.url(1)) as guest,
        xengrant.connect(machine.url(2)) as daemon,
        guest.gntshr() as gntshr,
        gntshr.share_pages(2, 1, writable=True) as share,
        daemon.gnttab() as gnttab,
        gnttab.map([(1, ref) for ref in share.refs], writable=True) as mapped,
    ):
        front, back = ConsoleRing.front(share.mapping), ConsoleRing.back(mapped.mapping)
        front.output.write(b"login: ")
        assert back.input.read(100) == b"login: "
        back.output.write(b"root\n")
        assert front.input.read(100) == b"root\n"
        with pytest.raises(BufferError), back.output.reserve():
            mapped.close()  # a view pins its mapping
    assert (share.closed, mapped.closed) == (True, True), "the rings themselves kept it"
    with pytest.raises(ValueError, match="closed"):
        back.input.read(1)


def test_a_page_that_may_only_be_read_is_no_end(machine: Machine) -> None:
    with (
        xengrant.connect(machine.url(0)) as dom0,
        dom0.gnttab() as gnttab,
        gnttab.map((1, xengrant.GrantRef.CONSOLE), writable=False) as mapped,
    ):
        for make in (ConsoleRing.front, ConsoleRing.back, ConsoleRing.init):
            with pytest.raises((TypeError, BufferError)):
                make(mapped.mapping)
        assert load32(mapped.mapping, ConsoleRing.TO_BACK.prod) == 0


@kinds
@directions
def test_an_empty_view_is_ones_own(kind: str, ring: str) -> None:
    """Leaving a `with` block on it releases it, and nobody else's."""
    page = bytearray(PAGE_SIZE)
    writer, reader = ends(page, KINDS[kind], ring)
    for _ in range(2):
        with reader.peek() as empty:
            assert len(empty) == 0
    put(page, KINDS[kind], ring, 0, getattr(KINDS[kind], ring.upper()).size)
    writer, reader = ends(page, KINDS[kind], ring)
    for _ in range(2):
        with writer.reserve() as full:
            assert len(full) == 0
