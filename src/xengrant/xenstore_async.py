"""The xenstore client for asyncio: `AsyncXenStore`, with the names of `XenStore`.

Made by `Domain.aio.xenstore()`. One reader on the descriptor for the connection's life; what is asked and answered is
in xenstore_core.py, shared with the blocking client.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import errno
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Self

from xengrant import xenstore_core as core
from xengrant.abi.xs_wire import NO_TRANSACTION, Permission
from xengrant.errors import InterfaceClosed, XenStoreError
from xengrant.xenstore_connection import ATTEMPTS, Connection, connection_lost, give_up
from xengrant.xenstore_core import T
from xengrant.xenstore_errors import explained

if TYPE_CHECKING:
    from xengrant.devices import Device

__all__ = ["AsyncTransaction", "AsyncWatch", "AsyncXenStore"]

_READ_SIZE = 65536


class _AsyncNodes:
    """What can be asked of nodes: as in the blocking client, without `timeout` (asyncio.timeout does that)."""

    _transaction_id = NO_TRANSACTION

    async def _run(self, steps: core.Steps[T]) -> T:
        raise NotImplementedError

    async def read(self, path: str) -> bytes:
        """The node's value; ENOENT where there is no such node."""
        return await self._run(core.read(path, self._transaction_id))

    async def write(self, path: str, value: bytes | str) -> None:
        """Set the node's value, making it and the nodes above it where they are missing.

        What is made has the permissions of the node above it.
        """
        await self._run(core.write(path, value, self._transaction_id))

    async def mkdir(self, path: str) -> None:
        """Make the node, empty, and those above it; one that exists stays as it is."""
        await self._run(core.mkdir(path, self._transaction_id))

    async def rm(self, path: str) -> None:
        """Remove the node and all below it. No error where it does not exist but the one above it does."""
        await self._run(core.rm(path, self._transaction_id))

    async def exists(self, path: str) -> bool:
        """Whether the node exists; EACCES where this domain may not know."""
        return await self._run(core.exists(path, self._transaction_id))

    async def directory(self, path: str) -> list[str]:
        """The names of the node's children, in the order in which they were made."""
        return await self._run(core.directory(path, self._transaction_id))

    async def get_permissions(self, path: str) -> list[Permission]:
        """The owner's entry first: it names the owner, and what domains without an entry may do."""
        return await self._run(core.get_permissions(path, self._transaction_id))

    async def set_permissions(self, path: str, permissions: Sequence[Permission]) -> None:
        """Replace the node's permissions (not its children's). A guest keeps itself the owner, and names 5 in all."""
        await self._run(core.set_permissions(path, permissions, self._transaction_id))


