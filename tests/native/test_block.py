"""BlockServer on a ring in this process's own memory: what is usual is done and answered, and nothing else touched."""

from __future__ import annotations

import gc
import os
import socket
import struct
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from xengrant._native import BlockServer, Descriptor, Doorbell, load32, store32
from xengrant.abi import blkif, blkif_note
from xengrant.abi import ring as abi
from xengrant.abi.blkif import X86_32, X86_64, Head, Layout

PAGES = 6
SECTORS = 64
REFS = (700, 9, 10, 11, 12, 0xFFFFFFFF)
TABLE = 9  # whose page has segments
WHOLE = blkif.WHOLE_PAGE
OUTSIDE = b"outside!"  # what the file has beyond the disk


class Ring:
    """A front end's ring and pages, and a server of a disk of `SECTORS`, on a file with more."""

    def __init__(self, path: Path, layout: Layout = X86_64) -> None:
        path.write_bytes(bytes(range(256)) * (SECTORS * 2) + OUTSIDE * 1024)
        self.path = path
        self.layout = layout
        self.memory = bytearray(4096)
        self.memory[abi.RSP_EVENT] = self.memory[abi.REQ_EVENT] = abi.FIRST_EVENT
        self.pages = bytearray(PAGES * 4096)
        self.theirs, ours = socket.socketpair()
        self.doorbell = Doorbell(Descriptor(ours.detach()), -1, None)
        self.file = Descriptor(os.open(path, os.O_RDWR))
        self.server = BlockServer(self.memory, 32, layout.entry_size, layout.tail, self.doorbell, self.file)
        self.server.keep(REFS, self.pages)
        self.place = (0, 0, 0)
        self.pushed = 0

    def close(self) -> None:
        self.theirs.close()
        self.doorbell.close()
        self.file.close()

    def page(self, ref: int) -> memoryview:
        at = REFS.index(ref) * 4096
        return memoryview(self.pages)[at : at + 4096]

    def push(self, *entries: bytes) -> None:
        for entry in entries:
            at = abi.HEADER_SIZE + self.pushed % 32 * self.layout.entry_size
            self.memory[at : at + len(entry)] = entry
            self.pushed += 1
        self._store(abi.REQ_PROD, self.pushed)

    def rw(self, operation: int, sector: int, *segments: tuple[int, int], number: int = 5, count: int = -1) -> bytes:
        count = len(segments) if count < 0 else count
        return self.layout.pack_rw(Head(operation, count, 0, number, sector), _packed(segments))

    def indirect(
        self, operation: int, sector: int, *segments: tuple[int, int], count: int = -1, table: int = TABLE
    ) -> bytes:
        packed = _packed(segments)
        self.page(TABLE)[: len(packed)] = packed
        count = len(segments) if count < 0 else count
        return self.layout.pack_indirect(Head(blkif.INDIRECT, operation, count, 6, sector), 0, [table])

    def serve(self, *, sector_size: int = 512, writable: bool = True, most: int = 32) -> bool:
        """One that no server does ends the call."""
        self.push(self.rw(0xEE, 0))
        *place, more = self.server.serve(self.place, self.doorbell.wakes, SECTORS, sector_size, writable, most)
        self.place = (place[0], place[1], place[2])
        return more

    def answers(self) -> list[tuple[int, int, int]]:
        prod = self.load(abi.RSP_PROD)
        assert prod == self.place[0]
        starts = [abi.HEADER_SIZE + index % 32 * self.layout.entry_size for index in range(prod)]
        return [self.layout.unpack_response(bytes(self.memory[at : at + self.layout.entry_size])) for at in starts]

    def load(self, at: int) -> int:
        return load32(self.memory, at)

    def _store(self, at: int, value: int) -> None:
        store32(self.memory, at, value & 0xFFFFFFFF)

    def is_rung(self) -> bool:
        self.theirs.setblocking(False)
        try:
            return bool(self.theirs.recv(100))
        except BlockingIOError:
            return False


def _packed(segments: tuple[tuple[int, int], ...]) -> bytes:
    return blkif.pack_segments([ref for ref, _ in segments], [span for _, span in segments])


