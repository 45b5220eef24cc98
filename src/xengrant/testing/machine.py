"""What kind of machine this is: how the runner and the agent tell PV from HVM, and name it in results."""

from __future__ import annotations

import platform
from pathlib import Path

from xengrant.testing.here import Kind

__all__ = ["real_kind", "real_name"]

_HYPERVISOR = Path("/sys/hypervisor")


def real_kind() -> Kind:
    """How this kernel's gntdev unmaps: PV domains have a way of their own (Linux drivers/xen/gntdev.c, use_ptemod)."""
    return "pv" if _read("guest_type", "PV") == "PV" else "hvm"


def real_name(domid: int, peer: int) -> str:
    """This machine in a few words: the versions of Xen and Linux, and who runs the halves."""
    xen = f"{_read('version/major', '?')}.{_read('version/minor', '?')}"
    linux = ".".join(platform.release().split(".")[:2])
    pair = "two guests" if domid and peer else "dom0 and a guest"
    return f"Xen {xen}, Linux {linux}, {platform.machine()}, {_read('guest_type', 'PV')} {pair}"


def _read(name: str, default: str) -> str:
    try:
        return (_HYPERVISOR / name).read_text().strip()
    except OSError:
        return default
