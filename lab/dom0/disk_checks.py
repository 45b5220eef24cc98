"""What a guest does with its disk, as Linux's users do: file systems, partitions, discard, and what goes wrong.

Each check takes a guest that was given `disk_tools`, and a disk that is plugged, whoever serves it (`lab.dom0.disks`);
AssertionError or GuestError say what was not as it should be. Called by `lab/jobs/block.py`.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

from lab.dom0.disks import Disk, vdev_number
from lab.dom0.guest import Guest

__all__ = [
    "SAME_LINKS",
    "bytes_stay_in_their_place",
    "digest",
    "discard_punches_holes",
    "files_survive",
    "has_partitions",
    "is_read_only",
    "kernel_has_no_complaint",
    "prepare",
    "unplug_while_mounted",
    "wait_for_disk",
    "wait_until_gone",
]

_MIB = 1 << 20
_LONG = 240

_FAULT = re.compile(r"BUG:|WARNING:.*(block|blk|ext4|jbd2|fs/)|blocked for more than|disabled for further use")

_WRITE_PATTERN = """
import hashlib, random, sys
device, size, seed = sys.argv[1], int(sys.argv[2]), sys.argv[3]
source, digest = random.Random(seed), hashlib.sha256()
with open(device, "wb", buffering=0) as disk:
    for _ in range(size >> 20):
        block = source.randbytes(1 << 20)
        digest.update(block)
        assert disk.write(block) == len(block)
print(digest.hexdigest())
"""

SAME_LINKS = """
import os, sys
def links(top):
    files = (file for place, *_ in os.walk(top) for file in os.scandir(place))
    return {os.path.relpath(file.path, top): os.readlink(file) for file in files if file.is_symlink()}
one, two = map(links, sys.argv[1:])
assert one and one == two, {name: target for name, target in one.items() if two.get(name) != target}
"""


def prepare(guest: Guest, **parameters: int) -> None:
    """Load Linux's own front end with its `parameters`, and ext4 with the checksum it would ask for by its alias."""
    words = "".join(f" {name}={value}" for name, value in parameters.items())
    guest.check(f"modprobe xen-blkfront{words} && modprobe -a crc32c_generic ext4 && mkdir -p /mnt/disk")


def wait_for_disk(guest: Guest, disk: Disk, timeout: float = 30) -> int:
    """Wait until the guest has the disk; returns its size in bytes."""
    device = f"/dev/{disk.vdev}"
    size = f"cat /sys/class/block/{disk.vdev}/size 2>/dev/null"
    script = f'until test -b {device} && test "$({size})" -gt 0; do usleep 20000; done; {size}'
    return int(guest.check(script, timeout)) * 512


def wait_until_gone(guest: Guest, disk: Disk, timeout: float = 30) -> None:
    """Wait until the guest has forgotten an unplugged disk, and would see a new one of the same name."""
    there = f"test -e /sys/bus/xen/devices/vbd-{vdev_number(disk.vdev)} -o -e /dev/{disk.vdev}"
    guest.check(f"while {there}; do usleep 20000; done", timeout)


def files_survive(guest: Guest, disk: Disk) -> str:
    """A new file system takes a copy of the guest's /usr; it is whole to fsck, and all files are when mounted again."""
    device = f"/dev/{disk.vdev}"
    steps = {
        "mke2fs": f"mke2fs -q -F -t ext4 {device} && mount -t ext4 {device} /mnt/disk",
        "copy": "cp -a /usr /mnt/disk/usr",
        "sums": "cd /usr && find . -type f -print0 | sort -z | xargs -0 sha256sum > /run/sums && wc -l < /run/sums",
        "sync": "sync && du -sm /mnt/disk/usr | cut -f1",
        "umount": "umount /mnt/disk",
        "e2fsck": f"e2fsck -fn {device}",
        "mount": f"mount -t ext4 -o ro {device} /mnt/disk",
        "compare": "cd /mnt/disk/usr && sha256sum -cs /run/sums",
        "links": f"python3 - /usr /mnt/disk/usr <<'END'\n{SAME_LINKS}\nEND",
        "umount again": "umount /mnt/disk",
    }
    times, said = [], {}
    with kernel_has_no_complaint(guest):
        for name, script in steps.items():
            started = time.monotonic()
            said[name] = guest.check(script, _LONG).strip()
            times.append(f"{name} {time.monotonic() - started:.1f} s")
    files, size = int(said["sums"]), int(said["sync"])
    assert files > 500, f"only {files} files to copy"
    assert size > 30, f"only {size} MiB were copied"
    return f"{files} files, {size} MiB; {', '.join(times)}"


