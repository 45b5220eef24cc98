"""The life of a device, both ends: connecting, closing from either side, unplugging, reconnecting."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import xengrant
from xengrant import pv
from xengrant.pv import XenbusState
from xengrant.testing.echo import EchoFront

from .ends import SOON, bench, connected_by_hand, plugged, run


def test_a_device_connects_works_and_is_unplugged(dom0: xengrant.Domain, guest: xengrant.Domain) -> None:
    async def main() -> None:
        async with bench(dom0, guest) as there:
            slot = await plugged(there.store)
            front = EchoFront()
            async with pv.attach(front, "device/echo/0", domain=guest) as device:
                await device.wait_connected(SOON)
                assert front.greeting == "hello"
                assert await front.ask(b"hello", SOON) == b"olleh"
                assert await there.state(slot) is XenbusState.CONNECTED
                assert await there.state(slot, "front") is XenbusState.CONNECTED
                assert there.events == ["offer", "connect"]
                await pv.unplug(there.store, slot, timeout=SOON)
                await device.wait_closed(SOON)
            assert there.events == ["offer", "connect", "disconnect"]
            assert front.events == ["connect", "connected", "disconnect"]
            assert not await there.store.exists(slot.front_path)
            assert not await there.store.exists("/local/domain/0/backend/echo/1")

    run(main())


@pytest.mark.parametrize("shout", [True, False])
def test_a_feature_is_taken_where_both_ends_have_it(shout: bool, dom0: xengrant.Domain, guest: xengrant.Domain) -> None:
    async def main() -> None:
        async with bench(dom0, guest) as there:
            await plugged(there.store)
            front = EchoFront(shout)
            async with pv.attach(front, "device/echo/0", domain=guest) as device:
                await device.wait_connected(SOON)
                assert await front.ask(b"abc", SOON) == (b"CBA" if shout else b"cba")

    run(main())


def test_a_front_end_that_leaves_can_come_again(dom0: xengrant.Domain, guest: xengrant.Domain) -> None:
    async def main() -> None:
        async with bench(dom0, guest) as there:
            slot = await plugged(there.store)
            for turn in range(3):
                front = EchoFront()
                async with pv.attach(front, "device/echo/0", domain=guest) as device:
                    await device.wait_connected(SOON)
                    assert await front.ask(b"%d!" % turn, SOON) == b"!%d" % turn
                assert await there.state(slot) is XenbusState.CLOSED
                assert await there.state(slot, "front") is XenbusState.CLOSED
            assert there.events == ["offer", "connect", "disconnect"] * 3
            assert len(there.backs) == 1

    run(main())


def test_a_front_end_reconnects_where_the_back_end_closes_and_stays_plugged(
    dom0: xengrant.Domain, guest: xengrant.Domain
) -> None:
    async def main() -> None:
        async with bench(dom0, guest) as there:
            slot = await plugged(there.store)
            front = EchoFront()
            async with pv.attach(front, "device/echo/0", domain=guest, reconnect=True) as device:
                await device.wait_connected(SOON)
                await there.set_state(slot, XenbusState.CLOSING, "back")
                await there.until_events(4)
                assert there.events == ["offer", "connect", "disconnect", "offer"]
                await device.wait_connected(SOON)
                assert await front.ask(b"again", SOON) == b"niaga"
            assert front.events == ["connect", "connected", "disconnect"] * 2

    run(main())


def test_an_unplugged_front_end_ends_though_it_never_sees_its_back_end_closed(
    dom0: xengrant.Domain, guest: xengrant.Domain
) -> None:
    """Where the toolstack may not remove the front end's nodes, those of the back end are gone first."""

    async def main() -> None:
        async with dom0.aio.xenstore() as store:
            slot = await plugged(store)
            async with pv.attach(EchoFront(), "device/echo/0", domain=guest, reconnect=True) as device:
                await device.wait_state(XenbusState.INITIALISING, timeout=SOON)
                async with await store.transaction() as transaction:
                    await transaction.write(f"{slot.back_path}/online", "0")
                    await transaction.write(f"{slot.back_path}/state", str(int(XenbusState.CLOSING)))
                await device.wait_state(XenbusState.CLOSED, timeout=SOON)
                await pv.remove(store, slot, halves="back")
                await device.wait_closed(SOON)

    run(main())


def test_a_closing_front_end_has_its_back_end_follow(dom0: xengrant.Domain, guest: xengrant.Domain) -> None:
    """As a guest that powers off: 5, 5, 6, 6."""

    async def main() -> None:
        async with bench(dom0, guest) as there:
            slot = await plugged(there.store)
            async with connected_by_hand(there, slot, guest):
                await there.set_state(slot, XenbusState.CLOSING)
                await there.until(slot, XenbusState.CLOSING)
                assert "disconnect" not in there.events
                await there.set_state(slot, XenbusState.CLOSED)
                await there.until(slot, XenbusState.CLOSED)
                assert there.events == ["offer", "connect", "disconnect"]

    run(main())


def test_an_unplugged_front_end_that_does_not_close_is_disconnected_in_the_end(
    dom0: xengrant.Domain, guest: xengrant.Domain
) -> None:
    async def main() -> None:
        async with bench(dom0, guest, closing_seconds=0.2) as there:
            slot = await plugged(there.store)
            async with connected_by_hand(there, slot, guest):
                await pv.unplug(there.store, slot, timeout=SOON)
                assert there.events == ["offer", "connect", "disconnect"]

    run(main())


