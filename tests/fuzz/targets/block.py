"""Disks against a peer that lies: the back end's rings and pages, the front end's answers, the nodes of both.

No access lies outside the disk, other guests' disks are served, and nothing comes of it but errors, in bounded time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any, ClassVar

import xengrant
from tests.block.ends import BACK, FRONT, Ends
from xengrant import _native, pv
from xengrant.abi import blkif
from xengrant.abi import ring as ring_abi
from xengrant.abi.blkif import LAYOUTS, Head, Layout
from xengrant.errors import GrantError
from xengrant.gnttab import Grant
from xengrant.pv import XenbusState, block
from xengrant.pv.block.back_queue import BATCH_PAGES, BackQueue
from xengrant.pv.block.pages import CopiedPages, KeptPages, MappedPages, Pages
from xengrant.pv.block.requests import Limits, Reader
from xengrant.pv.block.ring import BlockRing

from ..target import Step, Steps, Target, begun_with, choose, data, eventually, number, text
from .machine import machine_with

__all__ = ["BlockBack", "BlockFront", "BlockNodes"]

_BOUND = 20.0  # seconds that nothing takes, on a machine that others load
_POLL = 0.002  # seconds
_SIZE = 1 << 16
_SECTORS = _SIZE // 512
_SEGMENTS = 20
_KINDS = ["kept", "file", "mapped", "copied"]
_U8, _U16, _U32, _U64 = ((1 << bits) - 1 for bits in (8, 16, 32, 64))


class GuardedDisk(block.Memory):
    """Notes every access that is not within it."""

    def __init__(self) -> None:
        super().__init__(_SIZE)
        self.outside: list[str] = []

    def _check(self, what: str, length: int, offset: int) -> None:
        if offset < 0 or length < 1 or offset + length > _SIZE:
            self.outside.append(f"{what} of {length} bytes at {offset}")

    def preadv(self, buffers: Sequence[memoryview], offset: int, /) -> None:
        self._check("read", sum(map(len, buffers)), offset)
        super().preadv(buffers, offset)

    def pwritev(self, buffers: Sequence[memoryview], offset: int, /) -> None:
        self._check("write", sum(map(len, buffers)), offset)
        super().pwritev(buffers, offset)

    def discard(self, length: int, offset: int, /) -> None:
        self._check("discard", length, offset)
        super().discard(length, offset)


class GuardedFile:
    """A file that is longer than the disk on it, which is served without Python where pages are kept."""

    _BEYOND = b"outside!" * 4096

    def __init__(self, opened: contextlib.ExitStack) -> None:
        self._image = opened.enter_context(tempfile.NamedTemporaryFile())  # noqa: SIM115 - `opened` closes it
        self._image.write(bytes(_SIZE) + self._BEYOND)
        self._image.flush()
        self.file = opened.enter_context(block.File(self._image.name))

    def check(self, pages: bytes) -> None:
        assert b"outside!" not in pages
        assert os.pread(self._image.fileno(), _SIZE, _SIZE) == self._BEYOND


class Liar:
    """Domain 1 with a ring and pages, some read-only, and a back end's queue of domain 2's on them."""

    def __init__(
        self,
        one: xengrant.Domain,
        two: xengrant.Domain,
        opened: contextlib.ExitStack,
        layout: Layout,
        kind: str,
        *,
        polls: bool = False,
    ) -> None:
        self.layout = layout
        self.disk = GuardedDisk()
        self.guarded = GuardedFile(opened) if kind == "file" else None
        self.errors: list[Exception] = []
        gntshr = opened.enter_context(one.gntshr())
        self.share = opened.enter_context(gntshr.share_pages(BACK, 1, writable=True))
        self.data = opened.enter_context(gntshr.share_pages(BACK, 8, writable=True))
        self.known = (*self.data.refs, *opened.enter_context(gntshr.share_pages(BACK, 2, writable=False)).refs)
        fronts = opened.enter_context(one.evtchn())
        self.port = opened.enter_context(fronts.bind_unbound(BACK))
        self.memory = self.share.mapping
        gnttab = opened.enter_context(two.gnttab())
        mapped = opened.enter_context(gnttab.map([Grant(FRONT, self.share.refs[0])], writable=True))
        backs = opened.enter_context(two.evtchn())
        doorbell = backs.bind_interdomain(FRONT, self.port.number).doorbell()
        opened.callback(doorbell.close)
        doorbell.poll = _POLL if polls else 0
        pages: dict[str, Pages] = {
            "kept": KeptPages(gnttab, FRONT, 6),
            "file": KeptPages(gnttab, FRONT, 16),
            "mapped": MappedPages(gnttab, FRONT),
            "copied": CopiedPages(gnttab, FRONT, BATCH_PAGES),
        }
        limits = Limits(_SIZE // 512, max_segments=_SEGMENTS, can_discard=True)
        ring = BlockRing.attach_to(mapped.mapping, layout)
        disk = self.guarded.file if self.guarded else self.disk
        self.queue = BackQueue(ring, doorbell, pages[kind], Reader(layout, limits), disk, ended=self.errors.append)
        self.queue.start()
        opened.callback(self._stop)
        # The pages are known, so what is right is served at once.
        self.act("request", blkif.READ, 8, 0, [[ref, blkif.WHOLE_PAGE] for ref in range(8)])
        self.settle()

    def judge(self) -> None:
        if self.guarded and not self.share.closed:
            self.guarded.check(self.data.mapping[:])
        assert not self.disk.outside, self.disk.outside
        for error in self.errors:
            assert isinstance(error, GrantError), repr(error)

    def _stop(self) -> None:
        self.queue.stop()
        assert self.queue.join(_BOUND), "the queue hangs"

    def act(self, kind: str, *rest: Any) -> None:
        """One thing that a front end may do; for a kind that there is not, nothing."""
        if kind == "settle":
            self.settle()
        elif kind == "table":
            table = self._segments(rest[0])[:4096]
            self.data.mapping[: len(table)] = table
        elif kind == "nudge":
            at = rest[0] % 4092 & ~3
            _native.store32(self.memory, at, _native.load32(self.memory, at) + rest[1] & _U32)
        elif kind == "index":
            _native.store32(self.memory, rest[0] % 4092 & ~3, rest[1] & _U32)
        elif kind in ("request", "indirect", "discard", "noise"):
            self._push(self._entry(kind, rest))
        self.port.notify()

    def settle(self) -> None:
        """Until the back end has answered, or given up; or, where indices were touched, for a moment."""
        deadline = time.monotonic() + 0.05
        while not self.errors and time.monotonic() < deadline:
            if self.answered():
                return
            os.sched_yield()

    def answered(self) -> bool:
        return _native.load32(self.memory, ring_abi.RSP_PROD) == _native.load32(self.memory, ring_abi.REQ_PROD)

    def race(self, seed: int, rounds: int) -> None:
        """A second thread writes segments and slots while the first one makes honest requests."""
        chance, stop = Random(seed), threading.Event()

        def scribble() -> None:
            own = Random(seed + 1)
            while not stop.is_set():
                segments = [[own.choice((own.randrange(8), own.randrange(40))), own.getrandbits(16)]] * _SEGMENTS
                self.data.mapping[: 8 * _SEGMENTS] = self._segments(segments)
                at = own.randrange(64, 4000)
                self.memory[at : at + 4] = own.randbytes(4)

        scribbler = threading.Thread(target=scribble)
        scribbler.start()
        try:
            for _ in range(rounds % 60):
                self.act("indirect", chance.randrange(2), _SEGMENTS, chance.randrange(100), [0] * 8)
                eventually(lambda: bool(self.errors) or self.answered(), lambda: "no answer", _BOUND)
        finally:
            stop.set()
            scribbler.join(_BOUND)

    def _entry(self, kind: str, rest: Sequence[Any]) -> bytes:
        layout = self.layout
        if kind == "request":
            operation, count, sector, segments = rest
            head = Head(operation & _U8, count & _U8, 0, 1, sector & _U64)
            return layout.pack_rw(head, self._segments(segments[:11]))
        if kind == "indirect":
            operation, count, sector, refs = rest
            head = Head(blkif.INDIRECT, operation & _U8, count & _U16, 2, sector & _U64)
            return layout.pack_indirect(head, 0, [self._ref(ref) for ref in refs[:8]])
        if kind == "discard":
            flags, sector, count = rest
            return layout.pack_discard(Head(blkif.DISCARD, flags & _U8, 0, 3, sector & _U64), count & _U64)
        return data(rest[0], layout.entry_size)

    def _segments(self, segments: list[list[int]]) -> bytes:
        return blkif.pack_segments([self._ref(ref) for ref, _ in segments], [span & _U16 for _, span in segments])

    def _ref(self, ref: int) -> int:
        return self.known[ref] if 0 <= ref < len(self.known) else ref & _U32

    def _push(self, entry: bytes) -> None:
        index = _native.load32(self.memory, ring_abi.REQ_PROD)
        entries = ring_abi.ring_entries(4096, self.layout.entry_size)
        at = ring_abi.HEADER_SIZE + (index % entries) * self.layout.entry_size
        self.memory[at : at + len(entry)] = entry
        _native.store32(self.memory, ring_abi.REQ_PROD, index + 1 & _U32)


class _OnDisks(Target):
    guides: ClassVar[tuple[str, ...]] = ("pv/block/",)

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        with machine_with(1, 2) as self._machine:
            yield
            machine = self._machine
            eventually(lambda: not machine.leaks(), lambda: f"still in use: {machine.leaks()}")


def _right(chance: Random) -> Step:
    """What is served, or would be if nobody had lied before."""
    segments = [[chance.randrange(8), chance.choice((blkif.WHOLE_PAGE, _right_span(chance)))] for _ in range(11)]
    sector = chance.choice((chance.randrange(_SECTORS - 8), chance.randrange(_SECTORS - 9, _SECTORS + 2)))
    steps: list[Step] = [
        ["request", chance.randrange(2), chance.randrange(1, 4), sector, segments],
        ["request", blkif.FLUSH_DISKCACHE, 0, sector, segments],
        ["indirect", chance.randrange(2), chance.randrange(1, 12), sector, [chance.randrange(8) for _ in range(8)]],
        ["table", segments],
        ["settle"],
    ]
    return chance.choice(steps)


def _right_span(chance: Random) -> int:
    first, last = sorted((chance.randrange(8), chance.randrange(8)))
    return blkif.span(first, last)


def _wrong(chance: Random) -> Step:
    refs = [chance.choice((chance.randrange(8), chance.randrange(8), 8, 9, number(chance, _U32))) for _ in range(11)]
    spans = [chance.choice((blkif.WHOLE_PAGE, blkif.span(chance.randrange(9), chance.randrange(9)))) for _ in refs]
    spans = [span if chance.randrange(3) else chance.getrandbits(16) for span in spans]
    segments = [list(pair) for pair in zip(refs, spans, strict=True)]
    sector = chance.choice((chance.randrange(_SECTORS + 1), (1 << 64) - chance.randrange(1, 10), number(chance)))
    operation = chance.choice((chance.randrange(8), chance.randrange(256)))
    steps: list[Step] = [
        ["request", operation, chance.choice((chance.randrange(13), chance.randrange(256))), sector, segments],
        [
            "indirect",
            chance.randrange(4),
            chance.choice((chance.randrange(22), number(chance, _U16))),
            sector,
            refs[:8],
        ],
        ["discard", chance.randrange(2), sector, chance.choice((chance.randrange(200), number(chance)))],
        ["noise", text(chance.randbytes(112))],
        ["table", segments],
        ["nudge", chance.choice((0, 4, 8, 12, 44, 48, 52)), chance.randrange(-40, 41)],
        ["index", chance.choice((0, 4, 8, 12, 48)), number(chance, _U32)],
    ]
    return chance.choice(steps if chance.randrange(6) == 0 else steps[:-2])  # a wrong index is the ring's end


class BlockBack(_OnDisks):
    name = "block-back"
    about = "a disk's back end whose front end writes anything into ring and pages, also from a thread meanwhile"
    short = 40

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        with (
            super().opened(),
            xengrant.connect(self._machine.url(FRONT)) as self._one,
            xengrant.connect(self._machine.url(BACK)) as self._two,
        ):
            yield

    def first(self, chance: Random) -> Steps:
        return [["ring", chance.randrange(len(LAYOUTS)), chance.randrange(2 * len(_KINDS))]]

    def step(self, chance: Random) -> Step:
        if chance.randrange(60) == 0:
            return ["meanwhile", chance.getrandbits(16), 20]
        return _right(chance) if chance.randrange(2) else _wrong(chance)

    def run(self, steps: Steps) -> None:
        layout, pages = begun_with(steps, "ring", (0, 0))
        with contextlib.ExitStack() as opened:
            polls = pages // len(_KINDS) % 2 == 1
            ring = choose(list(LAYOUTS.values()), layout)
            liar = Liar(self._one, self._two, opened, ring, choose(_KINDS, pages), polls=polls)
            for kind, *rest in steps:
                if kind == "meanwhile":
                    liar.race(*rest)
                else:
                    liar.act(kind, *rest)
            liar.settle()
            liar.judge()
        liar.judge()


class BlockFront(_OnDisks):
    name = "block-front"
    about = "a disk's front end whose back end answers anything"
    short = 25

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        with super().opened(), asyncio.Runner() as self._runner:
            yield

    def step(self, chance: Random) -> Step:
        answer = [chance.choice((chance.randrange(13), number(chance))), chance.randrange(8), chance.randrange(-3, 2)]
        index = [chance.choice((4, 8, 12)), chance.choice((chance.randrange(41), number(chance, _U32)))]
        return ["answer", *answer] if chance.randrange(2) else ["index", *index]

    def run(self, steps: Steps) -> None:
        self._runner.run(self._run(steps))

    async def _run(self, steps: Steps) -> None:
        async with asyncio.timeout(_BOUND), Ends(self._machine, block.Memory(_SIZE)) as ends:
            ends.stop_back()
            requests = [ends.front.read(0, 8), ends.front.write(0, memoryview(bytes(4096))), ends.front.flush()]
            await asyncio.sleep(0)
            with ends.back_domain.evtchn() as channels:
                port = channels.bind_interdomain(FRONT, ends.front_port.number)
                for kind, *rest in steps:
                    if kind == "index":
                        _native.store32(ends.memory, rest[0] % 4092 & ~3, rest[1] & _U32)
                        continue
                    self._respond(ends, *rest)
                heard = _heard(ends)
                port.notify()
                await heard.wait()
            ends.front.close()
            for outcome in await asyncio.gather(*requests, return_exceptions=True):
                assert isinstance(outcome, (bytes, GrantError, OSError)), repr(outcome)
            _native.store32(ends.memory, ring_abi.RSP_PROD, 0)  # which a back end could be started on again
            _native.store32(ends.memory, ring_abi.REQ_PROD, 0)
            ends.start_back()

    def _respond(self, ends: Ends, id_: int, operation: int, status: int) -> None:
        produced = _native.load32(ends.memory, ring_abi.RSP_PROD)
        at = ring_abi.HEADER_SIZE + produced % 32 * ends.layout.entry_size
        response = ends.layout.pack_response(id_ & _U64, operation & _U8, (status + 0x8000 & _U16) - 0x8000)
        ends.memory[at : at + len(response)] = response
        _native.store32(ends.memory, ring_abi.RSP_PROD, produced + 1 & _U32)


def _heard(ends: Ends) -> asyncio.Event:
    """Set once the front end has taken an event, and all that it found on its ring."""
    heard, on_event = asyncio.Event(), ends.front._on_event

    def listener() -> None:
        on_event()
        heard.set()

    ends.front_port.set_listener(listener)
    return heard


LIARS = pv.Slot("vbd", 51728, front=1)
HONEST = pv.Slot("vbd", 51744, front=2)

_NAMES = ["ring-ref", "ring-ref0", "ring-ref1", "ring-page-order", "event-channel", "protocol", "feature-persistent"]
_NAMES += ["multi-queue-num-queues", "queue-0/ring-ref", "queue-1/ring-ref", "queue-0/event-channel"]
_NAMES += ["queue-1/event-channel", "queue-0/ring-ref0", "state", "state"]
_VALUES = ["", "-1", "1e3", "0x10", "1 ", "x86_64-abi", "x86_32-abi", "x86_33-abi", "\xc3\xa9", "9" * 30, "\0", "\xff"]


class BlockNodes(_OnDisks):
    name = "block-nodes"
    about = "dom0's disks while a front end writes anything into its nodes, and another one reads its own"
    guides = ("pv/",)
    short = 12

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        with super().opened(), asyncio.Runner() as self._runner:
            there = contextlib.AsyncExitStack()
            try:
                self._runner.run(self._open(there))
                yield
            finally:
                self._runner.run(there.aclose())

    async def _open(self, there: contextlib.AsyncExitStack) -> None:
        """Dom0 serves domain 2, which uses its disk, and domain 1, whatever that does."""
        dom0, self._guest, guest = (
            there.enter_context(xengrant.connect(self._machine.url(domid))) for domid in (0, 1, 2)
        )
        self._store = await there.enter_async_context(dom0.aio.xenstore())
        backends = pv.BackendBus("vbd", block.serving(block.Memory(_SIZE)), domain=dom0, closing_seconds=0.05)
        self._bus = await there.enter_async_context(backends)
        await pv.create(self._store, HONEST)
        there.push_async_callback(pv.remove, self._store, HONEST)
        attached = block.attach(HONEST.front_path, domain=guest, timeout=_BOUND)
        self._honest = await there.enter_async_context(attached)

    def step(self, chance: Random) -> Step:
        name = chance.choice(_NAMES)
        values = (*_VALUES, str(number(chance)), "1", "8")
        value = str(chance.randrange(9)) if name == "state" else chance.choice(values)
        return ["write", name, value] if chance.randrange(6) else [chance.choice(("remove", "read")), name]

    def run(self, steps: Steps) -> None:
        self._runner.run(self._run(steps))

    async def _run(self, steps: Steps) -> None:
        async with asyncio.timeout(_BOUND):
            await pv.create(self._store, LIARS)
            with (
                self._guest.gntshr() as gntshr,
                self._guest.evtchn() as channels,
                gntshr.share_pages(0, 4, writable=True) as share,
                channels.bind_unbound(0) as port,
            ):
                async with self._guest.aio.xenstore() as store:
                    given = {"ring-ref": share.refs[0], "event-channel": port.number, "state": 3}
                    for name, node in given.items():
                        await store.write(f"{LIARS.front_path}/{name}", str(node))
                    for kind, name, *value in steps:
                        with contextlib.suppress(xengrant.XenStoreError, ValueError):
                            if kind == "read":  # meanwhile the bus sees to what was said
                                assert await self._honest.read(0, 128) == bytes(_SIZE)
                            elif kind == "remove":
                                await store.rm(f"{LIARS.front_path}/{name}")
                            else:
                                await store.write(f"{LIARS.front_path}/{name}", data(value[0], 1000))
                    assert await self._honest.read(0, 128) == bytes(_SIZE)
                device = self._bus.devices.get((LIARS.front, str(LIARS.handle)))
                await pv.remove(self._store, LIARS)
                if device is not None:
                    await device.wait_state(XenbusState.UNKNOWN, timeout=_BOUND)
