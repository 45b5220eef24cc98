"""Streams over vchan: bytes both ways at each size of ring, with either kind of peer, and nobody holding too many."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

import xengrant
from xengrant import vchan

from .ends import LONG, Ends, run

SIZES = [1024, 4096, 65536, 1 << 20]


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


def test_a_buffer_that_is_changed_after_the_write_does_not_matter(
    granter: xengrant.Domain, mapper: xengrant.Domain
) -> None:
    """The sockets of asyncio keep what is still to be sent in the caller's own buffer, from Python 3.12 on."""

    async def main() -> None:
        async with Ends("vchan", granter, mapper).pair() as (left, right):
            right.transport.pause_reading()
            data = bytearray(b"a" * 1_000_000)
            left.transport.write(data)
            data[:] = b"b" * len(data)
            right.transport.resume_reading()
            await right.until_received(len(data))
            assert right.received.count(b"a") == len(data)

    run(main())
