"""The directory where a machine is found: its sockets, private to one user, and the lock that tells it lives.

Called by `machine.py`. Sockets are bound through the directory's descriptor, so its path may be of any length and
nobody can exchange it in between.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import tempfile
from pathlib import Path

from xengrant.devices import wire
from xengrant.errors import InterfaceUnavailable

BACKLOG = 128
_SOCKETS = (wire.MACHINE_SOCKET, wire.XENSTORED_SOCKET)


class Directory:
    """A directory that this machine has for itself. `path` None makes a temporary one, which goes with the machine."""

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self._temporary = path is None
        self.path = Path(_make_temporary() if path is None else path).absolute()
        if not self._temporary:
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.path, 0o700)
        self.fd = os.open(self.path, os.O_DIRECTORY | os.O_RDONLY | os.O_CLOEXEC)
        self._lock = -1
        try:
            _check_private(self.path, self.fd)
            self._lock = self._take_lock()
        except BaseException:
            self._close_descriptors()
            raise

    def listen(self, name: str) -> socket.socket:
        """A listening socket in the directory, in place of one that a dead machine left.

        `InterfaceUnavailable` where something else has that name: it is the user's, and stays.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if not self._unlink_socket(name):
                raise InterfaceUnavailable(
                    errno.EEXIST,
                    f"{self.path / name} is there already and no socket: move it away, or name another directory",
                )
            listener.bind(f"/proc/self/fd/{self.fd}/{name}")
            wire.refuse_descriptors(listener)
            listener.listen(BACKLOG)
            listener.setblocking(False)
        except BaseException:
            listener.close()
            raise
        return listener

    def close(self) -> None:
        """Remove the sockets, and the directory if it is temporary.

        Else the lock file stays: removed, two machines could each hold a lock, on two files of that name.
        """
        for name in _SOCKETS:
            self._unlink_socket(name)
        fcntl.flock(self._lock, fcntl.LOCK_UN)  # also for a child that was just forked and has the descriptor still
        if self._temporary:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(wire.LOCK_FILE, dir_fd=self.fd)
        self._close_descriptors()
        if self._temporary:
            with contextlib.suppress(OSError):
                os.rmdir(self.path)

    def abandon(self) -> None:
        """In a forked child: close the descriptors, so that the lock goes with the parent."""
        self._close_descriptors()

    def _take_lock(self) -> int:
        lock = os.open(wire.LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=self.fd)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise InterfaceUnavailable(
                error.errno,
                f"{self.path}: a machine runs here already: connect to it with embedded:{self.path}?domid=N, "
                "or start another in a directory of its own",
            ) from None
        return lock

    def _unlink_socket(self, name: str) -> bool:
        """Whether the name is free now; nothing but a socket is removed."""
        try:
            if not stat.S_ISSOCK(os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_mode):
                return False
            os.unlink(name, dir_fd=self.fd)
        except FileNotFoundError:
            pass
        return True

    def _close_descriptors(self) -> None:
        for fd in (self.fd, self._lock):
            if fd >= 0:
                os.close(fd)
        self.fd = self._lock = -1


def _make_temporary() -> str:
    return tempfile.mkdtemp(prefix="xengrant-", dir=os.environ.get("XDG_RUNTIME_DIR"))


def _check_private(path: Path, fd: int) -> None:
    status = os.fstat(fd)
    if status.st_uid != os.geteuid():
        raise PermissionError(f"{path} belongs to another user: name a directory of your own")
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise PermissionError(
            f"{path} is open to other users, who could attach as any domain: "
            "name a new directory, or one that is yours alone (mode 700)"
        )
