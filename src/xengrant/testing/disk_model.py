"""A disk under many requests at a time, against a model of it: `exercise` asks, `Model` knows what may come back.

Called by the case of many requests, and by the lab for disks of any front end. Each sector that is written says by whom
and where it belongs, so that what comes back shows a sector lost, doubled or misplaced as such.

Requests may overlap, and then this holds, sector by sector: a read gives what one write left there that began before
the read had ended, and that no other write followed which began after it had ended, and ended before the read began. A
sector that is read while it is written may be some of each. A discard is a write of zeros.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import sys
from collections import Counter, deque
from collections.abc import Awaitable
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Exercised", "Model", "Outcome", "Write", "exercise"]

SECTOR = 512

_ZEROS = bytes(SECTOR)


class Exercised(Protocol):
    """A disk that takes many requests at a time; a sector has 512 bytes."""

    def read(self, sector: int, count: int, /) -> Awaitable[Buffer]: ...

    def write(self, sector: int, data: bytes, /) -> Awaitable[object]: ...

    def flush(self) -> Awaitable[object]: ...

    def discard(self, sector: int, count: int, /) -> Awaitable[object]: ...


class Outcome(NamedTuple):
    """What `exercise` did: how many requests of each kind, and the SHA-256 of the whole disk in the end."""

    requests: dict[str, int]
    sha256: str


class Write:
    """A write, or a discard, whose `number` is 0 then; `end` is None until it is done. Times are the model's."""

    __slots__ = ("count", "end", "number", "sector", "start")

    def __init__(self, number: int, sector: int, count: int, start: int, end: int | None = None) -> None:
        self.number = number
        self.sector = sector
        self.count = count
        self.start = start
        self.end = end

    @property
    def data(self) -> bytes:
        """What it writes."""
        if not self.number:
            return bytes(self.count * SECTOR)
        sectors = range(self.sector, self.sector + self.count)
        return b"".join(_filled(self.number, sector) for sector in sectors)

    def __repr__(self) -> str:
        what = f"write {self.number}" if self.number else "discard"
        return f"<{what} of {self.count} at {self.sector}, from {self.start} to {self.end}>"


