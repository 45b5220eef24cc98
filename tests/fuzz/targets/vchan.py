"""A vchan against a peer that writes what it likes, when it likes, into all that both share.

The victim is a `Vchan`, or a `VchanTransport` under asyncio, server or client; the peer's own end is there for its
mapping of the pages. Nothing may come of it but typed errors, in bounded time.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, ClassVar

import xengrant
from xengrant import vchan
from xengrant.errors import GrantError
from xengrant.memory import Mapping
from xengrant.vchan import Vchan

from ..target import NUMBERS, Step, Steps, Target, begun_with, choose, data, number, quick, text
from .machine import machine_with

__all__ = ["VchanOffer", "VchanPeer", "VchanStreams"]

_SOON = 0.01  # seconds that a call of the victim waits
_LONG = 20.0
_POLL = 0.002
_SIZES = [(1024, 1024), (2048, 1024), (4096, 8192)]
_INDICES = [0, 4, 8, 12]
_CALLS = [
    "send",
    "write",
    "recv",
    "read",
    "readinto",
    "writelines",
    "fill",
    "data_ready",
    "buffer_space",
    "peek",
    "reserve",
    "wait",
    "is_open",
]


def _write(chance: Random) -> Step:
    writes: list[Step] = [
        ["index", chance.choice(_INDICES), chance.choice((*NUMBERS[:16], number(chance, 0xFFFFFFFF)))],
        ["nudge", chance.choice(_INDICES), chance.randrange(-2000, 2000)],
        ["nudge", chance.choice(_INDICES), chance.randrange(-8, 9)],
        ["byte", chance.randrange(16, 40), chance.randrange(256)],
        ["bytes", chance.randrange(4000), text(chance.randbytes(chance.randrange(1, 96)))],
    ]
    return chance.choice(writes)


def _scribble(control: Mapping, kind: str, at: int, value: Any) -> None:
    """What the peer does to the page."""
    at = at % 4000 if kind == "bytes" else at % 40
    if kind == "index":
        control[at : at + 4] = (value & 0xFFFFFFFF).to_bytes(4, "little")
    elif kind == "nudge":
        now = int.from_bytes(control[at : at + 4], "little")
        control[at : at + 4] = (now + value & 0xFFFFFFFF).to_bytes(4, "little")
    elif kind == "byte":
        control[at : at + 1] = bytes([value & 0xFF])
    elif kind == "bytes":
        written = data(value, 96)
        control[at : at + len(written)] = written


def _call(victim: Vchan, name: str, size: int) -> None:
    """One call; what it returns is within its bounds."""
    if name in ("send", "write"):
        getattr(victim, name)(b"x" * size, _SOON)
    elif name == "recv":
        assert len(victim.recv(size, _SOON)) == size
    elif name == "read":
        assert len(victim.read(size, _SOON)) <= size
    elif name in ("readinto", "fill"):
        assert getattr(victim, name)(bytearray(size), _SOON) <= size
    elif name == "writelines":
        assert 0 <= victim.writelines([b"x" * (size // 3)] * 3, _SOON) <= size
    elif name in ("data_ready", "buffer_space"):
        assert 0 <= getattr(victim, name)() <= (1 << 16)
    elif name == "peek":
        with victim.peek(_SOON) as view:
            taken = min(size, len(view))
        victim.consume(taken)
    elif name == "reserve":
        with victim.reserve(_SOON) as view:
            taken = min(size, len(view))
        victim.commit(taken)
    elif name == "wait":
        victim.wait(_SOON / 2)
    elif name == "is_open":
        assert victim.is_open in (True, False)


class _OnVchan(Target):
    guides: ClassVar[tuple[str, ...]] = ("vchan/", "rings/", "evtchn.py", "waiting.py")

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        with (
            machine_with(1, 2) as machine,
            xengrant.connect(machine.url(1)) as self._one,
            xengrant.connect(machine.url(2)) as self._two,
        ):
            yield

    def first(self, chance: Random) -> Steps:
        return [["ends", chance.randrange(4), chance.randrange(len(_SIZES))]]

    def _ends(self, steps: Steps) -> tuple[bool, float, tuple[int, int]]:
        """Whether the victim serves, how long both look before they sleep, and the rings."""
        ends, sizes = begun_with(steps, "ends", (0, 0))
        return ends % 2 == 0, _POLL if ends // 2 % 2 else 0, choose(_SIZES, sizes)


class VchanPeer(_OnVchan):
    name = "vchan"
    about = "a vchan for programs that wait, whose peer writes anything into the pages, also from a thread meanwhile"
    short = 40

    def step(self, chance: Random) -> Step:
        if chance.randrange(40) == 0:
            return ["meanwhile", chance.getrandbits(16), 40]
        return _write(chance) if chance.randrange(2) else [chance.choice(_CALLS), chance.randrange(3000)]

    def run(self, steps: Steps) -> None:
        is_server, poll, sizes = self._ends(steps)
        serving = vchan.serve(2, "lies", domain=self._one, read_size=sizes[0], write_size=sizes[1], poll=poll)
        with serving, vchan.connect(1, "lies", domain=self._two, timeout=_LONG, poll=poll) as client:
            victim, liar = (serving, client) if is_server else (client, serving)
            for kind, *rest in steps:
                if kind == "meanwhile":
                    _race(victim, liar, *rest)
                elif len(rest) == 2:
                    _scribble(liar._channel.control, kind, *rest)
                else:
                    _use(victim, kind, rest[0] % 3000)


def _use(victim: Vchan, name: str, size: int) -> None:
    with quick(name), contextlib.suppress(GrantError, TimeoutError, ValueError):
        _call(victim, name, size)


def _race(victim: Vchan, liar: Vchan, seed: int, calls: int) -> None:
    """Another thread writes, so that words change between any two instructions."""
    chance, stop = Random(seed), threading.Event()

    def scribble() -> None:
        own = Random(seed + 1)
        while not stop.is_set():
            kind = own.choice(["nudge", "nudge", "nudge", "byte", "index"])
            at = own.choice(_INDICES) if kind != "byte" else own.randrange(20, 24)
            _scribble(liar._channel.control, kind, at, own.randrange(200 if kind == "nudge" else 256))
            liar._channel.doorbell.ring()

    scribbler = threading.Thread(target=scribble)
    scribbler.start()
    try:
        for _ in range(calls % 100):
            _use(victim, chance.choice(["read", "write", "recv", "peek", "reserve"]), chance.randrange(900))
    finally:
        stop.set()
        scribbler.join(_LONG)
        assert not scribbler.is_alive()


class VchanOffer(_OnVchan):
    name = "vchan-offer"
    about = "a vchan's client that is offered any page, any keys"
    guides = ("vchan/", "meeting.py", "peer.py")
    short = 30

    def first(self, chance: Random) -> Steps:
        return [["ends", 0, chance.randrange(len(_SIZES))], ["key", chance.randrange(2), str(number(chance))]]

    def step(self, chance: Random) -> Step:
        if chance.randrange(3) == 0:
            keys = ["", "-1", "1e3", "0x10", " 1", "9" * 11, "4294967295", "-2147483648", "\xb2", str(number(chance))]
            return ["key", chance.randrange(2), chance.choice(keys)]
        return _write(chance)

    def run(self, steps: Steps) -> None:
        *_, sizes = self._ends(steps)
        serving = vchan.serve(2, "lies", domain=self._one, read_size=sizes[0], write_size=sizes[1])
        with serving, self._one.xenstore() as store:
            for kind, at, value in steps:
                if kind == "key":
                    store.write(f"{serving.path}/{('ring-ref', 'event-channel')[at % 2]}", data(value, 1000))
                else:
                    _scribble(serving._channel.control, kind, at, value)
            with (
                quick("to connect"),
                contextlib.suppress(GrantError, TimeoutError),
                vchan.connect(1, "lies", domain=self._two, timeout=_SOON) as client,
            ):
                _call(client, "read", 100)


class _Protocol(asyncio.Protocol):
    """Counts what it is told, and finds an order in which a transport may not tell it."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.received = 0
        self.lost: list[BaseException | None] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert self.transport is None
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        assert data
        assert not self.lost
        self.received += len(data)

    def eof_received(self) -> None:
        assert not self.lost

    def connection_lost(self, error: BaseException | None) -> None:
        assert not self.lost
        self.lost.append(error)


