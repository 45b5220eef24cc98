"""Finding out that the other domain is gone, in one place.

A dead domain sends no event and clears no byte; xenstore is what tells. dom0 watches `@releaseDomain`; a guest is not
allowed to (XSA-115), so it watches a node that the peer shows it, which goes with the peer. Made by `Domain.peer()`
and `Domain.aio.peer()`; `Port.wait` takes one.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import errno
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from xengrant.arguments import checked_text
from xengrant.errors import InterfaceClosed, InterfaceUnavailable, PeerClosed, XenStoreError
from xengrant.forks import abandon_in_child
from xengrant.waiting import deadline_after, pause_until, seconds_until

if TYPE_CHECKING:
    from xengrant.xenstore import AsyncXenStore, XenStore

__all__ = ["AsyncPeer", "Peer", "shown_path"]

_RELEASE = "@releaseDomain"


def shown_path(domid: int, path: str) -> str:
    """The absolute path of a node that domain `domid` shows under its own directory."""
    return path if checked_text("path", path).startswith("/") else f"/local/domain/{domid}/{path}"


class _BasePeer:
    """What is known of another domain: that it is gone, or why that cannot be known."""

    def __init__(self, domid: int, path: str | None) -> None:
        self.domid = domid
        self.known_gone = False
        self._path = None if path is None else shown_path(domid, path)
        self._watches_path = False  # all that a guest can watch: the node's end counts as the peer's
        self._failure: Exception | None = None
        self._listeners: list[Callable[[], None]] = []

    def check(self) -> None:
        """`PeerClosed` where the domain is known to be gone; what went wrong where that can no more be known."""
        if self.known_gone:
            raise PeerClosed(f"domain {self.domid} is gone")
        self._check_failure()

    def on_gone(self, listener: Callable[[], None]) -> None:
        """Have `listener` called when `check` begins to raise: in a thread of the peer's, or in its loop.

        At once if it does already; perhaps more than once.
        """
        self._watch_from_now_on()
        self._listeners.append(listener)
        if self.known_gone or self._failure is not None:
            listener()

    def discard_on_gone(self, listener: Callable[[], None]) -> None:
        """Take back one `on_gone`."""
        with contextlib.suppress(ValueError):
            self._listeners.remove(listener)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} domain {self.domid}, {'gone' if self.known_gone else 'not known to be gone'}>"

    def _watch_from_now_on(self) -> object:
        raise NotImplementedError

    def _check_failure(self) -> None:
        if self._failure is not None:
            raise copy.copy(self._failure) from self._failure

    def _call_listeners(self) -> None:
        for listener in list(self._listeners):
            listener()

    def _was_closed(self) -> InterfaceClosed:
        return InterfaceClosed(f"the Peer of domain {self.domid} was closed")

    def _still_there(self, timeout: float | None) -> TimeoutError:
        return TimeoutError(f"domain {self.domid} is still there after {timeout} seconds")

    def _watch_path_instead(self, error: XenStoreError) -> None:
        """Where `error` is that only dom0 may ask about domains."""
        if error.errno != errno.EACCES:
            raise error
        if self._path is None:
            raise InterfaceUnavailable(
                errno.EACCES,
                f"only dom0 is told when domain {self.domid} goes: name a node that it shows this domain, "
                "domain.peer(domid, path=...), or find() its grants first",
            ) from None
        self._watches_path = True

    @property
    def _watched(self) -> str:
        return self._path if self._watches_path and self._path is not None else _RELEASE


def _is_hidden(error: XenStoreError) -> bool:
    """Whether a node that was shown to this domain is so no more: xenstore then does not say whether it exists."""
    if error.errno != errno.EACCES:
        raise error
    return True


class Peer(_BasePeer):
    """Another domain, and whether it is still there. Made by `Domain.peer`.

    `domid` is the domain's, `known_gone` what the last look or watch found. A domain that dies sends no event and
    clears no byte: dom0 learns of it by xenstore's ``@releaseDomain``, a guest by a node of the peer's (XSA-115). The
    first wait or `on_gone` starts a thread that waits on xenstore. Threads: any call from any thread.
    """

    def __init__(self, domid: int, path: str | None, open_store: Callable[[], XenStore]) -> None:
        super().__init__(domid, path)
        self._open_store = open_store
        self._store: XenStore | None = None
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()
        abandon_in_child(self)

    def _abandon(self) -> None:
        self._changed = threading.Condition()
        if self._failure is None:
            self._failure = InterfaceClosed(f"the Peer of domain {self.domid} is the parent process's: make another")

    def gone(self) -> bool:
        """Ask xenstore now what `wait_gone` waits for.

        Raises `InterfaceUnavailable` in a guest that has no path of the peer's to look at, `XenStoreError`.
        """
        if not self.known_gone:
            with self._open_store() as store:
                if self._is_gone(store):
                    self._set_gone()
        return self.known_gone

    def wait_gone(self, timeout: float | None = None) -> None:
        """Wait until the domain is destroyed; `TimeoutError` after `timeout` seconds.

        In a guest also until it takes back the node at the peer's path, which is all that a guest can watch. Raises as
        `gone`, and `InterfaceClosed` where it is closed meanwhile.
        """
        self._watch_from_now_on()
        deadline = deadline_after(timeout)
        with (changed := self._changed):
            while not self.known_gone and self._failure is None:
                if seconds_until(deadline) == 0:
                    raise self._still_there(timeout)
                changed.wait(pause_until(deadline))
        if not self.known_gone:
            self._check_failure()

    def close(self) -> None:
        """Stop watching; whoever waits gets `InterfaceClosed`. A second time does nothing."""
        if self._failure is None:
            self._failure = self._was_closed()
        with self._changed:
            store, thread = self._store, self._thread
        if store is not None:
            store.close()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _watch_from_now_on(self) -> None:
        if self.known_gone:
            return
        self._check_failure()
        with self._changed:
            if self._thread is not None:
                return
            store = self._open_store()
            self._store = store
            try:
                self._check_failure()  # closed meanwhile
                thread = threading.Thread(target=self._run, args=(store,), name=f"peer-{self.domid}", daemon=True)
                thread.start()
            except BaseException:
                self._store = None
                store.close()
                raise
            self._thread = thread

    def _run(self, store: XenStore) -> None:
        try:
            self._watch(store)
        except Exception as failure:
            with self._changed:
                if self._failure is None:
                    self._failure = failure
                self._changed.notify_all()
            self._call_listeners()
        else:
            self._set_gone()
        finally:
            store.close()

    def _set_gone(self) -> None:
        with self._changed:
            self.known_gone = True
            self._changed.notify_all()
        self._call_listeners()

    def _watch(self, store: XenStore) -> None:
        if self._is_gone(store):
            return
        with store.watch(self._watched) as watch:
            while not self._is_gone(store):
                watch.wait()

    def _is_gone(self, store: XenStore) -> bool:
        if not self._watches_path:
            try:
                return not store.is_domain_introduced(self.domid)
            except XenStoreError as error:
                self._watch_path_instead(error)
        try:
            return not store.exists(self._watched)
        except XenStoreError as error:
            return _is_hidden(error)


class AsyncPeer(_BasePeer):
    """As `Peer`, for asyncio; a task of the running loop waits on xenstore.

    Threads: that of its event loop only.
    """

    def __init__(self, domid: int, path: str | None, open_store: Callable[[], AsyncXenStore]) -> None:
        super().__init__(domid, path)
        self._open_store = open_store
        self._task: asyncio.Task[None] | None = None

    async def gone(self) -> bool:
        """As `Peer.gone`."""
        if not self.known_gone:
            async with self._open_store() as store:
                if await self._is_gone(store):
                    self._set_gone()
        return self.known_gone

    async def wait_gone(self, timeout: float | None = None) -> None:
        """As `Peer.wait_gone`."""
        task = self._watch_from_now_on()
        if task is not None:
            await asyncio.wait({task}, timeout=timeout)
        if not self.known_gone:
            self._check_failure()
            raise self._still_there(timeout)

    def close(self) -> None:
        """As `Peer.close`."""
        if self._failure is None:
            self._failure = self._was_closed()
            self._call_listeners()
        if self._task is not None:
            self._task.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    def _watch_from_now_on(self) -> asyncio.Task[None] | None:
        """The task that watches; None where the domain is known to be gone."""
        if self.known_gone:
            return None
        self._check_failure()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name=f"peer-{self.domid}")
        return self._task

    async def _run(self) -> None:
        try:
            async with self._open_store() as store:
                await self._watch(store)
        except asyncio.CancelledError:
            if self._failure is None:
                self._failure = self._was_closed()
            raise
        except Exception as failure:
            if self._failure is None:
                self._failure = failure
        else:
            self.known_gone = True
        finally:
            self._call_listeners()

    async def _watch(self, store: AsyncXenStore) -> None:
        if await self._is_gone(store):
            return
        async with await store.watch(self._watched) as watch:
            while not await self._is_gone(store):
                await watch.wait()

    def _set_gone(self) -> None:
        self.known_gone = True
        self._call_listeners()

    async def _is_gone(self, store: AsyncXenStore) -> bool:
        if not self._watches_path:
            try:
                return not await store.is_domain_introduced(self.domid)
            except XenStoreError as error:
                self._watch_path_instead(error)
        try:
            return not await store.exists(self._watched)
        except XenStoreError as error:
            return _is_hidden(error)
