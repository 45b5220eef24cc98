"""The files guests boot from: kept on tmpfs, where creating a guest takes seconds and not half a minute.

Called by `lab.dom0.guest`. A guest's image is the cached one with a small archive appended: its init, the project, the
programs of build/lab/bin and whatever else a job wants there.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path

from lab.cpio import CpioWriter
from lab.dom0.places import BIN, IMAGES, PROJECT

__all__ = ["kernel", "ramdisk"]

_STORE = Path("/run/lab")
_lock = threading.Lock()


def kernel() -> Path:
    """The uncompressed Linux that guests boot."""
    with _lock:
        return _kept("vmlinux", IMAGES / "vmlinux", b"")


def ramdisk(files: Mapping[str, Path | bytes]) -> Path:
    """A guest's image with `files` in it: guest path -> a file or directory here, or the content itself."""
    out = io.BytesIO()
    with CpioWriter(out) as archive:
        for directory in ("dev", "proc", "root", "run", "sys", "tmp"):
            archive.directory(directory)
        init = PROJECT / "lab" / "init"
        archive.file("init", (init / "guest.sh").read_bytes(), mode=0o755)
        archive.tree("etc/fstab", init / "guest.fstab")
        archive.tree("opt/lab/agent.py", init / "agent.py")
        if (PROJECT / "src" / "xengrant").is_dir():
            archive.tree("opt/xengrant/xengrant", PROJECT / "src" / "xengrant")
        if BIN.is_dir():
            archive.tree("opt/bin", BIN)
        for name, content in files.items():
            if isinstance(content, bytes):
                archive.file(name.lstrip("/"), content, mode=0o755)
            else:
                archive.tree(name.lstrip("/"), Path(content))
    added = out.getvalue()
    with _lock:
        return _kept(f"guest-{hashlib.sha256(added).hexdigest()[:12]}.cpio", IMAGES / "guest.cpio", added)


def _kept(name: str, source: Path, added: bytes) -> Path:
    target = _STORE / name
    if not target.exists():
        _STORE.mkdir(exist_ok=True)
        with open(source, "rb") as base, open(f"{target}.new", "wb") as out:
            shutil.copyfileobj(base, out, 1 << 20)
            out.write(added)
        Path(f"{target}.new").rename(target)
    return target
