"""A peer that writes whatever it likes, whenever it likes: only ProtocolError or plain results, in bounded time."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xengrant import ProtocolError, _native
from xengrant.rings.rpc import BackRing, FrontRing

from .memory import EDGES, pair, used_ring, word
from .ports import Serving, settle

ENTRIES = 8
ROUNDS = 3000
LONG = 30.0  # seconds

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


def use(front: FrontRing, back: BackRing, call: str) -> str:
    """One honest call of either end: whether all was fine, or a lie was found."""
    outcome = "fine"
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
        outcome = "lie"
        assert (front.in_flight, back.unanswered) == before
    assert len(taken) <= ENTRIES
    assert {len(copy) for copy in taken} <= {front.entry_size}
    assert 0 <= front.in_flight <= ENTRIES
    assert 0 <= back.unanswered <= ENTRIES
    return outcome


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


# Writes lies into the ring in the first page, and as often the truth, which the test tells in the second one.
_SCRIBBLER = """
import mmap, random, sys
from xengrant import _native
with open(sys.argv[1], "r+b") as file:
    memory = mmap.mmap(file.fileno(), 8192)
chance = random.Random(int(sys.argv[2]))
print("scribbling", flush=True)
while True:
    at = chance.choice([0, 8])
    truth = _native.load32(memory, 4096 + at)
    near = truth + chance.randint(-9, 9) & 0xFFFFFFFF
    _native.store32(memory, at, chance.choice([truth, truth, near, chance.getrandbits(32)]))
    _native.store32(memory, chance.choice([4, 12, chance.randrange(16, 48) * 4]), chance.getrandbits(32))
"""


@pytest.mark.parametrize("seed", range(3))
def test_a_process_may_scribble_all_the_while(tmp_path: Path, seed: int) -> None:
    start = EDGES[seed + 1]
    path = tmp_path / "ring"
    path.write_bytes(bytes(8192))
    with path.open("r+b") as file:
        memory = mmap.mmap(file.fileno(), 8192)
    page = memoryview(memory)[:4096]
    for place in (0, 4096):
        memory[place : place + 16] = bytes(used_ring(start)[:16])
    front, back = FrontRing.attach(page, 480), BackRing.attach(page, 480)
    assert front.entries == ENTRIES
    chance = random.Random(seed)
    outcomes: Counter[str] = Counter()
    deadline = time.monotonic() + LONG
    command = [sys.executable, "-c", _SCRIBBLER, str(path), str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as scribbler:
        try:
            assert scribbler.stdout is not None
            assert scribbler.stdout.readline() == b"scribbling\n"
            while sum(outcomes.values()) < ROUNDS or min(outcomes["fine"], outcomes["lie"]) < 50:
                assert time.monotonic() < deadline, outcomes
                outcomes[use(front, back, chance.choice(CALLS))] += 1
                for at, end in ((4096, front), (4104, back)):
                    _native.store32(memory, at, end._pushed)
                with contextlib.suppress(ProtocolError):
                    FrontRing.attach(page, 480)
                with contextlib.suppress(ProtocolError):
                    BackRing.attach(page, 480)
        finally:
            scribbler.kill()


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


def answer_somehow(serving: Serving, data: st.DataObject) -> None:
    with contextlib.suppress(ProtocolError):
        for request in serving.back.take_requests():
            garbled = data.draw(st.sampled_from([b"", b"", b"\x01\x00", b"\xff\xff"]))
            serving.back.next_response(garbled + request[len(garbled) :])
    if data.draw(st.booleans()):
        _native.store32(serving.memory, 8, data.draw(st.integers(0, (1 << 32) - 1)))
    else:
        serving.back.push_responses()
    serving.back_port.notify()


@settings(max_examples=60)
@given(st.data())
def test_the_asyncio_front_end_never_hangs_on_what_is_in_memory(data: st.DataObject) -> None:
    """Each call ends: with a response, with ProtocolError, or because the test ends it when nothing more will come."""

    async def main() -> None:
        serving = Serving(data.draw(st.sampled_from(EDGES)), entries=4)
        async with serving.front as front:
            for _ in range(data.draw(st.integers(1, 6))):
                task = asyncio.create_task(front.call_all([bytes(2)] * data.draw(st.integers(1, 4))))
                try:
                    await settle()
                    answer_somehow(serving, data)
                    await settle()
                finally:
                    task.cancel()
                    [outcome] = await asyncio.gather(task, return_exceptions=True)
                assert isinstance(outcome, (list, ProtocolError, asyncio.CancelledError))
                assert len(front._calls) <= 4
                assert not front._line
                assert 0 <= front.free <= 4

    asyncio.run(asyncio.wait_for(main(), 20))
