"""Xen's own io/ring.h as the judge: the same calls leave the same bytes, and C and Python talk over one file."""

from __future__ import annotations

import itertools
import mmap
import os
import random
import select
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xengrant import ProtocolError
from xengrant.abi import ring as abi
from xengrant.rings.rpc import BackRing, FrontRing

from . import oracle
from .memory import EDGES, WRAP, set_header, used_ring
from .oracle import Oracle

pytestmark = oracle.NEEDED

LONG = 30.0  # seconds
MANY = 40_000  # requests


@contextmanager
def beside(memory: bytearray, entry_size: int) -> Iterator[tuple[bytearray, Oracle]]:
    """A copy of the memory, and C's ends of the ring in it."""
    theirs = bytearray(memory)
    judge = Oracle(theirs, entry_size)
    try:
        yield theirs, judge
    finally:
        judge.close()


@pytest.mark.parametrize("start", EDGES)
def test_the_truth_table_of_notify_is_cs(start: int) -> None:
    """Every number pushed, from where it was on, with the peer asleep at every place, asleep long ago, or awake."""
    for entry_count in (4, 1):
        for pushed, event in itertools.product(range(entry_count + 1), [*range(-3, 8), 1 << 31, (1 << 31) + 1]):
            memory = used_ring(start, entries=entry_count)
            set_header(memory, start, start + event, start, start + event)
            with beside(memory, 16) as (theirs, judge):
                judge.attach(start)
                front, back = FrontRing.attach(memory, 16), BackRing.attach(memory, 16)
                for _ in range(pushed):
                    front.next_request(b"r")
                    judge.next_request(b"r")
                assert front.push_requests() == bool(judge.ask("push_requests")), (pushed, event)
                assert len(back.take_requests()) == len(judge.take_requests()) == pushed
                for _ in range(pushed):
                    back.next_response(b"s")
                    judge.next_response(b"s")
                assert back.push_responses() == bool(judge.ask("push_responses")), (pushed, event)
                assert memory == theirs


_CALLS = [
    *("request", "push_requests", "take_responses", "more_responses"),
    *("response", "push_responses", "take_requests", "more_requests"),
]
_STEPS = st.lists(st.tuples(st.sampled_from(_CALLS), st.integers(0, 255)), max_size=60)
_STARTS = st.one_of(st.sampled_from(EDGES), st.integers(-9, 9).map(lambda near: near % WRAP), st.integers(0, WRAP - 1))


@settings(max_examples=300)
@given(start=_STARTS, entries=st.sampled_from([1, 2, 8]), steps=_STEPS)
def test_any_calls_answer_as_cs_and_leave_the_same_bytes(
    start: int, entries: int, steps: list[tuple[str, int]]
) -> None:
    memory = used_ring(start, entries=entries)
    with beside(memory, 16) as (theirs, judge):
        judge.attach(start)
        front, back = FrontRing.attach(memory, 16), BackRing.attach(memory, 16)
        ours: dict[str, Callable[[], object]] = {
            "push_requests": front.push_requests,
            "push_responses": back.push_responses,
            "take_requests": back.take_requests,
            "take_responses": front.take_responses,
            "more_requests": back.more_to_do,
            "more_responses": front.more_to_do,
        }
        for what, number in steps:
            assert front.free_requests == judge.ask("free_requests")
            assert back.unanswered == judge.ask("unanswered")
            if what == "request":
                if front.free_requests:
                    front.next_request(bytes([number] * 16))
                    judge.next_request(bytes([number] * 16))
            elif what == "response":
                if back.unanswered:
                    back.next_response(bytes([number] * 8))
                    judge.next_response(bytes([number] * 8))
            elif what.startswith("take"):
                assert ours[what]() == getattr(judge, what)()
            else:
                assert ours[what]() == bool(judge.ask(what)), what
            assert memory == theirs, what


