"""A front end's queue against a back end's, on an embedded machine: what is written is what is read."""

from __future__ import annotations

import asyncio
import errno
import random
import tempfile
from collections.abc import Sequence

import pytest

from xengrant.abi import blkif
from xengrant.abi.blkif import Layout
from xengrant.embedded import Machine
from xengrant.gnttab import Gnttab
from xengrant.pv.block import pages as pages_module
from xengrant.pv.block.disks import File, Memory
from xengrant.pv.block.pages import KeptPages

from .ends import SOON, Ends, looped, until
from .slow import Slow

PATHS = ["kept", "mapped", "copied"]


@pytest.mark.parametrize(
    ("pages", "persistent"),
    [("kept", True), ("mapped", True), ("copied", True), ("mapped", False), ("copied", False)],
    ids=lambda value: value if isinstance(value, str) else "pool" if value else "per-request",
)
@pytest.mark.parametrize("layout", blkif.LAYOUTS.values(), ids=blkif.LAYOUTS)
@looped
async def test_what_is_written_is_read(machine: Machine, pages: str, persistent: bool, layout: Layout) -> None:
    disk = Memory(1 << 20)
    async with Ends(machine, disk, pages=pages, persistent=persistent, layout=layout) as ends:
        data = random.Random(1).randbytes(32 * 4096)
        await ends.front.write(8, memoryview(data))
        assert disk.data[4096 : 4096 + len(data)] == data
        assert await ends.front.read(8, 256) == data
        assert await ends.front.read(11, 3) == data[3 * 512 : 6 * 512]
        await ends.front.flush()
        counters = ends.back.counters
        await until(lambda: counters.depth == 0, "every request is counted")
        assert (counters.reads, counters.writes, counters.flushes, counters.errors) == (2, 1, 1, 0)
        assert not ends.errors


