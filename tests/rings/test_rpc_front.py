"""The asyncio front end over a ring in plain memory, with a back end that the test plays."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from xengrant.rings.rpc import FrontRing
from xengrant.rings.rpc_front import AsyncFront, IdField

from .memory import EDGES, pair
from .ports import ID, FakePort, Serving, calls, looped, request, settle


@pytest.mark.parametrize("start", EDGES)
@looped
async def test_a_call_gives_its_response(start: int) -> None:
    serving = Serving(start)
    async with serving.front as front:
        for number in range(10):
            task = asyncio.create_task(front.call(request(b"ping %d" % number)))
            await settle()
            [asked] = serving.back.take_requests()
            assert asked[2:8] == b"ping %d" % number
            assert not serving.back.more_to_do()
            serving.respond(asked[:2] + b"pong")
            assert (await task)[:6] == asked[:2] + b"pong"
    assert serving.port.events == 10
    assert serving.back_port.events == 10


@looped
async def test_responses_in_any_order_find_their_calls() -> None:
    serving = Serving(entries=64)
    async with serving.front as front:
        tasks = calls(front, 64)
        await settle()
        asked = serving.back.take_requests()
        assert len({entry[:2] for entry in asked}) == 64, "the ids are unique"
        random.Random(5).shuffle(asked)
        serving.respond(*asked)
        answers = await asyncio.gather(*tasks)
        assert [answer[2:].rstrip(b"\0") for answer in answers] == [b"call %d" % number for number in range(64)]
    assert (front.late_responses, front.unknown_responses) == (0, 0)


@looped
async def test_what_is_sent_in_one_turn_of_the_loop_shares_a_notify(monkeypatch: pytest.MonkeyPatch) -> None:
    serving = Serving(entries=8)
    pushed: list[int] = []
    real = serving.ring.push_requests

    def push() -> bool:
        pushed.append(serving.ring.in_flight)
        return real()

    monkeypatch.setattr(serving.ring, "push_requests", push)
    async with serving.front as front:
        tasks = calls(front, 8)
        await settle()
        assert (pushed, serving.port.events) == ([8], 1)
        serving.respond(*serving.back.take_requests())
        await asyncio.gather(*tasks)


@looped
async def test_a_back_end_that_is_awake_is_not_notified() -> None:
    serving = Serving()
    async with serving.front as front:
        first = asyncio.create_task(front.call(request()))
        await settle()
        asked = serving.back.take_requests()
        second = asyncio.create_task(front.call(request()))
        await settle()
        assert serving.port.events == 1
        serving.respond(*asked, *serving.back.take_requests())
        await asyncio.gather(first, second)


@looped
async def test_ids_are_not_used_again_soon_and_wrap() -> None:
    serving = Serving()
    seen = []
    async with serving.front as front:
        front._last_id = 0xFFFD
        for _ in range(4):
            task = asyncio.create_task(front.call(request()))
            await settle()
            [asked] = serving.back.take_requests()
            seen.append(ID.load(asked))
            serving.respond(asked)
            await task
    assert seen == [0xFFFE, 0xFFFF, 0, 1]


@looped
async def test_an_id_of_a_call_under_way_is_skipped() -> None:
    serving = Serving()
    async with serving.front as front:
        tasks = calls(front, 2)
        await settle()
        first, second = serving.back.take_requests()
        serving.respond(second)
        await tasks[1]
        front._last_id = ID.load(first) - 1
        again = asyncio.create_task(front.call(request(b"again")))
        await settle()
        [third] = serving.back.take_requests()
        assert ID.load(third) == ID.load(first) + 1
        serving.respond(third, first)
        assert (await again)[2:7] == b"again"
        assert (await tasks[0])[2:8] == b"call 0"


@pytest.mark.parametrize(("request_id", "response_id"), [(IdField(8, 8), IdField(0, 8)), (IdField(12, 4), None)])
@looped
async def test_the_id_may_be_elsewhere_in_the_response(request_id: IdField, response_id: IdField | None) -> None:
    ring, back, _ = pair()
    port: Any = FakePort(1)
    async with AsyncFront(ring, port, request_id=request_id, response_id=response_id) as front:
        tasks = [asyncio.create_task(front.call(bytes([number] * 16))) for number in range(3)]
        await settle()
        for asked in reversed(back.take_requests()):
            entry = bytearray(16)
            (response_id or request_id).store(entry, request_id.load(asked))
            entry[(response_id or request_id).offset ^ 8] = asked[0]
            back.next_response(entry)
        back.push_responses()
        port._news.set()
        for number, answer in enumerate(await asyncio.gather(*tasks)):
            assert answer[(response_id or request_id).offset ^ 8] == number


@looped
async def test_bad_ids_and_rings_in_use_are_refused() -> None:
    port: Any = FakePort(1)
    ring, _, _ = pair()
    for field, says in [
        (IdField(0, 3), "2, 4 or 8 bytes, not 3"),
        (IdField(15, 2), "not within an entry of 16"),
        (IdField(-1, 2), "not within"),
    ]:
        with pytest.raises(ValueError, match=says):
            AsyncFront(ring, port, request_id=field)
        with pytest.raises(ValueError, match=says):
            AsyncFront(ring, port, request_id=ID, response_id=field)
    with pytest.raises(ValueError, match="do not tell 131072 requests apart"):
        AsyncFront(FrontRing.init(bytearray(64 + 2 * (1 << 17)), 2), port, request_id=ID)
    ring.next_request(b"")
    with pytest.raises(ValueError, match="1 requests in flight"):
        AsyncFront(ring, port, request_id=ID)


@looped
async def test_requests_that_do_not_fit_are_refused_and_send_nothing() -> None:
    serving = Serving()
    async with serving.front as front:
        for wrong in (bytes(17), bytes(1), b""):
            with pytest.raises(ValueError, match=f"a request of {len(wrong)} bytes"):
                await front.call_all([request(), wrong])
        await settle()
        assert serving.back.take_requests() == []
        assert front.free == 4
        assert await front.call_all([]) == []


@looped
async def test_a_full_ring_makes_calls_wait_in_line_and_nobody_overtakes() -> None:
    serving = Serving()
    async with serving.front as front:
        first = calls(front, 4)
        await settle()
        asked = serving.back.take_requests()
        big = asyncio.create_task(front.call_all([request(b"big")] * 3))
        small = asyncio.create_task(front.call(request(b"small")))
        await settle()
        for entry in asked[:2]:
            serving.respond(entry)
            await settle()
            assert serving.back.take_requests() == [], "three do not fit yet, and the small one is behind"
        serving.respond(asked[2])
        await settle()
        asked += serving.back.take_requests()
        assert [entry[2:5] for entry in asked[4:]] == [b"big"] * 3
        serving.respond(asked[3])
        await settle()
        asked += serving.back.take_requests()
        assert asked[7][2:7] == b"small"
        serving.respond(*asked[4:])
        await asyncio.gather(*first, big, small)


@looped
async def test_a_call_for_several_sends_them_together_and_gives_them_in_order() -> None:
    serving = Serving()
    async with serving.front as front:
        task = asyncio.create_task(front.call_all([request(b"%d" % number) for number in range(4)]))
        await settle()
        asked = serving.back.take_requests()
        assert [entry[2:3] for entry in asked] == [b"0", b"1", b"2", b"3"]
        serving.respond(*reversed(asked))
        assert [answer[2:3] for answer in await task] == [b"0", b"1", b"2", b"3"]


@looped
async def test_a_cancelled_call_keeps_its_slot_until_its_response_comes_late() -> None:
    serving = Serving(entries=1)
    async with serving.front as front:
        cancelled = asyncio.create_task(front.call(request(b"no")))
        await settle()
        cancelled.cancel()
        await asyncio.wait([cancelled])
        after = asyncio.create_task(front.call(request(b"yes")))
        await settle()
        [asked] = serving.back.take_requests()
        assert front.free == 0
        serving.respond(asked)
        await settle()
        assert front.late_responses == 1
        [asked] = serving.back.take_requests()
        serving.respond(asked)
        assert (await after)[2:5] == b"yes"
    assert (front.late_responses, front.unknown_responses) == (1, 0)


@looped
async def test_a_cancelled_waiter_sends_nothing_and_lets_those_behind_it_go_on() -> None:
    serving = Serving()
    async with serving.front as front:
        first = calls(front, 2)
        await settle()
        big = asyncio.create_task(front.call_all([request(b"big")] * 3))
        small = asyncio.create_task(front.call(request(b"small")))
        await settle()
        assert len(serving.back.take_requests()) == 2
        big.cancel()
        await settle()
        [asked] = serving.back.take_requests()
        assert asked[2:7] == b"small"
        for task in (*first, small):
            task.cancel()


@looped
async def test_a_waiter_that_is_cancelled_just_as_a_slot_becomes_free_sends_nothing() -> None:
    serving = Serving(entries=1)
    async with serving.front as front:
        first = asyncio.create_task(front.call(request(b"first")))
        await settle()
        waiting = asyncio.create_task(front.call(request(b"waiting")))
        await settle()
        serving.respond(*serving.back.take_requests())
        waiting.cancel()  # before the event is handled, and before it runs
        front._take()
        await settle()
        assert serving.back.take_requests() == []
        assert front.free == 1
        await first
        assert waiting.cancelled()


@looped
async def test_a_front_end_shows_its_state() -> None:
    serving = Serving(entries=2)
    async with serving.front as front:
        tasks = calls(front, 3)
        await settle()
        assert repr(front).endswith("produced 2, consumed 0>, 2 calls under way, 1 waiting for slots>")
        for task in tasks:
            task.cancel()
    assert repr(front).endswith("closed>")
