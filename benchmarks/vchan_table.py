"""What lab/jobs/bench_vchan.py measured, as ratios to C at both ends with rings of 64 KiB: the table, and the goals.

Called by `benchmarks.run`. A ratio is that of a turn to C's turn of the same kind just before, so that both met the
same weather. For throughput more is better, for a round trip less.
"""

from __future__ import annotations

import statistics
from typing import Any, NamedTuple

__all__ = ["report", "summary"]

BASE = "C to C"
GOALS = {
    ("Python to Python, dom0 polls", "stream"): (1.0, "at least"),
    ("Python to Python, dom0 polls", "lines"): (1.0, "at least"),
    ("Python to Python, dom0 polls", "large"): (1.0, "at least"),
    ("Python to Python, dom0 polls", "messages"): (1.0, "at least"),
    ("Python to Python, 1 MiB rings", "stream"): (2.0, "at least"),
    ("Python to Python, dom0 polls", "ping"): (1.2, "at most"),
}


class Row(NamedTuple):
    """One pair's turns of one kind. The unit is MiB/s, or microseconds of a round trip; processor time is of the same:
    microseconds for a MiB or a round trip, of dom0's process and of the guest's."""

    value: float
    tenth: float
    ninetieth: float
    ratio: float
    ratio_tenth: float
    ratio_ninetieth: float
    dom0_cpu: float
    guest_cpu: float
    dom0_events: float
    guest_events: float


def summary(found: dict[str, Any], name: str, kind: str) -> Row:
    """The figures of one pair and kind."""
    pair = next(pair for pair in found["pairs"] if pair["name"] == name)
    base = next(pair for pair in found["pairs"] if pair["name"] == BASE)
    size, count = pair["size_and_count"][kind]
    turns = pair["turns"][kind]
    times = [turn["nanoseconds"] for turn in turns]
    theirs = [turn["nanoseconds"] for turn in base["turns"][kind]]
    units = count if kind == "ping" else size * count / (1 << 20)
    if kind == "ping":
        values = [time / units / 1000 for time in times]
        ratios = [mine / other for mine, other in zip(times, theirs, strict=True)]
    else:
        values = [units / time * 1e9 for time in times]
        ratios = [other / mine for mine, other in zip(times, theirs, strict=True)]

    def median(field: str, scale: float = 1.0) -> float:
        return statistics.median(float(turn[field]) for turn in turns) / float(units) / scale

    return Row(
        *_spread(values),
        *_spread(ratios),
        dom0_cpu=median("cpu", 1000),
        guest_cpu=median("peer_cpu", 1000),
        dom0_events=median("events"),
        guest_events=median("peer_events"),
    )


def _spread(values: list[float]) -> tuple[float, float, float]:
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return statistics.median(values), tenths[0], tenths[-1]


def report(found: dict[str, Any]) -> int:
    """Print the table; how many goals were missed."""
    print("\n{release}: Xen {xen}, Linux {linux}, Python {python}, {guest} guest, vchan to dom0".format(**found))
    print(
        f"{'guest to dom0, 64 KiB rings':41} {'turn':9} {'median':>11} {'10th-90th':>10} {'ratio':>6} {'10th-90th':>10}"
        f" {'CPU dom0, guest':>17} {'events':>10}"
    )
    missed = 0
    for kind in ("stream", "lines", "large", "messages", "ping"):
        for pair in found["pairs"]:
            if kind not in pair["turns"]:
                continue
            row = summary(found, pair["name"], kind)
            limit, sense = GOALS.get((pair["name"], kind), (row.ratio, "at least"))
            over = row.ratio < limit if sense == "at least" else row.ratio > limit
            missed += over
            unit = "us" if kind == "ping" else "MiB/s"
            spread = f"{row.tenth:4.0f}-{row.ninetieth:4.0f}"
            ratio = f"{row.ratio:5.2f}  {row.ratio_tenth:4.2f}-{row.ratio_ninetieth:4.2f}"
            used = f"{row.dom0_cpu:6.0f} {row.guest_cpu:6.0f} us  {row.dom0_events:4.1f} {row.guest_events:4.1f}"
            print(
                f"{pair['name']:41} {kind:9} {row.value:5.0f} {unit:5} {spread}  {ratio}  {used}"
                + (f"  not {sense} {limit}" if over else "")
            )
    return missed
