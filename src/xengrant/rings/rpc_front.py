"""The front end of a ring for asyncio: `AsyncFront` sends a request and awaits its response, many at once.

Used by asyncio programs that talk to a back end; calls `FrontRing` and an event channel's `AsyncPort`. Responses come
in any order, so each request carries an id that its response repeats: `IdField` says where.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Self

from xengrant.errors import InterfaceClosed, ProtocolError
from xengrant.forks import abandon_in_child
from xengrant.rings.rpc import FrontRing

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from xengrant.evtchn import AsyncPort
    from xengrant.peer import AsyncPeer

__all__ = ["AsyncFront", "IdField"]


class IdField(NamedTuple):
    """Where an entry has its id: `width` bytes (2, 4 or 8) from byte `offset` on, an unsigned little-endian number."""

    offset: int
    width: int

    def load(self, entry: bytes) -> int:
        """The id in a private copy of an entry."""
        return int.from_bytes(entry[self.offset : self.offset + self.width], "little")

    def store(self, entry: bytearray, number: int) -> None:
        """Set the id; `OverflowError` for a number that does not fit in `width` bytes."""
        entry[self.offset : self.offset + self.width] = number.to_bytes(self.width, "little")


class AsyncFront:
    """Calls over a `FrontRing` that this object has to itself, with a port whose events are the back end's.

    `late_responses` counts those that came after their call was cancelled, `unknown_responses` those that no call had
    asked for; both are ignored otherwise. A call holds its slot until its own response comes. Closing it closes neither
    ring nor port. Threads: that of its event loop only.
    """

    def __init__(
        self,
        ring: FrontRing,
        port: AsyncPort,
        *,
        request_id: IdField,
        response_id: IdField | None = None,
        peer: AsyncPeer | None = None,
    ) -> None:
        """`response_id` is where responses have the id, if not where requests have it; `peer` tells when it is gone.

        Raises `ValueError` for an id that is too narrow or outside the entry, and for a ring with requests in flight,
        whose responses might be taken for others. `RuntimeError` outside a running event loop.
        """
        self._request_id = _checked(request_id, ring)
        self._response_id = _checked(response_id or request_id, ring)
        if ring.in_flight:
            raise ValueError(f"{ring!r} has {ring.in_flight} requests in flight: take their responses first")
        self.late_responses = 0
        self.unknown_responses = 0
        self._ring = ring
        self._port = port
        self._peer = peer
        self._loop = asyncio.get_running_loop()
        self._line: dict[_Waiter, None] = {}  # who waits for slots, in the order in which they came
        self._calls: dict[int, asyncio.Future[bytes]] = {}  # by id; a cancelled one stays until its response comes
        self._last_id = -1
        self._push_is_due = False
        self._failure: Exception | None = None
        self._task = self._loop.create_task(self._run(), name=f"front of port {port.number}")
        abandon_in_child(self)

    def _abandon(self) -> None:
        self._failure = self._failure or InterfaceClosed("this AsyncFront is the parent process's")

    @property
    def closed(self) -> bool:
        """Whether calls are refused: it was closed, or something is wrong that the next call tells."""
        return self._failure is not None

    @property
    def free(self) -> int:
        """How many requests can be sent at once now, by who does not have to wait behind others."""
        # A peer that answers under wrong ids frees slots whose calls are still open.
        return min(self._ring.free_requests, self._ring.entries - len(self._calls))

    async def call(self, request: Buffer) -> bytes:
        """Send one request and wait for its response, a whole entry.

        `request` is what the entry begins with; its id is filled in. Waits for a free slot, behind those who came
        before. Cancelled, it gives its place in the line back; once sent, its slot is free when the response comes.
        Raises `InterfaceClosed` when this or the port is closed, `PeerClosed` when the peer is gone, `ProtocolError`
        when it lies, now or before, `ValueError` for a request that does not fit.
        """
        [response] = await self.call_all([request])
        return response

    async def call_all(self, requests: Sequence[Buffer]) -> list[bytes]:
        """As `call` for several requests, which are sent at once into consecutive slots; responses in their order.

        `ValueError` for more than the ring has entries, which could never be sent.
        """
        self._check_open()
        entries = [self._entry(request) for request in requests]
        if len(entries) > self._ring.entries:
            raise ValueError(f"{len(entries)} requests at once on a ring of {self._ring.entries} entries")
        if not entries:
            return []
        waiter = _Waiter(entries, [self._loop.create_future() for _ in entries])
        self._line[waiter] = None
        self._serve()
        try:
            return list(await asyncio.gather(*waiter.answers))
        finally:
            if waiter in self._line:  # cancelled there, in the way of those behind it
                del self._line[waiter]
                self._serve()

    def close(self) -> None:
        """Fail every call with `InterfaceClosed`, and stop looking at the ring. A second time does nothing."""
        self._fail(InterfaceClosed("this AsyncFront is closed"))
        self._task.cancel()

    async def __aenter__(self) -> Self:
        self._check_open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()
        await asyncio.wait([self._task])

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self._calls)} calls under way, {len(self._line)} waiting for slots"
        return f"<{type(self).__name__} over {self._ring!r}, {state}>"

    def _check_open(self) -> None:
        if self._failure is not None:
            raise copy.copy(self._failure) from self._failure

    def _entry(self, request: Buffer) -> bytearray:
        entry = bytearray(memoryview(request).cast("B"))
        least = self._request_id.offset + self._request_id.width
        if not least <= len(entry) <= self._ring.entry_size:
            raise ValueError(
                f"a request of {len(entry)} bytes: with its id it takes {least} at least, "
                f"and an entry has {self._ring.entry_size}"
            )
        return entry

    def _serve(self) -> None:
        """Send the requests of all who can go on, first come, first served."""
        while self._line and self._failure is None:
            waiter = next(iter(self._line))
            if waiter.is_cancelled:
                del self._line[waiter]
                continue
            if len(waiter.entries) > self.free:
                return
            del self._line[waiter]
            try:
                for entry, answer in zip(waiter.entries, waiter.answers, strict=True):
                    number = self._new_id()
                    self._calls[number] = answer
                    self._request_id.store(entry, number)
                    self._ring.next_request(entry)
            except Exception as failure:  # the memory is gone
                self._line[waiter] = None
                self._fail(failure)
                return
            if not self._push_is_due:
                self._push_is_due = True
                self._loop.call_soon(self._push)  # once for all that is sent in this turn of the loop

    def _new_id(self) -> int:
        """Not that of a call under way, and not soon that of a former one."""
        number = self._last_id
        while True:  # at most once for each call under way
            number = number + 1 & (1 << 8 * self._request_id.width) - 1
            if number not in self._calls:
                self._last_id = number
                return number

    def _push(self) -> None:
        self._push_is_due = False
        if self._failure is not None:
            return
        try:
            if self._ring.push_requests():
                self._port.notify()
        except Exception as failure:
            self._fail(failure)

    async def _run(self) -> None:
        """Take responses whenever there are some."""
        try:
            while self._failure is None:
                self._take()
                # What is sent meanwhile is pushed in another turn of the loop: at most a ring's responses come in this.
                if not self._ring.more_to_do():
                    await self._port.wait(peer=self._peer)
        except Exception as failure:
            self._fail(failure)
        finally:
            self._fail(InterfaceClosed("the event loop of this AsyncFront has ended"))

    def _take(self) -> None:
        for response in self._ring.take_responses():
            answer = self._calls.pop(self._response_id.load(response), None)
            if answer is None:
                self.unknown_responses += 1
            elif answer.done():
                self.late_responses += 1
            else:
                answer.set_result(response)
        if self._calls and not self._ring.in_flight:
            raise ProtocolError(
                f"the peer answered every request, and {len(self._calls)} calls have no response: "
                f"{self.unknown_responses} responses had an id that nobody waits for"
            )
        self._serve()

    def _fail(self, failure: Exception) -> None:
        """Have every call raise it, now and from now on."""
        if self._failure is not None:
            return
        self._failure = failure
        open_calls = [*self._calls.values(), *(answer for waiter in self._line for answer in waiter.answers)]
        self._calls.clear()
        for answer in open_calls:
            if not answer.done():
                error = copy.copy(failure)
                error.__cause__ = failure
                answer.set_exception(error)


class _Waiter:
    """Somebody who waits for as many slots as there are entries."""

    def __init__(self, entries: list[bytearray], answers: list[asyncio.Future[bytes]]) -> None:
        self.entries = entries
        self.answers = answers

    @property
    def is_cancelled(self) -> bool:
        """Whether its call was cancelled; that call has not run since, or it would be out of the line."""
        return self.answers[0].done()


def _checked(field: IdField, ring: FrontRing) -> IdField:
    offset, width = field
    if width not in (2, 4, 8):
        raise ValueError(f"an id has 2, 4 or 8 bytes, not {width}")
    if not 0 <= offset <= ring.entry_size - width:
        raise ValueError(f"an id of {width} bytes at {offset} is not within an entry of {ring.entry_size}")
    if ring.entries > 1 << 8 * width:
        raise ValueError(f"{width} bytes do not tell {ring.entries} requests apart")
    return IdField(offset, width)
