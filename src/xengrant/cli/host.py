"""What /sys and /proc say of the machine under this kernel; `doctor` asks, nothing else.

Every function takes the root of the file system, so that a test can hand it another machine's. A file that is not
there, or not for this user to read, is None: few are promised by every kernel.
"""

from __future__ import annotations

import grp
import pwd
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from stat import filemode

__all__ = ["Host", "device_file", "look", "mapped_pages", "predates_xsa_396"]


@dataclass(frozen=True, slots=True)
class Host:
    """`kind` is "dom0", "guest", "qemu" (QEMU's emulation of Xen), or "none" (not Xen)."""

    kind: str
    guest_type: str | None  # PV, PVH, HVM
    xen_version: str | None
    page_size: int


def look(root: Path, page_size: int) -> Host:
    """Which machine this is."""
    guest_type = _read(root, "sys/hypervisor/guest_type")
    return Host(_kind(root, guest_type), guest_type, _xen_version(root), page_size)


def device_file(root: Path, name: str, module: str | None) -> str | None:
    """/dev/xen/`name`: who may open it and where its driver is; None where there is no such file."""
    try:
        status = (root / "dev/xen" / name).stat()
    except FileNotFoundError:
        return None
    except OSError:
        return "in a directory that this user may not enter"
    loaded = module is not None and (root / "sys/module" / module.replace("-", "_")).is_dir()
    owner, group = _name_of(pwd.getpwuid, status.st_uid), _name_of(grp.getgrgid, status.st_gid)
    return f"{filemode(status.st_mode)} {owner}:{group}, {f'module {module}' if loaded else 'built into the kernel'}"


def mapped_pages(root: Path, device: str) -> dict[str, int]:
    """Pages of /dev/xen/`device` that each process maps ("pid name"), of those that this user may look at."""
    pages: Counter[str] = Counter()
    for process in (root / "proc").glob("[0-9]*"):
        try:
            maps = (process / "maps").read_text(errors="replace")
        except OSError:
            continue
        for found in re.finditer(rf"^([0-9a-f]+)-([0-9a-f]+) .* /dev/xen/{device}$", maps, re.MULTILINE):
            name = _read(process, "comm") or "?"
            pages[f"{process.name} {name}"] += (int(found[2], 16) - int(found[1], 16)) >> 12
    return dict(pages)


def predates_xsa_396(release: str) -> bool:
    """Whether Linux `release` is older than the fix, backports of distributions aside."""
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", release)
    if found is None:
        return False
    version = tuple(int(part or 0) for part in found.groups())
    return version < (5, 10, 105) or (5, 11) <= version < (5, 15, 28) or (5, 16) <= version < (5, 16, 14)


def _kind(root: Path, guest_type: str | None) -> str:
    if _read(root, "sys/hypervisor/type") != "xen":
        return "none"
    if "control_d" in (_read(root, "proc/xen/capabilities") or ""):
        return "dom0"
    if _read(root, "sys/hypervisor/start_flags/initdomain") == "1":
        return "dom0"
    # A real HVM guest has the firmware tables of Xen's hvmloader; PV and PVH guests have none.
    if guest_type == "HVM" and (_read(root, "sys/class/dmi/id/sys_vendor") or "").startswith("QEMU"):
        return "qemu"
    return "guest"


def _name_of(look_up: Callable[[int], tuple[object, ...]], number: int) -> str:
    try:
        return str(look_up(number)[0])
    except KeyError:
        return str(number)


def _xen_version(root: Path) -> str | None:
    major = _read(root, "sys/hypervisor/version/major")
    minor = _read(root, "sys/hypervisor/version/minor")
    if major is None or minor is None:
        return None
    return f"{major}.{minor}{_read(root, 'sys/hypervisor/version/extra') or ''}"


def _read(root: Path, name: str) -> str | None:
    try:
        return (root / name).read_text(errors="replace").strip()
    except OSError:
        return None
