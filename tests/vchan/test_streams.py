"""Streams over vchan: bytes both ways at each size of ring, with either kind of peer, and how a connection ends."""

from __future__ import annotations

import asyncio
import gc
import random
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest

import xengrant
from xengrant import vchan
from xengrant._native import store32
from xengrant.abi import libxenvchan as abi
from xengrant.embedded import Machine

from .ends import LONG, Ends, Recorder, run
from .process import ClientProcess

SIZES = [1024, 4096, 65536, 1 << 20]


@pytest.fixture
def ends(granter: xengrant.Domain, mapper: xengrant.Domain) -> Ends:
    return Ends("vchan", granter, mapper)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def echoed(domain: xengrant.Domain, data: bytes, path: str = "echo") -> bytes:
    """What an echo server answers, read while it is written to."""
    reader, writer = await vchan.open_connection(1, path, domain=domain, timeout=LONG)

    async def send() -> None:
        for at in range(0, len(data), 50_000):
            writer.write(data[at : at + 50_000])
            await writer.drain()

    sending = asyncio.create_task(send())
    answer = await reader.readexactly(len(data))
    await sending
    writer.close()
    await writer.wait_closed()
    return answer


@pytest.mark.parametrize("size", SIZES)
def test_megabytes_go_both_ways(size: int, granter: xengrant.Domain, mapper: xengrant.Domain) -> None:
    async def main() -> None:
        async with await vchan.start_server(echo, 2, "echo", read_size=size, write_size=size, domain=granter):
            data = random.Random(size).randbytes(min(3_000_000, 500 * size))
            assert await echoed(mapper, data) == data

    run(main())


@pytest.mark.parametrize("size", SIZES)
def test_a_program_that_waits_talks_to_one_of_asyncio(
    size: int, granter: xengrant.Domain, mapper: xengrant.Domain
) -> None:
    data = random.Random(size).randbytes(min(3_000_000, 500 * size))

    def exchange(end: vchan.Vchan) -> bytes:
        with end:
            done = 0
            answer = b""
            while len(answer) < len(data):
                done += end.write(data[done : done + 1000], LONG) if done < len(data) else 0
                if done - len(answer) >= 1000 or done == len(data):
                    answer += end.read(timeout=LONG)
            return answer

    async def as_client() -> None:
        async with await vchan.start_server(echo, 2, "echo", read_size=size, write_size=size, domain=granter):
            end = await asyncio.to_thread(vchan.connect, 1, "echo", domain=mapper, timeout=LONG)
            assert await asyncio.to_thread(exchange, end) == data

    async def as_server() -> None:
        end = vchan.serve(1, "back", read_size=size, write_size=size, domain=mapper)
        exchanging = asyncio.create_task(asyncio.to_thread(exchange, end))
        reader, writer = await vchan.open_connection(2, "back", domain=granter, timeout=LONG)
        await echo(reader, writer)
        assert await exchanging == data

    run(as_client())
    run(as_server())


def test_readers_of_lines_and_of_what_is_exact(granter: xengrant.Domain, mapper: xengrant.Domain) -> None:
    async def main() -> None:
        async with await vchan.start_server(echo, 2, "echo", read_size=1024, write_size=1024, domain=granter):
            reader, writer = await vchan.open_connection(1, "echo", limit=3000, domain=mapper, timeout=LONG)
            writer.write(b"a line\nsome;" + b"x" * 2999 + b"\n" + b"y" * 4000 + b"\n")
            assert await reader.readline() == b"a line\n"
            assert await reader.readuntil(b";") == b"some;"
            assert await reader.readexactly(3000) == b"x" * 2999 + b"\n"
            with pytest.raises(ValueError, match="limit"):
                await reader.readline()
            writer.close()
            await writer.wait_closed()

    run(main())


