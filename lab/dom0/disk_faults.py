"""What a guest's Linux makes of a disk whose server dies, whose sectors fail, or that ends with the guest itself.

Called by the job `block_faults`. As in `disk_checks`, each check is a function of a guest that is `prepare`d.
"""

from __future__ import annotations

import json
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from lab.dom0.disk_checks import SAME_LINKS, digest, kernel_has_no_complaint, wait_for_disk, wait_until_gone
from lab.dom0.disks import CLOSED, CLOSING, CommandDisk, Disk
from lab.dom0.guest import Command, Guest
from lab.dom0.served_disks import DiskServer
from lab.dom0.xenstore import xenstore_list, xenstore_read, xenstore_wait, xenstore_write
from lab.dom0.xl import xl_list

__all__ = [
    "BAD_SECTORS",
    "bad_sectors_are_io_errors",
    "broken_off_unplugging_is_ended",
    "dead_disk_is_io_errors",
    "destroy_guest_in_use",
    "growth_is_seen",
    "kill_server_under_files",
    "kill_server_under_requests",
    "random_requests",
    "unplug_under_requests",
    "writer_at_work",
]

_LONG = 240
_SECTOR = 512
BAD_SECTORS = range(26 << 11, 28 << 11)
"""Between 26 and 28 MiB, where mke2fs puts nothing of its own on a disk of 32 MiB."""

# Threads read and write, each in its own part of the disk, past all caches, and compare what they read with what they
# wrote; until there is a file /run/stop, or each has done so many requests. The result is the checksum of it all.
_WRITER = """
import hashlib, mmap, os, random, sys, threading
device, seed, (size, count, most) = sys.argv[1], sys.argv[2], map(int, sys.argv[3:])
PAGE = 4096
part = size // count
model = bytearray(os.urandom(1 << 16)) * (size >> 16)
fd = os.open(device, os.O_RDWR | os.O_DIRECT)
counts, faults = [0] * count, []

def work(number):
    source = random.Random(f"{seed} {number}")
    buffer = memoryview(mmap.mmap(-1, 64 * PAGE))
    base = number * part

    def move(call, at, length):
        done = call(fd, [buffer[:length]], base + at)
        assert done == length, f"{call.__name__} of {length} bytes at {base + at}: {done}"

    for at in range(0, part, len(buffer)):
        buffer[:] = model[base + at : base + at + len(buffer)]
        move(os.pwritev, at, len(buffer))
    while not faults and (counts[number] < most if most else not os.path.exists("/run/stop")):
        length = source.choice((1, 1, 2, 7, 32, 64)) * PAGE
        at = source.randrange((part - length) // PAGE + 1) * PAGE
        mine = slice(base + at, base + at + length)
        if source.random() < 0.6:
            buffer[:length] = model[mine] = source.randbytes(length)
            move(os.pwritev, at, length)
        else:
            move(os.preadv, at, length)
            assert buffer[:length] == model[mine], f"{length} bytes at {base + at} are not what was written"
        counts[number] += 1

def guarded(number):
    try:
        work(number)
    except BaseException as error:
        faults.append(f"{type(error).__name__}: {error}")

threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
if faults:
    sys.exit("; ".join(faults))
print(sum(counts), hashlib.sha256(model).hexdigest())
"""

# Files of 2 MiB until the disk is full, each synchronised; those that fail are named with their errors, the others with
# their checksums.
_FILES = """
import errno, hashlib, json, os, sys
found = {}
for number in range(100):
    data = os.urandom(2 << 20)
    try:
        with open(f"{sys.argv[1]}/{number}", "wb", buffering=0) as file:
            if file.write(data) < len(data):
                break
            os.fsync(file)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            break
        found[number] = errno.errorcode[error.errno]
    else:
        found[number] = hashlib.sha256(data).hexdigest()
print(json.dumps(found))
"""


def writer(guest: Guest, disk: Disk, *, size: int, seed: str, threads: int = 4, most: int = 0) -> Command:
    """Start threads that read and write the first `size` bytes, until told to stop or `most` requests each are done."""
    arguments = f"/dev/{disk.vdev} {seed} {size} {threads} {most}"
    return guest.start(f"rm -f /run/stop; exec python3 - {arguments} <<'END'\n{_WRITER}\nEND")


