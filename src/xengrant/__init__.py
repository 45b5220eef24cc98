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
from xengrant.gntshr import Gntshr, Share, UnmapNotify
from xengrant.gnttab import CopySegment, Gnttab, Grant, GrantRef, Mapped
from xengrant.meeting import Advertisement
from xengrant.memory import PAGE_SIZE, Mapping
from xengrant.peer import AsyncPeer, Peer
from xengrant.xenstore import AsyncXenStore, Permission, XenStore

__all__ = [
    "PAGE_SIZE",
    "Advertisement",
    "AsyncDomain",
    "AsyncEventChannels",
    "AsyncPeer",
    "AsyncPort",
    "AsyncXenStore",
    "CopySegment",
    "Domain",
    "EventChannels",
    "Gntshr",
    "Gnttab",
    "Grant",
    "GrantBusy",
    "GrantError",
    "GrantRef",
    "GrantTableFull",
    "InterfaceClosed",
    "InterfaceUnavailable",
    "InvalidGrant",
    "MapError",
    "Mapped",
    "Mapping",
    "Peer",
    "PeerClosed",
    "Permission",
    "Port",
    "ProtocolError",
    "Share",
    "UnmapNotify",
    "XenStore",
    "XenStoreError",
    "connect",
]

__version__ = "0.1.0"
