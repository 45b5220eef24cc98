"""`make bench`: runs lab/jobs/bench.py and its kind on real Xen in each release, prints the ratios.

Writes build/bench/RELEASE.json, RELEASE-vchan.json and RELEASE-block.json: what ran, and every turn's figures.
`--print FILE...` prints such files again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import block_table, vchan_table

CHECKOUT = Path(__file__).resolve().parent.parent
LOOPS = {"share": "share + munmap, guest", "map": "map + unmap, dom0"}
LIMITS = {1: 1.3, 128: 1.1}
"""What Python may take at most, as a multiple of C's time, at that many pages."""


class Ratio(NamedTuple):
    """Python's time as a multiple of C's, over the pairs of neighbouring turns; times of a cycle in microseconds."""

    c: float
    python: float
    median: float
    tenth: float
    ninetieth: float
    lowest: float
    highest: float


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure xengrant beside C over Xen's libraries on real Xen.")
    parser.add_argument("--release", choices=("bookworm", "trixie"), action="append", help="default: both")
    parser.add_argument("--bench", choices=tuple(_BENCHES), action="append", help="default: all")
    parser.add_argument("--rounds", type=int, default=8, help="of turns of each program, started anew (default: 8)")
    parser.add_argument("--print", type=Path, nargs="+", metavar="FILE", help="run nothing: print the results in FILE")
    options = parser.parse_args()
    if options.print:
        return _report([json.loads(file.read_text()) for file in options.print])
    found = [
        _BENCHES[bench](release, options.rounds)
        for bench in options.bench or _BENCHES
        for release in options.release or ("bookworm", "trixie")
    ]
    return _report(found)


def _loops(release: str, rounds: int) -> dict[str, Any]:
    found = _run("bench", release, rounds)
    for loop in LOOPS:
        for size in found[loop]["sizes"]:
            size["ratio"] = ratio(size)._asdict()
    return _keep(f"{release}.json", found)


def _vchan(release: str, rounds: int) -> dict[str, Any]:
    return _keep(f"{release}-vchan.json", _run("bench_vchan", release, rounds))


def _block(release: str, rounds: int) -> dict[str, Any]:
    return _keep(f"{release}-block.json", _run("bench_block", release, rounds, "--qemu"))


_BENCHES = {"loops": _loops, "vchan": _vchan, "block": _block}


def _run(job: str, release: str, rounds: int, *lab_options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "lab", "run", "--release", release, "--timeout", "1800", *lab_options]
    subprocess.run([*command, job, "--rounds", str(rounds)], cwd=CHECKOUT, check=True)
    found: dict[str, Any] = json.loads((CHECKOUT / "build" / "lab" / release / job / f"{job}.json").read_text())
    return found


def _keep(name: str, found: dict[str, Any]) -> dict[str, Any]:
    kept = CHECKOUT / "build" / "bench" / name
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(found, indent=1) + "\n")
    return found


def ratio(size: dict[str, Any]) -> Ratio:
    """The ratio of one size's turns."""
    c, python = size["nanoseconds"]["C"], size["nanoseconds"]["Python"]
    pairs = sorted(mine / theirs for mine, theirs in zip(python, c, strict=True))
    tenths = statistics.quantiles(pairs, n=10, method="inclusive")
    scale = 1000 * size["cycles"]
    return Ratio(
        c=statistics.median(c) / scale,
        python=statistics.median(python) / scale,
        median=statistics.median(pairs),
        tenth=tenths[0],
        ninetieth=tenths[-1],
        lowest=pairs[0],
        highest=pairs[-1],
    )


def _report(results: list[dict[str, Any]]) -> int:
    """Print the tables; 1 if a ratio is beyond its limit."""
    missed = 0
    for found in results:
        if "pairs" in found:
            missed += vchan_table.report(found)
            continue
        if "disks" in found:
            missed += block_table.report(found)
            continue
        print("\n{release}: Xen {xen}, Linux {linux}, Python {python}, {guest} guest".format(**found))
        print(f"{'loop':22} {'pages':>5} {'C':>10} {'Python':>10} {'ratio':>6}  {'10th-90th':>11}  {'all turns':>11}")
        for loop, title in LOOPS.items():
            for size in found[loop]["sizes"]:
                r, limit = ratio(size), LIMITS.get(size["pages"])
                over = limit is not None and r.median > limit
                missed += over
                print(
                    f"{title:22} {size['pages']:5} {r.c:7.0f} us {r.python:7.0f} us {r.median:6.2f}"
                    f"  {r.tenth:5.2f}-{r.ninetieth:5.2f}  {r.lowest:5.2f}-{r.highest:5.2f}"
                    + (f"  more than {limit}" if over else "")
                )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
