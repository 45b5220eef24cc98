"""One ring of a back end, served by a thread of its own: `BackQueue` takes all requests that are there, does them, and
answers in the ring's order.

Made by `backend`, for each ring that a front end has. Calls `ring`, `requests`, `pages`, `execution` and a port's
`Doorbell`; no event loop runs for a request. Answering in order lets a successor of a back end that died go on where
the ring says that it stopped: what was done and not answered is done again, which for a disk's requests is the same.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

from xengrant.abi import blkif
from xengrant.errors import PeerClosed
from xengrant.pv.block.counters import Counters
from xengrant.pv.block.disks import descriptor
from xengrant.pv.block.execution import execute
from xengrant.pv.block.pages import KeptPages

if TYPE_CHECKING:
    from xengrant._native import BlockServer, Doorbell
    from xengrant.pv.block.disks import VectoredDisk
    from xengrant.pv.block.pages import Pages
    from xengrant.pv.block.requests import Reader, Request
    from xengrant.pv.block.ring import BlockRing

__all__ = ["BATCH_PAGES", "REFUSING_SECONDS", "BackQueue"]

BATCH_PAGES = 1024
"""How many pages of data one batch has at most, unless one request has more."""

_CHANGED, _SILENCED = 0, 3  # what Doorbell.wait says of news, and where no event can come any more

REFUSING_SECONDS = 5.0
"""How long a front end that closes, and asks on, is refused at most."""

_QUIET = 0.3  # seconds without a request after which it has no more

_log = logging.getLogger("xengrant.pv.block")


class BackQueue:
    """A ring, the port whose events are about it, and a disk.

    `start` and `stop` are its owner's, who also owns ring, port and disk; `pages` it lets go of when it ends. `ended`
    is called in the thread where something ends it that is not `stop`: a `ProtocolError` of the front end's, or
    `PeerClosed`. Nothing that is wrong with a single request ends it. `over` is done when it has ended, and nothing of
    it uses ring, port or disk any more.
    """

    def __init__(
        self,
        ring: BlockRing,
        doorbell: Doorbell,
        pages: Pages,
        reader: Reader,
        disk: VectoredDisk,
        *,
        ended: Callable[[Exception], object],
        name: str = "xengrant-block",
    ) -> None:
        self._counters = Counters()  # of what is done here
        self._ring = ring
        self.doorbell = doorbell
        self._pages = pages
        self._reader = reader
        self._disk = disk
        self._ended = ended
        self._stopping = self._refusing = False
        self.over = _announcement()
        self._to_begin: deque[Future[None]] = deque()
        self._server = self._make_server()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def counters(self) -> Counters:
        """Of all that was done, at this moment."""
        counters = [self._counters]
        if self._server is not None:
            counters.append(Counters.of_server(self._server))
        return Counters.sum(counters)

    def start(self) -> None:
        """Begin with what is not answered. Once."""
        self._thread.start()

    def stop(self, *, refuse: bool = False) -> None:
        """Have it end after what the disk is doing now; what is not done then stays in the ring, or is refused.

        A front end waits for each request that it made, and its domain's programs with it, also after it has closed:
        nobody else will answer where the device closes.
        """
        self._refusing = refuse
        self._stopping = True
        self.doorbell.wake()

    def begin_anew(self) -> Future[None]:
        """Have it look at the reader's limits again: done once all that was taken before is."""
        begun = _announcement()
        self._to_begin.append(begun)
        self.doorbell.wake()
        if self.over.done():
            self._begin()
        return begun

    def join(self, timeout: float | None = None) -> bool:
        """Whether it is over, after at most so many seconds."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self.doorbell.ring()  # a predecessor may have died between an answer and its event
            self._serve()
            if self._refusing:
                self._refuse_until_quiet()
        except Exception as error:
            self._counters.depth = 0
            if not self._stopping:
                self._ended(error)
        finally:
            try:
                self._pages.end()
            finally:
                self.over.set_result(None)
                self._begin()

    def _begin(self) -> None:
        """Whatever was taken is done, and the limits are those of now."""
        while self._to_begin:
            try:
                begun = self._to_begin.popleft()
            except IndexError:  # at the end, `begin_anew` may be here as well
                return
            begun.set_result(None)

    def _make_server(self) -> BlockServer | None:
        """What does the usual requests without Python: where pages are kept, and the disk is a file."""
        file = descriptor(self._disk)
        if file is None or not isinstance(self._pages, KeptPages):
            return None
        server = self._ring.server(self.doorbell, file)
        self._pages.tell(server)
        return server

    def _serve(self) -> None:
        serve = self._serve_here if self._server is None else self._serve_usual
        while not self._stopping:
            self._begin()
            if not serve() and not self._stopping:
                raise PeerClosed("no event can come on this ring's port any more")

    def _serve_here(self) -> bool:
        """Do what is there, or wait for more. False where no event can come."""
        changes, wakes = self.doorbell.changes, self.doorbell.wakes
        if self._stopping or self._to_begin:
            return True
        if entries := self._ring.take_requests():
            self._do(entries)
        elif self.doorbell.poll and self._ring.look(self.doorbell, wakes):
            return True
        elif not self._ring.more_to_do():
            return self.doorbell.wait(changes, None) != _SILENCED
        return True

    def _serve_usual(self) -> bool:
        """Have what is usual done, for as long as there is nothing else; then do the rest."""
        assert self._server is not None
        wakes = self.doorbell.wakes
        if self._stopping or self._to_begin:
            return True
        more = self._ring.serve(self._server, self._reader.limits, wakes)
        if entries := self._ring.take_requests():
            self._do(entries)
        return more

    def _do(self, entries: Sequence[bytes]) -> None:
        self._counters.depth = len(entries)
        requests = list(map(self._reader.read, entries))
        indirect = [request for request in requests if request.tables]
        if indirect:
            self._pages.read_tables(self._reader, indirect)
        for batch in _batches(requests):
            self._pages.open(batch)
            done = execute(self._disk, batch, self._is_stopping)
            self._pages.close(batch)
            self._answer(done)
            if self._stopping:
                break

    def _refuse_until_quiet(self) -> None:
        """Answer with an error what was not done, be it taken or not, and what comes yet.

        Linux's front end has requests that wait for a slot, or that were held back as it closed. Each event has it put
        them in the ring, closed as it is (drivers/block/xen-blkfront.c, blkfront_closing and blkif_interrupt).
        """
        deadline = time.monotonic() + REFUSING_SECONDS
        self.doorbell.ring()
        while time.monotonic() < deadline:
            changes = self.doorbell.changes
            if entries := self._ring.take_unanswered():
                self._refuse(entries)
            elif not self._ring.more_to_do() and self.doorbell.wait(changes, _QUIET) != _CHANGED:
                return

    def _refuse(self, entries: Sequence[bytes]) -> None:
        """Flushes are done, once for all: Linux takes a flush that failed for one that is not needed."""
        requests = list(map(self._reader.read, entries))
        self._counters.depth = len(requests)
        flushes = []
        for request in requests:
            if request.action == blkif.FLUSH_DISKCACHE and request.status is None and not request.refs:
                flushes.append(request)
            else:
                request.refuse("the disk is unplugged")
        execute(self._disk, flushes[:1])
        for flush in flushes[1:]:
            flush.status, flush.fault = flushes[0].status, flushes[0].fault
        self._answer(requests)

    def _is_stopping(self) -> bool:
        return self._stopping

    def _answer(self, batch: Sequence[Request]) -> None:
        answer, pack = self._ring.answer, self._reader.layout.pack_response
        for request in batch:
            answer(pack(request.id, request.operation, request.status))
        if self._ring.to_notify():
            self.doorbell.ring()
        self._count(batch)

    def _count(self, batch: Sequence[Request]) -> None:
        counters = self._counters
        for request in batch:
            if request.status != blkif.RSP_OKAY:
                counters.errors += 1
                _log.debug("refused %r: %s", request, request.fault)
            elif request.action == blkif.READ:
                counters.reads += 1
                counters.read_bytes += request.length
            elif request.action == blkif.WRITE:
                counters.writes += 1
                counters.written_bytes += request.length
            elif request.action == blkif.DISCARD:
                counters.discards += 1
                counters.discarded_bytes += request.length
            else:
                counters.flushes += 1
                counters.written_bytes += request.length
        counters.depth -= len(batch)


def _announcement() -> Future[None]:
    """For any event loop to await (asyncio.wrap_future); one that does not wait any more cannot cancel it."""
    announcement: Future[None] = Future()
    announcement.set_running_or_notify_cancel()
    return announcement


def _batches(requests: Sequence[Request]) -> Sequence[Sequence[Request]]:
    """Pieces of at most `BATCH_PAGES` pages, or of one request."""
    if sum(len(request.refs) for request in requests) <= BATCH_PAGES:
        return (requests,)
    batches: list[list[Request]] = [[]]
    pages = 0
    for request in requests:
        pages += len(request.refs)
        if pages > BATCH_PAGES and batches[-1]:
            batches.append([])
            pages = len(request.refs)
        batches[-1].append(request)
    return batches
