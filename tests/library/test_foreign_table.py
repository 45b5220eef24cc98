"""dom0's view of another domain's table: on embedded machines, and over a device that answers as a test says."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence

import pytest

import xengrant
from xengrant import (
    Domain,
    EntryKind,
    ForeignGrantTable,
    Grant,
    GrantBusy,
    GrantEntry,
    InterfaceClosed,
    InterfaceUnavailable,
    InvalidGrant,
    Mapping,
    PeerClosed,
    PeerTally,
)
from xengrant.abi import grant_table as abi
from xengrant.abi import privcmd
from xengrant.abi.xen import PAGE_SIZE
from xengrant.devices import Device, Pointer
from xengrant.embedded import Machine

# On an embedded machine


@pytest.fixture(params=[1, 2], ids=["v1", "v2"])
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def guest(machine: Machine, version: int) -> Iterator[Domain]:
    """Domain 3, which runs Linux."""
    machine.create(3, grant_table_version=version, max_grant_frames=9)
    with xengrant.connect(machine.url(3)) as domain:
        yield domain


@pytest.fixture
def dom0(machine: Machine) -> Iterator[Domain]:
    with xengrant.connect(machine.url(0)) as domain:
        yield domain


def without_builders(entries: Sequence[GrantEntry]) -> list[GrantEntry]:
    return [entry for entry in entries if entry.ref > 1]


def test_every_grant_is_seen_mapped_or_not(dom0: Domain, guest: Domain, mapper: Domain, version: int) -> None:
    with dom0.grant_table(of=3) as table, guest.gntshr() as gntshr, mapper.gnttab() as gnttab:
        assert (table.domid, table.version, table.frames, table.max_frames) == (3, version, 1, 9)
        assert [entry[:3] for entry in table.grants()] == [(0, EntryKind.ACCESS, 0), (1, EntryKind.ACCESS, 0)]
        assert all(entry.reading and entry.writing for entry in table.grants())
        with gntshr.share_pages(2, 2, writable=True) as share, gntshr.share_pages(1, writable=False) as other:
            first, second, third = found = without_builders(table.grants())
            assert [entry.ref for entry in found] == [*share.refs, *other.refs]
            assert [entry.domid for entry in found] == [2, 2, 1]
            assert [entry.readonly for entry in found] == [False, False, True]
            assert not any(entry.mapped for entry in found)
            assert len({first.frame, second.frame, third.frame}) == 3
            with gnttab.map(Grant(3, share.refs[1]), writable=False):
                assert table.read(share.refs[1]) == second._replace(reading=True)
                assert without_builders(table.grants())[1].mapped
                assert table.snapshot.tally()[:2] == [PeerTally(0, 2, 0, 2, 2), PeerTally(2, 2, 0, 1, 0)]
        assert without_builders(table.grants()) == []


def test_a_page_that_is_revoked_and_still_mapped_is_seen(dom0: Domain, guest: Domain, mapper: Domain) -> None:
    with dom0.grant_table(of=3) as table, guest.gntshr() as gntshr, mapper.gnttab() as gnttab:
        share = gntshr.share_pages(2, writable=True)
        with gnttab.map(Grant(3, share.refs[0]), writable=True):
            share.close()
            (entry,) = without_builders(table.grants())
            assert entry.mapped
            assert entry.granted == (table.version == 1)


def test_refresh_says_whether_anything_changed(dom0: Domain, guest: Domain) -> None:
    with dom0.grant_table(of=3) as table, guest.gntshr() as gntshr:
        assert not table.refresh()
        with gntshr.share_pages(2, writable=True):
            assert table.refresh()
            assert not table.refresh()
        assert table.refresh()


def test_a_table_that_grows_is_followed_and_never_made_to_grow(
    dom0: Domain, guest: Domain, machine: Machine, version: int
) -> None:
    per_frame = 512 if version == 1 else 256
    with dom0.grant_table(of=3) as table, guest.gntshr() as gntshr:
        for _ in range(3):
            table.refresh()
        assert machine.status()["domains"][3]["frames"] == 1
        with gntshr.share_pages(2, 2 * per_frame, writable=True) as share:
            with pytest.raises(InvalidGrant, match="beyond"):
                table.read(max(share.refs))
            assert table.refresh()
            assert table.frames == 3
            assert table.read(max(share.refs)).domid == 2
            assert len(without_builders(table.grants())) == 2 * per_frame
        assert table.frames == machine.status()["domains"][3]["frames"] == 3


def test_an_open_table_keeps_a_destroyed_domain_from_going(dom0: Domain, guest: Domain, machine: Machine) -> None:
    with dom0.grant_table(of=3) as table, dom0.grant_table(of=3) as another:
        machine.destroy(3)
        assert [entry.ref for entry in table.grants()] == [0, 1]
        assert machine.status()["domains"][3]["state"] == "dying"
        with pytest.raises(ValueError, match="dying"):
            machine.create(3)
        table.close()
        assert another.read(0).domid == 0
    assert 3 not in machine.status()["domains"]
    with pytest.raises(PeerClosed, match="no domain 3, or no more"):
        dom0.grant_table(of=3)
    machine.create(3)
    dom0.grant_table(of=3).close()


def test_a_builder_gets_references_of_an_unused_table(dom0: Domain, machine: Machine, version: int) -> None:
    machine.create(4, grant_table_version=version)
    with dom0.grant_table(of=4, writable=True) as foreign, dom0.gnttab() as gnttab:
        table = foreign.unused_table()
        frame = foreign.read(1).frame
        assert (table.version, frame is None) == (version, False)
        ref = table.get_nowait()
        assert ref == 8
        table.grant_access(ref, 0, frame or 0, writable=False)
        assert [entry.ref for entry in foreign] == [0, 1, 8]
        gnttab.map((4, ref), writable=False).close()
        table.end_access(ref)
    with dom0.grant_table(of=4) as foreign, pytest.raises(InterfaceUnavailable, match="writable=True"):
        foreign.unused_table()


def test_a_builder_grants_and_revokes(dom0: Domain, guest: Domain, mapper: Domain, machine: Machine) -> None:
    with dom0.grant_table(of=3, writable=True) as table, dom0.gnttab() as gnttab:
        frame = table.read(0).frame
        assert frame is not None
        table.grant_access(20, 0, frame, writable=True)
        assert table.read(20) == GrantEntry(20, EntryKind.ACCESS, 0, frame, False, False, False)
        with pytest.raises(InvalidGrant, match="in use already"):
            table.grant_access(20, 2, frame, writable=True)
        with gnttab.map([Grant(3, 0), Grant(3, 20)], writable=True) as both:
            both.mapping[:4] = b"page"
            assert both.mapping[PAGE_SIZE : PAGE_SIZE + 4] == b"page"
            for _ in range(2):
                with pytest.raises(GrantBusy):
                    table.end_access(20)
        table.end_access(20)
        with pytest.raises(InvalidGrant, match="not granted"):
            table.end_access(20)
        assert not table.read(20).granted


@pytest.mark.parametrize("ref", [0, 1, 7])
def test_what_a_domain_needs_is_not_revoked(dom0: Domain, guest: Domain, ref: int) -> None:
    with dom0.grant_table(of=3, writable=True) as table, pytest.raises(InvalidGrant, match="the domain needs it"):
        table.end_access(ref)


def test_wrong_arguments_of_a_builder(dom0: Domain, guest: Domain) -> None:
    with dom0.grant_table(of=3, writable=True) as table:
        for domid in (-1, 0x7FF0):
            with pytest.raises(ValueError, match="domid"):
                table.grant_access(20, domid, 1, writable=True)
        for ref in (-1, 512, 1 << 40):
            for call in (table.end_access, table.read):
                with pytest.raises(InvalidGrant, match="beyond"):
                    call(ref)


def test_a_table_that_was_opened_to_read_refuses_to_write(dom0: Domain, guest: Domain) -> None:
    with dom0.grant_table(of=3) as table:
        calls: list[Callable[[], object]] = [
            lambda: table.grant_access(20, 0, 5, writable=True),
            lambda: table.end_access(20),
        ]
        for call in calls:
            with pytest.raises(InterfaceUnavailable, match="writable=True") as caught:
                call()
            assert caught.value.errno == errno.EACCES
        with pytest.raises(TypeError):
            table._mappings[0][0] = 1


def test_why_there_is_no_table_is_said(dom0: Domain, guest: Domain) -> None:
    with pytest.raises(InterfaceUnavailable, match="domain 0 is this domain, and nobody maps its own"):
        dom0.grant_table(of=0)
    with pytest.raises(InterfaceUnavailable, match=r"for the control domain alone.*run this in dom0"):
        guest.grant_table(of=1)
    with pytest.raises(PeerClosed, match="there is no domain 77"):
        dom0.grant_table(of=77)
    with pytest.raises(InterfaceUnavailable, match="kernel=1"):
        dom0.grant_table()
    for domid in (-1, 0x7FF0):
        with pytest.raises(ValueError, match="domid"):
            dom0.grant_table(of=domid)


def test_a_table_that_was_closed_says_so(dom0: Domain, guest: Domain) -> None:
    table = dom0.grant_table(of=3, writable=True)
    assert not table.closed
    assert repr(table) == f"<ForeignGrantTable of domain 3, v{table.version}, 1 frames (max 9), writable>"
    table.close()
    table.close()
    assert table.closed
    assert repr(table) == "<ForeignGrantTable of domain 3, closed>"
    calls: list[Callable[[], object]] = [
        *(table.refresh, table.grants, table.__enter__, lambda: table.read(8), lambda: table.end_access(8)),
        lambda: table.grant_access(8, 1, 2, writable=True),
    ]
    for call in calls:
        with pytest.raises(InterfaceClosed, match="open it with"):
            call()


# Over a device of the test's own


class FakePrivcmd(Device):
    """A hypervisor with one table. `failures` holds what the n-th MMAP_RESOURCE or hypercall raises."""

    def __init__(self, frames: int, version: int = 1) -> None:
        super().__init__("privcmd")
        self.frames = frames
        self.version = version
        self.status = abi.GNTST_OKAY
        self.asked: list[tuple[int, int, int]] = []  # id, first frame, frames
        self.failures: dict[str, list[OSError | None]] = {"map": [], "call": []}
        self.mappings: dict[int, int] = {}  # descriptors by address
        self.unmapped = 0

    def ioctl(self, request: int, arg: bytearray, pointers: Sequence[Pointer] = ()) -> int:
        self._check_open()
        failures = self.failures["map" if request == privcmd.MMAP_RESOURCE else "call"]
        failure = failures.pop(0) if failures else None
        if failure is not None:
            raise failure
        [pointer] = pointers
        if request == privcmd.MMAP_RESOURCE:
            _domid, kind, id_, first, count = privcmd.unpack_resource(arg)
            assert kind == abi.RESOURCE_GRANT_TABLE
            self.asked.append((id_, first, count))
            assert isinstance(pointer.target, Mapping)
            assert len(pointer.target) == count * PAGE_SIZE
            for number in range(count):
                content = self.frame(id_, first + number)
                os.pwrite(self.mappings[pointer.target.address], content, number * PAGE_SIZE)
        else:
            assert isinstance(pointer.target, bytearray)
            _op, (command, *_) = privcmd.unpack_hypercall(arg)
            if command == abi.QUERY_SIZE:
                abi.fill_query_size(pointer.target, self.frames, 100, self.status)
            else:
                abi.fill_get_version(pointer.target, self.version)
        return 0

    def frame(self, id_: int, number: int) -> bytes:
        """Each frame grants its last entry, to the domain of its number."""
        if id_ == abi.RESOURCE_ID_STATUS:
            return bytes(PAGE_SIZE)
        size = abi.V1_ENTRY_SIZE if self.version == 1 else abi.V2_ENTRY_SIZE
        return bytes(PAGE_SIZE - size) + bytes([1, 0, number, 0]) + bytes(size - 4)

    def mmap(self, length: int, offset: int, *, writable: bool, unmapped: Callable[[], None] | None = None) -> Mapping:
        fd = os.memfd_create("table", os.MFD_CLOEXEC)
        os.ftruncate(fd, length)

        def gone() -> None:
            self.unmapped += 1

        mapping = Mapping([(fd, 0, length)], writable=writable, unmapped=gone)
        self.mappings[mapping.address] = fd
        return mapping

    def read(self, size: int) -> bytes:
        raise NotImplementedError

    def write(self, data: bytes) -> int:
        raise NotImplementedError

    def fileno(self) -> int:
        raise NotImplementedError

    def close(self) -> None:
        self.closed = True
        for fd in self.mappings.values():
            os.close(fd)
        self.mappings.clear()

    abandon = close


def granted_to(table: ForeignGrantTable) -> list[int]:
    return [entry.domid for entry in table.snapshot.grants()]


def test_more_frames_than_xen_maps_at_once_are_mapped_in_parts() -> None:
    device = FakePrivcmd(70)
    with ForeignGrantTable(device, 3, writable=False) as table:
        assert device.asked == [(0, 0, 32), (0, 32, 32), (0, 64, 6)]
        assert table.frames == 70
        assert granted_to(table) == list(range(70))
        assert table.read(33 * 512 - 1).domid == 32
    assert device.unmapped == 3


def test_version_2_has_a_status_frame_for_eight_frames() -> None:
    device = FakePrivcmd(70, version=2)
    with ForeignGrantTable(device, 3, writable=False) as table:
        assert device.asked == [(0, 0, 32), (0, 32, 32), (0, 64, 6), (1, 0, 9)]
        assert granted_to(table) == list(range(70))
        device.frames = 73
        assert table.refresh()
        assert device.asked[4:] == [(0, 70, 3), (1, 9, 1)]
        assert granted_to(table) == list(range(73))


def test_growth_maps_what_is_new_and_nothing_else() -> None:
    device = FakePrivcmd(1)
    with ForeignGrantTable(device, 3, writable=False) as table:
        assert not table.refresh()
        assert device.asked == [(0, 0, 1)]
        device.frames = 40
        assert table.refresh()
        assert not table.refresh()
        assert device.asked == [(0, 0, 1), (0, 1, 32), (0, 33, 7)]
        assert granted_to(table) == list(range(40))


@pytest.mark.parametrize(("frames", "version"), [(2, 2), (1, 1)], ids=["version", "fewer frames"])
def test_a_table_that_began_anew_is_mapped_anew(frames: int, version: int) -> None:
    device = FakePrivcmd(2)
    with ForeignGrantTable(device, 3, writable=False) as table:
        device.frames, device.version = frames, version
        assert table.refresh()
        assert (table.frames, table.version) == (frames, version)
        assert device.unmapped == 1
        assert device.asked[1:] == [(0, 0, frames), *([(1, 0, 1)] if version == 2 else [])]
        assert granted_to(table) == list(range(frames))
        assert not table.refresh()


def test_one_whose_mapping_fails_then_can_be_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    device = FakePrivcmd(2)
    with ForeignGrantTable(device, 3, writable=False) as table:
        device.version = 2

        def fail(*args: object, **kwargs: object) -> Mapping:
            raise OSError(errno.ENOMEM, "no memory")

        with monkeypatch.context() as patch:
            patch.setattr(device, "mmap", fail)
            with pytest.raises(OSError, match="no memory"):
                table.refresh()
        assert table.refresh()
        assert granted_to(table) == [0, 1]
        assert table.snapshot.version == 2


def test_what_was_revoked_before_a_table_began_anew_is_forgotten() -> None:
    device = FakePrivcmd(1, version=2)
    with ForeignGrantTable(device, 3, writable=True) as table:
        (ref,) = (entry.ref for entry in table.grants())
        table._mappings[1][ref * 2] = abi.GTF_READING  # its status frame
        with pytest.raises(GrantBusy):
            table.end_access(ref)
        device.frames = 0
        table.refresh()
        device.frames = 1
        table.refresh()
        table.end_access(ref)
        assert table.grants() == []


@pytest.mark.parametrize("step", ["call", "map"])
@pytest.mark.parametrize(
    ("number", "error", "said"),
    [
        (errno.EPERM, InterfaceUnavailable, "run this in dom0"),
        (errno.EACCES, InterfaceUnavailable, "run this in dom0"),
        (errno.ENOTTY, InterfaceUnavailable, "Linux 4.18 and Xen 4.12"),
        (errno.ENOSYS, InterfaceUnavailable, "Linux 4.18 and Xen 4.12"),
        (errno.EOPNOTSUPP, InterfaceUnavailable, "Linux 4.18 and Xen 4.12"),
        (errno.ESRCH, PeerClosed, "there is no domain 3"),
        (errno.EIO, OSError, "anything"),
    ],
    ids=lambda value: errno.errorcode.get(value, "") if isinstance(value, int) else "",
)
def test_each_errno_is_explained_and_nothing_stays_open(
    step: str, number: int, error: type[Exception], said: str
) -> None:
    device = FakePrivcmd(70)
    device.failures[step] = [None, OSError(number, "anything")]  # the second call, the second part
    with pytest.raises(error, match=said) as caught:
        ForeignGrantTable(device, 3, writable=False)
    assert type(caught.value) is error
    assert getattr(caught.value, "errno", number) == number
    assert device.closed
    assert device.unmapped == (2 if step == "map" else 0)


@pytest.mark.parametrize(
    ("status", "error", "said"),
    [
        (abi.GNTST_BAD_DOMAIN, PeerClosed, "no domain 3, or no more"),
        (abi.GNTST_PERMISSION_DENIED, InterfaceUnavailable, r"run this in dom0 \(status -8 for domain 3\)"),
    ],
)
def test_each_status_is_explained(status: int, error: type[Exception], said: str) -> None:
    device = FakePrivcmd(1)
    with ForeignGrantTable(device, 3, writable=False) as table:
        device.status = status
        with pytest.raises(error, match=said):
            table.refresh()
    device = FakePrivcmd(1)
    device.status = status
    with pytest.raises(error, match=said):
        ForeignGrantTable(device, 3, writable=False)
    assert device.closed


def test_a_refresh_that_fails_leaves_the_last_look() -> None:
    device = FakePrivcmd(40)
    with ForeignGrantTable(device, 3, writable=False) as table:
        device.frames = 41
        device.failures["map"] = [OSError(errno.ENOMEM, "no memory")]
        with pytest.raises(OSError, match="no memory"):
            table.refresh()
        assert granted_to(table) == list(range(40))
        assert table.refresh()
        assert granted_to(table) == list(range(41))
