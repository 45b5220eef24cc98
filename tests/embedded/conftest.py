from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from xengrant.devices import Device, open_system
from xengrant.embedded import Machine

from .ioctls import eventually

Open = Callable[[int, str], Device]


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A machine that has nothing left in use when the test is over."""
    with Machine(reclaim_interval=0.01) as machine:
        yield machine
        eventually(lambda: not machine.leaks(), "nothing is left in use", seconds=5)
        assert machine.leaks() == {}


@pytest.fixture
def opened(machine: Machine) -> Iterator[Open]:
    """Opens devices by (domid, name), and closes what the test leaves open."""
    with contextlib.ExitStack() as stack:

        def open_device(domid: int, name: str) -> Device:
            device = open_system(machine.url(domid)).open(name)
            stack.callback(device.close)
            return device

        yield open_device
