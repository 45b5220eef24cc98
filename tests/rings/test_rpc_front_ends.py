"""How the asyncio front end ends: closed, with the peer gone, or with a peer that lies."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from xengrant import InterfaceClosed, PeerClosed, ProtocolError
from xengrant.rings.rpc_front import AsyncFront

from .memory import pair, set_header
from .ports import ID, FakePort, Serving, calls, looped, request, settle


@looped
async def test_closing_fails_calls_that_wait_and_calls_under_way() -> None:
    serving = Serving(entries=2)
    tasks = calls(serving.front, 5)
    await settle()
    serving.front.close()
    serving.front.close()
    for task in tasks:
        with pytest.raises(InterfaceClosed, match="AsyncFront is closed"):
            await task
    assert serving.front.closed
    with pytest.raises(InterfaceClosed):
        await serving.front.call(request())
    with pytest.raises(InterfaceClosed):
        async with serving.front:
            pass


@looped
async def test_a_closed_port_fails_all_calls() -> None:
    serving = Serving(entries=2)
    tasks = calls(serving.front, 3)
    await settle()
    serving.port.close()
    for task in tasks:
        with pytest.raises(InterfaceClosed, match="port is closed"):
            await task


@looped
async def test_memory_that_is_gone_fails_all_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    serving = Serving(entries=2)

    def gone(*_: object) -> None:
        raise ValueError("mapping is closed")

    tasks = calls(serving.front, 1)
    await settle()
    monkeypatch.setattr(serving.ring, "_put", gone)
    tasks += calls(serving.front, 3)
    for task in tasks:
        with pytest.raises(ValueError, match="mapping is closed"):
            await task


@looped
async def test_a_peer_that_is_gone_fails_all_calls_but_what_it_had_answered() -> None:
    gone = asyncio.Event()

    class Port(FakePort):
        async def wait(self, timeout: float | None = None, *, peer: Any = None, unmask: bool = True) -> None:
            await gone.wait()
            peer.check()

    class Peer:
        def check(self) -> None:
            raise PeerClosed("domain 7 is gone")

    ring, _, _ = pair(entries=2)
    port, peer = Port(1), Peer()
    async with AsyncFront(ring, port, request_id=ID, peer=peer) as front:  # type: ignore[arg-type]
        tasks = calls(front, 3)
        await settle()
        gone.set()
        for task in tasks:
            with pytest.raises(PeerClosed, match="domain 7"):
                await task
        with pytest.raises(PeerClosed, match="domain 7"):
            await front.call(request())


@looped
async def test_a_lie_fails_all_calls_and_those_to_come() -> None:
    serving = Serving(entries=2)
    async with serving.front as front:
        tasks = calls(front, 3)
        await settle()
        set_header(serving.memory, 2, 1, 3, 1)
        serving.back_port.notify()
        for task in tasks:
            with pytest.raises(ProtocolError, match="rsp_prod is 3"):
                await task
        with pytest.raises(ProtocolError, match="rsp_prod is 3"):
            await front.call(request())
        assert front.closed


@looped
async def test_an_unknown_id_is_counted_and_ignored_while_the_calls_may_still_be_answered() -> None:
    serving = Serving()
    async with serving.front as front:
        tasks = calls(front, 2)
        await settle()
        first, second = serving.back.take_requests()
        serving.respond(b"\xff\xff", first)
        await tasks[0]
        assert front.unknown_responses == 1
        with pytest.raises(ProtocolError, match="1 calls have no response: 1 responses had an id that nobody"):
            await tasks[1]
        assert ID.load(second) == ID.load(first) + 1


@looped
async def test_a_second_response_to_one_call_is_unknown() -> None:
    serving = Serving()
    async with serving.front as front:
        tasks = calls(front, 3)
        await settle()
        asked = serving.back.take_requests()
        serving.respond(asked[1], asked[1])
        await tasks[1]
        assert front.unknown_responses == 1
        assert front.free == 2, "two calls are open"
        for task in (tasks[0], tasks[2]):
            task.cancel()


@looped
async def test_a_peer_that_answers_under_wrong_ids_makes_nothing_grow() -> None:
    """Calls with a deadline, again and again, whose responses come under wrong ids."""
    serving = Serving()
    refused = 0
    async with serving.front as front:
        for _ in range(50):
            try:
                async with asyncio.timeout(0):
                    await front.call(request())
            except TimeoutError:
                await settle()
            except ProtocolError:
                refused += 1
            serving.respond(*(b"\xff\xff" for _ in serving.back.take_requests()))
            await settle()
            assert len(front._calls) <= 4
    assert refused > 40


@looped
async def test_the_loops_end_leaves_nobody_waiting() -> None:
    serving = Serving()
    task = calls(serving.front, 1)[0]
    await settle()
    serving.front._task.cancel()
    with pytest.raises(InterfaceClosed, match="event loop"):
        await task
