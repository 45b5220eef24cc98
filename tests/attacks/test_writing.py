"""Writing where only reading is granted, or changing a page's size, through descriptors that came with a map."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from tests.attacks.conftest import Outcome, Refused
from tests.attacks.raw import Raw
from tests.embedded.conftest import Open
from tests.embedded.ioctls import share
from xengrant.abi import gntalloc, kernelspace
from xengrant.abi.xen import PAGE_SIZE
from xengrant.devices import wire
from xengrant.devices.wire import Direction, Kind
from xengrant.embedded import Machine
from xengrant.grant_entries import entries_of
from xengrant.memory import Mapping

THROUGH = "descriptors of a map that are kept"

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.mmap.restype = ctypes.c_void_p

_PUNCH_HOLE, _COLLAPSE, _ZERO, _INSERT, _KEEP_SIZE = 0x02, 0x08, 0x10, 0x20, 0x01  # linux/falloc.h
_MADV_REMOVE = 9
_SEAL_FUTURE_WRITE = 0x10
_READ, _WRITE = mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE


class Kept(NamedTuple):
    """What a hostile mapper keeps: the descriptor that came, and the same file opened anew as far as it can be."""

    fd: int
    again: int


def _check(result: int | None) -> None:
    if result is None or result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _map(fd: int, protection: int) -> int:
    """The address of the page, for as long as this process lives: nobody unmaps it."""
    address: int = _libc.mmap(None, ctypes.c_size_t(PAGE_SIZE), protection, mmap.MAP_SHARED, fd, ctypes.c_long(0))
    _check(-1 if address == ctypes.c_void_p(-1).value else 0)
    return address


def _store(fd: int) -> None:
    ctypes.memmove(_map(fd, _WRITE), b"evil", 4)


def _mprotect(fd: int) -> None:
    address = _map(fd, _READ)
    try:
        _check(_libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(PAGE_SIZE), _WRITE))
        ctypes.memmove(address, b"evil", 4)
    finally:
        _libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(PAGE_SIZE))


def _remove(fd: int) -> None:
    address = _map(fd, _READ)
    try:
        _check(_libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(PAGE_SIZE), _MADV_REMOVE))
    finally:
        _libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(PAGE_SIZE))


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def _process_vm_writev(fd: int) -> None:
    address = _map(fd, _READ)
    text = ctypes.create_string_buffer(b"evil")
    local, remote = _Iovec(ctypes.addressof(text), 4), _Iovec(address, 4)
    try:
        _check(_libc.process_vm_writev(os.getpid(), ctypes.byref(local), 1, ctypes.byref(remote), 1, 0))
    finally:
        _libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(PAGE_SIZE))


def _own_memory(fd: int) -> None:
    """/proc/self/mem writes into read-only mappings that are private; into shared ones it must not."""
    address = _map(fd, _READ)
    memory = os.open("/proc/self/mem", os.O_RDWR | os.O_CLOEXEC)
    try:
        os.pwrite(memory, b"evil", address)
    finally:
        os.close(memory)
        _libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(PAGE_SIZE))


def _splice(fd: int) -> None:
    reader, writer = os.pipe()
    try:
        os.write(writer, b"evil")
        os.splice(reader, fd, 4, offset_dst=0)
    finally:
        os.close(reader)
        os.close(writer)


def _from_a_file(call: Callable[[int, int], object]) -> Callable[[int], None]:
    def attack(fd: int) -> None:
        source = os.memfd_create("evil", os.MFD_CLOEXEC)
        try:
            os.pwrite(source, b"evil", 0)
            call(source, fd)
        finally:
            os.close(source)

    return attack


def _fallocate(mode: int, offset: int = 0, length: int = PAGE_SIZE) -> Callable[[int], None]:
    return lambda fd: _check(_libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)))


def _truncate_at_open(fd: int) -> None:
    os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_TRUNC | os.O_CLOEXEC))


def _reopened_by_another(fd: int) -> None:
    """In a process that gets the descriptor, as from an accomplice."""
    code = "import os, sys\nfd = os.open(f'/proc/self/fd/{sys.argv[1]}', os.O_RDWR)\nos.pwrite(fd, b'evil', 0)"
    done = subprocess.run([sys.executable, "-c", code, str(fd)], pass_fds=[fd], stderr=subprocess.PIPE, check=False)
    if done.returncode:
        name = next(name for name in (b"PermissionError", b"Bad file") if name in done.stderr)
        raise OSError(errno.EPERM if name == b"PermissionError" else errno.EBADF, done.stderr.decode())


def _passed_round(fd: int) -> None:
    """Through a socket of one's own, which makes a second descriptor of the same open file."""
    left, right = socket.socketpair()
    with left, right:
        socket.send_fds(left, [b"!"], [fd])
        _, (copy,), _, _ = socket.recv_fds(right, 1, 1)
    try:
        os.pwrite(copy, b"evil", 0)
    finally:
        os.close(copy)


WRITES: dict[str, Callable[[int], object]] = {
    "mmap PROT_WRITE": _store,
    "mprotect": _mprotect,
    "pwrite": lambda fd: os.pwrite(fd, b"evil", 0),
    "write": lambda fd: os.write(fd, b"evil"),
    "pwritev2": lambda fd: os.pwritev(fd, [b"evil"], 0),
    "splice": _splice,
    "sendfile": _from_a_file(lambda source, fd: os.sendfile(fd, source, 0, 4)),
    "copy_file_range": _from_a_file(lambda source, fd: os.copy_file_range(source, fd, 4, 0, 0)),
    "punch a hole": _fallocate(_PUNCH_HOLE | _KEEP_SIZE),
    "zero a range": _fallocate(_ZERO),
    "collapse a range": _fallocate(_COLLAPSE),
    "madvise MADV_REMOVE": _remove,
    "process_vm_writev": _process_vm_writev,
    "/proc/self/mem": _own_memory,
    "in an accomplice's process": _reopened_by_another,
    "by a copy of the descriptor": _passed_round,
}

