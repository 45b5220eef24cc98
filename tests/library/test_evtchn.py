"""EventChannels and Port against a scripted /dev/xen/evtchn: nothing that came is lost, whoever waits or closes."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from typing import Any, cast

import pytest

from xengrant.abi import evtchn as abi
from xengrant.errors import GrantError, InterfaceClosed, InterfaceUnavailable, PeerClosed
from xengrant.evtchn import EventChannels, Port
from xengrant.peer import Peer

from . import LONG
from .fake import FakeDevice, FakeSystem, error


@pytest.fixture
def device(system: FakeSystem, channels: EventChannels) -> FakeDevice:
    del channels
    return system.opened[0]


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


class _Peer:
    """What Port.wait asks of a peer, gone when the test says."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.listeners: list[Any] = []
        self.listened = threading.Event()

    def on_gone(self, listener: Any) -> None:
        self.listeners.append(listener)
        self.listened.set()

    def discard_on_gone(self, listener: Any) -> None:
        self.listeners.remove(listener)

    def check(self) -> None:
        if self.failure is not None:
            raise self.failure

    def fail(self, failure: Exception) -> None:
        self.failure = failure
        for listener in list(self.listeners):
            listener()


def _waiting(pool: ThreadPoolExecutor, port: Port, **options: Any) -> Future[None]:
    """A thread that waits, once it really does."""
    started = threading.Event()
    take = port._take

    def seen(peer: Any) -> bool:
        taken = take(peer)
        started.set()
        return taken

    port._take = seen  # type: ignore[method-assign]
    future = pool.submit(port.wait, LONG, **options)
    assert started.wait(LONG), "the thread did not come to wait"
    return future


def test_a_port_is_bound_and_unbound(system: FakeSystem, channels: EventChannels, device: FakeDevice) -> None:
    with channels.bind_unbound(7) as port:
        assert abi.unpack_word(device.asked["BIND"]) == 7
        assert (port.number, port.remote_domid, port.closed) == (1, 7, False)
        other = channels.bind_interdomain(8, 0xFFFFFFFF)
        assert abi.unpack_interdomain(device.asked["BIND"]) == (8, 0xFFFFFFFF)
    assert port.closed
    assert not other.closed
    port.close()
    assert system.journal == ["BIND", "BIND", "UNBIND"]


def test_notify_sends_to_the_port(channels: EventChannels, device: FakeDevice) -> None:
    channels.bind_unbound(7)
    channels.bind_unbound(7).notify()
    assert abi.unpack_word(device.asked["SEND"]) == 2


def test_a_wait_takes_the_event_and_unmasks(channels: EventChannels, device: FakeDevice) -> None:
    port = channels.bind_unbound(7)
    device.deliver(port.number)
    port.wait(LONG)
    assert device.unmasked == [port.number]
    with pytest.raises(TimeoutError, match="no event on port 1 from domain 7 in 0 seconds"):
        port.wait(0)


def test_unmask_false_leaves_it_masked(channels: EventChannels, device: FakeDevice) -> None:
    port = channels.bind_unbound(7)
    device.deliver(port.number)
    port.wait(LONG, unmask=False)
    assert device.unmasked == []
    port.unmask()
    assert device.unmasked == [port.number]


def test_what_is_there_counts_even_with_no_time_to_wait(channels: EventChannels, device: FakeDevice) -> None:
    port = channels.bind_unbound(7)
    device.deliver(port.number)
    port.wait(0)


def test_an_event_of_one_port_is_kept_while_another_waits(channels: EventChannels, device: FakeDevice) -> None:
    first, second = channels.bind_unbound(7), channels.bind_unbound(7)
    device.deliver(abi.pack_ports([second.number, 999, first.number]))  # 999: unbound meanwhile
    first.wait(LONG)
    assert device.unmasked == [first.number]
    second.wait(0)


def test_many_events_are_one(channels: EventChannels, device: FakeDevice) -> None:
    port = channels.bind_unbound(7)
    device.deliver(abi.pack_ports([port.number, port.number]))
    port.wait(LONG)
    with pytest.raises(TimeoutError):
        port.wait(0)


