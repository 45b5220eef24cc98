"""`Connection`: what two ends of a device have of each other while they are connected, and what is held for that.

Made by `BackendDevice` and `FrontendDevice` before `connect`, handed to a kind's hooks, and closed after `disconnect`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

from xengrant.errors import InterfaceClosed
from xengrant.gnttab import Grant
from xengrant.pv.nodes import Nodes, Value

if TYPE_CHECKING:
    from xengrant.domain import Domain
    from xengrant.evtchn import AsyncEventChannels, AsyncPort
    from xengrant.gntshr import Gntshr, Share
    from xengrant.gnttab import Gnttab, Mapped
    from xengrant.pv.device import Device

__all__ = ["Connection"]

_log = logging.getLogger("xengrant.pv")

_T = TypeVar("_T")


class Connection:
    """The two ends of a device, from `connect` to `disconnect`.

    `device` is the one that it is of. `resume` says that both ends were connected already when this program came: a
    back end's predecessor died, and the front end noticed nothing; `closing`, in a back end's `disconnect`, that the
    device closes and nobody goes on with what is under way. What is mapped, shared, bound or entered through it is
    closed after `disconnect`, last first; so are the tasks that it started, before that. Threads: those of its event
    loop only, but for `fail`.
    """

    def __init__(self, device: Device, *, resume: bool = False) -> None:
        self.device = device
        self.resume = resume
        self.closing = False
        self._stack: contextlib.AsyncExitStack | None = contextlib.AsyncExitStack()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._channels: AsyncEventChannels | None = None
        self._gnttab: Gnttab | None = None
        self._gntshr: Gntshr | None = None

    @property
    def domain(self) -> Domain:
        """This program's domain."""
        return self.device.domain

    @property
    def otherend_id(self) -> int:
        """The domid of the other end."""
        return self.device.otherend_id

    @property
    def nodes(self) -> Nodes:
        """This end's own nodes."""
        return self.device.nodes

    @property
    def otherend(self) -> Nodes:
        """The other end's nodes."""
        return self.device.otherend

    async def taken(self, feature: str) -> bool:
        """Whether both ends have the flag `feature`: this end offered it and the other takes it, or the other way.

        `ProtocolError` where the other end's is no flag.
        """
        return await self.nodes.flag(feature) and await self.otherend.flag(feature)

    def map(self, refs: int | Iterable[int], *, writable: bool = True) -> Mapped:
        """Map pages of the other end, side by side. Raises as `Gnttab.map`."""
        held = self._held
        if self._gnttab is None:
            self._gnttab = held.enter_context(self.domain.gnttab())
        grants = [Grant(self.otherend_id, ref) for ref in ([refs] if isinstance(refs, int) else refs)]
        return self._hold(self._gnttab.map(grants, writable=writable))

    def share(self, count: int = 1, *, writable: bool = True) -> Share:
        """Share `count` new pages with the other end. Raises as `Gntshr.share_pages`."""
        held = self._held
        if self._gntshr is None:
            self._gntshr = held.enter_context(self.domain.gntshr())
        return self._hold(self._gntshr.share_pages(self.otherend_id, count, writable=writable))

    def bind(self, remote_port: int) -> AsyncPort:
        """Bind to the port that the other end offers. Raises as `AsyncEventChannels.bind_interdomain`."""
        return self._open_channels().bind_interdomain(self.otherend_id, remote_port)

    def offer_port(self) -> AsyncPort:
        """A new port for the other end to bind to. Raises as `AsyncEventChannels.bind_unbound`."""
        return self._open_channels().bind_unbound(self.otherend_id)

    def enter(self, context: AbstractContextManager[_T]) -> _T:
        """Enter a ``with`` block that is left after `disconnect`: any other interface, thread or file."""
        return self._held.enter_context(context)

    async def enter_async(self, context: AbstractAsyncContextManager[_T]) -> _T:
        """As `enter`, for an ``async with`` block."""
        return await self._held.enter_async_context(context)

    def callback(self, function: Callable[..., object], *args: object) -> None:
        """Have `function` called after `disconnect`."""
        self._held.callback(function, *args)

    def start(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """Run `work` beside, until the connection ends: then it is cancelled. What it raises fails the device.

        `InterfaceClosed` where the connection is over.
        """
        if self._stack is None:
            work.close()
            raise self._over()
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def fail(self, error: BaseException) -> None:
        """End the connection because of `error`: this device closes, with the reason in its error node.

        From any thread, at any time; after the connection's end it does nothing.
        """
        self.device._fail_soon(self, error)

    async def update(self, nodes: Mapping[str, Value]) -> None:
        """Write nodes of this end in one transaction, and its state again, which tells the other end to look.

        Nothing is written where the device is not connected any more. Raises `XenStoreError`.
        """
        await self.device._rewrite(nodes)

    async def _close(self, seconds: float) -> None:
        """Cancel the tasks and close what is held, whatever fails; what does is logged.

        A task that goes on for `seconds` is left behind.
        """
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        try:
            if tasks:
                _, still = await asyncio.wait(tasks, timeout=seconds)
                for task in still:
                    _log.error("%s: %r does not end %g seconds after it was cancelled", self.device, task, seconds)
        finally:  # also where this is cancelled
            await self._give_back()

    async def _give_back(self) -> None:
        stack, self._stack = self._stack, None
        try:
            if stack is not None:
                await stack.aclose()
        except Exception:
            _log.exception("%s: not everything could be closed", self.device)

    @property
    def _held(self) -> contextlib.AsyncExitStack:
        if self._stack is None:
            raise self._over()
        return self._stack

    def _over(self) -> InterfaceClosed:
        return InterfaceClosed(f"this connection of {self.device} is over")

    def _open_channels(self) -> AsyncEventChannels:
        held = self._held
        if self._channels is None:
            self._channels = self.domain.aio.evtchn()
            held.callback(self._channels.close)
        return self._channels

    def _hold(self, held: _Pages) -> _Pages:
        self._held.callback(self._let_go, held)
        return held

    def _let_go(self, held: Share | Mapped) -> None:
        try:
            held.close()
        except BufferError as error:
            _log.warning("%s: %r is kept until its last view is released: %s", self.device, held, error)
            held.mapping.close_on_release()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fail(error)


if TYPE_CHECKING:
    _Pages = TypeVar("_Pages", Share, Mapped)
