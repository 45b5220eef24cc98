"""The memory image a machine boots from: Debian's files from the cache, and a snapshot of the project for this run.

Called by `lab.run`. An initramfs may be several cpio archives, one after the other: what comes later wins. Everything
a run needs is in it, since 9p is slow under emulation and, in some Linux releases, stalls on large reads.
"""

from __future__ import annotations

import io
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from lab import paths, programs
from lab.cpio import CpioWriter
from lab.images import Images
from lab.releases import Release

__all__ = ["Luggage", "write"]

_EXPORTED = ("src", "lab", "tests", "benchmarks", "examples", "docs", "README.md")
_NOISE = re.compile(r"/(__pycache__|\.[^/]+|[^/]+\.egg-info|build)$")
_INIT = paths.LAB / "init"
_NOT_TESTED = re.compile(r"/(__pycache__|\.[^/]+|[^/]+\.egg-info|build|dist|venv|node_modules)$")


@dataclass(frozen=True)
class Luggage:
    """What a run takes along besides: QEMU for dom0, another project's directory, and one with packages of PyPI."""

    qemu: bool = False
    project: Path | None = None
    site: Path | None = None


def write(
    target: Path,
    release: Release,
    images: Images,
    request: dict[str, object],
    luggage: Luggage,
    *,
    interactive: bool,
) -> None:
    """Write dom0's initrd: its files, the guests' image and kernel in /images, the project in /opt/project."""
    with open(target, "wb") as out:
        for image in (images.dom0, *([images.qemu] if luggage.qemu else [])):
            with open(image, "rb") as base:
                shutil.copyfileobj(base, out, 1 << 20)
        with CpioWriter(out) as archive:
            _dom0(archive, release, request, interactive=interactive)
            if luggage.project is not None:
                archive.tree("opt/under_test", luggage.project, _is_under_test)
            if luggage.site is not None:
                archive.tree("opt/site", luggage.site)
            archive.file("images/vmlinux", images.vmlinux.read_bytes())
            archive.file("images/guest.cpio", images.guest.read_bytes() + _guest(release))


def _dom0(archive: CpioWriter, release: Release, request: dict[str, object], *, interactive: bool) -> None:
    archive.file("init", (_INIT / "dom0.sh").read_bytes(), mode=0o755)
    archive.tree("etc/fstab", _INIT / "dom0.fstab")
    for directory in ("results", "var/log/xen", "var/lib/xen"):
        archive.directory(directory)
    for name in _EXPORTED:
        if (paths.CHECKOUT / name).exists():
            archive.tree(f"opt/project/{name}", paths.CHECKOUT / name, _wanted)
    if extension := programs.extension(release.architecture):
        archive.tree(f"opt/project/src/xengrant/{extension.name}", extension)
    _programs(archive, release, "opt/project/bin")
    archive.file("opt/project/run.json", json.dumps(request).encode())
    if interactive:
        archive.file("opt/project/interactive", b"")


def _guest(release: Release) -> bytes:
    """What is appended to each guest's image: its init and agent, and the programs of build/lab/bin.

    dom0 adds the package (`lab.dom0.overlay`).
    """
    out = io.BytesIO()
    with CpioWriter(out) as archive:
        for directory in ("dev", "proc", "root", "run", "sys", "tmp"):
            archive.directory(directory)
        archive.file("init", (_INIT / "guest.sh").read_bytes(), mode=0o755)
        archive.tree("etc/fstab", _INIT / "guest.fstab")
        archive.tree("opt/lab/agent.py", _INIT / "agent.py")
        _programs(archive, release, "opt/bin")
    return out.getvalue()


def _programs(archive: CpioWriter, release: Release, target: str) -> None:
    """The C programs, and the name by which they ask for libxenvchan (`lab.programs`)."""
    made = programs.directory(release.architecture)
    if made.is_dir():
        archive.tree(target, made)
    archive.symlink(f"usr/lib/{release.architecture.triplet}/{programs.VCHAN}", f"{programs.VCHAN}.{release.xen}")


def _wanted(path: Path) -> bool:
    return not _NOISE.search(str(path))


def _is_under_test(path: Path) -> bool:
    """Of another project, whose directory may have anything in it, sockets and links to nowhere too."""
    return not _NOT_TESTED.search(str(path)) and (path.is_file() or (path.is_dir() and not _is_environment(path)))


def _is_environment(path: Path) -> bool:
    return (path / "pyvenv.cfg").exists()
