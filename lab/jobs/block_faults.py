"""The project's disks for an unmodified Linux guest, and what may happen to them: their server is killed, sectors fail,
the guest is destroyed. With --long more of it, with rings of several pages, several rings, longer requests, sectors of
4096 bytes, and each way to get at the guest's pages.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from lab.dom0 import Guest, GuestError
from lab.dom0 import disk_checks as checks
from lab.dom0 import disk_faults as faults
from lab.dom0.disk_tools import disk_tools
from lab.dom0.disks import python_disk
from lab.dom0.places import LIBRARIES
from lab.dom0.served_disks import DiskServer, ServedDisk, XlServedDisk
from lab.dom0.xenstore import xenstore_read
from lab.dom0.xl import XlError

MIB = 1 << 20
GOOD, BAD, DYING, SLOW, OWN = (Path(f"/run/disk-{name}.img") for name in ("good", "bad", "dying", "slow", "own"))
"""Images, on tmpfs. The last is served by the tool, the others by one server."""
SIZES = {GOOD: 128 * MIB, BAD: 32 * MIB, DYING: 32 * MIB, SLOW: 16 * MIB, OWN: 128 * MIB}
OFTEN = "--interval 0.1"
"""So that the job sees how far the tool's server is."""

RINGS = {"max_indirect_segments": 64, "max_ring_page_order": 2, "max_queues": 2}
"""Linux keeps pages for all segments of all slots: 65 MiB for these. For 256 segments it would be 257 MiB."""
ALWAYS = (
    checks.bytes_stay_in_their_place,
    checks.has_partitions,
    checks.discard_punches_holes,
    checks.unplug_while_mounted,
)
LONG = (checks.files_survive,)
OWN_CHECKS = (
    "growth_is_seen",
    "broken_off_unplugging_is_ended",
    "kill_server_under_requests",
    "kill_server_under_files",
    "destroy_guest_in_use",
)
FAILURES = (AssertionError, GuestError, OSError, RuntimeError, XlError, subprocess.SubprocessError)


class Judge:
    """Runs checks, all or only some, and remembers which failed."""

    def __init__(self, only: list[str]) -> None:
        self.only = only
        self.failed: list[str] = []

    def wants(self, *names: str) -> bool:
        return not self.only or any(name.startswith(only) for name in names for only in self.only)

    def __call__(self, guest: Guest, name: str, check: Callable[[], str]) -> None:
        if not self.wants(name):
            return
        started = time.monotonic()
        try:
            said = check()
        except FAILURES as error:
            self.failed.append(name)
            print(f"failed {name}: {type(error).__name__}: {error}", flush=True)
            with suppress(GuestError):
                print(guest.run("umount /mnt/disk; dmesg | tail -n 20").output, flush=True)
        else:
            print(f"passed {name} in {time.monotonic() - started:.1f} s: {said}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--check", action="append", default=[], help="only those whose names begin so")
    options = parser.parse_args()
    judge = Judge(options.check)
    bad = f"fail:{faults.BAD_SECTORS[0]}-{faults.BAD_SECTORS[-1]}"
    for image, size in SIZES.items():
        with open(image, "wb") as file:
            file.truncate(size)
    disks = {"xvdb": (GOOD,), "xvdc": (BAD, bad), "xvdd": (DYING, "later"), "xvdf": (SLOW, "slow:0.2@1")}
    with DiskServer(disks) as server:
        with Guest.create("first", memory=384, files=disk_tools()) as guest:
            checks.prepare(guest)
            first(guest, server, judge, long=options.long)
        if options.long:
            with Guest.create("second", memory=512, vcpus=2, files=disk_tools()) as guest:
                checks.prepare(guest, **RINGS)
                second(guest, judge)
    print(f"block_faults: {len(judge.failed)} failed{': ' + ', '.join(judge.failed) if judge.failed else ''}")
    return 1 if judge.failed else 0


