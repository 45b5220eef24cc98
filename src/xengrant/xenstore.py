"""xenstore: the tree of names and values that the domains of a machine share. `XenStore` waits, `AsyncXenStore` awaits.

Called by users (through `Domain.xenstore`), meeting and peer. Calls the device `xenbus`: the kernel's /dev/xen/xenbus
or an embedded machine's stream. What is asked and what the answers mean is in xenstore_core.py, for both; here is the
waiting.

Paths are absolute (``/local/domain/3/data``) or relative to one's own domain's directory (``data``). A value is bytes;
a `str` is written as UTF-8.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Self

from xengrant import xenstore_core as core
from xengrant.abi.xs_wire import NO_TRANSACTION, Permission
from xengrant.errors import InterfaceClosed, InterfaceUnavailable, ProtocolError, XenStoreError
from xengrant.waiting import SharedReader, deadline_after, seconds_until
from xengrant.xenstore_async import AsyncTransaction, AsyncWatch, AsyncXenStore
from xengrant.xenstore_connection import ATTEMPTS, Connection, Outgoing, connection_lost, give_up
from xengrant.xenstore_core import T
from xengrant.xenstore_errors import explained

if TYPE_CHECKING:
    from xengrant.devices import Device

__all__ = ["AsyncTransaction", "AsyncWatch", "AsyncXenStore", "Permission", "Transaction", "Watch", "XenStore"]

# Seconds to wait for the answer to a request in which a signal handler raised, which may have lost it.
_PATIENCE = 5


class _Nodes:
    """What can be asked of nodes, by a connection and inside a transaction; each call waits at most `timeout` seconds.

    Raises `XenStoreError` with xenstore's errno and what it means, `ValueError` for a path that cannot be one,
    `TimeoutError`, `InterfaceClosed`, `InterfaceUnavailable` where xenstore is gone, `ProtocolError` where it lies.
    """

    _transaction_id = NO_TRANSACTION

    def _run(self, steps: core.Steps[T], timeout: float | None) -> T:
        raise NotImplementedError

    def read(self, path: str, *, timeout: float | None = None) -> bytes:
        """The node's value; ENOENT where there is no such node."""
        return self._run(core.read(path, self._transaction_id), timeout)

    def write(self, path: str, value: bytes | str, *, timeout: float | None = None) -> None:
        """Set the node's value, making it and the nodes above it where they are missing.

        What is made has the permissions of the node above it.
        """
        self._run(core.write(path, value, self._transaction_id), timeout)

    def mkdir(self, path: str, *, timeout: float | None = None) -> None:
        """Make the node, empty, and those above it; one that exists stays as it is."""
        self._run(core.mkdir(path, self._transaction_id), timeout)

    def rm(self, path: str, *, timeout: float | None = None) -> None:
        """Remove the node and all below it. No error where it does not exist but the one above it does."""
        self._run(core.rm(path, self._transaction_id), timeout)

    def exists(self, path: str, *, timeout: float | None = None) -> bool:
        """Whether the node exists; EACCES where this domain may not know."""
        return self._run(core.exists(path, self._transaction_id), timeout)

    def directory(self, path: str, *, timeout: float | None = None) -> list[str]:
        """The names of the node's children, in the order in which they were made."""
        return self._run(core.directory(path, self._transaction_id), timeout)

    def get_permissions(self, path: str, *, timeout: float | None = None) -> list[Permission]:
        """The owner's entry first: it names the owner, and what domains without an entry may do."""
        return self._run(core.get_permissions(path, self._transaction_id), timeout)

    def set_permissions(self, path: str, permissions: Sequence[Permission], *, timeout: float | None = None) -> None:
        """Replace the node's permissions (not its children's). A guest keeps itself the owner, and names 5 in all."""
        self._run(core.set_permissions(path, permissions, self._transaction_id), timeout)


