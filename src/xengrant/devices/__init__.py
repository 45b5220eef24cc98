"""One small interface to the files of /dev/xen, whichever machine serves them.

`Device` is one open file: the Linux kernel's (`kernel.py`) or an embedded machine's (`socket.py`). `System` is where
devices come from. Everything above asks only these two and cannot tell which machine it has.
"""

from __future__ import annotations

import abc
import contextlib
import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from xengrant.errors import InterfaceClosed
from xengrant.forks import abandon_in_child

if TYPE_CHECKING:
    from typing import TypeVar

    from xengrant._native import Doorbell, Held
    from xengrant.memory import Mapping

    _Made = TypeVar("_Made", bound=Held)

__all__ = ["Device", "Pointer", "System", "open_system"]


@dataclass(slots=True, frozen=True)
class Pointer:
    """A u64 at byte `at` of `holder` that points to `target`.

    `holder` is the ioctl's argument or the target of another pointer. The kernel's device stores the address there;
    an embedded machine's carries the bytes to the machine ("in"), back ("out") or both. "map" points to a mapping
    whose memory the ioctl replaces (MMAP_RESOURCE).
    """

    holder: bytearray
    at: int
    target: bytearray | memoryview | Mapping
    direction: Literal["in", "out", "inout", "map"]


class Device(abc.ABC):
    """One open file of /dev/xen.

    Failures of the calls are `OSError` with the kernel's errno; a call after `close` is `InterfaceClosed`.
    Threads: calls may come from any thread.
    """

    name: str
    closed: bool = False

    def __init__(self, name: str) -> None:
        self.name = name
        abandon_in_child(self)

    @abc.abstractmethod
    def ioctl(self, request: int, arg: bytearray, pointers: Sequence[Pointer] = ()) -> int:
        """Do one ioctl; `arg` is changed in place."""

    @abc.abstractmethod
    def mmap(self, length: int, offset: int, *, writable: bool, unmapped: Callable[[], None] | None = None) -> Mapping:
        """Map `length` bytes at byte `offset`, shared. The mapping outlives `close`, as a VMA holds its file.

        `unmapped` is called once, when the memory is gone and the machine knows it; perhaps from a finalizer.
        """

    def share(self, domid: int, count: int, writable: bool, made: type[_Made], /) -> _Made | None:
        """A gntalloc's ALLOC_GREF, mmap and DEALLOC_GREF at once, where the device can: a `made` of domid and refs.

        None, and nothing is done, where it cannot, or for anything unusual: the single calls then say what it is.
        """
        return None

    def map(
        self, grants: object, kind: type[tuple[int, int]], writable: bool, made: type[_Made], whose: object, /
    ) -> _Made | None:
        """A gntdev's MAP_GRANT_REF and mmap at once, and UNMAP_GRANT_REF when it is unmapped, where the device can.

        A `made` of `whose` and MAP_GRANT_REF's argument. None, and nothing is done, where it cannot, for anything
        unusual (not one `kind`, nor a tuple or list of them), and where a grant is refused: the single calls then say
        what it is.
        """
        return None

    def address(self, memory: memoryview) -> int | None:
        """Where `memory` lies, for pointers that an ioctl's bytes have themselves; it is the caller's to keep there.

        None where the bytes have to be described by a `Pointer` each: an embedded machine cannot follow an address.
        """
        return None

    def doorbell(self, port: int) -> Doorbell:
        """A port of an evtchn, to ring and to wait on without the GIL; from then on nothing else is to `read` here.

        One for each device: whoever waits on it takes the events of all its ports.
        """
        raise OSError(errno.ENOTTY, f"{self.name} has no ports")

    def yield_at(self, doorbell: Doorbell) -> None:
        """Have who polls at `doorbell` give the processor to other domains between looks, by this privcmd.

        `OSError` where this domain may not (Xen SCHEDOP_yield; a guest's is EPERM, XSA-482).
        """
        raise OSError(errno.ENOTTY, f"{self.name} yields nothing")

    @abc.abstractmethod
    def read(self, size: int) -> bytes:
        """Read what is there, at most `size` bytes; never waits: `BlockingIOError` where there is nothing."""

    @abc.abstractmethod
    def write(self, data: bytes) -> int:
        """Write, and say how many bytes were taken."""

    @abc.abstractmethod
    def fileno(self) -> int:
        """A descriptor that polls readable when `read` has something."""

    @abc.abstractmethod
    def close(self) -> None:
        """Drop the descriptor. A second time does nothing."""

    @abc.abstractmethod
    def abandon(self) -> None:
        """In a forked child: close the descriptors and tell nobody."""

    def _abandon(self) -> None:
        with contextlib.suppress(OSError):  # the others are to be closed all the same
            self.abandon()

    def _check_open(self) -> None:
        if self.closed:
            raise InterfaceClosed(f"{self.name} is closed")


class System(abc.ABC):
    """Where devices come from: this domain's kernel, or an embedded machine."""

    url: str
    is_kernel: bool = False
    """Whether the program is its domain's kernel, and no process in it (an embedded machine's ``kernel=1``)."""
    may_yield: bool = False
    """Whether a privcmd may do `Device.yield_at`: not where domains are processes, whose kernel schedules them."""

    @abc.abstractmethod
    def open(self, name: str) -> Device:
        """Open gntalloc, gntdev, evtchn, privcmd or xenbus; `InterfaceUnavailable` says what is missing."""

    @abc.abstractmethod
    def parameter(self, module: str, name: str) -> str | None:
        """A module's parameter, as in /sys/module; None where there is none."""

    @abc.abstractmethod
    def kernel_log(self, seconds: float) -> list[str]:
        """What this domain's kernel logged in the last seconds; empty where that cannot be read."""


def open_system(url: str) -> System:
    """The system that `url` names: ``xen:`` or ``embedded:DIRECTORY?domid=N``."""
    scheme, _, rest = url.partition(":")
    if url == "xen:":
        from xengrant.devices.kernel import KernelSystem

        return KernelSystem()
    if scheme == "embedded" and rest:
        from xengrant.devices.socket import SocketSystem

        return SocketSystem(url)
    raise ValueError(
        f"{url!r} names no machine: write xen: for this domain's own kernel, or embedded:DIRECTORY?domid=N"
    )
