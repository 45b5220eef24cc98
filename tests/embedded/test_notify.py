"""Unmap notifications: a byte cleared, an event sent, by the kernel and not by the process."""

from __future__ import annotations

import errno
import select

import pytest

from xengrant.abi.xen import PAGE_SIZE
from xengrant.embedded import Machine

from .conftest import Open
from .ioctls import alloc, bind_unbound, connected, dealloc, map_grants, notify_at, read_ports, refused, share, unbind
from .ioctls import unmap as unmap_grant
from .process import Process


def test_the_last_unmapping_clears_the_byte_and_sends_the_event(opened: Open) -> None:
    events_1, events_2 = opened(1, "evtchn"), opened(2, "evtchn")
    port_1, port_2 = connected(events_1, 1, events_2, 2)
    device = opened(1, "gntalloc")
    index, refs = alloc(device, 2)
    mine = device.mmap(PAGE_SIZE, index, writable=True)
    mine[:] = b"\xff" * PAGE_SIZE
    notify_at(device, index + 5, clear_byte=True, port=port_1)
    _, theirs = map_grants(opened(2, "gntdev"), [(1, refs[0])], writable=True)
    dealloc(device, index)
    assert theirs[5] == 0xFF
    assert read_ports(events_2) == ()
    mine.close()
    assert theirs[:7] == b"\xff\xff\xff\xff\xff\0\xff"
    assert read_ports(events_2) == (port_2,)
    theirs.close()


def test_nothing_fires_while_the_file_holds_the_page(opened: Open) -> None:
    device = opened(1, "gntalloc")
    index, refs = alloc(device, 2)
    mine = device.mmap(PAGE_SIZE, index, writable=True)
    mine[0] = 1
    notify_at(device, index, clear_byte=True)
    _, theirs = map_grants(opened(2, "gntdev"), [(1, refs[0])], writable=True)
    mine.close()
    assert theirs[0] == 1
    dealloc(device, index)
    assert theirs[0] == 0
    theirs.close()


def test_each_page_of_gntalloc_has_one_notification(opened: Open) -> None:
    device = opened(1, "gntalloc")
    index, refs = alloc(device, 2, 2)
    mine = device.mmap(2 * PAGE_SIZE, index, writable=True)
    mine[:3] = mine[PAGE_SIZE : PAGE_SIZE + 3] = b"abc"
    notify_at(device, index, clear_byte=True)
    notify_at(device, index + 1, clear_byte=True)  # replaces the first
    notify_at(device, index + PAGE_SIZE + 2, clear_byte=True)
    _, theirs = map_grants(opened(2, "gntdev"), [(1, ref) for ref in refs], writable=True)
    dealloc(device, index, 2)
    mine.close()
    assert (theirs[:3], theirs[PAGE_SIZE : PAGE_SIZE + 3]) == (b"a\0c", b"ab\0")
    theirs.close()


def test_a_notification_can_be_taken_back(opened: Open, machine: Machine) -> None:
    events = opened(1, "evtchn")
    port = bind_unbound(events, 2)
    device = opened(1, "gntalloc")
    index, refs = alloc(device, 2)
    mine = device.mmap(PAGE_SIZE, index, writable=True)
    mine[0] = 1
    notify_at(device, index, clear_byte=True, port=port)
    notify_at(device, index)
    unbind(events, port)
    assert machine.status()["domains"][1]["ports"] == 0
    _, theirs = map_grants(opened(2, "gntdev"), [(1, refs[0])], writable=True)
    dealloc(device, index)
    mine.close()
    assert theirs[0] == 1
    theirs.close()


def test_gntalloc_refuses_notifications_with_the_kernels_errno(opened: Open) -> None:
    device = opened(1, "gntalloc")
    index, _ = alloc(device, 2)
    mine = device.mmap(PAGE_SIZE, index, writable=True)
    with refused(errno.EINVAL):  # not a port of this domain
        notify_at(device, index, port=77)
    with refused(errno.ENOENT):
        notify_at(device, index + PAGE_SIZE, clear_byte=True)
    dealloc(device, index)
    with refused(errno.ENOENT):  # notify comes before DEALLOC
        notify_at(device, index, clear_byte=True)
    mine.close()


