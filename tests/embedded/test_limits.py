"""What runs out, and how it is told: gntalloc's limit, the table, gntdev's limit, maptrack, pins."""

from __future__ import annotations

import errno
import math
from collections.abc import Iterator
from typing import Any

import pytest

from xengrant.abi import gntalloc, gntdev
from xengrant.abi.grant_table import GNTST_GENERAL_ERROR, NR_RESERVED_ENTRIES, V1_ENTRIES_PER_FRAME
from xengrant.abi.xen import PAGE_SIZE
from xengrant.devices import open_system
from xengrant.embedded import Machine
from xengrant.embedded.gntdev import Gntdev, Map

from .conftest import Open
from .ioctls import add_map, alloc, bind_unbound, copy, dealloc, map_grants, notify_at, refused, share, unmap


@pytest.mark.parametrize("writable", [True, False])
def test_gntallocs_limit_counts_the_pages_of_all_files(opened: Open, machine: Machine, writable: bool) -> None:
    machine.create(1, gntalloc_limit=5)
    first, second = opened(1, "gntalloc"), opened(1, "gntalloc")
    alloc(first, 2, 3, writable=writable)
    with refused(errno.ENOSPC):
        alloc(second, 2, 3, writable=writable)
    index, _ = alloc(second, 2, 2, writable=writable)
    with refused(errno.ENOSPC):
        alloc(first, 2, writable=writable)
    dealloc(second, index, 2)
    alloc(first, 2, 2, writable=writable)
    assert not machine.kernel_log(1)
    with refused(errno.ENOSPC):
        first.ioctl(gntalloc.ALLOC_GREF, gntalloc.pack_alloc(2, 1, 1)[:4] + b"\xff" * 20)


def test_a_full_table_is_enospc_too_and_the_kernel_logs_it(opened: Open, machine: Machine) -> None:
    machine.create(1, max_grant_frames=2, gntalloc_limit=1_000_000)
    device = opened(1, "gntalloc")
    room = 2 * V1_ENTRIES_PER_FRAME - NR_RESERVED_ENTRIES
    with refused(errno.ENOSPC):
        alloc(device, 2, room + 1)
    assert machine.status()["domains"][1]["grants"] == 0
    _, refs = alloc(device, 2, room)
    assert sorted(refs) == list(range(NR_RESERVED_ENTRIES, 2 * V1_ENTRIES_PER_FRAME))
    for writable in (True, False):
        with refused(errno.ENOSPC):
            alloc(device, 2, writable=writable)
    system = open_system(machine.url(1))
    (first, *_, last) = [line for line in system.kernel_log(60) if "max_grant_frames reached" in line]
    assert first.startswith("xen/grant-table: max_grant_frames reached cur=2 extra=1 limit=2")
    assert first == last
    machine.create(2)
    assert open_system(machine.url(2)).kernel_log(60) == []


def test_the_table_grows_frame_by_frame(opened: Open, machine: Machine) -> None:
    device = opened(1, "gntalloc")
    alloc(device, 2, V1_ENTRIES_PER_FRAME - NR_RESERVED_ENTRIES)
    assert machine.status()["domains"][1]["frames"] == 1
    _, refs = alloc(device, 2)
    assert refs == (V1_ENTRIES_PER_FRAME,)
    assert machine.status()["domains"][1]["frames"] == 2


def test_an_index_is_never_used_again_not_even_after_a_failure(opened: Open, machine: Machine) -> None:
    machine.create(1, max_grant_frames=1)
    device = opened(1, "gntalloc")
    index, _ = alloc(device, 2, 2)
    dealloc(device, index, 2)
    with refused(errno.ENOSPC):
        alloc(device, 2, 600)
    index, _ = alloc(device, 2)
    assert index == 602 * PAGE_SIZE


def test_no_pages_succeed_and_are_nothing(opened: Open, machine: Machine) -> None:
    device = opened(1, "gntalloc")
    for writable in (True, False):
        assert alloc(device, 2, 0, writable=writable) == (0, ())
    assert machine.status()["domains"][1]["grants"] == 0


def test_gntalloc_takes_any_domid(opened: Open) -> None:
    device = opened(1, "gntalloc")
    for domid in (0, 1, 0x7FF0, 0xFFFF):
        alloc(device, domid)


def test_room_for_the_refs_is_needed(opened: Open, machine: Machine) -> None:
    device = opened(1, "gntalloc")
    for size in (0, 5, 16, 23):
        with refused(errno.EFAULT):
            device.ioctl(gntalloc.ALLOC_GREF, gntalloc.pack_alloc(2, 1, 1)[:size])
    with refused(errno.EFAULT):
        device.ioctl(gntalloc.ALLOC_GREF, gntalloc.pack_alloc(2, 1, 10)[:50])
    assert machine.status()["domains"][1]["grants"] == 0


def test_unknown_ioctls(opened: Open) -> None:
    for name, number in (("gntalloc", errno.ENOTTY), ("gntdev", errno.ENOTTY), ("evtchn", errno.ENOSYS)):
        device = opened(1, name)
        with refused(number):
            device.ioctl(0x1234, bytearray(8))
    with refused(errno.ENOTTY):
        opened(0, "privcmd").ioctl(0x1234, bytearray(8))
    with refused(errno.ENOTTY):  # SET_MAX_GRANTS
        opened(1, "gntdev").ioctl(0x00044703, bytearray(4))


