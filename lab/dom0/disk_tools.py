"""What a guest needs to use disks: Debian's programs and kernel modules, taken from dom0, which is of the same release.

Jobs give it to `Guest.create(files=disk_tools())`, so that guests of other jobs are no larger.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from lab.dom0.places import LIBRARIES
from lab.releases import DISK_MODULES

__all__ = ["disk_tools"]

_PROGRAMS = ("mke2fs", "e2fsck", "mount", "umount", "blkdiscard", "blockdev", "sfdisk", "dd", "sh")
"""busybox has some of these too, with fewer options. It takes no name that is there already; but its own shell would
prefer it, whatever PATH says, so the guest gets another one."""

_LIBRARY = re.compile(r"=> (/\S+)")
_IN_EVERY_GUEST = ("libc.so", "ld-linux")


def disk_tools() -> dict[str, Path]:
    """Guest path -> file here: programs, the libraries they need, and the modules of ext4."""
    files = {}
    for name in _PROGRAMS:
        program = shutil.which(name)
        if program is None:
            raise FileNotFoundError(f"dom0 has no {name}")
        files[f"usr/bin/{name}"] = Path(program)
    linked = subprocess.run(["ldd", *map(str, files.values())], capture_output=True, text=True, check=True).stdout
    for library in _LIBRARY.findall(linked):
        path = Path(library)
        if not path.name.startswith(_IN_EVERY_GUEST):
            files[str(LIBRARIES / path.name)] = path
    for module in Path("/usr/lib/modules").rglob("*.ko"):
        if module.stem in DISK_MODULES:
            files[str(module.relative_to("/"))] = module
    files["etc/mke2fs.conf"] = Path("/etc/mke2fs.conf")
    return files
