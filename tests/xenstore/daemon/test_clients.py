"""XenStored: the end of a domain, clients that do not read, and hostile ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xengrant.abi import xs_wire
from xengrant.abi.xs_wire import Operation
from xengrant.embedded.xenstored import ProtocolViolation, XenStored

from ..asker import Asker


def test_release_removes_what_the_domain_had(store: XenStored, dom0: Asker, one: Asker, two: Asker) -> None:
    one.write("data/x", b"1")
    two.mkdir("data/open")
    two.set_perms("data/open", "b2")
    one.write("/local/domain/2/data/open/ones", b"1")
    dom0.watch("/local/domain/1")
    one.watch("data")
    dom0.take_events()
    one.take_events()
    store.release(1)
    assert ("/local/domain/1", "t") in dom0.take_events()
    assert one.take_events() == []
    assert dom0.directory("/local/domain") == ["0", "2"]
    assert two.directory("data/open") == []
    assert dom0.ask(Operation.IS_DOMAIN_INTRODUCED, "1") == b"F\0"
    assert store.tree.count(1) == 0
    store.release(1)


def test_a_closed_connection_is_forgotten(store: XenStored, one: Asker, two: Asker) -> None:
    two.mkdir("data/x")
    two.set_perms("data/x", "r2")
    one.watch("/local/domain/2/data/x")
    one.take_events()
    one.connection.close()
    one.connection.close()
    two.write("data/x", b"1")
    assert one.events == []
    assert one.connection not in store.connections
    assert not store._watches
    one.connection.feed(b"whatever")


def test_events_for_a_client_that_does_not_read_are_held_each_once(dom0: Asker, one: Asker) -> None:
    one.watch("data")
    one.take_events()
    one.unread = 1
    for i in range(100):
        dom0.write(f"/local/domain/1/data/{i % 3}", b"1")
    assert one.take_events() == []
    one.unread = 0
    one.connection.drained()
    assert one.take_events() == [("data/0", "t"), ("data/1", "t"), ("data/2", "t")]


def test_events_for_a_client_that_never_reads_do_not_grow(dom0: Asker, one: Asker) -> None:
    one.watch("data", "a")
    one.watch("data", "b")
    one.take_events()
    one.unread = 1
    for i in range(5000):
        dom0.write(f"/local/domain/1/data/{i}", b"1")
    assert len(one.connection._held) <= 1024
    one.unread = 0
    one.connection.drained()
    events = one.take_events()
    assert ("data", "a") in events
    assert ("data", "b") in events


def test_a_watch_that_ends_takes_its_held_events_along(dom0: Asker, one: Asker) -> None:
    one.watch("data")
    one.take_events()
    one.unread = 1
    dom0.write("/local/domain/1/data/x", b"1")
    one.unwatch("data")
    one.unread = 0
    one.connection.drained()
    assert one.take_events() == []


def test_requests_of_a_client_that_does_not_read_wait(one: Asker) -> None:
    one.unread = 100_000
    one.connection.feed(xs_wire.pack_message(Operation.READ, 1, 0, b"domid\0"))
    assert one.replies == []
    one.unread = 0
    one.connection.drained()
    assert [reply.payload for reply in one.replies] == [b"1"]


@given(st.binary(max_size=200), st.integers(4097, 0xFFFFFFFF))
def test_a_message_that_is_too_long_is_a_violation(garbage: bytes, length: int) -> None:
    asker = Asker(XenStored(), 0)
    with pytest.raises(ProtocolViolation):
        asker.connection.feed(length.to_bytes(4, "little") * 4 + garbage)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3), st.binary(max_size=40)), max_size=20), st.data())
def test_nonsense_is_answered_whatever_its_fragments(
    requests: list[tuple[int, int, bytes]], data: st.DataObject
) -> None:
    store = XenStored()
    store.introduce(1, "one")
    asker = Asker(store, data.draw(st.sampled_from([0, 1])))
    stream = b"".join(xs_wire.pack_message(op, i, tx, payload) for i, (op, tx, payload) in enumerate(requests))
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        asker.connection.feed(stream[:size])
        stream = stream[size:]
    assert [reply.request_id for reply in asker.replies] == list(range(len(requests)))
