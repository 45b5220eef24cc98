"""Both ends of a ring beside a plain model of it: what Hypothesis may do in any order, from any index on."""

from __future__ import annotations

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from xengrant.rings.rpc import BackRing, FrontRing

from .memory import EDGES, WRAP, pair

starts = st.one_of(st.sampled_from(EDGES), st.integers(-8, 8).map(lambda near: near % WRAP), st.integers(0, WRAP - 1))
limits = st.one_of(st.none(), st.integers(0, 5))
SIZE = 12


class RingMachine(RuleBasedStateMachine):
    """The model: what is written, pushed and taken in each direction as queues, and who sleeps."""

    @initialize(start=starts, entries=st.sampled_from([1, 2, 4, 16]))
    def begin(self, start: int, entries: int) -> None:
        self.front, self.back, self.memory = pair(start, entries=entries, entry_size=SIZE)
        self.entries = entries
        self.number = 0
        self.written: dict[str, deque[bytes]] = {"front": deque(), "back": deque()}
        self.pushed: dict[str, deque[bytes]] = {"front": deque(), "back": deque()}
        self.open: list[bytes] = []  # taken by the back end, not answered
        self.in_flight = 0
        self.sleeps = {"front": True, "back": True}

    def new(self) -> bytes:
        self.number += 1
        return self.number.to_bytes(SIZE, "little")

    @precondition(lambda self: self.in_flight < self.entries)
    @rule()
    def next_request(self) -> None:
        entry = self.new()
        self.front.next_request(entry)
        self.written["front"].append(entry)
        self.in_flight += 1

    @precondition(lambda self: self.in_flight == self.entries)
    @rule()
    def no_request_where_it_is_full(self) -> None:
        self.refused(lambda: self.front.next_request(b""))

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 15))
    def next_response(self, which: int) -> None:
        entry = self.open.pop(which % len(self.open))
        self.back.next_response(entry)
        self.written["back"].append(entry)

    @precondition(lambda self: not self.open)
    @rule()
    def no_response_to_nothing(self) -> None:
        self.refused(lambda: self.back.next_response(b""))

    @rule()
    def push_requests(self) -> None:
        self.pushes("front", "back", self.front.push_requests())

    @rule()
    def push_responses(self) -> None:
        self.pushes("back", "front", self.back.push_responses())

    @rule(limit=limits)
    def take_requests(self, limit: int | None) -> None:
        taken = self.takes("front", self.back.take_requests(limit), limit)
        self.open += taken

    @rule(limit=limits)
    def take_responses(self, limit: int | None) -> None:
        self.in_flight -= len(self.takes("back", self.front.take_responses(limit), limit))

    @rule()
    def more_requests(self) -> None:
        assert self.back.more_to_do() == bool(self.pushed["front"])
        self.sleeps["back"] |= not self.pushed["front"]

    @rule()
    def more_responses(self) -> None:
        assert self.front.more_to_do() == bool(self.pushed["back"])
        self.sleeps["front"] |= not self.pushed["back"]

    @rule()
    def the_back_end_dies_and_another_attaches(self) -> None:
        """What was taken and not answered is lost to it; it takes as new what comes after the last response pushed."""
        lost = len(self.open) + len(self.written["back"])
        if not lost:
            self.back = BackRing.attach(self.memory, SIZE)

    @precondition(lambda self: not self.in_flight)
    @rule()
    def the_front_end_goes_and_another_attaches(self) -> None:
        self.front = FrontRing.attach(self.memory, SIZE)

    @invariant()
    def agrees(self) -> None:
        if hasattr(self, "front"):
            assert self.front.in_flight == self.in_flight
            assert self.front.free_requests == self.entries - self.in_flight
            assert self.back.unanswered == len(self.open)

    def pushes(self, end: str, other: str, notify: bool) -> None:
        """A push notifies exactly where the other one sleeps and there is something new."""
        assert notify == (self.sleeps[other] and bool(self.written[end]))
        if self.written[end]:
            self.sleeps[other] = False
        self.pushed[end] += self.written[end]
        self.written[end].clear()

    def takes(self, end: str, taken: list[bytes], limit: int | None) -> list[bytes]:
        there = len(self.pushed[end])
        expected = [self.pushed[end].popleft() for _ in range(there if limit is None else min(there, limit))]
        assert taken == expected
        return taken

    def refused(self, call: object) -> None:
        before = bytes(self.memory)
        assert callable(call)
        try:
            call()
        except ValueError:
            assert self.memory == before
        else:
            raise AssertionError("it was not refused")


RingMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
TestRing = RingMachine.TestCase
