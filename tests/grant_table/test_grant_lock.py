"""What finalizers do with a table: they run inside any call, also inside one of the table's own."""

from __future__ import annotations

import gc
import threading

from xengrant import GrantTable
from xengrant.grant_lock import FinalizerLock
from xengrant.grant_table import NewFrames

from .memory import TableMemory

LONG = 30.0  # seconds; no test comes near it


def test_a_function_is_called_at_once_where_nobody_has_the_lock() -> None:
    lock, called = FinalizerLock(), []
    lock.call(lambda: called.append(1))
    assert called == [1]


def test_inside_the_lock_it_is_called_when_the_lock_is_let_go_of() -> None:
    lock, called = FinalizerLock(), []

    def function() -> None:
        with lock:
            called.append(1)

    with lock:
        lock.call(function)
        assert called == []
    assert called == [1]


def test_it_is_called_though_the_holder_fails() -> None:
    lock, called = FinalizerLock(), []
    try:
        with lock:
            lock.call(lambda: called.append(1))
            raise LookupError
    except LookupError:
        pass
    assert called == [1]


def test_who_finds_the_lock_taken_leaves_it_to_the_holder() -> None:
    lock, called = FinalizerLock(), []
    with lock:
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
        with lock:
            depths.append(depth)
        depth -= 1

    with lock:
        for _ in range(5000):
            lock.call(function)
    assert depths == [1] * 5000


def test_threads_leave_nothing_behind() -> None:
    lock, counts = FinalizerLock(), [0]

    def function() -> None:
        with lock:
            counts[0] += 1

    def work() -> None:
        for i in range(3000):
            if i % 3:
                lock.call(function)
            else:
                with lock:
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

    def grow() -> NewFrames | None:
        gc.collect()
        assert done == []  # inside the call it would corrupt the table, or wait for itself
        return memory.grow()

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

    def grow() -> NewFrames | None:
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

    import asyncio

    asyncio.run(main())