def judge_writer(guest: Guest, disk: Disk, running: Command, size: int) -> int:
    """Wait for the writer's end; how many requests it made. What it wrote is in the image and what the guest reads."""
    guest.check("touch /run/stop")
    status, output = running.wait(_LONG)
    assert status == 0, output
    count, written = output.split()
    assert digest(disk, 0, size) == written, "the image has other bytes than the guest wrote"
    script = f"dd if=/dev/{disk.vdev} iflag=direct bs=1M count={size >> 20} status=none | sha256sum"
    assert guest.check(script, _LONG).split()[0] == written, "the guest reads other bytes than it wrote"
    return int(count)


@contextmanager
def writer_at_work(guest: Guest, disk: Disk, *, size: int = 2 << 20) -> Iterator[None]:
    """Somebody reads and writes `disk` while the block runs, and all is as it should be at the end."""
    running = writer(guest, disk, size=size, seed=disk.vdev, threads=1)
    try:
        yield
    except BaseException:
        running.kill()
        raise
    assert not running.done, f"the writer ended too soon: {running.wait(1)}"
    judge_writer(guest, disk, running, size)


def random_requests(guest: Guest, disk: Disk, *, most: int = 60, size: int = 16 << 20) -> str:
    """Reads and writes of many lengths by four threads find each sector where it was put."""
    started = time.monotonic()
    with kernel_has_no_complaint(guest):
        running = writer(guest, disk, size=size, seed="random", most=most)
        running.wait(_LONG)
        count = judge_writer(guest, disk, running, size)
    return f"{count} reads and writes in {time.monotonic() - started:.1f} s"


def growth_is_seen(guest: Guest, disk: CommandDisk) -> str:
    """The image becomes larger while the guest reads and writes: the guest's disk does, and keeps what it had."""
    size, more = disk.image.stat().st_size, 8 << 20
    with kernel_has_no_complaint(guest):
        running = writer(guest, disk, size=16 << 20, seed="grow")
        wait_for_requests(disk, 20)
        os.truncate(disk.image, size + more)
        shown = f"cat /sys/class/block/{disk.vdev}/size"
        guest.check(f'until test "$({shown})" -eq {(size + more) // _SECTOR}; do usleep 20000; done', 30)
        end = (size + more) // 4096 - 1
        guest.check(f"printf grown | dd of=/dev/{disk.vdev} bs=4096 seek={end} conv=sync,fsync status=none")
        wait_for_requests(disk, 20)
        count = judge_writer(guest, disk, running, 16 << 20)
    with open(disk.image, "rb") as image:
        image.seek(end * 4096)
        assert image.read(5) == b"grown", "what the guest wrote at the new end is not there"
    return f"{size >> 20} to {(size + more) >> 20} MiB; {count} reads and writes"


def kill_server_under_requests(guest: Guest, disk: CommandDisk, *, kills: int = 3) -> str:
    """The server is killed and started again while the guest reads and writes: it waits, and no byte is lost."""
    size = 16 << 20
    source = random.Random("kills")
    with kernel_has_no_complaint(guest):
        running = writer(guest, disk, size=size, seed="kill")
        wait_for_requests(disk, 20)
        waiting = []
        for _ in range(kills):
            wait_for_requests(disk, source.randrange(20, 120))
            assert not running.done, f"the writer ended too soon: {running.wait(1)}"
            disk.kill()
            waiting.append(sum(map(int, guest.check(f"cat /sys/block/{disk.vdev}/inflight").split())))
            disk.plug()
        wait_for_requests(disk, 20)
        count = judge_writer(guest, disk, running, size)
    return f"{kills} kills with {waiting} requests of the guest's waiting; {count} reads and writes"


def broken_off_unplugging_is_ended(guest: Guest, disk: CommandDisk) -> str:
    """The server is killed while it unplugs: the next one ends that, and plugs the disk in anew. Over and over."""
    for _ in range(3):
        disk.kill()
        xenstore_write({f"{disk.back}/online": 0, f"{disk.back}/state": CLOSING})
        xenstore_wait(f"{disk.front}/state", lambda value: value == CLOSED, 30, "the guest does not close its end")
        disk.plug()
        wait_for_disk(guest, disk)
        guest.check(f"dd if=/dev/{disk.vdev} of=/dev/null iflag=direct bs=4096 count=1 status=none", 30)
    return "three times, and the guest read again"


