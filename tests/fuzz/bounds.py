"""What no input may do, whatever it is: leak descriptors, threads or memory, or have something fail unseen.

`Bounds` counts what this process holds; `complaints` collects what no caller gets to see: errors of finalizers, of
threads and of callbacks, and what the library or asyncio log with a traceback.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from .target import eventually

__all__ = ["Bounds", "complaints"]

_SPARE = 4  # descriptors and threads that may be under way at any moment
_SECONDS = 20.0  # that what is being given back may take
_GROWTH = 64 << 20  # bytes: caches and the inputs that are kept


class Bounds:
    """This process's descriptors, threads and memory, none of which grows from the first `check` on."""

    def __init__(self) -> None:
        self._first: tuple[int, int, int] | None = None

    def check(self) -> None:
        """`AssertionError` where there is more of something than at the first check."""
        gc.collect()
        if self._first is None:
            self._first = _held()
            return
        descriptors, threads, memory = self._first
        eventually(
            lambda: _held()[0] <= descriptors + _SPARE,
            lambda: f"{_held()[0]} descriptors, once {descriptors}",
            _SECONDS,
        )
        eventually(lambda: _held()[1] <= threads + _SPARE, lambda: f"{_held()[1]} threads, once {threads}", _SECONDS)
        now = _held()[2]
        assert now <= memory + _GROWTH, f"{now >> 20} MiB of memory, once {memory >> 20}"


def _held() -> tuple[int, int, int]:
    resident = int(Path("/proc/self/statm").read_text().split()[1])
    return len(os.listdir("/proc/self/fd")), threading.active_count(), resident * os.sysconf("SC_PAGE_SIZE")


class _Logged(logging.Handler):
    def __init__(self, told: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._told = told

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:  # else it is about what a peer did, as it should be
            self._told.append(logging.Formatter().format(record))


@contextlib.contextmanager
def complaints() -> Iterator[list[str]]:
    """A list that grows as something fails of which no caller is told."""
    told: list[str] = []

    def tell(what: object, error: BaseException | None, trace: TracebackType | None) -> None:
        told.append(f"{what}:\n" + "".join(traceback.format_exception(None, error, trace)))

    before = sys.unraisablehook, threading.excepthook
    sys.unraisablehook = lambda args: tell(args.err_msg or f"in {args.object!r}", args.exc_value, args.exc_traceback)
    threading.excepthook = lambda args: tell(f"in {args.thread}", args.exc_value, args.exc_traceback)
    handler = _Logged(told)
    logging.getLogger().addHandler(handler)
    try:
        yield told
    finally:
        logging.getLogger().removeHandler(handler)
        sys.unraisablehook, threading.excepthook = before
