"""What dom0 sees of a guest's grant table and may write into it, and what Xen and Linux refuse everybody else."""

from __future__ import annotations

from collections.abc import Iterable

from xengrant.abi import grant_table as xen
from xengrant.abi import privcmd
from xengrant.abi.xen import HYPERVISOR_GRANT_TABLE_OP
from xengrant.devices import Device, Pointer
from xengrant.errors import GrantBusy, InterfaceUnavailable, InvalidGrant, MapError, PeerClosed
from xengrant.foreign_table import ForeignGrantTable
from xengrant.gnttab import GrantRef
from xengrant.grant_entries import EntryKind, GrantEntry
from xengrant.grant_snapshot import PeerTally
from xengrant.memory import PAGE_SIZE
from xengrant.testing.case import DOM0, GUEST_PEER, LINUX, Case
from xengrant.testing.expect import equal, eventually, raises, true
from xengrant.testing.here import SOON, Here

RESOURCE = "Xen common/memory.c, acquire_resource; Linux drivers/xen/privcmd.c, privcmd_ioctl_mmap_resource"
HEADER = "Xen public/grant_table.h"
NOBODY = 30000


class ConsoleAndXenstore(Case):
    """Refs 0 and 1 of every guest are its console and xenstore pages, granted to dom0 by the domain builder"""

    source = f"{HEADER}, GNTTAB_RESERVED_CONSOLE and GNTTAB_RESERVED_XENSTORE"
    requires = (DOM0,)

    def mapper(self, here: Here) -> None:
        with here.domain.grant_table(of=here.other) as table:
            for ref in GrantRef:
                entry = table.read(ref)
                equal(entry[:3], (ref, EntryKind.ACCESS, 0), f"the entry of ref {ref!r}")
                equal(entry[4:], (False, True, True), f"whether {ref!r} is read-only, being read, being written")
        grants = [(here.other, ref) for ref in GrantRef]
        with here.domain.gnttab() as gnttab, gnttab.map(grants, writable=False) as mapped:
            equal(len(mapped.mapping), 2 * PAGE_SIZE, "the length of both")


class LiveTable(Case):
    """dom0 sees every grant of a guest live: granted to it or another, marked while it is mapped, gone when revoked"""

    source = f"{RESOURCE}; {HEADER}, GTF flags"
    peer = "granter"
    requires = (DOM0,)

    def granter(self, here: Here) -> None:
        here.hear("looked before")
        with here.domain.gntshr() as gntshr:
            with (
                gntshr.share_pages(here.other, 2, writable=True) as writable,
                gntshr.share_pages(here.other, 1, writable=False) as read_only,
                gntshr.share_pages(NOBODY, 1, writable=True) as other,
            ):
                here.tell("refs", [*writable.refs, *read_only.refs, *other.refs])
                here.hear("looked")
            here.tell("closed")

    def mapper(self, here: Here) -> None:
        with here.domain.grant_table(of=here.other) as table, here.domain.gnttab() as gnttab:
            before = _by_ref(table.grants())
            here.tell("looked before")
            first, second, read_only, other = here.offered()
            now = _by_ref(table.grants())
            equal(sorted(now.keys() - before.keys()), sorted(here.hear("refs")), "the refs that are new")
            for grant, domid, readonly in (
                (first, here.domid, False),
                (second, here.domid, False),
                (read_only, here.domid, True),
                (other, NOBODY, False),
            ):
                entry = now[grant.ref]
                equal((entry.kind, entry.domid), (EntryKind.ACCESS, domid), f"kind and peer of ref {grant.ref}")
                equal(entry[4:], (readonly, False, False), f"read-only, reading and writing of ref {grant.ref}")
            equal(len({now[grant.ref].frame for grant in (first, second, read_only, other)}), 4, "different frames")
            with gnttab.map(first, writable=True), gnttab.map([second, read_only], writable=False):
                marks = [table.read(grant.ref)[4:] for grant in (first, second, read_only, other)]
                expected = [(False, True, True), (False, True, False), (True, True, False), (False, False, False)]
                equal(marks, expected, "read-only, reading and writing while some are mapped")
                tally = next(peer for peer in _tally(table) if peer.domid == here.domid)
                true(tally.mapped >= 3 and tally.writing >= 1, f"what is mapped is counted: {tally}")
            equal(_by_ref(table.grants())[first.ref], now[first.ref], "the entry after the unmap")
            here.tell("looked")
            here.hear("closed")
            eventually(
                lambda: not _by_ref(table.grants()).keys() & {grant.ref for grant in (first, second, read_only, other)},
                "the revoked entries are gone",
                SOON,
            )


class TableGrows(Case):
    """A table that grows while dom0 looks at it shows its new frames too; looking makes no table grow"""

    source = f"{RESOURCE}; common/grant_table.c, gnttab_query_size and gnttab_get_version (XSM_TARGET)"
    peer = "granter"
    requires = (DOM0,)

    def granter(self, here: Here) -> None:
        here.hear("looked before")
        with here.domain.gntshr() as gntshr, gntshr.share_pages(here.other, 900, writable=True) as share:
            here.tell("highest", max(share.refs))
            here.hear("looked")

    def mapper(self, here: Here) -> None:
        device = here.domain.system.open("privcmd")
        with here.domain.grant_table(of=here.other) as table:
            equal(_size(device, here.other)[0], table.frames, "the frames, as the hypercall tells them")
            here.tell("looked before")
            highest = here.hear("highest")
            entries = {entry.ref: entry for entry in table.grants()}
            true(highest in entries, f"ref {highest} is seen")
            equal(entries[highest].domid, here.domid, "whom it is granted to")
            true(sum(peer.granted for peer in table.snapshot.tally()) >= 900, "so many grants are counted")
            frames, maximum, status = _size(device, here.other)
            equal((frames, maximum), (table.frames, table.max_frames), "the frames and their maximum")
            equal(status, xen.GNTST_OKAY, "query_size's status")
            per_frame = len(table.snapshot) // table.frames
            true(highest < frames * per_frame <= len(table.snapshot), f"{frames} frames hold ref {highest}")
            true(table.version in (1, 2), f"the version is {table.version}")
        equal(_size(device, NOBODY)[2], xen.GNTST_BAD_DOMAIN, "query_size's status of no domain")
        here.tell("looked")
        device.close()