def test_unplugging_without_a_back_end_says_so_and_leaves_the_nodes(
    dom0: xengrant.Domain, guest: xengrant.Domain
) -> None:
    async def main() -> None:
        async with dom0.aio.xenstore() as store:
            slot = await plugged(store)
            with pytest.raises(TimeoutError, match="does its program run"):
                await pv.unplug(store, slot, timeout=0.05)
            assert await store.read(f"{slot.back_path}/state") == b"5"
            with pytest.raises(xengrant.XenStoreError, match="unplug it first"):
                await pv.create(store, slot)
            await pv.remove(store, slot)
            assert not await store.exists(slot.back_path)
            await pv.unplug(store, slot, timeout=SOON)  # nothing is there

    run(main())


def test_an_idle_device_is_unplugged_at_once(dom0: xengrant.Domain, guest: xengrant.Domain) -> None:
    async def main() -> None:
        async with bench(dom0, guest) as there:
            slot = await plugged(there.store)
            await there.until(slot, XenbusState.INIT_WAIT)
            await pv.unplug(there.store, slot, timeout=SOON)
            assert there.events == ["offer"]

    run(main())


def test_a_device_that_is_made_anew_is_a_new_device(dom0: xengrant.Domain, guest: xengrant.Domain) -> None:
    async def main() -> None:
        async with bench(dom0, guest) as there:
            for turn in range(1, 4):
                slot = await plugged(there.store)
                front = EchoFront()
                async with pv.attach(front, "device/echo/0", domain=guest) as device:
                    await device.wait_connected(SOON)
                    assert await front.ask(b"new", SOON) == b"wen"
                    await pv.unplug(there.store, slot, timeout=SOON)
                assert len(there.backs) == turn

    run(main())


def test_nodes_that_are_removed_under_both_ends_end_them(dom0: xengrant.Domain, guest: xengrant.Domain) -> None:
    async def main() -> None:
        async with bench(dom0, guest) as there:
            slot = await plugged(there.store)
            async with pv.attach(EchoFront(), "device/echo/0", domain=guest) as device:
                await device.wait_connected(SOON)
                await pv.remove(there.store, slot)
                with pytest.raises(xengrant.PeerClosed):
                    await device.wait_closed(SOON)
            await there.until_gone(slot)
            assert there.events[-1] == "disconnect"
            assert not await there.store.exists(slot.front_path)
            assert not await there.store.exists(slot.back_path)

    run(main())


def test_a_front_end_whose_nodes_vanish_is_disconnected(dom0: xengrant.Domain, guest: xengrant.Domain) -> None:
    async def main() -> None:
        async with bench(dom0, guest) as there:
            slot = await plugged(there.store)
            async with connected_by_hand(there, slot, guest):
                await there.store.rm(slot.front_path)
                await there.until(slot, XenbusState.CLOSED)
                assert there.events == ["offer", "connect", "disconnect"]

    run(main())


def test_a_front_end_that_starts_over_without_a_word_is_offered_again(
    dom0: xengrant.Domain, guest: xengrant.Domain
) -> None:
    async def main() -> None:
        async with bench(dom0, guest) as there:
            slot = await plugged(there.store)
            async with connected_by_hand(there, slot, guest):
                await there.set_state(slot, XenbusState.INITIALISING)
                await there.until(slot, XenbusState.INIT_WAIT)
                assert there.events == ["offer", "connect", "disconnect", "offer"]

    run(main())


def test_nodes_of_the_back_end_that_change_are_told(dom0: xengrant.Domain, guest: xengrant.Domain) -> None:
    async def main() -> None:
        async with bench(dom0, guest) as there:
            slot = await plugged(there.store)
            front = EchoFront()
            async with pv.attach(front, "device/echo/0", domain=guest) as device:
                await device.wait_connected(SOON)
                back = await there.device(slot)
                assert back.connection is not None
                await back.connection.update({"greeting": "good evening"})
                await device._until(lambda: front.greeting == "good evening", SOON, "to be told")

    run(main())


def test_nodes_are_removed_while_the_other_end_writes_its_own(dom0: xengrant.Domain, guest: xengrant.Domain) -> None:
    async def main() -> None:
        async with dom0.aio.xenstore() as store, guest.aio.xenstore() as its:
            slot = await plugged(store)
            disturbed: Any = _Disturbed(store, lambda: its.write("device/echo/0/x", ""))
            await pv.remove(disturbed, slot)
            assert not await store.exists(slot.front_path)
            assert not await store.exists("/local/domain/1/device/echo")
            assert not await store.exists("/local/domain/0/backend/echo/1")

    run(main())


class _Disturbed:
    """xenstore as it is where somebody writes in the middle of each transaction, for as long as that is possible."""

    def __init__(self, store: xengrant.AsyncXenStore, write: Callable[[], Awaitable[None]]) -> None:
        self._store = store
        self._write = write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def run_transaction(self, change: Callable[[Any], Awaitable[None]]) -> None:
        async def disturbed(transaction: Any) -> None:
            await change(transaction)
            with contextlib.suppress(xengrant.XenStoreError):
                await self._write()

        await self._store.run_transaction(disturbed)


def test_a_back_end_that_writes_no_state_is_unplugged_all_the_same(
    dom0: xengrant.Domain, guest: xengrant.Domain
) -> None:
    async def main() -> None:
        async with dom0.aio.xenstore() as store:
            slot = await plugged(store)
            await store.write(f"{slot.front_path}/state", "9")
            await store.write(f"{slot.back_path}/state", "bogus")
            with pytest.raises(TimeoutError, match="state is none that there is"):
                await pv.unplug(store, slot, timeout=0.2)
            await store.rm(slot.front_path)
            with pytest.raises(TimeoutError, match="state is UNKNOWN"):
                await pv.unplug(store, slot, timeout=0.2)
            async with bench(dom0, guest):
                await pv.unplug(store, slot, timeout=SOON)
            assert not await store.exists(slot.back_path)

    run(main())
