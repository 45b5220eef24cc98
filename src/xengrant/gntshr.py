"""Offering pages: `Gntshr` allocates pages of this domain and grants them to another, `Share` is what it hands out.

Made by `Domain.gntshr()`. Calls /dev/xen/gntalloc in libxengnttab's order (ALLOC, mmap, SET_UNMAP_NOTIFY, DEALLOC), so
that the mapping alone keeps the grant alive: a share outlives the interface that made it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from xengrant._native import Held
from xengrant.abi import gntalloc as abi
from xengrant.abi import unmap_notify
from xengrant.abi.xen import PAGE_SIZE
from xengrant.arguments import MAX_U32, checked_domid, checked_number
from xengrant.errors import GrantError, GrantTableFull, InterfaceClosed

if TYPE_CHECKING:
    from xengrant.devices import Device, System
    from xengrant.evtchn import AsyncPort, Port
    from xengrant.memory import Mapping

__all__ = ["Gntshr", "Share", "UnmapNotify"]

_log = logging.getLogger("xengrant.gntshr")

# 64 GiB: beyond any limit of gntalloc that makes sense, and an argument that still fits in memory.
_MAX_COUNT = 1 << 24


@dataclass(frozen=True, slots=True)
class UnmapNotify:
    """What the kernel does when pages are unmapped, also when their process dies.

    `clear_byte` is the offset, in bytes from the start of the share or map, of a byte to set to 0; `port` an event
    channel port of this domain (a `Port` or its number) to notify. At least one is needed. The kernel keeps one
    notification for each page of a share and one for each map.
    """

    clear_byte: int | None = None
    port: int | Port | AsyncPort | None = None

    def __post_init__(self) -> None:
        if self.clear_byte is None and self.port is None:
            raise ValueError("an UnmapNotify needs a clear_byte, a port, or both")
        if self.clear_byte is not None:
            checked_number("clear_byte", self.clear_byte, 0, _MAX_COUNT * PAGE_SIZE)
        if self.port is not None:
            checked_number("port", self.port_number, 0, MAX_U32)

    @property
    def port_number(self) -> int:
        """The port to notify; 0, which is never bound, where there is none."""
        if self.port is None:
            return 0
        return self.port if isinstance(self.port, int) else self.port.number

    def check(self, length: int) -> None:
        """`ValueError` where the byte lies outside `length` bytes."""
        if self.clear_byte is not None and self.clear_byte >= length:
            raise ValueError(f"clear_byte {self.clear_byte} lies outside the {length} bytes")

    def pack(self, index: int) -> bytearray:
        """SET_UNMAP_NOTIFY's argument for memory at mmap offset `index`."""
        byte, action = 0, 0
        if self.clear_byte is not None:
            byte, action = self.clear_byte, unmap_notify.CLEAR_BYTE
        if self.port is not None:
            action |= unmap_notify.SEND_EVENT
        return unmap_notify.pack_notify(index + byte, action, self.port_number)

    def explain(self, error: OSError) -> Exception:
        """SET_UNMAP_NOTIFY's error, explained: EINVAL is all that the kernel says of a wrong argument."""
        if error.errno != errno.EINVAL:
            return error
        if self.port is None:
            return ValueError("unmap notification refused: a read-only map has no byte to clear")
        return ValueError(
            f"unmap notification refused: this domain holds no event channel port {self.port_number}"
            + (", or the byte to clear is in a read-only map" if self.clear_byte is not None else "")
        )


class Share(Held):
    """Pages of this domain that one other domain may map.

    `refs` are the grant references in page order (plain ints), `mapping` the pages here (always readable and
    writable), `domid` the peer, `writable` the *peer's* right. Leaving a `with` block closes it.

    `close` unmaps the pages and revokes the grants. It never waits for the peer: while that still maps a page the
    kernel keeps page and reference and retries (Linux drivers/xen/gntalloc.c, grant-table.c since XSA-396). While views
    of the mapping are alive it is `BufferError`, and nothing changes.

    Threads: the memory is shared by all; `close` is safe from any.
    """

    __slots__ = ()

    @property
    def domid(self) -> int:
        """The domain that may map the pages."""
        domid: int = self._whose
        return domid

    @property
    def refs(self) -> tuple[int, ...]:
        """The grant references, one for each page, in page order."""
        refs: tuple[int, ...] = self._names
        return refs

    def __repr__(self) -> str:
        access = "writable" if self.writable else "read-only"
        state = "closed" if self.closed else access
        return f"<Share of {len(self.refs)} pages with domain {self.domid}, {state}>"


