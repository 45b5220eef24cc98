"""Event channels: drivers/xen/evtchn.c over xen/common/event_channel.c."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xengrant.abi import evtchn
from xengrant.devices import Device, open_system, wire
from xengrant.devices.client import Client, Reply
from xengrant.devices.wire import Kind
from xengrant.embedded import Machine
from xengrant.errors import InterfaceClosed

from .conftest import Open
from .ioctls import (
    alloc,
    bind_interdomain,
    bind_unbound,
    connected,
    dealloc,
    notify,
    notify_at,
    read_ports,
    refused,
    unbind,
    unmask,
)


def readable(device: Device) -> bool:
    return bool(select.select([device], [], [], 0)[0])


def test_events_go_both_ways(opened: Open) -> None:
    left, right = opened(1, "evtchn"), opened(2, "evtchn")
    port_1, port_2 = connected(left, 1, right, 2)
    for sender, sent, receiver, got in ((left, port_1, right, port_2), (right, port_2, left, port_1)):
        assert not readable(receiver)
        notify(sender, sent)
        assert readable(receiver)
        assert read_ports(receiver) == (got,)
        assert read_ports(receiver) == ()


def test_after_bind_interdomain_one_spurious_event_is_pending_and_the_port_masked(opened: Open) -> None:
    left, right = opened(1, "evtchn"), opened(2, "evtchn")
    port_1 = bind_unbound(left, 2)
    port_2 = right.ioctl(evtchn.BIND_INTERDOMAIN, evtchn.pack_interdomain(1, port_1))
    assert readable(right)
    assert read_ports(right) == (port_2,)
    notify(left, port_1)
    assert not readable(right)
    unmask(right, port_2)
    assert read_ports(right) == (port_2,)


def test_all_events_before_a_read_are_one(opened: Open) -> None:
    """With Linux they are two: the first lies in the file's ring as it comes (docs/differences.md)."""
    left, right = opened(1, "evtchn"), opened(2, "evtchn")
    port_1, port_2 = connected(left, 1, right, 2)
    notify(left, port_1)
    notify(left, port_1)
    assert read_ports(right) == (port_2,)
    unmask(right, port_2)
    assert read_ports(right) == ()


def test_an_event_that_nobody_read_goes_with_its_port(opened: Open) -> None:
    """Linux leaves it in the file's ring: there the port that gets the number next has it (docs/differences.md)."""
    left, right = opened(1, "evtchn"), opened(2, "evtchn")
    port_1, port_2 = connected(left, 1, right, 2)
    notify(right, port_2)
    unbind(left, port_1)
    assert bind_unbound(left, 2) == port_1
    assert read_ports(left) == ()


def test_a_port_that_was_read_is_masked_until_its_number_is_written(opened: Open) -> None:
    left, right = opened(1, "evtchn"), opened(2, "evtchn")
    port_1, port_2 = connected(left, 1, right, 2)
    notify(left, port_1)
    assert read_ports(right) == (port_2,)
    notify(left, port_1)
    notify(left, port_1)
    assert not readable(right)
    unmask(right, port_2)
    assert read_ports(right) == (port_2,)  # both in one
    unmask(right, port_2)
    assert not readable(right)


def test_read_gives_as_many_ports_as_fit(opened: Open) -> None:
    left, right = opened(1, "evtchn"), opened(2, "evtchn")
    pairs = [connected(left, 1, right, 2) for _ in range(5)]
    for port, _ in pairs:
        notify(left, port)
    assert right.read(3) == b""
    got = evtchn.unpack_ports(right.read(11))
    assert len(got) == 2
    assert sorted(got + read_ports(right)) == [port for _, port in pairs]
    with pytest.raises(BlockingIOError):
        right.read(4096)
    right.write(evtchn.pack_ports([port for _, port in pairs]))
    assert right.write(b"123") == 0
    unmask(right, 999)  # ignored


def test_a_peers_close_sends_no_event_and_the_port_can_be_bound_again(opened: Open) -> None:
    left, right = opened(1, "evtchn"), opened(2, "evtchn")
    port_1, port_2 = connected(left, 1, right, 2)
    notify(left, port_1)
    unbind(right, port_2)
    assert read_ports(left) == ()
    notify(left, port_1)  # to an unbound port: no error
    port_2 = bind_interdomain(right, 1, port_1)  # takes the spurious event, and only that
    assert read_ports(right) == ()
    notify(left, port_1)
    assert read_ports(right) == (port_2,)


def test_the_side_that_was_bound_becomes_the_unbound_one(opened: Open) -> None:
    left, right = opened(1, "evtchn"), opened(2, "evtchn")
    port_1, port_2 = connected(left, 1, right, 2)
    left.close()
    notify(right, port_2)
    again = opened(1, "evtchn")
    port_1 = bind_interdomain(again, 2, port_2)
    notify(right, port_2)
    assert read_ports(again) == (port_1,)
    with refused(errno.EINVAL):  # it is bound now
        bind_interdomain(again, 2, port_2)


