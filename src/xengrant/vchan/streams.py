"""vchan for asyncio: `open_connection` and `start_server` give streams, `create_connection` and `create_server`
transports for any protocol, each named as asyncio's own for sockets.

Above `transport` and `server`; meets through xenstore without waiting in the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, TypeVar

from xengrant.arguments import MAX_U32, checked_domid, checked_number
from xengrant.domain import Domain
from xengrant.domain import connect as connect_domain
from xengrant.vchan import keys as meeting
from xengrant.vchan.joining import Joined, joining
from xengrant.vchan.opening import DEFAULT_SIZE
from xengrant.vchan.orders import choose_orders
from xengrant.vchan.server import VchanServer
from xengrant.vchan.transport import VchanTransport

if TYPE_CHECKING:
    from xengrant.evtchn import AsyncEventChannels, AsyncPort
    from xengrant.peer import AsyncPeer

__all__ = ["create_connection", "create_server", "open_connection", "start_server"]

_LIMIT = 65536  # asyncio.streams' own
_MAX_CLIENTS = 8  # 264 pages with rings of the default size, of the domain's 1024
_P = TypeVar("_P", bound=asyncio.BaseProtocol)
_ClientConnected = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None]


async def open_connection(
    domid: int,
    path: str,
    *,
    timeout: float | None = None,
    limit: int = _LIMIT,
    peer: AsyncPeer | None = None,
    domain: Domain | None = None,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to the vchan that domain `domid` offers at `path`: a reader and a writer (`asyncio.open_connection`).

    `limit` is how many bytes the reader holds before the peer has to wait. The rest, and what is raised, is as
    `create_connection`.
    """
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=limit, loop=loop)
    transport, protocol = await create_connection(
        lambda: asyncio.StreamReaderProtocol(reader, loop=loop), domid, path, timeout=timeout, peer=peer, domain=domain
    )
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


async def create_connection(
    protocol_factory: Callable[[], _P],
    domid: int,
    path: str,
    *,
    timeout: float | None = None,
    peer: AsyncPeer | None = None,
    domain: Domain | None = None,
) -> tuple[VchanTransport, _P]:
    """Connect to the vchan that domain `domid` offers at `path`: a transport, and the protocol that it calls.

    Waits at most `timeout` seconds for a server, for ever without one; `path` and `domain` are as in `connect`. `peer`
    is what tells of the death of the other domain (`domain.aio.peer`), which stays the caller's; dom0, which xenstore
    tells, needs none. Cancelled, it leaves nothing behind. Raises as `connect`.
    """
    checked_domid(domid)
    with ExitStack() as held:
        domain = domain or held.enter_context(connect_domain())
        own_domid = await domain.aio.domid()
        where = meeting.key_path(domid, own_domid, path)
        channels = domain.aio.evtchn()
        held.callback(channels.close)
        channel, port = await _meet(domain, channels, domid, where, timeout)
        with ExitStack() as undo:
            undo.callback(channel.close)
            peer = peer or _default_peer(domain, own_domid, domid, held)
            protocol = protocol_factory()
            undo.pop_all()
        transport = VchanTransport(channel, port, held.pop_all(), protocol, path=where, peer=peer)
    try:
        await asyncio.sleep(0)  # until connection_made was called
    except BaseException:
        transport.abort()
        raise
    return transport, protocol


async def start_server(
    client_connected_cb: _ClientConnected,
    domid: int,
    path: str,
    *,
    read_size: int = DEFAULT_SIZE,
    write_size: int = DEFAULT_SIZE,
    max_clients: int = _MAX_CLIENTS,
    limit: int = _LIMIT,
    peer: AsyncPeer | None = None,
    domain: Domain | None = None,
) -> VchanServer:
    """Serve clients of domain `domid` at `path`, many at once: `client_connected_cb` is called, or run as a task, with
    a reader and a writer for each (`asyncio.start_server`).

    `limit` is as in `open_connection`; the rest, and what is raised, as in `create_server`.
    """
    loop = asyncio.get_running_loop()

    def factory() -> asyncio.StreamReaderProtocol:
        reader = asyncio.StreamReader(limit=limit, loop=loop)
        return asyncio.StreamReaderProtocol(reader, client_connected_cb, loop=loop)

    return await create_server(
        factory,
        domid,
        path,
        read_size=read_size,
        write_size=write_size,
        max_clients=max_clients,
        peer=peer,
        domain=domain,
    )


async def create_server(
    protocol_factory: Callable[[], asyncio.BaseProtocol],
    domid: int,
    path: str,
    *,
    read_size: int = DEFAULT_SIZE,
    write_size: int = DEFAULT_SIZE,
    max_clients: int = _MAX_CLIENTS,
    peer: AsyncPeer | None = None,
    domain: Domain | None = None,
) -> VchanServer:
    """Serve clients of domain `domid` at `path`, many at once, each with a protocol of its own and a vchan whose rings
    have at least so many bytes, 1 MiB at most.

    Clients can come when this returns. While `max_clients` are connected nothing is offered, and the next one waits
    until one has left: else one domain could take the pages of all. `path` and `domain` are as in `serve`, `peer` as in
    `create_connection`. Raises as `serve`.
    """
    checked_domid(domid)
    checked_number("max_clients", max_clients, 1, MAX_U32)
    choose_orders(read_size, write_size)
    with ExitStack() as held:
        domain = domain or held.enter_context(connect_domain())
        own_domid = await domain.aio.domid()
        where = meeting.key_path(own_domid, domid, path)
        store = domain.aio.xenstore()
        with ExitStack() as undo:
            undo.callback(store.close)
            peer = peer or _default_peer(domain, own_domid, domid, held)
            undo.pop_all()
        server = VchanServer(
            domain,
            store,
            protocol_factory,
            domid=domid,
            own_domid=own_domid,
            path=where,
            sizes=(read_size, write_size),
            max_clients=max_clients,
            peer=peer,
            held=held.pop_all(),
        )
    await server.start_serving()
    return server


async def _meet(
    domain: Domain, channels: AsyncEventChannels, domid: int, where: str, timeout: float | None
) -> Joined[AsyncPort]:
    steps = joining(domain, channels, domid, where, timeout)
    with contextlib.closing(steps):
        async with domain.aio.xenstore() as store, await store.watch(where) as watch:
            keys: meeting.Keys | None = None
            while True:
                try:
                    pause = steps.send(keys)
                except StopIteration as end:
                    joined: Joined[AsyncPort] = end.value
                    return joined
                keys = None
                if pause is None:
                    keys = await meeting.published_async(store, where)
                else:
                    with contextlib.suppress(TimeoutError):
                        await watch.wait(pause.seconds)


def _default_peer(domain: Domain, own_domid: int, domid: int, held: ExitStack) -> AsyncPeer | None:
    """As the blocking ends': only dom0 is told without a node to look at (XSA-115)."""
    if own_domid != 0:
        return None
    peer = domain.aio.peer(domid)
    held.callback(peer.close)
    return peer
