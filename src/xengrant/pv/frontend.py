"""The front end of a device: `Frontend`, which a kind of device subclasses, and `FrontendDevice`, which lives its life.

Made by a program that uses the device. The rules are in `steps`. Calls xenstore.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import re
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING

from xengrant.abi.xen import DOMID_FIRST_RESERVED
from xengrant.abi.xenbus import XenbusState
from xengrant.domain import connect
from xengrant.errors import GrantError, PeerClosed, ProtocolError
from xengrant.peer import shown_path
from xengrant.pv.connection import Connection
from xengrant.pv.device import Device, Store
from xengrant.pv.nodes import Nodes, Value
from xengrant.pv.steps import Step, front_step

if TYPE_CHECKING:
    from xengrant.domain import Domain

__all__ = ["Frontend", "FrontendDevice", "attach"]

_OPEN = frozenset(XenbusState) - {XenbusState.UNKNOWN}


class Frontend:
    """The front end of one device: subclass it for a kind, and override what the kind needs.

    A hook that raises, or takes longer than `attach` allows, closes the device.
    """

    async def connect(self, connection: Connection) -> Mapping[str, Value]:
        """The back end has offered its features: share pages, offer a port. The nodes that tell it of them."""
        raise NotImplementedError(f"{type(self).__name__} does not say how to connect")

    async def connected(self, connection: Connection) -> None:
        """The back end has connected: read what it says of the device, and begin to use it."""

    async def changed(self, connection: Connection) -> None:
        """The back end has written its state again, as it does where its nodes have changed; perhaps for nothing."""

    async def disconnect(self, connection: Connection) -> None:
        """The connection is over. What it holds is closed after this; a `connect` that failed has no `disconnect`."""


class FrontendDevice(Device):
    """One device's front end, from `attach` to the end of its block. `frontend` has its hooks."""

    def __init__(
        self,
        frontend: Frontend,
        domain: Domain,
        store: Store,
        path: str,
        *,
        reconnect: bool,
        closing_seconds: float,
        hook_seconds: float,
    ) -> None:
        super().__init__(domain, store, path, hook_seconds=hook_seconds)
        self.frontend = frontend
        self._reconnect = reconnect
        self._closing_seconds = closing_seconds
        self._closing_until: float | None = None
        self._again = True  # CLOSED is not the end
        self._is_unplugged = False  # as the back end closed, whose nodes may be gone at the next look
        self._is_stopping = False
        self._has_ended = False
        self._is_connected = False
        self._is_changed = False

    async def wait_connected(self, timeout: float | None = None) -> None:
        """Wait until both ends are connected.

        `TimeoutError` after `timeout` seconds, with the states of both; `PeerClosed` where the device is closed, or
        unplugged; what failed, if something did.
        """
        await self._until(lambda: self._is_connected or self._has_ended, timeout, "to connect")
        if not self._is_connected:
            raise self._why_ended()

    async def wait_closed(self, timeout: float | None = None) -> None:
        """Wait until the device is closed for good; raises what failed, `TimeoutError` after `timeout` seconds."""
        await self._until(lambda: self._has_ended, timeout, "to close")
        if self.error is not None:
            raise self._why_ended()

    def stop(self) -> None:
        """Close the device, and end when the back end has let go."""
        self._is_stopping = True
        self._news.set()

    async def live(self) -> None:
        """Live until the device is closed; what failed is `error` then."""
        try:
            await self._find_otherend()
            while not self._has_ended:
                self._news.clear()
                step = await self._next_step()
                if self._failure is not None:
                    raise self._failure
                await self._take(step)
        except Exception as error:
            with contextlib.suppress(GrantError):
                await self._give_up(error)
        finally:
            await self._disconnect()
            await self._unwatch()
            self._end()

    async def _next_step(self) -> Step:
        self._is_now(await self.nodes.state())
        back = await self._other_state()
        online = await self._is_online()
        if back is not XenbusState.UNKNOWN:
            self._is_unplugged = back in (XenbusState.CLOSING, XenbusState.CLOSED) and not online
        step = front_step(
            self.state,
            back,
            online=online,
            connected=self.connection is not None,
            again=self._again and not self._is_unplugged,
            stopping=self._is_stopping,
        )
        if self.connection is not None and not self._is_stopping:
            if self.state is XenbusState.UNKNOWN:
                self.error = PeerClosed(f"the nodes of {self.path} were removed")
            elif back is XenbusState.UNKNOWN and step is Step.CLOSED:
                self.error = PeerClosed(f"the back end of {self.path}, {self.otherend_path}, is gone")
        return step

    async def _take(self, step: Step) -> None:
        match step:
            case Step.WAIT:
                if self._is_changed and self._is_connected:
                    await self._change()
                else:
                    await self._wait_for_news(None)
            case Step.START:
                self._closing_until = None
                await self._switch({self.state}, XenbusState.INITIALISING)
            case Step.CONNECT:
                await self._connect()
            case Step.ANNOUNCE:
                await self._announce()
            case Step.CLOSING:
                await self._switch({self.state}, XenbusState.CLOSING)
            case Step.WAIT_FOR_CLOSED:
                await self._wait_for_back_end()
            case Step.DISCONNECT:
                await self._disconnect()
            case Step.CLOSED | Step.RESET:
                await self._disconnect()
                await self._switch({self.state}, XenbusState.CLOSED)
            case Step.END:
                self._end()

    # The steps

    async def _connect(self) -> None:
        connection = Connection(self)
        try:
            self.connection = connection
            nodes = await self._hook(self.frontend.connect(connection))
        except BaseException:
            self.connection = None
            await connection._close(self.hook_seconds)
            raise
        await self._switch({self.state}, XenbusState.INITIALISED, nodes)

    async def _announce(self) -> None:
        assert self.connection is not None
        self._is_changed = False
        await self._hook(self.frontend.connected(self.connection))
        if await self._switch({self.state}, XenbusState.CONNECTED):
            self._again = self._reconnect
            self._is_connected = True
            self._tell()

    async def _change(self) -> None:
        assert self.connection is not None
        self._is_changed = False
        await self._hook(self.frontend.changed(self.connection))

    async def _wait_for_back_end(self) -> None:
        """To close, for `closing_seconds` in all; then go on without it, or fail where it is needed."""
        now = self._loop.time()
        if self._closing_until is None:
            self._closing_until = now + self._closing_seconds
        if now < self._closing_until:
            await self._wait_for_news(self._closing_until - now)
        elif self.state is not XenbusState.CLOSED:
            await self._disconnect()
            await self._switch({self.state}, XenbusState.CLOSED)
        elif self._is_stopping or not self._again:
            self._end()
        else:
            raise TimeoutError(
                f"the back end {self.otherend_path} has not closed in {self._closing_seconds:g} seconds: does its "
                f"program run? Its state is {(await self._other_state()).name}"
            )

    async def _disconnect(self) -> None:
        connection, self.connection = self.connection, None
        self._is_connected = False
        if connection is None:
            return
        try:
            await self._hook(self.frontend.disconnect(connection))
        except Exception as error:
            await self._report(error)
        finally:
            await connection._close(self.hook_seconds)
        self._tell()

    async def _give_up(self, error: Exception) -> None:
        self.error, self._failure = error, None
        await self._disconnect()
        await self._report(error)
        await self._switch(_OPEN, XenbusState.CLOSED)

    def _end(self) -> None:
        self._has_ended = True
        self._tell()

    def _why_ended(self) -> BaseException:
        if self.error is None:
            return PeerClosed(f"{self.path} is closed, and its back end {self.otherend_path} offers it no more")
        error = copy.copy(self.error)
        error.__cause__ = self.error
        return error

    # The other end

    async def _is_online(self) -> bool:
        try:
            return await self.otherend.flag("online")
        except ProtocolError:
            return False

    async def _find_otherend(self) -> None:
        """Read where the back end is, and watch both states."""
        path = await self.nodes.text("backend")
        domid = await self.nodes.number("backend-id", most=DOMID_FIRST_RESERVED - 1)
        if not re.fullmatch(rf"/local/domain/{domid}(/[A-Za-z0-9_@-]+)+", path):
            raise ProtocolError(f"{self.path} names the back end {path} of domain {domid}")
        self.otherend_id, self.otherend_path = domid, path
        self.otherend = Nodes(self._store.nodes, path)
        await self._watch_node(f"{path}/state", self._back_has_written)
        await self._watch_node(f"{self.path}/state")

    def _back_has_written(self) -> None:
        self._is_changed = True

    async def _situation(self) -> str:
        if not self.otherend_path:
            return ""
        return f"; the back end {self.otherend_path} is {(await self._other_state()).name}"


