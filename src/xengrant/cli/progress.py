"""How far long work is: on a terminal, a line on stderr with a bar, the rate and the time left, which goes in the end.

rich draws the bar where it is installed; otherwise, and where NO_COLOR is set, it is plain text without escapes. On
what is no terminal there is nothing. Called by whatever moves many bytes or runs many cases.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

from xengrant.cli import output
from xengrant.cli.dump import printable

__all__ = ["Progress", "file_size", "pace", "progress", "size"]

_EVERY = 0.1  # seconds from one drawing to the next
_BAR = 20


class Progress(ABC):
    """Work under way: `add` says that some more of it is done. Threads: any."""

    @abstractmethod
    def add(self, amount: int) -> None:
        """So much more is done."""

    @abstractmethod
    def clear(self) -> None:
        """Take the line away, for others to print; the next `add` brings it back."""


@contextlib.contextmanager
def progress(what: str, total: int | None, unit: Callable[[float], str]) -> Iterator[Progress]:
    """Show how far `what` is for as long as the block runs; `unit` writes amounts. `total` is None if nobody knows."""
    shown: Progress = _Nothing()
    if sys.stderr.isatty():
        made = _Rich if output.rich_on(sys.stderr) else _Plain
        shown = made(printable(what), total, unit)
        shown.add(0)
    try:
        yield shown
    finally:
        shown.clear()


def size(amount: float) -> str:
    """Bytes as people read them: ``12.3 MB``."""
    for prefix, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if amount >= factor:
            return f"{amount / factor:.1f} {prefix}B"
    return f"{amount:.0f} B"


def file_size(descriptor: int) -> int | None:
    """How many bytes are still to be read there, where it is a file; else None."""
    with contextlib.suppress(OSError):
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode):
            return max(status.st_size - os.lseek(descriptor, 0, os.SEEK_CUR), 0)
    return None


def pace(done: int, total: int | None, seconds: float, unit: Callable[[float], str]) -> str:
    """``1.0 MB of 4.0 MB  0.5 MB/s  0:06 left``: how far, how fast in the mean, and for how long still at that rate."""
    rate = done / seconds if seconds > 0 else 0.0
    words = [unit(done) if total is None else f"{unit(done)} of {unit(total)}"]
    if rate:
        words.append(f"{unit(rate)}/s")
    if rate and total is not None:
        minutes, rest = divmod(round(max(total - done, 0) / rate), 60)
        hours, minutes = divmod(minutes, 60)
        words.append(f"{hours}:{minutes:02}:{rest:02} left" if hours else f"{minutes}:{rest:02} left")
    return "  ".join(words)


class _Nothing(Progress):
    def add(self, amount: int) -> None:
        pass

    def clear(self) -> None:
        pass


class _Line(Progress):
    """What both ways to draw have in common: the count, and when it is time to draw."""

    def __init__(self, what: str, total: int | None, unit: Callable[[float], str]) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._done = 0
        self._started = time.monotonic()
        self._drawn = self._started - _EVERY
        self._lock = threading.Lock()

    def add(self, amount: int) -> None:
        with self._lock:
            self._done += amount
            now = time.monotonic()
            if now - self._drawn >= _EVERY or self._done == self._total:
                self._drawn = now if self._done else self._drawn
                self._draw(pace(self._done, self._total, now - self._started, self._unit))

    def clear(self) -> None:
        with self._lock:
            self._erase()
            self._drawn = time.monotonic() - _EVERY

    @abstractmethod
    def _draw(self, text: str) -> None: ...

    @abstractmethod
    def _erase(self) -> None: ...


class _Plain(_Line):
    _width = 0  # of what is on the terminal now

    def _draw(self, text: str) -> None:
        if self._total:
            filled = min(_BAR, _BAR * self._done // self._total)
            text = f"[{'#' * filled}{'.' * (_BAR - filled)}] {text}"
        line = f"{self._what} {text}"[: _columns() - 1]
        output.say_text(f"\r{line.ljust(self._width)}")
        self._width = len(line)

    def _erase(self) -> None:
        if self._width:
            output.say_text(f"\r{' ' * self._width}\r")
            self._width = 0


def _columns() -> int:
    with contextlib.suppress(OSError):
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    return 80


class _Rich(_Line):
    _shown: Any = None  # rich's own, while it draws

    def _draw(self, text: str) -> None:
        if self._shown is None:
            self._shown = self._begun()
        self._shown.update(self._task, completed=self._done, pace=text, refresh=True)

    def _begun(self) -> Any:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Drawn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(_BAR),
            TextColumn("{task.fields[pace]}", markup=False),
        )
        # stdout is for data, wherever it goes: not for rich to take. No thread of its own: `selftest` forks.
        shown = Drawn(
            *columns,
            console=Console(stderr=True),
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = shown.add_task(self._what, total=self._total, pace="")
        shown.start()
        return shown

    def _erase(self) -> None:
        if self._shown is not None:
            self._shown.stop()
            self._shown = None
