"""The socket's format: what is packed is unpacked, and everything else is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xengrant.devices import wire
from xengrant.devices.wire import Direction, Kind, MalformedError, Part

U32 = st.integers(0, 0xFFFFFFFF)
U64 = st.integers(0, (1 << 64) - 1)


@given(st.binary(max_size=64), st.lists(st.tuples(U32, st.sampled_from(Direction), st.binary(max_size=16))))
def test_an_ioctl_arrives_as_it_was_sent(arg: bytes, pointers: list[tuple[int, Direction, bytes]]) -> None:
    sent = [(0, at, way, len(data), b"" if way is Direction.OUT else data) for at, way, data in pointers]
    call = wire.unpack_ioctl(wire.pack_ioctl(7, bytearray(arg), sent))
    assert (call.request, bytes(call.arg)) == (7, arg)
    expected = [(0, at, way, bytes(len(data)) if way is Direction.OUT else data) for at, way, data in pointers]
    assert [(p.holder, p.at, p.direction, bytes(p.data)) for p in call.pointers] == expected


@given(st.binary(max_size=200))
def test_any_bytes_are_an_ioctl_or_malformed(body: bytes) -> None:
    try:
        call = wire.unpack_ioctl(body)
    except MalformedError:
        return
    assert sum(len(pointer.data) for pointer in call.pointers) <= wire.MAX_BODY


@given(U64, U64, U64, st.booleans())
def test_mmap_munmap_and_prepare(cookie: int, length: int, offset: int, writable: bool) -> None:
    packed = wire.pack_mmap(cookie, length, offset, writable=writable)
    assert wire.unpack_mmap(packed) == (cookie, length, offset, writable)
    assert wire.unpack_munmap(wire.pack_munmap([cookie, length])) == [cookie, length]
    assert wire.unpack_prepare(wire.pack_prepare(cookie, 3)) == (cookie, 3)
    assert wire.unpack_cookie(wire.pack_cookie(cookie)) == cookie
    for unpack, size in ((wire.unpack_mmap, len(packed)), (wire.unpack_prepare, 16)):
        for wrong in (size - 1, size + 1):
            with pytest.raises(MalformedError):
                unpack(bytes(wrong))


def test_parts_name_each_descriptor_once() -> None:
    parts = [Part(30, 0, 4096), Part(40, 8192, 4096), Part(30, 4096, 8192)]
    body, fds = wire.pack_parts(parts)
    assert fds == [30, 40]
    assert wire.unpack_parts(body, fds) == parts
    with pytest.raises(MalformedError):
        wire.unpack_parts(body, fds[:1])
    with pytest.raises(MalformedError):
        wire.unpack_parts(body[:-1], fds)


def test_requests_of_no_kind() -> None:
    assert wire.parse_request(wire.pack_request(Kind.MMAP, b"12")) == (2, Kind.MMAP)
    with pytest.raises(MalformedError):
        wire.parse_request(bytes(wire.REQUEST.size))
