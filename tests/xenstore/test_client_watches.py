"""`Watch` against a real server: what it tells, and to whom."""

from __future__ import annotations

import errno
import socket
import threading

import pytest

from xengrant.abi import xs_wire
from xengrant.abi.xs_wire import Operation
from xengrant.errors import InterfaceClosed, XenStoreError
from xengrant.xenstore import Watch, XenStore

from .conftest import refused
from .store_server import SocketDevice, StoreServer
from .worker import LONG, Worker, until


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
