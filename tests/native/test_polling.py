"""Looking before sleeping: what is seen without an event, how it ends, and who gives its processor away meanwhile."""

from __future__ import annotations

import os
import signal
import struct
import threading
import time

import pytest

from xengrant._native import Descriptor, Stream

from .rings import (
    ASK,
    GONE,
    LATE,
    LIVE,
    SIZE,
    WOKEN,
    Bell,
    bound_reader,
    live_memory,
    peers_writer,
    ring_reader,
    ring_writer,
)


def test_polling_sees_what_comes_without_an_event() -> None:
    memory = live_memory()
    with Bell() as bell:
        reader, writer = bound_reader(memory, bell.here, poll=4.0), ring_writer(memory)
        threading.Timer(0.05, writer.write, (b"x",)).start()
        assert reader.wait(1, 10) == 0
        assert memory[ASK] == 0, "it asked to be told before it had polled"
        for wrong in (-1.0, float("nan"), 1e9):
            with pytest.raises(ValueError, match="poll is a number of seconds"):
                bell.here.poll = wrong


def _null() -> Descriptor:
    """A yielder that does nothing: its ioctl fails."""
    return Descriptor(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))


def test_whoever_yields_sees_what_comes_without_an_event() -> None:
    memory = live_memory()
    with Bell() as bell:
        reader, writer = bound_reader(memory, bell.here, poll=10), ring_writer(memory)
        bell.here.yielder = yielder = _null()
        assert bell.here.yielder is yielder
        before = time.monotonic()
        threading.Timer(0.05, writer.write, (b"x",)).start()
        assert reader.wait(1, 20) == 0
        reader.read(1)
        yielder.close()  # then it is as without
        threading.Timer(0.05, writer.write, (b"x",)).start()
        assert reader.wait(1, 20) == 0
        assert memory[ASK] == 0, "it asked to be told"
        assert time.monotonic() - before < 8, "it was seen when the time to look was over"
        for wrong in (None, 3, yielder):
            with pytest.raises(TypeError, match="one yielder, a Descriptor"):
                bell.here.yielder = wrong  # type: ignore[assignment]


@pytest.mark.parametrize("yields", [False, True])
def test_polling_ends_with_its_time_its_deadline_a_wake_or_the_peer(yields: bool) -> None:
    memory = live_memory()
    with Bell() as bell:
        if yields:
            bell.here.yielder = _null()
        reader = bound_reader(memory, bell.here, poll=0.01)
        writing = threading.Timer(0.2, peers_writer(memory, bell.there).write, (b"x",))
        writing.start()
        assert reader.wait(1, 10) == 0
        writing.join()
        assert memory[ASK] == 0, "it asked, slept, and was told"
        reader.read(1)
        bell.here.poll = 10
        assert reader.wait(1, 0.01) == LATE
        threading.Timer(0.05, bell.here.wake).start()
        assert reader.wait(1, 20) == WOKEN
        threading.Timer(0.05, memory.__setitem__, (LIVE, 0)).start()
        assert reader.wait(1, 20) == GONE


def test_looking_at_a_word_ends_with_another_value_or_a_wake() -> None:
    memory = bytearray(16)
    with Bell() as bell:
        bell.here.poll = 0.01
        assert not bell.here.look(memory, 4, 0, bell.here.wakes)
        assert bell.here.look(memory, 4, 1, bell.here.wakes)
        assert bell.here.look(memory, 4, 0, bell.here.wakes + 1)
        bell.here.poll = 10
        threading.Timer(0.05, struct.pack_into, ("<I", memory, 4, 7)).start()
        assert bell.here.look(memory, 4, 0, bell.here.wakes)
        threading.Timer(0.05, bell.here.wake).start()
        assert bell.here.look(memory, 4, 7, bell.here.wakes)
        for wrong in (-4, 2, 13, 16):
            with pytest.raises(ValueError, match="no word of 32 bits"):
                bell.here.look(memory, wrong, 0, 0)


@pytest.mark.parametrize("several", [False, True])
def test_a_signal_handler_runs_however_busy_the_stream_is(several: bool) -> None:
    """Who polls, and always finds room, never sleeps; a signal is looked after all the same."""
    memory = live_memory()
    stopping = threading.Event()

    class StopError(Exception):
        pass

    def stop(number: int, frame: object) -> None:
        raise StopError

    with Bell() as bell:
        writer, reader = peers_writer(memory, bell.there), ring_reader(memory)
        bell.there.poll = 10
        stream = Stream(ring_reader(live_memory()), writer)

        def drain() -> None:
            buffer = bytearray(SIZE)
            while not stopping.is_set():
                reader.readinto(buffer)

        draining = threading.Thread(target=drain)
        draining.start()
        old = signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        lines = [b"x"] * (1 << 20) if several else [bytes(1 << 26)]
        before = time.monotonic()
        try:
            with pytest.raises(StopError):
                stream.writelines(lines)
            assert time.monotonic() - before < 20
            assert writer.prod < sum(map(len, lines)), "all was written first"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, old)
            stopping.set()
            draining.join(20)
