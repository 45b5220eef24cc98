"""An open file of /dev/xen in a domain's kernel: what every device of the embedded machine is.

`connection.py` makes one for each connection and calls it; gntalloc, gntdev, evtchn and privcmd implement it. A file
is released when its last reference is gone, the descriptor's and each mapping's, as Linux does.
"""

from __future__ import annotations

import abc
import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from xengrant.abi.xen import PAGE_SIZE
from xengrant.devices.wire import Ioctl, Part

if TYPE_CHECKING:
    from xengrant.embedded.domain import Domain
    from xengrant.embedded.hypervisor import Hypervisor

# vm.max_map_count
MAX_MAPPINGS = 65530
# In all mappings of a domain's files, so that one domain cannot have the machine's memory with notes of what it maps.
MAX_PAGES = 1 << 20


@dataclass(slots=True)
class Answer:
    """What a call gives back beside its changed argument: descriptors as parts, and those to close once sent."""

    result: int = 0
    parts: Sequence[Part] = ()
    temporary: list[int] = field(default_factory=list)


class Vma(abc.ABC):
    """A mapping of the file in a process."""

    pages = 0

    @abc.abstractmethod
    def close(self) -> None:
        """The whole of it was unmapped."""


class File(abc.ABC):
    """One open file. Calls raise `OSError` with Linux's errno."""

    def __init__(self, hypervisor: Hypervisor, domain: Domain) -> None:
        self.hypervisor = hypervisor
        self.domain = domain
        self.vmas: dict[int, Vma] = {}
        domain.files.add(self)

    @abc.abstractmethod
    def ioctl(self, call: Ioctl) -> Answer:
        """Do one ioctl; `call` is changed in place. `struct.error` and `ValueError` mean a short argument: EFAULT."""

    def mmap(self, length: int, offset: int, *, writable: bool) -> tuple[Vma, Answer]:
        raise fault(errno.ENODEV, "this device cannot be mapped")

    def prepare(self, cookie: int, pages: int) -> Answer:
        raise fault(errno.ENOTTY, "only gntalloc has memory to prepare")

    def map(self, cookie: int, length: int, offset: int, *, writable: bool) -> Answer:
        """mmap under the client's `cookie`."""
        if cookie in self.vmas:
            raise fault(errno.EINVAL, "this cookie names another mapping")
        if len(self.vmas) >= MAX_MAPPINGS:
            raise fault(errno.ENOMEM, f"{MAX_MAPPINGS} mappings of one file")
        pages = -(-length // PAGE_SIZE)
        if self.domain.mmapped + pages > MAX_PAGES:
            raise fault(errno.ENOMEM, f"the domain's mappings have {self.domain.mmapped} of at most {MAX_PAGES} pages")
        vma, answer = self.mmap(length, offset, writable=writable)
        vma.pages = pages
        self.domain.mmapped += pages
        self.vmas[cookie] = vma
        return answer

    def unmap(self, cookie: int) -> None:
        """munmap; an unknown cookie is one whose mmap failed or was never heard of."""
        vma = self.vmas.pop(cookie, None)
        if vma is not None:
            self._close(vma)

    def release(self) -> None:
        """The last reference is gone, by close or by the end of the process: first the memory, then the file."""
        while self.vmas:
            self._close(self.vmas.popitem()[1])
        self.domain.files.discard(self)
        self.on_release()

    def abandon(self) -> None:
        """The domain was destroyed: its kernel does nothing more, only what the hypervisor must do is done."""
        self.vmas.clear()
        self.domain.files.discard(self)
        self.on_destroy()

    def _close(self, vma: Vma) -> None:
        self.domain.mmapped -= vma.pages
        vma.close()

    @abc.abstractmethod
    def on_release(self) -> None:
        """The driver's release."""

    def on_destroy(self) -> None:  # noqa: B027 - most have nothing that outlives the domain's records
        """Give back what the hypervisor holds for a domain that is no more."""


def fault(number: int, text: str) -> OSError:
    """The kernel's errno, with the reason that a kernel would not give."""
    return OSError(number, f"{os.strerror(number)} ({text})")
