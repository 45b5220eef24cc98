"""libxenevtchn's ports and Python's: notifications both ways, masking, waiting, and what ends a port."""

from __future__ import annotations

import errno

import pytest

import xengrant
from xengrant import GrantError
from xengrant.embedded import Machine

from .programs import LONG, Actor, need

pytestmark = need()


def refused(number: int, actor: Actor, *words: object) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is compared below
        actor.ask(*words)
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[number], words


def test_events_go_both_ways_where_c_offers_the_port(c_granter: Actor, mapper: xengrant.Domain) -> None:
    (offered,) = c_granter.numbers("bind_unbound", 2)
    with mapper.evtchn() as evtchn, evtchn.bind_interdomain(1, offered) as port:
        port.wait(LONG)  # Xen's first, spurious one
        for _ in range(3):
            port.notify()
            assert c_granter.numbers("pending") == [offered]
            c_granter.ask("unmask", offered)
            c_granter.ask("notify", offered)
            port.wait(LONG)


def test_events_go_both_ways_where_python_offers_the_port(granter: xengrant.Domain, c_mapper: Actor) -> None:
    with granter.evtchn() as evtchn, evtchn.bind_unbound(2) as port:
        (local,) = c_mapper.numbers("bind_interdomain", 1, port.number)
        assert c_mapper.numbers("pending") == [local]  # Xen's first, spurious one
        c_mapper.ask("unmask", local)
        for _ in range(3):
            c_mapper.ask("notify", local)
            port.wait(LONG)
            port.notify()
            assert c_mapper.numbers("pending") == [local]
            c_mapper.ask("unmask", local)


def test_a_port_that_c_has_read_is_masked_until_c_unmasks_it(c_granter: Actor, mapper: xengrant.Domain) -> None:
    (offered,) = c_granter.numbers("bind_unbound", 2)
    with mapper.evtchn() as evtchn, evtchn.bind_interdomain(1, offered) as port:
        port.notify()
        assert c_granter.numbers("poll", 20_000) == [1]
        assert c_granter.numbers("pending") == [offered]
        port.notify()
        assert c_granter.numbers("poll", 0) == [0]
        c_granter.ask("unmask", offered)
        assert c_granter.numbers("poll", 20_000) == [1]
        assert c_granter.numbers("pending") == [offered]


def test_many_notifications_are_one_event_to_c(c_granter: Actor, mapper: xengrant.Domain) -> None:
    (offered,) = c_granter.numbers("bind_unbound", 2)
    with mapper.evtchn() as evtchn, evtchn.bind_interdomain(1, offered) as port:
        for _ in range(10_000):
            port.notify()
        assert c_granter.numbers("pending") == [offered]
        c_granter.ask("unmask", offered)
        assert c_granter.numbers("poll", 0) == [0]


def test_c_waits_in_a_blocking_read(c_granter: Actor, mapper: xengrant.Domain) -> None:
    (offered,) = c_granter.numbers("bind_unbound", 2)
    with mapper.evtchn() as evtchn, evtchn.bind_interdomain(1, offered) as port:
        c_granter.tell("pending")
        c_granter.wait_asleep()
        assert not c_granter.has_answered()
        port.notify()
        assert c_granter.answer("pending") == [str(offered)]


def test_c_does_not_wait_in_a_read_that_is_not_blocking(c_granter: Actor, mapper: xengrant.Domain) -> None:
    (offered,) = c_granter.numbers("bind_unbound", 2)
    c_granter.ask("nonblock", 1)
    refused(errno.EAGAIN, c_granter, "pending")
    with mapper.evtchn() as evtchn, evtchn.bind_interdomain(1, offered) as port:
        port.notify()
        assert c_granter.numbers("pending") == [offered]
        refused(errno.EAGAIN, c_granter, "pending")
        c_granter.ask("nonblock", 0)
        c_granter.ask("unmask", offered)
        c_granter.tell("pending")
        c_granter.wait_asleep()
        port.notify()
        assert c_granter.answer("pending") == [str(offered)]


def test_one_descriptor_of_c_has_many_ports(c_granter: Actor, mapper: xengrant.Domain) -> None:
    offered = [c_granter.numbers("bind_unbound", 2)[0] for _ in range(5)]
    assert len(set(offered)) == 5
    with mapper.evtchn() as evtchn:
        ports = [evtchn.bind_interdomain(1, number) for number in offered]
        for port in ports:
            port.notify()
        assert sorted(c_granter.numbers("pending")[0] for _ in ports) == sorted(offered)
        c_granter.ask("unbind", offered[2])
        for number in offered[:2] + offered[3:]:
            c_granter.ask("unmask", number)
        ports[2].notify()  # nobody is there, and nobody is told
        ports[4].notify()
        assert c_granter.numbers("pending") == [offered[4]]


def test_what_c_has_unbound_is_refused_to_python(c_granter: Actor, mapper: xengrant.Domain) -> None:
    (offered,) = c_granter.numbers("bind_unbound", 2)
    c_granter.ask("unbind", offered)
    with mapper.evtchn() as evtchn, pytest.raises(GrantError):
        evtchn.bind_interdomain(1, offered)


def test_the_ports_of_c_are_closed_when_it_dies(machine: Machine, c_granter: Actor, mapper: xengrant.Domain) -> None:
    (offered,) = c_granter.numbers("bind_unbound", 2)
    assert machine.status()["domains"][1]["ports"] == 1
    c_granter.kill()
    with mapper.evtchn() as evtchn, pytest.raises(GrantError):
        evtchn.bind_interdomain(1, offered)


def test_c_gets_the_errno_that_linux_gives(c_granter: Actor) -> None:
    refused(errno.ENOTCONN, c_granter, "notify", 5)
    refused(errno.ENOTCONN, c_granter, "unbind", 5)
    refused(errno.EINVAL, c_granter, "unbind", 1 << 20)
    refused(errno.EINVAL, c_granter, "bind_interdomain", 2, 5)
    refused(errno.ESRCH, c_granter, "bind_interdomain", 77, 5)


def test_a_blocking_read_of_c_ends_with_the_machine(machine: Machine, c_granter: Actor) -> None:
    c_granter.ask("bind_unbound", 2)
    c_granter.tell("pending")
    c_granter.wait_asleep()
    machine.destroy(1)
    with pytest.raises(OSError) as caught:  # noqa: PT011
        c_granter.answer("pending")
    assert caught.value.errno == errno.ENODEV
