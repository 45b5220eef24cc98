"""A peer that writes whatever it likes, whenever it likes: only ProtocolError or plain results, in bounded time."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xengrant import GrantError, ProtocolError, _native
from xengrant.rings.rpc import BackRing, FrontRing

from .memory import EDGES, pair, word
from .ports import Serving, settle

ENTRIES = 8
ROUNDS = 3000

near = st.tuples(st.sampled_from([0, 8]), st.integers(-12, 12))  # a peer's producer index, moved by so much
anything = st.tuples(st.sampled_from([0, 4, 8, 12]), st.integers(0, (1 << 32) - 1))
entry = st.tuples(st.integers(64, 64 + ENTRIES * 16 - 16), st.binary(min_size=16, max_size=16))
CALLS = [
    "request",
    "response",
    "push_requests",
    "push_responses",
    "take_requests",
    "take_responses",
    "more",
    "more too",
]


def use(front: FrontRing, back: BackRing, call: str) -> None:
    """One honest call of either end."""
    before = (front.in_flight, back.unanswered)
    taken: list[bytes] = []
    calls: dict[str, Callable[[], object]] = {
        "request": lambda: front.next_request(b"request") if front.free_requests else None,
        "response": lambda: back.next_response(b"response") if back.unanswered else None,
        "push_requests": front.push_requests,
        "push_responses": back.push_responses,
        "take_requests": lambda: taken.extend(back.take_requests()),
        "take_responses": lambda: taken.extend(front.take_responses()),
        "more": back.more_to_do,
        "more too": front.more_to_do,
    }
    try:
        calls[call]()
    except ProtocolError:
        assert (front.in_flight, back.unanswered) == before
    assert len(taken) <= ENTRIES
    assert all(len(copy) == 16 for copy in taken)
    assert 0 <= front.in_flight <= ENTRIES
    assert 0 <= back.unanswered <= ENTRIES


@settings(max_examples=300)
@given(
    start=st.sampled_from(EDGES),
    steps=st.lists(st.one_of(st.sampled_from(CALLS), st.sampled_from(CALLS), near, anything, entry), max_size=50),
)
def test_words_and_entries_may_be_anything_between_calls(
    start: int, steps: list[str | tuple[int, int | bytes]]
) -> None:
    front, back, memory = pair(start, entries=ENTRIES)
    for step in steps:
        if isinstance(step, str):
            use(front, back, step)
            continue
        at, value = step
        if isinstance(value, bytes):
            memory[at : at + 16] = value
        elif -12 <= value <= 12:
            _native.store32(memory, at, word(memory, at) + value & 0xFFFFFFFF)
        else:
            _native.store32(memory, at, value)


@contextmanager
def scribbler(memory: bytearray, seed: int) -> Iterator[None]:
    """A thread that writes lies and near-truths into the ring until the block ends."""
    over = threading.Event()

    def scribble() -> None:
        chance = random.Random(seed)
        while not over.is_set():
            at = chance.choice([0, 4, 8, 12])
            if chance.random() < 0.7:
                _native.store32(memory, at, word(memory, at) + chance.randint(-2, 2) & 0xFFFFFFFF)
            elif chance.random() < 0.5:
                _native.store32(memory, at, chance.getrandbits(32))
            else:
                _native.store32(memory, chance.randrange(16, 48) * 4, chance.getrandbits(32))

    thread = threading.Thread(target=scribble)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(20)
    assert not thread.is_alive()


@pytest.mark.parametrize("seed", range(3))
def test_a_thread_may_scribble_all_the_while(seed: int) -> None:
    front, back, memory = pair(EDGES[seed + 1], entries=ENTRIES)
    chance = random.Random(seed)
    with scribbler(memory, seed):
        for _ in range(ROUNDS):
            use(front, back, chance.choice(CALLS))
            with contextlib.suppress(ProtocolError):
                BackRing.attach(memory, 16)
            with contextlib.suppress(ProtocolError):
                FrontRing.attach(memory, 16)


@pytest.mark.parametrize("end", ["front", "back"])
def test_each_decision_reads_the_peers_index_once(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that is right when it is checked, and wrong when it is looked at again."""
    front, back, memory = pair()
    for _ in range(2):
        front.next_request(b"")
    front.push_requests()
    if end == "front":
        back.take_requests()
        for _ in range(2):
            back.next_response(b"")
        back.push_responses()
    reads = []
    real = _native.load32

    def load(buffer: bytearray, at: int) -> int:
        reads.append(at)
        value = real(buffer, at)
        _native.store32(memory, at, 0xDEAD)
        return value

    monkeypatch.setattr(_native, "load32", load)
    taken = front.take_responses() if end == "front" else back.take_requests()
    assert len(taken) == 2
    assert reads == [8 if end == "front" else 0]


@settings(max_examples=60)
@given(st.data())
def test_the_asyncio_front_end_never_hangs_on_what_is_in_memory(data: st.DataObject) -> None:
    """Each call ends: with a response, with ProtocolError, or because the test ends it when nothing more will come."""

    async def main() -> None:
        serving = Serving(data.draw(st.sampled_from(EDGES)), entries=4)
        async with serving.front as front:
            for _ in range(data.draw(st.integers(1, 6))):
                task = asyncio.create_task(front.call_all([bytes(2)] * data.draw(st.integers(1, 4))))
                await settle()
                with contextlib.suppress(ProtocolError):
                    for request in serving.back.take_requests():
                        garbled = data.draw(st.sampled_from([b"", b"", b"\x01\x00", b"\xff\xff"]))
                        serving.back.next_response(garbled + request[len(garbled) :])
                if data.draw(st.booleans()):
                    _native.store32(serving.memory, 8, data.draw(st.integers(0, (1 << 32) - 1)))
                else:
                    serving.back.push_responses()
                serving.back_port.notify()
                await settle()
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, GrantError):
                    await task
                assert len(front._calls) <= 4
                assert not front._line
                assert 0 <= front.free <= 4

    asyncio.run(asyncio.wait_for(main(), 20))
