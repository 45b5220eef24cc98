"""The device `kernel`: a program that is its domain's kernel has here its pages and its grant table.

There is one for each such domain, and its end is the domain's. What it asks is in `abi/kernelspace.py`.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from xengrant.abi import kernelspace as abi
from xengrant.abi.xen import PAGE_SIZE
from xengrant.devices.wire import Ioctl, Part
from xengrant.embedded.files import Answer, File, Vma, fault
from xengrant.embedded.memory import Memory, Page, parts_of

if TYPE_CHECKING:
    from xengrant.embedded.domain import Domain
    from xengrant.embedded.event_channels import Port
    from xengrant.embedded.hypervisor import Hypervisor



class _Vma(Vma):
    """Memory that stays the domain's own, mapped or not."""

    def close(self) -> None:
        pass


class Kernel(File):
    """The one open file. A page is memory of its own, since what peers may do with it changes, but for a share's."""

    def __init__(self, hypervisor: Hypervisor, domain: Domain) -> None:
        super().__init__(hypervisor, domain)
        self._pages: dict[int, Page] = {}  # by frame number
        self._ports: dict[int, tuple[Port, int]] = {}  # held for a notification: the port, and how often

    def ioctl(self, call: Ioctl) -> Answer:
        if call.request == abi.ALLOC_PAGES:
            return self._alloc(call.arg)
        if call.request == abi.FREE_PAGES:
            return self._free(*abi.unpack_run(call.arg))
        if call.request == abi.TABLE:
            table = self.domain.table
            abi.unpack_table(call.arg)  # it has room
            call.arg[:] = abi.pack_table(table.version, table.max_frames)
            return Answer()
        if call.request == abi.GET_PORT:
            return self._get_port(abi.unpack_port(call.arg)[0])
        if call.request == abi.PUT_PORT:
            number, send = abi.unpack_port(call.arg)
            return self._put_port(number, send=send)
        raise OSError(errno.ENOTTY, "the kernel has no such ioctl")

    def mmap(self, length: int, offset: int, *, writable: bool) -> tuple[Vma, Answer]:
        if offset >= abi.STATUS_OFFSET:
            return self._map_table(self.domain.table.status_memory, offset - abi.STATUS_OFFSET, length)
        if offset >= abi.TABLE_OFFSET:
            self.domain.table.grow_to((offset - abi.TABLE_OFFSET + length) // PAGE_SIZE)
            return self._map_table(self.domain.table.memory, offset - abi.TABLE_OFFSET, length)
        return _Vma(), Answer(parts=parts_of(self._run(length // PAGE_SIZE, offset // PAGE_SIZE)))

    def on_release(self) -> None:
        for port, held in self._ports.values():
            for _ in range(held):
                port.put()
        self._ports.clear()
        self.hypervisor.destroy(self.domain.domid)

    def _alloc(self, arg: bytearray) -> Answer:
        count, _ = abi.unpack_run(arg)
        limit = self.domain.settings.max_pages
        if not 0 < count <= limit - len(self._pages):
            raise fault(errno.ENOMEM, f"{len(self._pages)} of at most {limit} pages are in use")
        sizes = [count] if abi.is_together(arg) else [1] * count
        memories: list[Memory] = []
        try:
            for size in sizes:
                memories.append(
                    Memory(size, f"kernel-{self.domain.domid}", descriptors=self.domain.descriptors)
                )
        except OSError as error:
            for memory in memories:
                memory.close()
            raise fault(errno.ENOMEM, f"no memory for {count} pages: {error.strerror}") from None
        pages = self.hypervisor.frames.add(memories, self.domain.domid)
        self.domain.pages.update(pages)
        self._pages.update((page.frame, page) for page in pages)
        abi.fill_run(arg, pages[0].frame)
        return Answer()

    def _free(self, count: int, frame: int) -> Answer:
        """What peers still map stays theirs; nobody can map it any more."""
        for page in self._run(count, frame):
            del self._pages[page.frame]
            self.domain.pages.discard(page)
            self.hypervisor.frames.drop(page)
        return Answer()

    def _run(self, count: int, frame: int) -> list[Page]:
        pages = [self._pages.get(number) for number in range(frame, frame + min(count, len(self._pages) + 1))]
        found = [page for page in pages if page is not None]
        if not 0 < count == len(found):
            raise fault(errno.EINVAL, f"{count} pages from frame {frame:#x} on are not this domain's")
        return found

    def _map_table(self, memory: Memory | None, offset: int, length: int) -> tuple[Vma, Answer]:
        if memory is None or length == 0 or offset + length > memory.length:
            raise fault(errno.EINVAL, "beyond the table's maximum, or its version has no status")
        return _Vma(), Answer(parts=[Part(memory.fd, offset, length)])

    def _get_port(self, number: int) -> Answer:
        port = self.hypervisor.get_port(self.domain, number)
        _, held = self._ports.get(number, (port, 0))
        self._ports[number] = port, held + 1
        return Answer()

    def _put_port(self, number: int, *, send: bool) -> Answer:
        port, held = self._ports.get(number, (None, 0))
        if port is None:
            raise fault(errno.EINVAL, f"port {number} is not held")
        if held > 1:
            self._ports[number] = port, held - 1
        else:
            del self._ports[number]
        if send:
            port.send()
        port.put()
        return Answer()
