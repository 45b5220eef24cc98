"""The image a guest boots from: the package, and files that a job adds to it.

Called by `lab.dom0.main` and `lab.dom0.guest`. It lies on tmpfs, where creating a guest takes seconds and not half a
minute.
"""

from __future__ import annotations

import compileall
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from lab.cpio import CpioWriter
from lab.dom0.places import IMAGES, PROJECT

__all__ = ["add_package", "ramdisk"]


def add_package() -> None:
    """Put the package into the guests' image, compiled: dom0 has the same Python, each guest would take longer."""
    package = PROJECT / "src" / "xengrant"
    if package.is_dir():
        compileall.compile_dir(package, quiet=1)
        with open(IMAGES / "guest.cpio", "ab") as out, CpioWriter(out) as archive:
            archive.tree("opt/xengrant/xengrant", package)


def ramdisk(files: Mapping[str, Path | bytes]) -> Path:
    """The guests' image, or a copy with `files` in it: guest path -> a file or directory here, or the content."""
    image = IMAGES / "guest.cpio"
    if not files:
        return image
    with open(image, "rb") as base, tempfile.NamedTemporaryFile(dir="/run", suffix=".cpio", delete=False) as out:
        shutil.copyfileobj(base, out, 1 << 20)
        with CpioWriter(out) as archive:
            for name, content in files.items():
                if isinstance(content, bytes):
                    archive.file(name.lstrip("/"), content, mode=0o755)
                else:
                    archive.tree(name.lstrip("/"), Path(content))
        return Path(out.name)
