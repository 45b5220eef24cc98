"""The table itself: references handed out and put back, entries granted and revoked."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xengrant import _native
from xengrant.abi import grant_table as abi
from xengrant.errors import GrantBusy, InvalidGrant
from xengrant.grant_table import Entries, Entry, GrantTable

PAGE_SIZE = 4096


class Frames:
    """A table's memory, and how it grows."""

    def __init__(self, count: int = 1, maximum: int = 1) -> None:
        self.buffers = [bytearray(PAGE_SIZE) for _ in range(count)]
        self.maximum = maximum

    def grow(self) -> bytearray | None:
        if len(self.buffers) == self.maximum:
            return None
        self.buffers.append(bytearray(PAGE_SIZE))
        return self.buffers[-1]

    def table(self) -> GrantTable:
        return GrantTable(self.buffers, max_frames=self.maximum, grow=self.grow)

    def set_flags(self, ref: int, flags: int) -> None:
        """What a hypervisor does to an entry."""
        frame, entry = divmod(ref, abi.V1_ENTRIES_PER_FRAME)
        _native.fetch_or32(self.buffers[frame], entry * abi.V1_ENTRY_SIZE, flags)

    def clear_flags(self, ref: int, flags: int) -> None:
        frame, entry = divmod(ref, abi.V1_ENTRIES_PER_FRAME)
        _native.fetch_and32(self.buffers[frame], entry * abi.V1_ENTRY_SIZE, ~flags & 0xFFFFFFFF)


@pytest.fixture
def frames() -> Frames:
    return Frames()


@pytest.fixture
def table(frames: Frames) -> GrantTable:
    return frames.table()


def test_references_come_last_in_first_out_and_never_a_reserved_one(table: GrantTable) -> None:
    assert [table.get_nowait() for _ in range(3)] == [8, 9, 10]
    table.put(8)
    table.put(10)
    assert table.get_n_nowait(3) == [10, 8, 11]
    everything = [*table.get_n_nowait(table.num_free_grants), 8, 9, 10, 11]
    assert sorted(everything) == list(range(abi.NR_RESERVED_ENTRIES, abi.V1_ENTRIES_PER_FRAME))
    assert table.get_nowait() is None


def test_get_n_takes_all_or_nothing(table: GrantTable) -> None:
    free = table.num_free_grants
    assert table.get_n_nowait(free + 1) == []
    assert table.num_free_grants == free
    assert len(table.get_n_nowait(free)) == free
    assert table.get_n_nowait(1) == []


@pytest.mark.parametrize("count", [0, -1])
def test_no_references_or_fewer_are_a_mistake(table: GrantTable, count: int) -> None:
    with pytest.raises(ValueError, match="at least one"):
        table.get_n_nowait(count)


def test_num_free_grants_counts_growth_and_can_be_had() -> None:
    frames = Frames(maximum=3)
    table = frames.table()
    room = 3 * abi.V1_ENTRIES_PER_FRAME - abi.NR_RESERVED_ENTRIES
    assert table.num_free_grants == room
    refs = table.get_n_nowait(room)
    assert len(set(refs)) == room
    assert len(frames.buffers) == 3
    assert table.num_free_grants == 0
    assert table.num_held == room


def test_the_table_grows_only_as_far_as_is_needed() -> None:
    frames = Frames(maximum=64)
    table = frames.table()
    table.get_n_nowait(abi.V1_ENTRIES_PER_FRAME - abi.NR_RESERVED_ENTRIES)
    assert len(frames.buffers) == 1
    assert table.get_nowait() == abi.V1_ENTRIES_PER_FRAME
    assert len(frames.buffers) == 2
    table.get_n_nowait(2 * abi.V1_ENTRIES_PER_FRAME)
    assert len(frames.buffers) == 4


def test_a_table_whose_growth_is_refused_hands_out_nothing() -> None:
    frames = Frames(maximum=1)
    table = GrantTable(frames.buffers, max_frames=5, grow=frames.grow)
    free = abi.V1_ENTRIES_PER_FRAME - abi.NR_RESERVED_ENTRIES
    assert table.get_n_nowait(free + 1) == []
    assert len(table.get_n_nowait(free)) == free


def test_put_refuses_what_is_not_held(table: GrantTable) -> None:
    ref = table.get_nowait()
    assert ref is not None
    table.put(ref)
    with pytest.raises(InvalidGrant, match="free"):
        table.put(ref)
    for reserved in (0, 1, 7):
        with pytest.raises(InvalidGrant, match="reserved"):
            table.put(reserved)
    for foreign in (-1, abi.V1_ENTRIES_PER_FRAME, 1 << 40):
        with pytest.raises(InvalidGrant, match="beyond"):
            table.put(foreign)
    free = table.num_free_grants
    (ref,) = table.get_n_nowait(1)
    table.grant_access(ref, 3, 0x1234, writable=True)
    with pytest.raises(InvalidGrant, match="still granted"):
        table.put(ref)
    table.end_access(ref)
    table.put(ref)
    assert table.num_free_grants == free


@pytest.mark.parametrize("writable", [True, False])
def test_a_grant_is_the_entry_that_xen_reads(frames: Frames, table: GrantTable, writable: bool) -> None:
    (ref,) = table.get_n_nowait(1)
    table.grant_access(ref, 0x1122, 0x33445566, writable=writable)
    flags = b"\x01\0" if writable else b"\x05\0"
    at = ref * abi.V1_ENTRY_SIZE
    assert frames.buffers[0][at : at + 8] == flags + b"\x22\x11\x66\x55\x44\x33"
    entry = table.entries.read(ref)
    assert entry == Entry(flags[0], 0x1122, 0x33445566)
    assert (entry.granted, entry.in_use) == (True, False)
    table.end_access(ref)
    assert not table.entries.read(ref).granted


