"""What a run's figures were measured on, as benchmarks write it beside them."""

from __future__ import annotations

import platform

from lab.dom0.places import GUEST_KIND, RELEASE
from lab.dom0.xl import xl

__all__ = ["about"]


def about() -> dict[str, object]:
    info = dict(line.split(":", 1) for line in xl("info").splitlines() if ":" in line)
    return {
        "release": RELEASE,
        "guest": GUEST_KIND,
        "xen": next(value.strip() for key, value in info.items() if key.strip() == "xen_version"),
        "linux": platform.release(),
        "python": platform.python_version(),
    }
