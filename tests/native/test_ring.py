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
from collections.abc import Iterator
from typing import Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xengrant._native import Descriptor, Doorbell, RingReader, RingWriter, Stream
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


# Where this end's peer is live, where this end asks to be told, and where the peer does.
_LIVE, _ASK, _ASKED = 8, 9, 10
_GONE, _LATE, _WOKEN, _SILENT = range(1, 5)


def _live_memory() -> bytearray:
    memory = _memory()
    memory[_LIVE], memory[_ASK], memory[_ASKED] = 1, 0, 0
    return memory


def _bound_reader(memory: bytearray, doorbell: Doorbell, *, live: int = _LIVE, poll: float = 0.0) -> RingReader:
    reader = _reader(memory)
    reader.bind(doorbell, live, _ASK, _ASKED, poll)
    return reader


def _peers_writer(memory: bytearray, doorbell: Doorbell) -> RingWriter:
    """The other end, which looks at the other end's bytes."""
    writer = _writer(memory)
    writer.bind(doorbell, _LIVE, _ASKED, _ASK, 0.0)
    return writer


def test_a_wait_asks_to_be_told_and_ends_with_the_event() -> None:
    memory = _live_memory()
    with _Bell() as bell:
        reader, writer = _bound_reader(memory, bell.here), _peers_writer(memory, bell.there)
        assert reader.wait(1, 0) == _LATE
        assert memory[_ASK] == 1
        writing = threading.Timer(0.05, writer.write, (b"x",))
        writing.start()
        assert reader.receive(10, False, 10) == b"x"
        writing.join()
        assert memory[_ASK] == 0, "the writer was asked, and told"


def test_whoever_does_not_ask_is_not_told() -> None:
    memory = _live_memory()
    with _Bell() as bell:
        _peers_writer(memory, bell.there).write(b"x")
        assert bell.here.wait(bell.here.changes, 0.02) == 1
        memory[_ASK] = 3
        _peers_writer(memory, bell.there).write(b"y")
        assert bell.here.wait(bell.here.changes, 10) == 0
        assert memory[_ASK] == 2


def test_a_wait_ends_where_the_peer_is_gone_but_what_it_wrote_is_read() -> None:
    memory = _live_memory()
    with _Bell() as bell:
        reader, writer = _bound_reader(memory, bell.here), _peers_writer(memory, bell.there)
        writer.write(b"last")
        memory[_LIVE] = 0
        assert reader.receive(4, True, 10) == b"last"
        assert reader.receive(1, False, 10) == _GONE
        assert writer.send(b"x", 0, True, 10) == (0, _GONE)
        reader.bind(bell.here, -1, _ASK, _ASKED, 0)
        assert reader.receive_into(bytearray(5), 0, False, 0.01) == (0, _LATE), "-1: nobody's end counts"


def test_a_message_is_moved_whole_or_not_at_all() -> None:
    memory = _live_memory()
    with _Bell() as bell:
        reader, writer = _bound_reader(memory, bell.here), _peers_writer(memory, bell.there)
        assert writer.send(b"a" * 200, 0, True, 0) == 200
        assert writer.send(b"b" * 57, 0, True, 0) == (0, _LATE)
        assert reader.receive(201, True, 0) == _LATE
        assert writer.send(b"b" * 57, 0, False, 0) == (56, _LATE)
        assert reader.receive(256, True, 0) == b"a" * 200 + b"b" * 56
        for call in (lambda: writer.send(b"x" * 257, 0, True, 0), lambda: reader.receive(257, True, 0)):
            with pytest.raises(ValueError, match="257 bytes at once do not fit in a ring of 256"):
                call()
        for start in (-1, 4):
            with pytest.raises(ValueError, match="lies outside 3 bytes"):
                writer.send(b"abc", start, False, 0)


def test_a_stream_larger_than_the_ring_is_one_call() -> None:
    memory = _live_memory()
    data = bytes(range(256)) * 40
    got = bytearray()
    with _Bell() as bell:
        reader, writer = _bound_reader(memory, bell.here), _peers_writer(memory, bell.there)

        def read() -> None:
            buffer = bytearray(100)
            while len(got) < len(data):
                count = reader.receive_into(buffer, 0, False, 10)
                assert isinstance(count, int)
                got.extend(buffer[:count])

        reading = threading.Thread(target=read)
        reading.start()
        assert writer.send(data, 0, False, 20) == len(data)
        reading.join(10)
    assert got == data


def test_a_wait_is_woken_and_ends_with_the_machine() -> None:
    memory = _live_memory()
    with _Bell() as bell:
        reader = _bound_reader(memory, bell.here)
        bell.here.wake()
        assert reader.wait(1, 10) == _WOKEN, "also for a wake before the wait"
        threading.Timer(0.05, bell.here.wake).start()
        assert reader.receive(1, True, 10) == _WOKEN
        bell.life[1].close()
        assert reader.wait(1, 10) == _SILENT


def test_polling_sees_what_comes_without_an_event() -> None:
    memory = _live_memory()
    with _Bell() as bell:
        reader, writer = _bound_reader(memory, bell.here, poll=4.0), _writer(memory)
        threading.Timer(0.05, writer.write, (b"x",)).start()
        assert reader.wait(1, 10) == 0
        assert memory[_ASK] == 0, "it asked to be told before it had polled"
        for wrong in (-1.0, float("nan"), 1e9):
            with pytest.raises(ValueError, match="poll is a number of seconds"):
                reader.bind(bell.here, _LIVE, _ASK, _ASKED, wrong)


