"""What a domain can do with the descriptors that it gets: not to resize, and not to write where it may only read."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
from collections.abc import Iterator
from unittest import mock

import pytest

from xengrant.abi.xen import PAGE_SIZE
from xengrant.devices import client
from xengrant.embedded import Machine

from .conftest import Open
from .ioctls import alloc, dealloc, map_grants, refused, share

_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def stolen_descriptors() -> Iterator[list[int]]:
    """What a hostile client would keep of the descriptors that come with replies."""
    stolen: list[int] = []

    def steal(reply: client.Reply) -> None:
        stolen.extend(reply.fds)
        reply.fds.clear()

    with mock.patch.object(client.Reply, "close_fds", steal):
        yield stolen
    for fd in stolen:
        os.close(fd)


def reopen(fd: int) -> int:
    return os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)


@pytest.mark.parametrize("writable", [True, False])
def test_nobody_can_resize_the_pages_of_another(opened: Open, writable: bool) -> None:
    refs, mine = share(opened(1, "gntalloc"), 2, writable=writable)
    with stolen_descriptors() as stolen:
        _, theirs = map_grants(opened(2, "gntdev"), [(1, refs[0])], writable=writable)
        assert stolen
        with contextlib.ExitStack() as stack:
            for fd in list(stolen):
                again = reopen(fd)
                stack.callback(os.close, again)
                for size in (0, 2 * PAGE_SIZE):
                    with refused(errno.EPERM):
                        os.ftruncate(again, size)
                with refused(errno.EPERM):
                    fcntl.fcntl(again, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    assert mine[:] == theirs[:] == bytes(PAGE_SIZE)
    mine.close()
    theirs.close()


def test_the_reader_of_a_read_only_grant_cannot_write_by_any_way(opened: Open) -> None:
    refs, mine = share(opened(1, "gntalloc"), 2, writable=False)
    with stolen_descriptors() as stolen:
        _, theirs = map_grants(opened(2, "gntdev"), [(1, refs[0])], writable=False)
        again = reopen(stolen[-1])
        with refused(errno.EPERM):
            mmap.mmap(again, PAGE_SIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE).close()
        with refused(errno.EPERM):
            os.pwrite(again, b"x", 0)
        with refused(errno.EPERM):  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE would zero the page
            if _libc.fallocate(again, 3, ctypes.c_long(0), ctypes.c_long(PAGE_SIZE)) < 0:
                raise OSError(ctypes.get_errno(), "fallocate")
        with contextlib.closing(mmap.mmap(again, PAGE_SIZE, mmap.MAP_SHARED, mmap.PROT_READ)):
            pass
        os.close(again)
    make_writable = _libc.mprotect(ctypes.c_void_p(theirs.address), PAGE_SIZE, mmap.PROT_READ | mmap.PROT_WRITE)
    assert (make_writable, ctypes.get_errno()) == (-1, errno.EACCES)
    mine[:5] = b"owner"  # who still can
    assert theirs[:5] == b"owner"
    mine.close()
    theirs.close()


def test_a_read_only_map_of_a_writable_grant_stays_read_only(opened: Open) -> None:
    refs, mine = share(opened(1, "gntalloc"), 2, writable=True)
    with stolen_descriptors() as stolen:
        _, theirs = map_grants(opened(2, "gntdev"), [(1, refs[0])], writable=False)
        with refused(errno.EACCES):
            mmap.mmap(stolen[-1], PAGE_SIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE).close()
        with refused(errno.EBADF):
            os.pwrite(stolen[-1], b"x", 0)
    make_writable = _libc.mprotect(ctypes.c_void_p(theirs.address), PAGE_SIZE, mmap.PROT_READ | mmap.PROT_WRITE)
    assert (make_writable, ctypes.get_errno()) == (-1, errno.EACCES)
    mine.close()
    theirs.close()


def test_a_kept_descriptor_shows_nothing_that_comes_later(opened: Open) -> None:
    device = opened(1, "gntalloc")
    refs, mine = share(device, 2)
    with stolen_descriptors() as stolen:
        _, theirs = map_grants(opened(2, "gntdev"), [(1, refs[0])], writable=True)
        theirs.close()
        mine.close()
        again, mine = share(device, 3)
        assert again == refs
        mine[:6] = b"secret"
        for fd in stolen[:1]:
            assert os.pread(fd, 6, 0) == bytes(6)
        mine.close()


def test_the_owner_of_a_read_only_alloc_maps_it_writable_once(opened: Open) -> None:
    device = opened(1, "gntalloc")
    index, _ = alloc(device, 2, 2, writable=False)
    with device.mmap(2 * PAGE_SIZE, index, writable=True) as mine:
        mine[0] = 1
        with device.mmap(2 * PAGE_SIZE, index, writable=False) as reader:
            assert reader[0] == 1
        with refused(errno.EPERM):
            device.mmap(2 * PAGE_SIZE, index, writable=True)
    dealloc(device, index, 2)


def test_a_read_only_alloc_that_fails_leaves_nothing(opened: Open, machine: Machine) -> None:
    machine.create(1, gntalloc_limit=1000, max_grant_frames=1)
    device = opened(1, "gntalloc")
    before = machine.status()["descriptors"], machine.status()["pages"]
    for count in (1001, 600):  # beyond the limit, beyond the table
        with refused(errno.ENOSPC):
            alloc(device, 2, count, writable=False)
    assert (machine.status()["descriptors"], machine.status()["pages"]) == before
