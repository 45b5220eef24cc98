"""The ends of a `XenStore`: closed, out of time, without a server, in a forked child, interrupted by a signal."""

from __future__ import annotations

import asyncio
import gc
import os
import select
import signal
import socket
import sys
import threading
from functools import partial
from types import FrameType

import pytest

from xengrant import meeting, xenstore
from xengrant.errors import InterfaceClosed, InterfaceUnavailable
from xengrant.xenstore import AsyncXenStore, XenStore

from .store_server import SocketDevice, StoreServer, hold
from .worker import LONG, Worker, until


def test_calls_after_close(guest: XenStore) -> None:
    transaction = guest.transaction()
    watch = guest.watch("data")
    guest.close()
    guest.close()
    assert guest.closed
    assert not guest
    for call in (lambda: guest.read("domid"), watch.wait, lambda: transaction.read("domid")):
        with pytest.raises(InterfaceClosed):
            call()
    watch.close()
    with pytest.raises(InterfaceClosed), guest:
        pass


def test_close_ends_who_waits_for_an_answer(pair: tuple[SocketDevice, socket.socket]) -> None:
    silent = XenStore(pair[0])
    waiting = [Worker(lambda: silent.read("domid")) for _ in range(3)]
    until(lambda: bool(silent._codec._requests) and bool(silent._reader._pollers), "the threads never waited")
    silent.close()
    for worker in waiting:
        with pytest.raises(InterfaceClosed):
            worker.get()


def test_a_timeout_and_its_late_answer(server: StoreServer, guest: XenStore) -> None:
    held = hold(server)
    with pytest.raises(TimeoutError, match="did not answer READ"):
        guest.read("domid", timeout=0.01)
    with pytest.raises(TimeoutError):
        guest.transaction(timeout=0.01)
    with pytest.raises(TimeoutError):
        guest.watch("data", timeout=0.01)
    held.set()
    assert guest.read("name") == b"one"
    assert guest.read("name") == b"one"
    connections = server.store.connections
    assert server.call(lambda: [(len(c._watches), len(c._transactions)) for c in connections]) == [(0, 0)]


def test_the_server_goes_away(server: StoreServer, guest: XenStore) -> None:
    watch = guest.watch("data")
    watch.wait(LONG)
    waiting = Worker(watch.wait)
    until(lambda: bool(guest._reader._pollers), "the thread never waited")
    server.call(lambda: server.store.release(1))
    with pytest.raises(InterfaceUnavailable, match="closed the connection"):
        waiting.get()
    with pytest.raises(InterfaceUnavailable):
        guest.read("domid")


def test_an_unclosed_connection_warns_and_is_closed(server: StoreServer) -> None:
    device = server.device(1)
    with pytest.warns(ResourceWarning, match="unclosed XenStore"):
        _use_and_forget(device)
    assert device.closed


def _use_and_forget(device: SocketDevice) -> None:
    assert XenStore(device).read("domid") == b"1"
    gc.collect()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_cannot_use_it_and_the_parent_can(guest: XenStore) -> None:
    """Not even while another thread of the parent holds the locks."""
    with guest._writing, guest._reader.lock:
        child = os.fork()
        if not child:
            signal.alarm(int(2 * LONG))
            try:
                Worker(lambda: guest.read("domid")).get()
            except InterfaceClosed:
                guest.close()
                os._exit(0)
            finally:
                os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert guest.read("domid") == b"1"


class LockWithSignal:
    """Counts as the lock, and has a handler run when `acquire` has returned and its result is stored."""

    def __init__(self, lock: threading.RLock) -> None:
        self.release, self._lock = lock.release, lock

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        taken = self._lock.acquire(blocking, timeout)
        sys.setprofile(self._after)
        return taken

    def __enter__(self) -> bool:
        return self._lock.acquire()

    def __exit__(self, *exc: object) -> None:
        self._lock.release()

    def _after(self, frame: FrameType, event: str, function: object) -> None:
        if event == "c_return" and getattr(function, "__name__", "") == "extend":
            sys.setprofile(None)
            raise KeyboardInterrupt


