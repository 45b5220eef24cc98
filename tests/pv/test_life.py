"""The life of a device, both ends: connecting, closing from either side, unplugging, reconnecting, taking over."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import xengrant
from xengrant import pv
from xengrant.embedded import Machine
from xengrant.pv import XenbusState
from xengrant.testing.echo import EchoBack, EchoFront

from .ends import SOON, Bench, bench, connected_by_hand, plugged, run, until


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


# Leaving and taking over


def test_a_successor_resumes_what_is_connected(dom0: xengrant.Domain, guest: xengrant.Domain) -> None:
    async def main() -> None:
        async with dom0.aio.xenstore() as store:
            slot = await plugged(store)
        front = EchoFront()
        bus = pv.BackendBus("echo", EchoBack, domain=dom0)
        await bus.start()
        async with pv.attach(front, "device/echo/0", domain=guest) as device:
            await device.wait_connected(SOON)
            assert await front.ask(b"first", SOON) == b"tsrif"
            await bus.close(leave=True)
            asking = asyncio.create_task(front.ask(b"second", SOON))
            async with bench(dom0, guest) as there:
                assert await asking == b"dnoces"
                assert there.events == ["resume"]
                assert await there.state(slot) is XenbusState.CONNECTED
                await device.wait_connected(SOON)
            await device.wait_closed(SOON)

    run(main())


_SERVER = """
import asyncio, xengrant
from xengrant import pv
from xengrant.testing.echo import EchoBack

async def main():
    with xengrant.connect() as domain:
        async with pv.BackendBus("echo", EchoBack, domain=domain) as bus:
            await bus.serve_forever()

asyncio.run(main())
"""


def test_a_killed_back_end_is_replaced_and_nothing_is_lost(
    machine: Machine, dom0: xengrant.Domain, guest: xengrant.Domain
) -> None:
    @contextmanager
    def serving() -> Iterator[None]:
        command, where = [sys.executable, "-c", _SERVER], os.environ | {"XENGRANT_URL": machine.url(0)}
        with subprocess.Popen(command, env=where) as server:
            try:
                yield
            finally:
                server.kill()

    async def main() -> None:
        async with dom0.aio.xenstore() as store:
            slot = await plugged(store)
            front = EchoFront()
            async with pv.attach(front, "device/echo/0", domain=guest) as device:
                asking: list[asyncio.Task[bytes]] = []
                for turn in range(3):
                    with serving():
                        await device.wait_connected(SOON)
                        answers = await asyncio.gather(*asking)
                        assert answers == [f"{turn - 1}-{number}".encode()[::-1] for number in range(len(asking))]
                        asking = [asyncio.create_task(front.ask(f"{turn}-{i}".encode(), SOON)) for i in range(200)]
                        await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
                with serving():
                    await asyncio.gather(*asking)
                    assert device.state is XenbusState.CONNECTED
                    await pv.unplug(store, slot, timeout=SOON)
            # Each successor wrote Connected anew: that is what it had to say.
            assert set(front.events[2:-1]) == {"changed hello"}
            assert [*front.events[:2], front.events[-1]] == ["connect", "connected", "disconnect"]

    run(main())


def test_a_domain_that_is_still_built_keeps_its_nodes(dom0: xengrant.Domain, guest: xengrant.Domain) -> None:
    """A toolstack makes the domain's directory, and perhaps its devices, before it introduces it."""

    async def main() -> None:
        async with bench(dom0, guest) as there:
            await there.store.write("/local/domain/9/name", "to be")
            slot = pv.Slot("echo", 0, front=9)
            async with await there.store.watch(slot.back_path) as watch:
                await there.store.write(f"{slot.back_path}/frontend", slot.front_path)
                await there.store.write(f"{slot.back_path}/frontend-id", "9")
                await there.store.write(f"{slot.back_path}/state", "1")
                await there.until(slot, XenbusState.INIT_WAIT)
                await there.bus._bury(there.store, 9)
                await there.store.rm("/local/domain/9")
                assert await there.store.exists(slot.back_path)
                await there.bus._bury(there.store, 9)
                while await there.store.exists(slot.back_path):
                    await watch.wait(SOON)

    run(main())


