"""A disk on the bus, served by dom0 and used by domain 1 of an embedded machine."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import os
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

import xengrant
from xengrant import pv
from xengrant.abi import blkif
from xengrant.embedded import Machine
from xengrant.errors import GrantTableFull, InterfaceClosed, PeerClosed, XenStoreError
from xengrant.pv import block
from xengrant.pv.block.back_queue import BackQueue
from xengrant.pv.connection import Connection

from .ends import SOON, looped, until
from .plugged import FRONT, HANDLE, SLOT, attached, bus, made, plugged
from .slow import Slow


@pytest.mark.parametrize("protocol", blkif.LAYOUTS)
@pytest.mark.parametrize("rings", [1, 2])
@pytest.mark.parametrize("order", [0, 2])
@pytest.mark.parametrize("persistent", [True, False], ids=["persistent", "per-request"])
@looped
async def test_a_disk_is_read_and_written(
    machine: Machine, protocol: str, rings: int, order: int, persistent: bool
) -> None:
    disk = block.Memory(1 << 20)
    use = block.Use(protocol, rings=rings, ring_order=order, persistent=persistent)
    async with plugged(machine, disk, use=use) as (front, served):
        info = front.info
        assert (info.size, info.rings, info.ring_pages, info.persistent) == (1 << 20, rings, 1 << order, persistent)
        data = random.Random(order).randbytes(1 << 19)
        await front.write(3, data)
        assert disk.data[1536 : 1536 + len(data)] == data
        assert await front.read(3, 1024) == data
        await front.flush()
        await front.discard(8, 8)
        assert disk.data[4096:8192] == bytes(4096)
        backend = served.devices[1, str(HANDLE)]._backend
        assert isinstance(backend, block.BlockBackend)
        assert backend.rings == rings
        await until(lambda: backend.counters.depth == 0, "every request is counted")
        assert backend.counters.errors == 0
        assert backend.counters.written_bytes == len(data)


@looped
async def test_a_front_end_comes_again_with_other_rings(machine: Machine) -> None:
    disk = block.Memory(1 << 20)
    async with bus(machine, disk) as served, made(machine):
        for number, (rings, order) in enumerate([(1, 2), (2, 0), (1, 0), (2, 1), (1, 0)]):
            async with attached(machine, block.Use(rings=rings, ring_order=order)) as front:
                data = random.Random(number).randbytes(1 << 18)
                await front.write(0, data)
                assert await front.read(0, 512) == data
                backend = served.devices[1, str(HANDLE)]._backend
                assert isinstance(backend, block.BlockBackend)
                assert backend.rings == rings
        assert disk.data[: len(data)] == data


@looped
async def test_what_is_offered_is_what_the_front_end_gets(machine: Machine) -> None:
    offer = block.Offer(writable=False, sector_size=4096, physical_sector_size=8192, max_segments=16, info=1)
    async with plugged(machine, block.Memory(10000), offer) as (front, _):
        info = front.info
        assert (info.sectors, info.sector_size, info.physical_sector_size) == (16, 4096, 8192)
        assert (info.writable, info.cdrom, info.max_segments) == (False, True, 16)
        assert not info.can_discard
        assert info.can_flush
        with pytest.raises(ValueError, match="read-only"):
            await front.write(0, bytes(4096))
        for sector, count in ((1, 8), (0, 4), (8, 16), (-8, 8), (0, 0)):
            with pytest.raises(ValueError, match="sectors"):
                await front.read(sector, count)


@looped
async def test_the_toolstacks_mode_makes_a_disk_read_only(machine: Machine) -> None:
    async with bus(machine, block.Memory(8192)), made(machine, mode="r"), attached(machine) as front:
        assert not front.info.writable


@looped
async def test_a_disk_that_grew_has_grown_for_the_front_end(machine: Machine, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(8192))
    with block.File(image) as disk:
        async with plugged(machine, disk) as (front, served):
            assert not disk.grow()
            os.truncate(image, 16384)
            assert disk.grow()
            backend = served.devices[1, str(HANDLE)]._backend
            assert isinstance(backend, block.BlockBackend)
            await backend.resize()
            await until(lambda: front.info.sectors == 32, "the front end has seen the new size")
            assert await front.read(24, 8) == bytes(4096)


@looped
async def test_a_disk_that_shrank_ends_where_it_ends_now(machine: Machine, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(16384))
    with block.File(image) as disk:
        async with plugged(machine, disk) as (front, served):
            assert await front.read(24, 8) == bytes(4096)  # the page is kept, and what comes next usual
            backend = served.devices[1, str(HANDLE)]._backend
            assert isinstance(backend, block.BlockBackend)
            disk.size = 8192
            await backend.resize()
            await until(lambda: front.info.sectors == 16, "the front end has seen the new size")
            info, front._info = front.info, dataclasses.replace(front.info, sectors=32)  # as one that does not care
            for asked in (front.read(24, 8), front.write(24, bytes(4096))):
                with pytest.raises(OSError, match="the back end failed"):
                    await asked
            front._info = info
            assert await front.read(8, 8) == bytes(4096)


@pytest.mark.parametrize("persistent", [True, False], ids=["persistent", "per-request"])
@pytest.mark.parametrize("limit", [33, 40])
@looped
async def test_a_request_for_which_pages_are_wanting_fails_at_once(
    machine: Machine, persistent: bool, limit: int
) -> None:
    """It needs 32 pages, and one for the table of them; one more has the ring."""
    async with plugged(machine, block.Memory(1 << 20), use=block.Use(persistent=persistent)) as (front, _):
        machine.configure(1, gntalloc_limit=limit)
        if limit == 40:
            assert await front.read(0, 32 * 8) == bytes(32 * 4096)
        else:
            with pytest.raises(GrantTableFull, match="too few pages"):
                await front.read(0, 32 * 8)
        assert await front.read(0, 8) == bytes(4096)


@looped
async def test_counters_outlive_a_connection_whose_disk_was_slow(machine: Machine) -> None:
    disk = Slow(8192)
    async with _impatient(machine, disk) as served, made(machine):
        async with attached(machine) as front:
            await front.read(0, 8)
            backend = served.devices[1, str(HANDLE)]._backend
            assert isinstance(backend, block.BlockBackend)
            await _leave_while_writing(front, disk)
        disk.goes_on.set()
        async with attached(machine) as front:
            await front.read(0, 8)
            await until(lambda: backend.counters.depth == 0, "every request is counted")
            assert backend.counters.reads == 2
            assert backend.rings == 1


@pytest.mark.parametrize("anew", [False, True], ids=["connected again", "plugged again"])
@looped
async def test_no_write_of_a_connection_that_is_over_overwrites_one_of_the_next(machine: Machine, anew: bool) -> None:
    disk = Slow(8192)
    async with _impatient(machine, disk) as served, AsyncExitStack() as there:
        there_first = await there.enter_async_context(AsyncExitStack())
        await there_first.enter_async_context(made(machine))
        async with attached(machine) as front:
            await _leave_while_writing(front, disk)
        if anew:
            await there_first.aclose()
            await there.enter_async_context(made(machine))
        again = asyncio.create_task(_write(machine, b"new"))
        refused = asyncio.create_task(_error(served))
        await asyncio.wait({again, refused}, return_when=asyncio.FIRST_COMPLETED)
        assert not again.done(), "connected while the disk is at an old write"
        assert "still at requests of a connection that is over" in str(refused.result())
        disk.goes_on.set()
        await again
        assert bytes(disk.data[:3]) == b"new"


@contextlib.asynccontextmanager
async def _impatient(machine: Machine, disk: block.VectoredDisk) -> AsyncIterator[pv.BackendBus]:
    """A bus whose hooks may not last."""
    with xengrant.connect(machine.url(0)) as domain:
        async with pv.BackendBus("vbd", block.serving(disk), domain=domain, hook_seconds=0.4) as served:
            yield served


async def _leave_while_writing(front: block.BlockFrontend, disk: Slow) -> None:
    writing = asyncio.ensure_future(front.write(0, b"old".ljust(4096)))
    await asyncio.to_thread(disk.begun.wait, SOON)
    front.close()
    with pytest.raises(InterfaceClosed):
        await writing


async def _write(machine: Machine, data: bytes) -> None:
    async with attached(machine) as front:
        await front.write(0, data.ljust(4096))


async def _error(served: pv.BackendBus) -> BaseException:
    """What the device fails with, not counting a disconnect that is given up."""

    def error() -> BaseException | None:
        device = served.devices.get((1, str(HANDLE)))
        return None if device is None or str(device.error).startswith("disconnect") else device.error

    return await until(error, "the device fails")


@looped
async def test_a_plain_disk_may_discard(machine: Machine) -> None:
    disk = _Plain(8192)
    async with plugged(machine, disk) as (front, _):
        assert front.info.can_discard
        await front.write(0, b"x" * 8192)
        await front.discard(8, 8)
        assert disk.data == b"x" * 4096 + bytes(4096)


class _Plain:
    """A disk without vectors. What begins at `bad` cannot be read."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.data = bytearray(size)
        self.bad = -1

    def pread(self, length: int, offset: int) -> bytes:
        if offset == self.bad:
            raise OSError(errno.EIO, "a bad sector")
        return bytes(self.data[offset : offset + length])

    def pwrite(self, data: bytes, offset: int) -> None:
        if offset == self.bad:
            raise OSError(errno.EIO, "a bad sector")
        self.data[offset : offset + len(data)] = data

    def flush(self) -> None:
        """Nothing is to be done."""

    def discard(self, length: int, offset: int) -> None:
        self.data[offset : offset + length] = bytes(length)


