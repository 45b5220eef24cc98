"""Xen's side of event channels (xen/common/event_channel.c): ports, and the eventfds that carry the events.

A channel has two sides and an eventfd for each: the counter of a side's eventfd is its pending bit. Whoever binds a
side gets both descriptors, its own to wait on and the other to notify, so no event goes through the machine. Called by
evtchn, by the unmap notifications and by the machine when a domain dies.
"""

from __future__ import annotations

import contextlib
import errno
import os

from xengrant.abi.xen import DOMID_SELF
from xengrant.embedded.domain import Domain


class Channel:
    """Two eventfds, open while a port uses either side."""

    def __init__(self) -> None:
        self.fds = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)]
        try:
            self.fds.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        except OSError:
            os.close(self.fds[0])
            raise
        self.sides = 0

    def drop_side(self) -> None:
        self.sides -= 1
        if self.sides == 0:
            self.close()

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds = []


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
    def fds(self) -> tuple[int, int]:
        """(its own, to wait on; the other side's, to notify)."""
        return self.channel.fds[self.side], self.channel.fds[1 - self.side]

    def send(self) -> None:
        """Notify the other side; nobody there is no error."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self.channel.fds[1 - self.side], 1)

    def put(self) -> None:
        """One user fewer; the last one closes the port."""
        self.users -= 1
        if self.users == 0:
            self.close()

    def close(self) -> None:
        """Free the number. The peer's port becomes unbound, offered to this domain again, and is told nothing."""
        del self.domain.ports[self.number]
        if self.peer is not None:
            self.peer.peer = None
            self.peer = None
        self.channel.drop_side()


def bind_unbound(domain: Domain, remote_domid: int) -> Port:
    """Offer a port to a domain, which need not exist yet."""
    number = _free_port(domain)
    return Port(domain, number, domain.domid if remote_domid == DOMID_SELF else remote_domid, _new_channel(), side=0)


def bind_interdomain(domain: Domain, remote: Domain | None, remote_port: int) -> Port:
    """Bind to a port that `remote` offers `domain`; the new port is pending at once, as Xen's is."""
    if remote is None:
        raise OSError(errno.ESRCH, "no such domain")
    number = _free_port(domain)
    peer = remote.ports.get(remote_port)
    if peer is None or peer.peer is not None or peer.remote_domid != domain.domid:
        raise OSError(errno.EINVAL, f"port {remote_port} of domain {remote.domid} is not offered to {domain.domid}")
    port = Port(domain, number, remote.domid, peer.channel, side=1 - peer.side)
    port.peer = peer
    peer.peer = port
    # What was sent to a port that had this side before makes no second event: the counter is one bit to its reader.
    with contextlib.suppress(BlockingIOError):
        os.eventfd_write(port.fds[0], 1)
    return port


def _free_port(domain: Domain) -> int:
    """The lowest free number, as Xen gives."""
    for number in range(1, domain.max_port + 1):
        if number not in domain.ports:
            return number
    raise OSError(errno.ENOSPC, f"domain {domain.domid} has used its {domain.max_port} ports")


def _new_channel() -> Channel:
    try:
        return Channel()
    except OSError as error:
        raise OSError(errno.ENOMEM, f"no descriptor for an event channel: {error.strerror}") from None
