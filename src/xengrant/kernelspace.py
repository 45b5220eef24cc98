"""A program as its domain's kernel: its own grant table, its own pages, and a `Gntshr` built on them.

Reached through `Domain` where the URL says ``kernel=1``. It is what xen-gnt's kernelspace is to a unikernel, on an
embedded machine. Calls the device `kernel` (`abi/kernelspace.py`), whose end is the domain's.
"""

from __future__ import annotations

import contextlib
import errno
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from xengrant.abi import kernelspace as abi
from xengrant.abi.grant_table import V2_FRAMES_PER_STATUS_FRAME
from xengrant.abi.xen import PAGE_SIZE
from xengrant.arguments import checked_domid, checked_number
from xengrant.errors import GrantBusy, GrantTableFull, InterfaceClosed, InterfaceUnavailable, InvalidGrant
from xengrant.forks import abandon_in_child
from xengrant.gntshr import Gntshr, Share, UnmapNotify
from xengrant.grant_table import GrantTable, NewFrames

if TYPE_CHECKING:
    from xengrant.devices import System
    from xengrant.memory import Mapping

__all__ = ["Kernel", "KernelGntshr", "Page", "attach", "detach"]

_MAX_COUNT = 1 << 24
# Seconds between two tries at what peers still map.
_RECLAIM_INTERVAL = 0.1


class Page:
    """A page of a domain whose kernel is this program: 4096 bytes, zeroed when it was allocated.

    `mapping` is its memory here, `frame` its number in the domain. A table holds it while it is granted or mapped by a
    peer; then `close` is `GrantBusy`. Leaving a `with` block closes it.

    Threads: the memory is shared by all; the rest is safe from any.
    """

    def __init__(self, frame: int, mapping: Mapping) -> None:
        self.frame = frame
        self.mapping = mapping
        self._held = 0
        self._closing = False
        self._lock = threading.RLock()  # nothing is called with it held, and still a finalizer may drop a grant

    @property
    def closed(self) -> bool:
        """Whether the page was given back."""
        return self.mapping.closed

    def hold(self) -> None:
        """A grant begins; `InterfaceClosed` where the page was given back."""
        gone = self.mapping.closed
        if not gone:
            with self._lock:
                gone = self._closing
                self._held += not gone
        if gone:
            raise InterfaceClosed(f"page {self.frame:#x} was given back")

    def drop(self) -> None:
        """A grant has ended."""
        with self._lock:
            self._held -= 1

    def close(self) -> None:
        """Give the page back. `GrantBusy` while it is granted, `BufferError` while views are alive; twice is fine."""
        if self.mapping.closed:  # also in a forked child, where another thread's lock is held for ever
            return
        with self._lock:
            held = self._held
            self._closing = self._closing or not held
        if held:
            times = f"{held} reference{'s' * (held > 1)}"
            raise GrantBusy(f"page {self.frame:#x} is granted through {times}: end_access first")
        try:
            self.mapping.close()  # without the lock: other mappings' ends may be told in it
        except BaseException:
            self._closing = False
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"granted {self._held} times"
        return f"<Page {self.frame:#x}, {state}>"


class _Attached:
    """The domains whose kernel this process is: one `Kernel` each, for all who ask, until each has detached."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kernels: dict[str, Kernel] = {}
        abandon_in_child(self)

    def attach(self, system: System) -> Kernel:
        with self._lock:
            kernel = self._kernels.get(system.url)
            if kernel is None:
                kernel = self._kernels[system.url] = Kernel(system)
            kernel.users += 1
            return kernel

    def detach(self, kernel: Kernel) -> None:
        """One user fewer; the last one ends the domain, as soon as its shares and pages are closed too."""
        with self._lock:
            kernel.users -= 1
            if kernel.users:
                return
            self._kernels = {url: other for url, other in self._kernels.items() if other is not kernel}
        kernel.close()

    def _abandon(self) -> None:
        """In a forked child, which is no domain's kernel."""
        self._lock = threading.Lock()
        self._parents, self._kernels = self._kernels, {}


_attached = _Attached()
attach, detach = _attached.attach, _attached.detach