@contextlib.asynccontextmanager
async def attach(
    frontend: Frontend,
    path: str,
    *,
    domain: Domain | None = None,
    reconnect: bool = False,
    closing_seconds: float = 10.0,
    hook_seconds: float = 30.0,
) -> AsyncIterator[FrontendDevice]:
    """Use the device whose front end's nodes are at `path`, relative to this domain's directory or absolute.

    A block's device connects beside the block: `wait_connected` waits for it. A state that a predecessor left is reset
    first. Leaving the block closes the device, for which the back end has `closing_seconds`. With `reconnect` it
    connects again after the back end has closed it, as long as it stays plugged. `domain` is by default one of its own.
    """
    async with contextlib.AsyncExitStack() as opened:
        domain = domain or opened.enter_context(connect())
        store = Store(await opened.enter_async_context(domain.aio.xenstore()), await domain.aio.domid())
        device = FrontendDevice(
            frontend,
            domain,
            store,
            shown_path(store.domid, path),
            reconnect=reconnect,
            closing_seconds=closing_seconds,
            hook_seconds=hook_seconds,
        )
        life = asyncio.get_running_loop().create_task(device.live(), name=f"life of {device.path}")
        try:
            yield device
        finally:
            device.stop()
            try:
                await asyncio.wait({life})
            finally:
                life.cancel()
                await asyncio.wait({life})