def bytes_stay_in_their_place(guest: Guest, disk: Disk) -> str:
    """What the guest writes is what the image has, and what the guest reads."""
    size = 8 * _MIB
    device = f"/dev/{disk.vdev}"
    written = guest.check(f"python3 - {device} {size} place <<'END'\n{_WRITE_PATTERN}\nEND", _LONG).strip()
    guest.check(f"blockdev --flushbufs {device}")
    assert digest(disk, 0, size) == written, "the image has other bytes than the guest wrote"
    script = f"dd if={device} iflag=direct bs=1M count={size // _MIB} status=none | sha256sum"
    assert guest.check(script, _LONG).split()[0] == written, "the guest reads other bytes than it wrote"
    return f"{size // _MIB} MiB"


def has_partitions(guest: Guest, disk: Disk) -> str:
    """A partition table makes partitions appear, whose bytes are where the table says."""
    device = f"/dev/{disk.vdev}"
    guest.check(f"printf 'label: dos\\n2048,8192\\n16384,\\n' | sfdisk -q --wipe always {device}")
    guest.check(f"until test -b {device}2; do usleep 20000; done", 30)
    guest.check(f"printf xengrant | dd of={device}2 bs=512 conv=sync,fsync status=none")
    with open(disk.image, "rb") as image:
        image.seek(16384 * 512)
        assert image.read(8) == b"xengrant", "the second partition is not where the table says"
    guest.check(f"sfdisk -q --delete {device}; blockdev --flushbufs {device}")
    return guest.check(f"ls -d {device}*").replace("\n", " ").strip()


def discard_punches_holes(guest: Guest, disk: Disk) -> str:
    """blkdiscard frees the image's blocks; what was discarded reads as zeros, what was not is as before."""
    device, first, length, size = f"/dev/{disk.vdev}", 2 * _MIB, 4 * _MIB, 8 * _MIB
    guest.check(f"python3 - {device} {size} discard <<'END'\n{_WRITE_PATTERN}\nEND", _LONG)
    guest.check(f"blockdev --flushbufs {device}")
    around = [(0, first), (first + length, size - first - length)]
    before = [digest(disk, *each) for each in around]
    used = disk.image.stat().st_blocks * 512
    guest.check(f"blkdiscard -o {first} -l {length} {device}")
    freed = used - disk.image.stat().st_blocks * 512
    assert freed == length, f"{freed} bytes of the image were freed, not {length}"
    assert [digest(disk, *each) for each in around] == before, "bytes beside the discarded ones changed"
    count = length // _MIB
    script = f"dd if={device} iflag=direct bs=1M skip={first // _MIB} count={count} status=none | sha256sum"
    read = guest.check(script, _LONG).split()[0]
    assert read == hashlib.sha256(bytes(length)).hexdigest(), "discarded sectors do not read as zeros"
    return f"{freed // _MIB} MiB freed"