def test_one_event_has_every_thread_look() -> None:
    """One thread leads and takes the events; the others must not miss one for that, nor its leaving."""
    rounds = 100
    memory, other = _live_memory(), _live_memory()
    with _Bell() as bell:
        reader, back_writer = _bound_reader(memory, bell.here), _peers_writer(memory, bell.there)
        writer, back_reader = _writer(other), _reader(other)
        writer.bind(bell.here, _LIVE, _ASK, _ASKED, 0)
        back_reader.bind(bell.there, _LIVE, _ASKED, _ASK, 0)
        done: list[object] = []

        def read() -> None:
            done.append([reader.receive(1, True, 20) for _ in range(rounds)] == [b"x"] * rounds)

        def write() -> None:
            done.append([writer.send(b"y" * _SIZE, 0, True, 20) for _ in range(rounds)] == [_SIZE] * rounds)

        threads = [threading.Thread(target=read), threading.Thread(target=write)]
        for thread in threads:
            thread.start()
        buffer = bytearray(_SIZE)
        deadline = time.monotonic() + 60
        while any(thread.is_alive() for thread in threads) and time.monotonic() < deadline:
            back_writer.write(b"x")
            back_reader.readinto(buffer)
            time.sleep(0)
        for thread in threads:
            thread.join(30)
        assert done == [True, True]


def test_a_signal_handler_runs_in_a_wait() -> None:
    memory = _live_memory()
    called: list[int] = []
    old = signal.signal(signal.SIGUSR1, lambda number, frame: called.append(number))
    try:
        with _Bell() as bell:
            reader = _bound_reader(memory, bell.here)
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            assert (reader.wait(1, 1), called) == (_LATE, [signal.SIGUSR1])

            class StopError(Exception):
                pass

            def stop(number: int, frame: object) -> None:
                raise StopError

            signal.signal(signal.SIGUSR1, stop)
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            with pytest.raises(StopError):
                reader.receive(1, True, 10)
    finally:
        signal.signal(signal.SIGUSR1, old)


def test_a_signal_handler_may_use_the_end_that_its_thread_waits_on() -> None:
    """What the call under way has moved is that call's own: else its next copy begins elsewhere."""
    memory = _live_memory()
    old = signal.getsignal(signal.SIGUSR1)
    try:
        with _Bell() as bell:
            writer = _peers_writer(memory, bell.there)
            reader = _bound_reader(memory, bell.here)
            taken: list[object] = []

            def take(number: int, frame: object) -> None:
                reader.readinto(bytearray(50))
                taken.append(writer.send(b"z" * 60, 0, False, 0))

            signal.signal(signal.SIGUSR1, take)
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            assert writer.send(b"a" * 300, 0, False, 0.5) == (256, _LATE)
            assert taken == [(50, _LATE)]
            assert reader.read(1000) == b"a" * 206 + b"z" * 50
    finally:
        signal.signal(signal.SIGUSR1, old)


def test_events_without_end_do_not_prolong_a_wait() -> None:
    memory = _live_memory()
    with _Bell() as bell, open("/dev/zero", "rb") as always:
        for doorbell in (Doorbell(Descriptor(os.dup(always.fileno())), 1, None), bell.here):
            bell.ends[1].close()  # which polls as hung up, for ever
            started = time.monotonic()
            assert _bound_reader(memory, doorbell).wait(1, 0.1) == _LATE
            assert time.monotonic() - started < 5


def test_a_turn_is_waited_for_no_longer_than_asked_and_never_inherited() -> None:
    memory = _live_memory()
    with _Bell() as bell:
        stream = Stream(_bound_reader(memory, bell.here), _writer(memory))
        with stream_turn(stream, memory, bell):
            started = time.monotonic()
            with pytest.raises(TimeoutError, match="another thread"):
                stream.read(1, 0.05)
            assert time.monotonic() - started < 5
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    stream.read(1, 0)
                except AttributeError:  # it had a turn, and went on: to the subclass's method
                    status = 0
                finally:
                    os._exit(status)
            assert os.waitpid(child, 0)[1] == 0


@contextlib.contextmanager
def stream_turn(stream: Stream, memory: bytearray, bell: _Bell) -> Iterator[None]:
    """Another thread is in `stream.read`, and waits there."""
    reading = threading.Thread(target=lambda: stream.read(1, 30))
    reading.start()
    deadline = time.monotonic() + 20
    while memory[_ASK] == 0:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    try:
        yield
    finally:
        _peers_writer(memory, bell.there).write(b"x")
        reading.join(20)


def test_a_lie_ends_a_wait_and_is_refused() -> None:
    memory = _live_memory()
    with _Bell() as bell:
        reader = _bound_reader(memory, bell.here)
        struct.pack_into("<I", memory, 4, 5_000)
        for call in (lambda: reader.receive(10, True, 10), lambda: reader.receive_into(bytearray(10), 0, False, 10)):
            with pytest.raises(ProtocolError):
                call()


@pytest.mark.parametrize("where", [(1000, _ASK, _ASKED), (_LIVE, 1000, _ASKED), (_LIVE, -1, _ASKED), (_LIVE, _ASK, -1)])
def test_a_wait_looks_nowhere_outside_the_buffer(where: tuple[int, int, int]) -> None:
    reader = _reader(_live_memory())
    with _Bell() as bell, pytest.raises(IndexError, match="outside the buffer"):
        reader.bind(bell.here, *where, 0)


def test_an_end_without_a_doorbell_does_not_wait() -> None:
    reader, writer = _reader(_memory()), _writer(_memory())
    for call in (lambda: reader.wait(1, 0), lambda: reader.receive(1, False, 0), lambda: writer.send(b"", 0, False, 0)):
        with pytest.raises(ValueError, match="no doorbell"):
            call()
