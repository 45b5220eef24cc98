"""The pages that a front end has its data in: `Pool` shares each once and uses it again, `PerRequest` shares anew.

Called by the front end's queues for each request. A page that a back end may still write to is not handed out: it comes
back with the response, and not at all where the back end lies.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass, field

from xengrant.abi.xen import PAGE_SIZE
from xengrant.errors import GrantError, GrantTableFull
from xengrant.gntshr import Gntshr, Share

__all__ = ["FrontPages", "Lease", "PerRequest", "Pool"]

_AT_ONCE = 32  # pages that a pool shares when it has too few


@dataclass(slots=True)
class Lease:
    """Pages for one request: `refs` and `views`, one for each page."""

    refs: list[int]
    views: list[memoryview]
    shares: list[Share] = field(default_factory=list)


class FrontPages(abc.ABC):
    """Pages shared with domain `domid` through `gntshr`, which stays its owner's. Threads: one at a time."""

    persistent: bool
    """Whether the same pages come again and again, so that the back end may keep them mapped."""

    def __init__(self, gntshr: Gntshr, domid: int) -> None:
        self._gntshr = gntshr
        self._domid = domid

    @abc.abstractmethod
    def take(self, count: int, *, writable: bool) -> Lease | None:
        """`count` pages that the back end may write to, or only read where it may; None: not before others come back.

        `GrantTableFull` where that many are never to be had.
        """

    @abc.abstractmethod
    def give(self, lease: Lease) -> None:
        """The back end has done with them."""

    @abc.abstractmethod
    def close(self) -> None:
        """Revoke them all. No lease may be used after it."""


class Pool(FrontPages):
    """At most `most` pages, shared as they are needed, the last that came back first (as blkif.h asks)."""

    persistent = True

    def __init__(self, gntshr: Gntshr, domid: int, most: int) -> None:
        super().__init__(gntshr, domid)
        self.most = most
        self._shares: list[Share] = []
        self._free: list[tuple[int, memoryview]] = []
        self.shared = 0

    def take(self, count: int, *, writable: bool) -> Lease | None:
        if count > self.most:
            raise ValueError(f"a request of {count} pages, where there are {self.most}")
        missing, room = count - len(self._free), self.most - self.shared
        if missing > 0 and room:
            try:
                self._grow(min(missing, room), min(max(missing, _AT_ONCE), room))
            except GrantError:
                if self.shared < count:
                    raise
        if len(self._free) < count:
            return None
        pages = self._free[-count:] if count else []
        del self._free[len(self._free) - count :]
        return Lease([ref for ref, _ in pages], [view for _, view in pages])

    def give(self, lease: Lease) -> None:
        self._free += zip(lease.refs, lease.views, strict=True)

    def close(self) -> None:
        self._free = []
        for share in self._shares:
            share.mapping.close_on_release()
        self._shares = []

    def _grow(self, least: int, most: int) -> None:
        try:
            self._share(most)
        except GrantTableFull:
            self._share(least)

    def _share(self, count: int) -> None:
        share = self._gntshr.share_pages(self._domid, count, writable=True)
        self._shares.append(share)
        self.shared += count
        whole = memoryview(share.mapping)
        pages = [(ref, whole[at * PAGE_SIZE : (at + 1) * PAGE_SIZE]) for at, ref in enumerate(share.refs)]
        self._free[:0] = reversed(pages)


class PerRequest(FrontPages):
    """New pages for each request, which are revoked with its response: read-only where the back end only reads."""

    persistent = False

    def __init__(self, gntshr: Gntshr, domid: int) -> None:
        super().__init__(gntshr, domid)
        self._open: set[Share] = set()

    def take(self, count: int, *, writable: bool) -> Lease | None:
        if not count:
            return Lease([], [])
        try:
            share = self._gntshr.share_pages(self._domid, count, writable=writable)
        except GrantTableFull:
            if self._open:
                return None
            raise
        self._open.add(share)
        whole = memoryview(share.mapping)
        views = [whole[at * PAGE_SIZE : (at + 1) * PAGE_SIZE] for at in range(count)]
        return Lease(list(share.refs), views, [share])

    def give(self, lease: Lease) -> None:
        lease.views = []
        self._end(lease.shares)

    def close(self) -> None:
        self._end(list(self._open))

    def _end(self, shares: Sequence[Share]) -> None:
        for share in shares:
            self._open.discard(share)
            share.mapping.close_on_release()