def test_a_writer_that_waits_holds_little_and_a_reader_that_does_not_read_holds_its_limit(
    granter: xengrant.Domain, mapper: xengrant.Domain
) -> None:
    async def main() -> None:
        served: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Future()
        async with await vchan.start_server(
            lambda *pair: served.set_result(pair), 2, "slow", limit=10_000, domain=granter
        ):
            _, writer = await vchan.open_connection(1, "slow", domain=mapper, timeout=LONG)
            reader, other = await served
            reading: Any = other.transport
            sent = 0
            most = 0

            async def send() -> None:
                nonlocal sent, most
                for _ in range(300):
                    writer.write(bytes(10_000))
                    sent += 10_000
                    most = max(most, writer.transport.get_write_buffer_size())
                    await writer.drain()

            sending = asyncio.create_task(send())
            # Stuck: the reader wants no more, the ring is full, and the writer waits.
            writing: Any = writer.transport
            while reading.is_reading() or writing._channel.outgoing.space or not writing._protocol_paused:
                await asyncio.sleep(0)
            assert not sending.done()
            assert sent <= 20_000 + 65_536 + 65_536 + 65_536 + 10_000  # the reader's, one piece, the ring, the writer's
            received = 0
            while received < 3_000_000:
                received += len(await reader.read(5_000))
            await sending
            assert most <= 65_536 + 10_000
            for end in (writer, other):
                end.close()
                await end.wait_closed()

    run(main())


def test_what_a_client_wrote_before_it_left_is_read_and_then_the_end(
    granter: xengrant.Domain, mapper: xengrant.Domain
) -> None:
    async def main() -> None:
        got: asyncio.Future[bytes] = asyncio.Future()

        async def take_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            got.set_result(await reader.read())
            writer.close()
            await writer.wait_closed()

        async with await vchan.start_server(take_all, 2, "all", domain=granter):
            _, writer = await vchan.open_connection(1, "all", domain=mapper, timeout=LONG)
            writer.write(bytes(1_000_000))
            writer.close()
            await writer.wait_closed()
            assert len(await got) == 1_000_000

    run(main())


def test_a_client_that_is_killed_is_an_end_of_file(machine: Machine, ends: Ends) -> None:
    async def main() -> None:
        left = Recorder()
        async with await vchan.create_server(lambda: left, 2, "killed", domain=ends.server):
            with ClientProcess(machine.url(2), 1, "killed", "alive") as client:
                await left.until_received(5)
                client.kill()
                await left.until_lost()
            assert left.received == b"alive"
            assert left.events == ["made", "data", "eof", "lost"]

    run(main())


def test_what_nobody_will_read_is_an_error_at_the_end(machine: Machine, ends: Ends) -> None:
    async def main() -> None:
        left = Recorder()
        async with await vchan.create_server(lambda: left, 2, "killed", domain=ends.server):
            with ClientProcess(machine.url(2), 1, "killed", "alive") as client:
                await left.until_received(5)
                left.transport.write(bytes(1_000_000))
                client.kill()
                await left.until_lost()
            assert left.events == ["made", "data", "pause", "eof", "PeerClosed"]
            assert str(left.lost_error) == "[Errno 32] domain 2 has closed the vchan"

    run(main())


def test_an_answer_is_read_although_the_peer_left_without_reading_the_question(ends: Ends) -> None:
    """A writer that waits for room must not wait for the end, and the end comes after the answer."""

    async def main() -> None:
        answer = bytes(200_000)
        async with ends.pair(size=1 << 20) as (left, right):
            left.transport.pause_reading()
            right.transport.write(bytes(2_000_000))
            left.transport.write(answer)
            right.transport.pause_reading()
            left.transport.close()
            await right.until(lambda right: "resume" in right.events, "the writer goes on")
            assert not right.lost.is_set()
            right.transport.resume_reading()
            await right.until_lost()
            assert len(right.received) == len(answer)
            assert right.events[-2:] == ["eof", "PeerClosed"]

    run(main())


def test_a_writer_that_never_reads_learns_that_the_peer_left(ends: Ends) -> None:
    async def main() -> None:
        async with ends.pair() as (left, right):
            right.transport.pause_reading()
            left.transport.write(b"never read")
            left.transport.close()
            await left.until_lost()
            right.transport.write(b"one")
            assert not right.transport.is_closing()  # it may read first
            right.transport.write(b"two")
            await right.until_lost()
            assert right.events == ["made", "PeerClosed"]

    run(main())


def test_close_ends_although_the_peer_leaves_without_reading(ends: Ends) -> None:
    async def main() -> None:
        async with ends.pair() as (left, right):
            left.transport.pause_reading()
            right.transport.write(bytes(1_000_000))
            right.transport.close()
            left.transport.close()
            await right.until_lost()
            assert right.events == ["made", "pause", "PeerClosed"]

    run(main())