class Builder(Case):
    """dom0 as a builder writes an entry into a guest's table: it maps the same page as the console's, until revoked"""

    source = f"{RESOURCE}; Xen tools/tests/resource; {HEADER}, how entries are introduced and invalidated"
    requires = (DOM0,)

    def builder(self, here: Here) -> None:
        with here.domain.grant_table(of=here.other, writable=True) as table, here.domain.gnttab() as gnttab:
            console = table.read(GrantRef.CONSOLE)
            assert console.frame is not None
            ref = len(table.snapshot) - 1  # the guest uses low ones
            grant = (here.other, ref)
            for wrong in (GrantRef.CONSOLE, len(table.snapshot)):
                with raises(InvalidGrant, f"granting through ref {wrong}"):
                    table.grant_access(wrong, here.domid, console.frame, writable=True)
            table.grant_access(ref, here.domid, console.frame, writable=True)
            with raises(InvalidGrant, "granting twice"):
                table.grant_access(ref, here.domid, console.frame, writable=False)
            with gnttab.map([(here.other, GrantRef.CONSOLE), grant], writable=False) as both:
                equal(bytes(both.mapping.page(1)), bytes(both.mapping.page(0)), "the console's page through both refs")
                equal(table.read(ref)[5:], (True, False), "reading and writing while it is mapped")
                with raises(GrantBusy, "revoking what is mapped", says=str(ref)):
                    table.end_access(ref)
            table.end_access(ref)
            self._expect_refused(here, grant)
            table.grant_access(ref, here.domid, console.frame, writable=False)
            with raises(MapError, "mapping a read-only grant writable"):
                gnttab.map(grant, writable=True)
            gnttab.map(grant, writable=False).close()
            table.end_access(ref)
            with raises(InvalidGrant, "revoking twice"):
                table.end_access(ref)
            self._expect_refused(here, grant)

    def _expect_refused(self, here: Here, grant: tuple[int, int]) -> None:
        with here.domain.gnttab() as gnttab, raises(MapError, "mapping a revoked entry") as caught:
            gnttab.map(grant, writable=False)
        equal(caught.error.statuses, (xen.GNTST_GENERAL_ERROR,), "the status")


class Refused(Case):
    """dom0 can look neither at its own table nor at that of no domain, and writes only where it asked to"""

    source = "Xen xsm/dummy.h, XSM_DM_PRIV: never the caller itself"
    requires = (DOM0,)

    def mapper(self, here: Here) -> None:
        with raises(InterfaceUnavailable, "dom0's own table", says="its own"):
            here.domain.grant_table(of=here.domid)
        with raises(PeerClosed, "the table of no domain", says=str(NOBODY)):
            here.domain.grant_table(of=NOBODY)
        with here.domain.grant_table(of=here.other) as table:
            with raises(InterfaceUnavailable, "writing to a table opened read-only", says="writable=True"):
                table.grant_access(20, 0, 1, writable=True)
            with raises(InterfaceUnavailable, "writing to a table opened read-only", says="writable=True"):
                table.end_access(20)


class ProcessHasNone(Case):
    """A process inside a domain has no grant table: the error says whose it is, and what to use instead"""

    source = "Linux drivers/xen/grant-table.c: the kernel's own"
    requires = (LINUX,)

    def process(self, here: Here) -> None:
        with raises(InterfaceUnavailable, "a process's own table", says="its kernel has"):
            here.domain.grant_table()
        with raises(InterfaceUnavailable, "a process's own pages", says="share_pages"):
            here.domain.alloc_pages(1)


class GuestMayNot(Case):
    """A guest looks at nobody's table, and the error says why"""

    source = "Linux drivers/xen/privcmd.c: confined to the domain's target (XSA-482); Xen XSM_DM_PRIV"
    peer = "guest"
    requires = (GUEST_PEER,)

    def guest(self, here: Here) -> None:
        for domid in {0, here.other} - {here.domid}:
            with raises(InterfaceUnavailable, f"domain {domid}'s table from a guest"):
                here.domain.grant_table(of=domid)
        with raises(InterfaceUnavailable, "its own table from a guest", says="its own"):
            here.domain.grant_table(of=here.domid)


def _by_ref(entries: Iterable[GrantEntry]) -> dict[int, GrantEntry]:
    return {entry.ref: entry for entry in entries}


def _tally(table: ForeignGrantTable) -> list[PeerTally]:
    table.refresh()
    return table.snapshot.tally()


def _size(device: Device, domid: int) -> tuple[int, int, int]:
    """(frames, maximum, status), as Xen tells them."""
    operand = xen.pack_query_size(domid)
    arg = privcmd.pack_hypercall(HYPERVISOR_GRANT_TABLE_OP, xen.QUERY_SIZE, 0, 1)
    device.ioctl(privcmd.HYPERCALL, arg, [Pointer(arg, privcmd.hypercall_argument(1), operand, "inout")])
    return xen.query_size_result(operand)
