"""What xengrant's front end does in a guest whose Linux has none, with a disk of whatever back end dom0 has.

Each check takes a guest that was given `FILES`, and a disk that is offered: its back end waits for a front end. It
leaves the disk offered. AssertionError or GuestError say what was not as it should be. Called by
`lab/jobs/block_front.py`.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lab.dom0.disks import CommandDisk, Disk, vdev_number
from lab.dom0.guest import Command, Guest
from lab.dom0.places import PROJECT

__all__ = [
    "FILES",
    "comes_again_after_kill",
    "every_way_to_use_it",
    "info_is_right",
    "offered",
    "random_requests",
    "shared_pages_run_out",
    "tool_copies_bytes",
    "unplug_in_use",
    "use_disk",
    "use_kernels_disk",
]

FILES: dict[str, Path | bytes] = {"/opt/disk_user.py": PROJECT / "lab" / "disk_user.py"}

_MIB = 1 << 20
_LONG = 240
_COPIED = 32  # MiB

_PATTERN = """
import random, sys
chance = random.Random(sys.argv[2])
for _ in range(int(sys.argv[1])):
    sys.stdout.buffer.write(chance.randbytes(1 << 20))
"""

_ALL_COMES_BACK = """
import time, xengrant
deadline = time.monotonic() + 30
with xengrant.connect() as domain, domain.gntshr() as gntshr:
    while True:
        try:
            gntshr.share_pages(0, 1000, writable=True).close()
            break
        except xengrant.GrantTableFull:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
"""
"""Of the 1024 pages that gntalloc lets a domain share (Linux drivers/xen/gntalloc.c)."""

_WAYS = {
    "as blkfront": "",
    "11 segments, anew for each request": "--segments 11 --anew",
    "32 segments, anew for each request": "--anew",
    "256 segments, 8 pages of ring": "--segments 256 --pages 600 --ring-order 3",
    "32-bit layout": "--protocol x86_32-abi",
    "two rings": "--rings 2 --ring-order 1",
}


@contextmanager
def offered(disk: Disk) -> Iterator[Disk]:
    """Offer the disk, and take its nodes away whatever happened. An error has what the back end said as a note."""
    try:
        disk.offer()
        yield disk
    except BaseException as error:
        if isinstance(disk, CommandDisk):
            error.add_note(f"the back end said: {disk.said()[-1500:]}")
        raise
    finally:
        disk.close()


def info_is_right(guest: Guest, disk: Disk) -> str:
    """The tool tells what the back end says of the disk."""
    info = _last_line(guest.check(f"{_attach(disk)} info --json", _LONG))
    size = disk.image.stat().st_size
    assert info["size"] == size, f"{info['size']} bytes, where the image has {size}"
    assert info["writable"] != disk.read_only, info
    assert info["sector_size"] == 512, info
    assert info["persistent"], f"no persistent grants: {info}"
    assert info["max_segments"] == 32, f"no indirect requests: {info}"
    return f"{info['max_segments']} segments, flush {info['can_flush']}, discard {info['can_discard']}"


def tool_copies_bytes(guest: Guest, disk: Disk) -> str:
    """What the tool writes is what the image has, and what the tool reads."""
    guest.check(f"python3 - {_COPIED} tool > /run/pattern <<'END'\n{_PATTERN}\nEND", _LONG)
    started = time.monotonic()
    guest.check(f"{_attach(disk)} write --sector 2048 < /run/pattern", _LONG)
    written = time.monotonic()
    digest = guest.check("sha256sum < /run/pattern; rm /run/pattern").split()[0]
    assert _digest(disk, _MIB, _COPIED * _MIB) == digest, "the image has other bytes than the tool wrote"
    assert not any(_bytes(disk, 0, _MIB)), "the tool wrote where it should not"
    between = time.monotonic()
    script = f"{_attach(disk)} read --sector 2048 --count {_COPIED * 2048} | sha256sum"
    assert guest.check(script, _LONG).split()[0] == digest, "the tool reads other bytes than it wrote"
    seconds = time.monotonic() - between
    return f"{_COPIED} MiB, written in {written - started:.1f} s and read in {seconds:.1f} s, by a start of it each"


def every_way_to_use_it(guest: Guest, disk: Disk) -> str:
    """With and without persistent grants, indirect requests, larger rings, both layouts; one after the other."""
    said = []
    for name, options in _WAYS.items():
        copied = use_disk(guest, disk, f"copy {name.split(maxsplit=1)[0]} {_COPIED // 2}", options)
        assert copied["read"] == copied["written"], f"{name}: other bytes were read than written"
        assert _digest(disk, 0, _COPIED // 2 * _MIB) == copied["written"], f"{name}: the image has other bytes"
        assert copied["persistent"] == ("anew" not in options), f"{name}: {copied}"
        said.append(f"{name}: {copied['write_mib_s']} and {copied['read_mib_s']} MiB/s")
    guest.check(f"python3 - <<'END'\n{_ALL_COMES_BACK}\nEND", _LONG)
    return "; ".join(said)


def comes_again_after_kill(guest: Guest, disk: Disk) -> str:
    """A front end that is killed while it reads leaves a disk that the next one resets and uses; thrice."""
    for _ in range(3):
        holding = _hold(guest, disk)
        holding.kill()
    copied = use_disk(guest, disk, "copy again 4")
    assert copied["read"] == copied["written"], copied
    guest.check(f"python3 - <<'END'\n{_ALL_COMES_BACK}\nEND", _LONG)
    return "and all shared pages came back"


def unplug_in_use(guest: Guest, disk: Disk) -> str:
    """The toolstack takes the disk away while it is read: the reads fail, and say why. Another one is usable."""
    holding = _hold(guest, disk)
    started = time.monotonic()
    disk.unplug()
    taken = time.monotonic() - started
    status, output = holding.wait(60)
    assert status == 0, output
    said = _last_line(output)
    assert said["ended"] == "PeerClosed", said
    guest.check(f"python3 - <<'END'\n{_ALL_COMES_BACK}\nEND", _LONG)
    disk.offer()
    copied = use_disk(guest, disk, "copy new 4")
    assert copied["read"] == copied["written"], copied
    return f"in {taken:.2f} s: {said['text']}"


def shared_pages_run_out(guest: Guest, disk: Disk) -> str:
    """Where the guest may share only 100 pages, requests wait for each other's, with pages that stay and without."""
    limit = "/sys/module/xen_gntalloc/parameters/limit"
    before = guest.check(f"cat {limit}; echo 100 > {limit}").strip()
    try:
        for options in ("", "--anew", "--anew --ring-order 2 --segments 11"):
            copied = use_disk(guest, disk, "copy few 8", options)
            assert copied["read"] == copied["written"], copied
    finally:
        guest.check(f"echo {before} > {limit}")
    return f"100 pages of {before}"


