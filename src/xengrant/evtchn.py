"""Notifying: `EventChannels` binds event channel ports, a `Port` notifies the peer and waits for its notifications.

Made by `Domain.evtchn()` and, for asyncio, `Domain.aio.evtchn()`. Calls /dev/xen/evtchn. Events do not count: many
notifications before a wait are one event, and the first after a bind may be spurious (Xen marks a freshly bound port
pending). So a waiter looks at the shared memory, waits, and looks again.
"""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from xengrant.abi import evtchn as abi
from xengrant.abi.xen import DOMID_FIRST_RESERVED
from xengrant.errors import GrantError, InterfaceClosed, InterfaceUnavailable, PeerClosed
from xengrant.waiting import SharedReader, deadline_after

if TYPE_CHECKING:
    from xengrant.devices import Device
    from xengrant.peer import AsyncPeer, Peer

__all__ = ["AsyncEventChannels", "AsyncPort", "EventChannels", "Port"]

# Linux reads at most a page of ports at once.
_READ_SIZE = 4096


class _BasePort:
    """One bound port: what the blocking and the asyncio port have in common."""

    def __init__(self, channels: _Channels[_P], number: int, remote_domid: int) -> None:
        self.number = number
        self.remote_domid = remote_domid
        self.closed = False
        self._channels = channels

    def notify(self) -> None:
        """Send the peer an event. It never waits, and says nothing of whether the peer is alive (Xen evtchn_send)."""
        self._check_open()
        self._channels.notify(self.number)

    def unmask(self) -> None:
        """Let the next event be delivered, after a wait with ``unmask=False``."""
        self._check_open()
        self._channels.unmask(self.number)

    def close(self) -> None:
        """Unbind the port; whoever waits on it gets `InterfaceClosed`. A second time does nothing.

        The peer gets no event: its port turns unbound (Xen common/event_channel.c, evtchn_close).
        """
        if not self.closed:
            self.closed = True
            self._channels.unbind(self.number)

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed or self._channels.closed else "bound"
        return f"<{type(self).__name__} {self.number} to domain {self.remote_domid}, {state}>"

    def _check_open(self) -> None:
        if self.closed or self._channels.closed:
            raise InterfaceClosed(f"event channel port {self.number} is closed")

    def _set_pending(self) -> None:
        raise NotImplementedError


_P = TypeVar("_P", bound=_BasePort)


class _Channels(Generic[_P]):
    """One open /dev/xen/evtchn: what the blocking and the asyncio interface have in common."""

    _port_type: type[_P]

    def __init__(self, device: Device) -> None:
        self._device = device
        self._ports: dict[int, _P] = {}
        self.name = device.name

    @property
    def closed(self) -> bool:
        return self._device.closed

    def fileno(self) -> int:
        """Readable while a port of this interface has an event that was not taken yet."""
        return self._device.fileno()

    def bind_unbound(self, remote_domid: int) -> _P:
        """A new port that `remote_domid` may bind to; tell it the port's number.

        Raises `ValueError` for a domid outside 0..0x7FEF, `InterfaceUnavailable` where no port is left.
        """
        return self._bind(abi.BIND_UNBOUND_PORT, abi.pack_word(_checked_domid(remote_domid)), remote_domid, None)

    def bind_interdomain(self, remote_domid: int, remote_port: int) -> _P:
        """A new port bound to `remote_port`, which `remote_domid` offered to this domain.

        Raises `PeerClosed` where the domain does not exist, `GrantError` where the port is not offered to this
        domain or is bound already, `ValueError`, `InterfaceUnavailable`.
        """
        if not 0 <= remote_port <= 0xFFFFFFFF:
            raise ValueError(f"port {remote_port} is not an unsigned 32-bit number")
        arg = abi.pack_interdomain(_checked_domid(remote_domid), remote_port)
        return self._bind(abi.BIND_INTERDOMAIN, arg, remote_domid, remote_port)

    def read(self, size: int) -> bytes:
        """The device's read, which an overflow of the kernel's ring does not end: then every port is looked at."""
        try:
            return self._device.read(size)
        except OSError as error:
            if error.errno != errno.EFBIG:
                raise
            self._device.ioctl(abi.RESET, bytearray(4))
            return abi.pack_ports(list(self._ports))

    def notify(self, number: int) -> None:
        self._device.ioctl(abi.NOTIFY, abi.pack_word(number))

    def unmask(self, number: int) -> None:
        self._device.write(abi.pack_ports([number]))

    def unbind(self, number: int) -> None:
        self._ports.pop(number, None)
        if not self._device.closed:
            self._device.ioctl(abi.UNBIND, abi.pack_word(number))
        self._changed()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self._ports)} ports"
        return f"<{type(self).__name__} {state}>"

    def _bind(self, request: int, arg: bytearray, remote_domid: int, remote_port: int | None) -> _P:
        if self._device.closed:
            raise InterfaceClosed("this interface is closed: open another with domain.evtchn()")
        try:
            number = self._device.ioctl(request, arg)
        except OSError as error:
            raise _why_not_bound(error, remote_domid, remote_port) from None
        port = self._port_type(self, number, remote_domid)
        self._ports[number] = port
        return port

    def _deliver(self, data: bytes) -> None:
        for number in abi.unpack_ports(data):
            port = self._ports.get(number)
            if port is not None:
                port._set_pending()

    def _changed(self) -> None:
        raise NotImplementedError


