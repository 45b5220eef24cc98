"""What a peer's pickle would make, followed before it is loaded: `recv_object` asks `check_pickle`.

CPython's unpickler hashes what becomes a key in C: that goes as deep as tuples lie in each other, on the C stack, and
as often as the memo has one of them come again, with the GIL held. So each object of the pickle is followed as one that
has a depth and a size, which is what a walk through it meets: what comes twice counts twice. Lists, dicts and sets have
no hash and end the walk; they may lie in each other and in themselves as they like.

It compares, too, each key with all those of the same dict or set whose hash is the same, in one opcode where it likes;
and the hash of a number is that number modulo 2**61 - 1. So what can be a key has here the hash that it will have
there. Different hashes, too, can be such that each key is looked for in the places of all others, and in which order
those are is CPython's own affair: so they are put into a dict or a set here as they will be there, some at a time, and
what takes longer than all the rest of the following is refused.
"""

from __future__ import annotations

import operator
import pickletools
import time
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

from xengrant.errors import ProtocolError

__all__ = ["check_pickle"]

_DEEPEST = 100
"""Tuples in each other, and calls whose arguments are calls: slices and arrays that hold others are freed in C, too."""
_HASHED = 1 << 24
_HASHED_PER_BYTE = 16
"""What is hashed in all, at most: some tenths of a second, or not much more than it takes to read the pickle at all."""
_COMPARED = 1 << 24
"""What is compared in all, at most, of keys with the same hash. Honest pickles have next to none, so their size does
not matter."""
_PROBED = 1.0
"""Seconds of processor time, beside as many as the rest takes, in which places for keys are looked for."""
_CHUNK = 1024
_STEP = 64
"""So many bytes of a text or a number take about as long as one object."""


_UNKNOWN: Any = []
"""Whose hash nobody knows; CPython says so, too."""


class _Made:
    """An object to be: what it is, how deep it is, its size, and a value that has the same hash.

    `TypeError` where that is unknown, as the hash of a tuple that holds such an object is. `keys` are those that were
    put into a dict or a set.
    """

    __slots__ = ("_hash", "depth", "keys", "kind", "size", "value")

    def __init__(self, kind: str, depth: int = 0, size: int = 1, value: Any = _UNKNOWN) -> None:
        self.kind = kind
        self.depth = depth
        self.size = size
        self.value = value
        self.keys: _Keys | None = None
        self._hash: int | None = None

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(self.value)
        return self._hash


class _Keys:
    """The hashes of the keys of a dict, or of a set, and how many there are of each."""

    __slots__ = ("counts", "members")

    def __init__(self, *, of_set: bool) -> None:
        self.counts: dict[int | None, int] = {}
        self.members: set[int | None] | None = set() if of_set else None  # sets have their places in another order

    def add(self, key: int | None) -> int:
        """How many there were with this hash."""
        same = self.counts.get(key, 0)
        self.counts[key] = same + 1
        if self.members is not None:
            self.members.add(key)
        return same


_Object = _Made | str | bytes | int | float | None
"""What is small, or has its hash kept by CPython, stands for itself."""
_BUFFER = _Made("leaf")
_PUSHES: dict[str, _Object] = {
    "NONE": None,
    "NEWTRUE": True,
    "NEWFALSE": False,
    "BYTEARRAY8": _BUFFER,
    "NEXT_BUFFER": _BUFFER,
    "EMPTY_TUPLE": _Made("leaf", value=()),
    "EMPTY_LIST": _Made("list"),
    "MARK": _Made("mark"),
}
_MARK = _PUSHES["MARK"]
_THEMSELVES = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8"}
_THEMSELVES |= {"BININT", "BININT1", "BININT2", "BINFLOAT"}
_FILLED = {"EMPTY_DICT": "dict", "EMPTY_SET": "set"}
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


def check_pickle(pickled: bytearray, plain: Mapping[tuple[str, str], Callable[..., Any]]) -> None:
    """Raise `ProtocolError` where loading this would take too long or too deep a stack, or cannot be followed.

    `plain` has the names whose results are left as they were made, and what they call: only what other names made,
    which the receiver has allowed, takes items or a state; and that is taken to have a hash of its own. Raises besides
    what pickletools and an empty stack raise.
    """
    course = _Course(len(pickled), plain)
    for opcode, argument, _ in pickletools.genops(pickled):
        course.follow(opcode.name, argument)


