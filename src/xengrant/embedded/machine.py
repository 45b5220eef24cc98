"""`Machine`: an embedded machine, a small hypervisor in a thread of this process, which domains join by URL.

    with Machine() as machine:
        with xengrant.connect(machine.url(1)) as domain: ...

It serves any process of the same user that knows the directory. `xengrant machine` runs one in the foreground.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import resource
import signal
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

from xengrant.abi.xen import DOMID_FIRST_RESERVED
from xengrant.devices import wire
from xengrant.embedded.directory import Directory
from xengrant.embedded.domain import Lifetime, Settings
from xengrant.embedded.server import MachineServer
from xengrant.forks import abandon_in_child

_T = TypeVar("_T")

_log = logging.getLogger("xengrant.embedded")

# Seconds that close waits for the machine's thread.
_CLOSE_TIMEOUT = 10.0

# What a domain that nobody uses has none of.
_COUNTED = ("grants", "mapped", "maps", "mmaps", "ports", "files", "deferred", "connections")


class Machine:
    """An embedded machine, running from here on until `close`.

    `directory` is where its sockets are: one of one's own, private (0700); it is made if missing, and None makes a
    temporary one. The other arguments are the settings that its domains start with (`create` overrides them):
    `lifetime` "pv" or "hvm", `gntalloc_limit` in pages, `max_grant_frames`, `grant_table_version` 1 or 2,
    `max_event_channels`, `reclaim_interval` and `unmap_delay` in seconds, `free_per_iteration` in pages, 0 for all.

    `InterfaceUnavailable` where a machine runs in the directory already, `PermissionError` where the directory is
    another user's or open to others. Domain 0 is there from the start; others are created by the first process that
    joins as them.

    Every page range, port and connection costs descriptors of this process, of which one domain may have half, dom0
    all. Their limit is not touched here (`run` raises it): with many thousands of grants raise RLIMIT_NOFILE.

    Threads: any call from any thread. The machine has a thread of its own, which runs none of its callers' code.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        *,
        lifetime: Lifetime = "pv",
        gntalloc_limit: int = 1024,
        max_grant_frames: int = 64,
        grant_table_version: int = 1,
        max_event_channels: int = 1023,
        reclaim_interval: float = 1.0,
        free_per_iteration: int = 10,
        unmap_delay: float = 0.0,
    ) -> None:
        settings = Settings(
            lifetime=lifetime,
            gntalloc_limit=gntalloc_limit,
            max_grant_frames=max_grant_frames,
            grant_table_version=grant_table_version,
            max_event_channels=max_event_channels,
            reclaim_interval=reclaim_interval,
            free_per_iteration=free_per_iteration,
            unmap_delay=unmap_delay,
        )
        self.closed = False
        self._is_over = False
        self._closing = threading.Lock()
        self._stop = threading.Event()
        self._directory = Directory(directory)
        self._loop = asyncio.new_event_loop()
        try:
            self._server = MachineServer(self._loop, self._directory, settings)
        except BaseException:
            self._loop.close()
            self._directory.close()
            raise
        self._thread = threading.Thread(target=self._serve, name="xengrant-machine", daemon=True)
        self._thread.start()
        abandon_in_child(self)
        atexit.register(self.close)

    def __repr__(self) -> str:
        return f"<Machine in {self.directory}, {'closed' if self.closed else 'running'}>"

    def __enter__(self) -> Self:
        if self.closed:
            raise ValueError("this machine is closed: make another")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def directory(self) -> str:
        """Where its sockets are."""
        return str(self._directory.path)

    @property
    def xenstored_path(self) -> str:
        """For Xen's own tools: XENSTORED_PATH."""
        return f"{self.directory}/{wire.XENSTORED_SOCKET}"

    def url(self, domid: int, *, kernel: bool = False) -> str:
        """What a process of domain `domid` connects to."""
        if not 0 <= domid < DOMID_FIRST_RESERVED:
            raise ValueError(f"domid {domid} is outside 0..{DOMID_FIRST_RESERVED - 1:#x}")
        return f"embedded:{quote(self.directory)}?domid={domid}{'&kernel=1' if kernel else ''}"

    def create(self, domid: int, *, name: str | None = None, **settings: Any) -> None:
        """Create a domain before any process joins it, with settings of its own (`lifetime="hvm"`, ...).

        `ValueError` where it is there already, or dying.
        """
        self._do(lambda server: server.create(domid, name, **settings))

    def configure(self, domid: int, **settings: Any) -> dict[str, Any]:
        """Change settings of a domain that runs; returns what they were.

        `LookupError`: no such domain. `ValueError` for what is no setting, and for `lifetime`, `max_grant_frames` and
        `grant_table_version`, which are fixed when a domain is created.
        """
        return self._do(lambda server: server.configure(domid, **settings))

    def destroy(self, domid: int) -> None:
        """Destroy a domain, as `xl destroy`: no byte is cleared and no event sent.

        Its processes lose their connections, its xenstore nodes go and @releaseDomain fires. What others map of it
        stays readable, and until they unmap it the domain stays, dying. `LookupError`: no such domain.
        """
        self._do(lambda server: server.destroy(domid))

    def pause(self, domid: int) -> None:
        """Let the domain's processes stand still at their next call. `LookupError`: no such domain."""
        self._do(lambda server: server.pause(domid))

    def unpause(self, domid: int) -> None:
        """Go on. `LookupError`: no such domain."""
        self._do(lambda server: server.pause(domid, paused=False))

    def kill(self, domid: int) -> None:
        """End the domain's processes as kill -9 does: their ports close, notifications are sent, grants revoked.

        The domain lives on, and new processes may join it. What the killed ones held in this process raises
        `InterfaceUnavailable` from then on. `LookupError`: no such domain.
        """
        self._do(lambda server: server.kill(domid))

    def fail(self, domid: int, device: str, number: int, *, after: int = 0) -> bool:
        """Have the domain's next request of `device` fail with errno `number`, once, when `after` more have succeeded.

        `device` is "gntalloc", "gntdev", "evtchn", "privcmd" or "xenbus". A request is an ioctl, an mmap, or what asks
        xenstore for something; those that give something back never fail. A later call for the same device replaces
        this one; `number` 0 takes it back. Returns whether a failure that was asked for had not come yet. xenstore says
        EINVAL for errnos that it has no name for. `LookupError`: no such domain; `ValueError`: no such device.
        """
        return self._do(lambda server: server.fail(domid, device, number, after))

    def kernel_log(self, domid: int, seconds: float = float("inf")) -> list[str]:
        """What the domain's kernel logged in the last seconds. `LookupError`: no such domain."""
        return self._do(lambda server: server.kernel_log(domid, seconds))

    def status(self) -> dict[str, Any]:
        """What is in use: "directory", "pid", "descriptors" (of this process), "pages", and "domains" by domid.

        Each domain has its "name", "state" (running, paused, dying), "lifetime", table "frames", and the numbers of
        "grants" (references held, without the builder's 0 and 1), grants "mapped" by others, "maps" (pages of others
        that it maps), "mmaps", "ports", "files", "deferred" (pages whose grant could not be revoked yet) and
        "connections".
        """
        status = self._do(MachineServer.status)
        status["domains"] = {int(domid): domain for domid, domain in status["domains"].items()}
        return status

    def leaks(self) -> dict[int, dict[str, int]]:
        """By domid, what of the counts in `status` is not 0: empty when everything was given back."""
        domains = self.status()["domains"]
        found = {domid: {name: domain[name] for name in _COUNTED if domain[name]} for domid, domain in domains.items()}
        return {domid: counts for domid, counts in found.items() if counts}

    def run(self) -> None:
        """Stay in the foreground until SIGINT or SIGTERM, or until another thread closes the machine, then close.

        Raises this process's soft limit of descriptors to the hard one. To be called in the main thread.
        """
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, self._on_signal) for number in numbers]
        try:
            self._stop.wait()
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)
            self.close()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    def close(self) -> None:
        """Stop: every connection ends, the sockets go, and a temporary directory too. A second time does nothing.

        A machine whose thread is stuck is left behind after some seconds, with a `ResourceWarning`.
        """
        with self._closing:
            if self.closed:
                return
            self.closed = True
            self._stop.set()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_CLOSE_TIMEOUT)
            self._directory.close()
            atexit.unregister(self.close)
            if self._thread.is_alive():
                text = f"{self!r} is stuck: its thread did not end within {_CLOSE_TIMEOUT:g} seconds and is left behind"
                _log.error(text)
                warnings.warn(text, ResourceWarning, stacklevel=2)
            else:
                self._is_over = True

    def _do(self, call: Callable[[MachineServer], _T]) -> _T:
        """Run `call`, which is one of ours, in the machine's thread."""
        done: Future[_T] = Future()

        def run() -> None:
            try:
                done.set_result(call(self._server))
            except BaseException as error:
                done.set_exception(error)

        with self._closing:  # what is queued before close() runs before the loop stops
            if self.closed:
                raise ValueError("this machine is closed")
            self._loop.call_soon_threadsafe(run)
        return done.result()

    def _serve(self) -> None:
        with wire.serving():
            try:
                self._loop.run_forever()
            finally:
                self._server.close()
                self._loop.close()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stop.set()

    def _abandon(self) -> None:
        """In a forked child, which has no machine thread."""
        if self._is_over:
            return
        self.closed = True
        self._closing = threading.Lock()  # another thread may have held it
        self._stop = threading.Event()
        self._stop.set()
        self._server.abandon()
        self._directory.abandon()
