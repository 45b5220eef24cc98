"""Notifying: `EventChannels` binds event channel ports, a `Port` notifies the peer and waits for its notifications.

Made by `Domain.evtchn()` and, for asyncio, `Domain.aio.evtchn()`. Calls /dev/xen/evtchn. Events do not count: many
notifications before a wait are one event, and the first after a bind may be spurious (Xen marks a freshly bound port
pending). So a waiter looks at the shared memory, waits, and looks again.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import errno
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from xengrant.abi import evtchn as abi
from xengrant.arguments import MAX_U32, checked_domid, checked_number
from xengrant.descriptors import needing_descriptors
from xengrant.errors import SILO, GrantError, InterfaceClosed, InterfaceUnavailable, PeerClosed
from xengrant.waiting import SharedReader, deadline_after

if TYPE_CHECKING:
    from xengrant._native import Doorbell
    from xengrant.devices import Device
    from xengrant.peer import AsyncPeer, Peer

__all__ = ["AsyncEventChannels", "AsyncPort", "EventChannels", "Port"]

# Linux reads at most a page of ports at once.
_READ_SIZE = 4096


class _BasePort:
    """One bound port: what the blocking and the asyncio port have in common."""

    def __init__(self, channels: _Channels[Any], number: int, remote_domid: int) -> None:
        self.number = number
        self.remote_domid = remote_domid
        self._channels = channels
        self._unbound = False
        self._pending = False
        self._unmasking = abi.pack_ports([number])

    @property
    def closed(self) -> bool:
        """Whether the port is unbound, or its interface closed."""
        return self._unbound or self._channels.closed

    def notify(self) -> None:
        """Send the peer an event. It never waits, and says nothing of whether the peer is alive (Xen evtchn_send).

        Events do not count: several before the peer looks are one. Raises `InterfaceClosed`.
        """
        self._check_open()
        try:
            self._channels._device.ioctl(abi.NOTIFY, abi.pack_word(self.number))
        except OSError:
            self._check_open()  # closed by another thread meanwhile
            raise

    def doorbell(self) -> Doorbell:
        """This port to ring and wait on in `_native`, for a ring's end.

        Who waits on it takes the events of every port of the interface: let there be no other, nor another's wait.
        """
        self._check_open()
        with needing_descriptors():
            return self._channels._device.doorbell(self.number)

    def unmask(self) -> None:
        """Let the next event be delivered, after a wait with ``unmask=False``. `InterfaceClosed`."""
        self._check_open()
        self._channels._device.write(self._unmasking)

    def close(self) -> None:
        """Unbind the port; whoever waits on it gets `InterfaceClosed`. A second time does nothing.

        The peer gets no event: its port turns unbound (Xen common/event_channel.c, evtchn_close).
        """
        self._channels._unbind(self)

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "bound"
        return f"<{type(self).__name__} {self.number} to domain {self.remote_domid}, {state}>"

    def _check_open(self) -> None:
        if self.closed:
            raise InterfaceClosed(f"event channel port {self.number} is closed")

    def _take(self, peer: Peer | AsyncPeer | None) -> bool:
        """Take the event if there is one; what came before the peer went is still there to be had."""
        self._check_open()
        if self._pending:
            self._pending = False
            return True
        if peer is not None:
            peer.check()
        return False

    def _no_event(self, timeout: float | None) -> TimeoutError:
        return TimeoutError(f"no event on port {self.number} from domain {self.remote_domid} in {timeout} seconds")

    def _set_pending(self) -> None:
        self._pending = True

    def _wake(self) -> None:
        """Have whoever waits on this port look again."""
        raise NotImplementedError


_P = TypeVar("_P", bound=_BasePort)


class _Channels(Generic[_P]):
    """One open /dev/xen/evtchn: what the blocking and the asyncio interface have in common."""

    _port_type: type[_P]
    _lock: AbstractContextManager[Any]  # binding, unbinding and delivering

    def __init__(self, device: Device) -> None:
        self._device = device
        self._ports: dict[int, _P] = {}
        self._events = _Events(device, self._ports)

    @property
    def closed(self) -> bool:
        """Whether it is closed, and with it every port bound through it."""
        return self._device.closed

    def fileno(self) -> int:
        """Readable when an event has come, on any port of this interface, that no wait has read yet."""
        return self._device.fileno()

    def bind_unbound(self, remote_domid: int) -> _P:
        """A new port that `remote_domid` may bind to; tell it the port's number.

        Raises `ValueError` for a domid outside 0..0x7FEF, `InterfaceUnavailable` where no port is left, or Xen's
        security policy forbids it.
        """
        checked_domid(remote_domid)
        return self._bind(abi.BIND_UNBOUND_PORT, abi.pack_word(remote_domid), remote_domid, None)

    def bind_interdomain(self, remote_domid: int, remote_port: int) -> _P:
        """A new port bound to `remote_port`, which `remote_domid` offered to this domain.

        Raises `PeerClosed` where the domain does not exist, `GrantError` where the port is not offered to this
        domain or is bound already, `ValueError`, `InterfaceUnavailable`.
        """
        checked_domid(remote_domid)
        checked_number("remote_port", remote_port, 0, MAX_U32)
        arg = abi.pack_interdomain(remote_domid, remote_port)
        return self._bind(abi.BIND_INTERDOMAIN, arg, remote_domid, remote_port)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self._ports)} ports"
        return f"<{type(self).__name__} {state}>"

    def _bind(self, request: int, arg: bytearray, remote_domid: int, remote_port: int | None) -> _P:
        if self._device.closed:
            raise InterfaceClosed("this interface is closed: open another with domain.evtchn()")
        with self._lock:  # the first event may come at once, and is not to find the port unknown: it would stay masked
            try:
                number = self._device.ioctl(request, arg)
            except OSError as error:
                raise _why_not_bound(error, remote_domid, remote_port) from None
            port = self._port_type(self, number, remote_domid)
            self._ports[number] = port
        return port

    def _unbind(self, port: _BasePort) -> None:
        if port.closed:  # before the lock, which in a forked child may be held for ever
            return
        with self._lock:  # so that nobody binds the number anew before it is forgotten here
            if port._unbound:
                return
            port._unbound = True
            del self._ports[port.number]
            try:
                self._device.ioctl(abi.UNBIND, abi.pack_word(port.number))
            except (InterfaceClosed, InterfaceUnavailable):
                pass  # the port went with the device, or with an embedded machine
            finally:
                port._wake()

    def _deliver(self, data: bytes) -> None:
        for number in abi.unpack_ports(data):
            port = self._ports.get(number)
            if port is not None:
                port._set_pending()


class _Events:
    """The device's events, which an overflow of the kernel's ring does not end: then every port has one.

    RESET empties the ring and enables nothing (Linux drivers/xen/evtchn.c): the ports whose events were lost are
    masked, and whoever takes their event here unmasks them.
    """

    def __init__(self, device: Device, ports: dict[int, Any]) -> None:
        self._device = device
        self._ports = ports
        self.name = device.name

    @property
    def closed(self) -> bool:
        return self._device.closed

    def fileno(self) -> int:
        return self._device.fileno()

    def read(self, size: int) -> bytes:
        try:
            return self._device.read(size)
        except OSError as error:
            if error.errno != errno.EFBIG:
                raise
            self._device.ioctl(abi.RESET, bytearray(4))
            return abi.pack_ports(list(self._ports))


class Port(_BasePort):
    """One bound port. Made by `EventChannels.bind_unbound` and `bind_interdomain`.

    `number` is the port's here (the peer's end has a number of its own), `remote_domid` the domain at the other end.
    Leaving a `with` block closes it. Linux drivers/xen/evtchn.c. Threads: any call from any thread; of two that wait on
    one port, one gets the event.
    """

    _channels: EventChannels

    def wait(self, timeout: float | None = None, *, peer: Peer | None = None, unmask: bool = True) -> None:
        """Wait for an event and take it.

        The port is masked when an event is delivered and unmasked here before the return, so nothing that comes
        later is lost; with ``unmask=False`` it stays masked until `unmask`. Raises `TimeoutError` after `timeout`
        seconds, `PeerClosed` when `peer` is gone, `InterfaceClosed` when the port is closed meanwhile.
        """
        self._check_open()
        deadline = deadline_after(timeout)
        reader = self._channels._reader
        if peer is None:
            found = reader.wait_until(lambda: self._take(None), deadline)
        else:
            peer.on_gone(reader.wake)
            try:
                found = reader.wait_until(lambda: self._take(peer), deadline)
            finally:
                peer.discard_on_gone(reader.wake)
        if not found:
            raise self._no_event(timeout)
        if unmask:
            self._channels._device.write(self._unmasking)

    def _wake(self) -> None:
        self._channels._reader.wake()


class EventChannels(_Channels[Port]):
    """One open /dev/xen/evtchn and the ports bound through it. Made by `Domain.evtchn`.

    Threads: any call from any thread.
    """

    _port_type = Port

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        events: Any = self._events
        try:
            self._reader = SharedReader(events, self._deliver, size=_READ_SIZE)
        except BaseException:
            device.close()
            raise
        self._lock = self._reader.lock

    def close(self) -> None:
        """Unbind every port and close; whoever waits gets `InterfaceClosed`. A second time does nothing."""
        if not self._device.closed:
            self._reader.close()
            self._device.close()

    def __enter__(self) -> Self:
        if self.closed:
            raise InterfaceClosed("this interface is closed: open another with domain.evtchn()")
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class AsyncPort(_BasePort):
    """One bound port, for asyncio: as `Port`, with its `number` and `remote_domid`. A cancelled wait loses no event.

    Threads: that of its event loop only.
    """

    _channels: AsyncEventChannels

    def __init__(self, channels: AsyncEventChannels, number: int, remote_domid: int) -> None:
        super().__init__(channels, number, remote_domid)
        self._news = asyncio.Event()
        self._listener: Callable[[], None] | None = None

    def set_listener(self, listener: Callable[[], None] | None) -> None:
        """Have `listener` called in the loop for each event, which is taken and the port unmasked before; or for none.

        And once more when the port or its interface is closed, or fails; then `check` raises.
        """
        self._listener = listener
        if listener is not None and self._pending:
            self._set_pending()

    def check(self) -> None:
        """`InterfaceClosed` where the port is closed, what went wrong where events come no more."""
        self._check_open()
        if self._channels._failure is not None:
            raise copy.copy(self._channels._failure) from self._channels._failure

    async def wait(self, timeout: float | None = None, *, peer: AsyncPeer | None = None, unmask: bool = True) -> None:
        """As `Port.wait`."""
        self._check_open()
        if timeout is not None and timeout <= 0:
            self._channels._read()  # what is there already counts
        limit = asyncio.timeout(timeout)
        if peer is not None:
            peer.on_gone(self._news.set)
        try:
            async with limit:
                while not self._take(peer):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            if limit.expired():
                raise self._no_event(timeout) from None
            raise
        finally:
            if peer is not None:
                peer.discard_on_gone(self._news.set)
        if unmask:
            self._channels._device.write(self._unmasking)

    def _take(self, peer: Peer | AsyncPeer | None) -> bool:
        taken = super()._take(peer)
        if not taken:
            self.check()
        return taken

    def _set_pending(self) -> None:
        if self._listener is None:
            self._pending = True
            self._news.set()
            return
        self._pending = False
        self._channels._device.write(self._unmasking)
        self._listener()

    def _wake(self) -> None:
        self._news.set()
        if self._listener is not None:
            self._listener()


class AsyncEventChannels(_Channels[AsyncPort]):
    """One open /dev/xen/evtchn for asyncio: one reader on its descriptor for its life. Made by `AsyncDomain.evtchn`.

    Threads: that of the event loop it was made in.
    """

    _port_type = AsyncPort

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        self._lock = contextlib.nullcontext()
        self._failure: Exception | None = None
        try:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(device.fileno(), self._read)
        except BaseException:
            device.close()
            raise

    def close(self) -> None:
        """As `EventChannels.close`."""
        if not self._device.closed:
            try:
                self._loop.remove_reader(self._device.fileno())
            finally:
                self._device.close()
                self._wake_all()

    async def __aenter__(self) -> Self:
        if self.closed:
            raise InterfaceClosed("this interface is closed: open another with domain.aio.evtchn()")
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    def _read(self) -> None:
        if self._failure is not None:
            return
        try:
            data = self._events.read(_READ_SIZE)
        except BlockingIOError:
            return
        except Exception as failure:
            self._fail(failure)
            return
        self._deliver(data)
        if not data:
            self._fail(InterfaceUnavailable(errno.EPIPE, f"{self._device.name}: the other side closed it"))

    def _fail(self, failure: Exception) -> None:
        """Have every wait from now on raise it."""
        self._failure = failure
        if not self._device.closed:
            self._loop.remove_reader(self._device.fileno())
        self._wake_all()

    def _wake_all(self) -> None:
        for port in self._ports.values():
            port._wake()


def _why_not_bound(error: OSError, remote_domid: int, remote_port: int | None) -> Exception:
    if error.errno == errno.ENOSPC:
        return InterfaceUnavailable(
            errno.ENOSPC,
            "no event channel port is left: close some, or raise max_event_channels in the domain's configuration",
        )
    if error.errno == errno.ESRCH:
        return PeerClosed(errno.ESRCH, f"there is no domain {remote_domid}")
    if error.errno == errno.EPERM:
        return InterfaceUnavailable(
            errno.EPERM, f"Xen's security policy forbids an event channel with domain {remote_domid}: {SILO}"
        )
    if error.errno == errno.EINVAL and remote_port is not None:
        return GrantError(
            f"port {remote_port} of domain {remote_domid} cannot be bound: it does not exist, is bound already, "
            "or is offered to another domain"
        )
    return error