@pytest.mark.parametrize(
    ("index", "does"), [(abi.LEFT_PROD, "reads"), (abi.RIGHT_CONS, "writes")], ids=["producer", "consumer"]
)
def test_a_peer_that_lies_ends_the_connection(index: int, does: str, ends: Ends) -> None:
    async def main() -> None:
        async with ends.pair() as (left, right):
            channel = right.transport._channel
            store32(channel.control, index, 0x80000000)
            channel.port.notify()
            if does == "writes":
                left.transport.write(b"something")
            await left.until_lost()
            assert left.events == ["made", "ProtocolError"]
            assert "that cannot be" in str(left.lost_error)

    run(main())


def test_a_domain_that_dies_is_found_out_in_dom0_after_what_it_wrote(machine: Machine) -> None:
    async def main(domain: xengrant.Domain) -> None:
        left = Recorder()
        async with await vchan.create_server(lambda: left, 2, "dies", domain=domain):
            with ClientProcess(machine.url(2), 0, "dies", "last words"):
                await left.until(lambda left: left.transport, "the client has come")
                left.transport.pause_reading()
                machine.destroy(2)
                await left.transport._peer.wait_gone(LONG)
                assert not left.lost.is_set()
                left.transport.resume_reading()
                await left.until_lost()
            assert bytes(left.received) in (b"", b"last words")
            assert left.events[-1] == "PeerClosed"
            assert "eof" not in left.events

    with xengrant.connect(machine.url(0)) as domain:
        run(main(domain))


def test_a_guest_may_name_what_tells_of_the_other_domains_end(machine: Machine, ends: Ends) -> None:
    async def main() -> None:
        left, right = Recorder(), Recorder()
        async with (
            await vchan.create_server(lambda: left, 2, "named", domain=ends.server),
            ends.client.aio.peer(1, "data/vchan/2/named/ring-ref") as peer,
        ):
            await vchan.create_connection(lambda: right, 1, "named", peer=peer, domain=ends.client, timeout=LONG)
            with xengrant.connect(machine.url(0)) as dom0, dom0.xenstore() as store:
                store.rm("/local/domain/1/data")
            await right.until_lost()
            assert right.events == ["made", "PeerClosed"]
            await left.until_lost()

    run(main())


def test_a_machine_that_is_gone_ends_everything(ends: Ends) -> None:
    async def main(machine: Machine) -> None:
        left, right = Recorder(), Recorder()
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
        with xengrant.connect(machine.url(1)) as one, xengrant.connect(machine.url(2)) as two:
            server = await vchan.create_server(lambda: left, 2, "gone", domain=one)
            await vchan.create_connection(lambda: right, 1, "gone", domain=two, timeout=LONG)
            await left.until(lambda left: left.transport, "the client has come")
            await asyncio.to_thread(machine.close)
            await left.until_lost()
            await right.until_lost()
            for end in (left, right):  # a machine that ends clears the bytes that say who is there
                assert end.events[-1] in ("InterfaceUnavailable", "lost")
            with pytest.raises(xengrant.InterfaceUnavailable):
                await server.serve_forever()
            assert [context["message"].partition(" at ")[0] for context in told] == ["<VchanServer for domain 2"]
            assert not server.is_serving()
            await server.wait_closed()

    with Machine() as machine:
        run(main(machine))


def test_events_that_come_no_more_end_the_connection_after_what_there_is_to_read(ends: Ends) -> None:
    async def main() -> None:
        async with ends.pair() as (left, right):
            right.transport.write(b"last words")
            left.transport._port.close()
            await left.until_lost()
            assert left.received == b"last words"
            assert left.events == ["made", "data", "InterfaceClosed"]

    run(main())


def test_a_transport_says_whose_it_is(ends: Ends) -> None:
    async def main() -> None:
        async with ends.pair() as (left, right):
            info = {name: left.transport.get_extra_info(name) for name in ("domid", "path", "vchan_role", "peername")}
            path = "/local/domain/1/data/vchan/2/pair"
            assert info == {"domid": 2, "path": path, "vchan_role": "server", "peername": "domain 2"}
            assert left.transport.get_extra_info("socket", "none") == "none"
            assert right.transport.get_extra_info("vchan_role") == "client"
            text = f"<VchanTransport client to domain 1 at {path}, open, 0 bytes unsent>"
            assert repr(right.transport) == text
            right.transport.abort()
            await right.until_lost()
            assert "closed" in repr(right.transport)

    run(main())