def test_an_entry_in_use_is_not_granted_again(table: GrantTable) -> None:
    (ref,) = table.get_n_nowait(1)
    table.grant_access(ref, 1, 2, writable=True)
    with pytest.raises(InvalidGrant, match="granted already"):
        table.grant_access(ref, 3, 4, writable=False)
    assert table.entries.read(ref) == Entry(1, 1, 2)


def test_only_what_was_gotten_is_granted_or_revoked(table: GrantTable) -> None:
    for ref in (0, 7, 8, 512, -1):
        with pytest.raises(InvalidGrant):
            table.grant_access(ref, 1, 2, writable=True)
        with pytest.raises(InvalidGrant):
            table.end_access(ref)
    (ref,) = table.get_n_nowait(1)
    with pytest.raises(InvalidGrant, match="not granted"):
        table.end_access(ref)


@pytest.mark.parametrize("flags", [abi.GTF_READING, abi.GTF_WRITING, abi.GTF_READING | abi.GTF_WRITING])
def test_end_access_is_busy_while_the_peer_maps(frames: Frames, table: GrantTable, flags: int) -> None:
    (ref,) = table.get_n_nowait(1)
    table.grant_access(ref, 5, 6, writable=True)
    frames.set_flags(ref, flags)
    with pytest.raises(GrantBusy, match="domain 5"):
        table.end_access(ref)
    assert table.entries.read(ref) == Entry(abi.GTF_PERMIT_ACCESS | flags, 5, 6)
    assert table.entries.read(ref).in_use
    frames.clear_flags(ref, flags)
    table.end_access(ref)
    table.put(ref)


def test_end_access_never_revokes_under_a_hypervisor_that_maps_meanwhile(frames: Frames) -> None:
    """The peer maps and unmaps as fast as it can: a revocation succeeds only while it does not map."""
    entries = Entries(frames.buffers)
    stop = threading.Event()
    mapped_after_revocation: list[int] = []

    def hypervisor() -> None:
        buffer, at = entries.at(8)
        while not stop.is_set():
            word = _native.load32(buffer, at)
            if word & abi.GTF_TYPE_MASK != abi.GTF_PERMIT_ACCESS:
                continue
            if _native.compare_exchange32(buffer, at, word, word | abi.GTF_READING) == word:
                if not _native.load32(buffer, at) & abi.GTF_PERMIT_ACCESS:
                    mapped_after_revocation.append(word)
                _native.fetch_and32(buffer, at, ~abi.GTF_READING & 0xFFFFFFFF)

    thread = threading.Thread(target=hypervisor)
    thread.start()
    busy = 0
    for _ in range(2000):
        entries.grant(8, 2, 3, writable=True)
        while True:
            try:
                entries.end_access(8)
                break
            except GrantBusy:
                busy += 1
    stop.set()
    thread.join(10)
    assert mapped_after_revocation == []


def test_end_access_tries_again_when_the_flags_change_under_it(
    frames: Frames, table: GrantTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    (ref,) = table.get_n_nowait(1)
    table.grant_access(ref, 5, 6, writable=True)
    real = _native.compare_exchange16
    changes = [abi.GTF_READONLY]

    def exchange(buffer: bytearray, at: int, expected: int, desired: int) -> int:
        if changes:
            frames.set_flags(ref, changes.pop())
        return real(buffer, at, expected, desired)

    monkeypatch.setattr(_native, "compare_exchange16", exchange)
    table.end_access(ref)
    assert table.entries.read(ref).flags == 0


def test_two_threads_never_get_the_same_reference() -> None:
    table = Frames(maximum=4).table()
    held: list[set[int]] = [set() for _ in range(4)]

    def work(mine: set[int], seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(1000):
            if mine and rng.random() < 0.45:
                table.put(mine.pop())
            else:
                mine.update(table.get_n_nowait(rng.randrange(1, 4)))

    threads = [threading.Thread(target=work, args=(mine, seed)) for seed, mine in enumerate(held)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    everything = [ref for mine in held for ref in mine]
    assert len(everything) == len(set(everything)) == table.num_held


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["get", "put", "grant", "end"]), st.integers(0, 40)), max_size=200))
def test_the_table_agrees_with_a_plain_model(steps: list[tuple[str, int]]) -> None:
    frames = Frames(maximum=2)
    table = frames.table()
    free = list(range(511, 7, -1))
    held: dict[int, bool] = {}  # ref -> granted
    for step, number in steps:
        ref = list(held)[number % len(held)] if held else 8 + number
        if step == "get":
            count = number + 1
            if count > len(free):
                continue
            wanted = [free.pop() for _ in range(count)]
            assert table.get_n_nowait(count) == wanted
            held.update(dict.fromkeys(wanted, False))
            continue
        call: Callable[[int], None] = {
            "put": table.put,
            "grant": lambda ref: table.grant_access(ref, 1, 2, writable=True),
            "end": table.end_access,
        }[step]
        if ref not in held or (step != "end") == held[ref]:
            with pytest.raises(InvalidGrant):
                call(ref)
            continue
        call(ref)
        held[ref] = step == "grant"
        if step == "put":
            del held[ref]
            free.append(ref)
    assert table.num_held == len(held)
    assert table.num_free_grants == len(free) + 512


def test_repr_tells_how_full_it_is(table: GrantTable) -> None:
    table.get_n_nowait(5)
    assert repr(table) == "<GrantTable of 1 frames (max 1), 5 refs held>"
