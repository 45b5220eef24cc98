"""A disk that is unplugged while a front end that nobody here wrote waits for what it asked: each request is answered.

Linux's goes to CLOSED at once, and waits for the answers after that (drivers/block/xen-blkfront.c, blkfront_closing).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator

import pytest

import xengrant
from xengrant import pv
from xengrant.abi import blkif
from xengrant.abi.xenbus import XenbusState
from xengrant.embedded import Machine
from xengrant.evtchn import AsyncPort
from xengrant.pv import block
from xengrant.pv.block.back_queue import BackQueue
from xengrant.rings.rpc import FrontRing
from xengrant.xenstore import AsyncXenStore

from .ends import SOON, looped
from .plugged import FRONT, HANDLE, SLOT, bus, made

LAYOUT = blkif.NATIVE


class SlowFlush(block.Memory):
    """`begun` is set by the first flush, which waits for `goes_on`."""

    def __init__(self) -> None:
        super().__init__(8192)
        self.begun, self.goes_on = threading.Event(), threading.Event()
        self.flushed = 0

    def flush(self) -> None:
        self.begun.set()
        self.goes_on.wait(SOON)
        self.flushed += 1


class Front:
    """A front end by hand: a ring, a port, and nodes that it writes as it likes."""

    def __init__(self, ring: FrontRing, port: AsyncPort, store: AsyncXenStore) -> None:
        self._ring = ring
        self._port = port
        self._store = store

    def flush(self, *numbers: int) -> None:
        """Ask for so many flushes."""
        for number in numbers:
            head = blkif.Head(blkif.FLUSH_DISKCACHE, 0, HANDLE, number, 0)
            self._ring.next_request(LAYOUT.pack_rw(head, b""))
        self._ring.push_requests()
        self._port.notify()

    async def is_now(self, state: XenbusState) -> None:
        await self._store.write(f"{FRONT}/state", str(int(state)))

    async def sees(self, state: XenbusState) -> None:
        path = f"{SLOT.back_path}/state"
        async with await self._store.watch(path) as watch:
            async for _ in watch:
                if await self._store.read(path) == b"%d" % state:
                    return

    async def answers(self, count: int) -> list[tuple[int, int]]:
        """(number, status) of so many requests."""
        taken: list[tuple[int, int]] = []
        while len(taken) < count:
            for entry in self._ring.take_responses():
                number, _, status = LAYOUT.unpack_response(entry)
                taken.append((number, status))
            if len(taken) < count and not self._ring.more_to_do():
                await self._port.wait()
        return taken


@contextlib.asynccontextmanager
async def connected(machine: Machine) -> AsyncIterator[Front]:
    """Domain 1's front end, connected."""
    with (
        xengrant.connect(machine.url(1)) as domain,
        domain.gntshr() as gntshr,
        gntshr.share_pages(0, writable=True) as share,
    ):
        async with domain.aio.evtchn() as channels, domain.aio.xenstore() as store:
            port = channels.bind_unbound(0)
            front = Front(FrontRing.init(share.mapping, LAYOUT.entry_size), port, store)
            await front.sees(XenbusState.INIT_WAIT)
            nodes = {"ring-ref": share.refs[0], "event-channel": port.number, "protocol": LAYOUT.protocol}
            for name, value in nodes.items():
                await store.write(f"{FRONT}/{name}", str(value))
            await front.is_now(XenbusState.INITIALISED)
            await front.sees(XenbusState.CONNECTED)
            await front.is_now(XenbusState.CONNECTED)
            yield front


@looped
async def test_what_waits_in_the_ring_of_a_disk_that_is_unplugged_fails(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowFlush()
    stop = BackQueue.stop

    def stop_and_go_on(self: BackQueue, *, refuse: bool = False) -> None:
        stop(self, refuse=refuse)
        disk.goes_on.set()

    monkeypatch.setattr(BackQueue, "stop", stop_and_go_on)
    async with bus(machine, disk), made(machine), connected(machine) as front:
        front.flush(1, 2, 3)
        await asyncio.to_thread(disk.begun.wait, SOON)
        front.flush(4)  # which the back end has not taken
        with xengrant.connect(machine.url(0)) as domain:
            async with domain.aio.xenstore() as store:
                unplugging = asyncio.create_task(pv.unplug(store, SLOT, timeout=SOON))
                await front.sees(XenbusState.CLOSING)
                await front.is_now(XenbusState.CLOSED)
                failed = [(number, blkif.RSP_ERROR) for number in (2, 3, 4)]
                assert await front.answers(4) == [(1, blkif.RSP_OKAY), *failed]
                await unplugging
    assert disk.flushed == 1, "more is done after the front end was closed"
