"""Mapping and copying what was not granted, or is granted no longer."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

import xengrant
from tests.attacks.conftest import Outcome, Refused
from tests.attacks.raw import Raw
from tests.embedded.conftest import Open
from tests.embedded.ioctls import alloc, dealloc
from xengrant.abi import gntdev, kernelspace, unmap_notify
from xengrant.abi import grant_table as table_abi
from xengrant.abi.xen import DOMID_SELF, PAGE_SIZE
from xengrant.devices.wire import Direction
from xengrant.embedded import Machine
from xengrant.grant_entries import entries_of
from xengrant.memory import Mapping

THROUGH = "gntdev's connection"


@pytest.fixture
def granter(machine: Machine) -> Iterator[Raw]:
    with Raw(machine, "gntalloc", 1) as device:
        yield device


@pytest.fixture
def mapper(machine: Machine) -> Iterator[Raw]:
    """The hostile one's."""
    with Raw(machine, "gntdev", 3) as device:
        yield device


def copied(device: Raw, domid: int, ref: int, *, write: bytes = b"") -> tuple[int, bytes]:
    """(status, local bytes) of a grant copy of one segment, from the grant or to it."""
    local, remote = write or bytes(16), (ref, 0, domid)
    segment = gntdev.pack_segment(None if write else remote, remote if write else None, len(local))
    at, way = (gntdev.SEGMENT_SOURCE, Direction.IN) if write else (gntdev.SEGMENT_DEST, Direction.OUT)
    table = (0, gntdev.COPY_SEGMENTS_POINTER, Direction.INOUT, len(segment), bytes(segment))
    pointer = (1, at, way, len(local), local if write else b"")
    arg = gntdev.pack_copy(1)
    reply = device.ioctl(gntdev.GRANT_COPY, arg, [table, pointer])
    back = bytearray(reply.body[len(arg) : len(arg) + len(segment)])
    return gntdev.segment_status(back, 0), reply.body[len(arg) + len(segment) :]


def contents(device: Raw) -> bytes:
    """Everything that the descriptors which came show."""
    return b"".join(os.pread(fd, os.fstat(fd).st_size, 0) for fd in device.fds)


def test_all_refs_of_another_domain(granter: Raw, mapper: Raw, outcome: Outcome) -> None:
    """map every ref of another domain's table"""
    granter.alloc(2, 4)
    granter.alloc(0, 4)
    codes = set()
    for ref in range(table_abi.V1_ENTRIES_PER_FRAME):
        with pytest.raises(OSError, match="GNTST") as caught:
            mapper.map((1, ref), writable=bool(ref % 2))
        codes.add(caught.value.errno)
    assert codes == {errno.EINVAL}
    assert not mapper.fds
    outcome("EINVAL, 512 times")


@pytest.mark.parametrize("ref", [0, 1, table_abi.V1_ENTRIES_PER_FRAME, 1 << 31, (1 << 32) - 1])
@pytest.mark.parametrize("domid", [0, 1, 9, DOMID_SELF, DOMID_SELF + 1, 0x7FF2, 0xFFFF, 0x10001])
def test_refs_and_domids_that_are_guessed(mapper: Raw, domid: int, ref: int, refused: Refused) -> None:
    """map a ref that is guessed"""
    with refused(errno.EINVAL):
        mapper.map((domid, ref), writable=False)
    assert not mapper.fds


@pytest.mark.parametrize("writable", [False, True], ids=["for reading", "for writing"])
def test_a_grant_of_others(granter: Raw, mapper: Raw, writable: bool, refused: Refused) -> None:
    """map what is granted to another domain"""
    _, (ref,) = granter.alloc(2)
    with refused(errno.EINVAL):
        mapper.map((1, ref), writable=writable)
    assert not mapper.fds


def test_a_foreign_grant_among_ones_own(machine: Machine, granter: Raw, mapper: Raw, refused: Refused) -> None:
    """map one grant of others in the middle of one's own"""
    _, own = granter.alloc(3, 2)
    _, (foreign,) = granter.alloc(2)
    with refused(errno.EINVAL):
        mapper.map((1, own[0]), (1, foreign), (1, own[1]), writable=True)
    assert not mapper.fds
    assert machine.status()["domains"][1]["mapped"] == 0


