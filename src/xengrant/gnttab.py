"""Receiving pages: `Gnttab` maps what other domains granted, `Mapped` is what it hands out.

Made by `Domain.gnttab()`. Calls /dev/xen/gntdev. The hypervisor is asked at mmap time and the kernel folds each of its
answers into EINVAL, so a failed map is diagnosed by copying one byte from each grant.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import operator
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple, Self

from xengrant._native import Held
from xengrant.abi import gntdev as abi
from xengrant.abi import grant_table as xen
from xengrant.abi.xen import DOMID_FIRST_RESERVED, PAGE_SIZE
from xengrant.arguments import MAX_U32, checked_domid, checked_number
from xengrant.devices import Pointer
from xengrant.errors import SILO, GrantError, InterfaceClosed, InterfaceUnavailable, InvalidGrant, MapError

if TYPE_CHECKING:
    from typing import TypeAlias

    from xengrant.devices import Device, System
    from xengrant.gntshr import UnmapNotify
    from xengrant.memory import Mapping

    _Side: TypeAlias = tuple[int, int] | memoryview | Mapping | bytes | bytearray

__all__ = ["MAX_GRANTS", "CopySegment", "Gnttab", "Grant", "GrantRef", "Mapped"]

_log = logging.getLogger("xengrant.gnttab")

# What one map takes (Linux drivers/xen/gntdev.c, `limit`).
MAX_GRANTS = 65536


class GrantRef(IntEnum):
    """The references that every domain has from its builder (Xen public/grant_table.h, GNTTAB_RESERVED_*)."""

    CONSOLE = xen.RESERVED_CONSOLE
    XENSTORE = xen.RESERVED_XENSTORE


class Grant(NamedTuple):
    """A page as its granter names it: the granting domain (0 to 0x7FEF) and its reference (unsigned, 32 bits).

    Any pair of the two will do where a grant is asked for; this one has names.
    """

    domid: int
    ref: int


@dataclass(frozen=True, slots=True)
class CopySegment:
    """One copy by the hypervisor, within a page on each granted side.

    `source` and `dest` are a `Grant` or local memory (a contiguous buffer, writable where it is `dest`); at least one
    is a grant. Offsets and `length` are bytes; offset + length is at most 4096 on a granted side.
    """

    source: tuple[int, int] | memoryview | Mapping | bytes | bytearray
    dest: tuple[int, int] | memoryview | Mapping | bytearray
    length: int
    source_offset: int = 0
    dest_offset: int = 0


class Mapped(Held):
    """Pages of other domains, mapped side by side in the order asked; made by `Gnttab.map`.

    `mapping` is the memory (storing into a read-only one is `TypeError`). `close` unmaps it, and leaving a `with` block
    closes; while views are alive that is `BufferError`, and nothing changes.

    Threads: the memory is shared by all; `close` is safe from any.
    """

    __slots__ = ()

    @property
    def grants(self) -> tuple[Grant, ...]:
        """What is mapped, page by page; made of MAP_GRANT_REF's argument whenever it is asked for."""
        return tuple(map(Grant._make, abi.unpack_map(self._names)))

    def __repr__(self) -> str:
        access = "writable" if self.writable else "read-only"
        domains = ", ".join(str(domid) for domid in sorted({grant.domid for grant in self.grants}))
        return f"<Mapped {len(self.grants)} pages of domain {domains}, {'closed' if self.closed else access}>"


