"""Disks that dom0 serves to a guest, by different back ends on an image file: Linux's own, QEMU's, or a command's.

Jobs plug and unplug them all alike. The nodes of Linux's and QEMU's are written here by hand, as libxl writes them
(Xen tools/libs/light/libxl_disk.c, docs/misc/xenstore-paths.pandoc), so that no script of udev's or xl's is needed.
The lab's own view of these disks, with nothing of the project: what the project serves is measured against it.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Self

from lab.dom0.places import RESULTS
from lab.dom0.xenstore import xenstore_permit, xenstore_read, xenstore_remove, xenstore_wait, xenstore_write
from lab.dom0.xl import xl

__all__ = ["CLOSED", "CLOSING", "CommandDisk", "Disk", "LinuxDisk", "QemuDisk", "XlDisk", "python_disk", "vdev_number"]

INITIALISING, WAITING, CONNECTED, CLOSING, CLOSED = "1", "2", "4", "5", "6"
"""States of Xen public/io/xenbus.h."""

_QEMU = "/usr/libexec/xen-qemu-system-i386"
_SCRIPT = """#!/bin/sh
# What libxl runs once the back end waits, with "add", and later with "remove". Debian's own `block` makes loop devices,
# looks whether others use them, and wants udev's /dev.
test "$1" = add || exit 0
device=$(xenstore-read "$XENBUS_PATH/params")
test -b "$device" && xenstore-write "$XENBUS_PATH/physical-device-path" "$device" \\
    "$XENBUS_PATH/physical-device" "$(stat -c %t:%T "$device")"
xenstore-write "$XENBUS_PATH/hotplug-status" connected
"""
_SERVE = "{python} -m xengrant block serve {image} --to {domid} --vdev {vdev} --backend {directory}"


def vdev_number(vdev: str) -> int:
    """The number of a virtual disk: 51712 is xvda, 51728 xvdb (Xen docs/man/xen-vbd-interface.7.pandoc)."""
    return 202 << 8 | (ord(vdev.removeprefix("xvd")) - ord("a")) << 4


class Disk:
    """A disk of one guest, on an image file in dom0. `with` plugs it, and takes it away whatever happened.

    `directory` is the back end's below /local/domain/0/backend. Linux's claims all that is in "vbd" once it is loaded.
    """

    kind = ""
    directory = "vbd"

    def __init__(self, domid: int, image: Path, vdev: str = "xvdb", *, read_only: bool = False) -> None:
        self.domid, self.image, self.vdev, self.read_only = domid, image, vdev, read_only
        number = vdev_number(vdev)
        self.front = f"/local/domain/{domid}/device/vbd/{number}"
        self.back = f"/local/domain/0/backend/{self.directory}/{domid}/{number}"

    def __enter__(self) -> Self:
        try:
            self.plug()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{self.kind} {self.vdev} of domain {self.domid}>"

    def plug(self, timeout: float = 30) -> None:
        """Offer the disk; returns when both ends are connected, so the guest's front end must be there."""
        self.begin()
        self.wait_connected(timeout)

    def offer(self, timeout: float = 30) -> None:
        """As `plug`, for a front end that comes later: returns when the back end waits for one."""
        self.begin()
        xenstore_wait(f"{self.back}/state", lambda value: value == WAITING, timeout, f"{self!r} is not offered")

    def begin(self) -> None:
        """Make what there has to be, nodes last."""
        self.prepare()
        self.write_nodes()

    def unplug(self, timeout: float = 30) -> None:
        """Take the disk away as `xl block-detach` does. The guest is not asked: a mounted disk goes too."""
        xenstore_write({f"{self.back}/online": 0, f"{self.back}/state": CLOSING})
        for end in (self.front, self.back):
            xenstore_wait(f"{end}/state", lambda value: value in (CLOSED, None), timeout, f"{self!r} does not close")
        self.remove_nodes()
        self.release()

    def close(self) -> None:
        """Remove what there is, in any state. The guest may be gone."""
        self.remove_nodes()
        self.release()

    def prepare(self) -> None:
        """Make what the back end needs besides nodes."""

    def release(self) -> None:
        """Undo `prepare`; nothing happens if that has been done."""

    def own_nodes(self) -> dict[str, object]:
        """The nodes in the back end's directory that only this kind has."""
        return {}

    def write_nodes(self) -> None:
        """Write both directories, as one transaction once their permissions are set: the guest sees them whole."""
        xenstore_write({self.front: "", self.back: ""})
        xenstore_permit(self.front, f"n{self.domid}", "r0")
        xenstore_permit(self.back, "n0", f"r{self.domid}")
        front = {
            "backend": self.back,
            "backend-id": 0,
            "virtual-device": vdev_number(self.vdev),
            "device-type": "disk",
            "state": INITIALISING,
        }
        back = {
            "frontend": self.front,
            "frontend-id": self.domid,
            "online": 1,
            "removable": 0,
            "bootable": 0,
            "dev": self.vdev,
            "mode": "r" if self.read_only else "w",
            "device-type": "disk",
            **self.own_nodes(),
            "state": INITIALISING,
        }
        nodes = {f"{self.back}/{name}": value for name, value in back.items()}
        xenstore_write(nodes | {f"{self.front}/{name}": value for name, value in front.items()})

    def wait_connected(self, timeout: float) -> None:
        for end in (self.back, self.front):
            xenstore_wait(f"{end}/state", lambda value: value == CONNECTED, timeout, f"{self!r} does not connect")

    def remove_nodes(self) -> None:
        if xenstore_read(f"/local/domain/{self.domid}/domid") is not None:
            xenstore_remove(self.front)
        xenstore_remove(self.back, tidy=True)


