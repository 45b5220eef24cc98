"""Writing cpio archives in the "newc" format, the only one Linux unpacks as an initramfs.

The host side (`lab.images`) turns Debian root file systems, which mmdebstrap delivers as tar files, into initramfs
images with it; the dom0 side (`lab.dom0.overlay`) writes the small archive that is appended to a guest's image.
Layout: Linux Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Self

__all__ = ["CpioWriter"]

_TAR_KINDS = {
    tarfile.REGTYPE: stat.S_IFREG,
    tarfile.AREGTYPE: stat.S_IFREG,
    tarfile.LNKTYPE: stat.S_IFREG,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
}


class CpioWriter:
    """An archive under construction. Hard links are written as copies; everything belongs to root unless told."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._inode = 0
        self._offset = 0
        self._names: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: object, exc: object, traceback: object) -> None:
        if exc_type is None:
            self.close()

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def directory(self, name: str, mode: int = 0o755) -> None:
        """Add a directory and any parents that are missing; one that is there already is left alone."""
        if not name or name in self._names:
            return
        self.directory(os.path.dirname(name))
        self._header(name, stat.S_IFDIR | mode, 0)

    def file(self, name: str, content: bytes, *, mode: int = 0o644, mtime: int = 0) -> None:
        self.directory(os.path.dirname(name))
        self._header(name, stat.S_IFREG | mode, len(content), mtime=mtime)
        self._write(content)
        self._pad()

    def symlink(self, name: str, target: str) -> None:
        self.directory(os.path.dirname(name))
        encoded = os.fsencode(target)
        self._header(name, stat.S_IFLNK | 0o777, len(encoded))
        self._write(encoded)
        self._pad()

    def device(self, name: str, mode: int, major: int, minor: int) -> None:
        """Add a character device."""
        self.directory(os.path.dirname(name))
        self._header(name, stat.S_IFCHR | mode, 0, rdev=(major, minor))

    def tree(self, name: str, source: Path, wanted: Callable[[Path], bool] = lambda _: True) -> None:
        """Add a file, or a directory with all below it that is `wanted`, under `name`; symbolic links are followed."""
        if source.is_dir():
            self.directory(name)
            for child in sorted(source.iterdir()):
                if wanted(child):
                    self.tree(f"{name}/{child.name}", child, wanted)
        else:
            status = source.stat()
            self.file(name, source.read_bytes(), mode=stat.S_IMODE(status.st_mode), mtime=int(status.st_mtime))

    def tar(self, archive: tarfile.TarFile, place: Callable[[str], str | None]) -> None:
        """Add the members of a tar file. `place` gets a name without leading "./" and returns where it goes, or None.

        A name that is in the archive already is skipped.
        """
        for member in archive:
            name = place(member.name.removeprefix("./").strip("/"))
            if not name or name == "." or name in self._names:
                continue
            kind = _TAR_KINDS[member.type]
            self.directory(os.path.dirname(name))
            owner = (member.uid, member.gid)
            if kind == stat.S_IFREG:
                source = archive.extractfile(member)
                assert source is not None
                size = archive.getmember(member.linkname).size if member.type == tarfile.LNKTYPE else member.size
                self._header(name, kind | member.mode, size, mtime=int(member.mtime), owner=owner)
                shutil.copyfileobj(source, self._out, 1 << 20)
                self._offset += size
                self._pad()
            elif kind == stat.S_IFLNK:
                self.symlink(name, member.linkname)
            else:
                rdev = (member.devmajor, member.devminor) if kind in (stat.S_IFCHR, stat.S_IFBLK) else (0, 0)
                self._header(name, kind | member.mode, 0, mtime=int(member.mtime), owner=owner, rdev=rdev)

    def close(self) -> None:
        """Write the trailer. The archive's length is a multiple of 4, so another one may follow it directly."""
        self._header("TRAILER!!!", 0, 0)

    def _header(
        self,
        name: str,
        mode: int,
        size: int,
        *,
        mtime: int = 0,
        owner: tuple[int, int] = (0, 0),
        rdev: tuple[int, int] = (0, 0),
    ) -> None:
        self._names.add(name)
        self._inode += 1
        links = 2 if stat.S_ISDIR(mode) else 1
        encoded = os.fsencode(name) + b"\0"
        fields = (self._inode, mode, *owner, links, mtime, size, 0, 0, *rdev, len(encoded), 0)
        self._write(b"070701" + b"".join(b"%08x" % field for field in fields) + encoded)
        self._pad()

    def _write(self, data: bytes) -> None:
        self._out.write(data)
        self._offset += len(data)

    def _pad(self) -> None:
        self._write(b"\0" * (-self._offset % 4))
