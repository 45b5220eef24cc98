"""`peek` where it cannot look: in a guest, at no domain, at a page that is not there or is another's to serve."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import xengrant
from xengrant import GrantRef
from xengrant._native import store16
from xengrant.embedded import Machine
from xengrant.embedded.server import MachineServer

from .shell import User, one_line

Users = Callable[[int], User]


@pytest.mark.parametrize("ring", ["console", "xenstore"])
def test_a_guest_is_told_that_it_is_for_dom0(user: Users, ring: str) -> None:
    assert "run this in dom0" in one_line(user(2).run("peek", ring, "1"), 1)


@pytest.mark.parametrize("ring", ["console", "xenstore"])
def test_a_domain_that_is_not_there(user: Users, ring: str) -> None:
    assert "there is no domain 77; domids here: 0, 1, 2, 3" in one_line(user(0).run("peek", ring, "77"), 1)
    assert "there is no domain 'web'" in one_line(user(0).run("peek", ring, "web"), 1)


def test_dom0_has_no_such_page_itself(user: Users) -> None:
    text = one_line(user(0).run("peek", "console", "0"), 1)
    assert text == "domain 0 is this domain: it is a guest's console that can be looked into"


def test_a_page_that_is_not_granted_is_explained(user: Users, machine: Machine) -> None:
    set_entry(machine, GrantRef.CONSOLE, flags=0)
    set_entry(machine, GrantRef.XENSTORE, flags=0)
    assert "(ref 0) is not granted: an HVM guest has one only" in one_line(user(0).run("peek", "console", "1"), 1)
    assert "(ref 1) is not granted: its toolstack made none" in one_line(user(0).run("peek", "xenstore", "1"), 1)


def test_a_page_that_another_domain_serves_is_explained(user: Users, machine: Machine) -> None:
    set_entry(machine, GrantRef.CONSOLE, domid=3)
    text = one_line(user(0).run("peek", "console", "1"), 1)
    assert "is granted to domain 3, which serves it: look into it there" in text


def set_entry(machine: Machine, ref: GrantRef, **words: int) -> None:
    """Change a reserved entry of domain 1, which no builder's interface does, and end its daemons' maps."""

    def unserve(server: MachineServer) -> None:
        for handle in server.hypervisor._toolstack.pop(1, ()):
            server.hypervisor.unmap(handle)

    machine._do(unserve)
    with xengrant.connect(machine.url(0)) as dom0, dom0.grant_table(of=1, writable=True) as table:
        (frame,) = table.entries.frames.buffers
        for name, value in words.items():
            store16(frame, 8 * ref + {"flags": 0, "domid": 2}[name], value)


def test_usage(user: Users) -> None:
    assert user(0).run("peek").returncode == 64
    done = user(0).run("peek", "console", "1", "--interval", "1")
    assert done.returncode == 64
    assert b"--interval is for --follow" in done.stderr
