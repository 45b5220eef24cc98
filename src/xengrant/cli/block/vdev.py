"""Names of virtual disks, ``xvdb``, and the numbers that xenstore has for them (Xen docs/man/xen-vbd-interface.7)."""

from __future__ import annotations

import argparse
import re

__all__ = ["name", "number"]

_XVD = 202 << 8  # major 202, 16 disks of 16 minors
_EXTENDED = 1 << 28  # 256 minors each
_MOST = 0xFFFFFFFF


def number(text: str) -> int:
    """The number of ``xvda``, ``xvdb3`` (a partition) or ``xvdaa``; or the number itself."""
    if re.fullmatch(r"[0-9]{1,10}|0x[0-9a-f]{1,8}", text):
        value = int(text, 16 if text.startswith("0x") else 10)
        if value > _MOST:
            raise argparse.ArgumentTypeError(f"{text} is no vdev's number: {_MOST} is the most")
        return value
    found = re.fullmatch(r"xvd([a-z]{1,3})([1-9][0-9]?)?", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no disk: write xvda, xvdb, ..., or a vdev's number")
    disk = -1
    for letter in found[1]:
        disk = (disk + 1) * 26 + ord(letter) - ord("a")
    partition = int(found[2] or 0)
    if disk < 16 and partition < 16:
        return _XVD | disk << 4 | partition
    if disk >= 1 << 20:
        raise argparse.ArgumentTypeError(f"there is no disk {text}")
    return _EXTENDED | disk << 8 | partition


def name(vdev: int) -> str:
    """What a Linux guest calls it; the number for what is no xvd."""
    if vdev & _EXTENDED:
        disk, partition = (vdev ^ _EXTENDED) >> 8, vdev & 0xFF
    elif vdev >> 8 == 202:
        disk, partition = vdev >> 4 & 0xF, vdev & 0xF
    else:
        return str(vdev)
    letters = ""
    while disk >= 0:
        letters = chr(ord("a") + disk % 26) + letters
        disk = disk // 26 - 1
    return f"xvd{letters}{partition or ''}"
