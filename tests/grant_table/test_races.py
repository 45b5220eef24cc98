"""A peer that maps while the granter revokes and uses the page again: never is it one that the peer still maps.

XENGRANT_RACE_ROUNDS is the number of rounds of the raw race, 10,000 unless set; `make test-xen-long` sets 1,000,000.
"""

from __future__ import annotations

import os
import time

import pytest

import xengrant
from xengrant import GrantBusy, GrantTable, _native
from xengrant.abi.xen import PAGE_SIZE
from xengrant.embedded import Machine
from xengrant.grant_entries import entries_of
from xengrant.grant_snapshot import Snapshot

from .racer import FIRST_FRAME, MAPPED, PEER, Racer, mapped, shared

ROUNDS = int(os.environ.get("XENGRANT_RACE_ROUNDS", "10000"))
SECONDS = 60 + ROUNDS / 2000  # until a race is given up; it takes a small part of that
PAGES = 4
# What a race has to see, so that it was one.
OFTEN = 50


def test_no_page_is_used_again_while_it_is_mapped(version: int) -> None:
    """Two processes over the same memory, the other with Xen's algorithm."""
    fds = [shared(1), shared(1), shared(PAGES)]
    with mapped(fds[0]) as frames, mapped(fds[1]) as status, mapped(fds[2]) as pages:
        table = GrantTable([frames], version=version, status_frames=[status])
        (ref,) = table.get_n_nowait(1)
        deadline = time.monotonic() + SECONDS
        rounds = busy = 0
        with Racer("hypervisor", version, ref, *fds, fds=fds) as racer:
            while rounds < ROUNDS or racer.word(MAPPED) < OFTEN or busy < OFTEN:
                rounds += 1
                page = rounds % PAGES
                _native.store32(pages, page * PAGE_SIZE, 2 * rounds + 1)
                table.grant_access(ref, PEER, FIRST_FRAME + page, writable=rounds % 3 != 0)
                while not ended(table, ref):
                    busy += 1
                    os.sched_yield()
                    racer.check(deadline, f"round {rounds}, busy {busy} times")
                _native.store32(pages, page * PAGE_SIZE, 2 * rounds)  # used for something else
                if rounds % 64 == 0:
                    racer.check(deadline, f"round {rounds}, busy {busy} times")
    for fd in fds:
        os.close(fd)


def ended(table: GrantTable, ref: int) -> bool:
    try:
        table.end_access(ref)
    except GrantBusy:
        return False
    return True


@pytest.fixture(params=["pv", "hvm"])
def machine(request: pytest.FixtureRequest, version: int) -> Machine:
    return Machine(lifetime=request.param, grant_table_version=version)


def test_no_page_is_used_again_while_a_domain_maps_it(machine: Machine) -> None:
    """A program that is its domain's kernel, and a process of another domain."""
    deadline = time.monotonic() + SECONDS
    with machine, xengrant.connect(machine.url(1, kernel=True)) as domain:
        table, pages = domain.grant_table(), domain.alloc_pages(PAGES)
        (ref,) = table.get_n_nowait(1)
        rounds = busy = 0
        with Racer("peer", machine.url(2), 1, ref) as racer:
            while rounds < 200 or racer.word(MAPPED) < OFTEN or busy < OFTEN:
                rounds += 1
                page = pages[rounds % PAGES]
                _native.store32(page.mapping, 0, 2 * rounds + 1)
                table.grant_access(ref, 2, page, writable=rounds % 4 < 2)
                seen = racer.word(MAPPED)
                # Every other round waits until the peer maps, so that there is something to race with.
                while rounds % 2 and racer.word(MAPPED) == seen and not table.read(ref).mapped:
                    os.sched_yield()
                    racer.check(deadline, f"round {rounds}, busy {busy} times")
                while not ended(table, ref):
                    busy += 1
                    os.sched_yield()
                    racer.check(deadline, f"round {rounds}, busy {busy} times")
                _native.store32(page.mapping, 0, 2 * rounds)
        for page in pages:
            page.close()


def test_a_version_1_table_that_changes_is_never_torn() -> None:
    """Each entry's frame belongs to its domid, whatever else the copy says."""
    fd = shared(8)
    with mapped(fd) as frames:
        entries = entries_of(1, [frames])
        deadline = time.monotonic() + SECONDS
        looks = changed = 0
        snapshot = Snapshot(entries)
        with Racer("writer", fd, fds=[fd]) as racer:
            while looks < 500 or changed < OFTEN:
                racer.check(deadline, f"look {looks}")
                looks += 1
                changed += snapshot.refresh(entries)
                _refs, flags, domids, numbers = snapshot.arrays()
                assert set(flags) <= {1}
                assert list(domids) == list(numbers)
    os.close(fd)
