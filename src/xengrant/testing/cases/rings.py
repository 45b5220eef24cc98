"""Rings of requests and responses between two domains: the front end shares the pages, the back end maps them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager

from xengrant import _native
from xengrant.abi import ring as abi
from xengrant.errors import ProtocolError
from xengrant.evtchn import Port
from xengrant.gnttab import Grant
from xengrant.memory import Mapping
from xengrant.rings.rpc import BackRing, FrontRing
from xengrant.rings.rpc_front import AsyncFront, IdField
from xengrant.testing.case import Case
from xengrant.testing.expect import equal, raises, true
from xengrant.testing.here import SOON, Here

RING = "Xen public/io/ring.h"
ENTRY = 112  # bytes, as for a block device: 32 entries in a page
WRAP = 1 << 32
ID = IdField(8, 8)


@contextmanager
def _sharing(here: Here, pages: int = 1) -> Iterator[tuple[Mapping, Port]]:
    """Pages and a port for the other half, which is told of them by `_offer`, and waited for in the end."""
    with (
        here.domain.gntshr() as gntshr,
        gntshr.share_pages(here.other, pages, writable=True) as share,
        here.domain.evtchn() as channels,
        channels.bind_unbound(here.other) as port,
    ):
        here.tell("refs", list(share.refs))
        yield share.mapping, port
        here.hear("unmapped")


def _offer(here: Here, port: Port) -> None:
    """Say that the ring is made."""
    here.tell("ring", port.number)


@contextmanager
def _mapping(here: Here) -> Iterator[tuple[Mapping, Port]]:
    with (
        here.domain.gnttab() as gnttab,
        here.domain.evtchn() as channels,
        gnttab.map([Grant(here.other, ref) for ref in here.hear("refs")], writable=True) as mapped,
        channels.bind_interdomain(here.other, here.hear("ring")) as port,
    ):
        yield mapped.mapping, port
    here.tell("unmapped")


def _await_responses(ring: FrontRing, port: Port) -> list[bytes]:
    """What has come, one at least."""
    while True:
        responses = ring.take_responses()
        if responses:
            return responses
        if not ring.more_to_do():
            port.wait(SOON)


def _await_requests(ring: BackRing, port: Port) -> list[bytes]:
    while True:
        requests = ring.take_requests()
        if requests:
            return requests
        if not ring.more_to_do():
            port.wait(SOON)


def _ask(ring: FrontRing, port: Port, *requests: bytes) -> None:
    for request in requests:
        ring.next_request(request)
    if ring.push_requests():
        port.notify()


def _answer(ring: BackRing, port: Port, *responses: bytes) -> None:
    for response in responses:
        ring.next_response(response)
    if ring.push_responses():
        port.notify()


class RoundTrip(Case):
    """A request reaches the back end and its response the front end, each with an event to who sleeps"""

    source = f"{RING}, RING_PUSH_REQUESTS_AND_CHECK_NOTIFY and RING_FINAL_CHECK_FOR_RESPONSES"
    peer = "front"

    def front(self, here: Here) -> None:
        with _sharing(here) as (memory, port):
            ring = FrontRing.init(memory, ENTRY)
            equal(ring.entries, 32, "the number of entries in a page")
            _offer(here, port)
            for number in range(50):
                request = here.noise(ENTRY, number)
                _ask(ring, port, request)
                equal(_await_responses(ring, port), [request[::-1]], f"the response to request {number}")

    def back(self, here: Here) -> None:
        with _mapping(here) as (memory, port):
            ring = BackRing.attach(memory, ENTRY)
            for number in range(50):
                requests = _await_requests(ring, port)
                equal(requests, [here.noise(ENTRY, number)], f"request {number}")
                _answer(ring, port, requests[0][::-1])


class NotifyOnlyWhoSleeps(Case):
    """A push says to notify exactly when the other end has said that it sleeps, and once"""

    source = f"{RING}, notification hold-off"
    peer = "front"

    def front(self, here: Here) -> None:
        with _sharing(here) as (memory, port):
            ring = FrontRing.init(memory, ENTRY)
            true(not ring.push_requests(), "a push of nothing asks for no event")
            _offer(here, port)
            for phase in ("new", "awake", "asleep", "asleep-2"):
                here.hear(phase)
                ring.next_request(phase.encode())
                equal(ring.push_requests(), phase in ("new", "asleep"), f"whether to notify a back end that is {phase}")
                here.tell(f"pushed-{phase}")

    def back(self, here: Here) -> None:
        with _mapping(here) as (memory, _):
            ring = BackRing.attach(memory, ENTRY)
            here.tell("new")
            here.hear("pushed-new")
            ring.take_requests()
            here.tell("awake")
            here.hear("pushed-awake")
            true(ring.more_to_do(), "what was pushed without an event is seen before the sleep")
            ring.take_requests()
            true(not ring.more_to_do(), "it may sleep")
            for phase in ("asleep", "asleep-2"):
                here.tell(phase)
                here.hear(f"pushed-{phase}")
            equal(len(ring.take_requests()), 2, "the requests at last")


class OutOfOrder(Case):
    """Hundreds of calls of the asyncio front end get their own responses, which come in any order"""

    source = f"{RING}; xengrant's own: ids"
    peer = "front"
    _CALLS = 300

    def front(self, here: Here) -> None:
        with _sharing(here) as (memory, _):
            asyncio.run(self._call(here, FrontRing.init(memory, ENTRY)))

    async def _call(self, here: Here, ring: FrontRing) -> None:
        async with here.domain.aio.evtchn() as channels:
            port = channels.bind_unbound(here.other)
            here.tell("ring", port.number)
            async with AsyncFront(ring, port, request_id=ID) as front, asyncio.timeout(here.seconds):
                requests = [here.noise(ENTRY, number) for number in range(self._CALLS)]
                responses = await asyncio.gather(*map(front.call, requests))
                for request, response in zip(requests, responses, strict=True):
                    equal(response[16:], request[:15:-1], "what came back")
                equal((front.unknown_responses, front.free), (0, ring.entries), "unknown responses, free slots")

    def back(self, here: Here) -> None:
        with _mapping(here) as (memory, port):
            ring = BackRing.attach(memory, ENTRY)
            held: list[bytes] = []
            shuffled, answered = 0, 0
            while answered < self._CALLS:
                held += ring.take_requests() if held else _await_requests(ring, port)
                before = list(held)
                random.shuffle(held)
                shuffled += before != held
                for _ in range(len(held) // 2 + 1):  # the others wait for the next turn
                    entry = held.pop()
                    _answer(ring, port, entry[:16] + entry[:15:-1])
                    answered += 1
            true(shuffled > 2, "responses were out of order")


class RequestOverflow(Case):
    """A front end that says it asked more than the ring holds, or less than before, is a ProtocolError for the back"""

    source = f"{RING}, RING_REQUEST_PROD_OVERFLOW"
    peer = "front"

    def front(self, here: Here) -> None:
        with _sharing(here) as (memory, port):
            ring = FrontRing.init(memory, ENTRY)
            _offer(here, port)
            _ask(ring, port, b"one", b"two")
            for number, lie in enumerate((33, 1 << 31, WRAP - 1, 1)):
                here.hear(f"ready {number}")
                _native.store32(memory, abi.REQ_PROD, lie)
                here.tell(f"lied {number}")

    def back(self, here: Here) -> None:
        with _mapping(here) as (memory, port):
            ring = BackRing.attach(memory, ENTRY)
            equal(len(_await_requests(ring, port)), 2, "honest requests")
            for number in range(4):
                here.tell(f"ready {number}")
                here.hear(f"lied {number}")
                for look in (ring.take_requests, ring.more_to_do):
                    with raises(ProtocolError, "a look at a lie", says="req_prod"):
                        look()
            with raises(ProtocolError, "attaching to a ring with 33 requests", says="req_prod"):
                _native.store32(memory, abi.REQ_PROD, 33)
                BackRing.attach(memory, ENTRY)
            _answer(ring, port, b"still", b"there")


class ResponseOverflow(Case):
    """A back end that says it answered more than it was asked, or less than before, is a ProtocolError for the front"""

    source = f"{RING}, RING_RESPONSE_PROD_OVERFLOW; xengrant's own: no more than was asked"
    peer = "front"

    def front(self, here: Here) -> None:
        with _sharing(here) as (memory, port):
            ring = FrontRing.init(memory, ENTRY)
            _offer(here, port)
            _ask(ring, port, b"one", b"two", b"three")
            equal(len(_await_responses(ring, port)), 2, "honest responses")
            for number in range(4):
                here.tell(f"ready {number}")
                here.hear(f"lied {number}")
                for look in (ring.take_responses, ring.more_to_do):
                    with raises(ProtocolError, "a look at a lie", says="rsp_prod"):
                        look()
            equal(ring.free_requests, 31, "free slots, as before")

    def back(self, here: Here) -> None:
        with _mapping(here) as (memory, port):
            ring = BackRing.attach(memory, ENTRY)
            _answer(ring, port, *_await_requests(ring, port)[:2])
            for number, lie in enumerate((4, 35, WRAP - 1, 1)):
                here.hear(f"ready {number}")
                _native.store32(memory, abi.RSP_PROD, lie)
                here.tell(f"lied {number}")


class Wraps(Case):
    """The indices wrap at 2^32 and pass 2^31 like any other number: requests and events go on"""

    source = f"{RING}: RING_IDX is an unsigned int"
    peer = "front"
    _STARTS = (WRAP - 40, (1 << 31) - 40)
    _ROUNDS = 100

    def front(self, here: Here) -> None:
        with _sharing(here) as (memory, port):
            for start in self._STARTS:
                for at in (abi.REQ_PROD, abi.RSP_PROD):
                    _native.store32(memory, at, start)
                for at in (abi.REQ_EVENT, abi.RSP_EVENT):
                    _native.store32(memory, at, start + 1)
                ring = FrontRing.attach(memory, ENTRY)
                if start == self._STARTS[0]:
                    _offer(here, port)
                here.tell(f"attached {start}")
                for number in range(self._ROUNDS):
                    _ask(ring, port, number.to_bytes(4, "little"))
                    [response] = _await_responses(ring, port)
                    equal(response[:4], (~number & WRAP - 1).to_bytes(4, "little"), f"the response to {number}")
                here.hear(f"done {start}")

    def back(self, here: Here) -> None:
        with _mapping(here) as (memory, port):
            for start in self._STARTS:
                here.hear(f"attached {start}")
                ring = BackRing.attach(memory, ENTRY)
                for _ in range(self._ROUNDS):
                    [request] = _await_requests(ring, port)
                    _answer(ring, port, bytes(byte ^ 0xFF for byte in request[:4]))
                equal(_native.load32(memory, abi.RSP_PROD), (start + self._ROUNDS) % WRAP, "rsp_prod")
                here.tell(f"done {start}")


class SeveralPages(Case):
    """A ring of four pages has 128 entries, some across two pages, and all of them can be under way at once"""

    source = f"{RING}, __RING_SIZE; Linux drivers/block/xen-blkfront.c, ring-page-order"
    peer = "front"

    def front(self, here: Here) -> None:
        with _sharing(here, 4) as (memory, port):
            ring = FrontRing.init(memory, ENTRY)
            equal(ring.entries, 128, "the number of entries in four pages")
            _offer(here, port)
            for turn in range(2):
                _ask(ring, port, *(here.noise(ENTRY, turn * 128 + number) for number in range(128)))
                equal(ring.free_requests, 0, "free slots of a full ring")
                responses: list[bytes] = []
                while len(responses) < 128:
                    responses += _await_responses(ring, port)
                expected = [here.noise(ENTRY, f"answer {turn * 128 + number}") for number in range(128)]
                equal(b"".join(responses), b"".join(expected), "the responses")

    def back(self, here: Here) -> None:
        with _mapping(here) as (memory, port):
            ring = BackRing.attach(memory, ENTRY)
            for turn in range(2):
                requests: list[bytes] = []
                while len(requests) < 128:
                    requests += _await_requests(ring, port)
                expected = [here.noise(ENTRY, turn * 128 + number) for number in range(128)]
                equal(b"".join(requests), b"".join(expected), "the requests")
                _answer(ring, port, *(here.noise(ENTRY, f"answer {turn * 128 + number}") for number in range(128)))


class BackAttachesAgain(Case):
    """A back end that attaches to a used ring goes on with the first unanswered request, and writes nothing"""

    source = "Linux drivers/block/xen-blkback/xenbus.c, xen_blkif_map: BACK_RING_ATTACH at rsp_prod"
    peer = "front"

    def front(self, here: Here) -> None:
        with _sharing(here) as (memory, port):
            ring = FrontRing.init(memory, ENTRY)
            _offer(here, port)
            _ask(ring, port, *(bytes([number]) for number in range(5)))
            responses: list[bytes] = []
            while len(responses) < 5:
                responses += _await_responses(ring, port)
            equal(b"".join(data[:1] for data in responses), b"\x80\x81\x82\x83\x84", "the responses, of both back ends")

    def back(self, here: Here) -> None:
        with _mapping(here) as (memory, port):
            first = BackRing.attach(memory, ENTRY)
            requests: list[bytes] = []
            while len(requests) < 5:
                requests += _await_requests(first, port)
            _answer(first, port, b"\x80", b"\x81")
            header = memory[: abi.HEADER_SIZE]
            second = BackRing.attach(memory, ENTRY)
            # The front end may say meanwhile that it sleeps: its word alone may change.
            equal(memory[: abi.RSP_EVENT], header[: abi.RSP_EVENT], "the indices after attaching")
            again = second.take_requests()
            equal(b"".join(data[:1] for data in again), b"\x02\x03\x04", "the requests not answered")
            _answer(second, port, *(bytes([0x80 | data[0]]) for data in again))
