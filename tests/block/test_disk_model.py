"""The model of a disk under requests that overlap: it takes what a disk may do, and finds what it may not."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Callable

import pytest

from xengrant.testing.disk_model import Model, exercise

SECTORS = 2048


class Slow:
    """A disk that does each request after others, in any order, and then tells of it after others again."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.data = bytearray(SECTORS * 512)
        self.asked = 0
        self.most = 0

    async def read(self, sector: int, count: int) -> bytes:
        await self._pass()
        data = bytes(self.data[sector * 512 : (sector + count) * 512])
        await self._pass()
        return data

    async def write(self, sector: int, data: bytes) -> None:
        await self._pass()
        self.put(sector, data)
        await self._pass()

    async def discard(self, sector: int, count: int) -> None:
        await self.write(sector, bytes(count * 512))

    async def flush(self) -> None:
        await self._pass()

    def put(self, sector: int, data: bytes) -> None:
        self.data[sector * 512 : sector * 512 + len(data)] = data

    async def _pass(self) -> None:
        self.asked += 1
        self.most = max(self.most, self.asked)
        for _ in range(self.chance.randrange(5)):
            await asyncio.sleep(0)
        self.asked -= 1


@pytest.mark.parametrize("seed", range(3))
def test_requests_in_any_order_are_right(seed: int) -> None:
    disk = Slow(random.Random(seed))
    done, sha256 = asyncio.run(exercise(disk, SECTORS, seed=seed, requests=1000))
    assert sha256 == hashlib.sha256(disk.data).hexdigest()
    assert sum(done.values()) == 1000
    assert set(done) == {"read", "write", "flush", "discard"}
    assert min(done.values()) > 20
    assert disk.most > 150


def test_requests_go_on_until_the_time_is_over() -> None:
    started = time.monotonic()
    done, _ = asyncio.run(exercise(Slow(random.Random(1)), SECTORS, seed=1, seconds=0.2, requests=10))
    assert time.monotonic() - started >= 0.2
    assert sum(done.values()) >= 10


def _lose_a_sector(disk: Slow, sector: int, data: bytes) -> None:
    Slow.put(disk, sector, data[:-512])


def _double_a_sector(disk: Slow, sector: int, data: bytes) -> None:
    Slow.put(disk, sector, data + data[:512])


def _misplace(disk: Slow, sector: int, data: bytes) -> None:
    Slow.put(disk, sector + 1, data)


def _swap(disk: Slow, sector: int, data: bytes) -> None:
    Slow.put(disk, sector, data[512:1024] + data[:512] + data[1024:])


def _tear(disk: Slow, sector: int, data: bytes) -> None:
    Slow.put(disk, sector, data[:-256])


def _do_it_late(disk: Slow, sector: int, data: bytes) -> None:
    """Do it now and once more when others may have written there."""
    Slow.put(disk, sector, data)
    asyncio.get_running_loop().call_later(0.02, Slow.put, disk, sector, data)


@pytest.mark.parametrize("fault", [_lose_a_sector, _double_a_sector, _misplace, _swap, _tear, _do_it_late])
def test_faults_of_a_few_writes_are_found(fault: Callable[[Slow, int, bytes], None]) -> None:
    class Faulty(Slow):
        writes = 0

        def put(self, sector: int, data: bytes) -> None:
            self.writes += 1
            if self.writes % 20 == 0 and len(data) > 512 and 0 < sector < SECTORS - 300:
                fault(self, sector, data)
            else:
                super().put(sector, data)

    with pytest.raises(ExceptionGroup) as failed:
        asyncio.run(exercise(Faulty(random.Random(1)), SECTORS, seed=1, requests=2000))
    assert "it may be of" in str(failed.value.exceptions[0])


def test_a_write_that_was_followed_by_another_does_not_come_back() -> None:
    model = Model(8)
    old = model.begin_write(0, 1)
    model.end_write(old)
    new = model.begin_write(0, 1)
    early = model.begin_read(0, 1)
    model.end_write(new)
    model.end_read(early, old.data)  # both were under way
    late = model.begin_read(0, 1)
    with pytest.raises(AssertionError, match="sector 0 is sector 0, of write 1"):
        model.end_read(late, old.data)


def test_of_writes_at_once_the_one_that_was_read_stays() -> None:
    model = Model(8)
    one, two = model.begin_write(0, 1), model.begin_write(0, 1)
    model.end_write(two)
    model.end_write(one)
    model.end_read(model.begin_read(0, 1), two.data)
    with pytest.raises(AssertionError):
        model.end_read(model.begin_read(0, 1), one.data)


def test_sectors_are_torn_only_while_they_are_written() -> None:
    model = Model(8)
    write = model.begin_write(0, 1)
    torn = write.data[:128] + bytes(384)
    model.end_read(model.begin_read(0, 1), torn)
    model.end_write(write)
    with pytest.raises(AssertionError, match="and 1 others"):
        model.end_read(model.begin_read(0, 1), torn)
