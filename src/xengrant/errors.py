"""What can go wrong, as types: every layer raises these, none imports anything of the package.

    GrantError
    ├── InterfaceUnavailable (OSError)     no device, no permission, or no such thing on this machine
    ├── InterfaceClosed (ValueError)       *we* closed it
    ├── GrantTableFull (OSError)           gntalloc's limit, or the table itself
    ├── MapError (OSError)                 the hypervisor refused; .statuses says why, one for each grant
    ├── GrantBusy (BlockingIOError)        the peer still maps it
    ├── InvalidGrant (ValueError)          a reference that cannot be meant
    ├── PeerClosed (ConnectionError)       *they* closed it, or died
    ├── ProtocolError                      the peer lies
    └── XenStoreError (OSError)            xenstore answered with an error

Each also inherits the builtin that callers already catch; those that are an `OSError` keep `errno`. Our own
closing, the peer's and a busy object are three different errors.
"""

from __future__ import annotations

from collections.abc import Sequence

SILO = "with xsm=silo, the default on arm64, guests reach dom0 only; boot Xen with xsm=dummy to have them reach others"
"""What to do where Xen refuses two guests what dom0 and a guest may do (Xen xen/xsm/silo.c)."""

__all__ = [
    "GrantBusy",
    "GrantError",
    "GrantTableFull",
    "InterfaceClosed",
    "InterfaceUnavailable",
    "InvalidGrant",
    "MapError",
    "PeerClosed",
    "ProtocolError",
    "XenStoreError",
]


class GrantError(Exception):
    """Base of everything that xengrant raises on purpose, bad arguments (`ValueError`, `TypeError`) apart."""


class InterfaceUnavailable(GrantError, OSError):
    """A device cannot be had here; the message names it and the module to load, the group to join or the setting."""


class InterfaceClosed(GrantError, ValueError):
    """The object was closed by this program (or belongs to the process that forked this one)."""


class GrantTableFull(GrantError, OSError):
    """No more pages can be shared now.

    `limit` names what is exhausted: ``"gntalloc"`` (the module's `limit` parameter, pages of all processes of the
    domain) or ``"table"`` (the domain's grant table, `max_grant_frames`).
    """

    limit: str

    def __init__(self, errno: int, message: str, *, limit: str = "") -> None:
        super().__init__(errno, message)
        self.limit = limit


class MapError(GrantError, OSError):
    """Grants could not be mapped; nothing was.

    `statuses` holds the hypervisor's GNTST status of each grant in the order asked, found by copying one byte from
    it, or is empty where it could not be asked. 0 beside an error means: granted, but read-only and asked writable,
    or the mapping domain's maptrack is full.
    """

    statuses: tuple[int, ...]

    def __init__(self, errno: int, message: str, *, statuses: Sequence[int] = ()) -> None:
        super().__init__(errno, message)
        self.statuses = tuple(statuses)


class GrantBusy(GrantError, BlockingIOError):
    """The peer still maps the page: the entry, the reference and the page stay held. Try again later."""


class InvalidGrant(GrantError, ValueError):
    """A reference that is reserved, foreign, not granted, already free, or not of this object."""


class PeerClosed(GrantError, ConnectionError):
    """The other domain, or its half of the object, is gone."""


class ProtocolError(GrantError):
    """What the peer wrote breaks the protocol: it lies or is broken, and nothing of it was believed."""


class XenStoreError(GrantError, OSError):
    """xenstore refused; `errno` is its error, `path` what was asked for, the message the cause and the remedy."""

    path: str | None

    def __init__(self, errno: int, message: str, *, path: str | None = None) -> None:
        super().__init__(errno, message)
        self.path = path
