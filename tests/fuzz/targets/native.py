"""The C extension with arguments that no caller gives: whatever comes, it is an exception, and never a crash.

Objects lie in eight slots, made by one step and used by others. An argument is a number, a text (bytes), null, a truth
value, or a list: ``["@", slot]``, ``["f", "1e400"]`` a float, ``["t", ...]`` a tuple, ``["s", "name"]`` a str.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from xengrant import _native
from xengrant.errors import GrantError

from ..target import NUMBERS, Step, Steps, Target, data, number, text

__all__ = ["Native"]

_SLOTS = 8
_PAGE = 4096
_SIZES = [0, 1, 63, 64, 512, 1024, 4096, 8192]
_MOST = 1 << 20  # bytes of what is made
_SOON = 0.002  # seconds
_WORDS = ["load8", "load16", "load32", "store8", "store16", "store32", "fetch_or8", "fetch_or32", "fetch_and8"]
_WORDS += ["fetch_and32", "compare_exchange16", "compare_exchange32", "copy_entries", "decode_grants", "tally_grants"]
_TYPES = [
    "bytearray",
    "bytes",
    "view",
    "mapping",
    "descriptor",
    "doorbell",
    "reader",
    "writer",
    "stream",
    "blocks",
    "held",
    "turn",
]
# What may wait, and which of its arguments says how long.
_WAITS = {
    **{(kind, "wait"): 1 for kind in ("RingReader", "RingWriter", "Doorbell")},
    **{("Stream", name): 1 for name in ("send", "recv", "write", "read", "readinto", "fill")},
    ("RingReader", "receive"): 2,
    ("RingReader", "receive_into"): 3,
    ("RingWriter", "send"): 3,
}
_METHODS = {
    "mapping": ["close", "close_on_release", "page", "__getitem__", "__setitem__", "__len__", "__iter__", "__exit__"],
    "descriptor": ["share", "map", "hold", "drop", "close", "abandon"],
    "doorbell": ["ring", "wait", "wake", "stop", "close"],
    "reader": [
        "read",
        "readinto",
        "peek",
        "consume",
        "receive",
        "receive_into",
        "bind",
        "wait",
        "turn",
    ],
    "writer": ["write", "reserve", "commit", "send", "bind", "wait", "turn"],
    "turn": ["__enter__", "__exit__"],
    "stream": ["send", "recv", "write", "read", "readinto", "fill"],
    "blocks": ["keep", "forget", "serve"],
    "held": ["close", "__enter__", "__exit__"],
    "view": ["release", "cast", "tobytes", "__getitem__", "__setitem__"],
    "bytearray": ["clear", "extend", "pop"],
    "bytes": ["hex"],
}
_ALL_METHODS = {method for methods in _METHODS.values() for method in methods}
_ALLOWED: tuple[type[Exception], ...] = (GrantError, ArithmeticError, AttributeError, BufferError, LookupError)
_ALLOWED += (MemoryError, OSError, RuntimeError, TypeError, ValueError, StopIteration)


def _argument(chance: Random) -> Any:
    kind = chance.randrange(12)
    if kind < 4:
        return ["@", chance.randrange(_SLOTS)]
    if kind < 8:
        return chance.choice((number(chance), -number(chance), chance.choice(_SIZES)))
    others = [None, True, text(chance.randbytes(chance.randrange(20))), ["s", "x"], ["f", chance.choice(_FLOATS)]]
    return chance.choice((*others, ["t", *(chance.choice((*NUMBERS, 1, 2)) for _ in range(chance.randrange(5)))]))


_FLOATS = ["0", "-1", "nan", "inf", "-inf", "1e400", "0.001", "1e-320"]


class Native(Target):
    name = "native"
    about = "the C extension's functions and objects with any arguments, in a process that must not crash"
    isolated = True
    short = 1000

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        with contextlib.ExitStack() as held, warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # of what a step made and forgot
            self._file = os.memfd_create("xengrant-fuzz", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            held.callback(os.close, self._file)
            os.truncate(self._file, 16 * _PAGE)
            fcntl.fcntl(self._file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            self._null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            held.callback(os.close, self._null)
            yield

    def first(self, chance: Random) -> Steps:
        steps: Steps = [
            ["new", 0, "bytearray", [chance.choice(_SIZES)]],
            ["new", 1, "mapping", [[[0, 0, _PAGE * chance.randrange(1, 5)]], True]],
            ["new", 2, "descriptor", [chance.randrange(3)]],
            ["new", 3, "doorbell", [["@", 2], -1, None]],
            ["new", 4, "reader", [["@", 0], 0, 4, ["@", 1], 0, chance.choice((1024, 4096))]],
            ["new", 5, "writer", [["@", 0], 8, 12, ["@", 1], 0, chance.choice((1024, 4096))]],
            ["new", 6, "stream", [["@", 4], ["@", 5]]],
            ["new", 7, "blocks", [["@", 1], 32, 112, 8, ["@", 3], ["@", 2]]],
            ["call", 4, "bind", [["@", 3], 20, 22, 23, 0]],
            ["call", 5, "bind", [["@", 3], 20, 22, 23, 0]],
        ]
        return steps[: chance.randrange(len(steps) + 1)]

    def step(self, chance: Random) -> Step:
        slot = chance.randrange(_SLOTS)
        kind = chance.randrange(10)
        arguments = [_argument(chance) for _ in range(chance.choice((0, 1, 1, 2, 2, 3, 4, 5, 6)))]
        if kind < 2:
            made = chance.choice(_TYPES)
            if made == "mapping":
                parts = [
                    [
                        chance.randrange(4),
                        chance.choice((0, _PAGE, number(chance))),
                        chance.choice((_PAGE, number(chance))),
                    ]
                ]
                return ["new", slot, made, [parts * chance.randrange(4), True]]
            return ["new", slot, made, arguments]
        if kind < 4:
            name = chance.choice(_WORDS)
            buffer = ["@", chance.randrange(_SLOTS)]
            return ["word", name, [buffer, chance.choice((*_SIZES, number(chance), -1)), *arguments[:2]]]
        if kind == 4:
            return ["read", slot, chance.choice(("exports", "address", "ready", "size", "closed", "counts", "_names"))]
        if kind == 5:
            return ["poke", slot, chance.choice((0, 4, 8, 12, chance.randrange(_PAGE))), number(chance, 0xFFFFFFFF)]
        if kind == 6:
            return ["forget", slot]
        return ["call", slot, chance.choice(sorted(_ALL_METHODS)), arguments]

    def run(self, steps: Steps) -> None:
        slots: list[Any] = [None] * _SLOTS
        kept: list[Any] = []  # what a method gave: views, ranges, which keep things alive
        for kind, at, *rest in steps:
            with contextlib.suppress(*_ALLOWED):
                self._do(slots, kept, kind, at, rest)
            del kept[:-4]

    def _do(self, slots: list[Any], kept: list[Any], kind: str, at: Any, rest: list[Any]) -> None:
        if kind == "word":
            if at in _WORDS:
                kept.append(getattr(_native, at)(*(_value(argument, slots) for argument in rest[0])))
            return
        at %= _SLOTS
        if kind == "new":
            slots[at] = self._new(rest[0], rest[1], slots)
        elif kind == "call":
            kept.append(_call(slots[at], rest[0], [_value(argument, slots) for argument in rest[1]], slots))
        elif kind == "read":
            kept.append(getattr(slots[at], rest[0]))
        elif kind == "poke":
            _native.store32(slots[at], rest[0] & ~3, rest[1] & 0xFFFFFFFF)
        elif kind == "forget":
            slots[at] = None

    def _new(self, kind: str, arguments: list[Any], slots: list[Any]) -> Any:
        if kind == "mapping":
            parts, writable = arguments
            return _native.Mapping([self._part(*part) for part in parts], writable=bool(writable))
        if kind == "descriptor":
            return _native.Descriptor(self._descriptor(arguments[0] if arguments else 0))
        values = [_value(argument, slots) for argument in arguments]
        makers: dict[str, Callable[..., Any]] = {
            "bytearray": lambda size=0, *_: bytearray(min(abs(size), _MOST)),
            "bytes": lambda size=0, *_: bytes(min(abs(size), _MOST)),
            "view": lambda buffer=b"", first=0, last=64, *_: memoryview(buffer)[first:last],
            "doorbell": _native.Doorbell,
            "reader": _native.RingReader,
            "writer": _native.RingWriter,
            "stream": _native.Stream,
            "blocks": _native.BlockServer,
            "held": _native.Held,
            "turn": lambda ring, timeout=0, *_: ring.turn(timeout),
        }
        return makers[kind](*values) if kind in makers else None

    def _part(self, which: int, offset: int, length: int) -> tuple[int, int, int]:
        """A range of a descriptor. None lies beyond the end of its file: SIGBUS there is the caller's own doing."""
        fd = (self._file, self._file, self._null, -1)[which % 4]
        if fd == self._file and offset >= 0 and length >= 0 and offset + length > 16 * _PAGE:
            offset, length = offset % 8 * _PAGE, length % 8 * _PAGE
        return fd, offset, length

    def _descriptor(self, which: int) -> int:
        """One of its own, which the object closes."""
        if which % 3 == 0:
            ours, theirs = socket.socketpair()
            theirs.close()
            return ours.detach()
        return os.dup((self._file, self._null)[which % 2])