@pytest.fixture
def layout() -> Layout:
    return X86_64


@pytest.fixture
def ring(tmp_path: Path, layout: Layout) -> Iterator[Ring]:
    ring = Ring(tmp_path / "disk", layout)
    yield ring
    ring.close()


@pytest.mark.parametrize("layout", blkif.LAYOUTS.values(), ids=blkif.LAYOUTS)
def test_reads_and_writes_are_done_and_answered(ring: Ring, layout: Layout) -> None:
    ring.page(10)[:] = b"w" * 4096
    ring.push(
        ring.rw(blkif.READ, 8, (700, WHOLE), (0xFFFFFFFF, blkif.span(1, 2)), number=1 << 60),
        ring.rw(blkif.WRITE, 3, (10, blkif.span(7, 7))),
        ring.indirect(blkif.WRITE, 40, (10, WHOLE), (10, WHOLE), (10, blkif.span(0, 0))),
    )
    assert ring.serve()
    assert ring.answers() == [(1 << 60, blkif.READ, 0), (5, blkif.WRITE, 0), (6, blkif.WRITE, 0)]
    assert ring.place == (3, 4, 3)
    expected = bytes(range(256)) * 16
    assert ring.page(700) == expected
    assert ring.page(0xFFFFFFFF) == bytes(512) + expected[:1024] + bytes(2560)
    disk = bytearray(bytes(range(256)) * (2 * SECTORS) + OUTSIDE * 1024)
    disk[3 * 512 : 4 * 512] = b"w" * 512
    disk[40 * 512 : 57 * 512] = b"w" * 17 * 512
    assert ring.path.read_bytes() == disk
    assert ring.server.counts == (1, 2, 0, 0, 5120, 18 * 512, 0)
    assert ring.is_rung()
    noted = blkif_note.unpack_note(bytes(ring.memory[: blkif_note.MAGIC_AT]) + blkif_note.MAGIC + ring.memory[48:64])
    assert noted == (2, layout.pack_response(6, blkif.WRITE, 0)[:12])


def test_neighbours_are_done_as_one_and_answered_each(ring: Ring) -> None:
    for ref in (10, 11, 12):
        ring.page(ref)[:] = bytes([ref]) * 4096
    ring.push(
        *[ring.rw(blkif.WRITE, 8 * i, (ref, WHOLE), number=i) for i, ref in enumerate((10, 11, 12, 11))],
        ring.rw(blkif.READ, 32, (10, blkif.span(0, 3))),
        ring.rw(blkif.READ, 36, (10, blkif.span(4, 7))),
        ring.rw(blkif.READ, 36, (700, blkif.span(0, 0))),
    )
    ring.serve()
    assert [number for number, _, _ in ring.answers()] == [0, 1, 2, 3, 5, 5, 5]
    assert ring.path.read_bytes()[: 4 * 4096] == b"".join(bytes([ref]) * 4096 for ref in (10, 11, 12, 11))
    assert ring.page(10) == bytes(range(256)) * 16
    assert ring.page(700)[:512] == bytes(range(256)) * 2
    assert ring.server.counts[:2] == (3, 4)


GOOD = (blkif.READ, 0, (10, WHOLE))


