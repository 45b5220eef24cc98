"""A disk of dom0's, plugged into domain 1 by the toolstack's part of the bus: `plugged`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import xengrant
from xengrant import pv
from xengrant.embedded import Machine
from xengrant.pv import block

from .ends import SOON

HANDLE = 51728
SLOT = pv.Slot("vbd", HANDLE, front=1)
FRONT = f"device/vbd/{HANDLE}"


@contextlib.asynccontextmanager
async def bus(
    machine: Machine, disk: block.Disk | block.VectoredDisk, offer: block.Offer | None = None
) -> AsyncIterator[pv.BackendBus]:
    """Dom0 serves `disk` to whoever has a device."""
    with xengrant.connect(machine.url(0)) as domain:
        async with pv.BackendBus("vbd", block.serving(disk, offer), domain=domain, closing_seconds=SOON) as served:
            yield served


@contextlib.asynccontextmanager
async def made(machine: Machine, **back_nodes: pv.Value) -> AsyncIterator[None]:
    """The device's nodes; unplugged in the end."""
    with xengrant.connect(machine.url(0)) as domain:
        async with domain.aio.xenstore() as store:
            await pv.create(store, SLOT, front_nodes={"virtual-device": HANDLE}, back_nodes={"mode": "w", **back_nodes})
            yield
            await pv.unplug(store, SLOT, timeout=SOON)


@contextlib.asynccontextmanager
async def attached(machine: Machine, use: block.Use | None = None) -> AsyncIterator[block.BlockFrontend]:
    """Domain 1's front end."""
    with xengrant.connect(machine.url(1)) as domain:
        async with block.attach(FRONT, domain=domain, use=use, timeout=SOON) as disk:
            yield disk


@contextlib.asynccontextmanager
async def plugged(
    machine: Machine,
    disk: block.Disk | block.VectoredDisk,
    offer: block.Offer | None = None,
    use: block.Use | None = None,
) -> AsyncIterator[tuple[block.BlockFrontend, pv.BackendBus]]:
    """All of it at once."""
    async with bus(machine, disk, offer) as served, made(machine), attached(machine, use) as front:
        yield front, served
