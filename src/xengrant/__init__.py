"""Xen grant tables for Python: share memory pages with another domain, map pages that another shared, notify it.

`connect()` is where a program starts. The same code runs on a real Xen hypervisor and on an embedded machine
(`xengrant machine`), which needs no Xen at all.

Each public name is imported when it is first used, so that `xengrant --help`, which needs none, starts at once.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

_HOMES = (
    "domain",
    "errors",
    "evtchn",
    "foreign_table",
    "gntshr",
    "gnttab",
    "grant_entries",
    "grant_snapshot",
    "grant_table",
    "kernelspace",
    "meeting",
    "memory",
    "peer",
    "xenstore",
)
"""The modules that the public names are in."""

if not TYPE_CHECKING:  # else every name would be there

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        for home in _HOMES:
            module = import_module(f"{__name__}.{home}")
            globals().update({public: getattr(module, public) for public in module.__all__ if public in __all__})
        return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