def test_ones_own_grant_to_another(machine: Machine, mapper: Raw, refused: Refused) -> None:
    """map one's own grant, which is another domain's to map"""
    with Raw(machine, "gntalloc", 3) as own:
        _, (ref,) = own.alloc(2)
        with refused(errno.EINVAL):
            mapper.map((3, ref), writable=False)
        assert copied(mapper, 3, ref)[0] == copied(mapper, DOMID_SELF, ref)[0] == table_abi.GNTST_GENERAL_ERROR


def test_a_revoked_grant(granter: Raw, mapper: Raw, refused: Refused) -> None:
    """map what was revoked"""
    index, (ref,) = granter.alloc(3)
    early = mapper.add_map((1, ref))
    mapper.unmap(mapper.map((1, ref), writable=True))  # a PV domain's: the mapping is still there
    mapper.munmap(1)
    granter.dealloc(index)
    with refused(errno.EINVAL):
        mapper.mmap(PAGE_SIZE, early, writable=False)
    with refused(errno.EINVAL):
        mapper.map((1, ref), writable=False)
    assert copied(mapper, 1, ref) == (table_abi.GNTST_GENERAL_ERROR, bytes(16))


@pytest.mark.parametrize("writable", [True, False], ids=["writable", "read-only"])
def test_a_revoked_neighbour(opened: Open, mapper: Raw, writable: bool, outcome: Outcome) -> None:
    """read a page that was revoked, in the memory of pages that are not"""
    device = opened(1, "gntalloc")
    index, refs = alloc(device, 3, 3, writable=writable)
    with device.mmap(3 * PAGE_SIZE, index, writable=True) as pages:
        pages[:] = b"a secret".ljust(PAGE_SIZE, b".") * 3
    dealloc(device, index + PAGE_SIZE)
    mapper.map((1, refs[0]), (1, refs[2]), writable=False)
    shown = contents(mapper)
    assert shown[:PAGE_SIZE] == shown[2 * PAGE_SIZE :] == b"a secret".ljust(PAGE_SIZE, b".")
    assert shown[PAGE_SIZE : 2 * PAGE_SIZE] == bytes(PAGE_SIZE)
    outcome("it was emptied when it was revoked")


def test_a_map_that_was_used_before(granter: Raw, mapper: Raw, refused: Refused) -> None:
    """mmap a map for a second time, and one that was removed"""
    _, (ref,) = granter.alloc(3)
    index = mapper.map((1, ref), writable=False)
    for writable in (False, True):
        with refused(errno.EINVAL):
            mapper.mmap(PAGE_SIZE, index, writable=writable)
    mapper.unmap(index)
    with refused(errno.EINVAL):
        mapper.mmap(PAGE_SIZE, index, writable=False)
    with refused(errno.ENOENT):
        mapper.unmap(index)


def test_a_dead_granter(machine: Machine, mapper: Raw, refused: Refused) -> None:
    """map the grants of a domain that was destroyed, while one of its pages is mapped and after"""
    machine.create(4)
    with Raw(machine, "gntalloc", 4) as dead:
        _, refs = dead.alloc(3, 3)
        index = mapper.map((4, refs[0]), writable=True)
        early = mapper.add_map((4, refs[1]))
        machine.destroy(4)
    assert machine.status()["domains"][4]["state"] == "dying"
    for offset in (early, mapper.add_map((4, refs[2]))):
        with refused(errno.EINVAL):
            mapper.mmap(PAGE_SIZE, offset, writable=False)
    assert copied(mapper, 4, refs[1])[0] != table_abi.GNTST_OKAY
    mapper.munmap(1)
    mapper.unmap(index)
    with refused(errno.EINVAL):
        mapper.map((4, refs[0]), writable=False)


def test_the_successor_of_a_dead_granter(machine: Machine, mapper: Raw, refused: Refused) -> None:
    """map, by the refs that the last domain of that number granted, the pages of the next one"""
    machine.create(4)
    with Raw(machine, "gntalloc", 4) as dead:
        _, refs = dead.alloc(3, 3)
        early = mapper.add_map(*((4, ref) for ref in refs))
        machine.destroy(4)
    machine.create(4)
    with Raw(machine, "gntalloc", 4) as reborn:
        assert reborn.alloc(2, 3)[1] == refs
        with refused(errno.EINVAL):
            mapper.mmap(3 * PAGE_SIZE, early, writable=False)
    machine.destroy(4)


