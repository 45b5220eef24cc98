"""A vchan for programs that wait: `serve` and `connect` make a `Vchan`, a two-way stream of bytes with another domain.

What C programs have in libxenvchan, and speaking to it byte for byte. Above `channel`, which never waits, and `keys`.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from xengrant.abi import libxenvchan as abi
from xengrant.arguments import checked_domid
from xengrant.domain import Domain
from xengrant.domain import connect as connect_domain
from xengrant.errors import GrantError, InterfaceClosed, InterfaceUnavailable, PeerClosed, ProtocolError
from xengrant.vchan import keys as meeting
from xengrant.vchan.channel import Channel, attach, offer
from xengrant.waiting import deadline_after, seconds_until

if TYPE_CHECKING:
    from xengrant._native import RingReader, RingWriter
    from xengrant.evtchn import EventChannels, Port
    from xengrant.peer import Peer
    from xengrant.xenstore import XenStore

__all__ = ["DEFAULT_SIZE", "Vchan", "connect", "serve"]

DEFAULT_SIZE = 65536
"""Bytes of each ring where the server names no other size."""

# What `_native` says of a wait.
_READY, _PEER_GONE, _LATE, _WOKEN, _SILENT = range(5)

_RETRY = 0.2  # seconds after which keys that led nowhere are tried again, though nothing changed in xenstore
_PATIENCE = 1.0  # seconds that a wait lasts before the peer's domain is asked after


class Vchan:
    """One end of a vchan.

    `send` and `recv` move messages whole, `write`, `read` and `readinto` a stream; `reserve` with `commit` and `peek`
    with `consume` do so in place. Each waits at most `timeout` seconds, for ever without one, and then raises
    `TimeoutError`; 0 never waits. What the peer wrote before it closed is read to the end, then `read` gives b"". All
    may raise `ProtocolError` where the peer's indices cannot be, `PeerClosed` where its domain is gone, and
    `InterfaceClosed` where this end is closed meanwhile.

    Threads: any call from any thread; those that read do so one after the other, those that write too.
    """

    def __init__(
        self,
        channel: Channel,
        channels: EventChannels,
        port: Port,
        held: ExitStack,
        *,
        path: str,
        poll: float,
        peer: Peer | None,
    ) -> None:
        self.path = path
        self.poll = poll
        self._channel = channel
        self._channels = channels
        self._port = port
        self._doorbell = port.doorbell()
        channel.notify = self._doorbell.ring
        self._held = held
        self._peer = peer
        self._reading = threading.RLock()
        self._writing = threading.RLock()
        self._closing = threading.RLock()
        self._stopping = False  # another thread closes

    @property
    def domid(self) -> int:
        """The peer's domain."""
        return self._port.remote_domid

    @property
    def is_server(self) -> bool:
        return self._channel.is_server

    @property
    def closed(self) -> bool:
        """Whether this end is closed."""
        return self._channel.closed

    @property
    def is_open(self) -> bool:
        """Whether the peer is there, or still awaited; with ``persist=True`` always (libxenvchan_is_open)."""
        self._check_open()
        return self._channel.is_open

    @property
    def read_size(self) -> int:
        """Bytes of the ring that this end reads from: the most that `recv` takes at once."""
        return self._channel.incoming.size

    @property
    def write_size(self) -> int:
        """Bytes of the ring that this end writes to: the most that `send` takes at once."""
        return self._channel.outgoing.size

    def data_ready(self) -> int:
        """Bytes that can be read now. Where there are none the peer tells when it writes, which `fileno` shows."""
        self._check_open()
        self._channel.has_data(1)
        return self._channel.incoming.ready

    def buffer_space(self) -> int:
        """Bytes that can be written now. Where there are none the peer tells when it reads, which `fileno` shows."""
        self._check_open()
        self._channel.has_space(1)
        return self._channel.outgoing.space

    def fileno(self) -> int:
        """Readable when the peer told of something: call `wait(0)`, then look (libxenvchan_fd_for_select)."""
        return self._channels.fileno()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the peer tells of something, or take an event that came already; `TimeoutError`.

        Events do not count, and may be spurious. What the peer tells of is what `data_ready` and `buffer_space` asked
        for, that it connected, and that it closed.
        """
        self._check_open()
        seen = self._doorbell.changes
        if self._await_events(lambda: self._doorbell.changes != seen, deadline_after(timeout)) == _LATE:
            raise TimeoutError(f"domain {self.domid} told of nothing at {self.path} in {timeout} seconds")

    def wait_connected(self, timeout: float | None = None) -> None:
        """As a server: wait until the client has come."""
        self._check_open()
        if self._await_events(lambda: not self._channel.is_awaited, deadline_after(timeout)) == _LATE:
            raise TimeoutError(f"no client came from domain {self.domid} to {self.path} in {timeout} seconds")

    # Messages

    def send(self, data: bytes | bytearray | memoryview, timeout: float | None = None) -> None:
        """Write all of `data` at once, when there is room for it. `ValueError` where the ring is smaller.

        `PeerClosed` where the peer has closed. A `TimeoutError` means that nothing was written.
        """
        view = memoryview(data).cast("B")
        size = len(view)
        channel = self._channel
        with self._writing:
            self._check_open()
            if not channel.is_open:
                raise self._peer_closed()
            if channel.outgoing.space < size:
                if size > self.write_size:
                    raise ValueError(f"a message of {size} bytes is larger than the ring of {self.write_size}: write()")
                self._await_space(size, deadline_after(timeout), timeout)
            channel.write(view)

    def recv(self, size: int, timeout: float | None = None) -> bytes:
        """Read exactly `size` bytes, when they are there. `ValueError` where the ring is smaller.

        `PeerClosed` where the peer has closed and left fewer; `read` still gives those.
        """
        channel = self._channel
        with self._reading:
            self._check_open()
            if channel.incoming.ready < size:
                if size > self.read_size:
                    raise ValueError(f"a message of {size} bytes is larger than the ring of {self.read_size}: read()")
                self._await_data(size, deadline_after(timeout), timeout)
                if channel.incoming.ready < size:
                    raise self._peer_closed()
            return channel.read(size)

    # A stream

    def write(self, data: bytes | bytearray | memoryview, timeout: float | None = None) -> int:
        """Write all of `data`; less only where the time was out, and then how many bytes: at least 1."""
        view = memoryview(data).cast("B")
        size = len(view)
        channel = self._channel
        with self._writing:
            self._check_open()
            if not channel.is_open:
                raise self._peer_closed()
            done = channel.write(view)
            if done < size:
                deadline = deadline_after(timeout)
                while done < size:
                    try:
                        self._await_space(1, deadline, timeout)
                    except TimeoutError:
                        done += channel.write(view[done:])
                        if done == 0:
                            raise
                        return done
                    done += channel.write(view[done:])
            return done

    def read(self, most: int = 65536, timeout: float | None = None) -> bytes:
        """Read what is there, at most `most` bytes, waiting for one at least; b"" where the peer has closed."""
        channel = self._channel
        with self._reading:
            self._check_open()
            data = channel.read(most)
            if not data and most > 0:
                self._await_data(1, deadline_after(timeout), timeout)
                data = channel.read(most)
            return data

    def readinto(self, buffer: bytearray | memoryview, timeout: float | None = None) -> int:
        """As `read`, into a buffer: how many bytes, 0 where the peer has closed."""
        channel = self._channel
        with self._reading:
            self._check_open()
            count = channel.readinto(buffer)
            if not count and len(buffer):
                self._await_data(1, deadline_after(timeout), timeout)
                count = channel.readinto(buffer)
            return count

    # In place

    def peek(self, timeout: float | None = None) -> memoryview:
        """The bytes that are there, in place and read-only, up to the ring's end; at least 1, or the peer has closed.

        The peer can still change them: copy what decides something. Release the view before `close`.
        """
        with self._reading:
            self._check_open()
            view = self._channel.peek()
            if not view:
                view.release()
                self._await_data(1, deadline_after(timeout), timeout)
                view = self._channel.peek()
            return view

    def consume(self, count: int) -> None:
        """Have read the next `count` bytes: the peer may write over them. `ValueError` for more than were there."""
        with self._reading:
            self._check_open()
            self._channel.consume(count)

    def reserve(self, timeout: float | None = None) -> memoryview:
        """Room to write into, in place, up to the ring's end; at least 1 byte. Release the view before `close`."""
        with self._writing:
            self._check_open()
            if not self._channel.is_open:
                raise self._peer_closed()
            view = self._channel.reserve()
            if not view:
                view.release()
                self._await_space(1, deadline_after(timeout), timeout)
                view = self._channel.reserve()
            return view

    def commit(self, count: int) -> None:
        """Have written the next `count` bytes: the peer may read them. `ValueError` for more than were free."""
        with self._writing:
            self._check_open()
            self._channel.commit(count)

    def close(self) -> None:
        """Close this end; the peer reads what was written to the end. A second time does nothing.

        Whoever waits gets `InterfaceClosed`. `BufferError` while views of the rings are alive: then it stays open.
        """
        if self._channel.closed:
            return
        with self._closing:
            self._stopping = True
            try:
                self._doorbell.wake()
                with self._reading, self._writing:
                    self._channel.close()
            finally:
                self._stopping = False
            self._held.close()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        held = getattr(self, "_held", None)
        if held is not None and not self._channel.closed:
            warnings.warn(f"unclosed {self!r}: use close() or a with block", ResourceWarning, source=self, stacklevel=2)
            with contextlib.suppress(BufferError):
                self.close()

    def __repr__(self) -> str:
        role = "server" if self.is_server else "client"
        state = "closed" if self.closed else "open" if self._channel.is_open else "left by the peer"
        return f"<Vchan {role} to domain {self.domid} at {self.path}, {state}>"

    # Waiting

    def _await_data(self, wanted: int, deadline: float | None, timeout: float | None) -> None:
        """Until that many bytes are there, or no more will come."""
        if self._await(self._channel.incoming, wanted, abi.NOTIFY_WRITE, deadline) == _LATE:
            raise TimeoutError(f"domain {self.domid} wrote nothing to {self.path} in {timeout} seconds")

    def _await_space(self, wanted: int, deadline: float | None, timeout: float | None) -> None:
        """Until that many bytes fit; `PeerClosed` where nobody will read any more."""
        outcome = self._await(self._channel.outgoing, wanted, abi.NOTIFY_READ, deadline)
        if outcome == _LATE:
            raise TimeoutError(f"domain {self.domid} read nothing from {self.path} in {timeout} seconds")
        if outcome == _PEER_GONE:
            raise self._peer_closed()

    def _await(self, ring: RingReader | RingWriter, wanted: int, bit: int, deadline: float | None) -> int:
        channel, doorbell = self._channel, self._doorbell
        live = -1 if channel.persists else channel.peer_live
        poll = int(self.poll * 1e9)

        def wait(wakes: int, seconds: float | None) -> int:
            return ring.wait(wanted, doorbell, live, channel.ask, bit, wakes, poll, seconds)

        return self._repeat(wait, deadline)

    def _await_events(self, found: Callable[[], bool], deadline: float | None) -> int:
        """Until an event has come and `found()` holds, or does already."""
        doorbell = self._doorbell

        def wait(wakes: int, seconds: float | None) -> int:
            changes = doorbell.changes
            if found():
                return _READY
            if doorbell.wakes != wakes:
                return _WOKEN
            return (_WOKEN, _LATE, _WOKEN, _SILENT)[doorbell.wait(changes, seconds)]

        return self._repeat(wait, deadline)

    def _repeat(self, wait: Callable[[int, float | None], int], deadline: float | None) -> int:
        """What `wait` returns in the end: it may be woken in between, to see that this end closes or the peer died."""
        peer, doorbell = self._peer, self._doorbell
        left = seconds_until(deadline)
        listening = False
        try:
            while True:
                wakes = doorbell.wakes  # before anything that somebody wakes us for
                if self._stopping or self._channel.closed:
                    raise InterfaceClosed(f"this end of the vchan at {self.path} was closed")
                if peer is None or listening or (left is not None and left <= _PATIENCE):
                    outcome = wait(wakes, left)
                else:
                    outcome = wait(wakes, _PATIENCE)
                if outcome <= _PEER_GONE:
                    return outcome
                if outcome == _SILENT:
                    raise InterfaceUnavailable(errno.EPIPE, f"{self.path}: the machine is gone")
                left = seconds_until(deadline)
                if peer is not None and listening:
                    peer.check()
                if outcome == _LATE and left == 0:
                    return outcome
                if outcome == _LATE and peer is not None and not listening:
                    peer.on_gone(doorbell.wake)  # only xenstore tells of the end of a domain, and that is dear to ask
                    listening = True
        finally:
            if peer is not None and listening:
                peer.discard_on_gone(doorbell.wake)

    def _check_open(self) -> None:
        if self._channel.closed:
            raise InterfaceClosed(f"this end of the vchan at {self.path} is closed")

    def _peer_closed(self) -> PeerClosed:
        return PeerClosed(errno.EPIPE, f"domain {self.domid} has closed the vchan at {self.path}")


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

    `poll` is how many seconds a call looks again and again before it sleeps. `peer` is what tells of the death of the
    other domain; dom0, which xenstore tells, needs none. `domain` is by default what `xengrant.connect()` gives.
    Raises as `Gntshr.share_pages` and `EventChannels.bind_unbound`, `XenStoreError`, `ValueError`.
    """
    checked_domid(domid)
    with ExitStack() as held:
        domain = domain or held.enter_context(connect_domain())
        where = meeting.key_path(domain.domid, domid, path)
        store = held.enter_context(domain.xenstore())
        channels = held.enter_context(domain.evtchn())
        port = held.enter_context(channels.bind_unbound(domid))
        channel = offer(domain, port, read_size, write_size)
        with ExitStack() as undo:
            undo.callback(channel.close)
            channel.persists = persist
            assert channel.keys is not None
            meeting.publish(store, where, domain.domid, domid, channel.keys)
            held.callback(_withdraw, store, where, channel.keys)
            undo.pop_all()
        peer = peer or _default_peer(domain, domid, held)
        return Vchan(channel, channels, port, held.pop_all(), path=where, poll=poll, peer=peer)


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
    Raises `TimeoutError` with what was in the way, `ProtocolError` where the server offers what cannot be,
    `XenStoreError`, `InterfaceUnavailable`.
    """
    checked_domid(domid)
    deadline = deadline_after(timeout)
    with ExitStack() as held:
        domain = domain or held.enter_context(connect_domain())
        where = meeting.key_path(domid, domain.domid, path)
        channels = held.enter_context(domain.evtchn())
        channel, port = _meet(domain, channels, domid, where, deadline, timeout)
        peer = peer or _default_peer(domain, domid, held)
        held.callback(port.close)
        return Vchan(channel, channels, port, held.pop_all(), path=where, poll=poll, peer=peer)


