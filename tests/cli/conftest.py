"""An embedded machine and its users."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from xengrant.embedded import Machine

from .shell import User


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine(reclaim_interval=0.05) as machine:
        for domid in (1, 2, 3):  # xenstore ignores what was permitted to a domain before it was there
            machine.create(domid)
        yield machine


@pytest.fixture
def user(machine: Machine, stack: contextlib.ExitStack) -> Callable[[int], User]:
    """`user(2)` sits in domain 2."""
    return lambda domid: User(stack, machine.url(domid))


@pytest.fixture
def nobody(stack: contextlib.ExitStack) -> User:
    """Somebody on a machine without Xen who has set nothing."""
    return User(stack, None)
