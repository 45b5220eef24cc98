"""Disks for an unmodified Linux guest: its blkfront, ext4 and tools against what dom0 serves.

By default against Linux's own back end, which shows that the checks are right, and against the project's where it
exists, which as `polling` looks for requests before it sleeps; `qdisk`, QEMU's, is there in a run with --qemu.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lab.dom0 import Guest, GuestError
from lab.dom0 import disk_checks as checks
from lab.dom0.disk_tools import disk_tools
from lab.dom0.disks import Disk, LinuxDisk, QemuDisk, XlDisk, python_disk
from lab.dom0.xl import XlError

MAKERS: dict[str, Callable[..., Disk]] = {
    "linux": LinuxDisk,
    "xl": XlDisk,
    "qdisk": QemuDisk,
    "python": python_disk,
    "polling": partial(python_disk, options="--poll 0.001"),
}
WRITABLE = (
    checks.bytes_stay_in_their_place,
    checks.has_partitions,
    checks.discard_punches_holes,
    checks.unplug_while_mounted,
    checks.files_survive,
)
READ_ONLY = (checks.is_read_only,)
"""Come last: there is a file system then."""
FAILURES = (AssertionError, GuestError, OSError, RuntimeError, XlError, subprocess.SubprocessError)
SIZE = 128 << 20
IMAGE = Path("/run/disk.img")
"""On tmpfs."""


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("back_ends", nargs="*", metavar="BACK-END", help=f"of {', '.join(MAKERS)}")
    parser.add_argument("--check", action="append", help="only the checks of this name")
    options = parser.parse_args()
    known = ["linux", *(["python"] if importlib.util.find_spec("xengrant.cli.block") else [])]
    failed = []
    started = time.monotonic()
    with Guest.create("disks", memory=384, files=disk_tools()) as guest:
        checks.prepare(guest)
        print(f"the guest is ready after {time.monotonic() - started:.1f} s", flush=True)
        for name in options.back_ends or known:
            failed += check_back_end(guest, name, options.check)
    print(f"block: {len(failed)} failed{': ' + ', '.join(failed) if failed else ''}")
    return 1 if failed else 0


def check_back_end(guest: Guest, name: str, only: list[str] | None) -> list[str]:
    """Let one back end go through all checks, or `only` those; the names of those that failed."""
    with open(IMAGE, "wb") as image:
        image.truncate(SIZE)
    failed = []

    def judge(check: Callable[[Guest, Disk], str], disk: Disk) -> None:
        if only and check.__name__ not in only:
            return
        started = time.monotonic()
        try:
            said = check(guest, disk)
        except FAILURES as error:
            fail(check.__name__, error)
            guest.run("umount /mnt/disk")
        else:
            print(f"passed {name} {check.__name__} in {time.monotonic() - started:.1f} s: {said}", flush=True)

    def fail(what: str, error: Exception) -> None:
        failed.append(f"{name} {what}")
        print(f"failed {name} {what}: {type(error).__name__}: {error}", flush=True)

    # QEMU 7.2 and 10.0 do not make a xen-disk on a read-only image: "Block node is read-only".
    for read_only in (False,) if name == "qdisk" else (False, True):
        what = "read-only disk" if read_only else "disk"
        started = time.monotonic()
        try:
            with MAKERS[name](guest.domid, IMAGE, read_only=read_only) as disk:
                size = checks.wait_for_disk(guest, disk)
                print(f"{disk!r} is there after {time.monotonic() - started:.2f} s", flush=True)
                assert size == SIZE, f"it has {size} bytes, not {SIZE}"
                for check in READ_ONLY if read_only else WRITABLE:
                    judge(check, disk)
                started = time.monotonic()
                disk.unplug()
                checks.wait_until_gone(guest, disk)
                print(f"{disk!r} is gone after {time.monotonic() - started:.2f} s", flush=True)
        except FAILURES as error:
            fail(what, error)
    return failed


sys.exit(main())
