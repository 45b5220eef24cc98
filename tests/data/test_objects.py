"""Python objects over a vchan: buffers beside the pickle, and no name that the receiver did not allow."""

from __future__ import annotations

import pickle
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy
import pytest

import xengrant
from xengrant import data, vchan
from xengrant.vchan import Vchan

SOON = 20.0


@dataclass
class Point:
    x: int
    y: int


@pytest.fixture
def ends(granter: xengrant.Domain, mapper: xengrant.Domain) -> Iterator[tuple[Vchan, Vchan]]:
    with (
        vchan.serve(2, "objects", domain=granter, read_size=65536, write_size=65536) as server,
        vchan.connect(1, "objects", domain=mapper, timeout=SOON) as client,
    ):
        yield server, client


def carried(ends: tuple[Vchan, Vchan], value: object, **options: Any) -> Any:
    sending = threading.Thread(target=data.send_object, args=(ends[0], value, SOON))
    sending.start()
    try:
        return data.recv_object(ends[1], SOON, **options)
    finally:
        sending.join(SOON)


VALUES = [None, 5, 2**200, "text", {"a": [1, (2, 3), {4}]}, [b"bytes"], frozenset({1}), 1.5j, bytearray(b"x" * 99)]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_plain_objects(ends: tuple[Vchan, Vchan], value: object) -> None:
    assert carried(ends, value, allow=()) == value


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (100, 300), (2, 3, 4)])
def test_arrays(ends: tuple[Vchan, Vchan], shape: tuple[int, ...], order: Any) -> None:
    array = numpy.arange(numpy.prod(shape, dtype=int), dtype=">i4").reshape(shape, order=order)
    found = carried(ends, {"arrays": [array, array[..., :2] if shape else array]})["arrays"]
    assert found[0].dtype == array.dtype
    assert (found[0] == array).all()
    assert found[0].shape == shape
    assert found[0].flags.writeable
    if shape:
        assert (found[1] == array[..., :2]).all()


def test_large_buffers_go_beside_the_pickle(ends: tuple[Vchan, Vchan]) -> None:
    """Through a ring that is smaller than they are."""
    long, ones = bytearray(b"a" * 300_000), numpy.ones((500, 500))
    memory, array = carried(ends, [pickle.PickleBuffer(long), ones])
    assert memory == long
    assert (array == ones).all()


def test_class_has_to_be_allowed(ends: tuple[Vchan, Vchan]) -> None:
    name = f"{Point.__module__}.Point"
    with pytest.raises(xengrant.ProtocolError, match="allow="):
        carried(ends, Point(1, 2))
    assert carried(ends, Point(1, 2), allow={name}) == Point(1, 2)


class Evil:
    def __reduce__(self) -> Any:
        return eval, ("1+1",)


def raw(ends: tuple[Vchan, Vchan], pickled: bytes, buffers: tuple[bytes, ...] = (), **options: Any) -> Any:
    sizes = b"".join(struct.pack("<Q", len(part)) for part in (pickled, *buffers))
    message = struct.pack("<4sI", b"XGO5", len(buffers)) + sizes + pickled + b"".join(buffers)
    sending = threading.Thread(target=ends[0].write, args=(message, SOON))
    sending.start()
    try:
        return data.recv_object(ends[1], SOON, **options)
    finally:
        sending.join(SOON)


MAKE = b"cxengrant.data.objects\nARRAY\n"


@pytest.mark.parametrize(
    "lie",
    [
        pickle.dumps(Evil()),
        pickle.dumps(numpy.ones(3)),  # NumPy's own functions believe what they are told
        b"cbuiltins\ngetattr\n.",
        b"cxengrant.data.objects\npickle.loads\n.",
        b"\x80\x05r\xff\xff\xff\x7f.",  # a memo of 2**31 places
        b"\x80\x05]r\xff\xff\xff\x7f.",
        b"not a pickle",
        b"",
        MAKE + b"(X\x03\x00\x00\x00abcX\x03\x00\x00\x00<f8(I5\ntX\x01\x00\x00\x00Ct R.",
        MAKE + b"}X\x01\x00\x00\x00aI1\nsb.",  # sets an attribute
    ],
)
def test_lying_pickle(ends: tuple[Vchan, Vchan], lie: bytes) -> None:
    with pytest.raises(xengrant.ProtocolError):
        raw(ends, lie)


@pytest.mark.parametrize("head", [b"XGO4" + bytes(4), b"XGO5" + b"\xff" * 4, b"XGO5" + bytes(4) + b"\xff" * 8])
def test_lying_sizes(ends: tuple[Vchan, Vchan], head: bytes) -> None:
    ends[0].write(head, SOON)
    with pytest.raises(xengrant.ProtocolError):
        data.recv_object(ends[1], SOON)


def test_size_is_limited(ends: tuple[Vchan, Vchan]) -> None:
    with pytest.raises(xengrant.ProtocolError, match="at most 1000"):
        raw(ends, pickle.dumps(b"x" * 2000, 5), max_bytes=1000)


def test_peer_that_closes_in_the_middle(ends: tuple[Vchan, Vchan]) -> None:
    ends[0].write(b"XGO5" + bytes(4) + struct.pack("<Q", 100) + b"half", SOON)
    ends[0].close()
    with pytest.raises((xengrant.PeerClosed, EOFError)):
        data.recv_object(ends[1], SOON)
