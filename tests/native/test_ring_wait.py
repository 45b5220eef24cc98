"""Ends of a ring that wait: events, signals, turns, and what ends a wait."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from xengrant._native import Descriptor, Doorbell, RingWriter, Stream
from xengrant.errors import ProtocolError

from .rings import (
    ASK,
    ASKED,
    GONE,
    LATE,
    LIVE,
    SILENT,
    SIZE,
    START,
    WOKEN,
    Bell,
    bound_reader,
    live_memory,
    peers_writer,
    ring_memory,
    ring_reader,
    ring_writer,
)


def test_a_wait_asks_to_be_told_and_ends_with_the_event() -> None:
    memory = live_memory()
    with Bell() as bell:
        reader, writer = bound_reader(memory, bell.here), peers_writer(memory, bell.there)
        assert reader.wait(1, 0) == LATE
        assert memory[ASK] == 1
        writing = threading.Timer(0.05, writer.write, (b"x",))
        writing.start()
        assert reader.receive(10, False, 10) == b"x"
        writing.join()
        assert memory[ASK] == 0, "the writer was asked, and told"


def test_whoever_does_not_ask_is_not_told() -> None:
    memory = live_memory()
    with Bell() as bell:
        peers_writer(memory, bell.there).write(b"x")
        assert bell.here.wait(bell.here.changes, 0.02) == 1
        memory[ASK] = 3
        peers_writer(memory, bell.there).write(b"y")
        assert bell.here.wait(bell.here.changes, 10) == 0
        assert memory[ASK] == 2


def test_a_wait_ends_where_the_peer_is_gone_but_what_it_wrote_is_read() -> None:
    memory = live_memory()
    with Bell() as bell:
        reader, writer = bound_reader(memory, bell.here), peers_writer(memory, bell.there)
        writer.write(b"last")
        memory[LIVE] = 0
        assert reader.receive(4, True, 10) == b"last"
        assert reader.receive(1, False, 10) == GONE
        assert writer.send(b"x", 0, True, 10) == (0, GONE)
        reader.bind(bell.here, -1, ASK, ASKED)
        assert reader.receive_into(bytearray(5), 0, False, 0.01) == (0, LATE), "-1: nobody's end counts"


def test_a_message_is_moved_whole_or_not_at_all() -> None:
    memory = live_memory()
    with Bell() as bell:
        reader, writer = bound_reader(memory, bell.here), peers_writer(memory, bell.there)
        assert writer.send(b"a" * 200, 0, True, 0) == 200
        assert writer.send(b"b" * 57, 0, True, 0) == (0, LATE)
        assert reader.receive(201, True, 0) == LATE
        assert writer.send(b"b" * 57, 0, False, 0) == (56, LATE)
        assert reader.receive(256, True, 0) == b"a" * 200 + b"b" * 56
        for call in (lambda: writer.send(b"x" * 257, 0, True, 0), lambda: reader.receive(257, True, 0)):
            with pytest.raises(ValueError, match="257 bytes at once do not fit in a ring of 256"):
                call()
        for start in (-1, 4):
            with pytest.raises(ValueError, match="lies outside 3 bytes"):
                writer.send(b"abc", start, False, 0)


def test_a_message_of_any_length_arrives_as_it_was_sent() -> None:
    """Short ones go another way than long ones; over 64 lengths each wraps around the ring's end somewhere."""
    memory = live_memory()
    with Bell() as bell:
        reader, writer = bound_reader(memory, bell.here), peers_writer(memory, bell.there)
        for length in range(65):
            message = bytes(range(length, 2 * length))
            assert writer.send(message, 0, True, 0) == length
            assert reader.receive(length, True, 0) == message


def test_a_stream_larger_than_the_ring_is_one_call() -> None:
    memory = live_memory()
    data = bytes(range(256)) * 40
    got = bytearray()
    with Bell() as bell:
        reader, writer = bound_reader(memory, bell.here), peers_writer(memory, bell.there)

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
    memory = live_memory()
    with Bell() as bell:
        reader = bound_reader(memory, bell.here)
        bell.here.wake()
        assert reader.wait(1, 10) == WOKEN, "also for a wake before the wait"
        threading.Timer(0.05, bell.here.wake).start()
        assert reader.receive(1, True, 10) == WOKEN
        bell.life[1].close()
        assert reader.wait(1, 10) == SILENT


def test_one_event_has_every_thread_look() -> None:
    """One thread leads and takes the events; the others must not miss one for that, nor its leaving."""
    rounds = 100
    memory, other = live_memory(), live_memory()
    with Bell() as bell:
        reader, back_writer = bound_reader(memory, bell.here), peers_writer(memory, bell.there)
        writer, back_reader = ring_writer(other), ring_reader(other)
        writer.bind(bell.here, LIVE, ASK, ASKED)
        back_reader.bind(bell.there, LIVE, ASKED, ASK)
        done: list[object] = []

        def read() -> None:
            done.append([reader.receive(1, True, 20) for _ in range(rounds)] == [b"x"] * rounds)

        def write() -> None:
            done.append([writer.send(b"y" * SIZE, 0, True, 20) for _ in range(rounds)] == [SIZE] * rounds)

        threads = [threading.Thread(target=read), threading.Thread(target=write)]
        for thread in threads:
            thread.start()
        buffer = bytearray(SIZE)
        deadline = time.monotonic() + 60
        while any(thread.is_alive() for thread in threads) and time.monotonic() < deadline:
            back_writer.write(b"x")
            back_reader.readinto(buffer)
            time.sleep(0)
        for thread in threads:
            thread.join(30)
        assert done == [True, True]


