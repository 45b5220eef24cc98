"""Where Debian packages come from: the mirrors and download settings of the host's own apt configuration.

Called by `lab.images` and `shipping.roots`. The lab has no mirror of its own to prefer; a host that is not Debian sets
XENGRANT_LAB_MIRROR.
"""

from __future__ import annotations

import os
import shutil

from lab import tools
from lab.errors import LabError

__all__ = ["apt_options", "sources"]

_ADVICE = "set XENGRANT_LAB_MIRROR to the address of a Debian mirror (and XENGRANT_LAB_SECURITY_MIRROR, if wanted)"


def sources(release: str) -> list[str]:
    """The sources.list lines for a release, from the mirrors this host uses for its own Debian release.

    Debian has no security updates for sid.
    """
    main, security = os.environ.get("XENGRANT_LAB_MIRROR"), os.environ.get("XENGRANT_LAB_SECURITY_MIRROR")
    if not main:
        for label, uri in _configured():
            if label == "Debian":
                main = main or uri
            elif label == "Debian-Security":
                security = security or uri
    if not main:
        raise LabError(f"apt on this host knows no Debian mirror: {_ADVICE}")
    lines = [f"deb {main} {release} main"]
    if security and release != "sid":
        lines.append(f"deb {security} {release}-security main")
    return lines


def apt_options() -> list[str]:
    """The host's own settings on how to download (proxies, date checks), as mmdebstrap arguments."""
    if not shutil.which("apt-config"):
        return []
    dump = tools.call("apt-config", "dump", "Acquire").decode()
    kept = [line for line in dump.splitlines() if "::IndexTargets" not in line and not line.endswith(' "";')]
    return [f"--aptopt={line.removesuffix(';')}" for line in kept]


def _configured() -> list[tuple[str, str]]:
    command = ("apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages")
    found = tools.call(*command).decode() if shutil.which("apt-get") else ""
    return [(label, uri) for label, _, uri in (line.partition(" ") for line in found.splitlines())]
