"""A lock that finalizers can deal with: `FinalizerLock`.

Garbage collection runs finalizers inside any call, also inside one that holds the lock which the finalizer needs:
waiting for it there is a deadlock, and going on without it corruption. Here the finalizer leaves word, and whoever has
the lock does it on leaving. Called by `GrantTable`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

__all__ = ["FinalizerLock"]


class FinalizerLock:
    """A lock for `with`, and functions to call when it is let go of.

    `plain` is the lock alone, faster: whoever takes that looks at `late` afterwards. Threads: any.
    """

    __slots__ = ("_callers", "late", "plain")

    def __init__(self) -> None:
        self.plain = threading.Lock()
        self.late: deque[Callable[[], None]] = deque()
        self._callers: set[int] = set()  # the threads that call what was left

    def __enter__(self) -> None:
        self.plain.acquire()

    def __exit__(self, *exc: object) -> None:
        self.plain.release()
        if self.late:
            self.call_late()

    def call(self, function: Callable[[], None]) -> None:
        """Call `function`, which may take the lock: now, or in the thread that has the lock, when it lets go of it."""
        self.late.append(function)
        self.call_late()

    def call_late(self) -> None:
        """Call what was left, one by one, unless somebody has the lock, perhaps a caller of ours: that one looks again.

        What is left meanwhile by the functions themselves comes after them, not within.
        """
        thread = threading.get_ident()
        while self.late and thread not in self._callers and self.plain.acquire(blocking=False):
            self.plain.release()  # this thread has it not
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
