"""What a back end serves: a `Disk` is anything with `pread`, `pwrite`, `flush` and `size`; `File` and `Memory` are two.

Called by the back end's queues, one thread for each ring, so a disk is used by as many threads at once as the front end
has rings. An `OSError` is an error response to that request and nothing more; with EOPNOTSUPP the front end learns that
there is no such operation. Positions and lengths are in bytes, and multiples of the disk's sector size.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import threading
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, Self, cast, runtime_checkable

from xengrant._native import Descriptor
from xengrant.errors import InterfaceClosed

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Disk", "File", "Memory", "VectoredDisk", "descriptor", "vectored"]


class Disk(Protocol):
    """What is served. `discard(length, offset)` may be there too, and `preadv` and `pwritev` of `VectoredDisk`."""

    @property
    def size(self) -> int:
        """Bytes; what is beyond the last whole sector cannot be reached. Read when a front end connects."""

    def pread(self, length: int, offset: int, /) -> Buffer:
        """`length` bytes from `offset` on: all of them."""

    def pwrite(self, data: bytes, offset: int, /) -> object:
        """Write all of `data`. A number that comes back says how many bytes were taken; fewer than all is an error."""

    def flush(self) -> object:
        """Return when all that was written is where it survives."""


@runtime_checkable
class VectoredDisk(Protocol):
    """A disk that moves data between itself and the guest's pages without a copy between.

    The buffers are memory that the guest can change at any time: for system calls and copies, not to decide by.
    """

    @property
    def size(self) -> int:
        """As of `Disk`."""

    def preadv(self, buffers: Sequence[memoryview], offset: int, /) -> None:
        """Fill all the buffers, one after the other."""

    def pwritev(self, buffers: Sequence[memoryview], offset: int, /) -> None:
        """Write all of the buffers, one after the other."""

    def flush(self) -> object:
        """As of `Disk`."""


def vectored(disk: Disk | VectoredDisk) -> VectoredDisk:
    """`disk` itself where it takes many buffers at once, else with copies."""
    return disk if isinstance(disk, VectoredDisk) else _Copying(disk)


def descriptor(disk: Disk | VectoredDisk) -> Descriptor | None:
    """The open file on which reads, writes and flushes may be done instead: that of a `File`, but of no subclass."""
    return disk._descriptor if type(disk) is File else None


class _Copying:
    """Any disk, as a `VectoredDisk`: what it gets to see is private memory."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self.flush = disk.flush
        if (discard := getattr(disk, "discard", None)) is not None:
            self.discard = discard

    @property
    def size(self) -> int:
        return self._disk.size

    def preadv(self, buffers: Sequence[memoryview], offset: int, /) -> None:
        length = sum(map(len, buffers))
        data = memoryview(self._disk.pread(length, offset)).cast("B")
        if len(data) != length:
            raise OSError(errno.EIO, f"the disk's pread gave {len(data)} bytes of {length} at {offset}")
        at = 0
        for buffer in buffers:
            buffer[:] = data[at : at + len(buffer)]
            at += len(buffer)

    def pwritev(self, buffers: Sequence[memoryview], offset: int, /) -> None:
        data = b"".join(buffers)
        taken = self._disk.pwrite(data, offset)
        if isinstance(taken, int) and taken != len(data):
            raise OSError(errno.EIO, f"the disk's pwrite took {taken} bytes of {len(data)} at {offset}")


