"""advertise and find: what is written is what is found, and nothing that a peer writes is believed unchecked."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xengrant import meeting
from xengrant.abi.xs_wire import Permission
from xengrant.errors import ProtocolError, XenStoreError
from xengrant.gntshr import Share
from xengrant.gnttab import Grant
from xengrant.memory import PAGE_SIZE, Mapping
from xengrant.xenstore import XenStore

from . import LONG
from .fake_store import AsyncFakeWatch, FakeStore, FakeWatch, Tree

_HOME = "/local/domain/7"
_PATH = f"{_HOME}/data/demo"

refs_of_a_share = st.lists(
    st.one_of(
        st.integers(0, 0xFFFFFFFF).map(lambda ref: [ref]),
        st.tuples(st.integers(0, 0xFFFF0000), st.integers(1, 300)).map(lambda run: list(range(run[0], sum(run)))),
        st.tuples(st.integers(300, 0xFFFFFFFF), st.integers(1, 300)).map(
            lambda run: list(range(run[0], run[0] - run[1], -1))  # as the kernel's free list gives them
        ),
    ),
    min_size=1,
    max_size=60,
).map(lambda runs: [ref for run in runs for ref in run])


def _share(*refs: int, peer: int = 9, writable: bool = True) -> Share:
    memory = os.memfd_create("share")
    with Mapping([(memory, 0, PAGE_SIZE)], writable=True) as mapping:
        os.close(memory)
    return Share(peer, refs, mapping, writable)


def _store(tree: Tree) -> XenStore:
    return cast(XenStore, tree.open())


def _advertise(tree: Tree, share: Share, path: str = _PATH) -> meeting.Advertisement:
    return meeting.advertise(_store(tree), 7, share, path)


def _parse(*texts: bytes, owner: bytes = b"7") -> list[Grant]:
    return meeting.parse(7, _PATH, owner, list(texts))


@given(refs_of_a_share)
def test_what_is_written_is_what_is_found(refs: list[int]) -> None:
    texts = meeting.format_refs(tuple(refs))
    assert all(0 < len(text) < 2000 for text in texts)
    assert _parse(*[text.encode() for text in texts]) == [Grant(7, ref) for ref in refs]


def test_runs_become_ranges() -> None:
    assert meeting.format_refs((8, 9, 10, 40, 7, 6)) == ["8-10,40,7,6"]
    assert meeting.format_refs((0xFFFFFFFF,)) == ["4294967295"]


def test_the_largest_share_fits_in_the_nodes_that_find_reads() -> None:
    worst = tuple(0xFFFFFFFF - 2 * i for i in range(65536))
    texts = [text.encode() for text in meeting.format_refs(worst)]
    assert len(texts) <= meeting._MAX_NODES
    assert [grant.ref for grant in _parse(*texts)] == list(worst)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b",",
        b"8,",
        b"8,,9",
        b" 8",
        b"8 ",
        b"8\n",
        b"-8",
        b"8-",
        b"8-9-10",
        b"9-8",
        b"8,9-7",
        b"0x8",
        b"8.0",
        b"+8",
        b"1_0",
        "\N{ARABIC-INDIC DIGIT EIGHT}".encode(),
        "\N{FULLWIDTH DIGIT EIGHT}".encode(),
        b"\xff\xfe",
        b"4294967296",
        b"0-4294967296",
        b"00000000008",
        b"8" * 2000,
        b"\x00",
    ],
)
def test_what_is_no_list_of_refs_is_a_lie(text: bytes) -> None:
    with pytest.raises(ProtocolError, match=r"demo"):
        _parse(text)


@pytest.mark.parametrize(
    "texts",
    [
        [b"0-65536"],
        [b"0-4294967295"],
        [b"0-65535", b"8"],
        [b"0-65535,0-65535"],
        [b",".join([b"0-4294967295"] * 150)] * 512,
    ],
)
def test_more_refs_than_can_be_mapped_are_refused_quickly(texts: list[bytes]) -> None:
    started = time.process_time()
    with pytest.raises(ProtocolError, match="more than 65536 refs"):
        _parse(*texts)
    assert time.process_time() - started < 2


@given(st.lists(st.binary(max_size=60), max_size=4))
def test_garbage_is_refs_or_a_lie_and_nothing_else(texts: list[bytes]) -> None:
    try:
        grants = _parse(*texts)
    except ProtocolError:
        return
    assert grants
    assert all(0 <= grant.ref <= 0xFFFFFFFF for grant in grants)


@given(st.text("0123456789,-", max_size=60))
def test_almost_refs_are_refs_or_a_lie_and_nothing_else(text: str) -> None:
    try:
        grants = _parse(text.encode())
    except ProtocolError:
        return
    assert 0 < len(grants) <= 65536


@pytest.mark.parametrize(
    "owner", [b"", b"8", b"07", b"7 ", b"-7", b"\xff" * 4000, "\N{FULLWIDTH DIGIT SEVEN}".encode()]
)
def test_only_its_own_domid_may_stand_there(owner: bytes) -> None:
    with pytest.raises(ProtocolError, match="not 7, whose node it is"):
        _parse(b"8", owner=owner)


def test_an_advertisement_is_for_the_peer_alone_and_goes_on_close() -> None:
    tree = Tree()
    with _advertise(tree, _share(8, 9, 40, writable=False)) as advertisement:
        assert tree.nodes == {
            _PATH: b"",
            f"{_PATH}/domid": b"7",
            f"{_PATH}/writable": b"0",
            f"{_PATH}/refs/0": b"8-9,40",
        }
        assert tree.permissions == {_PATH: [Permission(7, "n"), Permission(9, "r")]}
        assert repr(advertisement) == f"<Advertisement at {_PATH}>"
    assert tree.nodes == {}
    advertisement.close()
    assert repr(advertisement) == f"<Advertisement at {_PATH}, closed>"


def test_a_second_advertisement_replaces_the_first() -> None:
    tree = Tree()
    _advertise(tree, _share(*range(0, 4000, 2)))
    assert f"{_PATH}/refs/1" in tree.nodes
    _advertise(tree, _share(8))
    assert [node for node in tree.nodes if "refs/" in node] == [f"{_PATH}/refs/0"]


def test_nodes_of_others_are_never_removed() -> None:
    tree = Tree()
    tree.nodes = {f"{_HOME}/data/mine": b"kept", f"{_HOME}/data/refs": b""}
    before = dict(tree.nodes)
    with pytest.raises(XenStoreError, match=r"other nodes \(mine\)") as caught:
        _advertise(tree, _share(8), f"{_HOME}/data")
    assert caught.value.errno == errno.EEXIST
    assert tree.nodes == before


def test_a_share_too_large_to_be_mapped_at_once_is_refused() -> None:
    with pytest.raises(ValueError, match="65537 pages"):
        _advertise(Tree(), _share(*range(65537)))


def test_a_close_that_xenstore_refuses_may_be_repeated() -> None:
    tree = Tree()
    advertisement = _advertise(tree, _share(8))
    tree.failures["rm"] = XenStoreError(errno.EIO, "broken")
    with pytest.raises(XenStoreError, match="broken"):
        advertisement.close()
    assert not advertisement.closed
    advertisement.close()
    assert advertisement.closed
    assert tree.nodes == {}


def test_closing_is_fine_where_the_nodes_or_the_connection_are_gone() -> None:
    tree = Tree()
    gone = _advertise(tree, _share(8))
    tree.failures["rm"] = XenStoreError(errno.ENOENT, "gone")
    gone.close()
    tree.nodes.clear()
    unreachable = _advertise(tree, _share(8))
    tree.opened[-1].close()
    unreachable.close()
    assert unreachable.closed


def _find(tree: Tree, timeout: float | None = 0.01) -> list[Grant]:
    return meeting.find(_store(tree), 7, "data/demo", timeout).grants


async def _find_async(tree: Tree, timeout: float | None = 0.01) -> list[Grant]:
    store: Any = tree.open_async()
    return (await meeting.find_async(store, 7, "data/demo", timeout)).grants


def test_header_goes_with_the_refs() -> None:
    tree = Tree()
    meeting.advertise(_store(tree), 7, _share(8), _PATH, "pixels")
    assert meeting.find(_store(tree), 7, "data/demo", 0) == ([Grant(7, 8)], b"pixels")
    store: Any = tree.open_async()
    assert asyncio.run(meeting.find_async(store, 7, "data/demo", 0)).header == b"pixels"


def test_find_finds() -> None:
    tree = Tree()
    _advertise(tree, _share(8, 9, 40))
    found = [Grant(7, 8), Grant(7, 9), Grant(7, 40)]
    assert _find(tree) == found
    assert asyncio.run(_find_async(tree)) == found


@pytest.mark.parametrize("missing", ["", "/domid", "/refs"])
@pytest.mark.parametrize("how", ["missing", "hidden"])
def test_what_is_not_there_yet_or_not_for_us_is_waited_for(missing: str, how: str) -> None:
    tree = Tree()
    _advertise(tree, _share(8))
    if how == "missing":
        tree.nodes = {node: value for node, value in tree.nodes.items() if not node.startswith(_PATH + missing)}
    else:
        tree.hidden = {node for node in [*tree.nodes, f"{_PATH}/refs"] if node.startswith(_PATH + missing)}
    text = f"domain 7 advertised nothing that this domain may read at {_PATH} in 0.01 seconds"
    with pytest.raises(TimeoutError, match=text):
        _find(tree)
    with pytest.raises(TimeoutError, match=text):
        asyncio.run(_find_async(tree))


@pytest.mark.parametrize("names", [["1"], ["0", "2"], ["0", "x"], ["0", "01"], [str(i) for i in range(513)]])
def test_nodes_that_are_not_numbered_are_a_lie(names: list[str]) -> None:
    tree = Tree()
    _advertise(tree, _share(8))
    tree.nodes = {f"{_PATH}/domid": b"7", **{f"{_PATH}/refs/{name}": b"8" for name in names}}
    with pytest.raises(ProtocolError, match="does not hold the nodes"):
        _find(tree)
    with pytest.raises(ProtocolError, match="does not hold the nodes"):
        asyncio.run(_find_async(tree))


def test_other_errors_of_xenstore_are_not_waited_out() -> None:
    tree = Tree()
    _advertise(tree, _share(8))
    for find in (_find, lambda tree: asyncio.run(_find_async(tree))):
        tree.failures["read"] = XenStoreError(errno.EIO, "broken")
        with pytest.raises(XenStoreError, match="broken"):
            find(tree)


@pytest.mark.parametrize("domid", [-1, 0x7FF0])
def test_a_bad_domid_is_refused(domid: int) -> None:
    store: Any = Tree().open_async()
    with pytest.raises(ValueError, match="domid"):
        meeting.find(_store(Tree()), domid, "data/demo", 0)
    with pytest.raises(ValueError, match="domid"):
        asyncio.run(meeting.find_async(store, domid, "data/demo", 0))


_NOTHING = rf"domain 7 advertised nothing that this domain may read at {_PATH} in 0.05 seconds"


class _RestlessStore(FakeStore):
    """The peer changes nodes below the path all the time: there is always an event."""

    passes = 0

    def watch(self, path: str, *, timeout: float | None = None) -> FakeWatch:
        watch = super().watch(path, timeout=timeout)
        watch.wait = self._wait  # type: ignore[method-assign]
        return watch

    def _wait(self, timeout: float | None = None) -> str:
        self.passes += 1
        assert self.passes < 1_000_000, "find never looked at its deadline"
        return _PATH


def test_a_peer_that_changes_nodes_all_the_time_does_not_outlast_the_timeout() -> None:
    store: Any = _RestlessStore(Tree())
    with pytest.raises(TimeoutError, match=_NOTHING):
        meeting.find(store, 7, "data/demo", 0.05)
    assert store.passes > 0


class _RestlessWatch(AsyncFakeWatch):
    async def wait(self, timeout: float | None = None) -> str:
        return _PATH


def test_nor_does_it_where_find_is_awaited() -> None:
    async def find() -> None:
        store: Any = Tree().open_async()

        async def watch(path: str) -> _RestlessWatch:
            return _RestlessWatch(store.store.watch(path))

        store.watch = watch
        async with asyncio.timeout(LONG):
            await meeting.find_async(store, 7, "data/demo", 0.05)

    with pytest.raises(TimeoutError, match=_NOTHING):
        asyncio.run(find())


def test_every_call_of_xenstore_has_what_is_left_of_the_timeout() -> None:
    calls: list[tuple[str, float | None]] = []

    class Store(FakeStore):
        def __getattribute__(self, name: str) -> Any:
            found = super().__getattribute__(name)
            if name not in ("read", "directory", "exists", "run_transaction", "watch"):
                return found

            def call(*arguments: Any, timeout: float | None = None) -> Any:
                calls.append((name, timeout))
                return found(*arguments, timeout=timeout)

            return call

    tree = Tree()
    _advertise(tree, _share(8))
    store: Any = Store(tree)
    assert meeting.find(store, 7, "data/demo", LONG) == ([Grant(7, 8)], b"")
    assert [name for name, _ in calls] == ["watch", "run_transaction", "read", "directory", "read", "exists"]
    left = [timeout for _, timeout in calls if timeout is not None]
    assert len(left) == len(calls)
    assert left[0] <= LONG
    assert left == sorted(left, reverse=True)
    assert left[-1] > 0


def test_without_the_domid_no_refs_are_read() -> None:
    tree = Tree()
    _advertise(tree, _share(8))
    del tree.nodes[f"{_PATH}/domid"]
    tree.failures["directory"] = XenStoreError(errno.EIO, "asked for the refs")
    with pytest.raises(TimeoutError, match="advertised nothing"):
        _find(tree)


def test_a_timeout_of_0_finds_what_is_there_and_waits_for_nothing_else() -> None:
    tree = Tree()
    text = r"advertised nothing .* in 0 seconds"
    with pytest.raises(TimeoutError, match=text):
        _find(tree, 0)
    with pytest.raises(TimeoutError, match=text):
        asyncio.run(_find_async(tree, 0))
    _advertise(tree, _share(8))
    assert _find(tree, 0) == asyncio.run(_find_async(tree, 0)) == [Grant(7, 8)]
    assert not tree.watched.acquire(blocking=False), "it waited for an event"
