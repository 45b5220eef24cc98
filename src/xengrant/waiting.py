"""Several threads, one descriptor: whoever waits first reads for all.

`SharedReader` is under every blocking wait on a device that is read: the xenstore client and the event channels. It
knows nothing of what it reads.

How to use it:

    reader = SharedReader(device, deliver)      # deliver(data): sort what was read into your own state
    with reader.lock: ...                       # the lock that deliver and every predicate run under
    if not reader.wait_until(predicate, deadline): raise TimeoutError(...)
    reader.wake()                               # you changed what predicates look at without deliver
    reader.wait_writable(deadline)              # device.write raised BlockingIOError
    reader.close()                              # every waiter raises InterfaceClosed; then close the device
"""

from __future__ import annotations

import contextlib
import copy
import errno
import os
import select
import threading
import time
import weakref
from collections.abc import Callable
from itertools import starmap
from typing import Protocol

from xengrant.descriptors import needing_descriptors
from xengrant.errors import GrantError, InterfaceClosed, InterfaceUnavailable

__all__ = ["SharedReader", "deadline_after", "pause_until", "seconds_until"]

_LONGEST_PAUSE = 1.0  # seconds


def deadline_after(timeout: float | None) -> float | None:
    """`timeout` seconds from now on the clock that `SharedReader` uses; None means for ever."""
    try:
        return None if timeout is None else time.monotonic() + timeout
    except TypeError:
        raise TypeError(f"timeout is a number of seconds, or None, not {timeout!r}") from None


class _Readable(Protocol):
    name: str
    closed: bool

    def read(self, size: int) -> bytes: ...
    def fileno(self) -> int: ...


