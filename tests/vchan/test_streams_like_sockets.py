"""What a protocol of asyncio is told by a vchan's transport, each beside what a socket's tells it."""

from __future__ import annotations

import asyncio
import tempfile
from typing import Any

import pytest

import xengrant

from .ends import Ends, InPlace, Recorder, run

BIG = 3_000_000  # more than any kernel's socket buffer, and any ring


@pytest.fixture(params=["socket", "vchan"])
def ends(request: pytest.FixtureRequest, granter: xengrant.Domain, mapper: xengrant.Domain) -> Ends:
    return Ends(request.param, granter, mapper)


def noise(size: int) -> bytes:
    return bytes(i * 7 % 251 for i in range(251)) * (size // 251 + 1)


def test_bytes_go_both_ways_and_a_close_is_an_end_of_file(ends: Ends) -> None:
    async def main() -> None:
        async with ends.pair() as (left, right):
            left.transport.write(b"from left")
            right.transport.write(bytearray(b"from "))
            right.transport.writelines([b"ri", memoryview(b"ght")])
            await left.until_received(10)
            await right.until_received(9)
            right.transport.close()
            assert right.transport.is_closing()
            await left.until_lost()
            await right.until_lost()
            assert left.received == b"from right"
            assert left.events == ["made", "data", "eof", "lost"]
            assert right.received == b"from left"
            assert right.events == ["made", "data", "lost"]
            assert left.transport.is_closing()

    run(main())


@pytest.mark.parametrize("protocol", [Recorder, InPlace])
def test_close_sends_what_was_to_be_sent_first(ends: Ends, protocol: type[Recorder]) -> None:
    async def main() -> None:
        async with ends.pair(right=protocol) as (left, right):
            data = noise(BIG)
            left.transport.write(data)
            assert left.is_paused
            left.transport.close()
            assert left.transport.is_closing()
            assert not left.transport.is_reading()
            await right.until_lost()
            assert right.received == data
            assert right.events == ["made", "data", "eof", "lost"]
            await left.until_lost()
            assert left.events in (["made", "pause", "lost"], ["made", "pause", "resume", "lost"])

    run(main())


def test_abort_sends_nothing_more(ends: Ends) -> None:
    async def main() -> None:
        async with ends.pair() as (left, right):
            right.transport.pause_reading()
            left.transport.write(noise(BIG))
            left.transport.abort()
            assert left.transport.is_closing()
            assert left.transport.get_write_buffer_size() == 0
            await left.until_lost()
            assert left.events == ["made", "pause", "lost"]
            right.transport.resume_reading()
            await right.until_lost()
            assert len(right.received) < BIG

    run(main())


def test_a_writer_is_paused_above_the_high_water_mark_and_resumed_at_the_low_one(ends: Ends) -> None:
    async def main() -> None:
        async with ends.pair() as (left, right):
            transport = left.transport
            assert transport.get_write_buffer_limits() == (16384, 65536)
            transport.set_write_buffer_limits(high=300_000, low=100_000)
            right.transport.pause_reading()
            written = 0
            while transport.get_write_buffer_size() <= 300_000:
                assert not left.is_paused
                transport.write(noise(50_000))
                written += len(noise(50_000))
                assert written < BIG
            assert left.is_paused
            right.transport.resume_reading()
            await left.until(lambda left: not left.is_paused, "the writer is resumed")
            assert transport.get_write_buffer_size() <= 100_000
            await right.until_received(written)
            assert transport.get_write_buffer_size() == 0
            assert left.events == ["made", "pause", "resume"]

    run(main())


def test_limits_that_cannot_be_are_refused(ends: Ends) -> None:
    async def main() -> None:
        async with ends.pair() as (left, _):
            with pytest.raises(ValueError, match="must be >= low"):
                left.transport.set_write_buffer_limits(high=1, low=2)
            left.transport.set_write_buffer_limits(low=10)
            assert left.transport.get_write_buffer_limits() == (10, 40)

    run(main())


def test_nothing_is_delivered_while_reading_is_paused(ends: Ends) -> None:
    async def main() -> None:
        async with ends.pair() as (left, right):
            right.transport.write(b"one")
            await left.until_received(3)
            left.transport.pause_reading()
            left.transport.pause_reading()
            assert not left.transport.is_reading()
            right.transport.write(b"two")
            right.transport.close()
            await right.until_lost()
            await settle()
            assert left.received == b"one"
            assert left.events == ["made", "data"]
            left.transport.resume_reading()
            left.transport.resume_reading()
            assert left.transport.is_reading()
            await left.until_lost()
            assert left.received == b"onetwo"
            assert left.events[-2:] == ["eof", "lost"]

    run(main())


async def settle() -> None:
    """Let the loop do all that it could do."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_reading_can_be_paused_before_it_began_and_within_a_callback(ends: Ends) -> None:
    class Hesitant(Recorder):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.pause_reading()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.pause_reading()

    async def main() -> None:
        async with ends.pair(left=Hesitant) as (left, right):
            right.transport.write(b"one")
            await settle()
            assert left.events == ["made"]
            left.transport.resume_reading()
            await left.until_received(3)
            right.transport.write(b"two")
            await settle()
            assert left.received == b"one"

    run(main())


@pytest.mark.parametrize("where", ["data_received", "eof_received", "get_buffer", "buffer_updated"])
def test_a_protocols_mistake_is_told_to_the_loop_and_ends_the_connection(ends: Ends, where: str) -> None:
    def fail(*args: object) -> None:
        raise LookupError("a mistake")

    async def main() -> None:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
        async with ends.pair(left=InPlace if where.startswith(("get", "buffer")) else Recorder) as (left, right):
            setattr(left, where, fail)
            right.transport.write(b"something")
            right.transport.close()
            await left.until_lost()
            assert left.events[-1] == "LookupError"
            (context,) = told
            assert context["message"] == f"Fatal error: protocol.{where}() call failed."
            assert isinstance(context["exception"], LookupError)
            assert context["transport"] is left.transport
            assert context["protocol"] is left

    run(main())


def test_an_empty_buffer_is_a_mistake(ends: Ends) -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        async with ends.pair(left=InPlace) as (left, right):
            left.buffer = bytearray()
            right.transport.write(b"something")
            await left.until_lost()
            assert left.events[-1] == "RuntimeError"
            assert "empty buffer" in str(left.lost_error)

    run(main())


def test_what_is_written_after_the_end_goes_nowhere_with_a_warning(
    ends: Ends, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with ends.pair() as (left, right):
            left.transport.close()
            for _ in range(10):
                left.transport.write(b"too late")
            await right.until_lost()
            assert right.received == b""

    run(main())
    assert [record.levelname for record in caplog.records][:1] == ["WARNING"]


def test_only_bytes_are_written(ends: Ends) -> None:
    async def main() -> None:
        async with ends.pair() as (left, right):
            with pytest.raises(TypeError, match="not 'str'"):
                left.transport.write("text")
            left.transport.write(b"")
            left.transport.write(b"end")
            await right.until_received(3)

    run(main())


def test_the_protocol_can_be_changed(ends: Ends) -> None:
    async def main() -> None:
        async with ends.pair() as (left, right):
            assert left.transport.get_protocol() is left
            other = InPlace()
            other.connection_made(left.transport)
            left.transport.set_protocol(other)
            assert left.transport.get_protocol() is other
            right.transport.write(b"for the other")
            await other.until_received(13)
            assert left.received == b""
            assert other.pieces
            left.transport.set_protocol(left)

    run(main())


def test_a_file_is_sent(ends: Ends) -> None:
    async def main() -> None:
        async with ends.pair() as (left, right):
            with tempfile.TemporaryFile() as file:
                file.write(noise(BIG))
                file.flush()
                file.seek(0)
                await asyncio.get_running_loop().sendfile(left.transport, file)
            await right.until_received(len(noise(BIG)))
            assert right.received == noise(BIG)

    run(main())


@pytest.mark.parametrize("buffer", [None, b"read-only"], ids=["none", "read-only"])
def test_a_buffer_that_cannot_be_read_into_is_a_mistake(ends: Ends, buffer: Any) -> None:
    async def main() -> None:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
        async with ends.pair(left=InPlace) as (left, right):
            left.buffer = buffer
            right.transport.write(b"something")
            await left.until_lost()
            assert left.events[-1] == "TypeError"
            assert left.pieces == 0
            (context,) = told
            assert context["exception"] is left.lost_error

    run(main())
