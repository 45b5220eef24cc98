"""`VchanServer`: many clients of one domain at one path in xenstore, each with a vchan of its own, for asyncio.

Made by `streams`. It offers one vchan at a time: when a client has come to it, it becomes a transport, and a new one,
with fresh pages and a port of its own, takes its place at the path. Clients that come in between try again.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from xengrant.errors import GrantError, GrantTableFull, InterfaceUnavailable, PeerClosed, ProtocolError
from xengrant.vchan.channel import Channel, offer
from xengrant.vchan.keys import Keys, publish_async, withdraw_async
from xengrant.vchan.transport import VchanTransport

if TYPE_CHECKING:
    from xengrant.domain import Domain
    from xengrant.evtchn import AsyncPort
    from xengrant.peer import AsyncPeer
    from xengrant.xenstore import AsyncXenStore

__all__ = ["VchanServer"]

# What there is too little of now may be given back: pages, ports, descriptors, xenstore's nodes and transactions.
_PASSING = {errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EDQUOT, errno.EAGAIN}

_FIRST_DELAY, _LAST_DELAY = 0.1, 5.0  # seconds before it is tried again


class VchanServer(asyncio.AbstractServer):
    """Offers vchans at one path to one domain, as an `asyncio.Server` listens on a socket.

    Made by `start_server` and `create_server`, and serving from then on. A new vchan that cannot be offered, since
    pages, ports or xenstore's quota are used up, or since the domain guessed its ref and wrote nonsense into it, is
    reported to the loop's exception handler and tried again: when a client leaves, or later. While there are as many
    clients as may be, none is offered. The death of the domain, `PeerClosed`, and whatever else goes wrong there end
    the server: `serve_forever` raises it. `domid` is that domain's, `path` where the keys stand in xenstore.

    Threads: those of its event loop only.
    """

    def __init__(
        self,
        domain: Domain,
        store: AsyncXenStore,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        *,
        domid: int,
        own_domid: int,
        path: str,
        sizes: tuple[int, int],
        max_clients: int,
        peer: AsyncPeer | None,
        held: ExitStack,
    ) -> None:
        self.path = path
        self.domid = domid
        self._loop = asyncio.get_running_loop()
        self._domain = domain
        self._store = store
        self._protocol_factory = protocol_factory
        self._own_domid = own_domid
        self._sizes = sizes
        self._max_clients = max_clients
        self._peer = peer
        self._held = held
        self._transports: set[VchanTransport] = set()
        self._client_left = asyncio.Event()
        self._all_over = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._started: asyncio.Future[None] = self._loop.create_future()
        self._keys: Keys | None = None  # that stand at the path
        self._closing = False
        self._failure: Exception | None = None

    # As asyncio.Server

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def is_serving(self) -> bool:
        """Whether clients can come, now or when others have left."""
        return not self._closing and self._task is not None and not self._task.done()

    async def start_serving(self) -> None:
        """Offer the first vchan; nothing where that is done already. Raises as `create_server`."""
        if self._task is None:
            self._task = self._loop.create_task(self._serve(), name=f"vchan-server-{self.path}")
            self._task.add_done_callback(self._served)
        try:
            await asyncio.shield(self._started)
        except BaseException:
            self.close()
            await asyncio.wait({self._task})
            raise

    async def serve_forever(self) -> None:
        """Serve until the server is closed, or this is cancelled, which closes it."""
        await self.start_serving()
        assert self._task is not None
        try:
            await asyncio.wait({self._task})
        finally:
            self.close()
            await asyncio.wait({self._task})
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Take back what is offered; the clients that are here stay (`close_clients`). A second time does nothing."""
        if not self._closing:
            self._closing = True
            if self._task is not None:
                self._task.cancel()

    def close_clients(self) -> None:
        """Close the transport of each client, which writes what was to be written."""
        for transport in list(self._transports):
            transport.close()

    def abort_clients(self) -> None:
        """Abort the transport of each client."""
        for transport in list(self._transports):
            transport.abort()

    async def wait_closed(self) -> None:
        """Wait until the server is closed, its path is gone from xenstore, and every client has left."""
        await self._all_over.wait()

    def __repr__(self) -> str:
        state = "serving" if self.is_serving() else "closed"
        return (
            f"<{type(self).__name__} for domain {self.domid} at {self.path}, {state}, {len(self._transports)} clients>"
        )

    # Offering

    async def _serve(self) -> None:
        offered: _Offer | None = None
        try:
            try:
                offered = await self._offer()
            except asyncio.CancelledError:
                self._started.cancel()
                raise
            except Exception as error:
                self._started.set_exception(error)
                return
            self._started.set_result(None)
            while True:
                while offered.channel.is_awaited:
                    await offered.port.wait(peer=self._peer)
                self._welcome(offered)
                offered = await self._offer_again()
        finally:
            try:
                await self._take_back()  # before the page goes, as `joining` expects
            finally:
                if offered is not None:
                    offered.close()

    async def _offer(self) -> _Offer:
        """A vchan whose keys stand at the path, in place of what was there."""
        with ExitStack() as held:
            channels = self._domain.aio.evtchn()
            held.callback(channels.close)
            port = held.enter_context(channels.bind_unbound(self.domid))
            try:
                channel = offer(self._domain, port, *self._sizes)
            except ProtocolError as error:
                raise _SpoiltError(str(error)) from None
            offered = _Offer(channel, port, held.pop_all())
        keys = offered.channel.keys
        assert keys is not None
        try:
            await publish_async(self._store, self.path, self._own_domid, self.domid, keys)
        except BaseException:
            try:
                await self._withdraw(keys)  # only the answer may be missing
            finally:
                offered.close()
            raise
        self._keys = keys
        return offered

    async def _offer_again(self) -> _Offer:
        await self._leave_room()
        delay, told = _FIRST_DELAY, False
        while True:
            self._client_left.clear()
            try:
                return await self._offer()
            except (GrantError, OSError) as error:
                passes = isinstance(error, GrantTableFull | _SpoiltError)
                if not passes and getattr(error, "errno", None) not in _PASSING:
                    raise
                if not told:
                    told = True
                    self._report(f"{self!r} has no vchan to offer for now", error)
                    await self._take_back()  # clients wait for the next, and do not try this one again and again
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):  # asyncio.wait_for of Python 3.11 may lose a cancellation
                    await self._client_left.wait()
            delay = min(2 * delay, _LAST_DELAY)

    async def _leave_room(self) -> None:
        """Wait until there are fewer clients than may be, with no keys at the path meanwhile."""
        peer, changed = self._peer, self._client_left
        if peer is not None:
            peer.on_gone(changed.set)
        try:
            while True:
                changed.clear()
                if peer is not None:
                    peer.check()
                if len(self._transports) < self._max_clients:
                    return
                await self._take_back()
                await changed.wait()
        finally:
            if peer is not None:
                peer.discard_on_gone(changed.set)

    async def _take_back(self) -> None:
        if self._keys is not None:
            await self._withdraw(self._keys)
            self._keys = None

    async def _withdraw(self, keys: Keys) -> None:
        try:
            await withdraw_async(self._store, self.path, keys)
        except asyncio.CancelledError:  # asyncio.run's, at the end of a program that closed and did not wait
            await withdraw_async(self._store, self.path, keys)
            raise

    def _served(self, task: asyncio.Task[None]) -> None:
        """No client can come any more."""
        self._closing = True
        failure = None if task.cancelled() else task.exception()
        if isinstance(failure, Exception):
            self._failure = failure
            if not isinstance(failure, PeerClosed):  # which comes to every server in the end
                self._report(f"{self!r} has failed", failure)
        self._store.close()
        self._see_whether_all_left()

    # Clients

    def _welcome(self, offered: _Offer) -> None:
        try:
            protocol = self._protocol_factory()
        except Exception as error:
            self._report(f"{self!r} has no protocol for a client", error)
            offered.close()
            return
        offered.is_taken = True
        channel, port, held = offered.channel, offered.port, offered.held
        transport = VchanTransport(channel, port, held, protocol, path=self.path, peer=self._peer, on_end=self._forget)
        self._transports.add(transport)

    def _forget(self, transport: VchanTransport) -> None:
        self._transports.discard(transport)
        self._client_left.set()
        self._see_whether_all_left()

    def _see_whether_all_left(self) -> None:
        if not self._transports and (self._task is None or self._task.done()):
            self._held.close()
            self._all_over.set()

    def _report(self, message: str, error: Exception) -> None:
        self._loop.call_exception_handler({"message": message, "exception": error})


class _SpoiltError(ProtocolError):
    """The client guessed the ref of a page that was not offered yet, and wrote nonsense to it: the next is another."""


class _Offer:
    """A vchan that no client has come to yet, and what holds it."""

    def __init__(self, channel: Channel, port: AsyncPort, held: ExitStack) -> None:
        self.channel = channel
        self.port = port
        self.held = held
        self.is_taken = False

    def close(self) -> None:
        """Take the pages back, where it is no client's."""
        if not self.is_taken:
            with self.held, contextlib.suppress(InterfaceUnavailable):  # as a transport's end
                self.channel.close()