def test_bind_interdomain_refuses_as_xen_does(opened: Open) -> None:
    left, right, third = opened(1, "evtchn"), opened(2, "evtchn"), opened(3, "evtchn")
    port_1, _ = connected(left, 1, right, 2)
    free = bind_unbound(left, 2)
    with refused(errno.ESRCH):
        bind_interdomain(right, 77, 1)
    for device, port in ((right, port_1), (right, 500), (third, free), (right, 0)):
        with refused(errno.EINVAL):
            bind_interdomain(device, 1, port)


def test_an_offer_may_be_to_a_domain_that_is_not_there_yet(opened: Open) -> None:
    left = opened(1, "evtchn")
    port = bind_unbound(left, 9)
    notify(left, port)
    bind_interdomain(opened(9, "evtchn"), 1, port)


def test_a_channel_within_one_domain(opened: Open) -> None:
    device = opened(1, "evtchn")
    first = bind_unbound(device, 1)
    second = bind_interdomain(device, 1, first)
    notify(device, first)
    assert read_ports(device) == (second,)


def test_ports_belong_to_the_file_that_bound_them(opened: Open) -> None:
    device, other = opened(1, "evtchn"), opened(1, "evtchn")
    port = bind_unbound(device, 2)
    with refused(errno.ENOTCONN):
        notify(other, port)
    with refused(errno.ENOTCONN):
        unbind(other, port)
    unbind(device, port)
    for call in (notify, unbind):
        with refused(errno.ENOTCONN):
            call(device, port)
    with refused(errno.EINVAL):
        unbind(device, 1024)


def test_a_domu_has_its_number_of_ports(opened: Open, machine: Machine) -> None:
    machine.create(1, max_event_channels=20)
    device = opened(1, "evtchn")
    ports = [bind_unbound(device, 2) for _ in range(20)]
    assert ports == list(range(1, 21))
    with refused(errno.ENOSPC):
        bind_unbound(device, 2)
    unbind(device, 7)
    assert bind_unbound(device, 2) == 7
    remote = bind_unbound(opened(2, "evtchn"), 1)
    with refused(errno.ENOSPC):
        bind_interdomain(device, 2, remote)


def test_a_restricted_file(opened: Open) -> None:
    device = opened(1, "evtchn")
    for domid in (0, 0x7FF0):
        with refused(errno.EINVAL):
            device.ioctl(evtchn.RESTRICT_DOMID, bytearray(domid.to_bytes(2, "little")))
    device.ioctl(evtchn.RESTRICT_DOMID, bytearray((2).to_bytes(2, "little")))
    with refused(errno.EACCES):
        device.ioctl(evtchn.RESTRICT_DOMID, bytearray((2).to_bytes(2, "little")))
    with refused(errno.EACCES):
        bind_unbound(device, 2)
    with refused(errno.EACCES):
        bind_interdomain(device, 3, 1)
    bind_interdomain(device, 2, bind_unbound(opened(2, "evtchn"), 1))


def test_reset_and_virq(opened: Open) -> None:
    device = opened(1, "evtchn")
    assert device.ioctl(evtchn.RESET, bytearray(4)) == 0
    with refused(errno.EINVAL):
        device.ioctl(evtchn.BIND_VIRQ, evtchn.pack_word(0))


def test_close_frees_the_ports(opened: Open, machine: Machine) -> None:
    device = opened(1, "evtchn")
    bind_unbound(device, 2)
    device.close()
    assert machine.status()["domains"][1]["ports"] == 0
    for call in (lambda: device.read(4), lambda: device.write(b""), device.fileno, lambda: notify(device, 1)):
        with pytest.raises(InterfaceClosed):
            call()


def test_evtchn_cannot_be_mapped(opened: Open) -> None:
    with refused(errno.ENODEV):
        opened(1, "evtchn").mmap(4096, 0, writable=True)


