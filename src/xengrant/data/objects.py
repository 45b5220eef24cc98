"""Python objects over a vchan: pickle protocol 5, whose large buffers go from memory to memory beside the pickle.

On the wire, little-endian: "XGO5", the number of buffers (u32), the pickle's size and each buffer's (u64), and then
their bytes. A pickle is a program that names functions to call: what it may name is the receiver's list, which has
nothing in it where none is given. NumPy arrays name one object of this file, which checks what it is told.
"""

from __future__ import annotations

import errno
import io
import pickle
import struct
import sys
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from xengrant.data.arrays import check_dtype, check_fits, look_into
from xengrant.data.pickles import check_pickle
from xengrant.errors import PeerClosed, ProtocolError
from xengrant.waiting import deadline_after, seconds_until

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from xengrant.vchan import Vchan

__all__ = ["recv_object", "send_object"]

_MAGIC = b"XGO5"
_HEAD = struct.Struct("<4sI")
_SIZE = struct.Struct("<Q")
_MOST_BUFFERS = 65536
_LONGEST = 2048
"""Bits of a number in a range, whose length CPython divides for."""


def send_object(vchan: Vchan, value: object, timeout: float | None = None) -> None:
    """Send any object that can be pickled; contiguous buffers of it, as those of NumPy arrays, are not copied.

    Raises what pickling raises, `TimeoutError`, `PeerClosed`. After `TimeoutError` the stream cannot be used any more.
    """
    buffers: list[memoryview] = []
    stream = io.BytesIO()
    _Pickler(stream, protocol=5, buffer_callback=lambda buffer: buffers.append(buffer.raw())).dump(value)
    if len(buffers) > _MOST_BUFFERS:
        raise ValueError(f"{len(buffers)} buffers: at most {_MOST_BUFFERS} go beside a pickle")
    pickled = stream.getbuffer()
    head = _HEAD.pack(_MAGIC, len(buffers))
    head += b"".join(_SIZE.pack(part.nbytes) for part in (pickled, *buffers))
    deadline = deadline_after(timeout)
    parts: list[Buffer] = [head, pickled, *buffers]
    for part in parts:
        if vchan.write(part, seconds_until(deadline)) < memoryview(part).nbytes:
            raise TimeoutError(f"domain {vchan.domid} did not read all of an object in time")


def recv_object(
    vchan: Vchan, timeout: float | None = None, *, allow: Collection[str] = (), max_bytes: int = 1 << 30
) -> Any:
    """Receive what `send_object` sent. Arrays come in memory of their own, writable.

    `allow` has what the pickle may name beside NumPy arrays, as "module.name": classes, mostly. The peer decides how
    they are called, so it has to be trusted with that. Raises `ProtocolError` where the peer names something else, or
    sends more than `max_bytes`, or nonsense; `TimeoutError`; `EOFError` where it closed its end before an object, and
    `PeerClosed` where it did in the middle of one.
    """
    deadline = deadline_after(timeout)

    def receive(size: int, *, first: bool = False) -> bytearray:
        memory = bytearray(size)
        came = vchan.fill(memory, seconds_until(deadline))
        if came == size:
            return memory
        if first and came == 0:
            raise EOFError(f"domain {vchan.domid} closed its end")
        if vchan.is_open:
            raise TimeoutError(f"domain {vchan.domid} did not write all of an object in time")
        raise PeerClosed(errno.EPIPE, f"domain {vchan.domid} closed its end in the middle of an object")

    magic, count = _HEAD.unpack(receive(_HEAD.size, first=True))
    if magic != _MAGIC or count > _MOST_BUFFERS:
        raise ProtocolError(f"the peer sends no object, but {magic!r}")
    sizes = [size for (size,) in _SIZE.iter_unpack(receive(_SIZE.size * (count + 1)))]
    if sum(sizes) > max_bytes:
        raise ProtocolError(f"the peer sends an object of {sum(sizes)} bytes: at most {max_bytes} are taken")
    pickled, *buffers = [receive(size) for size in sizes]
    return _load(pickled, buffers, allow)


class _Pickler(pickle.Pickler):
    """Names `ARRAY` in place of the several functions that the versions of NumPy name."""

    def reducer_override(self, value: Any) -> Any:
        numpy = sys.modules.get("numpy")
        if numpy is None or type(value) is not numpy.ndarray or value.dtype.hasobject or value.dtype.names is not None:
            return NotImplemented
        order = "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"
        elements = numpy.asarray(value, order=order)
        flat = pickle.PickleBuffer(elements.reshape(-1, order="A").view("u1"))
        return ARRAY, (flat, value.dtype.str, value.shape, order)


class _Array:
    """Makes an array of a buffer. An object without attributes, so that a pickle cannot set any."""

    __slots__ = ()

    def __call__(self, memory: Buffer, dtype: str, shape: tuple[int, ...], order: str) -> Any:
        if type(shape) is not tuple or not all(type(part) is int for part in shape) or type(order) is not str:
            raise ProtocolError("the peer's array has a shape that is no tuple of numbers, or an order that is no text")
        kind = check_dtype(dtype)
        check_fits(kind, shape, order, memoryview(memory).nbytes)
        return look_into(memory, kind, shape, order)

    def __reduce__(self) -> str:
        return "ARRAY"


ARRAY = _Array()


def _range(*bounds: int) -> range:
    if any(type(bound) is not int or bound.bit_length() > _LONGEST for bound in bounds):
        raise ProtocolError(f"the peer's range is of other things than numbers of at most {_LONGEST} bits")
    return range(*bounds)


_PLAIN: dict[tuple[str, str], Callable[..., Any]] = {
    (__name__, "ARRAY"): ARRAY,
    ("builtins", "complex"): complex,
    ("builtins", "range"): _range,
    ("builtins", "slice"): slice,
}
"""What any pickle may name."""


class _Unpickler(pickle.Unpickler):
    def __init__(self, pickled: bytearray, buffers: list[bytearray], allow: Collection[str]) -> None:
        super().__init__(io.BytesIO(pickled), buffers=buffers)
        self._allow = allow

    def find_class(self, module: str, name: str) -> Any:
        plain = _PLAIN.get((module, name))
        if plain is not None:
            return plain
        if f"{module}.{name}" not in self._allow:
            raise ProtocolError(f"the peer's object names {f'{module}.{name}'!r}, which allow= does not have")
        return super().find_class(module, name)


def _load(pickled: bytearray, buffers: list[bytearray], allow: Collection[str]) -> Any:
    try:
        check_pickle(pickled, _PLAIN)
        return _Unpickler(pickled, buffers, allow).load()
    except (ProtocolError, MemoryError):
        raise
    except Exception as error:  # whatever the pickle has callables do
        raise ProtocolError(f"the peer's object cannot be made: {type(error).__name__}: {error}") from error
