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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lab import cpio, mirrors, paths, releases, tools
from lab.cpio import CpioWriter
from lab.errors import LabError
from lab.releases import Release

__all__ = ["Images", "images"]

_UNWANTED = re.compile(
    r"usr/share/(doc|info|lintian|locale|man|perl|zoneinfo)/|usr/lib/udev/|usr/lib/apt/|usr/lib/xen-[^/]*/boot/"
    r"|usr/lib/x86_64-linux-gnu/(gconv|perl)/|usr/lib/python3[^/]*/(pydoc_data|test|lib2to3)/"
    r"|var/cache/|var/lib/(apt|dpkg)/|boot/|dev/"
)
_GUEST_UNWANTED = re.compile(r"usr/s?bin/(dpkg|update-alternatives|start-stop-daemon)|usr/share/")
_KERNEL_WANTED = re.compile(r"(usr/)?lib/modules/[^/]+/(modules\.|.*/(%s)\.ko(\.xz)?$)|boot/(vmlinuz|xen)-")
_QEMU_WANTED = re.compile(r"usr/libexec/xen-qemu-system-i386|usr/lib/x86_64-linux-gnu/lib[^/]*")
_KEPT_SECONDS = 14 * 86400
"""Images that no run has used for so long are removed: they are of a recipe that was changed."""


@dataclass(frozen=True)
class Images:
    """One release's files, whole and ready to boot."""

    directory: Path

    @property
    def xen(self) -> Path:
        """The hypervisor, a 32-bit ELF file as QEMU's multiboot wants it."""
        return self.directory / "xen"

    @property
    def vmlinuz(self) -> Path:
        return self.directory / "vmlinuz"

    @property
    def vmlinux(self) -> Path:
        """The same kernel uncompressed, so that creating a guest does not uncompress it each time."""
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
    return Images(directory)


def _recipe(release: Release) -> str:
    """What decides the content of the images. Updates of Debian's packages do not: delete the cache to get them."""
    digest = hashlib.sha256(repr(release).encode())
    for module in (__file__, str(releases.__file__), str(cpio.__file__)):
        digest.update(Path(module).read_bytes())
    return digest.hexdigest()[:12]


def _build(release: Release, directory: Path) -> None:
    tools.need(build=True)
    started = time.monotonic()
    paths.progress(f"building the images of {release.name} in {directory.parent}")
    with tempfile.TemporaryDirectory(prefix=f".{release.name}-", dir=directory.parent) as temporary:
        work, made = Path(temporary) / "work", Path(temporary) / "made"
        work.mkdir()
        made.mkdir()
        with ThreadPoolExecutor(2) as pool:
            dom0 = pool.submit(_debian, release, "minbase", release.dom0_packages, work / "dom0.tar")
            guest = pool.submit(_debian, release, "extract", release.guest_packages, work / "guest.tar")
            kernel = pool.submit(_debian, release, "extract", release.kernel_packages, work / "kernel.tar")
            qemu = pool.submit(_debian, release, "extract", release.qemu_packages, work / "qemu.tar")
            for step in (guest, kernel, qemu, dom0):
                step.result()
        _kernel(work / "kernel.tar", work, made)
        _dom0(work, made)
        _guest(work, made)
        _qemu(work, made)
        made.chmod(0o755)
        made.rename(directory)
    size = sum(file.stat().st_size for file in directory.iterdir()) >> 20
    paths.progress(f"images of {release.name}: {size} MiB in {time.monotonic() - started:.0f} s")


def _debian(release: Release, variant: str, packages: tuple[str, ...], tar: Path) -> None:
    """Run mmdebstrap: `minbase` configures a small system, `extract` only unpacks."""
    started = time.monotonic()
    command = ["mmdebstrap", f"--variant={variant}", f"--include={','.join(packages)}", *mirrors.apt_options()]
    command += ["--architectures=amd64", release.name, str(tar), *mirrors.sources(release.name)]
    tools.call(*command)
    paths.progress(f"{release.name}: packages for {tar.stem} in {time.monotonic() - started:.0f} s")


