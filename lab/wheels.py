"""Packages of PyPI for dom0 and guests: pip chooses them for the release's Python and C library, not for the host's.

Called by `lab.run`; `lab.initrd` takes them to dom0's /opt/site, which is on PYTHONPATH there.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lab import paths, tools
from lab.releases import Release

__all__ = ["site"]

_PYTHON = {"bookworm": "3.11", "trixie": "3.13"}

_LIBC = ("manylinux_2_34", "manylinux_2_28", "manylinux_2_27", "manylinux_2_26", "manylinux_2_24", "manylinux_2_17")
"""Wheels for these run on both releases, the newest first; `manylinux2014` is the last one's other name."""


def site(release: Release, requirements: Sequence[str]) -> Path:
    """A directory with these packages and what they need, from the cache if they were asked for before."""
    digest = hashlib.sha256(repr((release.name, sorted(requirements))).encode()).hexdigest()[:12]
    directory = paths.cache() / f"site-{release.name}-{digest}"
    if not directory.is_dir():
        with paths.exclusive("site", "another run's pip to end"):
            if not directory.is_dir():
                _install(release, requirements, directory)
    return directory


def _install(release: Release, requirements: Sequence[str], directory: Path) -> None:
    paths.progress(f"pip installs {' '.join(requirements)} for {release.name}'s Python")
    machine = release.architecture.triplet.partition("-")[0]
    options = [f"--python-version={_PYTHON[release.suite]}", "--implementation=cp", "--only-binary=:all:"]
    options += [f"--platform={libc}_{machine}" for libc in (*_LIBC, "manylinux2014")]
    made = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        tools.call(*pip, f"--target={made}", *options, *requirements)
        made.chmod(0o755)
        made.rename(directory)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
