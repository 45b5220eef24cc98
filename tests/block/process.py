"""A server in a process of its own, to be killed: `ServerProcess` in the test, `main` in the process."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Self

import xengrant
from xengrant import pv
from xengrant.pv import block


class ServerProcess:
    """Dom0 serves the image at `path` to whoever has a device; ready when it is made. Killed at the end."""

    def __init__(self, url: str, path: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, url, path],
            stdout=subprocess.PIPE,
            env={"PYTHONPATH": ":".join(path for path in sys.path if path)},
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def kill(self) -> None:
        """As kill -9 does."""
        self._process.kill()
        self._process.wait(10)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()


async def main() -> None:
    url, path = sys.argv[1:]
    with xengrant.connect(url) as domain, block.File(path) as image:
        async with pv.BackendBus("vbd", block.serving(image), domain=domain) as bus:
            print("ready", flush=True)
            await bus.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
