"""Peer and AsyncPeer over a xenstore in a dictionary: dom0 asks, a guest watches a node, and every end is told."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from xengrant.errors import InterfaceClosed, InterfaceUnavailable, PeerClosed, XenStoreError
from xengrant.peer import AsyncPeer, Peer, shown_path

from . import LONG
from .fake_store import Tree

_NODE = "/local/domain/7/data/demo"


@pytest.fixture
def tree() -> Iterator[Tree]:
    tree = Tree()
    yield tree
    assert all(store.closed for store in tree.opened), "a connection to xenstore was left open"


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def _peer(tree: Tree, path: str | None = None) -> Peer:
    opened: Any = tree.open
    return Peer(7, path, opened)


def _guests(tree: Tree, *, path: str | None = "data/demo") -> Peer:
    tree.privileged = False
    tree.nodes[_NODE] = b""
    return _peer(tree, path)


def _waiting(pool: ThreadPoolExecutor, tree: Tree, peer: Peer) -> Future[None]:
    waiting = pool.submit(peer.wait_gone, LONG)
    assert tree.watched.acquire(timeout=LONG), "the peer's thread did not come to wait"
    return waiting


def _destroy(tree: Tree) -> None:
    def end() -> None:
        tree.introduced.discard(7)
        tree.nodes.clear()

    tree.change(end)


def test_a_relative_path_is_the_peers_own() -> None:
    assert shown_path(7, "data/demo") == _NODE
    assert shown_path(7, "/local/domain/8/x") == "/local/domain/8/x"


def test_dom0_is_told_when_the_domain_goes(tree: Tree, pool: ThreadPoolExecutor) -> None:
    with _peer(tree) as peer:
        assert not peer.gone()
        waiting = _waiting(pool, tree, peer)
        tree.change(lambda: tree.introduced.discard(0))  # another domain's end
        assert not peer.known_gone
        _destroy(tree)
        waiting.result(LONG)
        assert peer.known_gone
        assert peer._thread is not None
        peer._thread.join(LONG)
        assert all(store.closed for store in tree.opened), "the watch is kept though there is nothing left to watch"
        assert peer.gone()
        with pytest.raises(PeerClosed, match="domain 7 is gone"):
            peer.check()
        peer.wait_gone(0)


def test_a_domain_that_is_gone_already_is_found_at_once(tree: Tree) -> None:
    _destroy(tree)
    with _peer(tree) as peer:
        peer.wait_gone(LONG)
    with _peer(tree) as peer:
        assert peer.gone()


def test_a_time_out_says_what_it_waited_for(tree: Tree) -> None:
    with _peer(tree) as peer, pytest.raises(TimeoutError, match=r"domain 7 is still there after 0\.01 seconds"):
        peer.wait_gone(0.01)


def test_a_guest_watches_the_node_that_it_is_shown(tree: Tree, pool: ThreadPoolExecutor) -> None:
    with _guests(tree) as peer:
        assert not peer.gone()
        waiting = _waiting(pool, tree, peer)
        _destroy(tree)
        waiting.result(LONG)
        assert peer.gone()


def test_a_node_hidden_from_the_guest_is_gone(tree: Tree, pool: ThreadPoolExecutor) -> None:
    """xenstore does not say whether a node exists that a guest may not read."""
    with _guests(tree) as peer:
        waiting = _waiting(pool, tree, peer)
        tree.change(lambda: tree.hidden.add(_NODE))
        waiting.result(LONG)


def test_a_guest_that_is_shown_nothing_is_told_what_to_do(tree: Tree) -> None:
    with _guests(tree, path=None) as peer:
        with pytest.raises(InterfaceUnavailable, match=r"only dom0 is told when domain 7 goes.*path=") as caught:
            peer.wait_gone(LONG)
        assert caught.value.errno == errno.EACCES
        with pytest.raises(InterfaceUnavailable, match="only dom0"):
            peer.gone()


@pytest.mark.parametrize("operation", ["is_domain_introduced", "watch", "wait"])
def test_a_failing_xenstore_ends_every_wait(tree: Tree, pool: ThreadPoolExecutor, operation: str) -> None:
    called = threading.Event()
    with _peer(tree) as peer:
        tree.failures[operation] = XenStoreError(errno.EIO, "broken")
        waits = [pool.submit(peer.wait_gone, LONG) for _ in range(3)]
        tree.changes += 1
        for waiting in waits:
            failure = waiting.exception(LONG)
            assert isinstance(failure, XenStoreError)
            assert failure.errno == errno.EIO
        with pytest.raises(XenStoreError, match="broken"):
            peer.check()
        with pytest.raises(XenStoreError, match="broken"):
            peer.on_gone(called.set)
    assert not peer.known_gone


def test_a_xenstore_that_cannot_be_opened_is_said_and_may_be_tried_again(tree: Tree) -> None:
    with _peer(tree) as peer:
        tree.failures["open"] = InterfaceUnavailable(errno.ENOENT, "no xenbus")
        with pytest.raises(InterfaceUnavailable, match="no xenbus"):
            peer.wait_gone(LONG)
        _destroy(tree)
        peer.wait_gone(LONG)


def test_a_thread_that_cannot_be_started_leaves_nothing_open(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    with _peer(tree) as peer:
        with monkeypatch.context() as patched:

            def refuse(_: threading.Thread) -> None:
                raise RuntimeError("can't start new thread")

            patched.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError, match="new thread"):
                peer.wait_gone(LONG)
        assert all(store.closed for store in tree.opened)
        _destroy(tree)
        peer.wait_gone(LONG)


def test_closing_ends_every_wait_and_the_thread(tree: Tree, pool: ThreadPoolExecutor) -> None:
    peer = _peer(tree)
    waiting = _waiting(pool, tree, peer)
    [thread] = [thread for thread in threading.enumerate() if thread.name == "peer-7"]
    peer.close()
    assert not thread.is_alive()
    assert isinstance(waiting.exception(LONG), InterfaceClosed)
    peer.close()
    with pytest.raises(InterfaceClosed, match="Peer of domain 7 was closed"):
        peer.wait_gone(0)
    with pytest.raises(InterfaceClosed):
        peer.check()


def test_a_peer_never_started_is_closed_for_good(tree: Tree) -> None:
    peer = _peer(tree)
    peer.close()
    with pytest.raises(InterfaceClosed):
        peer.wait_gone(0)
    assert tree.opened == []


def test_listeners_are_called_when_it_goes_and_at_once_afterwards(tree: Tree) -> None:
    calls: list[str] = []
    called = threading.Event()
    with _peer(tree) as peer:
        peer.on_gone(lambda: calls.append("taken back"))
        listener = peer._listeners[0]
        peer.on_gone(called.set)
        peer.discard_on_gone(listener)
        peer.discard_on_gone(listener)
        _destroy(tree)
        assert called.wait(LONG), "the listener was not called"
        assert calls == []
        peer.on_gone(lambda: calls.append("at once"))
        assert calls == ["at once"]


def test_a_listener_may_close_the_peer(tree: Tree) -> None:
    peer = _peer(tree)
    closed = threading.Event()

    def listener() -> None:
        peer.close()
        closed.set()

    peer.on_gone(listener)
    _destroy(tree)
    assert closed.wait(LONG), "close() in the peer's own thread did not return"
    peer.wait_gone(0)


def test_closing_calls_the_listeners(tree: Tree) -> None:
    called = threading.Event()
    peer = _peer(tree)
    peer.on_gone(called.set)
    peer.close()
    assert called.is_set()


def test_in_a_forked_child_it_is_closed(tree: Tree, pool: ThreadPoolExecutor) -> None:
    """The thread is not there, and its lock may be held for ever."""
    peer = _peer(tree)
    _waiting(pool, tree, peer)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            tree.opened[0].closed = True  # as the devices are, by their hook
            peer._changed.acquire(blocking=False)  # if it is not held for ever already
            try:
                peer.wait_gone(LONG)
            except InterfaceClosed:
                status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    peer.close()


def test_repr_says_what_is_known(tree: Tree) -> None:
    with _peer(tree) as peer:
        assert repr(peer) == "<Peer domain 7, not known to be gone>"
        _destroy(tree)
        peer.wait_gone(LONG)
        assert repr(peer) == "<Peer domain 7, gone>"


def _run(tree: Tree, body: Callable[[AsyncPeer], Awaitable[None]], path: str | None = None) -> None:
    opened: Any = tree.open_async

    async def main() -> None:
        async with asyncio.timeout(LONG), AsyncPeer(7, path, opened) as peer:
            await body(peer)
        for _ in range(100):
            await asyncio.sleep(0)  # the cancelled task closes its connection

    asyncio.run(main())


async def _watched(tree: Tree) -> None:
    assert await asyncio.to_thread(tree.watched.acquire, timeout=LONG), "the peer's task did not come to wait"


def test_async_dom0_is_told_when_the_domain_goes(tree: Tree) -> None:
    async def body(peer: AsyncPeer) -> None:
        called = asyncio.Event()
        assert not await peer.gone()
        peer.on_gone(called.set)
        waits = [asyncio.create_task(peer.wait_gone()) for _ in range(2)]
        await _watched(tree)
        _destroy(tree)
        await asyncio.gather(*waits)
        assert called.is_set()
        assert await peer.gone()
        with pytest.raises(PeerClosed):
            peer.check()

    _run(tree, body)


def test_async_guest_watches_the_node_that_it_is_shown(tree: Tree) -> None:
    tree.privileged = False
    tree.nodes[_NODE] = b""

    async def body(peer: AsyncPeer) -> None:
        assert not await peer.gone()
        waiting = asyncio.create_task(peer.wait_gone())
        await _watched(tree)
        tree.change(lambda: tree.hidden.add(_NODE))
        await waiting

    _run(tree, body, "data/demo")


def test_async_guest_that_is_shown_nothing_is_told_what_to_do(tree: Tree) -> None:
    tree.privileged = False

    async def body(peer: AsyncPeer) -> None:
        for _ in range(2):
            with pytest.raises(InterfaceUnavailable, match="only dom0"):
                await peer.wait_gone()

    _run(tree, body)


def test_async_time_out_and_cancelling_stop_no_other_wait(tree: Tree) -> None:
    async def body(peer: AsyncPeer) -> None:
        with pytest.raises(TimeoutError, match="domain 7 is still there"):
            await peer.wait_gone(0.01)
        waits = [asyncio.create_task(peer.wait_gone()) for _ in range(2)]
        await asyncio.sleep(0)
        waits[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits[0]
        _destroy(tree)
        await waits[1]

    _run(tree, body)


def test_async_closing_ends_every_wait_and_calls_the_listeners(tree: Tree) -> None:
    async def body(peer: AsyncPeer) -> None:
        called = asyncio.Event()
        peer.on_gone(called.set)
        waiting = asyncio.create_task(peer.wait_gone())
        await _watched(tree)
        peer.close()
        assert called.is_set()
        tree.change(lambda: None)  # lets the fake's thread end
        with pytest.raises(InterfaceClosed):
            await waiting
        with pytest.raises(InterfaceClosed):
            await peer.wait_gone()

    _run(tree, body)
