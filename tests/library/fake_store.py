"""A xenstore in a dictionary, with the names of XenStore and AsyncXenStore that meeting and peer use."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Callable
from typing import Any, Self

from xengrant.abi.xs_wire import Permission
from xengrant.errors import InterfaceClosed, XenStoreError

from . import LONG


class Tree:
    """What all the connections see. `watched` says that somebody is waiting."""

    def __init__(self, *, privileged: bool = True) -> None:
        self.privileged = privileged
        self.nodes: dict[str, bytes] = {}
        self.permissions: dict[str, list[Permission]] = {}
        self.hidden: set[str] = set()
        self.introduced = {0, 7}
        self.failures: dict[str, Exception] = {}  # by operation: what its next call raises
        self.opened: list[FakeStore] = []
        self.changed = threading.Condition()
        self.changes = 0
        self.watched = threading.Semaphore(0)

    def open(self) -> FakeStore:
        if "open" in self.failures:
            raise self.failures.pop("open")
        return FakeStore(self)

    def open_async(self) -> AsyncFakeStore:
        return AsyncFakeStore(self.open())

    def change(self, act: Callable[[], object]) -> None:
        with self.changed:
            act()
            self.changes += 1
            self.changed.notify_all()


class FakeStore:
    """One connection, which is its own transaction."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.closed = False
        tree.opened.append(self)

    def _step(self, operation: str, path: str) -> str:
        if self.closed:
            raise InterfaceClosed("this store is closed")
        failure = self.tree.failures.pop(operation, None)
        if failure is not None:
            raise failure
        if path in self.tree.hidden:
            raise XenStoreError(errno.EACCES, f"{path}: hidden", path=path)
        return path

    def _found(self, path: str) -> str:
        if not self._is_there(path):
            raise XenStoreError(errno.ENOENT, f"{path}: not there", path=path)
        return path

    def _is_there(self, path: str) -> bool:
        return any(node == path or node.startswith(f"{path}/") for node in self.tree.nodes)

    def exists(self, path: str, *, timeout: float | None = None) -> bool:
        return self._is_there(self._step("exists", path))

    def read(self, path: str, *, timeout: float | None = None) -> bytes:
        return self.tree.nodes.get(self._found(self._step("read", path)), b"")

    def directory(self, path: str, *, timeout: float | None = None) -> list[str]:
        below = self._found(self._step("directory", path)) + "/"
        return list({node[len(below) :].split("/")[0]: None for node in self.tree.nodes if node.startswith(below)})

    def write(self, path: str, value: bytes | str) -> None:
        self._step("write", path)
        self.tree.nodes[path] = value.encode() if isinstance(value, str) else value

    def mkdir(self, path: str) -> None:
        self.tree.nodes.setdefault(self._step("mkdir", path), b"")

    def rm(self, path: str) -> None:
        self._step("rm", path)
        for node in [node for node in self.tree.nodes if node == path or node.startswith(f"{path}/")]:
            del self.tree.nodes[node]

    def set_permissions(self, path: str, permissions: list[Permission]) -> None:
        self.tree.permissions[self._step("set_permissions", path)] = permissions

    def is_domain_introduced(self, domid: int) -> bool:
        self._step("is_domain_introduced", "")
        if not self.tree.privileged:
            raise XenStoreError(errno.EACCES, "only dom0 may ask")
        return domid in self.tree.introduced

    def run_transaction(self, function: Callable[[Any], Any], *, timeout: float | None = None) -> Any:
        before = dict(self.tree.nodes)
        try:
            return function(self)
        except BaseException:
            self.tree.nodes = before
            raise

    def watch(self, path: str, *, timeout: float | None = None) -> FakeWatch:
        self._step("watch", "")
        return FakeWatch(self, path)

    def close(self) -> None:
        with self.tree.changed:
            self.closed = True
            self.tree.changed.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class FakeWatch:
    def __init__(self, store: FakeStore, path: str) -> None:
        self.store = store
        self.path = path
        self.seen = -1  # the first event comes at once

    def wait(self, timeout: float | None = None) -> str:
        tree = self.store.tree
        with tree.changed:
            if self.seen == tree.changes:
                tree.watched.release()
            if not tree.changed.wait_for(
                lambda: self.seen != tree.changes or self.store.closed, LONG if timeout is None else timeout
            ):
                raise TimeoutError
            self.seen = tree.changes
        if self.store.closed:
            raise InterfaceClosed("this store is closed")
        self.store._step("wait", "")
        return self.path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        return None


class AsyncFakeStore:
    """The same, awaited; waits are done in a thread."""

    def __init__(self, store: FakeStore) -> None:
        self.store = store

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(*arguments: object) -> object:
            await asyncio.sleep(0)
            return getattr(self.store, name)(*arguments)

        return call

    async def run_transaction(self, function: Callable[[Any], Any]) -> Any:
        return await function(self)

    async def watch(self, path: str) -> AsyncFakeWatch:
        return AsyncFakeWatch(self.store.watch(path))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.store.close()


class AsyncFakeWatch:
    def __init__(self, watch: FakeWatch) -> None:
        self._watch = watch

    async def wait(self, timeout: float | None = None) -> str:
        return await asyncio.to_thread(self._watch.wait, timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        return None
