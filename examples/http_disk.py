"""A read-only disk that lies on a web server: its sectors are fetched as they are read, with Range requests.

    python http_disk.py https://example.org/debian-live.iso 5

Domain 5 mounts its xvdb, and only what it looks at crosses the net. What was fetched is kept in memory.
"""

import asyncio
import collections
import contextlib
import errno
import sys
import threading
import urllib.request

from xengrant.pv import block

PIECE = 1 << 18  # bytes that are fetched at once
KEPT = 256  # pieces


class HttpDisk:
    def __init__(self, url: str) -> None:
        self.url = url
        self._kept: collections.OrderedDict[int, bytes] = collections.OrderedDict()
        self._lock = threading.Lock()  # a disk is used by a thread for each ring
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=30) as head:
            self.size = int(head.headers["Content-Length"])

    def pread(self, length: int, offset: int) -> bytes:
        pieces = range(offset // PIECE, (offset + length - 1) // PIECE + 1)
        data = b"".join(map(self._piece, pieces))
        start = offset % PIECE
        return data[start : start + length]

    def pwrite(self, data: bytes, offset: int) -> None:
        raise OSError(errno.EROFS, "the web is read-only")

    def flush(self) -> None:
        """Nothing was written."""

    def _piece(self, number: int) -> bytes:
        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
        first, last = number * PIECE, min((number + 1) * PIECE, self.size) - 1
        request = urllib.request.Request(self.url, headers={"Range": f"bytes={first}-{last}"})
        with urllib.request.urlopen(request, timeout=30) as answer:  # what fails is an OSError: the guest gets EIO
            if answer.status != 206:
                raise OSError(errno.EIO, f"{self.url}: this server gives no ranges (status {answer.status})")
            data: bytes = answer.read(last + 1 - first)
        with self._lock:
            self._kept[number] = data
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return data


async def main(url: str, domid: str) -> None:
    disk = await asyncio.to_thread(HttpDisk, url)
    async with block.plugged(disk, int(domid), offer=block.Offer(writable=False)) as bus:
        print("plugged", flush=True)
        await bus.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(*sys.argv[1:]))
