"""dom0's view of other domains' tables: hypercalls and MMAP_RESOURCE."""

from __future__ import annotations

import errno

import pytest

from xengrant import _native
from xengrant.abi import grant_table, privcmd
from xengrant.abi.xen import DOMID_SELF, HYPERVISOR_GRANT_TABLE_OP, PAGE_SIZE
from xengrant.devices import Device, Pointer
from xengrant.embedded import Machine
from xengrant.grant_entries import EntriesV1, EntryKind, GrantEntry
from xengrant.memory import Mapping

from .conftest import Open
from .ioctls import add_map, alloc, dealloc, eventually, map_grants, refused, share


def hypercall(device: Device, command: int, arg: bytearray) -> bytearray:
    request = privcmd.pack_hypercall(HYPERVISOR_GRANT_TABLE_OP, command, 0, 1)
    device.ioctl(privcmd.HYPERCALL, request, [Pointer(request, privcmd.hypercall_argument(1), arg, "inout")])
    return arg


def query_size(device: Device, domid: int) -> tuple[int, int, int]:
    arg = hypercall(device, grant_table.QUERY_SIZE, grant_table.pack_query_size(domid))
    return grant_table.query_size_result(arg)


def map_table(
    device: Device, domid: int, frame: int, count: int, *, writable: bool, id_: int = grant_table.RESOURCE_ID_SHARED
) -> Mapping:
    mapping = device.mmap(count * PAGE_SIZE, 0, writable=writable)
    arg = privcmd.pack_resource(domid, grant_table.RESOURCE_GRANT_TABLE, id_, frame, count)
    try:
        device.ioctl(privcmd.MMAP_RESOURCE, arg, [Pointer(arg, privcmd.RESOURCE_ADDR_POINTER, mapping, "map")])
    except BaseException:
        mapping.close()
        raise
    return mapping


def resource_size(device: Device, domid: int, id_: int = grant_table.RESOURCE_ID_SHARED) -> int:
    arg = privcmd.pack_resource(domid, grant_table.RESOURCE_GRANT_TABLE, id_, 0, 0)
    device.ioctl(privcmd.MMAP_RESOURCE, arg)
    return privcmd.resource_result(arg)


def test_query_size_and_version(opened: Open, machine: Machine) -> None:
    machine.create(1, max_grant_frames=7)
    device = opened(0, "privcmd")
    assert query_size(device, 1) == (1, 7, grant_table.GNTST_OKAY)
    assert query_size(device, DOMID_SELF)[2] == grant_table.GNTST_OKAY
    assert query_size(device, 5)[2] == grant_table.GNTST_BAD_DOMAIN
    version = hypercall(device, grant_table.GET_VERSION, grant_table.pack_get_version(1))
    assert grant_table.get_version_result(version) == 1
    with refused(errno.ESRCH):
        hypercall(device, grant_table.GET_VERSION, grant_table.pack_get_version(5))
    with refused(errno.ENOSYS):
        hypercall(device, 0, bytearray(64))
    with refused(errno.EFAULT):
        hypercall(device, grant_table.QUERY_SIZE, bytearray(3))


def test_the_table_of_another_domain_is_live(opened: Open) -> None:
    gntalloc = opened(1, "gntalloc")
    with map_table(opened(0, "privcmd"), 1, 0, 1, writable=False) as table:

        def flags(ref: int) -> int:
            return _native.load16(table, ref * grant_table.V1_ENTRY_SIZE)

        assert [flags(ref) for ref in (0, 1, 2)] == [0x19, 0x19, 0]
        refs, mine = share(gntalloc, 2)
        assert refs == (8,)
        assert flags(8) == grant_table.GTF_PERMIT_ACCESS
        assert _native.load16(table, 8 * grant_table.V1_ENTRY_SIZE + grant_table.DOMID) == 2
        _, theirs = map_grants(opened(2, "gntdev"), [(1, 8)], writable=True)
        assert flags(8) == 0x19
        theirs.close()
        assert flags(8) == 0x1
        _, theirs = map_grants(opened(2, "gntdev"), [(1, 8)], writable=False)
        assert flags(8) == 0x9
        theirs.close()
        mine.close()
        assert flags(8) == 0
        _, mine = share(gntalloc, 2, writable=False)
        assert flags(8) == grant_table.GTF_PERMIT_ACCESS | grant_table.GTF_READONLY
        with pytest.raises(TypeError):
            table[0] = 0
        mine.close()


