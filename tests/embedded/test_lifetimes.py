"""When pages and grants end: DEALLOC, munmap, UNMAP_GRANT_REF, close, and revocation that has to wait."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from xengrant.abi.xen import PAGE_SIZE
from xengrant.devices import open_system
from xengrant.embedded import Machine
from xengrant.embedded.server import MachineServer
from xengrant.errors import InterfaceClosed

from .conftest import Open
from .ioctls import add_map, alloc, dealloc, eventually, map_grants, refused, share, unmap


def in_use(machine: Machine, domid: int, what: str) -> int:
    count = machine.status()["domains"][domid][what]
    assert isinstance(count, int)
    return count


def test_after_munmap_returns_the_grant_is_revoked(opened: Open, machine: Machine) -> None:
    refs, mine = share(opened(1, "gntalloc"), 2, 4)
    assert in_use(machine, 1, "grants") == 4
    mine.close()
    assert in_use(machine, 1, "grants") == 0
    device = opened(2, "gntdev")
    index = add_map(device, [(1, refs[0])])
    with refused(errno.EINVAL):
        device.mmap(PAGE_SIZE, index, writable=True)


def test_dealloc_only_drops_the_files_reference(opened: Open, machine: Machine) -> None:
    device = opened(1, "gntalloc")
    index, _ = alloc(device, 2)
    mapping = device.mmap(PAGE_SIZE, index, writable=True)
    mapping.close()
    assert in_use(machine, 1, "grants") == 1
    mapping = device.mmap(PAGE_SIZE, index, writable=True)
    dealloc(device, index)
    assert in_use(machine, 1, "grants") == 1
    with refused(errno.ENOENT):
        device.mmap(PAGE_SIZE, index, writable=True)
    with refused(errno.EINVAL):
        dealloc(device, index)
    mapping.close()
    assert in_use(machine, 1, "grants") == 0


def test_dealloc_of_what_was_never_mapped_revokes_at_once(opened: Open, machine: Machine) -> None:
    device = opened(1, "gntalloc")
    for writable in (True, False):
        index, _ = alloc(device, 2, 3, writable=writable)
        dealloc(device, index, 3)
        assert in_use(machine, 1, "grants") == in_use(machine, 1, "mmaps") == 0


def test_dealloc_may_take_a_part_but_not_more_than_there_is(opened: Open, machine: Machine) -> None:
    device = opened(1, "gntalloc")
    index, _ = alloc(device, 2, 3)
    for at, count in ((index, 4), (index + 1, 1), (index, 0)):
        with refused(errno.EINVAL):
            dealloc(device, at, count)
    dealloc(device, index + PAGE_SIZE)
    assert in_use(machine, 1, "grants") == 2
    with refused(errno.EINVAL):
        dealloc(device, index, 3)


def test_closing_a_gntalloc_file_revokes_what_is_not_mapped(opened: Open, machine: Machine) -> None:
    device = opened(1, "gntalloc")
    alloc(device, 2, 2)
    alloc(device, 2, 2, writable=False)
    device.close()
    device.close()
    assert machine.leaks() == {}
    with pytest.raises(InterfaceClosed):
        alloc(device, 2)


@pytest.mark.parametrize("writable", [True, False])
def test_a_mapping_outlives_its_closed_file(opened: Open, machine: Machine, writable: bool) -> None:
    device = opened(1, "gntalloc")
    refs, mine = share(device, 2, writable=writable)
    peer = opened(2, "gntdev")
    _, theirs = map_grants(peer, [(1, refs[0])], writable=False)
    device.close()
    peer.close()
    mine[:2] = b"ok"
    assert theirs[:2] == b"ok"
    assert in_use(machine, 1, "connections") == in_use(machine, 2, "connections") == 1
    theirs.close()
    mine.close()
    assert machine.leaks() == {}


def test_in_a_pv_domain_munmap_releases_the_grant(opened: Open, machine: Machine) -> None:
    refs, mine = share(opened(1, "gntalloc"), 2)
    device = opened(2, "gntdev")
    index, theirs = map_grants(device, [(1, refs[0])], writable=True)
    theirs.close()
    assert in_use(machine, 2, "maps") == in_use(machine, 1, "mapped") == 0
    unmap(device, index)
    mine.close()


def test_in_a_pv_domain_unmap_grant_ref_alone_releases_nothing(opened: Open, machine: Machine) -> None:
    refs, mine = share(opened(1, "gntalloc"), 2)
    device = opened(2, "gntdev")
    index, theirs = map_grants(device, [(1, refs[0])], writable=True)
    unmap(device, index)
    assert in_use(machine, 2, "maps") == 1
    mine[3] = 3
    assert theirs[3] == 3
    theirs.close()
    assert in_use(machine, 2, "maps") == 0
    mine.close()


@pytest.mark.parametrize("munmap_first", [True, False])
def test_in_an_hvm_domain_both_munmap_and_unmap_grant_ref_are_needed(
    opened: Open, machine: Machine, munmap_first: bool
) -> None:
    machine.create(2, lifetime="hvm")
    refs, mine = share(opened(1, "gntalloc"), 2)
    device = opened(2, "gntdev")
    index, theirs = map_grants(device, [(1, refs[0])], writable=True)
    steps: list[Callable[[], None]] = [theirs.close, lambda: unmap(device, index)]
    for step in steps if munmap_first else reversed(steps):
        assert in_use(machine, 2, "maps") == 1
        step()
    assert in_use(machine, 2, "maps") == 0
    mine.close()


def test_in_an_hvm_domain_close_stands_for_unmap_grant_ref(opened: Open, machine: Machine) -> None:
    machine.create(2, lifetime="hvm")
    refs, mine = share(opened(1, "gntalloc"), 2)
    device = opened(2, "gntdev")
    _, first = map_grants(device, [(1, refs[0])], writable=True)
    _, second = map_grants(device, [(1, refs[0])], writable=True)
    first.close()
    device.close()
    assert in_use(machine, 2, "maps") == 2  # a file ends with its last mapping
    second.close()
    assert in_use(machine, 2, "maps") == 0
    mine.close()


def test_what_the_peer_still_maps_is_revoked_later(opened: Open, machine: Machine) -> None:
    refs, mine = share(opened(1, "gntalloc"), 2)
    _, theirs = map_grants(opened(2, "gntdev"), [(1, refs[0])], writable=True)
    mine[:4] = b"data"
    mine.close()
    assert in_use(machine, 1, "deferred") == 1
    assert theirs[:4] == b"data"
    assert any("deferring g.e. 0x8" in line for line in machine.kernel_log(1))
    others, mine = share(opened(1, "gntalloc"), 2)
    assert others != refs  # the ref and its page are not used again before
    mine.close()
    theirs.close()
    eventually(lambda: in_use(machine, 1, "deferred") == 0, "the deferred page is freed")
    assert in_use(machine, 1, "grants") == 0


def test_deferred_pages_do_not_count_to_the_limit(opened: Open, machine: Machine) -> None:
    machine.create(1, gntalloc_limit=2)
    device = opened(1, "gntalloc")
    refs, mine = share(device, 2, 2)
    _, theirs = map_grants(opened(2, "gntdev"), [(1, ref) for ref in refs], writable=True)
    mine.close()
    _, mine = share(device, 2, 2)
    mine.close()
    theirs.close()


def reclaim_now(server: MachineServer) -> None:
    server.hypervisor.domains[1].linux._reclaim()


def test_each_reclaim_frees_as_many_pages_as_the_kernel_does() -> None:
    with Machine(reclaim_interval=60, free_per_iteration=10) as machine:
        gntalloc = open_system(machine.url(1)).open("gntalloc")
        gntdev = open_system(machine.url(2)).open("gntdev")
        refs, mine = share(gntalloc, 2, 25)
        _, theirs = map_grants(gntdev, [(1, ref) for ref in refs], writable=True)
        mine.close()
        theirs.close()
        left = []
        for _ in range(3):
            machine._do(reclaim_now)
            left.append(in_use(machine, 1, "deferred"))
        assert left == [15, 5, 0]
        gntalloc.close()
        gntdev.close()


def test_unmapping_may_take_its_time(opened: Open, machine: Machine) -> None:
    machine.create(2, unmap_delay=0.2)
    refs, mine = share(opened(1, "gntalloc"), 2)
    _, theirs = map_grants(opened(2, "gntdev"), [(1, refs[0])], writable=True)
    theirs.close()
    assert in_use(machine, 2, "maps") == 1
    eventually(lambda: in_use(machine, 2, "maps") == 0, "the delayed unmap is done")
    mine.close()


def test_a_mapping_that_is_dropped_unclosed_is_unmapped_and_told(opened: Open, machine: Machine) -> None:
    _, mine = share(opened(1, "gntalloc"), 2)
    with pytest.warns(ResourceWarning, match="unclosed"):
        del mine
    assert in_use(machine, 1, "grants") == 0


def test_a_view_keeps_the_grant(opened: Open, machine: Machine) -> None:
    _, mine = share(opened(1, "gntalloc"), 2)
    view = memoryview(mine)
    with pytest.raises(BufferError):
        mine.close()
    assert in_use(machine, 1, "grants") == 1
    view.release()
    mine.close()
    assert in_use(machine, 1, "grants") == 0