def kill_server_under_files(guest: Guest, disk: CommandDisk, tree: str = "/usr", *, every: int = 60) -> str:
    """The server is killed, after `every` so many requests, while the guest copies `tree`: all files are whole."""
    device = f"/dev/{disk.vdev}"
    guest.check(f"mke2fs -q -F -t ext4 {device} && mount -t ext4 {device} /mnt/disk", _LONG)
    guest.check(f"cd {tree} && find . -type f -print0 | sort -z | xargs -0 sha256sum > /run/sums", _LONG)
    kills = 0
    with kernel_has_no_complaint(guest):
        copying = guest.start(f"cp -a {tree} /mnt/disk/copy && sync && umount /mnt/disk")
        while wait_for_requests(disk, every, unless=copying):
            disk.kill()
            disk.plug()
            kills += 1
        status, output = copying.wait(_LONG)
        assert status == 0, output
        assert kills, "the files were copied before the server was killed"
        guest.check(f"e2fsck -fn {device}", _LONG)
        guest.check(f"mount -t ext4 -o ro {device} /mnt/disk && cd /mnt/disk/copy && sha256sum -cs /run/sums", _LONG)
        guest.check(f"python3 - {tree} /mnt/disk/copy <<'END'\n{SAME_LINKS}\nEND", _LONG)
        guest.check("umount /mnt/disk")
    return f"{kills} kills, {guest.check('wc -l < /run/sums').strip()} files"


def bad_sectors_are_io_errors(guest: Guest, disk: Disk) -> str:
    """Some sectors fail: files that would lie there fail with EIO, all others are whole, and so is the file system."""
    device = f"/dev/{disk.vdev}"
    guest.check(f"mke2fs -q -F -t ext4 {device} && mount -t ext4 {device} /mnt/disk", _LONG)
    with kernel_has_no_complaint(guest):
        found = json.loads(guest.check(f"python3 - /mnt/disk <<'END'\n{_FILES}\nEND", _LONG))
        whole = {name: result for name, result in found.items() if len(result) == 64}
        failed = set(found.values()) - set(whole.values())
        assert failed == {"EIO"}, f"files failed with {sorted(failed)}, not EIO"
        assert len(found) - len(whole) <= 4, f"{len(found) - len(whole)} files failed for 2 MiB of bad sectors"
        guest.check("umount /mnt/disk")
        guest.check(f"e2fsck -fn {device}", _LONG)
        guest.check(f"mount -t ext4 {device} /mnt/disk")
        sums = "\n".join(f"{digest}  /mnt/disk/{name}" for name, digest in whole.items())
        guest.check(f"sha256sum -cs <<'END'\n{sums}\nEND", _LONG)
        guest.check("umount /mnt/disk")
        read = f"dd if={device} of=/dev/null iflag=direct bs=4096 count=1 status=none"
        bad = guest.run(f"{read} skip={BAD_SECTORS[0] * _SECTOR // 4096}")
        assert bad.status, f"a bad sector could be read: {bad}"
        assert re.search("input/output error", bad.output, re.IGNORECASE), bad
        guest.check(f"{read} skip={BAD_SECTORS[-1] * _SECTOR // 4096 + 1}")
    return f"{len(whole)} files of {len(found)} are whole, the others got EIO"


def dead_disk_is_io_errors(guest: Guest, disk: Disk, server: DiskServer) -> str:
    """All requests fail from some moment on, under a file system that is written to; later the disk works again."""
    device = f"/dev/{disk.vdev}"
    guest.check(f"mke2fs -q -F -t ext4 {device} && mount -t ext4 {device} /mnt/disk", _LONG)
    guest.check("echo kept > /mnt/disk/kept && sync")
    with kernel_has_no_complaint(guest):
        write = "dd if=/dev/zero of=/mnt/disk/busy bs=64k count=16 conv=fsync,notrunc status=none"
        writing = guest.start(f"while {write}; do :; done; {write}")
        guest.check("until test -s /mnt/disk/busy; do usleep 20000; done", 30)
        server.kill_disks()
        failed = writing.wait(60)
        assert failed.status, "the guest could write on to a disk that is dead"
        assert re.search("input/output error|read-only file system", failed.output, re.IGNORECASE), failed
        guest.check("umount /mnt/disk", 60)
        server.mend_disks()
        guest.check(f"e2fsck -fy {device}; test $? -le 1", _LONG)
        guest.check(f"mount -t ext4 {device} /mnt/disk")
        assert guest.check("cat /mnt/disk/kept; umount /mnt/disk") == "kept\n", "what was synchronised is not there"
    return failed.output.strip().splitlines()[-1]