def test_reading_and_writing_follow_the_pins(opened: Open) -> None:
    refs, mine = share(opened(1, "gntalloc"), 2)
    device = opened(2, "gntdev")
    with map_table(opened(0, "privcmd"), 1, 0, 1, writable=False) as table:

        def flags() -> int:
            return _native.load16(table, refs[0] * grant_table.V1_ENTRY_SIZE)

        _, reader = map_grants(device, [(1, refs[0])], writable=False)
        _, writer = map_grants(device, [(1, refs[0])], writable=True)
        assert flags() == 0x19
        writer.close()
        assert flags() == 0x9
        _, writer = map_grants(device, [(1, refs[0])], writable=True)
        reader.close()
        assert flags() == 0x19
        writer.close()
        assert flags() == 0x1
    mine.close()


def test_dom0_as_a_builder_writes_an_entry_that_maps(opened: Open) -> None:
    opened(1, "gntalloc")
    with map_table(opened(0, "privcmd"), 1, 0, 1, writable=True) as table:
        entries = EntriesV1([memoryview(table)])
        frame = entries.read(0).frame
        assert frame is not None
        entries.grant(20, 0, frame, writable=True)
        device = opened(0, "gntdev")
        _, both = map_grants(device, [(1, 0), (1, 20)], writable=True)
        with both:
            both[:4] = b"page"
            assert both[PAGE_SIZE : PAGE_SIZE + 4] == b"page"
            assert entries.read(20) == GrantEntry(20, EntryKind.ACCESS, 0, frame, False, True, True)
        assert entries.read(20) == GrantEntry(20, EntryKind.ACCESS, 0, frame, False, False, False)
        entries.end_access(20)
        entries.frames.clear()


def test_a_frame_that_is_not_the_domains_own_is_refused(opened: Open) -> None:
    refs, mine = share(opened(3, "gntalloc"), 2)
    opened(1, "gntalloc")
    device = opened(0, "privcmd")
    with (
        mine,
        map_table(device, 1, 0, 1, writable=True) as table,
        map_table(device, 3, 0, 1, writable=False) as victim,
    ):
        entries, others = EntriesV1([memoryview(table)]), EntriesV1([memoryview(victim)])
        for frame in (others.read(refs[0]).frame or 0, 1, 0xFFFFFFFF):
            entries.grant(20, 2, frame, writable=True)
            gntdev = opened(2, "gntdev")
            index = add_map(gntdev, [(1, 20)])
            with refused(errno.EINVAL):
                gntdev.mmap(PAGE_SIZE, index, writable=True)
            entries.end_access(20)  # left neither reading nor writing
        entries.frames.clear()
        others.frames.clear()


def test_mapping_a_frame_beyond_the_size_grows_the_table(opened: Open, machine: Machine) -> None:
    machine.create(1, max_grant_frames=4)
    gntalloc = opened(1, "gntalloc")
    device = opened(0, "privcmd")
    assert resource_size(device, 1) == 4
    map_table(device, 1, 2, 1, writable=False).close()
    assert query_size(device, 1) == (3, 4, 0)
    with map_table(device, 1, 0, 4, writable=False) as table:
        assert len(table) == 4 * PAGE_SIZE
        _, refs = alloc(gntalloc, 2, 600)  # the guest's kernel grows into what is there already
        assert max(refs) == 607
        assert _native.load16(table, 607 * grant_table.V1_ENTRY_SIZE) == grant_table.GTF_PERMIT_ACCESS
    assert query_size(device, 1) == (4, 4, 0)
    for frame, count in ((4, 1), (3, 2), (0, 5)):
        with refused(errno.EINVAL):
            map_table(device, 1, frame, count, writable=False)


