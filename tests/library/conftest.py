"""A scripted system for each test, checked to hold nothing at its end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from xengrant.evtchn import EventChannels
from xengrant.gntshr import Gntshr
from xengrant.gnttab import Gnttab

from .fake import FakeSystem


@pytest.fixture
def system() -> Iterator[FakeSystem]:
    fake = FakeSystem()
    yield fake
    fake.close()


@pytest.fixture
def gntshr(system: FakeSystem) -> Gntshr:
    return Gntshr(system.open("gntalloc"), system)


@pytest.fixture
def gnttab(system: FakeSystem) -> Gnttab:
    return Gnttab(system.open("gntdev"), system)


@pytest.fixture
def channels(system: FakeSystem) -> Iterator[EventChannels]:
    with EventChannels(system.open("evtchn")) as channels:
        yield channels
