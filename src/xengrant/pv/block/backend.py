"""The back end of a block device on the Xen bus: `BlockBackend` offers a disk, connects its rings, and serves them.

Made for each device by a `BackendBus`, mostly through `serving(disk)`. Calls the bus for nodes, pages and ports, and
`BackQueue` for each ring. What the front end wrote is read as what it must be; anything else ends this device only.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from xengrant.abi import blkif
from xengrant.arguments import MAX_U32
from xengrant.errors import InterfaceUnavailable
from xengrant.polling import Polling, check_seconds
from xengrant.pv.backend import Backend
from xengrant.pv.block.back_queue import BATCH_PAGES, BackQueue
from xengrant.pv.block.counters import Counters
from xengrant.pv.block.disks import Disk, VectoredDisk, vectored
from xengrant.pv.block.pages import CopiedPages, KeptPages, MappedPages, Pages
from xengrant.pv.block.requests import Limits, Reader
from xengrant.pv.block.ring import BlockRing

if TYPE_CHECKING:
    from xengrant.gnttab import Gnttab
    from xengrant.pv.backend import MakeBackend
    from xengrant.pv.connection import Connection
    from xengrant.pv.device import Device
    from xengrant.pv.nodes import Value

__all__ = ["BlockBackend", "Offer", "serving"]

_MAX_RING_ORDER = 4  # 16 pages, as Linux has it (XENBUS_MAX_RING_GRANT_ORDER)
_MAX_RINGS = 64

_stopped: dict[Future[None], Disk | VectoredDisk] = {}
"""The ends of queues that were stopped, and may still write to their disk. Not of one back end: the next connection may
be another's, where the device was unplugged and plugged in again; it is to be given the same object."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a back end offers of a disk, whatever the disk is.

    `sector_size` and `physical_sector_size` are bytes; a front end that knows nothing of sectors other than 512 bytes
    is not told apart. `max_segments` is that of indirect requests, in pages: 0 offers none. `max_rings` is how many
    rings a front end may have, `max_ring_order` how large each is: log2 of its pages. `persistent` is whether pages may
    stay mapped, and `kept_pages` how many do at least, for each ring, where the front end uses as many; twice as many
    may, or twice a request's pages where those are more. `data` is how the other front ends' pages are reached: "auto"
    copies where the hypervisor can. `info` are flags of blkif.h beside VDISK_READONLY. `poll` is how many seconds, 0.1
    at most, a ring's thread looks for requests before it sleeps, as a vchan's end does (`xengrant.vchan.serve`).
    """

    writable: bool = True
    sector_size: int = blkif.SECTOR_SIZE
    physical_sector_size: int | None = None
    max_segments: int = 256
    max_rings: int = 4
    max_ring_order: int = _MAX_RING_ORDER
    persistent: bool = True
    kept_pages: int = 4096
    data: Literal["auto", "copy", "map"] = "auto"
    info: int = 0
    poll: float = 0.0

    def __post_init__(self) -> None:
        if self.sector_size not in (512, 1024, 2048, 4096):
            raise ValueError(f"sectors have 512, 1024, 2048 or 4096 bytes, not {self.sector_size}")
        physical = self.physical_sector_size or self.sector_size
        if physical % self.sector_size:
            raise ValueError(f"physical sectors of {physical} bytes are no multiple of {self.sector_size}")
        if not 0 <= self.max_segments <= BATCH_PAGES:
            raise ValueError(f"max_segments {self.max_segments} is outside 0..{BATCH_PAGES}")
        if not 1 <= self.max_rings <= _MAX_RINGS or not 0 <= self.max_ring_order <= _MAX_RING_ORDER:
            raise ValueError(f"at most {_MAX_RINGS} rings, each of at most {1 << _MAX_RING_ORDER} pages")
        if self.data not in ("auto", "copy", "map"):
            raise ValueError(f"data is auto, copy or map, not {self.data!r}")
        if self.kept_pages < 1:
            raise ValueError(f"{self.kept_pages} is no number of pages to keep")
        check_seconds(self.poll)


def serving(disk: Disk | VectoredDisk, offer: Offer | None = None) -> MakeBackend:
    """What a `BackendBus` is given to serve `disk` to each front end that comes: ``BackendBus("vbd", serving(disk))``.

    Two front ends of one disk see each other's writes, as with any shared disk.
    """
    return lambda device: BlockBackend(device, disk, offer)


class BlockBackend(Backend):
    """One device's back end, over `disk`, which is its owner's to close.

    `counters` are those of all its rings since it was made. Threads: those of its event loop only; the disk is used by
    a thread for each ring.
    """

    def __init__(self, device: Device, disk: Disk | VectoredDisk, offer: Offer | None = None) -> None:
        super().__init__(device)
        self.disk = disk
        self._vectored = vectored(disk)
        self._offer = offer or Offer()
        self._limits: Limits | None = None
        self._queues: list[BackQueue] = []
        self._ended = Counters()  # of rings that there were

    @property
    def counters(self) -> Counters:
        """What all its rings together have done until now."""
        return Counters.sum([self._ended, *(queue.counters for queue in self._queues)])

    @property
    def rings(self) -> int:
        """How many rings are served now."""
        return len(self._queues)

    async def offer(self) -> Mapping[str, Value]:
        offered: dict[str, Value] = {
            "feature-flush-cache": True,
            "feature-barrier": False,
            "feature-persistent": self._offer.persistent,
            "max-ring-page-order": self._offer.max_ring_order,
            "multi-queue-max-queues": self._offer.max_rings,
            # What is not offered goes, too: an earlier server may have offered it.
            "feature-max-indirect-segments": None,
            "feature-discard": None,
            "discard-granularity": None,
            "discard-alignment": None,
            "discard-secure": None,
        }
        if self._offer.max_segments > blkif.MAX_SEGMENTS_PER_REQUEST:
            offered["feature-max-indirect-segments"] = self._offer.max_segments
        if await self._can_discard():
            offered |= {
                "feature-discard": True,
                "discard-granularity": self._offer.sector_size,
                "discard-alignment": 0,
                "discard-secure": False,
            }
        return offered

    async def connect(self, connection: Connection) -> Mapping[str, Value]:
        """Raises `ProtocolError` for what the front end wrote and was not offered, `MapError`, `GrantError`.

        `TimeoutError` where the disk is still at requests of a connection that is over: an old write could overwrite
        a new one.
        """
        await self._wait_for_stopped()
        offer, own, front = self._offer, connection.nodes, connection.otherend
        # What was offered is what the nodes say: a predecessor may have offered it.
        protocol = await front.text("protocol", default=blkif.NATIVE.protocol, choices=blkif.LAYOUTS)
        most_rings = await own.number("multi-queue-max-queues", least=1, most=_MAX_RINGS, default=1)
        rings = await front.number("multi-queue-num-queues", least=1, most=most_rings, default=1)
        most_order = await own.number("max-ring-page-order", most=_MAX_RING_ORDER, default=0)
        order = await front.number("ring-page-order", most=most_order, default=0)
        sector_size = await own.number("sector-size", default=offer.sector_size) if connection.resume else 0
        self._limits = Limits(
            sectors=0,
            sector_size=sector_size or offer.sector_size,
            writable=await self._is_writable(),
            max_segments=await own.number("feature-max-indirect-segments", most=BATCH_PAGES, default=0),
            can_discard=await own.flag("feature-discard") and self._has_discard,
        )
        self._limits.sectors = self._sectors()
        gnttab = connection.enter(connection.domain.gnttab())
        persistent = await connection.taken("feature-persistent")
        polling = connection.enter(contextlib.closing(Polling(connection.domain.system, offer.poll)))
        reader = Reader(blkif.LAYOUTS[protocol], self._limits)
        queues = []
        for number in range(rings):
            prefix = f"queue-{number}/" if rings > 1 else ""
            pages = self._pages(gnttab, connection.otherend_id, persistent=persistent, order=order)
            queue = await self._queue(connection, prefix, order, reader, pages, number)
            polling.at(queue.doorbell)
            queues.append(queue)
        try:
            for queue in queues:
                queue.start()
                self._queues.append(queue)
        except RuntimeError:  # as many threads as the system gives a process
            await self.disconnect(connection)
            raise
        return self._properties()

    async def disconnect(self, connection: Connection) -> None:
        """Stop after the requests that are being done. The others fail where the device closes, and stay in the ring
        for a successor elsewhere.
        """
        queues = self._queues
        for queue in queues:
            if self._limits is None or self._limits.writable:  # what only reads may take as long as it likes
                _stopped[queue.over] = self.disk
                queue.over.add_done_callback(_stopped.pop)
            queue.stop(refuse=connection.closing)
        try:
            await asyncio.gather(*(asyncio.wrap_future(queue.over) for queue in queues))
        finally:  # a disk may be slower than the bus has patience
            self._ended, self._queues = self.counters, []
            self._ended.depth = 0

    async def resize(self) -> None:
        """Tell the front end that the disk has another `size`, once no request is done that goes by the one before."""
        if self._limits is not None and (connection := self.device.connection) is not None:
            self._limits.sectors = self._sectors()
            rounds = [queue.begin_anew() for queue in self._queues]
            await asyncio.gather(*map(asyncio.wrap_future, rounds))
            await connection.update({"sectors": self._limits.sectors})

    async def _wait_for_stopped(self) -> None:
        """For half the time that a hook has; the other half is for connecting."""
        still = [over for over, disk in list(_stopped.items()) if disk is self.disk]
        try:
            async with asyncio.timeout(self.device.hook_seconds / 2):
                await asyncio.gather(*map(asyncio.wrap_future, still))
        except TimeoutError:
            raise TimeoutError("the disk is still at requests of a connection that is over") from None

    async def _queue(
        self, connection: Connection, prefix: str, order: int, reader: Reader, pages: Pages, number: int
    ) -> BackQueue:
        front = connection.otherend
        if order or not await front.exists(f"{prefix}ring-ref"):
            names = [f"{prefix}ring-ref{page}" for page in range(1 << order)]
        else:
            names = [f"{prefix}ring-ref"]
        refs = [await front.number(name) for name in names]
        remote_port = await front.number(f"{prefix}event-channel", most=MAX_U32)
        ring = BlockRing.attach_to(connection.map(refs, writable=True).mapping, reader.layout)
        channels = connection.enter(connection.domain.evtchn())
        port = connection.enter(channels.bind_interdomain(connection.otherend_id, remote_port))
        doorbell = connection.enter(contextlib.closing(port.doorbell()))
        return BackQueue(
            ring,
            doorbell,
            pages,
            reader,
            self._vectored,
            ended=connection.fail,
            name=f"xengrant-vbd-{connection.otherend_id}-{self.device.handle}-{number}",
        )

    def _pages(self, gnttab: Gnttab, domid: int, *, persistent: bool, order: int) -> Pages:
        offer = self._offer
        if persistent:
            return KeptPages(gnttab, domid, offer.kept_pages)
        if offer.data == "map" or (offer.data == "auto" and not _can_copy(gnttab)):
            return MappedPages(gnttab, domid)
        return CopiedPages(gnttab, domid, BATCH_PAGES)

    def _properties(self) -> dict[str, Value]:
        assert self._limits is not None
        offer, limits = self._offer, self._limits
        return {
            "sectors": limits.sectors,
            "sector-size": limits.sector_size,
            "physical-sector-size": offer.physical_sector_size or limits.sector_size,
            "info": offer.info | (0 if limits.writable else blkif.VDISK_READONLY),
        }

    def _sectors(self) -> int:
        """Of 512 bytes, in whole sectors of the disk's."""
        assert self._limits is not None
        return self.disk.size // self._limits.sector_size * (self._limits.sector_size // blkif.SECTOR_SIZE)

    async def _is_writable(self) -> bool:
        """What the toolstack's `mode` says counts, too."""
        return self._offer.writable and await self.device.nodes.text("mode", default="w") != "r"

    @property
    def _has_discard(self) -> bool:
        return callable(getattr(self.disk, "discard", None))

    async def _can_discard(self) -> bool:
        can = self._has_discard and await self._is_writable()
        return can and bool(await self.device.nodes.number("discard-enable", most=1, default=1))


def _can_copy(gnttab: Gnttab) -> bool:
    try:
        gnttab.check_can_copy()
    except InterfaceUnavailable:
        return False
    return True