def test_there_is_no_half_close(ends: Ends) -> None:
    async def main() -> None:
        async with ends.pair() as (left, _):
            assert not left.transport.can_write_eof()
            with pytest.raises(NotImplementedError, match="no half-closed state"):
                left.transport.write_eof()

    run(main())


def test_no_server_is_told_as_to_a_program_that_waits(ends: Ends) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError, match="offers this domain nothing there") as error:
            await vchan.open_connection(1, "nobody", timeout=0.01, domain=ends.client)
        with pytest.raises(TimeoutError, match=re.escape(str(error.value))):
            vchan.connect(1, "nobody", timeout=0.01, domain=ends.client)

    run(main())


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 5, 8, 13, 21, 34, 55])
def test_a_cancelled_connection_leaves_nothing(
    steps: int,
    machine: Machine,
    ends: Ends,
    eventually: Callable[[Callable[[], bool], Callable[[], str]], None],
) -> None:
    async def main() -> None:
        left = Recorder()
        async with await vchan.create_server(lambda: left, 2, "cancelled", domain=ends.server):
            connecting = asyncio.create_task(
                vchan.create_connection(Recorder, 1, "cancelled", domain=ends.client, timeout=LONG)
            )
            for _ in range(steps):
                await asyncio.sleep(0)
            connecting.cancel()
            try:
                transport, _ = await connecting
                transport.abort()
            except asyncio.CancelledError:
                pass

    run(main())
    for domain in (ends.server, ends.client):
        domain.close()
    eventually(lambda: not machine.leaks(), lambda: f"still in use: {machine.leaks()}")


def test_a_connection_that_is_cancelled_when_it_is_made_is_lost(ends: Ends) -> None:
    class Cancels(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            connecting[0].cancel()

    connecting: list[asyncio.Task[Any]] = []
    right = Cancels()

    async def main() -> None:
        async with await vchan.create_server(Recorder, 2, "cancelled", domain=ends.server):
            connecting.append(
                asyncio.create_task(
                    vchan.create_connection(lambda: right, 1, "cancelled", domain=ends.client, timeout=LONG)
                )
            )
            with pytest.raises(asyncio.CancelledError):
                await connecting[0]
            await right.until_lost()

    run(main())


def test_a_protocol_factory_that_fails_leaves_nothing(ends: Ends) -> None:
    def fail() -> asyncio.Protocol:
        raise LookupError("no protocol")

    async def main() -> None:
        left = Recorder()
        async with await vchan.create_server(lambda: left, 2, "none", domain=ends.server):
            with pytest.raises(LookupError):
                await vchan.create_connection(fail, 1, "none", domain=ends.client, timeout=LONG)
            await left.until_lost()

    run(main())


def test_a_connection_that_waits_for_its_server_is_cancelled(ends: Ends) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await vchan.open_connection(1, "nobody", domain=ends.client)

    run(main())


def test_without_a_domain_it_is_the_environments_and_is_closed_with_the_connection(
    machine: Machine, ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XENGRANT_URL", machine.url(2))

    async def main() -> None:
        async with await vchan.start_server(echo, 2, "env", domain=ends.server):
            reader, writer = await vchan.open_connection(1, "env", timeout=LONG)
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            writer.close()
            await writer.wait_closed()

    run(main())


def test_an_unclosed_transport_warns_and_leaves_nothing(
    machine: Machine,
    ends: Ends,
    eventually: Callable[[Callable[[], bool], Callable[[], str]], None],
) -> None:
    async def main() -> None:
        left = Recorder()
        server = await vchan.create_server(lambda: left, 2, "unclosed", domain=ends.server)
        await vchan.create_connection(Recorder, 1, "unclosed", domain=ends.client, timeout=LONG)
        await left.until(lambda left: left.transport, "the client has come")
        server.close()

    with warnings.catch_warnings(record=True) as warned:  # its descriptor's and memory's may come before
        warnings.simplefilter("always")
        run(main())
        gc.collect()
    texts = [str(warning.message) for warning in warned if issubclass(warning.category, ResourceWarning)]
    assert sum(text.startswith("unclosed transport <VchanTransport") for text in texts) == 2, texts
    warned.clear()  # which refers to the transports
    gc.collect()
    for domain in (ends.server, ends.client):
        domain.close()
    eventually(lambda: not machine.leaks(), lambda: f"still in use: {machine.leaks()}")
