"""Devices on the Xen bus between two domains: connecting, closing, unplugging, taking over, and front ends that lie.

Each half makes its own nodes below ``data``, since between two guests there is no toolstack. What dom0 makes, where
Linux' drivers look for it, is a case of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

from xengrant import pv
from xengrant.errors import InterfaceClosed, ProtocolError
from xengrant.pv import XenbusState
from xengrant.rings.rpc import FrontRing
from xengrant.testing.case import DESTROYABLE_PEER, DOM0, Case
from xengrant.testing.echo import ENTRY, EchoBack, EchoFront
from xengrant.testing.expect import equal, raises, true
from xengrant.testing.here import SOON, Here
from xengrant.xenstore import AsyncXenStore

HEADER = "Xen public/io/xenbus.h"
BLKBACK = "Linux drivers/block/xen-blkback/xenbus.c"
KIND = "xengrant-echo"


_made: list[EchoBack] = []  # in this half's process


def _make(device: pv.Device) -> EchoBack:
    _made.append(EchoBack(device))
    return _made[-1]


def _slot(here: Here, end: str, handle: int = 0) -> pv.Slot:
    """The device between the halves, as the half of that end names it."""
    front, back = (here.domid, here.other) if end == "front" else (here.other, here.domid)
    return pv.Slot(KIND, handle, front=front, back=back, within="data")


@asynccontextmanager
async def _front_nodes(here: Here, handle: int = 0) -> AsyncIterator[tuple[pv.Slot, AsyncXenStore]]:
    """The front end's own half of a device."""
    slot = _slot(here, "front", handle)
    async with here.domain.aio.xenstore() as store:
        await pv.create(store, slot, halves="front")
        try:
            yield slot, store
        finally:
            await pv.remove(store, slot, halves="front")


@asynccontextmanager
async def _serving(here: Here, handles: int = 1) -> AsyncIterator[tuple[pv.BackendBus, AsyncXenStore]]:
    """The back end's own half of so many devices, and a bus that serves them."""
    slots = [_slot(here, "back", handle) for handle in range(handles)]
    async with here.domain.aio.xenstore() as store:
        for slot in slots:
            await pv.create(store, slot, halves="back")
        try:
            async with pv.BackendBus(KIND, _make, domain=here.domain, within="data", closing_seconds=SOON) as bus:
                yield bus, store
        finally:
            for slot in slots:
                await pv.remove(store, slot, halves="back")


@contextmanager
def _ring(here: Here) -> Iterator[dict[str, str]]:
    """The nodes of an honest front end, whose ring and port are there."""
    with (
        here.domain.gntshr() as gntshr,
        gntshr.share_pages(here.other, 1, writable=True) as share,
        here.domain.evtchn() as channels,
        channels.bind_unbound(here.other) as port,
    ):
        FrontRing.init(share.mapping, ENTRY)
        yield {"ring-ref": str(share.refs[0]), "event-channel": str(port.number), "feature-shout": "0"}


async def _write(store: AsyncXenStore, path: str, nodes: Mapping[str, str]) -> None:
    """The nodes in their order, as a front end without transactions does."""
    for name, value in nodes.items():
        await store.write(f"{path}/{name}", value)


async def _hear(here: Here, name: str) -> None:
    await asyncio.to_thread(here.hear, name)


async def _connected(device: pv.FrontendDevice, front: EchoFront) -> None:
    await device.wait_connected(SOON)
    equal(await front.ask(b"hello", SOON), b"OLLEH" if front.shout else b"olleh", "the answer")


class ConnectsAndCloses(Case):
    """Two ends connect through the states of the bus, talk, and close when the front end leaves, again and again"""

    source = f"{HEADER}; {BLKBACK}, frontend_changed"
    peer = "front"

    def front(self, here: Here) -> None:
        asyncio.run(self._front(here))

    async def _front(self, here: Here) -> None:
        async with _front_nodes(here) as (slot, store):
            for turn in range(3):
                here.step(f"connecting, turn {turn}")
                front = EchoFront()
                async with pv.attach(front, slot.front_path, domain=here.domain, closing_seconds=SOON) as device:
                    await _connected(device, front)
                    equal(front.greeting, "hello", "what the back end said of the device")
                    for path in (slot.front_path, slot.back_path):
                        equal(await store.read(f"{path}/state"), b"4", f"the state at {path}")
                for path in (slot.front_path, slot.back_path):
                    equal(await store.read(f"{path}/state"), b"6", f"the state at {path}, closed")
            here.tell("done")

    def back(self, here: Here) -> None:
        asyncio.run(self._back(here))

    async def _back(self, here: Here) -> None:
        async with _serving(here):
            await _hear(here, "done")
            equal(len(_made), 1, "back ends made for one device")
            equal(_made[0].events, ["offer", "connect", "disconnect"] * 3, "what the back end was told")


