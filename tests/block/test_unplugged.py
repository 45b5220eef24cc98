"""A disk that is unplugged while a front end that nobody here wrote waits for what it asked: each request is answered.

Linux's goes to CLOSED at once, and waits for the answers after that (drivers/block/xen-blkfront.c, blkfront_closing).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib
import itertools
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

import xengrant
from xengrant import pv
from xengrant.abi import blkif
from xengrant.abi.xenbus import XenbusState
from xengrant.embedded import Machine
from xengrant.evtchn import AsyncPort
from xengrant.pv import block
from xengrant.pv.backend import BackendDevice
from xengrant.pv.block.back_queue import BackQueue
from xengrant.rings.rpc import FrontRing
from xengrant.xenstore import AsyncXenStore

from .ends import SOON, looped
from .plugged import FRONT, HANDLE, SLOT, attached, bus, made

LAYOUT = blkif.NATIVE

PLUGGED = importlib.import_module("xengrant.pv.block.plugged")  # in whose place the package has the function


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

    def ask(self, **requests: int) -> None:
        """Ask by `flush` or `read`, each a number; what is to be read lies in no page that there is."""
        for name, number in requests.items():
            pages = int(name.startswith("read"))
            head = blkif.Head(blkif.READ if pages else blkif.FLUSH_DISKCACHE, pages, HANDLE, number, 0)
            self._ring.next_request(
                LAYOUT.pack_rw(head, blkif.pack_segments([9999] * pages, [blkif.WHOLE_PAGE] * pages))
            )
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


@contextlib.asynccontextmanager
async def dom0_store(machine: Machine) -> AsyncIterator[AsyncXenStore]:
    with xengrant.connect(machine.url(0)) as domain:
        async with domain.aio.xenstore() as store:
            yield store


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> SlowFlush:
    """Its first flush goes on as soon as its queue is stopped."""
    disk = SlowFlush()
    stop = BackQueue.stop

    def stop_and_go_on(self: BackQueue, *, refuse: bool = False) -> None:
        stop(self, refuse=refuse)
        disk.goes_on.set()

    monkeypatch.setattr(BackQueue, "stop", stop_and_go_on)
    return disk


def failed(*numbers: int) -> list[tuple[int, int]]:
    return [(number, blkif.RSP_ERROR) for number in numbers]


async def _begin(front: Front, disk: SlowFlush) -> None:
    """One flush is being done, two reads wait: one that was taken with it, and one that was not."""
    front.ask(flush=1, read=2)
    await asyncio.to_thread(disk.begun.wait, SOON)
    front.ask(read=3)


@looped
async def test_what_waits_in_the_ring_of_a_disk_that_is_unplugged_fails(machine: Machine, disk: SlowFlush) -> None:
    async with bus(machine, disk), made(machine), connected(machine) as front, dom0_store(machine) as store:
        await _begin(front, disk)
        unplugging = asyncio.create_task(pv.unplug(store, SLOT, timeout=SOON))
        await front.sees(XenbusState.CLOSING)
        await front.is_now(XenbusState.CLOSED)
        assert await front.answers(3) == [(1, blkif.RSP_OKAY), *failed(2, 3)]
        # Linux's had more requests than slots, and asks for those with each answer that it sees.
        for number in (4, 6, 8):
            front.ask(read=number, read_more=number + 1)
            assert await front.answers(2) == failed(number, number + 1)
        await unplugging
    assert disk.flushed == 1


@looped
async def test_flushes_of_a_disk_that_is_unplugged_are_done(machine: Machine, disk: SlowFlush) -> None:
    """Linux takes an empty flush that fails for one that is not needed, and says that all is well."""
    async with bus(machine, disk), made(machine), connected(machine) as front, dom0_store(machine) as store:
        await _begin(front, disk)
        front.ask(flush=4, flush_again=5)
        unplugging = asyncio.create_task(pv.unplug(store, SLOT, timeout=SOON))
        await front.sees(XenbusState.CLOSING)
        await front.is_now(XenbusState.CLOSED)
        answers = [(1, blkif.RSP_OKAY), *failed(2, 3), (4, blkif.RSP_OKAY), (5, blkif.RSP_OKAY)]
        assert await front.answers(5) == answers
        await unplugging
    assert disk.flushed == 2, "once for the first, and once for all that waited"


@looped
async def test_what_waits_fails_where_the_nodes_vanish(machine: Machine, disk: SlowFlush) -> None:
    async with bus(machine, disk), made(machine), connected(machine) as front, dom0_store(machine) as store:
        await _begin(front, disk)
        await store.rm(SLOT.back_path)
        assert await front.answers(3) == [(1, blkif.RSP_OKAY), *failed(2, 3)]


@pytest.mark.parametrize("during", ["_own_state", "_report"])
@looped
async def test_what_waits_fails_where_the_nodes_vanish_in_the_middle_of_a_look(
    machine: Machine, disk: SlowFlush, monkeypatch: pytest.MonkeyPatch, during: str
) -> None:
    async with bus(machine, disk) as served, made(machine), connected(machine) as front, dom0_store(machine) as store:
        await _begin(front, disk)
        go_on = getattr(BackendDevice, during)

        async def vanish_and_go_on(device: BackendDevice, *args: Any) -> Any:
            if await store.exists(SLOT.back_path):
                await store.rm(SLOT.back_path)
            return await go_on(device, *args)

        monkeypatch.setattr(BackendDevice, during, vanish_and_go_on)
        (device,) = served.devices.values()
        if during == "_report":
            assert device.connection is not None
            device.connection.fail(OSError(errno.EIO, "a cable was pulled"))
        else:
            device.news()
        assert await front.answers(3) == [(1, blkif.RSP_OKAY), *failed(2, 3)]


@looped
async def test_what_is_asked_until_a_failed_device_is_seen_to_close_fails(machine: Machine, disk: SlowFlush) -> None:
    async with bus(machine, disk) as served, made(machine), connected(machine) as front:
        await _begin(front, disk)
        (device,) = served.devices.values()
        assert device.connection is not None
        device.connection.fail(OSError(errno.EIO, "a cable was pulled"))
        await front.sees(XenbusState.CLOSING)
        front.ask(read=4)
        assert await front.answers(4) == [(1, blkif.RSP_OKAY), *failed(2, 3, 4)]
        await front.is_now(XenbusState.CLOSED)


@looped
async def test_a_front_end_that_does_not_let_go_and_asks_on_is_unplugged_and_can_come_again(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PLUGGED, "CLOSING_SECONDS", 0.2)
    with xengrant.connect(machine.url(0)) as dom0:
        async with contextlib.AsyncExitStack() as front_end:
            async with block.plugged(block.Memory(8192), 1, domain=dom0):
                front = await front_end.enter_async_context(connected(machine))
                asking = asyncio.create_task(_ask_on(front))
            asking.cancel()
        async with block.plugged(block.Memory(8192), 1, domain=dom0), attached(machine) as disk:
            assert await disk.read(0, 1) == bytes(512)


async def _ask_on(front: Front) -> None:
    for number in itertools.count(1):
        front.ask(read=number)
        await front.answers(1)
        await asyncio.sleep(0.05)


@looped
async def test_a_disk_that_cannot_be_closed_is_taken_away_and_said_to_be(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CLOSING_SECONDS", "REFUSING_SECONDS", "_SLACK"):
        monkeypatch.setattr(PLUGGED, name, 0.1)
    disk = SlowFlush()
    with xengrant.connect(machine.url(0)) as dom0:
        with pytest.raises(TimeoutError, match="has not closed"):
            await _plug_and_hang(machine, dom0, disk)
        async with dom0.aio.xenstore() as store:
            assert not await store.exists(SLOT.back_path)
            assert not await store.exists(SLOT.front_path)


async def _plug_and_hang(machine: Machine, dom0: xengrant.Domain, disk: SlowFlush) -> None:
    async with block.plugged(disk, 1, domain=dom0), connected(machine) as front:
        front.ask(flush=1)
        await asyncio.to_thread(disk.begun.wait, SOON)
        asyncio.get_running_loop().call_later(1.0, disk.goes_on.set)


@pytest.mark.parametrize("state", [XenbusState.CLOSING, XenbusState.CLOSED])
@looped
async def test_an_unplugging_that_was_broken_off_is_ended_by_the_next_server(
    machine: Machine, state: XenbusState
) -> None:
    async with dom0_store(machine) as store:
        await pv.create(store, SLOT, front_nodes={"virtual-device": HANDLE}, back_nodes={"mode": "w"})
        await store.write(f"{SLOT.back_path}/online", "0")
        await store.write(f"{SLOT.back_path}/state", str(int(state)))
    with xengrant.connect(machine.url(0)) as dom0:
        async with block.plugged(block.Memory(8192), 1, domain=dom0), attached(machine) as disk:
            assert await disk.read(0, 1) == bytes(512)
