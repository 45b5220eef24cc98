"""Disks: what `File` and `Memory` do, and how a disk without vectors is used."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from xengrant.abi import blkif
from xengrant.errors import InterfaceClosed
from xengrant.pv.block import File, Memory
from xengrant.pv.block.disks import vectored
from xengrant.pv.block.execution import execute
from xengrant.pv.block.requests import Request


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * 64)
    return path


def _buffers(*lengths: int) -> list[memoryview]:
    return [memoryview(bytearray(length)) for length in lengths]


def test_a_file_is_read_and_written_by_many_buffers(image: Path) -> None:
    with File(image) as disk:
        assert disk.size == 16384
        buffers = _buffers(1, 5, 0, 10)
        disk.preadv(buffers, 250)
        assert b"".join(buffers) == (bytes(range(256)) * 2)[250:266]
        disk.pwritev([memoryview(b"one"), memoryview(b"two")], 1000)
        disk.flush()
        assert disk.pread(8, 999) == image.read_bytes()[999:1007]
        assert image.read_bytes()[1000:1006] == b"onetwo"


def test_short_transfers_go_on(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_read, real_write = os.preadv, os.pwritev

    def shortened(buffers: list[memoryview]) -> list[memoryview]:
        return [next(buffer for buffer in buffers if len(buffer))[:3]]

    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: real_read(fd, shortened(buffers), offset))
    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, offset: real_write(fd, shortened(buffers), offset))
    with File(image) as disk:
        disk.pwritev([memoryview(b"abcde"), memoryview(b"fgh")], 7)
        buffers = _buffers(4, 4)
        disk.preadv(buffers, 7)
        assert b"".join(buffers) == b"abcdefgh"


def test_a_file_grows_and_never_shrinks(image: Path) -> None:
    with File(image) as disk:
        for size, grown in ((16384, False), (8192, False), (20480, True)):
            os.truncate(image, size)
            assert disk.grow() == grown
        assert disk.size == 20480
    with pytest.raises(InterfaceClosed):
        disk.grow()


def test_a_file_that_became_shorter_is_an_error(image: Path) -> None:
    with File(image) as disk:
        os.truncate(image, 8192)
        with pytest.raises(OSError, match="ends 4096 bytes early") as caught:
            disk.pread(8192, 4096)
        assert caught.value.errno == errno.EIO


def test_a_hole_reads_as_zeros_and_the_size_stays(image: Path) -> None:
    with File(image) as disk:
        disk.discard(4096, 4096)
        assert disk.pread(4096, 4096) == bytes(4096)
        assert disk.pread(1, 4095) == b"\xff"
        assert image.stat().st_size == 16384


def test_a_read_only_file_refuses(image: Path) -> None:
    with File(image, writable=False) as disk:
        assert disk.pread(2, 0) == b"\0\1"
        with pytest.raises(OSError, match="Bad file descriptor"):
            disk.pwrite(b"x", 0)


def test_a_closed_file_says_so_and_a_directory_is_none(image: Path) -> None:
    disk = File(image)
    disk.close()
    disk.close()
    with pytest.raises(InterfaceClosed):
        disk.pread(1, 0)
    with pytest.raises(OSError, match="neither a file"):
        File("/dev/null")


def test_memory_is_the_bytearray_that_it_is_given() -> None:
    data = bytearray(b"0123456789")
    disk = Memory(data)
    disk.pwritev([memoryview(b"ab"), memoryview(b"c")], 1)
    disk.discard(2, 8)
    assert data == b"0abc4567\0\0"
    assert disk.pread(3, 0) == b"0ab"


class _Plain:
    """A disk of the simplest kind; `short` takes or gives fewer bytes than asked."""

    size = 100

    def __init__(self) -> None:
        self.data = bytearray(range(100))
        self.short = 0

    def pread(self, length: int, offset: int) -> bytes:
        return bytes(self.data[offset : offset + length - self.short])

    def pwrite(self, data: bytes, offset: int) -> int:
        assert type(data) is bytes, "private memory, which no guest changes"
        self.data[offset : offset + len(data)] = data
        return len(data) - self.short

    def flush(self) -> None:
        self.flushed = True


def test_a_plain_disk_is_used_with_copies() -> None:
    plain = _Plain()
    disk = vectored(plain)
    assert disk.size == 100
    buffers = _buffers(3, 4)
    disk.preadv(buffers, 10)
    assert b"".join(buffers) == bytes(range(10, 17))
    disk.pwritev([memoryview(b"ab"), memoryview(b"cd")], 50)
    assert plain.data[49:55] == b"1abcd6"
    disk.flush()
    assert plain.flushed


def test_a_plain_disk_has_discard_where_it_has() -> None:
    class Discarding(_Plain):
        def discard(self, length: int, offset: int) -> None:
            self.data[offset : offset + length] = bytes(length)

    plain = Discarding()
    execute(vectored(plain), requests := [_discard(2, 50)])
    assert requests[0].status == blkif.RSP_OKAY
    assert plain.data[49:53] == b"1\0\x004"
    assert not hasattr(vectored(_Plain()), "discard")


def _discard(length: int, offset: int) -> Request:
    request = Request(1, blkif.DISCARD, blkif.DISCARD, offset)
    request.length = length
    return request


def test_a_plain_disk_that_moves_too_little_is_an_error() -> None:
    plain = _Plain()
    plain.short = 1
    disk = vectored(plain)
    with pytest.raises(OSError, match="gave 2 bytes of 3"):
        disk.preadv(_buffers(3), 0)
    with pytest.raises(OSError, match="took 1 bytes of 2"):
        disk.pwritev([memoryview(b"ab")], 0)


def test_what_has_vectors_is_used_as_it_is(image: Path) -> None:
    memory = Memory(512)
    assert vectored(memory) is memory
