"""AsyncEventChannels and AsyncPort against a scripted /dev/xen/evtchn."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from xengrant.abi import evtchn as abi
from xengrant.errors import InterfaceClosed, InterfaceUnavailable, PeerClosed
from xengrant.evtchn import AsyncEventChannels

from . import LONG
from .fake import FakeDevice, FakeSystem, error

Body = Callable[[AsyncEventChannels, FakeDevice], Awaitable[None]]


class _Peer:
    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.listeners: list[Callable[[], None]] = []

    def on_gone(self, listener: Callable[[], None]) -> None:
        self.listeners.append(listener)

    def discard_on_gone(self, listener: Callable[[], None]) -> None:
        self.listeners.remove(listener)

    def check(self) -> None:
        if self.failure is not None:
            raise self.failure

    def fail(self, failure: Exception) -> None:
        self.failure = failure
        for listener in list(self.listeners):
            listener()


def _run(system: FakeSystem, body: Body) -> None:
    async def main() -> None:
        device = system.open("evtchn")
        async with asyncio.timeout(LONG), AsyncEventChannels(device) as channels:
            await body(channels, device)

    asyncio.run(main())


async def _settle() -> None:
    """Let every task that can go on do so."""
    for _ in range(5):
        await asyncio.sleep(0)


def _is_waiting(task: asyncio.Task[Any]) -> bool:
    return not task.done()


def test_a_wait_takes_the_event_and_unmasks(system: FakeSystem) -> None:
    async def body(channels: AsyncEventChannels, device: FakeDevice) -> None:
        port = channels.bind_unbound(7)
        waiting = asyncio.create_task(port.wait(LONG))
        await _settle()
        assert _is_waiting(waiting)
        device.deliver(port.number)
        await waiting
        assert device.unmasked == [port.number]

    _run(system, body)


def test_a_time_out_says_where(system: FakeSystem) -> None:
    async def body(channels: AsyncEventChannels, device: FakeDevice) -> None:
        port = channels.bind_interdomain(7, 2)
        with pytest.raises(TimeoutError, match=r"no event on port 1 from domain 7 in 0\.01 seconds"):
            await port.wait(0.01)
        device.deliver(port.number)
        await port.wait(0)  # what is there counts

    _run(system, body)


def test_a_cancelled_wait_loses_no_event(system: FakeSystem) -> None:
    async def body(channels: AsyncEventChannels, device: FakeDevice) -> None:
        port = channels.bind_unbound(7)
        waiting = asyncio.create_task(port.wait())
        await _settle()
        device.deliver(port.number)
        channels._read()  # the event is there and the task is about to run
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert device.unmasked == []
        await port.wait(0)
        assert device.unmasked == [port.number]

    _run(system, body)


def test_of_two_that_wait_on_one_port_one_gets_the_event(system: FakeSystem) -> None:
    async def body(channels: AsyncEventChannels, device: FakeDevice) -> None:
        port = channels.bind_unbound(7)
        waits = [asyncio.create_task(port.wait()) for _ in range(2)]
        await _settle()
        device.deliver(port.number)
        done, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        await _settle()
        assert (len(done), len(pending)) == (1, 1)
        assert _is_waiting(*pending)
        device.deliver(port.number)
        await asyncio.gather(*waits)

    _run(system, body)


def test_an_overflow_is_reset_and_every_port_looks(system: FakeSystem) -> None:
    async def body(channels: AsyncEventChannels, device: FakeDevice) -> None:
        ports = [channels.bind_unbound(7) for _ in range(3)]
        waits = [asyncio.create_task(port.wait()) for port in ports]
        device.deliver(error(errno.EFBIG))
        await asyncio.gather(*waits)
        assert device.journal[-1] == "RESET"
        assert sorted(device.unmasked) == [1, 2, 3]

    _run(system, body)


@pytest.mark.parametrize(
    ("item", "raised"), [(error(errno.EIO), OSError), (b"", InterfaceUnavailable), (ConnectionResetError(), OSError)]
)
def test_a_broken_device_reaches_every_waiter_and_is_read_no_more(
    system: FakeSystem, item: Any, raised: type[Exception]
) -> None:
    async def body(channels: AsyncEventChannels, device: FakeDevice) -> None:
        ports = [channels.bind_unbound(7) for _ in range(2)]
        waits = [asyncio.create_task(port.wait()) for port in ports]
        await _settle()
        device.deliver(item)
        for wait in waits:
            with pytest.raises(raised):
                await wait
        with pytest.raises(raised):
            await ports[0].wait()
        assert not channels.closed

    _run(system, body)


def test_closing_a_port_ends_its_waits(system: FakeSystem) -> None:
    async def body(channels: AsyncEventChannels, device: FakeDevice) -> None:
        port = channels.bind_unbound(7)
        waiting = asyncio.create_task(port.wait())
        await _settle()
        port.close()
        with pytest.raises(InterfaceClosed):
            await waiting
        port.close()
        assert device.journal.count("UNBIND") == 1

    _run(system, body)


def test_closing_the_interface_ends_every_wait(system: FakeSystem) -> None:
    async def body(channels: AsyncEventChannels, device: FakeDevice) -> None:
        waits = [asyncio.create_task(channels.bind_unbound(7).wait()) for _ in range(2)]
        await _settle()
        channels.close()
        channels.close()
        for wait in waits:
            with pytest.raises(InterfaceClosed):
                await wait
        with pytest.raises(InterfaceClosed):
            channels.bind_unbound(7)

    _run(system, body)


def test_a_wait_ends_when_the_peer_goes_and_what_it_sent_before_is_had_first(system: FakeSystem) -> None:
    async def body(channels: AsyncEventChannels, device: FakeDevice) -> None:
        peer: Any = _Peer()
        port = channels.bind_unbound(7)
        waiting = asyncio.create_task(port.wait(peer=peer))
        await _settle()
        peer.fail(PeerClosed("domain 7 is gone"))
        with pytest.raises(PeerClosed):
            await waiting
        assert peer.listeners == []
        device.deliver(abi.pack_ports([port.number]))
        await port.wait(0, peer=peer)
        with pytest.raises(PeerClosed):
            await port.wait(peer=peer)

    _run(system, body)


def test_a_peers_own_time_out_is_not_the_waits(system: FakeSystem) -> None:
    async def body(channels: AsyncEventChannels, device: FakeDevice) -> None:
        peer: Any = _Peer()
        peer.fail(TimeoutError("xenstore took too long"))
        with pytest.raises(TimeoutError, match="xenstore took too long"):
            await channels.bind_unbound(7).wait(LONG, peer=peer)

    _run(system, body)


def test_it_needs_a_running_loop_and_leaves_no_device_open_without(system: FakeSystem) -> None:
    device = system.open("evtchn")
    with pytest.raises(RuntimeError, match="no running event loop"):
        AsyncEventChannels(device)
    assert device.closed


def test_an_async_port_knows_its_twins_names(system: FakeSystem) -> None:
    async def body(channels: AsyncEventChannels, device: FakeDevice) -> None:
        with channels.bind_unbound(7) as port:
            port.notify()
            device.deliver(port.number)
            await port.wait(unmask=False)
            assert device.unmasked == []
            port.unmask()
            assert device.unmasked == [port.number]
            assert repr(port) == "<AsyncPort 1 to domain 7, bound>"
        assert repr(channels) == "<AsyncEventChannels 0 ports>"

    _run(system, body)
