"""A lock that finalizers and signal handlers can deal with: `FinalizerLock`, and `locked` for methods that take it.

Garbage collection runs finalizers inside any call, also inside one that holds the lock which the finalizer needs:
waiting for it there is a deadlock, and going on without it corruption. Here the finalizer leaves word, and whoever has
the lock does it on leaving. A signal handler that raises leaves the lock free: `with` of the plain lock takes it and
lets go of it between two steps of Python's own, which a method `__enter__` of ours would not. Called by `GrantTable`.
"""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from xengrant.errors import InterfaceClosed

__all__ = ["FinalizerLock", "locked"]


class FinalizerLock:
    """`plain`, the lock, and what to call when it is let go of: whoever took it looks at `late`. Threads: any."""

    __slots__ = ("_callers", "late", "plain")

    def __init__(self) -> None:
        self.plain: _Lock = threading.Lock()
        self.late: deque[Callable[[], None]] = deque()
        self._callers: set[int] = set()  # the threads that call what was left

    def abandon(self) -> None:
        """In a forked child: let nobody take it, nor wait for it: `InterfaceClosed`."""
        self.plain = _ParentsLock()

    def call(self, function: Callable[[], None]) -> None:
        """Call `function`, which may take the lock: now, or in the thread that has the lock, when it lets go of it."""
        self.late.append(function)
        self.call_late()

    def call_late(self) -> None:
        """Call what was left, one by one, unless somebody has the lock, perhaps a caller of ours: that one looks again.

        What is left meanwhile by the functions themselves comes after them, not within.
        """
        thread = threading.get_ident()
        while self.late and thread not in self._callers and not self.plain.locked():
            self._callers.add(thread)
            try:
                while True:
                    try:
                        function = self.late.popleft()
                    except IndexError:  # others are at it too
                        break
                    function()
            finally:
                self._callers.discard(thread)


class _Lock(AbstractContextManager[Any], Protocol):
    def locked(self) -> bool: ...


class _ParentsLock:
    def __enter__(self) -> None:
        raise InterfaceClosed("this grant table is the parent process's: connect() again in this one")

    def __exit__(self, *exc: object) -> None:
        raise AssertionError("nobody has this lock")

    def locked(self) -> bool:
        return True


class _HasLock(Protocol):
    _lock: FinalizerLock


S = TypeVar("S", bound=_HasLock)
P = ParamSpec("P")
T = TypeVar("T")


def locked(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """Have a method called with its object's `_lock` held."""

    @functools.wraps(method)
    def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        lock = self._lock
        try:
            with lock.plain:
                return method(self, *args, **kwargs)
        finally:
            if lock.late:
                lock.call_late()

    return call
