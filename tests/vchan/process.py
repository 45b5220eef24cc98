"""A client in a process of its own, to be killed: `ClientProcess` in the test, `main` in the process."""

from __future__ import annotations

import subprocess
import sys
from typing import Self

import xengrant
from xengrant import vchan


class ClientProcess:
    """Connects to a vchan of domain `server`, writes `text`, and waits. Killed at the end."""

    def __init__(self, url: str, server: int, path: str, text: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, url, str(server), path, text],
            stdin=subprocess.PIPE,
            env={"PYTHONPATH": ":".join(path for path in sys.path if path)},
        )

    def kill(self) -> None:
        """As kill -9 does."""
        self._process.kill()
        self._process.wait(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()
        assert self._process.stdin is not None
        self._process.stdin.close()


def main() -> None:
    url, server, path, text = sys.argv[1:]
    with xengrant.connect(url) as domain, vchan.connect(int(server), path, timeout=60, domain=domain) as end:
        end.write(text.encode())
        sys.stdin.read()  # until the test is over


if __name__ == "__main__":
    main()
