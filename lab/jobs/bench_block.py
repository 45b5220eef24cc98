"""A guest's disks on the same file in dom0's tmpfs, by different back ends in turns: sequential and random requests.

The turns go to bench_block.json in the results; `python3 -m benchmarks.run` runs this and prints the table. Linux's own
back end comes twice: the second shows what a ratio is worth. The program is benchmarks/c/disk_bench.c.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from lab.dom0 import RESULTS, Guest, disk_checks
from lab.dom0.about import about
from lab.dom0.disk_tools import disk_tools
from lab.dom0.disks import Disk, LinuxDisk, QemuDisk, python_disk
from lab.dom0.xenstore import xenstore_read

MIB = 1 << 20
SIZE = 64 * MIB
IMAGE = Path("/run/disk.img")

KINDS = {
    "read": ("read", MIB, 32, 1),
    "write": ("write", MIB, 32, 1),
    "random read": ("randread", 4096, 1024, 32),
}
"""For each kind of turn: disk-bench's kind, size, count and depth. 70 to 500 ms."""

FEATURES = ("feature-persistent", "feature-max-indirect-segments", "max-ring-page-order", "multi-queue-max-queues")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3, help="how often all disks are plugged anew (default: 3)")
    parser.add_argument("--turns", type=int, default=8, help="turns of each kind and disk in a round (default: 8)")
    options = parser.parse_args()
    back_ends: dict[str, Callable[[int, Path, str], Disk]] = {"xen-blkback": LinuxDisk, "xen-blkback again": LinuxDisk}
    if importlib.util.find_spec("xengrant.cli.block"):
        back_ends["Python"] = python_disk
        back_ends["Python, polling"] = partial(python_disk, options="--poll 0.001")
    if QemuDisk.available():
        back_ends["QEMU"] = QemuDisk
    pattern = bytes(range(256)) * (MIB // 256)
    with open(IMAGE, "wb") as image:
        for _ in range(SIZE // MIB):
            image.write(pattern)
    found = about()
    turns = {kind: {name: list[int]() for name in back_ends} for kind in KINDS}
    with Guest.create("disks", memory=384, files=disk_tools()) as guest:
        disk_checks.prepare(guest)
        for number in range(options.rounds):
            found["features"] = _round(guest, back_ends, turns, options.turns)
            print(f"round {number + 1} of {options.rounds} done", flush=True)
    found["disks"] = [
        {"kind": kind, "size": size, "count": count, "depth": depth, "nanoseconds": turns[kind]}
        for kind, (_, size, count, depth) in KINDS.items()
    ]
    (RESULTS / "bench_block.json").write_text(json.dumps(found, indent=1))


def _round(
    guest: Guest,
    back_ends: dict[str, Callable[[int, Path, str], Disk]],
    turns: dict[str, dict[str, list[int]]],
    count: int,
) -> dict[str, dict[str, str | None]]:
    """Plug all disks, let them take their turns, unplug them; returns what each back end offered."""
    with ExitStack() as stack:
        disks = {}
        for letter, (name, maker) in zip("bcdefg", back_ends.items(), strict=False):
            disks[name] = stack.enter_context(maker(guest.domid, IMAGE, f"xvd{letter}"))
            disk_checks.wait_for_disk(guest, disks[name])
        offered = {
            name: {feature: xenstore_read(f"{disk.back}/{feature}") for feature in FEATURES}
            for name, disk in disks.items()
        }
        names = {f"/dev/{disk.vdev}": name for name, disk in disks.items()}
        for kind, (what, size, blocks, depth) in KINDS.items():
            command = f"/opt/bin/disk-bench {what} {size} {blocks} {depth} {count} {' '.join(names)}"
            for line in guest.check(command, timeout=900).splitlines():
                device, nanoseconds = line.split()
                turns[kind][names[device]].append(int(nanoseconds))
        for disk in disks.values():
            disk.unplug()
            disk_checks.wait_until_gone(guest, disk)
    return offered


main()