def test_a_signal_handler_runs_in_a_wait() -> None:
    memory = live_memory()
    called: list[int] = []
    old = signal.signal(signal.SIGUSR1, lambda number, frame: called.append(number))
    try:
        with Bell() as bell:
            reader = bound_reader(memory, bell.here)
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            assert (reader.wait(1, 1), called) == (LATE, [signal.SIGUSR1])

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
    memory = live_memory()
    old = signal.getsignal(signal.SIGUSR1)
    try:
        with Bell() as bell:
            writer = peers_writer(memory, bell.there)
            reader = bound_reader(memory, bell.here)
            taken: list[object] = []

            def take(number: int, frame: object) -> None:
                reader.readinto(bytearray(50))
                taken.append(writer.send(b"z" * 60, 0, False, 0))

            signal.signal(signal.SIGUSR1, take)
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            assert writer.send(b"a" * 300, 0, False, 0.5) == (256, LATE)
            assert taken == [(50, LATE)]
            assert reader.read(1000) == b"a" * 206 + b"z" * 50
    finally:
        signal.signal(signal.SIGUSR1, old)


def test_events_without_end_do_not_prolong_a_wait() -> None:
    memory = live_memory()
    with Bell() as bell, open("/dev/zero", "rb") as always:
        for doorbell in (Doorbell(Descriptor(os.dup(always.fileno())), 1, None), bell.here):
            bell.ends[1].close()  # which polls as hung up, for ever
            started = time.monotonic()
            assert bound_reader(memory, doorbell).wait(1, 0.1) == LATE
            assert time.monotonic() - started < 5


@pytest.mark.parametrize("ended_by", ["time", "wake", "stop"])
def test_a_peer_that_always_makes_room_does_not_prolong_a_call(ended_by: str) -> None:
    """Its index lies where the data go, so that each round that is written is read at once."""
    memory = bytearray(START + SIZE)
    rounds = [struct.pack("<I", SIZE * number).ljust(SIZE, b".") for number in range(1, 10_000)]
    with Bell() as bell:
        writer = RingWriter(memory, START, 4, memory, START, SIZE)
        writer.bind(bell.here, -1, ASK, ASKED)
        if ended_by == "wake":
            bell.here.wake()
        elif ended_by == "stop":
            bell.here.stop(True)
        result = writer.send(b"".join(rounds), 0, False, 0 if ended_by == "time" else None)
        assert isinstance(result, tuple), "all was moved"
        assert result[1] == (LATE if ended_by == "time" else WOKEN)


def test_a_turn_is_waited_for_no_longer_than_asked_and_never_inherited() -> None:
    memory = live_memory()
    with Bell() as bell:
        stream = Stream(bound_reader(memory, bell.here), ring_writer(memory))
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
def stream_turn(stream: Stream, memory: bytearray, bell: Bell) -> Iterator[None]:
    """Another thread is in `stream.read`, and waits there."""
    reading = threading.Thread(target=lambda: stream.read(1, 30))
    reading.start()
    deadline = time.monotonic() + 20
    while memory[ASK] == 0:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    try:
        yield
    finally:
        peers_writer(memory, bell.there).write(b"x")
        reading.join(20)


def test_a_lie_ends_a_wait_and_is_refused() -> None:
    memory = live_memory()
    with Bell() as bell:
        reader = bound_reader(memory, bell.here)
        struct.pack_into("<I", memory, 4, 5_000)
        for call in (lambda: reader.receive(10, True, 10), lambda: reader.receive_into(bytearray(10), 0, False, 10)):
            with pytest.raises(ProtocolError):
                call()


@pytest.mark.parametrize("where", [(1000, ASK, ASKED), (LIVE, 1000, ASKED), (LIVE, -1, ASKED), (LIVE, ASK, -1)])
def test_a_wait_looks_nowhere_outside_the_buffer(where: tuple[int, int, int]) -> None:
    reader = ring_reader(live_memory())
    with Bell() as bell, pytest.raises(IndexError, match="outside the buffer"):
        reader.bind(bell.here, *where)


def test_an_end_without_a_doorbell_does_not_wait() -> None:
    reader, writer = ring_reader(ring_memory()), ring_writer(ring_memory())
    for call in (lambda: reader.wait(1, 0), lambda: reader.receive(1, False, 0), lambda: writer.send(b"", 0, False, 0)):
        with pytest.raises(ValueError, match="no doorbell"):
            call()
