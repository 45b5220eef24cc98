"""A program that uses a disk in a guest, through xengrant's front end or through the kernel's device.

    python3 disk_user.py [--rings N] [...] DISK copy SEED MIB       write a pattern, read it, say what came back
    python3 disk_user.py [--rings N] [...] DISK random SEED SECONDS  200 requests at a time, against a model
    python3 disk_user.py [--rings N] [...] DISK hold                 read all the time, and say what ended it

DISK is "device/vbd/51728", the front end's nodes, or "/dev/xvdb". What it has to say is a line of JSON. Run by jobs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import hashlib
import json
import mmap
import os
import random
import struct
import sys
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from xengrant.abi.blkif import NATIVE
from xengrant.pv import block
from xengrant.testing.disk_model import exercise

_DEPTH = 200
_REQUESTS = 1000  # at least, however slow the host
_LONGEST = 300  # sectors
_BLKDISCARD = 0x1277  # Linux include/uapi/linux/fs.h


class KernelDisk:
    """A block device of the kernel's, without its page cache: a thread for each request that is under way."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
        self.sectors = os.lseek(self._fd, 0, os.SEEK_END) // 512
        threading.stack_size(256 << 10)
        self._pool = ThreadPoolExecutor(_DEPTH)
        self._loop = asyncio.get_running_loop()
        self._buffers = [mmap.mmap(-1, -(-_LONGEST * 512 // 4096) * 4096) for _ in range(_DEPTH)]

    def read(self, sector: int, count: int) -> asyncio.Future[bytes]:
        return self._loop.run_in_executor(self._pool, self._read, sector, count)

    def write(self, sector: int, data: bytes) -> asyncio.Future[None]:
        return self._loop.run_in_executor(self._pool, self._write, sector, data)

    def flush(self) -> asyncio.Future[None]:
        return self._loop.run_in_executor(self._pool, os.fsync, self._fd)

    def discard(self, sector: int, count: int) -> asyncio.Future[Any]:
        place = struct.pack("QQ", sector * 512, count * 512)
        return self._loop.run_in_executor(self._pool, fcntl.ioctl, self._fd, _BLKDISCARD, place)

    def close(self) -> None:
        self._pool.shutdown()
        os.close(self._fd)

    def _read(self, sector: int, count: int) -> bytes:
        with self._buffer() as buffer, memoryview(buffer)[: count * 512] as view:
            got = os.preadv(self._fd, [view], sector * 512)
            assert got == len(view), f"{got} bytes of {len(view)} at sector {sector}"
            return bytes(view)

    def _write(self, sector: int, data: bytes) -> None:
        with self._buffer() as buffer, memoryview(buffer)[: len(data)] as view:
            view[:] = data
            taken = os.pwritev(self._fd, [view], sector * 512)
            assert taken == len(view), f"{taken} bytes of {len(view)} at sector {sector}"

    @contextlib.contextmanager
    def _buffer(self):  # type: ignore[no-untyped-def]
        buffer = self._buffers.pop()
        try:
            yield buffer
        finally:
            self._buffers.append(buffer)


@contextlib.asynccontextmanager
async def opened(options: argparse.Namespace) -> AsyncIterator[tuple[Any, int]]:
    """The disk, and its size in sectors of 512 bytes."""
    if options.disk.startswith("/dev/"):
        kernels = KernelDisk(options.disk)
        try:
            yield kernels, kernels.sectors
        finally:
            kernels.close()
        return
    use = block.Use(
        protocol=options.protocol,
        rings=options.rings,
        ring_order=options.ring_order,
        max_segments=options.segments,
        persistent=not options.anew,
        pool_pages=options.pages,
    )
    async with block.attach(options.disk, use=use, timeout=30) as disk:
        yield disk, disk.info.sectors


async def copy(options: argparse.Namespace) -> dict[str, object]:
    """Several pieces at a time: what was written, and what was read, as SHA-256."""
    size, piece = options.mib << 20, 256 << 10
    data = random.Random(options.seed).randbytes(size)
    places = range(0, size, piece)
    async with opened(options) as (disk, sectors):
        assert sectors * 512 >= size, f"a disk of {sectors} sectors"
        started = time.monotonic()
        for at in range(0, len(places), 8):
            await asyncio.gather(*(disk.write(to // 512, data[to : to + piece]) for to in places[at : at + 8]))
        await disk.flush()
        written = time.monotonic()
        read = hashlib.sha256()
        for at in range(0, len(places), 8):
            for got in await asyncio.gather(*(disk.read(to // 512, piece // 512) for to in places[at : at + 8])):
                read.update(got)
        seconds = time.monotonic()
        info = getattr(disk, "info", None)
        return {
            "written": hashlib.sha256(data).hexdigest(),
            "read": read.hexdigest(),
            "write_mib_s": round(options.mib / (written - started), 1),
            "read_mib_s": round(options.mib / (seconds - written), 1),
            "persistent": info and info.persistent,
            "segments": info and info.max_segments,
            "ring_pages": info and info.ring_pages,
            "rings": info and info.rings,
        }


async def at_random(options: argparse.Namespace) -> dict[str, object]:
    async with opened(options) as (disk, sectors):
        outcome = await exercise(
            disk,
            sectors,
            seed=options.seed,
            seconds=options.seconds,
            requests=_REQUESTS,
            depth=_DEPTH,
            longest=_LONGEST,
        )
    return {"requests": outcome.requests, "sha256": outcome.sha256}


async def hold(options: argparse.Namespace) -> dict[str, object]:
    """Many reads at a time, until one fails."""
    async with opened(options) as (disk, sectors):
        print(json.dumps({"holds": sectors}), flush=True)
        try:
            while True:
                await asyncio.gather(*(disk.read(at, 64) for at in range(0, 64 * 64, 64)))
        except OSError as error:
            return {"ended": type(error).__name__, "text": str(error)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--protocol", default=NATIVE.protocol)
    parser.add_argument("--rings", type=int, default=1)
    parser.add_argument("--ring-order", type=int, default=0)
    parser.add_argument("--segments", type=int, default=32)
    parser.add_argument("--pages", type=int, default=256, help="that stay shared, for each ring")
    parser.add_argument("--anew", action="store_true", help="share pages anew for each request")
    parser.add_argument("disk")
    works = parser.add_subparsers(required=True)
    for name, work, last in (("copy", copy, "mib"), ("random", at_random, "seconds"), ("hold", hold, None)):
        action = works.add_parser(name)
        action.set_defaults(work=work)
        if last:
            action.add_argument("seed")
            action.add_argument(last, type=int)
    options = parser.parse_args()
    try:
        print(json.dumps(asyncio.run(options.work(options))), flush=True)
    except ExceptionGroup as group:
        sys.exit(f"{len(group.exceptions)} requests failed, the first: {group.exceptions[0]!r}")


main()
