"""Fixtures of every test that wants domains: an embedded machine, two domains of it, and a look for what is left.

Folders whose tests need another machine have a `machine` of their own.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import settings

import xengrant
from tests import evidence as records
from xengrant.embedded import Machine

LONG = 20.0  # seconds; no test comes near it

# In the background of a script SIGINT is ignored, and under nohup SIGHUP; every process that the tests start would
# inherit that, and wait for ever for the signal that a test sends.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# A loaded machine is slow, not wrong.
settings.register_profile("xengrant", deadline=None)
settings.load_profile("xengrant")


def _eventually(holds: Callable[[], bool], message: Callable[[], str]) -> None:
    """Ask, yielding the processor, until it holds."""
    deadline = time.monotonic() + LONG
    while not holds():
        assert time.monotonic() < deadline, message()
        os.sched_yield()


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool], Callable[[], str]], None]:
    """`eventually(holds, message)` asks until it holds, within a deadline."""
    return _eventually


@pytest.fixture
def machine() -> Iterator[Machine]:
    """An embedded machine with domains 0, 1 and 2.

    When the test is over everything must have been given back, and the threads that it started be gone.
    """
    threads = set(threading.enumerate())
    with Machine(reclaim_interval=0.01) as machine:
        machine.create(1)
        machine.create(2)
        yield machine
        _eventually(lambda: not machine.leaks(), lambda: f"still in use: {machine.leaks()}")
    left = set(threading.enumerate()) - threads
    for thread in left:
        thread.join(LONG)
        assert not thread.is_alive(), f"a thread was left behind: {thread}"


@pytest.fixture
def granter(machine: Machine) -> Iterator[xengrant.Domain]:
    """Domain 1."""
    with xengrant.connect(machine.url(1)) as domain:
        yield domain


@pytest.fixture
def mapper(machine: Machine) -> Iterator[xengrant.Domain]:
    """Domain 2."""
    with xengrant.connect(machine.url(2)) as domain:
        yield domain


@pytest.fixture(scope="session")
def evidence(request: pytest.FixtureRequest) -> Iterator[Callable[[str, Sequence[str]], records.Table]]:
    """`evidence(target, columns)` is a table of what tests on the embedded machine have tried, for docs/evidence.md.

    The same one for a target; it is written to build/evidence when the session ends, if it has rows. A worker of
    pytest-xdist, as `make test` has them, tries a part, and would write it in place of the others': it writes nothing.
    """
    found: dict[str, records.Table] = {}
    started = time.monotonic()
    yield lambda target, columns: found.setdefault(target, records.Table(target, "embedded machine", columns))
    whole = not hasattr(request.config, "workerinput")
    for table in found.values():
        if whole and table.rows:
            records.keep(table.target, table.machine, table.columns, table.rows, time.monotonic() - started)
