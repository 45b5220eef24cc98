"""A disk that exists only in this program: a file system's worth of memory, whose every write is told.

    python disk_in_40_lines.py 5            # in dom0; in domain 5: mkfs /dev/xvdb, mount, and so on

Ctrl-C unplugs it. Without Xen: the same on `xengrant machine`, and `block attach` for a guest.
"""

import asyncio
import contextlib
import sys

from xengrant.pv import block


class Told:
    """Anything with `pread`, `pwrite`, `flush` and `size` is a disk. Positions and lengths are in bytes."""

    size = 64 << 20

    def __init__(self) -> None:
        self.data = bytearray(self.size)

    def pread(self, length: int, offset: int) -> bytes:
        return bytes(self.data[offset : offset + length])

    def pwrite(self, data: bytes, offset: int) -> None:
        print(f"{len(data)} bytes at {offset}", flush=True)
        self.data[offset : offset + len(data)] = data

    def flush(self) -> None:
        print("flush", flush=True)


async def main() -> None:
    async with block.plugged(Told(), front=int(sys.argv[1])) as bus:
        print("plugged", flush=True)
        await bus.serve_forever()


with contextlib.suppress(KeyboardInterrupt):
    asyncio.run(main())
