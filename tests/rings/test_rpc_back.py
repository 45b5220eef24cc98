"""The asyncio back end, and both asyncio ends together: over plain memory, and between two domains of a machine."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import cast

import pytest

import xengrant
from xengrant import AsyncPort, Domain, Grant, InterfaceClosed, PeerClosed, ProtocolError
from xengrant.embedded import Machine
from xengrant.rings.rpc import BackRing, FrontRing
from xengrant.rings.rpc_back import AsyncBack
from xengrant.rings.rpc_front import AsyncFront, IdField

from .memory import WRAP, pair, set_header
from .ports import ID, FakePort, Serving, looped, settle


async def serve(back: AsyncBack, seed: int, held_at_most: int) -> None:
    """Answer each request with its bytes beyond the id reversed, some later than others, in any order."""
    chance = random.Random(seed)
    held: list[bytes] = []
    async for requests in back:
        held += requests
        chance.shuffle(held)
        while len(held) > held_at_most:
            entry = held.pop()
            back.respond(entry[:2] + entry[:1:-1])


@pytest.mark.parametrize("start", [0, WRAP - 300, (1 << 31) - 300])
@looped
async def test_both_ends_over_thousands_of_calls(start: int) -> None:
    serving = Serving(start, entries=16)
    back = asyncio.create_task(serve(AsyncBack(serving.back, serving.as_port), 3, 0))

    async def ask(number: int) -> None:
        text = number.to_bytes(7, "little") * 2
        answer = await serving.front.call(bytes(2) + text)
        assert answer[2:] == text[::-1]

    async with serving.front as front:
        for turn in range(20):
            await asyncio.gather(*(ask(turn * 100 + number) for number in range(100)))
        assert (front.free, front.late_responses, front.unknown_responses) == (16, 0, 0)
    assert serving.port.events < 2000, "notifies are shared"
    back.cancel()


@looped
async def test_a_turn_gives_all_requests_that_are_there_and_waits_for_one() -> None:
    serving = Serving()
    back = AsyncBack(serving.back, serving.as_port)
    waiting = asyncio.create_task(anext(back))
    await settle()
    async with serving.front as front:
        call = asyncio.create_task(front.call_all([b"..one", b"..two"]))
        assert [entry[2:5] for entry in await waiting] == [b"one", b"two"]
        call.cancel()


@looped
async def test_responses_may_come_later_and_from_elsewhere() -> None:
    serving = Serving()
    back = AsyncBack(serving.back, serving.as_port)
    async with serving.front as front:
        call = asyncio.create_task(front.call(b"..one"))
        [request] = await anext(back)
        other = asyncio.create_task(front.call(b"..two"))
        [second] = await anext(back)
        back.respond(second)
        assert (await other)[2:5] == b"two"
        back.respond(request)
        assert (await call)[2:5] == b"one"


@looped
async def test_responses_to_nothing_and_too_long_ones_are_refused_and_write_nothing() -> None:
    serving = Serving()
    back = AsyncBack(serving.back, serving.as_port)
    async with serving.front as front:
        call = asyncio.create_task(front.call_all([b"..one", b"..two"]))
        requests = await anext(back)
        before = bytes(serving.memory)
        with pytest.raises(ValueError, match="3 responses to 2 requests"):
            back.respond(*requests, b"")
        with pytest.raises(ValueError, match="17 bytes"):
            back.respond(b"", bytes(17))
        assert serving.memory == before
        back.respond(*requests)
        assert [response[2:5] for response in await call] == [b"one", b"two"]


@looped
async def test_a_lie_and_a_closed_port_end_the_loop() -> None:
    serving = Serving()
    back = AsyncBack(serving.back, serving.as_port)
    set_header(serving.memory, 5, 1, 0, 1)
    with pytest.raises(ProtocolError, match="req_prod is 5"):
        await anext(back)
    set_header(serving.memory, 0, 1, 0, 1)
    waiting = asyncio.create_task(anext(back))
    await settle()
    serving.back_port.close()
    with pytest.raises(InterfaceClosed):
        await waiting
    serving.front.close()


@looped
async def test_a_front_end_that_always_has_more_leaves_others_their_turn() -> None:
    ring, back_ring, _ = pair()
    port, other = FakePort(1), FakePort(2)
    port.other, other.other = other, port
    back = AsyncBack(back_ring, cast(AsyncPort, other))
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    ring.next_request(b"")
    ring.push_requests()
    served = 0
    async for requests in back:
        back.respond(*requests)
        ring.take_responses()
        ring.next_request(b"")  # there at once, as from a domain on a processor of its own
        ring.push_requests()
        served += 1
        if served == 50:
            break
    assert turns >= 49
    counting.cancel()


def test_between_two_domains_with_ports_that_are_awaited(granter: Domain, mapper: Domain) -> None:
    async def ask() -> None:
        async with granter.aio.evtchn() as channels, mapper.aio.evtchn() as others:
            port = channels.bind_unbound(2)
            other = others.bind_interdomain(1, port.number)
            back = asyncio.create_task(serve(AsyncBack(back_ring, other), 1, 0))
            async with AsyncFront(front_ring, port, request_id=ID) as front:
                texts = [number.to_bytes(2, "little") + bytes(12) for number in range(500)]
                answers = await asyncio.gather(*(front.call(bytes(2) + text) for text in texts))
                assert [answer[2:] for answer in answers] == [text[::-1] for text in texts]
            back.cancel()
            with suppress(asyncio.CancelledError):
                await back

    with granter.gntshr() as gntshr, gntshr.share_pages(2, 1, writable=True) as share, mapper.gnttab() as gnttab:
        front_ring = FrontRing.init(share.mapping, 16)
        with gnttab.map(Grant(1, share.refs[0]), writable=True) as mapped:
            back_ring = BackRing.attach(mapped.mapping, 16)
            asyncio.run(asyncio.wait_for(ask(), 20))


def test_a_domain_that_is_destroyed_fails_the_calls(machine: Machine, granter: Domain, mapper: Domain) -> None:
    """In dom0, which is told of it; the back end answers one of three calls before it goes."""

    async def ask(dom0: Domain) -> None:
        async with dom0.aio.evtchn() as channels, dom0.aio.peer(2) as peer, mapper.aio.evtchn() as others:
            port = channels.bind_unbound(2)
            other = others.bind_interdomain(0, port.number)
            with mapper.gnttab() as gnttab, gnttab.map(Grant(0, share.refs[0]), writable=True) as mapped:
                back = AsyncBack(BackRing.attach(mapped.mapping, 16), other)
                async with AsyncFront(front_ring, port, request_id=IdField(0, 4), peer=peer) as front:
                    tasks = [asyncio.create_task(front.call(bytes(8))) for _ in range(3)]
                    requests = await anext(back)
                    back.respond(requests[1])
                    assert await tasks[1] == requests[1]
                    await asyncio.get_running_loop().run_in_executor(None, machine.destroy, 2)
                    for task in (tasks[0], tasks[2]):
                        with pytest.raises(PeerClosed, match="domain 2"):
                            await task

    with (
        xengrant.connect(machine.url(0)) as dom0,
        dom0.gntshr() as gntshr,
        gntshr.share_pages(2, 1, writable=True) as share,
    ):
        front_ring = FrontRing.init(share.mapping, 16)
        asyncio.run(asyncio.wait_for(ask(dom0), 20))
