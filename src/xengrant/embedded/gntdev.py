"""/dev/xen/gntdev as Linux does it (drivers/xen/gntdev.c): pages that other domains granted.

MAP_GRANT_REF only makes a place; the hypervisor is asked at mmap, and each of its answers becomes EINVAL. In a PV
domain munmap releases the grants; in an HVM domain they are released when munmap and UNMAP_GRANT_REF, or the file's
end, have both come. GET_OFFSET_FOR_VADDR is about addresses of the process and answered there
(`devices/socket_pages.py`).
"""

from __future__ import annotations

import errno
import os
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from xengrant.abi import gntdev as abi
from xengrant.abi.unmap_notify import CLEAR_BYTE, SEND_EVENT, unpack_notify
from xengrant.abi.xen import PAGE_SIZE
from xengrant.devices.wire import Ioctl, Part
from xengrant.embedded.event_channels import Port
from xengrant.embedded.files import Answer, File, Vma, fault
from xengrant.embedded.grant_copy import grant_copy
from xengrant.embedded.grants import GrantFailedError, Handle
from xengrant.embedded.memory import parts_of

if TYPE_CHECKING:
    from xengrant.embedded.domain import Domain
    from xengrant.embedded.hypervisor import Hypervisor


@dataclass(slots=True, eq=False)
class Map:
    """One MAP_GRANT_REF (struct gntdev_grant_map). `users`: the file's list, the mapping, an unmap on its way."""

    grants: list[tuple[int, int]]
    index: int = 0  # in pages
    users: int = 1
    mapped_once: bool = False
    readonly: bool = False
    handles: list[Handle] = field(default_factory=list)
    clear_byte: int | None = None  # offset in the map
    port: Port | None = None

    @property
    def count(self) -> int:
        return len(self.grants)


class _Vma(Vma):
    def __init__(self, file: Gntdev, mapped: Map) -> None:
        self._file = file
        self._map = mapped

    def close(self) -> None:
        self._file.close_vma(self._map)