class FeaturesAreTaken(Case):
    """A feature is in use where the back end offers it and the front end takes it, and only there"""

    source = "Xen public/io/blkif.h: feature nodes of both ends"
    peer = "front"

    def front(self, here: Here) -> None:
        asyncio.run(self._front(here))

    async def _front(self, here: Here) -> None:
        async with _front_nodes(here) as (slot, _):
            for shout in (True, False):
                front = EchoFront(shout=shout)
                async with pv.attach(front, slot.front_path, domain=here.domain, closing_seconds=SOON) as device:
                    await _connected(device, front)
            here.tell("done")

    def back(self, here: Here) -> None:
        asyncio.run(self._back(here))

    async def _back(self, here: Here) -> None:
        async with _serving(here):
            await _hear(here, "done")


class Unplugs(Case):
    """An unplugged device closes at both ends while it is in use, and then has no nodes at the back end"""

    source = f"Xen tools/libs/light/libxl_device.c; {BLKBACK}, xen_blkbk_remove"
    peer = "front"

    def front(self, here: Here) -> None:
        asyncio.run(self._front(here))

    async def _front(self, here: Here) -> None:
        async with _front_nodes(here) as (slot, store):
            front = EchoFront()
            async with pv.attach(front, slot.front_path, domain=here.domain, reconnect=True) as device:
                await _connected(device, front)
                here.tell("connected")
                await device.wait_closed(SOON)
                # dom0 removes this half too
                true(device.state in (XenbusState.CLOSED, XenbusState.UNKNOWN), "the front end is closed")
                true(device.connection is None, "it is disconnected")
            await _hear(here, "unplugged")
            true(not await pv.Nodes(store, slot.back_path).exists("state"), "the back end's nodes are gone")
            with raises(InterfaceClosed, "a request to what is unplugged"):
                await front.ask(b"anybody?", SOON)

    def back(self, here: Here) -> None:
        asyncio.run(self._back(here))

    async def _back(self, here: Here) -> None:
        async with _serving(here) as (_, store):
            await _hear(here, "connected")
            await pv.unplug(store, _slot(here, "back"), timeout=SOON)
            equal(_made[0].events, ["offer", "connect", "disconnect"], "what the back end was told")
            here.tell("unplugged")


class BackEndTakesOver(Case):
    """A back end whose predecessor left without a word goes on with the requests that were not answered"""

    source = f"{BLKBACK}, xen_blkif_map: BACK_RING_ATTACH at rsp_prod; event channels can be bound again"
    peer = "front"

    def front(self, here: Here) -> None:
        asyncio.run(self._front(here))

    async def _front(self, here: Here) -> None:
        async with _front_nodes(here) as (slot, _):
            front = EchoFront()
            async with pv.attach(front, slot.front_path, domain=here.domain, closing_seconds=SOON) as device:
                await _connected(device, front)
                here.tell("connected")
                await _hear(here, "nobody serves")
                asking = [asyncio.create_task(front.ask(b"%d!" % number, SOON)) for number in range(1, 6)]
                await asyncio.sleep(0)  # the next turn of the loop pushes them
                await asyncio.sleep(0)
                here.tell("asked")
                equal(await asyncio.gather(*asking), [b"!%d" % number for number in range(1, 6)], "the answers")
                equal(device.state, XenbusState.CONNECTED, "the front end's state, all the time")
            here.tell("done")

    def back(self, here: Here) -> None:
        asyncio.run(self._back(here))

    async def _back(self, here: Here) -> None:
        async with _serving(here) as (bus, _):
            await _hear(here, "connected")
            await bus.close(leave=True)
            here.tell("nobody serves")
            await _hear(here, "asked")
            async with pv.BackendBus(KIND, _make, domain=here.domain, within="data", closing_seconds=SOON):
                await _hear(here, "done")
            equal([made.events[0] for made in _made], ["offer", "resume"], "how the back ends began")