class Gntshr:
    """One open /dev/xen/gntalloc: the right to offer pages. Made by `Domain.gntshr`.

    Threads: any call from any thread.
    """

    def __init__(self, device: Device, system: System) -> None:
        self._device = device
        self._share = device.share  # once: what runs between two system calls is dear (docs/benchmarks.md)
        self._system = system

    @property
    def closed(self) -> bool:
        """Whether the device is closed; shares that it made live on."""
        return self._device.closed

    def fileno(self) -> int:
        """The descriptor of the device."""
        return self._device.fileno()

    def share_pages(self, domid: int, count: int = 1, *, writable: bool, notify: UnmapNotify | None = None) -> Share:
        """Allocate `count` zeroed pages of 4096 bytes and grant them to `domid`, writable for it or not.

        Raises `GrantTableFull` where the module's limit or the table is exhausted, `ValueError` for a domid outside
        0..0x7FEF, a count below 1 or a notification that cannot be, `InterfaceClosed`. The domid need not exist (Linux
        drivers/xen/gntalloc.c, gntalloc_ioctl_alloc).
        """
        if notify is None:
            try:
                share = self._share(domid, count, writable, Share)
            except OSError as error:
                raise self._why_not_allocated(error, domid, count) from None
            if share is not None:
                return share
        checked_domid(domid)
        checked_number("count", count, 1, _MAX_COUNT - 1)
        length = count * PAGE_SIZE
        if notify is not None:
            notify.check(length)
        device = self._device
        if device.closed:
            raise InterfaceClosed("this Gntshr is closed: open another with domain.gntshr()")
        arg = abi.pack_alloc(domid, abi.FLAG_WRITABLE if writable else 0, count)
        try:
            device.ioctl(abi.ALLOC_GREF, arg)
        except OSError as error:
            raise self._why_not_allocated(error, domid, count) from None
        index, refs = abi.alloc_result(arg, count)
        mapping = None
        try:
            mapping = device.mmap(length, index, writable=True)
            if notify is not None:
                self._set_notify(notify, index)
            device.ioctl(abi.DEALLOC_GREF, abi.pack_dealloc(index, count))
        except BaseException:
            self._undo(index, count, mapping)
            raise
        return Share(domid, refs, mapping, writable)

    def try_share_pages(
        self, domid: int, count: int = 1, *, writable: bool, notify: UnmapNotify | None = None
    ) -> Share | None:
        """As `share_pages`, but None for every `GrantError`, whose text is logged on `xengrant.gntshr`."""
        try:
            return self.share_pages(domid, count, writable=writable, notify=notify)
        except GrantError as error:
            _log.warning("sharing %d pages with domain %d: %s", count, domid, error)
            return None

    def munmap(self, share: Share) -> None:
        """Close `share`, which any interface may have made. `InterfaceClosed` where this one is closed."""
        if self.closed:
            raise InterfaceClosed("this Gntshr is closed; share.close() works without it")
        share.close()

    def close(self) -> None:
        """Close the device; the shares it made stay as they are. A second time does nothing."""
        self._device.close()

    def __enter__(self) -> Self:
        if self.closed:
            raise InterfaceClosed("this Gntshr is closed: open another with domain.gntshr()")
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Gntshr {'closed' if self.closed else 'open'} on {self._system.url}>"

    def _set_notify(self, notify: UnmapNotify, index: int) -> None:
        try:
            self._device.ioctl(abi.SET_UNMAP_NOTIFY, notify.pack(index))
        except OSError as error:
            raise notify.explain(error) from None

    def _undo(self, index: int, count: int, mapping: Mapping | None) -> None:
        """Give back what was allocated; a device that was closed meanwhile has done so itself."""
        with contextlib.suppress(OSError, InterfaceClosed):
            self._device.ioctl(abi.DEALLOC_GREF, abi.pack_dealloc(index, count))
        if mapping is not None:
            mapping.close()

    def _why_not_allocated(self, error: OSError, domid: int, count: int) -> OSError:
        if error.errno != errno.ENOSPC:
            return error
        asked = f"cannot share {count} page{'s' * (count > 1)} with domain {domid}"
        limit = self._system.parameter("xen_gntalloc", "limit")
        beyond_limit = limit is not None and limit.isdigit() and count > int(limit)
        full = [] if beyond_limit else [line for line in self._system.kernel_log(2.0) if _TABLE_FULL in line]
        if full:
            return GrantTableFull(
                errno.ENOSPC,
                f"{asked}: this domain's grant table is full ({full[-1].split(': ', 1)[-1].strip()}); "
                "close shares, or raise max_grant_frames in the domain's configuration",
                limit="table",
            )
        return GrantTableFull(
            errno.ENOSPC,
            f"{asked}: the limit of gntalloc is {limit or 'unknown'} pages for all processes of this domain together; "
            "close shares, or raise /sys/module/xen_gntalloc/parameters/limit"
            + ("" if beyond_limit else " (where fewer are in use, the grant table is full: raise max_grant_frames)"),
            limit="gntalloc",
        )


# What Linux logs when the table cannot grow (drivers/xen/grant-table.c, gnttab_expand): the same ENOSPC to us.
_TABLE_FULL = "max_grant_frames reached"
