"""One ring of a front end, for asyncio: `FrontQueue` sends requests and resolves their futures as responses come.

Made by `frontend`, for each ring. Calls `rings.rpc`, a port, and the pages that the data is in. Responses may come in
any order. A back end that answers what was not asked, or otherwise than asked, is a `ProtocolError` for every request.
"""

from __future__ import annotations

import asyncio
import copy
import errno
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from xengrant.abi import blkif
from xengrant.abi.blkif import Head, Layout
from xengrant.abi.xen import PAGE_SIZE
from xengrant.errors import GrantTableFull, InterfaceClosed, ProtocolError

if TYPE_CHECKING:
    from xengrant.evtchn import AsyncPort
    from xengrant.pv.block.front_pages import FrontPages, Lease
    from xengrant.rings.rpc import FrontRing

__all__ = ["FrontQueue"]

_NAMES = {blkif.READ: "read", blkif.WRITE: "write", blkif.FLUSH_DISKCACHE: "flush", blkif.DISCARD: "discard"}


class _Call:
    """A request that waits to be sent, or for its response. `sector` and `count` are of 512 bytes."""

    __slots__ = ("count", "data", "future", "lease", "operation", "sector", "tables")

    def __init__(
        self, operation: int, sector: int, count: int, data: memoryview | None, future: asyncio.Future[bytes]
    ) -> None:
        self.operation = operation
        self.sector = sector
        self.count = count
        self.data = data
        self.future = future
        self.lease: Lease | None = None
        self.tables: Lease | None = None

    def __str__(self) -> str:
        return f"{_NAMES[self.operation]} of {self.count} sectors at {self.sector}"


