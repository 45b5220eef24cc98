"""What a domain's Linux kernel keeps for all its processes (drivers/xen/grant-table.c): `Linux`.

The free references, the pages whose grants could not be revoked yet, gntalloc's count and the kernel's log. The
devices in `gntalloc.py` and `gntdev.py` call it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from xengrant.embedded.domain import Domain
from xengrant.embedded.memory import Frames, Page
from xengrant.errors import GrantBusy, InvalidGrant
from xengrant.grant_table import GrantTable

_LOG_LINES = 1000
_FOREVER = 1e15
# grant-table.c: tries before "still pending" is logged.
_WARN_AFTER = 60


class Timer(Protocol):
    def cancel(self) -> None: ...


CallLater = Callable[[float, Callable[[], None]], Timer]


@dataclass(slots=True)
class _Deferred:
    ref: int
    page: Page
    tries_to_warning: int = _WARN_AFTER


class Linux:
    """One domain's kernel."""

    def __init__(self, domain: Domain, frames: Frames, call_later: CallLater) -> None:
        self._domain = domain
        self._frames = frames
        self._call_later = call_later
        self._timer: Timer | None = None
        self._log: deque[tuple[float, str]] = deque(maxlen=_LOG_LINES)
        self.deferred: deque[_Deferred] = deque()
        self.gntalloc_pages = 0
        self.prepared_pages = 0  # of memory for read-only ALLOCs to come
        self.gntdev_grants = 0  # of all maps, mapped or not
        table = domain.table
        first = table.new_frames(0)
        assert first is not None
        self.table = GrantTable(
            [first.frame],
            version=table.version,
            status_frames=[] if first.status is None else [first.status],
            max_frames=table.max_frames,
            grow=table.new_frames,
            max_domid=0xFFFF,  # nobody checks it, so it is granted to somebody who cannot be
        )

    def log(self, text: str) -> None:
        self._log.append((time.monotonic(), text))

    def logged(self, seconds: float) -> list[str]:
        """What was logged in the last seconds."""
        since = time.monotonic() - min(seconds, _FOREVER)
        return [text for when, text in self._log if when >= since]

    def grant(self, domid: int, page: Page, *, writable: bool) -> int | None:
        """Grant a page through the next free reference (gnttab_grant_foreign_access); None where the table is full."""
        while (ref := self.table.get_nowait()) is not None:
            try:
                self.table.grant_access(ref, domid, page.frame, writable=writable)
            except InvalidGrant as error:  # somebody wrote to the table: dom0 may map it. The next one, then
                self.log(f"xen/grant-table: leaking g.e. {ref:#x}: {error}")
            else:
                return ref
        self.log(
            f"xen/grant-table: max_grant_frames reached cur={len(self.table.entries.frames)} extra=1 "
            f"limit={self.table.max_frames} gnttab_free_count=0 req_entries=1"
        )
        return None

    def end_grant(self, ref: int, page: Page) -> None:
        """Revoke and free, later where the peer still maps the page (gnttab_end_foreign_access)."""
        if not self._try_end(ref, page):
            self.log(f"xen/grant-table: deferring g.e. {ref:#x} (pfn {page.frame:#x})")
            self.deferred.append(_Deferred(ref, page))
            self._start_timer()

    def drop_page(self, page: Page) -> None:
        self._domain.pages.discard(page)
        self._frames.drop(page)

    def stop(self) -> None:
        """The domain is no more: nothing is tried again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.deferred.clear()

    def _try_end(self, ref: int, page: Page) -> bool:
        try:
            self.table.end_access(ref)
            self.table.put(ref)
        except GrantBusy:
            return False
        except InvalidGrant as error:  # as above
            self.log(f"xen/grant-table: g.e. {ref:#x} was overwritten: {error}")
            self._put_overwritten(ref)
        self.drop_page(page)
        return True

    def _put_overwritten(self, ref: int) -> None:
        try:
            self.table.put(ref)
        except InvalidGrant as error:
            self.log(f"xen/grant-table: leaking g.e. {ref:#x}: {error}")

    def _start_timer(self) -> None:
        if self._timer is None and self.deferred:
            self._timer = self._call_later(self._domain.settings.reclaim_interval, self._reclaim)

    def _reclaim(self) -> None:
        """gnttab_handle_deferred: a bounded number each time, what is still mapped goes to the end of the list."""
        self._timer = None
        if not self._domain.paused:
            for _ in range(min(len(self.deferred), self._domain.settings.free_per_iteration or len(self.deferred))):
                entry = self.deferred.popleft()
                if not self._try_end(entry.ref, entry.page):
                    entry.tries_to_warning -= 1
                    if entry.tries_to_warning == 0:
                        self.log(f"xen/grant-table: g.e. {entry.ref:#x} still pending")
                    self.deferred.append(entry)
        self._start_timer()