@pytest.mark.parametrize("start", EDGES)
@pytest.mark.parametrize("entries", [1, 4])
def test_what_is_overflow_to_c_is_a_lie_here(start: int, entries: int) -> None:
    """Here more is: C accepts a response to what was never asked, and requests over responses not pushed yet."""
    for ahead in [*range(-2, 8), 1 << 31]:
        memory = used_ring(start, entries=entries)
        with beside(memory, 16) as (theirs, judge):
            judge.attach(start)
            front, back = FrontRing.attach(memory, 16), BackRing.attach(memory, 16)
            for _ in range(entries):
                front.next_request(b"")
                judge.next_request(b"")
            front.push_requests()
            judge.ask("push_requests")
            for place in (memory, theirs):
                set_header(place, start + ahead, start + 1, start + ahead, start + 1)
            for call, name in ((back.take_requests, "request_overflow"), (front.take_responses, "response_overflow")):
                if judge.ask(name):
                    with pytest.raises(ProtocolError):
                        call()
                else:
                    assert len(call()) == ahead


class _Shared:
    """A ring in a file, which C attaches to in a process of its own; events are bytes in two pipes."""

    def __init__(self, path: Path, length: int, entry_size: int, start: int, role: str) -> None:
        path.write_bytes(bytes(length))
        with path.open("r+b") as file:
            self.memory = mmap.mmap(file.fileno(), length)
        header = bytearray(abi.HEADER_SIZE)
        set_header(header, start, start + 1, start, start + 1)
        self.memory[: abi.HEADER_SIZE] = bytes(header)
        program = str(oracle.build(entry_size, program=True))
        self.process = subprocess.Popen(
            [program, role, str(path), str(length), str(start), str(MANY)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._in, self._out = self.process.stdout.fileno(), self.process.stdin.fileno()
        self.sleeps = 0  # of either end

    def notify_if(self, wanted: bool) -> None:
        if wanted:
            self.sleeps += 1
            with suppress(BrokenPipeError):  # it has seen the last of its answers, and is gone
                os.write(self._out, b"!")

    def wait(self) -> None:
        self.sleeps += 1
        ready, _, _ = select.select([self._in], [], [], LONG)
        assert ready, "no event"
        assert os.read(self._in, 4096), "the other end has ended"

    def finish(self) -> None:
        """C is content too."""
        _, error = self.process.communicate(timeout=LONG)
        assert (self.process.returncode, error) == (0, b"")
        assert self.sleeps > 10, "nobody slept: this has shown nothing of events"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


# A ring of two entries makes both sleep often; the others are a page and four.
_RINGS = [(64 + 2 * 16, 16), (4096, 112), (16384, 24)]
_BEGINNINGS = [0, (1 << 31) - 1000, WRAP - 1000]


@pytest.mark.parametrize("start", _BEGINNINGS)
@pytest.mark.parametrize(("length", "entry_size"), _RINGS)
def test_a_c_front_end_is_served(tmp_path: Path, length: int, entry_size: int, start: int) -> None:
    with _Shared(tmp_path / "ring", length, entry_size, start, "front") as ring:
        back = BackRing.attach(ring.memory, entry_size)
        chance = random.Random(start)
        answered = 0
        held: list[bytes] = []
        while answered < MANY:
            held += back.take_requests()
            chance.shuffle(held)
            while held and (len(held) > 1 or chance.random() < 0.9):
                number = int.from_bytes(held.pop()[:8], "little")
                back.next_response((number ^ (1 << 64) - 1).to_bytes(8, "little"))
                answered += 1
                if chance.random() < 0.3:
                    ring.notify_if(back.push_responses())
            ring.notify_if(back.push_responses())
            if answered < MANY and not held and not back.more_to_do():
                ring.wait()
        ring.finish()


@pytest.mark.parametrize("start", _BEGINNINGS)
@pytest.mark.parametrize(("length", "entry_size"), _RINGS)
def test_a_c_back_end_answers(tmp_path: Path, length: int, entry_size: int, start: int) -> None:
    with _Shared(tmp_path / "ring", length, entry_size, start, "back") as ring:
        front = FrontRing.attach(ring.memory, entry_size)
        chance = random.Random(start)
        sent = 0
        open_calls: set[int] = set()
        while sent < MANY or open_calls:
            for _ in range(min(chance.randint(0, front.entries), front.free_requests, MANY - sent)):
                front.next_request(sent.to_bytes(8, "little"))
                open_calls.add(sent)
                sent += 1
            ring.notify_if(front.push_requests())
            while True:
                for response in front.take_responses():
                    open_calls.remove(int.from_bytes(response[:8], "little") ^ (1 << 64) - 1)
                if not front.more_to_do():
                    break
            if open_calls and (sent == MANY or not front.free_requests):
                ring.wait()
        ring.finish()
