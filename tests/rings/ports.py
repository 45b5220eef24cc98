"""Two ports that are bound to each other and need no machine, and what tests of the asyncio ends do again and again."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any, cast

from xengrant import AsyncPort, InterfaceClosed
from xengrant.rings.rpc_front import AsyncFront, IdField

from .memory import pair

__all__ = ["ID", "FakePort", "Serving", "calls", "looped", "request", "settle"]

ID = IdField(0, 2)
LONG = 20.0


def looped(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """A test that runs in an event loop of its own, within a deadline."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def within() -> None:
            async with asyncio.timeout(LONG):
                await test(*args, **kwargs)

        asyncio.run(within())

    return run


class FakePort:
    """As much of an AsyncPort as the ends of a ring use; `events` counts what the other one was sent."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.other = self
        self.events = 0
        self.closed = False
        self._news = asyncio.Event()

    def notify(self) -> None:
        if self.closed:
            raise InterfaceClosed("this port is closed")
        self.events += 1
        self.other._news.set()

    async def wait(self, timeout: float | None = None, *, peer: Any = None, unmask: bool = True) -> None:
        await self._news.wait()
        self._news.clear()
        if self.closed:
            raise InterfaceClosed("this port is closed")

    def close(self) -> None:
        self.closed = True
        self._news.set()


class Serving:
    """A front end with ring and port; the back end's ring, whose test does the answering, and its port."""

    def __init__(self, start: int = 0, *, entries: int = 4) -> None:
        self.ring, self.back, self.memory = pair(start, entries=entries)
        self.port, self.back_port = FakePort(1), FakePort(2)
        self.port.other, self.back_port.other = self.back_port, self.port
        self.front = AsyncFront(self.ring, cast(AsyncPort, self.port), request_id=ID)

    @property
    def as_port(self) -> AsyncPort:
        return cast(AsyncPort, self.back_port)

    def respond(self, *responses: bytes) -> None:
        for response in responses:
            self.back.next_response(response)
        if self.back.push_responses():
            self.back_port.notify()


def request(text: bytes = b"") -> bytes:
    return bytes(2) + text


def calls(front: AsyncFront, count: int) -> list[asyncio.Task[bytes]]:
    return [asyncio.create_task(front.call(request(b"call %d" % number))) for number in range(count)]


async def settle() -> None:
    """Let everything that can go on do so."""
    for _ in range(20):
        await asyncio.sleep(0)
