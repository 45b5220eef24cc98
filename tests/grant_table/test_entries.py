"""Entries as Xen reads and writes them, in both versions."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from xengrant import EntryKind, GrantBusy, GrantEntry, GrantTable, InvalidGrant, _native
from xengrant.abi import grant_table as abi
from xengrant.grant_entries import Entries, entries_of
from xengrant.grant_snapshot import Snapshot
from xengrant.memory import PAGE_SIZE

from .memory import READING, WRITING, FakePage, TableMemory

Exchange = Callable[[bytearray, int, int, int], int]


@pytest.fixture
def ref(table: GrantTable) -> int:
    """One that was gotten."""
    (ref,) = table.get_n_nowait(1)
    return ref


def layout(version: int, flags: int, domid: int, frame: int) -> bytes:
    """An entry as public/grant_table.h has it."""
    return struct.pack("<HHI", flags, domid, frame) if version == 1 else struct.pack("<HHIQ", flags, domid, 0, frame)


@pytest.mark.parametrize("writable", [True, False])
def test_a_grant_is_the_entry_that_xen_reads(
    version: int, memory: TableMemory, table: GrantTable, ref: int, writable: bool
) -> None:
    table.grant_access(ref, 0x1122, 0x33445566, writable=writable)
    assert memory.entry(ref) == layout(version, 1 if writable else 5, 0x1122, 0x33445566)
    entry = table.read(ref)
    assert entry == GrantEntry(ref, EntryKind.ACCESS, 0x1122, 0x33445566, not writable, False, False)
    assert (entry.granted, entry.mapped) == (True, False)
    table.end_access(ref)
    assert memory.entry(ref)[:2] == b"\0\0"
    assert not table.read(ref).granted


def test_domid_and_frame_are_there_before_the_flags(
    memory: TableMemory, table: GrantTable, ref: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hypervisor that sees the flags sees all of the entry."""
    real, seen = _native.store16, []

    def store16(buffer: bytearray, at: int, value: int) -> None:
        if value == abi.GTF_PERMIT_ACCESS:
            seen.append(memory.entry(ref))
        real(buffer, at, value)

    monkeypatch.setattr(_native, "store16", store16)
    table.grant_access(ref, 0x1122, 0x33445566, writable=True)
    assert seen == [layout(memory.version, 0, 0x1122, 0x33445566)]


def test_frames_beyond_32_bits_need_version_2(version: int, memory: TableMemory, table: GrantTable, ref: int) -> None:
    frame = 0x123_4567_89AB
    if version == 1:
        with pytest.raises(ValueError, match=f"frame {frame} is outside"):
            table.grant_access(ref, 1, frame, writable=True)
        assert memory.entry(ref) == bytes(8)
        table.put(ref)
    else:
        table.grant_access(ref, 1, frame, writable=True)
        assert memory.entry(ref) == layout(2, 1, 1, frame)
        assert table.read(ref).frame == frame


@pytest.mark.parametrize("domid", [-1, 0x7FF0, 0x10000])
def test_a_domid_that_cannot_be_is_refused(memory: TableMemory, table: GrantTable, ref: int, domid: int) -> None:
    page = FakePage()
    with pytest.raises(ValueError, match=f"domid {domid} is outside"):
        table.grant_access(ref, domid, page, writable=True)
    assert page.held == 0
    assert not any(memory.entry(ref))
    table.put(ref)


def test_an_entry_that_is_granted_is_not_granted_again(memory: TableMemory, table: GrantTable, ref: int) -> None:
    first, second = FakePage(2), FakePage(4)
    table.grant_access(ref, 1, first, writable=True)
    before = memory.entry(ref)
    with pytest.raises(InvalidGrant, match="still granted"):
        table.grant_access(ref, 3, second, writable=False)
    assert memory.entry(ref) == before
    assert (first.held, second.held) == (1, 0)


def test_an_entry_that_somebody_else_wrote_is_not_overwritten(memory: TableMemory, table: GrantTable, ref: int) -> None:
    page = FakePage()
    memory.write_entry(ref, b"\1\0\5\0")
    before = memory.entry(ref)
    with pytest.raises(InvalidGrant, match="in use already"):
        table.grant_access(ref, 3, page, writable=False)
    assert memory.entry(ref) == before
    assert page.held == 0


