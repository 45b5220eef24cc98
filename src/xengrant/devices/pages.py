"""Putting other pages where a mapping is, as privcmd's MMAP_RESOURCE does: for `socket.py`, where no kernel does it."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence

from xengrant.devices.wire import Part
from xengrant.memory import Mapping

_MAP_FIXED = 0x10
_MADV_DONTFORK = 10

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
)
_libc.madvise.restype = ctypes.c_int
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

_FAILED = ctypes.c_void_p(-1).value


def replace_pages(target: Mapping, parts: Sequence[Part]) -> None:
    """Have `target` show `parts` from its start on. `ValueError` where they do not fit, `OSError`."""
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if target.writable else 0)
    with memoryview(target) as pinned:
        if sum(part.length for part in parts) > len(pinned):
            raise ValueError(f"{sum(part.length for part in parts)} bytes do not fit in a mapping of {len(pinned)}")
        at = target.address
        for fd, offset, length in parts:
            if _libc.mmap(at, length, protection, mmap.MAP_SHARED | _MAP_FIXED, fd, offset) == _FAILED:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            if _libc.madvise(at, length, _MADV_DONTFORK) != 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            at += length