def _kernel(tar: Path, work: Path, made: Path) -> None:
    """Take Xen, Linux and the few modules the lab uses out of their packages; the modules go to work/modules."""
    names = {*releases.DOM0_MODULES, *releases.GUEST_MODULES}
    wanted = re.compile(_KERNEL_WANTED.pattern % "|".join(map(re.escape, sorted(names))))
    with tarfile.open(tar) as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            source = archive.extractfile(member) if member.isfile() and wanted.match(name) else None
            if source is None:
                continue
            if name.startswith("boot/xen-"):
                if name.endswith(".gz"):
                    (made / "xen").write_bytes(gzip.decompress(source.read()))
            elif name.startswith("boot/vmlinuz-"):
                (made / "vmlinuz").write_bytes(source.read())
                version = name.removeprefix("boot/vmlinuz-")
            else:
                content = source.read()
                target = work / "modules" / name.removeprefix("usr/").removesuffix(".xz")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(lzma.decompress(content) if name.endswith(".xz") else content)
    tools.call("depmod", "-b", str(work / "modules"), version)
    (made / "vmlinux").write_bytes(_unpack_bzimage((made / "vmlinuz").read_bytes()))


def _unpack_bzimage(image: bytes) -> bytes:
    """The ELF file inside a bzImage (Linux Documentation/arch/x86/boot.rst: payload_offset, payload_length)."""
    setup_sectors = image[0x1F1] or 4
    offset = int.from_bytes(image[0x248:0x24C], "little") + (setup_sectors + 1) * 512
    payload = image[offset : offset + int.from_bytes(image[0x24C:0x250], "little")]
    if payload.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(payload)
    if payload.startswith(b"\x28\xb5\x2f\xfd"):
        # The last four bytes are the unpacked size, which is no part of the zstd stream.
        return tools.call("zstd", "-dc", input=payload[:-4])
    raise LabError(f"the kernel is compressed in a way the lab does not know: it starts with {payload[:6].hex()}")


def _dom0(work: Path, made: Path) -> None:
    with (
        tarfile.open(work / "dom0.tar") as debian,
        open(made / "dom0.cpio", "wb") as out,
        CpioWriter(out) as image,
    ):
        image.tar(debian, lambda name: None if _UNWANTED.match(name) else name)
        image.tree("usr/lib/modules", work / "modules" / "lib" / "modules")
        for directory in ("dev", "proc", "sys"):
            image.directory(directory)
        image.device("dev/console", 0o600, 5, 1)


def _guest(work: Path, made: Path) -> None:
    """Debian's files, all below /usr; Python's standard library comes from dom0, where it is compiled already."""
    with (
        tarfile.open(work / "guest.tar") as debian,
        tarfile.open(work / "dom0.tar") as dom0,
        open(made / "guest.cpio", "wb") as out,
        CpioWriter(out) as image,
    ):
        image.tar(dom0, _standard_library)
        image.tar(debian, _below_usr)
        image.tree("usr/lib/modules", work / "modules" / "lib" / "modules", _for_all_guests)
        for link in ("bin", "sbin", "lib", "lib64"):
            image.directory(f"usr/{link}")
            image.symlink(link, f"usr/{link}")
        image.device("dev/console", 0o600, 5, 1)


def _qemu(work: Path, made: Path) -> None:
    """QEMU as Debian builds it for Xen's dom0, and the libraries that dom0 has not got already."""
    with (
        tarfile.open(work / "dom0.tar") as dom0,
        tarfile.open(work / "qemu.tar") as debian,
        open(made / "qemu.cpio", "wb") as out,
        CpioWriter(out) as image,
    ):
        there = {_below_usr(name.removeprefix("./")) for name in dom0.getnames()}

        def missing(name: str) -> str | None:
            placed = _below_usr(name)
            return placed if placed and placed not in there and _QEMU_WANTED.fullmatch(placed) else None

        image.tar(debian, missing)


def _for_all_guests(file: Path) -> bool:
    return file.suffix != ".ko" or file.stem not in releases.DISK_MODULES


def _standard_library(name: str) -> str | None:
    return name if re.match(r"usr/lib/python3\.", name) and not _UNWANTED.match(name) else None


def _below_usr(name: str) -> str | None:
    if re.match(r"(s?bin|lib|lib64)(/|$)", name):
        name = f"usr/{name}"
    return None if _UNWANTED.match(name) or _GUEST_UNWANTED.match(name) else name
