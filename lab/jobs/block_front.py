"""Disks for xengrant's front end, in a guest that has not loaded Linux's; and 200 random requests at a time.

Against dom0's xen-blkback, which nobody here wrote, and against the project's back end. In the end the guest loads
Linux's front end, for random requests to the project's back end. `--random S` has them take so many seconds each.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from lab.dom0 import Guest, GuestError
from lab.dom0 import disk_checks as kernels
from lab.dom0 import front_checks as checks
from lab.dom0.disks import Disk, LinuxDisk, python_disk
from lab.dom0.xl import XlError

MAKERS: dict[str, Callable[..., Disk]] = {"linux": LinuxDisk, "python": python_disk}
CHECKS = (
    checks.info_is_right,
    checks.tool_copies_bytes,
    checks.every_way_to_use_it,
    checks.shared_pages_run_out,
    checks.comes_again_after_kill,
    checks.unplug_in_use,
)
FAILURES = (AssertionError, GuestError, LookupError, OSError, RuntimeError, XlError, subprocess.SubprocessError)
SIZE, RANDOM_SIZE = 64 << 20, 16 << 20
IMAGE = Path("/run/disk.img")
"""On tmpfs."""


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("back_ends", nargs="*", metavar="BACK-END", help=f"of {', '.join(MAKERS)} and blkfront")
    parser.add_argument("--check", action="append", help="only the checks of this name")
    parser.add_argument("--random", type=int, default=30, metavar="S", help="seconds of random requests (default 30)")
    options = parser.parse_args()
    judge = Judge(options.check)
    with Guest.create("front", memory=384, files=checks.FILES) as guest:
        for name in options.back_ends or MAKERS:
            if name in MAKERS:
                with_xengrants_front_end(guest, name, judge, options.random)
        if not options.back_ends or "blkfront" in options.back_ends:
            with_linuxs_front_end(guest, judge, options.random)
    print(f"block_front: {len(judge.failed)} failed{': ' + ', '.join(judge.failed) if judge.failed else ''}")
    return 1 if judge.failed else 0


class Judge:
    """Runs checks, says what became of each, and remembers those that failed. `only` has names, where it has any."""

    def __init__(self, only: list[str] | None) -> None:
        self.only = only
        self.failed: list[str] = []

    def wants(self, name: str) -> bool:
        return not self.only or name in self.only

    def check(self, name: str, what: str, check: Callable[[], str]) -> None:
        if not self.wants(what):
            return
        started = time.monotonic()
        try:
            said = check()
        except FAILURES as error:
            self.failed.append(f"{name} {what}")
            notes = getattr(error, "__notes__", [])
            print(f"failed {name} {what}: {type(error).__name__}: {error}", *notes, sep="\n", flush=True)
        else:
            print(f"passed {name} {what} in {time.monotonic() - started:.1f} s: {said}", flush=True)


def with_xengrants_front_end(guest: Guest, name: str, judge: Judge, seconds: int) -> None:
    for check in CHECKS:
        with_new_disk(guest, name, judge, check, SIZE)
    with_new_disk(guest, name, judge, checks.random_requests(seconds), RANDOM_SIZE)


def with_new_disk(guest: Guest, name: str, judge: Judge, check: Callable[[Guest, Disk], str], size: int) -> None:
    """A disk of its own for each, so that one that fails leaves no state to others."""

    def run() -> str:
        make_image(size)
        with checks.offered(MAKERS[name](guest.domid, IMAGE)) as disk:
            return check(guest, disk)

    judge.check(name, check.__name__, run)


def with_linuxs_front_end(guest: Guest, judge: Judge, seconds: int) -> None:
    def run() -> str:
        make_image(RANDOM_SIZE)
        with python_disk(guest.domid, IMAGE) as disk:
            kernels.wait_for_disk(guest, disk)
            said = checks.use_kernels_disk(guest, disk, seconds)
            disk.unplug()
            return said

    if judge.wants("random_requests"):
        guest.check("modprobe xen-blkfront")
    judge.check("blkfront", "random_requests", run)


def make_image(size: int) -> None:
    with open(IMAGE, "wb") as image:
        image.truncate(size)


sys.exit(main())