@pytest.mark.parametrize(
    "arguments",
    [
        (2, 0, (10, WHOLE)),
        (4, 0, (10, WHOLE)),
        (blkif.FLUSH_DISKCACHE, 0, (10, WHOLE)),
        (blkif.READ, 0),
        (blkif.READ, 0, *[(10, WHOLE)] * 12),
        (blkif.READ, 0, (13, WHOLE)),
        (blkif.READ, 0, (10, WHOLE), (0, WHOLE)),
        (blkif.READ, 0, (10, blkif.span(3, 2))),
        (blkif.READ, 0, (10, WHOLE), (10, blkif.span(3, 2))),
        (blkif.READ, 0, (10, blkif.span(0, 8))),
        (blkif.READ, 0, (10, blkif.span(255, 255))),
        (blkif.READ, SECTORS - 7, (10, WHOLE)),
        (blkif.READ, SECTORS, (10, blkif.span(0, 0))),
        (blkif.READ, (1 << 64) - 8, (10, WHOLE)),
        (blkif.READ, (1 << 64) - 1, (10, WHOLE)),
        (blkif.READ, 1 << 55, (10, WHOLE)),
    ],
)
def test_what_is_not_usual_is_left_alone_and_all_before_it_answered(ring: Ring, arguments: tuple) -> None:  # type: ignore[type-arg]
    operation, sector, *segments = arguments
    bad = ring.rw(operation, sector, *segments[:11], count=len(segments))
    ring.push(ring.rw(*GOOD), bad, ring.rw(*GOOD))
    before = bytes(ring.path.read_bytes())
    ring.serve()
    assert ring.answers() == [(5, blkif.READ, 0)]
    assert ring.place == (1, 4, 1)
    assert OUTSIDE not in ring.pages
    assert ring.path.read_bytes() == before
    at = abi.HEADER_SIZE + ring.layout.entry_size
    assert ring.memory[at : at + len(bad)] == bad


@pytest.mark.parametrize(
    "case",
    [
        {"operation": 3},
        {"operation": blkif.INDIRECT},
        {"count": 0},
        {"count": 33},
        {"count": 65535},
        {"table": 13},
        {"sector": SECTORS - 8},
        {"refs": (10, 13)},
    ],
    ids=str,
)
def test_an_indirect_request_that_is_not_usual_is_left_alone(ring: Ring, case: dict) -> None:  # type: ignore[type-arg]
    ring.page(TABLE)[:] = _packed(tuple([(10, blkif.span(0, 0))] * 512))
    refs = case.pop("refs", (10, 11))
    good = {"operation": blkif.READ, "sector": 0, "count": 2, "table": TABLE}
    segments = [(ref, WHOLE) for ref in refs]
    given = good | case
    bad = ring.indirect(given["operation"], given["sector"], *segments, count=given["count"], table=given["table"])
    ring.push(ring.rw(*GOOD), bad)
    ring.serve()
    assert ring.place == (1, 3, 1)
    assert OUTSIDE not in ring.pages


def test_what_is_left_alone_leaves_its_neighbour_whole(ring: Ring) -> None:
    """Their pages are neighbours, too, and joined before it is known that the second ends beyond the disk."""
    ring.push(ring.rw(blkif.READ, 48, (10, WHOLE)), ring.rw(blkif.READ, 56, (11, WHOLE), (12, WHOLE)))
    ring.serve()
    assert ring.place[0] == 1
    assert ring.page(10) == bytes(range(256)) * 16
    assert not any(ring.page(11))


def test_tables_of_several_pages_are_read(ring: Ring) -> None:
    tables = bytearray(8192)
    tables[:] = blkif.pack_segments([10] * 1024, [blkif.span(7, 7)] * 1024)
    tables[-8:-4] = (11).to_bytes(4, "little")
    ring.server.keep((50, 51), tables)
    entry = ring.layout.pack_indirect(Head(blkif.INDIRECT, blkif.READ, SECTORS, 1, 0), 0, [50, 51])
    ring.push(entry)
    ring.serve(most=1024)
    assert ring.place[0] == 1
    big = ring.layout.pack_indirect(Head(blkif.INDIRECT, blkif.READ, 1024, 1, 0), 0, [50, 51])
    ring.push(big)
    ring.place = (2, 2, 2)
    ring.server.serve(ring.place, ring.doorbell.wakes, 4096, 512, True, 1024)  # the file ends before
    assert ring.load(abi.RSP_PROD) == 1
    ring.path.write_bytes(bytes(1023 * 512) + b"z" * 512)
    ring.push(ring.rw(0xEE, 0))
    assert ring.server.serve(ring.place, ring.doorbell.wakes, 4096, 512, True, 1024)[0] == 3
    assert ring.page(11)[7 * 512 :] == b"z" * 512


