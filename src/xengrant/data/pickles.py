"""What a peer's pickle would make, followed before it is loaded: `recv_object` asks `check_pickle`.

CPython's unpickler hashes what becomes a key in C: that goes as deep as tuples lie in each other, on the C stack, and
as often as the memo has one of them come again, with the GIL held. So each object of the pickle is followed as one that
has a depth and a size, which is what a walk through it meets: what comes twice counts twice. Lists, dicts and sets have
no hash and end the walk; they may lie in each other and in themselves as they like.
"""

from __future__ import annotations

import pickletools
from collections.abc import Collection
from typing import Any

from xengrant.errors import ProtocolError

__all__ = ["check_pickle"]

_DEEPEST = 100
"""Tuples in each other, and calls whose arguments are calls: slices and arrays that hold others are freed in C, too."""
_HASHED = 1 << 24
_HASHED_PER_BYTE = 16
"""What is hashed in all, at most: some tenths of a second, or not much more than it takes to read the pickle at all."""
_STEP = 64
"""So many bytes of a text or a number take about as long as one object."""


class _Made:
    """An object to be: what it is, how deep it is, and its size."""

    __slots__ = ("depth", "kind", "size")

    def __init__(self, kind: str, depth: int = 0, size: int = 1) -> None:
        self.kind = kind
        self.depth = depth
        self.size = size


_LEAF = _Made("leaf")
_PUSHES = {
    "NONE": _LEAF,
    "NEWTRUE": _LEAF,
    "NEWFALSE": _LEAF,
    "BININT": _LEAF,
    "BININT1": _LEAF,
    "BININT2": _LEAF,
    "BINFLOAT": _LEAF,
    "BYTEARRAY8": _LEAF,
    "NEXT_BUFFER": _LEAF,
    "EMPTY_TUPLE": _LEAF,
    "EMPTY_LIST": _Made("list"),
    "EMPTY_DICT": _Made("dict"),
    "EMPTY_SET": _Made("set"),
    "MARK": _Made("mark"),
}
_MARK = _PUSHES["MARK"]
_TEXTS = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
_LONG = {"SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "LONG1", "LONG4"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_CALLS = {"REDUCE": 1, "NEWOBJ": 1, "NEWOBJ_EX": 2}
_FILLS = {
    "APPEND": ("list", 1),
    "APPENDS": ("list", 0),
    "SETITEM": ("dict", 2),
    "SETITEMS": ("dict", 0),
    "ADDITEMS": ("set", 0),
    "BUILD": ("", 1),
}
"""What each opcode adds to, beside what an allowed call made, and how many objects; 0 for those above the mark."""


def check_pickle(pickled: bytearray, plain: Collection[tuple[str, str]]) -> None:
    """Raise `ProtocolError` where loading this would take too long or too deep a stack, or cannot be followed.

    `plain` has the names whose results are left as they were made: only what other names made, which the receiver has
    allowed, takes items or a state. Raises besides what pickletools and an empty stack raise.
    """
    course = _Course(len(pickled), plain)
    for opcode, argument, _ in pickletools.genops(pickled):
        course.follow(opcode.name, argument)


class _Course:
    """The stack and the memo at one place of a pickle."""

    def __init__(self, size: int, plain: Collection[tuple[str, str]]) -> None:
        self._plain = plain
        self._most = max(_HASHED, _HASHED_PER_BYTE * size)
        self._hashed = 0
        self._stack: list[_Made | str] = []
        self._memo: list[_Made | str] = []

    def follow(self, opcode: str, argument: Any) -> None:
        stack = self._stack
        if opcode in _PUSHES:
            stack.append(_PUSHES[opcode])
        elif opcode in _TEXTS:
            stack.append(argument)
        elif opcode == "MEMOIZE":
            self._memo.append(self._take(1)[0])
            stack.append(self._memo[-1])
        elif opcode in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif opcode in _LONG:
            length = argument.bit_length() // 8 if isinstance(argument, int) else len(argument)
            stack.append(_Made("leaf", size=1 + length // _STEP) if length >= _STEP else _LEAF)
        elif opcode in _TUPLES:
            stack.append(self._hold("tuple", self._take(_TUPLES[opcode])))
        elif opcode == "TUPLE":
            stack.append(self._hold("tuple", self._take(0)))
        elif opcode == "FROZENSET":
            items = self._take(0)
            self._hash(items)
            stack.append(self._hold("frozenset", items))
        elif opcode in _FILLS:
            self._fill(opcode, *_FILLS[opcode])
        elif opcode in _CALLS:
            called, *arguments = self._take(1 + _CALLS[opcode])
            stack.append(self._hold("plain" if _kind(called) == "plain" else "allowed", arguments))
        elif opcode == "STACK_GLOBAL":
            stack.append(_Made("plain" if tuple(self._take(2)) in self._plain else "allowed"))
        elif opcode == "POP" and stack[-1] is _MARK:
            stack.pop()
        elif opcode in ("POP", "STOP"):
            self._take(1)
        elif opcode == "POP_MARK":
            self._take(0)
        elif opcode == "READONLY_BUFFER":
            stack.append(self._take(1)[0])
        elif opcode not in ("PROTO", "FRAME"):
            raise ProtocolError(f"the peer's pickle has the opcode {opcode}, which recv_object does not take")

    def _take(self, count: int) -> list[_Made | str]:
        """So many objects off the stack, none from below the last mark; for 0 all above it, and the mark."""
        stack = self._stack
        if not count:
            start = len(stack) - 1
            while stack[start] is not _MARK:
                start -= 1
                if start < 0:
                    raise IndexError("no mark")
            items = stack[start + 1 :]
            del stack[start:]
            return items
        items = stack[-count:]
        if len(items) < count or _MARK in items:
            raise IndexError("too few objects above the mark")
        del stack[-count:]
        return items

    def _hold(self, kind: str, items: list[_Made | str]) -> _Made:
        """An object that has these in it for good."""
        made = _Made(kind, 1 + max(map(_depth, items), default=0), 1 + sum(map(_size, items)))
        if made.depth > _DEEPEST:
            raise ProtocolError(f"the peer's pickle has objects more than {_DEEPEST} deep in each other")
        if made.size > self._most:
            raise ProtocolError(f"the peer's pickle repeats objects in objects until they are more than {self._most}")
        return made

    def _fill(self, opcode: str, kind: str, count: int) -> None:
        items = self._take(count)
        target = self._stack[-1]
        if _kind(target) not in (kind, "allowed"):
            raise ProtocolError(f"the peer's pickle has {opcode} for an object that takes none")
        if kind == "dict":
            self._hash(items[::2])
        elif kind == "set":
            self._hash(items)

    def _hash(self, items: list[_Made | str]) -> None:
        self._hashed += sum(map(_size, items))
        if self._hashed > self._most:
            raise ProtocolError(f"the peer's pickle has keys of more than {self._most} objects in all")


def _kind(made: _Made | str) -> str:
    return "text" if isinstance(made, str) else made.kind


def _depth(made: _Made | str) -> int:
    return 0 if isinstance(made, str) else made.depth


def _size(made: _Made | str) -> int:
    return 1 + len(made) // _STEP if isinstance(made, str) else made.size
