"""What a domain can do with descriptors that the library takes and closes: see what comes later, and map twice."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from unittest import mock

from tests.embedded.conftest import Open
from tests.embedded.ioctls import alloc, dealloc, map_grants, refused, share
from xengrant.abi.xen import PAGE_SIZE
from xengrant.devices import client
from xengrant.embedded import Machine

THROUGH = "the library's own descriptors, kept"


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
    machine.create(4, gntalloc_limit=1000, max_grant_frames=1)
    device = opened(4, "gntalloc")
    before = machine.status()["descriptors"], machine.status()["pages"]
    for count in (1001, 600):  # beyond the limit, beyond the table
        with refused(errno.ENOSPC):
            alloc(device, 2, count, writable=False)
    assert (machine.status()["descriptors"], machine.status()["pages"]) == before
    machine.destroy(4)
