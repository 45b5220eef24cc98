"""The machine's descriptors, which one domain must not take from all others: `Descriptors` is a domain's share of them.

A domain has one, and whatever costs a descriptor on its behalf takes from that: connections, memory, ports, and what
waits to be sent to a client that reads nothing.
"""

from __future__ import annotations

import errno
import resource

__all__ = ["Descriptors", "share"]

_SHARE = 2  # one domain may take one in so many


def share() -> int:
    """How many of this process's descriptors one domain may have."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _SHARE


class Descriptors:
    """Those that the machine has open for a domain. dom0's are only counted, since it is trusted."""

    __slots__ = ("_bounded", "_domid", "taken")

    def __init__(self, domid: int) -> None:
        self._domid = domid
        self._bounded = domid != 0
        self.taken = 0

    def take(self, count: int = 1) -> None:
        """Note that `count` more will be open; EMFILE, and nothing is noted, where that is more than the share."""
        if self._bounded and self.taken + count > share():
            raise OSError(
                errno.EMFILE,
                f"domain {self._domid} has {self.taken} of the machine's descriptors, where one may have {share()}",
            )
        self.taken += count

    def give_back(self, count: int = 1) -> None:
        self.taken -= count
