"""What fails, on purpose or not: one device closes, with the reason where Linux leaves it, and the others go on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from itertools import pairwise

import pytest

import xengrant
from xengrant import _native, pv
from xengrant.abi import ring
from xengrant.pv import XenbusState
from xengrant.testing.echo import EchoBack, EchoFront

from .ends import SOON, Bench, bench, connected_by_hand, plugged, run, until

ERROR = "/local/domain/0/error/backend/echo/1"


async def until_error(there: Bench, handle: str = "0") -> str:
    """The device's error node, once it is there."""
    path = f"{ERROR}/{handle}/error"
    await until(there.store, path, lambda: there.store.exists(path), f"{path} is there")
    return (await there.store.read(path)).decode()


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        ({"ring_ref": "x"}, "ring-ref is b'x'"),
        ({"ring_ref": -1}, "ring-ref is b'-1'"),
        ({"event_channel": "4294967296"}, "event-channel"),
        ({"feature_shout": "yes"}, "feature-shout"),
        ({"ring_ref": 4000}, "4000"),
        ({"event_channel": 999}, "999"),
    ],
)
def test_a_front_end_that_lies_in_its_nodes_is_closed_alone(
    nodes: Mapping[str, pv.Value],
    says: str,
    dom0: xengrant.Domain,
    guest: xengrant.Domain,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        async with bench(dom0, guest, closing_seconds=0.1) as there:
            liar, honest = await plugged(there.store, 0), await plugged(there.store, 1)
            front = EchoFront()
            async with (
                pv.attach(front, "device/echo/1", domain=guest) as device,
                connected_by_hand(there, liar, guest, connects=False, **nodes),
            ):
                await device.wait_connected(SOON)
                assert says in await until_error(there)
                assert "Traceback" not in caplog.text, "it is no defect here"
                await there.until(liar, XenbusState.CLOSED)
                assert await front.ask(b"still here", SOON) == b"ereh llits"
                assert await there.state(honest) is XenbusState.CONNECTED

    run(main())


def test_a_front_end_that_lies_in_its_ring_is_closed_alone(dom0: xengrant.Domain, guest: xengrant.Domain) -> None:
    async def main() -> None:
        async with bench(dom0, guest, closing_seconds=0.1) as there:
            liar = await plugged(there.store)
            await plugged(there.store, 1)
            honest, lying = EchoFront(), EchoFront()
            async with (
                pv.attach(honest, "device/echo/1", domain=guest) as device,
                pv.attach(lying, "device/echo/0", domain=guest) as bad,
            ):
                await device.wait_connected(SOON)
                await bad.wait_connected(SOON)
                assert lying.memory is not None
                assert lying.calls is not None
                _native.store32(lying.memory, ring.REQ_PROD, 1000)
                lying.calls._port.notify()
                assert "req_prod is 1000" in await until_error(there)
                await bad.wait_closed(SOON)
                assert await honest.ask(b"still here", SOON) == b"ereh llits"
                # It may start over, and the error is gone then.
            async with pv.attach(EchoFront(), "device/echo/0", domain=guest) as device:
                await device.wait_connected(SOON)
                await until(there.store, ERROR, lambda: _gone(there, liar), "the error node is gone")

    run(main())


@pytest.mark.parametrize("state", ["9", "-1", "hello", "44"])
def test_a_state_that_is_none_closes_a_connected_device(
    state: str, dom0: xengrant.Domain, guest: xengrant.Domain
) -> None:
    async def main() -> None:
        async with bench(dom0, guest) as there:
            slot = await plugged(there.store)
            async with connected_by_hand(there, slot, guest):
                await there.store.write(f"{slot.front_path}/state", state)
                assert "no state" in await until_error(there)
                await there.until(slot, XenbusState.CLOSED)
                assert there.events == ["offer", "connect", "disconnect"]

    run(main())


@pytest.mark.parametrize("hook", ["__init__", "offer", "connect", "disconnect"])
def test_a_hook_that_raises_fails_its_device_alone(hook: str, dom0: xengrant.Domain, guest: xengrant.Domain) -> None:
    class Bad(EchoBack):
        def __init__(self, device: pv.Device) -> None:
            super().__init__(device)
            self.is_bad = device.handle == "0"
            if self.is_bad and hook == "__init__":
                raise RuntimeError("a defect in __init__")

        async def offer(self) -> Mapping[str, pv.Value]:
            if self.is_bad and hook == "offer":
                raise RuntimeError("a defect in offer")
            return await super().offer()

        async def connect(self, connection: pv.Connection) -> Mapping[str, pv.Value]:
            nodes = await super().connect(connection)
            if self.is_bad and hook == "connect":
                raise RuntimeError("a defect in connect")
            return nodes

        async def disconnect(self, connection: pv.Connection) -> None:
            if self.is_bad and hook == "disconnect":
                raise RuntimeError("a defect in disconnect")

    async def main() -> None:
        async with bench(dom0, guest, Bad, closing_seconds=0.1) as there:
            slot = await plugged(there.store, 0)
            await plugged(there.store, 1)
            good, bad = EchoFront(), EchoFront()
            async with (
                pv.attach(good, "device/echo/1", domain=guest) as device,
                pv.attach(bad, "device/echo/0", domain=guest, closing_seconds=1),
            ):
                await device.wait_connected(SOON)
                if hook == "disconnect":
                    await there.until(slot, XenbusState.CONNECTED)
                    await there.set_state(slot, XenbusState.CLOSING, "back")
                assert f"5 a defect in {hook}" in await until_error(there)
                assert await good.ask(b"still here", SOON) == b"ereh llits"

    run(main())


def test_a_hook_that_hangs_fails_its_device_in_the_end(dom0: xengrant.Domain, guest: xengrant.Domain) -> None:
    class Slow(EchoBack):
        async def connect(self, connection: pv.Connection) -> Mapping[str, pv.Value]:
            await asyncio.get_running_loop().create_future()
            return {}

    async def main() -> None:
        async with bench(dom0, guest, Slow, hook_seconds=0.1, closing_seconds=0.1) as there:
            slot = await plugged(there.store)
            async with connected_by_hand(there, slot, guest, connects=False):
                assert "connect took more than 0.1 seconds" in await until_error(there)
                await there.until(slot, XenbusState.CLOSED)

    run(main())


def test_a_thread_can_fail_its_device(dom0: xengrant.Domain, guest: xengrant.Domain) -> None:
    async def main() -> None:
        async with bench(dom0, guest) as there:
            slot = await plugged(there.store)
            async with connected_by_hand(there, slot, guest):
                device = await there.device(slot)
                connection = device.connection
                assert connection is not None
                failing = threading.Thread(target=connection.fail, args=(OSError(28, "the disk is full"),))
                failing.start()
                assert await until_error(there) == "28 [Errno 28] the disk is full"
                await there.until(slot, XenbusState.CLOSING)
                await there.set_state(slot, XenbusState.CLOSED)
                await there.until(slot, XenbusState.CLOSED)
                assert there.events == ["offer", "connect", "disconnect"]
                assert isinstance(device.error, OSError)
                connection.fail(OSError(5, "too late"))
                with pytest.raises(xengrant.InterfaceClosed):
                    connection.map(8)
                failing.join(SOON)

    run(main())


def test_a_front_end_that_fails_again_and_again_waits_longer_each_time(
    dom0: xengrant.Domain, guest: xengrant.Domain
) -> None:
    class Bad(EchoBack):
        async def offer(self) -> Mapping[str, pv.Value]:
            times.append(asyncio.get_running_loop().time())
            raise RuntimeError("never")

    times: list[float] = []

    async def main() -> None:
        async with bench(dom0, guest, Bad) as there:
            await plugged(there.store)
            await until(there.store, ERROR, lambda: _enough(times), "four offers failed")
            waits = [after - before for before, after in pairwise(times)]
            assert waits[1] >= 0.2
            assert waits[2] >= 0.4

    run(main())


def test_a_toolstack_that_names_the_wrong_front_end_is_not_followed(
    dom0: xengrant.Domain, guest: xengrant.Domain
) -> None:
    async def main() -> None:
        async with bench(dom0, guest) as there:
            slot = pv.Slot("echo", 0, front=1)
            for nodes in (
                {"frontend-id": 2},
                {"frontend": "/local/domain/2/device/echo/0"},
                {"frontend": "/local/domain/1"},
                {"frontend": "data"},
                {"frontend": "/local/domain/1/../2"},
            ):
                await pv.create(there.store, slot, back_nodes=nodes)
                assert "names the front end" in await until_error(there)
                assert await there.state(slot) is XenbusState.INITIALISING
                await pv.remove(there.store, slot)
                await until(there.store, ERROR, lambda: _gone(there, slot), "the error node is gone")
            assert there.backs == []

    run(main())


def test_views_that_are_alive_are_told_and_the_last_one_unmaps(
    dom0: xengrant.Domain, guest: xengrant.Domain, caplog: pytest.LogCaptureFixture
) -> None:
    views: list[memoryview] = []

    class Careless(EchoBack):
        async def connect(self, connection: pv.Connection) -> Mapping[str, pv.Value]:
            nodes = await super().connect(connection)
            views.append(memoryview(connection.map(await connection.otherend.number("ring-ref")).mapping))
            return nodes

    async def main() -> None:
        async with bench(dom0, guest, Careless) as there:
            slot = await plugged(there.store)
            async with connected_by_hand(there, slot, guest):
                await there.set_state(slot, XenbusState.CLOSED)
                await there.until(slot, XenbusState.CLOSED)
                assert "until its last view is released" in caplog.text
                assert len(views[0]) == 4096
                views.clear()

    run(main())


def test_what_the_front_end_cannot_do_is_raised_where_it_waits(dom0: xengrant.Domain, guest: xengrant.Domain) -> None:
    class Bad(EchoFront):
        async def connect(self, connection: pv.Connection) -> Mapping[str, pv.Value]:
            await super().connect(connection)
            raise RuntimeError("a defect here")

    async def main() -> None:
        async with bench(dom0, guest) as there:
            slot = await plugged(there.store)
            async with pv.attach(Bad(), "device/echo/0", domain=guest) as device:
                with pytest.raises(RuntimeError, match="a defect here"):
                    await device.wait_connected(SOON)
            await there.until(slot, XenbusState.CLOSED)

    run(main())


async def _gone(there: Bench, slot: pv.Slot) -> bool:
    return not await there.store.exists(f"{ERROR}/{slot.handle}/error")


async def _enough(times: list[float]) -> bool:
    return len(times) >= 4
