"""Looking before sleeping: what is seen without an event, how it ends, and who gives its processor away meanwhile.

Times are judged where a look that goes on would be a failure: the looks are set to last 10 s, and to end far sooner.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from xengrant import _native
from xengrant._native import Descriptor, Doorbell, Stream

from .rings import (
    ASK,
    GONE,
    LATE,
    LIVE,
    SILENT,
    SIZE,
    WOKEN,
    Bell,
    bound_reader,
    live_memory,
    peers_writer,
    ring_reader,
    ring_writer,
)

_LONG = 10.0
_SOON = 5.0


@contextlib.contextmanager
def _sooner() -> Iterator[None]:
    before = time.monotonic()
    try:
        yield
    finally:
        assert time.monotonic() - before < _SOON, "it went on looking"


def _later(seconds: float, function: Callable[..., object], *arguments: object) -> None:
    timer = threading.Timer(seconds, function, arguments)
    timer.daemon = True
    timer.start()


def _see_yields(doorbell: Doorbell) -> tuple[Descriptor, Callable[[], bool]]:
    """Has it yield by an ioctl that can be seen, FIONBIO with a 1; and whether that was done since the last time."""
    fd = os.eventfd(0)
    file = Descriptor(fd)
    doorbell.yield_by(file, termios.FIONBIO, struct.pack("=i", 1))

    def yielded() -> bool:
        done = not os.get_blocking(fd)
        os.set_blocking(fd, True)
        return done

    return file, yielded


def test_polling_sees_what_comes_without_an_event() -> None:
    memory = live_memory()
    with Bell() as bell:
        reader, writer = bound_reader(memory, bell.here, poll=_LONG), ring_writer(memory)
        _later(0.05, writer.write, b"x")
        with _sooner():
            assert reader.wait(1, 20) == 0
        assert memory[ASK] == 0, "it asked to be told before it had polled"


def test_whoever_yields_sees_what_comes_without_an_event() -> None:
    memory = live_memory()
    with Bell() as bell:
        reader, writer = bound_reader(memory, bell.here, poll=_LONG), ring_writer(memory)
        file, yielded = _see_yields(bell.here)
        assert bell.here.yielder is file
        writer.write(b"x")
        assert reader.receive(1, False, 20) == b"x"
        assert not yielded(), "it yielded where there was something"
        _later(0.05, writer.write, b"x")
        with _sooner():
            assert reader.receive(1, False, 20) == b"x"
        assert yielded()
        file.close()  # then it is as without
        _later(0.05, writer.write, b"x")
        with _sooner():
            assert reader.wait(1, 20) == 0
        assert memory[ASK] == 0, "it asked to be told"


def test_what_it_yields_by_is_told_once() -> None:
    with Bell() as bell, open(os.devnull, "rb") as null:
        for wrong in (None, 3, null):
            with pytest.raises(TypeError, match="no Descriptor"):
                bell.here.yield_by(wrong, 0, b"")  # type: ignore[arg-type]
        file = Descriptor(os.dup(null.fileno()))
        with pytest.raises(ValueError, match="65 bytes, where 64"):
            bell.here.yield_by(file, 0, bytes(65))
        bell.here.yield_by(file, 0, bytes(64))
        with pytest.raises(ValueError, match="told once"):
            bell.here.yield_by(file, 0, b"")


@pytest.mark.parametrize("poll", [-1.0, float("nan"), 10.1, 1e9])
def test_no_other_time_is_polled(poll: float) -> None:
    with Bell() as bell:
        with pytest.raises(ValueError, match="poll is a number of seconds"):
            bell.here.poll = poll
        bell.here.poll = 4.1
        assert bell.here.poll == 4.1
        with pytest.raises(AttributeError):
            del bell.here.poll


@pytest.mark.parametrize("yields", [False, True])
def test_polling_ends_with_a_wake_the_peer_or_the_deadline(yields: bool) -> None:
    memory = live_memory()
    with Bell() as bell:
        if yields:
            _see_yields(bell.here)
        reader = bound_reader(memory, bell.here, poll=_LONG)
        with _sooner():
            assert reader.wait(1, 0.01) == LATE
            _later(0.05, bell.here.wake)
            assert reader.wait(1, 20) == WOKEN
            _later(0.05, memory.__setitem__, LIVE, 0)
            assert reader.wait(1, 20) == GONE


@pytest.mark.parametrize("yields", [False, True])
def test_when_the_time_to_look_is_over_it_asks_and_sleeps(yields: bool) -> None:
    memory = live_memory()
    with Bell() as bell:
        if yields:
            _see_yields(bell.here)
        reader, writer = bound_reader(memory, bell.here, poll=0.01), peers_writer(memory, bell.there)

        def write_once_asked() -> None:
            while not memory[ASK]:
                time.sleep(0.001)
            writer.write(b"x")

        _later(0, write_once_asked)
        assert reader.wait(1, 20) == 0
        assert bell.here.events == 1
        bell.life[1].close()
        assert reader.wait(2, 20) == SILENT


def test_whoever_has_no_time_does_not_look() -> None:
    memory = live_memory()
    with Bell() as bell:
        _, yielded = _see_yields(bell.here)
        reader = bound_reader(memory, bell.here, poll=_LONG)
        assert reader.wait(1, 0) == LATE
        assert not yielded()


def test_looking_at_a_word_ends_with_another_value_or_a_wake() -> None:
    memory = bytearray(16)
    with Bell() as bell:
        bell.here.poll = 0.01
        assert not bell.here.look(memory, 4, 0, bell.here.wakes)
        assert bell.here.look(memory, 4, 1, bell.here.wakes)
        assert bell.here.look(memory, 4, 0, bell.here.wakes + 1)
        bell.here.poll = _LONG
        with _sooner():
            _later(0.05, _native.store32, memory, 4, 7)
            assert bell.here.look(memory, 4, 0, bell.here.wakes)
            _later(0.05, bell.here.wake)
            assert bell.here.look(memory, 4, 7, bell.here.wakes)
        for wrong in (-4, 2, 13, 16):
            with pytest.raises(ValueError, match="no word of 32 bits"):
                bell.here.look(memory, wrong, 0, 0)


class _StopError(Exception):
    pass


def _stop(number: int, frame: object) -> None:
    raise _StopError


@pytest.mark.parametrize("gap", [0, 0.01], ids=["fast peer", "slow peer"])
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("poll", [0, 0.05], ids=["sleeping", "polling"])
def test_a_signal_handler_runs_however_busy_the_stream_is(several: bool, gap: float, poll: float) -> None:
    """The peer tells nobody of the room that it makes. Who polls finds it before it sleeps, and who sleeps whenever it
    wakes; a signal is looked after all the same."""
    memory = live_memory()
    lines = [bytes(31)] * (1 << 22) if several else [bytes(1 << 28)]  # which takes longer than the signal
    stopping = threading.Event()
    old = signal.signal(signal.SIGALRM, _stop)
    try:
        with Bell() as bell:
            writer, reader = peers_writer(memory, bell.there), ring_reader(memory)
            bell.there.poll = poll
            stream = Stream(ring_reader(live_memory()), writer)

            def drain() -> None:
                buffer = bytearray(SIZE if not gap else 1)
                while writer.prod == 0 and not stopping.is_set():
                    time.sleep(0.001)
                signal.setitimer(signal.ITIMER_REAL, 0.01)  # the process's, whoever sets it
                while not stopping.wait(gap) if gap else not stopping.is_set():
                    reader.readinto(buffer)

            threading.Thread(target=drain, daemon=True).start()
            with pytest.raises(_StopError), _sooner():
                stream.writelines(lines)
            assert writer.prod < sum(map(len, lines)), "all was written first"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
        stopping.set()
