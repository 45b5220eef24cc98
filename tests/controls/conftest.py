"""The record of the controls, and the C that several tests share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path

import pytest

from tests import evidence as records
from tests.controls.c_ring import CRing

Control = Callable[[str, str, str], AbstractContextManager[None]]


@pytest.fixture
def control(evidence: Callable[[str, Sequence[str]], records.Table], request: pytest.FixtureRequest) -> Control:
    """`with control(what is broken, how it is found)` around what must find it."""

    @contextmanager
    def found(broken: str, how: str, test: str = "") -> Iterator[None]:
        started = time.monotonic()
        yield
        table = evidence("controls", ["control", "test that fails", "how", "seconds"])
        table.add(broken, test or request.node.originalname, how, round(time.monotonic() - started, 2))

    return found


@pytest.fixture(scope="session")
def c_ring(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., CRing]:
    """`c_ring(*macros)`: the ring in C, compiled with these, once."""
    directory = tmp_path_factory.mktemp("controls")
    return cache(lambda *macros: CRing(directory, *macros))


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("litmus")
