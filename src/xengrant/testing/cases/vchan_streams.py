"""vchan for asyncio: streams both ways, many clients at one path, and the end after all that was written."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from xengrant import vchan
from xengrant.testing.case import Case
from xengrant.testing.expect import equal, true
from xengrant.testing.here import QUIET, SOON, Here

PATH = "xengrant-streams"
PROTOCOL = "Xen tools/libs/vchan/io.c"

_Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def _serve_one(here: Here, handler: _Handler, *, size: int, limit: int) -> None:
    """Serve until the handler is done with one client; what it raises is raised."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
            await _close(writer)
        except BaseException as error:
            writer.transport.abort()
            done.set_exception(error)
        else:
            done.set_result(None)

    async with await vchan.start_server(
        handle, here.other, PATH, read_size=size, write_size=size, limit=limit, domain=here.domain
    ):
        here.step("serving one client")
        async with asyncio.timeout(here.seconds):
            await done


async def _connect(here: Here) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await vchan.open_connection(here.other, PATH, timeout=SOON, domain=here.domain)


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()


class BothWays(Case):
    """Streams carry bytes both ways at once, and a writer waits while the other side does not read"""

    source = f"{PROTOCOL}; Python Lib/asyncio/streams.py"
    peer = "server"

    def server(self, here: Here) -> None:
        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await asyncio.to_thread(here.hear, "the writer waits")
            await self._exchange(here, reader, writer, says="server", hears="client")

        asyncio.run(_serve_one(here, handler, size=4096, limit=4096))

    def client(self, here: Here) -> None:
        asyncio.run(self._client(here))

    async def _client(self, here: Here) -> None:
        reader, writer = await _connect(here)
        transport: Any = writer.transport
        exchanging = asyncio.create_task(self._exchange(here, reader, writer, says="client", hears="server"))
        here.step("filling the ring")
        low, high = transport.get_write_buffer_limits()
        before, kept = 0, -1
        async with asyncio.timeout(SOON):
            while kept != before or kept <= low:
                await asyncio.sleep(QUIET)
                before, kept = kept, transport.get_write_buffer_size()
        true(kept <= high + 10_000, "a writer that waits has kept its limit and one piece at most, while nobody reads")
        await asyncio.to_thread(here.tell, "the writer waits")
        await exchanging
        await _close(writer)

    async def _exchange(
        self, here: Here, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, says: str, hears: str
    ) -> None:
        async def send() -> None:
            data = here.noise(200_000, says)
            for at in range(0, len(data), 10_000):
                writer.write(data[at : at + 10_000])
                await writer.drain()

        async with asyncio.timeout(here.seconds), asyncio.TaskGroup() as both:
            both.create_task(send())
            heard = both.create_task(reader.readexactly(200_000))
        equal(heard.result(), here.noise(200_000, hears), f"what the {hears} said")


class ManyClients(Case):
    """Clients of a server at one path, at once and one after the other, have a vchan of their own each"""

    source = "xengrant's own: libxenvchan serves one client at a path"
    peer = "server"

    def server(self, here: Here) -> None:
        asyncio.run(self._server(here))

    async def _server(self, here: Here) -> None:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readexactly(100))
            writer.write(await reader.readexactly(100))
            writer.close()  # the last bytes are left unread

        async with await vchan.start_server(
            echo, here.other, PATH, read_size=1024, write_size=1024, domain=here.domain
        ):
            await asyncio.to_thread(here.hear, "all are served")

    def client(self, here: Here) -> None:
        asyncio.run(self._client(here))
        here.tell("all are served")

    async def _client(self, here: Here) -> None:
        here.step("connecting at once")
        ends = await asyncio.gather(*(_connect(here) for _ in range(5)))
        for number, (_, writer) in enumerate(ends):
            writer.write(here.noise(100, number))
        for number, (reader, writer) in enumerate(ends):
            await self._finish(here, number, reader, writer)
        for number in range(5, 10):
            here.step(f"connecting as the client number {number}")
            reader, writer = await _connect(here)
            writer.write(here.noise(100, number))
            await self._finish(here, number, reader, writer)

    async def _finish(
        self, here: Here, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(here.noise(150, -number))
        async with asyncio.timeout(SOON):
            equal(await reader.read(-1), here.noise(100, number) + here.noise(150, -number)[:100], "the answer")
        await _close(writer)


class EndAfterTheLastByte(Case):
    """What a side wrote before it closed is read after that, to the end, and then comes the end of the stream"""

    source = f"{PROTOCOL}, libxenvchan_read"
    peer = "server"

    def server(self, here: Here) -> None:
        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(here.noise(3000, "server"))
            await _close(writer)
            here.tell("the server has closed")

        async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            here.hear("the client has closed")  # not awaited: the loop reads nothing before
            equal(await reader.read(-1), here.noise(3000, "client"), "what the client wrote before it closed")

        asyncio.run(_serve_one(here, handler, size=4096, limit=65536))
        here.hear("the end has come")
        asyncio.run(_serve_one(here, other, size=4096, limit=65536))

    def client(self, here: Here) -> None:
        asyncio.run(self._client(here))

    async def _client(self, here: Here) -> None:
        reader, writer = await _connect(here)
        here.hear("the server has closed")
        async with asyncio.timeout(SOON):
            equal(await reader.read(-1), here.noise(3000, "server"), "what the server wrote before it closed")
        await _close(writer)
        here.tell("the end has come")
        reader, writer = await _connect(here)
        writer.write(here.noise(3000, "client"))
        await _close(writer)
        here.tell("the client has closed")
