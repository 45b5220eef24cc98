"""Held: what Share and Mapped are made of. What Descriptor makes of it, test_descriptor_made shows."""

from __future__ import annotations

import gc
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from xengrant._native import Held
from xengrant.memory import PAGE_SIZE, Mapping

from .conftest import MakePages
from .maps import is_mapped


class Slotted(Held):
    __slots__ = ()


class Owner:
    """What can be in a cycle."""

    held: object = None


@pytest.fixture
def mapping(make_pages: MakePages) -> Iterator[Mapping]:
    with Mapping([(make_pages(1), 0, PAGE_SIZE)], writable=True) as mapping:
        yield mapping


@pytest.fixture(params=[Held, Slotted, type("Free", (Held,), {})], ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest) -> type[Held]:
    made: type[Held] = request.param
    return made


def test_it_has_what_it_was_made_of(kind: type[Held], mapping: Mapping) -> None:
    held = kind("whose", (1, 2), mapping, True)
    assert (held._whose, held._names, held.writable, held.closed) == ("whose", (1, 2), True, False)
    assert held.mapping is mapping
    other: Any = 0
    assert kind(None, (), mapping, other).writable is False


def test_it_never_changes(mapping: Mapping) -> None:
    held: Any = Slotted(1, (), mapping, True)
    for name in ("_whose", "_names", "mapping", "writable", "closed"):
        with pytest.raises(AttributeError):
            setattr(held, name, mapping)
        with pytest.raises(AttributeError):
            delattr(held, name)
    with pytest.raises(AttributeError):
        held.more = 1


@pytest.mark.parametrize(
    "arguments",
    [(), (1, ()), (1, (), None, True), (1, (), Mapping, True), (1, (), b"", True)],
)
def test_it_is_made_of_nothing_else(kind: type[Held], mapping: Mapping, arguments: tuple[object, ...]) -> None:
    make: Callable[..., Held] = kind
    with pytest.raises(TypeError):
        make(*arguments)
    with pytest.raises(TypeError):
        make(1, (), mapping, True, mapping)
    with pytest.raises(TypeError, match="keyword"):
        make(1, (), mapping, writable=True)


def test_a_mapping_may_be_of_a_subclass_with_a_finalizer(make_pages: MakePages) -> None:
    class Quiet(Mapping):
        def __del__(self) -> None:
            self.close()

    with Held(1, (), Quiet([(make_pages(1), 0, PAGE_SIZE)], writable=True), True) as held:
        assert held.mapping[0] == 1
    assert held.closed


def test_closing_unmaps_once_and_again_does_nothing(kind: type[Held], mapping: Mapping) -> None:
    held, address = kind(1, (), mapping, True), mapping.address
    held.close()
    held.close()
    assert held.closed
    assert mapping.closed
    assert not is_mapped(address)
    with pytest.raises(ValueError, match="mapping is closed"):
        held.__enter__()


def test_a_live_view_keeps_it_open(kind: type[Held], mapping: Mapping) -> None:
    held = kind(1, (), mapping, True)
    with memoryview(mapping), pytest.raises(BufferError, match="1 view"):
        held.close()
    assert not held.closed


def test_leaving_a_block_is_the_mappings_leaving(kind: type[Held], mapping: Mapping) -> None:
    held = kind(1, (), mapping, True)
    assert held.__enter__() is held
    view = memoryview(held.mapping)
    with pytest.raises(RuntimeError) as raised, held:
        raise RuntimeError
    assert held.closed
    assert mapping.exports == 1
    assert any("unmapped later: 1 view of it" in note for note in raised.value.__notes__)
    view.release()
    assert mapping.exports == 0


def test_dropped_unclosed_its_mapping_warns_and_is_unmapped(kind: type[Held], make_pages: MakePages) -> None:
    held = kind(1, (), Mapping([(make_pages(1), 0, PAGE_SIZE)], writable=True), True)
    address = held.mapping.address
    with pytest.warns(ResourceWarning, match="unclosed <Mapping"):
        del held
    assert not is_mapped(address)


def test_its_mapping_outlives_it(kind: type[Held], make_pages: MakePages) -> None:
    held = kind(1, (), Mapping([(make_pages(1), 0, PAGE_SIZE)], writable=True), True)
    mapping = held.mapping
    del held
    assert mapping[0] == 1
    mapping.close()


def test_it_owns_a_reference_to_each_part_and_lets_it_go(kind: type[Held], mapping: Mapping) -> None:
    whose, names = Owner(), (object(), object())
    # Without a GIL types are immortal.
    parts = [part for part in (whose, names, mapping, kind) if sys.getrefcount(part) < 1 << 31]
    before = [sys.getrefcount(part) for part in parts]
    held = kind(whose, names, mapping, True)
    assert [sys.getrefcount(part) for part in parts] == [count + 1 for count in before]
    del held
    for _ in range(1000):
        kind(whose, names, mapping, True)
        with suppress(TypeError):
            kind(whose, names, None, True)  # type: ignore[arg-type]
    assert [sys.getrefcount(part) for part in parts] == before


def test_the_collector_finds_it_in_a_cycle(kind: type[Held], mapping: Mapping) -> None:
    owners = [Owner(), Owner()]
    owners[0].held = kind(owners[0], (), mapping, True)
    owners[1].held = kind(None, (owners[1],), mapping, True)
    gone = [weakref.ref(owner) for owner in owners]
    references = sys.getrefcount(mapping)
    owners.clear()
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
    assert sys.getrefcount(mapping) == references - 2


def test_a_finalizer_in_its_cycle_still_finds_all_of_it(mapping: Mapping) -> None:
    seen: list[tuple[bool, tuple[int, ...]]] = []

    class Last:
        held: Held

        def __del__(self) -> None:
            self.held.close()
            seen.append((self.held.closed, self.held._names))

    last = Last()
    last.held = Slotted(last, (1, 2), mapping, True)
    del last
    gc.collect()
    assert seen == [(True, (1, 2))]


def test_threads_close_it_once(make_pages: MakePages) -> None:
    memory = make_pages(1)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(200):
            told: list[int] = []
            mapping = Mapping([(memory, 0, PAGE_SIZE)], writable=True, unmapped=lambda told=told: told.append(1))  # type: ignore[misc]
            held, together = Slotted(1, (), mapping, True), threading.Barrier(4)

            def close(held: Held = held, together: threading.Barrier = together) -> None:
                together.wait(60)
                held.close()

            for closing in [pool.submit(close) for _ in range(4)]:
                closing.result(60)
            assert told == [1]


def test_in_a_forked_child_it_is_closed(mapping: Mapping) -> None:
    held = Slotted(1, (), mapping, True)
    child = os.fork()
    if child == 0:
        os._exit(0 if held.closed else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not held.closed
