"""Disks that one process of the project's serves to whatever guests jobs make nodes for: `DiskServer`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Self

from lab.dom0.disks import Disk, XlDisk, vdev_number
from lab.dom0.places import PROJECT

__all__ = ["DiskServer", "ServedDisk", "XlServedDisk"]

_SECONDS = 60


class DiskServer:
    """lab/disk_server.py, from `with` on. `disks` says of each virtual disk its image, and how it fails."""

    def __init__(self, disks: Mapping[str, Sequence[str | Path]], directory: str = "labdisks") -> None:
        self.directory = directory
        self._words = [f"{vdev_number(vdev)}={','.join(map(str, words))}" for vdev, words in disks.items()]
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - as long as this object
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        command = [sys.executable, str(PROJECT / "lab" / "disk_server.py"), self.directory, *self._words]
        self._process = subprocess.Popen(command, stdout=self._said, stderr=self._said)
        self.wait_until_it_says("serving")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(_SECONDS)
        finally:
            self._process.kill()
            self._process.wait()

    def kill_disks(self) -> None:
        """From now on those that are to fail later do."""
        self._signal(signal.SIGUSR1, "dead")

    def mend_disks(self) -> None:
        self._signal(signal.SIGUSR2, "alive")

    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def mapped_areas(self) -> int:
        """How many areas of other domains' memory the process has mapped."""
        assert self._process is not None
        maps = Path(f"/proc/{self._process.pid}/maps").read_text()
        return sum("/dev/xen/gntdev" in line for line in maps.splitlines())

    def said(self) -> str:
        return os.pread(self._said.fileno(), 1 << 20, 0).decode(errors="replace")

    def wait_until_it_says(self, text: str, times: int = 1) -> None:
        deadline = time.monotonic() + _SECONDS
        while self.said().splitlines().count(text) < times:
            if not self.runs() or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not say {text!r}, but: {self.said()}")
            time.sleep(0.02)

    def _signal(self, number: signal.Signals, answer: str) -> None:
        assert self._process is not None
        times = self.said().splitlines().count(answer)
        self._process.send_signal(number)
        self.wait_until_it_says(answer, times + 1)


class ServedDisk(Disk):
    """A disk of a `DiskServer`, by nodes that the lab makes as a toolstack does."""

    kind = "xengrant.pv.block"
    directory = "labdisks"


class XlServedDisk(XlDisk):
    """The same, by nodes that `xl block-attach` makes. Once xen-blkback is loaded it takes them for its own."""

    kind = "xengrant.pv.block by xl"

    def prepare(self) -> None:
        self._device = str(self.image)

    def release(self) -> None:
        self._device = ""