class LinuxDisk(Disk):
    """A disk served by dom0's Linux: xen-blkback over a loop device on the image."""

    kind = "xen-blkback"

    def __init__(self, domid: int, image: Path, vdev: str = "xvdb", *, read_only: bool = False) -> None:
        super().__init__(domid, image, vdev, read_only=read_only)
        self._device = ""

    def prepare(self) -> None:
        subprocess.run(["modprobe", "-a", "loop", "xen-blkback"], check=True)
        options = ["--read-only"] if self.read_only else []
        command = ["losetup", "--find", "--show", *options, str(self.image)]
        self._device = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def own_nodes(self) -> dict[str, object]:
        device = os.stat(self._device).st_rdev
        physical = f"{os.major(device):x}:{os.minor(device):x}"
        return {"type": "phy", "params": self._device, "physical-device": physical, "hotplug-status": "connected"}

    def release(self) -> None:
        if self._device:
            subprocess.run(["losetup", "--detach", self._device], check=True)
            self._device = ""


class XlDisk(LinuxDisk):
    """The same, with nodes that `xl block-attach` makes, whose script is the lab's."""

    kind = "xen-blkback by xl"

    def plug(self, timeout: float = 30) -> None:
        self.prepare()
        script = Path("/etc/xen/scripts/block-lab")
        script.write_text(_SCRIPT)
        script.chmod(0o755)
        access = "ro" if self.read_only else "rw"
        # The target comes last: it swallows what follows.
        disk = f"vdev={self.vdev},format=raw,access={access},script={script.name},target={self._device}"
        xl("block-attach", str(self.domid), disk, timeout=timeout)
        self.wait_connected(timeout)

    def unplug(self, timeout: float = 30) -> None:
        xl("block-detach", str(self.domid), self.vdev, timeout=timeout)
        left = [end for end in (self.front, self.back) if xenstore_read(end) is not None]
        if left:
            raise RuntimeError(f"xl block-detach left {left}")
        self.release()


class QemuDisk(Disk):
    """A disk served by QEMU's qdisk, for runs with `--qemu`. libxl has one QEMU for each domain: so has this class."""

    kind = "qdisk"
    directory = "qdisk"

    def __init__(self, domid: int, image: Path, vdev: str = "xvdb", *, read_only: bool = False) -> None:
        super().__init__(domid, image, vdev, read_only=read_only)
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def available() -> bool:
        return os.path.exists(_QEMU)

    def prepare(self) -> None:
        with open(RESULTS / "qemu-qdisk.log", "ab") as log:
            self._process = subprocess.Popen(
                [
                    *(_QEMU, "-xen-domid", str(self.domid), "-xen-attach", "-name", f"domain{self.domid}"),
                    *("-M", "xenpv", "-nodefaults", "-no-user-config", "-display", "none"),
                    *("-monitor", "none", "-serial", "none", "-parallel", "none"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def own_nodes(self) -> dict[str, object]:
        return {"type": "qdisk", "params": f"aio:{self.image}", "discard-enable": 1}

    def release(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class CommandDisk(Disk):
    """A disk served by a command in dom0, which makes the nodes itself, and unplugs the disk when it gets SIGTERM."""

    kind = "command"
    directory = "labvbd"

    def __init__(
        self, domid: int, image: Path, vdev: str = "xvdb", *, read_only: bool = False, command: str = ""
    ) -> None:
        super().__init__(domid, image, vdev, read_only=read_only)
        self.command = command.format(
            python=sys.executable, image=image, domid=domid, vdev=vdev, directory=self.directory
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None

    def plug(self, timeout: float = 30) -> None:
        with self._complaints():
            super().plug(timeout)

    def offer(self, timeout: float = 30) -> None:
        with self._complaints():
            super().offer(timeout)

    def begin(self) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - until the next one
        self._process = subprocess.Popen(shlex.split(self.command), stdout=self._said, stderr=self._said)

    @contextmanager
    def _complaints(self) -> Iterator[None]:
        """Say what the command said where it is waited for in vain."""
        try:
            yield
        except TimeoutError as error:
            raise TimeoutError(f"{error}; {self.command!r} said: {self.said()}") from None

    def unplug(self, timeout: float = 30) -> None:
        """End the command, which must leave no nodes."""
        if self._process is not None:
            self._process.terminate()
            status = self._process.wait(timeout)
            left = [end for end in (self.front, self.back) if xenstore_read(f"{end}/state") is not None]
            if status or left:
                raise RuntimeError(f"{self.command!r} ended with {status}, left {left} and said: {self.said()}")
            self._process = None

    def kill(self) -> None:
        """SIGKILL: the guest waits for a successor, which is `plug`."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        self.kill()
        super().close()

    def wait(self, timeout: float = 60) -> int:
        """Wait until the command ends by itself; its exit status."""
        assert self._process is not None, f"{self!r} has no process"
        status = self._process.wait(timeout)
        self._process = None
        return status

    def said(self) -> str:
        """What the process that runs, or ran last, has printed."""
        return "" if self._said is None else os.pread(self._said.fileno(), 1 << 20, 0).decode(errors="replace")


def python_disk(
    domid: int, image: Path, vdev: str = "xvdb", *, read_only: bool = False, options: str = ""
) -> CommandDisk:
    """The project's own back end: the tool, with more `options`."""
    command = f"{_SERVE} {options}" + (" --read-only" if read_only else "")
    return CommandDisk(domid, image, vdev, read_only=read_only, command=command)
