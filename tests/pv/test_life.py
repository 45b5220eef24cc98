"""The life of a device, both ends: connecting, closing from either side, unplugging, reconnecting, taking over."""

from __future__ import annotations

import pytest

import xengrant
from xengrant import pv
from xengrant.pv import XenbusState

from .echo import EchoFront
from .ends import SOON, bench, plugged, run


def test_a_device_connects_works_and_is_unplugged(dom0: xengrant.Domain, guest: xengrant.Domain) -> None:
    async def main() -> None:
        async with bench(dom0, guest) as there:
            slot = await plugged(there.store)
            front = EchoFront()
            async with pv.attach(front, "device/echo/0", domain=guest) as device:
                await device.wait_connected(SOON)
                assert front.greeting == "hello"
                assert await front.ask(b"hello") == b"olleh"
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
                assert await front.ask(b"abc") == (b"CBA" if shout else b"cba")

    run(main())


def test_a_front_end_that_leaves_can_come_again(dom0: xengrant.Domain, guest: xengrant.Domain) -> None:
    async def main() -> None:
        async with bench(dom0, guest) as there:
            slot = await plugged(there.store)
            for turn in range(3):
                front = EchoFront()
                async with pv.attach(front, "device/echo/0", domain=guest) as device:
                    await device.wait_connected(SOON)
                    assert await front.ask(b"%d!" % turn) == b"!%d" % turn
                assert await there.state(slot) is XenbusState.CLOSED
                assert await there.state(slot, "front") is XenbusState.CLOSED
            assert there.events == ["offer", "connect", "disconnect"] * 3
            assert len(there.backs) == 1

    run(main())
