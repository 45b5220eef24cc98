"""A disk plugged into another domain for as long as a block runs: `plugged`, the shortest way to serve one from dom0.

Called by programs; makes the nodes, which is the toolstack's part, and runs a bus for this one device.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from xengrant import pv
from xengrant.abi import blkif
from xengrant.domain import connect
from xengrant.pv.block.backend import serving

if TYPE_CHECKING:
    from xengrant.domain import Domain
    from xengrant.pv.block.backend import Offer
    from xengrant.pv.block.disks import Disk, VectoredDisk

__all__ = ["XVDB", "plugged"]

XVDB = 51728

_CLOSING = 10.0  # seconds that the other domain has to let go of it


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

    Leaving the block unplugs it. Where a server was killed, the next one goes on with its device. `name` is the
    directory of the nodes, which is to be another where Linux's xen-blkback is loaded: that claims vbd for itself.
    `domain`, dom0's, is by default one of its own. Raises `XenStoreError`, `InterfaceUnavailable`.
    """
    async with contextlib.AsyncExitStack() as opened:
        domain = domain or opened.enter_context(connect())
        store = await opened.enter_async_context(domain.aio.xenstore())
        slot = pv.Slot("vbd", handle, front, await domain.aio.domid(), name)
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
        bus = pv.BackendBus(
            name,
            serving(disk, offer),
            domain=domain,
            accept=lambda domid, which: (domid, which) == (front, str(handle)),
            closing_seconds=_CLOSING,
        )
        try:
            await opened.enter_async_context(bus)
        except BaseException:
            if made:
                await pv.remove(store, slot)
            raise
        try:
            yield bus
        finally:
            await pv.unplug(store, slot, timeout=_CLOSING + 5)
