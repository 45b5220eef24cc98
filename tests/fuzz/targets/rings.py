"""Rings against a peer that writes what it likes: requests and responses, their ends under asyncio, rings of bytes."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from tests.rings.memory import EDGES, set_header, word
from tests.rings.ports import Serving, settle
from xengrant import InterfaceClosed, ProtocolError, _native
from xengrant.abi import ring as abi
from xengrant.abi.xen import PAGE_SIZE
from xengrant.rings.byte_ring import ConsoleRing, XenstoreRing
from xengrant.rings.byte_ring_look import look
from xengrant.rings.rpc import BackRing, FrontRing
from xengrant.rings.rpc_back import AsyncBack

from ..target import NUMBERS, Step, Steps, Target, begun_with, choose, data, eventually, number, text

__all__ = ["BytePeer", "RpcPeer", "RpcStreams"]

_SIZES = [(8, 16), (8, 480), (4, 64), (1, 1), (32, 112)]  # entries, and the bytes of each
_LONG = 20.0


def _word(chance: Random, places: list[int]) -> Step:
    lies: list[Step] = [
        ["nudge", chance.choice(places), chance.randrange(-12, 13)],
        ["index", chance.choice(places), chance.choice((*NUMBERS[:16], *EDGES, number(chance, 0xFFFFFFFF)))],
        ["bytes", chance.randrange(PAGE_SIZE), text(chance.randbytes(chance.randrange(1, 20)))],
    ]
    return chance.choice(lies)


def _scribble(memory: Any, kind: str, at: int, value: Any) -> None:
    """What the peer does to the memory of a ring."""
    if kind == "bytes":
        at %= len(memory)
        written = data(value, len(memory) - at)
        memory[at : at + len(written)] = written
        return
    at = at % (len(memory) - 3) & ~3
    now = word(memory, at) if kind == "nudge" else 0
    _native.store32(memory, at, now + value & 0xFFFFFFFF)


# Writes lies into the ring in the first page while it is told to by the third, and as often the truth of the second.
_SCRIBBLER = """
import mmap, random, sys
from xengrant import _native
with open(sys.argv[1], "r+b") as file:
    memory = mmap.mmap(file.fileno(), 12288)
chance = random.Random(1)
print("here", flush=True)
while True:
    while _native.load32(memory, 8192):
        at = chance.choice([0, 8])
        truth = _native.load32(memory, 4096 + at)
        near = truth + chance.randint(-9, 9) & 0xFFFFFFFF
        _native.store32(memory, at, chance.choice([truth, truth, near, chance.getrandbits(32)]))
        _native.store32(memory, chance.choice([4, 12, chance.randrange(16, 48) * 4]), chance.getrandbits(32))
    _native.store32(memory, 8196, 1)
    sys.stdin.readline() or sys.exit()
