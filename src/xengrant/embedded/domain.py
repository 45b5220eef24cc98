"""What the hypervisor knows of a domain, and the settings it was made with.

A `Domain` is a record: processes attach to it, and it lives on without them. It holds what Xen holds (grant table,
active entries, ports); what its Linux kernel holds is in `linux.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from xengrant.abi.grant_table import V2_FRAMES_PER_STATUS_FRAME
from xengrant.abi.xen import PAGE_SIZE
from xengrant.embedded.descriptors import Descriptors
from xengrant.embedded.memory import Memory
from xengrant.grant_entries import entries_of
from xengrant.grant_table import NewFrames

if TYPE_CHECKING:
    from xengrant.embedded.event_channels import Port
    from xengrant.embedded.files import File
    from xengrant.embedded.linux import Linux
    from xengrant.embedded.memory import Page

Lifetime = Literal["pv", "hvm"]

_MOST_SECONDS = 1e9
_COUNTS = ("max_maptrack_frames", "max_pages", "gntalloc_limit", "gntdev_limit", "gntdev_total", "free_per_iteration")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a domain and its kernel were configured with."""

    lifetime: Lifetime = "pv"  # pv: munmap releases a grant; hvm: munmap and UNMAP_GRANT_REF, both
    max_grant_frames: int = 64
    grant_table_version: int = 1  # Linux's parameter grant_table.version
    max_maptrack_frames: int = 1024
    max_event_channels: int = 1023
    max_pages: int = 16384  # of a domain whose kernel is a program
    gntalloc_limit: int = 1024  # pages, xen_gntalloc's `limit`
    gntdev_limit: int = 65536  # grants for each request, xen_gntdev's `limit`
    gntdev_total: int = 262144  # grants of all maps of all its files, as many as the maptrack has handles
    reclaim_interval: float = 1.0  # seconds between two tries at what the peer still maps
    free_per_iteration: int = 10  # pages for each try, grant_table's parameter; 0: all
    unmap_delay: float = 0.0  # seconds that gntdev takes to unmap

    def __post_init__(self) -> None:
        if self.lifetime not in ("pv", "hvm"):
            raise ValueError(f"lifetime {self.lifetime!r}: pv or hvm")
        if not 1 <= self.max_grant_frames <= 4096:
            raise ValueError(f"max_grant_frames {self.max_grant_frames}: 1 to 4096")
        if not 1 <= self.max_event_channels <= 131071:
            raise ValueError(f"max_event_channels {self.max_event_channels}: 1 to 131071")
        if self.grant_table_version not in (1, 2):
            raise ValueError(f"grant_table_version {self.grant_table_version}: 1 or 2")
        for name in ("reclaim_interval", "unmap_delay"):
            if not 0 <= getattr(self, name) <= _MOST_SECONDS:
                raise ValueError(f"{name} {getattr(self, name)!r}: 0 to {_MOST_SECONDS:g} seconds")
        for name in _COUNTS:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} {getattr(self, name)} is negative")
        if self.reclaim_interval <= 0:
            raise ValueError(f"reclaim_interval {self.reclaim_interval}: more than 0 seconds")


@dataclass(slots=True)
class Active:
    """Xen's active entry: who has a reference's page pinned, and how often. One pin for each kind of mapping."""

    page: Page
    domid: int
    readers: int = 0
    writers: int = 0


