"""Receiving pages: `Gnttab` maps what other domains granted, `Mapped` is what it hands out.

Made by `Domain.gnttab()`. Calls /dev/xen/gntdev. The hypervisor is asked at mmap time and the kernel folds each of its
answers into EINVAL, so a failed map is diagnosed by copying one byte from each grant.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

from xengrant.abi import gntdev as abi
from xengrant.abi import grant_table as xen
from xengrant.abi.xen import DOMID_FIRST_RESERVED, PAGE_SIZE
from xengrant.devices import Pointer
from xengrant.errors import GrantError, InterfaceClosed, InterfaceUnavailable, InvalidGrant, MapError
from xengrant.gntshr import UnmapNotify, notify_refused

if TYPE_CHECKING:
    from xengrant.devices import Device, System
    from xengrant.memory import Mapping

__all__ = ["CopySegment", "Grant", "GrantRef", "Gnttab", "Mapped"]

_log = logging.getLogger("xengrant.gnttab")

_MAX_REF = 0xFFFFFFFF
# drivers/xen/gntdev.c: `limit`, grants for each request.
_MAX_GRANTS = 65536


class GrantRef(IntEnum):
    """The references that every domain has from its builder (Xen public/grant_table.h)."""

    CONSOLE = xen.RESERVED_CONSOLE
    XENSTORE = xen.RESERVED_XENSTORE


class Grant(NamedTuple):
    """A page as its granter names it: the granting domain and its reference."""

    domid: int
    ref: int


@dataclass(frozen=True, slots=True)
class CopySegment:
    """One copy by the hypervisor, within a page on each granted side.

    `source` and `dest` are a `Grant` or local memory (any buffer, writable where it is `dest`); at least one is a
    grant. Offsets and `length` are bytes; offset + length is at most 4096 on a granted side.
    """

    source: Grant | memoryview | bytes | bytearray
    dest: Grant | memoryview | bytearray
    length: int
    source_offset: int = 0
    dest_offset: int = 0


class Mapped:
    """Pages of other domains, mapped side by side in the order asked.

    `mapping` is the memory (storing into a read-only one is `TypeError`). Leaving a `with` block closes it.

    Threads: the memory is shared by all; `close` is safe from any.
    """

    __slots__ = ("_gnttab", "_index", "grants", "mapping", "writable")

    def __init__(
        self, gnttab: Gnttab, index: int, grants: tuple[Grant, ...], mapping: Mapping, writable: bool
    ) -> None:
        self._gnttab = gnttab
        self._index = index
        self.grants = grants
        self.mapping = mapping
        self.writable = writable

    @property
    def closed(self) -> bool:
        return self.mapping.closed

    def close(self) -> None:
        """Unmap; a second time does nothing. `BufferError` while views are alive, and then nothing changes."""
        self.mapping.close()

    def __enter__(self) -> Self:
        self.mapping.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.mapping.__exit__(kind, error, trace)

    def __repr__(self) -> str:
        access = "writable" if self.writable else "read-only"
        domains = ", ".join(str(domid) for domid in sorted({grant.domid for grant in self.grants}))
        return f"<Mapped {len(self.grants)} pages of domain {domains}, {'closed' if self.closed else access}>"


class Gnttab:
    """One open /dev/xen/gntdev: the right to map what others granted.

    Threads: any call from any thread.
    """

    def __init__(self, device: Device, system: System) -> None:
        self._device = device
        self._system = system
        self._can_copy = False

    @property
    def closed(self) -> bool:
        return self._device.closed

    def fileno(self) -> int:
        return self._device.fileno()

    def map(
        self,
        grants: tuple[int, int] | Iterable[tuple[int, int]],
        *,
        writable: bool,
        notify: UnmapNotify | None = None,
    ) -> Mapped:
        """Map one `Grant` or several, of one domain or many, as one contiguous piece of memory: all or none.

        Raises `MapError` with a status for each grant, `InvalidGrant` for a reference or domid that cannot be,
        `ValueError` for no grants at all, `InterfaceClosed`. One notification for each map (Linux
        drivers/xen/gntdev.c); its byte is cleared only in a writable map.
        """
        wanted = _checked(grants)
        device = self._device
        if device.closed:
            raise InterfaceClosed("this Gnttab is closed: open another with domain.gnttab()")
        count = len(wanted)
        arg = abi.pack_map(wanted)
        device.ioctl(abi.MAP_GRANT_REF, arg)
        index = abi.map_result(arg)
        try:
            mapping = device.mmap(
                count * PAGE_SIZE, index, writable=writable, unmapped=_Unmap(device, index, count)
            )
        except OSError as error:
            device.ioctl(abi.UNMAP_GRANT_REF, abi.pack_unmap(index, count))
            raise self._why_not_mapped(error, wanted, writable=writable) from None
        if notify is not None:
            self._set_notify(notify, index, mapping)
        return Mapped(self, index, wanted, mapping, writable)

    def try_map(
        self,
        grants: tuple[int, int] | Iterable[tuple[int, int]],
        *,
        writable: bool,
        notify: UnmapNotify | None = None,
    ) -> Mapped | None:
        """As `map`, but None for every `GrantError`, whose text is logged on `xengrant.gnttab`."""
        try:
            return self.map(grants, writable=writable, notify=notify)
        except GrantError as error:
            _log.warning("%s", error)
            return None

    def unmap(self, mapped: Mapped) -> None:
        """Close `mapped`. `InvalidGrant` where another interface mapped it, `InterfaceClosed` where this one is closed.

        A second time does nothing.
        """
        if mapped._gnttab is not self:
            raise InvalidGrant(f"{mapped!r} was mapped through another Gnttab: unmap it there, or call its close()")
        if self._device.closed:
            raise InterfaceClosed("this Gnttab is closed; mapped.close() works without it")
        mapped.close()

    def copy(self, segments: Sequence[CopySegment]) -> list[int]:
        """Let the hypervisor copy each segment; the GNTST status of each, 0 where it was copied.

        Nothing is mapped and no page is touched twice. Raises `ValueError` for a segment that cannot be,
        `InterfaceUnavailable` where the hypervisor has no grant copy (QEMU's emulation of Xen, whose kernel would
        stop), `InterfaceClosed`.
        """
        if self._device.closed:
            raise InterfaceClosed("this Gnttab is closed: open another with domain.gnttab()")
        if not segments:
            return []
        for segment in segments:
            _check_segment(segment)
        self._check_can_copy()
        return self._copy(segments)

    def close(self) -> None:
        """Close the device; what it mapped stays until it is closed too. A second time does nothing."""
        self._device.close()

    def __enter__(self) -> Self:
        if self._device.closed:
            raise InterfaceClosed("this Gnttab is closed: open another with domain.gnttab()")
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Gnttab {'closed' if self.closed else 'open'} on {self._system.url}>"

    def _set_notify(self, notify: UnmapNotify, index: int, mapping: Mapping) -> None:
        try:
            self._device.ioctl(abi.SET_UNMAP_NOTIFY, notify.pack(index, len(mapping)))
        except OSError as error:
            mapping.close()
            raise notify_refused(error, notify) from None
        except BaseException:
            mapping.close()
            raise

    def _copy(self, segments: Sequence[CopySegment]) -> list[int]:
        table = bytearray().join(
            abi.pack_segment(
                _copy_side(segment.source, segment.source_offset),
                _copy_side(segment.dest, segment.dest_offset),
                segment.length,
            )
            for segment in segments
        )
        arg = abi.pack_copy(len(segments))
        pointers = [Pointer(arg, abi.COPY_SEGMENTS_POINTER, table, "inout")]
        for i, segment in enumerate(segments):
            at = i * abi.SEGMENT_SIZE
            if not isinstance(segment.source, tuple):
                local = bytearray(memoryview(segment.source).cast("B")[segment.source_offset :][: segment.length])
                pointers.append(Pointer(table, at + abi.SEGMENT_SOURCE, local, "in"))
            if not isinstance(segment.dest, tuple):
                view = memoryview(segment.dest).cast("B")[segment.dest_offset :][: segment.length]
                pointers.append(Pointer(table, at + abi.SEGMENT_DEST, view, "out"))
        self._device.ioctl(abi.GRANT_COPY, arg, pointers)
        return [abi.segment_status(table, i) for i in range(len(segments))]

    def _check_can_copy(self) -> None:
        """Map what nobody can have granted: a hypervisor without the hypercall says so instead of refusing the ref.

        Linux stops (BUG) when the copy hypercall itself fails, so it must not be tried there (drivers/xen/
        grant-table.c, gnttab_batch_copy).
        """
        if self._can_copy:
            return
        arg = abi.pack_map([(0, _MAX_REF)])
        self._device.ioctl(abi.MAP_GRANT_REF, arg)
        index = abi.map_result(arg)
        try:
            self._device.mmap(PAGE_SIZE, index, writable=False).close()
        except OSError as error:
            if error.errno == errno.ENOSYS:
                raise InterfaceUnavailable(
                    errno.ENOSYS, "this hypervisor has no grant copy (QEMU's emulation of Xen): use Gntshr only"
                ) from None
        finally:
            self._device.ioctl(abi.UNMAP_GRANT_REF, abi.pack_unmap(index, 1))
        self._can_copy = True

    def _why_not_mapped(self, error: OSError, grants: Sequence[Grant], *, writable: bool) -> OSError:
        asked = f"cannot map {len(grants)} grant{'s' * (len(grants) > 1)}"
        if error.errno == errno.ENOSYS:
            return InterfaceUnavailable(
                errno.ENOSYS, f"{asked}: this hypervisor maps no grants (QEMU's emulation of Xen)"
            )
        if error.errno != errno.EINVAL:
            return error
        byte = bytearray(1)
        statuses = self._copy([CopySegment(grant, byte, 1) for grant in grants])
        refused = [(grant, status) for grant, status in zip(grants, statuses, strict=True) if status]
        if refused:
            grant, status = refused[0]
            more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
            reason = f"ref {grant.ref} of domain {grant.domid}: {_STATUS_TEXT.get(status, f'status {status}')}{more}"
        elif writable:
            reason = "granted read-only: map it with writable=False"
        else:
            reason = "granted, yet refused: this domain's maptrack is full (max_maptrack_frames)"
        return MapError(errno.EINVAL, f"{asked}: {reason}", statuses=statuses)


class _Unmap:
    """Tells gntdev that a mapping is gone: HVM and PVH domains release the grant only then. Holds no mapping."""

    __slots__ = ("_count", "_device", "_index")

    def __init__(self, device: Device, index: int, count: int) -> None:
        self._device = device
        self._index = index
        self._count = count

    def __call__(self) -> None:
        if not self._device.closed:  # else the last munmap was the file's release
            self._device.ioctl(abi.UNMAP_GRANT_REF, abi.pack_unmap(self._index, self._count))


_STATUS_TEXT = {
    xen.GNTST_GENERAL_ERROR: "not granted to this domain (revoked, never granted, or granted to another)",
    xen.GNTST_BAD_DOMAIN: "there is no such domain",
    xen.GNTST_BAD_GNTREF: "the reference lies beyond that domain's grant table",
    xen.GNTST_PERMISSION_DENIED: "permission denied",
    xen.GNTST_BAD_PAGE: "the granted page does not exist any more",
    xen.GNTST_EAGAIN: "the page is paged out: try again",
}


def _checked(grants: tuple[int, int] | Iterable[tuple[int, int]]) -> tuple[Grant, ...]:
    if isinstance(grants, tuple) and len(grants) == 2 and isinstance(grants[0], int):
        wanted: tuple[Grant, ...] = (Grant(*grants),)  # type: ignore[arg-type]
    else:
        wanted = tuple(Grant(*grant) for grant in grants)  # type: ignore[misc]
    if not 0 < len(wanted) <= _MAX_GRANTS:
        raise ValueError(f"{len(wanted)} grants: map at least one and at most {_MAX_GRANTS} at once")
    for domid, ref in wanted:
        if not 0 <= domid < DOMID_FIRST_RESERVED:
            raise InvalidGrant(f"domid {domid} is outside 0..{DOMID_FIRST_RESERVED - 1:#x}")
        if not 0 <= ref <= _MAX_REF:
            raise InvalidGrant(f"ref {ref} is not an unsigned 32-bit number")
    return wanted


def _check_segment(segment: CopySegment) -> None:
    for side, offset in ((segment.source, segment.source_offset), (segment.dest, segment.dest_offset)):
        room = PAGE_SIZE if isinstance(side, tuple) else memoryview(side).nbytes
        if offset < 0 or segment.length < 0 or offset + segment.length > room:
            raise ValueError(f"{segment.length} bytes at offset {offset} do not fit in {room}")
        if isinstance(side, tuple):
            _checked(side)
    if not isinstance(segment.source, tuple) and not isinstance(segment.dest, tuple):
        raise ValueError("a copy needs a grant on one side at least")
    if not isinstance(segment.dest, tuple) and memoryview(segment.dest).readonly:
        raise TypeError("the copy's destination is read-only")


def _copy_side(side: Grant | object, offset: int) -> tuple[int, int, int] | None:
    return (side.ref, offset, side.domid) if isinstance(side, Grant) else None
