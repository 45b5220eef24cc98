"""The two ends of a ring of bytes, against a model, and against a peer that writes whatever it likes."""

from __future__ import annotations

import contextlib
import gc
import struct
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xengrant._native import RingReader, RingWriter, ask_notify, take_notify
from xengrant.errors import ProtocolError

_START, _SIZE = 64, 256
_STARTS = [0, 5, 255, 2**31 - 3, 2**31, 2**32 - 300, 2**32 - 1]


def _memory(index: int = 0) -> bytearray:
    memory = bytearray(b"\xee" * (_START + _SIZE + 64))
    struct.pack_into("<II", memory, 0, index, index)
    return memory


def _reader(memory: bytearray) -> RingReader:
    return RingReader(memory, 0, 4, memory, _START, _SIZE)


def _writer(memory: bytearray) -> RingWriter:
    return RingWriter(memory, 0, 4, memory, _START, _SIZE)


@pytest.mark.parametrize("index", _STARTS)
@given(pieces=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300), st.booleans()), max_size=30))
def test_what_is_written_is_read_once_and_in_order(index: int, pieces: list[tuple[int, int, bool]]) -> None:
    memory = _memory(index)
    writer, reader = _writer(memory), _reader(memory)
    written, read, count = bytearray(), bytearray(), 0
    for to_write, to_read, in_place in pieces:
        data = bytes((count + i) % 251 for i in range(to_write))
        assert writer.space == _SIZE - (len(written) - len(read))
        if in_place:
            at, length = writer.reserve()
            took = min(length, to_write)
            memory[at : at + took] = data[:took]
            writer.commit(took)
        else:
            took = writer.write(data)
            assert took == min(to_write, _SIZE - (len(written) - len(read)))
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
    assert reader.read(_SIZE) == written[len(read) :]
    assert (reader.cons, writer.prod) == ((index + count) % 2**32,) * 2
    assert set(memory[8:_START] + memory[_START + _SIZE :]) == {0xEE}, "bytes outside the ring changed"


@given(
    lies=st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)), max_size=20),
    own=st.integers(0, 2**32 - 1),
)
def test_whatever_the_peer_says_is_bounded(lies: list[tuple[int, int]], own: int) -> None:
    memory = _memory(own)
    writer, reader = _writer(memory), _reader(memory)
    into = bytearray(1000)
    for cons, prod in lies:
        struct.pack_into("<II", memory, 0, cons, prod)
        with contextlib.suppress(ProtocolError):
            assert reader.readinto(into) <= _SIZE
        struct.pack_into("<II", memory, 0, cons, prod)
        with contextlib.suppress(ProtocolError):
            assert writer.write(b"y" * 1000) <= _SIZE
    assert set(memory[8:_START] + memory[_START + _SIZE :]) == {0xEE}, "bytes outside the ring changed"


def test_an_index_that_runs_backwards_or_too_far_is_refused() -> None:
    memory = _memory(1000)
    reader, writer = _reader(memory), _writer(memory)
    writer.write(b"x" * 100)
    assert reader.ready == 100
    struct.pack_into("<I", memory, 4, 1099)
    with pytest.raises(ProtocolError, match=r"producer index .* is 1099, where ours is 1000"):
        _ = reader.ready
    struct.pack_into("<I", memory, 4, 1000 + _SIZE + 1)
    with pytest.raises(ProtocolError, match="producer"):
        reader.read(1)
    for cons in (999, 1101):
        struct.pack_into("<I", memory, 0, cons)
        with pytest.raises(ProtocolError, match="consumer"):
            writer.write(b"x")
    struct.pack_into("<II", memory, 0, 0, _SIZE + 1)
    for end in (_reader, _writer):
        with pytest.raises(ProtocolError):
            end(memory)


def test_no_more_is_consumed_or_committed_than_was_seen() -> None:
    memory = _memory()
    writer, reader = _writer(memory), _reader(memory)
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
    memory = _memory()
    cons, prod, start, size = arguments
    with pytest.raises(ValueError, match="ring"):
        RingReader(memory, cons, prod, memory, start, size)


def test_a_ring_lets_go_of_its_buffers_between_calls() -> None:
    memory = _memory()
    writer, reader = _writer(memory), _reader(memory)
    writer.write(b"x")
    memory.extend(b"more")  # BufferError were it still exported
    del memory[_START:]
    with pytest.raises(ValueError, match="does not lie in its buffers"):
        reader.read(1)


def test_a_writer_needs_writable_memory() -> None:
    memory = bytes(_memory())
    with pytest.raises((TypeError, BufferError)):
        RingWriter(memory, 0, 4, memory, _START, _SIZE)


def test_the_ring_is_collected_with_its_buffers() -> None:
    class Memory(bytearray):
        pass

    memory = Memory(_memory())
    memory.ring = _reader(memory)  # type: ignore[attr-defined]
    gone = threading.Event()
    memory.gone = type("Gone", (), {"__del__": lambda self: gone.set()})()  # type: ignore[attr-defined]
    del memory
    gc.collect()
    assert gone.is_set()


def test_two_threads_at_once_in_one_end_are_told() -> None:
    memory = _memory()
    reader = _reader(memory)
    seen: list[type[BaseException]] = []
    spinning = threading.Thread(target=reader.spin, args=(1, 1_000_000_000))
    spinning.start()
    while spinning.is_alive() and not seen:
        try:
            _ = reader.ready
        except RuntimeError as error:
            seen.append(type(error))
    _writer(memory).write(b"x")  # ends the spinning
    spinning.join(10)
    assert seen == [RuntimeError]


def test_two_threads_stream_megabytes_without_a_lock() -> None:
    """Each end in its own thread, larger pieces without the GIL: every byte once, and in order."""
    size = 1 << 18
    memory = bytearray(4096 + size)
    writer, reader = RingWriter(memory, 0, 4, memory, 4096, size), RingReader(memory, 0, 4, memory, 4096, size)
    data = bytes(range(251)) * (1 << 16)
    got = bytearray()

    def read() -> None:
        while len(got) < len(data) and reader.spin(1, 2_000_000_000):
            got.extend(reader.read(100_000))

    reading = threading.Thread(target=read)
    reading.start()
    at = 0
    while at < len(data) and writer.spin(1, 2_000_000_000):
        at += writer.write(memoryview(data)[at : at + 77_777])
    reading.join(30)
    assert got == data


def test_notify_bits_are_asked_for_and_taken_once() -> None:
    memory = bytearray(4)
    ask_notify(memory, 2, 1)
    ask_notify(memory, 2, 2)
    assert memory == b"\0\0\3\0"
    assert take_notify(memory, 2, 1)
    assert not take_notify(memory, 2, 1)
    assert memory == b"\0\0\2\0"
    for function in (ask_notify, take_notify):
        with pytest.raises(IndexError, match="offset 4"):
            function(memory, 4, 1)
