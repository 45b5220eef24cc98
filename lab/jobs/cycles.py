"""Ten thousand cycles of sharing two pages and unmapping them in a guest leave nothing behind: no descriptors, no
memory of the process or of the guest's kernel, and gntalloc's whole limit can be shared at once afterwards. Prints the
figures.
"""

from __future__ import annotations

import json
import sys

from lab.dom0 import PROJECT, Guest

CYCLES = 10_000

# Whichever way the two pages of a cycle leaked, 10,000 cycles would show 80,000 KiB; a forgotten 128 bytes 1,250.
MOST_KIB = {"VmRSS": 1024, "MemFree": 2048, "Slab": 1024}


def main() -> None:
    files = {"opt/xengrant/benchmarks": PROJECT / "benchmarks"}
    with Guest.create("cycles", files=files, timeout=180) as guest:
        found = json.loads(guest.check(f"python3 -m benchmarks.cycles 0 {CYCLES}", timeout=300))
    before, after = found["before"], found["after"]
    print(f"{found['cycles']} cycles in {found['seconds']:.1f} s")
    print(f"{'':12} {'before':>8} {'after':>8}")
    for name in before:
        print(f"{name:12} {before[name]:8} {after[name]:8}{' KiB' if name in MOST_KIB else ''}")
    print(f"then {found['shared_at_once']} pages at once, of a limit of {found['limit']}")

    grown = {name: abs(after[name] - before[name]) for name in before}
    faults = [f"{name} differs by {grown[name]} KiB" for name, most in MOST_KIB.items() if grown[name] > most]
    if grown["descriptors"]:
        faults.append("descriptors leaked")
    if grown["areas"] > 2:  # the heap may have grown by an area or two
        faults.append("mapped areas leaked")
    if found["shared_at_once"] != found["limit"] or not found["one_more_is_refused"]:
        faults.append("gntalloc's limit could not be shared at once")
    if faults:
        sys.exit("; ".join(faults))
    print("passed")


main()
