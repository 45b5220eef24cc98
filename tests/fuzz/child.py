"""One target's run, in a process of its own: `python -W error -m tests.fuzz.child`, started by `__main__`.

It leaves in its folder `journal`, what is tried just now, for whoever sees this process crash or hang; `kept/`, the
inputs that reached something new; and in the end `result.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import hashlib
import importlib
import json
import mmap
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from struct import Struct
from typing import NamedTuple

from .engine import Engine, FindingError, corpus, dump, load, shrunk
from .reached import Reached
from .target import Steps, Target

__all__ = ["Journal", "News"]

_NEWS = Struct("<QQQQQ")  # beat, inputs, lines, kept, bytes of the input
_ROOM = 64 << 20
_MEMORY = 16 << 30  # bytes of address space


class News(NamedTuple):
    """What the process is at. `beat` counts whatever it begins."""

    beat: int
    inputs: int
    lines: int
    kept: int
    size: int


class Journal:
    """A file that two processes map: its end has what was tried when the other one died."""

    def __init__(self, file: Path) -> None:
        with file.open("a+b") as opened:
            opened.truncate(_ROOM)
            self._memory = mmap.mmap(opened.fileno(), _ROOM)
        self._beat = 0

    def write(self, steps: Steps, inputs: int = 0, lines: int = 0, kept: int = 0) -> None:
        text = json.dumps(steps).encode()
        self._beat += 1
        self._memory[_NEWS.size : _NEWS.size + len(text)] = text
        _NEWS.pack_into(self._memory, 0, self._beat, inputs, lines, kept, len(text))

    def news(self) -> News:
        return News(*_NEWS.unpack_from(self._memory))

    def steps(self) -> Steps:
        steps: Steps = json.loads(self._memory[_NEWS.size : _NEWS.size + self.news().size] or b"[]")
        return steps

    def close(self) -> None:
        self._memory.close()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("target", help="MODULE:CLASS")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--inputs", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("file", type=Path, nargs="*", help="these only")
    options = parser.parse_args()
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    module, _, kind = options.target.partition(":")
    target: Target = getattr(importlib.import_module(module), kind)()
    journal = Journal(options.folder / "journal")
    found, engine = None, None
    started = time.monotonic()
    with Reached(() if options.file else target.guides) as reached:

        def tell(engine: Engine, steps: Steps) -> None:
            journal.write(steps, engine.inputs, reached.lines, len(engine.kept))

        engine = Engine(target, options.seed, reached, tell)
        try:
            _run(engine, options, started)
        except FindingError as error:
            found = error
    taken = time.monotonic() - started
    if found is not None and not options.file:
        found = shrunk(target, found, lambda steps: journal.write(steps, engine.inputs, reached.lines))
    result = {
        "inputs": engine.inputs,
        "seconds": round(taken, 1),
        "lines": reached.lines,
        "found": None if found is None else {"steps": found.steps, "text": found.text},
    }
    (options.folder / "result.json").write_text(json.dumps(result))
    return 1 if found else 0


def _run(engine: Engine, options: argparse.Namespace, started: float) -> None:
    target = engine.target
    parent = os.getppid()
    with _opened(target):
        if options.file:
            engine.replay(map(load, options.file))
            return
        engine.replay(corpus(target).values())
        replayed = engine.inputs
        while os.getppid() == parent:
            if options.inputs is not None and engine.inputs - replayed >= options.inputs:
                break
            if options.inputs is None and time.monotonic() - started >= options.seconds:
                break
            engine.one()
            while engine.new:
                _keep(options.folder / "kept", engine.new.pop())
        engine.check()


@contextlib.contextmanager
def _opened(target: Target) -> Iterator[None]:
    """The target, open; what goes wrong as it opens and closes is a finding."""
    with contextlib.ExitStack() as opened:
        opened.enter_context(target.opened())
        yield
        try:
            opened.close()
        except Exception as error:
            raise FindingError([["all of them, at the end"]], f"{type(error).__name__}: {error}") from error


def _keep(folder: Path, steps: Steps) -> None:
    folder.mkdir(exist_ok=True)
    text = dump(steps)
    (folder / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.json").write_text(text)


if __name__ == "__main__":
    raise SystemExit(main())
