"""One connection to xenstore, blocking or not: its device, its codec, what waits to be written, and how it ends.

The base of `XenStore` and `AsyncXenStore`; calls the device and xenstore_core.
"""

from __future__ import annotations

import errno
import warnings
import weakref
from collections import deque
from typing import TYPE_CHECKING

from xengrant import xenstore_core as core
from xengrant.errors import InterfaceClosed, InterfaceUnavailable, XenStoreError

if TYPE_CHECKING:
    from xengrant.devices import Device

# Errors of write() that mean the connection; any other is the answer to one request (Linux' xenbus device refuses a
# watch that way).
_BROKEN = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ENODEV, errno.EBADF)

ATTEMPTS = 24  # of run_transaction; about 1 s of waiting


class Outgoing:
    """A message on its way out, and how much of it the device has not taken yet."""

    def __init__(self, codec: core.Codec, request: core.Request) -> None:
        self.request = request
        self._left = codec.start(request)
        self.begun = False
        self.interrupted = False  # while it is sent and waited for; then still where a signal handler raised

    @property
    def may_be_lost(self) -> bool:
        """Whether a signal handler raised in its call, and may have taken the answer with it."""
        return self.interrupted and self.request.abandoned

    def write_to(self, device: Device) -> bool:
        """Whether all of it is written now. What the device raises is the request's answer, or the connection's end."""
        if not self._left:  # a signal handler raised just after the last write
            return True
        try:
            taken = device.write(self._left)
        except BlockingIOError:
            return False
        except OSError as error:
            if self.begun or error.errno is None or error.errno in _BROKEN:
                raise InterfaceUnavailable(error.errno or errno.EIO, f"{device.name}: {error.strerror}") from error
            name = errno.errorcode.get(error.errno, str(error.errno))
            self.request.finish(core.Refusal(self.request, error.errno, name))
            return True
        except BaseException:  # a signal handler's: the message may be out, and then it is answered
            self.begun, self._left = True, b""
            raise
        self.begun = self.begun or taken > 0
        self._left = self._left[taken:]
        return not self._left


class Connection:
    """One connection: what `XenStore` and `AsyncXenStore` have in common."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._codec = core.Codec(device.name)
        self._unsent: deque[Outgoing] = deque()
        self._under_way: Outgoing | None = None  # the last of which a write was tried
        self._warn = weakref.finalize(self, _close_unclosed, device, type(self).__name__)
        self._warn.atexit = False

    @property
    def closed(self) -> bool:
        """Whether the connection is closed, or the parent process's after a fork."""
        return self._device.closed

    def fileno(self) -> int:
        """Readable while xenstore has said something that was not read yet."""
        return self._device.fileno()

    def __bool__(self) -> bool:
        return not self.closed

    def __repr__(self) -> str:
        return f"<{type(self).__name__} on {self._device.name}{', closed' if self.closed else ''}>"

    def _check_open(self) -> None:
        if self.closed:
            raise InterfaceClosed("this xenstore connection is closed: open another with domain.xenstore()")

    def _queue_undoing(self) -> None:
        self._unsent.extend(Outgoing(self._codec, undoing) for undoing in self._codec.take_undoing())

    def _queue(self, request: core.Request) -> Outgoing:
        self._queue_undoing()
        outgoing = Outgoing(self._codec, request)
        self._unsent.append(outgoing)
        return outgoing

    def _next_may_go(self) -> bool:
        """Whether all that was sent is answered, so that the first of `_unsent` can be written.

        Linux keeps a file's request where the next write() goes, and sends it later: a second one under way overwrites
        the first one's path or value (drivers/xen/xenbus/xenbus_xs.c, xenbus_dev_request_and_reply, whose vec points
        into the file's buffer), which xenstored of Xen 4.17 does not survive. And a WATCH or UNWATCH, which it handles
        inside write(), under the lock that it needs to take in any other answer, stops its xenstore for good.
        """
        before = self._under_way
        return before is None or before is self._unsent[0] or not before.begun or before.request.done

    def _write_next(self) -> bool:
        """Whether all of the first of `_unsent` is written now."""
        self._under_way = self._unsent[0]
        return self._under_way.write_to(self._device)

    def _give_up(self, outgoing: Outgoing) -> None:
        """Nobody waits for the answer any more; what was not begun is not sent at all."""
        if outgoing in self._unsent and not outgoing.begun:
            self._unsent.remove(outgoing)
            self._codec.forget(outgoing.request)
        else:
            self._codec.abandon(outgoing.request)

    def _written(self) -> None:
        """The first of `_unsent` is out."""
        outgoing = self._unsent.popleft()
        if outgoing.request.done:  # write() itself was the answer
            self._codec.forget(outgoing.request)


def _close_unclosed(device: Device, kind: str) -> None:
    if not device.closed:
        warnings.warn(f"an unclosed {kind} on {device.name}", ResourceWarning, stacklevel=2)
        device.close()


def connection_lost(name: str) -> InterfaceUnavailable:
    return InterfaceUnavailable(
        errno.EPIPE,
        f"{name}: xenstore closed the connection; the machine is gone, or dropped it for breaking the rules",
    )


def give_up(attempts: int) -> XenStoreError:
    return XenStoreError(
        errno.EAGAIN, f"{attempts} transactions in a row met another's change: who else writes these nodes?"
    )
