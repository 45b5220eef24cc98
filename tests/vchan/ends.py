"""Two ends of one connection of asyncio, over a socket pair or a vchan, and protocols that tell what befell them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import xengrant
from xengrant import vchan

LONG = 60.0  # seconds; no test comes near it on a machine of its own

Kind = Literal["socket", "vchan"]
_T = TypeVar("_T")


def run(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """The coroutine's result, within a deadline."""

    async def main() -> _T:
        try:
            async with asyncio.timeout(LONG):
                return await coroutine
        except TimeoutError:
            raise AssertionError(f"not done in {LONG} seconds") from None

    return asyncio.run(main())


class Recorder(asyncio.Protocol):
    """Remembers what it was told, in order: pieces that follow each other are one."""

    def __init__(self) -> None:
        self.events: list[object] = []
        self.transport: Any = None
        self.received = bytearray()
        self.lost = asyncio.Event()
        self.lost_error: BaseException | None = None
        self.is_paused = False
        self._news = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._tell("made")

    def data_received(self, data: bytes) -> None:
        self.received += data
        if self.events[-1] != "data":
            self.events.append("data")
        self._news.set()

    def eof_received(self) -> bool | None:
        self._tell("eof")
        return None

    def pause_writing(self) -> None:
        self.is_paused = True
        self._tell("pause")

    def resume_writing(self) -> None:
        self.is_paused = False
        self._tell("resume")

    def connection_lost(self, error: BaseException | None) -> None:
        self.lost_error = error
        self._tell("lost" if error is None else type(error).__name__)
        self.lost.set()

    async def until(self, holds: Callable[[Recorder], object], what: str) -> None:
        """Wait until something was told that makes it hold."""
        try:
            async with asyncio.timeout(LONG / 2):
                while not holds(self):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"not so: {what}; {self.events}, {len(self.received)} bytes") from None

    async def until_received(self, size: int) -> None:
        await self.until(lambda self: len(self.received) >= size, f"{size} bytes have come")

    async def until_lost(self) -> None:
        await self.until(lambda self: self.lost.is_set(), "the connection is lost")

    def _tell(self, event: str) -> None:
        self.events.append(event)
        self._news.set()


class InPlace(Recorder, asyncio.BufferedProtocol):
    """A `Recorder` that is read into a small buffer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = bytearray(1000)
        self.pieces = 0

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.pieces += 1
        self.data_received(bytes(self.buffer[:nbytes]))


@dataclass
class Ends:
    """Makes connections between domain 1, which serves, and domain 2."""

    kind: Kind
    server: xengrant.Domain
    client: xengrant.Domain

    @asynccontextmanager
    async def pair(
        self, left: Callable[[], Any] = Recorder, right: Callable[[], Any] = Recorder, *, size: int = 65536
    ) -> AsyncIterator[tuple[Any, Any]]:
        """Two protocols that talk to each other, aborted at the end."""
        made: list[Any] = []

        def make_left() -> Any:
            made.append(left())
            return made[0]

        if self.kind == "socket":
            ours, theirs = socket.socketpair()
            loop = asyncio.get_running_loop()
            await loop.create_connection(make_left, sock=ours)
            _, other = await loop.create_connection(right, sock=theirs)
        else:
            server = await vchan.create_server(
                make_left, 2, "pair", read_size=size, write_size=size, domain=self.server
            )
            _, other = await vchan.create_connection(right, 1, "pair", domain=self.client, timeout=LONG)
            while not made or made[0].transport is None:
                await asyncio.sleep(0)
            server.close()
        try:
            yield made[0], other
        finally:
            for protocol in (made[0], other):
                if not protocol.lost.is_set():
                    protocol.transport.abort()
                await protocol.until_lost()
            if self.kind == "vchan":
                await server.wait_closed()