def test_a_successor_offers_where_the_predecessor_had_only_offered(
    dom0: xengrant.Domain, guest: xengrant.Domain
) -> None:
    async def main() -> None:
        async with dom0.aio.xenstore() as store:
            slot = await plugged(store)
        bus = pv.BackendBus("echo", EchoBack, domain=dom0)
        await bus.start()
        await (await bus.wait_device(1, 0, SOON)).wait_state(XenbusState.INIT_WAIT, timeout=SOON)
        await bus.close(leave=True)
        front = EchoFront(shout=True)
        async with pv.attach(front, "device/echo/0", domain=guest) as device:
            await device.wait_state(XenbusState.INITIALISED, timeout=SOON)
            async with bench(dom0, guest) as there:
                await device.wait_connected(SOON)
                assert there.events == ["connect"]
                assert await front.ask(b"features hold", SOON) == b"DLOH SERUTAEF"
                assert await there.state(slot) is XenbusState.CONNECTED

    run(main())


def test_a_closing_bus_closes_its_devices(dom0: xengrant.Domain, guest: xengrant.Domain) -> None:
    async def main() -> None:
        async with dom0.aio.xenstore() as store:
            slots = [await plugged(store, handle) for handle in range(3)]
            front = EchoFront()
            async with bench(dom0, guest) as there:
                async with pv.attach(front, "device/echo/1", domain=guest) as device:
                    await device.wait_connected(SOON)
                    await there.bus.close()
                    await device.wait_closed(SOON)
                await there.bus.close()
                await there.bus.serve_forever()
                assert there.bus.devices == {}
            for slot in slots:
                assert await pv.Nodes(store, slot.back_path).state() is XenbusState.CLOSED
            # And another takes over what is closed, and the front end begins again.
            async with bench(dom0, guest), pv.attach(front, "device/echo/1", domain=guest) as device:
                await device.wait_connected(SOON)

    run(main())


def test_a_front_end_resets_what_its_predecessor_left(dom0: xengrant.Domain, guest: xengrant.Domain) -> None:
    async def main() -> None:
        async with bench(dom0, guest) as there:
            slot = await plugged(there.store)
            async with connected_by_hand(there, slot, guest):
                pass
            front = EchoFront()
            async with pv.attach(front, "device/echo/0", domain=guest) as device:
                await device.wait_connected(SOON)
                assert await front.ask(b"mine", SOON) == b"enim"

    run(main())


def test_a_front_end_without_a_back_end_says_whom_it_waits_for(dom0: xengrant.Domain, guest: xengrant.Domain) -> None:
    async def main() -> None:
        async with dom0.aio.xenstore() as store:
            slot = await plugged(store)
            async with pv.attach(EchoFront(), "device/echo/0", domain=guest, closing_seconds=0.1) as device:
                with pytest.raises(TimeoutError, match=rf"{slot.back_path} is INITIALISING"):
                    await device.wait_connected(0.05)
            await store.write(f"{slot.front_path}/state", "4")
            await store.write(f"{slot.back_path}/state", "4")
            async with pv.attach(EchoFront(), "device/echo/0", domain=guest, closing_seconds=0.1) as device:
                with pytest.raises(TimeoutError, match="does its program run"):
                    await device.wait_connected(SOON)
            async with pv.attach(EchoFront(), "device/echo/7", domain=guest) as device:
                with pytest.raises(xengrant.ProtocolError, match="there is no"):
                    await device.wait_connected(SOON)
            await store.write(f"{slot.front_path}/state", "6")
            await store.write(f"{slot.back_path}/state", "6")
            await store.write(f"{slot.back_path}/online", "0")
            async with pv.attach(EchoFront(), "device/echo/0", domain=guest, closing_seconds=0.1) as device:
                with pytest.raises(xengrant.PeerClosed, match="offers it no more"):
                    await device.wait_connected(SOON)

    run(main())


