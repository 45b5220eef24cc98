"""What goes over the socket between a device (`socket.py`) and an embedded machine (`embedded/`).

A connection is one open file. It begins with HELLO; then the client asks one request at a time and the machine
answers each with one reply. (After HELLO for `xenbus` the stream is xenstore's own protocol instead.)

    request   length of body u32, kind u8, 3 bytes of pad; body
    reply     length of body u32, result i32 (-errno: the body is the error's text), descriptors u32; body

Descriptors come with a reply in batches, the first on the reply's first byte, each further one on a byte of its own
after the body. Both sides bound every length before they believe it; what breaks the format is `MalformedError`, and
the connection is dropped.
"""

from __future__ import annotations

import array
import contextlib
import errno
import socket
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct, error
from typing import NamedTuple

VERSION = 1
MAX_BODY = 8 << 20
# Of one ioctl: segments of a grant copy, and pointers, so that none keeps the machine from its other clients for long.
MAX_SEGMENTS = 4096
MAX_POINTERS = 2 * MAX_SEGMENTS + 1
MAX_HELLO = 256
MAX_CONTROL = 64 << 10
# Linux carries at most 253 descriptors in one message (net/scm.h, SCM_MAX_FD).
FDS_PER_BATCH = 250
_SO_PASSRIGHTS = 83  # asm-generic/socket.h, and so x86's and arm64's

DEVICES = ("gntalloc", "gntdev", "evtchn", "privcmd", "xenbus", "kernel", "control")

# In a directory: the socket of the devices, that of Xen's own xenstore clients, and the file that a live machine locks.
MACHINE_SOCKET = "machine"
XENSTORED_SOCKET = "xenstored"
LOCK_FILE = "lock"


class Kind(IntEnum):
    HELLO = 1
    IOCTL = 2
    MMAP = 3
    MUNMAP = 4
    PREPARE = 5  # memory for a read-only ALLOC, which names it by a "map" pointer at its index, once it is mapped
    RELEASE = 6  # the last reference to the file is gone
    CONTROL = 7  # JSON both ways


class Direction(IntEnum):
    IN = 1
    OUT = 2
    INOUT = 3
    MAP = 4


class MalformedError(Exception):
    """The other side broke the format."""


REQUEST = Struct("<IB3x")
REPLY = Struct("<IiI")
_HELLO = Struct("<IHH")  # version, domid, flags; then the device's name
_IOCTL = Struct("<III")  # request, length of argument, pointers; then the argument, the pointers, their "in" bytes
_POINTER = Struct("<IIIB3x")  # holder (0 the argument, i the target of pointer i - 1), at, length, direction
_MMAP = Struct("<QQQB7x")  # cookie, length, offset, flags
_COOKIE = Struct("<Q")
_PREPARE = Struct("<QI4x")  # cookie of the mapping, pages
_PART = Struct("<I4xQQ")  # which descriptor of the reply, offset, length

HELLO_KERNEL = 1
MMAP_WRITABLE = 1


class Hello(NamedTuple):
    version: int
    domid: int
    kernel: bool
    device: str


@dataclass(slots=True)
class Argument:
    """A pointer of an ioctl, and the bytes it points to (for "map": the cookie of the mapping)."""

    holder: int
    at: int
    direction: Direction
    data: bytearray


@dataclass(slots=True)
class Ioctl:
    """An ioctl as it arrives: the argument and what its pointers point to, changed in place."""

    request: int
    arg: bytearray
    pointers: list[Argument]

    @property
    def size(self) -> int:
        """Bytes that go back."""
        out = (pointer.data for pointer in self.pointers if pointer.direction in (Direction.OUT, Direction.INOUT))
        return len(self.arg) + sum(map(len, out))

    def index(self) -> dict[tuple[int, int], Argument]:
        """The pointers by (holder, at)."""
        return {(pointer.holder, pointer.at): pointer for pointer in self.pointers}


class Mmap(NamedTuple):
    cookie: int
    length: int
    offset: int
    writable: bool


class Part(NamedTuple):
    """A run of bytes of one descriptor, in the order in which a mapping shows them."""

    fd: int
    offset: int
    length: int


def pack_request(kind: Kind, body: bytes | bytearray = b"") -> bytes:
    return REQUEST.pack(len(body), kind) + body


def parse_request(head: bytes | bytearray) -> tuple[int, Kind]:
    """(length of body, kind)."""
    length, kind = REQUEST.unpack_from(head)
    try:
        return length, Kind(kind)
    except ValueError:
        raise MalformedError(f"unknown request {kind}") from None


def pack_reply(result: int, body: bytes | bytearray = b"", fds: int = 0) -> bytes:
    return REPLY.pack(len(body), result, fds) + body


def batches(fds: Sequence[int]) -> Iterator[Sequence[int]]:
    for first in range(0, len(fds), FDS_PER_BATCH):
        yield fds[first : first + FDS_PER_BATCH]


def rights(fds: Iterable[int]) -> list[tuple[int, int, bytes]]:
    """The ancillary data that carries descriptors."""
    packed = array.array("i", fds).tobytes()
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, packed)] if packed else []


