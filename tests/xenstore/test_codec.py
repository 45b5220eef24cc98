"""The client's codec: any fragmentation, Linux' habits, and servers that lie."""

from __future__ import annotations

import contextlib
import errno

import hypothesis.strategies as st
import pytest
from hypothesis import given

from xengrant import xenstore_core as core
from xengrant.abi import xs_wire
from xengrant.abi.xs_wire import Operation
from xengrant.errors import ProtocolError, XenStoreError


def started(codec: core.Codec, path: str = "/a") -> core.Request:
    request = core.Request(Operation.READ, path, path.encode() + b"\0")
    codec.start(request)
    return request


def reply(request: core.Request, payload: bytes, operation: int | None = None) -> bytes:
    return xs_wire.pack_message(request.operation if operation is None else operation, request.id, 0, payload)


def event(path: str, token: str, request_id: int = 0) -> bytes:
    return xs_wire.pack_message(Operation.WATCH_EVENT, request_id, 0, f"{path}\0{token}\0".encode())


def fed(codec: core.Codec, data: bytes) -> list[core.Request | core.Events]:
    return list(codec.feed(data))


def test_a_request_is_the_bytes_of_xs_wire_h() -> None:
    request = core.Request(Operation.READ, "a", b"a\0", 7)
    assert core.Codec("x").start(request) == bytes([2, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0, 2, 0, 0, 0]) + b"a\0"


@given(
    st.lists(st.one_of(st.binary(max_size=50), st.sampled_from(["/w", "/w/x"])), max_size=12),
    st.randoms(use_true_random=False),
    st.data(),
)
def test_answers_and_events_in_any_order_and_fragments(
    script: list[bytes | str], random: object, data: st.DataObject
) -> None:
    codec = core.Codec("xenbus")
    watch = codec.new_watch("/w")
    stream = b""
    expected: list[tuple[core.Request, bytes]] = []
    told: list[str] = []
    for item in script:
        if isinstance(item, bytes):
            request = started(codec)
            expected.append((request, item))
        else:
            told.append(item)
            stream += event(item, watch.token)
    for request, payload in data.draw(st.permutations(expected)):
        stream += reply(request, payload)
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        fed(codec, stream[:size])
        stream = stream[size:]
    for request, payload in expected:
        assert request.done
        assert request.result() == payload
    taken = [watch.take() for _ in range(len(set(told)))]
    assert taken == list(dict.fromkeys(told))
    assert not watch


@given(st.integers(4097, 0xFFFFFFFF))
def test_an_answer_that_is_too_long_is_refused_at_its_header(length: int) -> None:
    codec = core.Codec("xenbus")
    started(codec)
    with pytest.raises(ProtocolError, match="4096 is the most"):
        fed(codec, bytes([2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]) + length.to_bytes(4, "little"))


def test_the_longest_answer() -> None:
    codec = core.Codec("xenbus")
    request = started(codec)
    fed(codec, reply(request, bytes(4096)))
    assert request.result() == bytes(4096)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (xs_wire.pack_message(Operation.READ, 77, 0, b""), "never asked"),
        (xs_wire.pack_message(Operation.WRITE, 1, 0, b"OK\0"), "answered READ"),
        (xs_wire.pack_message(Operation.ERROR, 1, 0, b"no error\0"), "error that is none"),
        (xs_wire.pack_message(Operation.ERROR, 1, 0, b""), "error that is none"),
        (xs_wire.pack_message(Operation.ERROR, 1, 0, b"__name__\0"), "error that is none"),
        (xs_wire.pack_message(Operation.WATCH_EVENT, 0, 0, b"/a\0"), "without a path and a token"),
        (xs_wire.pack_message(Operation.WATCH_EVENT, 0, 0, b"/a b\0xengrant-1\0"), "which is no path"),
        (xs_wire.pack_message(Operation.WATCH, 0, 0, b"OK\0"), "never asked"),
        (xs_wire.pack_message(Operation.READ, 0, 0, b""), "never asked"),
    ],
)
def test_a_server_that_lies(message: bytes, reason: str) -> None:
    codec = core.Codec("xenbus")
    codec.new_watch("/a")
    started(codec)
    with pytest.raises(ProtocolError, match=reason):
        fed(codec, message)


@given(st.binary(max_size=300))
def test_any_bytes_are_answers_or_a_protocol_error(data: bytes) -> None:
    codec = core.Codec("xenbus")
    codec.new_watch("/a")
    started(codec)
    with contextlib.suppress(ProtocolError):
        fed(codec, data)


def test_what_came_before_a_lie_counts() -> None:
    codec = core.Codec("xenbus")
    request = started(codec)
    with pytest.raises(ProtocolError):
        fed(codec, reply(request, b"1") + reply(request, b"again"))
    assert request.result() == b"1"