MACHINE = "import sys; from xengrant.embedded import Machine; m = Machine(sys.argv[1]); print(flush=True); m.run()"


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[str]:
    """The directory of a machine in a process of its own, so that a test that makes it hang ends all the same."""
    directory = str(tmp_path / "xen")
    with subprocess.Popen([sys.executable, "-c", MACHINE, directory], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        yield directory
        process.kill()


def only_let_it_wait(end: socket.socket) -> None:
    """What every attack begins and ends with: O_NONBLOCK is cleared."""


def fill(end: socket.socket) -> None:
    """Send until there is no room, far more than any honest peer."""
    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    with contextlib.suppress(BlockingIOError):
        while True:
            end.send(bytes(1 << 12), socket.MSG_DONTWAIT)


def drain(end: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        while end.recv(1 << 16, socket.MSG_DONTWAIT):
            pass


def send_urgent(end: socket.socket) -> None:
    end.send(b"!", socket.MSG_OOB)


def shut_receiving(end: socket.socket) -> None:
    end.shutdown(socket.SHUT_RD)


def shut_sending(end: socket.socket) -> None:
    end.shutdown(socket.SHUT_WR)


def shut_down(end: socket.socket) -> None:
    end.shutdown(socket.SHUT_RDWR)


SHUT = [shut_receiving, shut_sending, shut_down]
ATTACKS = [only_let_it_wait, fill, drain, send_urgent, *SHUT]


class Attacker:
    """A process of domain 2 that has a channel with domain 1, and attacks through the descriptors it was handed."""

    def __init__(self, directory: str) -> None:
        self.client = Client(directory, 2, "evtchn")
        self.client.sock.settimeout(10)

    def ioctl(self, request: int, arg: bytearray) -> Reply:
        return self.client.request(Kind.IOCTL, wire.pack_ioctl(request, arg, []))

    def bind(self, port: int) -> int:
        self.reply = self.ioctl(evtchn.BIND_INTERDOMAIN, evtchn.pack_interdomain(1, port))
        return self.reply.result

    def attack(self, attack: Callable[[socket.socket], None]) -> None:
        for fd in self.reply.fds:
            os.set_blocking(fd, True)
            with socket.socket(fileno=os.dup(fd)) as end:
                attack(end)
            os.set_blocking(fd, True)


@pytest.fixture
def attacker(directory: str) -> Iterator[Attacker]:
    attacker = Attacker(directory)
    yield attacker
    attacker.client.close()


@pytest.fixture
def victim(directory: str) -> Iterator[Device]:
    """An evtchn file of domain 1. Every call must return by itself: the alarm makes it a failure, not a hang."""

    def ring(_number: int, _frame: object) -> None:
        raise AssertionError("not within 20 seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(20)
    device = open_system(f"embedded:{directory}?domid=1").open("evtchn")
    try:
        yield device
        device.close()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_peer_makes_the_machine_wait(
    victim: Device, attacker: Attacker, attack: Callable[[socket.socket], None]
) -> None:
    port = bind_unbound(victim, 2)
    for _ in range(3):  # the machine sends the first event of each bind through what was attacked before
        bound = attacker.bind(port)
        attacker.attack(attack)
        attacker.ioctl(evtchn.UNBIND, evtchn.pack_word(bound))
    assert bind_unbound(victim, 2) != port


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_peer_makes_an_unmap_notification_wait(
    victim: Device, attacker: Attacker, directory: str, attack: Callable[[socket.socket], None]
) -> None:
    port = bind_unbound(victim, 2)
    attacker.bind(port)
    attacker.attack(attack)
    with contextlib.closing(open_system(f"embedded:{directory}?domid=1").open("gntalloc")) as device:
        for _ in range(50):
            index, _refs = alloc(device, 2)
            notify_at(device, index, port=port)
            dealloc(device, index)
    assert bind_unbound(victim, 2) != port


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_peer_makes_its_victim_wait(
    victim: Device, attacker: Attacker, attack: Callable[[socket.socket], None]
) -> None:
    port = bind_unbound(victim, 2)
    attacker.bind(port)
    for _ in range(2):
        with contextlib.suppress(ConnectionError):  # what was shut down is not filled again
            attacker.attack(attack)
        for _ in range(1000):
            notify(victim, port)
        read_ports(victim)
        unmask(victim, port)
    unbind(victim, port)


def test_a_flood_is_masked_as_one_event_is(victim: Device, attacker: Attacker) -> None:
    port = bind_unbound(victim, 2)
    attacker.bind(port)
    attacker.attack(fill)
    assert read_ports(victim) == (port,)
    assert not readable(victim)


@pytest.mark.parametrize("attack", SHUT)
def test_a_channel_that_was_shut_down_is_silent(
    victim: Device, attacker: Attacker, attack: Callable[[socket.socket], None]
) -> None:
    port, other = bind_unbound(victim, 2), bind_unbound(victim, 1)
    same = bind_interdomain(victim, 1, other)
    attacker.bind(port)
    attacker.attack(attack)
    assert read_ports(victim) == ()
    assert not readable(victim)
    notify(victim, port)
    notify(victim, other)
    assert read_ports(victim) == (same,)


def test_an_event_is_not_lost_where_many_wait_to_be_taken(opened: Open) -> None:
    left, right = opened(1, "evtchn"), opened(2, "evtchn")
    port_1, port_2 = connected(left, 1, right, 2)
    for _ in range(10_000):
        notify(left, port_1)
    assert read_ports(right) == (port_2,)
    unmask(right, port_2)
    assert not readable(right)
    notify(left, port_1)
    assert read_ports(right) == (port_2,)


def test_a_default_timeout_of_the_programs_sockets_changes_nothing(opened: Open) -> None:
    before = socket.getdefaulttimeout()
    left, right = opened(1, "evtchn"), opened(2, "evtchn")
    socket.setdefaulttimeout(1000)
    try:
        port_1, port_2 = connected(left, 1, right, 2)
    finally:
        socket.setdefaulttimeout(before)
    for _ in range(10_000):
        notify(left, port_1)
    assert read_ports(right) == (port_2,)
