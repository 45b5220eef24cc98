"""The back end of a ring for asyncio: `AsyncBack` gives the requests as they come, and sends responses.

Used by asyncio programs that serve a front end; calls `BackRing` and an event channel's `AsyncPort`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from xengrant.evtchn import AsyncPort
    from xengrant.peer import AsyncPeer
    from xengrant.rings.rpc import BackRing

__all__ = ["AsyncBack"]


class AsyncBack:
    """Requests of a `BackRing`, for ``async for``, with a port whose events are the front end's::

        back = AsyncBack(ring, port)
        async for requests in back:
            back.respond(*map(answer, requests))

    Each turn gives all that are there, one at least, as private copies. Responses may also come later, from other
    tasks, in any order. It owns neither ring nor port. Threads: that of its event loop only.
    """

    def __init__(self, ring: BackRing, port: AsyncPort, *, peer: AsyncPeer | None = None) -> None:
        self._ring = ring
        self._port = port
        self._peer = peer

    def respond(self, *responses: Buffer) -> None:
        """Write and push responses, and notify the peer where it waits for them.

        `ValueError` for more than there are requests that were taken and not answered, or for one that is too long:
        then none is written. `InterfaceClosed` when the port is closed.
        """
        if len(responses) > self._ring.unanswered:
            raise ValueError(f"{len(responses)} responses to {self._ring.unanswered} requests")
        longest = max((memoryview(response).nbytes for response in responses), default=0)
        if longest > self._ring.entry_size:
            raise ValueError(f"a response of {longest} bytes: an entry has {self._ring.entry_size}")
        for response in responses:
            self._ring.next_response(response)
        if self._ring.push_responses():
            self._port.notify()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[bytes]:
        """Raises `ProtocolError` when the peer lies, `PeerClosed` when it is gone, `InterfaceClosed` when the port is
        closed: the loop never ends by itself.
        """
        await asyncio.sleep(0)  # a peer that always has more does not keep others from their turn
        while True:
            requests = self._ring.take_requests()
            if requests:
                return requests
            if not self._ring.more_to_do():
                await self._port.wait(peer=self._peer)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} over {self._ring!r}>"
