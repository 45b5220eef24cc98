"""The host's own programs: which Debian packages the lab needs, and installing those that are missing."""

from __future__ import annotations

import os
import shutil
import subprocess

from lab.architectures import Architecture
from lab.errors import LabError
from lab.paths import progress

__all__ = ["call", "need"]

# What is looked for (a program, or a file given by its path), and the package that brings it.
_BUILD = {"mmdebstrap": "mmdebstrap", "depmod": "kmod", "zstd": "zstd"}
_RUN = {"setpriv": "util-linux"}


def need(architecture: Architecture, *, build: bool) -> None:
    """See that QEMU and the compiler are there, and with `build` what makes images: install as root, else say how."""
    wanted = {**_RUN, **architecture.host, **(_BUILD if build else {})}
    missing = sorted({package for thing, package in wanted.items() if not _present(thing)})
    if not missing:
        return
    command = ["apt-get", "install", "-y", "--no-install-recommends", *missing]
    if os.geteuid() != 0:
        raise LabError(f"these Debian packages are missing: run as root, or first run: sudo {' '.join(command)}")
    progress(f"installing {' '.join(missing)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for step in (["apt-get", "update"], command):
        call(*step, environment=environment)


def call(*command: str, input: bytes = b"", environment: dict[str, str] | None = None) -> bytes:
    """Run a program and return its output; LabError with the end of what it printed if it fails."""
    done = subprocess.run(command, input=input, env=environment, capture_output=True, check=False)
    if done.returncode:
        printed = (done.stderr or done.stdout).decode(errors="replace")
        raise LabError(f"{' '.join(command[:6])} failed with {done.returncode}:\n{printed[-3000:]}")
    return done.stdout


def _present(thing: str) -> bool:
    if thing.startswith("/"):
        return os.path.exists(thing)
    return shutil.which(thing, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is not None