def test_sectors_of_4096_are_whole(ring: Ring) -> None:
    ring.push(ring.rw(blkif.READ, 8, (10, WHOLE)))
    ring.serve(sector_size=4096)
    assert ring.place[0] == 1
    for bad in (ring.rw(blkif.READ, 4, (10, WHOLE)), ring.rw(blkif.READ, 8, (10, blkif.span(0, 3)))):
        ring.pushed = ring.place[0]
        ring.push(bad)
        ring.place = (ring.place[0],) * 3
        ring.serve(sector_size=4096)
        assert ring.place[0] == 1


def test_a_write_to_a_disk_that_may_not_be_written_is_left_alone(ring: Ring) -> None:
    ring.push(ring.rw(blkif.WRITE, 0, (10, WHOLE)))
    ring.serve(writable=False)
    assert ring.place[0] == 0
    assert ring.path.read_bytes()[:256] == bytes(range(256))


def test_a_flush_is_done_and_one_that_fails_is_told(ring: Ring) -> None:
    flush = ring.rw(blkif.FLUSH_DISKCACHE, 0, number=3)
    ring.push(ring.rw(*GOOD), flush, ring.rw(*GOOD))
    ring.serve()
    assert ring.answers()[1] == (3, blkif.FLUSH_DISKCACHE, blkif.RSP_OKAY)
    assert ring.server.counts[:4] == (2, 0, 1, 0)
    reading, writing = os.pipe()  # where fdatasync fails
    file = Descriptor(writing)
    other = BlockServer(ring.memory, 32, X86_64.entry_size, X86_64.tail, ring.doorbell, file)
    ring.pushed = ring.place[0]
    ring.push(flush, ring.rw(0xEE, 0))
    prod, *_ = other.serve((3, 3, 3), ring.doorbell.wakes, SECTORS, 512, True, 0)
    assert prod == 4
    ring.place = (4, 5, 4)
    assert ring.answers()[3] == (3, blkif.FLUSH_DISKCACHE, blkif.RSP_ERROR)
    assert other.counts[:4] == (0, 0, 0, 1)
    file.close()
    os.close(reading)


def test_a_file_that_became_shorter_or_was_closed_is_left_to_the_caller(ring: Ring) -> None:
    os.truncate(ring.path, 8 * 512)
    ring.push(ring.rw(*GOOD), ring.rw(blkif.WRITE, 0, (10, WHOLE)), ring.rw(blkif.READ, 8, (11, WHOLE)))
    ring.serve()
    assert ring.place == (2, 4, 2)
    ring.file.close()
    ring.pushed = 2
    ring.push(ring.rw(*GOOD))
    ring.serve()
    assert ring.place == (2, 4, 2)


@pytest.mark.parametrize("prod", [33, 0x80000000, 0xFFFFFFFF])
def test_an_index_that_cannot_be_ends_the_call(ring: Ring, prod: int) -> None:
    ring.memory[:4] = struct.pack("<I", prod)
    assert ring.server.serve((0, 0, 0), ring.doorbell.wakes, SECTORS, 512, True, 0) == (0, 0, 0, True)
    ring.memory[:4] = struct.pack("<I", 2)
    assert ring.server.serve((5, 5, 5), ring.doorbell.wakes, SECTORS, 512, True, 0) == (5, 5, 5, True)


def test_indices_wrap(ring: Ring) -> None:
    ring.pushed = at = 0xFFFFFFFE
    for _ in range(3):
        ring.push(ring.rw(*GOOD))
    ring.push(ring.rw(0xEE, 0))
    place = ring.server.serve((at, at, at), ring.doorbell.wakes, SECTORS, 512, True, 0)
    assert place == (1, 2, 1, True)