def test_what_mmap_resource_refuses(opened: Open) -> None:
    opened(1, "gntalloc")
    device = opened(0, "privcmd")
    for domid, number in ((0, errno.EPERM), (DOMID_SELF, errno.EPERM), (7, errno.ESRCH)):
        with refused(number):
            map_table(device, domid, 0, 1, writable=False)
        with refused(number):
            resource_size(device, domid)
    with refused(errno.EINVAL):
        map_table(device, 1, 0, 1, writable=False, id_=grant_table.RESOURCE_ID_STATUS)
    with refused(errno.EINVAL):
        resource_size(device, 1, grant_table.RESOURCE_ID_STATUS)
    with refused(errno.EINVAL):  # frames, but no address
        device.ioctl(privcmd.MMAP_RESOURCE, privcmd.pack_resource(1, grant_table.RESOURCE_GRANT_TABLE, 0, 0, 1))
    with device.mmap(PAGE_SIZE, 0, writable=False) as small:
        arg = privcmd.pack_resource(1, grant_table.RESOURCE_GRANT_TABLE, 0, 0, 2)
        with refused(errno.EINVAL):
            device.ioctl(privcmd.MMAP_RESOURCE, arg, [Pointer(arg, privcmd.RESOURCE_ADDR_POINTER, small, "map")])
        foreign = opened(0, "privcmd")
        arg = privcmd.pack_resource(1, grant_table.RESOURCE_GRANT_TABLE, 0, 0, 1)
        with refused(errno.EINVAL):
            foreign.ioctl(privcmd.MMAP_RESOURCE, arg, [Pointer(arg, privcmd.RESOURCE_ADDR_POINTER, small, "map")])


def test_a_guest_may_not(opened: Open) -> None:
    opened(2, "gntalloc")
    device = opened(1, "privcmd")
    with refused(errno.EPERM):
        query_size(device, 1)
    with refused(errno.EPERM):
        resource_size(device, 2)
    with refused(errno.EPERM):
        map_table(device, 2, 0, 1, writable=False)


def test_a_table_that_dom0_wrote_to_costs_the_guest_references_only(opened: Open, machine: Machine) -> None:
    gntalloc = opened(1, "gntalloc")
    index, refs = alloc(gntalloc, 2, 2)
    assert refs == (8, 9)
    with map_table(opened(0, "privcmd"), 1, 0, 1, writable=True) as table:
        table[8 * grant_table.V1_ENTRY_SIZE : 9 * grant_table.V1_ENTRY_SIZE] = bytes(grant_table.V1_ENTRY_SIZE)
        dealloc(gntalloc, index, 2)
        assert machine.status()["domains"][1]["grants"] == 0
        assert [line for line in machine.kernel_log(1) if "g.e. 0x8 was overwritten" in line]
        index, (nine,) = alloc(gntalloc, 2)
        dealloc(gntalloc, index)
        table[nine * grant_table.V1_ENTRY_SIZE] = grant_table.GTF_PERMIT_ACCESS
        index, refs = alloc(gntalloc, 2, 2)
        assert nine not in refs
        assert [line for line in machine.kernel_log(1) if f"leaking g.e. {nine:#x}" in line]
    dealloc(gntalloc, index, 2)
    machine.destroy(1)


# Version 2


def status_of(status: Mapping, ref: int) -> int:
    return _native.load16(status, ref * grant_table.V2_STATUS_SIZE)


