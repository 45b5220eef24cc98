"""The machine's memory: `Memory` is one sealed memfd, `Frames` the numbers under which Xen and the domains know pages.

No memfd is ever used twice: a descriptor that was once handed out keeps its page, so nothing that comes later may be
in it. Called by whatever allocates or maps pages; calls the kernel only.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable

from xengrant.abi.xen import PAGE_SIZE
from xengrant.devices.wire import Part
from xengrant.embedded.descriptors import Descriptors
from xengrant.memory import Mapping

# include/uapi/linux/fcntl.h; in Python's fcntl from 3.13 on.
_SEAL_FUTURE_WRITE = 0x0010

_FIRST_FRAME = 0x1000
_FRAME_LIMIT = 1 << 32  # a version 1 entry's frame is a u32


class Memory:
    """Zeroed pages in one memfd, sealed so that nobody who gets the descriptor can resize it.

    `reserve` leaves out the last seal, for pages that are to be sealed against writing once they are mapped.
    `descriptors` is the domain's whose memory it is.
    """

    def __init__(
        self, pages: int, name: str, *, reserve: bool = False, descriptors: Descriptors | None = None
    ) -> None:
        self.length = pages * PAGE_SIZE
        self._descriptors = descriptors
        if descriptors is not None:
            descriptors.take()
        try:
            self.fd = os.memfd_create(f"xengrant-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except BaseException:
            self._give_back()
            raise
        self._pages = pages
        self._view: Mapping | None = None
        try:
            os.ftruncate(self.fd, self.length)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | (0 if reserve else fcntl.F_SEAL_SEAL)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals)
        except BaseException:
            os.close(self.fd)
            self._give_back()
            raise

    @property
    def view(self) -> Mapping:
        """The machine's own mapping of the pages, made when first needed."""
        if self._view is None:
            self._view = Mapping(((self.fd, 0, self.length),), writable=True)
        return self._view

    def seal_writes(self) -> None:
        """From now on nobody can write but through the mappings that exist, the machine's among them."""
        _ = self.view  # which could not be made after that
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL)

    def reopen_readonly(self) -> int:
        """A descriptor of one's own that cannot be mapped writable."""
        return os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)

    def drop_page(self, number: int) -> None:
        """Nobody uses this page any more; the last one closes the memory.

        Whoever maps another of its pages later gets a descriptor that shows them all, so what was in it goes.
        """
        self._pages -= 1
        if self._pages == 0:
            self.close()
        elif self._view is None:
            os.pwrite(self.fd, bytes(PAGE_SIZE), number * PAGE_SIZE)
        else:  # which memory that is sealed against writing has
            self._view[number * PAGE_SIZE : (number + 1) * PAGE_SIZE] = bytes(PAGE_SIZE)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self._give_back()
            if self._view is not None:
                self._view.close_on_release()
                self._view = None

    def abandon(self) -> None:
        """In a forked child: close the descriptor; the mapping is gone already."""
        if self.fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self.fd)
            self.fd = -1
            self._view = None

    def _give_back(self) -> None:
        if self._descriptors is not None:
            self._descriptors.give_back()


class Page:
    """A page of a domain, alive while the domain or a mapping of it holds it."""

    __slots__ = ("frame", "memory", "number", "owner", "users")

    def __init__(self, memory: Memory, number: int, frame: int, owner: int) -> None:
        self.memory = memory
        self.number = number  # within memory
        self.frame = frame
        self.owner = owner  # domid
        self.users = 1

    @property
    def offset(self) -> int:
        return self.number * PAGE_SIZE


class Frames:
    """Frame number -> page, for all domains."""

    def __init__(self) -> None:
        self._pages: dict[int, Page] = {}
        self._next = _FIRST_FRAME

    def __len__(self) -> int:
        return len(self._pages)

    def add(self, memories: Iterable[Memory], owner: int) -> list[Page]:
        """Give each page of `memories` a frame number, neighbouring ones in that order."""
        places = [(memory, number) for memory in memories for number in range(memory.length // PAGE_SIZE)]
        first = self._new_numbers(len(places))
        pages = [Page(*place, frame, owner) for frame, place in enumerate(places, first)]
        self._pages.update((page.frame, page) for page in pages)
        return pages

    def find(self, frame: int, owner: int) -> Page | None:
        """The page, where `owner` owns it."""
        page = self._pages.get(frame)
        return page if page is not None and page.owner == owner else None

    def drop(self, page: Page) -> None:
        """One user of the page fewer."""
        page.users -= 1
        if page.users == 0:
            del self._pages[page.frame]
            page.memory.drop_page(page.number)

    def _new_numbers(self, count: int) -> int:
        """The first of `count` neighbours that are free, and were free for as long as can be."""
        first = self._next
        while True:
            if first + count > _FRAME_LIMIT:
                first = _FIRST_FRAME
            taken = next((number for number in range(first, first + count) if number in self._pages), None)
            if taken is None:
                self._next = first + count
                return first
            first = taken + 1

    def memories(self) -> Iterable[Memory]:
        return {id(page.memory): page.memory for page in self._pages.values()}.values()


def parts_of(pages: Iterable[Page]) -> list[Part]:
    """The pages side by side, neighbours in one memory as one part."""
    parts: list[Part] = []
    for page in pages:
        if parts and parts[-1].fd == page.memory.fd and parts[-1].offset + parts[-1].length == page.offset:
            parts[-1] = parts[-1]._replace(length=parts[-1].length + PAGE_SIZE)
        else:
            parts.append(Part(page.memory.fd, page.offset, PAGE_SIZE))
    return parts
