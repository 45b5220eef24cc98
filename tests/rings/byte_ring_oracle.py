"""Compiles byte_ring_oracle.c, and calls it: the rings of bytes as C has them, on a page of their own."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from xengrant.abi.xen import PAGE_SIZE

COMPILER = shutil.which("gcc") or shutil.which("cc")
_SOURCE = Path(__file__).with_suffix(".c")

needed = pytest.mark.skipif(
    COMPILER is None or not Path("/usr/include/xen/io/console.h").exists(),
    reason="it takes a C compiler and Xen's headers (apt-get install gcc libxen-dev)",
)


@functools.cache
def _library() -> ctypes.CDLL:
    assert COMPILER is not None
    with tempfile.TemporaryDirectory() as directory:
        built = Path(directory, "oracle.so")
        command = [COMPILER, "-std=gnu11", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(built), str(_SOURCE)]
        subprocess.run(command, check=True, timeout=120)
        return ctypes.CDLL(str(built))


class Oracle:
    """A page and C's two rings in it; `kind` is "console" or "xenstore"."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.page = bytearray(PAGE_SIZE)
        self._address = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(self.page)))

    def set(self, ring: str, cons: int, prod: int) -> None:
        """Where the ring `to_front` or `to_back` has its indices."""
        self._call(ring, "set", ctypes.c_uint32(cons), ctypes.c_uint32(prod))

    def write(self, ring: str, data: bytes) -> int:
        return self._call(ring, "write", data, ctypes.c_size_t(len(data)))

    def read(self, ring: str, most: int) -> bytes:
        into = ctypes.create_string_buffer(most + 1)
        count = self._call(ring, "read", into, ctypes.c_size_t(most))
        return into.raw[:count]

    def _call(self, ring: str, what: str, *arguments: object) -> int:
        return int(getattr(_library(), f"{self.kind}_{ring}_{what}")(self._address, *arguments))
