"""The client's end of a connection to an embedded machine: `Client` asks and waits for the answer (`wire.py`).

`socket.py` has one for each device. Connecting checks that the directory and the machine are this user's own.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import struct
from typing import Any, NamedTuple

from xengrant.devices import wire
from xengrant.devices.wire import Kind
from xengrant.errors import InterfaceUnavailable

_ANCILLARY = socket.CMSG_SPACE(4 * 253)
_RECEIVE = 1 << 20


class Reply(NamedTuple):
    result: int
    body: bytes
    fds: list[int]

    def close_fds(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()


class DescriptorsLostError(OSError):
    """The machine did what was asked, with `result`, but this process had no room for the descriptors."""

    def __init__(self, result: int) -> None:
        super().__init__(errno.EMFILE, "this process has no descriptors left: raise RLIMIT_NOFILE")
        self.result = result


class Client:
    """One connection: one request at a time, which the caller sees to.

    A signal handler may raise in the middle of a request: the next one first finishes it.
    """

    def __init__(self, directory: str, domid: int, device: str, *, kernel: bool = False) -> None:
        self._what = f"the embedded machine in {directory}"
        self._domid = domid
        self.sock = _connect(directory)
        self.dead = False  # the machine has hung up
        self.closed = False
        self._unsent = memoryview(b"")
        self._owed = False  # a reply is still to come
        self._inbox = bytearray()
        self._fds: list[int] = []
        try:
            hello = self._request(Kind.HELLO, wire.pack_hello(domid, device, kernel=kernel))
        except BaseException:
            self.sock.close()
            raise
        if hello.result < 0:
            self.sock.close()
            text = hello.body.decode(errors="replace")
            raise InterfaceUnavailable(-hello.result, f"{self._what} refused {device} to domain {domid}: {text}")

    def request(self, kind: Kind, body: bytes = b"") -> Reply:
        """Ask and wait. `OSError` with the machine's errno and its reason; `InterfaceUnavailable` where it is gone."""
        reply = self._request(kind, body)
        if reply.result < 0:
            reply.close_fds()
            raise OSError(-reply.result, reply.body.decode(errors="replace"))
        return reply

    def close(self) -> None:
        self.closed = self.dead = True
        self.sock.close()
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    def gone(self) -> InterfaceUnavailable:
        """The error that says that the machine hung up."""
        return InterfaceUnavailable(
            errno.ENODEV,
            f"{self._what} has ended this connection: it was stopped, or domain {self._domid} was destroyed",
        )

    def _request(self, kind: Kind, body: bytes) -> Reply:
        if self.dead:
            raise self.gone()
        try:
            if self._owed:
                self._finish().close_fds()
            self._unsent, self._owed = memoryview(wire.pack_request(kind, body)), True
            return self._finish()
        except (ConnectionError, EOFError, wire.MalformedError):
            self.dead = True
            raise self.gone() from None

    def _finish(self) -> Reply:
        while self._unsent:
            self._unsent = self._unsent[self.sock.send(self._unsent, socket.MSG_NOSIGNAL) :]
        self._receive(wire.REPLY.size)
        length, result, count = wire.REPLY.unpack_from(self._inbox)
        if length > wire.MAX_BODY:
            raise wire.MalformedError(f"a reply of {length} bytes")
        end = wire.REPLY.size + length
        self._receive(end + max(0, -(-count // wire.FDS_PER_BATCH) - 1))
        reply = Reply(result, bytes(self._inbox[wire.REPLY.size : end]), self._fds)
        self._inbox, self._fds, self._owed = bytearray(), [], False
        if len(reply.fds) != count:
            reply.close_fds()
            raise DescriptorsLostError(result)
        return reply

    def _receive(self, length: int) -> None:
        """Have `length` bytes of the reply; descriptors come along."""
        while len(self._inbox) < length:
            wanted = min(length - len(self._inbox), _RECEIVE)
            data, ancillary, _, _ = self.sock.recvmsg(wanted, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
            self._fds += wire.received(ancillary)
            if not data:
                raise EOFError
            self._inbox += data


def ask(directory: str, operation: str, **arguments: Any) -> Any:
    """Ask the machine in `directory` on a control connection: what `server.MachineServer` offers there."""
    client = Client(directory, 0, "control")
    try:
        reply = client.request(Kind.CONTROL, json.dumps({"do": operation, **arguments}).encode())
        return json.loads(reply.body)
    finally:
        client.close()


def _connect(directory: str) -> socket.socket:
    hint = f"start one with `xengrant machine --dir {directory}`"
    try:
        fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise InterfaceUnavailable(
            error.errno, f"{directory}: {error.strerror}: no embedded machine here; {hint}"
        ) from None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _check_own(directory, os.fstat(fd))
        # Through the descriptor: the path may be of any length, and the directory is the one that was checked.
        sock.connect(f"/proc/self/fd/{fd}/{wire.MACHINE_SOCKET}")
        _check_peer(directory, sock)
    except InterfaceUnavailable:
        sock.close()
        raise
    except OSError as error:
        sock.close()
        raise InterfaceUnavailable(
            error.errno, f"{directory}: {error.strerror}: the embedded machine does not run; {hint}"
        ) from None
    finally:
        os.close(fd)
    return sock


def _check_own(directory: str, status: os.stat_result) -> None:
    if status.st_uid != os.geteuid():
        raise InterfaceUnavailable(
            errno.EACCES, f"{directory} belongs to another user, whose machine could do anything: start one of your own"
        )
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise InterfaceUnavailable(
            errno.EACCES, f"{directory} is open to other users, so whose machine is in it is unknown: chmod 700 it"
        )


def _check_peer(directory: str, sock: socket.socket) -> None:
    _pid, uid, _gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid != os.geteuid():
        raise InterfaceUnavailable(errno.EACCES, f"the machine in {directory} is another user's: start one of your own")
