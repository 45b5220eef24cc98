"""A guest's console or xenstore page, mapped read-only in dom0; and how the state of its rings is told.

Called by `console` and `xenstore` beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import xengrant
from xengrant.abi.grant_table import GNTST_BAD_DOMAIN
from xengrant.cli import arguments, output, statuses
from xengrant.cli.dump import printable
from xengrant.cli.survey import domain_names
from xengrant.grant_entries import EntryKind
from xengrant.rings.byte_ring_look import RingLook

__all__ = ["GuestPage", "check_possible", "describe", "emit_rings", "open_page"]

_PURPOSE = {xengrant.GrantRef.CONSOLE: "console", xengrant.GrantRef.XENSTORE: "xenstore connection"}
_WHO_HAS_NONE = {
    xengrant.GrantRef.CONSOLE: "an HVM guest has one only where its toolstack made it one; what its emulated serial "
    "port says `xl console -t serial` shows",
    xengrant.GrantRef.XENSTORE: "its toolstack made none, so nothing in it speaks with xenstored that way",
}


@dataclass(frozen=True)
class GuestPage:
    """One page of a guest, mapped by `domain`, this one."""

    domain: xengrant.Domain
    domid: int
    name: str
    mapping: xengrant.Mapping

    @property
    def called(self) -> str:
        return f"domain {self.domid} ({self.name})" if self.name else f"domain {self.domid}"


@contextlib.contextmanager
def open_page(args: argparse.Namespace, ref: xengrant.GrantRef) -> Iterator[GuestPage]:
    """The page behind `ref` of the domain that the arguments name; what is in the way is an error that says so."""
    with xengrant.connect(args.url) as domain:
        domid = arguments.resolve_domid(domain, args.domain)
        with domain.xenstore() as store:
            names = domain_names(domain, store)  # in a guest it says that this is for dom0
        if domid == domain.domid:
            raise ValueError(f"domain {domid} is this domain: it is a guest's {_PURPOSE[ref]} that can be looked into")
        if domid not in names:
            there = ", ".join(map(str, names))
            raise xengrant.PeerClosed(errno.ESRCH, f"there is no domain {domid}; domids here: {there}")
        with domain.gnttab() as gnttab, _map(domain, gnttab, domid, ref) as mapped:
            yield GuestPage(domain, domid, names[domid], mapped.mapping)


def _map(domain: xengrant.Domain, gnttab: xengrant.Gnttab, domid: int, ref: xengrant.GrantRef) -> xengrant.Mapped:
    try:
        return gnttab.map(xengrant.Grant(domid, ref), writable=False)
    except xengrant.MapError as error:
        if GNTST_BAD_DOMAIN in error.statuses:
            raise xengrant.PeerClosed(errno.ESRCH, f"there is no domain {domid} any more") from None
        reason = _why_not(domain, domid, ref)
        if reason is None:
            raise
        raise xengrant.MapError(error.errno or errno.EINVAL, reason, statuses=error.statuses) from None


def _why_not(domain: xengrant.Domain, domid: int, ref: xengrant.GrantRef) -> str | None:
    """What the guest's grant table says of the page; None where that says nothing against mapping it."""
    with domain.grant_table(of=domid) as table:
        entry = table.read(ref)
    page = f"the page of domain {domid}'s {_PURPOSE[ref]} (ref {int(ref)})"
    if entry.kind is not EntryKind.ACCESS or not entry.granted:
        return f"{page} is not granted: {_WHO_HAS_NONE[ref]}"
    if entry.domid != domain.domid:
        return f"{page} is granted to domain {entry.domid}, which serves it: look into it there"
    return None


def describe(look: RingLook) -> dict[str, Any]:
    """A ring's state, for JSON."""
    return {
        "size": look.size,
        "held": look.held,
        "consumed": look.consumed,
        "produced": look.produced,
        "possible": look.possible,
    }


def emit_rings(page: GuestPage, what: str, rings: Mapping[str, tuple[str, RingLook]], facts: Mapping[str, str]) -> None:
    """What it is, a row for each ring (its name, who writes it, its state), and what else the page says."""
    output.emit(f"{what} of {printable(page.called)}")
    output.emit_table(
        ["ring", "from", "size", "held", "consumed", "produced"],
        [
            [name, writer, *(str(number) for number in (look.size, look.held, look.consumed, look.produced))]
            for name, (writer, look) in rings.items()
        ],
    )
    output.emit(", ".join(f"{name}: {value}" for name, value in facts.items()))


def check_possible(page: GuestPage, rings: Mapping[str, tuple[str, RingLook]]) -> int:
    """The exit status: failed, and a message for each, where a ring's indices cannot be."""
    lies = [(name, look) for name, (_, look) in rings.items() if not look.possible]
    for name, look in lies:
        output.say(
            f"xengrant: the indices of the ring {name} cannot be: {look.held} bytes in a ring of {look.size}; domain "
            f"{page.domid} or the daemon is broken or lies, and nothing goes through that ring any more"
        )
    return statuses.FAILED if lies else statuses.DONE
