"""Which Debian releases the lab boots, and which packages make up each image. Data only: no behaviour."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RELEASES", "Release"]


@dataclass(frozen=True)
class Release:
    """One Debian release: the Xen it ships, and the kind of guest a job gets when it does not ask for one."""

    name: str
    xen: str
    guest: str

    @property
    def kernel_packages(self) -> tuple[str, ...]:
        return (f"xen-hypervisor-{self.xen}-amd64", "linux-image-amd64")

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
        """What a dom0 has besides where a run asks for QEMU."""
        return ("qemu-system-xen",)


_DISK_PACKAGES = ("e2fsprogs", "fdisk")
"""Programs that jobs give to guests with disks, from dom0's files: `lab.dom0.disk_tools`."""

RELEASES = {
    "bookworm": Release("bookworm", xen="4.17", guest="pv"),
    "trixie": Release("trixie", xen="4.20", guest="pvh"),
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
