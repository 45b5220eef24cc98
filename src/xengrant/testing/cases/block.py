"""A disk between two domains: requests on a ring, front end against back end, and the device on the Xen bus."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from typing import Any

from xengrant import _native, pv
from xengrant.abi import blkif, blkif_note
from xengrant.abi import ring as ring_abi
from xengrant.abi.blkif import X86_64, Head
from xengrant.errors import PeerClosed, ProtocolError
from xengrant.pv import block
from xengrant.pv.block.front_queue import FrontQueue
from xengrant.pv.block.pages import KeptPages
from xengrant.testing.block_ends import HANDLE, SECTORS, SEGMENTS, SIZE, Back, front_queue, raw_front, serve
from xengrant.testing.case import Case
from xengrant.testing.disk_model import exercise
from xengrant.testing.expect import equal, eventually, raises, true
from xengrant.testing.here import SOON, Here

BLKIF = "Xen public/io/blkif.h"
LINUX = "Linux drivers/block/xen-blkback/blkback.c"
OKAY, ERROR, UNSUPPORTED = blkif.RSP_OKAY, blkif.RSP_ERROR, blkif.RSP_EOPNOTSUPP


async def _write_and_read(here: Here) -> None:
    data = here.noise(SEGMENTS * 4096)
    async with front_queue(here) as disk:
        await disk.write(8, memoryview(data))
        equal(await disk.read(8, SEGMENTS * 8), data, "what was written, read at once")
        equal(await disk.read(8 + 13, 3), data[13 * 512 : 16 * 512], "three sectors within a page")
        await disk.write(21, memoryview(bytes(512)))
        equal(await disk.read(20, 3), data[12 * 512 : 13 * 512] + bytes(512) + data[14 * 512 : 15 * 512], "around it")


def _serve_and_look(here: Here, data: str) -> None:
    disk = block.Memory(SIZE)
    back = serve(here, disk, data)
    equal(back.errors, [], "what went wrong")
    expected = bytearray(here.noise(SEGMENTS * 4096))
    expected[13 * 512 : 14 * 512] = bytes(512)
    equal(bytes(disk.data[4096 : 4096 + len(expected)]), bytes(expected), "the disk afterwards")
    true(not any(disk.data[:4096]) and not any(disk.data[4096 + len(expected) :]), "nothing else was written")


class PagesKept(Case):
    """What is written to a disk is read from it, and is where it belongs, while the guest's pages are kept mapped"""

    source = f"{BLKIF}, feature-persistent; {LINUX}"
    peer = "front"

    def front(self, here: Here) -> None:
        asyncio.run(_write_and_read(here))

    def back(self, here: Here) -> None:
        _serve_and_look(here, "kept")


class PagesMapped(Case):
    """What is written to a disk is read from it, and is where it belongs, with pages mapped for each batch"""

    source = f"{BLKIF}; {LINUX}"
    peer = "front"

    def front(self, here: Here) -> None:
        asyncio.run(_write_and_read(here))

    def back(self, here: Here) -> None:
        _serve_and_look(here, "mapped")


class PagesCopied(Case):
    """What is written to a disk is read from it, and is where it belongs, with pages that the hypervisor copies"""

    source = f"{BLKIF}; Xen common/grant_table.c, GNTTABOP_copy"
    peer = "front"

    def front(self, here: Here) -> None:
        asyncio.run(_write_and_read(here))

    def back(self, here: Here) -> None:
        _serve_and_look(here, "copied")


class ManyAtOnce(Case):
    """Of 200 requests at a time, of any length and overlapping, no sector is lost, doubled or misplaced"""

    source = f"{BLKIF}; xengrant's own: against a model of the disk"
    peer = "front"
    _REQUESTS = 1500

    def front(self, here: Here) -> None:
        asyncio.run(self._front(here))

    async def _front(self, here: Here) -> None:
        async with front_queue(here) as queue:
            outcome = await exercise(
                _OfQueue(queue),
                SECTORS,
                seed=here.noise(8).hex(),
                requests=self._REQUESTS,
                longest=SEGMENTS * blkif.SECTORS_PER_PAGE,
            )
            here.tell("sum", outcome.sha256)

    def back(self, here: Here) -> None:
        disk = block.Memory(SIZE)
        back = serve(here, disk, "kept", kept=64, can_discard=True)
        equal(back.errors, [], "what went wrong")
        equal(hashlib.sha256(disk.data).hexdigest(), here.hear("sum"), "the disk, and what was read of it in the end")