class Kernel:
    """This program as its domain's kernel. Threads: any call from any thread."""

    def __init__(self, system: System) -> None:
        self.users = 0
        self._system = system
        self._device = system.open("kernel")
        self._mappings: list[Mapping] = []
        self._deferred: deque[Callable[[], bool]] = deque()
        self._reclaiming = threading.Lock()  # the thread's that reclaims
        self._ended = threading.Event()
        try:
            arg = abi.pack_table()
            self._device.ioctl(abi.TABLE, arg)
            self._version, max_frames = abi.unpack_table(arg)
            first = self._grow(0)
            assert first is not None
            self.table = GrantTable(
                [first.frame],
                version=self._version,
                status_frames=[] if first.status is None else [first.status],
                max_frames=max_frames,
                grow=self._grow,
            )
        except BaseException:
            self.close()
            raise

    def alloc_pages(self, count: int) -> list[Page]:
        """`count` zeroed pages. `OSError` with ENOMEM where the domain has no more."""
        frame = self.alloc_frames(checked_number("count", count, 1, _MAX_COUNT))
        pages: list[Page] = []
        try:
            for number in range(frame, frame + count):
                mapping = self.map_frames(number, 1, unmapped=_Free(self, number, 1))
                pages.append(Page(number, mapping))
        except BaseException:
            for page in pages:
                page.close()
            self.free_frames(frame + len(pages), count - len(pages))
            raise
        return pages

    def alloc_frames(self, count: int, *, together: bool = False) -> int:
        """The first frame number of `count` zeroed pages; `together`: to be granted and revoked as one."""
        arg = abi.pack_run(count, together=together)
        self._device.ioctl(abi.ALLOC_PAGES, arg)
        return abi.unpack_run(arg)[1]

    def free_frames(self, frame: int, count: int) -> None:
        with contextlib.suppress(OSError, InterfaceClosed):  # then the domain is no more
            self._device.ioctl(abi.FREE_PAGES, abi.pack_run(count, frame))

    def map_frames(self, frame: int, count: int, *, unmapped: Callable[[], None] | None = None) -> Mapping:
        return self._device.mmap(count * PAGE_SIZE, frame * PAGE_SIZE, writable=True, unmapped=unmapped)

    def get_port(self, number: int) -> None:
        """Keep a port of this domain for a notification; `OSError` with EINVAL where there is none."""
        self._device.ioctl(abi.GET_PORT, abi.pack_port(number))

    def put_port(self, number: int, *, send: bool) -> None:
        with contextlib.suppress(OSError, InterfaceClosed):
            self._device.ioctl(abi.PUT_PORT, abi.pack_port(number, send=send))

    def fileno(self) -> int:
        return self._device.fileno()

    def defer(self, again: Callable[[], bool]) -> None:
        """Call `again` now and then until it is True: a thread does, for as long as something is left."""
        self._deferred.append(again)
        if not self._ended.is_set() and self._reclaiming.acquire(blocking=False):
            try:
                threading.Thread(target=self._reclaim, name="xengrant-reclaim", daemon=True).start()
            except BaseException:
                self._reclaiming.release()
                raise

    def reclaim(self) -> None:
        """Try what was deferred."""
        with contextlib.suppress(IndexError):  # others try too
            for _ in range(len(self._deferred)):
                again = self._deferred.popleft()
                if not again():
                    self._deferred.append(again)

    def close(self) -> None:
        """End the domain: its pages and grants go, what peers map stays theirs."""
        self._ended.set()
        for mapping in self._mappings:
            mapping.close_on_release()
        self._device.close()

    def _grow(self, number: int) -> NewFrames | None:
        """The table's next frame, each a mapping of its own, which a forked child cannot touch unawares."""
        try:
            frame = self._map_table(abi.TABLE_OFFSET, number)
            status = None
            if self._version == 2 and number % V2_FRAMES_PER_STATUS_FRAME == 0:
                status = self._map_table(abi.STATUS_OFFSET, number // V2_FRAMES_PER_STATUS_FRAME)
        except InterfaceUnavailable:  # the domain is no more, and waiting for references would not end
            raise
        except OSError:
            return None
        return NewFrames(frame, status)

    def _map_table(self, base: int, number: int) -> Mapping:
        mapping = self._device.mmap(PAGE_SIZE, base + number * PAGE_SIZE, writable=True)
        self._mappings.append(mapping)
        return mapping

    def _reclaim(self) -> None:
        """The thread: it has `_reclaiming`, and looks again after it let go of it."""
        while True:
            while self._deferred and not self._ended.wait(_RECLAIM_INTERVAL):
                self.reclaim()
            self._reclaiming.release()
            if not self._deferred or self._ended.is_set() or not self._reclaiming.acquire(blocking=False):
                return


class _Free:
    """What a page's mapping calls when its memory is gone. Holds no mapping."""

    __slots__ = ("_count", "_frame", "_kernel")

    def __init__(self, kernel: Kernel, frame: int, count: int) -> None:
        self._kernel = kernel
        self._frame = frame
        self._count = count

    def __call__(self, *, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not is_finalizing():  # modules may be gone, and with the process the domain ends
            self._kernel.free_frames(self._frame, self._count)


class _Frame:
    """A page of a share, which the share itself keeps: `Grantable`."""

    __slots__ = ("frame",)

    def __init__(self, frame: int) -> None:
        self.frame = frame

    def hold(self) -> None:
        pass

    def drop(self) -> None:
        pass


class _Revoke:
    """What a share's mapping calls when its memory is gone: notify, revoke, give back. Holds no mapping of the share.

    What a peer still maps stays held, entry, reference and page, and is tried again (Linux does the same).
    """

    def __init__(self, kernel: Kernel, frame: int, refs: list[int], notify: UnmapNotify | None) -> None:
        self.armed = False  # nothing is granted yet
        self._kernel = kernel
        self._left = list(enumerate(refs, frame))  # (frame, ref) that are still granted
        self._port: int | None = None
        self._byte: tuple[Mapping, int] | None = None
        if notify is not None:
            self._arm(frame, notify)

    def __call__(self, *, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if self.armed and not is_finalizing():  # the table is asked last, perhaps later: this may be a finalizer
            self._notify()
            self._kernel.table._call_outside(self._revoke)

    def _notify(self) -> None:
        if self._byte is not None:
            page, at = self._byte
            page[at] = 0
            page.close()
        if self._port is not None:
            self._kernel.put_port(self._port, send=True)

    def _revoke(self) -> None:
        if not self.try_again():
            self._kernel.defer(self.try_again)

    def disarm(self) -> None:
        """The share came to nothing: no byte is cleared and no event sent."""
        if self._byte is not None:
            self._byte[0].close()
        if self._port is not None:
            self._kernel.put_port(self._port, send=False)
        self._byte = self._port = None

    def try_again(self) -> bool:
        """Revoke what can be; whether nothing is left."""
        left = []
        for frame, ref in self._left:
            try:
                self._kernel.table.end_access(ref)
            except GrantBusy:
                left.append((frame, ref))
                continue
            except ValueError:  # somebody wrote to the entry (InvalidGrant), or the kernel is no more
                pass
            with contextlib.suppress(ValueError):  # the same; a reference that somebody uses stays held
                self._kernel.table.put(ref)
            self._kernel.free_frames(frame, 1)
        self._left = left
        return not left

    def _arm(self, frame: int, notify: UnmapNotify) -> None:
        if notify.port is not None:
            try:
                self._kernel.get_port(notify.port_number)
            except OSError as error:
                raise notify.explain(error) from None
            self._port = notify.port_number
        if notify.clear_byte is not None:
            number, at = divmod(notify.clear_byte, PAGE_SIZE)
            try:
                self._byte = self._kernel.map_frames(frame + number, 1), at
            except BaseException:
                self.disarm()
                raise


class KernelGntshr(Gntshr):
    """A `Gntshr` on this program's own grant table, as in xen-gnt's kernelspace; made by `Domain.gntshr()`.

    Closing a share revokes at once what its peer does not map; the rest is revoked by a thread as soon as it can be.
    """

    def __init__(self, kernel: Kernel, system: System) -> None:
        self._kernel = kernel
        self._system = system
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether the interface is closed; shares that it made live on."""
        return self._closed

    def fileno(self) -> int:
        return self._kernel.fileno()

    def close(self) -> None:
        self._closed = True

    def share_pages(self, domid: int, count: int = 1, *, writable: bool, notify: UnmapNotify | None = None) -> Share:
        """As `Gntshr.share_pages`; `GrantTableFull` tells of the table, `OSError` with ENOMEM of the domain's pages."""
        checked_domid(domid)
        checked_number("count", count, 1, _MAX_COUNT)
        if notify is not None:
            notify.check(count * PAGE_SIZE)
        if self._closed:
            raise InterfaceClosed("this Gntshr is closed: open another with domain.gntshr()")
        kernel, table = self._kernel, self._kernel.table
        kernel.reclaim()
        refs = table.get_n_nowait(count)
        if not refs:
            raise GrantTableFull(
                errno.ENOSPC,
                f"cannot share {count} pages with domain {domid}: {table.num_free_grants} references are free in this "
                f"domain's grant table of at most {table.max_frames} frames; raise max_grant_frames",
                limit="table",
            )
        with contextlib.ExitStack() as undo:
            undo.callback(_put, table, refs)
            frame = kernel.alloc_frames(count, together=True)
            undo.callback(kernel.free_frames, frame, count)
            revoke = _Revoke(kernel, frame, refs, notify)
            undo.callback(revoke.disarm)
            mapping = kernel.map_frames(frame, count, unmapped=revoke)
            undo.callback(mapping.close)
            for number, ref in enumerate(refs, frame):
                table.grant_access(ref, domid, _Frame(number), writable=writable)
                undo.callback(table.end_access, ref)
            revoke.armed = True
            undo.pop_all()
        return Share(domid, tuple(refs), mapping, writable)


def _put(table: GrantTable, refs: list[int]) -> None:
    for ref in reversed(refs):
        with contextlib.suppress(InvalidGrant):
            table.put(ref)
