"""An embedded machine's devices: `SocketSystem`, from ``embedded:DIRECTORY?domid=N``, and the files it opens.

`open_system` makes the system. One connection is one open file, a `SocketDevice`; `socket_pages.py` and
`socket_events.py` have those with something of their own. Ioctls with pointers carry the bytes along.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import sys
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote

from xengrant.abi.xen import DOMID_FIRST_RESERVED, PAGE_SIZE
from xengrant.descriptors import needing_descriptors
from xengrant.devices import Device, Pointer, System, wire
from xengrant.devices.client import Client, Reply, ask
from xengrant.devices.wire import Direction, Kind
from xengrant.errors import InterfaceUnavailable
from xengrant.memory import Mapping

__all__ = ["Place", "SocketDevice", "SocketSystem", "Unmapped", "scatter"]

_DIRECTIONS = {"in": Direction.IN, "out": Direction.OUT, "inout": Direction.INOUT, "map": Direction.MAP}


class SocketSystem(System):
    """A domain of an embedded machine.

    The URL is ``embedded:DIRECTORY?domid=N``, the directory percent-encoded where it has to be. `ValueError` for
    another; whether the machine runs is seen when a device is opened.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        scheme, _, rest = url.partition(":")
        path, _, query = rest.partition("?")
        fields = dict(parse_qsl(query, keep_blank_values=True))
        domid = fields.pop("domid", "")
        kernel = fields.pop("kernel", "0")
        valid = scheme == "embedded" and path and not fields and kernel in ("0", "1")
        if not valid or not domid.isascii() or not domid.isdigit():
            raise ValueError(f"{url!r}: an embedded machine's URL is embedded:DIRECTORY?domid=N, or with &kernel=1")
        self.directory = os.path.abspath(unquote(path))
        self.domid = int(domid)
        self.is_kernel = kernel == "1"
        if self.domid >= DOMID_FIRST_RESERVED:
            raise ValueError(f"{url!r}: domid {domid} is outside 0..{DOMID_FIRST_RESERVED - 1:#x}")

    def __repr__(self) -> str:
        return f"<SocketSystem {self.url}>"

    def open(self, name: str) -> Device:
        with needing_descriptors():  # already to import what serves the device
            return self._open(name)

    def _open(self, name: str) -> Device:
        from xengrant.devices.socket_events import EvtchnDevice, XenbusDevice
        from xengrant.devices.socket_pages import GntallocDevice, GntdevDevice, PrivcmdDevice

        opened: dict[str, Callable[[str, Client], Device]] = {
            "gntalloc": GntallocDevice,
            "gntdev": GntdevDevice,
            "privcmd": PrivcmdDevice,
            "kernel": SocketDevice,
            "evtchn": EvtchnDevice,
            "xenbus": XenbusDevice,
        }
        if name not in opened:
            raise InterfaceUnavailable(errno.ENOENT, f"an embedded machine has no device {name!r}")
        client = Client(self.directory, self.domid, name, kernel=self.is_kernel)
        try:
            return opened[name](name, client)
        except BaseException:
            client.close()
            raise

    def parameter(self, module: str, name: str) -> str | None:
        value: str | None = ask(self.directory, "parameter", domid=self.domid, module=module, name=name)
        return value

    def kernel_log(self, seconds: float) -> list[str]:
        lines: list[str] = ask(self.directory, "kernel_log", domid=self.domid, seconds=seconds)
        return lines


class Place(NamedTuple):
    """Where a mapping is: its address here, and the file's bytes that it shows."""

    address: int
    offset: int
    length: int


