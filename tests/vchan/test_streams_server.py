"""A server of many clients at one path."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

import xengrant
from xengrant import vchan
from xengrant.embedded import Machine
from xengrant.vchan import channel
from xengrant.vchan import server as vchan_server

from .ends import LONG, Recorder, run
from .test_streams import echo, echoed

PATH = "/local/domain/1/data/vchan/2/many"


@asynccontextmanager
async def connected(domain: xengrant.Domain, path: str = "many") -> AsyncIterator[Recorder]:
    """A client, aborted at the end."""
    recorder = Recorder()
    await vchan.create_connection(lambda: recorder, 1, path, domain=domain, timeout=LONG)
    try:
        yield recorder
    finally:
        recorder.transport.abort()
        await recorder.until_lost()


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Greets each with how many came before, and reads nothing."""
    writer.write(b"hello")
    await writer.drain()
    await asyncio.sleep(0)
    writer.close()


def test_twenty_clients_at_once(granter: xengrant.Domain, mapper: xengrant.Domain) -> None:
    async def main() -> None:
        async with await vchan.start_server(echo, 2, "many", domain=granter) as server:
            texts = [bytes([number]) * 100_000 for number in range(20)]
            assert await asyncio.gather(*(echoed(mapper, text, "many") for text in texts)) == texts
            assert server.is_serving()

    run(main())


def test_two_hundred_clients_one_after_the_other_find_nothing_that_another_left(
    granter: xengrant.Domain, mapper: xengrant.Domain
) -> None:
    async def main() -> None:
        async with await vchan.start_server(greet, 2, "many", domain=granter):
            for number in range(200):
                reader, writer = await vchan.open_connection(1, "many", domain=mapper, timeout=LONG)
                writer.write(b"%d: nobody reads this" % number)
                assert await reader.read() == b"hello"
                writer.close()

    run(main())


def test_a_closed_server_leaves_its_clients_be(granter: xengrant.Domain, mapper: xengrant.Domain) -> None:
    async def main() -> None:
        left = Recorder()
        server = await vchan.create_server(lambda: left, 2, "many", domain=granter)
        assert repr(server) == f"<VchanServer for domain 2 at {PATH}, serving, 0 clients>"
        async with connected(mapper) as client:
            await left.until(lambda left: left.transport, "the client has come")
            server.close()
            server.close()
            assert not server.is_serving()
            await asyncio.wait({server._task})  # type: ignore[type-var]
            with mapper.xenstore() as store, pytest.raises(xengrant.XenStoreError):
                store.read(f"{PATH}/ring-ref")
            with pytest.raises(TimeoutError):
                await vchan.open_connection(1, "many", domain=mapper, timeout=0.01)
            client.transport.write(b"still here")
            await left.until_received(10)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(server.wait_closed(), 0.01)
            assert "closed, 1 clients" in repr(server)
        await server.wait_closed()
        assert left.events == ["made", "data", "eof", "lost"]

    run(main())


@pytest.mark.parametrize(("how", "arrives"), [("close_clients", True), ("abort_clients", False)])
def test_all_clients_can_be_sent_away(
    how: str, arrives: bool, granter: xengrant.Domain, mapper: xengrant.Domain
) -> None:
    async def main() -> None:
        made: list[Recorder] = []

        def factory() -> Recorder:
            made.append(Recorder())
            return made[-1]

        server = await vchan.create_server(factory, 2, "many", domain=granter)
        async with connected(mapper) as one, connected(mapper) as two:
            while len(made) < 2 or not all(left.transport for left in made):
                await asyncio.sleep(0)
            for left in made:
                left.transport.write(bytes(1_000_000))
            getattr(server, how)()
            for client in (one, two):
                await client.until_lost()
                assert (len(client.received) == 1_000_000) == arrives
        server.close()
        await server.wait_closed()

    run(main())