SIZES: dict[str, Callable[[int], object]] = {
    "ftruncate to 0": lambda fd: os.ftruncate(fd, 0),
    "ftruncate to more": lambda fd: os.ftruncate(fd, 3 * PAGE_SIZE),
    "fallocate more": _fallocate(0, PAGE_SIZE, PAGE_SIZE),
    "insert a range": _fallocate(_INSERT),
    "open with O_TRUNC": _truncate_at_open,
    "F_SEAL_WRITE": lambda fd: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
    "F_SEAL_FUTURE_WRITE": lambda fd: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEAL_FUTURE_WRITE),
    "F_SETLEASE": lambda fd: fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK),
}
# Also that there is no such thing for a file in memory.
REFUSALS = ("EPERM", "EACCES", "EBADF", "EINVAL", "EFAULT", "EIO", "ENOTSUP", "EAGAIN")


def attack(way: Callable[[int], object], fd: int) -> str:
    """The errno that a way fails with."""
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is compared below
        way(fd)
    name = errno.errorcode[caught.value.errno or 0]
    assert name in REFUSALS
    return name


@pytest.fixture
def readonly_map(opened: Open, machine: Machine, granted: bool) -> Iterator[tuple[Mapping, Kept]]:
    """The owner's mapping of a page, which domain 3 maps for reading; `granted` is whether it may write, too."""
    refs, mine = share(opened(1, "gntalloc"), 3, writable=granted)
    mine[:5] = b"owner"
    with Raw(machine, "gntdev", 3) as mapper:
        mapper.map((1, refs[0]), writable=False)
        (fd,) = mapper.fds
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
        yield mine, Kept(fd, again)
        os.close(again)
    assert mine[:5] == b"owner"
    mine[:5] = b"still"  # the owner can
    mine.close()


@pytest.mark.parametrize("granted", [False], ids=["read-only grant"])
@pytest.mark.parametrize("opened_anew", [False, True], ids=["as it came", "opened anew O_RDWR"])
@pytest.mark.parametrize("way", WRITES)
def test_writing_to_a_read_only_grant(
    readonly_map: tuple[Mapping, Kept], way: str, opened_anew: bool, outcome: Outcome
) -> None:
    """write to a read-only grant"""
    mine, kept = readonly_map
    outcome(attack(WRITES[way], kept.again if opened_anew else kept.fd))
    assert mine[:5] == b"owner"


@pytest.mark.parametrize("granted", [True], ids=["writable grant"])
@pytest.mark.parametrize("way", [way for way in WRITES if way != "in an accomplice's process"])
def test_writing_through_a_read_only_map(readonly_map: tuple[Mapping, Kept], way: str, outcome: Outcome) -> None:
    """write through a map that was asked for reading, of a grant that allows writing"""
    mine, kept = readonly_map
    outcome(attack(WRITES[way], kept.fd))
    assert mine[:5] == b"owner"


@pytest.mark.parametrize("granted", [False, True], ids=["read-only grant", "writable grant"])
@pytest.mark.parametrize("way", SIZES)
def test_changing_a_pages_size_or_seals(readonly_map: tuple[Mapping, Kept], way: str, outcome: Outcome) -> None:
    """take a page from under its owner, add to it, or seal it"""
    mine, kept = readonly_map
    outcome(attack(SIZES[way], kept.again))
    assert mine[:5] == b"owner"
    assert os.fstat(kept.fd).st_size == PAGE_SIZE


def test_the_owner_that_seals_what_it_prepares(machine: Machine, refused: Refused) -> None:
    """seal the memory of a read-only share oneself, before the machine does"""
    for seal in (fcntl.F_SEAL_WRITE, fcntl.F_SEAL_SEAL, _SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL):
        with Raw(machine, "gntalloc", 3) as owner:
            owner.ask(Kind.PREPARE, wire.pack_prepare(7, 1))
            fcntl.fcntl(owner.fds[0], fcntl.F_ADD_SEALS, seal)
            named = (0, gntalloc.INDEX_AT, Direction.MAP, 8, wire.pack_cookie(7))
            with refused(errno.EPERM):
                owner.ioctl(gntalloc.ALLOC_GREF, gntalloc.pack_alloc(1, 0, 1), [named])


def test_a_kernels_page_by_a_descriptor_opened_anew(machine: Machine, outcome: Outcome) -> None:
    """write to a read-only grant of a domain that is a program (kernel=1)"""
    with Raw(machine, "kernel", 5, kernel=True) as kernel, Raw(machine, "gntdev", 3) as mapper:
        kernel.mmap(PAGE_SIZE, kernelspace.TABLE_OFFSET, writable=True)
        arg = kernelspace.pack_run(1)
        kernel.ioctl(kernelspace.ALLOC_PAGES, arg)
        with Mapping(((kernel.fds[0], 0, PAGE_SIZE),), writable=True) as table:
            entries = entries_of(1, [table])
            entries.grant(100, 3, kernelspace.unpack_run(arg)[1], writable=False)
            mapper.map((5, 100), writable=False)
            assert attack(WRITES["pwrite"], mapper.fds[0]) == "EBADF"
            again = os.open(f"/proc/self/fd/{mapper.fds[0]}", os.O_RDWR | os.O_CLOEXEC)
            assert os.pwrite(again, b"evil", 0) == 4
            os.close(again)
            entries.frames.clear()
    outcome("EBADF as it came; opened anew it gets through, as docs/differences.md says")