def test_a_version_2_table_has_its_marks_in_status_frames(opened: Open, machine: Machine) -> None:
    machine.create(1, grant_table_version=2)
    device, gntalloc, gntdev = opened(0, "privcmd"), opened(1, "gntalloc"), opened(2, "gntdev")
    version = hypercall(device, grant_table.GET_VERSION, grant_table.pack_get_version(1))
    assert grant_table.get_version_result(version) == 2
    with (
        map_table(device, 1, 0, 1, writable=False) as table,
        map_table(device, 1, 0, 1, writable=False, id_=grant_table.RESOURCE_ID_STATUS) as status,
    ):

        def flags(ref: int) -> int:
            return _native.load16(table, ref * grant_table.V2_ENTRY_SIZE)

        assert [(flags(ref), status_of(status, ref)) for ref in (0, 1, 2)] == [(1, 0x18), (1, 0x18), (0, 0)]
        refs, mine = share(gntalloc, 2)
        assert (flags(refs[0]), status_of(status, refs[0])) == (1, 0)
        _, theirs = map_grants(gntdev, [(1, refs[0])], writable=True)
        assert (flags(refs[0]), status_of(status, refs[0])) == (1, 0x18)
        mine.close()
        assert (flags(refs[0]), status_of(status, refs[0])) == (0, 0x18)  # revoked, and still mapped
        index = add_map(gntdev, [(1, refs[0] + 1)])
        with refused(errno.EINVAL):
            gntdev.mmap(PAGE_SIZE, index, writable=False)
        theirs.close()
        eventually(lambda: status_of(status, refs[0]) == 0, "the mark goes with the mapping")


def test_a_version_2_map_for_reading_marks_reading_only(opened: Open, machine: Machine) -> None:
    machine.create(1, grant_table_version=2)
    refs, mine = share(opened(1, "gntalloc"), 2)
    gntdev = opened(2, "gntdev")
    with mine, map_table(
        opened(0, "privcmd"), 1, 0, 1, writable=False, id_=grant_table.RESOURCE_ID_STATUS
    ) as status:
        _, reader = map_grants(gntdev, [(1, refs[0])], writable=False)
        assert status_of(status, refs[0]) == grant_table.GTF_READING
        _, writer = map_grants(gntdev, [(1, refs[0])], writable=True)
        assert status_of(status, refs[0]) == 0x18
        writer.close()
        assert status_of(status, refs[0]) == grant_table.GTF_READING
        reader.close()
        assert status_of(status, refs[0]) == 0


def test_a_version_2_entry_that_is_revoked_while_it_is_marked_keeps_no_mark(
    opened: Open, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.create(1, grant_table_version=2)
    refs, mine = share(opened(1, "gntalloc"), 2)
    gntdev, device = opened(2, "gntdev"), opened(0, "privcmd")
    with (
        mine,
        map_table(device, 1, 0, 1, writable=True) as table,
        map_table(device, 1, 0, 1, writable=False, id_=grant_table.RESOURCE_ID_STATUS) as status,
        monkeypatch.context() as patched,
    ):
        at = refs[0] * grant_table.V2_ENTRY_SIZE
        patched.setattr(_native, "fence", lambda: _native.store16(table, at, 0))  # between the mark and the second look
        index = add_map(gntdev, [(1, refs[0])])
        with refused(errno.EINVAL):
            gntdev.mmap(PAGE_SIZE, index, writable=True)
        assert status_of(status, refs[0]) == 0


def test_mapping_a_status_frame_grows_the_table_as_far_as_it_is_needed(opened: Open, machine: Machine) -> None:
    machine.create(1, grant_table_version=2, max_grant_frames=20)
    device, status = opened(0, "privcmd"), grant_table.RESOURCE_ID_STATUS
    assert resource_size(device, 1, status) == 3
    assert resource_size(device, 1) == 20
    map_table(device, 1, 0, 1, writable=False, id_=status).close()
    assert query_size(device, 1) == (1, 20, 0)
    map_table(device, 1, 1, 1, writable=False, id_=status).close()
    assert query_size(device, 1) == (9, 20, 0)
    for frame, count in ((3, 1), (2, 2), (0, 4)):
        with refused(errno.EINVAL):
            map_table(device, 1, frame, count, writable=False, id_=status)
