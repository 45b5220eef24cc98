"""Requests done on the disk: `execute` runs a batch in its order, adjacent ones of a kind as one.

Called by the back end's queues, in their threads. Whatever the disk raises is an error response to that request.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from xengrant.abi import blkif

if TYPE_CHECKING:
    from xengrant.pv.block.disks import VectoredDisk
    from xengrant.pv.block.requests import Request

__all__ = ["execute"]

_log = logging.getLogger("xengrant.pv.block")

_MAX_BUFFERS = 1024  # that preadv takes (IOV_MAX)
_UNSUPPORTED = {errno.EOPNOTSUPP, errno.ENOSYS}


def execute(
    disk: VectoredDisk, requests: Sequence[Request], is_stopped: Callable[[], bool] = lambda: False
) -> Sequence[Request]:
    """Do the requests that have no status, and give them one, until `is_stopped`: those that come before the first that
    was not done.

    A disk may be slow, and whoever stops it shall not have to wait for a whole ring of requests.
    """
    at = 0
    while at < len(requests):
        if is_stopped():
            return requests[:at]
        request = requests[at]
        at += 1
        if request.status is not None:
            continue
        if request.action > blkif.WRITE:
            _do_other(disk, request)
            continue
        run = [request]
        buffers = request.buffers
        end = request.offset + request.length
        while at < len(requests):
            other = requests[at]
            if (
                other.offset != end
                or other.action != request.action
                or other.status is not None
                or len(buffers) + len(other.buffers) > _MAX_BUFFERS
            ):
                break
            run.append(other)
            buffers = buffers + other.buffers
            end += other.length
            at += 1
        if len(run) == 1 or not _do_run(disk, run, buffers):
            for number, each in enumerate(run, at - len(run)):
                if is_stopped():
                    return requests[:number]
                _do(disk, each)
    return requests


def _do_run(disk: VectoredDisk, run: Sequence[Request], buffers: Sequence[memoryview]) -> bool:
    """All at once. False where that failed: which of them is wrong is not known then."""
    try:
        move = disk.preadv if run[0].action == blkif.READ else disk.pwritev
        move(buffers, run[0].offset)
    except Exception:
        return False
    for request in run:
        request.status = blkif.RSP_OKAY
    return True


def _do(disk: VectoredDisk, request: Request) -> None:
    try:
        move = disk.preadv if request.action == blkif.READ else disk.pwritev
        move(request.buffers, request.offset)
    except Exception as error:
        _refuse(request, error)
    else:
        request.status = blkif.RSP_OKAY


def _do_other(disk: VectoredDisk, request: Request) -> None:
    try:
        if request.action == blkif.DISCARD:
            other: Any = disk
            other.discard(request.length, request.offset)
        else:
            disk.flush()
            if request.buffers:
                disk.pwritev(request.buffers, request.offset)
    except Exception as error:
        _refuse(request, error)
    else:
        request.status = blkif.RSP_OKAY


def _refuse(request: Request, error: Exception) -> None:
    unsupported = isinstance(error, OSError) and error.errno in _UNSUPPORTED
    if not isinstance(error, OSError):  # a mistake of the disk's, which somebody wants to find
        _log.warning("the disk failed at %r", request, exc_info=error)
    request.refuse(str(error), blkif.RSP_EOPNOTSUPP if unsupported else blkif.RSP_ERROR)
