"""NumPy arrays in shared pages: dtype and shape travel in the advertised header, the elements do not travel at all.

The header is JSON: {"kind": "array", "dtype": "<f4", "shape": [3, 4], "order": "C"}. The elements begin at byte 0.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from xengrant.data.held import Looking, need, parse_header, share_bytes
from xengrant.errors import ProtocolError
from xengrant.memory import PAGE_SIZE

if TYPE_CHECKING:
    import numpy
    from numpy.typing import ArrayLike, DTypeLike, NDArray
    from typing_extensions import Buffer

    from xengrant.domain import Domain
    from xengrant.gntshr import Share
    from xengrant.gnttab import Mapped
    from xengrant.meeting import Advertisement

__all__ = [
    "MappedArray",
    "SharedArray",
    "check_dtype",
    "check_fits",
    "look_into",
    "map_array",
    "new_array",
    "share_array",
]

_DTYPE = re.compile(r"[<>|=][biufcmMSUV][0-9]{1,9}(\[[0-9]{0,4}[A-Za-z]{1,2}\])?")
_MOST_DIMENSIONS = 32  # of NumPy before 2.0
_LARGEST = 1 << 48  # bytes that an array without elements may pretend to


class SharedArray(Looking["NDArray[Any]"]):
    """An array in pages of this domain, advertised to the peer. `array` looks into the pages and is always writable.

    `share` is the pages' `Share`.
    """

    def __init__(self, share: Share, look: Callable[[Any], NDArray[Any]], advertisement: Advertisement) -> None:
        super().__init__(share, look, advertisement)
        self.share = share

    @property
    def array(self) -> NDArray[Any]:
        """The array, in the shared pages; `ValueError` after `close`."""
        return self._seen()

    def __repr__(self) -> str:
        return f"<SharedArray of {self.share!r}>"


class MappedArray(Looking["NDArray[Any]"]):
    """An array in a peer's pages, which the peer may be writing. `array` is writable where that was asked.

    `mapped` is the pages' `Mapped`.
    """

    def __init__(self, mapped: Mapped, look: Callable[[Any], NDArray[Any]]) -> None:
        super().__init__(mapped, look)
        self.mapped = mapped

    @property
    def array(self) -> NDArray[Any]:
        """The array, in the peer's pages; `ValueError` after `close`."""
        return self._seen()

    def __repr__(self) -> str:
        return f"<MappedArray of {self.mapped!r}>"


def share_array(domain: Domain, peer: int, array: ArrayLike, path: str, *, writable: bool) -> SharedArray:
    """Copy `array` once into pages that domain `peer` may map, and advertise it at `path` (`Domain.advertise`).

    `writable` says whether the peer may write. `TypeError` for elements that are Python objects or have fields;
    else as `Gntshr.share_pages` and `Domain.advertise`.
    """
    need("numpy", "numpy")
    import numpy

    source = numpy.asarray(array)
    order = "F" if source.flags.f_contiguous and not source.flags.c_contiguous else "C"
    return _new(domain, peer, source.shape, source.dtype, path, order, writable=writable, fill=source)


def new_array(
    domain: Domain, peer: int, shape: int | Sequence[int], dtype: DTypeLike, path: str, *, writable: bool
) -> SharedArray:
    """As `share_array`, of zeros, to be computed in place: nothing is ever copied."""
    need("numpy", "numpy")
    import numpy

    lengths = (shape,) if isinstance(shape, int) else tuple(shape)
    return _new(domain, peer, lengths, numpy.dtype(dtype), path, "C", writable=writable)


def _new(
    domain: Domain,
    peer: int,
    shape: tuple[int, ...],
    dtype: numpy.dtype[Any],
    path: str,
    order: str,
    *,
    writable: bool,
    fill: NDArray[Any] | None = None,
) -> SharedArray:
    if dtype.hasobject or dtype.names is not None or dtype.itemsize == 0 or _DTYPE.fullmatch(dtype.str) is None:
        raise TypeError(f"elements of dtype {dtype} have no place in shared pages: share their bytes, or a table")
    header = json.dumps({"kind": "array", "dtype": dtype.str, "shape": shape, "order": order})
    share = share_bytes(domain, peer, math.prod(shape) * dtype.itemsize, writable=writable)
    try:
        look = _looking(dtype, shape, order)
        if fill is not None:
            look(share.mapping)[...] = fill
        return SharedArray(share, look, domain.advertise(share, path, header))
    except BaseException:
        share.close()
        raise


