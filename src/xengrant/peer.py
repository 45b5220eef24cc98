"""Finding out that the other domain is gone, in one place.

A dead domain sends no event and clears no byte; xenstore is what tells. dom0 watches `@releaseDomain`; a guest is not
allowed to (XSA-115), so it watches a node that the peer shows it, which goes with the peer. Made by `Domain.peer()`
and `Domain.aio.peer()`; `Port.wait` takes one.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from xengrant.errors import GrantError, InterfaceClosed, InterfaceUnavailable, XenStoreError

if TYPE_CHECKING:
    from xengrant.xenstore import AsyncXenStore, XenStore

__all__ = ["AsyncPeer", "Peer", "shown_path"]

_RELEASE = "@releaseDomain"


def shown_path(domid: int, path: str) -> str:
    """The absolute path of a node that domain `domid` shows under its own directory."""
    return path if path.startswith("/") else f"/local/domain/{domid}/{path}"


class _BasePeer:
    def __init__(self, domid: int, path: str | None) -> None:
        self.domid = domid
        self._path = None if path is None else shown_path(domid, path)
        self.known_gone = False
        self._watches_path = False  # all that a guest can watch: the node's end counts as the peer's
        self._listeners: list[Callable[[], None]] = []

    def discard_on_gone(self, listener: Callable[[], None]) -> None:
        """Take back one `on_gone`."""
        with contextlib.suppress(ValueError):
            self._listeners.remove(listener)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} domain {self.domid}, {'gone' if self.known_gone else 'not known to be gone'}>"

    def _set_gone(self) -> None:
        self.known_gone = True
        for listener in list(self._listeners):
            listener()

    def _cannot_watch(self) -> GrantError:
        return InterfaceUnavailable(
            errno.EACCES,
            f"only dom0 is told when domain {self.domid} goes: name a node that it shows this domain, "
            "domain.peer(domid, path=...), or find() its grants first",
        )


class Peer(_BasePeer):
    """Another domain, and whether it is still there.

    The first wait or `on_gone` starts a thread that waits on xenstore. Threads: any call from any thread.
    """

    def __init__(self, domid: int, path: str | None, open_store: Callable[[], XenStore]) -> None:
        super().__init__(domid, path)
        self._open_store = open_store
        self._store: XenStore | None = None
        self._changed = threading.Condition()
        self._failure: Exception | None = None

    def gone(self) -> bool:
        """Ask now."""
        if not self.known_gone:
            with self._open_store() as store:
                if self._is_gone(store):
                    self._set_gone()
        return self.known_gone

    def wait_gone(self, timeout: float | None = None) -> None:
        """Wait until the domain is destroyed; `TimeoutError` after `timeout` seconds."""
        self._start()
        with self._changed:
            done = self._changed.wait_for(lambda: self.known_gone or self._failure is not None, timeout)
        if not done:
            raise TimeoutError(f"domain {self.domid} is still there after {timeout} seconds")
        if not self.known_gone and self._failure is not None:
            raise self._failure

    def on_gone(self, listener: Callable[[], None]) -> None:
        """Have `listener` called, in a thread of the peer's, when the domain is gone; at once if it is already."""
        self._listeners.append(listener)
        self._start()
        if self.known_gone:
            listener()

    def close(self) -> None:
        """Stop watching; whoever waits gets `InterfaceClosed`. A second time does nothing."""
        with self._changed:
            if self._failure is None:
                self._failure = InterfaceClosed(f"{self!r} was closed")
            self._changed.notify_all()
            store = self._store
        if store is not None:
            store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _start(self) -> None:
        with self._changed:
            if self._failure is not None:
                raise self._failure
            if self._store is not None or self.known_gone:
                return
            self._store = self._open_store()
        threading.Thread(target=self._run, args=(self._store,), name=f"peer-{self.domid}", daemon=True).start()

    def _run(self, store: XenStore) -> None:
        try:
            self._watch(store)
        except Exception as failure:
            with self._changed:
                if self._failure is None:
                    self._failure = failure
                self._changed.notify_all()
        else:
            with self._changed:
                self._set_gone()
                self._changed.notify_all()
        finally:
            store.close()

    def _watch(self, store: XenStore) -> None:
        try:
            watch = store.watch(_RELEASE)
        except XenStoreError as error:
            if error.errno != errno.EACCES:
                raise
            if self._path is None:
                raise self._cannot_watch() from None
            self._watches_path = True
            watch = store.watch(self._path)
        with watch:
            while not self._is_gone(store):
                watch.wait()

    def _is_gone(self, store: XenStore) -> bool:
        if not store.is_domain_introduced(self.domid):
            return True
        return self._watches_path and self._path is not None and not store.exists(self._path)


class AsyncPeer(_BasePeer):
    """As `Peer`, for asyncio; a task of the running loop waits on xenstore."""

    def __init__(self, domid: int, path: str | None, open_store: Callable[[], AsyncXenStore]) -> None:
        super().__init__(domid, path)
        self._open_store = open_store
        self._task: asyncio.Task[None] | None = None

    async def gone(self) -> bool:
        """Ask now."""
        if not self.known_gone:
            async with self._open_store() as store:
                if await self._is_gone(store):
                    self._set_gone()
        return self.known_gone

    async def wait_gone(self, timeout: float | None = None) -> None:
        """As `Peer.wait_gone`."""
        task = self._start()
        try:
            async with asyncio.timeout(timeout):
                await asyncio.shield(task)
        except TimeoutError:
            raise TimeoutError(f"domain {self.domid} is still there after {timeout} seconds") from None
        except asyncio.CancelledError:
            if task.cancelled():
                raise InterfaceClosed(f"{self!r} was closed") from None
            raise

    def on_gone(self, listener: Callable[[], None]) -> None:
        """Have `listener` called in the loop when the domain is gone; at once if it is already."""
        self._listeners.append(listener)
        self._start()
        if self.known_gone:
            listener()

    def close(self) -> None:
        """As `Peer.close`."""
        if self._task is not None:
            self._task.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    def _start(self) -> asyncio.Task[None]:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name=f"peer-{self.domid}")
            self._task.add_done_callback(_retrieve)
        return self._task

    async def _run(self) -> None:
        if self.known_gone:
            return
        async with self._open_store() as store:
            try:
                watch = await store.watch(_RELEASE)
            except XenStoreError as error:
                if error.errno != errno.EACCES:
                    raise
                if self._path is None:
                    raise self._cannot_watch() from None
                self._watches_path = True
                watch = await store.watch(self._path)
            async with watch:
                while not await self._is_gone(store):
                    await watch.wait()
        self._set_gone()

    async def _is_gone(self, store: AsyncXenStore) -> bool:
        if not await store.is_domain_introduced(self.domid):
            return True
        return self._watches_path and self._path is not None and not await store.exists(self._path)


def _retrieve(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()