class FrontQueue:
    """A ring, the port whose events are about it, and pages; all of them are its owner's.

    A request has at most `max_segments` pages: 11, or what the back end takes of indirect ones. `failed` is called
    once, with what ended it, where that is not `close`. Threads: that of its event loop only.
    """

    def __init__(
        self,
        ring: FrontRing,
        port: AsyncPort,
        layout: Layout,
        pages: FrontPages,
        *,
        handle: int,
        max_segments: int = blkif.MAX_SEGMENTS_PER_REQUEST,
        failed: Callable[[Exception], object] = lambda error: None,
    ) -> None:
        self.max_segments = max_segments
        self._ring = ring
        self._port = port
        self._layout = layout
        self._pages = pages
        self._handle = handle & 0xFFFF
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        self._line: deque[_Call] = deque()
        self._calls: dict[int, _Call] = {}
        self._next_id = 0
        self._push_is_due = False
        self._failure: Exception | None = None
        port.set_listener(self._on_event)

    @property
    def depth(self) -> int:
        """Requests that wait for their turn or their response."""
        return len(self._line) + len(self._calls)

    def read(self, sector: int, count: int) -> asyncio.Future[bytes]:
        """`count` sectors of 512 bytes, as many as `max_segments` pages have at most."""
        return self._submit(blkif.READ, sector, count, None)

    def write(self, sector: int, data: memoryview) -> asyncio.Future[bytes]:
        """Whole sectors; `data` is not to change before it is done."""
        return self._submit(blkif.WRITE, sector, len(data) // blkif.SECTOR_SIZE, data)

    def flush(self) -> asyncio.Future[bytes]:
        return self._submit(blkif.FLUSH_DISKCACHE, 0, 0, None)

    def discard(self, sector: int, count: int) -> asyncio.Future[bytes]:
        return self._submit(blkif.DISCARD, sector, count, None)

    def close(self, failure: Exception | None = None) -> None:
        """Fail every request, and send no more. A second time does nothing."""
        if self._failure is not None:
            return
        self._failure = failure or InterfaceClosed("this disk is closed")
        self._port.set_listener(None)
        calls = [*self._calls.values(), *self._line]
        self._calls.clear()
        self._line.clear()
        for call in calls:
            call.lease = call.tables = None
            if not call.future.done():
                error = copy.copy(self._failure)
                error.__cause__ = self._failure
                call.future.set_exception(error)

    def _submit(self, operation: int, sector: int, count: int, data: memoryview | None) -> asyncio.Future[bytes]:
        if self._failure is not None:
            raise copy.copy(self._failure) from self._failure
        future: asyncio.Future[bytes] = self._loop.create_future()
        call = _Call(operation, sector, count, data, future)
        self._line.append(call)
        self._serve()
        if self._line and self._line[-1] is call:
            future.add_done_callback(lambda future: self._leave(call))
        return future

    def _leave(self, call: _Call) -> None:
        """Whoever waited for it may have gone while it stood in line, with all that it was to write."""
        if call in self._line:
            self._line.remove(call)

    def _serve(self) -> None:
        """Send what has room, first come, first served."""
        while self._line and self._ring.free_requests:
            call = self._line[0]
            if call.future.done():  # cancelled
                self._line.popleft()
                continue
            try:
                if not self._lend(call):
                    if self._calls:
                        return
                    raise GrantTableFull(errno.ENOSPC, f"too few pages can be shared for a {call}")
                self._line.popleft()
                self._send(call)
            except Exception as error:
                if call in self._line:
                    self._line.remove(call)
                call.future.set_exception(error)

    def _lend(self, call: _Call) -> bool:
        """Have pages for it; whether there were some."""
        if call.operation not in (blkif.READ, blkif.WRITE):
            return True
        count = -(-call.count // blkif.SECTORS_PER_PAGE)
        call.lease = self._pages.take(count, writable=call.operation == blkif.READ)
        if call.lease is None:
            return False
        if count > blkif.MAX_SEGMENTS_PER_REQUEST:
            try:
                call.tables = self._pages.take(blkif.indirect_pages(count), writable=False)
            finally:
                if call.tables is None:
                    self._pages.give(call.lease)
                    call.lease = None
        return count <= blkif.MAX_SEGMENTS_PER_REQUEST or call.tables is not None

    def _send(self, call: _Call) -> None:
        if call.data is not None and call.lease is not None:
            for at, view in enumerate(call.lease.views):
                piece = call.data[at * PAGE_SIZE : (at + 1) * PAGE_SIZE]
                view[: len(piece)] = piece
            call.data = None
        self._next_id = number = self._next_id + 1
        self._ring.next_request(self._request(call, number))
        self._calls[number] = call
        if not self._push_is_due:
            self._push_is_due = True
            self._loop.call_soon(self._push)  # once for all that is sent in this turn of the loop

    def _request(self, call: _Call, number: int) -> bytes:
        layout = self._layout
        if call.operation == blkif.FLUSH_DISKCACHE:
            return layout.pack_rw(Head(blkif.FLUSH_DISKCACHE, 0, self._handle, number, 0), b"")
        if call.operation == blkif.DISCARD:
            return layout.pack_discard(Head(blkif.DISCARD, 0, self._handle, number, call.sector), call.count)
        assert call.lease is not None
        count = len(call.lease.refs)
        spans = [blkif.WHOLE_PAGE] * count
        if call.count % blkif.SECTORS_PER_PAGE:
            spans[-1] = blkif.span(0, call.count % blkif.SECTORS_PER_PAGE - 1)
        segments = blkif.pack_segments(call.lease.refs, spans)
        if call.tables is None:
            return layout.pack_rw(Head(call.operation, count, self._handle, number, call.sector), segments)
        for at, view in enumerate(call.tables.views):
            piece = segments[at * PAGE_SIZE : (at + 1) * PAGE_SIZE]
            view[: len(piece)] = piece
        head = Head(blkif.INDIRECT, call.operation, count, number, call.sector)
        return layout.pack_indirect(head, self._handle, call.tables.refs)

    def _push(self) -> None:
        self._push_is_due = False
        if self._failure is not None:
            return
        try:
            if self._ring.push_requests():
                self._port.notify()
        except Exception as error:
            self._fail(error)

    def _on_event(self) -> None:
        if self._failure is not None:
            return
        try:
            self._port.check()
            # What is sent meanwhile is pushed in another turn of the loop: at most a ring's responses come in this.
            while True:
                for response in self._ring.take_responses():
                    self._take(response)
                if not self._ring.more_to_do():
                    break
            self._serve()
        except Exception as error:
            self._fail(error)

    def _take(self, response: bytes) -> None:
        number, operation, status = self._layout.unpack_response(response)
        call = self._calls.pop(number, None)
        if call is None:
            raise ProtocolError(f"the back end answered a request {number} that is not under way")
        if operation != call.operation:
            self._calls[number] = call
            raise ProtocolError(f"the back end answered a {call} as operation {operation}")
        data = b""
        if not call.future.done() and status == blkif.RSP_OKAY and operation == blkif.READ and call.lease is not None:
            data = b"".join(call.lease.views)[: call.count * blkif.SECTOR_SIZE]  # copied once; the pages go back
        for lease in (call.lease, call.tables):
            if lease is not None:
                self._pages.give(lease)
        if call.future.done():  # cancelled
            return
        if status == blkif.RSP_OKAY:
            call.future.set_result(data)
        elif status == blkif.RSP_EOPNOTSUPP:
            call.future.set_exception(OSError(errno.EOPNOTSUPP, f"the back end does not do a {call}"))
        else:
            call.future.set_exception(OSError(errno.EIO, f"the back end failed at a {call} (status {status})"))

    def _fail(self, error: Exception) -> None:
        if self._failure is None:
            self.close(error)
            self._failed(error)
