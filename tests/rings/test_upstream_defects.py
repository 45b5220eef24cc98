"""What goes wrong, or once went wrong, in the OCaml library's rings of requests, and does not here.

| defect | upstream | here |
|---|---|---|
| R2: after 2^32 requests a look at responses never ends | shared-memory-ring 3.2.1 | indices wrap |
| R3: pushing nothing asks for an event | shared-memory-ring 3.2.1 | unsigned, as C |
| R4: one waiter goes on, however many slots became free | shared-memory-ring 3.2.1 | all who can |
| R5: a response after the shutdown raises out of the poll | shared-memory-ring 3.2.1 | nobody looks |
| R6: waiting for more slots than there are fails an assertion | shared-memory-ring 3.2.1 | `ValueError` |
| R7: ids that are in use twice shadow each other | shared-memory-ring 3.2.1 | ids are unique, others are counted |
| R8: more responses than requests | shared-memory-ring 3.2.1 | `ValueError` |
| slots are handed out twice to those who wait for several | before ca79af1 | all or nothing, in order |
| events that start at 0 are never sent | before e949fd6 | they start at 1 |
| counters stored byte by byte | before 7a9434d | whole words |
| a slot below zero beyond 2^31 | before f8c62c2 | unsigned |
| a full ring drops what is written, silently | before 2761f01 | `ValueError` |
| a back end empties the ring that it attaches to | mirage-net-xen, issue 68 | it writes nothing |

R1 is a byte ring's.
"""

from __future__ import annotations

import asyncio

import pytest

from xengrant import InterfaceClosed, _native
from xengrant.abi import ring as abi
from xengrant.rings.rpc import BackRing, FrontRing

from .memory import WRAP, pair, used_ring, word
from .ports import ID, Serving, looped, settle


@pytest.mark.parametrize("start", [WRAP - 1, WRAP - 4, (1 << 31) - 2])
def test_r2_a_look_across_the_wrap_ends_after_what_is_there(start: int) -> None:
    front, back, _ = pair(start)
    for _ in range(4):
        front.next_request(b"")
    front.push_requests()
    assert len(back.take_requests()) == 4
    for _ in range(4):
        back.next_response(b"")
    back.push_responses()
    assert len(front.take_responses()) == 4
    assert not front.more_to_do()


@pytest.mark.parametrize("start", [0, 7, (1 << 31) - 1, WRAP - 1])
def test_r3_pushing_nothing_asks_for_no_event(start: int) -> None:
    front, back, _ = pair(start)  # both ends sleep: the events are at start + 1
    assert not front.push_requests()
    assert not back.push_responses()


@looped
async def test_r4_all_waiters_that_can_go_on_do() -> None:
    serving = Serving()
    async with serving.front as front:
        first = asyncio.create_task(front.call_all([bytes(2)] * 4))
        await settle()
        waiting = [asyncio.create_task(front.call(bytes(2))) for _ in range(3)]
        await settle()
        serving.respond(*serving.back.take_requests())
        await first
        await settle()
        assert len(serving.back.take_requests()) == 3
        for task in waiting:
            task.cancel()


@looped
async def test_r5_a_response_after_the_close_disturbs_nobody() -> None:
    problems: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context))
    serving = Serving()
    task = asyncio.create_task(serving.front.call(bytes(2)))
    await settle()
    serving.front.close()
    serving.respond(*serving.back.take_requests())
    serving.port._news.set()
    await settle()
    with pytest.raises(InterfaceClosed):
        await task
    assert problems == []


@looped
async def test_r6_more_slots_than_there_are_is_an_error_and_no_wait() -> None:
    serving = Serving()
    async with serving.front as front:
        busy = asyncio.create_task(front.call(bytes(2)))
        await settle()
        with pytest.raises(ValueError, match="5 requests at once on a ring of 4 entries"):
            await front.call_all([bytes(2)] * 5)
        busy.cancel()


