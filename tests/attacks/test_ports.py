"""Event channels of others."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator

import pytest

import xengrant
from tests.attacks.conftest import Outcome, Refused
from tests.attacks.raw import Raw, refuses_descriptors
from xengrant.abi import evtchn, gntdev, unmap_notify
from xengrant.abi.xen import DOMID_SELF
from xengrant.embedded import Machine

THROUGH = "evtchn's connection"


@pytest.fixture
def honest(machine: Machine) -> Iterator[Raw]:
    """Domain 1's."""
    with Raw(machine, "evtchn", 1) as device:
        yield device


@pytest.fixture
def hostile(machine: Machine) -> Iterator[Raw]:
    with Raw(machine, "evtchn", 3) as device:
        yield device


def test_a_port_that_is_offered_to_others(honest: Raw, hostile: Raw, refused: Refused) -> None:
    """bind a port that is offered to another domain"""
    port = honest.bind_unbound(2)
    with refused(errno.EINVAL):
        hostile.bind_interdomain(1, port)
    assert not hostile.fds


def test_a_port_in_use(machine: Machine, honest: Raw, hostile: Raw, refused: Refused) -> None:
    """bind a port that another domain has bound"""
    port = honest.bind_unbound(2)
    with Raw(machine, "evtchn", 2) as other:
        theirs = other.bind_interdomain(1, port)
        for domid, number in ((1, port), (2, theirs)):
            with refused(errno.EINVAL):
                hostile.bind_interdomain(domid, number)
    assert not hostile.fds


@pytest.mark.parametrize("again", ["offered to it before", "closed by itself"])
def test_a_port_that_was_ones_own(honest: Raw, hostile: Raw, again: str, refused: Refused) -> None:
    """bind a port that was offered to it once, and is gone"""
    port = honest.bind_unbound(3)
    if again == "closed by itself":
        hostile.ioctl(evtchn.UNBIND, evtchn.pack_word(hostile.bind_interdomain(1, port)))
    honest.ioctl(evtchn.UNBIND, evtchn.pack_word(port))
    with refused(errno.EINVAL):
        hostile.bind_interdomain(1, port)


def test_all_ports(honest: Raw, hostile: Raw, refused: Refused) -> None:
    """bind every number of every domain"""
    honest.bind_unbound(2)
    for domid in (0, 1, 2, 9, 0xFFFF, 0x10001, 0xFFFFFFFF):
        for port in (*range(40), 1023, 131071, 1 << 31, 0xFFFFFFFF):
            with refused(errno.EINVAL, errno.ESRCH):
                hostile.bind_interdomain(domid, port)
    assert not hostile.fds


def test_a_port_of_ones_own_as_a_stranger(hostile: Raw, refused: Refused) -> None:
    """bind one's own port, which is offered to another, as oneself"""
    port = hostile.bind_unbound(1)
    for domid in (3, DOMID_SELF):
        with refused(errno.EINVAL):
            hostile.bind_interdomain(domid, port)


def test_unbinding_of_others(machine: Machine, honest: Raw, hostile: Raw, refused: Refused) -> None:
    """unbind what another connection has bound, of one's own domain or of others"""
    port = honest.bind_unbound(2)
    with Raw(machine, "evtchn", 3) as other:
        own = other.bind_unbound(1)
        for number in {port, own}:
            with refused(errno.ENOTCONN):
                hostile.ioctl(evtchn.UNBIND, evtchn.pack_word(number))
        for number in (0, 1 << 31, 0xFFFFFFFF):
            with refused(errno.EINVAL, errno.ENOTCONN):
                hostile.ioctl(evtchn.UNBIND, evtchn.pack_word(number))
    assert machine.status()["domains"][1]["ports"] == 1


def test_notifying_through_the_machine(honest: Raw, hostile: Raw, refused: Refused) -> None:
    """have the machine itself notify a port that one does not hold"""
    port = honest.bind_unbound(2)
    with refused(errno.ENOSYS):
        hostile.ioctl(evtchn.NOTIFY, evtchn.pack_word(port))
    with pytest.raises(BlockingIOError):
        os.read(honest.fds[0], 1)


def test_a_notification_through_the_port_of_others(machine: Machine, honest: Raw, refused: Refused) -> None:
    """have an unmap notification sent through another domain's port"""
    port = honest.bind_unbound(2)
    with Raw(machine, "gntalloc", 1) as granter, Raw(machine, "gntdev", 3) as mapper:
        _, (ref,) = granter.alloc(3)
        index = mapper.map((1, ref), writable=True)
        for number in (port, 0, 1023, 1 << 31):
            with refused(errno.EINVAL):
                mapper.ioctl(
                    gntdev.SET_UNMAP_NOTIFY, unmap_notify.pack_notify(index, unmap_notify.SEND_EVENT, number)
                )