class File:
    """A raw image, or a block device. `with` closes it.

    Where the front end's pages stay mapped, requests are done on its descriptor without Python; those of a subclass
    never. `path` is the file's. `size`, in bytes, is what it was when it was opened, or at the last `grow`. Where
    `writable` is false, writes fail with EBADF. Raises `OSError` where it cannot be opened. Threads: any call from any
    thread.
    """

    def __init__(self, path: str | os.PathLike[str], *, writable: bool = True) -> None:
        self.path = os.fspath(path)
        self.writable = writable
        self._fd = os.open(self.path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
        self._descriptor = Descriptor(self._fd)  # which closes it once no call uses it
        try:
            kind = os.fstat(self._fd).st_mode
            if not stat.S_ISREG(kind) and not stat.S_ISBLK(kind):
                raise OSError(errno.EINVAL, "neither a file nor a block device", self.path)
            self.size = os.lseek(self._fd, 0, os.SEEK_END)
        except BaseException:
            self.close()
            raise

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self._fd < 0

    def grow(self) -> bool:
        """Whether it is larger than its `size`, which from now on is what it has. `OSError`; `InterfaceClosed`."""
        before, self.size = self.size, max(self.size, os.lseek(self._open(), 0, os.SEEK_END))
        return self.size > before

    def pread(self, length: int, offset: int, /) -> bytearray:
        """`length` bytes from `offset` on. Raises as `preadv`."""
        data = bytearray(length)
        with memoryview(data) as view:
            self.preadv([view], offset)
        return data

    def pwrite(self, data: Buffer, offset: int, /) -> None:
        """Write all of `data` from byte `offset` on. `OSError`; `InterfaceClosed`."""
        with memoryview(data) as view:
            self.pwritev([view.cast("B")], offset)

    def preadv(self, buffers: Sequence[memoryview], offset: int, /) -> None:
        """Fill all the buffers from byte `offset` on. `OSError`, EIO where the file is shorter; `InterfaceClosed`."""
        wanted = sum(map(len, buffers))
        got = os.preadv(self._open(), buffers, offset)
        while got < wanted:
            buffers, wanted, offset = _rest(buffers, got), wanted - got, offset + got
            got = os.preadv(self._open(), buffers, offset)
            if not got:
                raise OSError(errno.EIO, f"ends {wanted} bytes early", self.path)

    def pwritev(self, buffers: Sequence[memoryview], offset: int, /) -> None:
        """Write all of the buffers from byte `offset` on. `OSError`; `InterfaceClosed`."""
        wanted = sum(map(len, buffers))
        taken = os.pwritev(self._open(), buffers, offset)
        while taken < wanted:
            buffers, wanted, offset = _rest(buffers, taken), wanted - taken, offset + taken
            taken = os.pwritev(self._open(), buffers, offset)
            if not taken:
                raise OSError(errno.EIO, f"takes {wanted} bytes too few", self.path)

    def flush(self) -> None:
        """Have the system put on the medium what was written (fdatasync)."""
        os.fdatasync(self._open())

    def discard(self, length: int, offset: int, /) -> None:
        """Punch a hole, which reads as zeros. EOPNOTSUPP where the file system has none."""
        if _fallocate(self._open(), _PUNCH_HOLE_KEEP_SIZE, offset, length) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), self.path)

    def close(self) -> None:
        """A second time does nothing. No queue may be using it."""
        if not self.closed:
            self._fd = -1
            self._descriptor.close()

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.close()
            warnings.warn(f"an unclosed disk {self.path} was closed", ResourceWarning, stacklevel=2)

    def __repr__(self) -> str:
        state = "closed" if self.closed else "writable" if self.writable else "read-only"
        return f"<File {self.path!r} of {self.size} bytes, {state}>"

    def _open(self) -> int:
        if self._fd < 0:
            raise InterfaceClosed(f"{self.path} is closed")
        return self._fd


class Memory:
    """A disk of `size` bytes in this process's memory, zeros at first; or `data` itself.

    Threads: any call from any thread; they are done one after the other.
    """

    def __init__(self, data: int | bytearray) -> None:
        self.data = bytearray(data) if isinstance(data, int) else data
        self.size = len(self.data)
        self._view = memoryview(self.data)
        self._lock = threading.Lock()  # two threads without a GIL may not slice one view

    def pread(self, length: int, offset: int, /) -> bytes:
        """A copy of `length` bytes from `offset` on."""
        with self._lock:
            return bytes(self._view[offset : offset + length])

    def pwrite(self, data: Buffer, offset: int, /) -> None:
        """Write all of `data` from byte `offset` on."""
        with memoryview(data) as view, self._lock:
            self._view[offset : offset + view.nbytes] = view.cast("B")

    def preadv(self, buffers: Sequence[memoryview], offset: int, /) -> None:
        """Fill all the buffers from byte `offset` on."""
        with self._lock:
            for buffer in buffers:
                buffer[:] = self._view[offset : offset + len(buffer)]
                offset += len(buffer)

    def pwritev(self, buffers: Sequence[memoryview], offset: int, /) -> None:
        """Write all of the buffers from byte `offset` on."""
        with self._lock:
            for buffer in buffers:
                self._view[offset : offset + len(buffer)] = buffer
                offset += len(buffer)

    def flush(self) -> None:
        """Nothing is to be done."""

    def discard(self, length: int, offset: int, /) -> None:
        """These `length` bytes from `offset` on are zeros from now on."""
        with self._lock:
            self._view[offset : offset + length] = bytes(length)

    def __repr__(self) -> str:
        return f"<Memory of {self.size} bytes>"


def _rest(buffers: Sequence[memoryview], moved: int) -> Sequence[memoryview]:
    """What is left of the buffers after so many bytes."""
    left = []
    for buffer in buffers:
        if moved < len(buffer):
            left.append(buffer[moved:])
        moved = max(0, moved - len(buffer))
    return left


_PUNCH_HOLE_KEEP_SIZE = 3  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE (Linux include/uapi/linux/falloc.h)


def _fallocate(fd: int, mode: int, offset: int, length: int) -> int:
    """fallocate(2), which os.posix_fallocate is not: it has no modes."""
    call = ctypes.CDLL(None, use_errno=True).fallocate
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return cast("int", call(fd, mode, offset, length))