class VchanStreams(_OnVchan):
    name = "vchan-asyncio"
    about = "a vchan's transport for asyncio, whose peer writes anything into the pages"
    short = 30

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        with super().opened(), asyncio.Runner() as self._runner:
            yield

    def step(self, chance: Random) -> Step:
        if chance.randrange(2):
            return _write(chance)
        uses: list[Step] = [
            ["sends", chance.randrange(9000)],
            ["turns", chance.randrange(8)],
            ["pauses", chance.randrange(2)],
            ["rings", 1],
            ["closes", 0],
        ]
        return chance.choice(uses[: 4 if chance.randrange(8) else 5])

    def run(self, steps: Steps) -> None:
        self._runner.run(self._run(steps))

    async def _run(self, steps: Steps) -> None:
        is_server, _, sizes = self._ends(steps)
        served: list[_Protocol] = []

        def make() -> _Protocol:
            served.append(_Protocol())
            return served[-1]

        server = await vchan.create_server(make, 2, "lies", read_size=sizes[0], write_size=sizes[1], domain=self._one)
        async with asyncio.timeout(_LONG):
            _, client = await vchan.create_connection(_Protocol, 1, "lies", domain=self._two, timeout=_LONG)
            while not served or served[0].transport is None:
                await asyncio.sleep(0)
        victim, liar = (served[0], client) if is_server else (client, served[0])
        control, doorbell = liar.transport._channel.control, liar.transport._channel.doorbell
        uses: dict[str, Callable[[int], object]] = {
            "sends": lambda size: victim.transport.write(b"x" * (size % 9000)),
            "pauses": lambda on: victim.transport.pause_reading() if on % 2 else victim.transport.resume_reading(),
            "rings": lambda _: doorbell.ring(),
            "closes": lambda _: victim.transport.close(),
        }
        async with asyncio.timeout(_LONG):
            for kind, *rest in steps:
                if liar.lost:
                    break
                if kind == "turns":
                    for _ in range(rest[0] % 8):
                        await asyncio.sleep(0)
                elif len(rest) == 2:
                    _scribble(control, kind, *rest)
                elif kind in uses:
                    uses[kind](rest[0])
            for protocol in (victim, liar):
                protocol.transport.abort()
            server.close()
            await server.wait_closed()
            while not (victim.lost and liar.lost):
                await asyncio.sleep(0)
        for protocol in (victim, liar):
            assert isinstance(protocol.lost[0], GrantError | None), repr(protocol.lost[0])