def random_requests(seconds: int) -> Callable[[Guest, Disk], str]:
    """The check that asks 200 requests at a time, of which all have room in the ring."""

    def random_requests(guest: Guest, disk: Disk) -> str:
        options = "--ring-order 3 --pages 600"
        return _judge_random(disk, use_disk(guest, disk, _at_random(seconds), options, seconds))

    return random_requests


def use_kernels_disk(guest: Guest, disk: Disk, seconds: int) -> str:
    """The same for the guest's own front end, by a thread for each request."""
    script = f"exec python3 /opt/disk_user.py /dev/{disk.vdev} {_at_random(seconds)}"
    return _judge_random(disk, _last_line(guest.check(script, _LONG + seconds)))


def _at_random(seconds: int) -> str:
    return f"random {time.time_ns()} {seconds}"


def _judge_random(disk: Disk, said: dict[str, Any]) -> str:
    """Compare the image with what the guest read of its disk in the end."""
    assert said["sha256"] == _digest(disk, 0, disk.image.stat().st_size), "the image is not what the guest read"
    total = sum(said["requests"].values())
    assert total >= 1000, f"only {total} requests"
    return ", ".join(f"{count} {kind}s" for kind, count in sorted(said["requests"].items()))


def use_disk(guest: Guest, disk: Disk, what: str, options: str = "", seconds: float = 0) -> dict[str, Any]:
    """Run `disk_user.py` on the front end's nodes; what it said."""
    return _last_line(guest.check(_user(disk, what, options), _LONG + seconds))


def _user(disk: Disk, what: str, options: str = "") -> str:
    return f"exec python3 /opt/disk_user.py {options} device/vbd/{vdev_number(disk.vdev)} {what}"


def _attach(disk: Disk) -> str:
    return f"python3 -m xengrant block attach 0 --vdev {disk.vdev}"


def _hold(guest: Guest, disk: Disk) -> Command:
    """A program that reads the disk all the time, once it does."""
    holding = guest.start(_user(disk, "hold"))
    deadline = time.monotonic() + 60
    while '"holds"' not in holding.output():
        assert not holding.done, f"it ended: {holding.output()}"
        assert time.monotonic() < deadline, f"it does not begin: {holding.output()}"
    return holding


def _last_line(output: str) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return said


def _bytes(disk: Disk, begin: int, length: int) -> bytes:
    with open(disk.image, "rb") as image:
        image.seek(begin)
        return image.read(length)


def _digest(disk: Disk, begin: int, length: int) -> str:
    return hashlib.sha256(_bytes(disk, begin, length)).hexdigest()
