"""What runs in the machine's thread: the listening sockets, the connections, the hypervisor and xenstore.

`Machine` makes a `MachineServer` and calls it through the loop; every method here runs in the loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import resource
import socket
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from xengrant.devices import wire
from xengrant.embedded.connection import MAX_CONNECTIONS, Connection, credentials
from xengrant.embedded.directory import BACKLOG, Directory
from xengrant.embedded.domain import Domain, Failure, Settings
from xengrant.embedded.files import fault
from xengrant.embedded.hypervisor import Hypervisor
from xengrant.embedded.stream import Stream
from xengrant.embedded.xenbus import Xenbus, XenstoreClient
from xengrant.embedded.xenstored import XenStored

_log = logging.getLogger("xengrant.embedded")

# Where no descriptor is left, clients wait so many seconds for one to come free, and are refused then.
_ACCEPT_PAUSE = 0.1

# Of both sockets, with those that have not said HELLO yet and the control connections.
_MAX_CLIENTS = MAX_CONNECTIONS + 192
_MAX_SILENT = 64

_FIXED = {"lifetime", "max_grant_frames", "grant_table_version"}

# /sys/module/MODULE/parameters/NAME and the setting behind it.
_PARAMETERS = {
    ("xen_gntalloc", "limit"): "gntalloc_limit",
    ("xen_gntdev", "limit"): "gntdev_limit",
    ("grant_table", "free_per_iteration"): "free_per_iteration",
}


class MachineServer:
    """The machine, seen from its own thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, directory: Directory, settings: Settings) -> None:
        self._loop = loop
        self._directory = directory
        self._connections: dict[Connection, None] = {}  # in the order in which they came
        self._xenstore_clients: set[XenstoreClient] = set()
        self._listeners: list[socket.socket] = []
        self._spare = _take_spare()
        self.store = XenStored()
        self.hypervisor = Hypervisor(settings, self._call_later, self.store.introduce, self._release)
        try:
            for name, accept in (
                (wire.MACHINE_SOCKET, self._accept_device),
                (wire.XENSTORED_SOCKET, self._accept_xenstore),
            ):
                listener = directory.listen(name)
                self._listeners.append(listener)
                loop.add_reader(listener, self._accept, listener, accept)
        except BaseException:
            self.close()
            raise

    # What connections ask (connection.Server)

    def control(self, request: bytes) -> bytes:
        """Do what a control connection asks: JSON {"do": name, ...} in, JSON out; `OSError` tells it what is wrong."""
        try:
            asked = json.loads(request)
            operation = _OPERATIONS[asked.pop("do")]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise fault(errno.EINVAL, "no such operation") from None
        try:
            return json.dumps(operation(self, **asked)).encode()
        except (TypeError, ValueError, OverflowError) as error:
            raise fault(errno.EINVAL, str(error)) from None
        except LookupError as error:
            raise fault(errno.ESRCH, str(error)) from None

    def open_xenbus(self, domain: Domain, stream: Stream) -> Xenbus:
        return Xenbus(self.store, domain.domid, stream, lambda: domain.failure("xenbus"))

    def count(self, domain: Domain | None = None) -> int:
        """Connections of devices, of `domain` or in all."""
        return sum(c.domain is domain if domain else c.domain is not None for c in self._connections)

    def held(self, domain: Domain) -> int:
        """Bytes of memory that the domain's connections have for long messages."""
        return sum(connection.held for connection in self._connections if connection.domain is domain)

    def forget(self, connection: Connection) -> None:
        self._connections.pop(connection, None)

    # What the machine's owner asks

    def create(self, domid: int, name: str | None = None, **settings: Any) -> None:
        self.hypervisor.create(domid, name, _changed(self.hypervisor.settings, settings))

    def configure(self, domid: int, **settings: Any) -> dict[str, Any]:
        """Change settings of a domain that runs; returns what they were."""
        domain = self._domain(domid)
        if fixed := settings.keys() & _FIXED:
            raise ValueError(f"{', '.join(sorted(fixed))}: fixed when a domain is created")
        before, domain.settings = domain.settings, _changed(domain.settings, settings)
        return {name: getattr(before, name) for name in settings}

    def destroy(self, domid: int) -> None:
        self.hypervisor.destroy(domid)

    def pause(self, domid: int, *, paused: bool = True) -> None:
        """Stop or go on serving the domain's processes, as if its vcpus stood still."""
        domain = self._domain(domid)
        domain.paused = paused
        for connection in list(self._connections):
            if connection.domain is domain:
                connection.stream.paused = paused

    def kill(self, domid: int) -> None:
        """End the domain's processes: their files are released, as the kernel does after kill -9."""
        domain = self._domain(domid)
        for connection in list(self._connections):
            if connection.domain is domain:
                connection.stream.close()

    def fail(self, domid: int, device: str, number: int, after: int) -> bool:
        """Have one request of the domain's `device` fail, or with `number` 0 none; whether one was to fail before."""
        domain = self._domain(domid)
        if device not in wire.DEVICES or device in ("kernel", "control"):
            raise ValueError(f"no requests of {device!r} fail: gntalloc, gntdev, evtchn, privcmd or xenbus")
        if after < 0:
            raise ValueError(f"after {after} requests")
        waited = domain.failures.pop(device, None) is not None
        if number:
            domain.failures[device] = Failure(number, after)
        return waited

    def parameter(self, domid: int, module: str, name: str) -> str | None:
        if not isinstance(module, str):
            raise ValueError(f"module {module!r} is no name")
        setting = _PARAMETERS.get((module.replace("-", "_"), name))
        return None if setting is None else str(getattr(self._domain(domid).settings, setting))

    def kernel_log(self, domid: int, seconds: float) -> list[str]:
        if not isinstance(seconds, int | float) or not seconds >= 0:  # not a number, in both senses
            raise ValueError(f"{seconds!r} seconds")
        return self._domain(domid).linux.logged(seconds)

    def status(self) -> dict[str, Any]:
        """Everything that is in use; domids are text, as in JSON."""
        domains = {
            str(domid): {
                **self.hypervisor.status(domain),
                "connections": sum(connection.domain is domain for connection in self._connections),
            }
            for domid, domain in sorted(self.hypervisor.domains.items())
        }
        return {
            "directory": str(self._directory.path),
            "pid": os.getpid(),
            "descriptors": _count_descriptors(),
            "pages": len(self.hypervisor.frames),
            "domains": domains,
        }

    def close(self) -> None:
        """Drop every client and give back every descriptor."""
        for listener in self._listeners:
            self._loop.remove_reader(listener)
            listener.close()
        for stream in self._streams():
            stream.close()
        self._drop_spare()
        self.hypervisor.close()

    def abandon(self) -> None:
        """In a forked child: close the descriptors, so that clients see the machine's end when it is over."""
        for listener in self._listeners:
            listener.close()
        self._drop_spare()
        for stream in self._streams():
            stream.abandon()
        self.hypervisor.abandon()

    def _release(self, domid: int) -> None:
        """A domain is no more: tell xenstore, and hang up on its processes."""
        self.store.release(domid)
        for connection in list(self._connections):
            if connection.domain is not None and connection.domain.domid == domid:
                connection.stream.close()

    def _streams(self) -> list[Stream]:
        devices = [connection.stream for connection in self._connections]
        return devices + [client.stream for client in self._xenstore_clients]

    def _domain(self, domid: int) -> Domain:
        try:
            return self.hypervisor.domains[domid]
        except (LookupError, TypeError):
            raise LookupError(f"there is no domain {domid!r}") from None

    def _call_later(self, seconds: float, function: Callable[[], None]) -> asyncio.TimerHandle:
        return self._loop.call_later(seconds, function)

    def _accept(self, listener: socket.socket, accepted: Callable[[socket.socket], None]) -> None:
        try:
            self._accept_one(listener, accepted)
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            _log.warning("no client can be accepted: %s", error.strerror)
            self._loop.remove_reader(listener)
            self._loop.call_later(_ACCEPT_PAUSE, self._accept_again, listener, accepted)

    def _accept_again(self, listener: socket.socket, accepted: Callable[[socket.socket], None]) -> None:
        """Serve or refuse all that have waited, so that none of them waits for ever."""
        if listener.fileno() < 0:
            return
        self._loop.add_reader(listener, self._accept, listener, accepted)
        with contextlib.suppress(BlockingIOError):
            for _ in range(BACKLOG):
                try:
                    self._accept_one(listener, accepted)
                except BlockingIOError:
                    raise
                except OSError as error:
                    self._refuse_one(listener, error)

    def _accept_one(self, listener: socket.socket, accepted: Callable[[socket.socket], None]) -> None:
        client, _ = listener.accept()
        if credentials(client)[1] != os.geteuid():
            _log.warning("a client of another user was refused")
            client.close()
            return
        accepted(client)

    def _refuse_one(self, listener: socket.socket, why: OSError) -> None:
        """Accept one client in the place of the spare descriptor, and tell it why it cannot stay."""
        self._drop_spare()
        try:
            client, _ = listener.accept()
        except BlockingIOError:  # with no descriptor left, Linux says so before it says that nobody waits
            raise
        except OSError as error:  # another thread took the descriptor
            _log.warning("no client can be refused: %s", error.strerror)
        else:
            own = credentials(client)[1] == os.geteuid() and listener is self._listeners[0]
            _refuse(client, why.errno or errno.EMFILE, f"the machine: {why.strerror}" if own else None)
        finally:
            self._spare = _take_spare()

    def _drop_spare(self) -> None:
        spare, self._spare = self._spare, -1
        if spare >= 0:
            os.close(spare)

    def _accept_device(self, client: socket.socket) -> None:
        if len(self._connections) + len(self._xenstore_clients) >= _MAX_CLIENTS:
            _refuse(client, errno.EMFILE, "the machine has too many connections")
            return
        self._connections[Connection(self._loop, client, self)] = None
        silent = [connection for connection in self._connections if connection.device == "?"]
        if len(silent) > _MAX_SILENT:  # the oldest gives way: who means it says HELLO at once
            silent[0].stream.close()

    def _accept_xenstore(self, client: socket.socket) -> None:
        """One of Xen's own tools, as dom0."""
        if len(self._connections) + len(self._xenstore_clients) >= _MAX_CLIENTS:
            _refuse(client, errno.EMFILE, None)
            return
        self._xenstore_clients.add(XenstoreClient(self._loop, client, self.store, self._xenstore_clients.discard))


