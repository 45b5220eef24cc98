"""Which lines of the code under test inputs have reached: what tells the engine that an input is worth keeping.

By `sys.settrace`, in every thread that begins while it is on. A function is looked at on its first calls and on every
few after these, and no more once each of its lines was reached, so the cost sinks as the run goes on.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import xengrant

__all__ = ["Reached"]

_SOURCE = Path(xengrant.__file__).parent
_ALWAYS = 200  # calls of a function that are looked at; then every _SOMETIMES-th
_SOMETIMES = 8

_Trace = Callable[[FrameType, str, Any], Any]


class Reached:
    """Lines, counted while it is on; `with` turns it on and off."""

    def __init__(self, guides: Sequence[str]) -> None:
        self.lines = 0
        self._prefixes = tuple(str(_SOURCE / guide) for guide in guides)
        self._functions: dict[CodeType, _Function | None] = {}

    def __enter__(self) -> Reached:
        if self._prefixes:
            threading.settrace(self._call)
            sys.settrace(self._call)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._prefixes:
            sys.settrace(None)
            threading.settrace(None)

    def _call(self, frame: FrameType, event: str, arg: Any) -> _Trace | None:
        code = frame.f_code
        try:
            function = self._functions[code]
        except KeyError:
            ours = code.co_filename.startswith(self._prefixes)
            function = self._functions[code] = _Function(self, code) if ours else None
        return None if function is None else function.called()


class _Function:
    def __init__(self, reached: Reached, code: CodeType) -> None:
        self._reached = reached
        self._missing = {line for _, _, line in code.co_lines() if line is not None}
        self._calls = 0

    def called(self) -> _Trace | None:
        if not self._missing:
            return None
        self._calls += 1
        return self._line if self._calls < _ALWAYS or self._calls % _SOMETIMES == 0 else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> _Trace:
        if frame.f_lineno in self._missing:
            self._missing.discard(frame.f_lineno)
            self._reached.lines += 1
        return self._line
