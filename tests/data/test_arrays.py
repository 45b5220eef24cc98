"""NumPy arrays in shared pages: one copy in, none out, and nothing believed of the peer."""

from __future__ import annotations

import json
from typing import Any

import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

import xengrant
from xengrant import data

SOON = 20.0
DTYPES = ["?", "u1", "<i2", ">i4", "<u8", "<f2", ">f8", "<c16", "<M8[ns]", "<m8[s]", "S5", "<U3", "V7"]


def mapped(mapper: xengrant.Domain, *, writable: bool = False) -> data.MappedArray:
    return data.map_array(mapper, 1, "data/array", writable=writable, timeout=SOON)


@pytest.mark.parametrize("dtype", DTYPES)
def test_array_arrives_as_it_is(granter: xengrant.Domain, mapper: xengrant.Domain, dtype: str) -> None:
    array = _some(dtype)
    with data.share_array(granter, 2, array, "data/array", writable=False), mapped(mapper) as there:
        assert there.array.dtype == array.dtype
        assert there.array.shape == array.shape
        assert there.array.tobytes() == array.tobytes()


def _some(dtype: str) -> Any:
    kind = numpy.dtype(dtype)
    count = 6 * 70
    memory = (numpy.arange(count * kind.itemsize) % 2).astype("u1")
    return memory.view(kind).reshape(2, 3, 70)


@settings(max_examples=30, suppress_health_check=list(HealthCheck))
@given(shape=st_numpy.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9), fortran=st.booleans())
def test_any_shape_and_order(
    granter: xengrant.Domain, mapper: xengrant.Domain, shape: tuple[int, ...], fortran: bool
) -> None:
    array = numpy.arange(numpy.prod(shape, dtype=int), dtype="<i4").reshape(shape, order="F" if fortran else "C")
    with data.share_array(granter, 2, array, "data/array", writable=False), mapped(mapper) as there:
        assert there.array.shape == shape
        assert (there.array == array).all()
        assert there.array.flags.f_contiguous == array.flags.f_contiguous


def test_both_ends_see_the_same_elements(granter: xengrant.Domain, mapper: xengrant.Domain) -> None:
    with data.new_array(granter, 2, (100, 100), "f8", "data/array", writable=True) as here:
        assert not here.array.any()
        with mapped(mapper, writable=True) as there:
            here.array[3, 4] = 5.5
            assert there.array[3, 4] == 5.5
            there.array[5] = numpy.arange(100)
            assert here.array[5, 99] == 99


def test_peer_that_may_only_read_gets_an_array_for_reading(granter: xengrant.Domain, mapper: xengrant.Domain) -> None:
    with data.share_array(granter, 2, [1, 2, 3], "data/array", writable=False) as here:
        with mapped(mapper) as there, pytest.raises(ValueError, match="read-only"):
            there.array[0] = 9
        with pytest.raises(xengrant.MapError):
            mapped(mapper, writable=True)
        here.array[0] = 9


def test_array_in_use_keeps_its_pages(granter: xengrant.Domain, mapper: xengrant.Domain) -> None:
    here = data.share_array(granter, 2, [1.0, 2.0], "data/array", writable=True)
    view = here.array[1:]
    with pytest.raises(BufferError):
        here.close()
    assert here.array[1] == 2.0
    with mapped(mapper) as there:
        assert there.array[0] == 1.0
    del view
    here.close()
    assert here.closed
    with pytest.raises(ValueError, match="closed"):
        _ = here.array
    with pytest.raises(TimeoutError):
        data.map_array(mapper, 1, "data/array", writable=False, timeout=0)


@pytest.mark.parametrize("array", [[object()], numpy.zeros(3, [("x", "f4"), ("y", "i2")]), numpy.ndarray((2,), "V0")])
def test_what_pages_cannot_hold_is_refused(granter: xengrant.Domain, array: Any) -> None:
    with pytest.raises(TypeError, match="no place"):
        data.share_array(granter, 2, numpy.asarray(array), "data/array", writable=False)


GOOD = {"kind": "array", "dtype": "<f4", "shape": [3, 4], "order": "C"}


@pytest.mark.parametrize(
    "lie",
    [
        "",
        "{",
        "[" * 1900,
        "null",
        json.dumps(GOOD | {"kind": "table"}),
        *[json.dumps(GOOD | {"dtype": text}) for text in ("O", "|O8", "<f4,<f4", "V0", "<i3", "<f99999", 5, "<M8[")],
        *[
            json.dumps(GOOD | {"shape": shape})
            for shape in (5, None, [-1], [1.5], [True], ["3"], [1025], [2**63], [2**40, 2**40], [1] * 33, [0, 2**62])
        ],
        json.dumps(GOOD | {"order": "A"}),
        json.dumps(GOOD | {"order": None}),
    ],
)
def test_lying_header(granter: xengrant.Domain, mapper: xengrant.Domain, lie: str) -> None:
    with granter.gntshr() as gntshr, gntshr.share_pages(2, count=1, writable=False) as share:
        granter.advertise(share, "data/array", lie)
        with pytest.raises(xengrant.ProtocolError):
            mapped(mapper)


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    st.fixed_dictionaries(
        {
            "kind": st.just("array"),
            "dtype": st.one_of(st.text(max_size=8), st.from_regex(r"[<>|][biufcmMSUVO][0-9]{0,5}(\[ns\])?\Z")),
            "shape": st.lists(st.one_of(st.integers(), st.none(), st.floats(), st.integers(0, 4096)), max_size=40),
            "order": st.sampled_from(["C", "F", "K", None]),
        }
    )
)
def test_any_header_is_an_array_within_the_pages_or_a_lie(
    granter: xengrant.Domain, mapper: xengrant.Domain, header: dict[str, Any]
) -> None:
    text = json.dumps(header)
    with (
        granter.gntshr() as gntshr,
        gntshr.share_pages(2, count=1, writable=False) as share,
        granter.advertise(share, "data/array", text),
    ):
        try:
            found = mapped(mapper)
        except xengrant.ProtocolError:
            return
        with found as there:
            assert there.array.nbytes <= 4096
            assert not there.array.dtype.hasobject
            there.array.tobytes()


def test_header_has_a_limit(granter: xengrant.Domain) -> None:
    with (
        granter.gntshr() as gntshr,
        gntshr.share_pages(2, count=1, writable=False) as share,
        pytest.raises(ValueError, match="2000"),
    ):
        granter.advertise(share, "data/array", "x" * 2001)