def test_offsets_of_another_connection(machine: Machine, granter: Raw, mapper: Raw, refused: Refused) -> None:
    """use the offset of another connection's map, or page"""
    index, (ref,) = granter.alloc(3)
    offset = mapper.add_map((1, ref))
    notify = unmap_notify.pack_notify(offset, unmap_notify.CLEAR_BYTE, 0)
    with Raw(machine, "gntdev", 3) as other:
        with refused(errno.EINVAL):
            other.mmap(PAGE_SIZE, offset, writable=True)
        with refused(errno.ENOENT):
            other.unmap(offset)
        with refused(errno.ENOENT):
            other.ioctl(gntdev.SET_UNMAP_NOTIFY, notify)
    for domid in (1, 3):
        with Raw(machine, "gntalloc", domid) as other:
            with refused(errno.ENOENT):
                other.mmap(PAGE_SIZE, index, writable=True)
            with refused(errno.EINVAL):
                other.dealloc(index)
            with refused(errno.ENOENT):
                other.ioctl(gntdev.SET_UNMAP_NOTIFY, notify)
            assert not other.fds


def test_cookies_of_another_connection(machine: Machine, granter: Raw, mapper: Raw, outcome: Outcome) -> None:
    """unmap what another connection maps"""
    _, (ref,) = granter.alloc(2)
    with Raw(machine, "gntdev", 2) as honest:
        honest.map((1, ref), writable=True)
        for cookie in range(10):
            mapper.munmap(cookie)
        assert machine.status()["domains"][1]["mapped"] == machine.status()["domains"][2]["mmaps"] == 1
        honest.munmap(1)
    outcome("ignored, as an address that is not mapped")