@pytest.mark.parametrize("undoing", [False, True])
def test_a_signal_just_after_the_lock_is_taken_leaves_it_free(guest: XenStore, undoing: bool) -> None:
    watch = guest.watch("data")
    lock = guest._writing
    guest._writing = LockWithSignal(lock)  # type: ignore[assignment]
    call = watch.close if undoing else partial(guest.read, "domid")
    with pytest.raises(KeyboardInterrupt):
        call()
    guest._writing = lock
    assert Worker(lambda: guest.read("domid", timeout=LONG)).get() == b"1"
    Worker(guest.close).get()


@pytest.mark.parametrize("written", [False, True])
def test_a_signal_just_before_or_after_a_write_leaves_the_connection_usable(
    guest: XenStore, written: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xenstore, "_PATIENCE", 0.2)
    write = guest._device.write

    def interrupted(data: bytes) -> int:
        if written:
            write(data)
        guest._device.write = write  # type: ignore[method-assign]
        raise KeyboardInterrupt

    guest._device.write = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        guest.read("domid")
    for _ in range(3):
        assert guest.read("domid", timeout=LONG) == b"1"


def test_an_answer_that_a_signal_handler_lost_is_not_waited_for_for_ever(
    guest: XenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xenstore, "_PATIENCE", 0.2)
    read = guest._device.read

    def lose(size: int) -> bytes:
        if read(size):
            guest._device.read = read  # type: ignore[method-assign]
            raise KeyboardInterrupt
        return b""

    guest._device.read = lose  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        guest.read("domid")
    for _ in range(3):
        assert guest.read("domid", timeout=LONG) == b"1"


def test_an_answer_that_is_late_is_waited_for_by_the_next_request(
    server: StoreServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long: two under way at a time are what Linux' device does not survive."""
    monkeypatch.setattr(xenstore, "_PATIENCE", 0.05)
    store = XenStore(server.device(1))
    read = store._device.read
    answers = threading.Event()

    def late(size: int) -> bytes:
        if not answers.is_set():
            raise BlockingIOError
        return read(size)

    store._device.read = late  # type: ignore[method-assign]
    first = Worker(lambda: store.read("domid"))
    until(lambda: store._under_way is not None and store._under_way.begun, "the first was never written")
    under_way = store._under_way
    with pytest.raises(TimeoutError):
        store.read("domid", timeout=0.5)
    assert store._under_way is under_way
    answers.set()
    assert first.get() == b"1"
    assert store.read("domid", timeout=LONG) == b"1"
    store.close()


def test_a_signal_handler_may_close_what_its_own_thread_is_writing_to(server: StoreServer) -> None:
    device = server.device(1)
    store = XenStore(device)

    def write(data: bytes) -> int:
        with pytest.raises(RuntimeError, match="from a signal handler"):
            store.read("name")
        with pytest.raises(TimeoutError, match="another's is in the way"):
            store.read("name", timeout=0)
        store.close()
        raise KeyboardInterrupt

    device.write = write  # type: ignore[method-assign]

    def ask() -> None:
        with pytest.raises(KeyboardInterrupt):
            store.read("domid")

    Worker(ask).get()
    assert store.closed


@pytest.mark.parametrize("awaited", [False, True])
def test_find_keeps_its_timeout_where_xenstore_is_silent(
    pair: tuple[SocketDevice, socket.socket], awaited: bool
) -> None:
    async def find_async() -> None:
        async with AsyncXenStore(pair[0]) as store:
            await meeting.find_async(store, 7, "data/demo", 0.05)

    def find() -> None:
        if awaited:
            asyncio.run(find_async())
        else:
            with XenStore(pair[0]) as store:
                meeting.find(store, 7, "data/demo", 0.05)

    with pytest.raises(TimeoutError, match=r"domain 7 advertised nothing .* in 0\.05 seconds"):
        Worker(find).get()


def test_fileno_polls_readable_for_an_event(guest: XenStore, dom0: XenStore) -> None:
    with guest.watch("data") as watch:
        watch.wait(LONG)
        dom0.write("/local/domain/1/data/a", "1")
        assert select.select([guest], [], [], LONG)[0] == [guest]
        assert watch.wait(0) == "data/a"