def test_it_waits_for_events_until_it_is_woken(ring: Ring) -> None:
    wakes = ring.doorbell.wakes
    ended: list[tuple[int, int, int, bool]] = []
    thread = threading.Thread(
        target=lambda: ended.append(ring.server.serve((0, 0, 0), wakes, SECTORS, 512, True, 0)), daemon=True
    )
    thread.start()
    deadline = 10.0
    for number in range(1, 4):
        ring.push(ring.rw(*GOOD))
        ring.theirs.send(b"!")
        ring.theirs.settimeout(deadline)
        assert ring.theirs.recv(1), "no answer"
        assert ring.load(abi.RSP_PROD) == number
        store32(ring.memory, abi.RSP_EVENT, number + 1)
    with pytest.raises(RuntimeError, match="another thread"):
        ring.server.forget()
    with pytest.raises(RuntimeError, match="another thread"):
        ring.server.keep((1,), bytearray(4096))
    ring.doorbell.wake()
    thread.join(deadline)
    assert ended == [(3, 3, 3, True)]
    # It says from where on it wants an event when it has nothing to do, which a busy machine may keep it from.
    assert 1 <= ring.load(abi.REQ_EVENT) <= 4
    assert ring.server.serve((3, 3, 3), wakes, SECTORS, 512, True, 0) == (3, 3, 3, True)  # woken before


def test_nobody_is_told_who_does_not_wait(ring: Ring) -> None:
    ring.memory[abi.RSP_EVENT] = 3
    ring.push(ring.rw(*GOOD), ring.rw(*GOOD))
    ring.serve()
    assert ring.place[2] == 2
    assert not ring.is_rung()


def test_kept_pages_are_held_until_they_are_forgotten(ring: Ring) -> None:
    more = bytearray(4096 * 3000)
    ring.server.keep(tuple(range(1000, 4000)), more)
    with pytest.raises(BufferError):
        more.append(0)
    ring.push(ring.rw(blkif.READ, 0, (3999, WHOLE), (1000, WHOLE)))
    ring.serve()
    assert ring.place[0] == 1
    assert more[2999 * 4096 :] == bytes(range(256)) * 16
    ring.server.forget()
    more.append(0)
    ring.pushed = 1
    ring.push(ring.rw(*GOOD))
    ring.place = (1, 1, 1)
    ring.serve()
    assert ring.place[0] == 1


def test_a_ref_means_the_page_that_it_was_kept_with_last(ring: Ring) -> None:
    page = bytearray(4096)
    ring.server.keep((10,), page)
    ring.push(ring.rw(*GOOD))
    ring.serve()
    assert page == bytes(range(256)) * 16
    assert not any(ring.page(10))


def test_wrong_arguments_are_refused(ring: Ring) -> None:
    server = ring.server
    with pytest.raises(ValueError, match="not the pages of 2 refs"):
        server.keep((1, 2), bytearray(4096))
    with pytest.raises(OverflowError):
        server.keep((1 << 32,), bytearray(4096))
    with pytest.raises(TypeError, match="tuple"):
        server.keep([1], bytearray(4096))  # type: ignore[arg-type]
    with pytest.raises(BufferError):
        server.keep((1,), bytes(4096))
    for size in (0, 511, 1536, 8192):
        with pytest.raises(ValueError, match="sectors"):
            server.serve((0, 0, 0), 0, SECTORS, size, True, 0)
    with pytest.raises(ValueError, match="sectors"):
        server.serve((0, 0, 0), 0, 1 << 63, 512, True, 0)
    for entries, entry_size, tail in [(0, 112, 24), (31, 112, 24), (32, 113, 24), (32, 112, 19), (32, 112, 25)]:
        with pytest.raises(ValueError, match="entries"):
            BlockServer(ring.memory, entries, entry_size, tail, ring.doorbell, ring.file)
    with pytest.raises(TypeError):
        BlockServer(ring.memory, 32, 112, 24, ring.file, ring.doorbell)  # type: ignore[arg-type]
    small = BlockServer(bytearray(3000), 32, 112, 24, ring.doorbell, ring.file)
    with pytest.raises(ValueError, match="does not lie"):
        small.serve((0, 0, 0), 0, SECTORS, 512, True, 0)
    assert X86_32.entry_size == 108  # whose last slot is read as 112 bytes
    server.forget()


def test_a_cycle_through_the_ring_memory_is_collected(ring: Ring) -> None:
    class Memory(bytearray):
        server: BlockServer

    memory = Memory(4096)
    memory.server = BlockServer(memory, 32, 112, 24, ring.doorbell, ring.file)
    memory.server.keep((1,), memoryview(memory))
    gone = weakref.ref(memory)
    del memory
    gc.collect()
    assert gone() is None