class LyingFrontEnd(Case):
    """A front end that writes nonsense loses its own device, with the reason; another device goes on"""

    source = "xengrant's own; Linux drivers/xen/xenbus/xenbus_client.c, xenbus_dev_fatal"
    peer = "front"
    _LIES = (("ring-ref", "8x"), ("ring-ref", "-1"), ("event-channel", "4294967296"), ("feature-shout", "\0"))

    def front(self, here: Here) -> None:
        asyncio.run(self._front(here))

    async def _front(self, here: Here) -> None:
        async with _front_nodes(here, 0) as (good, store), _front_nodes(here, 1) as (bad, _):
            front = EchoFront()
            async with pv.attach(front, good.front_path, domain=here.domain, closing_seconds=SOON) as device:
                await _connected(device, front)
                for number, (name, lie) in enumerate(self._LIES):
                    here.step(f"lying with {name} {lie!r}")
                    await _until(store, bad.back_path, XenbusState.INIT_WAIT)
                    with _ring(here) as nodes:
                        await _write(store, bad.front_path, {**nodes, name: lie, "state": "4"})
                        await _hear(here, f"caught {number}")
                    await store.write(f"{bad.front_path}/state", "6")
                    await _until(store, bad.back_path, XenbusState.CLOSED)
                    equal(await front.ask(b"still here", SOON), b"ereh llits", "another device's answer")
                    await store.write(f"{bad.front_path}/state", "1")
            here.tell("done")

    def back(self, here: Here) -> None:
        asyncio.run(self._back(here))

    async def _back(self, here: Here) -> None:
        async with _serving(here, 2) as (bus, store):
            device = await bus.wait_device(here.other, 1, SOON)
            for number, (name, _) in enumerate(self._LIES):
                await device.wait_state(XenbusState.CLOSING, timeout=SOON)
                true(isinstance(device.error, ProtocolError), f"the error is the front end's: {device.error!r}")
                true(name in str(device.error), f"it names {name}: {device.error}")
                path = device.path.removeprefix(f"/local/domain/{here.domid}/")
                text = (await store.read(f"/local/domain/{here.domid}/error/{path}/error")).decode()
                equal(text.partition(" ")[0], "22", "the number in the error node")
                here.tell(f"caught {number}")
                await device.wait_state(XenbusState.CLOSED, timeout=SOON)
            await _hear(here, "done")


class FrontEndJumps(Case):
    """A connected front end that starts over, closes at once, or whose nodes vanish, is disconnected"""

    source = f"{BLKBACK}, frontend_changed; Linux drivers/xen/xenbus/xenbus_probe_frontend.c, xenbus_reset_state"
    peer = "front"

    def front(self, here: Here) -> None:
        asyncio.run(self._front(here))

    async def _front(self, here: Here) -> None:
        slot = _slot(here, "front")
        async with here.domain.aio.xenstore() as store:
            for jump, state in (
                ("6", XenbusState.CLOSED),
                ("1", XenbusState.INIT_WAIT),
                ("", XenbusState.CLOSED),
                ("9", XenbusState.CLOSED),  # after CLOSING, which nobody need see
            ):
                here.step(f"jumping to {jump!r}")
                await pv.create(store, slot, halves="front")
                await self._connect(here, slot, store)
                if jump:
                    await store.write(f"{slot.front_path}/state", jump)
                else:
                    await pv.remove(store, slot, halves="front")
                await _until(store, slot.back_path, state)
                await pv.remove(store, slot, halves="front")
                if state is not XenbusState.INIT_WAIT:
                    await _until(store, slot.back_path, XenbusState.CLOSED)
        here.tell("done")

    async def _connect(self, here: Here, slot: pv.Slot, store: AsyncXenStore) -> None:
        """By hand, so that nobody closes it, and the pages go at once."""
        await _until(store, slot.back_path, XenbusState.INIT_WAIT)
        with _ring(here) as nodes:
            await _write(store, slot.front_path, {**nodes, "state": "4"})
            await _until(store, slot.back_path, XenbusState.CONNECTED)

    def back(self, here: Here) -> None:
        asyncio.run(self._back(here))

    async def _back(self, here: Here) -> None:
        async with _serving(here):
            await _hear(here, "done")
            equal(_made[0].events.count("connect"), 4, "connections")
            equal(_made[0].events.count("disconnect"), 4, "disconnections")


