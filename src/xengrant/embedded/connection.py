"""A device's connection to the machine: requests in, replies out (`devices/wire.py`).

The server makes a `Connection` for each accepted socket. HELLO says which file it is; from then on it is that file, or,
for xenbus, a connection to xenstore. Whatever a client sends, the worst that happens is that it is dropped.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import struct
import time
from typing import Protocol

from xengrant.abi import evtchn, gntalloc, gntdev
from xengrant.devices import wire
from xengrant.devices.wire import Kind, MalformedError
from xengrant.embedded.domain import Domain
from xengrant.embedded.evtchn import Evtchn
from xengrant.embedded.files import MAX_MAPPINGS, Answer, File, fault
from xengrant.embedded.gntalloc import Gntalloc
from xengrant.embedded.gntdev import Gntdev
from xengrant.embedded.hypervisor import Hypervisor
from xengrant.embedded.kernel import Kernel
from xengrant.embedded.privcmd import Privcmd
from xengrant.embedded.stream import Stream
from xengrant.embedded.xenbus import Xenbus

_log = logging.getLogger("xengrant.embedded")

_FILES: dict[str, type[File]] = {"gntalloc": Gntalloc, "gntdev": Gntdev, "evtchn": Evtchn, "privcmd": Privcmd}
_FILES_OF_KERNELS: dict[str, type[File]] = {"kernel": Kernel, **_FILES}

_GIVES_BACK = {gntalloc.DEALLOC_GREF, gntdev.UNMAP_GRANT_REF, evtchn.UNBIND}

# A client that connects and says nothing is dropped after so many seconds.
_HELLO_TIMEOUT = 10.0
# So is one whose message is not complete after so many seconds.
_MESSAGE_TIMEOUT = 10.0

# Messages longer than this, half sent or not taken yet, may hold so much of the machine's memory for one domain.
_SHORT = 64 << 10
_MAX_HELD = 64 << 20
# Bytes of a MUNMAP: a file's mappings, and as many cookies again whose mmap failed or never came.
_MAX_MUNMAP = 2 * MAX_MAPPINGS * len(wire.pack_cookie(0))
_ROOM = {Kind.HELLO: wire.MAX_HELLO, Kind.CONTROL: wire.MAX_CONTROL, Kind.MUNMAP: _MAX_MUNMAP}
# Seconds that one connection is served before the others have their turns.
_TURN = 0.005

# Connections of devices, in all and of one domain; a control connection may come on top.
MAX_CONNECTIONS = 1024
MAX_OF_DOMAIN = 512


class Server(Protocol):
    """What a connection needs of the machine around it."""

    hypervisor: Hypervisor

    def count(self, domain: Domain | None = None) -> int: ...
    def held(self, domain: Domain) -> int: ...
    def control(self, request: bytes) -> bytes: ...
    def open_xenbus(self, domain: Domain, stream: Stream) -> Xenbus: ...
    def forget(self, connection: Connection) -> None: ...


class Connection:
    """One client. `domain` is None until HELLO, and for a control connection."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, server: Server) -> None:
        self._server = server
        self._inbox = bytearray()
        self._coming = 0  # bytes of the long message that is coming
        self._unwanted = 0  # bytes still to come of one that was refused
        self._file: File | None = None
        self._xenbus: Xenbus | None = None
        self._control = False
        self.device = "?"
        self.domain: Domain | None = None
        self._process, _, _ = credentials(sock)
        self.stream = Stream(loop, sock, self)
        self._loop = loop
        self._hello_timer = loop.call_later(_HELLO_TIMEOUT, self.stream.close)
        self._message_timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Connection {self.device} of domain {self.domain.domid if self.domain else '-'}>"

    def ended(self) -> None:
        """The client is gone, which is the end of its file."""
        self._hello_timer.cancel()
        self._stop_message_timer()
        self._inbox.clear()
        file, self._file = self._file, None
        if file is not None and not file.domain.dying:
            file.release()
        if self._xenbus is not None:
            self._xenbus.ended()
        if self.domain is not None:
            self.domain.descriptors.give_back()
        self._server.forget(self)

    @property
    def held(self) -> int:
        """Bytes of the machine's memory that its long messages have, or are to have."""
        return self._coming + self.stream.pending

    def drained(self) -> None:
        if self._xenbus is not None:
            self._xenbus.drained()
        else:
            self.received(b"")

    def received(self, data: bytes) -> None:
        if self._xenbus is not None:
            self._xenbus.received(data)
            return
        self._inbox += data
        turn_ends = time.monotonic() + _TURN
        try:
            while not self.stream.closed and not self.stream.pending and not self.stream.paused:
                message = self._next_message()
                if message is None:
                    self._time_message()
                    return
                self._stop_message_timer()
                self._serve(*message)
                if self._xenbus is not None:  # what came behind its HELLO is xenstore's
                    self._xenbus.received(bytes(self._inbox))
                    return
                if self._inbox and time.monotonic() >= turn_ends:
                    self.stream.give_way()
                    return
        except MalformedError as error:
            _log.info("%r dropped: %s", self, error)
            self.stream.close()
        except Exception:
            _log.exception("%r dropped: the machine failed", self)
            self.stream.close()

    def _time_message(self) -> None:
        """From its first bytes on, until it is whole."""
        if not self._inbox and not self._unwanted:
            self._stop_message_timer()
        elif self._message_timer is None:
            self._message_timer = self._loop.call_later(_MESSAGE_TIMEOUT, self._message_is_late)

    def _stop_message_timer(self) -> None:
        if self._message_timer is not None:
            self._message_timer.cancel()
            self._message_timer = None

    def _message_is_late(self) -> None:
        self._message_timer = None
        if self.stream.paused:  # the rest may have come, and nobody looks
            self._time_message()
            return
        _log.info("%r dropped: half a message for %g seconds", self, _MESSAGE_TIMEOUT)
        self.stream.close()

    def _next_message(self) -> tuple[Kind, bytes] | None:
        if self._unwanted:
            passed = min(self._unwanted, len(self._inbox))
            del self._inbox[:passed]
            self._unwanted -= passed
        head = wire.REQUEST.size
        if len(self._inbox) < head:
            return None
        length, kind = wire.parse_request(self._inbox)
        if length > self._room(kind):
            raise MalformedError(f"{kind.name} of {length} bytes")
        if len(self._inbox) < head + length:
            if length > _SHORT and not self._coming:
                self._expect(length)
            return None
        self._coming = 0
        body = bytes(self._inbox[head : head + length])
        del self._inbox[: head + length]
        return kind, body

    def _expect(self, length: int) -> None:
        """A long message is coming: make room for it, or refuse it and let its bytes pass by."""
        assert self.domain is not None  # who has not said HELLO, and control, have no room for one
        if self._server.held(self.domain) + length > _MAX_HELD:
            self._unwanted = wire.REQUEST.size + length - len(self._inbox)
            self._inbox.clear()
            self._refuse(_too_much(self.domain, length))
        else:
            self._coming = length

    def _room(self, kind: Kind) -> int:
        """Check that this kind of request may come now, and return how long it may be."""
        if (kind is Kind.HELLO) != (self.device == "?"):
            raise MalformedError(f"{kind.name} out of order")
        if (kind is Kind.CONTROL) != self._control:
            raise MalformedError(f"{kind.name} on {self.device}")
        return _ROOM.get(kind, wire.MAX_BODY)

    def _serve(self, kind: Kind, body: bytes) -> None:
        try:
            if kind is Kind.HELLO:
                self._hello(body)
            elif kind is Kind.CONTROL:
                self.stream.send(wire.pack_reply(0, self._server.control(body)))
            else:
                self._call(kind, body)
        except OSError as error:
            self._refuse(error)

    def _refuse(self, error: OSError) -> None:
        text = str(error.args[1] if len(error.args) > 1 else error)
        self.stream.send(wire.pack_reply(-(error.errno or errno.EIO), text.encode(errors="replace")))

    def _hello(self, body: bytes) -> None:
        hello = wire.unpack_hello(body)
        if hello.version != wire.VERSION:
            raise fault(errno.EPROTO, f"this machine speaks version {wire.VERSION}, the client {hello.version}")
        if hello.device not in wire.DEVICES:
            raise fault(errno.ENOENT, f"no device {hello.device!r}")
        if hello.device == "control":
            self._control = True
        else:
            if self._server.count() >= MAX_CONNECTIONS:
                raise fault(errno.EMFILE, f"the machine serves {MAX_CONNECTIONS} connections already")
            domain = self._attach(hello)
            if self._server.count(domain) >= MAX_OF_DOMAIN:
                raise fault(errno.EMFILE, f"domain {domain.domid} has {MAX_OF_DOMAIN} connections already")
            domain.descriptors.take()
            self.domain = domain
            self.stream.descriptors = domain.descriptors
        self._hello_timer.cancel()
        self.device = hello.device
        if self.domain is not None and self.domain.paused:
            self.stream.paused = True
        if self.domain is not None and hello.device in _FILES_OF_KERNELS:
            self._file = _FILES_OF_KERNELS[hello.device](self._server.hypervisor, self.domain)
        self.stream.send(wire.pack_reply(0))
        if self.domain is not None and hello.device == "xenbus":
            self._xenbus = self._server.open_xenbus(self.domain, self.stream)

    def _attach(self, hello: wire.Hello) -> Domain:
        hypervisor = self._server.hypervisor
        if hello.device == "kernel":
            return hypervisor.attach_kernel(hello.domid, self._process)
        if hello.kernel and hello.device in ("gntalloc", "privcmd"):
            raise fault(errno.ENODEV, f"{hello.device} is a device of Linux, and this domain's kernel is the program")
        return hypervisor.attach_process(hello.domid, self._process, kernel=hello.kernel)

    def _call(self, kind: Kind, body: bytes) -> None:
        file = self._file
        if file is None:
            raise MalformedError(f"{kind.name} on {self.device}")
        if kind is Kind.IOCTL:
            self._ioctl(file, body)
        elif kind is Kind.MMAP:
            request = wire.unpack_mmap(body)
            self._fail_if_asked(file)
            self._answer(file.map(request.cookie, request.length, request.offset, writable=request.writable))
        elif kind is Kind.MUNMAP:
            for cookie in wire.unpack_munmap(body):
                file.unmap(cookie)
            self._answer(Answer())
        elif kind is Kind.PREPARE:
            self._answer(file.prepare(*wire.unpack_prepare(body)))
        else:
            self._file = None
            file.release()
            self._answer(Answer())
            if not self.stream.pending:
                self.stream.close()  # so that a client that has its answer is no longer counted

    def _fail_if_asked(self, file: File) -> None:
        if number := file.domain.failure(self.device):
            raise fault(number, "Machine.fail asked for that")

    def _ioctl(self, file: File, body: bytes) -> None:
        call = wire.unpack_ioctl(body)
        if call.request not in _GIVES_BACK:
            self._fail_if_asked(file)
        answered = call.size
        if answered > _SHORT and self._server.held(file.domain) + answered > _MAX_HELD:
            raise _too_much(file.domain, answered)
        try:
            answer = file.ioctl(call)
        except (struct.error, ValueError) as error:
            raise fault(errno.EFAULT, str(error)) from None
        self._answer(answer, call)

    def _answer(self, answer: Answer, call: wire.Ioctl | None = None) -> None:
        packed, fds = wire.pack_parts(answer.parts)
        body = packed if call is None else wire.pack_ioctl_reply(call, packed)
        try:
            self.stream.send(wire.pack_reply(answer.result, body, len(fds)), fds)
        finally:
            for fd in answer.temporary:
                os.close(fd)


def _too_much(domain: Domain, length: int) -> OSError:
    return fault(
        errno.ENOMEM,
        f"{length} bytes: domain {domain.domid}'s messages that are under way may have {_MAX_HELD} bytes together",
    )


def credentials(sock: socket.socket) -> tuple[int, int, int]:
    """(process, user, group) at the other end (unix(7), SO_PEERCRED)."""
    process, user, group = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return process, user, group
