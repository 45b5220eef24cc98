"""`python3 -m benchmarks.cycles DOMID CYCLES`: cycles of sharing two pages with domain DOMID and unmapping them.

Prints one JSON object: what this process and this domain hold before and after, and whether gntalloc's whole limit can
be shared at once in the end. `lab/jobs/cycles.py` runs it in a guest.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from pathlib import Path

import xengrant
from xengrant import Gntshr, GrantTableFull

LIMIT = Path("/sys/module/xen_gntalloc/parameters/limit")


def main() -> None:
    domid, times = map(int, sys.argv[1:])
    with xengrant.connect("xen:") as domain, domain.gntshr() as gntshr:
        cycle(gntshr, domid, 100)  # what the first cycles build up is no leak
        before = held()
        started = time.monotonic()
        cycle(gntshr, domid, times)
        seconds = time.monotonic() - started
        after = held()
        limit = int(LIMIT.read_text())
        with gntshr.share_pages(domid, limit, writable=True) as whole:
            shared = len(set(whole.refs))
            try:
                gntshr.share_pages(domid, 1, writable=True).close()
                full = False
            except GrantTableFull:
                full = True
    found = {"cycles": times, "seconds": seconds, "before": before, "after": after}
    print(json.dumps({**found, "limit": limit, "shared_at_once": shared, "one_more_is_refused": full}))


def cycle(gntshr: Gntshr, domid: int, times: int) -> None:
    for _ in range(times):
        share = gntshr.share_pages(domid, 2, writable=True)
        share.mapping[0] = 1
        share.close()
    gc.collect()


def held() -> dict[str, int]:
    """What leaks show in: sizes in KiB, of this process and of its whole domain (caches dropped)."""
    Path("/proc/sys/vm/drop_caches").write_text("3")
    process = _sizes("/proc/self/status")
    domain = _sizes("/proc/meminfo")
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "areas": Path("/proc/self/maps").read_text().count("\n"),
        "VmRSS": process["VmRSS"],
        "MemFree": domain["MemFree"],
        "Slab": domain["Slab"],
    }


def _sizes(file: str) -> dict[str, int]:
    lines = (line.split() for line in Path(file).read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in lines if words[-1] == "kB"}


if __name__ == "__main__":
    main()