class AsyncXenStore(Connection, _AsyncNodes):
    """One connection to xenstore, whose calls are awaited. Made by `AsyncDomain.xenstore`.

    Paths, values and errors are as in `XenStore`; `asyncio.timeout` bounds a call. A cancelled call leaves nothing
    behind.

    Threads: those of the event loop that it was made in.
    """

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[object, asyncio.Future[None]] = {}
        self._failure: Exception | None = None
        self._is_writing = False
        self._loop.add_reader(device.fileno(), self._readable)

    async def get_domain_path(self, domid: int) -> str:
        """As `XenStore.get_domain_path`."""
        return await self._run(core.get_domain_path(domid))

    async def is_domain_introduced(self, domid: int) -> bool:
        """As `XenStore.is_domain_introduced`."""
        return await self._run(core.is_domain_introduced(domid))

    async def transaction(self) -> AsyncTransaction:
        """As `XenStore.transaction`: ``async with await store.transaction() as transaction``."""
        return AsyncTransaction(self, await self._run(core.start_transaction()))

    async def run_transaction(
        self, function: Callable[[AsyncTransaction], Awaitable[T]], *, attempts: int = ATTEMPTS
    ) -> T:
        """As `XenStore.run_transaction`; `function` is awaited."""
        delays = core.backoff(attempts)
        while True:
            try:
                async with await self.transaction() as transaction:
                    result = await function(transaction)
                    await transaction.commit()
                    return result
            except XenStoreError as error:
                if error.errno != errno.EAGAIN:
                    raise
                delay = next(delays, None)
                if delay is None:
                    raise give_up(attempts) from error
            await asyncio.sleep(delay)

    async def watch(self, path: str) -> AsyncWatch:
        """As `XenStore.watch`: ``async with await store.watch(path) as watch``."""
        return AsyncWatch(self, await self._run(core.watch(self._codec, path, contextlib.nullcontext())))

    def close(self) -> None:
        """Close the connection: transactions are dropped, whoever waits gets `InterfaceClosed`. Twice is fine."""
        self._warn.detach()
        if not self._device.closed:
            self._fail(InterfaceClosed("this xenstore connection was closed"))
            self._device.close()

    async def __aenter__(self) -> Self:
        self._check_open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    async def _run(self, steps: core.Steps[T]) -> T:
        steps = explained(steps)
        try:
            request = next(steps)
            while True:
                try:
                    answer = await self._exchange(request)
                except core.Refusal as refusal:
                    request = steps.throw(refusal)
                else:
                    request = steps.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            steps.close()

    async def _exchange(self, request: core.Request) -> bytes:
        self._check_usable()
        outgoing = self._queue(request)
        try:
            self._flush()
            await self._until(request, lambda: request.done)
        except BaseException:
            self._waiting.pop(request, None)
            self._give_up(outgoing)
            self._send_undoing()
            raise
        return request.result()

    async def _until(self, subject: object, done: Callable[[], bool]) -> None:
        """Wait until `done()` holds, looking whenever there is news of `subject`."""
        while not done():
            self._check_usable()
            future = self._waiting.get(subject)
            if future is None:
                future = self._waiting[subject] = self._loop.create_future()
            # Shielded, since several may wait for one subject and a cancelled one must not end the others' wait.
            await asyncio.shield(future)

    def _wake(self, subject: object) -> None:
        future = self._waiting.pop(subject, None)
        if future is not None and not future.done():
            future.set_result(None)

    def _readable(self) -> None:
        try:
            data = self._device.read(_READ_SIZE)
            if not data:
                raise connection_lost(self._device.name)
            for news in self._codec.feed(data):
                self._wake(news)
            self._send_undoing()
        except BlockingIOError:
            pass
        except ConnectionError:
            self._fail(connection_lost(self._device.name))
        except Exception as failure:
            self._fail(failure)

    def _flush(self) -> None:
        """Write what there is to write; the rest when the descriptor takes it, or when `_readable` has an answer."""
        while (may_go := bool(self._unsent) and self._next_may_go()) and self._write_next():
            self._written()
        if may_go != self._is_writing:
            self._is_writing = may_go
            if self._is_writing:
                self._loop.add_writer(self._device.fileno(), self._writable)
            else:
                self._loop.remove_writer(self._device.fileno())

    def _writable(self) -> None:
        try:
            self._flush()
        except Exception as failure:
            self._fail(failure)

    def _written(self) -> None:
        request = self._unsent[0].request
        super()._written()
        if request.done:
            self._wake(request)

    def _send_undoing(self) -> None:
        if not self.closed and self._failure is None:
            self._queue_undoing()
            self._writable()

    def _end_watch(self, events: core.Events) -> None:
        self._codec.drop_watch(events)
        self._wake(events)
        self._dismiss(core.unwatching(events))

    def _dismiss(self, request: core.Request) -> None:
        """Undo something without waiting."""
        self._codec.undo_with(request)
        self._send_undoing()

    def _fail(self, failure: Exception) -> None:
        """The end of the connection: every wait, now and later, raises a copy of `failure`."""
        if self._failure is None:
            self._failure = failure
        if not self._device.closed and not self._loop.is_closed():
            self._loop.remove_reader(self._device.fileno())
            self._loop.remove_writer(self._device.fileno())
        for subject in list(self._waiting):
            self._wake(subject)

    def _check_usable(self) -> None:
        if self._failure is not None:
            raise copy.copy(self._failure) from self._failure
        self._check_open()


class AsyncTransaction(_AsyncNodes):
    """As `Transaction`. Made by `AsyncXenStore.transaction`."""

    def __init__(self, store: AsyncXenStore, transaction_id: int) -> None:
        self._store = store
        self._transaction_id = transaction_id
        self.closed = False

    async def commit(self) -> None:
        """Make it so; `XenStoreError` with EAGAIN where another changed what this read or wrote."""
        await self._end(commit=True)

    async def abort(self) -> None:
        """Drop it. On one that has ended it does nothing."""
        if not self.closed:
            await self._end(commit=False)

    async def __aenter__(self) -> Self:
        self._check_open()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if self.closed:
            return
        if kind is None:
            await self.commit()
        else:
            self.closed = True
            self._store._dismiss(core.ending(self._transaction_id, commit=False))

    def __repr__(self) -> str:
        return f"<AsyncTransaction {self._transaction_id}{', ended' if self.closed else ''}>"

    async def _end(self, *, commit: bool) -> None:
        self._check_open()
        self.closed = True
        await self._store._run(core.end_transaction(self._transaction_id, commit=commit))

    async def _run(self, steps: core.Steps[T]) -> T:
        self._check_open()
        return await self._store._run(steps)

    def _check_open(self) -> None:
        if self.closed:
            raise InterfaceClosed("this xenstore transaction has ended: start another")


class AsyncWatch:
    """As `Watch`, with events that are awaited: ``async for path in watch``. Made by `AsyncXenStore.watch`."""

    def __init__(self, store: AsyncXenStore, events: core.Events) -> None:
        self._store = store
        self._events = events
        self.path = events.path
        self.closed = False

    async def wait(self, timeout: float | None = None) -> str:
        """Take the next event's path; `TimeoutError` after `timeout` seconds. A cancelled wait loses no event."""
        try:
            async with asyncio.timeout(timeout):
                await self._store._until(self._events, lambda: self.closed or bool(self._events))
        except TimeoutError:
            raise TimeoutError(f"nothing changed at {self.path} in xenstore in {timeout} seconds") from None
        if self.closed:
            raise InterfaceClosed(f"the watch on {self.path} is closed")
        return self._events.take()

    def close(self) -> None:
        """Stop being told; whoever waits gets `InterfaceClosed`. A second time does nothing."""
        if not self.closed:
            self.closed = True
            self._store._end_watch(self._events)

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        return await self.wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<AsyncWatch on {self.path}{', closed' if self.closed else ''}>"