class Gnttab:
    """One open /dev/xen/gntdev: the right to map what others granted. Made by `Domain.gnttab`.

    Threads: any call from any thread.
    """

    def __init__(self, device: Device, system: System) -> None:
        self._device = device
        self._map = device.map  # once: what runs between two system calls is dear (docs/benchmarks.md)
        self._system = system
        self._can_copy = False

    @property
    def closed(self) -> bool:
        """Whether the device is closed; what it mapped stays mapped."""
        return self._device.closed

    def fileno(self) -> int:
        """The descriptor of the device."""
        return self._device.fileno()

    def map(
        self,
        grants: tuple[int, int] | Iterable[tuple[int, int]],
        *,
        writable: bool,
        notify: UnmapNotify | None = None,
    ) -> Mapped:
        """Map one `Grant` or several, of one domain or many, as one contiguous piece of memory, 4096 bytes each: all or
        none.

        Raises `MapError` with a status for each grant, `InvalidGrant` for a reference or domid that cannot be,
        `ValueError` for no grants at all or more than 65536, `InterfaceUnavailable` where the hypervisor maps
        nothing, `InterfaceClosed`. One notification for each map (Linux drivers/xen/gntdev.c); its byte is cleared only
        in a writable map.
        """
        if notify is None:
            mapped = self._map(grants, Grant, writable, Mapped, self)
            if mapped is not None:
                return mapped
        wanted = _checked_grants(grants)
        count = len(wanted)
        length = count * PAGE_SIZE
        if notify is not None:
            notify.check(length)
        device = self._device
        if device.closed:
            raise InterfaceClosed("this Gnttab is closed: open another with domain.gnttab()")
        arg = abi.pack_map(wanted)
        try:
            device.ioctl(abi.MAP_GRANT_REF, arg)
        except OSError as error:
            raise self._why_not_taken(error, count) from None
        unmap = _Unmap(device, abi.map_result(arg), count)
        try:
            mapping = device.mmap(length, unmap.index, writable=writable, unmapped=unmap)
        except OSError as error:
            with contextlib.suppress(OSError):
                unmap()
            raise self._why_not_mapped(error, wanted, writable=writable) from None
        except BaseException:
            # Where a signal broke in after the mapping was made, the mapping is gone by now and has unmapped already.
            with contextlib.suppress(OSError):
                unmap()
            raise
        if notify is not None:
            self._set_notify(notify, unmap.index, mapping)
        return Mapped(self, bytes(arg), mapping, writable)

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
        if mapped._whose is not self:
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
        for segment in segments:
            _check_segment(segment)
        if not segments:
            return []
        self.check_can_copy()
        return self._copy(segments)

    def copy_run(
        self,
        domid: int,
        pieces: Sequence[tuple[int, int, int]],
        memory: memoryview,
        *,
        to_grants: bool,
    ) -> list[int]:
        """`copy` for many: between `memory`, from its start on without gaps, and pieces of pages of `domid`.

        A piece is (ref, offset, length), in bytes; `memory` is writable, contiguous, and as long as all of them.
        Statuses and errors as of `copy`.
        """
        if self._device.closed:
            raise InterfaceClosed("this Gnttab is closed: open another with domain.gnttab()")
        checked_domid(domid)
        if not pieces:
            return []
        refs, offsets, lengths = zip(*pieces, strict=True)
        if sum(lengths) != memory.nbytes or max(map(operator.add, offsets, lengths)) > PAGE_SIZE:
            raise ValueError("the pieces are not as long as the memory, or do not fit in their pages")
        address = self._device.address(memory)
        if address is None:
            return self.copy(_segments(domid, pieces, memory, to_grants=to_grants))
        self.check_can_copy()
        table = bytearray(abi.pack_run(domid, refs, offsets, lengths, address, to_grants=to_grants))
        arg = abi.pack_copy(len(refs))
        self._device.ioctl(abi.GRANT_COPY, arg, [Pointer(arg, abi.COPY_SEGMENTS_POINTER, table, "inout")])
        return abi.segment_statuses(table)

    def close(self) -> None:
        """Close the device; what it mapped stays mapped until it is closed too. A second time does nothing.

        The kernel then knows of no single map any more: outside PV domains the peer has its pages back when the last
        of them is unmapped (Linux drivers/xen/gntdev.c, gntdev_release).
        """
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
            self._device.ioctl(abi.SET_UNMAP_NOTIFY, notify.pack(index))
        except BaseException as error:
            with contextlib.suppress(OSError):
                mapping.close()
            if isinstance(error, OSError):
                raise notify.explain(error) from None
            raise

    def _copy(self, segments: Sequence[CopySegment]) -> list[int]:
        table = bytearray().join(
            abi.pack_segment(
                _granted_side(segment.source, segment.source_offset),
                _granted_side(segment.dest, segment.dest_offset),
                segment.length,
            )
            for segment in segments
        )
        arg = abi.pack_copy(len(segments))
        pointers = [Pointer(arg, abi.COPY_SEGMENTS_POINTER, table, "inout")]
        for i, segment in enumerate(segments):
            at = i * abi.SEGMENT_SIZE
            if not isinstance(segment.source, tuple):
                local = bytearray(_local_side(segment.source, segment.source_offset, segment.length))
                pointers.append(Pointer(table, at + abi.SEGMENT_SOURCE, local, "in"))
            if not isinstance(segment.dest, tuple):
                view = _local_side(segment.dest, segment.dest_offset, segment.length)
                pointers.append(Pointer(table, at + abi.SEGMENT_DEST, view, "out"))
        self._device.ioctl(abi.GRANT_COPY, arg, pointers)
        return [abi.segment_status(table, i) for i in range(len(segments))]

    def check_can_copy(self) -> None:
        """`InterfaceUnavailable` where the hypervisor has no grant copy, which `copy` would raise.

        Maps what nobody can have granted: a hypervisor without the hypercall says so instead of refusing the ref. Linux
        stops (BUG) when the copy hypercall itself fails, so it must not be tried there (drivers/xen/
        grant-table.c, gnttab_batch_copy).
        """
        if self._can_copy:
            return
        arg = abi.pack_map([(0, MAX_U32)])
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

    def _why_not_taken(self, error: OSError, count: int) -> OSError:
        """MAP_GRANT_REF's error: it asks Xen nothing, so EINVAL is about the number of grants."""
        if error.errno != errno.EINVAL:
            return error
        limit = self._system.parameter("xen_gntdev", "limit")
        return MapError(
            errno.EINVAL,
            f"cannot map {_grants(count)}: gntdev takes at most {limit or 'some'} at once; map fewer, or raise "
            "/sys/module/xen_gntdev/parameters/limit",
        )

    def _why_not_mapped(self, error: OSError, grants: Sequence[Grant], *, writable: bool) -> OSError:
        asked = f"cannot map {_grants(len(grants))}"
        if error.errno == errno.ENOSYS:
            return InterfaceUnavailable(
                errno.ENOSYS, f"{asked}: this hypervisor maps no grants (QEMU's emulation of Xen)"
            )
        if error.errno != errno.EINVAL:
            return error
        byte = bytearray(1)
        try:
            statuses = self._copy([CopySegment(grant, byte, 1) for grant in grants])
        except OSError as failure:
            return MapError(errno.EINVAL, f"{asked}; nor could the hypervisor be asked why: {failure.strerror}")
        refused = [(grant, status) for grant, status in zip(grants, statuses, strict=True) if status]
        if refused:
            grant, status = refused[0]
            more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
            reason = f"ref {grant.ref} of domain {grant.domid}: {_STATUS_TEXT.get(status, f'status {status}')}{more}"
        elif writable:
            reason = "granted read-only: map with writable=False (else this domain's maptrack is full)"
        else:
            reason = "granted, yet refused: this domain's maptrack is full (max_maptrack_frames)"
        return MapError(errno.EINVAL, f"{asked}: {reason}", statuses=statuses)