def unplug_under_requests(guest: Guest, disk: Disk) -> str:
    """A slow disk goes while more requests wait than its ring has slots: each fails, and none waits for ever."""
    queue = f"/sys/block/{disk.vdev}"
    with kernel_has_no_complaint(guest):
        running = writer(guest, disk, size=16 << 20, seed="unplug", threads=64)
        guest.check(f"until read -r _ writes < {queue}/inflight && test $writes -gt 31; do usleep 20000; done", 30)
        started = time.monotonic()
        disk.unplug()
        taken = time.monotonic() - started
        status, output = running.wait(60)
        assert status, "the guest could write on to a disk that is gone"
        assert "Input/output error" in output, output
        wait_until_gone(guest, disk)
    disk.plug()
    wait_for_disk(guest, disk)
    guest.check(f"dd if=/dev/{disk.vdev} of=/dev/null iflag=direct bs=4096 count=1 status=none", 30)
    return f"unplugged in {taken:.2f} s; {output.count('Input/output error')} threads of 64 got EIO"


def destroy_guest_in_use(
    guest: Guest, server: DiskServer, disks: Sequence[Disk], own: CommandDisk | None = None
) -> str:
    """The guest ends at once while its disks are written to: all nodes go, nothing stays mapped, the server goes on.

    `disks` are the server's; `own` has a process of its own, which is to end.
    """
    for disk in [*disks, own] if own else disks:
        writer(guest, disk, size=8 << 20, seed="doomed")
        written = f"read -r _ _ _ _ writes _ < /sys/block/{disk.vdev}/stat && test $writes -gt 20"
        guest.check(f"until {written}; do usleep 20000; done")
    assert server.mapped_areas(), "the server has nothing mapped even while the guest uses its disks"
    started = time.monotonic()
    guest.destroy()
    taken = time.monotonic() - started
    _wait_until(lambda: guest.domid not in {domain.domid for domain in xl_list()}, "the domain is still there")
    _wait_until(lambda: server.mapped_areas() == 0, "the server still has pages mapped")
    for disk in [*disks, own] if own else disks:
        top = disk.back.rsplit("/", 2)[0]
        _wait_until(partial(_has_no, top, str(guest.domid)), f"{disk!r} has nodes left")
    assert xenstore_read(f"/local/domain/{guest.domid}") is None, "the domain's nodes are still there"
    assert own is None or own.wait() == 0, f"its disk's server ended badly: {own.said()}"
    assert server.runs(), f"the server has ended: {server.said()}"
    return f"destroyed in {taken:.1f} s, all gone after {time.monotonic() - started:.1f} s"


def wait_for_requests(disk: CommandDisk, more: int, *, unless: Command | None = None) -> bool:
    """Wait until the server, since it was started, has done so many requests; False where `unless` ended first."""
    done = _requests(disk)
    begin = 0 if done is None else done
    deadline = time.monotonic() + 60
    while (done := _requests(disk)) is None or done < begin + more:
        if unless is not None and unless.done:
            return False
        assert time.monotonic() < deadline, f"no {more} requests came to {disk!r}: {disk.said()[-2000:]}"
        time.sleep(0.02)
    return True


def _requests(disk: CommandDisk) -> int | None:
    """How many requests the server that runs now had done when it last said something; None before it does."""
    for line in reversed(disk.said().split("\n")[:-1]):
        if line.startswith("{") and (said := json.loads(line))["event"] == "stats":
            return int(said["requests"])
    return None


def _wait_until(done: Callable[[], bool], what: str, timeout: float = 30) -> None:
    deadline = time.monotonic() + timeout
    while not done():
        assert time.monotonic() < deadline, f"{what} after {timeout:g} s"
        time.sleep(0.05)


def _has_no(path: str, name: str) -> bool:
    return name not in xenstore_list(path)
