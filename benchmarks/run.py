"""`make bench`: builds the C programs, runs lab/jobs/bench.py on real Xen in each release, prints the ratios.

Writes build/bench/RELEASE.json: what ran, every turn's nanoseconds, and the ratios. `--print FILE...` prints such files
again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

CHECKOUT = Path(__file__).resolve().parent.parent
PROGRAMS = {"share-loop": "share_loop.c", "map-loop": "map_loop.c"}
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
    parser = argparse.ArgumentParser(description="Measure xengrant beside C over libxengnttab on real Xen.")
    parser.add_argument("--release", choices=("bookworm", "trixie"), action="append", help="default: both")
    parser.add_argument("--rounds", type=int, default=8, help="of ten turns of each program, started anew (default: 8)")
    parser.add_argument("--print", type=Path, nargs="+", metavar="FILE", help="run nothing: print the results in FILE")
    options = parser.parse_args()
    if options.print:
        return _report([json.loads(file.read_text()) for file in options.print])
    build()
    found = [_run(release, options.rounds) for release in options.release or ("bookworm", "trixie")]
    return _report(found)


def build() -> None:
    """Compile benchmarks/c into build/lab/bin, from where the lab takes programs into dom0 and its guests."""
    need("/usr/include/xengnttab.h", "libxen-dev")
    need("gcc", "gcc")
    target = CHECKOUT / "build" / "lab" / "bin"
    target.mkdir(parents=True, exist_ok=True)
    for name, source in PROGRAMS.items():
        path = CHECKOUT / "benchmarks" / "c" / source
        command = ["gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-o", str(target / name), str(path), "-lxengnttab"]
        subprocess.run(command, check=True)


def need(thing: str, package: str) -> None:
    """Install a Debian package unless the program or file that it brings is there."""
    if os.path.exists(thing) if thing.startswith("/") else shutil.which(thing):
        return
    command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", package]
    if os.geteuid() != 0:
        sys.exit(f"the package {package} is missing: sudo {' '.join(command)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for step in (["apt-get", "update", "-qq"], command):
        subprocess.run(step, env=environment, check=True, stdout=subprocess.DEVNULL)


def _run(release: str, rounds: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "lab", "run", "--release", release, "--timeout", "1800"]
    command += ["bench", "--rounds", str(rounds)]
    subprocess.run(command, cwd=CHECKOUT, check=True)
    found: dict[str, Any] = json.loads((CHECKOUT / "build" / "lab" / release / "bench" / "bench.json").read_text())
    for loop in LOOPS:
        for size in found[loop]["sizes"]:
            size["ratio"] = ratio(size)._asdict()
    kept = CHECKOUT / "build" / "bench" / f"{release}.json"
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
    """Print the table; 1 if a ratio is above its limit."""
    missed = 0
    for found in results:
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
