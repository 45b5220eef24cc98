"""Waiting until a peer has unmapped: how often it is looked, and when it is given up."""

from __future__ import annotations

import asyncio

import pytest

from xengrant import GrantBusy, GrantTable, InvalidGrant

from .memory import READING, Clock, FakePage, TableMemory


@pytest.fixture
def page() -> FakePage:
    return FakePage()


@pytest.fixture
def mapped(memory: TableMemory, table: GrantTable, page: FakePage) -> int:
    """A reference that a peer maps."""
    (ref,) = table.get_n_nowait(1)
    table.grant_access(ref, 5, page, writable=True)
    memory.pin(ref, READING)
    return ref


def test_what_is_not_mapped_ends_at_once(
    memory: TableMemory, table: GrantTable, mapped: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(memory, mapped).rule(monkeypatch)
    memory.unpin(mapped)
    asyncio.run(table.wait_end_access(mapped, timeout=0))
    assert clock.pauses == []


def test_it_looks_again_after_pauses_that_grow_to_a_tenth_of_a_second(
    memory: TableMemory, table: GrantTable, mapped: int, page: FakePage, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(memory, mapped, unmaps_at=0.3).rule(monkeypatch)
    asyncio.run(table.wait_end_access(mapped))
    assert clock.pauses == pytest.approx([0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.1, 0.1])
    assert page.held == 0
    table.put(mapped)


@pytest.mark.parametrize("timeout", [0.05, 1.0])
def test_it_gives_up_at_the_deadline_and_everything_stays_held(
    memory: TableMemory,
    table: GrantTable,
    mapped: int,
    page: FakePage,
    monkeypatch: pytest.MonkeyPatch,
    timeout: float,
) -> None:
    clock = Clock(memory, mapped).rule(monkeypatch)
    with pytest.raises(GrantBusy):
        asyncio.run(table.wait_end_access(mapped, timeout))
    assert sum(clock.pauses) == pytest.approx(timeout)  # not sooner and not later
    assert page.held == 1
    with pytest.raises(InvalidGrant):
        table.put(mapped)
    memory.unpin(mapped)
    asyncio.run(table.wait_end_access(mapped, timeout))
    table.put(mapped)


def test_the_last_look_is_at_the_deadline(
    memory: TableMemory, table: GrantTable, mapped: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    Clock(memory, mapped, unmaps_at=0.0499).rule(monkeypatch)
    asyncio.run(table.wait_end_access(mapped, timeout=0.05))


@pytest.mark.parametrize("timeout", [0, -1])
def test_without_time_it_looks_once(
    memory: TableMemory, table: GrantTable, mapped: int, monkeypatch: pytest.MonkeyPatch, timeout: float
) -> None:
    clock = Clock(memory, mapped).rule(monkeypatch)
    with pytest.raises(GrantBusy):
        asyncio.run(table.wait_end_access(mapped, timeout))
    assert clock.pauses == []


def test_what_is_not_granted_is_not_waited_for(table: GrantTable) -> None:
    (ref,) = table.get_n_nowait(1)
    with pytest.raises(InvalidGrant, match="not granted"):
        asyncio.run(table.wait_end_access(ref))


def test_a_wait_that_is_cancelled_changes_nothing(memory: TableMemory, table: GrantTable, mapped: int) -> None:
    async def main() -> None:
        task = asyncio.create_task(table.wait_end_access(mapped))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    asyncio.run(main())
    memory.unpin(mapped)
    table.end_access(mapped)