class Gntdev(File):
    """One open file; `_maps` is sorted by index."""

    def __init__(self, hypervisor: Hypervisor, domain: Domain) -> None:
        super().__init__(hypervisor, domain)
        self._maps: list[Map] = []
        self._live: set[Map] = set()  # those that hold grants

    def ioctl(self, call: Ioctl) -> Answer:
        if call.request == abi.MAP_GRANT_REF:
            return self._add(call.arg)
        if call.request == abi.UNMAP_GRANT_REF:
            return self._remove(*abi.unpack_unmap(call.arg))
        if call.request == abi.SET_UNMAP_NOTIFY:
            return self._set_notify(*unpack_notify(call.arg))
        if call.request == abi.GRANT_COPY:
            grant_copy(self.hypervisor.grants, self.domain, call)
            return Answer()
        raise OSError(errno.ENOTTY, "gntdev has no such ioctl")

    def mmap(self, length: int, offset: int, *, writable: bool) -> tuple[Vma, Answer]:
        found = self._find(offset // PAGE_SIZE, -(-length // PAGE_SIZE)) if length else None
        if found is None or found.mapped_once:
            raise fault(errno.EINVAL, "not the index and count of a map, or a map that was mapped before")
        found.mapped_once = True
        found.readonly = not writable
        try:
            self._map_grants(found)
        except GrantFailedError as failure:
            if self._is_pv:
                self._unmap_grants(found)
            raise fault(errno.EINVAL, f"GNTST {failure.status}: {failure}") from None
        found.users += 1
        return _Vma(self, found), self._descriptors(found)

    def close_vma(self, mapped: Map) -> None:
        if self._is_pv:
            self._unmap(mapped)
        self._put(mapped)

    def on_release(self) -> None:
        maps, self._maps = self._maps, []
        for mapped in maps:
            self._put(mapped)

    def on_destroy(self) -> None:
        for mapped in list(self._live):
            self._unmap_grants(mapped)
        self._maps.clear()

    @property
    def _is_pv(self) -> bool:
        return self.domain.settings.lifetime == "pv"

    def _add(self, arg: bytearray) -> Answer:
        limit = self.domain.settings.gntdev_limit
        if not 0 < abi.map_count(arg) <= limit:
            raise fault(errno.EINVAL, f"{abi.map_count(arg)} grants, where 1 to {limit} can be mapped at once")
        # The kernel's domid_t is 16 bits wide; the rest of the word is lost.
        linux, total = self.domain.linux, self.domain.settings.gntdev_total
        if linux.gntdev_grants + abi.map_count(arg) > total:
            raise fault(errno.ENOMEM, f"{linux.gntdev_grants} grants of at most {total} are in the domain's maps")
        new = Map([(domid & 0xFFFF, ref) for domid, ref in abi.unpack_map(arg)])
        abi.fill_map(arg, self._insert(new) * PAGE_SIZE)
        linux.gntdev_grants += new.count
        return Answer()

    def _insert(self, new: Map) -> int:
        """The first gap that is wide enough, as gntdev_add_map finds it."""
        for i, mapped in enumerate(self._maps):
            if new.index + new.count < mapped.index:
                self._maps.insert(i, new)
                return new.index
            new.index = mapped.index + mapped.count
        self._maps.append(new)
        return new.index

    def _remove(self, index: int, count: int) -> Answer:
        found = self._find(index // PAGE_SIZE, count)
        if found is None:
            raise fault(errno.ENOENT, f"no map of {count} grants at {index:#x}")
        self._maps.remove(found)
        self._put(found)
        return Answer()

    def _set_notify(self, index: int, action: int, number: int) -> Answer:
        if action & ~(CLEAR_BYTE | SEND_EVENT):
            raise fault(errno.EINVAL, f"unknown action {action:#x}")
        port = self.hypervisor.get_port(self.domain, number) if action & SEND_EVENT else None
        page = index // PAGE_SIZE
        found = self._last_from(page)
        if found is not None and page >= found.index + found.count:
            found = None
        if found is None or (action & CLEAR_BYTE and found.readonly):
            if port is not None:
                port.put()
            if found is None:
                raise fault(errno.ENOENT, f"no map at {index:#x}")
            raise fault(errno.EINVAL, "a read-only map has no byte to clear")
        if found.port is not None:
            found.port.put()
        found.port = port
        found.clear_byte = index - found.index * PAGE_SIZE if action & CLEAR_BYTE else None
        return Answer()

    def _find(self, index: int, count: int) -> Map | None:
        """A map by its page index and count, 0 for any (gntdev_find_map_index)."""
        found = self._last_from(index)
        return found if found is not None and found.index == index and count in (0, found.count) else None

    def _last_from(self, page: int) -> Map | None:
        """The last map that begins at the page or before it."""
        at = bisect_right(self._maps, page, key=lambda mapped: mapped.index)
        return self._maps[at - 1] if at else None

    def _map_grants(self, mapped: Map) -> None:
        """Map them all; what was mapped before a refusal stays, as in Linux, until the map is unmapped."""
        self._live.add(mapped)
        refused: GrantFailedError | None = None
        for domid, ref in mapped.grants:
            try:
                handle = self.hypervisor.grants.map(self.domain, domid, ref, readonly=mapped.readonly)
            except GrantFailedError as failure:
                refused = refused or failure
            else:
                mapped.handles.append(handle)
        if refused is not None:
            raise refused

    def _descriptors(self, mapped: Map) -> Answer:
        """The pages; through descriptors that cannot be mapped writable where the map is read-only."""
        parts = parts_of(handle.page for handle in mapped.handles)
        if not mapped.readonly:
            return Answer(parts=parts)
        readonly: dict[int, int] = {}
        try:
            for handle in mapped.handles:
                memory = handle.page.memory
                if memory.fd not in readonly:
                    readonly[memory.fd] = memory.reopen_readonly()
        except OSError as error:
            for fd in readonly.values():
                os.close(fd)
            raise fault(errno.ENOMEM, f"no descriptor: {error.strerror}") from None
        return Answer(parts=[Part(readonly[fd], offset, length) for fd, offset, length in parts],
                      temporary=list(readonly.values()))

    def _put(self, mapped: Map) -> None:
        """gntdev_put_map: one user fewer; the last one unmaps (HVM), and sends the event."""
        mapped.users -= 1
        if mapped.users:
            return
        if mapped in self._live:
            mapped.users = 1
            self._unmap(mapped)
            self._put(mapped)
            return
        self.domain.linux.gntdev_grants -= mapped.count
        if mapped.port is not None:
            mapped.port.send()
            mapped.port.put()
            mapped.port = None

    def _unmap(self, mapped: Map) -> None:
        """Unmap now, or after the domain's delay: Linux waits while somebody else still uses the pages."""
        whole = len(mapped.handles) == mapped.count and not mapped.readonly
        if mapped.clear_byte is not None and whole:
            handle = mapped.handles[mapped.clear_byte // PAGE_SIZE]
            handle.page.memory.view[handle.page.offset + mapped.clear_byte % PAGE_SIZE] = 0
            mapped.clear_byte = None
        delay = self.domain.settings.unmap_delay
        if delay == 0:
            self._unmap_grants(mapped)
            return
        mapped.users += 1
        self.hypervisor.call_later(delay, lambda: self._unmap_late(mapped))

    def _unmap_late(self, mapped: Map) -> None:
        self._unmap_grants(mapped)
        if not self.domain.dying:
            self._put(mapped)

    def _unmap_grants(self, mapped: Map) -> None:
        if mapped in self._live:
            self._live.remove(mapped)
            for handle in mapped.handles:
                self.hypervisor.unmap(handle)
            mapped.handles.clear()