"""

_CALLS = [
    "request",
    "response",
    "push_requests",
    "push_responses",
    "take_requests",
    "take_responses",
    "more",
    "more too",
]


def _use(front: FrontRing, back: BackRing, call: str) -> None:
    """One honest call of either end: what it promises holds, and a lie changes nothing."""
    before = (front.in_flight, back.unanswered)
    taken: list[bytes] = []
    content = b"x" * min(7, front.entry_size)
    calls: dict[str, Callable[[], object]] = {
        "request": lambda: front.next_request(content) if front.free_requests else None,
        "response": lambda: back.next_response(content) if back.unanswered else None,
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
    assert len(taken) <= front.entries
    assert {len(copy) for copy in taken} <= {front.entry_size}
    assert 0 <= front.in_flight <= front.entries
    assert 0 <= back.unanswered <= back.entries


class RpcPeer(Target):
    name = "rpc-ring"
    about = "both ends of a ring of requests, whose words another process writes meanwhile"
    guides = ("rings/rpc.py",)
    short = 200

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        with tempfile.NamedTemporaryFile() as file:
            file.truncate(3 * PAGE_SIZE)
            self._memory = mmap.mmap(file.fileno(), 3 * PAGE_SIZE)
            command = [sys.executable, "-c", _SCRIBBLER, file.name]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as self._liar:
                try:
                    assert self._liar.stdout is not None
                    assert self._liar.stdout.readline() == b"here\n"
                    yield
                finally:
                    self._liar.kill()
            self._memory.close()

    def first(self, chance: Random) -> Steps:
        return [["ring", chance.choice(EDGES), chance.randrange(len(_SIZES))]]

    def step(self, chance: Random) -> Step:
        if chance.randrange(60) == 0:
            return ["meanwhile", chance.getrandbits(16), 300]
        return [chance.choice(_CALLS)] if chance.randrange(3) else _word(chance, [0, 0, 4, 8, 8, 12])

    def run(self, steps: Steps) -> None:
        start, size = begun_with(steps, "ring", (0, 0))
        entries, entry_size = choose(_SIZES, size)
        with memoryview(self._memory) as whole, whole[: abi.HEADER_SIZE + entries * entry_size] as memory:
            start %= 1 << 32
            set_header(memory, start, start + 1, start, start + 1)
            front, back = FrontRing.attach(memory, entry_size), BackRing.attach(memory, entry_size)
            for kind, *rest in steps:
                if kind == "meanwhile":
                    self._race(front, back, *rest)
                elif kind in _CALLS:
                    _use(front, back, kind)
                elif kind in ("nudge", "index", "bytes"):
                    _scribble(memory, kind, *rest)
            del front, back  # with their views of the memory

    def _race(self, front: FrontRing, back: BackRing, seed: int, rounds: int) -> None:
        chance = Random(seed)
        assert self._liar.stdin is not None
        _native.store32(self._memory, 2 * PAGE_SIZE, 1)
        _native.store32(self._memory, 2 * PAGE_SIZE + 4, 0)
        self._liar.stdin.write(b"\n")
        self._liar.stdin.flush()
        for _ in range(rounds % 5000):
            _use(front, back, chance.choice(_CALLS))
            for at, end in ((PAGE_SIZE, front), (PAGE_SIZE + 8, back)):
                _native.store32(self._memory, at, end._pushed)
        _native.store32(self._memory, 2 * PAGE_SIZE, 0)
        eventually(lambda: _native.load32(self._memory, 2 * PAGE_SIZE + 4) == 1, lambda: "the scribbler does not stop")


class RpcStreams(Target):
    name = "rpc-asyncio"
    about = "the ends of a ring of requests for asyncio, whose peer lies in its memory"
    guides = ("rings/",)
    short = 120

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        with asyncio.Runner() as self._runner:
            yield

    def first(self, chance: Random) -> Steps:
        return [["ring", chance.choice(EDGES)]]

    def step(self, chance: Random) -> Step:
        steps: list[Step] = [
            ["ask", chance.randrange(1, 6)],
            ["ask", chance.randrange(1, 6)],
            ["answer", chance.randrange(1, 5), chance.randrange(4)],
            ["answer", chance.randrange(1, 5), chance.randrange(4)],
            ["turn", 0],
            ["cancel", chance.randrange(8)],
            ["event", chance.randrange(2)],
            _word(chance, [0, 4, 8, 12, 64, 80]),
        ]
        return chance.choice(steps)

    def run(self, steps: Steps) -> None:
        self._runner.run(asyncio.wait_for(self._run(steps), _LONG))

    async def _run(self, steps: Steps) -> None:
        (start,) = begun_with(steps, "ring", (0,))
        serving = Serving(start % (1 << 32), entries=4)
        tasks: list[asyncio.Task[list[bytes]]] = []
        taken: list[bytes] = []
        reader = asyncio.create_task(self._serve(serving, taken))
        async with serving.front as front:
            for kind, *rest in steps:
                if kind == "ask":
                    tasks.append(asyncio.create_task(front.call_all([bytes(2)] * (rest[0] % 6))))
                elif kind == "answer":
                    self._answer(serving, taken, rest[0] % 5, rest[1])
                elif kind == "turn":
                    await settle()
                elif kind == "cancel" and tasks:
                    tasks[rest[0] % len(tasks)].cancel()
                elif kind == "event":
                    (serving.port if rest[0] % 2 else serving.back_port).notify()
                elif kind in ("nudge", "index", "bytes"):
                    _scribble(serving.memory, kind, *rest)
                assert len(front._calls) <= 4
                assert 0 <= front.free <= 4
            await settle()
        reader.cancel()
        outcomes = await asyncio.gather(*tasks, reader, return_exceptions=True)
        allowed = (list, ProtocolError, InterfaceClosed, ValueError, asyncio.CancelledError)
        assert all(isinstance(outcome, allowed) for outcome in outcomes), outcomes
        assert not front._line

    async def _serve(self, serving: Serving, taken: list[bytes]) -> None:
        """The other end, which is lied to as well: the words of both lie in the memory."""
        async for requests in AsyncBack(serving.back, serving.as_port):
            assert 0 < len(requests) <= 4
            taken.extend(requests)

    def _answer(self, serving: Serving, taken: list[bytes], count: int, garbled: int) -> None:
        for _ in range(min(count, len(taken), serving.back.unanswered)):
            request = taken.pop(0)
            head = [b"", b"", b"\x01\x00", b"\xff\xff"][garbled % 4]
            serving.back.next_response(head + request[len(head) :])
        serving.back.push_responses()
        serving.back_port.notify()


_RINGS: list[type[ConsoleRing | XenstoreRing]] = [ConsoleRing, XenstoreRing]
_PLACES = {ConsoleRing: [3072, 3076, 3080, 3084], XenstoreRing: [2048, 2052, 2056, 2060]}


class BytePeer(Target):
    name = "byte-ring"
    about = "a console's and xenstore's ring of bytes, either end, and who looks on, whose peer writes anything"
    guides = ("rings/byte_ring.py", "rings/byte_ring_look.py")
    short = 300

    def first(self, chance: Random) -> Steps:
        return [["ring", chance.randrange(2), chance.randrange(2)]]

    def step(self, chance: Random) -> Step:
        steps: list[Step] = [
            ["read", chance.randrange(3000)],
            ["readinto", chance.randrange(3000)],
            ["peek", chance.randrange(3000)],
            ["write", chance.randrange(3000)],
            ["reserve", chance.randrange(3000)],
            ["look", chance.randrange(2)],
            ["again", 0],
        ]
        places = [place for found in _PLACES.values() for place in found]
        return chance.choice(steps) if chance.randrange(2) else _word(chance, places)

    def run(self, steps: Steps) -> None:
        which, is_front = begun_with(steps, "ring", (0, 0))
        rings = choose(_RINGS, which)
        page = bytearray(PAGE_SIZE)
        ends = [rings.front(page), rings.back(page)]
        for kind, *rest in steps:
            end = ends[is_front % 2]
            if kind in ("nudge", "index", "bytes"):
                _scribble(page, kind, *rest)
                continue
            with contextlib.suppress(ProtocolError, ValueError):
                if kind == "again":
                    ends[is_front % 2] = rings.front(page) if is_front % 2 == 0 else rings.back(page)
                elif kind == "look":
                    layout = choose([rings.TO_FRONT, rings.TO_BACK], rest[0])
                    seen = look(memoryview(page), layout)
                    assert len(seen.tail) <= seen.size
                    assert len(seen.read) + len(seen.unread) == len(seen.tail)
                elif rest:
                    self._use(end, kind, rest[0])

    def _use(self, end: ConsoleRing | XenstoreRing, kind: str, size: int) -> None:
        reader, writer = end.input, end.output
        if kind == "read":
            assert len(reader.read(size)) <= min(size, reader.size)
        elif kind == "readinto":
            assert reader.readinto(bytearray(size % 10000)) <= reader.size
        elif kind == "peek":
            with reader.peek() as view:
                assert len(view) <= reader.size
                bytes(view)
                reader.consume(min(size, len(view)))
        elif kind == "write":
            assert writer.write(b"w" * (size % 10000)) <= writer.size
        elif kind == "reserve":
            with writer.reserve() as view:
                assert len(view) <= writer.size
                view[:] = b"r" * len(view)
                writer.commit(min(size, len(view)))