def _meet(
    domain: Domain, channels: EventChannels, domid: int, where: str, deadline: float | None, timeout: float | None
) -> tuple[Channel, Port]:
    failure: Exception | None = None
    with domain.xenstore() as store, store.watch(where) as watch:
        while True:
            found = meeting.published(store, where)
            if found is not None:
                try:
                    return _connect_to(domain, channels, domid, found)
                except (InterfaceUnavailable, ProtocolError):
                    raise
                except GrantError as error:
                    failure = error
            left = seconds_until(deadline)
            if left == 0:
                raise no_server(domid, where, timeout, failure)
            # A port that another client still has comes free, and a page goes, without a word in xenstore.
            pause = left if failure is None else _RETRY if left is None else min(left, _RETRY)
            with contextlib.suppress(TimeoutError):
                watch.wait(pause)


def _connect_to(domain: Domain, channels: EventChannels, domid: int, found: meeting.Keys) -> tuple[Channel, Port]:
    with ExitStack() as undo:
        port = undo.enter_context(channels.bind_interdomain(domid, found.event_channel))
        channel = attach(domain, port, found)
        undo.callback(channel.close)
        channel.connect()
        undo.pop_all()
        return channel, port


def no_server(domid: int, where: str, timeout: float | None, failure: Exception | None) -> TimeoutError:
    """What `connect` raises when its time is out."""
    if failure is None:
        why = f"domain {domid} offers this domain nothing there: start its server, or check path and domid"
    else:
        why = f"what domain {domid} offers there leads nowhere ({failure})"
    return TimeoutError(f"no vchan at {where} in {timeout} seconds: {why}")


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
