"""Faults that the machine's owner asks for: processes that are killed, requests that fail."""

from __future__ import annotations

import errno

import pytest

import xengrant
from xengrant.embedded import Machine

from .conftest import Open
from .ioctls import alloc, bind_unbound, eventually, map_grants, refused, share


def test_killed_processes_release_what_they_held_and_the_domain_lives(opened: Open, machine: Machine) -> None:
    refs, mine = share(opened(1, "gntalloc"), 2)
    _, theirs = map_grants(opened(2, "gntdev"), [(1, refs[0])], writable=True)
    machine.kill(1)
    eventually(lambda: machine.status()["domains"][1]["deferred"] == 1, "the dead process's page is deferred")
    with xengrant.connect(machine.url(1)) as again, again.xenstore() as store:
        assert store.read("domid") == b"1"
    theirs.close()
    mine.close()


@pytest.mark.parametrize("writable", [True, False])
def test_one_request_fails_when_it_was_asked_for(opened: Open, machine: Machine, writable: bool) -> None:
    machine.create(1)
    device = opened(1, "gntalloc")
    machine.fail(1, "gntalloc", errno.ENOMEM)
    bind_unbound(opened(1, "evtchn"), 2)
    with refused(errno.ENOMEM):
        alloc(device, 2, writable=writable)
    _, mine = share(device, 2)
    machine.fail(1, "gntalloc", errno.EIO)
    mine.close()  # what gives back does not fail
    assert machine.fail(1, "gntalloc", 0)
    assert not machine.fail(1, "gntalloc", 0)
    alloc(device, 2, writable=writable)


def test_a_later_request_fails_when_that_was_asked_for(opened: Open, machine: Machine) -> None:
    refs, mine = share(opened(1, "gntalloc"), 2)
    device = opened(2, "gntdev")
    machine.fail(2, "gntdev", errno.EFAULT, after=1)
    with refused(errno.EFAULT):  # by mmap, after the ioctl
        map_grants(device, [(1, refs[0])], writable=True)
    _, theirs = map_grants(device, [(1, refs[0])], writable=True)
    theirs.close()
    mine.close()


def test_a_request_to_xenstore_fails(machine: Machine) -> None:
    machine.create(1)
    with xengrant.connect(machine.url(1)) as domain, domain.xenstore() as store:
        machine.fail(1, "xenbus", errno.ENOSPC)
        with pytest.raises(xengrant.XenStoreError) as failed:
            store.write("data/here", b"1")
        assert failed.value.errno == errno.ENOSPC
        store.write("data/here", b"2")
        assert store.read("data/here") == b"2"


def test_nothing_else_can_be_asked_to_fail(machine: Machine) -> None:
    with pytest.raises(ValueError, match="control"):
        machine.fail(0, "control", errno.EIO)
    with pytest.raises(ValueError, match="after"):
        machine.fail(0, "gntdev", errno.EIO, after=-1)
    with pytest.raises(LookupError):
        machine.fail(7, "gntdev", errno.EIO)
    with pytest.raises(LookupError):
        machine.kill(7)
