"""Waiting for references: in order, all or nothing, and nothing is lost with whoever gives up."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import threading
from collections.abc import Coroutine
from typing import Any

import pytest

from xengrant import GrantTable, GrantTableFull
from xengrant.grant_table import NewFrames

from .memory import TableMemory

LONG = 30.0  # seconds; no test comes near it


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, LONG))


def emptied(table: GrantTable, *, but: int = 0) -> list[int]:
    """All references but so many, taken."""
    return table.get_n_nowait(table.num_free_grants - but)


async def steps(count: int = 3) -> None:
    """Let the others run until they wait."""
    for _ in range(count):
        await asyncio.sleep(0)


def test_what_is_there_is_had_without_waiting(table: GrantTable) -> None:
    async def main() -> None:
        assert await table.get() == 8
        assert await table.get_n(3) == [9, 10, 11]

    run(main())
    assert table.num_held == 4


def test_references_are_waited_for_in_order(table: GrantTable) -> None:
    served: list[str] = []

    async def want(name: str, count: int) -> None:
        refs = await table.get_n(count)
        assert len(refs) == count
        served.append(name)

    async def main() -> None:
        held = emptied(table)
        tasks = [asyncio.create_task(want(*wish)) for wish in (("a", 1), ("b", 3), ("c", 1), ("d", 2))]
        await steps()
        for expected in (["a"], ["a"], ["a"], ["a", "b"], ["a", "b", "c"], ["a", "b", "c"], ["a", "b", "c", "d"]):
            table.put(held.pop())
            await steps()
            assert served == expected
        await asyncio.gather(*tasks)

    run(main())


def test_nobody_waits_while_holding_some(table: GrantTable) -> None:
    """Two who together want more than there is: the second waits for the first, and is not in its way."""

    async def main() -> None:
        held = emptied(table)
        first = asyncio.create_task(table.get_n(4))
        second = asyncio.create_task(table.get_n(3))
        await steps()
        for ref in held[:3]:
            table.put(ref)
        await steps()
        assert not first.done()
        assert not second.done()
        table.put(held[3])
        refs = await first
        assert not second.done()
        for ref in refs:
            table.put(ref)
        assert len(await second) == 3

    run(main())


def test_nobody_overtakes_those_who_wait(table: GrantTable) -> None:
    async def main() -> None:
        held = emptied(table)
        first = asyncio.create_task(table.get_n(2))
        await steps()
        table.put(held.pop())
        assert table.num_free_grants == 0
        assert table.get_nowait() is None
        assert table.get_n_nowait(1) == []
        late = asyncio.create_task(table.get())
        await steps()
        assert not late.done()
        table.put(held.pop())
        assert len(await first) == 2
        assert table.get_nowait() is None
        table.put(held.pop())
        await late

    run(main())


@pytest.mark.parametrize("count", [0, -1, True, "2"])
def test_a_wrong_count_is_refused_at_once(table: GrantTable, count: int) -> None:
    async def main() -> None:
        with pytest.raises((ValueError, TypeError)):
            await table.get_n(count)

    run(main())
    assert table.num_free_grants == table.capacity


def test_more_than_there_can_ever_be_is_refused_at_once(version: int) -> None:
    table = TableMemory(version, maximum=3).table()

    async def main() -> None:
        with pytest.raises(GrantTableFull, match="max_grant_frames") as caught:
            await table.get_n(table.capacity + 1)
        assert caught.value.limit == "table"
        assert len(await table.get_n(table.capacity)) == table.capacity

    run(main())


def test_the_table_grows_for_those_who_wait(version: int) -> None:
    memory = TableMemory(version, maximum=1)
    table = GrantTable(memory.frames, version=version, status_frames=memory.status, max_frames=2, grow=memory.grow)

    async def main() -> None:
        held = table.get_n_nowait(memory.room)
        waiting = asyncio.create_task(table.get_n(2))
        await steps()
        memory.maximum = 2  # the hypervisor has memory again
        table.put(held.pop())
        assert len(await waiting) == 2

    run(main())
    assert len(memory.frames) == 2


def test_growth_that_fails_keeps_nobody_waiting_for_it(version: int) -> None:
    memory = TableMemory(version)

    def grow(number: int) -> NewFrames | None:
        raise MemoryError

    table = GrantTable(memory.frames, version=version, status_frames=memory.status, max_frames=2, grow=grow)

    async def main() -> None:
        held = table.get_n_nowait(memory.room)
        with pytest.raises(MemoryError):
            await table.get()
        table.put(held.pop())
        assert await table.get() not in held

    run(main())


# Giving up


def test_cancelled_before_it_was_served(table: GrantTable) -> None:
    async def main() -> None:
        held = emptied(table)
        first, second = asyncio.create_task(table.get_n(2)), asyncio.create_task(table.get_n(1))
        await steps()
        table.put(held.pop())
        first.cancel()
        await asyncio.wait([first])
        assert first.cancelled()
        assert await second  # which was behind it

    run(main())
    assert table.num_held == table.capacity


def test_cancelled_after_it_was_served_and_before_it_went_on(table: GrantTable) -> None:
    async def main() -> None:
        held = emptied(table)
        first, second = asyncio.create_task(table.get()), asyncio.create_task(table.get())
        await steps()
        ref = held.pop()
        table.put(ref)
        assert table.num_held == table.capacity  # it is the first one's
        first.cancel()
        await asyncio.wait([first])
        assert first.cancelled()
        assert await second == ref

    run(main())
    assert table.num_held == table.capacity


def test_cancelled_before_it_began(table: GrantTable) -> None:
    async def main() -> None:
        task = asyncio.create_task(table.get_n(5))
        task.cancel()
        await asyncio.wait([task])

    run(main())
    assert table.num_held == 0


def test_cancelled_at_any_moment_nothing_is_lost(version: int) -> None:
    rng = random.Random(version)
    table = TableMemory(version).table()
    emptied(table, but=6)
    taken = table.num_held

    async def work() -> None:
        async with table.refs(rng.randrange(1, 7)):
            await steps(rng.randrange(3))

    async def main() -> None:
        tasks: list[asyncio.Task[None]] = []
        for _ in range(1500):
            tasks.append(asyncio.create_task(work()))
            await steps(rng.randrange(2))
            if rng.random() < 0.5:
                tasks.pop(rng.randrange(len(tasks))).cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await steps()

    run(main())
    assert table.num_held == taken
    assert table.num_free_grants == 6


def test_a_deadline_of_the_callers_own_loses_nothing(table: GrantTable) -> None:
    async def main() -> None:
        held = emptied(table)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await table.get()
        table.put(held.pop())

    run(main())
    assert table.num_free_grants == 1


def test_a_coroutine_that_is_garbage_collected_gives_up(table: GrantTable) -> None:
    async def main() -> None:
        held = emptied(table)
        waiting = table.get_n(2)
        waiting.send(None)  # it waits now
        served = table.get()
        served.send(None)
        del waiting
        gc.collect()
        table.put(held.pop())  # for the second
        del served
        gc.collect()

    run(main())
    assert table.num_free_grants == 1
    assert table.get_nowait() is not None


# Loops


def test_waiters_of_several_loops_in_several_threads_are_woken_in_their_own(version: int) -> None:
    table = TableMemory(version).table()
    emptied(table, but=5)
    taken = table.num_held
    failures: list[BaseException] = []
    overlaps: set[int] = set()
    in_use: set[int] = set()

    async def work(seed: int) -> None:
        rng = random.Random(seed)
        loop = asyncio.get_running_loop()
        for _ in range(150):
            async with table.refs(rng.randrange(1, 5)) as refs:
                assert asyncio.get_running_loop() is loop
                overlaps.update(in_use & set(refs))
                in_use.update(refs)
                await asyncio.sleep(0)
                in_use.difference_update(refs)

    def thread(seed: int) -> None:
        try:
            asyncio.run(asyncio.wait_for(_both(work(seed), work(seed + 10)), LONG))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=thread, args=(seed,)) for seed in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(LONG)
        assert not one.is_alive(), "a loop waits for ever"
    assert failures == []
    assert overlaps == set()
    assert table.num_held == taken


async def _both(*work: Coroutine[Any, Any, None]) -> None:
    await asyncio.gather(*work)


@contextlib.contextmanager
def closed_loop(table: GrantTable, count: int) -> Any:
    """A loop that was closed while a task in it waited for `count` references."""
    loop = asyncio.new_event_loop()
    task = loop.create_task(table.get_n(count))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    yield task
    task._log_destroy_pending = False  # type: ignore[attr-defined]


def test_a_loop_that_was_closed_while_it_waited_is_in_nobodys_way(table: GrantTable) -> None:
    held = emptied(table)
    with closed_loop(table, 5):
        table.put(held.pop())
        assert table.num_free_grants == 1
        ref = table.get_nowait()
        assert ref is not None
        table.put(ref)

        async def main() -> None:
            assert await table.get() == ref

        run(main())


def test_a_loop_that_was_closed_keeps_no_reference(table: GrantTable) -> None:
    held = emptied(table)
    with closed_loop(table, 1):
        table.put(held.pop())
        assert table.num_free_grants == 1


def test_a_loop_that_is_closed_in_the_moment_it_is_served_keeps_no_reference(table: GrantTable) -> None:
    held = emptied(table)

    def closed(*args: object) -> None:
        raise RuntimeError("Event loop is closed")

    async def main() -> None:
        first, second = asyncio.create_task(table.get()), asyncio.create_task(table.get())
        await steps()
        loop = asyncio.get_running_loop()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "call_soon_threadsafe", closed)
            table.put(held.pop())
        assert table.num_free_grants == 1
        for task in (first, second):
            task.cancel()

    run(main())


def test_a_loop_that_was_closed_after_it_was_served_gives_back_when_it_is_collected(table: GrantTable) -> None:
    held = emptied(table)
    loop = asyncio.new_event_loop()
    task = loop.create_task(table.get())
    loop.run_until_complete(asyncio.sleep(0))
    table.put(held.pop())
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    del task, loop
    gc.collect()
    assert table.num_free_grants == 1
