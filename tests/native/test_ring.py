"""The two ends of a ring of bytes, against a model, and against a peer that writes whatever it likes."""

from __future__ import annotations

import contextlib
import gc
import struct
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xengrant._native import RingReader, RingWriter
from xengrant.errors import ProtocolError

from .rings import SIZE, START, ring_memory, ring_reader, ring_writer

_STARTS = [0, 5, 255, 2**31 - 3, 2**31, 2**32 - 300, 2**32 - 1]


@pytest.mark.parametrize("index", _STARTS)
@given(pieces=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300), st.booleans()), max_size=30))
def test_what_is_written_is_read_once_and_in_order(index: int, pieces: list[tuple[int, int, bool]]) -> None:
    memory = ring_memory(index)
    writer, reader = ring_writer(memory), ring_reader(memory)
    written, read, count = bytearray(), bytearray(), 0
    for to_write, to_read, in_place in pieces:
        data = bytes((count + i) % 251 for i in range(to_write))
        assert writer.space == SIZE - (len(written) - len(read))
        if in_place:
            at, length = writer.reserve()
            took = min(length, to_write)
            memory[at : at + took] = data[:took]
            writer.commit(took)
        else:
            took = writer.write(data)
            assert took == min(to_write, SIZE - (len(written) - len(read)))
        written += data[:took]
        count += took
        assert reader.ready == len(written) - len(read)
        if in_place:
            at, length = reader.peek()
            got = bytes(memory[at : at + min(length, to_read)])
            reader.consume(len(got))
        else:
            got = reader.read(to_read)
            assert len(got) == min(to_read, len(written) - len(read))
        read += got
    assert written.startswith(read)
    assert reader.read(SIZE) == written[len(read) :]
    assert (reader.cons, writer.prod) == ((index + count) % 2**32,) * 2
    assert set(memory[8:START] + memory[START + SIZE :]) == {0xEE}, "bytes outside the ring changed"


@given(
    lies=st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)), max_size=20),
    own=st.integers(0, 2**32 - 1),
)
def test_whatever_the_peer_says_is_bounded(lies: list[tuple[int, int]], own: int) -> None:
    memory = ring_memory(own)
    writer, reader = ring_writer(memory), ring_reader(memory)
    into = bytearray(1000)
    for cons, prod in lies:
        struct.pack_into("<II", memory, 0, cons, prod)
        with contextlib.suppress(ProtocolError):
            assert reader.readinto(into) <= SIZE
        struct.pack_into("<II", memory, 0, cons, prod)
        with contextlib.suppress(ProtocolError):
            assert writer.write(b"y" * 1000) <= SIZE
    assert set(memory[8:START] + memory[START + SIZE :]) == {0xEE}, "bytes outside the ring changed"


def test_an_index_that_runs_backwards_or_too_far_is_refused() -> None:
    memory = ring_memory(1000)
    reader, writer = ring_reader(memory), ring_writer(memory)
    writer.write(b"x" * 100)
    assert reader.ready == 100
    struct.pack_into("<I", memory, 4, 1099)
    with pytest.raises(ProtocolError, match=r"producer index .* is 1099, where ours is 1000"):
        _ = reader.ready
    struct.pack_into("<I", memory, 4, 1000 + SIZE + 1)
    with pytest.raises(ProtocolError, match="producer"):
        reader.read(1)
    for cons in (999, 1101):
        struct.pack_into("<I", memory, 0, cons)
        with pytest.raises(ProtocolError, match="consumer"):
            writer.write(b"x")
    struct.pack_into("<II", memory, 0, 0, SIZE + 1)
    for end in (ring_reader, ring_writer):
        with pytest.raises(ProtocolError):
            end(memory)


def test_no_more_is_consumed_or_committed_than_was_seen() -> None:
    memory = ring_memory()
    writer, reader = ring_writer(memory), ring_reader(memory)
    writer.write(b"hello")
    with pytest.raises(ValueError, match="cannot consume 1 bytes: 0 were seen ready"):
        reader.consume(1)
    reader.peek()
    for wrong in (6, -1):
        with pytest.raises(ValueError, match="cannot consume"):
            reader.consume(wrong)
    with pytest.raises(ValueError, match="cannot commit 252 bytes: 251 were seen free"):
        writer.commit(252)


@pytest.mark.parametrize(
    "arguments",
    [(0, 2, 64, 256), (-4, 4, 64, 256), (0, 4, 64, 255), (0, 4, 64, 0), (0, 4, 129, 256), (382, 4, 64, 256)],
)
def test_a_ring_that_does_not_lie_in_its_buffers_is_refused(arguments: tuple[int, int, int, int]) -> None:
    memory = ring_memory()
    cons, prod, start, size = arguments
    with pytest.raises(ValueError, match="ring"):
        RingReader(memory, cons, prod, memory, start, size)


def test_a_ring_lets_go_of_its_buffers_between_calls() -> None:
    memory = ring_memory()
    writer, reader = ring_writer(memory), ring_reader(memory)
    writer.write(b"x")
    memory.extend(b"more")  # BufferError were it still exported
    del memory[START:]
    with pytest.raises(ValueError, match="does not lie in its buffers"):
        reader.read(1)


def test_a_writer_needs_writable_memory() -> None:
    memory = bytes(ring_memory())
    with pytest.raises((TypeError, BufferError)):
        RingWriter(memory, 0, 4, memory, START, SIZE)


def test_the_ring_is_collected_with_its_buffers() -> None:
    class Memory(bytearray):
        pass

    memory = Memory(ring_memory())
    memory.ring = ring_reader(memory)  # type: ignore[attr-defined]
    gone = threading.Event()
    memory.gone = type("Gone", (), {"__del__": lambda self: gone.set()})()  # type: ignore[attr-defined]
    del memory
    gc.collect()
    assert gone.is_set()


def test_threads_in_one_end_take_turns() -> None:
    """Copies of this size are made without the GIL: were two at it at once, bytes would come twice."""
    size = 1 << 20
    memory = bytearray(4096 + size)
    writer, reader = RingWriter(memory, 0, 4, memory, 4096, size), RingReader(memory, 0, 4, memory, 4096, size)
    writer.write(bytes(i >> 14 & 0xFF for i in range(size)))
    taken: list[bytes] = []

    def take() -> None:
        while data := reader.read(1 << 14):
            taken.append(data)
            assert reader.ready <= size

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(map(bytes, taken)) == [bytes([i]) * (1 << 14) for i in range(64)]