# Where the domains are


def test_a_destroyed_domain_is_disconnected_and_its_nodes_go(
    machine: Machine, dom0: xengrant.Domain, guest: xengrant.Domain
) -> None:
    async def main() -> None:
        async with bench(dom0, guest) as there:
            slot = await plugged(there.store)
            await plugged(there.store, front=2)
            front = EchoFront()
            try:
                async with pv.attach(front, "device/echo/0", domain=guest) as device:
                    await device.wait_connected(SOON)
                    machine.destroy(1)
                    await there.until_gone(slot)
                    assert there.events[-1] == "disconnect" or there.backs[0].events[-1] == "disconnect"
                    await until(there.store, "@releaseDomain", lambda: _none_at(there, 1), "the nodes are gone")
                    assert await there.store.exists("/local/domain/0/backend/echo/2/0")
            except (xengrant.InterfaceUnavailable, xengrant.PeerClosed):
                pass

    run(main())


def test_a_guest_can_be_the_back_end(machine: Machine, dom0: xengrant.Domain, guest: xengrant.Domain) -> None:
    async def main() -> None:
        with xengrant.connect(machine.url(2)) as driver:
            async with bench(dom0, guest, back=driver) as there:
                slot = await plugged(there.store, back=2)
                front = EchoFront()
                async with pv.attach(front, "device/echo/0", domain=guest) as device:
                    await device.wait_connected(SOON)
                    assert await front.ask(b"driver domain", SOON) == b"niamod revird"
                    await pv.unplug(there.store, slot, timeout=SOON)

    run(main())


def test_two_guests_make_a_device_without_a_toolstack(
    machine: Machine, dom0: xengrant.Domain, guest: xengrant.Domain
) -> None:
    async def main() -> None:
        slot = pv.Slot("echo", "x", front=1, back=2, within="data")
        with xengrant.connect(machine.url(2)) as driver:
            async with guest.aio.xenstore() as fronts, driver.aio.xenstore() as backs:
                async with pv.BackendBus("echo", EchoBack, domain=driver, within="data"):
                    await pv.create(backs, slot, halves="back")
                    await pv.create(fronts, slot, halves="front")
                    front = EchoFront()
                    async with pv.attach(front, slot.front_path, domain=guest) as device:
                        await device.wait_connected(SOON)
                        assert await front.ask(b"guests", SOON) == b"stseug"
                await pv.remove(fronts, slot, halves="front")
                await pv.remove(backs, slot, halves="back")
                assert await fronts.directory("data/device") == []

    run(main())


def test_a_directory_is_shared_by_programs_that_say_what_is_theirs(
    machine: Machine, dom0: xengrant.Domain, guest: xengrant.Domain
) -> None:
    async def main() -> None:
        async with (
            bench(dom0, guest, accept=lambda domid, handle: handle == "0") as zero,
            bench(dom0, guest, accept=lambda domid, handle: handle == "1") as one,
        ):
            await plugged(zero.store, 0)
            await plugged(zero.store, 1)
            for handle, there in (("0", zero), ("1", one)):
                front = EchoFront()
                async with pv.attach(front, f"device/echo/{handle}", domain=guest) as device:
                    await device.wait_connected(SOON)
                    assert there.events == ["offer", "connect"]
                    assert list(there.bus.devices) == [(1, handle)]

    run(main())


def test_a_bus_without_xenstore_ends_and_says_so(machine: Machine, dom0: xengrant.Domain) -> None:
    async def main() -> None:
        async with pv.BackendBus("echo", EchoBack, domain=dom0) as bus:
            serving = asyncio.create_task(bus.serve_forever())
            bus._store.nodes.close()
            with pytest.raises(xengrant.InterfaceClosed):
                await serving

    run(main())


async def _none_at(there: Bench, domid: int) -> bool:
    return not await there.store.exists(f"/local/domain/0/backend/echo/{domid}")
