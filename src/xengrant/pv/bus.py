"""`BackendBus`: serves every device of a kind whose back end this domain is, for asyncio.

A program's outermost object: it watches the directory where the toolstack makes devices, has a `BackendDevice` live the
life of each, and in dom0 learns of domains that are gone. Calls xenstore.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import errno
import logging
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from xengrant.abi.xen import DOMID_FIRST_RESERVED
from xengrant.domain import connect
from xengrant.errors import InterfaceClosed, InterfaceUnavailable, XenStoreError
from xengrant.pv.backend import BackendDevice, MakeBackend
from xengrant.pv.device import Store
from xengrant.pv.toolstack import back_directory

if TYPE_CHECKING:
    from xengrant.domain import Domain
    from xengrant.xenstore import AsyncXenStore

__all__ = ["BackendBus"]

_log = logging.getLogger("xengrant.pv")

_Key = tuple[int, str]


class BackendBus:
    """The back ends of one kind in this domain::

        async with BackendBus("vbd", Disk) as bus:
            await bus.serve_forever()

    `devices` are those that there are now, by the front end's domid and the device's handle. A device that fails closes
    alone; the bus ends only when xenstore does. Leaving the block closes every device first. Threads: those of its
    event loop only.
    """

    def __init__(
        self,
        name: str,
        make: MakeBackend,
        *,
        domain: Domain | None = None,
        within: str = "",
        accept: Callable[[int, str], bool] | None = None,
        closing_seconds: float = 10.0,
        hook_seconds: float = 30.0,
    ) -> None:
        """Serve the devices in ``backend/NAME`` below this domain's directory, or below `within` in it.

        `make` is called for each device and gives its `Backend`. `accept(domid, handle)` says which devices are this
        program's, where several serve one directory; `closing_seconds` is how long a front end may take to close, and
        `hook_seconds` how long a hook.
        """
        self._name = name
        self._make = make
        self._given = domain
        self._within = within
        self._accept = accept or (lambda domid, handle: True)
        self._closing_seconds = closing_seconds
        self._hook_seconds = hook_seconds
        self.path = ""
        self.devices: dict[_Key, BackendDevice] = {}
        self._lives: dict[_Key, asyncio.Task[None]] = {}
        self._watching: list[asyncio.Task[None]] = []
        self._opened = contextlib.AsyncExitStack()
        self._is_closing = False
        self._changed = asyncio.Event()
        self._ended: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Begin to serve; entering the block does it. Raises `XenStoreError`, `InterfaceUnavailable`."""
        if self._ended is not None or self._is_closing:
            raise RuntimeError("a BackendBus is started once")
        async with contextlib.AsyncExitStack() as opening:
            self._domain = self._given or opening.enter_context(connect())
            nodes = await opening.enter_async_context(self._domain.aio.xenstore())
            self._store = Store(nodes, await self._domain.aio.domid())
            self.path = back_directory(self._store.domid, self._name, self._within)
            loop = asyncio.get_running_loop()
            self._ended = loop.create_future()
            self._watching = [loop.create_task(self._watch_devices(nodes), name=f"bus at {self.path}")]
            self._watching.append(loop.create_task(self._watch_domains(nodes), name="domains that go"))
            for task in self._watching:
                task.add_done_callback(self._watched)
            self._opened = opening.pop_all()

    async def serve_forever(self) -> None:
        """Serve until the bus is closed, or until xenstore ends, which raises `InterfaceUnavailable`."""
        if self._ended is None:
            raise RuntimeError("this BackendBus was not started")
        await asyncio.shield(self._ended)

    async def wait_device(self, domid: int, handle: str | int, timeout: float | None = None) -> BackendDevice:
        """The device of that front end, once the toolstack has made it; `TimeoutError` after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                while (device := self.devices.get((domid, str(handle)))) is None:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise TimeoutError(f"no {self.path}/{domid}/{handle} in {timeout} seconds") from None
        return device

    async def close(self, *, leave: bool = False) -> None:
        """Close every device, and serve no more. A second time does nothing.

        Each gets CLOSING, `closing_seconds` for its front end to follow, and CLOSED. With `leave` the states stay what
        they are and the front ends notice nothing, so that a successor can resume what is connected.
        """
        self._is_closing = True
        try:
            if not leave:
                for device in self.devices.values():
                    device.stop()
                if self._lives:
                    await asyncio.wait(self._lives.values())
        finally:
            await self._end([*self._lives.values(), *self._watching])
            await self._opened.aclose()
            if self._ended is not None and not self._ended.done():
                self._ended.set_result(None)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<BackendBus {self.path or self._name}, {len(self.devices)} devices>"

    @staticmethod
    async def _end(tasks: list[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # What there is

    async def _watch_devices(self, nodes: AsyncXenStore) -> None:
        async with await nodes.watch(self.path) as watch:
            async for path in watch:
                match path.removeprefix(self.path).strip("/").split("/"):
                    case [domid, handle, *_]:
                        self._notice(domid, handle)
                    case _:
                        await self._look_everywhere(nodes)

    async def _look_everywhere(self, nodes: AsyncXenStore) -> None:
        for device in self.devices.values():
            device.news()
        for domid in await _children(nodes, self.path):
            for handle in await _children(nodes, f"{self.path}/{domid}"):
                self._notice(domid, handle)

    def _notice(self, name: str, handle: str) -> None:
        """Something is new at that device, which may be new itself, or gone."""
        if not re.fullmatch(r"0|[1-9][0-9]{0,4}", name) or int(name) >= DOMID_FIRST_RESERVED:
            return
        key = int(name), handle
        device = self.devices.get(key)
        if device is not None:
            device.news()
        elif not self._is_closing and self._accept(*key):
            self._serve(key)

    def _serve(self, key: _Key) -> None:
        domid, handle = key
        device = self.devices[key] = BackendDevice(
            self._domain,
            self._store,
            f"{self.path}/{domid}/{handle}",
            self._make,
            otherend_id=domid,
            closing_seconds=self._closing_seconds,
            hook_seconds=self._hook_seconds,
        )
        life = asyncio.get_running_loop().create_task(device.live(), name=f"life of {device.path}")
        self._lives[key] = life
        life.add_done_callback(lambda life: self._died(key, life))
        self._changed.set()

    def _died(self, key: _Key, life: asyncio.Task[None]) -> None:
        device = self.devices.pop(key)
        del self._lives[key]
        failure = None if life.cancelled() else life.exception()
        if isinstance(failure, (InterfaceClosed, InterfaceUnavailable)):
            self._fail(failure)
        elif failure is not None:
            _log.error("%s is served no more", device.path, exc_info=failure)
        elif device.has_news and not self._is_closing:
            self._serve(key)  # its nodes are there again

    # Domains that are gone

    async def _watch_domains(self, nodes: AsyncXenStore) -> None:
        """dom0 is told; elsewhere a front end's nodes go with its domain."""
        try:
            watch = await nodes.watch("@releaseDomain")
        except XenStoreError as error:
            if error.errno != errno.EACCES:
                raise
            return
        async with watch:
            async for _ in watch:
                for domid in {domid for domid, _ in self.devices}:
                    if not await nodes.is_domain_introduced(domid):
                        await self._bury(nodes, domid)

    async def _bury(self, nodes: AsyncXenStore, domid: int) -> None:
        """Where a domain is not introduced: it is gone, or it is being built, and then it has a directory already."""
        was_built = not await nodes.exists(f"/local/domain/{domid}")
        for (other, _), device in list(self.devices.items()):
            if other == domid and (was_built or device.connection is not None):
                device.domain_is_gone()

    # The end

    def _watched(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (failure := task.exception()) is not None:
            self._fail(failure)

    def _fail(self, failure: BaseException) -> None:
        if self._ended is not None and not self._ended.done():
            if not self._is_closing:
                _log.error("%r ends: %s", self, failure)
            self._ended.set_exception(copy.copy(failure))
            self._ended.exception()  # who does not wait for it is not told


async def _children(nodes: AsyncXenStore, path: str) -> list[str]:
    try:
        return await nodes.directory(path)
    except XenStoreError as error:
        if error.errno not in (errno.ENOENT, errno.EACCES):
            raise
        return []
