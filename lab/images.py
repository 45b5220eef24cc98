"""Building what the lab boots: Xen, Linux and the root file systems of dom0 and the guests, as files in the cache.

Called by `lab.run` and by `python3 -m lab images`. One directory for each release and recipe; it appears under its
name only when it is whole. The images hold Debian packages and nothing of the project: what changes from run to run
is appended by `lab.machine` (dom0) and `lab.dom0.overlay` (guests), so a change of the project never makes them
stale.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import re
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lab import architectures, cpio, mirrors, paths, releases, tools
from lab.architectures import AMD64, Architecture
from lab.cpio import CpioWriter
from lab.errors import LabError
from lab.releases import Release

__all__ = ["Images", "images"]

_UNWANTED = re.compile(
    r"usr/share/(doc|info|lintian|locale|man|perl|zoneinfo)/|usr/lib/udev/|usr/lib/apt/|usr/lib/xen-[^/]*/boot/"
    r"|usr/lib/[^/]*-linux-gnu/(gconv|perl)/|usr/lib/python3[^/]*/(pydoc_data|test|lib2to3)/"
    r"|var/cache/|var/lib/(apt|dpkg)/|boot/|dev/"
)
_GUEST_UNWANTED = re.compile(r"usr/s?bin/(dpkg|update-alternatives|start-stop-daemon)|usr/share/")
_KERNEL_WANTED = re.compile(r"(usr/)?lib/modules/[^/]+/(modules\.|.*/(%s)\.ko(\.xz)?$)|boot/(vmlinuz|xen)-")
_QEMU_WANTED = re.compile(r"usr/libexec/xen-qemu-system-i386|usr/lib/x86_64-linux-gnu/lib[^/]*")
_DEVEL_WANTED = re.compile(
    r"usr/include/(python3|[^/]*-linux-gnu/python3|(lib)?xen)|usr/lib/[^/]*-linux-gnu/libxen[^/]*\.so"
)
_KEPT_SECONDS = 14 * 86400
"""Images that no run has used for so long are removed: they are of a recipe that was changed."""


@dataclass(frozen=True)
class Images:
    """One release's files, whole and ready to boot."""

    directory: Path
    architecture: Architecture

    @property
    def xen(self) -> Path:
        """The hypervisor: for amd64 a 32-bit ELF file, as QEMU's multiboot wants it, for arm64 an Image."""
        return self.directory / "xen"

    @property
    def vmlinux(self) -> Path:
        """The kernel (for arm64 an Image), uncompressed, so that creating a guest does not uncompress it each time."""
        return self.directory / "vmlinux"

    @property
    def dom0(self) -> Path:
        return self.directory / "dom0.cpio"

    @property
    def guest(self) -> Path:
        return self.directory / "guest.cpio"

    @property
    def qemu(self) -> Path:
        """What dom0's image lacks to run QEMU, to be appended to it."""
        return self.directory / "qemu.cpio"

    @property
    def devel(self) -> Path:
        """The headers and libraries that programs are compiled with, as below /, where the host's will not do."""
        return self.directory / "devel"


def images(release: Release) -> Images:
    """The images of a release, built now if the cache has none of this recipe."""
    directory = paths.cache() / f"{release.name}-{_recipe(release)}"
    if not directory.is_dir():
        with paths.exclusive("images", "another build of images to end"):
            if not directory.is_dir():
                _build(release, directory)
    os.utime(directory)
    for other in directory.parent.glob("*-*/xen"):
        if time.time() - other.parent.stat().st_mtime > _KEPT_SECONDS:
            shutil.rmtree(other.parent, ignore_errors=True)
    return Images(directory, release.architecture)


def _recipe(release: Release) -> str:
    """What decides the content of the images. Updates of Debian's packages do not: delete the cache to get them."""
    digest = hashlib.sha256(repr(release).encode())
    for module in (__file__, str(releases.__file__), str(architectures.__file__), str(cpio.__file__)):
        digest.update(Path(module).read_bytes())
    return digest.hexdigest()[:12]


