"""What the tests of the bus share: dom0 as toolstack and back end, a guest as front end, and waits with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import xengrant
from xengrant import pv
from xengrant.pv import XenbusState
from xengrant.rings.rpc import FrontRing
from xengrant.testing.echo import ENTRY, EchoBack

LONG = 60.0  # seconds; no test comes near it on a machine of its own
SOON = 20.0

_T = TypeVar("_T")


def run(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """The coroutine's result, within a deadline, with nothing left behind."""

    async def main() -> _T:
        try:
            async with asyncio.timeout(LONG):
                result = await coroutine
        except TimeoutError as error:
            raise AssertionError(f"not done in {LONG} seconds") from error
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"tasks were left behind: {left}"
        return result

    return asyncio.run(main())


@dataclass
class Bench:
    """Two domains and a device between them, with dom0's view of xenstore and a bus where the back end is."""

    back: xengrant.Domain
    front: xengrant.Domain
    store: xengrant.AsyncXenStore  # dom0's
    backs: list[EchoBack]
    bus: pv.BackendBus

    @property
    def events(self) -> list[str]:
        """What the last back end was told."""
        return self.backs[-1].events

    async def state(self, slot: pv.Slot, end: str = "back") -> XenbusState:
        return await pv.Nodes(self.store, slot.back_path if end == "back" else slot.front_path).state()

    async def set_state(self, slot: pv.Slot, state: XenbusState, end: str = "front", **nodes: pv.Value) -> None:
        """As whoever writes that end."""
        path = slot.back_path if end == "back" else slot.front_path

        async def change(transaction: Any) -> None:
            for name, value in nodes.items():
                await transaction.write(f"{path}/{name.replace('_', '-')}", str(value))
            await transaction.write(f"{path}/state", str(int(state)))

        await self.store.run_transaction(change)

    async def until(self, slot: pv.Slot, state: XenbusState, end: str = "back") -> None:
        """Wait until that end's node says so."""
        path = slot.back_path if end == "back" else slot.front_path
        await until(self.store, path, lambda: self._is(slot, state, end), f"the {end} end's state is {state.name}")

    async def _is(self, slot: pv.Slot, state: XenbusState, end: str) -> bool:
        return await self.state(slot, end) is state

    async def until_events(self, count: int) -> None:
        """Wait until the last back end was told so much."""
        top = "/local/domain/0/backend/echo"
        await until(self.store, top, lambda: _is(bool(self.backs and len(self.events) >= count)), f"{count} events")

    async def until_gone(self, slot: pv.Slot) -> None:
        """Wait until the bus has forgotten the device."""
        device = self.bus.devices.get((slot.front, str(slot.handle)))
        if device is not None:
            await device.wait_state(XenbusState.UNKNOWN, timeout=SOON)

    async def device(self, slot: pv.Slot) -> pv.Device:
        return await self.bus.wait_device(slot.front, slot.handle, SOON)


async def until(
    store: xengrant.AsyncXenStore, path: str, holds: Callable[[], Awaitable[bool]], what: str, seconds: float = SOON
) -> None:
    """Wait until `holds()`, asked whenever something below `path` changes."""
    async with await store.watch(path) as watch:
        try:
            async with asyncio.timeout(seconds):
                while not await holds():
                    await watch.wait()
        except TimeoutError:
            raise AssertionError(f"not so in {seconds} seconds: {what}") from None


async def _is(condition: bool) -> bool:
    return condition


@asynccontextmanager
async def connected_by_hand(
    there: Bench, slot: pv.Slot, front: xengrant.Domain, *, connects: bool = True, **nodes: pv.Value
) -> AsyncIterator[xengrant.Share]:
    """A front end of which nobody takes care: a page and a port, and the nodes that a test writes instead."""
    with (
        front.gntshr() as gntshr,
        gntshr.share_pages(slot.back, 1, writable=True) as share,
        front.evtchn() as channels,
        channels.bind_unbound(slot.back) as port,
    ):
        FrontRing.init(share.mapping, ENTRY)
        await there.until(slot, XenbusState.INIT_WAIT)
        honest: dict[str, pv.Value] = {"ring_ref": share.refs[0], "event_channel": port.number}
        await there.set_state(slot, XenbusState.CONNECTED, "front", **honest | {"feature_shout": 0} | nodes)
        if connects:
            await there.until(slot, XenbusState.CONNECTED)
        yield share


@asynccontextmanager
async def bench(
    dom0: xengrant.Domain,
    front: xengrant.Domain,
    make: Callable[[pv.Device], EchoBack] = EchoBack,
    *,
    back: xengrant.Domain | None = None,
    **settings: Any,
) -> AsyncIterator[Bench]:
    """A bus that serves echo devices in domain `back`, dom0 if none is given."""
    backs: list[EchoBack] = []

    def remember(device: pv.Device) -> EchoBack:
        backs.append(make(device))
        return backs[-1]

    back = back or dom0
    async with (
        dom0.aio.xenstore() as store,
        pv.BackendBus("echo", remember, domain=back, **settings) as bus,
    ):
        yield Bench(back, front, store, backs, bus)


async def plugged(store: xengrant.AsyncXenStore, handle: str | int = 0, *, front: int = 1, back: int = 0) -> pv.Slot:
    """A new device."""
    slot = pv.Slot("echo", handle, front=front, back=back)
    await pv.create(store, slot)
    return slot
