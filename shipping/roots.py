"""Clean Debian systems in which packages are built, installed and tried; called by `deb.py`,
`check.py` and `aarch64.py`.

A root file system is made once by mmdebstrap, from the mirrors of the host's apt as the lab's images are, kept in the
lab's cache, and unpacked anew for each use. Needs root, as chroot does.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab import mirrors, paths, tools
from lab.errors import LabError

__all__ = ["Root", "clean", "unpacked"]

# Mounts live in a namespace of the command's own and go with it.
_ENTER = 'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && exec chroot "$0" "$@"'
_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/root", "LANG": "C.UTF-8"}


class Root:
    """A system below `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def run(self, *command: str, cwd: str = "/root") -> str:
        """Run a command in it, in an environment that has nothing of the host's; its output. `LabError` if it fails."""
        inside = ("env", "-C", cwd, *command)
        words = ("unshare", "--mount", "sh", "-c", _ENTER, str(self.directory), *inside)
        return tools.call(*words, environment=_ENVIRONMENT).decode(errors="replace")

    def put(self, file: Path, where: str = "root") -> str:
        """Copy a file into it; the path there."""
        shutil.copy(file, self.directory / where)
        return f"/{where}/{file.name}"


@contextmanager
def clean(suite: str, *packages: str) -> Iterator[Root]:
    """A fresh system of a Debian release, of this processor, with these packages and what a minimal system has."""
    yield from _fresh(_tar(suite, "minbase", "amd64", packages))


@contextmanager
def unpacked(suite: str, architecture: str, *packages: str) -> Iterator[Root]:
    """These packages of a release and what they need, for any processor: nothing in them has been run."""
    yield from _fresh(_tar(suite, "extract", architecture, packages))


def _fresh(tar: Path) -> Iterator[Root]:
    with tempfile.TemporaryDirectory(prefix=f"xengrant-{tar.stem}-") as directory:
        tools.call("tar", "-xf", str(tar), "-C", directory, "--exclude=./dev/*")
        yield Root(Path(directory))


def _tar(suite: str, variant: str, architecture: str, packages: tuple[str, ...]) -> Path:
    if os.geteuid() or not shutil.which("mmdebstrap"):
        raise LabError("clean roots need root and mmdebstrap: as root, apt-get install mmdebstrap")
    recipe = hashlib.sha256(" ".join(packages).encode()).hexdigest()[:12]
    tar = paths.cache() / f"root-{suite}-{architecture}-{recipe}.tar"
    with paths.exclusive(tar.stem, f"another build of {tar.name} to end"):
        if not tar.exists():
            paths.progress(f"building {tar}")
            made = tar.with_suffix(".tar.new")
            command = ["mmdebstrap", f"--variant={variant}", f"--architectures={architecture}", "--format=tar"]
            command += [f"--include={','.join(packages)}", *mirrors.apt_options()]
            tools.call(*command, suite, str(made), *mirrors.sources(suite))
            made.rename(tar)
    return tar