@looped
async def test_r7_no_two_calls_under_way_have_one_id() -> None:
    serving = Serving()
    async with serving.front as front:
        tasks = [asyncio.create_task(front.call(b"\0\0%d" % number)) for number in range(3)]
        await settle()
        asked = serving.back.take_requests()
        serving.respond(asked[2], asked[1])
        front._last_id = -1  # as after so many calls that the ids come again
        tasks += [asyncio.create_task(front.call(b"\0\0%d" % number)) for number in (3, 4, 5)]
        await settle()
        asked = [asked[0], *serving.back.take_requests()]
        ids = [ID.load(entry) for entry in asked]
        assert len(ids) == len(set(ids)) == 4
        serving.respond(*asked)
        assert [(await task)[2:3] for task in tasks] == [b"0", b"1", b"2", b"3", b"4", b"5"]
    assert front.unknown_responses == 0


def test_r8_a_response_to_what_was_not_taken_is_refused() -> None:
    front, back, memory = pair()
    front.next_request(b"one")
    front.push_requests()
    with pytest.raises(ValueError, match="every request that was taken is answered"):
        back.next_response(b"")
    back.take_requests()
    back.next_response(b"")
    with pytest.raises(ValueError, match="every request that was taken is answered"):
        back.next_response(b"")
    back.push_responses()
    assert word(memory, abi.RSP_PROD) == 1


@looped
async def test_before_ca79af1_waiters_for_several_slots_get_each_slot_once() -> None:
    serving = Serving()
    async with serving.front as front:
        first = asyncio.create_task(front.call_all([bytes(2)] * 4))
        await settle()
        waiting = [asyncio.create_task(front.call_all([bytes(2)] * count)) for count in (3, 2, 1)]
        await settle()
        for served in ([4], [3], [2, 1]):
            requests = serving.back.take_requests()
            assert len(requests) == sum(served)
            serving.respond(*requests)
            await settle()
        await asyncio.gather(first, *waiting)


def test_before_e949fd6_the_first_response_of_a_new_ring_is_notified() -> None:
    memory = bytearray(b"\0" * 128)
    front, back = FrontRing.init(memory, 16), BackRing.attach(memory, 16)
    front.next_request(b"")
    assert front.push_requests()
    back.take_requests()
    back.next_response(b"")
    assert back.push_responses()


def test_before_7a9434d_a_counter_is_stored_as_one_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """255 to 256 changes two bytes: who looks meanwhile sees neither 0 nor 511."""
    stored: list[tuple[int, int]] = []
    real = _native.store32

    def store(memory: bytearray, at: int, value: int) -> None:
        stored.append((at, value))
        real(memory, at, value)

    front, _, memory = pair(255)
    monkeypatch.setattr(_native, "store32", store)
    front.next_request(b"")
    assert word(memory, abi.REQ_PROD) == 255
    front.push_requests()
    assert stored == [(abi.REQ_PROD, 256)]


def test_before_f8c62c2_slots_beyond_2_31_follow_those_before() -> None:
    front, _, memory = pair((1 << 31) - 2)
    for number in range(4):
        front.next_request(bytes([number + 1]))
    slots = [memory[64 + 16 * number] for number in range(4)]
    assert slots == [3, 4, 1, 2]


def test_before_2761f01_a_full_ring_drops_nothing_silently() -> None:
    front, _, _ = pair(entries=1)
    front.next_request(b"")
    with pytest.raises(ValueError, match="full"):
        front.next_request(b"")


def test_mirage_net_xen_a_back_end_does_not_empty_the_ring_it_attaches_to() -> None:
    memory = used_ring(0)
    front = FrontRing.attach(memory, 16)
    front.next_request(b"filled before")
    front.push_requests()
    back = BackRing.attach(memory, 16)
    assert not hasattr(back, "init")
    assert [request[:13] for request in back.take_requests()] == [b"filled before"]
