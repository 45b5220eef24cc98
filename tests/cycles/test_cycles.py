"""Ten thousand cycles of sharing two pages and unmapping them leave nothing behind, on an embedded machine.

lab/jobs/cycles.py is the same on real Xen. The machine runs in this process, so its descriptors and memory count too.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

import xengrant
from xengrant import Gntshr, GrantTableFull
from xengrant.embedded import Machine

CYCLES = 10_000
LIMIT = 1024
"""Pages: gntalloc's limit."""

SLACK = 4 << 20
"""Bytes by which memory may grow: cycles that kept 512 bytes each would exceed it."""


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def areas() -> int:
    return Path("/proc/self/maps").read_text().count("\n")


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cycle(gntshr: Gntshr, times: int) -> None:
    for _ in range(times):
        share = gntshr.share_pages(1, 2, writable=True)
        share.mapping[0] = 1
        share.close()
    gc.collect()


def test_ten_thousand_cycles_of_sharing_two_pages_leave_nothing_behind() -> None:
    with (
        Machine(gntalloc_limit=LIMIT) as machine,
        xengrant.connect(machine.url(2)) as domain,
        domain.gntshr() as gntshr,
    ):
        cycle(gntshr, 100)  # what the first cycles build up is no leak
        before = descriptors(), areas(), resident(), machine.leaks()

        cycle(gntshr, CYCLES)

        after = descriptors(), areas(), resident(), machine.leaks()
        assert after[0] == before[0]
        assert after[1] <= before[1] + 2, "the heap may have grown by an area or two"
        assert after[2] <= before[2] + SLACK
        assert after[3] == before[3] == {2: {"files": 1, "connections": 1}}

        with gntshr.share_pages(1, LIMIT, writable=True) as whole:
            assert len(set(whole.refs)) == LIMIT
            with pytest.raises(GrantTableFull, match=str(LIMIT)):
                gntshr.share_pages(1, 1, writable=True)
        assert machine.leaks() == before[3]
