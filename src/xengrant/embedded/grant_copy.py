"""gntdev's GRANT_COPY: one segment after the other, each with a status of its own (Linux gntdev_ioctl_grant_copy)."""

from __future__ import annotations

import errno

from xengrant.abi import gntdev as abi
from xengrant.abi.grant_table import GNTST_OKAY
from xengrant.abi.xen import PAGE_SIZE
from xengrant.devices.wire import MAX_SEGMENTS, Argument, Direction, Ioctl
from xengrant.embedded.domain import Domain
from xengrant.embedded.files import fault
from xengrant.embedded.grants import GrantFailedError, Grants

Side = tuple[int, int, int]  # ref, offset, domid


def grant_copy(grants: Grants, domain: Domain, call: Ioctl) -> None:
    """Copy every segment of `call` and fill in its status.

    ENOMEM for more segments than the machine can copy while all others wait. EINVAL for a segment without a grant or
    beyond a page and EFAULT for a bad pointer; the segments before it were copied by then.
    """
    pointers = call.index()
    table = pointers.get((0, abi.COPY_SEGMENTS_POINTER))
    count = abi.copy_count(call.arg)
    if table is None or table.direction is not Direction.INOUT or len(table.data) < count * abi.SEGMENT_SIZE:
        raise fault(errno.EFAULT, "the segments are not there")
    if count > MAX_SEGMENTS:
        raise fault(errno.ENOMEM, f"{count} segments, where at most {MAX_SEGMENTS} are copied at once")
    holder = call.pointers.index(table) + 1
    for i in range(count):
        source, dest, length, flags = abi.unpack_segment(table.data, i)
        at = i * abi.SEGMENT_SIZE
        from_grant, to_grant = flags & abi.COPY_SOURCE_GREF, flags & abi.COPY_DEST_GREF
        if not from_grant and not to_grant:
            raise fault(errno.EINVAL, f"segment {i} has no grant")
        for granted, side in ((from_grant, source), (to_grant, dest)):
            if granted and side[1] + length > PAGE_SIZE:
                raise fault(errno.EINVAL, f"segment {i} leaves the page")
        if length == 0:  # Linux asks the hypervisor for nothing
            continue
        local_source = None if from_grant else _local(pointers.get((holder, at + abi.SEGMENT_SOURCE)), length)
        local_dest = None if to_grant else _local(pointers.get((holder, at + abi.SEGMENT_DEST)), length)
        status = _copy(grants, domain, local_source or source, local_dest or dest, length)
        abi.fill_segment(table.data, i, status)


def _copy(grants: Grants, domain: Domain, source: Side | Argument, dest: Side | Argument, length: int) -> int:
    try:
        if isinstance(source, Argument):
            data = bytes(source.data[:length])
        else:
            ref, offset, domid = source
            data = grants.read(domain, domid, ref, offset, length)
        if isinstance(dest, Argument):
            dest.data[:length] = data
        else:
            ref, offset, domid = dest
            grants.write(domain, domid, ref, offset, data)
    except GrantFailedError as failure:
        return failure.status
    return GNTST_OKAY


def _local(pointer: Argument | None, length: int) -> Argument:
    if pointer is None or len(pointer.data) < length:
        raise fault(errno.EFAULT, "a segment's local memory is not there")
    return pointer
