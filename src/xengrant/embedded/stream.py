"""One accepted socket in the machine's loop: bytes in as they come, bytes and descriptors out as they go.

`Stream` never waits. While output is pending it reads nothing, so a client that does not read its answers cannot make
the machine grow. `connection.py` and `xenbus.py` build on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from xengrant.devices import wire
from xengrant.embedded.descriptors import Descriptors

_log = logging.getLogger("xengrant.embedded")

_RECEIVE = 64 << 10
# The kernel holds back descriptors beyond the user's limit until some were received (unix(7), ETOOMANYREFS).
_RETRY = 0.001


class Handler(Protocol):
    """Whose stream it is. None of its methods may raise."""

    def received(self, data: bytes) -> None: ...

    def drained(self) -> None:
        """The client has taken all output, was unpaused, or has its turn again: go on with what had arrived."""

    def ended(self) -> None:
        """The stream is over; called once."""


class _Nobody:
    """The handler of a stream that is over."""

    def received(self, data: bytes) -> None: ...
    def drained(self) -> None: ...
    def ended(self) -> None: ...


_NOBODY = _Nobody()


class Stream:
    """A socket. `paused` stops reading, end of stream included. `descriptors` is the domain's whose stream it is.

    `send` never ends the stream at once, since its caller may be in the middle of telling many.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, handler: Handler) -> None:
        self._loop = loop
        self._sock = sock
        self._handler: Handler = handler
        self._out: deque[tuple[memoryview, list[int]]] = deque()  # bytes, and descriptors (ours) for the first of them
        self._out_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._paused = False
        self._waiting = False
        self._reading = False
        self._writing = False
        self.closed = False
        self.descriptors: Descriptors | None = None
        sock.setblocking(False)
        self._update()

    @property
    def pending(self) -> int:
        """Bytes that the client has not taken yet."""
        return self._out_bytes

    @property
    def paused(self) -> bool:
        return self._paused

    @paused.setter
    def paused(self, paused: bool) -> None:
        self._paused = paused
        self._update()
        if not paused and not self.closed:
            self._handler.drained()

    def give_way(self) -> None:
        """Let the others have their turns, and be told `drained` then; nothing more is read before."""
        self._waiting = True
        self._update()
        self._loop.call_soon(self._go_on)

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send now what the socket takes, and the rest when it can. The descriptors may be closed on return.

        Where there are no descriptors left to keep the rest with, the stream ends: half an answer is none.
        """
        if self.closed:
            return
        pieces = [(memoryview(data), list(batch)) for batch in wire.batches(fds)] or [(memoryview(data), [])]
        pieces[1:] = [(memoryview(b"\0"), batch) for _, batch in pieces[1:]]
        while pieces and not self._out:
            sent = self._try_send(*pieces[0])
            if sent < 0:
                break
            rest = pieces[0][0][sent:]
            pieces[:1] = [(rest, [])] if rest else []
        for rest, batch in pieces:
            kept: list[int] = []
            self._out.append((rest, kept))  # closed with the stream, whatever comes
            self._out_bytes += len(rest)
            try:
                for fd in batch:
                    self._keep(fd, kept)
            except OSError as error:
                _log.warning("a client is dropped: no descriptor left to answer it: %s", error.strerror)
                self._loop.call_soon(self.close)
                break
        self._update()

    def close(self) -> None:
        """End the stream, now."""
        if not self.closed:
            self._shut()
            handler, self._handler = self._handler, _NOBODY  # which knows us: no cycle may keep its memory
            handler.ended()

    def abandon(self) -> None:
        """In a forked child: close the descriptor only."""
        self.closed = True
        self._sock.close()

    def _shut(self) -> None:
        self.closed = True
        self._update()
        if self._timer is not None:
            self._timer.cancel()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)  # also for a child that was just forked and has the descriptor still
        self._sock.close()
        for _, fds in self._out:
            self._drop(fds)
        self._out.clear()
        self._out_bytes = 0

    def _update(self) -> None:
        """Watch for what we can use now."""
        reading = not (self.closed or self._paused or self._waiting or self._out)
        writing = not self.closed and bool(self._out) and self._timer is None
        if reading != self._reading:
            self._reading = reading
            if reading:
                self._loop.add_reader(self._sock, self._readable)
            else:
                self._loop.remove_reader(self._sock)
        if writing != self._writing:
            self._writing = writing
            if writing:
                self._loop.add_writer(self._sock, self._writable)
            else:
                self._loop.remove_writer(self._sock)

    def _readable(self) -> None:
        try:
            data = self._sock.recv(_RECEIVE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if data:
            self._handler.received(data)
        else:
            self.close()

    def _writable(self) -> None:
        while self._out:
            data, fds = self._out[0]
            sent = self._try_send(data, fds)
            if sent < 0:
                break
            self._drop(fds)
            self._out_bytes -= sent
            if sent == len(data):
                self._out.popleft()
            else:
                self._out[0] = (data[sent:], [])
        self._update()
        if not self._out and not self.closed:
            self._handler.drained()

    def _try_send(self, data: memoryview, fds: Sequence[int]) -> int:
        """Bytes sent, or -1 where the socket takes none now."""
        try:
            return self._sock.sendmsg([data], wire.rights(fds))
        except (BlockingIOError, InterruptedError):
            return -1
        except OSError as error:
            if error.errno == errno.ETOOMANYREFS:
                self._timer = self._loop.call_later(_RETRY, self._retry)
                return -1
            self._loop.call_soon(self.close)
            return -1

    def _retry(self) -> None:
        self._timer = None
        self._writable()

    def _go_on(self) -> None:
        self._waiting = False
        self._update()
        if not self.closed:
            self._handler.drained()

    def _keep(self, fd: int, kept: list[int]) -> None:
        """A descriptor of our own, into `kept`."""
        if self.descriptors is not None:
            self.descriptors.take()
        try:
            kept.append(os.dup(fd))
        except OSError:
            if self.descriptors is not None:
                self.descriptors.give_back()
            raise

    def _drop(self, kept: Sequence[int]) -> None:
        for fd in kept:
            with contextlib.suppress(OSError):
                os.close(fd)
        if self.descriptors is not None:
            self.descriptors.give_back(len(kept))
