"""Where a program starts: `connect(url)` gives the `Domain` that it runs in, on real Xen or an embedded machine.

Called by users and the tool; opens devices lazily, one for each object asked for, and calls gntshr, gnttab, evtchn,
xenstore, peer and meeting.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
import weakref
from typing import TYPE_CHECKING, Self, overload

from xengrant import kernelspace, meeting
from xengrant.abi.xen import DOMID_FIRST_RESERVED
from xengrant.arguments import checked_domid
from xengrant.devices import Device, System, open_system
from xengrant.errors import InterfaceClosed, InterfaceUnavailable, ProtocolError
from xengrant.evtchn import AsyncEventChannels, EventChannels
from xengrant.foreign_table import ForeignGrantTable
from xengrant.forks import abandon_in_child
from xengrant.gntshr import Gntshr
from xengrant.gnttab import Gnttab, Grant
from xengrant.peer import AsyncPeer, Peer
from xengrant.xenstore import AsyncXenStore, XenStore

if TYPE_CHECKING:
    from xengrant.gntshr import Share
    from xengrant.grant_table import GrantTable
    from xengrant.meeting import Advertised, Advertisement

__all__ = ["AsyncDomain", "Domain", "connect"]


def connect(url: str | None = None) -> Domain:
    """The domain that this program runs in.

    `url` is ``xen:`` (this domain's own kernel) or ``embedded:DIRECTORY?domid=N`` (an embedded machine); without it
    the environment's XENGRANT_URL, and without that ``xen:``. Opens nothing yet: what is missing is said
    (`InterfaceUnavailable`) by the first call that needs it. `ValueError` for a URL that names no machine.
    """
    if url is not None and not isinstance(url, str):
        raise TypeError(f"url is text, such as machine.url(1), not {url!r}")
    return Domain(open_system(url or os.environ.get("XENGRANT_URL") or "xen:"))


class Domain:
    """The domain that this program runs in.

    Closing it removes its advertisements and stops its peers; interfaces, shares and maps made through it live on.
    Where the program is the domain's kernel (``kernel=1``), the domain ends with the last `Domain` of this process, and
    the last share and page made through it. Threads: any call from any thread. Fork: in the child nothing is open, and
    what it opens from then on is its own.

    `system` is where its devices come from (`xengrant.devices.System`), `closed` whether it is closed: then every call
    is `InterfaceClosed`.
    """

    def __init__(self, system: System) -> None:
        self.system = system
        self.closed = False
        self._domid: int | None = None
        self._met: dict[int, str] = {}
        self._open_nothing()
        abandon_in_child(self)

    def _open_nothing(self) -> None:
        self._lock = threading.RLock()
        self._store: XenStore | None = None
        self._kernel: kernelspace.Kernel | None = None
        self._advertisements: list[Advertisement] = []
        self._peers: weakref.WeakSet[Peer] = weakref.WeakSet()

    def _abandon(self) -> None:
        self._parents = self._store, self._kernel, self._advertisements
        self._open_nothing()

    @property
    def url(self) -> str:
        """What `connect` was given, or found: ``xen:`` or ``embedded:DIRECTORY?domid=N``."""
        return self.system.url

    @property
    def domid(self) -> int:
        """This domain's own id, 0 to 0x7FEF, as its xenstore says; asked once.

        Raises `InterfaceUnavailable` where there is no xenstore, `ProtocolError` where it says nonsense.
        """
        if self._domid is None:
            self._domid = _parse_domid(self._own_store().read("domid"))
        return self._domid

    @property
    def aio(self) -> AsyncDomain:
        """The same domain for asyncio."""
        return AsyncDomain(self)

    def gntshr(self) -> Gntshr:
        """Open the interface that offers pages, /dev/xen/gntalloc; what opens it has to close it.

        Raises `InterfaceUnavailable`, which says what is missing (the module, the right to open it, the machine), and
        `InterfaceClosed`. Where the program is its domain's kernel, pages come of `alloc_pages` and refs of its table.
        """
        if self.system.is_kernel:
            return kernelspace.KernelGntshr(self._attached(), self.system)
        return Gntshr(self._open("gntalloc"), self.system)

    def gnttab(self) -> Gnttab:
        """Open the interface that maps pages, /dev/xen/gntdev. Raises as `gntshr`."""
        return Gnttab(self._open("gntdev"), self.system)

    def evtchn(self) -> EventChannels:
        """Open the interface that binds event channels, /dev/xen/evtchn. Raises as `gntshr`."""
        return EventChannels(self._open("evtchn"))

    def xenstore(self) -> XenStore:
        """Open a connection to xenstore, /dev/xen/xenbus. Raises as `gntshr`."""
        return XenStore(self._open("xenbus"))

    @overload
    def grant_table(self) -> GrantTable: ...
    @overload
    def grant_table(self, *, of: int, writable: bool = False) -> ForeignGrantTable: ...
    def grant_table(self, *, of: int | None = None, writable: bool = False) -> GrantTable | ForeignGrantTable:
        """A grant table: this domain's own where the program is its kernel, or in dom0 that `of` another domain.

        `writable` is for a domain builder, who grants pages of a domain that has not run yet. Raises
        `InterfaceUnavailable` where there is none to be had, saying why; `PeerClosed` where there is no such domain.
        """
        if of is None:
            if not self.system.is_kernel:
                raise InterfaceUnavailable(
                    errno.ENODEV,
                    "a process has no grant table, its kernel has: share pages with domain.gntshr(), look at another "
                    "domain's table from dom0 with grant_table(of=DOMID), or be the kernel of a domain of an embedded "
                    "machine (embedded:DIR?domid=N&kernel=1)",
                )
            return self._attached().table
        if checked_domid(of) == self.domid:
            raise InterfaceUnavailable(
                errno.EPERM, f"domain {of} is this domain, and nobody maps its own grant table (Xen XSM_DM_PRIV)"
            )
        return ForeignGrantTable(self._open("privcmd"), of, writable=writable)

    def alloc_pages(self, count: int) -> list[kernelspace.Page]:
        """`count` zeroed pages of this domain, for `GrantTable.grant_access`, where the program is its kernel.

        Raises `InterfaceUnavailable` elsewhere: `gntshr.share_pages` allocates pages itself. `OSError` with ENOMEM
        where the domain has no more.
        """
        if not self.system.is_kernel:
            raise InterfaceUnavailable(
                errno.ENODEV, "a process has no pages of its own to grant: gntshr.share_pages allocates them"
            )
        return self._attached().alloc_pages(count)

    def advertise(self, share: Share, path: str, header: str = "") -> Advertisement:
        """Tell the share's peer of its refs at `path` below this domain's xenstore directory; only the peer may read.

        `header`, at most 2,000 bytes, tells the peer what the pages hold: see `find_advertised`.

        Closing the advertisement or the domain removes the nodes. In a guest `path` lies below ``data``, the one
        directory that a guest may write. Raises `XenStoreError` with the quota or permission that was hit, or EEXIST
        where `path` holds nodes that are no advertisement; `ValueError` for a longer header, or for more than 65536
        pages, which nobody maps at once.
        """
        advertisement = meeting.advertise(self._own_store(), self.domid, share, path, header)
        with self._lock:
            self._advertisements = [other for other in self._advertisements if not other.closed]
            self._advertisements.append(advertisement)
        return advertisement

    def find(self, domid: int, path: str, timeout: float | None = None) -> list[Grant]:
        """The grants that domain `domid` advertises at `path`, in page order, waiting at most `timeout` seconds.

        None waits for ever, 0 looks once. Raises `TimeoutError`, `ProtocolError` where the peer wrote nonsense or names
        more than 65536 refs, `XenStoreError`, `ValueError` for a domid outside 0..0x7FEF.
        """
        return self.find_advertised(domid, path, timeout).grants

    def find_advertised(self, domid: int, path: str, timeout: float | None = None) -> Advertised:
        """As `find`: the grants, and the header that the peer wrote beside them, which nobody has checked (bytes)."""
        with self.xenstore() as store:
            found = meeting.find(store, domid, path, timeout)
        self._met[domid] = path
        return found

    def peer(self, domid: int, path: str | None = None) -> Peer:
        """Domain `domid` as somebody who may go away.

        `path` is a node that it shows this domain; a guest needs one, and the last one that `find` met is the default.
        Asks nothing yet: `Peer`'s first call raises `InterfaceUnavailable` where a guest has no path.
        """
        self._check_open()
        peer = Peer(checked_domid(domid), path or self._met.get(domid), self.xenstore)
        self._peers.add(peer)
        return peer

    def close(self) -> None:
        """Remove the advertisements and stop the peers. A second time does nothing.

        `XenStoreError` where a node could not be removed; all else is closed then too.
        """
        if self.closed:
            return
        self.closed = True
        with contextlib.ExitStack() as closing:  # all of it, whatever fails; then the failure is raised
            if self._kernel is not None:
                closing.callback(kernelspace.detach, self._kernel)
            if self._store is not None:
                closing.callback(self._store.close)
            for advertisement in self._advertisements:
                closing.callback(advertisement.close)
            for peer in list(self._peers):
                closing.callback(peer.close)

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        domid = "" if self._domid is None else f" {self._domid}"
        return f"<Domain{domid} on {self.url}{', closed' if self.closed else ''}>"

    def _open(self, name: str) -> Device:
        self._check_open()
        if self.system.is_kernel:
            self._attached()
        return self.system.open(name)

    def _attached(self) -> kernelspace.Kernel:
        """This program as the domain's kernel, which it is from the first call that needs the machine."""
        with self._lock:
            self._check_open()
            if self._kernel is None:
                self._kernel = kernelspace.attach(self.system)
            return self._kernel

    def _own_store(self) -> XenStore:
        with self._lock:
            self._check_open()
            if self._store is None:
                self._store = self.xenstore()
            return self._store

    def _check_open(self) -> None:
        if self.closed:
            raise InterfaceClosed("this Domain is closed: connect() again")


class AsyncDomain:
    """The asyncio face of a `Domain`: the same names for what waits. To be used inside a running event loop.

    Threads: that event loop's only.
    """

    def __init__(self, domain: Domain) -> None:
        self._domain = domain

    def evtchn(self) -> AsyncEventChannels:
        """As `Domain.evtchn`, with ports that are awaited."""
        return AsyncEventChannels(self._open("evtchn"))

    def xenstore(self) -> AsyncXenStore:
        """As `Domain.xenstore`, with calls that are awaited."""
        return AsyncXenStore(self._open("xenbus"))

    async def domid(self) -> int:
        """As `Domain.domid`, which waits for xenstore where it was not asked before."""
        if self._domain._domid is None:
            async with self.xenstore() as store:
                self._domain._domid = _parse_domid(await store.read("domid"))
        return self._domain._domid

    async def find(self, domid: int, path: str, timeout: float | None = None) -> list[Grant]:
        """As `Domain.find`."""
        return (await self.find_advertised(domid, path, timeout)).grants

    async def find_advertised(self, domid: int, path: str, timeout: float | None = None) -> Advertised:
        """As `Domain.find_advertised`."""
        async with self.xenstore() as store:
            found = await meeting.find_async(store, domid, path, timeout)
        self._domain._met[domid] = path
        return found

    def peer(self, domid: int, path: str | None = None) -> AsyncPeer:
        """As `Domain.peer`; closing the domain does not close it."""
        self._domain._check_open()
        return AsyncPeer(checked_domid(domid), path or self._domain._met.get(domid), self.xenstore)

    def _open(self, name: str) -> Device:
        asyncio.get_running_loop()  # RuntimeError before anything is open
        return self._domain._open(name)


def _parse_domid(value: bytes) -> int:
    if not value.isdigit() or len(value) > 5 or int(value) >= DOMID_FIRST_RESERVED:
        raise ProtocolError(f"xenstore says that this domain's domid is {value[:32]!r}")
    return int(value)
