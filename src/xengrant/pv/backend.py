"""The back end of a device: `Backend`, which a kind of device subclasses, and `BackendDevice`, which lives its life.

Made by `BackendBus`, one for each device node. The rules are in `steps`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from xengrant.abi.xenbus import XenbusState
from xengrant.errors import ProtocolError
from xengrant.pv.connection import Connection
from xengrant.pv.device import Device, Store, remove_nodes
from xengrant.pv.nodes import Nodes, Value
from xengrant.pv.steps import Step, back_step

if TYPE_CHECKING:
    from xengrant.domain import Domain

__all__ = ["Backend", "BackendDevice", "MakeBackend"]

_FIRST_DELAY, _LAST_DELAY = 0.1, 10.0  # seconds between a failure and the next offer
_GOOD = 60.0  # seconds of a connection after which a failure counts as the first
_OPEN = frozenset(XenbusState) - {XenbusState.UNKNOWN, XenbusState.CLOSED}


class Backend:
    """The back end of one device: subclass it for a kind, and override what the kind needs.

    `device` is the `Device` that it is the back end of. A hook that raises, or takes longer than the bus allows, fails
    this device and no other.
    """

    def __init__(self, device: Device) -> None:
        self.device = device

    async def offer(self) -> Mapping[str, Value]:
        """The nodes that the front end reads before it connects, features most of all. Again after each close."""
        return {}

    async def connect(self, connection: Connection) -> Mapping[str, Value]:
        """The front end has written its nodes: map its pages, bind its port, serve. The nodes for it to read now.

        With ``connection.resume`` the front end is connected already: `offer` was not called, and the ring may hold
        requests that a predecessor took and did not answer.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how to connect")

    async def disconnect(self, connection: Connection) -> None:
        """The connection is over. What it holds is closed after this; a `connect` that failed has no `disconnect`.

        With ``connection.closing`` the device closes: a front end may wait for what it asked until it is answered.
        Otherwise a successor may take the connection up, or the front end has started over.
        """


class MakeBackend(Protocol):
    """What makes the `Backend` of a device: the class itself, or a function."""

    def __call__(self, device: Device, /) -> Backend: ...