def _filled(number: int, sector: int) -> bytes:
    """A sector as a write fills it: the write's number, which is from 1 on, and the sector's, over and over."""
    return (number.to_bytes(8, sys.byteorder) + sector.to_bytes(8, sys.byteorder)) * (SECTOR // 16)


class _Read:
    __slots__ = ("before", "count", "sector", "start")

    def __init__(self, sector: int, count: int, start: int, before: list[tuple[Write, ...]]) -> None:
        self.sector = sector
        self.count = count
        self.start = start
        self.before = before


class Model:
    """What each sector of a disk may be, which is zeros at first. Threads: one."""

    def __init__(self, sectors: int) -> None:
        self.sectors = sectors
        self._now = 0
        self._number = 0
        self._may_be: list[tuple[Write, ...]] = [(Write(0, 0, sectors, 0, 0),)] * sectors
        self._log: deque[Write] = deque()  # of writes that began after a read that is under way
        self._reads: dict[_Read, None] = {}  # under way, the first that began first

    def begin_write(self, sector: int, count: int) -> Write:
        """To be called before it is asked for."""
        self._number += 1
        return self._begin(Write(self._number, sector, count, self._tick()))

    def begin_discard(self, sector: int, count: int) -> Write:
        return self._begin(Write(0, sector, count, self._tick()))

    def end_write(self, write: Write) -> None:
        """It is done: what had been done before it began is no more."""
        write.end = self._tick()
        may_be = self._may_be
        for at in range(write.sector, write.sector + write.count):
            may_be[at] = tuple(
                other for other in may_be[at] if other is write or other.end is None or other.end > write.start
            )

    def begin_read(self, sector: int, count: int) -> _Read:
        read = _Read(sector, count, self._tick(), self._may_be[sector : sector + count])
        self._reads[read] = None
        return read

    def end_read(self, read: _Read, data: Buffer) -> None:
        """AssertionError where these cannot be its sectors."""
        view = memoryview(data).cast("B")
        assert len(view) == read.count * SECTOR, f"{len(view)} bytes for {read.count} sectors"
        for at in range(read.count):
            self._judge(read, read.sector + at, read.before[at], bytes(view[at * SECTOR : (at + 1) * SECTOR]))
        del self._reads[read]
        oldest = next(iter(self._reads)).start if self._reads else self._now
        while self._log and self._log[0].start < oldest:
            self._log.popleft()

    def _tick(self) -> int:
        self._now += 1
        return self._now

    def _begin(self, write: Write) -> Write:
        may_be = self._may_be
        for at in range(write.sector, write.sector + write.count):
            may_be[at] = (*may_be[at], write)
        if self._reads:
            self._log.append(write)
        return write

    def _judge(self, read: _Read, sector: int, before: tuple[Write, ...], data: bytes) -> None:
        words = memoryview(data).cast("Q")
        number, place = words[:2]
        if data == (_filled(number, sector) if number else _ZEROS):
            for write in before:
                if write.number == number:
                    if before is self._may_be[sector] and len(before) > 1 and all(w.end is not None for w in before):
                        self._may_be[sector] = (write,)  # of those that were done at once, it was the last
                    return
        since = [w for w in self._log if w.start > read.start and w.sector <= sector < w.sector + w.count]
        allowed = {w.number: w for w in (*before, *since)}
        pieces = set(zip(words[::2], words[1::2], strict=True))
        known = all(found in allowed and at == (sector if found else 0) for found, at in pieces)
        if known and (len(pieces) == 1 or len(allowed) > 1):
            return
        what = f"sector {place}, of write {number}" if any(data[:16]) else "zeros"
        parts = f", and {len(pieces) - 1} others" if len(pieces) > 1 else ""
        raise AssertionError(f"sector {sector} is {what}{parts}; it may be of {[*before, *since]}")


async def exercise(
    disk: Exercised,
    sectors: int,
    *,
    seed: int | str,
    seconds: float = 0,
    requests: int = 0,
    depth: int = 200,
    longest: int = 300,
    can_discard: bool = True,
) -> Outcome:
    """Ask `depth` requests at a time of random kinds, places and lengths, so many `requests`, and more until so many
    `seconds` have passed.

    A third of them in a sixty-fourth of the disk, where they overlap. Then the whole disk is read. AssertionError, in
    an ExceptionGroup while there are requests, where a sector is not what it may be.
    """
    chance = random.Random(seed)
    model = Model(sectors)
    done: Counter[str] = Counter()
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    left = iter(range(requests))
    kinds = ["read"] * 9 + ["write"] * 9 + ["flush"] + ["discard"] * can_discard
    hot = chance.randrange(64) * (sectors // 64)

    async def ask() -> None:
        while next(left, None) is not None or loop.time() < end:
            kind = chance.choice(kinds)
            count = chance.randint(1, chance.choice((1, 8, 40, longest)))
            first, room = (hot, max(sectors // 64, count)) if chance.random() < 1 / 3 else (0, sectors)
            sector = min(first + chance.randint(0, room - count), sectors - count)
            await _ask(disk, model, kind, sector, count)
            done[kind] += 1

    async with asyncio.TaskGroup() as tasks:
        for _ in range(depth):
            tasks.create_task(ask())
    await disk.flush()
    digest = hashlib.sha256()
    for at in range(0, sectors, longest):
        digest.update(await _read(disk, model, at, min(longest, sectors - at)))
    return Outcome(dict(done), digest.hexdigest())


async def _ask(disk: Exercised, model: Model, kind: str, sector: int, count: int) -> None:
    if kind == "read":
        await _read(disk, model, sector, count)
    elif kind == "write":
        write = model.begin_write(sector, count)
        await disk.write(sector, write.data)
        model.end_write(write)
    elif kind == "discard":
        write = model.begin_discard(sector, count)
        await disk.discard(sector, count)
        model.end_write(write)
    else:
        await disk.flush()


async def _read(disk: Exercised, model: Model, sector: int, count: int) -> Buffer:
    read = model.begin_read(sector, count)
    data = await disk.read(sector, count)
    model.end_read(read, data)
    return data
