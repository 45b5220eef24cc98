"""kill -9 of a server, again and again, under a front end that notices nothing but a pause."""

from __future__ import annotations

import asyncio
import os
import random
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from xengrant.embedded import Machine
from xengrant.pv import block

from .ends import SOON, looped
from .plugged import attached, bus, made
from .process import ServerProcess

SIZE = 4 << 20
WORKERS = 16
KILLS = int(os.environ.get("XENGRANT_BLOCK_KILLS", "5"))


class Work:
    """Workers, each with a part of the disk of its own, that write, read, and compare with a model."""

    def __init__(self, disk: block.BlockFrontend) -> None:
        self.disk = disk
        self.model = bytearray(SIZE)
        self.done = 0
        self.stopping = False
        self._moved = asyncio.Event()

    async def run(self, worker: int) -> None:
        chance = random.Random(worker)
        part = SIZE // 512 // WORKERS
        while not self.stopping:
            count = chance.randrange(1, 300)
            sector = worker * part + chance.randrange(part - count)
            place = slice(sector * 512, (sector + count) * 512)
            if chance.random() < 0.6:
                data = chance.randbytes(count * 512)
                await self.disk.write(sector, data)
                self.model[place] = data
            else:
                assert await self.disk.read(sector, count) == self.model[place], f"{count} sectors from {sector} on"
            self.done += 1
            self._moved.set()

    async def wait_for(self, more: int, working: list[asyncio.Task[None]]) -> None:
        """Until so many more requests are done, or a worker failed."""
        until = self.done + more
        async with asyncio.timeout(SOON):
            while self.done < until:
                self._moved.clear()
                moved = asyncio.create_task(self._moved.wait())
                await asyncio.wait({moved, *working}, return_when=asyncio.FIRST_COMPLETED)
                moved.cancel()
                for task in working:
                    assert not task.done() or task.result() is None


@pytest.mark.parametrize("persistent", [True, False], ids=["persistent", "per-request"])
@looped
async def test_a_killed_server_loses_doubles_and_misplaces_no_sector(
    machine: Machine, tmp_path: Path, persistent: bool
) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SIZE))
    server = await asyncio.to_thread(ServerProcess, machine.url(0), str(path))
    use = block.Use(rings=2, pool_pages=400, persistent=persistent)
    try:
        async with made(machine), attached(machine, use) as disk:
            work = Work(disk)
            working = [asyncio.create_task(work.run(worker)) for worker in range(WORKERS)]
            for _ in range(KILLS):
                await work.wait_for(50, working)
                await asyncio.to_thread(server.kill)
                server = await asyncio.to_thread(ServerProcess, machine.url(0), str(path))
            await work.wait_for(50, working)
            work.stopping = True
            await asyncio.gather(*working)
            assert await disk.read(0, SIZE // 512) == work.model
            assert path.read_bytes() == work.model
    finally:
        await asyncio.to_thread(server.__exit__)


@looped
async def test_a_successor_without_discard_says_so_where_its_predecessor_offered_it(
    machine: Machine, tmp_path: Path
) -> None:
    class Kept(block.Memory):
        discard = None  # type: ignore[assignment]

    image = tmp_path / "disk.img"
    image.write_bytes(bytes(8192))
    async with AsyncExitStack() as opened:
        await opened.enter_async_context(made(machine))
        server = opened.enter_context(ServerProcess(machine.url(0), str(image)))
        front = await opened.enter_async_context(attached(machine))
        assert front.info.can_discard
        server.kill()
        async with bus(machine, Kept(8192)):
            with pytest.raises(OSError, match="does not do a discard"):
                await front.discard(0, 8)
            assert await front.read(0, 8) == bytes(4096)
            front.close()
            await opened.aclose()