class _Unmap:
    """Tells gntdev that a map is gone: HVM and PVH domains release the grant only then. Holds no mapping.

    Called when the memory is unmapped, perhaps by a finalizer and in any thread, or when it could not be mapped.
    """

    __slots__ = ("_count", "_device", "index")

    def __init__(self, device: Device, index: int, count: int) -> None:
        self._device = device
        self._count = count
        self.index = index

    def __call__(self, *, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if is_finalizing():  # modules may be gone, and the process' end is the file's release
            return
        with contextlib.suppress(InterfaceClosed):  # then the last munmap is the file's release
            self._device.ioctl(abi.UNMAP_GRANT_REF, abi.pack_unmap(self.index, self._count))


_STATUS_TEXT = {
    xen.GNTST_GENERAL_ERROR: "not granted to this domain (revoked, never granted, or granted to another)",
    xen.GNTST_BAD_DOMAIN: "there is no such domain",
    xen.GNTST_BAD_GNTREF: "the reference lies beyond that domain's grant table",
    xen.GNTST_PERMISSION_DENIED: f"Xen's security policy forbids it: {SILO}",
    xen.GNTST_BAD_PAGE: "the granted page does not exist any more",
    xen.GNTST_EAGAIN: "the page is paged out: try again",
}


def _checked_grants(grants: tuple[int, int] | Iterable[tuple[int, int]]) -> tuple[Grant, ...]:
    if not isinstance(grants, Iterable) or (
        isinstance(grants, tuple) and len(grants) == 2 and not isinstance(grants[0], tuple | list)
    ):
        wanted: tuple[Grant, ...] = (_checked_grant(grants),)
    else:
        wanted = tuple([_checked_grant(grant) for grant in itertools.islice(grants, MAX_GRANTS + 1)])
    if not 0 < len(wanted) <= MAX_GRANTS:
        raise ValueError(f"no grants, or more than {MAX_GRANTS}, which is the most that one map takes")
    return wanted


def _checked_grant(grant: tuple[int, int]) -> Grant:
    try:
        domid, ref = grant
    except (TypeError, ValueError):
        raise TypeError(f"a grant is a pair of a domid and a ref, not {grant!r}") from None
    # The usual case first: every page of a large map comes through here.
    if type(domid) is int and type(ref) is int and 0 <= domid < DOMID_FIRST_RESERVED and 0 <= ref <= MAX_U32:
        return grant if type(grant) is Grant else Grant(domid, ref)
    return Grant(checked_domid(domid, error=InvalidGrant), checked_number("ref", ref, 0, MAX_U32, error=InvalidGrant))


def _grants(count: int) -> str:
    return f"{count} grant{'s' * (count > 1)}"


def _check_segment(segment: CopySegment) -> None:
    if not isinstance(segment.source, tuple) and not isinstance(segment.dest, tuple):
        raise ValueError("a copy needs a grant on one side at least")
    checked_number("length", segment.length, 0, PAGE_SIZE)
    _check_side("source", segment.source, segment.source_offset, segment.length)
    _check_side("dest", segment.dest, segment.dest_offset, segment.length)
    if not isinstance(segment.dest, tuple) and memoryview(segment.dest).readonly:
        raise TypeError("the copy's destination is read-only")


def _check_side(name: str, side: _Side, offset: int, length: int) -> None:
    if isinstance(side, tuple):
        _checked_grant(side)
        room = PAGE_SIZE
    else:
        room = memoryview(side).nbytes
    checked_number(f"{name}_offset", offset, 0, room)
    if offset + length > room:
        raise ValueError(f"{length} bytes at {name}_offset {offset} do not fit in {room}")


def _segments(
    domid: int, pieces: Sequence[tuple[int, int, int]], memory: memoryview, *, to_grants: bool
) -> list[CopySegment]:
    segments = []
    at = 0
    for ref, offset, length in pieces:
        grant, local = Grant(domid, ref), memory[at : at + length]
        if to_grants:
            segments.append(CopySegment(local, grant, length, dest_offset=offset))
        else:
            segments.append(CopySegment(grant, local, length, source_offset=offset))
        at += length
    return segments


def _granted_side(side: _Side, offset: int) -> tuple[int, int, int] | None:
    """As the ABI has it: (ref, offset, domid), None for local memory."""
    if isinstance(side, tuple):
        domid, ref = side
        return ref, offset, domid
    return None


def _local_side(memory: memoryview | Mapping | bytes | bytearray, offset: int, length: int) -> memoryview:
    side = memoryview(memory).cast("B")[offset : offset + length]
    if side.nbytes != length:  # another thread shortened it after `_check_segment`; from now on it cannot
        raise ValueError(f"{length} bytes at {offset} are no longer within the memory")
    return side
