"""What finalizers do with a table: they run inside any call, also inside one of the table's own."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import cast

import pytest

from xengrant import GrantTable
from xengrant.grant_lock import FinalizerLock
from xengrant.grant_table import NewFrames

from .memory import TableMemory

LONG = 10.0  # seconds; no test comes near it


@contextlib.contextmanager
def held(lock: FinalizerLock) -> Iterator[None]:
    """As `locked` does for a method."""
    try:
        with lock.plain:
            yield
    finally:
        if lock.late:
            lock.call_late()


def test_a_function_is_called_at_once_where_nobody_has_the_lock() -> None:
    lock, called = FinalizerLock(), []
    lock.call(lambda: called.append(1))
    assert called == [1]


def test_inside_the_lock_it_is_called_when_the_lock_is_let_go_of() -> None:
    lock, called = FinalizerLock(), []

    def function() -> None:
        with held(lock):
            called.append(1)

    with held(lock):
        lock.call(function)
        assert called == []
    assert called == [1]


def test_it_is_called_though_the_holder_fails() -> None:
    lock, called = FinalizerLock(), []
    try:
        with held(lock):
            lock.call(lambda: called.append(1))
            raise LookupError
    except LookupError:
        pass
    assert called == [1]


def test_who_finds_the_lock_taken_leaves_it_to_the_holder() -> None:
    lock, called = FinalizerLock(), []
    with held(lock):
        thread = threading.Thread(target=lambda: lock.call(lambda: called.append(threading.current_thread())))
        thread.start()
        thread.join(LONG)
        assert not thread.is_alive(), "a finalizer waits for the lock"
        assert called == []
    assert called == [threading.current_thread()]


def test_however_many_there_are_they_are_called_one_after_the_other() -> None:
    lock, depths = FinalizerLock(), []
    depth = 0

    def function() -> None:
        nonlocal depth
        depth += 1
        with held(lock):
            depths.append(depth)
        depth -= 1

    with held(lock):
        for _ in range(5000):
            lock.call(function)
    assert depths == [1] * 5000


def test_threads_leave_nothing_behind() -> None:
    lock, counts = FinalizerLock(), [0]

    def function() -> None:
        with held(lock):
            counts[0] += 1

    def work() -> None:
        for i in range(3000):
            if i % 3:
                lock.call(function)
            else:
                with held(lock):
                    lock.call(function)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive(), "somebody waits for ever"
    assert counts == [4 * 3000]
    assert not lock.late


def test_a_finalizer_inside_the_tables_own_call_ends_a_grant_after_it(version: int) -> None:
    """As when memory that dies while the table grows was granted."""
    memory = TableMemory(version, maximum=2)
    table: GrantTable
    done: list[int] = []

    class Share:
        """In a cycle, so that only the collector finds it."""

        def __init__(self, ref: int) -> None:
            self.ref, self.itself = ref, self

        def __del__(self) -> None:
            table._call_outside(lambda: end(self.ref))

    def end(ref: int) -> None:
        table.end_access(ref)
        table.put(ref)
        done.append(ref)

    def grow(number: int) -> NewFrames | None:
        gc.collect()
        assert done == []  # inside the call it would corrupt the table, or wait for itself
        return memory.grow(number)

    table = GrantTable(memory.frames, version=version, status_frames=memory.status, max_frames=2, grow=grow)
    refs = table.get_n_nowait(memory.room)
    table.grant_access(refs[0], 1, 2, writable=True)
    Share(refs[0])
    assert table.get_n_nowait(2) == [memory.per_frame, memory.per_frame + 1]
    assert done == refs[:1]
    assert table.get_nowait() == refs[0]


def test_whoever_gave_up_inside_a_call_is_seen_after_any_call(version: int) -> None:
    """The coroutine dies inside a call of the table; what it was served comes back at the end of that call."""
    memory = TableMemory(version, maximum=2)
    waiting: list[object] = []

    def grow(number: int) -> NewFrames | None:
        waiting.clear()
        gc.collect()
        return None

    table = GrantTable(memory.frames, version=version, status_frames=memory.status, max_frames=2, grow=grow)
    held = table.get_n_nowait(memory.room)

    async def main() -> None:
        coroutine = table.get()
        coroutine.send(None)
        waiting.append(coroutine)
        table.put(held.pop())
        assert table.num_held == memory.room  # served, and not gone on
        del coroutine
        assert table.get_n_nowait(1) == []  # in which it dies
        assert table.num_held == memory.room - 1

    asyncio.run(main())


class CollectingPage:
    """A page that is granted just when garbage is collected, as in any allocation."""

    frame = 7

    def hold(self) -> None:
        gc.collect()

    def drop(self) -> None:
        pass


async def _a_ref(table: GrantTable) -> None:
    async with table.ref():
        await asyncio.get_running_loop().create_future()


async def _a_grant(table: GrantTable) -> None:
    async with table.ref() as ref:
        with table.grant(ref, 3, 5, writable=True):
            await asyncio.get_running_loop().create_future()


async def _an_awaited_grant(table: GrantTable) -> None:
    async with table.ref() as ref, table.grant(ref, 3, 5, writable=True):
        await asyncio.get_running_loop().create_future()


@pytest.mark.parametrize("block", [_a_ref, _a_grant, _an_awaited_grant])
def test_a_block_that_dies_as_garbage_inside_a_call_ends_after_it(
    table: GrantTable, block: Callable[[GrantTable], Coroutine[object, object, None]]
) -> None:
    mine = table.get_nowait()
    assert mine is not None

    def start() -> None:
        cycle: list[object] = []
        cycle += [cycle, block(table)]
        cast(Coroutine[object, object, None], cycle[1]).send(None)

    async def main() -> None:
        start()
        assert table.num_held == 2
        grant = partial(table.grant_access, mine, 3, CollectingPage(), writable=True)
        thread = threading.Thread(target=grant, daemon=True)
        thread.start()
        thread.join(LONG)
        assert not thread.is_alive(), "the table waits for itself"
        assert table.num_held == 1
        assert [entry.ref for entry in table] == [mine]

    asyncio.run(main())


def test_a_signal_handler_that_raises_as_soon_as_a_page_is_granted_leaves_it_held(
    table: GrantTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    grant = table.entries.grant
    ref = table.get_nowait()
    assert ref is not None
    page = CountedPage()

    def interrupted(*args: int, **kwargs: bool) -> None:
        grant(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(table.entries, "grant", interrupted)
    with pytest.raises(KeyboardInterrupt):
        table.grant_access(ref, 3, page, writable=True)
    assert page.held == 1  # the peer can map it
    table.end_access(ref)
    assert page.held == 0
    table.put(ref)


def test_one_that_raises_before_it_is_granted_leaves_it_free(
    table: GrantTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = table.get_nowait()
    assert ref is not None
    page = CountedPage()

    def interrupted(*args: int, **kwargs: bool) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(table.entries, "grant", interrupted)
    with pytest.raises(KeyboardInterrupt):
        table.grant_access(ref, 3, page, writable=True)
    assert page.held == 0
    table.put(ref)


class CountedPage:
    frame = 7

    def __init__(self) -> None:
        self.held = 0

    def hold(self) -> None:
        self.held += 1

    def drop(self) -> None:
        self.held -= 1