def first(guest: Guest, server: DiskServer, judge: Judge, *, long: bool) -> None:
    """A guest whose front end is as Linux has it. It does not survive."""
    good = ServedDisk(guest.domid, GOOD, "xvdb")
    bad = ServedDisk(guest.domid, BAD, "xvdc")
    dying = ServedDisk(guest.domid, DYING, "xvdd")
    slow = ServedDisk(guest.domid, SLOW, "xvdf")
    own = python_disk(guest.domid, OWN, "xvde", options=OFTEN)
    with good, bad, dying:
        for disk in (good, bad, dying):
            checks.wait_for_disk(guest, disk)
        for check in ALWAYS + LONG * long:
            judge(guest, check.__name__, partial(check, guest, good))
        if judge.wants("unplug_under_requests"):
            with slow:
                checks.wait_for_disk(guest, slow)
                judge(guest, "unplug_under_requests", partial(faults.unplug_under_requests, guest, slow))
        if judge.wants("bad_sectors_are_io_errors", "dead_disk_is_io_errors"):
            with faults.writer_at_work(guest, good):
                judge(guest, "bad_sectors_are_io_errors", partial(faults.bad_sectors_are_io_errors, guest, bad))
                judge(guest, "dead_disk_is_io_errors", partial(faults.dead_disk_is_io_errors, guest, dying, server))
        if judge.wants(*OWN_CHECKS):
            with own:
                checks.wait_for_disk(guest, own)
                judge(guest, "growth_is_seen", partial(faults.growth_is_seen, guest, own))
                broken_off = partial(faults.broken_off_unplugging_is_ended, guest, own)
                judge(guest, "broken_off_unplugging_is_ended", broken_off)
                kills, tree, every = (6, "/usr", 60) if long else (2, str(LIBRARIES), 80)
                kill = partial(faults.kill_server_under_requests, guest, own, kills=kills)
                judge(guest, "kill_server_under_requests", kill)
                kill = partial(faults.kill_server_under_files, guest, own, tree, every=every)
                judge(guest, "kill_server_under_files", kill)
                destroy = partial(faults.destroy_guest_in_use, guest, server, [good, bad, dying], own)
                judge(guest, "destroy_guest_in_use", destroy)


def second(guest: Guest, judge: Judge) -> None:
    """A guest whose front end uses all that is offered; the first server goes on with it, too."""
    judge(guest, "next_guest", partial(next_guest, guest))
    for sector in (512, 4096):
        for data in ("", "--data copy", "--data map"):
            judge(guest, f"rings {sector} {data}".strip(), partial(rings, guest, sector, data))
    judge(guest, "by_xl", partial(by_xl, guest))


def next_guest(guest: Guest) -> str:
    """The server of disks whose guest was destroyed serves one of them to another."""
    with ServedDisk(guest.domid, GOOD, "xvdb") as disk:
        checks.wait_for_disk(guest, disk)
        return faults.random_requests(guest, disk)


def rings(guest: Guest, sector: int, data: str) -> str:
    """Two rings of four pages, with sectors of `sector` bytes, and a way to get at the guest's pages."""
    with python_disk(guest.domid, OWN, "xvde", options=f"{OFTEN} --sector-size {sector} {data}") as disk:
        checks.wait_for_disk(guest, disk)
        found = {name: xenstore_read(f"{disk.front}/{name}") for name in ("ring-page-order", "multi-queue-num-queues")}
        assert found == {"ring-page-order": "2", "multi-queue-num-queues": "2"}, f"the guest has {found}"
        queue = f"/sys/block/{disk.vdev}/queue"
        shown = guest.check(f"cat {queue}/max_segments {queue}/logical_block_size").split()
        assert shown == ["64", str(sector)], f"the guest has {shown[0]} segments and sectors of {shown[1]} bytes"
        said = [faults.random_requests(guest, disk), faults.kill_server_under_requests(guest, disk, kills=2)]
        if not data:
            said.append(checks.files_survive(guest, disk))
        disk.unplug()
        checks.wait_until_gone(guest, disk)
        return "; ".join(said)


def by_xl(guest: Guest) -> str:
    """The toolstack's own nodes; and its own way to end a guest, which waits for the back end."""
    with DiskServer({"xvdf": (OWN,)}, "vbd") as server, XlServedDisk(guest.domid, OWN, "xvdf") as disk:
        checks.wait_for_disk(guest, disk)
        started = time.monotonic()
        disk.unplug()
        checks.wait_until_gone(guest, disk)
        said = [f"detached in {time.monotonic() - started:.1f} s"]
        disk.plug()
        checks.wait_for_disk(guest, disk)
        said.append(faults.random_requests(guest, disk))
        said.append(faults.destroy_guest_in_use(guest, server, [disk]))
        return "; ".join(said)


sys.exit(main())