class Table:
    """A domain's grant frames, and its status frames in version 2: memory for all it may have, used in part."""

    def __init__(self, domid: int, max_frames: int, version: int) -> None:
        self.max_frames = max_frames
        self.memory = Memory(max_frames, f"grant-table-{domid}")
        self.status_memory: Memory | None = None
        if version == 2:
            try:
                self.status_memory = Memory(_status_frames(max_frames), f"grant-status-{domid}")
            except BaseException:
                self.memory.close()
                raise
        self._frames = _pages_of(self.memory)
        self._status_frames = _pages_of(self.status_memory)
        self.entries = entries_of(version, ())
        self.grow_to(1)

    @property
    def version(self) -> int:
        return self.entries.version

    @property
    def frames(self) -> int:
        return len(self.entries.frames)

    @property
    def size(self) -> int:
        """Entries."""
        return len(self.entries)

    def grow_to(self, frames: int) -> bool:
        """Have so many frames in use at least; False, and nothing happens, beyond the maximum."""
        if frames > self.max_frames:
            return False
        entries = self.entries
        for status in self._status_frames[len(entries.status_frames) : _status_frames(frames)]:
            entries.status_frames.add(status)
        for frame in self._frames[len(entries.frames) : frames]:
            entries.frames.add(frame)
        return True

    def new_frames(self, number: int) -> NewFrames | None:
        """Frame `number` for the domain's kernel, and the status frame that comes with it; None beyond the maximum."""
        if not self.grow_to(number + 1):
            return None
        needed = self.version == 2 and number % V2_FRAMES_PER_STATUS_FRAME == 0
        return NewFrames(
            self._frames[number], self._status_frames[number // V2_FRAMES_PER_STATUS_FRAME] if needed else None
        )

    def close(self) -> None:
        self.entries.frames.clear()
        self.entries.status_frames.clear()
        for view in (*self._frames, *self._status_frames):
            view.release()
        for memory in self.memories():
            memory.close()

    def abandon(self) -> None:
        """In a forked child: close the descriptors."""
        for memory in self.memories():
            memory.abandon()

    def memories(self) -> list[Memory]:
        return [self.memory] if self.status_memory is None else [self.memory, self.status_memory]


def _status_frames(frames: int) -> int:
    """Status frames that so many frames of a version 2 table need."""
    return -(-frames // V2_FRAMES_PER_STATUS_FRAME)


def _pages_of(memory: Memory | None) -> list[memoryview]:
    if memory is None:
        return []
    view = memoryview(memory.view)
    return [view[at : at + PAGE_SIZE] for at in range(0, len(view), PAGE_SIZE)]


@dataclass(slots=True)
class Failure:
    """The device's next request but `after` is to fail with errno `number`."""

    number: int
    after: int


@dataclass(slots=True, eq=False, repr=False)
class Domain:
    """One domain. `dying` is one that was destroyed while others still map its pages or its table."""

    domid: int
    name: str
    settings: Settings
    table: Table
    linux: Linux = field(init=False)
    active: dict[int, Active] = field(default_factory=dict)
    descriptors: Descriptors = field(init=False)
    table_maps: int = 0  # maps of its grant table, by dom0
    mmapped: int = 0  # pages in all mappings of its files
    maptrack: int = 0  # mappings that this domain has of others' pages
    pages: set[Page] = field(default_factory=set)
    ports: dict[int, Port] = field(default_factory=dict)
    files: set[File] = field(default_factory=set)
    kernel: int = 0  # the process that is the domain's kernel
    has_processes: bool = False  # some have attached, so its kernel is Linux
    paused: bool = False
    dying: bool = False
    failures: dict[str, Failure] = field(default_factory=dict)  # by device, those to come

    def __post_init__(self) -> None:
        self.descriptors = Descriptors(self.domid)

    def __repr__(self) -> str:
        return f"<Domain {self.domid} {self.name}, {self.state}>"

    @property
    def state(self) -> str:
        return "dying" if self.dying else "paused" if self.paused else "running"

    def failure(self, device: str) -> int:
        """The errno that this request of `device` is to fail with, once; 0 where it is not."""
        failure = self.failures.get(device)
        if failure is None:
            return 0
        if failure.after:
            failure.after -= 1
            return 0
        del self.failures[device]
        return failure.number

    @property
    def privileged(self) -> bool:
        return self.domid == 0

    @property
    def pins_for_each_map(self) -> int:
        """A PV domain's gntdev maps a page twice, for its kernel and for the process."""
        return 2 if self.settings.lifetime == "pv" else 1

    @property
    def max_port(self) -> int:
        # dom0 is not limited but by its FIFO event channels.
        return 131071 if self.privileged else self.settings.max_event_channels