def received(ancillary: Iterable[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors in received ancillary data."""
    fds = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)


def refuse_descriptors(sock: socket.socket) -> None:
    """Let nobody pass descriptors to this end, or to what it accepts: sending some fails there.

    Who receives them closes them, and closing may take long: a TCP socket lingers. Linux has it from 6.16 on.
    """
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)


def pack_hello(domid: int, device: str, *, kernel: bool = False) -> bytes:
    return _HELLO.pack(VERSION, domid, HELLO_KERNEL if kernel else 0) + device.encode()


def unpack_hello(body: bytes) -> Hello:
    version, domid, flags = _unpack(_HELLO, body)
    return Hello(version, domid, bool(flags & HELLO_KERNEL), body[_HELLO.size :].decode(errors="replace"))


def pack_ioctl(request: int, arg: bytearray, pointers: Sequence[tuple[int, int, Direction, int, bytes]]) -> bytes:
    """`pointers`: (holder, at, direction, length, the bytes that go in)."""
    table = b"".join(_POINTER.pack(holder, at, length, way) for holder, at, way, length, _ in pointers)
    inbound = b"".join(data for *_, data in pointers)
    return _IOCTL.pack(request, len(arg), len(pointers)) + arg + table + inbound


def check_pointers(count: int) -> None:
    """`OSError` for more than an ioctl may have."""
    if count > MAX_POINTERS:
        raise OSError(errno.ENOMEM, f"an ioctl with {count} pointers, where an embedded machine takes {MAX_POINTERS}")


def unpack_ioctl(body: bytes) -> Ioctl:
    """`OSError` for one that has too many pointers."""
    request, arg_length, count = _unpack(_IOCTL, body)
    at = _IOCTL.size + arg_length
    if at + count * _POINTER.size > len(body):
        raise MalformedError("an ioctl shorter than it says")
    check_pointers(count)
    call = Ioctl(request, bytearray(body[_IOCTL.size : at]), [])
    table = _POINTER.iter_unpack(body[at : at + count * _POINTER.size])
    at += count * _POINTER.size
    total = 0
    for holder, offset, length, way in table:
        total += length
        if total > MAX_BODY or holder > len(call.pointers) or way not in _DIRECTIONS:
            raise MalformedError("an ioctl with a pointer that cannot be")
        if way == Direction.OUT:
            data = bytearray(length)
        else:
            data = bytearray(body[at : at + length])
            at += length
        call.pointers.append(Argument(holder, offset, Direction(way), data))
    if at != len(body):
        raise MalformedError("an ioctl longer or shorter than it says")
    return call


_DIRECTIONS = frozenset(Direction)


def pack_ioctl_reply(call: Ioctl, parts: bytes = b"") -> bytes:
    """The argument, the bytes that go out, and the parts of what is mapped."""
    out = [pointer.data for pointer in call.pointers if pointer.direction in (Direction.OUT, Direction.INOUT)]
    return b"".join((call.arg, *out, parts))


def pack_mmap(cookie: int, length: int, offset: int, *, writable: bool) -> bytes:
    return _MMAP.pack(cookie, length, offset, MMAP_WRITABLE if writable else 0)


def unpack_mmap(body: bytes) -> Mmap:
    cookie, length, offset, flags = _unpack_whole(_MMAP, body)
    return Mmap(cookie, length, offset, bool(flags & MMAP_WRITABLE))


def pack_munmap(cookies: Iterable[int]) -> bytes:
    return b"".join(map(_COOKIE.pack, cookies))


def unpack_munmap(body: bytes) -> list[int]:
    if len(body) % _COOKIE.size:
        raise MalformedError("munmap of half a cookie")
    return [cookie for (cookie,) in _COOKIE.iter_unpack(body)]


def pack_cookie(cookie: int) -> bytes:
    return _COOKIE.pack(cookie)


def unpack_cookie(data: bytes | bytearray) -> int:
    """The cookie that a "map" pointer points to; 0, which names none, where it is none."""
    return int.from_bytes(data, "little") if len(data) == _COOKIE.size else 0


def pack_prepare(cookie: int, pages: int) -> bytes:
    return _PREPARE.pack(cookie, pages)


def unpack_prepare(body: bytes) -> tuple[int, int]:
    """(cookie, pages)."""
    cookie, pages = _unpack_whole(_PREPARE, body)
    return cookie, pages


def pack_parts(parts: Sequence[Part]) -> tuple[bytes, list[int]]:
    """The bytes, and each descriptor once, in the order in which the bytes number them."""
    numbers: dict[int, int] = {}
    packed = [_PART.pack(numbers.setdefault(fd, len(numbers)), offset, length) for fd, offset, length in parts]
    return b"".join(packed), list(numbers)


def unpack_parts(body: bytes, fds: Sequence[int]) -> list[Part]:
    if len(body) % _PART.size:
        raise MalformedError("half a part")
    try:
        return [Part(fds[i], offset, length) for i, offset, length in _PART.iter_unpack(body)]
    except IndexError:
        raise MalformedError("a part of a descriptor that did not come") from None


_thread = threading.local()


@contextlib.contextmanager
def serving() -> Iterator[None]:
    """Marks a machine's thread, in which nothing may wait for the machine: finalizers may run there too."""
    _thread.serving = True
    try:
        yield
    finally:
        _thread.serving = False


def is_serving() -> bool:
    """Whether this thread is a machine's."""
    return getattr(_thread, "serving", False)


def _unpack(layout: Struct, body: bytes) -> tuple[int, ...]:
    try:
        return layout.unpack_from(body)
    except error:
        raise MalformedError(f"{len(body)} bytes where {layout.size} are needed") from None


def _unpack_whole(layout: Struct, body: bytes) -> tuple[int, ...]:
    if len(body) != layout.size:
        raise MalformedError(f"{len(body)} bytes where {layout.size} are needed")
    return _unpack(layout, body)