def test_an_entry_that_is_still_mapped_is_not_granted(memory: TableMemory, table: GrantTable, ref: int) -> None:
    memory.pin(ref, READING)
    with pytest.raises(InvalidGrant, match="in use already"):
        table.grant_access(ref, 3, 4, writable=False)


def test_a_peer_that_comes_too_late_is_in_nobodys_way(memory: TableMemory, table: GrantTable, ref: int) -> None:
    """In version 2 the hypervisor marks the status before it sees that the entry was revoked, and takes it back."""
    late = memory.pin if memory.version == 2 else lambda ref, marks: None
    table.grant_access(ref, 3, 4, writable=True)
    table.end_access(ref)
    late(ref, READING)
    table.grant_access(ref, 5, FakePage(6), writable=True)
    assert table.read(ref).domid == 5
    memory.unpin(ref)
    table.end_access(ref)
    late(ref, READING)
    table.put(ref)
    assert table.num_held == 0


def test_only_what_is_granted_is_ended(table: GrantTable, ref: int) -> None:
    with pytest.raises(InvalidGrant, match="is not granted"):
        table.end_access(ref)


@pytest.mark.parametrize("marks", [READING, WRITING, READING | WRITING])
def test_end_access_is_busy_while_the_peer_maps(
    version: int, memory: TableMemory, table: GrantTable, ref: int, marks: int
) -> None:
    page = FakePage()
    table.grant_access(ref, 5, page, writable=True)
    memory.pin(ref, marks)
    for _ in range(2):
        with pytest.raises(GrantBusy, match=r"domain 5|revoked, and still mapped"):
            table.end_access(ref)
        assert memory.in_use(ref) == marks
        assert page.held == 1
        # Version 1 is unchanged; version 2 cannot be mapped again.
        assert table.read(ref).granted == (version == 1)
        assert table.read(ref).mapped
    memory.unpin(ref)
    table.end_access(ref)
    assert page.held == 0
    table.put(ref)


def test_a_revoked_entry_is_neither_changed_nor_granted_before_it_has_ended() -> None:
    memory = TableMemory(2)
    table = memory.table()
    (ref,) = table.get_n_nowait(1)
    table.grant_access(ref, 5, 6, writable=True)
    memory.pin(ref, READING)
    with pytest.raises(GrantBusy):
        table.end_access(ref)
    memory.unpin(ref)
    for call in (table.make_readonly, table.make_writable):
        with pytest.raises(InvalidGrant, match="revoked, and still mapped"):
            call(ref)
    with pytest.raises(InvalidGrant, match="revoked, and still mapped"):
        table.grant_access(ref, 1, 2, writable=True)
    table.end_access(ref)
    with pytest.raises(InvalidGrant, match="is not granted"):
        table.end_access(ref)


