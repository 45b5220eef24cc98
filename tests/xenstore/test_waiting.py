"""SharedReader: threads that share one descriptor, over a socket pair."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import select
import socket
import threading
from collections.abc import Iterator
from functools import partial

import pytest

from xengrant.errors import InterfaceClosed, InterfaceUnavailable, ProtocolError
from xengrant.waiting import SharedReader, deadline_after

from .worker import LONG, Worker, until


class Pipe:
    """One end of a socket pair, as a device."""

    name = "pipe"

    def __init__(self) -> None:
        self.closed = False
        self.mine, self.peer = socket.socketpair()
        self.mine.setblocking(False)

    def read(self, size: int) -> bytes:
        return self.mine.recv(size)

    def fileno(self) -> int:
        return self.mine.fileno()

    def close(self) -> None:
        self.closed = True
        self.mine.close()
        self.peer.close()


class Inbox:
    """Letters by name: what a thread waits for is one byte."""

    def __init__(self, device: Pipe, *, refuse: bytes = b"") -> None:
        self.letters: list[int] = []
        self.refuse = refuse
        self.reader = SharedReader(device, self.deliver)

    def deliver(self, data: bytes) -> None:
        if data and data in self.refuse:
            raise ProtocolError("lies")
        self.letters += data

    def take(self, letter: bytes, timeout: float | None = LONG) -> bool:
        return self.reader.wait_until(lambda: letter[0] in self.letters, deadline_after(timeout))


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    device = Pipe()
    yield device
    device.close()


def fill(sender: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        while sender.send(bytes(65536)):
            pass


def waiters(inbox: Inbox, letters: bytes) -> list[Worker]:
    return [Worker(partial(inbox.take, bytes([letter]))) for letter in letters]


def until_asleep(inbox: Inbox, count: int) -> None:
    """Until `count` threads wait: one in poll(), the others on the condition."""

    def asleep() -> bool:
        with inbox.reader.lock:
            sleeping = len(inbox.reader._changed._waiters)  # type: ignore[attr-defined]
            return len(inbox.reader._pollers) + sleeping >= count

    until(asleep, f"{count} threads never all waited")


def test_each_thread_gets_its_own_letter_whoever_reads_it(pipe: Pipe) -> None:
    inbox = Inbox(pipe)
    workers = waiters(inbox, b"abcdefgh")
    until_asleep(inbox, 8)
    for letter in b"hgfedcba":
        pipe.peer.send(bytes([letter]))
    assert [worker.get() for worker in workers] == [True] * 8
    inbox.reader.close()


def test_a_leader_that_leaves_hands_over_to_another(pipe: Pipe) -> None:
    inbox = Inbox(pipe)
    first = Worker(lambda: inbox.take(b"a"))
    until_asleep(inbox, 1)
    second = Worker(lambda: inbox.take(b"b"))
    until_asleep(inbox, 2)
    pipe.peer.send(b"a")
    assert first.get() is True
    pipe.peer.send(b"b")
    assert second.get() is True
    inbox.reader.close()


def test_a_leader_that_times_out_hands_over_to_another(pipe: Pipe) -> None:
    inbox = Inbox(pipe)
    first = Worker(lambda: inbox.take(b"a", 0.05))
    second = Worker(lambda: inbox.take(b"b"))
    assert first.get() is False
    pipe.peer.send(b"b")
    assert second.get() is True
    inbox.reader.close()


def test_what_is_there_is_read_even_when_the_deadline_has_passed(pipe: Pipe) -> None:
    inbox = Inbox(pipe)
    pipe.peer.send(b"a")
    assert inbox.take(b"a", 0) is True
    assert inbox.take(b"b", 0) is False
    inbox.reader.close()


def test_a_chatty_peer_does_not_hold_a_waiter_past_its_deadline(pipe: Pipe) -> None:
    inbox = Inbox(pipe)
    stop = threading.Event()

    def chatter() -> None:
        pipe.peer.setblocking(False)
        while not stop.is_set():
            if select.select([], [pipe.peer], [], 0.1)[1]:
                pipe.peer.send(b"x")

    talker = Worker(chatter)
    try:
        assert Worker(lambda: inbox.take(b"a", 0.05)).get() is False
    finally:
        stop.set()
        talker.get()
    inbox.reader.close()


def test_wake_has_the_leader_and_the_followers_look_again(pipe: Pipe) -> None:
    inbox = Inbox(pipe)
    workers = waiters(inbox, b"aaa")
    until_asleep(inbox, 3)
    with inbox.reader.lock:
        inbox.letters += b"a"
    inbox.reader.wake()
    assert [worker.get() for worker in workers] == [True] * 3
    inbox.reader.close()


def test_close_fails_every_waiter_and_leaves_no_thread_on_the_descriptor(pipe: Pipe) -> None:
    inbox = Inbox(pipe)
    workers = waiters(inbox, b"abc")
    until_asleep(inbox, 3)
    inbox.reader.close()
    assert not inbox.reader._pollers
    for worker in workers:
        with pytest.raises(InterfaceClosed):
            worker.get()
    inbox.reader.close()


def test_close_ends_a_thread_that_waits_to_write_beside_a_reader(pipe: Pipe) -> None:
    inbox = Inbox(pipe)
    fill(pipe.mine)
    [reading] = waiters(inbox, b"a")
    until_asleep(inbox, 1)
    writing = Worker(lambda: inbox.reader.wait_writable(None))
    until_asleep(inbox, 2)
    inbox.reader.close()
    for worker in (reading, writing):
        with pytest.raises(InterfaceClosed):
            worker.get()


def test_a_writer_reads_while_it_waits_so_that_two_full_pipes_come_unstuck(pipe: Pipe) -> None:
    inbox = Inbox(pipe)
    fill(pipe.mine)
    pipe.peer.send(b"z")
    writing = Worker(lambda: inbox.reader.wait_writable(deadline_after(LONG)))
    until(lambda: b"z"[0] in inbox.letters, "the writer did not read")
    pipe.peer.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while pipe.peer.recv(65536):
            pass
    assert writing.get() is True
    inbox.reader.close()


def test_waiting_to_write_ends_at_its_deadline(pipe: Pipe) -> None:
    inbox = Inbox(pipe)
    fill(pipe.mine)
    assert inbox.reader.wait_writable(deadline_after(0.01)) is False
    inbox.reader.close()


class InterruptedLock:
    """A lock in whose `acquire` a signal handler raises, the first time, before it is held."""

    def __init__(self, lock: threading.RLock) -> None:
        self.release = lock.release
        self._acquire = lock.acquire
        self.interrupted = False

    def acquire(self, blocking: bool = True) -> bool:
        if not self.interrupted:
            self.interrupted = True
            raise KeyboardInterrupt
        return self._acquire(blocking)


def test_a_signal_while_a_waiter_takes_the_lock_back_leaves_nothing_behind(pipe: Pipe) -> None:
    inbox = Inbox(pipe)
    lock = inbox.reader.lock
    inbox.reader.lock = InterruptedLock(lock)  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        inbox.take(b"a", 0)
    assert not inbox.reader._pollers
    inbox.reader.lock = lock
    Worker(partial(pipe.peer.send, b"a")).get()
    assert Worker(partial(inbox.take, b"a")).get(), "another thread finds the lock free"
    Worker(inbox.reader.close).get()


def test_the_peers_end_fails_every_waiter(pipe: Pipe) -> None:
    inbox = Inbox(pipe)
    workers = waiters(inbox, b"ab")
    until_asleep(inbox, 2)
    pipe.peer.close()
    for worker in workers:
        with pytest.raises(InterfaceUnavailable) as caught:
            worker.get()
        assert caught.value.errno == errno.EPIPE
    inbox.reader.close()


def test_what_deliver_raises_fails_every_waiter_and_every_later_wait(pipe: Pipe) -> None:
    inbox = Inbox(pipe, refuse=b"!")
    workers = waiters(inbox, b"ab")
    until_asleep(inbox, 2)
    pipe.peer.send(b"!")
    for worker in workers:
        with pytest.raises(ProtocolError, match="lies"):
            worker.get()
    with pytest.raises(ProtocolError):
        inbox.take(b"a")
    inbox.reader.close()


def test_close_inside_deliver_is_seen_by_the_wait(pipe: Pipe) -> None:
    def deliver(data: bytes) -> None:
        reader.close()

    reader = SharedReader(pipe, deliver)
    pipe.peer.send(b"a")
    with pytest.raises(InterfaceClosed):
        reader.wait_until(lambda: False, deadline_after(LONG))


def test_many_threads_and_many_letters_lose_none(pipe: Pipe) -> None:
    inbox = Inbox(pipe)
    counts = dict.fromkeys(b"abcdefgh", 0)

    def deliver(data: bytes) -> None:
        for letter in data:
            counts[letter] += 1

    inbox.reader.close()
    reader = SharedReader(pipe, deliver, size=3)
    rounds = 200

    def wait_for(letter: int) -> None:
        seen = 0

        def more() -> bool:
            return counts[letter] > seen

        while seen < rounds:
            assert reader.wait_until(more, deadline_after(LONG)), "a letter was lost"
            seen += 1

    workers = [Worker(partial(wait_for, letter)) for letter in counts]
    for _ in range(rounds):
        pipe.peer.send(b"hgfedcba")
    for worker in workers:
        worker.get()
    reader.close()


def test_an_unclosed_reader_keeps_no_descriptor() -> None:
    device = Pipe()
    gc.collect()  # what other tests left behind is not to be closed from here on
    before = len(os.listdir("/proc/self/fd"))
    reader = SharedReader(device, lambda data: None)
    assert len(os.listdir("/proc/self/fd")) > before
    del reader
    assert len(os.listdir("/proc/self/fd")) == before
    device.close()


def test_a_reset_connection_is_an_unavailable_one(pipe: Pipe) -> None:
    inbox = Inbox(pipe)
    pipe.mine.send(b"unread")
    pipe.peer.close()
    with pytest.raises(InterfaceUnavailable) as caught:
        inbox.take(b"a")
    assert caught.value.errno == errno.ECONNRESET
    inbox.reader.close()
