"""Xen's side of event channels (xen/common/event_channel.c): ports, and the sockets that carry the events.

A channel is a pair of connected sockets, an end for each side: what lies in an end to be received is its side's pending
bit. Whoever binds a side gets its end, to wait on and to notify the other through, so no event goes through the
machine. An end is shared with processes that may do anything to it, O_NONBLOCK included, so each send says itself that
it will not wait, and the machine never receives. Called by evtchn, by the unmap notifications and by the machine when a
domain dies.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Sequence

from xengrant.abi.xen import DOMID_SELF
from xengrant.devices.wire import refuse_descriptors
from xengrant.embedded.domain import Domain

# Some tens of events. One byte says as much, but a reader frees a byte's room a moment after it took it: where an event
# finds no room others must be still to be taken, or it would be lost.
_ROOM = 16 << 10

# A port keeps both ends open, for whoever is or will be bound at the other.
_DESCRIPTORS = 2


class Channel:
    """Two sockets, open while a port uses either side."""

    def __init__(self) -> None:
        self.ends: Sequence[socket.socket] = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        for end in self.ends:
            refuse_descriptors(end)
            end.setblocking(False)  # else Python itself waits, where the program has a default timeout
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _ROOM)
        self.sides = 0

    def drop_side(self) -> None:
        self.sides -= 1
        if self.sides == 0:
            self.close()

    def close(self) -> None:
        for end in self.ends:
            end.close()
        self.ends = ()

    def send(self, side: int) -> None:
        """An event to a side: no error where one is pending already, or where a client shut the sockets down."""
        with contextlib.suppress(BlockingIOError, ConnectionError):
            self.ends[1 - side].send(b"\0", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


class Port:
    """One port of a domain: unbound, offered to `remote_domid`, or bound to `peer`.

    `users` counts the open evtchn file and each unmap notification that will send through it (Linux evtchn_get).
    """

    __slots__ = ("channel", "domain", "number", "peer", "remote_domid", "side", "users")

    def __init__(self, domain: Domain, number: int, remote_domid: int, channel: Channel, side: int) -> None:
        self.domain = domain
        self.number = number
        self.remote_domid = remote_domid
        self.channel = channel
        self.side = side
        self.peer: Port | None = None
        self.users = 1
        channel.sides += 1
        domain.ports[number] = self

    @property
    def end(self) -> socket.socket:
        """Its own end of the channel."""
        return self.channel.ends[self.side]

    def send(self) -> None:
        """Notify the other side; nobody there is no error."""
        self.channel.send(1 - self.side)

    def put(self) -> None:
        """One user fewer; the last one closes the port."""
        self.users -= 1
        if self.users == 0:
            self.close()

    def close(self) -> None:
        """Free the number. The peer's port becomes unbound, offered to this domain again, and is told nothing."""
        del self.domain.ports[self.number]
        self.domain.descriptors.give_back(_DESCRIPTORS)
        if self.peer is not None:
            self.peer.peer = None
            self.peer = None
        self.channel.drop_side()


def bind_unbound(domain: Domain, remote_domid: int) -> Port:
    """Offer a port to a domain, which need not exist yet."""
    number = _free_port(domain)
    _take_descriptors(domain)
    try:
        channel = Channel()
    except OSError as error:
        domain.descriptors.give_back(_DESCRIPTORS)
        raise _no_descriptors(error) from None
    return Port(domain, number, domain.domid if remote_domid == DOMID_SELF else remote_domid, channel, side=0)


def bind_interdomain(domain: Domain, remote: Domain | None, remote_port: int) -> Port:
    """Bind to a port that `remote` offers `domain`; the new port is pending at once, as Xen's is."""
    if remote is None:
        raise OSError(errno.ESRCH, "no such domain")
    number = _free_port(domain)
    peer = remote.ports.get(remote_port)
    if peer is None or peer.peer is not None or peer.remote_domid != domain.domid:
        raise OSError(errno.EINVAL, f"port {remote_port} of domain {remote.domid} is not offered to {domain.domid}")
    _take_descriptors(domain)
    port = Port(domain, number, remote.domid, peer.channel, side=1 - peer.side)
    port.peer = peer
    peer.peer = port
    # What was sent to a port that had this side before makes no second event: its reader takes all at once.
    port.channel.send(port.side)
    return port


def _free_port(domain: Domain) -> int:
    """The lowest free number, as Xen gives."""
    for number in range(1, domain.max_port + 1):
        if number not in domain.ports:
            return number
    raise OSError(errno.ENOSPC, f"domain {domain.domid} has used its {domain.max_port} ports")


def _take_descriptors(domain: Domain) -> None:
    try:
        domain.descriptors.take(_DESCRIPTORS)
    except OSError as error:
        raise _no_descriptors(error) from None


def _no_descriptors(error: OSError) -> OSError:
    return OSError(errno.ENOMEM, f"no descriptor for an event channel: {error.strerror}")