def test_a_port_stays_open_for_the_notification_that_needs_it(opened: Open, machine: Machine) -> None:
    events_1, events_2 = opened(1, "evtchn"), opened(2, "evtchn")
    port_1, port_2 = connected(events_1, 1, events_2, 2)
    device = opened(1, "gntalloc")
    index, _ = alloc(device, 2)
    notify_at(device, index, port=port_1)
    events_1.close()
    assert machine.status()["domains"][1]["ports"] == 1
    device.close()
    assert read_ports(events_2) == (port_2,)
    assert machine.status()["domains"][1]["ports"] == 0


def test_gntdev_clears_the_byte_at_munmap_and_sends_the_event_at_the_end(opened: Open) -> None:
    events_1, events_2 = opened(1, "evtchn"), opened(2, "evtchn")
    port_1, port_2 = connected(events_1, 1, events_2, 2)
    refs, mine = share(opened(1, "gntalloc"), 2, 2)
    mine[:] = b"\xff" * (2 * PAGE_SIZE)
    device = opened(2, "gntdev")
    index, theirs = map_grants(device, [(1, ref) for ref in refs], writable=True)
    notify_at(device, index, clear_byte=True)
    notify_at(device, index + PAGE_SIZE + 9, clear_byte=True, port=port_2)  # one for each map
    theirs.close()
    assert (mine[0], mine[PAGE_SIZE + 9]) == (0xFF, 0)
    assert read_ports(events_1) == ()
    unmap_grant(device, index, 2)
    assert read_ports(events_1) == (port_1,)
    mine.close()


def test_gntdev_refuses_notifications_with_the_kernels_errno(opened: Open) -> None:
    refs, mine = share(opened(1, "gntalloc"), 2)
    device = opened(2, "gntdev")
    index, theirs = map_grants(device, [(1, refs[0])], writable=False)
    with refused(errno.EINVAL):
        notify_at(device, index, clear_byte=True)
    with refused(errno.EINVAL):
        notify_at(device, index, port=5)
    with refused(errno.ENOENT):
        notify_at(device, index + PAGE_SIZE)
    port = bind_unbound(opened(2, "evtchn"), 1)
    notify_at(device, index, port=port)  # an event needs no writable map
    theirs.close()
    mine.close()


@pytest.mark.parametrize("writable", [True, False])
def test_a_killed_process_is_told_by_byte_and_event(opened: Open, machine: Machine, writable: bool) -> None:
    events = opened(2, "evtchn")
    port = bind_unbound(events, 1)
    with Process(machine.url(1), "share_with_notify", peer=2, port=port, writable=writable) as process:
        (ref,) = process.result["refs"]
        _, theirs = map_grants(opened(2, "gntdev"), [(1, ref)], writable=writable)
        assert theirs[:8] == b"\xff" * 8
        assert read_ports(events) == ()
        process.kill()
        assert select.select([events], [], [], 10)[0], "no event within 10 seconds of the kill"
    assert read_ports(events) == (port,)
    assert theirs[:8] == b"\0" + b"\xff" * 7
    theirs.close()


def test_the_mapping_side_killed_is_told_too(opened: Open, machine: Machine) -> None:
    refs, mine = share(opened(1, "gntalloc"), 2)
    mine[:8] = b"\xff" * 8
    events = opened(1, "evtchn")
    port = bind_unbound(events, 2)
    with Process(machine.url(2), "map_with_notify", peer=1, port=port, ref=refs[0]) as process:
        process.kill()
        assert select.select([events], [], [], 10)[0], "no event within 10 seconds of the kill"
    assert mine[:8] == b"\0" + b"\xff" * 7
    assert machine.status()["domains"][1]["mapped"] == 0
    mine.close()
