"""Every other domain's grant table at once, as dom0 sees them: what `ls`, `metrics` and `top` show.

Calls `Domain.grant_table(of=...)` for the tables and xenstore for who is there. Names come from xenstore as they are:
whatever prints one goes through `dump.printable`.
"""

from __future__ import annotations

import contextlib
import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from xengrant.abi.grant_table import V1_ENTRIES_PER_FRAME, V2_ENTRIES_PER_FRAME
from xengrant.abi.xen import DOMID_FIRST_RESERVED
from xengrant.errors import GrantError, PeerClosed, XenStoreError

if TYPE_CHECKING:
    from xengrant.domain import Domain
    from xengrant.foreign_table import ForeignGrantTable
    from xengrant.grant_entries import GrantEntry
    from xengrant.grant_snapshot import PeerTally
    from xengrant.xenstore import XenStore

__all__ = ["DomainGrants", "Survey", "domain_name", "domain_names", "is_domid"]

_DOMAINS = "/local/domain"
_ENTRIES_PER_FRAME = {1: V1_ENTRIES_PER_FRAME, 2: V2_ENTRIES_PER_FRAME}


@dataclass(frozen=True, slots=True)
class DomainGrants:
    """What one domain grants, counted by peer, the peer with the most first.

    `problem` says why its table could not be looked at, and then every number is 0.
    """

    domid: int
    name: str
    version: int
    frames: int
    max_frames: int
    peers: tuple[PeerTally, ...]
    problem: str = ""

    @property
    def granted(self) -> int:
        """Entries that a peer may map."""
        return sum(peer.granted for peer in self.peers)

    @property
    def readonly(self) -> int:
        """Of those granted, the ones that a peer may only read."""
        return sum(peer.readonly for peer in self.peers)

    @property
    def mapped(self) -> int:
        """Entries that a peer maps now, revoked ones among them."""
        return sum(peer.mapped for peer in self.peers)

    @property
    def writing(self) -> int:
        """Of those mapped, the ones that a peer maps writable."""
        return sum(peer.writing for peer in self.peers)

    @property
    def entries(self) -> int:
        """Entries that the table has room for in the frames that it has now."""
        return self.frames * _ENTRIES_PER_FRAME.get(self.version, 0)


class Survey:
    """The grant tables of all other domains, kept open from one look to the next.

    This domain's own table cannot be looked at (Xen XSM_DM_PRIV): it is there as a peer only. The table of a domain
    that is gone is closed by the next `look`, since an open one keeps a destroyed domain from going entirely.

    Threads: one at a time.
    """

    def __init__(self, domain: Domain) -> None:
        self.names: dict[int, str] = {}
        self._domain = domain
        self._store = domain.xenstore()
        self._tables: dict[int, ForeignGrantTable] = {}
        self._last: dict[int, DomainGrants] = {}

    def look(self) -> list[DomainGrants]:
        """Each other domain's grants now, by domid; a table that has not changed gives what it gave before.

        Raises `InterfaceUnavailable` in a guest, and what xenstore raises. What is wrong with one domain's table is
        its `problem`.
        """
        self.names = domain_names(self._domain, self._store)
        for domid in self._tables.keys() - self.names.keys():
            self._close(domid)
        looked = {domid: self._grants(domid) for domid in self.names if domid != self._domain.domid}
        self._last = {domid: grants for domid, grants in looked.items() if grants is not None}
        return list(self._last.values())

    def grants(self, domid: int) -> list[GrantEntry]:
        """One domain's entries in use as of the last look; none where that could not look at it."""
        table = self._tables.get(domid)
        return [] if table is None else table.snapshot.grants()

    def close(self) -> None:
        """Close every table. A second time does nothing."""
        for domid in list(self._tables):
            self._close(domid)
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Survey of {len(self._tables)} grant tables{', closed' if self._store.closed else ''}>"

    def _grants(self, domid: int) -> DomainGrants | None:
        """One domain's grants now; None where it went meanwhile."""
        try:
            return self._look_at(domid)
        except PeerClosed:
            self._close(domid)
            return None
        except (GrantError, OSError, ValueError) as error:
            self._close(domid)
            problem = getattr(error, "strerror", None) or str(error)
            return DomainGrants(domid, self.names[domid], 0, 0, 0, (), problem)

    def _look_at(self, domid: int) -> DomainGrants:
        table, last = self._tables.get(domid), self._last.get(domid)
        changed = True
        if table is None:
            table = self._tables[domid] = self._domain.grant_table(of=domid)
        else:
            changed = table.refresh()
        peers = tuple(table.snapshot.tally()) if changed or last is None else last.peers
        now = DomainGrants(domid, self.names[domid], table.version, table.frames, table.max_frames, peers)
        return last if now == last else now

    def _close(self, domid: int) -> None:
        table = self._tables.pop(domid, None)
        if table is not None:
            table.close()


def domain_names(domain: Domain, store: XenStore) -> dict[int, str]:
    """The name of every domain that is there, this one too, by domid; "" where xenstore has none.

    Raises `InterfaceUnavailable` in a guest. Nodes alone make no domain: they may outlive it.
    """
    try:
        nodes = store.directory(_DOMAINS)
    except XenStoreError as error:
        if error.errno == errno.EACCES:
            domain.grant_table(of=0).close()  # refused too, and says why
        raise
    domids = sorted(int(node) for node in nodes if is_domid(node))
    there = [domid for domid in domids if domid == domain.domid or store.is_domain_introduced(domid)]
    return {domid: domain_name(store, domid) for domid in there}


def is_domid(node: str) -> bool:
    """Whether a node below /local/domain is named as a domain can be."""
    return node.isascii() and node.isdigit() and len(node) <= 5 and int(node) < DOMID_FIRST_RESERVED


def domain_name(store: XenStore, domid: int) -> str:
    """The name that the toolstack gave it; "" where xenstore has none, or none that may be read."""
    with contextlib.suppress(XenStoreError):
        return store.read(f"{_DOMAINS}/{domid}/name").decode("utf-8", "backslashreplace")
    return ""
