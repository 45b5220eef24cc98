"""`XenStore` against a real server: what users see, from several threads."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import select
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType

import pytest

from xengrant import meeting, xenstore
from xengrant.abi import xs_wire
from xengrant.abi.xs_wire import Operation
from xengrant.errors import InterfaceClosed, InterfaceUnavailable, ProtocolError, XenStoreError
from xengrant.xenstore import AsyncXenStore, Permission, Transaction, Watch, XenStore

from .store_server import LinuxDevice, NarrowDevice, SocketDevice, StoreServer
from .worker import LONG, Worker, until

Open = Callable[[int], XenStore]


@contextmanager
def refused(number: int, says: str) -> Iterator[None]:
    with pytest.raises(XenStoreError, match=says) as caught:
        yield
    assert caught.value.errno == number


def test_read_and_write(guest: XenStore) -> None:
    guest.write("data/a/b", "text \u00e9")
    guest.write("data/a/c", b"\0bytes")
    assert guest.read("data/a/b") == "text \u00e9".encode()
    assert guest.read("/local/domain/1/data/a/c") == b"\0bytes"
    assert guest.directory("data/a") == ["b", "c"]
    guest.rm("data/a")
    assert not guest.exists("data/a")
    guest.mkdir("data/a")
    assert guest.exists("data/a")
    assert guest.directory("data/a") == []


def test_permissions(guest: XenStore, open_store: Open) -> None:
    guest.write("data/a", "1")
    assert guest.get_permissions("data/a") == [Permission(1, "n")]
    guest.set_permissions("data/a", [Permission(1, "n"), Permission(2, "r")])
    assert guest.get_permissions("data/a") == [Permission(1, "n"), Permission(2, "r")]
    assert open_store(2).read("/local/domain/1/data/a") == b"1"


def test_permissions_that_are_none(guest: XenStore) -> None:
    with pytest.raises(ValueError, match="owner"):
        guest.set_permissions("data", [])
    with pytest.raises(ValueError, match="no permission"):
        guest.set_permissions("data", [Permission(70000, "r")])


def test_a_directory_beyond_one_message(dom0: XenStore, server: StoreServer) -> None:
    names = [f"a-rather-long-name-{i}" for i in range(1000)]
    for name in names:
        server.call(lambda name=name: server.store.mkdir(f"/many/{name}"))  # type: ignore[misc]
    assert dom0.directory("/many") == names


def test_domains(dom0: XenStore) -> None:
    assert dom0.get_domain_path(7) == "/local/domain/7"
    assert dom0.is_domain_introduced(1)
    assert not dom0.is_domain_introduced(7)


# What errors say


def test_an_error_says_who_owns_the_node(guest: XenStore) -> None:
    with refused(errno.EACCES, r"may not write name .*domain 0 owns name, permissions n0 r1"):
        guest.write("name", "other")
    with refused(errno.EACCES, r"may not write /local/domain/1/x .*domain 0 owns /local/domain/1,.*data"):
        guest.write("/local/domain/1/x", "1")
    with refused(errno.EACCES, r"may not read /local/domain/2/name .*nor see who owns it"):
        guest.read("/local/domain/2/name")
    with refused(errno.EACCES, r"may not set the permissions of name"):
        guest.set_permissions("name", [Permission(0, "r")])


def test_an_error_carries_its_path(guest: XenStore) -> None:
    with pytest.raises(XenStoreError) as caught:
        guest.read("data/nothing")
    assert (caught.value.errno, caught.value.path) == (errno.ENOENT, "data/nothing")
    assert "does not exist" in str(caught.value)


def test_errors_name_the_quota(guest: XenStore) -> None:
    with refused(errno.ENOSPC, r"value of 2040 bytes at data/x is too long"):
        guest.write("data/x", bytes(2040))
    with refused(errno.ENOSPC, r"5 permissions"):
        guest.set_permissions("data", [Permission(1, "n"), *(Permission(i, "r") for i in range(5))])
    with refused(errno.ENOSPC, r"transactions open .*10 by default"):
        for _ in range(12):
            guest.transaction()
    with refused(errno.E2BIG, r"watch on data.*128 by default"):
        for _ in range(130):
            guest.watch("data")


def test_an_error_tells_a_full_directory_from_too_many_nodes(guest: XenStore) -> None:
    guest.mkdir("data/d")
    with refused(errno.ENOSPC, r"data/d has no room for another child: the names of its \d+ children take \d+ bytes"):
        for i in range(1000):
            guest.mkdir(f"data/d/{i:0200}")
    with refused(errno.ENOSPC, r"data/\d+/\d+ would be one node too many.*1000"):
        for i in range(1000):
            guest.mkdir(f"data/{i // 100}/{i}")


def test_a_guest_hears_why_it_is_not_told_of_other_domains(guest: XenStore, dom0: XenStore) -> None:
    with refused(errno.EACCES, r"only dom0 may ask"):
        guest.watch("@releaseDomain")
    with refused(errno.EACCES, r"only dom0 may ask"):
        guest.is_domain_introduced(2)
    dom0.set_permissions("@releaseDomain", [Permission(0, "n"), Permission(1, "r")])
    with guest.watch("@releaseDomain") as watch:
        assert watch.wait(LONG) == "@releaseDomain"


def test_a_guest_cannot_give_a_node_away(guest: XenStore) -> None:
    with refused(errno.EPERM, "only dom0 may change a node's owner"):
        guest.set_permissions("data", [Permission(2, "n")])


# Transactions


def test_a_transaction_commits_at_the_end_of_its_block(guest: XenStore, dom0: XenStore) -> None:
    with guest.transaction() as transaction:
        transaction.write("data/a", "1")
        assert transaction.read("data/a") == b"1"
        assert not guest.exists("data/a")
    assert dom0.read("/local/domain/1/data/a") == b"1"
    with pytest.raises(InterfaceClosed):
        transaction.read("data/a")


def test_a_transaction_is_dropped_after_an_error(guest: XenStore, server: StoreServer) -> None:
    def fail(transaction: Transaction) -> None:
        with transaction:
            transaction.write("data/a", "1")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail(guest.transaction())
    assert not guest.exists("data/a")
    assert not any(server.call(lambda: [c._transactions for c in server.store.connections]))


def test_a_transaction_that_met_another(guest: XenStore) -> None:
    with refused(errno.EAGAIN, "run_transaction"), guest.transaction() as transaction:
        transaction.exists("data/a")
        guest.write("data/a", "1")


def test_abort(guest: XenStore) -> None:
    with guest.transaction() as transaction:
        transaction.write("data/a", "1")
        transaction.abort()
        transaction.abort()
    assert not guest.exists("data/a")


def test_run_transaction_counts_exactly_from_many_threads(guest: XenStore) -> None:
    guest.write("data/n", "0")

    def add(transaction: Transaction) -> None:
        transaction.write("data/n", str(int(transaction.read("data/n")) + 1))

    def work() -> None:
        for _ in range(10):
            guest.run_transaction(add, attempts=1000)

    for worker in [Worker(work) for _ in range(5)]:
        worker.get()
    assert guest.read("data/n") == b"50"


def test_run_transaction_gives_up(guest: XenStore) -> None:
    tries = []

    def meet(transaction: Transaction) -> None:
        transaction.exists("data/a")
        guest.write("data/a", "1")
        tries.append(1)

    with refused(errno.EAGAIN, "3 transactions in a row"):
        guest.run_transaction(meet, attempts=3)
    assert len(tries) == 3


def test_run_transaction_returns_and_raises_what_the_function_does(guest: XenStore) -> None:
    assert guest.run_transaction(lambda transaction: transaction.read("domid")) == b"1"
    with pytest.raises(ZeroDivisionError):
        guest.run_transaction(lambda transaction: 1 // 0)


# Watches


def test_a_watch_tells_first_itself_and_then_changes(guest: XenStore) -> None:
    with guest.watch("data") as watch:
        assert watch.wait(LONG) == "data"
        guest.write("data/a", "1")
        assert watch.wait(LONG) == "data/a"
        with pytest.raises(TimeoutError, match="nothing changed at data"):
            watch.wait(0)


def test_a_watch_is_iterated(guest: XenStore) -> None:
    with guest.watch("data") as watch:
        guest.write("data/a", "1")
        seen = []
        for path in watch:
            seen.append(path)
            if path == "data/a":
                break
        assert seen == ["data", "data/a"]


def test_two_watches_of_one_path_are_two(guest: XenStore) -> None:
    with guest.watch("data") as first:
        with guest.watch("data") as second:
            assert (first.wait(LONG), second.wait(LONG)) == ("data", "data")
        guest.write("data/a", "1")
        assert first.wait(LONG) == "data/a"


def test_a_closed_watch_frees_its_place(server: StoreServer, guest: XenStore) -> None:
    for _ in range(200):
        guest.watch("data").close()
    guest.read("domid")
    assert not any(server.call(lambda: [c._watches for c in server.store.connections]))


def test_waiting_on_a_watch_that_another_thread_closes(guest: XenStore) -> None:
    watch = guest.watch("data")
    watch.wait(LONG)
    waiting = Worker(watch.wait)
    until(lambda: bool(guest._reader._pollers), "the thread never waited")
    watch.close()
    with pytest.raises(InterfaceClosed):
        waiting.get()
    with pytest.raises(InterfaceClosed):
        watch.wait()


def test_a_watch_closes_without_its_server(pair: tuple[SocketDevice, socket.socket]) -> None:
    with XenStore(pair[0]) as store:
        opening = Worker(lambda: store.watch("data"))
        pair[1].recv(4096)
        pair[1].send(xs_wire.pack_message(Operation.WATCH, 1, 0, b"OK\0"))
        watch = opening.get()
        assert isinstance(watch, Watch)
        waiting = Worker(watch.wait)
        until(lambda: bool(store._reader._pollers), "the thread never waited")
        watch.close()
        with pytest.raises(InterfaceClosed):
            waiting.get()


def test_a_refused_watch_is_forgotten(guest: XenStore) -> None:
    with refused(errno.EACCES, "only dom0 may ask"):
        guest.watch("@releaseDomain")
    with pytest.raises(XenStoreError, match=r"of /a{63}\.\.\. .*2048 bytes"):
        guest.watch("/" + "a" * 3000)
    assert not guest._codec._watches


def test_a_thread_waits_while_others_ask(guest: XenStore, dom0: XenStore) -> None:
    with guest.watch("data/go") as watch:
        watch.wait(LONG)
        waiting = Worker(lambda: watch.wait(LONG))
        until(lambda: bool(guest._reader._pollers), "the thread never waited")

        def ask() -> None:
            for i in range(50):
                guest.write(f"data/{threading.get_ident()}", str(i))
                assert guest.read(f"data/{threading.get_ident()}") == str(i).encode()

        for worker in [Worker(ask) for _ in range(4)]:
            worker.get()
        dom0.write("/local/domain/1/data/go", "1")
        assert waiting.get() == "data/go"


# Devices


def test_a_device_that_takes_and_gives_a_few_bytes_at_a_time(server: StoreServer) -> None:
    with XenStore(NarrowDevice(server.device(1).sock)) as store, store.watch("data") as watch:
        store.write("data/a", bytes(2000))
        assert store.read("data/a") == bytes(2000)
        assert [watch.wait(LONG), watch.wait(LONG)] == ["data", "data/a"]


def test_a_device_that_takes_nothing_times_out_and_goes_on(server: StoreServer) -> None:
    device = NarrowDevice(server.device(1).sock)
    held = _hold(server)
    with XenStore(device) as store:
        device.room = 5
        with pytest.raises(TimeoutError):
            store.write("data/a", "begun", timeout=0.01)
        with pytest.raises(TimeoutError):
            store.write("data/b", "not begun", timeout=0.01)
        device.room = None
        held.set()
        assert store.read("data/a") == b"begun"
        assert not store.exists("data/b")


def test_the_kernels_device(server: StoreServer) -> None:
    with XenStore(LinuxDevice(server.device(1).sock)) as store:
        with store.watch("data") as first, store.watch("data/a") as second:
            store.write("data/a", "1")
            assert [first.wait(LONG), first.wait(LONG)] == ["data", "data/a"]
            assert second.wait(LONG) == "data/a"
        store.run_transaction(lambda transaction: transaction.write("data/b", "2"))
        assert store.read("data/b") == b"2"


def test_the_kernels_device_has_one_request_at_a_time_whoever_asks(server: StoreServer) -> None:
    """Threads that read, and one whose transactions are aborted and whose watches end among that."""
    with XenStore(LinuxDevice(server.device(1).sock)) as store:
        store.write("data/a", "1")
        ended = threading.Event()

        def read() -> None:
            while not ended.is_set():
                assert store.read("data/a") == b"1"

        def abort() -> None:
            with store.transaction() as transaction:
                transaction.write("data/a", "2")
                raise KeyError

        readers = [Worker(read) for _ in range(3)]
        for _ in range(20):
            with pytest.raises(KeyError):
                abort()
            store.watch("data/a").close()
        ended.set()
        for reader in readers:
            reader.get()
        connections = server.store.connections
        assert server.call(lambda: [(len(c._watches), len(c._transactions)) for c in connections]) == [(0, 0)]


def test_what_is_undone_while_a_request_is_under_way_is_sent_when_that_is_answered(server: StoreServer) -> None:
    with XenStore(LinuxDevice(server.device(1).sock)) as store:
        transaction = store.transaction()
        held = _hold(server)
        reader = Worker(lambda: store.read("domid"))
        until(lambda: bool(store._codec._requests), "the reader never asked")
        with pytest.raises(KeyError), transaction:
            raise KeyError
        held.set()
        reader.get()
        (connection,) = server.store.connections
        until(lambda: not server.call(lambda: len(connection._transactions)), "the transaction was not ended")


def test_the_kernels_device_refuses_a_watch_from_write(server: StoreServer) -> None:
    device = LinuxDevice(server.device(1).sock)
    with XenStore(device) as store:
        device.refuse = errno.E2BIG
        with refused(errno.E2BIG, "no watch on data"):
            store.watch("data")
        device.refuse = 0
        assert store.watch("data").wait(LONG) == "data"


# Servers that lie


@pytest.mark.parametrize(
    "lie",
    [
        pytest.param(xs_wire.pack_message(2, 1, 0, bytes(4097)), id="over-long"),
        pytest.param(xs_wire.pack_message(2, 99, 0, b""), id="never asked"),
        pytest.param(xs_wire.pack_message(11, 1, 0, b"OK\0"), id="other type"),
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n", id="another protocol"),
    ],
)
def test_a_lying_server_fails_everybody(pair: tuple[SocketDevice, socket.socket], lie: bytes) -> None:
    with XenStore(pair[0]) as store:
        waiting = [Worker(lambda: store.read("domid")) for _ in range(3)]
        until(lambda: bool(store._codec._requests) and bool(store._reader._pollers), "they never waited")
        pair[1].send(lie)
        for worker in waiting:
            with pytest.raises(ProtocolError):
                worker.get()
        with pytest.raises(ProtocolError):
            store.read("domid")


@pytest.mark.parametrize(
    ("ask", "answer"),
    [
        (lambda store: store.directory("d"), b"../name\0"),
        (lambda store: store.get_permissions("d"), b"x\0"),
        (lambda store: store.get_permissions("d"), b""),
        (lambda store: store.get_domain_path(1), b"/a b\0"),
        (lambda store: store.is_domain_introduced(1), b"maybe\0"),
        (lambda store: store.transaction(), b"0\0"),
        (lambda store: store.transaction(), b"99999999999\0"),
    ],
)
def test_answers_that_make_no_sense(
    pair: tuple[SocketDevice, socket.socket], ask: Callable[[XenStore], object], answer: bytes
) -> None:
    with XenStore(pair[0]) as store:
        asking = Worker(lambda: ask(store))
        operation = int.from_bytes(pair[1].recv(4096)[:4], "little")
        pair[1].send(xs_wire.pack_message(operation, 1, 0, answer))
        with pytest.raises(ProtocolError):
            asking.get()


def test_a_directory_that_never_ends(pair: tuple[SocketDevice, socket.socket]) -> None:
    with XenStore(pair[0]) as store:
        asking = Worker(lambda: store.directory("d"))

        def answer() -> None:
            operation, request_id, *_ = struct.unpack("<4I", pair[1].recv(4096)[:16])
            assert operation == Operation.DIRECTORY
            pair[1].send(xs_wire.pack_message(Operation.ERROR, request_id, 0, b"E2BIG\0"))
            while data := pair[1].recv(4096):
                operation, request_id, *_ = struct.unpack("<4I", data[:16])
                pair[1].send(xs_wire.pack_message(operation, request_id, 0, b"7\0" + b"name\0" * 800))

        answering = Worker(answer)
        with pytest.raises(ProtocolError, match="goes on listing"):
            asking.get()
    answering.get()


# The end


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
    held = _hold(server)
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


def _hold(server: StoreServer) -> threading.Event:
    """Stop the server until the event is set."""
    held, stopped = threading.Event(), threading.Event()

    def hold() -> None:
        stopped.set()
        held.wait(LONG)

    Worker(lambda: server.call(hold))
    assert stopped.wait(LONG)
    return held
