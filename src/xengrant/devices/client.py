"""The client's end of a connection to an embedded machine: `Client` asks and waits for the answer (`wire.py`).

`socket.py` has one for each device. Connecting checks that the directory and the machine are this user's own.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import stat
import struct
from typing import Any

from xengrant.descriptors import NO_DESCRIPTORS, no_descriptors
from xengrant.devices import wire
from xengrant.devices.wire import Kind
from xengrant.errors import InterfaceUnavailable
from xengrant.forks import abandon_in_child

_ANCILLARY = socket.CMSG_SPACE(4 * 253)
_RECEIVE_LEAST, _RECEIVE_MOST = 1 << 12, 1 << 20

# Seconds that connecting, and then HELLO, may take.
_HELLO_TIMEOUT = 10.0


class Reply:
    """What the machine answered. Descriptors that nobody took are closed with it."""

    def __init__(self, result: int, body: bytes, fds: list[int]) -> None:
        self.result = result
        self.body = body
        self.fds = fds

    def close_fds(self) -> None:
        while self.fds:
            os.close(self.fds.pop())

    def __del__(self) -> None:
        if "fds" in self.__dict__:  # else a signal handler broke off __init__
            self.close_fds()


class DescriptorsLostError(InterfaceUnavailable):
    """The machine did what was asked, with `result`, but this process had no room for the descriptors."""

    def __init__(self, result: int) -> None:
        super().__init__(*no_descriptors(errno.EMFILE).args)
        self.result = result


class _Exchange:
    """One request and its reply, which a signal handler may break off anywhere and `finish` go on with.

    Python runs signal handlers between two steps of its own, so what a system call returned could be lost before it is
    stored. Here `list.extend` of a `map` calls and stores in one step.
    """

    def __init__(self, request: bytes) -> None:
        self._request = memoryview(request)
        self._sent: list[int] = []
        self._received: list[tuple[bytes, list[tuple[int, int, bytes]], int, object]] = []
        self._fds: list[int] | None = None

    def finish(self, sock: socket.socket) -> tuple[Reply, bool]:
        """The reply, and whether all its descriptors came; `EOFError`, `ConnectionError` or `MalformedError`.

        A second time it is the same again.
        """
        with contextlib.suppress(BrokenPipeError):  # a machine that refuses us hangs up early, and has said why
            while (sent := sum(self._sent)) < len(self._request):
                self._sent.extend(map(sock.send, (self._request[sent:],), (socket.MSG_NOSIGNAL,)))
        data = self._receive(sock, wire.REPLY.size)
        length, result, count = wire.REPLY.unpack_from(data)
        if length > wire.MAX_BODY:
            raise wire.MalformedError(f"a reply of {length} bytes")
        end = wire.REPLY.size + length
        data = self._receive(sock, end + max(0, -(-count // wire.FDS_PER_BATCH) - 1))
        complete = sum(len(wire.received(ancillary)) for _, ancillary, *_ in self._received) == count
        return Reply(result, data[wire.REPLY.size : end], self.descriptors()), complete

    def descriptors(self) -> list[int]:
        """Those that came and were not taken or closed."""
        if self._fds is None:
            self._fds = [fd for _, ancillary, *_ in self._received for fd in wire.received(ancillary)]
        return self._fds

    def _receive(self, sock: socket.socket, length: int) -> bytes:
        """At least the first `length` bytes of the reply; descriptors come along."""
        while (missing := length - sum(len(data) for data, *_ in self._received)) > 0:
            room = min(max(missing, _RECEIVE_LEAST), _RECEIVE_MOST)
            self._received.extend(map(sock.recvmsg, (room,), (_ANCILLARY,), (socket.MSG_CMSG_CLOEXEC,)))
            if not self._received[-1][0]:
                raise EOFError
        return b"".join(data for data, *_ in self._received)


class Client:
    """One connection: one request at a time, which the caller sees to.

    A signal handler may raise in the middle of a request: the next one first finishes it.
    """

    def __init__(self, directory: str, domid: int, device: str, *, kernel: bool = False) -> None:
        self._what = f"the embedded machine in {directory}"
        self._domid = domid
        self.sock = _socket(directory)
        self.dead = False  # the machine has hung up
        self.closed = False
        self.device_closed = False  # what is left is open for mappings only
        self._exchange: _Exchange | None = None  # what was begun and not finished
        abandon_in_child(self)
        _connect(directory, self.sock)
        try:
            hello = self._request(Kind.HELLO, wire.pack_hello(domid, device, kernel=kernel))
            _limit_waiting(self.sock, 0)
        except BlockingIOError:
            self.sock.close()
            raise _silent(directory) from None
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
        self._abandon()
        self._drop_exchange()

    def _abandon(self) -> None:
        """What came with a reply stays: a call that the fork came into may have it by now."""
        self.closed = self.dead = True
        self.sock.close()

    def _drop_exchange(self) -> None:
        exchange, self._exchange = self._exchange, None
        fds = exchange.descriptors() if exchange else []
        while fds:  # the list is its reply's, too
            os.close(fds.pop())

    def gone(self) -> InterfaceUnavailable:
        """The error that says that the machine hung up."""
        if self.closed:
            return InterfaceUnavailable(
                errno.ENODEV, f"{self._what}: this connection is closed, or is that of the process that forked this one"
            )
        return InterfaceUnavailable(
            errno.ENODEV,
            f"{self._what} has ended this connection: it was stopped, or domain {self._domid} was destroyed",
        )

    def _request(self, kind: Kind, body: bytes) -> Reply:
        if self.dead:
            raise self.gone()
        try:
            exchange = self._exchange  # in a child that a signal handler forks here it is None afterwards
            if exchange is not None:
                exchange.finish(self.sock)
            self._exchange = exchange = _Exchange(wire.pack_request(kind, body))
            reply, complete = exchange.finish(self.sock)
        except (ConnectionError, EOFError, wire.MalformedError):
            self.dead = True
            raise self.gone() from None
        except OSError:
            if not self.closed:
                raise
            self._drop_exchange()
            raise self.gone() from None  # meanwhile, in a child that a signal handler forked
        self._exchange = None
        if self.closed:
            raise self.gone()  # likewise, and its descriptors may be gone
        if not complete:
            raise DescriptorsLostError(reply.result)
        return reply


def ask(directory: str, operation: str, **arguments: Any) -> Any:
    """Ask the machine in `directory` on a control connection: what `server.MachineServer` offers there."""
    client = Client(directory, 0, "control")
    try:
        reply = client.request(Kind.CONTROL, json.dumps({"do": operation, **arguments}).encode())
        return json.loads(reply.body)
    finally:
        client.close()


def _socket(directory: str) -> socket.socket:
    try:
        return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as error:
        raise _not_there(directory, error, "no socket for the embedded machine") from None


def _connect(directory: str, sock: socket.socket) -> None:
    """Connect, or close `sock` and say what is in the way."""
    try:
        fd = _open_directory(directory)
        try:
            _check_own(directory, os.fstat(fd))
            _limit_waiting(sock, _HELLO_TIMEOUT)
            # Through the descriptor: the path may be of any length, and the directory is the one that was checked.
            sock.connect(f"/proc/self/fd/{fd}/{wire.MACHINE_SOCKET}")
            _check_peer(directory, sock)
        finally:
            os.close(fd)
    except InterfaceUnavailable:
        sock.close()
        raise
    except BlockingIOError:  # there is no room for more clients to wait, and was none for all that time
        sock.close()
        raise _silent(directory) from None
    except OSError as error:
        sock.close()
        raise _not_there(directory, error, "the embedded machine does not run") from None
    except BaseException:  # of a signal handler
        sock.close()
        raise


def _open_directory(directory: str) -> int:
    try:
        return os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _not_there(directory, error, "no embedded machine here") from None


def _not_there(directory: str, error: OSError, what: str) -> OSError:
    if error.errno in NO_DESCRIPTORS:  # of this process, whether there is a machine or not
        return no_descriptors(error.errno)
    hint = f"start one with `xengrant machine --dir {directory}`"
    return InterfaceUnavailable(error.errno, f"{directory}: {error.strerror}: {what}; {hint}")


def _limit_waiting(sock: socket.socket, seconds: float) -> None:
    """How long connect, send and recv wait before they raise `BlockingIOError`; 0 for ever.

    Python's own timeout makes the socket non-blocking, and then connect does not wait for room at all (unix(7)).
    """
    whole, fraction = divmod(seconds, 1)
    timeval = struct.pack("@ll", int(whole), int(fraction * 1_000_000))
    for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
        sock.setsockopt(socket.SOL_SOCKET, option, timeval)


def _silent(directory: str) -> InterfaceUnavailable:
    return InterfaceUnavailable(
        errno.ETIMEDOUT,
        f"the embedded machine in {directory} did not answer within {_HELLO_TIMEOUT:g} seconds: it is stopped or stuck",
    )


def _check_own(directory: str, status: os.stat_result) -> None:
    if status.st_uid != os.geteuid():
        raise InterfaceUnavailable(
            errno.EACCES, f"{directory} belongs to another user, whose machine could do anything: start one of your own"
        )
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise InterfaceUnavailable(
            errno.EACCES,
            f"{directory} is open to other users, so whose machine is in it is unknown: it has to have mode 700",
        )


def _check_peer(directory: str, sock: socket.socket) -> None:
    _pid, uid, _gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid != os.geteuid():
        raise InterfaceUnavailable(errno.EACCES, f"the machine in {directory} is another user's: start one of your own")