def is_read_only(guest: Guest, disk: Disk) -> str:
    """A read-only disk with a file system on it: readable and mountable so, not writable, whatever the guest tries."""
    device = f"/dev/{disk.vdev}"
    before = digest(disk, 0, disk.image.stat().st_size)
    assert guest.check(f"blockdev --getro {device}").strip() == "1", "the guest takes the disk for a writable one"
    tries = {
        "write": f"dd if=/dev/zero of={device} bs=4096 count=1 oflag=direct status=none",
        "set and write": f"blockdev --setrw {device}; dd if=/dev/zero of={device} bs=4096 count=1 oflag=direct",
        "discard": f"blkdiscard -o 0 -l 1048576 {device}",
        "mount writable": f"mount -t ext4 -o rw {device} /mnt/disk && touch /mnt/disk/new",
    }
    for name, script in tries.items():
        result = guest.run(script)
        assert result.status, f"a read-only disk let the guest {name}: {result.output}"
    guest.run("umount /mnt/disk")
    guest.check(f"mount -t ext4 -o ro {device} /mnt/disk")
    files = guest.check("find /mnt/disk -type f | wc -l; umount /mnt/disk").strip()
    assert digest(disk, 0, disk.image.stat().st_size) == before, "the image of a read-only disk changed"
    return f"{len(tries)} tries refused, {files} files read"


def unplug_while_mounted(guest: Guest, disk: Disk) -> str:
    """A disk pulled out under a mounted file system: its users get EIO, the guest lives and takes it again."""
    device = f"/dev/{disk.vdev}"
    guest.check(f"mke2fs -q -F -t ext4 {device} && mount -t ext4 {device} /mnt/disk")
    guest.check("echo kept > /mnt/disk/kept && sync")
    with kernel_has_no_complaint(guest):
        # Over and over the same megabyte, so that the disk is never full.
        write = "dd if=/dev/zero of=/mnt/disk/busy bs=64k count=16 oflag=direct conv=notrunc status=none"
        writer = guest.start(f"while {write}; do :; done; {write}")
        guest.check("until test -s /mnt/disk/busy; do usleep 20000; done", 30)
        started = time.monotonic()
        disk.unplug()
        taken = time.monotonic() - started
        failed = writer.wait(60)
        assert failed.status, "the guest could write on to a disk that is gone"
        assert re.search("input/output error", failed.output, re.IGNORECASE), failed
        late = guest.run("dd if=/dev/zero of=/mnt/disk/late bs=1M count=1 conv=fsync status=none", 60)
        assert late.status, "the guest could write a file on a disk that is gone"
        guest.check("umount /mnt/disk")
        wait_until_gone(guest, disk)
    disk.plug()
    wait_for_disk(guest, disk)
    guest.check(f"e2fsck -fy {device}; test $? -le 1", _LONG)
    guest.check(f"mount -t ext4 {device} /mnt/disk")
    assert guest.check("cat /mnt/disk/kept; umount /mnt/disk") == "kept\n", "what was synchronised is not there"
    return f"unplugged in {taken:.2f} s; {failed.output.strip().splitlines()[-1]}"


def digest(disk: Disk, begin: int, length: int) -> str:
    """The checksum of `length` bytes of the image from `begin` on."""
    found = hashlib.sha256()
    with open(disk.image, "rb") as image:
        image.seek(begin)
        while length:
            block = image.read(min(length, _MIB))
            assert block, f"{disk.image} is {length} bytes shorter than what was asked for"
            found.update(block)
            length -= len(block)
    return found.hexdigest()


@contextmanager
def kernel_has_no_complaint(guest: Guest) -> Iterator[None]:
    """Fail where the guest's kernel finds faults in itself, or gives its front end up for good.

    Errors of a disk and its file system are no such faults; nor is a warning from elsewhere: under emulation the kernel
    sometimes gets a debug exception out of nothing, and says so.
    """
    guest.check("dmesg -c > /dev/null")
    yield
    said = guest.check("dmesg -c")
    found = [line for line in said.splitlines() if _FAULT.search(line)]
    assert not found, f"the guest's kernel complains: {found}"