class Unmapped:
    """What a mapping calls when its memory is gone: tells the device, then whoever asked for the mapping.

    `later`: the machine is told with the next request. So is undone what failed or was interrupted, since a machine
    that does not answer must not keep anybody from giving up.
    """

    __slots__ = ("callback", "cookie", "device", "later")

    def __init__(self, device: SocketDevice, cookie: int, callback: Callable[[], None] | None) -> None:
        self.device = device
        self.cookie = cookie
        self.callback = callback
        self.later = False

    def __call__(self, *, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not is_finalizing():  # modules may be gone, and the process' end says it all
            self.device.unmapped(self)


class SocketDevice(Device):
    """One open file of an embedded machine.

    Closing it drops the descriptor's own reference: the connection ends with the last mapping, as the kernel's file
    would. Threads: any call from any thread; requests wait for each other. A mapping's end may be told by a finalizer
    in any thread, even inside a request of its own, so it is queued: whoever holds the lock tells the machine.
    """

    def __init__(self, name: str, client: Client) -> None:
        super().__init__(name)
        self._client = client
        self._lock = threading.Lock()
        self._unmapped: deque[Unmapped] = deque()
        self._cookies = itertools.count(1)
        self._live: dict[int, Place | None] = {}  # mappings by cookie
        # Holds the client, so that garbage collection does not end the connection before the mappings on it.
        weakref.finalize(self, _drop, client, name).atexit = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {'closed' if self.closed else 'open'}>"

    def ioctl(self, request: int, arg: bytearray, pointers: Sequence[Pointer] = ()) -> int:
        self._check_open()
        return self._ioctl(request, arg, pointers)[0].result

    def mmap(
        self, length: int, offset: int, *, writable: bool, unmapped: Callable[[], None] | None = None
    ) -> Mapping:
        self._check_open()
        place = Place(0, offset, -(-length // PAGE_SIZE) * PAGE_SIZE)
        notice = self._notice(unmapped)
        try:
            reply = self.request(Kind.MMAP, wire.pack_mmap(notice.cookie, place.length, offset, writable=writable))
            try:
                mapping = self._map(reply, place, writable, notice)
                self._live[notice.cookie] = place._replace(address=mapping.address)
            finally:
                reply.close_fds()
        except BaseException:
            # The machine may have mapped it and we have not; a cookie that it does not know it ignores.
            notice.callback, notice.later = None, True
            notice()
            raise
        return mapping

    def read(self, size: int) -> bytes:
        raise OSError(errno.EINVAL, f"{self.name} cannot be read")

    def write(self, data: bytes) -> int:
        raise OSError(errno.EINVAL, f"{self.name} cannot be written")

    def fileno(self) -> int:
        self._check_open()
        return self._client.sock.fileno()

    def close(self) -> None:
        if not self.closed:
            self.closed = self._client.device_closed = True
            self._closing()
            self._flush()

    def abandon(self) -> None:
        self.closed = True
        self._client.close()
        self._lock = threading.Lock()  # another thread of the parent may have held it
        self._unmapped = deque()

    def request(self, kind: Kind, body: bytes = b"") -> Reply:
        """Ask the machine, after it was told of all that was unmapped before."""
        told: list[Unmapped] = []
        try:
            with self._lock:
                told = self._tell()
                if self._client.dead:
                    self._check_open()
                return self._client.request(kind, body)
        except InterfaceUnavailable:
            self._check_open()  # it was the fork of a signal handler's, in the child
            raise
        finally:
            self._call_back(told)
            self._flush()

    def unmapped(self, notice: Unmapped) -> None:
        """A mapping is gone; its `Unmapped` calls this."""
        self._unmapped.append(notice)
        if notice.later:
            return
        if not wire.is_serving():
            self._flush()
        else:  # a finalizer in the machine's own thread, which cannot wait for itself
            with contextlib.suppress(RuntimeError):
                threading.Thread(target=self._flush, name="xengrant-unmap", daemon=True).start()

    def _ioctl(self, request: int, arg: bytearray, pointers: Sequence[Pointer]) -> tuple[Reply, bytes]:
        """Do it at the machine: the reply, and what came behind the argument and the pointers' bytes."""
        cookies = {place.address: cookie for cookie, place in list(self._live.items()) if place} if pointers else {}
        reply = self.request(Kind.IOCTL, _gather(request, arg, pointers, cookies))
        return reply, scatter(reply.body, arg, pointers)

    def _notice(self, callback: Callable[[], None] | None) -> Unmapped:
        notice = Unmapped(self, next(self._cookies), callback)
        self._live[notice.cookie] = None
        return notice

    def _map(self, reply: Reply, place: Place, writable: bool, notice: Unmapped) -> Mapping:
        return Mapping(wire.unpack_parts(reply.body, reply.fds), writable=writable, unmapped=notice)

    def _flush(self) -> None:
        """Tell the machine of what was unmapped, unless another thread (or a caller of ours) is at it and will.

        That one looks again after it let go of the lock, so nothing is left behind.
        """
        while self._unmapped or self._is_over():
            acquired: list[bool] = []
            told: list[Unmapped] = []
            lock = self._lock  # in a child that a signal handler forks here it is another afterwards
            try:
                acquired.extend(map(lock.acquire, (False,)))  # one step, see client._Exchange
                if not acquired[0]:
                    return
                told = self._tell()
                if self._is_over():
                    self._release()
            finally:
                if acquired and acquired[0]:
                    lock.release()
                self._call_back(told)

    def _tell(self) -> list[Unmapped]:
        """Send one MUNMAP for all that is queued; holding the lock."""
        # One by one: others append, which without a GIL ends an iteration.
        unmapped = self._unmapped  # in a child that a signal handler forks here it is another afterwards
        told = [unmapped[number] for number in range(len(unmapped))]
        if told:
            with contextlib.suppress(OSError):  # the machine is gone, and so is what it held of ours
                self._client.request(Kind.MUNMAP, wire.pack_munmap(notice.cookie for notice in told))
            for notice in told:
                self._live.pop(notice.cookie, None)
                unmapped.popleft()  # others only append
        return told

    def _call_back(self, told: list[Unmapped]) -> None:
        for notice in told:
            callback, notice.callback = notice.callback, None
            if callback is not None and not self._client.dead:
                with contextlib.suppress(InterfaceUnavailable):
                    callback()

    def _is_over(self) -> bool:
        """Whether the last reference is gone."""
        return self.closed and not self._client.closed and (not self._live or self._client.dead)

    def _release(self) -> None:
        """When this returns the machine has released the file."""
        if not self._client.dead:
            with contextlib.suppress(OSError):
                self._client.request(Kind.RELEASE)
        self._client.close()

    def _closing(self) -> None:
        """Give up what the descriptor itself holds in this process."""


def _drop(client: Client, name: str) -> None:
    """A device is gone that was not closed, or some mapping of which was not."""
    if client.closed:
        return
    client.close()
    if not client.device_closed:
        warnings.warn(f"unclosed {name} of an embedded machine", ResourceWarning, stacklevel=2)


def _gather(request: int, arg: bytearray, pointers: Sequence[Pointer], cookies: dict[int, int]) -> bytes:
    """The ioctl with the bytes that go in. `cookies`: of this device's mappings, by address."""
    wire.check_pointers(len(pointers))
    holders = {id(arg): 0}
    packed = []
    for number, pointer in enumerate(pointers, 1):
        target = pointer.target
        if isinstance(target, Mapping):
            if pointer.direction != "map" or target.address not in cookies:
                raise OSError(errno.EINVAL, "the address is no mapping of this file")
            data = wire.pack_cookie(cookies[target.address])
            length = len(data)
        else:
            length = memoryview(target).nbytes
            data = b"" if pointer.direction == "out" else bytes(target)
        holders[id(target)] = number
        packed.append((holders[id(pointer.holder)], pointer.at, _DIRECTIONS[pointer.direction], length, data))
    body = wire.pack_ioctl(request, arg, packed)
    if len(body) > wire.MAX_BODY:
        raise OSError(errno.ENOMEM, f"an ioctl of {len(body)} bytes, where an embedded machine takes {wire.MAX_BODY}")
    return body


def scatter(body: bytes, arg: bytearray, pointers: Sequence[Pointer]) -> bytes:
    """Put what came back where it belongs; the rest is returned."""
    arg[:] = body[: len(arg)]
    at = len(arg)
    for pointer in pointers:
        if pointer.direction in ("out", "inout") and not isinstance(pointer.target, Mapping):
            view = memoryview(pointer.target).cast("B")
            view[:] = body[at : at + len(view)]
            at += len(view)
    return body[at:]