def test_version_2_reads_the_status_after_it_revoked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that maps before the flags are gone is seen; after that it cannot map."""
    memory = TableMemory(2)
    table = memory.table()
    (ref,) = table.get_n_nowait(1)
    table.grant_access(ref, 5, 6, writable=True)
    real = _native.store16

    def store16(buffer: bytearray, at: int, value: int) -> None:
        memory.pin(ref, READING)  # the last moment
        real(buffer, at, value)

    with monkeypatch.context() as patch:
        patch.setattr(_native, "store16", store16)
        with pytest.raises(GrantBusy):
            table.end_access(ref)
    fences: list[bytes] = []
    real_fence = _native.fence

    def fence() -> None:
        fences.append(memory.entry(ref)[:2])
        real_fence()

    memory.unpin(ref)
    table.end_access(ref)
    table.grant_access(ref, 5, 6, writable=True)
    monkeypatch.setattr(_native, "fence", fence)
    table.end_access(ref)
    assert fences == [b"\0\0"]


def test_version_1_tries_again_when_the_flags_change_under_it(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = TableMemory(1)
    table = memory.table()
    (ref,) = table.get_n_nowait(1)
    table.grant_access(ref, 5, 6, writable=True)
    before_exchange(monkeypatch, lambda: memory.write_entry(ref, b"\5"))
    table.end_access(ref)
    assert memory.entry(ref)[:2] == b"\0\0"


def test_version_1_is_busy_when_the_peer_maps_between_the_look_and_the_exchange(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory = TableMemory(1)
    table = memory.table()
    (ref,) = table.get_n_nowait(1)
    table.grant_access(ref, 5, 6, writable=True)
    before_exchange(monkeypatch, lambda: memory.pin(ref, READING))
    with pytest.raises(GrantBusy):
        table.end_access(ref)
    assert memory.entry(ref)[:2] == bytes([abi.GTF_PERMIT_ACCESS | READING, 0])


def before_exchange(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """Let something happen once, just before the next compare-exchange."""
    real, left = _native.compare_exchange16, [happens]

    def exchange(buffer: bytearray, at: int, expected: int, desired: int) -> int:
        if left:
            left.pop()()
        return real(buffer, at, expected, desired)

    monkeypatch.setattr(_native, "compare_exchange16", exchange)


def test_readonly_and_back(memory: TableMemory, table: GrantTable, ref: int) -> None:
    table.grant_access(ref, 5, 6, writable=True)
    table.make_readonly(ref)
    table.make_readonly(ref)
    assert memory.entry(ref)[:2] == b"\5\0"
    memory.pin(ref, READING)
    table.make_writable(ref)
    assert table.read(ref) == GrantEntry(ref, EntryKind.ACCESS, 5, 6, False, True, False)
    table.make_readonly(ref)
    assert table.read(ref) == GrantEntry(ref, EntryKind.ACCESS, 5, 6, True, True, False)


def test_readonly_is_busy_while_the_peer_writes_and_changes_nothing(
    memory: TableMemory, table: GrantTable, ref: int
) -> None:
    table.grant_access(ref, 5, 6, writable=True)
    memory.pin(ref, READING | WRITING)
    before = memory.entry(ref)
    with pytest.raises(GrantBusy, match="domain 5"):
        table.make_readonly(ref)
    assert memory.entry(ref) == before
    memory.unpin(ref)
    table.make_readonly(ref)


def test_readonly_is_busy_when_the_peer_maps_just_then(
    memory: TableMemory, table: GrantTable, ref: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    table.grant_access(ref, 5, 6, writable=True)
    before_exchange(monkeypatch, lambda: memory.pin(ref, READING | WRITING))
    with pytest.raises(GrantBusy, match="domain 5"):
        table.make_readonly(ref)
    assert not table.read(ref).readonly
    assert memory.in_use(ref) == READING | WRITING


def test_readonly_stays_readonly_when_a_peer_tries_to_write_just_then() -> None:
    """Version 2's hypervisor marks the status first and takes it back when it sees that the entry is read-only."""
    memory = TableMemory(2)
    table = memory.table()
    (ref,) = table.get_n_nowait(1)
    table.grant_access(ref, 5, 6, writable=False)
    memory.pin(ref, READING | WRITING)
    with pytest.raises(GrantBusy):
        table.make_readonly(ref)
    assert memory.entry(ref)[:2] == b"\5\0"


def test_only_what_is_granted_changes_its_access(table: GrantTable, ref: int) -> None:
    for call in (table.make_readonly, table.make_writable):
        with pytest.raises(InvalidGrant, match="is not granted"):
            call(ref)


def test_an_entry_that_somebody_cleared_ends_with_an_error_and_gives_its_page_up(
    memory: TableMemory, table: GrantTable, ref: int
) -> None:
    page = FakePage()
    table.grant_access(ref, 5, page, writable=True)
    memory.write_entry(ref, b"\0\0")
    for call in (table.make_readonly, table.make_writable):
        with pytest.raises(InvalidGrant, match="is not granted"):
            call(ref)
    with pytest.raises(InvalidGrant, match="is not granted"):
        table.end_access(ref)
    assert page.held == 0
    table.put(ref)


def test_entries_change_without_a_table_that_owns_the_references(version: int, memory: TableMemory) -> None:
    """As a domain builder does it."""
    entries = entries_of(version, memory.frames, memory.status)
    entries.grant(20, 3, 0x99, writable=False)
    assert memory.entry(20) == layout(version, 5, 3, 0x99)
    with pytest.raises(InvalidGrant, match="in use already"):
        entries.grant(20, 3, 0x99, writable=False)
    entries.end_access(20)
    with pytest.raises(InvalidGrant, match="not granted"):
        entries.end_access(20)
    for bad in (-1, memory.per_frame):
        with pytest.raises(InvalidGrant, match="beyond"):
            entries.read(bad)