@pytest.mark.parametrize("pages", PATHS)
@looped
async def test_200_requests_at_a_time_lose_double_and_misplace_no_sector(machine: Machine, pages: str) -> None:
    """Against a model of the disk: of overlapping requests any order is right, so those under way do not overlap."""
    chance = random.Random(7)
    size = 4 << 20
    model = bytearray(chance.randbytes(size))
    disk = Memory(bytearray(model))
    async with Ends(machine, disk, pages=pages, order=1, segments=32, can_discard=True, kept=64) as ends:
        for _ in range(5):
            taken: list[tuple[int, int]] = []
            jobs = []
            for _ in range(200):
                count = chance.choice([1, 3, 8, 40, 256])
                sector = chance.randrange(size // 512 - count)
                if any(sector < end and start < sector + count for start, end in taken):
                    continue
                taken.append((sector, sector + count))
                kind = chance.choice(["read", "write", "discard", "flush"])
                jobs.append(_job(ends, model, kind, sector, count, chance.randbytes(count * 512)))
            await asyncio.gather(*jobs)
            assert disk.data == model
        assert not ends.errors


async def _job(ends: Ends, model: bytearray, kind: str, sector: int, count: int, data: bytes) -> None:
    at, end = sector * 512, (sector + count) * 512
    if kind == "read":
        assert await ends.front.read(sector, count) == model[at:end]
    elif kind == "write":
        await ends.front.write(sector, memoryview(data))
        model[at:end] = data
    elif kind == "discard":
        await ends.front.discard(sector, count)
        model[at:end] = bytes(end - at)
    else:
        await ends.front.flush()


@looped
async def test_a_request_beyond_the_disk_is_an_error_and_the_next_is_served(machine: Machine) -> None:
    async with Ends(machine, Memory(8192)) as ends:
        with pytest.raises(OSError, match="failed at a read") as caught:
            await ends.front.read(10, 8)
        assert caught.value.errno == errno.EIO
        with pytest.raises(OSError, match="failed at a write"):
            await ends.front.write(16, memoryview(bytes(512)))
        assert await ends.front.read(8, 8) == bytes(4096)
        await until(lambda: ends.back.counters.depth == 0, "every request is counted")
        assert ends.back.counters.errors == 2


@looped
async def test_a_read_only_disk_refuses_writes(machine: Machine) -> None:
    async with Ends(machine, Memory(8192), writable=False, can_discard=True) as ends:
        for refused in (ends.front.write(0, memoryview(bytes(512))), ends.front.discard(0, 8)):
            with pytest.raises(OSError, match="failed at"):
                await refused


@looped
async def test_what_is_not_offered_is_not_supported(machine: Machine) -> None:
    async with Ends(machine, Memory(8192)) as ends:
        with pytest.raises(OSError, match="does not do a discard") as caught:
            await ends.front.discard(0, 8)
        assert caught.value.errno == errno.EOPNOTSUPP


@looped
async def test_sectors_of_4096_are_whole(machine: Machine) -> None:
    async with Ends(machine, Memory(1 << 16), sector_size=4096) as ends:
        await ends.front.write(8, memoryview(b"x" * 4096))
        assert await ends.front.read(8, 8) == b"x" * 4096
        for sector, count in ((1, 8), (8, 4)):
            with pytest.raises(OSError, match="failed at a read"):
                await ends.front.read(sector, count)


class _BadSector(Memory):
    """Where none but the sector at 8192 fails."""

    def pread(self, length: int, offset: int, /) -> bytes:
        self._look(length, offset)
        return super().pread(length, offset)

    def preadv(self, buffers: Sequence[memoryview], offset: int, /) -> None:
        self._look(sum(map(len, buffers)), offset)
        super().preadv(buffers, offset)

    def _look(self, length: int, offset: int) -> None:
        if offset <= 8192 < offset + length:
            raise OSError(errno.EIO, "a bad sector")


@pytest.mark.parametrize("pages", PATHS)
@looped
async def test_a_read_that_fails_between_others_fails_alone(machine: Machine, pages: str) -> None:
    disk = _BadSector(bytearray(random.Random(2).randbytes(16384)))
    async with Ends(machine, disk, pages=pages) as ends:
        ends.stop_back()
        waiting = [asyncio.ensure_future(ends.front.read(8 * number, 8)) for number in range(4)]
        await asyncio.sleep(0)
        ends.start_back()
        done = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(done[2], OSError)
        done[2] = bytes(disk.data[8192:12288])
        assert done == [bytes(disk.data[at : at + 4096]) for at in range(0, 16384, 4096)]
        assert not ends.errors


@pytest.mark.parametrize("pages", PATHS)
@looped
async def test_a_page_that_is_not_granted_is_that_requests_error(
    machine: Machine, pages: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Memory(16384)
    pack = blkif.pack_segments
    async with Ends(machine, disk, pages=pages) as ends:
        ends.stop_back()
        with monkeypatch.context() as patched:
            patched.setattr(blkif, "pack_segments", lambda refs, spans: pack([9999] * len(refs), spans))
            refused = [ends.front.write(0, memoryview(b"x" * 4096)), ends.front.read(0, 8)]
            waiting = [asyncio.ensure_future(each) for each in refused]
            await asyncio.sleep(0)
        waiting.append(asyncio.ensure_future(ends.front.write(16, memoryview(b"y" * 4096))))
        await asyncio.sleep(0)
        ends.start_back()
        done = await asyncio.gather(*waiting, return_exceptions=True)
        assert [isinstance(each, OSError) for each in done] == [True, True, False]
        assert disk.data == bytes(8192) + b"y" * 4096 + bytes(4096)
        assert not ends.errors


@pytest.mark.parametrize("pages", PATHS)
@looped
async def test_a_page_for_which_memory_is_wanting_is_that_requests_error(
    machine: Machine, pages: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOMEM, "as many maps as a process may have")

    async with Ends(machine, Memory(8192), pages=pages) as ends:
        with monkeypatch.context() as patched:
            for name in ("map", "copy_run"):
                patched.setattr(Gnttab, name, fail)
            for asked in (ends.front.write(0, memoryview(b"x" * 4096)), ends.front.read(0, 8)):
                with pytest.raises(OSError, match="failed at"):
                    await asked
        assert await ends.front.read(0, 8) == bytes(4096)
        assert not ends.errors


@looped
async def test_pages_that_come_one_by_one_are_few_maps(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xengrant.pv.block.pages._MOST_GROUPS", 3)
    async with Ends(machine, Memory(1 << 20)) as ends:
        pages = ends.pages
        assert isinstance(pages, KeptPages)
        for count in range(1, 12):  # each time one page more
            await ends.front.read(0, 8 * count)
            maps = len(pages._groups) + len(set(map(id, pages._old.values())))
            assert maps <= 6, "two generations of three"
        assert pages.kept >= 11, "those used last are not kept"
        assert not ends.errors


@pytest.mark.parametrize("answered", [True, False], ids=["some", "none"])
@pytest.mark.parametrize("pages", PATHS)
@looped
async def test_a_successor_answers_what_was_left(machine: Machine, pages: str, answered: bool) -> None:
    async with Ends(machine, Memory(1 << 20), pages=pages) as ends:
        if answered:
            await ends.front.write(0, memoryview(b"a" * 4096))
        ends.stop_back()
        waiting = [ends.front.write(8 * number, memoryview(bytes([number]) * 4096)) for number in range(8)]
        await asyncio.sleep(0)
        ends.start_back()
        await asyncio.gather(*waiting)
        assert await ends.front.read(0, 64) == b"".join(bytes([number]) * 4096 for number in range(8))
        assert not ends.errors


@pytest.mark.parametrize("fails", [False, True], ids=["apart", "adjacent and failing"])
@pytest.mark.parametrize("pages", PATHS)
@looped
async def test_a_slow_disk_is_stopped_after_what_it_does_and_a_successor_does_the_rest(
    machine: Machine, pages: str, fails: bool
) -> None:
    """Adjacent ones are done at once; where that fails, one by one."""
    disk = Slow(1 << 20)
    disk.fails_at_once = fails
    step = 8 if fails else 16
    async with Ends(machine, disk, pages=pages) as ends:
        ends.stop_back()
        waiting = [ends.front.write(step * number, memoryview(bytes([number + 1]) * 4096)) for number in range(4)]
        await asyncio.sleep(0)
        ends.start_back()
        await asyncio.to_thread(disk.begun.wait, SOON)
        ends.back.stop()
        disk.goes_on.set()
        ends.stop_back()
        assert disk.written == [0], "more is done after the stop"
        assert ends.back.counters.writes == 1
        await asyncio.wait_for(waiting[0], SOON)
        ends.start_back()
        await asyncio.gather(*waiting)
        assert disk.written == [512 * step * number for number in range(4)]
        assert not ends.errors


@pytest.mark.parametrize("pages", PATHS)
@looped
async def test_what_a_closing_device_does_not_do_fails(machine: Machine, pages: str) -> None:
    """Where nobody goes on with the ring, a front end would wait for ever."""
    disk = Slow(1 << 20)
    async with Ends(machine, disk, pages=pages) as ends:
        first = asyncio.ensure_future(ends.front.write(0, memoryview(bytes(4096))))
        await asyncio.to_thread(disk.begun.wait, SOON)
        others = [asyncio.ensure_future(ends.front.write(16 * number, memoryview(bytes(4096)))) for number in (1, 2, 3)]
        await asyncio.sleep(0)
        ends.back.stop(refuse=True)
        disk.goes_on.set()
        await first
        results = await asyncio.gather(*others, return_exceptions=True)
        assert [getattr(result, "errno", result) for result in results] == [errno.EIO] * 3
        assert disk.written == [0], "more is done after the stop"
        assert ends.back.join(SOON)
        assert ends.back.counters.errors == 3
        assert ends.back.counters.depth == 0
        assert not ends.errors


@pytest.mark.parametrize("pages", PATHS)
@looped
async def test_a_file_that_closes_at_once_answers_all_that_was_asked(machine: Machine, pages: str) -> None:
    with tempfile.NamedTemporaryFile() as image:
        image.truncate(1 << 20)
        with File(image.name) as disk:
            async with Ends(machine, disk, pages=pages) as ends:
                ends.stop_back()
                page = memoryview(bytes(4096))
                waiting = [asyncio.ensure_future(ends.front.write(8 * number, page)) for number in range(8)]
                await asyncio.sleep(0)
                ends.start_back()
                ends.back.stop(refuse=True)
                results = await asyncio.gather(*waiting, return_exceptions=True)
                done_or_refused = {b"", errno.EIO}  # by whether its thread had begun
                assert {getattr(result, "errno", result) for result in results} <= done_or_refused
                assert ends.back.join(SOON)
                assert not ends.errors


@looped
async def test_rings_of_one_process_keep_few_maps_together(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xengrant.pv.block.pages._MOST_IN_ALL", 4)
    kept = pages_module._kept_in_all
    before = kept.value
    async with Ends(machine, Memory(1 << 20)) as ends:
        for count in range(1, 12):  # each time one page more
            data = bytes([count]) * 4096 * count
            await ends.front.write(0, memoryview(data))
            assert await ends.front.read(0, 8 * count) == data
            assert kept.value <= before + 4
        assert not ends.errors
    assert kept.value == before


@looped
async def test_requests_that_nobody_waits_for_leave_the_line(machine: Machine) -> None:
    async with Ends(machine, Memory(1 << 20)) as ends:
        ends.stop_back()
        asked = [ends.front.write(0, memoryview(bytes(4096))) for _ in range(100)]
        sent = len(ends.front._calls)
        for request in asked:
            request.cancel()
        await asyncio.sleep(0)
        assert ends.front.depth == sent < 100
        ends.start_back()
        assert await ends.front.read(0, 8) == bytes(4096)
