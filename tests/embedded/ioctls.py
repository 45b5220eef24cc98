"""The ioctls as the tests make them: through `Device` and the packers of `abi`, nothing of the library above."""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from xengrant.abi import evtchn, gntalloc, gntdev, unmap_notify
from xengrant.abi.xen import PAGE_SIZE
from xengrant.devices import Device, Pointer
from xengrant.memory import Mapping


@contextlib.contextmanager
def refused(number: int) -> Iterator[None]:
    """The block fails with this errno."""
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is compared below
        yield
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[number], str(caught.value)


def eventually(holds: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
    """Ask again and again until the deadline."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} seconds: {what}"
        time.sleep(0.005)


def alloc(device: Device, domid: int, count: int = 1, *, writable: bool = True) -> tuple[int, tuple[int, ...]]:
    """(index, refs)."""
    arg = gntalloc.pack_alloc(domid, gntalloc.FLAG_WRITABLE if writable else 0, count)
    device.ioctl(gntalloc.ALLOC_GREF, arg)
    return gntalloc.alloc_result(arg, count)


def dealloc(device: Device, index: int, count: int = 1) -> None:
    device.ioctl(gntalloc.DEALLOC_GREF, gntalloc.pack_dealloc(index, count))


def share(device: Device, domid: int, count: int = 1, *, writable: bool = True) -> tuple[tuple[int, ...], Mapping]:
    """(refs, mapping), as libxengntshr does it: the mapping alone holds the grants."""
    index, refs = alloc(device, domid, count, writable=writable)
    mapping = device.mmap(count * PAGE_SIZE, index, writable=True)
    dealloc(device, index, count)
    return refs, mapping


def add_map(device: Device, grants: Sequence[tuple[int, int]]) -> int:
    """MAP_GRANT_REF: the index."""
    arg = gntdev.pack_map(grants)
    device.ioctl(gntdev.MAP_GRANT_REF, arg)
    return gntdev.map_result(arg)


def map_grants(device: Device, grants: Sequence[tuple[int, int]], *, writable: bool) -> tuple[int, Mapping]:
    """(index, mapping)."""
    index = add_map(device, grants)
    return index, device.mmap(len(grants) * PAGE_SIZE, index, writable=writable)


def unmap(device: Device, index: int, count: int = 1) -> None:
    device.ioctl(gntdev.UNMAP_GRANT_REF, gntdev.pack_unmap(index, count))


def notify_at(device: Device, index: int, *, clear_byte: bool = False, port: int | None = None) -> None:
    """SET_UNMAP_NOTIFY of gntalloc and gntdev, which have the same number."""
    action = (unmap_notify.CLEAR_BYTE if clear_byte else 0) | (0 if port is None else unmap_notify.SEND_EVENT)
    device.ioctl(gntalloc.SET_UNMAP_NOTIFY, unmap_notify.pack_notify(index, action, port or 0))


def bind_unbound(device: Device, remote: int) -> int:
    return device.ioctl(evtchn.BIND_UNBOUND_PORT, evtchn.pack_word(remote))


def bind_interdomain(device: Device, remote: int, port: int) -> int:
    """The local port, with the first, spurious event taken and unmasked."""
    local = device.ioctl(evtchn.BIND_INTERDOMAIN, evtchn.pack_interdomain(remote, port))
    assert read_ports(device) == (local,)
    unmask(device, local)
    return local


def unbind(device: Device, port: int) -> None:
    device.ioctl(evtchn.UNBIND, evtchn.pack_word(port))


def notify(device: Device, port: int) -> None:
    device.ioctl(evtchn.NOTIFY, evtchn.pack_word(port))


def unmask(device: Device, port: int) -> None:
    device.write(evtchn.pack_ports([port]))


def read_ports(device: Device) -> tuple[int, ...]:
    """What is pending now, maybe nothing."""
    try:
        return evtchn.unpack_ports(device.read(PAGE_SIZE))
    except BlockingIOError:
        return ()


def connected(left: Device, left_domid: int, right: Device, right_domid: int) -> tuple[int, int]:
    """The two ports of a new channel."""
    port = bind_unbound(left, right_domid)
    return port, bind_interdomain(right, left_domid, port)


def copy(device: Device, segments: Sequence[tuple[object, object, int]]) -> list[int]:
    """GRANT_COPY of (source, dest, length), a side being (ref, offset, domid) or a bytearray: the statuses."""
    sides = [(source if isinstance(source, tuple) else None, dest if isinstance(dest, tuple) else None, length)
             for source, dest, length in segments]
    table = bytearray().join(gntdev.pack_segment(*side) for side in sides)
    arg = gntdev.pack_copy(len(segments))
    pointers = [Pointer(arg, gntdev.COPY_SEGMENTS_POINTER, table, "inout")]
    for i, (source, dest, _) in enumerate(segments):
        at = i * gntdev.SEGMENT_SIZE
        if isinstance(source, bytearray):
            pointers.append(Pointer(table, at + gntdev.SEGMENT_SOURCE, source, "in"))
        if isinstance(dest, bytearray):
            pointers.append(Pointer(table, at + gntdev.SEGMENT_DEST, dest, "out"))
    device.ioctl(gntdev.GRANT_COPY, arg, pointers)
    return [gntdev.segment_status(table, i) for i in range(len(segments))]