def test_leaving_a_restriction(honest: Raw, hostile: Raw, refused: Refused) -> None:
    """after RESTRICT_DOMID, bind to another domain, or lift it"""
    port = honest.bind_unbound(3)
    hostile.ioctl(evtchn.RESTRICT_DOMID, evtchn.pack_word(2)[:2])
    for call in (
        lambda: hostile.bind_interdomain(1, port),
        lambda: hostile.bind_interdomain(0x10002, port),
        lambda: hostile.bind_unbound(1),
        lambda: hostile.ioctl(evtchn.RESTRICT_DOMID, evtchn.pack_word(1)[:2]),
    ):
        with refused(errno.EACCES):
            call()


def test_an_end_that_is_kept(honest: Raw, hostile: Raw, outcome: Outcome) -> None:
    """keep one's end of a channel when the port is closed, and use it when another domain has that port's number"""
    port = honest.bind_unbound(3)
    own = hostile.bind_interdomain(1, port)
    kept = hostile.fds.pop()
    hostile.ioctl(evtchn.UNBIND, evtchn.pack_word(own))
    honest.ioctl(evtchn.UNBIND, evtchn.pack_word(port))
    os.close(honest.fds.pop())
    assert honest.bind_unbound(2) == port
    with socket.socket(fileno=kept) as end, pytest.raises(BrokenPipeError):
        end.send(b"!")
    with pytest.raises(BlockingIOError):
        os.read(honest.fds[0], 1)
    outcome("it reaches nobody: a port is a channel of its own")


def test_an_end_that_is_kept_while_the_peer_goes_on(honest: Raw, hostile: Raw, outcome: Outcome) -> None:
    """keep one's end of a channel when the port is closed, and notify the port that it was bound to"""
    port = honest.bind_unbound(3)
    own = hostile.bind_interdomain(1, port)
    hostile.ioctl(evtchn.UNBIND, evtchn.pack_word(own))
    with pytest.raises(BlockingIOError):
        os.read(honest.fds[0], 1)
    os.write(hostile.fds[0], b"!")
    assert os.read(honest.fds[0], 1) == b"!"
    os.write(honest.fds[0], b"!")
    assert os.read(hostile.fds[0], 10) == b"\0!"  # behind the first one, which binding brings
    outcome("gets through, as docs/differences.md says")


@pytest.mark.parametrize("harm", ["shut down", "filled", "blocking"])
def test_harming_the_channel(machine: Machine, harm: str, outcome: Outcome) -> None:
    """shut one's end of a channel down, fill it, or make it wait"""
    with contextlib.ExitStack() as stack:
        domain, peer = (stack.enter_context(xengrant.connect(machine.url(domid))) for domid in (1, 2))
        events, theirs = stack.enter_context(domain.evtchn()), stack.enter_context(peer.evtchn())
        port, other = stack.enter_context(events.bind_unbound(3)), stack.enter_context(events.bind_unbound(2))
        hostile = stack.enter_context(Raw(machine, "evtchn", 3))
        hostile.bind_interdomain(1, port.number)
        end = stack.enter_context(socket.socket(fileno=os.dup(hostile.fds[0])))
        if harm == "shut down":
            end.shutdown(socket.SHUT_RDWR)
        elif harm == "filled":
            with contextlib.suppress(BlockingIOError):
                while end.send(bytes(4096), socket.MSG_DONTWAIT):
                    pass
        else:
            end.setblocking(True)
        for _ in range(1000):
            port.notify()
        bound = stack.enter_context(theirs.bind_interdomain(1, other.number))
        bound.notify()
        other.wait(30)
    outcome("costs that channel's events, nothing else")


def test_descriptors_through_a_channel(honest: Raw, hostile: Raw, outcome: Outcome) -> None:
    """pass descriptors to the other side of a channel, whose closing takes its time"""
    port = honest.bind_unbound(3)
    hostile.bind_interdomain(1, port)
    with socket.socket(fileno=os.dup(hostile.fds[0])) as end, open(os.devnull) as file:
        if not refuses_descriptors(end):
            outcome("gets through before Linux 6.16, as docs/differences.md says")
            return
        with pytest.raises(PermissionError):
            socket.send_fds(end, [b"!"], [file.fileno()])
    outcome("EPERM")
