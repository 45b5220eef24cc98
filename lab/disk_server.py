"""Serves disks to every guest, by the nodes that jobs make: one process, one disk for each number, some of which fail.

    python3 disk_server.py DIRECTORY NUMBER=IMAGE[,MISHAP]... NUMBER=IMAGE,later

Mishaps are those of examples/failing_disk.py. A disk with `later` is as good as any until SIGUSR1, when nothing works
any more, and again from SIGUSR2 on. `lab.dom0.served_disks` runs it in dom0.
"""

from __future__ import annotations

import asyncio
import errno
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

from failing_disk import FailingDisk, Mishap  # type: ignore[import-not-found]

from xengrant import connect, pv
from xengrant.pv import block


class LaterDisk:
    """A disk that fails from a signal on, to the next."""

    def __init__(self, disk: block.File) -> None:
        self._disk = disk
        self.size = disk.size
        self.fails = False

    def pread(self, length: int, offset: int) -> bytearray:
        self._look()
        return self._disk.pread(length, offset)

    def pwrite(self, data: bytes, offset: int) -> None:
        self._look()
        self._disk.pwrite(data, offset)

    def flush(self) -> None:
        self._look()
        self._disk.flush()

    def _look(self) -> None:
        if self.fails:
            raise OSError(errno.EIO, "the disk is dead")


def disk_of(image: str, *mishaps: str) -> Any:
    disk = block.File(image)
    if not mishaps:
        return disk
    return LaterDisk(disk) if mishaps == ("later",) else FailingDisk(disk, list(map(Mishap, mishaps)))


async def main(directory: str, *words: str) -> None:
    disks = {handle: disk_of(*rest.split(",")) for handle, _, rest in (word.partition("=") for word in words)}
    ended = asyncio.Event()

    def fail(fails: bool) -> None:
        for disk in disks.values():
            if isinstance(disk, LaterDisk):
                disk.fails = fails
        print("dead" if fails else "alive", flush=True)

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, fail, True)
    loop.add_signal_handler(signal.SIGUSR2, fail, False)
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    with connect() as domain:
        async with pv.BackendBus(
            directory,
            lambda device: block.BlockBackend(device, disks[device.handle]),
            domain=domain,
            accept=lambda domid, handle: handle in disks,
        ):
            print("serving", flush=True)
            await ended.wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