def map_array(domain: Domain, domid: int, path: str, *, writable: bool, timeout: float | None = None) -> MappedArray:
    """Map the array that domain `domid` advertises at `path`, waiting until it does; nothing is copied.

    Raises `ProtocolError` where what it says of the array cannot be, `TimeoutError`, and as `Gnttab.map`.
    """
    need("numpy", "numpy")
    found = domain.find_advertised(domid, path, timeout)
    dtype, shape, order = _parse(found.header, len(found.grants) * PAGE_SIZE)
    with domain.gnttab() as gnttab:
        mapped = gnttab.map(found.grants, writable=writable)
    return MappedArray(mapped, _looking(dtype, shape, order))


def _looking(dtype: numpy.dtype[Any], shape: tuple[int, ...], order: str) -> Callable[[Any], NDArray[Any]]:
    """What makes an array of a mapping's first bytes."""
    return lambda mapping: look_into(mapping, dtype, shape, order)


def look_into(memory: Buffer, dtype: numpy.dtype[Any], shape: tuple[int, ...], order: str) -> NDArray[Any]:
    """The array that begins at byte 0 of `memory`, which has room for it and is held while the array lives.

    Of what numpy.ndarray is given it keeps the object only and lets go of the buffer: the mapping could be closed.
    """
    import numpy

    flat = numpy.empty(0, dtype) if 0 in shape else numpy.frombuffer(memoryview(memory), dtype, count=math.prod(shape))
    return flat.reshape(shape, order="F" if order == "F" else "C")


def _parse(header: bytes, size: int) -> tuple[numpy.dtype[Any], tuple[int, ...], str]:
    """dtype, shape and order of an array in at most `size` bytes, or `ProtocolError`."""
    said = parse_header(header, "array")
    dtype, shape, order = check_dtype(said.get("dtype")), said.get("shape"), said.get("order")
    if not isinstance(shape, list):
        raise ProtocolError(f"the peer's array has the shape {shape!r}, which cannot be")
    check_fits(dtype, tuple(shape), order, size)
    return dtype, tuple(shape), "F" if order == "F" else "C"


def check_dtype(text: object) -> numpy.dtype[Any]:
    """The dtype that a peer names, one of numbers, times, strings or raw bytes; or `ProtocolError`."""
    need("numpy", "numpy")
    import numpy

    try:
        if not isinstance(text, str) or _DTYPE.fullmatch(text) is None:
            raise TypeError
        dtype = numpy.dtype(text)
        if dtype.itemsize == 0:
            raise TypeError
    except (TypeError, ValueError):
        said = repr(text) if isinstance(text, str) else f"the type {type(text).__name__}"
        raise ProtocolError(f"the peer's array has elements of {said:.100}, which no array has") from None
    return dtype


def check_fits(dtype: numpy.dtype[Any], shape: object, order: object, size: int) -> None:
    """`ProtocolError` where an array of the peer's shape and order is none, or takes more than `size` bytes."""
    if (
        not isinstance(shape, tuple)
        or len(shape) > _MOST_DIMENSIONS
        or not all(type(length) is int and 0 <= length < 1 << 63 for length in shape)
        or order not in ("C", "F")
    ):
        raise ProtocolError(f"the peer's array has the shape {shape!r:.100} and order {order!r:.20}, which cannot be")
    # NumPy multiplies what is not 0, also where there is no element at all.
    needed = math.prod(length for length in shape if length) * dtype.itemsize
    if needed > (_LARGEST if 0 in shape else size):
        raise ProtocolError(f"the peer's array of {dtype} and shape {shape!r:.100} does not fit in its {size} bytes")
