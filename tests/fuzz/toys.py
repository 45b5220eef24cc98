"""Targets that have something to find, for the tests of the engine itself."""

from __future__ import annotations

import ctypes
import threading
from random import Random
from typing import IO, ClassVar

from .target import Step, Steps, Target

__all__ = ["Crashes", "Finds", "Hangs", "Leaks"]


class _Toy(Target):
    about = "a toy"

    def step(self, chance: Random) -> Step:
        return ["count", chance.randrange(8)]


class Finds(_Toy):
    """Wrong where three steps follow each other, in a function whose lines tell of each."""

    name = "toy-finds"

    def run(self, steps: Steps) -> None:
        wanted = [3, 1, 2]
        for at in range(len(steps) - 2):
            assert [step[1] for step in steps[at : at + 3]] != wanted, "it is there"


class Crashes(_Toy):
    name = "toy-crashes"

    def run(self, steps: Steps) -> None:
        if len(steps) == 5:
            ctypes.string_at(0)


class Hangs(_Toy):
    name = "toy-hangs"
    deadline = 1.0

    def run(self, steps: Steps) -> None:
        if len(steps) == 5:
            threading.Event().wait()


class Leaks(_Toy):
    name = "toy-leaks"
    held: ClassVar[list[IO[bytes]]] = []

    def run(self, steps: Steps) -> None:
        self.held.append(open("/dev/null", "rb"))  # noqa: SIM115 - that is the leak