def test_threads_wait_each_on_its_own_port(
    channels: EventChannels, device: FakeDevice, pool: ThreadPoolExecutor
) -> None:
    ports = [channels.bind_unbound(7) for _ in range(8)]
    waits = [_waiting(pool, port) for port in ports]
    for port, wait in reversed(list(zip(ports, waits, strict=True))):
        device.deliver(port.number)
        wait.result(LONG)
    assert device.unmasked == [port.number for port in reversed(ports)]


def test_of_two_that_wait_on_one_port_one_gets_the_event(
    channels: EventChannels, device: FakeDevice, pool: ThreadPoolExecutor
) -> None:
    port = channels.bind_unbound(7)
    waits = [_waiting(pool, port), _waiting(pool, port)]
    device.deliver(port.number)
    assert wait_for(waits, LONG, FIRST_COMPLETED).done, "nobody got the event"
    port.close()
    outcomes = sorted(type(wait.exception(LONG)).__name__ for wait in waits)
    assert outcomes == ["InterfaceClosed", "NoneType"]


def test_an_event_that_comes_while_the_port_is_being_bound_is_not_lost(
    system: FakeSystem, channels: EventChannels, device: FakeDevice, pool: ThreadPoolExecutor
) -> None:
    """Xen marks a new port pending at once, and another thread may read that first."""
    waited_on = channels.bind_unbound(7)
    waiting = _waiting(pool, waited_on)

    def deliver_and_let_it_be_read() -> None:
        device.deliver(2, waited_on.number)
        with pytest.raises(TimeoutError):
            waiting.result(0.2)  # the other thread may not read before the new port is known

    system.hooks["BIND"] = deliver_and_let_it_be_read
    port = channels.bind_interdomain(7, 3)
    waiting.result(LONG)
    port.wait(0)


def test_an_overflow_is_reset_and_every_port_looks(
    system: FakeSystem, channels: EventChannels, device: FakeDevice, pool: ThreadPoolExecutor
) -> None:
    ports = [channels.bind_unbound(7) for _ in range(3)]
    waiting = _waiting(pool, ports[1])
    device.deliver(error(errno.EFBIG))
    waiting.result(LONG)
    assert system.journal[-1] == "RESET"
    ports[0].wait(0)
    ports[2].wait(0)
    assert sorted(device.unmasked) == [1, 2, 3]  # RESET unmasks nothing


def test_a_broken_device_reaches_every_waiter(
    channels: EventChannels, device: FakeDevice, pool: ThreadPoolExecutor
) -> None:
    waits = [_waiting(pool, channels.bind_unbound(7)) for _ in range(2)]
    device.deliver(error(errno.EIO))
    for wait in waits:
        assert getattr(wait.exception(LONG), "errno", None) == errno.EIO


def test_closing_a_port_ends_its_waits_and_no_others(
    channels: EventChannels, device: FakeDevice, pool: ThreadPoolExecutor
) -> None:
    closing, staying = channels.bind_unbound(7), channels.bind_unbound(7)
    waits = [_waiting(pool, closing), _waiting(pool, staying)]
    closing.close()
    assert isinstance(waits[0].exception(LONG), InterfaceClosed)
    device.deliver(staying.number)
    waits[1].result(LONG)


def test_closing_the_interface_ends_every_wait(channels: EventChannels, pool: ThreadPoolExecutor) -> None:
    ports = [channels.bind_unbound(7) for _ in range(2)]
    waits = [_waiting(pool, port) for port in ports]
    channels.close()
    assert all(isinstance(wait.exception(LONG), InterfaceClosed) for wait in waits)
    assert all(port.closed for port in ports)
    ports[0].close()
    channels.close()


def test_a_closed_port_says_so(channels: EventChannels) -> None:
    port = channels.bind_unbound(7)
    port.close()
    for call in (port.notify, port.unmask, port.wait, port.__enter__):
        with pytest.raises(InterfaceClosed, match="port 1 is closed"):
            call()


def test_a_port_closed_while_it_notifies_says_so(system: FakeSystem, channels: EventChannels) -> None:
    port = channels.bind_unbound(7)
    system.hooks["SEND"] = port.close
    with pytest.raises(InterfaceClosed):
        port.notify()


def test_a_closed_interface_says_so(system: FakeSystem, channels: EventChannels) -> None:
    channels.close()
    for call in (lambda: channels.bind_unbound(7), channels.fileno, channels.__enter__):
        with pytest.raises(InterfaceClosed):
            call()
    assert system.journal == ["close"]


