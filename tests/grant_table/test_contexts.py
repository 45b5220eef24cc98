"""`async with` for references, `with` and `async with` for grants: all or none, and the body's error comes first."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Sequence
from typing import Any

import pytest

from xengrant import GrantBusy, GrantTable, InvalidGrant

from .memory import READING, Clock, FakePage, TableMemory

LONG = 30.0  # seconds; no test comes near it


class BodyError(Exception):
    """What the body of a block raises."""


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, LONG))


# References


def test_references_are_put_back_at_the_end_of_the_block(table: GrantTable) -> None:
    async def main() -> None:
        async with table.ref() as ref, table.refs(3) as refs:
            assert len({ref, *refs}) == table.num_held == 4
        assert table.num_held == 0
        with pytest.raises(BodyError):
            async with table.refs(2):
                raise BodyError

    run(main())
    assert table.num_held == 0


def test_a_reference_that_is_still_granted_stays_held(memory: TableMemory, table: GrantTable) -> None:
    async def main() -> None:
        with pytest.raises(InvalidGrant, match=r"reference 9 is still granted") as caught:  # noqa: PT012
            async with table.refs(3) as refs:
                for ref in refs[1:]:
                    table.grant_access(ref, 1, 2, writable=True)
        assert notes(caught.value) == ["reference 10 is still granted: end_access comes first"]

    run(main())
    assert table.num_held == 2
    assert memory.entry(9)[:2] == b"\1\0"
    for ref in (9, 10):
        table.end_access(ref)
        table.put(ref)


def test_the_bodys_error_is_not_masked_by_a_reference_that_cannot_be_put_back(table: GrantTable) -> None:
    async def main() -> None:
        with pytest.raises(BodyError) as caught:  # noqa: PT012
            async with table.ref() as ref:
                table.grant_access(ref, 1, 2, writable=True)
                raise BodyError
        assert notes(caught.value) == ["reference 8 is still granted: end_access comes first"]

    run(main())
    assert table.num_held == 1


def test_a_body_that_put_them_back_itself_is_told(table: GrantTable) -> None:
    async def main() -> None:
        with pytest.raises(InvalidGrant, match="is free"):
            async with table.ref() as ref:
                table.put(ref)

    run(main())
    assert table.num_held == 0


def test_a_block_that_is_cancelled_puts_back(table: GrantTable) -> None:
    async def main() -> None:
        started = asyncio.Event()

        async def body() -> None:
            async with table.refs(2):
                started.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(body())
        await started.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    run(main())
    assert table.num_held == 0


# Grants


@pytest.fixture
def refs(table: GrantTable) -> list[int]:
    return table.get_n_nowait(4)


@pytest.fixture
def pages() -> list[FakePage]:
    return [FakePage(frame) for frame in range(0x50, 0x54)]


def granted(memory: TableMemory, refs: Sequence[int]) -> list[int]:
    return [ref for ref in refs if memory.entry(ref)[0] & 1]


def notes(error: BaseException) -> list[str]:
    return list(getattr(error, "__notes__", []))


def test_a_grant_lasts_as_long_as_its_block(
    memory: TableMemory, table: GrantTable, refs: list[int], pages: list[FakePage]
) -> None:
    with table.grant(refs[0], 3, pages[0], writable=False) as ref:
        assert ref == refs[0]
        assert table.read(ref).readonly
        assert pages[0].held == 1
        with table.grants(refs[1:], 4, pages[1:], writable=True) as several:
            assert several == refs[1:] == granted(memory, refs[1:])
            assert [table.read(ref).frame for ref in several] == [0x51, 0x52, 0x53]
        assert granted(memory, refs) == refs[:1]
    assert granted(memory, refs) == []
    assert [page.held for page in pages] == [0] * 4
    assert table.num_held == 4


@pytest.mark.parametrize("failing", range(4))
def test_a_grant_that_fails_undoes_the_others(
    memory: TableMemory, table: GrantTable, refs: list[int], pages: list[FakePage], failing: int
) -> None:
    table.put(refs[failing])
    with pytest.raises(InvalidGrant, match=f"reference {refs[failing]} is free"):  # noqa: SIM117
        with table.grants(refs, 3, pages, writable=True):
            raise AssertionError("the block is not entered")
    assert granted(memory, refs) == []
    assert [page.held for page in pages] == [0] * 4
    assert table.num_held == 3


def test_the_same_reference_twice_is_refused_and_undone(
    memory: TableMemory, table: GrantTable, refs: list[int], pages: list[FakePage]
) -> None:
    with pytest.raises(InvalidGrant, match="still granted"), table.grants(refs[:1] * 2, 3, pages[:2], writable=True):
        pass
    assert granted(memory, refs) == []
    assert [page.held for page in pages] == [0] * 4


def test_a_grant_that_fails_while_a_peer_maps_another_says_so(
    memory: TableMemory, table: GrantTable, refs: list[int]
) -> None:
    class Mapped(FakePage):
        def hold(self) -> None:  # the peer is quick
            memory.pin(refs[0], READING)
            raise BodyError

    with pytest.raises(BodyError) as caught, table.grants(refs[:2], 3, [FakePage(), Mapped()], writable=True):
        pass
    assert notes(caught.value) == [f"{busy_text(memory, refs[0])}"]
    memory.unpin(refs[0])
    table.end_access(refs[0])


def busy_text(memory: TableMemory, ref: int) -> str:
    return f"reference {ref} is mapped by domain 3{', and cannot be mapped again' * (memory.version == 2)}"


@pytest.mark.parametrize("count", [0, 3, 5])
def test_lists_of_different_lengths_touch_nothing(
    memory: TableMemory, table: GrantTable, refs: list[int], count: int
) -> None:
    table.grant_access(refs[0], 3, 7, writable=True)
    with pytest.raises(ValueError, match=f"4 references for {count} pages"):
        table.grants(refs, 3, [5] * count, writable=True)
    assert granted(memory, refs) == refs[:1]


def test_no_grants_at_all_are_fine(table: GrantTable) -> None:
    with table.grants([], 3, [], writable=True) as refs:
        assert refs == []


def test_what_is_still_mapped_at_the_end_stays_held_and_the_others_end(
    memory: TableMemory, table: GrantTable, refs: list[int], pages: list[FakePage]
) -> None:
    with pytest.raises(GrantBusy, match=f"reference {refs[2]}") as caught:  # noqa: PT012, SIM117
        with table.grants(refs, 3, pages, writable=True):
            memory.pin(refs[0], READING)
            memory.pin(refs[2], READING)
    assert notes(caught.value) == [busy_text(memory, refs[0])]
    assert [page.held for page in pages] == [1, 0, 1, 0]
    for ref in refs[::2]:
        with pytest.raises(InvalidGrant):
            table.put(ref)
        memory.unpin(ref)
        table.end_access(ref)
    assert [page.held for page in pages] == [0] * 4


def test_the_bodys_error_is_not_masked_by_a_busy_page(
    memory: TableMemory, table: GrantTable, refs: list[int], pages: list[FakePage]
) -> None:
    with pytest.raises(BodyError) as caught, table.grants(refs, 3, pages, writable=True):  # noqa: PT012
        memory.pin(refs[1], READING)
        raise BodyError
    assert notes(caught.value) == [busy_text(memory, refs[1])]
    assert [page.held for page in pages] == [0, 1, 0, 0]


def test_a_body_that_ended_one_itself_is_told_and_the_others_end(
    memory: TableMemory, table: GrantTable, refs: list[int], pages: list[FakePage]
) -> None:
    with pytest.raises(InvalidGrant, match=f"reference {refs[1]} is not granted"):  # noqa: SIM117
        with table.grants(refs, 3, pages, writable=True):
            table.end_access(refs[1])
    assert granted(memory, refs) == []
    assert [page.held for page in pages] == [0] * 4


def test_async_with_waits_until_the_peer_has_unmapped(
    memory: TableMemory, table: GrantTable, refs: list[int], pages: list[FakePage], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    async def sleep(seconds: float) -> None:
        looks.append(granted(memory, refs))
        if len(looks) == 3:
            memory.unpin(refs[3])
        if len(looks) == 5:
            memory.unpin(refs[1])

    monkeypatch.setattr(asyncio, "sleep", sleep)

    async def main() -> None:
        async with table.grants(refs, 3, pages, writable=True) as several:
            assert several == refs
            for ref in (refs[1], refs[3]):
                memory.pin(ref, READING)

    run(main())
    assert len(looks) == 5
    # Those that nobody maps end at once, before anybody is waited for.
    assert looks[0] == ([refs[1], refs[3]] if memory.version == 1 else [])
    assert [page.held for page in pages] == [0] * 4


def test_async_with_gives_up_at_its_deadline(
    memory: TableMemory, table: GrantTable, refs: list[int], pages: list[FakePage]
) -> None:
    async def main() -> None:
        with pytest.raises(GrantBusy, match=f"reference {refs[3]}") as caught:  # noqa: PT012
            async with table.grants(refs, 3, pages, writable=True, timeout=0):
                for ref in (refs[1], refs[3]):
                    memory.pin(ref, READING)
        assert [f"reference {refs[1]} " in note for note in notes(caught.value)] == [True]
        with pytest.raises(BodyError) as other:  # noqa: PT012
            async with table.grant(refs[0], 3, pages[0], writable=True, timeout=0):
                memory.pin(refs[0], READING)
                raise BodyError
        assert [f"reference {refs[0]} " in note for note in notes(other.value)] == [True]

    run(main())
    assert [page.held for page in pages] == [1, 1, 0, 1]


def test_async_with_that_is_cancelled_while_it_waits_ends_what_it_can(
    memory: TableMemory, table: GrantTable, refs: list[int], pages: list[FakePage], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        waiting = asyncio.Event()

        async def sleep(seconds: float) -> None:
            waiting.set()
            await asyncio.Event().wait()

        async def body() -> None:
            async with table.grants(refs, 3, pages, writable=True):
                for ref in (refs[1], refs[3]):
                    memory.pin(ref, READING)

        monkeypatch.setattr(asyncio, "sleep", sleep)
        task = asyncio.create_task(body())
        await waiting.wait()
        memory.unpin(refs[1])
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert [f"reference {refs[3]} " in note for note in notes(caught.value)] == [True]

    run(main())
    assert [page.held for page in pages] == [0, 0, 0, 1]


def test_a_grant_can_be_entered_again(memory: TableMemory, table: GrantTable, refs: list[int]) -> None:
    grant = table.grant(refs[0], 3, 7, writable=True)
    for _ in range(2):
        with grant:
            assert granted(memory, refs) == refs[:1]
        assert granted(memory, refs) == []


def test_a_grant_is_not_entered_twice_at_once(memory: TableMemory, table: GrantTable, refs: list[int]) -> None:
    grant = table.grant(refs[0], 3, 7, writable=True)
    with grant:
        with pytest.raises(RuntimeError, match="granted already"):
            grant.__enter__()
        assert granted(memory, refs) == refs[:1]
    assert granted(memory, refs) == []


def test_what_a_page_raises_keeps_no_other_page_granted(
    memory: TableMemory, table: GrantTable, refs: list[int]
) -> None:
    class Failing(FakePage):
        def drop(self) -> None:
            raise LookupError("drop")

    pages = [FakePage(), Failing(), FakePage()]
    with pytest.raises(LookupError, match="drop"), table.grants(refs[:3], 3, pages, writable=True):
        pass
    assert granted(memory, refs) == []
    assert pages[0].held == pages[2].held == 0


def test_a_grant_that_ended_busy_can_be_entered_again(
    memory: TableMemory, table: GrantTable, refs: list[int]
) -> None:
    grant = table.grant(refs[0], 3, 7, writable=True)
    with pytest.raises(GrantBusy), grant:
        memory.pin(refs[0], READING)
    memory.unpin(refs[0])
    table.end_access(refs[0])
    with grant:
        assert granted(memory, refs) == refs[:1]
    assert granted(memory, refs) == []


def test_the_deadline_is_one_for_all(
    memory: TableMemory, table: GrantTable, refs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(memory, refs[0]).rule(monkeypatch)

    async def main() -> None:
        with pytest.raises(GrantBusy):  # noqa: PT012
            async with table.grants(refs, 3, [1, 2, 3, 4], writable=True, timeout=0.5):
                for ref in refs:
                    memory.pin(ref, READING)

    asyncio.run(main())
    assert sum(clock.pauses) == pytest.approx(0.5)


def test_memory_that_is_gone_does_not_mask_the_bodys_error(table: GrantTable, refs: list[int]) -> None:
    """As when the domain is closed inside the block."""

    def gone(*args: object) -> None:
        raise ValueError("mapping is closed")

    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        with pytest.raises(BodyError) as caught, table.grants(refs[:2], 3, [1, 2], writable=True):  # noqa: PT012
            patch.setattr(table.entries, "end_access", gone)
            raise BodyError
    assert notes(caught.value) == ["mapping is closed"] * 2
