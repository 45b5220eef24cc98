"""The tool's exit statuses, and which error gives which: no other file of the tool has their numbers, 0 apart.

Called by `main`, by the parser for wrong usage, and by the subcommands for what they found out.
"""

from __future__ import annotations

import errno

from xengrant.abi.grant_table import GNTST_EAGAIN, GNTST_NO_DEVICE_SPACE, GNTST_NO_SPACE, GNTST_OKAY
from xengrant.errors import GrantTableFull, MapError

__all__ = ["DONE", "FAILED", "INTERRUPTED", "MEANINGS", "READER_GONE", "TRY_AGAIN", "USAGE", "UsageError", "of"]

DONE = 0
FAILED = 1
TRY_AGAIN = 2
"""The same command may succeed later: somebody is not there yet, or something is busy or used up."""
USAGE = 64
"""As EX_USAGE of sysexits.h: the command can never be meant like that."""
INTERRUPTED = 130
"""As of a program that SIGINT ended; `hold` has SIGTERM's and SIGHUP's."""
READER_GONE = 141
"""As of a program that SIGPIPE ended."""

MEANINGS = {
    str(DONE): "done; what was held until a signal came is given back",
    str(FAILED): "failed",
    str(TRY_AGAIN): "try again: somebody was not there yet, or something was busy or used up",
    str(USAGE): "wrong usage",
    f"129, {INTERRUPTED}, 143": "interrupted by SIGHUP, SIGINT or SIGTERM before anything was held",
    str(READER_GONE): "whoever read stdout has gone",
}
"""For people who read the manual."""

_PASSING = {errno.EAGAIN, errno.EBUSY, errno.ETIMEDOUT, errno.EADDRINUSE, errno.ENOSPC, errno.ENOMEM, errno.ENFILE}
# GNTST_OKAY beside an error: the domain's maptrack is full (`MapError`).
_PASSING_GNTST = {GNTST_OKAY, GNTST_NO_DEVICE_SPACE, GNTST_EAGAIN, GNTST_NO_SPACE}


class UsageError(ValueError):
    """What was asked for can never be meant, which the parser alone could not tell."""


def of(error: BaseException) -> int:
    """The exit status for an error."""
    if isinstance(error, UsageError):
        return USAGE
    # GrantBusy is a BlockingIOError.
    if isinstance(error, (GrantTableFull, TimeoutError, BlockingIOError, MemoryError)):
        return TRY_AGAIN
    if isinstance(error, MapError) and error.statuses and {*error.statuses} <= _PASSING_GNTST:
        return TRY_AGAIN
    if isinstance(error, OSError) and error.errno in _PASSING:
        return TRY_AGAIN
    return FAILED
