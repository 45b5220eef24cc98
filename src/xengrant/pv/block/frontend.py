"""The front end of a block device on the Xen bus, for asyncio: `BlockFrontend` connects to a back end, and is the disk.

    async with block.attach("device/vbd/51728") as disk:
        table = await disk.read(0, 1)

Calls the bus for nodes, pages and ports, and `FrontQueue` for each ring. What the back end wrote is read as what it
must be; anything else, and every lie on a ring, is a `ProtocolError`.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xengrant import pv
from xengrant.abi import blkif
from xengrant.abi.xen import PAGE_SIZE
from xengrant.errors import InterfaceClosed, PeerClosed
from xengrant.pv.block.front_pages import FrontPages, PerRequest, Pool
from xengrant.pv.block.front_queue import FrontQueue
from xengrant.rings.rpc import FrontRing

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from xengrant.domain import Domain
    from xengrant.gntshr import Gntshr
    from xengrant.pv.connection import Connection
    from xengrant.pv.nodes import Value

__all__ = ["BlockFrontend", "BlockInfo", "Use", "attach"]

_MAX_SECTORS = 1 << 54  # of 512 bytes: what a position in bytes of 64 bits, signed, can say


@dataclass(frozen=True, slots=True)
class Use:
    """What a front end uses of what is offered.

    `protocol` is the layout of requests, `rings` and `ring_order` how many rings and log2 of the pages of each, and
    `max_segments` the pages of a request: less where the back end offers less. `persistent` is whether the same pages
    are used again and again, at most `pool_pages` for each ring; else each request has its own.
    """

    protocol: str = blkif.NATIVE.protocol
    rings: int = 1
    ring_order: int = 0
    max_segments: int = 32
    persistent: bool = True
    pool_pages: int = 256

    def __post_init__(self) -> None:
        if self.protocol not in blkif.LAYOUTS:
            raise ValueError(f"there is no protocol {self.protocol!r}: {', '.join(blkif.LAYOUTS)}")
        if self.rings < 1 or self.ring_order < 0:
            raise ValueError(f"{self.rings} rings, each of 2**{self.ring_order} pages, are none")
        if not 1 <= self.max_segments <= blkif.MAX_INDIRECT_SEGMENTS:
            raise ValueError(f"max_segments {self.max_segments} is outside 1..{blkif.MAX_INDIRECT_SEGMENTS}")
        if self.persistent and self.pool_pages < self.max_segments + blkif.MAX_INDIRECT_PAGES_PER_REQUEST:
            raise ValueError(f"{self.pool_pages} pages are too few for requests of {self.max_segments}")


@dataclass(frozen=True, slots=True)
class BlockInfo:
    """What the back end says of the disk. `sectors` are of 512 bytes, all else in bytes."""

    sectors: int
    sector_size: int
    physical_sector_size: int
    writable: bool
    cdrom: bool
    removable: bool
    can_flush: bool
    can_discard: bool
    discard_granularity: int
    persistent: bool
    max_segments: int
    rings: int
    ring_pages: int

    @property
    def size(self) -> int:
        """Bytes of the whole disk."""
        return self.sectors * blkif.SECTOR_SIZE


class BlockFrontend(pv.Frontend):
    """A disk that another domain serves. Sectors are of 512 bytes in every call, whatever the disk's own are.

    Requests that are under way together may be done in any order. Threads: that of its event loop only.
    """

    def __init__(self, use: Use | None = None) -> None:
        self._use = use or Use()
        self._queues: list[FrontQueue] = []
        self._info: BlockInfo | None = None
        self._shape = (1, 0, 0)  # rings, order, segments
        self._ended: Exception = InterfaceClosed("this disk is not connected yet")

    @property
    def info(self) -> BlockInfo:
        """What the back end says of the disk.

        Raises, where it is not connected, what ended it: `PeerClosed`, `ProtocolError`, `InterfaceClosed`.
        """
        if self._info is None:
            raise copy.copy(self._ended) from self._ended
        return self._info

    def close(self) -> None:
        """Fail what is under way with `InterfaceClosed`: this end closes the device, as leaving `attach` does."""
        self._end(InterfaceClosed("this disk is closed"))

    async def read(self, sector: int, count: int) -> bytes:
        """`count` sectors from `sector` on.

        Raises `OSError` with EIO where the back end fails, `ValueError` beyond the disk or for no whole sectors of its,
        `ProtocolError`, `PeerClosed`, `InterfaceClosed`.
        """
        self._check_range(sector, count)
        step = self._shape[2] * blkif.SECTORS_PER_PAGE
        pieces = [(at, min(step, sector + count - at)) for at in range(sector, sector + count, step)]
        return b"".join(await _all(self._queue().read(at, some) for at, some in pieces))

    async def write(self, sector: int, data: Buffer) -> None:
        """Write whole sectors from `sector` on. As `read`; EROFS is `ValueError` here, since the disk's info says it.

        Kept when a `flush` after it has returned. One that is cancelled may still be under way: what was sent of it is
        written all the same.
        """
        if not self.info.writable:
            raise ValueError("this disk is read-only")
        view = memoryview(data).cast("B")
        if len(view) % blkif.SECTOR_SIZE:
            raise ValueError(f"{len(view)} bytes are no whole sectors of {blkif.SECTOR_SIZE}")
        self._check_range(sector, len(view) // blkif.SECTOR_SIZE)
        step = self._shape[2] * PAGE_SIZE
        await _all(
            self._queue().write(sector + at // blkif.SECTOR_SIZE, view[at : at + step])
            for at in range(0, len(view), step)
        )

    async def flush(self) -> None:
        """Return when all writes that were done before are where they survive. Nothing where the back end has none."""
        if self.info.can_flush:
            await self._queue().flush()

    async def discard(self, sector: int, count: int) -> None:
        """These sectors are not needed any more. `OSError` with EOPNOTSUPP where the back end does not do it."""
        self._check_range(sector, count)
        await self._queue().discard(sector, count)

    # The bus calls

    async def connect(self, connection: Connection) -> Mapping[str, Value]:
        use, back = self._use, connection.otherend
        rings = min(use.rings, await back.number("multi-queue-max-queues", least=1, default=1))
        order = min(use.ring_order, await back.number("max-ring-page-order", default=0))
        indirect = await back.number("feature-max-indirect-segments", default=0)
        segments = min(use.max_segments, max(indirect, blkif.MAX_SEGMENTS_PER_REQUEST))
        self._shape = (rings, order, segments)
        layout = blkif.LAYOUTS[use.protocol]
        gntshr = connection.enter(connection.domain.gntshr())
        handle = await connection.nodes.number("virtual-device", default=0)
        nodes: dict[str, Value] = {
            "protocol": use.protocol,
            "feature-persistent": use.persistent,
            # One that an earlier connection left would have the back end map refs that are other pages' by now.
            "ring-page-order": order or None,
            "multi-queue-num-queues": rings if rings > 1 else None,
        }
        queues = []
        for number in range(rings):
            prefix = f"queue-{number}/" if rings > 1 else ""
            share = connection.share(1 << order, writable=True)
            port = connection.offer_port()
            pages = self._pages(gntshr, connection.otherend_id)
            connection.callback(pages.close)
            names = [f"ring-ref{page}" for page in range(1 << order)] if order else ["ring-ref"]
            nodes |= {f"{prefix}{name}": ref for name, ref in zip(names, share.refs, strict=True)}
            nodes[f"{prefix}event-channel"] = port.number
            queues.append(
                FrontQueue(
                    FrontRing.init(share.mapping, layout.entry_size),
                    port,
                    layout,
                    pages,
                    handle=handle,
                    max_segments=segments,
                    failed=functools.partial(self._fail, connection),
                )
            )
        self._queues = queues
        return nodes

    async def connected(self, connection: Connection) -> None:
        back = connection.otherend
        rings, order, segments = self._shape
        sector_size = await back.number("sector-size", least=512, most=1 << 16, default=blkif.SECTOR_SIZE)
        flags = await back.number("info", default=0)
        info = BlockInfo(
            sectors=await back.number("sectors", most=_MAX_SECTORS),
            sector_size=sector_size,
            physical_sector_size=await back.number("physical-sector-size", default=sector_size),
            writable=not flags & blkif.VDISK_READONLY,
            cdrom=bool(flags & blkif.VDISK_CDROM),
            removable=bool(flags & blkif.VDISK_REMOVABLE),
            can_flush=await back.flag("feature-flush-cache"),
            can_discard=await back.flag("feature-discard"),
            discard_granularity=await back.number("discard-granularity", default=sector_size),
            persistent=await connection.taken("feature-persistent"),
            max_segments=segments,
            rings=rings,
            ring_pages=1 << order,
        )
        if self._queues:  # else it has ended meanwhile, and `_ended` says why
            self._info = info

    async def changed(self, connection: Connection) -> None:
        """A resize, mostly."""
        await self.connected(connection)

    async def disconnect(self, connection: Connection) -> None:
        """Fail what is under way."""
        self._end(PeerClosed(f"domain {connection.otherend_id} closed this disk, or is gone"))

    # Their parts

    def _fail(self, connection: Connection, error: Exception) -> None:
        self._end(error)
        connection.fail(error)

    def _end(self, error: Exception) -> None:
        if self._queues:
            self._ended = error
        queues, self._queues, self._info = self._queues, [], None
        for queue in queues:
            queue.close(error)

    def _pages(self, gntshr: Gntshr, domid: int) -> FrontPages:
        return Pool(gntshr, domid, self._use.pool_pages) if self._use.persistent else PerRequest(gntshr, domid)

    def _queue(self) -> FrontQueue:
        """The one with the least to do."""
        if self._info is None:
            raise copy.copy(self._ended) from self._ended
        return min(self._queues, key=lambda queue: queue.depth)

    def _check_range(self, sector: int, count: int) -> None:
        info = self.info
        unit = info.sector_size // blkif.SECTOR_SIZE
        if sector < 0 or count < 1 or sector + count > info.sectors:
            raise ValueError(f"{count} sectors from {sector} on, of a disk of {info.sectors}")
        if sector % unit or count % unit:
            raise ValueError(f"{count} sectors from {sector} on are no whole sectors of {info.sector_size} bytes")


async def _all(pieces: Iterable[asyncio.Future[bytes]]) -> list[bytes]:
    """What all pieces of a read or write give, when none is under way any more; raises the first failure then."""
    futures = list(pieces)
    await asyncio.gather(*futures, return_exceptions=True)
    return [future.result() for future in futures]


@contextlib.asynccontextmanager
async def attach(
    path: str,
    *,
    domain: Domain | None = None,
    use: Use | None = None,
    timeout: float | None = None,
) -> AsyncIterator[BlockFrontend]:
    """The disk whose front end's nodes are at `path`, such as ``"device/vbd/51728"``, once it is connected.

    Leaving the block closes it. Raises `TimeoutError` after `timeout` seconds, `PeerClosed` where it is unplugged,
    `ProtocolError`. `domain` is by default one of its own.
    """
    disk = BlockFrontend(use)
    async with pv.attach(disk, path, domain=domain) as device:
        await device.wait_connected(timeout)
        try:
            yield disk
        finally:
            disk.close()