def _value(argument: Any, slots: list[Any]) -> Any:
    if isinstance(argument, str):
        return data(argument)
    if not isinstance(argument, list):
        return argument
    kind, *rest = argument or [""]
    if kind == "@":
        return slots[rest[0] % _SLOTS]
    if kind == "f":
        return float(rest[0])
    return str(rest[0]) if kind == "s" else tuple(rest)


def _call(called: Any, name: str, arguments: list[Any], slots: list[Any]) -> Any:
    """Call it, with whatever says how long it may wait cut to a moment."""
    kind = type(called).__name__
    if name not in _ALL_METHODS:
        return None
    if name == "hold":  # what is held is dropped: else its descriptor would never be closed
        called.hold()
        return called.drop()
    if name == "serve":
        # Where there is nothing to do it waits, unless the number of wakes is another one already.
        bell = next((slot for slot in slots if isinstance(slot, _native.Doorbell)), None)
        if bell is None or len(arguments) < 2:
            return None
        arguments[1] = bell.wakes + 1 & 0xFFFFFFFF
    at = _WAITS.get((kind, name))
    if at is not None:
        arguments = [*arguments[: at + 1], *[0] * (at - len(arguments))]
        arguments[at:] = [_short(arguments[at] if len(arguments) > at else None)]
    if name == "__iter__" and isinstance(called, memoryview):
        len(called)  # ValueError where it is released; its __iter__ gives a result as well there, in CPython 3.11
    result = getattr(called, name)(*arguments)
    return list(result) if name == "__iter__" else result


def _short(timeout: Any) -> Any:
    """A time-out that ends soon, however it is spelled; what is none stays so."""
    if timeout is None or (isinstance(timeout, int | float) and not timeout <= _SOON and timeout == timeout):
        return _SOON
    return timeout
