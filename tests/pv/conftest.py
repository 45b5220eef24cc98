"""dom0, which is the toolstack, and guest 1."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import xengrant
from xengrant.embedded import Machine


@pytest.fixture
def dom0(machine: Machine) -> Iterator[xengrant.Domain]:
    with xengrant.connect(machine.url(0)) as domain:
        yield domain


@pytest.fixture
def guest(granter: xengrant.Domain) -> xengrant.Domain:
    """Domain 1."""
    return granter