def _take_spare() -> int:
    """A descriptor to give up when none is left; -1 where there is none even now."""
    try:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1


def _refuse(client: socket.socket, number: int, text: str | None) -> None:
    """Hang up; a device's client is told why, in the answer to the HELLO that it sends."""
    with client:
        if text is not None:
            client.setblocking(False)
            with contextlib.suppress(OSError):
                client.send(wire.pack_reply(-number, text.encode()))


def _count_descriptors() -> int:
    """Open descriptors of this process; its limit where not even the directory that lists them can be opened."""
    try:
        return len(os.listdir("/proc/self/fd")) - 1
    except OSError:
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _changed(settings: Settings, changes: dict[str, Any]) -> Settings:
    known = {field.name: field for field in fields(Settings)}
    for name, value in changes.items():
        if name not in known:
            raise ValueError(f"no setting {name!r}: {', '.join(known)}")
        wanted = type(getattr(settings, name))
        if type(value) is not wanted and not (wanted is float and type(value) is int):
            raise ValueError(f"{name} is {value!r}: {wanted.__name__} is needed")
    return replace(settings, **changes)


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "create": MachineServer.create,
    "configure": MachineServer.configure,
    "destroy": MachineServer.destroy,
    "pause": MachineServer.pause,
    "parameter": MachineServer.parameter,
    "kernel_log": MachineServer.kernel_log,
    "status": MachineServer.status,
}
