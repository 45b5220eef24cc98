"""Where things lie inside dom0, and what this run was asked to be."""

from __future__ import annotations

import json
import platform
from pathlib import Path

__all__ = [
    "ARM64",
    "BIN",
    "GUEST_KIND",
    "IMAGES",
    "LIBRARIES",
    "PROJECT",
    "RELEASE",
    "RESULTS",
    "SITE",
    "SITE_FILES",
    "UNDER_TEST",
    "request",
]

PROJECT = Path("/opt/project")
"""A snapshot of the checkout, without what is not needed here; and bin, which is the host's build/lab/bin."""

BIN = PROJECT / "bin"
"""Programs built on the host for this run; guests have them in /opt/bin, which is on their PATH."""

RESULTS = Path("/results")
"""The results directory on the host: what a job writes here stays."""

UNDER_TEST = Path("/opt/under_test")
"""Another project, where `python3 -m lab project` has brought one."""

SITE = Path("/opt/site")
"""Packages of PyPI that the run was started with, on PYTHONPATH here; a guest has them where `files=` gives them."""

IMAGES = Path("/images")
"""What guests boot from: vmlinux and guest.cpio."""


ARM64 = platform.machine() == "aarch64"

LIBRARIES = Path("/usr/lib") / f"{platform.machine()}-linux-gnu"
"""Where Debian has its libraries, here and in guests."""

SITE_FILES = {str(path): path for path in (SITE, LIBRARIES / "libstdc++.so.6")}
"""`files=` of a guest that is to have the packages too, with the C++ library that many need and its image lacks."""


def request() -> dict[str, object]:
    """What the host asked for; empty in an interactive shell."""
    try:
        found: dict[str, object] = json.loads((PROJECT / "run.json").read_text())
    except FileNotFoundError:
        return {}
    return found


RELEASE = str(request().get("release", ""))
GUEST_KIND = str(request().get("guest", "pv"))
"""The kind of guest this run wants: "pv" or "pvh"."""