def test_gntdevs_limit_is_for_each_request(opened: Open, machine: Machine) -> None:
    device = opened(2, "gntdev")
    add_map(device, [(1, 8)] * 65536)
    add_map(device, [(1, 8)] * 65536)
    for count in (0, 65537):
        with refused(errno.EINVAL):
            add_map(device, [(1, 8)] * count)
    with refused(errno.EFAULT):
        device.ioctl(gntdev.MAP_GRANT_REF, gntdev.pack_map([(1, 8)] * 10)[:60])


def test_the_grants_in_all_maps_of_a_domain_are_limited(opened: Open, machine: Machine) -> None:
    machine.create(2, gntdev_total=10)
    first, second = opened(2, "gntdev"), opened(2, "gntdev")
    index = add_map(first, [(1, 8)] * 6)
    with refused(errno.ENOMEM):
        add_map(second, [(1, 8)] * 5)
    add_map(second, [(1, 8)] * 4)
    first.ioctl(gntdev.UNMAP_GRANT_REF, gntdev.pack_unmap(index, 6))
    add_map(first, [(1, 8)] * 6)
    second.close()
    add_map(first, [(1, 8)] * 4)
    with refused(errno.ENOMEM):
        add_map(first, [(1, 8)])


class Looked(list[Map]):
    """A list that counts what is taken out of it."""

    looks = 0

    def __getitem__(self, at: Any) -> Any:
        self.looks += 1
        return super().__getitem__(at)

    def __iter__(self) -> Iterator[Map]:
        for mapped in super().__iter__():
            self.looks += 1
            yield mapped


def test_a_map_is_found_among_many_in_a_few_steps(opened: Open, machine: Machine) -> None:
    device = opened(2, "gntdev")
    last = max(add_map(device, [(1, 8)] * 2) for _ in range(1000))
    (file,) = machine._server.hypervisor.domains[2].files
    assert isinstance(file, Gntdev)
    file._maps = maps = Looked(file._maps)
    port = bind_unbound(opened(2, "evtchn"), 1)
    notify_at(device, last + PAGE_SIZE, port=port)
    with refused(errno.ENOENT):
        notify_at(device, last + 2 * PAGE_SIZE, port=port)
    with refused(errno.ENOENT):
        unmap(device, last + PAGE_SIZE, 2)
    unmap(device, last, 2)
    assert maps.looks < 100
    assert len(maps) == 999


def test_a_big_map(opened: Open, machine: Machine) -> None:
    """More grants, and more descriptors, than one message carries."""
    machine.create(1, gntalloc_limit=4000)
    device = opened(1, "gntalloc")
    refs: list[int] = []
    for _ in range(300):
        refs += alloc(device, 2, 10)[1]
    _, theirs = map_grants(opened(2, "gntdev"), [(1, ref) for ref in refs], writable=True)
    assert theirs[:] == bytes(3000 * PAGE_SIZE)
    theirs.close()


def test_a_page_is_pinned_128_times_for_reading_and_128_times_for_writing(opened: Open, machine: Machine) -> None:
    machine.create(2, lifetime="hvm")
    refs, mine = share(opened(1, "gntalloc"), 2)
    device = opened(2, "gntdev")
    grant, byte = (refs[0], 0, 1), bytearray(1)
    _, written = map_grants(device, [(1, refs[0])] * 128, writable=True)
    assert copy(device, [(byte, grant, 1), (grant, byte, 1)]) == [GNTST_GENERAL_ERROR, 0]
    _, read = map_grants(device, [(1, refs[0])] * 128, writable=False)
    assert copy(device, [(grant, byte, 1)]) == [GNTST_GENERAL_ERROR]
    for writable in (False, True):
        index = add_map(device, [(1, refs[0])])
        with refused(errno.EINVAL):
            device.mmap(PAGE_SIZE, index, writable=writable)
    for mapping in (written, read, mine):
        mapping.close()


def test_a_full_maptrack_refuses_the_map_but_not_the_copy(opened: Open, machine: Machine) -> None:
    machine.create(2, max_maptrack_frames=0)
    refs, mine = share(opened(1, "gntalloc"), 2)
    device = opened(2, "gntdev")
    index = add_map(device, [(1, refs[0])])
    with refused(errno.EINVAL):
        device.mmap(PAGE_SIZE, index, writable=False)
    assert copy(device, [((refs[0], 0, 1), bytearray(1), 1)]) == [0]
    mine.close()


def test_settings_that_cannot_be(machine: Machine) -> None:
    for settings in ({"lifetime": "pvh"}, {"max_grant_frames": 0}, {"reclaim_interval": 0}, {"colour": 1},
                     {"gntalloc_limit": "many"}, {"gntalloc_limit": -1}, {"max_event_channels": 0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            machine.create(5, **settings)
    for name in ("reclaim_interval", "unmap_delay"):
        for number in (-1.0, math.nan, math.inf, 10**400):
            with pytest.raises(ValueError, match=name):
                machine.create(5, **{name: number})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reclaim_interval"):
        Machine(reclaim_interval=-1)


def test_the_limit_can_be_raised_while_the_domain_runs(opened: Open, machine: Machine) -> None:
    machine.create(1, gntalloc_limit=1)
    device = opened(1, "gntalloc")
    with refused(errno.ENOSPC):
        alloc(device, 2, 2)
    machine.configure(1, gntalloc_limit=2)
    alloc(device, 2, 2)
    system = open_system(machine.url(1))
    assert system.parameter("xen_gntalloc", "limit") == system.parameter("xen-gntalloc", "limit") == "2"
    assert system.parameter("grant_table", "free_per_iteration") == "10"
    assert system.parameter("xen_gntalloc", "colour") is None
    with pytest.raises(ValueError, match="fixed"):
        machine.configure(1, max_grant_frames=9)
