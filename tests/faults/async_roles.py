"""The two sides of a vchan as `roles.py` has them, by `vchan.start_server` and `vchan.open_connection`.

Each does what the blocking one does, and speaks with it, but that a server of asyncio cannot wait until its client has
taken what it wrote. They watch the other domain by a peer of their own loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from tests.faults.lives import PLAYING
from tests.faults.roles import ANSWER, LAST, MESSAGE, EndOfFile
from xengrant import vchan

if TYPE_CHECKING:
    from tests.faults.lives import Life
    from xengrant import AsyncPeer

__all__ = ["ASYNC"]

_T = TypeVar("_T")
_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _server(life: Life) -> None:
    """Offer vchans until a client has come to one; write more than fits, read the answer, write the last, and close."""
    life.stage = "connect"
    loop = asyncio.get_running_loop()
    # What ends a server is raised too, and pytest keeps what is logged, with the error and all that its frames hold.
    loop.set_exception_handler(lambda loop, context: None)
    came: asyncio.Future[_Streams] = loop.create_future()

    def on_client(*streams: Any) -> None:
        came.set_result(streams)

    async with _peer(life) as peer:
        server = await vchan.start_server(
            on_client, life.other, f"faults{life.name}", read_size=1024, write_size=4096, peer=peer, domain=life.domain
        )
        async with server:
            reader, writer = await _wait(life, _first_client(server, came))
            async with _closing(life, writer):
                life.stage = "transfer"
                life.at("connected")
                await _write(life, writer, MESSAGE, pause_at=5000)
                await _read(life, reader, len(ANSWER))
                await _write(life, writer, LAST, pause_at=len(LAST))


async def _first_client(server: vchan.VchanServer, came: asyncio.Future[_Streams]) -> _Streams:
    """Its streams; raises what ends the server."""
    serving = asyncio.ensure_future(server.serve_forever())
    try:
        either: set[asyncio.Future[Any]] = {serving, came}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()
        return came.result()
    finally:
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving


async def _client(life: Life) -> None:
    """Connect to the vchan, read all, answer, read the last, and the end of the stream; close."""
    life.stage = "connect"
    async with _peer(life) as peer:
        connecting = vchan.open_connection(life.other, f"faults{life.name}", peer=peer, domain=life.domain)
        reader, writer = await _wait(life, connecting)
        async with _closing(life, writer):
            life.stage = "transfer"
            life.at("connected")
            await _read(life, reader, 5000)
            life.at("some read")
            await _read(life, reader, len(MESSAGE) - 5000)
            await _write(life, writer, ANSWER, pause_at=len(ANSWER))
            await _read(life, reader, len(LAST))
            if await _wait(life, reader.read(1)):
                raise AssertionError("more came than was written")


@contextlib.asynccontextmanager
async def _peer(life: Life) -> AsyncIterator[AsyncPeer | None]:
    """What tells of the end of the other domain, from now on."""
    if life.shown is None:
        yield None
        return
    async with life.domain.aio.peer(life.other, life.shown) as peer:
        playing = PLAYING.set(None)
        peer.on_gone(lambda: None)  # which starts the task that watches: no step of the role
        PLAYING.reset(playing)
        yield peer


@contextlib.asynccontextmanager
async def _closing(life: Life, writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    """Close the connection and wait for its end; abort it where the block fails."""
    writer.transport.set_write_buffer_limits(0)  # so that `drain` waits until all lies in the ring
    try:
        yield
        life.stage = "close"
        life.at("all done")
        writer.close()
        await _wait(life, writer.wait_closed())
    except BaseException:
        writer.transport.abort()
        with contextlib.suppress(Exception):
            await writer.wait_closed()
        raise


async def _write(life: Life, writer: asyncio.StreamWriter, data: bytes, *, pause_at: int) -> None:
    for piece in (data[:pause_at], data[pause_at:]):
        if piece:
            writer.write(piece)
            await _wait(life, writer.drain())
            life.given += piece
            life.at(f"{len(life.given)} bytes written")


async def _read(life: Life, reader: asyncio.StreamReader, size: int) -> None:
    wanted = len(life.received) + size
    while (missing := wanted - len(life.received)) > 0:
        data = await _wait(life, reader.read(missing))
        if not data:
            raise EndOfFile(f"the end of the stream after {len(life.received)} bytes")
        life.received += data


async def _wait(life: Life, awaited: Coroutine[Any, Any, _T]) -> _T:
    """As `Life.wait`; what was waited for in vain is cancelled."""
    task = asyncio.ensure_future(awaited)
    try:
        while not task.done():
            began = time.monotonic()
            await asyncio.wait({task}, timeout=life.pace)
            if not task.done() and life.is_enough(began):
                raise TimeoutError(f"waited in vain at {life.stage}")
        return task.result()
    finally:
        task.cancel()
        await asyncio.wait({task})


def _run(role: Callable[[Life], Coroutine[Any, Any, None]]) -> Callable[[Life], None]:
    return lambda life: asyncio.run(role(life))


ASYNC: dict[str, Callable[[Life], None]] = {"asyncio server": _run(_server), "asyncio client": _run(_client)}
