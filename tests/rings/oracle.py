"""The C rings of `oracle.c`, compiled once for each size of an entry, as a library and as a program."""

from __future__ import annotations

import atexit
import ctypes
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest

__all__ = ["NEEDED", "Oracle", "build"]

_COMPILER = shutil.which("gcc") or shutil.which("cc")
_MISSING = [
    *(["a C compiler (apt-get install gcc)"] if _COMPILER is None else []),
    *([] if Path("/usr/include/xen/io/ring.h").exists() else ["xen/io/ring.h (apt-get install libxen-dev)"]),
]
NEEDED = pytest.mark.skipif(bool(_MISSING), reason=f"there is no {' and no '.join(_MISSING)}")


@cache
def _directory() -> Path:
    directory = mkdtemp(prefix="xengrant-oracle-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return Path(directory)


@cache
def build(entry_size: int, *, program: bool) -> Path:
    """The library or the program for entries of that size."""
    made = _directory() / f"{'program' if program else 'library'}{entry_size}"
    assert _COMPILER is not None
    command = [_COMPILER, "-std=gnu11", "-O2", "-Wall", "-Werror", f"-DENTRY_SIZE={entry_size}"]
    command += [] if program else ["-shared", "-fPIC"]
    command += ["-o", str(made), str(Path(__file__).with_name("oracle.c"))]
    built = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert built.returncode == 0, built.stderr
    return made


class Oracle:
    """Both ends of one ring in C, over `memory`."""

    def __init__(self, memory: bytearray, entry_size: int) -> None:
        self._library = ctypes.CDLL(str(build(entry_size, program=False)))
        self._library.new_ends.restype = ctypes.c_void_p
        self._ends = ctypes.c_void_p(self._library.new_ends())
        self._page = (ctypes.c_char * len(memory)).from_buffer(memory)
        self._entry_size = entry_size
        self._size = len(memory)

    def init(self) -> None:
        self._library.front_init(self._ends, self._page, self._size)
        self._library.back_attach(self._ends, self._page, self._size, 0)

    def attach(self, at: int) -> None:
        for attach in (self._library.front_attach, self._library.back_attach):
            attach(self._ends, self._page, self._size, ctypes.c_uint(at))

    def next_request(self, request: bytes) -> None:
        self._library.next_request(self._ends, request, len(request))

    def next_response(self, response: bytes) -> None:
        self._library.next_response(self._ends, response, len(response))

    def ask(self, name: str) -> int:
        """What a call without further arguments answers."""
        answer: int = getattr(self._library, name)(self._ends)
        return answer

    def take_requests(self) -> list[bytes]:
        return self._take(self._library.take_requests)

    def take_responses(self) -> list[bytes]:
        return self._take(self._library.take_responses)

    def close(self) -> None:
        self._library.free_ends(self._ends)
        del self._page

    def _take(self, take: Callable[[ctypes.c_void_p, ctypes.Array[ctypes.c_char]], int]) -> list[bytes]:
        room = ctypes.create_string_buffer(self.ask("entries") * self._entry_size)
        count = take(self._ends, room)
        return [room.raw[i * self._entry_size : (i + 1) * self._entry_size] for i in range(count)]
