"""Tables of both versions."""

from __future__ import annotations

import pytest

from xengrant.grant_table import GrantTable

from .memory import TableMemory


@pytest.fixture(params=[1, 2], ids=["v1", "v2"])
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def memory(version: int) -> TableMemory:
    """One frame, and no more."""
    return TableMemory(version)


@pytest.fixture
def table(memory: TableMemory) -> GrantTable:
    return memory.table()
