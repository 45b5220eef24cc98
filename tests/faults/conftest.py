"""Domains 1 and 2 that know of each other, and which rows of the tables are run."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import forkserver
from typing import Any, TypeVar

import pytest

import xengrant
from tests.faults.actors import stoppable
from xengrant.embedded import Machine
from xengrant.xenstore import Permission

_Row = TypeVar("_Row")

VICTIM, SURVIVOR = 1, 2  # domids; in some rows dom0 survives

WHOLE_TABLE = os.environ.get("XENGRANT_FAULTS") == "all"
"""Whether every row is run, as `make faults` does; else those that `chosen` leaves, which `make test` has time for."""


def chosen(rows: Sequence[_Row], every: int) -> list[_Row]:
    """The rows to run: all, or each `every`th. With a number that has no factor in common with the rows of a step the
    faults come by turns."""
    return list(rows) if WHOLE_TABLE else list(rows[::every])


def introduce(machine: Machine, domid: int, **settings: Any) -> None:
    """Create domain 1 or 2 where it is not there, and let each show the other what tells of its life.

    A process that was about to connect when its domain was destroyed may have made one of that number.
    """
    if domid not in machine.status()["domains"]:
        machine.create(domid, **settings)
    show_each_other(machine.url, [domid for domid in (VICTIM, SURVIVOR) if domid in machine.status()["domains"]])


def show_each_other(url: Callable[[int], str], domids: Iterable[int]) -> None:
    """What the toolstack does so that each of domains 1 and 2 may read what the other has in `data`, and has a node.

    Domain 1 may read what dom0 has there too.
    """
    with xengrant.connect(url(0)) as dom0, dom0.xenstore() as store:
        store.mkdir("data")
        for domid in (0, *domids):
            home = f"/local/domain/{domid}/data"
            theirs = [Permission(domid, "n"), Permission(VICTIM if domid != VICTIM else SURVIVOR, "r")]
            store.set_permissions(home, theirs)
            store.write(f"{home}/here", "")
            # Rights end with the domain that had them, also those to what the other one had written already.
            for name in store.directory(home):
                if name == "here" or name.startswith("port"):
                    store.set_permissions(f"{home}/{name}", theirs)


@pytest.fixture
def machine(eventually: Callable[[Callable[[], bool], Callable[[], str]], None]) -> Iterator[Machine]:
    """With domains 1 and 2, and with nothing left in use when the test is over, in this process either."""
    forkserver.ensure_running()  # which keeps descriptors
    with Machine(reclaim_interval=0.01) as machine, stoppable():
        introduce(machine, VICTIM)
        introduce(machine, SURVIVOR)
        before, threads = len(os.listdir("/proc/self/fd")), set(threading.enumerate())
        yield machine
        assert set(threading.enumerate()) <= threads
        eventually(lambda: not machine.leaks(), lambda: f"still in use: {machine.leaks()}")
        eventually(
            lambda: len(os.listdir("/proc/self/fd")) <= before,
            lambda: f"{len(os.listdir('/proc/self/fd'))} descriptors, {before} before",
        )
