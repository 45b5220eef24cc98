"""A store and what asks it, without a socket between."""

from __future__ import annotations

import pytest

from xengrant.embedded.xenstored import XenStored

from ..asker import Asker


@pytest.fixture
def store() -> XenStored:
    store = XenStored()
    store.introduce(1, "one")
    store.introduce(2, "two")
    return store


@pytest.fixture
def dom0(store: XenStored) -> Asker:
    return Asker(store, 0)


@pytest.fixture
def one(store: XenStored) -> Asker:
    return Asker(store, 1)


@pytest.fixture
def two(store: XenStored) -> Asker:
    return Asker(store, 2)
