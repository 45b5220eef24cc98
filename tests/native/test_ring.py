"""The two ends of a ring of bytes, against a model, and against a peer that writes whatever it likes."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import struct
import threading
import time
from typing import Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xengrant._native import Descriptor, Doorbell, RingReader, RingWriter, ask_notify, take_notify
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


class _Bell:
    """A doorbell as an embedded machine's port has it: two sockets, each end's events in the other's."""

    def __init__(self) -> None:
        self.ends = socket.socketpair()
        self.life = socket.socketpair()
        self.here, self.there = (
            Doorbell(Descriptor(os.dup(end.fileno())), -1, Descriptor(os.dup(self.life[0].fileno())))
            for end in self.ends
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for end in (*self.ends, *self.life):
            end.close()


_LIVE, _ASKED, _BIT = 8, 9, 1
_READY, _GONE, _LATE, _WOKEN, _SILENT = range(5)


def _wait(
    ring: RingReader | RingWriter, doorbell: Doorbell, wanted: int = 1, timeout: float | None = 10, poll: int = 0
) -> int:
    return ring.wait(wanted, doorbell, _LIVE, _ASKED, _BIT, doorbell.wakes, poll, timeout)


def _live_memory() -> bytearray:
    memory = _memory()
    memory[_LIVE], memory[_ASKED] = 1, 0
    return memory


def test_a_wait_asks_to_be_told_and_ends_with_the_event() -> None:
    memory = _live_memory()
    reader, writer = _reader(memory), _writer(memory)
    with _Bell() as bell:
        assert _wait(reader, bell.here, timeout=0) == _LATE
        assert memory[_ASKED] == _BIT

        def answer() -> None:
            writer.write(b"x")
            assert take_notify(memory, _ASKED, _BIT)
            bell.there.ring()

        threading.Timer(0.05, answer).start()
        assert _wait(reader, bell.here) == _READY
        assert reader.read(10) == b"x"


def test_a_wait_ends_where_the_peer_is_gone_but_what_it_wrote_is_read() -> None:
    memory = _live_memory()
    reader, writer = _reader(memory), _writer(memory)
    with _Bell() as bell:
        writer.write(b"last")
        memory[_LIVE] = 0
        assert _wait(reader, bell.here, 4) == _READY
        assert _wait(reader, bell.here, 5) == _GONE
        assert reader.wait(5, bell.here, -1, _ASKED, _BIT, 0, 0, 0.01) == _LATE, "-1: nobody's end counts"


def test_a_wait_is_woken_and_ends_with_the_machine() -> None:
    memory = _live_memory()
    reader = _reader(memory)
    with _Bell() as bell:
        before = bell.here.wakes
        bell.here.wake()
        assert reader.wait(1, bell.here, _LIVE, _ASKED, _BIT, before, 0, 10) == _WOKEN
        threading.Timer(0.05, bell.here.wake).start()
        assert _wait(reader, bell.here) == _WOKEN
        bell.life[1].close()
        assert _wait(reader, bell.here) == _SILENT


def test_polling_sees_what_comes_without_an_event() -> None:
    memory = _live_memory()
    reader, writer = _reader(memory), _writer(memory)
    with _Bell() as bell:
        threading.Timer(0.05, writer.write, (b"x",)).start()
        assert _wait(reader, bell.here, poll=4_000_000_000, timeout=10) == _READY
        assert memory[_ASKED] == 0, "it asked to be told before it had polled"


def test_one_event_has_every_thread_look() -> None:
    """One thread leads and takes the events; the others must not miss one for that, nor its leaving."""
    size, rounds = 256, 100
    memory = _live_memory()
    other = bytearray(memory)
    reader, writer = _reader(memory), _writer(other)
    back_writer, back_reader = _writer(memory), _reader(other)
    with _Bell() as bell:
        outcomes: list[tuple[int, int]] = []

        def read() -> None:
            for _ in range(rounds):
                outcomes.append((0, _wait(reader, bell.here)))
                reader.read(1)

        def write() -> None:
            for _ in range(rounds):
                outcomes.append((1, _wait(writer, bell.here, size)))
                writer.write(b"y" * size)

        threads = [threading.Thread(target=read), threading.Thread(target=write)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 60
        while any(thread.is_alive() for thread in threads) and time.monotonic() < deadline:
            if back_writer.write(b"x") + back_reader.readinto(bytearray(size)):
                bell.there.ring()
        for thread in threads:
            thread.join(10)
        assert sorted(outcomes) == [(0, _READY)] * rounds + [(1, _READY)] * rounds


def test_a_signal_handler_runs_in_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = _live_memory()
    reader = _reader(memory)
    called: list[int] = []
    old = signal.signal(signal.SIGUSR1, lambda number, frame: called.append(number))
    try:
        with _Bell() as bell:
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            assert _wait(reader, bell.here) == _WOKEN
            assert called == [signal.SIGUSR1]

            class StopError(Exception):
                pass

            def stop(number: int, frame: object) -> None:
                raise StopError

            signal.signal(signal.SIGUSR1, stop)
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            with pytest.raises(StopError):
                _wait(reader, bell.here)
    finally:
        signal.signal(signal.SIGUSR1, old)


def test_a_lie_ends_a_wait_and_is_refused_by_the_call_that_follows() -> None:
    memory = _live_memory()
    reader = _reader(memory)
    with _Bell() as bell:
        struct.pack_into("<I", memory, 4, 5_000)
        assert _wait(reader, bell.here, 10) == _READY
        with pytest.raises(ProtocolError):
            reader.read(10)


@pytest.mark.parametrize("where", [{"live": 1000}, {"asked": 1000}, {"asked": -1}])
def test_a_wait_looks_nowhere_outside_the_buffer(where: dict[str, int]) -> None:
    reader = _reader(_live_memory())
    with _Bell() as bell, pytest.raises(IndexError, match="outside the buffer"):
        reader.wait(1, bell.here, where.get("live", _LIVE), where.get("asked", _ASKED), _BIT, 0, 0, 0)


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