def test_a_port_closed_by_many_threads_is_unbound_once(
    system: FakeSystem, channels: EventChannels, pool: ThreadPoolExecutor
) -> None:
    """Else the second one unbinds whatever was bound under the number meanwhile."""
    port = channels.bind_unbound(7)
    together = threading.Barrier(8)
    passed: list[object] = []
    lock = channels._lock

    class Gate:
        """All have seen the port open before the first one closes it."""

        def __enter__(self) -> None:
            together.wait(LONG)
            lock.__enter__()

        def __exit__(self, *exc: object) -> None:
            passed.append(self)
            lock.__exit__(None, None, None)

    channels._lock = cast(Any, Gate())
    for closing in [pool.submit(port.close) for _ in range(8)]:
        closing.result(LONG)
    assert len(passed) == 8
    assert system.journal.count("UNBIND") == 1


@pytest.mark.parametrize(
    ("number", "raised", "text"),
    [
        (errno.ENOSPC, InterfaceUnavailable, "max_event_channels"),
        (errno.ESRCH, PeerClosed, "no domain 7"),
        (errno.EPERM, InterfaceUnavailable, "event channel with domain 7: .* xsm=dummy"),
        (errno.EINVAL, GrantError, "port 3 of domain 7 cannot be bound"),
        (errno.EACCES, OSError, "Permission"),
    ],
)
def test_a_refused_bind_says_why(
    system: FakeSystem, channels: EventChannels, number: int, raised: type[Exception], text: str
) -> None:
    system.failures["BIND"] = error(number)
    with pytest.raises(raised, match=text) as caught:
        channels.bind_interdomain(7, 3)
    if isinstance(caught.value, OSError):
        assert caught.value.errno == number


@pytest.mark.parametrize(
    ("domid", "raised"), [(-1, ValueError), (0x7FF0, ValueError), (True, TypeError), (1.5, TypeError)]
)
def test_a_bad_domid_is_refused(
    system: FakeSystem, channels: EventChannels, domid: Any, raised: type[Exception]
) -> None:
    with pytest.raises(raised, match="domid"):
        channels.bind_unbound(domid)
    with pytest.raises(raised, match="domid"):
        channels.bind_interdomain(domid, 1)
    assert system.journal == []


@pytest.mark.parametrize(
    ("port", "raised"), [(-1, ValueError), (1 << 32, ValueError), (False, TypeError), ("1", TypeError)]
)
def test_a_bad_port_is_refused(channels: EventChannels, port: Any, raised: type[Exception]) -> None:
    with pytest.raises(raised, match="remote_port"):
        channels.bind_interdomain(7, port)


def test_a_wait_ends_when_the_peer_goes(channels: EventChannels, pool: ThreadPoolExecutor) -> None:
    peer = _Peer()
    waiting = _waiting(pool, channels.bind_unbound(7), peer=peer)
    peer.fail(PeerClosed("domain 7 is gone"))
    assert isinstance(waiting.exception(LONG), PeerClosed)
    assert peer.listeners == []


def test_what_a_peer_sent_before_it_went_is_had_first(channels: EventChannels, device: FakeDevice) -> None:
    peer = _Peer()
    port = channels.bind_unbound(7)
    other = channels.bind_unbound(7)
    device.deliver(abi.pack_ports([port.number, other.number]))
    other.wait(LONG)
    peer.fail(PeerClosed("domain 7 is gone"))
    port.wait(0, peer=cast(Peer, peer))
    with pytest.raises(PeerClosed):
        port.wait(LONG, peer=cast(Peer, peer))


def test_a_peer_that_cannot_be_watched_ends_the_wait_too(channels: EventChannels, pool: ThreadPoolExecutor) -> None:
    peer = _Peer()
    waiting = _waiting(pool, channels.bind_unbound(7), peer=peer)
    peer.fail(InterfaceUnavailable(errno.EPIPE, "xenstore is gone"))
    assert isinstance(waiting.exception(LONG), InterfaceUnavailable)


def test_reprs_show_the_state(channels: EventChannels) -> None:
    port = channels.bind_unbound(7)
    assert repr(port) == "<Port 1 to domain 7, bound>"
    assert repr(channels) == "<EventChannels 1 ports>"
    channels.close()
    assert repr(port) == "<Port 1 to domain 7, closed>"
    assert repr(channels) == "<EventChannels closed>"
