"""The processors that the lab emulates: how Debian names them, and what the host needs for each. Data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["AMD64", "ARM64", "Architecture"]


@dataclass(frozen=True)
class Architecture:
    """A processor by Debian's `name`; `triplet` is that of its libraries' directory, `compiler` makes its programs.

    `host` is what runs its machines: a program, or a file given by its path, and the Debian package that brings it.
    Where Debian's packages are not `configured`, since the host cannot run what is in them, the images are made of
    unpacked ones. `guests` are the kinds of guest that Xen has there.
    """

    name: str
    triplet: str
    compiler: str
    qemu: str
    host: Mapping[str, str]
    configured: bool
    guests: tuple[str, ...]


AMD64 = Architecture(
    name="amd64",
    triplet="x86_64-linux-gnu",
    compiler="gcc",
    qemu="qemu-system-x86_64",
    host={
        "qemu-system-x86_64": "qemu-system-x86",
        "/usr/share/seabios/bios-256k.bin": "seabios",
        "gcc": "gcc",
        "/usr/include/stdio.h": "libc6-dev",
        "/usr/include/libxenvchan.h": "libxen-dev",
    },
    configured=True,
    guests=("pv", "pvh"),
)

ARM64 = Architecture(
    name="arm64",
    triplet="aarch64-linux-gnu",
    compiler="aarch64-linux-gnu-gcc",
    qemu="qemu-system-aarch64",
    host={
        "qemu-system-aarch64": "qemu-system-arm",
        "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu",
        "/usr/aarch64-linux-gnu/include/stdio.h": "libc6-dev-arm64-cross",
    },
    configured=False,
    guests=("pvh",),
)
