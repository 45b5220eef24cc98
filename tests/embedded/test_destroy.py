"""A domain destroyed while others map its pages and hold channels to it."""

from __future__ import annotations

import errno

import pytest

from xengrant.abi import grant_table
from xengrant.abi.xen import PAGE_SIZE
from xengrant.devices import open_system
from xengrant.embedded import Machine
from xengrant.errors import InterfaceUnavailable
from xengrant.grant_entries import EntriesV1

from .conftest import Open
from .ioctls import (
    add_map,
    alloc,
    connected,
    copy,
    eventually,
    map_grants,
    notify,
    notify_at,
    read_ports,
    refused,
    share,
)
from .process import Process
from .test_privcmd import map_table


def test_no_byte_and_no_event_and_the_map_stays(opened: Open, machine: Machine) -> None:
    events_1, events_2 = opened(1, "evtchn"), opened(2, "evtchn")
    port_1, port_2 = connected(events_1, 1, events_2, 2)
    device = opened(1, "gntalloc")
    index, refs = alloc(device, 2)
    with device.mmap(PAGE_SIZE, index, writable=True) as mine:
        mine[:4] = b"life"
        notify_at(device, index, clear_byte=True, port=port_1)
        map_index, theirs = map_grants(opened(2, "gntdev"), [(1, refs[0])], writable=True)
        machine.destroy(1)
        with theirs:
            assert theirs[:4] == b"life"
            assert read_ports(events_2) == ()
            notify(events_2, port_2)  # to the dead port: no error
            assert machine.status()["domains"][1]["state"] == "dying"
        assert map_index == 0
    eventually(lambda: 1 not in machine.status()["domains"], "the last unmap ends the dying domain")


def test_a_domain_that_nobody_maps_is_gone_at_once(opened: Open, machine: Machine) -> None:
    _, mine = share(opened(1, "gntalloc"), 2)
    machine.destroy(1)
    mine.close()  # the pages are still here, the machine is not told
    assert list(machine.status()["domains"]) == [0]
    with pytest.raises(LookupError):
        machine.destroy(1)


def test_its_processes_are_told_by_every_call(opened: Open, machine: Machine) -> None:
    devices = [opened(1, name) for name in ("gntalloc", "gntdev", "evtchn", "privcmd")]
    machine.destroy(1)
    with pytest.raises(InterfaceUnavailable, match="destroyed"):
        alloc(devices[0], 2)
    with pytest.raises(InterfaceUnavailable, match="destroyed"):
        add_map(devices[1], [(2, 8)])
    with pytest.raises(InterfaceUnavailable, match="destroyed"):
        devices[2].read(4)
    for device in devices:
        device.close()


def test_what_it_mapped_of_others_is_unmapped(opened: Open, machine: Machine) -> None:
    refs, mine = share(opened(1, "gntalloc"), 2)
    _, theirs = map_grants(opened(2, "gntdev"), [(1, refs[0])], writable=True)
    machine.destroy(2)
    assert machine.status()["domains"][1]["mapped"] == 0
    theirs.close()
    mine.close()
    assert machine.status()["domains"][1]["deferred"] == 0


def test_nobody_maps_a_dying_domains_other_pages(opened: Open, machine: Machine) -> None:
    refs, mine = share(opened(1, "gntalloc"), 2, 2)
    device = opened(2, "gntdev")
    _, theirs = map_grants(device, [(1, refs[0])], writable=True)
    machine.destroy(1)
    with theirs:
        statuses = copy(device, [((ref, 0, 1), bytearray(1), 1) for ref in refs])
        assert statuses == [grant_table.GNTST_OKAY, grant_table.GNTST_BAD_PAGE]
        with pytest.raises(InterfaceUnavailable, match="destroyed"):
            open_system(machine.url(1)).open("gntalloc")
        with pytest.raises(ValueError, match="dying"):
            machine.create(1)
    mine.close()


def test_nobody_maps_a_dying_domains_page_by_another_ref(opened: Open, machine: Machine) -> None:
    """The page is still there for who mapped it before."""
    refs, mine = share(opened(1, "gntalloc"), 2)
    device = opened(2, "gntdev")
    with map_table(opened(0, "privcmd"), 1, 0, 1, writable=True) as table:
        entries = EntriesV1([memoryview(table)])
        entries.grant(20, 2, entries.read(refs[0]).frame or 0, writable=True)
        index = add_map(device, [(1, 20)])
        _, theirs = map_grants(device, [(1, refs[0])], writable=True)
        machine.destroy(1)
        with theirs:
            with refused(errno.EINVAL):
                device.mmap(PAGE_SIZE, index, writable=True)
            assert copy(device, [((20, 0, 1), bytearray(1), 1)]) == [grant_table.GNTST_BAD_PAGE]
            assert not entries.read(20).mapped
        entries.frames.clear()
    mine.close()


def test_the_domid_can_be_used_again_and_starts_from_nothing(opened: Open, machine: Machine) -> None:
    refs, mine = share(opened(1, "gntalloc"), 2)
    machine.destroy(1)
    mine.close()
    again, mine = share(opened(1, "gntalloc"), 2)
    assert again == refs
    mine.close()


def test_a_destroyed_domain_with_a_real_process(opened: Open, machine: Machine) -> None:
    with Process(machine.url(1), "share_pages", peer=2, count=1, text="still here") as process:
        _, theirs = map_grants(opened(2, "gntdev"), [(1, process.result["refs"][0])], writable=False)
        machine.destroy(1)
        process.kill()
        with theirs:
            assert theirs[:10] == b"still here"


def test_domain_0_is_not_destroyed(machine: Machine) -> None:
    with pytest.raises(ValueError, match="domain 0"):
        machine.destroy(0)


def test_a_map_of_the_dying_domain_that_waits_for_its_delay(opened: Open, machine: Machine) -> None:
    machine.create(2, unmap_delay=0.1)
    refs, mine = share(opened(1, "gntalloc"), 2)
    _, theirs = map_grants(opened(2, "gntdev"), [(1, refs[0])], writable=False)
    theirs.close()
    machine.destroy(1)
    mine.close()
    eventually(lambda: 1 not in machine.status()["domains"], "the delayed unmap ends the dying domain")


def test_a_dead_domains_ref_is_no_such_domain(opened: Open, machine: Machine) -> None:
    device = opened(2, "gntdev")
    opened(1, "gntalloc")
    machine.destroy(1)
    assert copy(device, [((8, 0, 1), bytearray(1), 1)]) == [grant_table.GNTST_BAD_DOMAIN]
