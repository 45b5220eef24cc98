"""What asyncio programs open, each in a loop that `wait` runs."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from tests.block.ends import Ends
from xengrant import vchan
from xengrant.errors import InterfaceClosed
from xengrant.pv.block.disks import File
from xengrant.rings.rpc import BackRing, FrontRing
from xengrant.rings.rpc_front import AsyncFront, IdField

from .thing import LONG, Domains, Thing

_ENTRY = 64


@dataclass
class _Opened:
    """As `Thing`, of what is open in a running loop."""

    wait: Callable[[], Awaitable[object]]
    end: Callable[[], object]
    refused: dict[str, Callable[[], object]] = field(default_factory=dict)
    closed: list[Callable[[], object]] = field(default_factory=list)


_Opening = Callable[[Domains], AbstractAsyncContextManager[_Opened]]


def _looped(opening: _Opening) -> Callable[[Domains], AbstractContextManager[Thing]]:
    """Has it opened, waited on and closed in a loop of its own."""

    @contextmanager
    def made(there: Domains) -> Iterator[Thing]:
        found: list[tuple[asyncio.AbstractEventLoop, _Opened]] = []

        async def main() -> None:
            async with asyncio.timeout(LONG), opening(there) as opened:
                found.append((asyncio.get_running_loop(), opened))
                thing.refused, thing.closed = opened.refused, opened.closed
                thing.is_ready.set()
                await opened.wait()

        def end() -> None:
            loop, opened = found[0]
            loop.call_soon_threadsafe(opened.end)

        thing = Thing(lambda: asyncio.run(main()), end, has_loop=True)
        yield thing

    return made


@asynccontextmanager
async def _ports(there: Domains) -> AsyncIterator[_Opened]:
    """A port and a watch."""
    async with there.two.aio.evtchn() as channels, there.one.aio.evtchn() as others, there.two.aio.xenstore() as store:
        other = others.bind_unbound(2)
        port = channels.bind_interdomain(1, other.number)
        await store.write("data/thing", "here")
        watch = await store.watch("data/thing")
        await watch.wait()
        await port.wait(LONG)  # the first is nobody's
        yield _Opened(
            lambda: port.wait(LONG),
            other.notify,
            {
                "AsyncPort.wait": lambda: asyncio.run(port.wait(0)),
                "AsyncPort.notify": port.notify,
                "AsyncEventChannels.bind_unbound": lambda: channels.bind_unbound(1),
                "AsyncWatch.wait": lambda: asyncio.run(watch.wait(0)),
                "AsyncXenStore.read": lambda: asyncio.run(store.read("data/thing")),
            },
            [port.close, channels.close, watch.close, store.close],
        )


@asynccontextmanager
async def _transports(there: Domains) -> AsyncIterator[_Opened]:
    """Both ends of a vchan, as streams."""
    came: asyncio.Future[asyncio.StreamWriter] = asyncio.get_running_loop().create_future()

    async def welcome(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.set_result(writer)
        await reader.read()
        writer.close()

    server = await vchan.start_server(welcome, 2, "streams", domain=there.one)
    reader, writer = await vchan.open_connection(1, "streams", domain=there.two, timeout=LONG)
    transport, other = writer.transport, await came

    async def wait() -> None:
        assert await reader.readexactly(12) == b"the parent's"

    def write() -> None:
        """Which raises nothing, as a transport's calls do."""
        transport.write(b"child")
        if transport.is_closing():
            raise InterfaceClosed("this transport is closing")

    try:
        yield _Opened(
            wait, lambda: other.write(b"the parent's"), {"VchanTransport.write": write}, [transport.abort, server.close]
        )
    finally:
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()


@asynccontextmanager
async def _calls(there: Domains) -> AsyncIterator[_Opened]:
    """A call of an `AsyncFront` that has no response yet."""
    async with there.one.aio.evtchn() as channels, there.two.aio.evtchn() as others:
        with there.one.gntshr() as gntshr, gntshr.share_pages(2, writable=True) as share, there.two.gnttab() as gnttab:
            front_port = channels.bind_unbound(2)
            back_port = others.bind_interdomain(1, front_port.number)
            ring = FrontRing.init(share.mapping, _ENTRY)
            with gnttab.map((1, share.refs[0]), writable=True) as mapped:
                back = BackRing.attach(mapped.mapping, _ENTRY)
                async with AsyncFront(ring, front_port, request_id=IdField(0, 2)) as front:

                    async def wait() -> None:
                        assert (await front.call(b"\0\0what"))[2:6] == b"what"

                    def answer() -> None:
                        for request in back.take_requests():
                            back.next_response(request)
                        assert back.push_responses()
                        back_port.notify()

                    refused: dict[str, Callable[[], object]] = {
                        "AsyncFront.call": lambda: asyncio.run(front.call(b"\0\0child")),
                        "FrontRing.push_requests": ring.push_requests,
                    }
                    yield _Opened(wait, answer, refused)


@asynccontextmanager
async def _disk(there: Domains) -> AsyncIterator[_Opened]:
    """A disk's back end, which waits for requests in a thread, without the GIL, on a file."""
    with File(sys.executable, writable=False) as disk:
        async with Ends(there, disk, writable=False) as ends:
            first = await ends.front.read(0, 8)
            assert first == disk.pread(4096, 0)
            ended = asyncio.Event()

            async def wait() -> None:
                await ended.wait()
                assert await ends.front.read(0, 8) == first

            def join() -> None:
                assert ends.back.join(LONG), "the parent's thread runs in the child"

            yield _Opened(
                wait,
                ended.set,
                {"load of a ring": lambda: ends.memory[0], "AsyncPort.notify": ends.front_port.notify},
                [ends.back.stop, ends.pages.end, join],
            )
            assert not ends.errors


LOOPED: dict[str, Callable[[Domains], AbstractContextManager[Thing]]] = {
    "async_port": _looped(_ports),
    "transports": _looped(_transports),
    "front": _looped(_calls),
    "disk": _looped(_disk),
}
