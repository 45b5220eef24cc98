"""What dom0 sees of a guest's grant table, and what Xen and Linux refuse everybody else."""

from __future__ import annotations

import errno

from xengrant.abi import grant_table as xen
from xengrant.abi import privcmd
from xengrant.abi.xen import HYPERVISOR_GRANT_TABLE_OP
from xengrant.devices import Device, Pointer
from xengrant.gnttab import GrantRef
from xengrant.memory import PAGE_SIZE, Mapping
from xengrant.testing.case import DOM0, GUEST_PEER, Case
from xengrant.testing.expect import equal, raises, true
from xengrant.testing.here import Here

RESOURCE = "Xen common/memory.c, acquire_resource; Linux drivers/xen/privcmd.c, privcmd_ioctl_mmap_resource"


class ConsoleAndXenstore(Case):
    """Refs 0 and 1 of every guest are its console and xenstore pages, granted to dom0 by the domain builder"""

    source = "Xen public/grant_table.h, GNTTAB_RESERVED_CONSOLE and GNTTAB_RESERVED_XENSTORE"
    requires = (DOM0,)

    def mapper(self, here: Here) -> None:
        with here.domain.gnttab() as gnttab:
            for ref in (GrantRef.CONSOLE, GrantRef.XENSTORE):
                with gnttab.map((here.other, ref), writable=False) as mapped:
                    equal(len(mapped.mapping[:]), PAGE_SIZE, f"the bytes of ref {ref!r}")
            with gnttab.map([(here.other, ref) for ref in GrantRef], writable=False) as mapped:
                equal(len(mapped.mapping), 2 * PAGE_SIZE, "the length of both")


class LiveTable(Case):
    """dom0 reads a guest's live table: an entry is granted, marked while it is mapped, and cleared by the revocation"""

    source = f"{RESOURCE}; Xen public/grant_table.h, GTF flags"
    peer = "granter"
    requires = (DOM0,)

    def granter(self, here: Here) -> None:
        with here.domain.gntshr() as gntshr:
            with (
                gntshr.share_pages(here.other, 1, writable=True) as share,
                gntshr.share_pages(here.other, 1, writable=False) as read_only,
            ):
                here.tell("refs", [*share.refs, *read_only.refs])
                here.hear("looked")
            here.tell("closed")

    def mapper(self, here: Here) -> None:
        writable, read_only = here.offered()
        privcmd_device = here.domain.system.open("privcmd")
        table = _map_table(privcmd_device, here.other)

        def entry(ref: int) -> tuple[int, int]:
            at = ref * xen.V1_ENTRY_SIZE
            data = table[at : at + xen.V1_ENTRY_SIZE]
            return int.from_bytes(data[:2], "little"), int.from_bytes(data[2:4], "little")

        permit, marks = xen.GTF_PERMIT_ACCESS, xen.GTF_READING | xen.GTF_WRITING
        equal(entry(writable.ref), (permit, here.domid), "the writable entry")
        equal(entry(read_only.ref), (permit | xen.GTF_READONLY, here.domid), "the read-only entry")
        with (
            here.domain.gnttab() as gnttab,
            gnttab.map([writable, read_only][:1], writable=True),
            gnttab.map(read_only, writable=False),
        ):
            equal(entry(writable.ref)[0], permit | marks, "the writable entry's flags while it is mapped")
            expected = permit | xen.GTF_READONLY | xen.GTF_READING
            equal(entry(read_only.ref)[0], expected, "the read-only entry's flags while it is mapped")
        equal(entry(writable.ref)[0], permit, "the writable entry's flags after the unmap")
        here.tell("looked")
        here.hear("closed")
        equal(entry(writable.ref)[0] & xen.GTF_TYPE_MASK, xen.GTF_INVALID, "the type of a revoked entry")
        equal(entry(GrantRef.CONSOLE)[1], 0, "whom the console's entry is granted to")
        table.close()
        privcmd_device.close()


class SizeAndVersion(Case):
    """dom0 asks for the size and the version of a guest's table by hypercall"""

    source = "Xen common/grant_table.c, gnttab_query_size and gnttab_get_version (XSM_TARGET)"
    requires = (DOM0,)

    def mapper(self, here: Here) -> None:
        device = here.domain.system.open("privcmd")
        size = xen.pack_query_size(here.other)
        equal(_grant_table_op(device, xen.QUERY_SIZE, size), 0, "query_size")
        frames, maximum, status = xen.query_size_result(size)
        equal(status, xen.GNTST_OKAY, "query_size's status")
        true(0 < frames <= maximum <= 1 << 20, f"{frames} frames of at most {maximum}")
        version = xen.pack_get_version(here.other)
        equal(_grant_table_op(device, xen.GET_VERSION, version), 0, "get_version")
        true(xen.get_version_result(version) in (1, 2), "the version is 1 or 2")
        nobody = xen.pack_query_size(30000)
        _grant_table_op(device, xen.QUERY_SIZE, nobody)
        equal(xen.query_size_result(nobody)[2], xen.GNTST_BAD_DOMAIN, "query_size's status of no domain")
        device.close()


class NotItsOwn(Case):
    """dom0 cannot map its own table: EPERM"""

    source = "Xen xsm/dummy.h, XSM_DM_PRIV: never the caller itself"
    requires = (DOM0,)

    def mapper(self, here: Here) -> None:
        device = here.domain.system.open("privcmd")
        with raises(OSError, "mapping this domain's own table") as caught:
            _map_table(device, here.domid)
        equal(caught.error.errno, errno.EPERM, "errno")
        device.close()


class GuestMayNot(Case):
    """A guest reads nobody's table: neither hypercall nor mapping"""

    source = "Linux drivers/xen/privcmd.c: confined to the domain's target (XSA-482); Xen XSM_DM_PRIV"
    peer = "guest"
    requires = (GUEST_PEER,)

    def guest(self, here: Here) -> None:
        device = here.domain.system.open("privcmd")
        for domid in (0, here.other, here.domid):
            with raises(OSError, f"mapping domain {domid}'s table") as caught:
                _map_table(device, domid)
            true(caught.error.errno in (errno.EPERM, errno.EACCES, errno.ESRCH), f"errno {caught.error.errno}")
        device.close()


def _map_table(device: Device, domid: int) -> Mapping:
    """The first frame of a domain's grant table, read-only."""
    mapping = device.mmap(PAGE_SIZE, 0, writable=False)
    arg = privcmd.pack_resource(domid, xen.RESOURCE_GRANT_TABLE, xen.RESOURCE_ID_SHARED, 0, 1)
    try:
        device.ioctl(privcmd.MMAP_RESOURCE, arg, [Pointer(arg, privcmd.RESOURCE_ADDR_POINTER, mapping, "map")])
    except BaseException:
        mapping.close()
        raise
    return mapping


def _grant_table_op(device: Device, operation: int, operand: bytearray) -> int:
    arg = privcmd.pack_hypercall(HYPERVISOR_GRANT_TABLE_OP, operation, 0, 1)
    return device.ioctl(privcmd.HYPERCALL, arg, [Pointer(arg, privcmd.hypercall_argument(1), operand, "inout")])
