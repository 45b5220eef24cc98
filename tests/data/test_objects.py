"""Python objects over a vchan: buffers beside the pickle, and no name that the receiver did not allow."""

from __future__ import annotations

import collections
import datetime
import pickle
import struct
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy
import pytest

import xengrant
from xengrant import data, vchan
from xengrant.data import pickles
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


def named(module: str, name: str) -> bytes:
    return b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name)) + b"\x93"


MAKE = named("xengrant.data.objects", "ARRAY")


@pytest.mark.parametrize(
    "lie",
    [
        pickle.dumps(Evil()),
        pickle.dumps(numpy.ones(3)),  # NumPy's own functions believe what they are told
        named("builtins", "getattr") + b".",
        named("xengrant.data.objects", "pickle.loads") + b".",
        b"\x80\x05r\xff\xff\xff\x7f.",  # a memo of 2**31 places
        b"\x80\x05]r\xff\xff\xff\x7f.",
        b"not a pickle",
        b"",
        MAKE + b"(C\x03abc\x8c\x03<f8K\x05\x85\x8c\x01CtR.",
        MAKE + b"}\x8c\x01aK\x01sb.",  # sets an attribute
    ],
)
def test_lying_pickle(ends: tuple[Vchan, Vchan], lie: bytes) -> None:
    with pytest.raises(xengrant.ProtocolError):
        raw(ends, lie)


def long(size: int) -> bytes:
    return b"\x8b" + struct.pack("<i", size) + b"\x7f" * size


PRIME = sys.hash_info.modulus
ALIKE = [number * PRIME for number in range(1, 50_001)]
"""All of hash 0: CPython compares each, as a key, with all that are there."""
LONGS = [b"\x8a\x0b" + number.to_bytes(11, "little") for number in ALIKE]


def members(values: Iterable[Any]) -> bytes:
    """A frozenset of these, which no process has to make: a tuple's pickle with another end."""
    return pickle.dumps(tuple(values), 5)[:-3] + b"\x91\x94."


def calls(make: bytes, arguments: bytes, depth: int) -> bytes:
    """One call's result as the first argument of the next."""
    return b"\x80\x05" + make + b"\x940" + b"h\0(" * depth + b"N" + (arguments + b"tR") * depth + b"."


WIDE_LIST = b"]\x940" + b"".join(b"](h%ch%ce\x940" % (i, i) for i in range(60))
ONE = MAKE + b"(\x96" + struct.pack("<Q", 1) + b"a\x8c\x03|u1K\x01\x85\x8c\x01CtR"


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(b"\x80\x05})" + b"\x85" * 1_000_000 + b"Ns.", id="key of deep tuples"),
        pytest.param(b"\x80\x05})" + b"2\x86" * 60 + b"Ns.", id="key of shared tuples, by DUP"),
        pytest.param(b"\x80\x05})" + b"\x94h%c\x86" * 60 % tuple(range(60)) + b"Ns.", id="key of shared tuples"),
        pytest.param(b"\x80\x05\x8f()" + b"\x94h%c\x86" * 60 % tuple(range(60)) + b"\x90.", id="set of them"),
        pytest.param(b"\x80\x05()" + b"\x94h%c\x86" * 60 % tuple(range(60)) + b"\x91.", id="frozenset of them"),
        pytest.param(b"\x80\x05" + long(1 << 20) + b"\x940}(" + b"h\0N" * 1_000_000 + b"u.", id="one long key"),
        pytest.param(calls(named("builtins", "slice"), b"N", 300_000), id="deep slices"),
        pytest.param(calls(MAKE, b"\x8c\x03|u1K\x08\x85\x8c\x01C", 300_000).replace(b"N", b"C\x08abcdefgh", 1)),
        pytest.param(named("builtins", "range") + b"K\0" + long(2_000_000) + long(1_000_000) + b"\x87R."),
        pytest.param(WIDE_LIST + MAKE + b"(C\x01a\x8c\x03|u1h\x3c\x8c\x01CtR.", id="shape of shared lists"),
        pytest.param(WIDE_LIST + MAKE + b"(C\x01ah\x3cK\x01\x85\x8c\x01CtR.", id="dtype of shared lists"),
        pytest.param(WIDE_LIST + ONE + b"K\0h\x3cs.", id="element of shared lists"),
        pytest.param(ONE + b"Nb.", id="state of an array"),
        pytest.param(b"\x80\x05}(" + b"".join(key + b"N" for key in LONGS) + b"u.", id="keys alike"),
        pytest.param(b"\x80\x05}" + b"".join(key + b"Ns" for key in LONGS) + b".", id="keys alike, one by one"),
        pytest.param(b"\x80\x05\x8f(" + b"".join(LONGS) + b"\x90.", id="set of numbers alike"),
        pytest.param(members(ALIKE), id="frozenset of them"),
        pytest.param(members((1, (number,)) for number in ALIKE), id="tuples alike"),
        pytest.param(members(frozenset({1, (number,)}) for number in ALIKE), id="frozensets alike"),
        pytest.param(members((1 << 600, 1, number) for number in ALIKE), id="tuples alike of long numbers"),
        pytest.param(members((complex(-1000003 * n, n), "") for n in range(1, 50_000)), id="complex numbers alike"),
        pytest.param(members(range(number, number + 1) for number in ALIKE), id="ranges alike"),
        pytest.param(members((1,) * 1000 + (number,) for number in ALIKE[:2000]), id="wide tuples alike"),
    ],
)
def test_program_that_would_not_end(program: bytes) -> None:
    """In a process of its own: what is not refused crashes it, or holds its GIL for ever."""
    code = "import sys; from xengrant.data.objects import _load; _load(bytearray(sys.stdin.buffer.read()), [], ())"
    ran = subprocess.run([sys.executable, "-c", code], input=program, capture_output=True, timeout=SOON, check=False)
    assert ran.stderr.splitlines()[-1].startswith(b"xengrant.errors.ProtocolError: the peer's "), ran.stderr[-300:]
    assert b"cannot be made" not in ran.stderr


