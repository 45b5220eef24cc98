"""Fixtures: C processes of domains 1 and 2, beside the `machine`, `granter` and `mapper` of all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from xengrant.embedded import Machine

from .programs import Actor, Preload


@pytest.fixture(scope="session")
def preload(tmp_path_factory: pytest.TempPathFactory) -> Preload:
    """The preload library and the programs, built once."""
    return Preload(tmp_path_factory.mktemp("preload"))


@pytest.fixture
def c_granter(machine: Machine, preload: Preload) -> Iterator[Actor]:
    """A C process of domain 1."""
    with preload.start_actor(machine.url(1)) as actor:
        yield actor


@pytest.fixture
def c_mapper(machine: Machine, preload: Preload) -> Iterator[Actor]:
    """A C process of domain 2."""
    with preload.start_actor(machine.url(2)) as actor:
        yield actor