class XenStore(Connection, _Nodes):
    """One connection to xenstore (Xen docs/misc/xenstore.txt), whose calls wait for the answer.

    Made by `Domain.xenstore`. Paths are absolute (``/local/domain/3/data``) or relative to this domain's own directory
    (``data``). A value is bytes, at most 2,000 or so for a guest; a `str` is written as UTF-8.

    Each call raises `XenStoreError` with xenstore's errno and what it means (ENOENT, EACCES, EINVAL, a full quota),
    `ValueError` for a path that cannot be one, `InterfaceClosed`, `InterfaceUnavailable` where xenstore is gone,
    `ProtocolError` where it lies, and `TimeoutError` after `timeout` seconds (None waits for ever).

    Threads: any call from any thread; whoever waits reads for all. A signal handler may `close` it, but must not ask
    what its own thread is asking (RuntimeError, or TimeoutError for a call with a timeout).
    """

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        self._writing = threading.RLock()  # so that a signal handler may close what its own thread is writing to
        self._is_writing = False
        try:
            self._reader = SharedReader(device, _Deliverer(device.name, self._codec), size=65536)
        except BaseException:
            device.close()
            raise

    def get_domain_path(self, domid: int, *, timeout: float | None = None) -> str:
        """The absolute path of a domain's own directory, which relative paths of that domain begin at."""
        return self._run(core.get_domain_path(domid), timeout)

    def is_domain_introduced(self, domid: int, *, timeout: float | None = None) -> bool:
        """Whether xenstore knows the domain: it was made, and is not destroyed. Only dom0 may ask (EACCES)."""
        return self._run(core.is_domain_introduced(domid), timeout)

    def transaction(self, *, timeout: float | None = None) -> Transaction:
        """Start a transaction: what is written in it is seen all at once, or not at all.

        A context manager: it commits at the end of the block, and there raises `XenStoreError` with EAGAIN where
        another changed what was read or written; `run_transaction` tries again by itself. After an error in the
        block it is dropped. A guest may have 10 open.
        """
        return Transaction(self, self._run(core.start_transaction(), timeout))

    def run_transaction(
        self, function: Callable[[Transaction], T], *, attempts: int = ATTEMPTS, timeout: float | None = None
    ) -> T:
        """Call `function` with a transaction and commit it, from the start again where others came between.

        Waits a little longer each time; EAGAIN is raised after `attempts`. Raises what `function` raises.
        """
        deadline = deadline_after(timeout)
        delays = core.backoff(attempts)
        while True:
            try:
                with self.transaction(timeout=seconds_until(deadline)) as transaction:
                    result = function(transaction)
                    transaction.commit(timeout=seconds_until(deadline))
                    return result
            except XenStoreError as error:
                if error.errno != errno.EAGAIN:
                    raise
                delay = next(delays, None)
                if delay is None:
                    raise give_up(attempts) from error
            left = seconds_until(deadline)
            self._reader.wait_until(lambda: False, deadline_after(delay if left is None else min(delay, left)))

    def watch(self, path: str, *, timeout: float | None = None) -> Watch:
        """Have changes of the node and all below it told. The first event, of `path` itself, comes at once.

        ``@releaseDomain`` and ``@introduceDomain`` tell of domains destroyed and made; a guest that dom0 does not
        tell gets EACCES (XSA-115). A guest may have 128 watches.
        """
        self._check_open()  # in a forked child a lock may be held for ever
        return Watch(self, self._run(core.watch(self._codec, path, self._reader.lock), timeout))

    def close(self) -> None:
        """Close the connection: transactions are dropped, whoever waits gets `InterfaceClosed`. Twice is fine."""
        self._warn.detach()
        if not self._device.closed:  # also in a forked child, where locks may be held for ever
            self._reader.close()
            with self._writing:
                self._device.close()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _run(self, steps: core.Steps[T], timeout: float | None) -> T:
        """Do the steps, each within what is left of the timeout."""
        deadline = deadline_after(timeout)
        steps = explained(steps)
        try:
            request = next(steps)
            while True:
                try:
                    answer = self._exchange(request, deadline)
                except core.Refusal as refusal:
                    request = steps.throw(refusal)
                else:
                    request = steps.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            steps.close()

    def _exchange(self, request: core.Request, deadline: float | None) -> bytes:
        self._check_open()
        outgoing = self._send(request, deadline)
        try:
            answered = self._reader.wait_until(lambda: request.done, deadline)
            outgoing.interrupted = False
            if not answered:
                raise TimeoutError(f"xenstore did not answer {request.operation.name} in time")
        except BaseException:
            with self._reader.lock:
                self._codec.abandon(outgoing.request)
            raise
        finally:
            self._send_rest()
        return request.result()

    def _send(self, request: core.Request, deadline: float | None) -> Outgoing:
        """Write the message, after whatever an earlier time-out left half written."""
        seconds = seconds_until(deadline)
        sent = self._alone(lambda: self._queue_and_flush(request, deadline), -1 if seconds is None else seconds)
        if sent:
            return sent[0]
        if seconds is None:
            raise RuntimeError(f"{request.operation.name} from a signal handler, while its own thread was writing")
        raise TimeoutError(f"xenstore took no {request.operation.name} in time: another's is in the way")

    def _alone(self, write: Callable[[], T], seconds: float) -> list[T]:
        """What `write` returns, called while nobody else writes; nothing where that does not come within `seconds`.

        Nor where a signal handler asks and its own thread is writing. A handler that raises leaves no lock held:
        handlers run between two steps of Python's own, and `list.extend` of a `map` calls and stores in one step.
        """
        acquired: list[bool] = []
        try:
            acquired.extend(map(self._writing.acquire, (True,), (seconds,)))
            if not acquired[0] or self._is_writing:
                return []
            try:
                self._is_writing = True
                return [write()]
            finally:
                self._is_writing = False
        finally:
            if acquired and acquired[0]:
                self._writing.release()

    def _queue_and_flush(self, request: core.Request, deadline: float | None) -> Outgoing:
        self._check_open()
        with self._reader.lock:
            outgoing = self._queue(request)
        outgoing.interrupted = True
        try:
            self._flush(deadline)
        except BaseException:
            outgoing.interrupted = seconds_until(deadline) != 0  # else the time was out
            with self._reader.lock:
                self._give_up(outgoing)
            raise
        return outgoing

    def _flush(self, deadline: float | None) -> None:
        while self._unsent:
            if not self._wait_for_turn(deadline):
                raise TimeoutError("xenstore did not answer what was asked before in time")
            if self._write_next():
                with self._reader.lock:
                    self._written()
            elif not self._reader.wait_writable(deadline) or seconds_until(deadline) == 0:
                raise TimeoutError("xenstore took no bytes in time")

    def _wait_for_turn(self, deadline: float | None) -> bool:
        """Wait until the next message may be written. A deadline that has passed waits for nothing, nor reads."""
        with self._reader.lock:
            if self._next_may_go():
                return True
        while seconds_until(deadline) != 0:
            before = self._under_way
            may_be_lost = before is not None and before.may_be_lost
            soon = time.monotonic() + _PATIENCE
            if self._reader.wait_until(self._next_may_go, soon if deadline is None else min(soon, deadline)):
                return True
            if may_be_lost and self._under_way is before and seconds_until(soon) == 0:
                self._under_way = None
                return True
        return False

    def _end_watch(self, events: core.Events) -> None:
        if not self.closed:
            with self._reader.lock:
                self._codec.drop_watch(events)
            self._reader.wake()
            self._dismiss(core.unwatching(events))

    def _dismiss(self, request: core.Request) -> None:
        """Undo something without waiting: now where the device takes it, else with the next request."""
        if self.closed:
            return
        with self._reader.lock:
            self._codec.undo_with(request)
        self._send_rest()

    def _send_rest(self) -> None:
        """Send what is to undo things and had to wait for an answer: whoever gets one comes by here."""
        if not self.closed and (self._unsent or self._codec.has_undoing):
            # What is wrong the next request will say.
            with contextlib.suppress(InterfaceClosed, InterfaceUnavailable, ProtocolError, TimeoutError):
                self._alone(self._undo, 0)

    def _undo(self) -> None:
        with self._reader.lock:
            self._queue_undoing()
        self._flush(deadline_after(0))


