"""What a back end takes of a request, refuses, and runs on its disk: `Reader`, batches and `execute`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from xengrant.abi import blkif
from xengrant.abi.blkif import X86_64, Head
from xengrant.pv.block.back_queue import BATCH_PAGES, _batches
from xengrant.pv.block.disks import Memory, vectored
from xengrant.pv.block.execution import execute
from xengrant.pv.block.requests import Limits, Reader, Request

SECTORS = 64


def entry(operation: int, sector: int, *spans: tuple[int, int]) -> bytes:
    """A slot of the ring; a span is the first and the last sector of a page."""
    words = [last << 8 | first for first, last in spans]
    return X86_64.pack_rw(Head(operation, len(spans), 0, 7, sector), blkif.pack_segments(range(len(spans)), words))


def read(slot: bytes, **limits: Any) -> Request:
    return Reader(X86_64, Limits(SECTORS, **limits)).read(slot)


@pytest.mark.parametrize("span", [(0, 6), (1, 7), (0, 3), (4, 7)])
def test_a_segment_has_whole_sectors_of_the_disk(span: tuple[int, int]) -> None:
    assert read(entry(blkif.READ, 0, span)).status is None
    assert read(entry(blkif.READ, 0, span), sector_size=4096).status == blkif.RSP_ERROR
    assert read(entry(blkif.READ, 0, (0, 7)), sector_size=4096).status is None


@pytest.mark.parametrize("span", [(0, 6), (1, 7)])
def test_segments_that_are_whole_only_together_are_refused(span: tuple[int, int]) -> None:
    rest = (0, 7 - (span[1] - span[0] + 1))
    assert read(entry(blkif.READ, 0, span, rest), sector_size=4096).status == blkif.RSP_ERROR


@pytest.mark.parametrize("span", [(0, 8), (5, 4), (0, 255)])
def test_a_segment_is_within_its_page(span: tuple[int, int]) -> None:
    assert read(entry(blkif.WRITE, 0, (0, 7), span)).status == blkif.RSP_ERROR


def test_what_is_refused_has_no_pages_to_be_touched() -> None:
    refused = read(entry(blkif.WRITE, SECTORS - 1, (0, 7)))
    assert refused.status == blkif.RSP_ERROR
    assert refused.refs == refused.tables == ()
    granted = read(entry(blkif.WRITE, 0, (0, 7)))
    granted.refuse("its page is not granted")
    assert granted.refs == ()


def test_a_flush_that_is_not_offered_is_not_supported() -> None:
    assert read(entry(blkif.FLUSH_DISKCACHE, 0)).status is None
    assert read(entry(blkif.FLUSH_DISKCACHE, 0), can_flush=False).status == blkif.RSP_EOPNOTSUPP


def test_a_discard_of_nothing_is_refused() -> None:
    def discard(sectors: int) -> Request:
        return read(X86_64.pack_discard(Head(blkif.DISCARD, 0, 0, 7, 8), sectors), can_discard=True)

    assert discard(8).status is None
    assert discard(0).status == blkif.RSP_ERROR


def test_a_batch_has_no_more_pages_than_fit() -> None:
    assert BATCH_PAGES == 1024
    requests = [Request(number, blkif.READ, blkif.READ, 0) for number in range(40)]
    for request in requests:
        request.refs = (1,) * 100
    assert [len(batch) for batch in _batches(requests)] == [10, 10, 10, 10]


def asked(action: int, offset: int, data: bytes, count: int = 1) -> Request:
    """A request whose pages are open, as `count` buffers."""
    request = Request(7, action, action, offset)
    request.length = len(data)
    buffer, piece = memoryview(bytearray(data)), len(data) // count
    request.buffers = [buffer[at : at + piece] for at in range(0, len(data), piece)]
    return request


def test_a_request_that_was_refused_is_not_done_with_its_neighbour() -> None:
    disk = Memory(8192)
    good, bad = asked(blkif.WRITE, 0, b"a" * 4096), asked(blkif.WRITE, 4096, b"b" * 4096)
    bad.refuse("its page is not granted")
    execute(vectored(disk), [good, bad])
    assert (good.status, bad.status) == (blkif.RSP_OKAY, blkif.RSP_ERROR)
    assert disk.data == b"a" * 4096 + bytes(4096)


def test_more_buffers_than_the_system_takes_at_once_are_several_writes() -> None:
    class Counted(Memory):
        most = 0

        def pwritev(self, buffers: Sequence[memoryview], offset: int, /) -> None:
            self.most = max(self.most, len(buffers))
            super().pwritev(buffers, offset)

    disk = Counted(3 * 4096)
    requests = [asked(blkif.WRITE, at * 4096, bytes([at + 1]) * 4096, count=512) for at in range(3)]
    execute(vectored(disk), requests)
    assert disk.most == 1024, "which is IOV_MAX"
    assert disk.data == b"".join(bytes([at + 1]) * 4096 for at in range(3))


def test_a_flush_with_data_writes_it() -> None:
    disk = Memory(8192)
    request = asked(blkif.FLUSH_DISKCACHE, 4096, b"x" * 512)
    execute(vectored(disk), [request])
    assert request.status == blkif.RSP_OKAY
    assert disk.data[4096:4609] == b"x" * 512 + b"\0"