@looped
async def test_what_another_server_offered_is_offered_no_more(machine: Machine) -> None:
    left: dict[str, pv.Value] = {"feature-discard": 1, "feature-max-indirect-segments": 256, "discard-secure": 1}
    offer = block.Offer(writable=False, max_segments=0)
    async with bus(machine, block.Memory(8192), offer), made(machine, **left), attached(machine) as front:
        assert not front.info.can_discard
        assert front.info.max_segments == 11


@looped
async def test_rings_for_which_threads_are_wanting_leave_none(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[BackQueue] = []
    was_left: list[bool] = []
    start, close = BackQueue.start, Connection._close

    def start_one(self: BackQueue) -> None:
        if len(started) == 1:
            started.append(self)
            raise RuntimeError("can't start new thread")
        start(self)
        started.append(self)

    async def look_and_close(self: Connection, seconds: float) -> None:
        if started and not was_left:
            was_left.append(not started[0].over.done())
        await close(self, seconds)

    monkeypatch.setattr(BackQueue, "start", start_one)
    monkeypatch.setattr(Connection, "_close", look_and_close)
    async with plugged(machine, block.Memory(8192), use=block.Use(rings=2)) as (front, served):
        assert was_left == [False], "a thread serves a ring whose pages are taken from it"
        assert await front.read(0, 8) == bytes(4096)
        backend = served.devices[1, str(HANDLE)]._backend
        assert isinstance(backend, block.BlockBackend)
        assert backend.rings == 2


@pytest.mark.parametrize("kind", ["read", "write"])
@looped
async def test_a_large_request_that_fails_leaves_nothing_under_way(machine: Machine, kind: str) -> None:
    disk = _Plain(4 << 20)
    disk.bad = 0
    async with plugged(machine, disk, use=block.Use(max_segments=11)) as (front, _):
        with pytest.raises(OSError, match=f"failed at a {kind} of 88 sectors at 0"):
            await (front.read(0, 8192) if kind == "read" else front.write(0, bytes(4 << 20)))
        assert front._queues[0].depth == 0


@looped
async def test_a_disk_that_ends_while_its_nodes_are_read_says_what_ended_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with plugged(machine, block.Memory(8192)) as (front, served):
        closed = asyncio.Event()

        async def close_meanwhile(self: Connection, feature: str) -> bool:
            front.close()
            closed.set()
            return True

        monkeypatch.setattr(Connection, "taken", close_meanwhile)
        backend = served.devices[1, str(HANDLE)]._backend
        assert isinstance(backend, block.BlockBackend)
        await backend.resize()  # the front end looks again
        await closed.wait()
        with pytest.raises(InterfaceClosed, match="this disk is closed"):
            await front.read(0, 8)


@looped
async def test_a_plugged_disk_whose_bus_cannot_start_leaves_no_nodes(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(self: pv.BackendBus) -> None:
        raise XenStoreError(errno.ENOSPC, "no watch is left")

    monkeypatch.setattr(pv.BackendBus, "start", fail)
    with xengrant.connect(machine.url(0)) as domain, domain.xenstore() as store:
        with pytest.raises(XenStoreError):
            async with block.plugged(block.Memory(8192), 1, domain=domain):
                pass
        assert not store.exists(f"/local/domain/1/{FRONT}")
        assert not store.exists(f"/local/domain/0/backend/vbd/1/{HANDLE}")


@pytest.mark.parametrize("wrong", [{"data": "mapped"}, {"kept_pages": 0}, {"sector_size": 100}, {"max_rings": 0}])
def test_what_cannot_be_offered_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - each has a text of its own
        block.Offer(**wrong)


@pytest.mark.parametrize("wrong", [{"rings": 0}, {"ring_order": -1}, {"protocol": "arm"}, {"pool_pages": 3}])
def test_what_cannot_be_used_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        block.Use(**wrong)


@looped
async def test_a_disk_that_is_unplugged_fails_what_is_under_way(machine: Machine) -> None:
    async with bus(machine, block.Memory(8192)), made(machine), attached(machine) as front:
        unplugging = asyncio.create_task(_unplug(machine))
        with pytest.raises(PeerClosed):
            await _read_for_ever(front)
        await unplugging


async def _read_for_ever(front: block.BlockFrontend) -> None:
    async with asyncio.timeout(SOON):
        while True:
            await front.read(0, 8)


async def _unplug(machine: Machine) -> None:
    with xengrant.connect(machine.url(0)) as domain:
        async with domain.aio.xenstore() as store:
            await pv.unplug(store, SLOT, timeout=SOON)