@pytest.mark.parametrize("offset", [1 << 63, (1 << 64) - PAGE_SIZE, PAGE_SIZE // 2, PAGE_SIZE])
@pytest.mark.parametrize("device", ["gntalloc", "gntdev"])
def test_offsets_that_are_guessed(machine: Machine, granter: Raw, device: str, offset: int, outcome: Outcome) -> None:
    """mmap an offset that is guessed"""
    with Raw(machine, device, 3) as own:
        if device == "gntalloc":
            own.alloc(2)
        else:
            own.add_map((1, granter.alloc(3)[1][0]))
        for length in (1, PAGE_SIZE, 2 * PAGE_SIZE, 1 << 40, (1 << 64) - 1):
            if (device, offset, length) == ("gntdev", PAGE_SIZE // 2, 1):
                continue
            if device == "gntdev" and offset < PAGE_SIZE and length <= PAGE_SIZE:
                continue  # page 0 is its own
            with pytest.raises(OSError, match=r"Invalid|No such|Cannot allocate"):
                own.mmap(length, offset, writable=True)
        assert not own.fds
    outcome("EINVAL, ENOENT or ENOMEM")


def test_a_copy_of_what_is_not_granted(granter: Raw, mapper: Raw, outcome: Outcome) -> None:
    """grant copy from and to what is granted to others, not at all, or for reading only"""
    _, (foreign,) = granter.alloc(2)
    _, (readonly,) = granter.alloc(3, writable=False)
    for domid, ref, status in (
        (1, foreign, table_abi.GNTST_GENERAL_ERROR),
        (1, readonly + 1, table_abi.GNTST_GENERAL_ERROR),
        (1, 1 << 31, table_abi.GNTST_BAD_GNTREF),
        (0, 8, table_abi.GNTST_GENERAL_ERROR),
        (9, 8, table_abi.GNTST_BAD_DOMAIN),
        (DOMID_SELF, 8, table_abi.GNTST_GENERAL_ERROR),
    ):
        assert copied(mapper, domid, ref) == (status, bytes(16))
        assert copied(mapper, domid, ref, write=b"x" * 16)[0] == status
    assert copied(mapper, 1, readonly) == (table_abi.GNTST_OKAY, bytes(16))
    assert copied(mapper, 1, readonly, write=b"x" * 16)[0] == table_abi.GNTST_GENERAL_ERROR
    assert copied(mapper, 1, readonly) == (table_abi.GNTST_OKAY, bytes(16))
    outcome("a status for each segment, nothing copied")


@pytest.mark.parametrize(("offset", "length"), [(PAGE_SIZE, 1), (1, PAGE_SIZE), (0xFFFF, 0xFFFF)])
def test_a_copy_beyond_the_page(granter: Raw, mapper: Raw, offset: int, length: int, refused: Refused) -> None:
    """grant copy beyond the page that is granted"""
    _, (ref,) = granter.alloc(3)
    segment = gntdev.pack_segment((ref, offset, 1), None, length)
    table = (0, gntdev.COPY_SEGMENTS_POINTER, Direction.INOUT, len(segment), bytes(segment))
    local = (1, gntdev.SEGMENT_DEST, Direction.OUT, length, b"")
    with refused(errno.EINVAL):
        mapper.ioctl(gntdev.GRANT_COPY, gntdev.pack_copy(1), [table, local])


def test_a_byte_of_a_read_only_map_by_its_notification(granter: Raw, mapper: Raw, outcome: Outcome) -> None:
    """have the machine clear a byte of a read-only page, by a notification made before it is mapped"""
    index, (ref,) = granter.alloc(3)
    granter.mmap(PAGE_SIZE, index, writable=True)
    os.pwrite(granter.fds[-1], b"full", 0)
    offset = mapper.add_map((1, ref))
    mapper.ioctl(gntdev.SET_UNMAP_NOTIFY, unmap_notify.pack_notify(offset, unmap_notify.CLEAR_BYTE, 0))
    mapper.mmap(PAGE_SIZE, offset, writable=False)
    mapper.munmap(1)
    mapper.unmap(offset)
    assert os.pread(granter.fds[-1], 4, 0) == b"full"
    granter.munmap(1)
    outcome("not cleared")


def test_frames_of_others_in_ones_own_table(machine: Machine, outcome: Outcome) -> None:
    """as a domain's kernel, grant to an accomplice the frames of other domains, all of them"""
    frames = range(0x0FF0, 0x1040)
    assert machine._server.hypervisor.frames.find(0x1000, 1)  # so some of them are there
    with Raw(machine, "kernel", 5, kernel=True) as kernel, Raw(machine, "gntdev", 3) as accomplice:
        kernel.mmap(PAGE_SIZE, kernelspace.TABLE_OFFSET, writable=True)
        with Mapping(((kernel.fds[0], 0, PAGE_SIZE),), writable=True) as table:
            entries = entries_of(1, [table])
            for frame in frames:
                if machine._server.hypervisor.frames.find(frame, 5):
                    continue  # its own
                entries.grant(100, 3, frame, writable=True)
                with pytest.raises(OSError, match=f"GNTST {table_abi.GNTST_BAD_PAGE}"):
                    accomplice.map((5, 100), writable=True)
                entries.end_access(100)
            entries.frames.clear()
        assert not accomplice.fds
    outcome("EINVAL")


def test_neighbours_of_what_dom0_grants_on(machine: Machine, granter: Raw, mapper: Raw, outcome: Outcome) -> None:
    """where dom0 grants a page of others on, see those that were shared with it"""
    index, refs = granter.alloc(2, 2)
    granter.mmap(2 * PAGE_SIZE, index, writable=True)
    os.pwrite(granter.fds[-1], b"neighbour", PAGE_SIZE)
    entries = machine._server.hypervisor.domains[1].table.entries
    entries.grant(20, 3, entries.read(refs[0]).frame or 0, writable=True)
    mapper.map((1, 20), writable=True)
    assert b"neighbour" in contents(mapper)
    mapper.munmap(1)
    entries.end_access(20)
    granter.munmap(1)
    outcome("gets through, as docs/differences.md says")


def test_the_builders_other_page(machine: Machine, mapper: Raw, outcome: Outcome) -> None:
    """where dom0 grants a guest's console on, see its xenstore page too"""
    with xengrant.connect(machine.url(0)) as dom0, dom0.grant_table(of=1) as table:
        frame = table.read(0).frame
        assert frame is not None
        with dom0.gnttab() as gnttab, gnttab.map((1, 1), writable=True) as page:
            page.mapping[:6] = b"secret"
        entries = machine._server.hypervisor.domains[1].table.entries
        entries.grant(20, 3, frame, writable=True)
        mapper.map((1, 20), writable=True)
        assert contents(mapper) == bytes(PAGE_SIZE)
        mapper.munmap(1)
        entries.end_access(20)
    outcome("each is memory of its own")
