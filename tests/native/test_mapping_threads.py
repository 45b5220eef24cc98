"""Threads that map, view and close at the same time: no crash, and each mapping unmapped once."""

import threading
from collections.abc import Callable
from functools import partial

from xengrant.memory import PAGE_SIZE, Mapping

from .conftest import MakePages
from .maps import mapped_memfds


def run_together(work: Callable[[], object], count: int) -> None:
    """Runs `work` in `count` threads that start at once; the first error of any is raised."""
    barrier, errors = threading.Barrier(count), list[BaseException]()

    def guarded() -> None:
        try:
            barrier.wait(timeout=60)
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
        assert not thread.is_alive(), "a thread has not ended in two minutes"
    for error in errors:
        raise error


def test_threads_map_and_unmap_side_by_side(make_pages: MakePages) -> None:
    fd = make_pages(4)

    def work() -> None:
        for round_ in range(500):
            with Mapping([(fd, round_ % 4 * PAGE_SIZE, PAGE_SIZE)], writable=False) as mapping:
                assert mapping[7] == round_ % 4 + 1

    run_together(work, 4)
    assert mapped_memfds() == 0


def test_of_many_closers_and_viewers_one_unmaps(make_pages: MakePages) -> None:
    fd, told = make_pages(1), list[int]()
    for round_ in range(200):
        mapping = Mapping([(fd, 0, PAGE_SIZE)], writable=True, unmapped=partial(told.append, round_))

        def work(shared: Mapping = mapping) -> None:
            for _ in range(20):
                try:
                    with memoryview(shared) as view:
                        assert view[0] == 1
                        assert shared[0:2] == b"\x01\x01"
                except ValueError:
                    return
                shared.close_on_release()

        run_together(work, 3)
        assert mapping.closed
    assert told == list(range(200))
    assert mapped_memfds() == 0


def test_the_count_of_exports_is_exact(make_pages: MakePages) -> None:
    with Mapping([(make_pages(1), 0, PAGE_SIZE)], writable=True) as mapping:

        def work() -> None:
            for _ in range(2000):
                views = [memoryview(mapping), mapping.page(0)]
                assert mapping.exports >= 2
                del views

        run_together(work, 4)
        assert mapping.exports == 0
