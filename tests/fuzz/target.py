"""What is fuzzed: `Target`, made of steps that it can make up, and of a way to carry out any list of them.

Steps are JSON: ``[name, argument, ...]``, arguments being whole numbers, texts, truth values, null, and lists of these.
A text stands for bytes, one for each character below 256. Mutations keep an argument's type and change all else, so a
target takes whatever number or text comes, and passes over a step that it cannot make sense of.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any, ClassVar, TypeVar

__all__ = [
    "NUMBERS",
    "Step",
    "Steps",
    "Target",
    "begun_with",
    "choose",
    "data",
    "eventually",
    "number",
    "quick",
    "text",
]

Step = list[Any]
Steps = list[Step]
_T = TypeVar("_T")

NUMBERS = [0, 1, 2, 3, 7, 8, 16, 255, 256, 1023, 1024, 4095, 4096, 65535, 65536]
NUMBERS += [(1 << bits) + more for bits in (31, 32, 63, 64) for more in (-1, 0, 1)]


class Target:
    """One thing that is fuzzed.

    `run` carries out one input and raises whatever is wrong, `AssertionError` or any error that nobody documented. It
    leaves nothing behind: descriptors, memory and threads are counted. Between `run`s the target stays open.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    guides: ClassVar[tuple[str, ...]] = ()
    """Files and folders below src/xengrant whose lines tell which inputs are worth keeping; none where it is C."""
    isolated: ClassVar[bool] = False
    """Whether a finding ends the process, so that tests give it one of its own."""
    deadline: ClassVar[float] = 60.0
    """Seconds that no input may take, on a machine that others load."""
    short: ClassVar[int] = 60
    """New inputs of the short form in `make test`."""

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Whatever all inputs share; at its end everything must have been given back."""
        yield

    def step(self, chance: Random) -> Step:
        """A new step."""
        raise NotImplementedError

    def first(self, chance: Random) -> Steps:
        """The steps that a new input begins with."""
        return []

    def run(self, steps: Steps) -> None:
        raise NotImplementedError


def choose(choices: Sequence[_T], at: object) -> _T:
    """The choice that a number stands for, whatever number."""
    return choices[(at if isinstance(at, int) else 0) % len(choices)]


def begun_with(steps: Steps, kind: str, default: Sequence[Any]) -> Sequence[Any]:
    """The arguments of the first step where it is of this kind."""
    return steps[0][1:] if steps and steps[0][0] == kind else default


def data(value: object, most: int = 1 << 16) -> bytes:
    """The bytes that a text stands for."""
    return str(value)[:most].encode("latin-1", "replace")


def text(value: bytes) -> str:
    """The text that stands for the bytes."""
    return value.decode("latin-1")


def number(chance: Random, most: int = (1 << 64) - 1) -> int:
    """Near 0, at an edge, or anything."""
    kind = chance.randrange(6)
    if kind < 3:
        return chance.randrange(min(most, 24) + 1)
    return min(chance.choice(NUMBERS) if kind < 5 else chance.getrandbits(chance.choice((8, 16, 32, 64))), most)


@contextmanager
def quick(what: str, seconds: float = 20.0) -> Iterator[None]:
    """The block takes less than so many seconds."""
    started = time.monotonic()
    yield
    taken = time.monotonic() - started
    assert taken < seconds, f"{what} took {taken:.1f} s"


def eventually(holds: Callable[[], bool], what: Callable[[], str], seconds: float = 20.0) -> None:
    """Ask until it holds; `AssertionError` with `what()` where it does not within so many seconds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, what()
        time.sleep(0.001)