class BackendDevice(Device):
    """One device's back end, from the toolstack's making its nodes to its removing them."""

    def __init__(
        self,
        domain: Domain,
        store: Store,
        path: str,
        make: MakeBackend,
        *,
        otherend_id: int,
        closing_seconds: float,
        hook_seconds: float,
    ) -> None:
        super().__init__(domain, store, path, hook_seconds=hook_seconds)
        self.otherend_id = otherend_id
        self._make = make
        self._backend: Backend | None = None
        self._closing_seconds = closing_seconds
        self._closing_until: float | None = None
        self._failures = 0  # one after the other
        self._next_offer = 0.0
        self._connected_at = 0.0
        self._is_stopping = False
        self._domain_is_gone = False

    def news(self) -> None:
        """Something below this device's path may have changed."""
        self._news.set()

    def stop(self) -> None:
        """Close the device, and end when it is closed."""
        self._is_stopping = True
        self._news.set()

    def domain_is_gone(self) -> None:
        """The other end's domain is no more: nobody else will remove the nodes."""
        self._domain_is_gone = True
        self._news.set()

    async def live(self) -> None:
        """Live until the nodes are gone, or until the device is closed and was told to stop.

        Raises what goes wrong with xenstore itself.
        """
        try:
            while True:
                self._news.clear()
                if self._domain_is_gone:
                    await self._disconnect()
                    return await self._remove()
                if self._failure is not None:
                    await self._give_up()
                    continue
                if not await self._find_otherend():
                    if await self._is_removed():
                        return await self._clear_error()
                    step = Step.WAIT
                else:
                    step = await self._next_step()
                if step is Step.WAIT and self._is_stopping and self._failure is None:
                    return None
                await self._try(step)
        finally:
            await self._disconnect()
            await self._unwatch()
            self._is_now(XenbusState.UNKNOWN)

    async def _next_step(self) -> Step:
        self._is_now(await self._own_state())
        front = await self._other_state()
        connected = self.connection is not None
        step = back_step(
            self.state, front, online=await self._is_online(), connected=connected, stopping=self._is_stopping
        )
        return step if self._failure is None else Step.WAIT

    async def _try(self, step: Step) -> None:
        """Take the step. What fails, be it in a hook, fails this device; where xenstore is gone, saying so raises."""
        try:
            await self._take(step)
        except Exception as error:
            await self._give_up(error)

    async def _take(self, step: Step) -> None:
        now = self._loop.time()
        if step is not Step.WAIT_FOR_CLOSED:
            self._closing_until = None
        match step:
            case Step.WAIT:
                await self._wait_for_news(None)
            case Step.DISCONNECT:
                await self._disconnect(closing=await self._is_removed())
            case Step.OFFER if now < self._next_offer:
                await self._wait_for_news(self._next_offer - now)
            case Step.OFFER:
                await self._offer()
            case Step.CONNECT | Step.RESUME:
                await self._connect(resume=step is Step.RESUME)
            case Step.CLOSING:
                await self._switch({self.state}, XenbusState.CLOSING)
            case Step.WAIT_FOR_CLOSED:
                if self._closing_until is None:
                    self._closing_until = now + self._closing_seconds
                if now < self._closing_until:
                    await self._wait_for_news(self._closing_until - now)
                else:
                    await self._close()
            case Step.CLOSED:
                await self._close()

    # The steps

    async def _offer(self) -> None:
        await self._disconnect()
        if self.state is XenbusState.INITIALISING or self._backend is None:
            self._backend = self._make(self)
        nodes = await self._hook(self._backend.offer())
        await self._switch({self.state}, XenbusState.INIT_WAIT, nodes)

    async def _connect(self, *, resume: bool) -> None:
        self._backend = self._backend or self._make(self)
        connection = Connection(self, resume=resume)
        try:
            self.connection = connection
            nodes = await self._hook(self._backend.connect(connection))
        except BaseException:
            self.connection = None
            await connection._close(self.hook_seconds)
            raise
        self._connected_at = self._loop.time()
        if self._failure is None and await self._switch({self.state}, XenbusState.CONNECTED, nodes):
            await self._clear_error()

    async def _disconnect(self, *, closing: bool = False) -> None:
        connection, self.connection = self.connection, None
        if connection is None:
            return
        connection.closing = closing
        self._tell()
        assert self._backend is not None
        try:
            await self._hook(self._backend.disconnect(connection))
        except Exception as error:
            await self._report(error)
        finally:
            await connection._close(self.hook_seconds)

    async def _close(self) -> None:
        await self._disconnect(closing=True)
        await self._switch({self.state}, XenbusState.CLOSED)

    async def _give_up(self, error: BaseException | None = None) -> None:
        """A failure: say why, and close, as Linux does (xenbus_dev_fatal); then disconnect, since a front end asks on
        until it sees that.
        """
        error, self._failure = error or self._failure, None
        assert error is not None
        now = self._loop.time()
        if self.connection is not None and now > self._connected_at + _GOOD:
            self._failures = 0
        self._next_offer = now + min(_FIRST_DELAY * 2**self._failures, _LAST_DELAY)
        self._failures = min(self._failures + 1, 30)
        closing = False
        try:
            await self._report(error)
            closing = await self._switch(_OPEN, XenbusState.CLOSING) or await self._is_removed()
        finally:
            await self._disconnect(closing=closing)

    async def _remove(self) -> None:
        """In dom0, after the guest's end: whoever is to remove the nodes has done so, or there is nobody."""
        top = self.path.rpartition("/")[0].rpartition("/")[0]
        await self._clear_error()
        await self._store.run(lambda transaction: remove_nodes(transaction, self.path, top))

    # What the toolstack wrote

    async def _is_removed(self) -> bool:
        """Whether the nodes are gone, in the middle of anything perhaps: then no successor takes the connection up."""
        return not await self._store.nodes.exists(self.path)

    async def _own_state(self) -> XenbusState:
        try:
            return await self.nodes.state()
        except ProtocolError:
            return XenbusState.UNKNOWN

    async def _is_online(self) -> bool:
        try:
            return await self.nodes.flag("online")
        except ProtocolError:
            return False

    async def _find_otherend(self) -> bool:
        """Read where the front end is, and watch its state; whether that is known."""
        try:
            path = await self.nodes.text("frontend")
            domid = await self.nodes.number("frontend-id")
            if domid != self.otherend_id or not re.fullmatch(rf"/local/domain/{domid}(/[A-Za-z0-9_@-]+)+", path):
                raise ProtocolError(f"{self.path} names the front end {path} of domain {domid}")
        except ProtocolError as error:
            if await self.nodes.exists("frontend") and str(error) != str(self.error):
                await self._report(error)
            await self._disconnect(closing=await self._is_removed())
            await self._unwatch()
            self.otherend_path = ""
            return False
        if path != self.otherend_path:
            await self._disconnect()
            await self._unwatch()
            self.otherend_path, self.otherend = path, Nodes(self._store.nodes, path)
            await self._watch_node(f"{path}/state")
        return True