@pytest.mark.parametrize(
    "program", [b"(.", b"0.", b"1.", b"(N\x86.", b"h\0.", b"]e.", b"(]s.", b"N)\x92.", b"](0a.", b"\x94."]
)
def test_program_that_cannot_be_followed(ends: tuple[Vchan, Vchan], program: bytes) -> None:
    with pytest.raises(xengrant.ProtocolError):
        raw(ends, b"\x80\x05" + program)


def nested(depth: int, kind: Any) -> Any:
    value: Any = kind()
    for _ in range(depth):
        value = {1: value} if kind is dict else kind([value])
    return value


SHARED_KEY = ("a key", tuple(range(50)))
GRID = [(x, y) for x in range(-100, 100) for y in range(100)]
ORDINARY = [
    nested(200, list),
    nested(200, dict),
    nested(90, tuple),
    {nested(90, tuple): 1},
    [{SHARED_KEY: number} for number in range(20_000)],
    ((tuple(range(1000)),) * 1000,),
    {(x, y): [x] for x in range(200) for y in range(200)},
    {number: str(number) for number in range(-50_000, 50_000)},
    {str(number): number / 8 for number in range(100_000)},
    dict.fromkeys([*GRID, *(number / 8 for number in range(1, 100_000))]),
    {complex(*place): place for place in GRID},
    {frozenset({place}): range(*place) for place in GRID},
    {range(*place): 0 for place in GRID if place[0] < place[1]},
    [{-1: "", -2: 0, 0: None, "": -1}] * 1000,
    {frozenset({(1, 2), "text"}): {2**500, b"b" * 5000, "t" * 70_000}},
    [slice(1, None), range(5), range(2**100), 1j],
    collections.OrderedDict([((1, 2), [3])]),
    collections.deque([1, 2, 3]),
    [Point(1, 2)] * 1000,
    {datetime.date.fromordinal(day): day for day in range(1, 20_000)},
    [numpy.ones((2,) * 5), numpy.float64(3)],
]


@pytest.mark.parametrize("value", ORDINARY, ids=lambda value: type(value).__name__)
def test_ordinary_objects_pass(ends: tuple[Vchan, Vchan], value: Any) -> None:
    names = {"collections.OrderedDict", "collections.deque", "datetime.date", f"{Point.__module__}.Point"}
    scalar = {"numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"}
    found = carried(ends, value, allow=names | scalar)
    assert type(found) is type(value)
    if isinstance(value, dict):  # in some of them are sets, whose order may be another
        assert found == value
    else:
        assert pickle.dumps(found) == pickle.dumps(value)


def test_keys_that_take_each_others_places_are_refused(
    ends: tuple[Vchan, Vchan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All hashes differ; but the second half of them are looked for in the places of the first half, which are so many
    steps of CPython's probing in a row."""
    mask = (1 << 16) - 1
    run: list[int] = []
    for _ in range(mask // 3):
        run.append((run[-1] * 5 + 1 if run else 1) & mask)
    there = numpy.zeros(mask + 1, dtype=bool)
    there[run] = True
    keys = numpy.arange(mask + 1, 1 << 25)
    places, perturb = keys & mask, keys.copy()
    for _ in range(6):
        alive = there[places]
        keys, places, perturb = keys[alive], places[alive], perturb[alive] >> 5
        places = (places * 5 + perturb + 1) & mask
    program = b"".join(b"J" + struct.pack("<I", key) + b"N" for key in (*run, *keys[: mask // 3].tolist()))
    monkeypatch.setattr(pickles, "_PROBED", 0.0)
    with pytest.raises(xengrant.ProtocolError, match="take each other's places"):
        raw(ends, b"\x80\x05}(" + program + b"u.")


def test_time_that_is_out_in_the_middle_is_told(ends: tuple[Vchan, Vchan]) -> None:
    """Also where the other end reads, or writes, all the time: neither call may return as if all were well."""
    sender, receiver = ends
    with pytest.raises(TimeoutError, match="did not read all of an object"):
        data.send_object(sender, numpy.zeros(1 << 20, dtype=numpy.uint8), timeout=0.05)
    with pytest.raises(TimeoutError, match="did not write all of an object"):
        data.recv_object(receiver, timeout=0.05)


def test_large_set_passes(ends: tuple[Vchan, Vchan]) -> None:
    large = {*GRID, *map(str, GRID), *(frozenset({place, "at"}) for place in GRID)}
    assert carried(ends, large) == large


def test_objects_in_themselves(ends: tuple[Vchan, Vchan]) -> None:
    inner: list[Any] = []
    inner.append((1, 2, 3, 4, (inner,)))
    found = carried(ends, {"self": inner[0]})["self"]
    assert found[4][0][0] is found


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