class _OfQueue:
    """A queue, as the disk that `exercise` takes."""

    def __init__(self, queue: FrontQueue) -> None:
        self.read, self.flush, self.discard = queue.read, queue.flush, queue.discard
        self._queue = queue

    def write(self, sector: int, data: bytes) -> asyncio.Future[bytes]:
        return self._queue.write(sector, memoryview(data))


class IndirectAnswersItsOperation(Case):
    """The response to an indirect request names what it did, a read or a write"""

    source = "Linux drivers/block/xen-blkfront.c, blkif_interrupt: the disk is disabled otherwise"
    peer = "front"

    def front(self, here: Here) -> None:
        with raw_front(here) as front:
            table, first, second, _ = front.data.refs
            segments = blkif.pack_segments([first, second], [blkif.WHOLE_PAGE] * 2)
            front.data.mapping[: len(segments)] = segments
            front.data.mapping[4096:12288] = here.noise(8192)
            for number, operation in ((1 << 40, blkif.WRITE), (7, blkif.READ)):
                request = X86_64.pack_indirect(Head(blkif.INDIRECT, operation, 2, number, 8), HANDLE, [table])
                equal(front.ask(request), [(number, operation, OKAY)], "the response")

    def back(self, here: Here) -> None:
        disk = block.Memory(SIZE)
        serve(here, disk, "kept")
        equal(bytes(disk.data[4096:12288]), here.noise(8192), "the disk")


