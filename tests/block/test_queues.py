"""A front end's queue against a back end's, on an embedded machine: what is written is what is read."""

from __future__ import annotations

import asyncio
import errno
import random

import pytest

from xengrant.abi import blkif
from xengrant.abi.blkif import Layout
from xengrant.embedded import Machine
from xengrant.pv.block.disks import Memory

from .ends import Ends, looped

PATHS = ["kept", "mapped", "copied"]


@pytest.mark.parametrize("pages", PATHS)
@pytest.mark.parametrize("persistent", [True, False], ids=["pool", "per-request"])
@pytest.mark.parametrize("layout", blkif.LAYOUTS.values(), ids=blkif.LAYOUTS)
@looped
async def test_what_is_written_is_read(machine: Machine, pages: str, persistent: bool, layout: Layout) -> None:
    if pages == "kept" and not persistent:
        pytest.skip("a back end keeps the pages of a front end that uses them again")
    disk = Memory(1 << 20)
    async with Ends(machine, disk, pages=pages, persistent=persistent, layout=layout) as ends:
        data = random.Random(1).randbytes(32 * 4096)
        await ends.front.write(8, memoryview(data))
        assert disk.data[4096 : 4096 + len(data)] == data
        assert await ends.front.read(8, 256) == data
        assert await ends.front.read(11, 3) == data[3 * 512 : 6 * 512]
        await ends.front.flush()
        counters = ends.back.counters
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


@pytest.mark.parametrize("pages", PATHS)
@looped
async def test_a_successor_answers_what_was_left(machine: Machine, pages: str) -> None:
    async with Ends(machine, Memory(1 << 20), pages=pages) as ends:
        await ends.front.write(0, memoryview(b"a" * 4096))
        ends.stop_back()
        waiting = [ends.front.write(8 * number, memoryview(bytes([number]) * 4096)) for number in range(8)]
        await asyncio.sleep(0)
        ends.start_back()
        await asyncio.gather(*waiting)
        assert await ends.front.read(0, 64) == b"".join(bytes([number]) * 4096 for number in range(8))
