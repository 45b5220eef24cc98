"""A small kind of device, echo: requests of a ring in one page come back reversed, in capitals where both ends want it.

What the cases and the tests of the bus connect; each end remembers what it was told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from xengrant import pv
from xengrant.memory import Mapping as Memory
from xengrant.rings.rpc import BackRing, FrontRing
from xengrant.rings.rpc_back import AsyncBack
from xengrant.rings.rpc_front import AsyncFront, IdField

__all__ = ["ENTRY", "EchoBack", "EchoFront"]

ENTRY = 64  # bytes
_ID = IdField(0, 8)


class EchoBack(pv.Backend):
    """Serves one ring."""

    def __init__(self, device: pv.Device) -> None:
        super().__init__(device)
        self.events: list[str] = []

    async def offer(self) -> Mapping[str, pv.Value]:
        self.events.append("offer")
        return {"feature-shout": True, "size": ENTRY}

    async def connect(self, connection: pv.Connection) -> Mapping[str, pv.Value]:
        mapped = connection.map(await connection.otherend.number("ring-ref"))
        port = connection.bind(await connection.otherend.number("event-channel"))
        ring = BackRing.attach(mapped.mapping, ENTRY)
        connection.start(self._serve(AsyncBack(ring, port), await connection.taken("feature-shout")))
        self.events.append("resume" if connection.resume else "connect")
        return {"greeting": "hello"}

    async def disconnect(self, connection: pv.Connection) -> None:
        self.events.append("disconnect")

    async def _serve(self, back: AsyncBack, shout: bool) -> None:
        async for requests in back:
            back.respond(*(_answer(request, shout) for request in requests))


class EchoFront(pv.Frontend):
    """Asks over one ring."""

    def __init__(self, shout: bool = False) -> None:
        self.shout = shout
        self.events: list[str] = []
        self.greeting = ""
        self.calls: AsyncFront | None = None
        self.memory: Memory | None = None

    async def connect(self, connection: pv.Connection) -> Mapping[str, pv.Value]:
        self.events.append("connect")
        assert await connection.otherend.number("size") == ENTRY
        share = connection.share(1)
        port = connection.offer_port()
        self.memory = share.mapping
        ring = FrontRing.init(share.mapping, ENTRY)
        self.calls = await connection.enter_async(AsyncFront(ring, port, request_id=_ID))
        return {"ring-ref": share.refs[0], "event-channel": port.number, "feature-shout": self.shout}

    async def connected(self, connection: pv.Connection) -> None:
        self.events.append("connected")
        self.greeting = await connection.otherend.text("greeting")

    async def changed(self, connection: pv.Connection) -> None:
        self.greeting = await connection.otherend.text("greeting")
        self.events.append(f"changed {self.greeting}")

    async def disconnect(self, connection: pv.Connection) -> None:
        self.events.append("disconnect")

    async def ask(self, text: bytes, timeout: float) -> bytes:
        """What comes back for `text`, at most 56 bytes, within `timeout` seconds."""
        assert self.calls is not None
        async with asyncio.timeout(timeout):
            return (await self.calls.call((bytes(8) + text).ljust(ENTRY, b"\0")))[8:].rstrip(b"\0")


def _answer(request: bytes, shout: bool) -> bytes:
    text = request[8:].rstrip(b"\0")
    return request[:8] + (text.upper() if shout else text)[::-1].ljust(ENTRY - 8, b"\0")
