"""A disk that forgets: copy on write over an image that stays as it is.

    python overlay_disk.py golden.img 5 [CHANGES]

Domain 5 may do to its xvdb what it likes. What it writes goes into the file CHANGES, which the next start takes up; or
into a file without a name, and is gone when this ends. Many guests may run from one image at once.
"""

import asyncio
import contextlib
import errno
import os
import sys
import tempfile
import threading

from xengrant.pv import block

CLUSTER = 65536  # bytes that are copied at once: the first write to one brings the rest of it


class Overlay:
    """`base`, and over it a sparse file of clusters that were written; behind them a byte for each says which."""

    def __init__(self, base: block.File, changes: str | None) -> None:
        self.base = base
        self.size = base.size
        self._lock = threading.Lock()  # a disk is used by a thread for each ring
        if changes is None:
            self._fd = os.open(tempfile.gettempdir(), os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
        else:
            self._fd = os.open(changes, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        count = -(-self.size // CLUSTER)
        self._map_at = count * CLUSTER
        if os.fstat(self._fd).st_size not in (0, self._map_at + count):
            raise OSError(errno.EINVAL, "these changes are of another image", changes)
        os.ftruncate(self._fd, self._map_at + count)
        self._has = bytearray(os.pread(self._fd, count, self._map_at))

    def pread(self, length: int, offset: int) -> bytes:
        data = bytearray()
        while length:
            part = min(length, CLUSTER - offset % CLUSTER)
            with self._lock:
                own = self._has[offset // CLUSTER]
            data += os.pread(self._fd, part, offset) if own else self.base.pread(part, offset)
            offset, length = offset + part, length - part
        return bytes(data)

    def pwrite(self, data: bytes, offset: int) -> None:
        while data:
            part = min(len(data), CLUSTER - offset % CLUSTER)
            with self._lock:
                self._copy(offset // CLUSTER)
            os.pwrite(self._fd, data[:part], offset)
            offset, data = offset + part, data[part:]

    def flush(self) -> None:
        os.fdatasync(self._fd)

    def _copy(self, cluster: int) -> None:
        """The cluster first, then the byte that says so: what a crash leaves is the old one or the copy."""
        if not self._has[cluster]:
            at = cluster * CLUSTER
            os.pwrite(self._fd, self.base.pread(min(CLUSTER, self.size - at), at), at)
            os.pwrite(self._fd, b"\1", self._map_at + cluster)
            self._has[cluster] = 1


async def main(image: str, domid: str, changes: str | None = None) -> None:
    with block.File(image, writable=False) as base:
        async with block.plugged(Overlay(base, changes), int(domid)) as bus:
            print("plugged", flush=True)
            await bus.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(*sys.argv[1:]))