def _build(release: Release, directory: Path) -> None:
    tools.need(release.architecture, build=True)
    started = time.monotonic()
    paths.progress(f"building the images of {release.name} in {directory.parent}")
    with tempfile.TemporaryDirectory(prefix=f".{release.name}-", dir=directory.parent) as temporary:
        work, made = Path(temporary) / "work", Path(temporary) / "made"
        work.mkdir()
        made.mkdir()
        with ThreadPoolExecutor(2) as pool:
            for step in [pool.submit(_debian, release.suite, *tar, work) for tar in _tars(release)]:
                step.result()
        _kernel(release, work, made)
        _dom0(release, work, made)
        _guest(work, made)
        if release.qemu_packages:
            _qemu(work, made)
        if release.devel_packages:
            _devel(work, made)
        made.chmod(0o755)
        made.rename(directory)
    size = sum(file.stat().st_size for file in directory.iterdir()) >> 20
    paths.progress(f"images of {release.name}: {size} MiB in {time.monotonic() - started:.0f} s")


def _tars(release: Release) -> Iterator[tuple[str, Architecture, str, tuple[str, ...]]]:
    """What images are made of: the name of each tar file, and its architecture, variant and packages.

    `configured` is a system on which Debian's maintainer scripts have run, which the host has to be able to do.
    """
    own = release.architecture
    yield "configured", own if own.configured else AMD64, "minbase", release.dom0_packages
    if not own.configured:
        yield "dom0", own, "extract", ("?essential", "mount", *release.dom0_packages)
    yield "guest", own, "extract", release.guest_packages
    yield "kernel", own, "extract", release.kernel_packages
    for name, packages in (("qemu", release.qemu_packages), ("devel", release.devel_packages)):
        if packages:
            yield name, own, "extract", packages


def _debian(
    suite: str, name: str, architecture: Architecture, variant: str, packages: tuple[str, ...], work: Path
) -> None:
    """Run mmdebstrap: `minbase` configures a small system, `extract` only unpacks."""
    started = time.monotonic()
    command = ["mmdebstrap", f"--variant={variant}", *(f"--include={package}" for package in packages)]
    command += mirrors.apt_options()
    command += [f"--architectures={architecture.name}", suite, str(work / f"{name}.tar"), *mirrors.sources(suite)]
    tools.call(*command)
    paths.progress(f"{suite}: {architecture.name} packages for {name} in {time.monotonic() - started:.0f} s")


def _kernel(release: Release, work: Path, made: Path) -> None:
    """Take Xen, Linux and the few modules the lab uses out of their packages; the modules go to work/modules."""
    names = {*releases.DOM0_MODULES, *releases.GUEST_MODULES}
    wanted = re.compile(_KERNEL_WANTED.pattern % "|".join(map(re.escape, sorted(names))))
    with tarfile.open(work / "kernel.tar") as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            source = archive.extractfile(member) if member.isfile() and wanted.match(name) else None
            if source is None:
                continue
            content = source.read()
            if name.startswith("boot/xen-"):
                if name.endswith((".gz", f"-{release.architecture.name}")):
                    (made / "xen").write_bytes(gzip.decompress(content) if name.endswith(".gz") else content)
            elif name.startswith("boot/vmlinuz-"):
                (made / "vmlinux").write_bytes(_unpacked(content))
                version = name.removeprefix("boot/vmlinuz-")
            else:
                target = work / "modules" / name.removeprefix("usr/").removesuffix(".xz")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(lzma.decompress(content) if name.endswith(".xz") else content)
    tools.call("depmod", "-b", str(work / "modules"), version)


def _unpacked(image: bytes) -> bytes:
    """An arm64 Image as it is (its magic: Linux Documentation/arm64/booting.rst), or the ELF file inside a bzImage.

    Of that, Linux Documentation/arch/x86/boot.rst: payload_offset, payload_length.
    """
    if image[0x38:0x3C] == b"ARM\x64":
        return image
    setup_sectors = image[0x1F1] or 4
    offset = int.from_bytes(image[0x248:0x24C], "little") + (setup_sectors + 1) * 512
    payload = image[offset : offset + int.from_bytes(image[0x24C:0x250], "little")]
    if payload.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(payload)
    if payload.startswith(b"\x28\xb5\x2f\xfd"):
        # The last four bytes are the unpacked size, which is no part of the zstd stream.
        return tools.call("zstd", "-dc", input=payload[:-4])
    raise LabError(f"the kernel is compressed in a way the lab does not know: it starts with {payload[:6].hex()}")


