"""The two ends of a block device's ring that the cases of `cases/block.py` have in their halves, without a bus.

The front end tells of its ring by `Here`, says when it is done, and waits until the back end has let go of its pages.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

from xengrant.abi import blkif
from xengrant.abi.blkif import X86_64, Head
from xengrant.gnttab import Gnttab, Grant
from xengrant.polling import Polling
from xengrant.pv.block.back_queue import BATCH_PAGES, BackQueue
from xengrant.pv.block.disks import vectored
from xengrant.pv.block.front_pages import Pool
from xengrant.pv.block.front_queue import FrontQueue
from xengrant.pv.block.pages import CopiedPages, KeptPages, MappedPages, Pages
from xengrant.pv.block.requests import Limits, Reader
from xengrant.pv.block.ring import BlockRing
from xengrant.rings.rpc import FrontRing
from xengrant.testing.expect import true
from xengrant.testing.here import QUIET, SOON, Here

if TYPE_CHECKING:
    from xengrant.evtchn import Port
    from xengrant.memory import Mapping

__all__ = ["HANDLE", "SECTORS", "SEGMENTS", "SIZE", "Back", "RawFront", "front_queue", "raw_front", "serve"]

SIZE = 1 << 20  # bytes of the disk
SECTORS = SIZE // 512
HANDLE = 51728
SEGMENTS = 32


class RawFront:
    """A ring whose requests a half writes itself, and pages of data."""

    def __init__(self, here: Here, opened: contextlib.ExitStack, pages: int) -> None:
        gntshr = opened.enter_context(here.domain.gntshr())
        self.data = opened.enter_context(gntshr.share_pages(here.other, pages, writable=True))
        share = opened.enter_context(gntshr.share_pages(here.other, 1, writable=True))
        channels = opened.enter_context(here.domain.evtchn())
        self.port = opened.enter_context(channels.bind_unbound(here.other))
        self.memory = share.mapping
        self.ring = FrontRing.init(share.mapping, X86_64.entry_size)
        here.tell("ring", [list(share.refs), self.port.number])

    def ask(self, *requests: bytes) -> list[tuple[int, int, int]]:
        """(id, operation, status) of the responses to them, in their order."""
        self.push(*requests)
        return self.take(len(requests))

    def take(self, count: int) -> list[tuple[int, int, int]]:
        """The next `count` responses, as they come."""
        responses: list[bytes] = []
        while len(responses) < count:
            responses += self.ring.take_responses()
            if len(responses) < count and not self.ring.more_to_do():
                self.port.wait(SOON)
        return [X86_64.unpack_response(response) for response in responses]

    def push(self, *requests: bytes) -> bool:
        """Whether the back end asked to be told of them, and was."""
        for request in requests:
            self.ring.next_request(request)
        asked = self.ring.push_requests()
        if asked:
            self.port.notify()
        return asked

    def settle(self) -> None:
        """Until no event has come for a while."""
        with contextlib.suppress(TimeoutError):
            while True:
                self.port.wait(QUIET)

    def rw(self, operation: int, number: int, sector: int, refs: list[int], span: int = blkif.WHOLE_PAGE) -> bytes:
        segments = blkif.pack_segments(refs, [span] * len(refs))
        return X86_64.pack_rw(Head(operation, len(refs), 0, number, sector), segments)


@contextlib.contextmanager
def raw_front(here: Here, pages: int = 4) -> Iterator[RawFront]:
    with contextlib.ExitStack() as opened:
        yield RawFront(here, opened, pages)
        here.tell("done")
        here.hear("let go")


@contextlib.asynccontextmanager
async def front_queue(here: Here, turn: str = "") -> AsyncIterator[FrontQueue]:
    """The front end's queue; in the end the back end is told, and has let go. `turn` tells several apart."""
    with contextlib.ExitStack() as opened:
        gntshr = opened.enter_context(here.domain.gntshr())
        share = opened.enter_context(gntshr.share_pages(here.other, 1, writable=True))
        pages = Pool(gntshr, here.other, 256)
        opened.callback(pages.close)
        async with here.domain.aio.evtchn() as channels, asyncio.timeout(here.seconds):
            port = channels.bind_unbound(here.other)
            ring = FrontRing.init(share.mapping, X86_64.entry_size)
            queue = FrontQueue(ring, port, X86_64, pages, handle=HANDLE, max_segments=SEGMENTS)
            here.tell(f"ring{turn}", [list(share.refs), port.number])
            try:
                yield queue
            finally:
                queue.close()
                here.tell(f"done{turn}")
                await asyncio.to_thread(here.hear, f"let go{turn}")


class Back:
    """A back end's queue on the ring of which the other half told."""

    def __init__(
        self, here: Here, disk: Any, data: str, *, kept: int = 512, turn: str = "", poll: float = 0.0, **limits: Any
    ) -> None:
        self._here = here
        self._disk = disk
        self._data = data
        self._kept = kept
        self._poll = poll
        self._limits = Limits(SECTORS, max_segments=SEGMENTS, **limits)
        self._refs, self._remote_port = here.hear(f"ring{turn}")
        self.errors: list[Exception] = []

    @contextlib.contextmanager
    def attached(self, *, serving: bool = True) -> Iterator[BackQueue]:
        """The ring mapped and the port bound; and the queue's thread, if it is to serve."""
        here = self._here
        with contextlib.ExitStack() as opened:
            gnttab = opened.enter_context(here.domain.gnttab())
            mapped = gnttab.map([Grant(here.other, ref) for ref in self._refs], writable=True)
            opened.callback(mapped.mapping.close_on_release)
            channels = opened.enter_context(here.domain.evtchn())
            port = opened.enter_context(channels.bind_interdomain(here.other, self._remote_port))
            doorbell = opened.enter_context(contextlib.closing(port.doorbell()))
            opened.enter_context(contextlib.closing(Polling(here.domain.system, 0.001))).at(doorbell)
            doorbell.poll = self._poll
            self.pages = self._pages(gnttab)
            self.memory: Mapping = mapped.mapping
            self.port: Port = port
            self.ring = BlockRing.attach_to(mapped.mapping, X86_64)
            reader = Reader(X86_64, self._limits)
            queue = BackQueue(self.ring, doorbell, self.pages, reader, vectored(self._disk), ended=self.errors.append)
            if serving:
                queue.start()
            try:
                yield queue
            finally:
                queue.stop()
                true(queue.join(SOON), "the queue's thread ends")
                self.pages.end()

    def _pages(self, gnttab: Gnttab) -> Pages:
        if self._data == "kept":
            return KeptPages(gnttab, self._here.other, self._kept)
        if self._data == "mapped":
            return MappedPages(gnttab, self._here.other)
        return CopiedPages(gnttab, self._here.other, BATCH_PAGES)


def serve(here: Here, disk: Any, data: str, **limits: Any) -> Back:
    """Serve until the other half is done."""
    back = Back(here, disk, data, **limits)
    with back.attached():
        here.hear("done")
    here.tell("let go")
    return back
