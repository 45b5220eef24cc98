"""`AsyncXenStore`: the same calls, awaited; cancelling and closing at any moment."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from xengrant.abi import xs_wire
from xengrant.abi.xs_wire import Operation
from xengrant.errors import InterfaceClosed, InterfaceUnavailable, ProtocolError, XenStoreError
from xengrant.xenstore import AsyncTransaction, AsyncXenStore, Permission

from .store_server import LinuxDevice, NarrowDevice, SocketDevice, StoreServer
from .worker import LONG

Pair = tuple[SocketDevice, socket.socket]
Test = Callable[[AsyncXenStore], Awaitable[None]]


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    async def within_deadline() -> None:
        async with asyncio.timeout(LONG):
            await coroutine

    asyncio.run(within_deadline(), debug=True)


def run_on(device: SocketDevice, test: Test) -> None:
    async def body() -> None:
        async with AsyncXenStore(device) as store:
            await test(store)

    run(body())


def left_on(server: StoreServer) -> tuple[int, int]:
    """Watches and transactions that the server knows of."""

    def count() -> tuple[int, int]:
        connections = server.store.connections
        return sum(len(c._watches) for c in connections), sum(len(c._transactions) for c in connections)

    return server.call(count)


def test_every_call(server: StoreServer) -> None:
    async def test(store: AsyncXenStore) -> None:
        await store.write("data/a", "1")
        assert await store.read("data/a") == b"1"
        await store.mkdir("data/d/e")
        assert await store.directory("data") == ["a", "d"]
        assert await store.exists("data/d")
        await store.rm("data/d")
        assert not await store.exists("data/d")
        await store.set_permissions("data/a", [Permission(1, "r")])
        assert await store.get_permissions("data/a") == [Permission(1, "r")]
        assert await store.get_domain_path(1) == "/local/domain/1"

    run_on(server.device(1), test)


def test_errors_are_as_explained_as_the_blocking_ones(server: StoreServer) -> None:
    async def test(store: AsyncXenStore) -> None:
        with pytest.raises(XenStoreError, match="domain 0 owns name") as caught:
            await store.write("name", "x")
        assert (caught.value.errno, caught.value.path) == (errno.EACCES, "name")
        with pytest.raises(XenStoreError, match="only dom0 may ask"):
            await store.is_domain_introduced(2)
        with pytest.raises(XenStoreError, match="only dom0 may ask"):
            await store.watch("@releaseDomain")

    run_on(server.device(1), test)


def test_many_requests_at_once_get_their_own_answers(server: StoreServer) -> None:
    async def test(store: AsyncXenStore) -> None:
        async def work(i: int) -> None:
            await store.write(f"data/{i}", str(i))
            assert await store.read(f"data/{i}") == str(i).encode()

        await asyncio.gather(*(work(i) for i in range(50)))

    run_on(server.device(1), test)


def test_transactions(server: StoreServer) -> None:
    async def test(store: AsyncXenStore) -> None:
        async with await store.transaction() as transaction:
            await transaction.write("data/a", "1")
            assert not await store.exists("data/a")
        assert await store.read("data/a") == b"1"
        with pytest.raises(InterfaceClosed):
            await transaction.read("data/a")
        transaction = await store.transaction()
        await transaction.write("data/b", "1")
        await transaction.abort()
        await transaction.abort()
        assert not await store.exists("data/b")
        assert left_on(server) == (0, 0)

    run_on(server.device(1), test)


def test_a_transaction_is_dropped_after_an_error(server: StoreServer) -> None:
    async def test(store: AsyncXenStore) -> None:
        async def fail() -> None:
            async with await store.transaction() as transaction:
                await transaction.write("data/a", "1")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()
        assert not await store.exists("data/a")
        assert left_on(server) == (0, 0)

    run_on(server.device(1), test)


def test_run_transaction_counts_exactly(server: StoreServer) -> None:
    async def test(store: AsyncXenStore) -> None:
        await store.write("data/n", "0")

        async def add(transaction: AsyncTransaction) -> int:
            value = int(await transaction.read("data/n")) + 1
            await transaction.write("data/n", str(value))
            return value

        seen = await asyncio.gather(*(store.run_transaction(add, attempts=1000) for _ in range(8)))
        assert sorted(seen) == list(range(1, 9))

    run_on(server.device(1), test)


def test_run_transaction_gives_up(server: StoreServer) -> None:
    async def test(store: AsyncXenStore) -> None:
        async def meet(transaction: AsyncTransaction) -> None:
            await transaction.exists("data/a")
            await store.write("data/a", "1")

        with pytest.raises(XenStoreError, match="2 transactions in a row"):
            await store.run_transaction(meet, attempts=2)

    run_on(server.device(1), test)


def test_watches_are_iterated(server: StoreServer) -> None:
    async def test(store: AsyncXenStore) -> None:
        seen = []
        async with await store.watch("data") as watch:
            async for path in watch:
                seen.append(path)
                if len(seen) == 3:
                    break
                await store.write(f"data/{len(seen)}", "1")
            assert seen == ["data", "data/1", "data/2"]
            with pytest.raises(TimeoutError, match="nothing changed at data"):
                await watch.wait(0.01)
        await store.read("domid")
        assert left_on(server) == (0, 0)
        with pytest.raises(InterfaceClosed):
            await watch.wait()

    run_on(server.device(1), test)


def test_each_event_goes_to_one_of_those_who_wait(server: StoreServer) -> None:
    async def test(store: AsyncXenStore) -> None:
        async with await store.watch("data") as watch:
            await watch.wait()
            waiting = [asyncio.create_task(watch.wait()) for _ in range(3)]
            cancelled = asyncio.create_task(watch.wait())
            await asyncio.sleep(0)
            cancelled.cancel()
            for i in range(3):
                await store.write(f"data/{i}", "1")
            assert sorted(await asyncio.gather(*waiting)) == ["data/0", "data/1", "data/2"]

    run_on(server.device(1), test)


def test_a_watch_that_is_closed_ends_its_wait(server: StoreServer) -> None:
    async def test(store: AsyncXenStore) -> None:
        watch = await store.watch("data")
        await watch.wait()
        waiting = asyncio.create_task(watch.wait())
        await asyncio.sleep(0)
        watch.close()
        with pytest.raises(InterfaceClosed):
            await waiting

    run_on(server.device(1), test)


@pytest.mark.parametrize("call", ["read", "watch", "transaction"])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_a_cancelled_call_leaves_nothing_behind(server: StoreServer, call: str, turns: int) -> None:
    """Cancelled before it is sent, before the answer, and with the answer already there."""

    async def test(store: AsyncXenStore) -> None:
        calls: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
            "read": lambda: store.read("domid"),
            "watch": lambda: store.watch("data"),
            "transaction": store.transaction,
        }
        task = asyncio.create_task(calls[call]())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            return  # it was done before
        assert await store.read("name") == b"one"
        assert await store.read("name") == b"one"
        assert left_on(server) == (0, 0)
        assert not store._waiting
        assert not store._codec._requests

    run_on(server.device(1), test)


@pytest.mark.parametrize(("operation", "answer"), [(Operation.WATCH, b"OK\0"), (Operation.TRANSACTION_START, b"7\0")])
def test_an_answer_that_meets_the_cancelling(pair: Pair, operation: Operation, answer: bytes) -> None:
    async def test(store: AsyncXenStore) -> None:
        task: asyncio.Task[object]
        if operation == Operation.WATCH:
            task = asyncio.create_task(store.watch("data"))
        else:
            task = asyncio.create_task(store.transaction())
        await asyncio.sleep(0)
        pair[1].recv(4096)
        pair[1].send(xs_wire.pack_message(operation, 1, 0, answer))
        store._readable()  # the answer is there; the task has not run yet
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        undone = int.from_bytes(pair[1].recv(4096)[:4], "little")
        assert undone == (Operation.UNWATCH if operation == Operation.WATCH else Operation.TRANSACTION_END)

    run_on(pair[0], test)


def test_a_late_answer_is_dropped(pair: Pair) -> None:
    async def test(store: AsyncXenStore) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await store.read("domid")
        task = asyncio.create_task(store.read("name"))
        await asyncio.sleep(0)
        pair[1].send(xs_wire.pack_message(Operation.READ, 1, 0, b"late"))
        pair[1].send(xs_wire.pack_message(Operation.READ, 2, 0, b"mine"))
        assert await task == b"mine"

    run_on(pair[0], test)


def test_close_ends_every_wait(pair: Pair) -> None:
    async def test(store: AsyncXenStore) -> None:
        tasks = [asyncio.create_task(store.read("domid")) for _ in range(3)]
        await asyncio.sleep(0)
        store.close()
        store.close()
        assert store.closed
        for task in tasks:
            with pytest.raises(InterfaceClosed):
                await task
        with pytest.raises(InterfaceClosed):
            await store.read("domid")

    run_on(pair[0], test)


@pytest.mark.parametrize("unread", [True, False])
def test_the_servers_end_ends_every_wait(pair: Pair, unread: bool) -> None:
    """With unread requests the socket says ECONNRESET, else it is at its end."""

    async def test(store: AsyncXenStore) -> None:
        tasks = [asyncio.create_task(store.read("domid")) for _ in range(3)]
        await asyncio.sleep(0)
        if not unread:
            pair[1].recv(4096)
        pair[1].close()
        for task in tasks:
            with pytest.raises(InterfaceUnavailable, match="closed the connection"):
                await task
        with pytest.raises(InterfaceUnavailable):
            await store.read("domid")

    run_on(pair[0], test)


def test_a_lying_server_fails_everybody(pair: Pair) -> None:
    async def test(store: AsyncXenStore) -> None:
        tasks = [asyncio.create_task(store.read("domid")) for _ in range(3)]
        await asyncio.sleep(0)
        pair[1].send(xs_wire.pack_message(Operation.READ, 1, 0, b"1") + xs_wire.pack_message(2, 2, 0, bytes(4097)))
        assert await tasks[0] == b"1"
        for task in tasks[1:]:
            with pytest.raises(ProtocolError):
                await task
        with pytest.raises(ProtocolError):
            await store.read("domid")

    run_on(pair[0], test)


def test_a_device_that_takes_and_gives_a_few_bytes_at_a_time(server: StoreServer) -> None:
    async def test(store: AsyncXenStore) -> None:
        await asyncio.gather(*(store.write(f"data/{i}", bytes(500)) for i in range(5)))
        assert await store.read("data/3") == bytes(500)

    run_on(NarrowDevice(server.device(1).sock), test)


def test_the_kernels_device(server: StoreServer) -> None:
    device = LinuxDevice(server.device(1).sock)

    async def test(store: AsyncXenStore) -> None:
        async with await store.watch("data") as watch:
            assert await watch.wait() == "data"
        await asyncio.gather(store.watch("data"), *(store.write(f"data/{i}", "1") for i in range(5)))
        device.refuse = errno.E2BIG
        with pytest.raises(XenStoreError, match="no watch on data"):
            await store.watch("data")

    run_on(device, test)


def test_a_device_that_refuses_late(server: StoreServer) -> None:
    """When it was not ready at first, and write() then says what is wrong."""
    device = LinuxDevice(server.device(1).sock)

    async def test(store: AsyncXenStore) -> None:
        device.refuse = errno.EAGAIN
        task = asyncio.create_task(store.watch("data"))
        await asyncio.sleep(0)
        device.refuse = errno.E2BIG
        with pytest.raises(XenStoreError, match="no watch on data"):
            await task

    run_on(device, test)