class _Deliverer:
    """What the shared reader calls. It does not hold the client, so that an unclosed one is found by its finalizer."""

    def __init__(self, name: str, codec: core.Codec) -> None:
        self._name = name
        self._codec = codec

    def __call__(self, data: bytes) -> None:
        if not data:
            raise connection_lost(self._name)
        for _ in self._codec.feed(data):
            pass


class Transaction(_Nodes):
    """Several reads and writes that happen at once, or not at all. Made by `XenStore.transaction`.

    Its calls raise as those of `XenStore`, and `InterfaceClosed` after it has ended (`closed`). Threads: any call from
    any thread.
    """

    def __init__(self, store: XenStore, transaction_id: int) -> None:
        self._store = store
        self._transaction_id = transaction_id
        self.closed = False

    def commit(self, *, timeout: float | None = None) -> None:
        """Make it so; `XenStoreError` with EAGAIN where another changed what this read or wrote."""
        self._end(commit=True, timeout=timeout)

    def abort(self, *, timeout: float | None = None) -> None:
        """Drop it. On one that has ended it does nothing."""
        if not self.closed:
            self._end(commit=False, timeout=timeout)

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if self.closed:
            return
        if kind is None:
            self.commit()
        else:
            self.closed = True
            self._store._dismiss(core.ending(self._transaction_id, commit=False))

    def __repr__(self) -> str:
        return f"<Transaction {self._transaction_id}{', ended' if self.closed else ''}>"

    def _end(self, *, commit: bool, timeout: float | None) -> None:
        self._check_open()
        self.closed = True
        self._store._run(core.end_transaction(self._transaction_id, commit=commit), timeout)

    def _run(self, steps: core.Steps[T], timeout: float | None) -> T:
        self._check_open()
        return self._store._run(steps, timeout)

    def _check_open(self) -> None:
        if self.closed:
            raise InterfaceClosed("this xenstore transaction has ended: start another")


