"""What a connection holds is given back however it ends, and nothing begins after its end."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

import xengrant
from xengrant.embedded import Machine
from xengrant.errors import InterfaceClosed
from xengrant.pv.connection import Connection
from xengrant.pv.device import Device

SOON = 60.0


def connection(domain: xengrant.Domain) -> Connection:
    device = SimpleNamespace(domain=domain, otherend_id=0, _fail_soon=lambda connection, error: None)
    return Connection(cast(Device, device))


def test_a_close_that_is_cancelled_gives_everything_back(machine: Machine, guest: xengrant.Domain) -> None:
    async def main() -> None:
        held = connection(guest)
        held.share()
        held.offer_port()
        cancelled = asyncio.Event()

        async def linger() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()
                await asyncio.sleep(SOON)

        lingering = held.start(linger())
        await asyncio.sleep(0)
        closing = asyncio.create_task(held._close(SOON))
        await cancelled.wait()
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        left = machine.status()["domains"][guest.domid]
        assert (left["grants"], left["ports"]) == (0, 0)
        lingering.cancel()

    asyncio.run(main())


def test_no_work_begins_after_the_end(guest: xengrant.Domain) -> None:
    async def work(done: list[Any]) -> None:
        done.append(None)

    async def main() -> None:
        held = connection(guest)
        await held._close(SOON)
        done: list[Any] = []
        with pytest.raises(InterfaceClosed, match="over"):
            held.start(work(done))
        await asyncio.sleep(0)
        assert not done

    asyncio.run(main())