class Port(_BasePort):
    """One bound port.

    Threads: any call from any thread; of two that wait on one port, one gets the event.
    """

    _channels: EventChannels

    def __init__(self, channels: EventChannels, number: int, remote_domid: int) -> None:
        super().__init__(channels, number, remote_domid)
        self._pending = False

    def wait(self, timeout: float | None = None, *, peer: Peer | None = None, unmask: bool = True) -> None:
        """Wait for an event and take it.

        The port is masked when an event is delivered and unmasked here before the return, so nothing that comes
        later is lost; with ``unmask=False`` it stays masked until `unmask`. Raises `TimeoutError` after `timeout`
        seconds, `PeerClosed` when `peer` is gone, `InterfaceClosed` when the port is closed meanwhile.
        """
        self._check_open()
        if peer is not None:
            peer.on_gone(self._channels.reader.wake)
        try:
            found = self._channels.reader.wait_until(lambda: self._take(peer), deadline_after(timeout))
        finally:
            if peer is not None:
                peer.discard_on_gone(self._channels.reader.wake)
        if not found:
            raise TimeoutError(f"no event on port {self.number} from domain {self.remote_domid} in {timeout} seconds")
        if unmask:
            self._channels.unmask(self.number)

    def _take(self, peer: Peer | None) -> bool:
        """Runs under the reader's lock."""
        self._check_open()
        if self._pending:
            self._pending = False
            return True
        if peer is not None and peer.known_gone:
            raise PeerClosed(f"domain {peer.domid} is gone")
        return False

    def _set_pending(self) -> None:
        self._pending = True


class EventChannels(_Channels[Port]):
    """One open /dev/xen/evtchn and the ports bound through it.

    Threads: any call from any thread.
    """

    _port_type = Port

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        self.reader = SharedReader(self, self._deliver, size=_READ_SIZE)

    def close(self) -> None:
        """Unbind every port and close; whoever waits gets `InterfaceClosed`. A second time does nothing."""
        self.reader.close()
        self._device.close()

    def __enter__(self) -> Self:
        if self.closed:
            raise InterfaceClosed("this interface is closed: open another with domain.evtchn()")
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _changed(self) -> None:
        self.reader.wake()


class AsyncPort(_BasePort):
    """One bound port, for asyncio. A cancelled wait loses no event.

    Threads: those of its event loop only.
    """

    def __init__(self, channels: AsyncEventChannels, number: int, remote_domid: int) -> None:
        super().__init__(channels, number, remote_domid)
        self._event = asyncio.Event()

    async def wait(
        self, timeout: float | None = None, *, peer: AsyncPeer | None = None, unmask: bool = True
    ) -> None:
        """As `Port.wait`."""
        self._check_open()
        if peer is not None:
            peer.on_gone(self._event.set)
        try:
            async with asyncio.timeout(timeout):
                await self._event.wait()
        except TimeoutError:
            raise TimeoutError(
                f"no event on port {self.number} from domain {self.remote_domid} in {timeout} seconds"
            ) from None
        finally:
            if peer is not None:
                peer.discard_on_gone(self._event.set)
        self._check_open()
        if peer is not None and peer.known_gone:
            raise PeerClosed(f"domain {peer.domid} is gone")
        self._event.clear()
        if unmask:
            self._channels.unmask(self.number)

    def _set_pending(self) -> None:
        self._event.set()


class AsyncEventChannels(_Channels[AsyncPort]):
    """One open /dev/xen/evtchn for asyncio: one reader on its descriptor for its life.

    Threads: those of the event loop that it was made in.
    """

    _port_type = AsyncPort

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(device.fileno(), self._readable)

    def close(self) -> None:
        """As `EventChannels.close`."""
        if not self._device.closed:
            self._loop.remove_reader(self._device.fileno())
            self._device.close()
            self._wake_all()

    async def __aenter__(self) -> Self:
        if self.closed:
            raise InterfaceClosed("this interface is closed: open another with domain.aio.evtchn()")
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    def unbind(self, number: int) -> None:
        port = self._ports.get(number)
        super().unbind(number)
        if port is not None:
            port._set_pending()  # its waiters look, and find it closed

    def _readable(self) -> None:
        try:
            self._deliver(self.read(_READ_SIZE))
        except BlockingIOError:
            pass
        except OSError:
            self.close()

    def _wake_all(self) -> None:
        for port in self._ports.values():
            port._set_pending()

    def _changed(self) -> None:
        pass


def _checked_domid(domid: int) -> int:
    if not 0 <= domid < DOMID_FIRST_RESERVED:
        raise ValueError(f"domid {domid} is outside 0..{DOMID_FIRST_RESERVED - 1:#x}")
    return domid


def _why_not_bound(error: OSError, remote_domid: int, remote_port: int | None) -> Exception:
    if error.errno == errno.ENOSPC:
        return InterfaceUnavailable(
            errno.ENOSPC,
            "no event channel port is left: close some, or raise max_event_channels in the domain's configuration",
        )
    if error.errno == errno.ESRCH:
        return PeerClosed(errno.ESRCH, f"there is no domain {remote_domid}")
    if error.errno == errno.EINVAL and remote_port is not None:
        return GrantError(
            f"port {remote_port} of domain {remote_domid} cannot be bound: it does not exist, is bound already, "
            "or is offered to another domain"
        )
    return error
