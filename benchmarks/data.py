"""`make bench-data`: arrays, tables and objects handed to another process, by xengrant and by sockets, with no Xen.

Two processes, as two domains of an embedded machine. For each size all ways of `data_ways.py` are open at once and take
turns. Prints medians, and by how much each way is faster than a Unix socket's turn of the same round, with the 10th to
90th percentile.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from contextlib import ExitStack
from multiprocessing.connection import Connection

import xengrant
from benchmarks.data_ways import SOON, WAYS, Place
from xengrant.embedded import Machine

SIZES = {"4 KiB": 4 << 10, "64 KiB": 64 << 10, "1 MiB": 1 << 20, "16 MiB": 16 << 20}
TURN = 64 << 20  # bytes of a turn, which has at most MOST messages
MOST = 200

Figures = dict[str, list[float]]
"""By way, the seconds that a message took in each turn."""


def serve(url: str, directory: str, orders: Connection) -> None:
    """The other process: takes what is handed over."""
    with xengrant.connect(url) as domain:
        while order := orders.recv():
            kind, size = order
            with ExitStack() as stack:
                place, ways = Place(domain, 1, directory), [way for way in WAYS if way.kind == kind]
                hands = [stack.enter_context(way.into(place, size, **way.options)) for way in ways]
                orders.send("ready")
                while turn := orders.recv():
                    number, count = turn
                    for _ in range(count):
                        hands[number]()
                    orders.send("done")
            orders.send("closed")


def measure(place: Place, orders: Connection, kind: str, size: int, turns: int) -> Figures:
    ways = [way for way in WAYS if way.kind == kind]
    count = max(1, min(MOST, TURN // size))
    figures: Figures = {way.name: [] for way in ways}
    with ExitStack() as stack:
        hands = [stack.enter_context(way.out(place, size, **way.options)) for way in ways]
        orders.send((kind, size))
        assert orders.recv() == "ready"
        for turn in range(turns + 1):
            for number, way in enumerate(ways):
                orders.send((number, count))
                started = time.perf_counter()
                for _ in range(count):
                    hands[number]()
                taken = time.perf_counter() - started
                assert orders.recv() == "done"
                if turn:  # the first warms up
                    figures[way.name].append(taken / count)
        orders.send(None)
        assert orders.recv() == "closed"
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--turns", type=int, default=15)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with Machine(gntalloc_limit=16384) as machine, tempfile.TemporaryDirectory() as directory:
        process = context.Process(target=serve, args=(machine.url(2), directory, theirs), daemon=True)
        process.start()
        print(f"{options.turns} turns; load of the host before: {os.getloadavg()[0]:.1f}", flush=True)
        with xengrant.connect(machine.url(1)) as domain:
            machine.create(2)
            for kind in ("array", "table", "object"):
                found = {}
                for label, size in SIZES.items():
                    found[label] = measure(Place(domain, 2, directory), ours, kind, size, options.turns)
                    for name in os.listdir(directory):
                        os.unlink(f"{directory}/{name}")
                report(kind, found)
        ours.send(None)
        process.join(SOON)


def report(kind: str, found: dict[str, Figures]) -> None:
    """For each way and size the median, its ratio to the first way's turn of the same round, and the spread of that."""
    print(f"\n| {kind} | {' | '.join(found)} |\n|---|{'---|' * len(found)}")
    for name in next(iter(found.values())):
        cells = [_cell(figures[name], next(iter(figures.values()))) for figures in found.values()]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def _cell(turns: list[float], base: list[float]) -> str:
    median = f"{statistics.median(turns) * 1e6:,.0f} us"
    if turns is base:
        return median
    ratios = sorted(was / taken for was, taken in zip(base, turns, strict=True))
    low, high = ratios[len(ratios) // 10], ratios[-1 - len(ratios) // 10]
    return f"{median}, {statistics.median(ratios):.2f} ({low:.2f}-{high:.2f})"


if __name__ == "__main__":
    main()
