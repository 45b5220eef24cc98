"""/dev/xen/gntalloc as Linux does it (drivers/xen/gntalloc.c): pages of this domain, granted to another.

A page lives while the file or a mapping uses it; then its notification fires and its grant is revoked. The `limit` is
for all files of the domain. The memory of a read-only ALLOC is sealed against writing before anybody else can have it,
so its owner maps it first: see `prepare`.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xengrant.abi import gntalloc as abi
from xengrant.abi.unmap_notify import CLEAR_BYTE, SEND_EVENT, unpack_notify
from xengrant.abi.xen import PAGE_SIZE
from xengrant.devices import wire
from xengrant.devices.wire import Ioctl, Part
from xengrant.embedded.event_channels import Port
from xengrant.embedded.files import Answer, File, Vma, fault
from xengrant.embedded.memory import Memory, Page, parts_of

if TYPE_CHECKING:
    from xengrant.embedded.domain import Domain
    from xengrant.embedded.hypervisor import Hypervisor

# Pieces of memory that one file may have prepared and not yet granted: as many threads in ALLOC at once.
_MAX_PREPARED = 256


@dataclass(slots=True, eq=False)
class Gref:
    """One granted page (struct gntalloc_gref)."""

    page: Page
    ref: int
    users: int = 1
    clear_byte: int | None = None  # offset in the page
    port: Port | None = None


class _Vma(Vma):
    def __init__(self, file: Gntalloc, grefs: list[Gref]) -> None:
        self._file = file
        self._grefs = grefs

    def close(self) -> None:
        self._file.drop(self._grefs)


class Gntalloc(File):
    """One open file; `_grefs` are its pages by file offset."""

    def __init__(self, hypervisor: Hypervisor, domain: Domain) -> None:
        super().__init__(hypervisor, domain)
        self._grefs: dict[int, Gref] = {}
        self._index = 0  # of the next ALLOC: never reused
        self._prepared: dict[int, Memory] = {}  # by the cookie of the owner's mapping

    def ioctl(self, call: Ioctl) -> Answer:
        if call.request == abi.ALLOC_GREF:
            prepared = call.index().get((0, abi.INDEX_AT))
            return self._alloc(call.arg, wire.unpack_cookie(prepared.data) if prepared else 0)
        if call.request == abi.DEALLOC_GREF:
            return self._dealloc(*abi.unpack_dealloc(call.arg))
        if call.request == abi.SET_UNMAP_NOTIFY:
            return self._set_notify(*unpack_notify(call.arg))
        raise OSError(errno.ENOTTY, "gntalloc has no such ioctl")

    def prepare(self, cookie: int, pages: int) -> Answer:
        """Memory for a read-only ALLOC, which the client maps before ALLOC seals it."""
        self._check_limit(pages)
        self.unmap(cookie)
        linux, limit = self.domain.linux, self.domain.settings.gntalloc_limit
        if len(self._prepared) >= _MAX_PREPARED or pages == 0 or linux.prepared_pages + pages > limit:
            raise fault(
                errno.ENOMEM,
                f"{len(self._prepared)} pieces of memory of at most {_MAX_PREPARED} are prepared already, "
                f"{linux.prepared_pages} pages of at most {limit} by the domain",
            )
        memory = self._prepared[cookie] = _new_memory(pages, self.domain, reserve=True)
        linux.prepared_pages += pages
        return Answer(parts=[Part(memory.fd, 0, memory.length)])

    def unmap(self, cookie: int) -> None:
        memory = self._take_prepared(cookie)
        if memory is not None:
            memory.close()
        super().unmap(cookie)

    def mmap(self, length: int, offset: int, *, writable: bool) -> tuple[Vma, Answer]:
        grefs = self._find(offset, -(-length // PAGE_SIZE))
        if grefs is None:
            raise fault(errno.ENOENT, f"{length} bytes at {offset:#x} are not pages of this file")
        for gref in grefs:
            gref.users += 1
        return _Vma(self, grefs), Answer(parts=parts_of(gref.page for gref in grefs))

    def drop(self, grefs: list[Gref]) -> None:
        """One user of each fewer; what nobody uses any more is revoked (__del_gref)."""
        for gref in grefs:
            gref.users -= 1
            if gref.users == 0:
                self._delete(gref)

    def on_release(self) -> None:
        grefs = list(self._grefs.values())
        self._grefs.clear()
        self.drop(grefs)
        self._drop_prepared()

    def on_destroy(self) -> None:
        self._grefs.clear()
        self._drop_prepared()

    def _alloc(self, arg: bytearray, prepared: int) -> Answer:
        domid, flags, count = abi.unpack_alloc(arg)
        self._check_limit(count)
        if len(arg) < len(abi.pack_alloc(0, 0, count)):
            raise fault(errno.EFAULT, f"no room for {count} refs in {len(arg)} bytes")
        linux = self.domain.linux
        linux.gntalloc_pages += count
        index = self._index
        self._index += count * PAGE_SIZE  # spent even if what follows fails
        writable = bool(flags & abi.FLAG_WRITABLE)
        try:
            grefs = self._grant(domid, count, prepared, writable=writable)
        except OSError:
            linux.gntalloc_pages -= count
            raise
        self._grefs.update((index + i * PAGE_SIZE, gref) for i, gref in enumerate(grefs))
        abi.fill_alloc(arg, index, [gref.ref for gref in grefs])
        return Answer()

    def _grant(self, domid: int, count: int, prepared: int, *, writable: bool) -> list[Gref]:
        """`count` new pages, each granted; all or none."""
        if count == 0:
            return []  # Linux lets it succeed
        memory = _new_memory(count, self.domain) if writable else self._sealed_memory(count, prepared)
        pages = self.hypervisor.frames.add([memory], self.domain.domid)
        self.domain.pages.update(pages)
        linux = self.domain.linux
        grefs: list[Gref] = []
        for page in pages:
            ref = linux.grant(domid, page, writable=writable)
            if ref is None:
                for gref in grefs:
                    linux.end_grant(gref.ref, gref.page)
                for left in pages[len(grefs) :]:
                    linux.drop_page(left)
                raise fault(errno.ENOSPC, "the domain's grant table is full")
            grefs.append(Gref(page, ref))
        return grefs

    def _sealed_memory(self, count: int, prepared: int) -> Memory:
        memory = self._prepared.get(prepared)
        if memory is None or memory.length != count * PAGE_SIZE:  # a client that does without
            memory = _new_memory(count, self.domain, reserve=True)
        else:
            self._take_prepared(prepared)
        try:
            memory.seal_writes()
        except OSError:
            memory.close()
            raise
        return memory

    def _dealloc(self, index: int, count: int) -> Answer:
        grefs = self._find(index, count)
        if grefs is None:
            raise fault(errno.EINVAL, f"{count} pages at {index:#x} are not this file's")
        for i in range(count):
            del self._grefs[index + i * PAGE_SIZE]
        self.drop(grefs)
        return Answer()

    def _set_notify(self, index: int, action: int, number: int) -> Answer:
        byte = index % PAGE_SIZE
        gref = self._grefs.get(index - byte)
        if gref is None:
            raise fault(errno.ENOENT, f"no page of this file at {index:#x}; DEALLOC forgets pages, so notify first")
        if action & ~(CLEAR_BYTE | SEND_EVENT):
            raise fault(errno.EINVAL, f"unknown action {action:#x}")
        port = self.hypervisor.get_port(self.domain, number) if action & SEND_EVENT else None
        if gref.port is not None:
            gref.port.put()
        gref.port = port
        gref.clear_byte = byte if action & CLEAR_BYTE else None
        _ = gref.page.memory.view  # mapped now, while failing can be told
        return Answer()

    def _find(self, index: int, count: int) -> list[Gref] | None:
        """`count` neighbours from file offset `index` on; None unless all are there (find_grefs)."""
        if not 0 < count <= len(self._grefs):
            return None
        grefs = [self._grefs.get(index + i * PAGE_SIZE) for i in range(count)]
        return [gref for gref in grefs if gref is not None] if None not in grefs else None

    def _delete(self, gref: Gref) -> None:
        if gref.clear_byte is not None:
            gref.page.memory.view[gref.page.offset + gref.clear_byte] = 0
        if gref.port is not None:
            gref.port.send()
            gref.port.put()
            gref.port = None
        self.domain.linux.end_grant(gref.ref, gref.page)
        self.domain.linux.gntalloc_pages -= 1

    def _check_limit(self, count: int) -> None:
        used, limit = self.domain.linux.gntalloc_pages, self.domain.settings.gntalloc_limit
        if used + count > limit:
            raise fault(errno.ENOSPC, f"{used} pages of gntalloc's limit {limit} are in use")

    def _drop_prepared(self) -> None:
        for cookie in list(self._prepared):
            memory = self._take_prepared(cookie)
            assert memory is not None
            memory.close()

    def _take_prepared(self, cookie: int) -> Memory | None:
        memory = self._prepared.pop(cookie, None)
        if memory is not None:
            self.domain.linux.prepared_pages -= memory.length // PAGE_SIZE
        return memory


def _new_memory(pages: int, domain: Domain, *, reserve: bool = False) -> Memory:
    try:
        return Memory(pages, f"gntalloc-{domain.domid}", reserve=reserve, descriptors=domain.descriptors)
    except OSError as error:
        raise fault(errno.ENOMEM, f"no memory for {pages} pages: {error.strerror}") from None
