"""Another domain's live grant table, seen from dom0: `ForeignGrantTable`.

Made by `Domain.grant_table(of=N)`. Maps the table's frames by /dev/xen/privcmd (XENMEM_acquire_resource, Xen 4.12 and
later), and shows what no other tool does: grants that nobody maps yet, too.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

from xengrant.abi import grant_table as abi
from xengrant.abi import privcmd
from xengrant.abi.xen import HYPERVISOR_GRANT_TABLE_OP, PAGE_SIZE
from xengrant.arguments import checked_domid
from xengrant.devices import Pointer
from xengrant.errors import GrantBusy, InterfaceClosed, InterfaceUnavailable, InvalidGrant, PeerClosed
from xengrant.grant_entries import GrantEntry, entries_of
from xengrant.grant_snapshot import Snapshot
from xengrant.grant_table import GrantTable

if TYPE_CHECKING:
    from xengrant.devices import Device
    from xengrant.grant_entries import Frames
    from xengrant.memory import Mapping

__all__ = ["ForeignGrantTable"]

# What Xen before 4.15 maps at once.
_MOST_FRAMES = 32


class ForeignGrantTable:
    """Another domain's grant table, live.

    `grants()` is a snapshot, taken while the table may change. Opened with `writable=True`, `grant_access` and
    `end_access` write entries as the domain's builder does; which references its kernel uses is for the caller to know.
    `unused_table()` hands out references, too, of a table that nobody uses yet. `entries` are the live ones, `domid` is
    whose table it is, `max_frames` how many frames it can grow to, `writable` whether it was opened so. Made by
    `Domain.grant_table` (Linux drivers/xen/privcmd.c, MMAP_RESOURCE, since 4.18; Xen 4.12).

    While it is open it keeps a destroyed domain from going entirely, as any mapping of a domain's memory does: close it
    when `domain.peer(domid).wait_gone()` returns.

    Threads: one at a time.
    """

    def __init__(self, device: Device, domid: int, *, writable: bool) -> None:
        self.domid = domid
        self.writable = writable
        self._device = device
        self._mappings: list[Mapping] = []
        self._ending: set[int] = set()  # revoked in a version 2 table, and mapped when last seen
        try:
            frames, self.max_frames = self._query_size()
            self.entries = entries_of(self._query_version(), ())
            self._map_frames(frames)
            self._snapshot = Snapshot(self.entries)
        except BaseException:
            self.close()
            raise

    @property
    def version(self) -> int:
        """1 or 2, as the domain's kernel chose."""
        return self.entries.version

    @property
    def frames(self) -> int:
        """Frames of 4096 bytes that the table has, as of the last look; it can grow to `max_frames`."""
        return len(self.entries.frames)

    @property
    def closed(self) -> bool:
        """Whether the table is unmapped."""
        return self._device.closed

    def refresh(self) -> bool:
        """Look again, at frames that the table has grown by too; whether anything had changed since.

        Raises `PeerClosed` where the domain is gone, `InterfaceClosed`.
        """
        self._check_open()
        frames, self.max_frames = self._query_size()
        version = self._query_version()
        if version != self.version or frames < self.frames:  # its kernel began anew
            self._unmap()
            self._ending.clear()
            self.entries = entries_of(version, ())
            self._snapshot = Snapshot(self.entries)
            self._map_frames(frames)
            self._snapshot.refresh(self.entries)
            return True
        self._map_frames(frames)
        return self._snapshot.refresh(self.entries)

    @property
    def snapshot(self) -> Snapshot:
        """The table as of the last look: as arrays, as objects, counted by peer."""
        return self._snapshot

    def grants(self) -> list[GrantEntry]:
        """The entries in use now, in the order of their references: granted, or revoked and still mapped."""
        self.refresh()
        return self._snapshot.grants()

    def read(self, ref: int) -> GrantEntry:
        """One entry as it is now; `InvalidGrant` beyond the table's frames."""
        self._check_open()
        return self.entries.read(ref)

    def grant_access(self, ref: int, domid: int, frame: int, *, writable: bool) -> None:
        """Let `domid` map frame number `frame` of this table's domain through `ref`.

        For a reference that the domain's kernel does not use: in a domain that was built and has not run yet, say.
        `InvalidGrant` where the entry is in use, `InterfaceUnavailable` where the table was opened read-only.
        """
        self._check_writable()
        self.entries.grant(ref, checked_domid(domid), frame, writable=writable)

    def end_access(self, ref: int) -> None:
        """Revoke. `GrantBusy` while it is mapped: call again. `InvalidGrant` where nothing is granted, or reserved."""
        self._check_writable()
        if 0 <= ref < abi.NR_RESERVED_ENTRIES:
            raise InvalidGrant(f"reference {ref} is the console's, xenstore's or reserved: the domain needs it")
        if ref in self._ending:
            if self.entries.in_use(ref):
                raise GrantBusy(f"reference {ref} is revoked, and still mapped")
            self._ending.discard(ref)
            return
        try:
            self.entries.end_access(ref)
        except GrantBusy:
            if self.version == 2:
                self._ending.add(ref)
            raise

    def unused_table(self) -> GrantTable:
        """A `GrantTable` over these frames, for a domain's builder: the domain must not have run yet.

        `InterfaceUnavailable` where the table was opened read-only. It works until this is closed.
        """
        self._check_writable()
        frames, status_frames = self.entries.frames, self.entries.status_frames
        return GrantTable(frames.buffers, version=self.version, status_frames=status_frames.buffers)

    def __iter__(self) -> Iterator[GrantEntry]:
        """As `grants`."""
        return iter(self.grants())

    def close(self) -> None:
        """Unmap the table. A second time does nothing."""
        self._unmap()
        self._device.close()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self.closed:
            return f"<ForeignGrantTable of domain {self.domid}, closed>"
        access = "writable" if self.writable else "read-only"
        size = f"v{self.version}, {self.frames} frames (max {self.max_frames})"
        return f"<ForeignGrantTable of domain {self.domid}, {size}, {access}>"

    def _check_open(self) -> None:
        if self.closed:
            raise InterfaceClosed(f"this table of domain {self.domid} is closed: open it with domain.grant_table()")

    def _check_writable(self) -> None:
        self._check_open()
        if not self.writable:
            raise InterfaceUnavailable(
                errno.EACCES, "this table was opened read-only: domain.grant_table(of=..., writable=True) writes"
            )

    def _query_size(self) -> tuple[int, int]:
        """(frames, most it can have)."""
        arg = abi.pack_query_size(self.domid)
        self._grant_table_op(abi.QUERY_SIZE, arg)
        frames, maximum, status = abi.query_size_result(arg)
        if status == abi.GNTST_BAD_DOMAIN:
            raise PeerClosed(errno.ESRCH, f"there is no domain {self.domid}, or no more")
        if status != abi.GNTST_OKAY:
            raise InterfaceUnavailable(errno.EPERM, f"{_DENIED} (status {status} for domain {self.domid})")
        return frames, maximum

    def _query_version(self) -> int:
        arg = abi.pack_get_version(self.domid)
        self._grant_table_op(abi.GET_VERSION, arg)
        return abi.get_version_result(arg)

    def _grant_table_op(self, operation: int, operand: bytearray) -> None:
        arg = privcmd.pack_hypercall(HYPERVISOR_GRANT_TABLE_OP, operation, 0, 1)
        try:
            self._device.ioctl(
                privcmd.HYPERCALL, arg, [Pointer(arg, privcmd.hypercall_argument(1), operand, "inout")]
            )
        except OSError as error:
            raise self._explained(error) from None

    def _map_frames(self, frames: int) -> None:
        """Map up to so many frames, never more: mapping a frame beyond them would make the table grow."""
        self._map_resource(self.entries.frames, abi.RESOURCE_ID_SHARED, frames)
        if self.version == 2:
            status_frames = -(-frames // abi.V2_FRAMES_PER_STATUS_FRAME)
            self._map_resource(self.entries.status_frames, abi.RESOURCE_ID_STATUS, status_frames)

    def _map_resource(self, into: Frames, id_: int, frames: int) -> None:
        while (missing := min(frames - len(into), _MOST_FRAMES)) > 0:
            mapping = self._device.mmap(missing * PAGE_SIZE, 0, writable=self.writable)
            arg = privcmd.pack_resource(self.domid, abi.RESOURCE_GRANT_TABLE, id_, len(into), missing)
            pointer = Pointer(arg, privcmd.RESOURCE_ADDR_POINTER, mapping, "map")
            try:
                self._device.ioctl(privcmd.MMAP_RESOURCE, arg, [pointer])
            except BaseException as error:
                mapping.close()
                if isinstance(error, OSError):
                    raise self._explained(error) from None
                raise
            self._mappings.append(mapping)
            into.add(mapping)

    def _unmap(self) -> None:
        while self._mappings:
            self._mappings.pop().close()

    def _explained(self, error: OSError) -> Exception:
        if error.errno in (errno.EPERM, errno.EACCES):
            return InterfaceUnavailable(error.errno, _DENIED)
        if error.errno == errno.ESRCH:
            return PeerClosed(errno.ESRCH, f"there is no domain {self.domid}, or no more")
        if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS):
            return InterfaceUnavailable(
                error.errno, "this kernel or hypervisor maps no grant tables: Linux 4.18 and Xen 4.12 are the first"
            )
        return error


_DENIED = (
    "another domain's grant table is for the control domain alone (Xen XSM_DM_PRIV), and a guest's privcmd is confined "
    "by Linux (XSA-482): run this in dom0"
)
