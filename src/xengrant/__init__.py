"""Xen grant tables for Python: share memory pages with another domain, map pages that another shared, notify it.

`connect()` is where a program starts. The same code runs on a real Xen hypervisor and on an embedded machine
(`xengrant machine`), which needs no Xen at all.
"""

from xengrant.domain import AsyncDomain, Domain, connect
from xengrant.errors import (
    GrantBusy,
    GrantError,
    GrantTableFull,
    InterfaceClosed,
    InterfaceUnavailable,
    InvalidGrant,
    MapError,
    PeerClosed,
    ProtocolError,
    XenStoreError,
)
from xengrant.evtchn import AsyncEventChannels, AsyncPort, EventChannels, Port
from xengrant.foreign_table import ForeignGrantTable
from xengrant.gntshr import Gntshr, Share, UnmapNotify
from xengrant.gnttab import CopySegment, Gnttab, Grant, GrantRef, Mapped
from xengrant.grant_entries import EntryKind, GrantEntry
from xengrant.grant_snapshot import GrantArrays, PeerTally, Snapshot
from xengrant.grant_table import GrantTable
from xengrant.kernelspace import Page
from xengrant.meeting import Advertised, Advertisement
from xengrant.memory import PAGE_SIZE, Mapping
from xengrant.peer import AsyncPeer, Peer
from xengrant.xenstore import AsyncXenStore, Permission, XenStore

__all__ = [
    "PAGE_SIZE",
    "Advertised",
    "Advertisement",
    "AsyncDomain",
    "AsyncEventChannels",
    "AsyncPeer",
    "AsyncPort",
    "AsyncXenStore",
    "CopySegment",
    "Domain",
    "EntryKind",
    "EventChannels",
    "ForeignGrantTable",
    "Gntshr",
    "Gnttab",
    "Grant",
    "GrantArrays",
    "GrantBusy",
    "GrantEntry",
    "GrantError",
    "GrantRef",
    "GrantTable",
    "GrantTableFull",
    "InterfaceClosed",
    "InterfaceUnavailable",
    "InvalidGrant",
    "MapError",
    "Mapped",
    "Mapping",
    "Page",
    "Peer",
    "PeerClosed",
    "PeerTally",
    "Permission",
    "Port",
    "ProtocolError",
    "Share",
    "Snapshot",
    "UnmapNotify",
    "XenStore",
    "XenStoreError",
    "connect",
]

__version__ = "0.1.0"