def _dom0(release: Release, work: Path, made: Path) -> None:
    """A configured system; for an architecture that has none here, one of unpacked files with what it lacks then."""
    with open(made / "dom0.cpio", "wb") as out, CpioWriter(out) as image:
        if not release.architecture.configured:
            with tarfile.open(work / "dom0.tar") as unpacked:
                image.tar(unpacked, _below_usr)
            _link_to_usr(image)
        place = _wanted if release.architecture.configured else _for_any_architecture
        with tarfile.open(work / "configured.tar") as debian:
            image.tar(debian, place)
        image.tree("usr/lib/modules", work / "modules" / "lib" / "modules")
        for directory in ("dev", "proc", "sys"):
            image.directory(directory)
        image.device("dev/console", 0o600, 5, 1)


def _guest(work: Path, made: Path) -> None:
    """Debian's files, all below /usr; Python's standard library is compiled already, in the configured system."""
    with (
        tarfile.open(work / "guest.tar") as debian,
        tarfile.open(work / "configured.tar") as configured,
        open(made / "guest.cpio", "wb") as out,
        CpioWriter(out) as image,
    ):
        image.tar(configured, _compiled_library)
        image.tar(debian, _for_guests)
        image.tree("usr/lib/modules", work / "modules" / "lib" / "modules", _for_all_guests)
        _link_to_usr(image)
        image.device("dev/console", 0o600, 5, 1)


def _qemu(work: Path, made: Path) -> None:
    """QEMU as Debian builds it for Xen's dom0, and the libraries that dom0 has not got already."""
    with (
        tarfile.open(work / "configured.tar") as dom0,
        tarfile.open(work / "qemu.tar") as debian,
        open(made / "qemu.cpio", "wb") as out,
        CpioWriter(out) as image,
    ):
        there = {_for_guests(name.removeprefix("./")) for name in dom0.getnames()}

        def missing(name: str) -> str | None:
            placed = _for_guests(name)
            return placed if placed and placed not in there and _QEMU_WANTED.fullmatch(placed) else None

        image.tar(debian, missing)


def _devel(work: Path, made: Path) -> None:
    """Headers of Python and Xen, and Xen's libraries, for `lab.programs`."""
    with tarfile.open(work / "devel.tar") as debian:
        for member in debian:
            name = _below_usr(member.name.removeprefix("./"))
            if not name or not _DEVEL_WANTED.match(name):
                continue
            target = made / "devel" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if member.issym():
                target.symlink_to(member.linkname)
            elif source := debian.extractfile(member):
                target.write_bytes(source.read())


def _link_to_usr(image: CpioWriter) -> None:
    for link in ("bin", "sbin", "lib", "lib64"):
        image.directory(f"usr/{link}")
        image.symlink(link, f"usr/{link}")


def _wanted(name: str) -> str | None:
    return None if _UNWANTED.match(name) else name


def _below_usr(name: str) -> str | None:
    """Where a file goes in a system that has all below /usr, whatever its package says."""
    if re.fullmatch(r"s?bin|lib(64)?|var/(run|lock)", name):  # these are links, which maintainer scripts make
        return None
    return _wanted(f"usr/{name}" if re.match(r"(s?bin|lib|lib64)/", name) else name)


def _for_guests(name: str) -> str | None:
    placed = _below_usr(name)
    return None if placed is None or _GUEST_UNWANTED.match(placed) else placed


def _for_any_architecture(name: str) -> str | None:
    """What maintainer scripts have made, other than for the machine that they ran on."""
    return _wanted(name) if re.match(r"etc/(?!ld\.so)|var/(run|lock)$|usr/lib/python3.*\.pyc$", name) else None


def _compiled_library(name: str) -> str | None:
    return _wanted(name) if re.match(r"usr/lib/python3\..*\.pyc$", name) else None


def _for_all_guests(file: Path) -> bool:
    return file.suffix != ".ko" or file.stem not in releases.DISK_MODULES
