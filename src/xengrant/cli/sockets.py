"""The local sockets of `proxy`: how their addresses read, listening at one and connecting to one."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import re
import socket
import stat
import time
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["Address", "address", "connect", "listening", "ready", "say_goodbye"]

_BACKLOG = 128
_GOODBYE = 0.5  # seconds that the other side of a socket has for ending it, too


class Address(NamedTuple):
    """A Unix socket's path, or else a TCP socket's host and port."""

    path: str | None
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        if self.path is not None:
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def address(text: str) -> Address:
    """``unix:PATH``, a path with a slash in it, ``HOST:PORT``, ``[IPV6]:PORT``; ``:PORT`` is on loopback."""
    if text.startswith("unix:") and len(text) > 5:
        return Address(text[5:])
    if "/" in text:
        return Address(text)
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]]*)):([0-9]{1,5})", text)
    if match is None or int(match[3]) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no socket: give unix:PATH, a path with a slash, or HOST:PORT")
    return Address(None, match[1] or match[2] or "127.0.0.1", int(match[3]))


@contextlib.contextmanager
def listening(where: Address) -> Iterator[tuple[socket.socket, Address]]:
    """A socket that listens there, and where that is (port 0 takes any).

    A Unix socket that nobody listens at any more is replaced; ours is removed at the end.
    """
    with _explained("listen at", where):
        listener = _listen_tcp(where) if where.path is None else _listen_unix(where.path)
    with listener:
        if where.path is None:
            host, port, *_ = listener.getsockname()
            yield listener, Address(None, host, port)
            return
        ours = os.lstat(where.path)
        try:
            yield listener, where
        finally:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.lstat(where.path), ours):
                    os.unlink(where.path)


def connect(where: Address, timeout: float | None) -> socket.socket:
    """A connection to what listens there; `OSError`, also where nobody answers in time."""
    with _explained("connect to", where):
        if where.path is None:
            return ready(socket.create_connection((where.host, where.port), timeout))
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(timeout)
            connection.connect(where.path)
        except BaseException:
            connection.close()
            raise
        return ready(connection)


def say_goodbye(connection: socket.socket) -> None:
    """Close it so that what was sent arrives: closing over unread bytes is a reset, which takes it along."""
    with connection, contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + _GOODBYE  # of them all: others wait for their turn
        while (left := deadline - time.monotonic()) > 0:
            connection.settimeout(left)
            if not connection.recv(65536):
                break


def ready(connection: socket.socket) -> socket.socket:
    connection.settimeout(None)
    if connection.family != socket.AF_UNIX:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _listen_tcp(where: Address) -> socket.socket:
    family, _, _, _, name = socket.getaddrinfo(where.host, where.port, type=socket.SOCK_STREAM)[0]
    return socket.create_server(name[:2], family=family, backlog=_BACKLOG)


def _listen_unix(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            listener.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            _remove_dead(path)
            listener.bind(path)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _remove_dead(path: str) -> None:
    """Remove a socket that nobody listens at; `OSError` for whatever else is there."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise FileExistsError(errno.EEXIST, "it is there already and no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:  # its backlog is full
            pass
    raise OSError(errno.EADDRINUSE, "somebody listens there already")


@contextlib.contextmanager
def _explained(what: str, where: Address) -> Iterator[None]:
    """Errors that name the address and say why in words."""
    try:
        yield
    except OSError as error:
        text = f"cannot {what} {where}: {error.strerror or error}"
        raise type(error)(error.errno or errno.EINVAL, text) from error
