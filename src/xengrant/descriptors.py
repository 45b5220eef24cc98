"""Running out of descriptors, said in one place: which limit it is, and how to raise it.

Used by whoever opens devices, and by what needs a descriptor beside its device.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from xengrant.errors import GrantError, InterfaceUnavailable

__all__ = ["NO_DESCRIPTORS", "needing_descriptors", "no_descriptors"]

NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
"""The errors that it is: of this process, and of the whole system."""


@contextlib.contextmanager
def needing_descriptors() -> Iterator[None]:
    """Have a lack of descriptors, whichever call of the block meets it, be `InterfaceUnavailable` that says so."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_DESCRIPTORS or isinstance(error, GrantError):
            raise
        raise no_descriptors(error.errno) from None


def no_descriptors(number: int) -> InterfaceUnavailable:
    """The error of EMFILE, this process's limit, and of ENFILE, the system's."""
    if number == errno.ENFILE:
        return InterfaceUnavailable(number, "the system has no descriptors left: raise the sysctl fs.file-max")
    return InterfaceUnavailable(number, "this process has no descriptors left: raise RLIMIT_NOFILE (ulimit -n)")
