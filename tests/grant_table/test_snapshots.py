"""A table at one moment: copied while it changes, decoded, counted."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xengrant import EntryKind, GrantTable, PeerTally, _native, grant_snapshot
from xengrant.abi.xen import PAGE_SIZE
from xengrant.grant_entries import EntriesV1, entries_of
from xengrant.grant_snapshot import Snapshot

from .memory import READING, TableMemory

# Entries that look like something: a page of noise would be all kinds and domids at once.
FLAGS = [0, 0, 1, 5, 9, 0x19, 2, 6, 14, 3, 0x101, 8, 0x10, 0xFFFF]
flags = st.sampled_from(FLAGS).map(lambda value: value.to_bytes(2, "little"))
domids = st.integers(0, 3).map(lambda domid: domid.to_bytes(2, "little"))


@st.composite
def memories(draw: st.DrawFn) -> TableMemory:
    memory = TableMemory(draw(st.sampled_from([1, 2])), frames=draw(st.sampled_from([1, 9])), maximum=9)
    size = PAGE_SIZE // memory.per_frame
    for ref in draw(st.sets(st.integers(0, len(memory.frames) * memory.per_frame - 1), max_size=30)):
        rest = draw(st.binary(min_size=size - 4, max_size=size - 4))
        memory.write_entry(ref, draw(flags) + draw(domids) + rest)
        if memory.version == 2:
            memory.pin(ref, draw(st.sampled_from([0, READING, 24, 0xFFFF])))
    return memory


@settings(max_examples=25)
@given(memories())
def test_a_snapshot_shows_each_entry_as_it_is_read_alone(memory: TableMemory) -> None:
    entries = entries_of(memory.version, memory.frames, memory.status)
    single = [entries.read(ref) for ref in range(len(entries))]
    snapshot = Snapshot(entries)
    assert len(snapshot) == len(entries)
    assert snapshot.grants() == [entry for entry in single if entry.granted or entry.mapped]
    assert list(snapshot.arrays().refs) == [entry.ref for entry in snapshot.grants()]


def test_a_table_that_grows_while_it_is_copied_is_copied_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = EntriesV1([bytearray(PAGE_SIZE)])

    def grow(*args: Any) -> bool:
        entries.frames.add(bytearray(PAGE_SIZE))
        return _native.copy_entries(*args)

    with monkeypatch.context() as patch:
        patch.setattr(grant_snapshot, "_native", SimpleNamespace(copy_entries=grow))
        snapshot = Snapshot(entries)
    assert len(snapshot) == 512
    assert snapshot.refresh(entries)
    assert len(snapshot) == 1024


@settings(max_examples=25)
@given(memories())
def test_a_tally_is_what_one_counts_by_hand(memory: TableMemory) -> None:
    snapshot = Snapshot(entries_of(memory.version, memory.frames, memory.status))
    counts: dict[str, Counter[int]] = {name: Counter() for name in ("granted", "readonly", "mapped", "writing")}
    for entry in snapshot.grants():
        counts["granted"][entry.domid] += entry.granted
        counts["readonly"][entry.domid] += entry.granted and entry.readonly
        counts["mapped"][entry.domid] += entry.mapped
        counts["writing"][entry.domid] += entry.writing
    peers = {domid for count in counts.values() for domid in count if count[domid]}
    by_hand = [PeerTally(domid, *(count[domid] for count in counts.values())) for domid in peers]
    assert snapshot.tally() == sorted(by_hand, key=lambda peer: (-peer.granted, peer.domid))


def test_arrays_say_what_the_objects_say(memory: TableMemory, table: GrantTable) -> None:
    refs = table.get_n_nowait(3)
    for i, ref in enumerate(refs):
        table.grant_access(ref, 10 + i, 0x100 + i, writable=i != 1)
    memory.pin(refs[2], READING)
    arrays = Snapshot(table.entries).arrays()
    assert [array.format for array in arrays] == ["I", "H", "H", "Q"]
    assert [list(array) for array in arrays] == [refs, [1, 5, 1 | READING], [10, 11, 12], [0x100, 0x101, 0x102]]
    assert [len(array) for array in Snapshot(TableMemory(memory.version).table().entries).arrays()] == [0, 0, 0, 0]


def test_a_snapshot_is_of_its_moment(table: GrantTable) -> None:
    (ref,) = table.get_n_nowait(1)
    snapshot = Snapshot(table.entries)
    table.grant_access(ref, 1, 2, writable=True)
    assert snapshot.grants() == []
    assert snapshot.refresh(table.entries)
    assert [entry.ref for entry in snapshot.grants()] == [ref]


def test_refresh_says_whether_anything_changed(version: int, memory: TableMemory, table: GrantTable) -> None:
    (ref,) = table.get_n_nowait(1)
    snapshot = Snapshot(table.entries)
    assert not snapshot.refresh(table.entries)
    table.grant_access(ref, 1, 2, writable=True)
    assert snapshot.refresh(table.entries)
    assert not snapshot.refresh(table.entries)
    memory.pin(ref, READING)  # in version 2 only the status frame changes
    assert snapshot.refresh(table.entries)
    assert not snapshot.refresh(table.entries)
    memory.frames[0][-1] = 1  # the last byte
    assert snapshot.refresh(table.entries)


def test_refresh_sees_the_frames_that_the_table_grew_by(version: int) -> None:
    table = TableMemory(version, maximum=12).table()
    snapshot = Snapshot(table.entries)
    refs = table.get_n_nowait(table.capacity)
    assert snapshot.refresh(table.entries)  # even empty ones
    assert not snapshot.refresh(table.entries)
    assert len(snapshot) == len(table.entries)
    table.grant_access(max(refs), 1, 2, writable=True)
    assert snapshot.refresh(table.entries)
    assert [entry.ref for entry in snapshot.grants()] == [max(refs)]


def test_a_table_is_iterated_at_one_moment(memory: TableMemory, table: GrantTable) -> None:
    refs = table.get_n_nowait(4)
    for ref in refs:
        table.grant_access(ref, 1, 2, writable=True)
    found: list[int] = []
    for entry in table:
        if not found:
            for ref in refs:
                table.end_access(ref)
        found.append(entry.ref)
    assert found == refs
    assert list(table) == []


@pytest.mark.parametrize("kind", [EntryKind.TRANSITIVE, EntryKind.TRANSFER])
def test_what_is_no_access_counts_as_granted_only(kind: EntryKind) -> None:
    memory = TableMemory(2)
    memory.write_entry(9, bytes([3 if kind is EntryKind.TRANSITIVE else 2 | 4 | 8, 0, 5, 0]))
    snapshot = Snapshot(entries_of(2, memory.frames, memory.status))
    assert [entry.kind for entry in snapshot.grants()] == [kind]
    assert snapshot.tally() == [PeerTally(5, 1, 0, 0, 0)]