class BackEndRestarts(Case):
    """A front end that stays for it connects again to a back end that closes, is started anew and offers again"""

    source = f"{BLKBACK}, frontend_changed: Closed and online, then Initialising"
    peer = "front"

    def front(self, here: Here) -> None:
        asyncio.run(self._front(here))

    async def _front(self, here: Here) -> None:
        async with _front_nodes(here) as (slot, _):
            front = EchoFront()
            async with pv.attach(
                front, slot.front_path, domain=here.domain, reconnect=True, closing_seconds=SOON
            ) as device:
                await _connected(device, front)
                here.tell("connected")
                await _hear(here, "closed")
                await _connected(device, front)
            here.tell("done")

    def back(self, here: Here) -> None:
        asyncio.run(self._back(here))

    async def _back(self, here: Here) -> None:
        async with _serving(here) as (bus, _):
            await _hear(here, "connected")
            await bus.close()
            equal(_made[0].events, ["offer", "connect", "disconnect"], "what the back end was told")
            here.tell("closed")
            async with pv.BackendBus(KIND, _make, domain=here.domain, within="data", closing_seconds=SOON):
                await _hear(here, "done")


class ToolstackOfDom0(Case):
    """dom0 makes a guest's device where Linux' drivers look, serves it, and unplugs it: no node of it is left"""

    source = "Xen tools/libs/light/libxl_device.c, libxl__device_generic_add"
    peer = "front"
    requires = (DOM0,)

    def front(self, here: Here) -> None:
        asyncio.run(self._front(here))

    async def _front(self, here: Here) -> None:
        await _hear(here, "made")
        front = EchoFront()
        async with pv.attach(front, f"device/{KIND}/51712", domain=here.domain, closing_seconds=SOON) as device:
            await _connected(device, front)
            here.tell("connected")
            await device.wait_closed(SOON)

    def back(self, here: Here) -> None:
        asyncio.run(self._back(here))

    async def _back(self, here: Here) -> None:
        slot = pv.Slot(KIND, 51712, front=here.other, back_name=f"{KIND}-here")
        async with (
            here.domain.aio.xenstore() as store,
            pv.BackendBus(slot.back_name or KIND, _make, domain=here.domain, closing_seconds=SOON),
        ):
            await pv.create(store, slot, front_nodes={"virtual-device": 51712}, back_nodes={"mode": "w"})
            here.tell("made")
            await _hear(here, "connected")
            await pv.unplug(store, slot, timeout=SOON)
            for path in (slot.front_path, slot.back_path.rpartition("/")[0]):
                true(not await store.exists(path), f"{path} is gone")


class DestroyedFrontEnd(Case):
    """When the front end's domain is destroyed, dom0's back end disconnects and removes the nodes that nobody will"""

    source = "Xen docs/misc/xenstore.txt, @releaseDomain"
    peer = "front"
    requires = (DOM0, DESTROYABLE_PEER)

    def front(self, here: Here) -> None:
        asyncio.run(self._front(here))

    async def _front(self, here: Here) -> None:
        await _hear(here, "made")
        front = EchoFront()
        async with pv.attach(front, f"device/{KIND}/0", domain=here.domain) as device:
            await _connected(device, front)
            here.tell("connected")
            await device.wait_closed()

    def back(self, here: Here) -> None:
        asyncio.run(self._back(here))

    async def _back(self, here: Here) -> None:
        slot = pv.Slot(KIND, 0, front=here.other)
        async with (
            here.domain.aio.xenstore() as store,
            pv.BackendBus(KIND, _make, domain=here.domain, closing_seconds=SOON),
        ):
            await pv.create(store, slot)
            here.tell("made")
            await _hear(here, "connected")
            above = slot.back_path.rpartition("/")[0]
            async with await store.watch(above) as watch:
                await asyncio.to_thread(here.destroy_other)
                await _hold(watch.wait, lambda: store.exists(above), f"{above} is gone")
            equal(_made[0].events, ["offer", "connect", "disconnect"], "what the back end was told")


async def _until(store: AsyncXenStore, path: str, state: XenbusState) -> None:
    nodes = pv.Nodes(store, path)

    async def is_not() -> bool:
        return await nodes.state() is not state

    async with await store.watch(f"{path}/state") as watch:
        await _hold(watch.wait, is_not, f"{path} is {state.name}")


async def _hold(wait: Callable[[], Awaitable[object]], goes_on: Callable[[], Awaitable[bool]], what: str) -> None:
    limit = asyncio.timeout(SOON)
    try:
        async with limit:
            while await goes_on():
                await wait()
    except TimeoutError:
        true(not limit.expired(), f"{what}, within {SOON:g} seconds")
        raise
