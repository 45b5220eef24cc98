"""What a server of a disk shows of itself: a line that stays on a terminal, or a line of JSON for each look.

Called by `serve`; the lines are made of `Counters` alone, so that tests need no terminal.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from xengrant.cli import output
from xengrant.pv.block import Counters

__all__ = ["Live", "Look", "as_fields", "as_line"]


@dataclass(frozen=True, slots=True)
class Look:
    """What there was to see at a time (of a clock in seconds): the device's state, its rings, and the counters."""

    at: float
    state: str
    rings: int
    counters: Counters


def as_fields(look: Look, before: Look) -> dict[str, Any]:
    """The counters since the beginning, and the seconds since the look before."""
    return {
        "state": look.state,
        "rings": look.rings,
        "seconds": round(look.at - before.at, 3),
        **look.counters.as_dict(),
    }


def as_line(look: Look, before: Look) -> str:
    """Rates since the look before; depth, errors and bytes as they are."""
    seconds = max(look.at - before.at, 1e-6)
    now, then = look.counters, before.counters
    parts = [
        f"{look.state}, {look.rings} ring{'s' * (look.rings != 1)}",
        f"{(now.requests - then.requests) / seconds:.0f} requests/s",
        f"read {_rate(now.read_bytes - then.read_bytes, seconds)}",
        f"write {_rate(now.written_bytes - then.written_bytes, seconds)}",
        f"depth {now.depth}",
        f"{now.errors} error{'s' * (now.errors != 1)}",
    ]
    return "  ".join(parts)


def _rate(count: int, seconds: float) -> str:
    return f"{count / seconds / 1e6:.1f} MB/s"


class Live:
    """Shows looks: over one another on a terminal, else as JSON. `json` has the latter on a terminal, too."""

    def __init__(self, look: Callable[[], Look], prefix: str, *, json: bool) -> None:
        self._look = look
        self._prefix = prefix
        self._json = json or not sys.stdout.isatty()
        self._last = look()
        self._width = 0  # of what is on the terminal now

    @property
    def json(self) -> bool:
        return self._json

    def event(self, event: str, text: str, **fields: Any) -> None:
        """Something that happens once: `text` for people, on stderr."""
        self._clear()
        if self._json:
            output.emit_json(event=event, time=round(time.time(), 3), **fields)
        output.say(text)

    def show(self) -> None:
        look = self._look()
        if self._json:
            output.emit_json(event="stats", time=round(time.time(), 3), **as_fields(look, self._last))
        else:
            width = shutil.get_terminal_size().columns
            line = f"{self._prefix}: {as_line(look, self._last)}"[: width - 1]
            output.emit_text(f"\r{line.ljust(self._width)}")
            self._width = len(line)
        self._last = look

    def end(self, reason: str) -> None:
        """The last line: what there was in all."""
        counters = self._look().counters
        text = (
            f"stopped: {reason}; {counters.requests} requests, {counters.read_bytes} bytes read, "
            f"{counters.written_bytes} written, {counters.errors} errors"
        )
        self.event("stopped", text, reason=reason, **counters.as_dict())

    def _clear(self) -> None:
        if self._width:
            output.emit_text(f"\r{' ' * self._width}\r")
            self._width = 0
