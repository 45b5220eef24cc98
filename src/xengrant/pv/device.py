"""`Device`: one device as one of its ends sees it, its nodes and states. What both ends have in common.

The base of `BackendDevice` and `FrontendDevice`, which live its life: `_run` looks at both states, takes a step, and
waits for news. Calls xenstore.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from xengrant.abi.xenbus import XenbusState
from xengrant.errors import GrantError, InterfaceClosed, ProtocolError, XenStoreError
from xengrant.pv.nodes import Nodes, Value, write_nodes

if TYPE_CHECKING:
    from xengrant.domain import Domain
    from xengrant.pv.connection import Connection
    from xengrant.xenstore import AsyncTransaction, AsyncWatch, AsyncXenStore

__all__ = ["Device", "Store", "remove_nodes"]

_log = logging.getLogger("xengrant.pv")

_T = TypeVar("_T")

_MAX_ERROR = 1000  # bytes of an error node


class Store:
    """A connection to xenstore that devices share: one transaction at a time, for a guest may have ten."""

    def __init__(self, nodes: AsyncXenStore, domid: int) -> None:
        self.nodes = nodes
        self.domid = domid
        self._turn = asyncio.Lock()

    async def run(self, change: Callable[[AsyncTransaction], Awaitable[_T]]) -> _T:
        async with self._turn:
            return await self.nodes.run_transaction(change)


class Device:
    """One device, as the end that runs here sees it.

    `domain` is this program's, `handle` the device's name among its kind ("51728"), `path` where this end's nodes are
    and `nodes` reads and writes them, `otherend_id`, `otherend_path` and `otherend` the same of the other end, `state`
    this end's, `error` what failed last, `connection` what the ends have of each other while they are connected,
    `hook_seconds` how long a hook may take. Threads: that of its event loop only.
    """

    def __init__(self, domain: Domain, store: Store, path: str, *, hook_seconds: float) -> None:
        self.domain = domain
        self.path = path
        self.handle = path.rpartition("/")[2]
        self.nodes = Nodes(store.nodes, path)
        self.otherend_id = -1
        self.otherend_path = ""
        self.otherend = self.nodes
        self.state = XenbusState.UNKNOWN
        self.connection: Connection | None = None
        self.error: BaseException | None = None
        self._store = store
        self.hook_seconds = hook_seconds
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._looking: list[asyncio.Future[None]] = []
        self._failure: BaseException | None = None
        self._has_error_node = False
        self._watching: list[asyncio.Task[None]] = []

    async def wait_state(self, *states: XenbusState, timeout: float | None = None) -> XenbusState:
        """Wait until this end's state is one of `states`; `TimeoutError` after `timeout` seconds."""
        await self._until(lambda: self.state in states, timeout, f"to be {' or '.join(state.name for state in states)}")
        return self.state

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path}, {self.state.name}>"

    @property
    def has_news(self) -> bool:
        """Whether something may have changed that was not looked at."""
        return self._news.is_set()

    # What the connection asks for

    def _fail_soon(self, connection: Connection, error: BaseException) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._failed, connection, error)

    def _failed(self, connection: Connection, error: BaseException) -> None:
        if self.connection is connection and self._failure is None:
            self._failure = error
            self._news.set()

    async def _rewrite(self, nodes: Mapping[str, Value]) -> None:
        await self._switch({XenbusState.CONNECTED}, XenbusState.CONNECTED, nodes)

    # Nodes and states

    async def _switch(
        self, before: Collection[XenbusState], state: XenbusState, nodes: Mapping[str, Value] | None = None
    ) -> bool:
        """Write nodes and the state at once, where the state is still one of `before`; whether it was.

        The toolstack writes a back end's state too, and removes nodes; neither is to be overwritten.
        """

        async def change(transaction: AsyncTransaction) -> bool:
            now = await Nodes(transaction, self.path).state()
            if now not in before:
                return False
            await write_nodes(transaction, self.path, nodes or {})
            await transaction.write(f"{self.path}/state", str(int(state)))
            return True

        switched = await self._store.run(change)
        if switched:
            self._is_now(state)
        return switched

    def _is_now(self, state: XenbusState) -> None:
        if state is not self.state:
            _log.debug("%s is %s", self.path, state.name)
            self.state = state
        self._tell()

    async def _other_state(self) -> XenbusState:
        """The other end's state; what is none is a lie, which fails a connection, and UNKNOWN without one."""
        try:
            return await self.otherend.state()
        except ProtocolError as error:
            if self.connection is not None:
                self._failed(self.connection, error)
            return XenbusState.UNKNOWN

    async def _hook(self, work: Coroutine[Any, Any, _T]) -> _T:
        """What a hook of the kind gives, within `hook_seconds`."""
        limit = asyncio.timeout(self.hook_seconds)
        try:
            async with limit:
                return await work
        except TimeoutError:
            if not limit.expired():
                raise
            name = getattr(work, "__name__", "a hook")
            raise TimeoutError(f"{name} took more than {self.hook_seconds:g} seconds") from None

    # Errors

    async def _report(self, error: BaseException) -> None:
        """Log the error and leave it below ``error/`` in this domain, where a guest may not be allowed to.

        As Linux does (drivers/xen/xenbus/xenbus_client.c, xenbus_dev_error).
        """
        self.error = error
        text = str(error) or type(error).__name__
        _log.error("%s: %s", self.path, text, exc_info=None if _is_expected(error) else error)
        value = f"{_error_number(error)} {text}".encode("ascii", "replace")[:_MAX_ERROR]
        with contextlib.suppress(XenStoreError):
            await self._store.nodes.write(f"{self._error_path}/error", value)
            self._has_error_node = True

    async def _clear_error(self) -> None:
        if self._has_error_node:
            self._has_error_node = False
            top = f"/local/domain/{self._store.domid}/error"
            with contextlib.suppress(XenStoreError):
                await self._store.run(lambda transaction: remove_nodes(transaction, self._error_path, top))

    @property
    def _error_path(self) -> str:
        home = f"/local/domain/{self._store.domid}"
        return f"{home}/error/{self.path.removeprefix(f'{home}/').lstrip('/')}"

    # Waiting

    async def _until(self, holds: Callable[[], bool], timeout: float | None, what: str) -> None:
        """Wait until `holds()`, looked at whenever something changes."""
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                while not holds():
                    future = self._loop.create_future()
                    self._looking.append(future)
                    await future
        except TimeoutError:
            if not limit.expired():
                raise
            raise TimeoutError(f"{self!r} had {timeout} seconds {what}{await self._situation()}") from None

    async def _situation(self) -> str:
        """What else is to be said where a wait has ended in vain."""
        return ""

    def _tell(self) -> None:
        looking, self._looking = self._looking, []
        for future in looking:
            if not future.done():
                future.set_result(None)

    async def _wait_for_news(self, seconds: float | None) -> None:
        """Until something may have changed, or for `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()

    async def _watch_node(self, path: str, noticed: Callable[[], object] | None = None) -> None:
        """Have every change of the node be news, until `_unwatch`. Raises `XenStoreError`."""
        watch = await self._store.nodes.watch(path)
        self._watching.append(self._loop.create_task(self._follow(watch, noticed), name=f"watch on {path}"))

    async def _follow(self, watch: AsyncWatch, noticed: Callable[[], object] | None) -> None:
        try:
            async with watch:
                async for _ in watch:
                    if noticed is not None:
                        noticed()
                    self._news.set()
        except Exception as failure:  # of the connection to xenstore: whoever lives the device's life meets it too
            _log.debug("%s: %s", self.path, failure)
            self._news.set()

    async def _unwatch(self) -> None:
        watching, self._watching = self._watching, []
        for task in watching:
            task.cancel()
        if watching:
            await asyncio.wait(watching)


async def remove_nodes(transaction: AsyncTransaction, path: str, top: str) -> None:
    """Remove `path`, and the nodes above it, below `top`, that are empty then. What is gone, or not ours, is left."""
    try:
        await transaction.rm(path)
        while (path := path.rpartition("/")[0]).startswith(f"{top}/") and not await transaction.directory(path):
            await transaction.rm(path)
    except XenStoreError as error:
        if error.errno not in (errno.ENOENT, errno.EACCES):
            raise


def _is_expected(error: BaseException) -> bool:
    """Whether it is the other end's doing, or the machine's, and no defect here that a traceback would show."""
    return isinstance(error, (OSError, GrantError)) and not isinstance(error, InterfaceClosed)


def _error_number(error: BaseException) -> int:
    if isinstance(error, ProtocolError):
        return errno.EINVAL
    number = getattr(error, "errno", None)
    return number if isinstance(number, int) and number > 0 else errno.EIO
