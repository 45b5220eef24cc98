"""A front end's queues and a back end's on one machine, without a bus between: `Ends`."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from typing import Any, Protocol, Self, TypeVar

import xengrant
from xengrant._native import Doorbell
from xengrant.abi.blkif import X86_64, Layout
from xengrant.gnttab import Grant
from xengrant.memory import Mapping
from xengrant.pv.block.back_queue import BATCH_PAGES, BackQueue
from xengrant.pv.block.disks import Disk, VectoredDisk, vectored
from xengrant.pv.block.front_pages import FrontPages, PerRequest, Pool
from xengrant.pv.block.front_queue import FrontQueue
from xengrant.pv.block.pages import CopiedPages, KeptPages, MappedPages, Pages
from xengrant.pv.block.requests import Limits, Reader
from xengrant.pv.block.ring import BlockRing
from xengrant.rings.rpc import FrontRing

_T = TypeVar("_T")

FRONT, BACK = 1, 2
SOON = 60.0  # seconds; no test comes near it, unless others take the processor


def looped(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """A test that runs in an event loop of its own, within a deadline."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def within() -> None:
            async with asyncio.timeout(SOON):
                await test(*args, **kwargs)

        asyncio.run(within())

    return run


async def until(look: Callable[[], _T | None], what: str) -> _T:
    """What `look()` sees at last, which nothing announces: a back end counts after it has answered."""
    limit = SOON / 2
    try:
        async with asyncio.timeout(limit):
            while not (seen := look()):
                await asyncio.sleep(0.01)
            return seen
    except TimeoutError:
        raise AssertionError(f"not so in {limit} seconds: {what}") from None


class _Machine(Protocol):
    def url(self, domid: int, /) -> str: ...


class Ends:
    """One ring between domain 1, the front end, and domain 2. `async with` in a running loop."""

    def __init__(
        self,
        machine: _Machine,
        disk: Disk | VectoredDisk,
        *,
        pages: str = "kept",
        persistent: bool = True,
        layout: Layout = X86_64,
        segments: int = 32,
        order: int = 0,
        pool: int = 256,
        kept: int = 1056,
        **limits: Any,
    ) -> None:
        self.machine = machine
        self.layout = layout
        self.errors: list[Exception] = []
        self.limits = Limits(disk.size // 512, max_segments=segments, **limits)
        self._disk = vectored(disk)
        self._pages_kind = pages
        self._persistent = persistent
        self._pool = pool
        self._kept = kept
        self._order = order
        self._opened = AsyncExitStack()

    async def __aenter__(self) -> Self:
        opened = self._opened
        self.front_domain = opened.enter_context(xengrant.connect(self.machine.url(FRONT)))
        self.back_domain = opened.enter_context(xengrant.connect(self.machine.url(BACK)))
        gntshr = opened.enter_context(self.front_domain.gntshr())
        share = opened.enter_context(gntshr.share_pages(BACK, 1 << self._order, writable=True))
        self.ring_refs = share.refs
        self.memory = share.mapping
        channels = await opened.enter_async_context(self.front_domain.aio.evtchn())
        self.front_port = channels.bind_unbound(BACK)
        self.front_pages: FrontPages = Pool(gntshr, BACK, self._pool) if self._persistent else PerRequest(gntshr, BACK)
        opened.callback(self.front_pages.close)
        ring = FrontRing.init(share.mapping, self.layout.entry_size)
        self.front = FrontQueue(
            ring,
            self.front_port,
            self.layout,
            self.front_pages,
            handle=51728,
            max_segments=max(11, self.limits.max_segments),
            failed=self.errors.append,
        )
        opened.callback(self.front.close)
        self.start_back()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.stop_back()
        await self._opened.aclose()

    def start_back(self) -> None:
        """Attach another back end to the ring, as a successor does."""
        self._back_opened = ExitStack()
        gnttab = self._back_opened.enter_context(self.back_domain.gnttab())
        mapped = gnttab.map([Grant(FRONT, ref) for ref in self.ring_refs], writable=True)
        self._back_opened.enter_context(mapped)
        channels = self._back_opened.enter_context(self.back_domain.evtchn())
        port = self._back_opened.enter_context(channels.bind_interdomain(FRONT, self.front_port.number))
        self.pages = self._make_pages(gnttab)
        self.back = self._queue(mapped.mapping, port.doorbell())
        self.back.start()

    def stop_back(self) -> None:
        self.back.stop()
        assert self.back.join(SOON), "the queue's thread did not end"
        self._back_opened.close()

    def _queue(self, memory: Mapping, doorbell: Doorbell) -> BackQueue:
        return BackQueue(
            BlockRing.attach_to(memory, self.layout),
            doorbell,
            self.pages,
            Reader(self.layout, self.limits),
            self._disk,
            ended=self.errors.append,
        )

    def _make_pages(self, gnttab: xengrant.Gnttab) -> Pages:
        if self._pages_kind == "kept":
            return KeptPages(gnttab, FRONT, self._kept)
        if self._pages_kind == "mapped":
            return MappedPages(gnttab, FRONT)
        return CopiedPages(gnttab, FRONT, BATCH_PAGES)
