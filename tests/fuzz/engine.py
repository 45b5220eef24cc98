"""The loop: tries inputs, keeps those that reach new lines, and makes new ones out of them.

Atheris would do so for Python too, and makes twenty times as many inputs a second out of bytes. It does not pay here:
carrying out an input takes targets 1 to 20 ms, it owns the process and knows no threads, and it varies bytes. A bug in
reading refs, for which it needed 5,000 inputs, was found in 78 lists of steps that were made up for their target.
"""

from __future__ import annotations

import contextlib
import json
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from random import Random

from .bounds import Bounds, complaints
from .mutate import MOST_STEPS, mutated
from .reached import Reached
from .target import Steps, Target

__all__ = ["CORPUS", "Engine", "FindingError", "corpus", "dump", "load", "shrunk"]

CORPUS = Path(__file__).parent / "corpus"
_WARM = 100  # inputs after which nothing grows any more
_EVERY = 200  # inputs from one look at what grows to the next
_LENGTHS = (4, 12, 30, MOST_STEPS)
_SHRINKING = 30.0  # seconds


class FindingError(Exception):
    """An input of which something comes that must not; `text` is the traceback."""

    def __init__(self, steps: Steps, text: str) -> None:
        super().__init__(text)
        self.steps = steps
        self.text = text


class Engine:
    """Inputs of one target that is open, tried one after the other."""

    def __init__(
        self, target: Target, seed: int, reached: Reached, tell: Callable[[Engine, Steps], None] = lambda *_: None
    ) -> None:
        """`tell` is called before each input."""
        self.target = target
        self.inputs = 0
        self.kept: list[Steps] = []
        self.new: list[Steps] = []
        self.reached = reached
        self._chance = Random(seed)
        self._tell = tell
        self._bounds = Bounds()

    def replay(self, inputs: Iterable[Steps]) -> None:
        """Try these, and keep them all."""
        for steps in inputs:
            self._try(steps)
            self.kept.append(steps)

    def one(self) -> None:
        """Try a new input; `FindingError`."""
        chance, target = self._chance, self.target
        if not self.kept or chance.randrange(4) == 0:
            count = chance.randrange(1, chance.choice(_LENGTHS))
            steps = [*target.first(chance), *(target.step(chance) for _ in range(count))]
        else:
            # What was found last has been varied least.
            recent = self.kept[-8:] if chance.randrange(2) else self.kept
            steps = mutated(chance.choice(recent), self.kept, target.step, chance)
        before = self.reached.lines
        self._try(steps)
        if self.reached.lines > before:
            self.kept.append(steps)
            self.new.append(steps)

    def check(self) -> None:
        """Look whether anything grows; `FindingError`, of which the last input need not be the cause."""
        with _finding([["any of the last"]]):
            self._bounds.check()

    def _try(self, steps: Steps) -> None:
        self._tell(self, steps)
        with _finding(steps):
            _run(self.target, steps)
        self.inputs += 1
        if self.inputs == _WARM or (self.inputs > _WARM and self.inputs % _EVERY == 0):
            self.check()


def _run(target: Target, steps: Steps) -> None:
    started = time.monotonic()
    with complaints() as told:
        target.run(json.loads(json.dumps(steps)))
    taken = time.monotonic() - started
    assert not told, "\n".join(told)
    assert taken < target.deadline, f"it took {taken:.1f} seconds"


@contextlib.contextmanager
def _finding(steps: Steps) -> Iterator[None]:
    try:
        yield
    except Exception:
        raise FindingError(steps, traceback.format_exc()) from None


def shrunk(target: Target, found: FindingError, tell: Callable[[Steps], None] = lambda _: None) -> FindingError:
    """The finding with fewer steps, each try on a target that is opened anew."""
    deadline = time.monotonic() + _SHRINKING
    size = max(1, len(found.steps) // 2)
    while size:
        for at in range(0, len(found.steps), size):
            fewer = found.steps[:at] + found.steps[at + size :]
            if time.monotonic() > deadline:
                return found
            tell(fewer)
            text = _fails(target, fewer)
            if text.splitlines()[-1:] == found.text.splitlines()[-1:]:
                found = FindingError(fewer, text)
                break
        else:
            size //= 2
    return found


def _fails(target: Target, steps: Steps) -> str:
    try:
        with target.opened():
            _run(target, steps)
    except Exception:
        return traceback.format_exc()
    return ""


def corpus(target: Target) -> dict[str, Steps]:
    """The inputs that are kept in the repository, by file name."""
    return {file.name: load(file) for file in sorted((CORPUS / target.name).glob("*.json"))}


def load(file: Path) -> Steps:
    steps: Steps = json.loads(file.read_text())
    return steps


def dump(steps: Steps) -> str:
    """As JSON, a step a line."""
    return "[\n" + ",\n".join(f" {json.dumps(step)}" for step in steps) + "\n]\n"
