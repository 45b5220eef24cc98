"""`python3 -m benchmarks.local`: what single operations cost here, with no Xen: atomics, mappings, embedded machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial

import xengrant
from xengrant import PAGE_SIZE, Gntshr, Gnttab, Grant, Mapping, _native
from xengrant.embedded import Machine

ROUNDS = 5


def main() -> None:
    pages = 128
    fd = os.memfd_create("benchmark")
    os.ftruncate(fd, pages * PAGE_SIZE)
    with Mapping([(fd, 0, PAGE_SIZE)], writable=True) as words, memoryview(words) as view:
        show("load32 of a Mapping", 100_000, lambda: _native.load32(words, 64))
        show("store32", 100_000, lambda: _native.store32(words, 64, 1))
        show("fetch_or32", 100_000, lambda: _native.fetch_or32(words, 64, 1))
        show("compare_exchange32", 100_000, lambda: _native.compare_exchange32(words, 64, 1, 1))
        show("fence", 100_000, _native.fence)
        show("one byte of a memoryview", 100_000, lambda: view[64])
        show("one byte of a Mapping", 100_000, lambda: words[64])
    for count in (1, pages):
        show(f"Mapping of {pages_of(count)}, close", 2_000, partial(mapping_cycle, fd, count))
    os.close(fd)
    show_embedded(pages)


def show_embedded(pages: int) -> None:
    with (
        Machine() as machine,
        xengrant.connect(machine.url(1)) as guest,
        xengrant.connect(machine.url(2)) as peer,
        guest.gntshr() as gntshr,
        peer.gnttab() as gnttab,
    ):
        for count in (1, pages):
            show(f"embedded: share {pages_of(count)}, close", 100, partial(share_cycle, gntshr, count))
        with gntshr.share_pages(2, pages, writable=True) as share:
            for count in (1, pages):
                grants = [Grant(1, ref) for ref in share.refs[:count]]
                show(f"embedded: map {pages_of(count)}, close", 100, partial(map_cycle, gnttab, grants))


def mapping_cycle(fd: int, pages: int) -> None:
    Mapping([(fd, 0, pages * PAGE_SIZE)], writable=True).close()


def share_cycle(gntshr: Gntshr, pages: int) -> None:
    gntshr.share_pages(2, pages, writable=True).close()


def map_cycle(gnttab: Gnttab, grants: list[Grant]) -> None:
    gnttab.map(grants, writable=True).close()


def pages_of(count: int) -> str:
    return f"{count} page{'s' * (count > 1)}"


def show(title: str, times: int, operation: Callable[[], object]) -> None:
    """Print the best of some rounds, with what the empty loop costs taken off."""
    cost = best(times, operation) - best(times, lambda: None)
    print(f"{title:32} {cost / 1000:10.2f} us")


def best(times: int, operation: Callable[[], object]) -> float:
    """Nanoseconds of one operation in the best round."""
    rounds = []
    for _ in range(ROUNDS):
        started = time.perf_counter_ns()
        for _ in range(times):
            operation()
        rounds.append(time.perf_counter_ns() - started)
    return min(rounds) / times


if __name__ == "__main__":
    main()
