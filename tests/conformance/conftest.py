"""Machines that the cases run on: one for each lifetime and pair, for the whole session."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


class Suite:
    """A process that runs cases (`serve`)."""

    def __init__(self, lifetime: str, pair: str, version: str) -> None:
        command = [sys.executable, "-m", f"{__package__}.serve", lifetime, pair, version]
        self._process = subprocess.Popen(
            command, cwd=Path(__file__).parents[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.directory = self._read()

    def run(self, case: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{case}\n")
        self._process.stdin.flush()
        result: dict[str, Any] = self._read()
        return result

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the suite's process has ended"
        return json.loads(line)


@pytest.fixture(scope="session")
def suites() -> Iterator[dict[tuple[str, str, str], Suite]]:
    """The machines, made when a test asks for one."""
    made: dict[tuple[str, str, str], Suite] = {}
    yield made
    for suite in made.values():
        suite.close()


@pytest.fixture
def suite(request: pytest.FixtureRequest, suites: dict[tuple[str, str, str], Suite]) -> Suite:
    """The machine of the parameter (lifetime, pair, version of its tables), or PV with dom0 and a guest."""
    key = getattr(request, "param", ("pv", "dom0", "1"))
    if key not in suites:
        suites[key] = Suite(*key)
    return suites[key]
