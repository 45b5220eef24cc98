"""Which Debian releases the lab boots, and which packages make up each image. Data only: no behaviour."""

from __future__ import annotations

from dataclasses import dataclass

from lab.architectures import AMD64, ARM64, Architecture

__all__ = ["RELEASES", "Release"]


@dataclass(frozen=True)
class Release:
    """One Debian release on one architecture: the Xen it ships, and the guests a job gets when it does not ask.

    `is_long` keeps it out of what is run after each change.
    """

    name: str
    suite: str
    xen: str
    guest: str
    architecture: Architecture = AMD64
    is_long: bool = False

    @property
    def kernel_packages(self) -> tuple[str, ...]:
        return (f"xen-hypervisor-{self.xen}-{self.architecture.name}", f"linux-image-{self.architecture.name}")

    @property
    def _libraries(self) -> tuple[str, ...]:
        return ("libxengnttab1", "libxenevtchn1", "libxenstore4", f"libxenmisc{self.xen}")

    @property
    def dom0_packages(self) -> tuple[str, ...]:
        tools = ("kmod", f"xen-utils-{self.xen}", "xenstore-utils", "procps", "iproute2")
        return ("python3", "python3-hypothesis", *tools, *_DISK_PACKAGES, *self._libraries)

    @property
    def guest_packages(self) -> tuple[str, ...]:
        return ("busybox-static", "python3", *self._libraries)

    @property
    def qemu_packages(self) -> tuple[str, ...]:
        """What a dom0 has besides where a run asks for QEMU. Debian builds it for amd64 only."""
        return ("qemu-system-xen",) if self.architecture is AMD64 else ()

    @property
    def devel_packages(self) -> tuple[str, ...]:
        """What programs for it are compiled against, where the host's own libraries will not do."""
        return () if self.architecture is AMD64 else ("libpython3-dev", "libxen-dev")


_DISK_PACKAGES = ("e2fsprogs", "fdisk")
"""Programs that jobs give to guests with disks, from dom0's files: `lab.dom0.disk_tools`."""

RELEASES = {
    "bookworm": Release("bookworm", "bookworm", xen="4.17", guest="pv"),
    "trixie": Release("trixie", "trixie", xen="4.20", guest="pvh"),
    "bookworm-arm64": Release(
        "bookworm-arm64", "bookworm", xen="4.17", guest="pvh", architecture=ARM64, is_long=True
    ),
}

# Loaded by each init; the rest is what these need. Built-in ones are no error.
_XEN_MODULES = ("xen-evtchn", "xen-gntdev", "xen-gntalloc", "xen-privcmd", "xenfs")
_VIRTIO_MODULES = ("virtio", "virtio_ring", "virtio_pci", "virtio_pci_legacy_dev", "virtio_pci_modern_dev")
DISK_MODULES = ("ext4", "jbd2", "mbcache", "crc16", "crc32c_generic", "libcrc32c")
"""dom0 has them for guests with disks, to which `lab.dom0.disk_tools` gives them; nobody loads them before."""

_9P_MODULES = ("9p", "9pnet", "9pnet_virtio", "netfs", "fscache")
_BACK_END_MODULES = ("xen-blkback", "loop")
DOM0_MODULES = (*_XEN_MODULES, *_BACK_END_MODULES, *DISK_MODULES, *_VIRTIO_MODULES, *_9P_MODULES)
GUEST_MODULES = (*_XEN_MODULES, "xen-blkfront")
