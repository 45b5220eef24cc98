"""Devices of other domains than dom0 and a guest that stay: two guests, a destroyed one, one directory for several."""

from __future__ import annotations

import asyncio

import pytest

import xengrant
from xengrant import pv
from xengrant.embedded import Machine
from xengrant.testing.echo import EchoBack, EchoFront

from .ends import SOON, Bench, bench, plugged, run, until


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