def test_linux_answers_watch_and_unwatch_with_request_id_0() -> None:
    codec = core.Codec("xenbus")
    first = core.Request(Operation.WATCH, "/a", b"/a\0t\0")
    second = core.Request(Operation.WATCH, "/b", b"/b\0t\0")
    other = core.Request(Operation.UNWATCH, "/c", b"/c\0t\0")
    for request in (first, other, second):
        codec.start(request)
    fed(codec, xs_wire.pack_message(Operation.WATCH, 0, 0, b"OK\0"))
    assert (first.done, other.done, second.done) == (True, False, False)
    fed(codec, xs_wire.pack_message(Operation.UNWATCH, 0, 0, b"OK\0"))
    fed(codec, xs_wire.pack_message(Operation.WATCH, 0, 0, b"OK\0"))
    assert (first.done, other.done, second.done) == (True, True, True)


def test_linux_leaves_the_ids_of_an_event_unset_and_may_send_it_before_the_answer() -> None:
    codec = core.Codec("xenbus")
    watch = codec.new_watch("/a")
    fed(codec, event("/a", watch.token, request_id=0x12345678))
    assert watch.take() == "/a"


def test_events_of_an_unknown_watch_are_late_and_ignored() -> None:
    codec = core.Codec("xenbus")
    watch = codec.new_watch("/a")
    codec.drop_watch(watch)
    assert fed(codec, event("/a", watch.token)) == []


def test_request_ids_in_use_are_not_given_again() -> None:
    codec = core.Codec("xenbus")
    old = started(codec)
    codec._last_id = 0xFFFFFFFE
    assert started(codec).id == 0xFFFFFFFF
    assert started(codec).id == 2
    fed(codec, reply(old, b"old"))
    assert old.result() == b"old"


def test_an_abandoned_answer_is_dropped() -> None:
    codec = core.Codec("xenbus")
    request = started(codec)
    codec.abandon(request)
    assert fed(codec, reply(request, b"late")) == []
    assert codec.take_undoing() == []


def test_an_abandoned_watch_and_transaction_are_undone() -> None:
    codec = core.Codec("xenbus")
    watching = core.Request(Operation.WATCH, "/a", b"/a\0t\0")
    starting = core.Request(Operation.TRANSACTION_START, None, b"\0")
    early = core.Request(Operation.TRANSACTION_START, None, b"\0")
    for request in (watching, starting, early):
        codec.start(request)
    fed(codec, reply(early, b"5\0"))
    for request in (watching, starting, early):
        codec.abandon(request)
    fed(codec, reply(watching, b"OK\0") + reply(starting, b"6\0"))
    undoing = [(r.operation, r.transaction_id, r.payload) for r in codec.take_undoing()]
    assert undoing == [
        (Operation.TRANSACTION_END, 5, b"F\0"),
        (Operation.UNWATCH, 0, b"/a\0t\0"),
        (Operation.TRANSACTION_END, 6, b"F\0"),
    ]


def test_an_abandoned_watch_that_was_refused_needs_no_undoing() -> None:
    codec = core.Codec("xenbus")
    watching = core.Request(Operation.WATCH, "/a", b"/a\0t\0")
    codec.start(watching)
    codec.abandon(watching)
    fed(codec, reply(watching, b"E2BIG\0", Operation.ERROR))
    assert codec.take_undoing() == []


def test_events_that_nobody_takes_do_not_grow() -> None:
    codec = core.Codec("xenbus")
    watch = codec.new_watch("/a")
    for i in range(5000):
        fed(codec, event(f"/a/{i}", watch.token))
    taken = []
    while watch:
        taken.append(watch.take())
    assert len(taken) <= 1024
    assert "/a" in taken


@pytest.mark.parametrize("name", [*xs_wire.ERRORS, "EQUOTA", "EDOM"])
def test_errors_have_the_number_of_their_name(name: str) -> None:
    number = getattr(errno, name, errno.EDQUOT)
    assert xs_wire.unpack_error(name.encode() + b"\0") == (number, name)


@pytest.mark.parametrize(
    "path", ["", "/a/", "a/", "//", "/a//b", "/a b", "/a\0", "a\n", "\u00e9", "@releaseDomain", "/" + "a" * 3072]
)
def test_paths_that_are_none(path: str) -> None:
    with pytest.raises(ValueError, match="xenstore path"):
        next(core.read(path, 0))


@pytest.mark.parametrize("path", ["/", "a", "a/b-c_d@e", "/" + "a" * 3071, "a" * 2048])
def test_paths(path: str) -> None:
    assert next(core.read(path, 0)).payload == path.encode() + b"\0"


def test_a_relative_path_has_2048_bytes() -> None:
    with pytest.raises(ValueError, match="2048 is the most"):
        next(core.read("a" * 2049, 0))


def test_a_message_stays_within_what_the_kernels_device_takes() -> None:
    assert len(next(core.write("a", bytes(4096 - 16 - 2), 0)).payload) == 4080
    with pytest.raises(XenStoreError, match="split the value") as caught:
        next(core.write("a", bytes(4096 - 16 - 1), 0))
    assert caught.value.errno == errno.E2BIG
    assert caught.value.path == "a"


@given(st.lists(st.tuples(st.integers(0, 65535), st.sampled_from("nrwb")), min_size=1, max_size=8))
def test_permissions_travel(entries: list[tuple[int, xs_wire.Access]]) -> None:
    permissions = tuple(xs_wire.Permission(*entry) for entry in entries)
    packed = xs_wire.pack_permissions(permissions)
    assert xs_wire.unpack_permissions(xs_wire.unpack_strings(packed)) == permissions
