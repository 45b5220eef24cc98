"""Vchan: one end of a vchan for programs that wait, a two-way stream of bytes with another domain.

`opening` makes it, on a `channel`, which never waits.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from xengrant._native import Stream
from xengrant.errors import GrantError, InterfaceClosed, InterfaceUnavailable, PeerClosed
from xengrant.forks import abandon_in_child
from xengrant.vchan import keys as meeting
from xengrant.vchan.channel import Channel
from xengrant.waiting import deadline_after, seconds_until

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from xengrant.evtchn import EventChannels, Port
    from xengrant.peer import Peer
    from xengrant.xenstore import XenStore

_open: weakref.WeakSet[Vchan] = weakref.WeakSet()


def _note_open(end: Vchan) -> None:
    """Have `end` closed when the program ends, before the devices that it needs for that."""
    if not _open:
        atexit.unregister(_close_open)
        atexit.register(_close_open)  # now, since what is registered last is called first
    _open.add(end)


def _close_open() -> None:
    for end in list(_open):
        if not end.closed:
            warnings.warn(f"unclosed {end!r}: use close() or a with block", ResourceWarning, source=end, stacklevel=2)
            with contextlib.suppress(BufferError, OSError, GrantError):
                end.close()


__all__ = ["Vchan"]

# What `_native` says of a wait.
_READY, _PEER_GONE, _LATE, _WOKEN, _SILENT = range(5)
_AFTER_EVENTS = {0: _WOKEN, 1: _LATE, 2: _WOKEN, 3: _SILENT}

_PATIENCE = 1.0  # seconds that one wait lasts, or short ones go on, before the peer's domain is asked after


class Vchan(Stream):
    """One end of a vchan.

    `send` and `recv` move messages whole, `write`, `writelines`, `fill`, `read` and `readinto` a stream; `reserve` with
    `commit` and `peek` with `consume` do so in place. Each waits at most `timeout` seconds, for ever without one, and
    then raises `TimeoutError`; 0 never waits. What the peer wrote before it closed is read to the end, then `read`
    gives b"". All may raise `ProtocolError` where the peer's indices cannot be, `PeerClosed` where its domain is gone,
    and `InterfaceClosed` where this end is closed meanwhile. `path` is where its server's keys stand in xenstore.

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
        peer: Peer | None,
        store: XenStore | None = None,
    ) -> None:
        super().__init__(channel.incoming, channel.outgoing)
        self.path = path
        self._channel = channel
        self._incoming = channel.incoming
        self._outgoing = channel.outgoing
        self._doorbell = channel.doorbell
        self._channels = channels
        self._port = port
        self._held = held
        self._peer = peer
        if peer is not None:
            self._doorbell.patience = _PATIENCE
        self._store = store  # a server's, where its keys stand
        self._late_since: float | None = None  # when a wait was in vain for the first time
        self._finished = False
        self._why_ended = "closed"
        self._closing = threading.RLock()
        _note_open(self)
        abandon_in_child(self)

    def _abandon(self) -> None:
        self._closing = threading.RLock()
        self._ended, self._why_ended = True, "the parent process's"

    @property
    def domid(self) -> int:
        """The peer's domain."""
        return self._port.remote_domid

    @property
    def is_server(self) -> bool:
        """Whether this end made the rings: by `serve`, not `connect`."""
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
        return self._incoming.ready

    def buffer_space(self) -> int:
        """Bytes that can be written now. Where there are none the peer tells when it reads, which `fileno` shows."""
        self._check_open()
        self._channel.has_space(1)
        return self._outgoing.space

    def fileno(self) -> int:
        """Readable when the peer told of something: call `wait(0)`, then look (libxenvchan_fd_for_select)."""
        self._check_open()
        return self._channels.fileno()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the peer tells of something, or take an event that came already; `TimeoutError`.

        Events do not count, and may be spurious. What the peer tells of is what `data_ready` and `buffer_space` asked
        for, that it connected, and that it closed.
        """
        self._check_open()
        seen = self._doorbell.events
        late = f"domain {self.domid} told of nothing at"
        self._await_events(lambda: self._doorbell.events != seen, deadline_after(timeout), late)

    def wait_connected(self, timeout: float | None = None) -> None:
        """As a server: wait until the client has come."""
        self._check_open()
        late = f"no client came from domain {self.domid} to"
        self._await_events(lambda: not self._channel.is_awaited, deadline_after(timeout), late)

    def wait_drained(self, timeout: float | None = None) -> None:
        """Wait until the peer has read all that was written; `PeerClosed` where it closed before.

        `close` needs no such wait to keep what was written readable, but some programs drop what they have not read yet
        when they see the other end close (Xen's vchan-socket-proxy does).
        """
        size = self.write_size
        deadline = deadline_after(timeout)
        with self._outgoing.turn(timeout) as ring:
            self._check_open()
            late = f"domain {self.domid} has not read all from"
            self._await_events(lambda: self._channel.has_space(size), deadline, late)
            if ring.space < size:
                raise self._peer_closed()

    def hide(self) -> None:
        """As a server whose client has come: let no other find the way here. `XenStoreError`.

        A client that goes and another that comes look like one to a server that does not run in between, and the
        second's bytes go where the first's went. The path itself stays until `close`.
        """
        self._check_open()
        if self._store is None or self._channel.keys is None:
            raise ValueError("only a server has keys to hide")
        meeting.hide(self._store, self.path, self._channel.keys)

    # In place

    def peek(self, timeout: float | None = None) -> memoryview:
        """The bytes that are there, in place and read-only, up to the ring's end; none where the peer has closed.

        The peer can still change them: copy what decides something. Release the view before `close`.
        """
        deadline = deadline_after(timeout)
        with self._incoming.turn(timeout) as ring:
            self._check_open()
            outcome = ring.wait(1, seconds_until(deadline))
            if outcome != _READY:
                self._watch(lambda left: ring.wait(1, left), outcome, deadline, self._wrote_nothing)
            return self._channel.peek()

    def consume(self, count: int) -> None:
        """Have read the next `count` bytes: the peer may write over them. `ValueError` for more than were there.

        Another thread that reads is waited for.
        """
        self._check_open()
        with self._incoming.turn(None) as ring:
            ring.consume(count)

    def reserve(self, timeout: float | None = None) -> memoryview:
        """Room to write into, in place, up to the ring's end; at least 1 byte. Release the view before `close`.

        `PeerClosed` where the peer has closed.
        """
        deadline = deadline_after(timeout)
        with self._outgoing.turn(timeout) as ring:
            self._check_open()
            outcome = ring.wait(1, seconds_until(deadline))
            if outcome != _READY:
                late = f"domain {self.domid} read nothing from"
                self._watch(lambda left: ring.wait(1, left), outcome, deadline, late)
            if not self._channel.is_open:
                raise self._peer_closed()
            return self._channel.reserve()

    def commit(self, count: int) -> None:
        """Have written the next `count` bytes: the peer may read them. `ValueError` for more than were free.

        Another thread that writes is waited for.
        """
        self._check_open()
        with self._outgoing.turn(None) as ring:
            ring.commit(count)

    def close(self) -> None:
        """Close this end; the peer reads what was written to the end. A second time does nothing.

        Whoever waits gets `InterfaceClosed`. `BufferError` while views of the rings are alive: then it stays open.
        """
        if self._finished:
            return
        with self._closing:
            try:
                if not self._channel.closed:
                    self._stop()
            finally:
                if self._channel.closed:
                    self._finish()

    def _stop(self) -> None:
        """Close the channel, once nobody uses it any more."""
        self._ended = True
        try:
            self._doorbell.stop(True)  # who waits, and who waits for that one's turn, sees that it has ended
            with self._incoming.turn(None), self._outgoing.turn(None):
                self._channel.close()
        finally:
            if not self._channel.closed:
                self._ended = False
                self._doorbell.stop(False)

    def _finish(self) -> None:
        try:
            self._doorbell.close()
        finally:
            self._held.close()
            self._finished = True

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self, *, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if is_finalizing():  # _close_open was here before, while there was something to close it with
            return
        held = getattr(self, "_held", None)
        if held is not None and not self._channel.closed:
            warnings.warn(f"unclosed {self!r}: use close() or a with block", ResourceWarning, source=self, stacklevel=2)
            with contextlib.suppress(BufferError):
                self.close()

    def __repr__(self) -> str:
        role = "server" if self.is_server else "client"
        state = "closed" if self.closed else "open" if self._channel.is_open else "left by the peer"
        return f"<Vchan {role} to domain {self.domid} at {self.path}, {state}>"

    # Waiting. `_native.Stream` does it, in one call where nothing comes between; else these go on.

    def _send_on(self, data: Buffer, whole: bool, deadline: float | None, progress: tuple[int, int, int]) -> int:
        def send(done: int, left: float | None) -> int | tuple[int, int]:
            return self._outgoing.send(data, done, whole, left)

        done, outcome = self._move_on(send, deadline, progress, f"domain {self.domid} read nothing from")
        if outcome == _PEER_GONE:
            raise self._peer_closed()
        return done

    def _receive_on(self, most: int, whole: bool, deadline: float | None, outcome: int) -> bytes:
        data = b""

        def receive(left: float | None) -> int:
            nonlocal data
            result = self._incoming.receive(most, whole, left)
            if isinstance(result, int):
                return result
            data = result
            return _READY

        if self._watch(receive, outcome, deadline, self._wrote_nothing) == _PEER_GONE and whole:
            raise self._peer_closed()
        return data

    def _receive_into_on(
        self, buffer: Buffer, full: bool, deadline: float | None, progress: tuple[int, int, int]
    ) -> int:
        def receive(done: int, left: float | None) -> int | tuple[int, int]:
            return self._incoming.receive_into(buffer, done, full, left)

        return self._move_on(receive, deadline, progress, self._wrote_nothing)[0]

    def _move_on(
        self,
        move: Callable[[int, float | None], int | tuple[int, int]],
        deadline: float | None,
        progress: tuple[int, int, int],
        late: str,
    ) -> tuple[int, int]:
        """Move what `progress` left: how many bytes were moved in all, and the outcome.

        `progress` is how many were moved, the outcome, and how many the same call moved of other buffers before. The
        time is out only where none were.
        """
        done, outcome, earlier = progress

        def more(left: float | None) -> int:
            nonlocal done
            result = move(done, left)
            count, how = (result, _READY) if isinstance(result, int) else result
            done += count
            return how

        outcome = self._wait_on(more, outcome, deadline)
        if outcome == _LATE and done + earlier == 0:
            raise self._time_is_out(late)
        return done, outcome

    @property
    def _wrote_nothing(self) -> str:
        return f"domain {self.domid} wrote nothing to"

    def _await_events(self, found: Callable[[], bool], deadline: float | None, late: str) -> None:
        """Until `found()` holds, looked at after each event."""
        doorbell = self._doorbell

        def wait(left: float | None) -> int:
            changes = doorbell.changes
            if found():
                return _READY
            if self._ended:  # what ends it changes this first, and rings then: by now nobody may ring any more
                return _WOKEN
            waited = doorbell.wait(changes, left)
            return _READY if found() else _AFTER_EVENTS[waited]

        self._watch(wait, wait(seconds_until(deadline)), deadline, late)

    def _watch(self, wait: Callable[[float | None], int], outcome: int, deadline: float | None, late: str) -> int:
        """As `_wait_on`, but late is a `TimeoutError`: `late` says what did not happen, before the path."""
        outcome = self._wait_on(wait, outcome, deadline)
        if outcome == _LATE:
            raise self._time_is_out(late)
        return outcome

    def _time_is_out(self, late: str) -> TimeoutError:
        return TimeoutError(f"{late} {self.path} in time")

    def _wait_on(self, wait: Callable[[float | None], int], outcome: int, deadline: float | None) -> int:
        """Wait while this end is open and the other domain alive, until `_READY`, `_PEER_GONE`, or `_LATE`."""
        peer, doorbell = self._peer, self._doorbell
        listening = False
        try:
            while outcome > _PEER_GONE:
                self._check_open()
                if outcome == _SILENT:
                    raise InterfaceUnavailable(errno.EPIPE, f"{self.path}: the machine is gone")
                left = seconds_until(deadline)
                if outcome == _LATE and peer is not None and not listening and self._is_silent_for_long(left):
                    peer.on_gone(doorbell.wake)  # only xenstore tells of the end of a domain, and that is dear to ask
                    listening = True
                if peer is not None and listening:
                    try:
                        peer.check()
                    except GrantError:
                        outcome = wait(0.0)  # what came before it went is still there to be had, without an event
                        if outcome > _PEER_GONE:
                            raise
                        return outcome
                if left == 0:
                    return _LATE
                outcome = wait(left)
            return outcome
        finally:
            if peer is not None and listening:
                peer.discard_on_gone(doorbell.wake)

    def _is_silent_for_long(self, left: float | None) -> bool:
        """Whether a wait has lasted for `_PATIENCE`, or waits that were shorter have been in vain since so long ago."""
        now = time.monotonic()
        if self._late_since is None:
            self._late_since = now
        return left != 0 or now - self._late_since >= _PATIENCE

    def _check_open(self) -> None:
        if self._ended:
            raise InterfaceClosed(f"this end of the vchan at {self.path} is {self._why_ended}")

    def _peer_closed(self) -> PeerClosed:
        return PeerClosed(errno.EPIPE, f"domain {self.domid} has closed the vchan at {self.path}")
