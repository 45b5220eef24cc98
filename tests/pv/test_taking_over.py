"""Ends that go on where another left: a back end after one that was closed or killed, a front end after its like."""

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

from .ends import SOON, bench, connected_by_hand, plugged, run


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