# What else an entry may be; Xen's kinds that we never make.
KINDS = [
    (1, struct.pack("<HHI", 2, 3, 4), 0, EntryKind.TRANSFER, 4),
    (1, struct.pack("<HHI", 2 | 4 | 8, 3, 4), 0, EntryKind.TRANSFER, 4),  # committed and completed
    (1, struct.pack("<HHI", 3, 3, 4), 0, EntryKind.TRANSITIVE, None),
    (1, struct.pack("<HHI", 1 | 256, 3, 4), 0, EntryKind.ACCESS, 4),  # version 1 knows no sub-pages
    (2, struct.pack("<HHHHQ", 1 | 256, 3, 16, 32, 1 << 40), 0, EntryKind.SUB_PAGE, 1 << 40),
    (2, struct.pack("<HHHHIxxxx", 3, 3, 9, 0, 77), 0, EntryKind.TRANSITIVE, None),
    (2, struct.pack("<HHIQ", 2 | 8, 3, 0, 4), 0, EntryKind.TRANSFER, 4),
    (2, struct.pack("<HHIQ", 1 | 8 | 16, 3, 0, 4), 0, EntryKind.ACCESS, 4),  # its marks are elsewhere
    (2, struct.pack("<HHIQ", 0, 3, 0, 4), READING, EntryKind.INVALID, 4),
]


@pytest.mark.parametrize(("version", "data", "marks", "kind", "frame"), KINDS)
def test_every_kind_of_entry_is_told_apart(
    version: int, data: bytes, marks: int, kind: EntryKind, frame: int | None
) -> None:
    memory = TableMemory(version)
    memory.write_entry(30, data)
    if marks:
        memory.pin(30, marks)
    entries = entries_of(version, memory.frames, memory.status)
    entry = entries.read(30)
    assert (entry.kind, entry.domid, entry.frame) == (kind, 3, frame)
    assert (entry.reading, entry.writing) == (bool(marks & READING), bool(marks & WRITING))
    assert Snapshot(entries).grants() == [entry]


@pytest.mark.parametrize("frames", [2, 9])
def test_each_entry_lies_in_its_frame(version: int, frames: int) -> None:
    memory = TableMemory(version, frames=frames, maximum=frames)
    entries = entries_of(version, [memory.frames[0], b"".join(memory.frames[1:])], memory.status)
    assert len(entries) == frames * memory.per_frame
    for number in range(frames):
        for ref in (number * memory.per_frame, (number + 1) * memory.per_frame - 1):
            buffer, at = entries.at(ref)
            assert buffer is entries.frames.buffers[min(number, 1)]
            assert at == (max(number - 1, 0) * 4096) + ref % memory.per_frame * entries.entry_size


def test_a_read_that_is_torn_is_read_again(monkeypatch: pytest.MonkeyPatch, version: int, memory: TableMemory) -> None:
    """The frame belongs to the flags and domid beside it."""
    entries: Entries = entries_of(version, memory.frames, memory.status)
    entries.grant(9, 1, 0x11, writable=True)
    real, left = _native.load32, [1]

    def load32(buffer: bytearray, at: int) -> int:
        value = real(buffer, at)
        if left:
            left.pop()
            entries.end_access(9)
            entries.grant(9, 2, 0x22, writable=False)
        return value

    monkeypatch.setattr(_native, "load32", load32)
    assert entries.read(9) == GrantEntry(9, EntryKind.ACCESS, 2, 0x22, True, False, False)


def test_a_version_2_table_without_its_status_is_no_table() -> None:
    with pytest.raises(ValueError, match="0 status frames for 1 frames"):
        GrantTable([bytearray(PAGE_SIZE)], version=2)
    frames = [bytearray(PAGE_SIZE * 9)]
    with pytest.raises(ValueError, match="1 status frames for 9 frames"):
        GrantTable(frames, version=2, status_frames=[bytearray(PAGE_SIZE)])
    GrantTable(frames, version=2, status_frames=[bytearray(PAGE_SIZE), bytearray(PAGE_SIZE)])


def test_a_page_is_a_page_or_a_frame_number(table: GrantTable) -> None:
    (ref,) = table.get_n_nowait(1)
    with pytest.raises(TypeError, match="frame number"):
        table.grant_access(ref, 1, bytearray(PAGE_SIZE), writable=True)  # type: ignore[arg-type]
    table.grant_access(ref, 1, 2, writable=True)
