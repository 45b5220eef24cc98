"""What a half says of what it sees: checks whose failure reads as a sentence. Used by the cases only."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

__all__ = ["Caught", "UnexpectedError", "equal", "eventually", "raises", "true"]

_E = TypeVar("_E", bound=BaseException)


class UnexpectedError(Exception):
    """The machine did not do what the case says it does."""


class Caught(Generic[_E]):
    """The error that `raises` waited for."""

    def __init__(self) -> None:
        self._error: _E | None = None

    @property
    def error(self) -> _E:
        if self._error is None:
            raise UnexpectedError("nothing was raised yet")
        return self._error


def true(condition: object, what: str) -> None:
    """`condition` holds; `what` is the sentence that is then true."""
    if not condition:
        raise UnexpectedError(f"not so: {what}")


def equal(actual: object, expected: object, what: str) -> None:
    """`actual` is `expected`; long bytes are told by their first difference."""
    if actual == expected:
        return
    if isinstance(actual, bytes) and isinstance(expected, bytes) and len(expected) > 32:
        raise UnexpectedError(f"{what}: {_first_difference(actual, expected)}")
    raise UnexpectedError(f"{what}: {actual!r} instead of {expected!r}")


@contextlib.contextmanager
def raises(kind: type[_E], what: str, *, says: str = "") -> Iterator[Caught[_E]]:
    """The block raises `kind`, in whose text `says` appears."""
    caught: Caught[_E] = Caught()
    try:
        yield caught
    except kind as error:
        caught._error = error
        if says not in str(error):
            raise UnexpectedError(f"{what}: {error!r} does not say {says!r}") from error
        return
    except Exception as error:
        raise UnexpectedError(f"{what}: {error!r} instead of {kind.__name__}") from error
    raise UnexpectedError(f"{what}: no {kind.__name__}")


def eventually(condition: Callable[[], object], what: str, seconds: float) -> None:
    """`condition` holds within `seconds`; for what has nothing to wait on."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise UnexpectedError(f"not so within {seconds:g} seconds: {what}")
        time.sleep(0.01)


def _first_difference(actual: bytes, expected: bytes) -> str:
    if len(actual) != len(expected):
        return f"{len(actual)} bytes instead of {len(expected)}"
    wrong = [i for i, (a, b) in enumerate(zip(actual, expected, strict=True)) if a != b]
    at = wrong[0]
    difference = f"{actual[at]:#04x} instead of {expected[at]:#04x}"
    return f"{len(wrong)} of {len(expected)} bytes differ, the first at {at}: {difference}"
