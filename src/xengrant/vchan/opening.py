"""A vchan for programs that wait: `serve` and `connect` make a `Vchan`, one end each.

What C programs have in libxenvchan, and speaking to it byte for byte.
"""

from __future__ import annotations

import contextlib
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from xengrant.arguments import checked_domid
from xengrant.domain import Domain
from xengrant.domain import connect as connect_domain
from xengrant.polling import Polling, check_seconds
from xengrant.vchan import keys as meeting
from xengrant.vchan.channel import Channel, offer
from xengrant.vchan.endpoint import Vchan
from xengrant.vchan.joining import Joined, joining

if TYPE_CHECKING:
    from xengrant.evtchn import EventChannels, Port
    from xengrant.peer import Peer
    from xengrant.xenstore import XenStore

__all__ = ["DEFAULT_SIZE", "connect", "serve"]

DEFAULT_SIZE = 65536
"""Bytes of each ring where the server names no other size."""


def serve(
    domid: int,
    path: str,
    *,
    read_size: int = DEFAULT_SIZE,
    write_size: int = DEFAULT_SIZE,
    persist: bool = False,
    poll: float = 0.0,
    peer: Peer | None = None,
    domain: Domain | None = None,
) -> Vchan:
    """Offer a vchan to domain `domid` at `path` in xenstore, with rings of at least so many bytes, 1 MiB at most.

    Returns at once: what is written waits in the ring for the client (`Vchan.wait_connected`). `path` is absolute,
    relative to this domain's own directory, or a bare name below ``data/vchan/DOMID``. With `persist` the end stays
    open when a client leaves, for the next (libxenvchan's server_persist), which finds what that one left unread.

    `poll` is how many seconds, 0.1 at most, a call that moves bytes looks again and again before it sleeps: in dom0,
    where it may use /dev/xen/privcmd, giving its processor to other domains in between, elsewhere keeping it busy.
    `peer` is what tells of the death of the other domain; dom0, which xenstore tells, needs none. `domain` is by
    default what `xengrant.connect()` gives.
    Raises as `Gntshr.share_pages` and `EventChannels.bind_unbound`, `XenStoreError`, `ValueError`, and `ProtocolError`
    where the domain guessed the page's ref and wrote nonsense to it before it was offered.
    """
    checked_domid(domid)
    check_seconds(poll)
    with ExitStack() as held:
        domain = domain or held.enter_context(connect_domain())
        where = meeting.key_path(domain.domid, domid, path)
        peer = peer or _default_peer(domain, domid, held)
        store = held.enter_context(domain.xenstore())
        channels = held.enter_context(domain.evtchn())
        port = held.enter_context(channels.bind_unbound(domid))
        channel = offer(domain, port, read_size, write_size, persists=persist)
        with ExitStack() as undo:
            undo.callback(channel.close)
            _poll(domain, channel, poll, held)
            assert channel.keys is not None
            # First the keys, then the page: a client that maps it and then sees the keys has the right one.
            channel.before_release(partial(_withdraw, store, where, channel.keys))
            meeting.publish(store, where, domain.domid, domid, channel.keys)  # only the answer may be missing
            undo.pop_all()
        return Vchan(channel, channels, port, held.pop_all(), path=where, peer=peer, store=store)


def connect(
    domid: int,
    path: str,
    *,
    timeout: float | None = None,
    poll: float = 0.0,
    peer: Peer | None = None,
    domain: Domain | None = None,
) -> Vchan:
    """Connect to the vchan that domain `domid` offers to this one at `path`, waiting at most `timeout` seconds for it.

    `path` is absolute, relative to the server's own directory, or a bare name below its ``data/vchan/OUR_DOMID``. A
    server that has closed, or serves another client, is waited for too. `poll`, `peer` and `domain` are as in `serve`.
    Raises `TimeoutError` with what was in the way, `ProtocolError` where the server offers what cannot be, or was
    killed and the refs that it left in xenstore are other pages' by now, `XenStoreError`, `InterfaceUnavailable`.
    """
    checked_domid(domid)
    check_seconds(poll)
    with ExitStack() as held:
        domain = domain or held.enter_context(connect_domain())
        where = meeting.key_path(domid, domain.domid, path)
        peer = peer or _default_peer(domain, domid, held)
        channels = held.enter_context(domain.evtchn())
        channel, port = _meet(domain, channels, domid, where, timeout)
        held.callback(port.close)
        with ExitStack() as undo:
            undo.callback(channel.close)
            _poll(domain, channel, poll, held)
            undo.pop_all()
        return Vchan(channel, channels, port, held.pop_all(), path=where, peer=peer)


def _meet(domain: Domain, channels: EventChannels, domid: int, where: str, timeout: float | None) -> Joined[Port]:
    steps = joining(domain, channels, domid, where, timeout)
    with contextlib.closing(steps), domain.xenstore() as store, store.watch(where) as watch:
        keys: meeting.Keys | None = None
        while True:
            try:
                pause = steps.send(keys)
            except StopIteration as end:
                joined: Joined[Port] = end.value
                return joined
            keys = None
            if pause is None:
                keys = meeting.published(store, where)
            else:
                with contextlib.suppress(TimeoutError):
                    watch.wait(pause.seconds)


def _poll(domain: Domain, channel: Channel, seconds: float, held: ExitStack) -> None:
    if seconds:
        held.enter_context(contextlib.closing(Polling(domain.system, seconds))).at(channel.doorbell)


def _default_peer(domain: Domain, domid: int, held: ExitStack) -> Peer | None:
    """What tells of the other domain's death: only dom0 is told without a node to look at (XSA-115)."""
    if domain.domid != 0:
        return None
    peer = domain.peer(domid)
    held.callback(peer.close)
    return peer


def _withdraw(store: XenStore, where: str, published: meeting.Keys) -> None:
    if not store.closed:  # else this is a forked child, or the machine is gone
        meeting.withdraw(store, where, published)
