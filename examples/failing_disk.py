"""A disk that fails, is slow, or lies, by a schedule: to see what a guest makes of it.

    python failing_disk.py disk.img 5 fail:2048-4095 slow:0.2@10 corrupt:100000-100007 dead@5000

Each word is a mishap: `fail:A-B` an error for whoever touches the sectors A to B (of 512 bytes), `failwrite:A-B` for
who writes them; `corrupt:A-B` bytes that come back with a bit turned; `slow:S@N` S seconds for each Nth request;
`dead@N` a disk that does nothing any more after N requests. The image itself stays whole.
"""

import asyncio
import contextlib
import errno
import itertools
import re
import sys
import time

from xengrant.pv import block

SECTOR = 512


class Mishap:
    """One word of the schedule."""

    def __init__(self, word: str) -> None:
        found = re.fullmatch(r"(fail|failwrite|corrupt):(\d+)-(\d+)|(slow):([\d.]+)@(\d+)|(dead)@(\d+)", word)
        if not found:
            sys.exit(f"{word!r} is no mishap: see the first lines of this program")
        self.kind = found[1] or found[4] or found[7]
        self.first, self.last = int(found[2] or 0), int(found[3] or 0)
        self.seconds = float(found[5] or 0)
        self.every = int(found[6] or found[8] or 0)

    def meets(self, length: int, offset: int) -> bool:
        return offset < (self.last + 1) * SECTOR and self.first * SECTOR < offset + length


class FailingDisk:
    def __init__(self, disk: block.File, schedule: list[Mishap]) -> None:
        self.disk = disk
        self.size = disk.size
        self._schedule = schedule
        self._requests = itertools.count(1)

    def pread(self, length: int, offset: int) -> bytearray:
        self._suffer(("fail",), length, offset)
        data = self.disk.pread(length, offset)
        for mishap in self._schedule:
            if mishap.kind == "corrupt" and mishap.meets(length, offset):
                data[max(mishap.first * SECTOR - offset, 0)] ^= 0x10
        return data

    def pwrite(self, data: bytes, offset: int) -> None:
        self._suffer(("fail", "failwrite"), len(data), offset)
        self.disk.pwrite(data, offset)

    def flush(self) -> None:
        self._suffer((), 0, 0)
        self.disk.flush()

    def _suffer(self, failing: tuple[str, ...], length: int, offset: int) -> None:
        number = next(self._requests)
        for mishap in self._schedule:
            if mishap.kind == "slow" and number % mishap.every == 0:
                time.sleep(mishap.seconds)
            if (mishap.kind in failing and mishap.meets(length, offset)) or (
                mishap.kind == "dead" and number > mishap.every
            ):
                raise OSError(errno.EIO, f"{mishap.kind}, as scheduled")


async def main(image: str, domid: str, *schedule: str) -> None:
    with block.File(image) as disk:
        async with block.plugged(FailingDisk(disk, list(map(Mishap, schedule))), int(domid)) as bus:
            print("plugged", flush=True)
            await bus.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(*sys.argv[1:]))
