"""References: handed out at once or not at all, put back, and never a wrong one."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xengrant import GrantTable, InvalidGrant
from xengrant.abi.grant_table import NR_RESERVED_ENTRIES
from xengrant.errors import GrantBusy
from xengrant.grant_table import NewFrames

from .memory import READING, TableMemory

LONG = 30.0  # seconds; no test comes near it


def test_references_come_last_in_first_out_and_never_a_reserved_one(memory: TableMemory, table: GrantTable) -> None:
    assert [table.get_nowait() for _ in range(3)] == [8, 9, 10]
    table.put(8)
    table.put(10)
    assert table.get_n_nowait(3) == [10, 8, 11]
    everything = [*table.get_n_nowait(table.num_free_grants), 8, 9, 10, 11]
    assert sorted(everything) == list(range(NR_RESERVED_ENTRIES, memory.per_frame))
    assert table.get_nowait() is None


def test_get_n_takes_all_or_nothing(memory: TableMemory, table: GrantTable) -> None:
    assert table.num_free_grants == table.capacity == memory.room
    assert table.get_n_nowait(memory.room + 1) == []
    assert (table.num_free_grants, table.num_held) == (memory.room, 0)
    assert len(table.get_n_nowait(memory.room)) == memory.room
    assert table.get_n_nowait(1) == []


@pytest.mark.parametrize("count", [0, -1, 1 << 40])
def test_no_references_or_fewer_or_absurdly_many_are_a_mistake(table: GrantTable, count: int) -> None:
    free = table.num_free_grants
    with pytest.raises(ValueError, match=f"count {count} is outside"):
        table.get_n_nowait(count)
    assert table.num_free_grants == free


@pytest.mark.parametrize("count", [True, 1.0, "1", None])
def test_a_count_is_a_number(table: GrantTable, count: int) -> None:
    with pytest.raises(TypeError):
        table.get_n_nowait(count)


def test_num_free_grants_counts_growth_and_can_be_had(version: int) -> None:
    memory = TableMemory(version, maximum=3)
    table = memory.table()
    room = 3 * memory.per_frame - NR_RESERVED_ENTRIES
    assert table.num_free_grants == table.capacity == room
    refs = table.get_n_nowait(room)
    assert len(set(refs)) == room
    assert len(memory.frames) == 3
    assert (table.num_free_grants, table.num_held) == (0, room)


def test_the_table_grows_only_as_far_as_is_needed_and_by_what_is_missing(version: int) -> None:
    memory = TableMemory(version, maximum=64)
    table = memory.table()
    refs = table.get_n_nowait(memory.room)
    assert len(memory.frames) == 1
    assert table.get_nowait() == memory.per_frame
    assert len(memory.frames) == 2
    table.get_n_nowait(2 * memory.per_frame)
    assert len(memory.frames) == 4
    table.put(refs[0])
    assert table.get_nowait() == refs[0]
    assert len(memory.frames) == 4


def test_version_2_grows_a_status_frame_for_eight_frames() -> None:
    memory = TableMemory(2, maximum=17)
    table = memory.table()
    refs = table.get_n_nowait(table.capacity)
    assert (len(memory.frames), len(memory.status)) == (17, 3)
    for ref in (refs[0], max(refs)):
        table.grant_access(ref, 1, 2, writable=True)
        memory.pin(ref, READING)
        assert table.read(ref).reading
        with pytest.raises(GrantBusy):
            table.end_access(ref)


def test_a_table_whose_growth_is_refused_hands_out_nothing(version: int) -> None:
    memory = TableMemory(version, maximum=1)
    table = GrantTable(
        memory.frames, version=version, status_frames=memory.status, max_frames=5, grow=memory.grow
    )
    assert table.get_n_nowait(memory.room + 1) == []
    assert len(table.get_n_nowait(memory.room)) == memory.room


def test_growth_that_fails_half_way_leaves_the_table_whole(version: int) -> None:
    memory = TableMemory(version, maximum=4)

    def grow(number: int) -> NewFrames | None:
        if len(memory.frames) == 2:
            raise MemoryError
        return memory.grow(number)

    table = GrantTable(memory.frames, version=version, status_frames=memory.status, max_frames=4, grow=grow)
    with pytest.raises(MemoryError):
        table.get_n_nowait(3 * memory.per_frame)
    assert table.num_held == 0
    refs = table.get_n_nowait(2 * memory.per_frame - NR_RESERVED_ENTRIES)
    assert sorted(refs) == list(range(NR_RESERVED_ENTRIES, 2 * memory.per_frame))
    for ref in refs:
        table.put(ref)
    assert table.num_held == 0


def test_a_frame_that_a_signal_handler_lost_is_asked_for_again(version: int) -> None:
    memory = TableMemory(version, maximum=3)
    interruptions = [1, 2]

    def grow(number: int) -> NewFrames | None:
        new = memory.grow(number)
        if number in interruptions:
            interruptions.remove(number)
            raise KeyboardInterrupt
        return new

    table = GrantTable(memory.frames, version=version, status_frames=memory.status, max_frames=3, grow=grow)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            table.get_n_nowait(2 * memory.per_frame)
    refs = table.get_n_nowait(table.capacity)
    assert sorted(refs) == list(range(NR_RESERVED_ENTRIES, 3 * memory.per_frame))
    table.grant_access(refs[-1], 3, 7, writable=True)
    assert any(memory.entry(refs[-1]))  # where Xen looks
    assert table.read(refs[-1]).granted


@pytest.mark.parametrize("frames", [[], [bytearray(4095)], [bytearray(0)]], ids=["none", "odd", "empty"])
def test_a_table_has_whole_frames_and_one_at_least(frames: list[bytearray], version: int) -> None:
    with pytest.raises(ValueError, match=r"frame"):
        GrantTable(frames, version=version, status_frames=[bytearray(4096)], max_frames=4, grow=lambda number: None)


def test_a_table_is_of_version_1_or_2() -> None:
    with pytest.raises(ValueError, match="version 3"):
        GrantTable([bytearray(4096)], version=3)


def test_a_reference_is_put_back_once(table: GrantTable) -> None:
    first, second = table.get_n_nowait(2)
    table.put(first)
    with pytest.raises(InvalidGrant, match=f"reference {first} is free"):
        table.put(first)
    assert table.get_nowait() == first
    assert table.get_nowait() not in (first, second, None)


@pytest.mark.parametrize("ref", [0, 1, 7])
def test_a_reserved_reference_is_refused(table: GrantTable, ref: int) -> None:
    for call in calls(table, ref):
        with pytest.raises(InvalidGrant, match=f"{ref} is reserved"):
            call()


@pytest.mark.parametrize("ref", [-1, 512, 1 << 40])
def test_a_reference_beyond_the_table_is_refused(table: GrantTable, ref: int) -> None:
    table.get_n_nowait(table.num_free_grants)
    for call in calls(table, ref):
        with pytest.raises(InvalidGrant, match=f"{ref} is beyond the table's"):
            call()


def test_a_reference_that_only_another_table_handed_out_is_refused(version: int) -> None:
    table, other = TableMemory(version).table(), TableMemory(version).table()
    (ref,) = other.get_n_nowait(1)
    for call in calls(table, ref):
        with pytest.raises(InvalidGrant, match="put back, or never gotten from this table"):
            call()
    assert table.num_held == 0


def calls(table: GrantTable, ref: int) -> list[Callable[[], None]]:
    """Everything that is done with a reference."""
    return [
        lambda: table.put(ref),
        lambda: table.grant_access(ref, 1, 2, writable=True),
        lambda: table.end_access(ref),
        lambda: table.make_readonly(ref),
        lambda: table.make_writable(ref),
    ]


def test_a_reference_that_is_still_granted_is_not_put_back(table: GrantTable) -> None:
    (ref,) = table.get_n_nowait(1)
    table.grant_access(ref, 3, 0x1234, writable=True)
    with pytest.raises(InvalidGrant, match="still granted: end_access comes first"):
        table.put(ref)
    table.end_access(ref)
    table.put(ref)
    assert table.num_held == 0


def test_a_reference_that_is_revoked_and_still_mapped_is_not_put_back() -> None:
    memory = TableMemory(2)
    table = memory.table()
    (ref,) = table.get_n_nowait(1)
    table.grant_access(ref, 3, 0x1234, writable=True)
    memory.pin(ref, READING)
    with pytest.raises(GrantBusy):
        table.end_access(ref)
    with pytest.raises(InvalidGrant, match="revoked, and still mapped"):
        table.put(ref)
    memory.unpin(ref)
    with pytest.raises(InvalidGrant, match="revoked, and still mapped"):
        table.put(ref)
    table.end_access(ref)
    table.put(ref)


def test_a_reference_whose_entry_somebody_else_uses_is_not_put_back(memory: TableMemory, table: GrantTable) -> None:
    (ref,) = table.get_n_nowait(1)
    memory.write_entry(ref, b"\1\0\5\0")
    with pytest.raises(InvalidGrant, match="used by somebody else"):
        table.put(ref)
    assert table.num_held == 1
    memory.write_entry(ref, b"\0\0")
    table.put(ref)


def test_two_threads_never_get_the_same_reference(version: int) -> None:
    table = TableMemory(version, maximum=4).table()
    held: list[set[int]] = [set() for _ in range(4)]
    interval = sys.getswitchinterval()

    def work(mine: set[int], seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(1000):
            if mine and rng.random() < 0.45:
                table.put(mine.pop())
            elif (ref := table.get_nowait()) is not None:
                mine.update((ref, *table.get_n_nowait(rng.randrange(1, 4))))

    threads = [threading.Thread(target=work, args=(mine, seed)) for seed, mine in enumerate(held)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
            assert not thread.is_alive(), "get and put did not end"
    finally:
        sys.setswitchinterval(interval)
    everything = [ref for mine in held for ref in mine]
    assert len(everything) == len(set(everything)) == table.num_held


STEPS = ["get", "put", "grant", "end"]


@settings(max_examples=60)
@given(st.sampled_from([1, 2]), st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 40))))
def test_the_table_agrees_with_a_plain_list(version: int, steps: list[tuple[str, int]]) -> None:
    memory = TableMemory(version, maximum=2)
    table = memory.table()
    free = list(range(memory.per_frame - 1, 7, -1))
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
    assert table.num_free_grants == len(free) + memory.per_frame


def test_repr_tells_how_full_it_is(version: int, table: GrantTable) -> None:
    table.get_n_nowait(5)
    assert repr(table) == f"<GrantTable v{version} of 1 frames (max 1), 5 refs held>"
