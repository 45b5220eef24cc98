"""New inputs out of old ones: steps come, go, repeat and change places, and so do the bytes and numbers in them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from .target import NUMBERS, Step, Steps

__all__ = ["MOST_STEPS", "mutated"]

MOST_STEPS = 60
_MOST_TEXT = 8192


def mutated(steps: Steps, others: Sequence[Steps], step: Callable[[Random], Step], chance: Random) -> Steps:
    """A variation of `steps`; `others` lend steps, `step` makes up new ones."""
    changed = copy.deepcopy(steps)
    while True:
        kind = chance.randrange(8)
        at = chance.randrange(len(changed) + 1)
        if kind == 0 and others:
            lent = chance.choice(others)
            begin = chance.randrange(len(lent) + 1)
            changed[at:] = copy.deepcopy(lent[begin:])
        elif kind == 1:
            changed[at:at] = [step(chance) for _ in range(chance.randrange(1, 4))]
        elif kind == 2:
            del changed[at : at + chance.randrange(1, 4)]
        elif kind == 3 and at < len(changed):
            changed[at:at] = [copy.deepcopy(changed[at]) for _ in range(chance.choice((1, 1, 2, 8)))]
        elif kind == 4 and at < len(changed):
            changed.insert(chance.randrange(len(changed)), changed.pop(at))
        elif at < len(changed):
            found, argument = changed[at], chance.randrange(len(changed[at]))
            if argument:  # never its name
                found[argument] = _change(found[argument], chance)
        if changed != steps and chance.randrange(3):
            return changed[:MOST_STEPS]


def _change(value: Any, chance: Random) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return _number(value, chance)
    if isinstance(value, str):
        return _text(value, chance)
    if isinstance(value, list) and value:
        at = chance.randrange(len(value))
        if isinstance(value[at], list) and chance.randrange(4) == 0:  # a list in a list has any length
            return [*value[:at], *[copy.deepcopy(value[at])] * chance.choice((0, 2, 3)), *value[at + 1 :]]
        return [*value[:at], _change(value[at], chance), *value[at + 1 :]]
    return value


def _number(value: int, chance: Random) -> int:
    kind = chance.randrange(4)
    if kind == 0:
        return value + chance.choice((-1, 1)) * chance.choice((1, 1, 2, 8, 4096))
    if kind == 1:
        return value ^ 1 << chance.randrange(34)
    return chance.choice(NUMBERS) if kind == 2 else chance.randrange(16)


_BYTES = ["\0", "\n", "\x1b", "/", "-", ",", "0", "9", "@", "\x7f", "\x80", "\xff"]


def _text(value: str, chance: Random) -> str:
    at = chance.randrange(len(value) + 1)
    kind = chance.randrange(6)
    if kind == 0:
        return value[:at] + value[at + chance.choice((1, 1, 2, 16)) :]
    if kind == 1:
        return value[:at] + chance.choice(_BYTES) * chance.choice((1, 1, 1, 3, 300)) + value[at:]
    if kind == 2:
        return value[:at] + chr(chance.randrange(256)) + value[at + 1 :]
    if kind == 3 and at < len(value):
        return value[:at] + chr((ord(value[at]) ^ 1 << chance.randrange(8)) & 0xFF) + value[at + 1 :]
    if kind == 4:
        return value[:at]
    return (value[:at] + value[max(0, at - chance.randrange(1, 40)) :])[:_MOST_TEXT]
