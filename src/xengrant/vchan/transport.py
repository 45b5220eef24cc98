"""asyncio's transport over a vchan: what any protocol of asyncio, and any library built on those, talks through.

Made by `streams` for a client and by `server` for each client of one. It calls `channel`, which never waits, and is
called by its port when the peer told of something. Events do not count and come for no reason, so each has it look at
everything; what it finds nothing of it asks to be told of, and then looks once more.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import warnings
from asyncio import constants, transports
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from xengrant.errors import InterfaceUnavailable, PeerClosed

if TYPE_CHECKING:
    from xengrant.evtchn import AsyncPort
    from xengrant.peer import AsyncPeer
    from xengrant.vchan.channel import Channel

__all__ = ["VchanTransport"]

_log = logging.getLogger("xengrant.vchan")

_AT_ONCE = 256 * 1024  # bytes each way for each turn of the loop, which others want too


class VchanTransport(transports._FlowControlMixin):
    """One end of a vchan, as an `asyncio.Transport`.

    What the peer wrote before it closed is delivered first; then come `eof_received` and `connection_lost(None)`. A
    vchan has no half-closed state: there is no `write_eof`, and what `eof_received` returns changes nothing. The error
    of `connection_lost` is `PeerClosed` where the peer's domain died, or closed before all that was written here lay in
    the ring; `ProtocolError` where its indices cannot be; `InterfaceUnavailable` where events come no more.

    Extra information: ``domid`` of the peer, ``path`` in xenstore, ``vchan_role`` ("server" or "client") and
    ``peername``. It owns the channel, and what is in `held`, which it closes last.

    Threads: those of its event loop only.
    """

    # asyncio's loops look for these: TLS needs nothing that this lacks, and files are read and written.
    _start_tls_compatible = True
    _sendfile_compatible = constants._SendfileMode.FALLBACK

    _released = True  # so that one whose making failed says nothing when it goes

    # Of the base class, which its type stub does not name.
    _loop: asyncio.AbstractEventLoop
    _maybe_pause_protocol: Callable[[], None]
    _maybe_resume_protocol: Callable[[], None]

    def __init__(
        self,
        channel: Channel,
        port: AsyncPort,
        held: ExitStack,
        protocol: asyncio.BaseProtocol,
        *,
        path: str,
        peer: AsyncPeer | None,
        on_end: Callable[[VchanTransport], None] | None = None,
    ) -> None:
        role = "server" if channel.is_server else "client"
        peername = f"domain {port.remote_domid}"
        extra = {"domid": port.remote_domid, "path": path, "vchan_role": role, "peername": peername}
        loop = asyncio.get_running_loop()
        super().__init__(extra, loop)
        self._channel = channel
        self._port = port
        self._held = held
        self._released = False
        self._owner = os.getpid()  # whose it is: a forked child's copy is nobody's
        self._peer = peer
        self._on_end = on_end
        self._unsent: deque[memoryview] = deque()
        self._unsent_size = 0
        self._paused = False
        self._closing = False
        self._ending = False  # connection_lost is about to be called, or was
        self._writes_fail: Exception | None = None  # nobody will read what is written, though there may be some to read
        self._in_vain = 0  # writes since then
        self._next: asyncio.Handle | None = None
        self.set_protocol(protocol)
        loop.call_soon(self._call, "connection_made", self)
        loop.call_soon(self._start)

    # What a transport knows

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol: Any = protocol
        self._is_buffered = isinstance(protocol, asyncio.BufferedProtocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol

    def is_closing(self) -> bool:
        return self._closing

    def is_reading(self) -> bool:
        return not self._paused and not self._closing

    def can_write_eof(self) -> bool:
        return False

    def write_eof(self) -> None:
        raise NotImplementedError("a vchan has no half-closed state: close() is the only end")

    def get_write_buffer_size(self) -> int:
        return self._unsent_size

    def __repr__(self) -> str:
        state = "closed" if self._released else "closing" if self._closing else "open"
        role, domid, path = (self.get_extra_info(name) for name in ("vchan_role", "domid", "path"))
        return f"<{type(self).__name__} {role} to domain {domid} at {path}, {state}, {self._unsent_size} bytes unsent>"

    def __del__(self) -> None:
        if not self._released and os.getpid() == self._owner:
            warnings.warn(f"unclosed transport {self!r}", ResourceWarning, source=self, stacklevel=2)
            with contextlib.suppress(Exception):
                self._release()

    # Reading

    def pause_reading(self) -> None:
        if not self._closing and not self._paused:
            self._paused = True
            self._let_writer_go_on()

    def resume_reading(self) -> None:
        if not self._closing and self._paused:
            self._paused = False
            self._look_soon()

    def _receive(self) -> None:
        """Deliver one piece, and see to the next."""
        failure = self._failure()  # asked first: what was written before is in the ring by now
        was_open = self._channel.is_open
        size = self._deliver_in_place() if self._is_buffered else self._deliver()
        if not self.is_reading():
            return
        if size == 0 and not was_open:
            self._end_of_file()
        elif self._channel.has_data(1):
            self._look_soon()
        elif failure is not None:
            self._force_close(failure)

    def _deliver(self) -> int:
        data = self._channel.incoming.read(_AT_ONCE)
        if data:
            self._call("data_received", data)
        return len(data)

    def _deliver_in_place(self) -> int:
        if not self._channel.incoming.ready:
            return 0
        buffer = self._call("get_buffer", -1)
        if self._closing:  # it failed, or closed
            return 0
        try:
            with memoryview(buffer) as room:
                if room.readonly or not room.c_contiguous:
                    raise TypeError("get_buffer() returned a buffer that cannot be read into")
                if room.nbytes == 0:
                    raise RuntimeError("get_buffer() returned an empty buffer")
        except Exception as error:
            self._fatal_error(error, "get_buffer")
            return 0
        size = self._channel.incoming.readinto(buffer)
        if size:
            self._call("buffer_updated", size)
        return size

    def _end_of_file(self) -> None:
        failure = self._writes_fail
        self._call("eof_received")
        self._force_close(failure)

    # Writing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")  # TypeError for what has no bytes
        if not len(view):
            return
        if self._ending or self._writes_fail is not None:
            self._write_in_vain()
            return
        if not self._unsent:
            sent = self._try(self._write_to_ring, view)
            if sent is None or sent == len(view):
                return
            view = view[sent:]
            self._look_soon()  # not at once: the peer may well make room meanwhile
        self._unsent.append(view if type(data) is bytes else memoryview(bytes(view)))
        self._unsent_size += len(view)
        self._maybe_pause_protocol()

    def _write_to_ring(self, view: memoryview) -> int | None:
        """How many bytes; None where nobody will read any more."""
        if self._channel.is_open:
            return self._channel.outgoing.write(view)
        self._fail_writes(PeerClosed(errno.EPIPE, f"domain {self._port.remote_domid} has closed the vchan"))
        return None

    def _send(self) -> None:
        """Write what is there to be written, and see to the rest."""
        failure = self._failure()
        if failure is not None:
            self._fail_writes(failure)
            return
        budget = _AT_ONCE
        while self._unsent and budget > 0:
            sent = self._write_to_ring(self._unsent[0][:budget])
            if sent is None:
                return
            budget -= sent
            self._unsent_size -= sent
            if sent == len(self._unsent[0]):
                self._unsent.popleft()
            elif sent:
                self._unsent[0] = self._unsent[0][sent:]
            elif not self._channel.has_space(1):
                break  # the peer tells when it reads
        if self._unsent and budget <= 0:
            self._look_soon()
        self._maybe_resume_protocol()  # which may write more
        if self._closing and not self._unsent:
            self._force_close(None)

    def _fail_writes(self, failure: Exception) -> None:
        """Nobody will read what is written. There may still be something to read, which comes first."""
        self._writes_fail = failure
        self._drop_unsent()
        if self._closing:
            self._force_close(failure)
        else:
            self._let_writer_go_on()
            self._look_soon()

    def _let_writer_go_on(self) -> None:
        """A writer that waits, and so does not read, must not wait for an end that comes when all is read."""
        if self._writes_fail is not None and self._paused:
            self._maybe_resume_protocol()

    def _write_in_vain(self) -> None:
        self._in_vain += 1
        if self._in_vain >= constants.LOG_THRESHOLD_FOR_CONNLOST_WRITES:
            _log.warning("%r: what is written goes nowhere", self)
        if self._paused:
            self._force_close(self._writes_fail)

    def _drop_unsent(self) -> None:
        self._unsent.clear()
        self._unsent_size = 0

    # The end

    def close(self) -> None:
        """Write what was to be written, then `connection_lost(None)`. Nothing is delivered any more."""
        if not self._closing:
            self._closing = True
            if not self._unsent:
                self._force_close(self._writes_fail)

    def abort(self) -> None:
        """`connection_lost(None)` without writing what was to be written."""
        self._force_close(None)

    def _force_close(self, error: BaseException | None) -> None:  # by this name asyncio's TLS calls it too
        if not self._ending:
            self._closing = self._ending = True
            self._drop_unsent()
            self._loop.call_soon(self._end, error)

    def _end(self, error: BaseException | None) -> None:
        try:
            self._protocol.connection_lost(error)
        finally:
            try:
                self._release()
            finally:
                if self._on_end is not None:
                    self._on_end(self)

    def _release(self) -> None:
        self._released = True
        self._port.set_listener(None)
        if self._peer is not None:
            self._peer.discard_on_gone(self._look)
        with self._held, contextlib.suppress(InterfaceUnavailable):  # an embedded machine's end takes all along
            self._channel.close()

    # What happens

    def _start(self) -> None:
        if not self._ending:
            if self._peer is not None:
                self._try(self._peer.on_gone, self._look)
            self._port.set_listener(self._look)
            self._look()

    def _look_soon(self) -> None:
        if self._next is None:
            self._next = self._loop.call_soon(self._look_now)

    def _look_now(self) -> None:
        self._next = None
        self._look()

    def _look(self) -> None:
        """Do what can be done now."""
        if self._unsent and not self._ending:
            self._try(self._send)
        if self.is_reading():
            self._try(self._receive)

    def _failure(self) -> Exception | None:
        """Why nothing will be heard of the peer any more."""
        try:
            self._port.check()
            if self._peer is not None:
                self._peer.check()
        except Exception as failure:
            return failure
        return None

    def _try(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call what uses the rings; if it fails, so does the connection."""
        try:
            return function(*args)
        except Exception as error:
            self._force_close(error)
            return None

    def _call(self, name: str, *args: Any) -> Any:
        """Call the protocol; its mistakes are its own."""
        try:
            return getattr(self._protocol, name)(*args)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._fatal_error(error, name)
            return None

    def _fatal_error(self, error: BaseException, name: str) -> None:
        message = f"Fatal error: protocol.{name}() call failed."
        context = {"message": message, "exception": error, "transport": self, "protocol": self._protocol}
        self._loop.call_exception_handler(context)
        self._force_close(error)