def test_a_server_is_cancelled_and_its_path_is_gone(granter: xengrant.Domain, mapper: xengrant.Domain) -> None:
    async def main() -> None:
        server = await vchan.start_server(echo, 2, "many", domain=granter)
        serving = asyncio.create_task(server.serve_forever())
        assert await echoed(mapper, b"hello", "many") == b"hello"
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        assert not server.is_serving()

    run(main())
    with mapper.xenstore() as store, pytest.raises(xengrant.XenStoreError):
        store.read(f"{PATH}/ring-ref")


@pytest.mark.parametrize("closes", [True, False])
def test_a_program_that_ends_without_waiting_takes_its_keys_along(closes: bool, granter: xengrant.Domain) -> None:
    async def main() -> None:
        server = await vchan.start_server(echo, 2, "many", domain=granter)
        if closes:
            server.close()

    run(main())
    with granter.xenstore() as store:
        assert not store.exists(PATH)


def test_serving_ends_with_the_server(granter: xengrant.Domain) -> None:
    async def main() -> None:
        server = await vchan.start_server(echo, 2, "many", domain=granter)
        serving = asyncio.create_task(server.serve_forever())
        await server.start_serving()
        assert server.get_loop() is asyncio.get_running_loop()
        server.close()
        await serving
        await server.wait_closed()

    run(main())


@pytest.mark.parametrize("max_clients", [1, 8])
def test_serving_ends_with_the_domain_that_it_is_for(max_clients: int, machine: Machine) -> None:
    """Where that can be known, as in dom0; a client that is there hears of it too."""

    async def main() -> None:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
        with xengrant.connect(machine.url(0)) as dom0, xengrant.connect(machine.url(2)) as guest:
            server = await vchan.create_server(Recorder, 2, "many", max_clients=max_clients, domain=dom0)
            serving = asyncio.create_task(server.serve_forever())
            with vchan.connect(0, "many", domain=guest, timeout=LONG):
                machine.destroy(2)
                async with asyncio.timeout(LONG):
                    with pytest.raises(xengrant.PeerClosed, match="domain 2 is gone"):
                        await serving
                    await server.wait_closed()
            assert not server.is_serving()
            assert not told
            with dom0.xenstore() as store:
                assert not store.exists("data/vchan/2/many")

    run(main())