class SharedReader:
    """A descriptor that one of the waiting threads reads, for itself and for the others (leader and followers).

    `device.read(size)` never waits: it raises BlockingIOError where there is nothing. `deliver(data)` gets what was
    read, in order, one call at a time, under `lock`; data is never empty, except that b"" once says that the peer
    has closed. What `deliver` raises ends the reader, and so does what `device.read` raises (an OSError as
    InterfaceUnavailable): every wait from then on raises a copy of it.

    Threads: everything may be called from any thread. `deliver` and predicates must not wait. A signal handler may
    call `close` and `wake`, but must not wait on the reader that its own thread is waiting on (RuntimeError).
    """

    lock: threading.RLock

    def __init__(self, device: _Readable, deliver: Callable[[bytes], None], *, size: int = 4096) -> None:
        self._device = device
        self._deliver = deliver
        self._size = size
        self._failure: Exception | None = None
        self._closed = False
        self._leader: int | None = None  # the thread that reads
        self._pollers: set[int] = set()  # threads inside poll(), whose descriptors must stay open
        self.lock = threading.RLock()
        self._changed = threading.Condition(self.lock)
        self._descriptor = device.fileno()
        with needing_descriptors(), contextlib.ExitStack() as undo:
            self._waker = _new_eventfd()  # for the leader, who takes back what wake() wrote
            undo.callback(os.close, self._waker)
            self._closer = _new_eventfd()  # for the other pollers
            undo.pop_all()
        self._close_wakers = weakref.finalize(self, _close_descriptors, self._waker, self._closer)
        self._close_wakers.atexit = False  # what else is closed then may still wake somebody
        self._leaders_poller = self._new_poller(select.POLLIN, self._waker)

    def wait_until(self, predicate: Callable[[], bool], deadline: float | None) -> bool:
        """Wait until `predicate()` holds; False when `deadline` (time.monotonic(), None for ever) comes first.

        What is there already is read even where the deadline has passed. A predicate that holds wins over the
        deadline, a failure and `close`. To be called without holding `lock`.
        """
        self._check_device()
        with self._changed:
            while not predicate():
                self._check()
                if self._leader is None:
                    self._lead(self._leaders_poller, deadline)
                elif self._leader == threading.get_ident():
                    raise RuntimeError(f"waiting for {self._device.name} again inside a wait of the same thread")
                else:
                    self._changed.wait(pause_until(deadline))
                if _has_passed(deadline):
                    return predicate()
            return True

    def wait_writable(self, deadline: float | None) -> bool:
        """Wait until the descriptor takes bytes; False when the deadline comes first.

        Reads meanwhile where no other thread does: a peer may read nothing until its own output is taken.
        """
        self._check_device()
        with self._changed:
            while True:
                self._check()
                if self._leader is None:
                    ready = self._lead(self._new_poller(select.POLLIN | select.POLLOUT, self._waker), deadline)
                else:
                    polled = self._poll(self._new_poller(select.POLLOUT, self._closer), deadline)
                    ready = polled.get(self._descriptor, 0)
                if ready & ~select.POLLIN:
                    return True
                if _has_passed(deadline):
                    return False

    def wake(self) -> None:
        """Have every waiter look at its predicate again."""
        with self._changed:
            self._changed.notify_all()
            if self._leader is not None and not self._closed:
                os.eventfd_write(self._waker, 1)

    def close(self) -> None:
        """Fail every wait, now and later, with InterfaceClosed; on return no thread uses the descriptor.

        The device stays open: it is the caller's to close afterwards. A second time does nothing.
        """
        with self._changed:
            if self._closed:
                return
            self._closed = True
            os.eventfd_write(self._waker, 1)
            os.eventfd_write(self._closer, 1)
            self._changed.notify_all()
            while self._pollers - {threading.get_ident()}:
                self._changed.wait()
            if not self._pollers:
                self._close_wakers()

    def _lead(self, poller: select.poll, deadline: float | None) -> int:
        """Be the one who reads, once; the descriptor's poll() events, 0 for the deadline or a wake."""
        self._leader = threading.get_ident()
        try:
            polled = self._poll(poller, deadline)
            if self._waker in polled and not self._closed:
                os.eventfd_read(self._waker)
        finally:
            self._leader = None
            self._changed.notify_all()  # with news, or for another to lead
        ready = polled.get(self._descriptor, 0)
        if ready and not self._closed:
            self._read(ready)
        return ready

    def _poll(self, poller: select.poll, deadline: float | None) -> dict[int, int]:
        """poll() without the lock: the events of each descriptor that has some."""
        seconds = seconds_until(deadline)
        thread = threading.get_ident()
        released: list[None] = []
        try:
            self._pollers.add(thread)
            released.extend(starmap(self.lock.release, ((),)))  # called and noted in one step, whatever signals come
            polled = dict(poller.poll(None if seconds is None else seconds * 1000))
        finally:
            try:
                if released:
                    _acquire(self.lock)
            finally:
                self._pollers.discard(thread)
                if self._closed:
                    self._changed.notify_all()  # close() waits for the last of us
                    if not self._pollers:
                        self._close_wakers()
        return polled

    def _read(self, ready: int) -> None:
        try:
            data = self._device.read(self._size)
        except BlockingIOError:
            if not ready & (select.POLLIN | select.POLLOUT):  # an error that read() does not tell
                self._fail(InterfaceUnavailable(errno.EIO, f"{self._device.name}: the descriptor polls as broken"))
            return
        except OSError as error:
            if not isinstance(error, GrantError):
                text = f"{self._device.name}: {error.strerror or error}"
                error = InterfaceUnavailable(error.errno or errno.EIO, text)
            self._fail(error)
            return
        except Exception as failure:
            self._fail(failure)
            return
        try:
            self._deliver(data)
        except Exception as failure:
            self._fail(failure)
        else:
            if not data:
                self._fail(InterfaceUnavailable(errno.EPIPE, f"{self._device.name}: the other side closed it"))

    def _fail(self, failure: Exception) -> None:
        if self._failure is None:
            self._failure = failure
        self._changed.notify_all()

    def _check(self) -> None:
        self._check_device()
        if self._closed:
            raise InterfaceClosed(f"{self._device.name} is closed")
        if self._failure is not None:
            raise copy.copy(self._failure) from self._failure

    def _check_device(self) -> None:
        """Before the lock is touched: in a forked child another thread's lock is held for ever."""
        if self._device.closed:
            raise InterfaceClosed(f"{self._device.name} is closed")

    def _new_poller(self, events: int, waker: int) -> select.poll:
        poller = select.poll()
        poller.register(self._descriptor, events)
        poller.register(waker, select.POLLIN)
        return poller


def seconds_until(deadline: float | None) -> float | None:
    """The seconds left until `deadline`, at least 0; None for ever."""
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def pause_until(deadline: float | None) -> float:
    """How long to wait for a condition before looking again: a child that a signal handler forks meanwhile has nobody
    who would notify it.
    """
    seconds = seconds_until(deadline)
    return _LONGEST_PAUSE if seconds is None else min(seconds, _LONGEST_PAUSE)


def _acquire(lock: threading.RLock) -> None:
    """Acquire it even where a signal handler raises meanwhile, and raise that afterwards."""
    acquired: list[bool] = []
    raised: BaseException | None = None
    while not acquired:
        try:
            acquired.extend(map(lock.acquire, (True,)))
        except BaseException as error:
            raised = error
    if raised is not None:
        raise raised


def _has_passed(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline


def _new_eventfd() -> int:
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


def _close_descriptors(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