class _Course:
    """The stack and the memo at one place of a pickle."""

    def __init__(self, size: int, plain: Mapping[tuple[str, str], Callable[..., Any]]) -> None:
        self._plain = plain
        self._most = max(_HASHED, _HASHED_PER_BYTE * size)
        self._hashed = 0
        self._compared = 0
        self._began = time.thread_time()
        self._probing = 0.0
        self._others = count()
        self._stack: list[_Object] = []
        self._memo: list[_Object] = []

    def follow(self, opcode: str, argument: Any) -> None:
        stack = self._stack
        if opcode in _PUSHES:
            stack.append(_PUSHES[opcode])
        elif opcode in _THEMSELVES:
            stack.append(argument)
        elif opcode in _FILLED:
            stack.append(_Made(_FILLED[opcode]))
        elif opcode == "MEMOIZE":
            self._memo.append(self._take(1)[0])
            stack.append(self._memo[-1])
        elif opcode in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif opcode in ("LONG1", "LONG4"):
            length = argument.bit_length() // 8
            long = length >= _STEP
            stack.append(_Made("leaf", size=1 + length // _STEP, value=argument) if long else argument)
        elif opcode in _TUPLES or opcode == "TUPLE":
            items = self._take(_TUPLES.get(opcode, 0))
            stack.append(self._hold("tuple", items, tuple(items)))
        elif opcode == "FROZENSET":
            stack.append(self._frozenset(self._take(0)))
        elif opcode in _FILLS:
            self._fill(opcode, *_FILLS[opcode])
        elif opcode in _CALLS:
            called, *arguments = self._take(1 + _CALLS[opcode])
            if isinstance(called, _Made) and called.kind == "plain":
                stack.append(self._hold("plain", arguments, _result(called.value, arguments)))
            else:
                stack.append(self._hold("allowed", arguments, next(self._others)))
        elif opcode == "STACK_GLOBAL":
            module, name = self._take(2)
            plain = self._plain.get((module, name)) if isinstance(module, str) and isinstance(name, str) else None
            stack.append(_Made("plain", value=plain) if plain else _Made("allowed", value=next(self._others)))
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

    def _take(self, count: int) -> list[_Object]:
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

    def _hold(self, kind: str, items: list[_Object], value: Any, more: int = 0) -> _Made:
        """An object that has these in it for good, `more` larger than they are."""
        made = _Made(kind, 1 + max(map(_depth, items), default=0), 1 + more + sum(map(_size, items)), value)
        if made.depth > _DEEPEST:
            raise ProtocolError(f"the peer's pickle has objects more than {_DEEPEST} deep in each other")
        if made.size > self._most:
            raise ProtocolError(f"the peer's pickle repeats objects in objects until they are more than {self._most}")
        return made

    def _frozenset(self, items: list[_Object]) -> _Made:
        """Where two hashes are the same, whether the two are one member is not known, and so not the hash of all. To
        compare it with another one takes as long as the members took that were compared with each other."""
        keys = _Keys(of_set=True)
        compared = self._hash(items, keys)
        all_differ = len(keys.counts) == len(items)
        known = None not in keys.counts and (all_differ or not any(isinstance(item, _Made) for item in items))
        return self._hold("frozenset", items, frozenset(items) if known else _UNKNOWN, compared)

    def _fill(self, opcode: str, kind: str, count: int) -> None:
        items = self._take(count)
        target = self._stack[-1]
        if not isinstance(target, _Made) or target.kind not in (kind, "allowed"):
            raise ProtocolError(f"the peer's pickle has {opcode} for an object that takes none")
        if kind in ("dict", "set"):
            if target.keys is None:
                target.keys = _Keys(of_set=kind == "set")
            self._hash(items[::2] if kind == "dict" else items, target.keys)

    def _hash(self, items: list[_Object], keys: _Keys) -> int:
        """Have these be keys beside those: how much is compared."""
        sizes = list(map(_size, items))
        self._hashed += sum(sizes)
        if self._hashed > self._most:
            raise ProtocolError(f"the peer's pickle has keys of more than {self._most} objects in all")
        hashes = list(map(_hash_of, items))
        compared = 0
        for start in range(0, len(hashes), _CHUNK):
            end = start + _CHUNK
            began = time.thread_time() if len(keys.counts) > _CHUNK else None
            compared += sum(map(operator.mul, map(keys.add, hashes[start:end]), sizes[start:end]))
            if began is not None:
                self._probe(time.thread_time() - began)
        self._compared += compared
        if self._compared > _COMPARED:
            raise ProtocolError(f"the peer's pickle has keys of the same hash: more than {_COMPARED} are compared")
        return compared

    def _probe(self, seconds: float) -> None:
        self._probing += seconds
        if self._probing > _PROBED + (time.thread_time() - self._began - self._probing):
            raise ProtocolError("the peer's pickle has keys that take each other's places")


def _result(called: Any, arguments: list[_Object]) -> Any:
    """What a plain name makes of a tuple of numbers, which is as small."""
    numbers = arguments[0].value if len(arguments) == 1 and isinstance(arguments[0], _Made) else None
    if type(numbers) is tuple and len(numbers) <= 3 and all(isinstance(each, int | float | None) for each in numbers):
        try:
            return called(*numbers)
        except (TypeError, ValueError, OverflowError, ProtocolError):
            pass  # as it will where the pickle is loaded
    return _UNKNOWN


def _hash_of(made: _Object) -> int | None:
    try:
        return hash(made)
    except TypeError:
        return None


def _depth(made: _Object) -> int:
    return made.depth if isinstance(made, _Made) else 0


def _size(made: _Object) -> int:
    if isinstance(made, _Made):
        return made.size
    return 1 + len(made) // _STEP if isinstance(made, str | bytes) else 1
