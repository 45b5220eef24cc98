"""What lab/jobs/bench_block.py measured, as ratios to Linux's own back end: the table, and the goals.

Called by `benchmarks.run`. A ratio is that of a turn to xen-blkback's of the same kind just before, so that both met
the same weather; more is better.
"""

from __future__ import annotations

import statistics
from typing import Any, NamedTuple

__all__ = ["report", "summary"]

BASE = "xen-blkback"
GOALS = {("pv", "read"): 0.6, ("pv", "write"): 0.6, ("pvh", "read"): 0.9, ("pvh", "write"): 0.9}
RANDOM_GOAL = 0.5
"""What the project's back end, polling, shall have at least of xen-blkback's throughput, by the guest's kind and the
turn's."""


class Row(NamedTuple):
    """One back end's turns of one kind: MiB/s, or thousands of requests a second where they are random; ratios."""

    value: float
    tenth: float
    ninetieth: float
    ratio: float
    ratio_tenth: float
    ratio_ninetieth: float
    lowest: float
    highest: float


def summary(disk: dict[str, Any], name: str) -> Row:
    """The figures of one back end and kind."""
    times, theirs = disk["nanoseconds"][name], disk["nanoseconds"][BASE]
    units = disk["count"] * (disk["size"] / (1 << 20) if disk["depth"] == 1 else 0.001)
    ratios = [other / mine for mine, other in zip(times, theirs, strict=True)]
    return Row(*_spread([units / time * 1e9 for time in times]), *_spread(ratios), min(ratios), max(ratios))


def _spread(values: list[float]) -> tuple[float, float, float]:
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return statistics.median(values), tenths[0], tenths[-1]


def report(found: dict[str, Any]) -> int:
    """Print the table; how many goals were missed."""
    print("\n{release}: Xen {xen}, Linux {linux}, Python {python}, {guest} guest, its disks".format(**found))
    print(
        f"{'requests':30} {'back end':18} {'median':>12} {'10th-90th':>10}  {'ratio':>5} {'10th-90th':>10} {'all':>10}"
    )
    missed = 0
    for disk in found["disks"]:
        size = f"{disk['size'] >> 20} MiB" if disk["size"] >= 1 << 20 else f"{disk['size'] >> 10} KiB"
        title = f"{disk['kind']}, {size}, depth {disk['depth']}"
        unit = "MiB/s" if disk["depth"] == 1 else "1000/s"
        digits = 0 if disk["depth"] == 1 else 2
        for name in disk["nanoseconds"]:
            row = summary(disk, name)
            goal = GOALS.get((found["guest"], disk["kind"]), RANDOM_GOAL) if name == "Python, polling" else 0
            missed += row.ratio < goal
            spread = f"{row.tenth:4.{digits}f}-{row.ninetieth:4.{digits}f}"
            ratio = f"{row.ratio:5.2f} {row.ratio_tenth:5.2f}-{row.ratio_ninetieth:4.2f}"
            print(
                f"{title:30} {name:18} {row.value:5.{digits}f} {unit:6} {spread:>10}"
                f"  {ratio} {row.lowest:5.2f}-{row.highest:4.2f}"
                + (f"  not at least {goal}" if row.ratio < goal else "")
            )
    return missed
