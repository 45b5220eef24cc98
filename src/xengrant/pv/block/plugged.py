"""A disk plugged into another domain for as long as a block runs: `plugged`, the shortest way to serve one from dom0.

Called by programs; makes the nodes, which is the toolstack's part, and runs a bus for this one device.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from xengrant import pv
from xengrant.abi import blkif
from xengrant.domain import connect
from xengrant.pv.block.back_queue import REFUSING_SECONDS
from xengrant.pv.block.backend import serving
from xengrant.pv.toolstack import is_unplugged

if TYPE_CHECKING:
    from xengrant.domain import Domain
    from xengrant.pv.block.backend import Offer
    from xengrant.pv.block.disks import Disk, VectoredDisk
    from xengrant.xenstore import AsyncXenStore

__all__ = ["CLOSING_SECONDS", "XVDB", "end_unplugging", "plugged", "unplug"]

XVDB = 51728

CLOSING_SECONDS = 10.0
"""How long the other domain has to let go of it."""

_SLACK = 5.0  # seconds: a back end that closes does so in the two, and this


@contextlib.asynccontextmanager
async def plugged(
    disk: Disk | VectoredDisk,
    front: int,
    handle: int = XVDB,
    *,
    offer: Offer | None = None,
    domain: Domain | None = None,
    name: str = "vbd",
) -> AsyncIterator[pv.BackendBus]:
    """`disk` as domain `front`'s disk `handle`; in a Linux guest 51728 is xvdb, and 16 more the next::

        async with block.plugged(block.File("disk.img"), 5) as bus:
            await bus.serve_forever()

    Leaving the block unplugs it. Where a server was killed, the next one goes on with its device, or ends the
    unplugging that was under way and plugs it in anew. `name` is the directory of the nodes, which is to be another
    where Linux's xen-blkback is loaded: that claims vbd for itself. `domain`, dom0's, is by default one of its own.
    Raises `XenStoreError`, `InterfaceUnavailable`.
    """
    async with contextlib.AsyncExitStack() as opened:
        domain = domain or opened.enter_context(connect())
        store = await opened.enter_async_context(domain.aio.xenstore())
        slot = pv.Slot("vbd", handle, front, await domain.aio.domid(), name)

        def new_bus() -> pv.BackendBus:
            return pv.BackendBus(
                name,
                serving(disk, offer),
                domain=domain,
                accept=lambda domid, which: (domid, which) == (front, str(handle)),
                closing_seconds=CLOSING_SECONDS,
            )

        await end_unplugging(store, slot, new_bus)
        made = not await store.exists(slot.back_path)
        if made:
            readonly = offer is not None and not offer.writable
            await pv.create(
                store,
                slot,
                front_nodes={"device-type": "disk", "virtual-device": handle},
                back_nodes={
                    "device-type": "disk",
                    "params": type(disk).__name__,
                    "mode": "r" if readonly else "w",
                    "removable": bool(offer is not None and offer.info & blkif.VDISK_REMOVABLE),
                },
            )
        bus = new_bus()
        try:
            await opened.enter_async_context(bus)
        except BaseException:
            if made:
                await pv.remove(store, slot)
            raise
        try:
            yield bus
        finally:
            await unplug(store, slot, bus)


async def unplug(store: AsyncXenStore, slot: pv.Slot, bus: pv.BackendBus) -> None:
    """Unplug a disk that `bus` alone serves. One that is not closed in time is removed as well: `TimeoutError`."""
    try:
        await pv.unplug(store, slot, timeout=CLOSING_SECONDS + REFUSING_SECONDS + _SLACK)
    except TimeoutError:
        await bus.close()
        await pv.remove(store, slot)
        raise


async def end_unplugging(store: AsyncXenStore, slot: pv.Slot, bus: Callable[[], pv.BackendBus]) -> None:
    """Where a server was killed while it unplugged the disk: have `bus` close it, and remove its nodes.

    What xl unplugs is left to xl.
    """
    if await is_unplugged(store, slot) and not await store.exists(f"/libxl/{slot.front}/device/vbd/{slot.handle}"):
        async with bus() as ending:
            await unplug(store, slot, ending)