class Watch:
    """A node, and everything below it, whose changes are told. Made by `XenStore.watch`.

    An event is the path that changed, relative where the watch's is; it says "look again": two of one path may be
    one, some may be spurious, and one of the watch's own path may stand for any below it. ``for path in watch`` takes
    them one by one, without end. `path` is the watch's own, `closed` whether it is closed.

    Threads: any call from any thread; each event goes to one.
    """

    def __init__(self, store: XenStore, events: core.Events) -> None:
        self._store = store
        self._events = events
        self.path = events.path
        self.closed = False

    def wait(self, timeout: float | None = None) -> str:
        """Take the next event's path; `TimeoutError` after `timeout` seconds, `InterfaceClosed`."""
        taken: list[str] = []

        def take() -> bool:
            if self.closed:
                raise InterfaceClosed(f"the watch on {self.path} is closed")
            if self._events:
                taken.append(self._events.take())
            return bool(taken)

        if not self._store._reader.wait_until(take, deadline_after(timeout)):
            raise TimeoutError(f"nothing changed at {self.path} in xenstore in {timeout} seconds")
        return taken[0]

    def close(self) -> None:
        """Stop being told; whoever waits gets `InterfaceClosed`. A second time does nothing."""
        if not self.closed:
            self.closed = True
            self._store._end_watch(self._events)

    def __iter__(self) -> Iterator[str]:
        """The events' paths, without end, each waited for."""
        while True:
            yield self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Watch on {self.path}{', closed' if self.closed else ''}>"