class BadRequestsAreAnswered(Case):
    """A request that cannot be done gets an error, whatever is wrong with it, and those around it are done"""

    source = f"{LINUX}, dispatch_rw_block_io"
    peer = "front"

    def front(self, here: Here) -> None:
        with raw_front(here) as front:
            ref, table = front.data.refs[:2]
            front.data.mapping[4096:4104] = blkif.pack_segments([ref], [blkif.span(7, 0)])
            good = front.rw(blkif.WRITE, 99, 0, [ref])
            wrong = {
                "no segments": front.rw(blkif.READ, 1, 0, []),
                "12 segments": X86_64.pack_rw(Head(blkif.READ, 12, 0, 2, 0), blkif.pack_segments([ref] * 11, [0] * 11)),
                "backwards": front.rw(blkif.READ, 3, 0, [ref], blkif.span(5, 3)),
                "beyond the page": front.rw(blkif.READ, 4, 0, [ref], blkif.span(0, 8)),
                "beyond the disk": front.rw(blkif.WRITE, 5, SIZE // 512 - 7, [ref]),
                "far beyond it": front.rw(blkif.READ, 6, (1 << 64) - 1, [ref]),
                "never granted": front.rw(blkif.READ, 7, 0, [ref, 0xFFFFFFFF]),
                "too many": X86_64.pack_indirect(Head(blkif.INDIRECT, 0, SEGMENTS + 1, 8, 0), 0, [table]),
                "wrong inside": X86_64.pack_indirect(Head(blkif.INDIRECT, 0, 1, 9, 0), 0, [table]),
                "no table": X86_64.pack_indirect(Head(blkif.INDIRECT, 0, 1, 10, 0), 0, [0xFFFFFFFF]),
            }
            for number, (what, request) in enumerate(wrong.items(), 1):
                equal([status for *_, status in front.ask(good, request, good)], [OKAY, ERROR, OKAY], what)
                equal(front.ask(request)[0][0], number, "the id")
            unknown = X86_64.pack_discard(Head(blkif.DISCARD, 0, 0, 20, 0), 8)
            for operation in (blkif.DISCARD, blkif.WRITE_BARRIER, 77):
                request = bytes([operation]) + unknown[1:]
                equal(front.ask(request), [(20, operation, UNSUPPORTED)], "what was not offered")

    def back(self, here: Here) -> None:
        back = serve(here, block.Memory(SIZE), "kept")
        equal(back.errors, [], "what went wrong")


class ReadOnlyStaysAsItIs(Case):
    """A read-only disk answers a write and a discard with an error, and is not changed"""

    source = f"{BLKIF}, VDISK_READONLY"
    peer = "front"

    def front(self, here: Here) -> None:
        with raw_front(here) as front:
            ref = front.data.refs[0]
            front.data.mapping[:5] = b"wrong"
            discard = X86_64.pack_discard(Head(blkif.DISCARD, 0, 0, 2, 0), 8)
            equal([status for *_, status in front.ask(front.rw(1, 1, 0, [ref]), discard)], [ERROR] * 2, "the statuses")
            equal(front.ask(front.rw(0, 3, 0, [ref])), [(3, 0, OKAY)], "a read")
            equal(front.data.mapping[:5], b"right", "what was read")

    def back(self, here: Here) -> None:
        disk = block.Memory(bytearray(b"right".ljust(SIZE, b"\0")))
        serve(here, disk, "kept", writable=False, can_discard=True)
        equal(bytes(disk.data[:5]), b"right", "the disk")


class DiscardAndFlush(Case):
    """A discard reaches the sectors that it names, and a flush the disk"""

    source = f"{BLKIF}, BLKIF_OP_DISCARD and BLKIF_OP_FLUSH_DISKCACHE"
    peer = "front"

    def front(self, here: Here) -> None:
        asyncio.run(self._front(here))

    async def _front(self, here: Here) -> None:
        async with front_queue(here) as disk:
            await disk.write(0, memoryview(here.noise(4096)))
            await disk.discard(2, 3)
            await disk.flush()
            data = here.noise(4096)
            equal(await disk.read(0, 8), data[:1024] + bytes(1536) + data[2560:], "the sectors afterwards")

    def back(self, here: Here) -> None:
        flushed: list[int] = []

        class Disk(block.Memory):
            def flush(self) -> None:
                flushed.append(1)

        serve(here, Disk(SIZE), "kept", can_discard=True)
        equal(len(flushed), 1, "the flushes that the disk saw")


def _ask_twice(here: Here) -> None:
    with raw_front(here) as front:
        request = front.rw(blkif.READ, 1, 0, [front.data.refs[0]])
        equal(front.ask(request), [(1, blkif.READ, OKAY)], "the first response")
        front.settle()
        true(not front.push(request), "nobody is to be told of the second request")
        equal(front.take(1), [(1, blkif.READ, OKAY)], "the second response")


class PollingFile(Case):
    """A back end that polls asks for no event while it looks, and answers what comes: of a file, without Python"""

    source = "Xen public/io/ring.h, RING_PUSH_REQUESTS_AND_CHECK_NOTIFY"
    peer = "front"

    def front(self, here: Here) -> None:
        _ask_twice(here)

    def back(self, here: Here) -> None:
        with tempfile.NamedTemporaryFile() as image:
            image.truncate(SIZE)
            with block.File(image.name) as disk:
                equal(serve(here, disk, "kept", poll=SOON).errors, [], "what went wrong")


class PollingDisk(Case):
    """A back end that polls asks for no event while it looks, and answers what comes: of any disk"""

    source = "Xen public/io/ring.h, RING_PUSH_REQUESTS_AND_CHECK_NOTIFY"
    peer = "front"

    def front(self, here: Here) -> None:
        _ask_twice(here)

    def back(self, here: Here) -> None:
        equal(serve(here, block.Memory(SIZE), "kept", poll=SOON).errors, [], "what went wrong")


class RequestOverflow(Case):
    """A front end that says it asked more than the ring holds ends its own ring, as the front end's lie"""

    source = "Xen public/io/ring.h, RING_REQUEST_PROD_OVERFLOW"
    peer = "front"

    def front(self, here: Here) -> None:
        with raw_front(here) as front:
            equal(front.ask(front.rw(0, 1, 0, [front.data.refs[0]]))[0][2], OKAY, "an honest read")
            _native.store32(front.memory, ring_abi.REQ_PROD, 1 + front.ring.entries + 1)
            front.port.notify()

    def back(self, here: Here) -> None:
        back = Back(here, block.Memory(SIZE), "kept")
        with back.attached():
            here.hear("done")
            eventually(lambda: back.errors, "the queue ends", SOON)
        with raises(ProtocolError, "a successor's attaching", says="req_prod"), back.attached():
            pass
        here.tell("let go")
        true(isinstance(back.errors[0], ProtocolError), f"{back.errors[0]!r} is a ProtocolError")


class LyingBackEnd(Case):
    """A response to what was not asked, or of another operation, is a ProtocolError for all that is under way"""

    source = "Linux drivers/block/xen-blkfront.c, blkif_interrupt"
    peer = "front"
    _LIES = ("id", "operation", "twice")

    def front(self, here: Here) -> None:
        for lie in self._LIES:
            asyncio.run(self._front(here, lie))

    async def _front(self, here: Here, lie: str) -> None:
        async with front_queue(here, lie) as disk:
            under_way = [disk.read(0, 8), disk.read(8, 8)]
            if lie == "twice":
                with raises(OSError, "the one that is answered", says="status -1"):
                    await under_way.pop(0)
            for request in under_way:
                with raises(ProtocolError, "a request under way", says="answered a"):
                    await request
            with raises(ProtocolError, "the next request", says="answered a"):
                await disk.read(0, 8)

    def back(self, here: Here) -> None:
        for lie in self._LIES:
            back = Back(here, block.Memory(SIZE), "kept", turn=lie)
            with back.attached(serving=False):
                requests: list[bytes] = []
                while len(requests) < 2:
                    requests += back.ring.take_requests()
                    if len(requests) < 2 and not back.ring.more_to_do():
                        back.port.wait(SOON)
                number = X86_64.unpack_head(requests[0])[3]
                if lie == "id":
                    number += 5
                for _ in range(2 if lie == "twice" else 1):
                    back.ring.answer(X86_64.pack_response(number, blkif.WRITE * (lie == "operation"), ERROR))
                back.port.notify()
                here.hear(f"done{lie}")
            here.tell(f"let go{lie}")


class SuccessorGoesOn(Case):
    """A back end that comes after one that died does what was not answered, and finishes an answer that was begun"""

    source = "Linux drivers/block/xen-blkback/xenbus.c, BACK_RING_ATTACH at rsp_prod; xengrant's own: the note"
    peer = "front"

    def front(self, here: Here) -> None:
        with raw_front(here) as front:
            page = front.data.mapping
            for number in range(4):
                page[number * 4096 : number * 4096 + 1] = bytes([number + 1])
            front.push(*(front.rw(1, 10 + number, 8 * number, [ref]) for number, ref in enumerate(front.data.refs)))
            equal([number for number, *_ in front.ask()], [], "no answer is waited for")
            here.tell("asked")
            responses: list[bytes] = []
            while len(responses) < 4:
                responses += front.ring.take_responses()
                if len(responses) < 4 and not front.ring.more_to_do():
                    front.port.wait(SOON)
            expected = [(10, 1, OKAY), (11, 1, UNSUPPORTED), (12, 1, OKAY), (13, 1, OKAY)]
            equal([X86_64.unpack_response(data) for data in responses], expected, "the responses of both back ends")

    def back(self, here: Here) -> None:
        disk = block.Memory(SIZE)
        back = Back(here, disk, "kept")
        here.hear("asked")
        with back.attached(serving=False):
            back.ring.take_requests()
            back.ring.answer(X86_64.pack_response(10, 1, OKAY))
            # And so far came one that died: the answer is noted, the slot is half of each, and nothing is published.
            noted = X86_64.pack_response(11, 1, UNSUPPORTED)[: blkif_note.RESPONSE_SIZE]
            back.memory[blkif_note.RESPONSE_AT : ring_abi.HEADER_SIZE] = noted
            _native.store32(back.memory, blkif_note.INDEX_AT, 1)
            slot = ring_abi.HEADER_SIZE + X86_64.entry_size
            back.memory[slot : slot + 8] = noted[:8]
        with back.attached():
            here.hear("done")
        here.tell("let go")
        equal([disk.data[at * 4096] for at in range(4)], [0, 0, 3, 4], "what the successor wrote, and only that")


class KeptPagesAreCapped(Case):
    """Of the pages that a back end keeps mapped those are let go that were not used lately, and never the last used"""

    source = f"{BLKIF}, feature-persistent, notes 7 and 9; xengrant's own: two generations"
    peer = "front"
    _KEPT = 8

    def front(self, here: Here) -> None:
        with raw_front(here, 40) as front:
            refs = list(front.data.refs)
            for number in range(3):
                for at in range(0, 40, 4):
                    requests = [front.rw(1, number, at * 8, refs[at : at + 4]), front.rw(0, 1, 0, [refs[0]])]
                    equal([status for *_, status in front.ask(*requests)], [OKAY] * 2, f"the pages from {at} on")

    def back(self, here: Here) -> None:
        back = Back(here, block.Memory(SIZE), "kept", kept=self._KEPT)
        with back.attached():
            here.hear("done")
            pages: Any = back.pages
            true(isinstance(pages, KeptPages) and pages.kept <= 2 * self._KEPT, f"{pages.kept} pages are kept")
            true(pages.kept >= self._KEPT // 2, f"only {pages.kept} pages are kept")
        here.tell("let go")


class OnTheBus(Case):
    """A disk connects over xenstore: in either layout, with rings of one page and of four, one and two of them"""

    source = f"{BLKIF}, the nodes and their order"
    peer = "front"
    _USES = (
        block.Use(),
        block.Use("x86_32-abi", ring_order=2),
        block.Use(rings=2, persistent=False),
        block.Use("x86_32-abi", rings=2, ring_order=1),
    )

    def front(self, here: Here) -> None:
        asyncio.run(self._front(here))

    async def _front(self, here: Here) -> None:
        for number, use in enumerate(self._USES):
            slot = pv.Slot("vbd", HANDLE + number, here.domid, here.other, within="data")
            async with here.domain.aio.xenstore() as store, asyncio.timeout(here.seconds):
                await pv.create(store, slot, halves="front")
                async with block.attach(slot.front_path, domain=here.domain, use=use, timeout=SOON) as disk:
                    info = disk.info
                    equal((info.size, info.writable, info.max_segments), (SIZE, True, 16), "what it says of itself")
                    equal((info.rings, info.ring_pages), (use.rings, 1 << use.ring_order), "the rings")
                    data = here.noise(150_016, number)
                    await disk.write(3, data)
                    await disk.flush()
                    equal(await disk.read(3, len(data) // 512), data, "what was written")
                await pv.remove(store, slot, halves="front")
            here.tell(f"done {number}")

    def back(self, here: Here) -> None:
        asyncio.run(self._back(here))

    async def _back(self, here: Here) -> None:
        disk = block.Memory(SIZE)
        offer = block.Offer(max_segments=16, max_rings=2, max_ring_order=2)
        async with here.domain.aio.xenstore() as store:
            bus = pv.BackendBus("vbd", block.serving(disk, offer), domain=here.domain, within="data")
            async with bus:
                for number in range(len(self._USES)):
                    slot = pv.Slot("vbd", HANDLE + number, here.other, here.domid, within="data")
                    await pv.create(store, slot, halves="back")
                    await asyncio.to_thread(here.hear, f"done {number}")
                    data = here.noise(150_016, number)
                    equal(bytes(disk.data[3 * 512 : 3 * 512 + len(data)]), data, "the disk")
                    await pv.remove(store, slot, halves="back")


class Unplugged(Case):
    """A disk that is unplugged fails what is under way, and the front end closes"""

    source = f"{BLKIF}; Linux drivers/block/xen-blkfront.c, blkback_changed"
    peer = "front"

    def front(self, here: Here) -> None:
        asyncio.run(self._front(here))

    async def _front(self, here: Here) -> None:
        slot = pv.Slot("vbd", HANDLE, here.domid, here.other, within="data")
        async with here.domain.aio.xenstore() as store, asyncio.timeout(here.seconds):
            await pv.create(store, slot, halves="front")
            async with block.attach(slot.front_path, domain=here.domain, timeout=SOON) as disk:
                equal(await disk.read(0, 1), bytes(512), "a sector")
                here.tell("connected")
                with raises(PeerClosed, "reading on"):
                    while True:
                        await disk.read(0, 256)
            await pv.remove(store, slot, halves="front")

    def back(self, here: Here) -> None:
        asyncio.run(self._back(here))

    async def _back(self, here: Here) -> None:
        slot = pv.Slot("vbd", HANDLE, here.other, here.domid, within="data")
        async with here.domain.aio.xenstore() as store:
            serving = block.serving(block.Memory(SIZE))
            async with pv.BackendBus("vbd", serving, domain=here.domain, within="data") as bus:
                await pv.create(store, slot, halves="back")
                await asyncio.to_thread(here.hear, "connected")
                await bus.close()
            await pv.remove(store, slot, halves="back")