def test_serving_ends_with_the_domain_though_its_only_client_is_not_read_from(machine: Machine) -> None:
    class Paused(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.transport.pause_reading()

    async def main() -> None:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
        with xengrant.connect(machine.url(0)) as dom0, xengrant.connect(machine.url(2)) as guest:
            server = await vchan.create_server(Paused, 2, "many", max_clients=1, domain=dom0)
            with vchan.connect(0, "many", domain=guest, timeout=LONG), dom0.xenstore() as store:
                while store.exists("/local/domain/0/data/vchan/2/many"):
                    await asyncio.sleep(0)
                machine.destroy(2)
                async with asyncio.timeout(LONG / 2):
                    with pytest.raises(xengrant.PeerClosed, match="domain 2 is gone"):
                        await server.serve_forever()
            server.abort_clients()
            await server.wait_closed()
            assert not told

    run(main())


def test_a_server_that_waited_for_room_leaves_its_peer_be(machine: Machine) -> None:
    async def main() -> None:
        with xengrant.connect(machine.url(0)) as dom0, xengrant.connect(machine.url(2)) as guest:
            peer = dom0.aio.peer(2)
            server = await vchan.create_server(Recorder, 2, "many", max_clients=1, peer=peer, domain=dom0)
            for _ in range(3):
                with vchan.connect(0, "many", domain=guest, timeout=LONG):
                    while server._keys:
                        await asyncio.sleep(0)
                while not server._keys:
                    await asyncio.sleep(0)
            server.close()
            await server.wait_closed()
            assert peer._listeners == []
            peer.close()

    run(main())


def test_pages_that_are_used_up_are_told_and_the_next_client_waits_for_some(
    machine: Machine, granter: xengrant.Domain, mapper: xengrant.Domain
) -> None:
    async def main() -> None:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
        machine.configure(1, gntalloc_limit=70)  # two rings of 64 KiB and the page are 33
        async with await vchan.start_server(echo, 2, "many", domain=granter) as server:
            async with connected(mapper), connected(mapper) as second:
                while not told:
                    await asyncio.sleep(0)
                assert isinstance(told[0]["exception"], xengrant.GrantTableFull)
                assert "has no vchan to offer for now" in told[0]["message"]
                assert server.is_serving()
                with pytest.raises(TimeoutError, match="offers this domain nothing there"):
                    await vchan.open_connection(1, "many", domain=mapper, timeout=0.01)
                third = asyncio.create_task(echoed(mapper, b"third", "many"))
                second.transport.close()
                assert await third == b"third"
            assert {type(context["exception"]) for context in told} == {xengrant.GrantTableFull}

    run(main())


def test_pages_that_are_used_up_when_there_is_room_again_are_told(
    machine: Machine, granter: xengrant.Domain, mapper: xengrant.Domain
) -> None:
    async def main() -> None:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
        async with await vchan.start_server(echo, 2, "many", max_clients=1, domain=granter) as server:
            async with connected(mapper):
                while server._keys:
                    await asyncio.sleep(0)
                machine.configure(1, gntalloc_limit=10)
            while not told:
                await asyncio.sleep(0)
            machine.configure(1, gntalloc_limit=1024)
            assert await echoed(mapper, b"second", "many") == b"second"
        assert [type(context["exception"]) for context in told] == [xengrant.GrantTableFull]

    run(main())


def test_pages_that_come_free_elsewhere_are_found_without_a_word(
    machine: Machine, granter: xengrant.Domain, mapper: xengrant.Domain
) -> None:
    async def main() -> None:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
        machine.configure(1, gntalloc_limit=40)
        async with await vchan.start_server(echo, 2, "many", domain=granter), connected(mapper):
            while not told:
                await asyncio.sleep(0)
            machine.configure(1, gntalloc_limit=1024)
            assert await echoed(mapper, b"second", "many") == b"second"

    run(main())


def test_a_domain_that_writes_to_the_page_before_it_is_offered_ends_no_server(
    granter: xengrant.Domain, mapper: xengrant.Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    offers = 0

    def offer(*args: Any) -> Any:
        nonlocal offers
        offers += 1
        if offers == 2:
            raise xengrant.ProtocolError("the ring's indices are 5000 apart")
        return channel.offer(*args)

    monkeypatch.setattr(vchan_server, "offer", offer)

    async def main() -> None:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
        async with await vchan.start_server(echo, 2, "many", domain=granter), connected(mapper):
            assert await echoed(mapper, b"second", "many") == b"second"
        assert [isinstance(context["exception"], xengrant.ProtocolError) for context in told] == [True]

    run(main())


def test_what_cannot_be_offered_at_first_is_raised(
    machine: Machine, granter: xengrant.Domain, mapper: xengrant.Domain
) -> None:
    async def main() -> None:
        machine.configure(1, gntalloc_limit=10)
        with pytest.raises(xengrant.GrantTableFull):
            await vchan.start_server(echo, 2, "many", domain=granter)
        with pytest.raises(xengrant.XenStoreError, match="may not write"):
            await vchan.start_server(echo, 2, "/local/domain/2/data/x", read_size=1024, write_size=1024, domain=granter)
        with pytest.raises(ValueError, match="read_size"):
            await vchan.start_server(echo, 2, "many", read_size=1 << 21, domain=granter)
        with pytest.raises(ValueError, match="max_clients 0 is outside"):
            await vchan.start_server(echo, 2, "many", max_clients=0, domain=granter)

    run(main())


def test_one_client_more_than_may_be_waits_and_other_servers_go_on(
    machine: Machine, granter: xengrant.Domain, mapper: xengrant.Domain
) -> None:
    async def main() -> None:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
        machine.configure(1, gntalloc_limit=140)  # four times two rings of 64 KiB and the page
        with granter.xenstore() as store:
            async with (
                await vchan.start_server(echo, 2, "many", max_clients=2, domain=granter) as server,
                await vchan.start_server(echo, 2, "other", domain=granter),
            ):
                for _ in range(2):
                    async with connected(mapper), connected(mapper) as second:
                        while store.exists(PATH):
                            await asyncio.sleep(0)
                        assert server.is_serving()
                        with pytest.raises(TimeoutError, match="offers this domain nothing there"):
                            await vchan.open_connection(1, "many", domain=mapper, timeout=0.01)
                        assert [await echoed(mapper, b"other", "other") for _ in range(2)] == [b"other"] * 2
                        third = asyncio.create_task(echoed(mapper, b"third", "many"))
                        second.transport.close()
                        assert await third == b"third"
        assert not told

    run(main())


def test_eight_clients_may_be_connected_where_no_other_number_is_given(
    granter: xengrant.Domain, mapper: xengrant.Domain
) -> None:
    async def main() -> None:
        async with AsyncExitStack() as clients:
            with granter.xenstore() as store:
                await clients.enter_async_context(await vchan.create_server(Recorder, 2, "many", domain=granter))
                for _ in range(8):
                    await clients.enter_async_context(connected(mapper))
                while store.exists(PATH):
                    await asyncio.sleep(0)

    run(main())


def test_a_server_with_all_its_clients_is_closed(granter: xengrant.Domain, mapper: xengrant.Domain) -> None:
    async def main() -> None:
        server = await vchan.create_server(Recorder, 2, "many", max_clients=1, domain=granter)
        with granter.xenstore() as store:
            async with connected(mapper):
                while store.exists(PATH):
                    await asyncio.sleep(0)
                server.close()
                assert server._task is not None
                await asyncio.wait({server._task}, timeout=LONG / 2)
                assert server._task.done(), "the server goes on"
            await server.wait_closed()
            assert not store.exists(PATH)

    run(main())


def test_a_cancelled_start_leaves_nothing(granter: xengrant.Domain, mapper: xengrant.Domain) -> None:
    async def main() -> None:
        for steps in (0, 1, 2, 4, 8, 16, 32):
            starting = asyncio.create_task(vchan.start_server(echo, 2, "many", domain=granter))
            for _ in range(steps):
                await asyncio.sleep(0)
            starting.cancel()
            try:
                server = await starting
                server.close()
                await server.wait_closed()
            except asyncio.CancelledError:
                pass
        with granter.xenstore() as store:
            assert not store.exists(PATH)

    run(main())


def test_a_start_ends_with_its_task(granter: xengrant.Domain) -> None:
    def serving() -> list[asyncio.Task[Any]]:
        return [task for task in asyncio.all_tasks() if task.get_name().startswith("vchan-server")]

    async def main() -> None:
        starting = asyncio.create_task(vchan.start_server(echo, 2, "many", domain=granter))
        while not serving():
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        serving()[0].cancel()
        await asyncio.wait({starting}, timeout=LONG / 2)
        assert starting.cancelled(), "the start goes on although nobody serves"

    run(main())


def test_a_factory_that_fails_loses_one_client_only(granter: xengrant.Domain, mapper: xengrant.Domain) -> None:
    async def main() -> None:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
        left = Recorder()

        def factory() -> Recorder:
            if not told:
                raise LookupError("none for the first")
            return left

        async with await vchan.create_server(factory, 2, "many", domain=granter) as server:
            async with connected(mapper) as first:
                await first.until_lost()
                assert first.events == ["made", "eof", "lost"]
            (context,) = told
            assert isinstance(context["exception"], LookupError)
            async with connected(mapper) as second:
                second.transport.write(b"hello")
                await left.until_received(5)
            await left.until_lost()
            assert server.is_serving()

    run(main())


def test_a_client_that_came_and_left_at_once_is_heard(granter: xengrant.Domain, mapper: xengrant.Domain) -> None:
    async def main() -> None:
        left = Recorder()
        async with await vchan.create_server(lambda: left, 2, "many", domain=granter):
            with vchan.connect(1, "many", domain=mapper) as end:  # in this thread: the loop stands still
                end.write(b"hello and goodbye")
            await left.until_lost()
            assert left.received == b"hello and goodbye"
            assert left.events == ["made", "data", "eof", "lost"]

    run(main())
