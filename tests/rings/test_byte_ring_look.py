"""A look at a ring by somebody who is neither end: right while both ends go on, and harmless where they lie."""

from __future__ import annotations

import random
import threading
import types

import pytest

from xengrant._native import load32, store32
from xengrant.abi.xen import PAGE_SIZE
from xengrant.rings import byte_ring_look
from xengrant.rings.byte_ring import ConsoleRing
from xengrant.rings.byte_ring_look import RingLook, look

from .test_byte_ring import BOUNDARIES, U32, put

OUT = ConsoleRing.TO_BACK


def looked(page: bytearray) -> RingLook:
    return look(memoryview(page).toreadonly(), OUT)


def test_an_unused_ring_has_nothing() -> None:
    assert looked(bytearray(PAGE_SIZE)) == (2048, 0, 0, b"")


def test_what_was_consumed_is_told_from_what_was_not() -> None:
    page = bytearray(PAGE_SIZE)
    ConsoleRing.front(page).output.write(b"read, unread")
    ConsoleRing.back(page).input.consume(0)
    assert ConsoleRing.back(page).input.read(6) == b"read, "
    now = looked(page)
    assert (now.read, now.unread, now.held, now.consumed, now.produced) == (b"read, ", b"unread", 6, 6, 12)


@pytest.mark.parametrize("boundary", [0, 2048, *BOUNDARIES])
@pytest.mark.parametrize("after", [0, 1, 1000, 2047, 2048, 5000])
def test_the_tail_is_the_last_bytes_wherever_the_index_is(boundary: int, after: int) -> None:
    page = bytearray(PAGE_SIZE)
    begins_at = boundary - 3000 if boundary else 0
    put(page, ConsoleRing, "to_back", begins_at, begins_at)
    front, back = ConsoleRing.front(page), ConsoleRing.back(page)
    text = random.Random(after).randbytes(boundary - begins_at + after).replace(b"\0", b"1")
    for at in range(0, len(text), 1500):
        front.output.write(text[at : at + 1500])
        back.input.read(1500)
    now = looked(page)
    assert now.tail == text[-2048:]
    assert (now.held, now.unread) == (0, b"")
    assert now.produced == (begins_at + len(text)) & U32


def test_nul_bytes_that_were_written_are_no_blank_page() -> None:
    page = bytearray(PAGE_SIZE)
    ConsoleRing.front(page).output.write(b"\0\0\0")
    assert looked(page).tail == b"\0\0\0"


@pytest.mark.parametrize("by", [2049, 1 << 31, U32])
def test_indices_that_cannot_be_are_told_and_all_is_unread(by: int) -> None:
    page = bytearray(PAGE_SIZE)
    ConsoleRing.front(page).output.write(b"text")
    store32(page, OUT.cons, (4 - by) & U32)
    now = looked(page)
    assert (now.held, now.possible) == (by, False)
    assert (now.read, now.unread) == (b"", b"text")


def test_a_look_while_both_ends_go_on_is_of_one_moment() -> None:
    page = bytearray(PAGE_SIZE)
    front, back = ConsoleRing.front(page), ConsoleRing.back(page)
    stream = random.Random(1).randbytes(1 << 16).replace(b"\0", b"1")
    ended = threading.Event()

    def run() -> None:
        at = 0
        while not ended.is_set():
            at = (at + front.output.write(stream[at : at + 999])) % len(stream)
            back.input.read(700)

    runner = threading.Thread(target=run)
    runner.start()
    try:
        for _ in range(500):
            now = looked(page)
            assert now.possible
            end = now.produced % len(stream)
            expected = (stream + stream)[len(stream) + end - len(now.tail) : len(stream) + end]
            assert now.tail == expected
    finally:
        ended.set()
        runner.join(20)
    assert not runner.is_alive()


@pytest.mark.parametrize("by", [1, 100, 2047, 2048, 5000, 1 << 31])
def test_what_was_overwritten_while_looking_is_left_out(by: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest's index moves in each look, between the bytes and the second reading of the indices."""
    page = bytearray(PAGE_SIZE)
    page[OUT.start : OUT.start + OUT.size] = bytes(range(1, 129)) * 16
    put(page, ConsoleRing, "to_back", 10_000, 10_000)

    def move() -> None:
        store32(page, OUT.prod, (load32(page, OUT.prod) + by) & U32)

    monkeypatch.setattr(byte_ring_look, "_native", types.SimpleNamespace(load32=load32, fence=move))
    now = looked(page)
    assert len(now.tail) == max(0, 2048 - by)
    assert now.held <= now.size


def test_a_ring_that_moves_between_two_indices_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Honest ends that go on meanwhile are no liars."""
    page = bytearray(PAGE_SIZE)
    loads = 0

    def load(view: memoryview, offset: int) -> int:
        nonlocal loads
        loads += 1
        if loads == 2:
            put(page, ConsoleRing, "to_back", 3000, 3004)
        return load32(view, offset)

    monkeypatch.setattr(byte_ring_look, "_native", types.SimpleNamespace(load32=load, fence=lambda: None))
    now = looked(page)
    assert (now.consumed, now.produced, now.possible) == (3000, 3004, True)
