"""A disk in memory whose first write waits until it is let go on: `Slow`."""

from __future__ import annotations

import errno
import threading
from collections.abc import Sequence

from xengrant.pv.block.disks import Memory

from .ends import SOON


class Slow(Memory):
    """`begun` is set by the first write, which waits for `goes_on`; `written` is where they were done, in order.

    With `fails_at_once`, several pages are refused in one write.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.begun, self.goes_on = threading.Event(), threading.Event()
        self.written: list[int] = []
        self.fails_at_once = False

    def pwritev(self, buffers: Sequence[memoryview], offset: int, /) -> None:
        if self.fails_at_once and sum(map(len, buffers)) > 4096:
            raise OSError(errno.EIO, "too much at once")
        if not self.begun.is_set():
            self.begun.set()
            self.goes_on.wait(SOON)
        self.written.append(offset)
        super().pwritev(buffers, offset)
