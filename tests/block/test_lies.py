"""A peer that writes whatever it likes into ring, pages and nodes: nothing comes of it but errors, in bounded time.

No access lies outside the disk, and other guests' disks are served. `XENGRANT_FUZZ_S=600` fuzzes for so many seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

import xengrant
from xengrant import _native, pv
from xengrant.abi import blkif
from xengrant.abi import ring as ring_abi
from xengrant.abi.blkif import LAYOUTS, Head, Layout
from xengrant.embedded import Machine
from xengrant.errors import GrantError
from xengrant.gnttab import Grant
from xengrant.pv import block
from xengrant.pv.block.back_queue import BATCH_PAGES, BackQueue
from xengrant.pv.block.pages import CopiedPages, KeptPages, MappedPages, Pages
from xengrant.pv.block.requests import Limits, Reader
from xengrant.pv.block.ring import BlockRing

from .ends import BACK, FRONT, SOON, Ends

_SECONDS = float(os.environ.get("XENGRANT_FUZZ_S", "0"))
_BOUND = 20.0  # seconds that nothing takes, on a machine that others load
SIZE = 1 << 16
SEGMENTS = 20

_u8, _u16, _u32, _u64 = (st.integers(0, (1 << bits) - 1) for bits in (8, 16, 32, 64))
_operations = st.one_of(st.integers(0, 7), _u8)
_sectors = st.one_of(st.integers(0, SIZE // 512), st.integers((1 << 64) - 9, (1 << 64) - 1), _u64)
# Those below 10 stand for pages that are granted, two of them read-only.
_refs = st.one_of(*[st.integers(0, 7)] * 6, st.integers(8, 9), _u32)
_counts = st.one_of(st.integers(0, SEGMENTS + 1), _u16)
_spans = st.one_of(st.just(blkif.WHOLE_PAGE), st.builds(blkif.span, st.integers(0, 8), st.integers(0, 8)), _u16)
_segments = st.lists(st.tuples(_refs, _spans), min_size=11, max_size=11)
_requests = st.one_of(
    st.tuples(st.just("request"), _operations, st.one_of(st.integers(0, 12), _u8), _sectors, _segments),
    st.tuples(st.just("indirect"), st.integers(0, 3), _counts, _sectors, st.lists(_refs, min_size=8, max_size=8)),
    st.tuples(st.just("discard"), st.integers(0, 1), _sectors, st.one_of(st.integers(0, 200), _u64)),
    st.tuples(st.just("noise"), _u64),
)
# Requests that are right, or would be if nobody had lied before: half the time.
_right_spans = st.one_of(
    st.just(blkif.WHOLE_PAGE),
    st.builds(lambda one, other: blkif.span(min(one, other), max(one, other)), st.integers(0, 7), st.integers(0, 7)),
)
_right_segments = st.lists(st.tuples(st.integers(0, 7), _right_spans), min_size=11, max_size=11)
_right_sectors = st.integers(0, SIZE // 512 - 8)
_right = st.one_of(
    st.tuples(st.just("request"), st.integers(0, 1), st.integers(1, 3), _right_sectors, _right_segments),
    st.tuples(st.just("request"), st.just(blkif.FLUSH_DISKCACHE), st.just(0), _right_sectors, _right_segments),
    st.tuples(
        st.just("indirect"),
        st.integers(0, 1),
        st.integers(1, 11),
        _right_sectors,
        st.lists(st.integers(0, 7), min_size=8, max_size=8),
    ),
    st.tuples(st.just("table"), _right_segments),
    st.tuples(st.just("settle")),
)
_lies = st.one_of(
    st.tuples(st.just("table"), _segments),
    st.tuples(st.just("nudge"), st.sampled_from([0, 4, 8, 12, 44, 48, 52]), st.integers(-40, 40)),
    st.tuples(st.just("index"), st.sampled_from([0, 4, 8, 12, 48]), _u32),
)
_actions = st.lists(st.one_of(_right, _right, _right, _right, _requests, _requests, _requests, _lies), max_size=50)


class GuardedDisk(block.Memory):
    """Notes every access that is not within it."""

    def __init__(self) -> None:
        super().__init__(SIZE)
        self.outside: list[str] = []

    def _check(self, what: str, length: int, offset: int) -> None:
        if offset < 0 or length < 1 or offset + length > SIZE:
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
        self._image.write(bytes(SIZE) + self._BEYOND)
        self._image.flush()
        self.file = opened.enter_context(block.File(self._image.name))

    def check(self, pages: bytes) -> None:
        assert b"outside!" not in pages
        assert os.pread(self._image.fileno(), SIZE, SIZE) == self._BEYOND


class Liar:
    """Domain 1 with a ring and pages, some read-only, and a back end's queue of domain 2's on them."""

    def __init__(self, machine: Machine, opened: contextlib.ExitStack, layout: Layout, kind: str) -> None:
        self.layout = layout
        self.disk = GuardedDisk()
        self.guarded = GuardedFile(opened) if kind == "file" else None
        self.errors: list[Exception] = []
        one = opened.enter_context(xengrant.connect(machine.url(FRONT)))
        two = opened.enter_context(xengrant.connect(machine.url(BACK)))
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
        pages: dict[str, Pages] = {
            "kept": KeptPages(gnttab, FRONT, 6),
            "file": KeptPages(gnttab, FRONT, 16),
            "mapped": MappedPages(gnttab, FRONT),
            "copied": CopiedPages(gnttab, FRONT, BATCH_PAGES),
        }
        limits = Limits(SIZE // 512, max_segments=SEGMENTS, can_discard=True)
        ring = BlockRing.attach_to(mapped.mapping, layout)
        disk = self.guarded.file if self.guarded else self.disk
        self.queue = BackQueue(ring, doorbell, pages[kind], Reader(layout, limits), disk, ended=self.errors.append)
        self.queue.start()
        opened.callback(self._stop)
        # The pages are known, so what is right is served at once.
        self.act(("request", blkif.READ, 8, 0, [(ref, blkif.WHOLE_PAGE) for ref in range(8)]))
        self.settle()

    def _stop(self) -> None:
        self.queue.stop()
        assert self.queue.join(_BOUND), "the queue hangs"

    def act(self, action: tuple) -> None:  # type: ignore[type-arg]
        kind, *rest = action
        if kind == "settle":
            self.settle()
        elif kind == "table":
            table = self._segments(rest[0])
            self.data.mapping[: len(table)] = table
        elif kind == "nudge":
            now = _native.load32(self.memory, rest[0])
            _native.store32(self.memory, rest[0], now + rest[1] & 0xFFFFFFFF)
        elif kind == "index":
            _native.store32(self.memory, *rest)
        else:
            self._push(self._entry(kind, rest))
        self.port.notify()

    def settle(self) -> None:
        """Until the back end has answered, or given up; or, where indices were touched, for a moment."""
        deadline = time.monotonic() + 0.05
        while not self.errors and time.monotonic() < deadline:
            if _native.load32(self.memory, ring_abi.RSP_PROD) == _native.load32(self.memory, ring_abi.REQ_PROD):
                return
            os.sched_yield()

    def _entry(self, kind: str, rest: list) -> bytes:  # type: ignore[type-arg]
        layout = self.layout
        if kind == "request":
            operation, count, sector, segments = rest
            return layout.pack_rw(Head(operation, count, 0, 1, sector), self._segments(segments))
        if kind == "indirect":
            operation, count, sector, refs = rest
            return layout.pack_indirect(
                Head(blkif.INDIRECT, operation, count, 2, sector), 0, list(map(self._ref, refs))
            )
        if kind == "discard":
            flags, sector, count = rest
            return layout.pack_discard(Head(blkif.DISCARD, flags, 0, 3, sector), count)
        return random.Random(rest[0]).randbytes(layout.entry_size)

    def _segments(self, segments: list[tuple[int, int]]) -> bytes:
        return blkif.pack_segments([self._ref(ref) for ref, _ in segments], [span for _, span in segments])

    def _ref(self, ref: int) -> int:
        return self.known[ref] if ref < len(self.known) else ref

    def _push(self, entry: bytes) -> None:
        index = _native.load32(self.memory, ring_abi.REQ_PROD)
        entries = ring_abi.ring_entries(4096, self.layout.entry_size)
        at = ring_abi.HEADER_SIZE + (index % entries) * self.layout.entry_size
        self.memory[at : at + len(entry)] = entry
        _native.store32(self.memory, ring_abi.REQ_PROD, index + 1 & 0xFFFFFFFF)


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """One machine for all examples: each has a ring of its own."""
    with Machine(reclaim_interval=0.01) as machine:
        machine.create(1)
        machine.create(2)
        yield machine
        deadline = time.monotonic() + SOON
        while machine.leaks():
            assert time.monotonic() < deadline, f"still in use: {machine.leaks()}"
            time.sleep(0.01)


def _long(arguments: Callable[[Callable[..., None]], Callable[[], None]], lies: Callable[..., None]) -> None:
    """Run it again and again, each time with another seed, until the time is out."""
    end = time.monotonic() + _SECONDS
    number = 0
    while True:
        bounded = settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        bounded(seed(number)(arguments(lies)))()
        number += 1
        if time.monotonic() >= end:
            break


def _judge(liar: Liar) -> None:
    if liar.guarded and not liar.share.closed:
        liar.guarded.check(liar.data.mapping[:])
    assert not liar.disk.outside, liar.disk.outside
    for error in liar.errors:
        assert isinstance(error, GrantError), repr(error)


@pytest.mark.parametrize("kind", ["kept", "file", "mapped", "copied"])
def test_a_back_end_survives_whatever_is_on_its_ring(machine: Machine, kind: str) -> None:
    def lies(actions: list[tuple], protocol: str) -> None:  # type: ignore[type-arg]
        started = time.monotonic()
        with contextlib.ExitStack() as opened:
            liar = Liar(machine, opened, LAYOUTS[protocol], kind)
            for action in actions:
                liar.act(action)
            liar.settle()
            _judge(liar)
        assert time.monotonic() - started < _BOUND
        _judge(liar)

    _long(given(actions=_actions, protocol=st.sampled_from(list(LAYOUTS))), lies)


@pytest.mark.parametrize("kind", ["kept", "file", "copied"])
def test_a_back_end_survives_pages_that_change_while_it_looks(machine: Machine, kind: str) -> None:
    """Two threads of the front end write, one the segments and the slots, the other honest requests."""
    chance = random.Random(11)
    end = time.monotonic() + max(1.0, _SECONDS)
    answered = 0
    while time.monotonic() < end:
        with contextlib.ExitStack() as opened:
            liar = Liar(machine, opened, LAYOUTS["x86_64-abi"], kind)
            stop = threading.Event()

            def scribble(liar: Liar = liar, stop: threading.Event = stop) -> None:
                while not stop.is_set():
                    refs = [chance.choice([*liar.data.refs, chance.randrange(40)]) for _ in range(SEGMENTS)]
                    spans = [chance.choice([blkif.WHOLE_PAGE, chance.randrange(1 << 16)]) for _ in refs]
                    table = blkif.pack_segments(refs, spans)
                    liar.data.mapping[: len(table)] = table
                    at = chance.randrange(64, 4000)
                    liar.memory[at : at + 4] = chance.randbytes(4)

            scribbler = threading.Thread(target=scribble)
            scribbler.start()
            try:
                for _ in range(100):
                    liar.act(("indirect", chance.randrange(2), SEGMENTS, chance.randrange(100), [liar.data.refs[0]]))
                    deadline = time.monotonic() + _BOUND
                    while not liar.errors and _native.load32(liar.memory, ring_abi.RSP_PROD) != _native.load32(
                        liar.memory, ring_abi.REQ_PROD
                    ):
                        assert time.monotonic() < deadline, "no answer"
                        os.sched_yield()
                    answered += 1
            finally:
                stop.set()
                scribbler.join(SOON)
            _judge(liar)
        _judge(liar)
    assert answered


_answers = st.lists(
    st.one_of(
        st.tuples(st.just("answer"), st.one_of(st.integers(0, 12), _u64), _operations, st.integers(-3, 1)),
        st.tuples(st.just("index"), st.sampled_from([4, 8, 12]), st.one_of(st.integers(0, 40), _u32)),
    ),
    max_size=20,
)


def test_a_front_end_survives_whatever_it_is_answered(machine: Machine) -> None:
    async def tell(answers: list[tuple[str, int, int, int]]) -> None:
        async with asyncio.timeout(_BOUND), Ends(machine, block.Memory(SIZE)) as ends:
            ends.stop_back()
            requests = [ends.front.read(0, 8), ends.front.write(0, memoryview(bytes(4096))), ends.front.flush()]
            await asyncio.sleep(0)
            with ends.back_domain.evtchn() as channels:
                port = channels.bind_interdomain(FRONT, ends.front_port.number)
                for kind, *rest in answers:
                    if kind == "index":
                        _native.store32(ends.memory, *rest)
                        continue
                    produced = _native.load32(ends.memory, ring_abi.RSP_PROD)
                    at = ring_abi.HEADER_SIZE + produced % 32 * ends.layout.entry_size
                    response = ends.layout.pack_response(*rest)
                    ends.memory[at : at + len(response)] = response
                    _native.store32(ends.memory, ring_abi.RSP_PROD, produced + 1 & 0xFFFFFFFF)
                port.notify()
                await asyncio.sleep(0.002)
            ends.front.close()
            for outcome in await asyncio.gather(*requests, return_exceptions=True):
                assert isinstance(outcome, (bytes, GrantError, OSError)), repr(outcome)
            _native.store32(ends.memory, ring_abi.RSP_PROD, 0)  # which a back end could be started on again
            _native.store32(ends.memory, ring_abi.REQ_PROD, 0)
            ends.start_back()

    def lies(answers: list[tuple[str, int, int, int]]) -> None:
        asyncio.run(tell(answers))

    _long(given(answers=_answers), lies)


_values = st.one_of(
    st.integers(0, 100).map(str),
    st.integers(0, 1 << 65).map(str),
    st.sampled_from(["", "-1", "1e3", "0x10", "1 ", "x86_64-abi", "x86_32-abi", "x86_33-abi", "é", "9" * 30]),
    st.text(max_size=8),
)
_names = st.sampled_from(
    [
        *("ring-ref", "ring-ref0", "ring-ref1", "ring-page-order", "event-channel", "protocol", "feature-persistent"),
        *("multi-queue-num-queues", "queue-0/ring-ref", "queue-1/ring-ref", "queue-0/event-channel"),
        *("queue-1/event-channel", "queue-0/ring-ref0", "state"),
    ]
)
_nodes = st.lists(
    st.one_of(
        st.tuples(_names, _values),
        st.tuples(st.just("state"), st.integers(0, 8).map(str)),
        st.tuples(_names, st.none()),
    ),
    max_size=25,
)

LIARS = pv.Slot("vbd", 51728, front=1)
HONEST = pv.Slot("vbd", 51744, front=2)


def test_other_disks_are_served_whatever_a_front_end_writes_into_its_nodes(machine: Machine) -> None:
    async def tell(nodes: list[tuple[str, str | None]]) -> None:
        async with asyncio.timeout(4 * _BOUND), _two_disks(machine) as honest:
            with (
                xengrant.connect(machine.url(1)) as domain,
                domain.gntshr() as gntshr,
                domain.evtchn() as channels,
                gntshr.share_pages(0, 4, writable=True) as share,
                channels.bind_unbound(0) as port,
            ):
                async with domain.aio.xenstore() as store:
                    given = [("ring-ref", str(share.refs[0])), ("event-channel", str(port.number)), ("state", "3")]
                    for name, value in [*given, *nodes]:
                        await _put(store, f"{LIARS.front_path}/{name}", value)
                    assert await honest.read(0, 128) == bytes(SIZE)
                    await _put(store, f"{LIARS.front_path}/state", "6")

    def lies(nodes: list[tuple[str, str | None]]) -> None:
        asyncio.run(tell(nodes))

    _long(given(nodes=_nodes), lies)


async def _put(store: xengrant.AsyncXenStore, path: str, value: str | None) -> None:
    with contextlib.suppress(xengrant.XenStoreError):
        if value is None:
            await store.rm(path)
        else:
            await store.write(path, value.encode())


@contextlib.asynccontextmanager
async def _two_disks(machine: Machine) -> AsyncIterator[block.BlockFrontend]:
    """Dom0 serves a disk to domain 1, whatever it does, and one to domain 2, which uses it."""
    with xengrant.connect(machine.url(0)) as dom0, xengrant.connect(machine.url(2)) as guest:
        async with (
            dom0.aio.xenstore() as store,
            pv.BackendBus("vbd", block.serving(block.Memory(SIZE)), domain=dom0, closing_seconds=0.5),
        ):
            try:
                await pv.create(store, LIARS)
                await pv.create(store, HONEST)
                async with block.attach(HONEST.front_path, domain=guest, timeout=SOON) as disk:
                    yield disk
            finally:
                await pv.remove(store, LIARS)
                await pv.remove(store, HONEST)
