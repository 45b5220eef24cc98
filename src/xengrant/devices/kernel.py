"""The devices of this domain's own Linux kernel, /dev/xen.

`open_system("xen:")` makes the `KernelSystem`; nothing else imports this. Descriptors are opened non-blocking and
close-on-exec. An error that a user can mend says how.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import grp
import os
import re
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from xengrant._native import Descriptor, Doorbell
from xengrant.abi import privcmd
from xengrant.abi.xen import HYPERVISOR_SCHED_OP, PAGE_SIZE, SCHEDOP_YIELD
from xengrant.descriptors import NO_DESCRIPTORS, no_descriptors
from xengrant.devices import Device, Pointer, System
from xengrant.errors import InterfaceClosed, InterfaceUnavailable
from xengrant.memory import Mapping

__all__ = ["MODULES", "KernelDevice", "KernelSystem", "is_xen"]

DIRECTORY = Path("/dev/xen")

# The module that makes each device; xenbus is part of the kernel.
MODULES = {
    "gntalloc": "xen-gntalloc",
    "gntdev": "xen-gntdev",
    "evtchn": "xen-evtchn",
    "privcmd": "xen-privcmd",
}


class KernelDevice(Device):
    """One open file of /dev/xen.

    Threads: as the kernel's own, any call from any thread. A call under way when `close` is called is finished first,
    so that it never meets another file under the same number.
    """

    def __init__(self, name: str, fd: int) -> None:
        super().__init__(name)
        self._file = Descriptor(fd)
        self.share = self._file.share  # type: ignore[method-assign]
        self.map = self._file.map  # type: ignore[method-assign]
        self._close_file = weakref.finalize(self, _close_unclosed, name, self._file)
        self._close_file.atexit = False

    def __repr__(self) -> str:
        return f"<KernelDevice {self.name} {'closed' if self.closed else 'open'}>"

    def ioctl(self, request: int, arg: bytearray, pointers: Sequence[Pointer] = ()) -> int:
        fd = self._hold()
        held: list[object] = []
        try:
            if pointers:
                held = [_store_address(pointer) for pointer in pointers]
            result: int = fcntl.ioctl(fd, request, arg)
            return result
        finally:
            del held  # an error's traceback would keep the views alive, and the mapping open
            self._file.drop()

    def mmap(self, length: int, offset: int, *, writable: bool, unmapped: Callable[[], None] | None = None) -> Mapping:
        fd = self._hold()
        try:
            return Mapping(((fd, offset, length),), writable=writable, unmapped=unmapped)
        finally:
            self._file.drop()

    def address(self, memory: memoryview) -> int | None:
        return ctypes.addressof(ctypes.c_char.from_buffer(memory))

    def doorbell(self, port: int) -> Doorbell:
        self._check_open()
        return Doorbell(self._file, port, None)

    def yield_at(self, doorbell: Doorbell) -> None:
        call = privcmd.pack_hypercall(HYPERVISOR_SCHED_OP, SCHEDOP_YIELD)
        self.ioctl(privcmd.HYPERCALL, call)
        doorbell.yield_by(self._file, privcmd.HYPERCALL, bytes(call))

    def read(self, size: int) -> bytes:
        fd = self._hold()
        try:
            return os.read(fd, size)
        finally:
            self._file.drop()

    def write(self, data: bytes) -> int:
        fd = self._hold()
        try:
            return os.write(fd, data)
        finally:
            self._file.drop()

    def fileno(self) -> int:
        fd = self._hold()
        self._file.drop()
        return fd

    def close(self) -> None:
        self.closed = True
        self._close_file.detach()
        self._file.close()

    def abandon(self) -> None:
        # The driver's own release runs only when the parent closes too, so a plain close tells nobody. The calls of
        # threads that the child does not have are no reason to wait.
        self.closed = True
        self._close_file.detach()
        self._file.abandon()

    def _hold(self) -> int:
        """The descriptor, until `drop`; `InterfaceClosed`."""
        fd = self._file.hold()
        if fd < 0:
            raise InterfaceClosed(f"{self.name} is closed")
        return fd


class KernelSystem(System):
    """This domain's kernel."""

    url = "xen:"
    may_yield = True

    def open(self, name: str) -> Device:
        if os.sysconf("SC_PAGE_SIZE") != PAGE_SIZE:
            raise InterfaceUnavailable(
                errno.ENOTSUP,
                f"this kernel's pages are {os.sysconf('SC_PAGE_SIZE')} bytes; a grant covers {PAGE_SIZE}, and the rest "
                "of the page would be shared or mapped unseen",
            )
        path = DIRECTORY / name
        try:
            return KernelDevice(name, os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
        except OSError as error:
            if error.errno in NO_DESCRIPTORS:
                raise no_descriptors(error.errno) from None
            raise InterfaceUnavailable(error.errno, _why_unavailable(name, path, error)) from None

    def parameter(self, module: str, name: str) -> str | None:
        try:
            return Path("/sys/module", module.replace("-", "_"), "parameters", name).read_text().strip()
        except OSError:
            return None

    def kernel_log(self, seconds: float) -> list[str]:
        since = time.clock_gettime(time.CLOCK_MONOTONIC) - seconds
        return [text for stamp, text in _kernel_messages() if stamp >= since]


def _close_unclosed(name: str, file: Descriptor) -> None:
    file.close()
    warnings.warn(
        f"an unclosed {DIRECTORY / name} was closed: use close() or a with block", ResourceWarning, stacklevel=2
    )


def is_xen() -> bool:
    """Whether this kernel runs on Xen."""
    try:
        return Path("/sys/hypervisor/type").read_text().strip() == "xen"
    except OSError:
        return False


def _store_address(pointer: Pointer) -> object:
    """Store the target's address in the holder; what comes back must live until the ioctl is done."""
    target = pointer.target
    if isinstance(target, Mapping):
        held: object = memoryview(target)
        address = target.address
    elif not len(target):  # nothing to point at
        held, address = target, 0
    else:
        held = ctypes.c_char.from_buffer(target)
        address = ctypes.addressof(held)
    pointer.holder[pointer.at : pointer.at + 8] = address.to_bytes(8, "little")
    return held


def _why_unavailable(name: str, path: Path, error: OSError) -> str:
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{path}: no permission: {_permission_remedy(path)}"
    if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
        if not is_xen():
            return (
                f"{path} is not there, and this machine does not run on Xen. "
                "To try xengrant without Xen start `xengrant machine` and set XENGRANT_URL to what it prints"
            )
        if name not in MODULES:
            return f"{path} is not there: this kernel was built without it, or {path.parent} is not the host's"
        return f"{path} is not there: load its module with `modprobe {MODULES[name]}`"
    return f"{path}: {os.strerror(error.errno or 0)}"


def _permission_remedy(path: Path) -> str:
    try:
        group = grp.getgrgid(path.stat().st_gid).gr_name
    except (OSError, KeyError):
        group = "root"
    if group == "root":
        return "run as root, or let udev give the device to a group of yours"
    return f"run as root, or join the group {group} (usermod -aG {group} USER)"


def _kernel_messages() -> Iterable[tuple[float, str]]:
    """(monotonic seconds, text) of the kernel's log; nothing where it cannot be read."""
    try:
        fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return
    try:
        while True:
            try:
                record = os.read(fd, 8192)
            except BrokenPipeError:  # the record was overwritten: the next read goes on behind it
                continue
            except OSError:
                return
            if not record:
                return
            found = re.match(rb"\d+,\d+,(\d+),[^;]*;([^\n]*)", record)
            if found:
                yield int(found[1]) / 1e6, found[2].decode(errors="replace")
    finally:
        os.close(fd)
