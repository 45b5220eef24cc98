"""The grant table itself: `GrantTable` hands out references and makes and ends grants in shared memory.

This is the kernelspace side. A process inside a Linux domain has no table, its kernel has; the embedded machine's
guest kernels are built on this, over their domain's pages. `Entries` is the protocol of public/grant_table.h on the
entries alone, for whoever looks at a table without owning its references. Both work on any writable buffers of 4096
bytes, one for each frame, and touch them through `_native` only, since a hypervisor changes them at the same time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from xengrant import _native
from xengrant.abi import grant_table as abi
from xengrant.errors import GrantBusy, InvalidGrant

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Entries", "Entry", "GrantTable"]

_IN_USE = abi.GTF_READING | abi.GTF_WRITING


class Entry(NamedTuple):
    """One entry as it was when read."""

    flags: int
    domid: int
    frame: int

    @property
    def granted(self) -> bool:
        return self.flags & abi.GTF_TYPE_MASK != abi.GTF_INVALID

    @property
    def in_use(self) -> bool:
        """Whether the peer maps it now."""
        return self.flags & _IN_USE != 0


class Entries:
    """Version 1 entries in the frames of one table, and how they are granted and revoked.

    Threads: `grant` and `end_access` of one ref belong to its holder; anybody may read.
    """

    def __init__(self, frames: Iterable[Buffer]) -> None:
        self.frames: list[Buffer] = list(frames)

    def __len__(self) -> int:
        return len(self.frames) * abi.V1_ENTRIES_PER_FRAME

    def at(self, ref: int) -> tuple[Buffer, int]:
        """(frame, byte offset in it) of an entry; `InvalidGrant` beyond the table."""
        if not 0 <= ref < len(self):
            raise InvalidGrant(f"reference {ref} is beyond the table's {len(self)} entries")
        number, entry = divmod(ref, abi.V1_ENTRIES_PER_FRAME)
        return self.frames[number], entry * abi.V1_ENTRY_SIZE

    def read(self, ref: int) -> Entry:
        """The entry now: its first word in one load, the frame after it."""
        buffer, at = self.at(ref)
        word = _native.load32(buffer, at)
        return Entry(word & 0xFFFF, word >> 16, _native.load32(buffer, at + abi.V1_FRAME))

    def grant(self, ref: int, domid: int, frame: int, *, writable: bool) -> None:
        """Let `domid` map `frame`: domid, frame, write barrier, flags in one store (public/grant_table.h).

        `InvalidGrant` where the entry is not free.
        """
        buffer, at = self.at(ref)
        if _native.load16(buffer, at + abi.V1_FLAGS):
            raise InvalidGrant(f"reference {ref} is granted already: {self.read(ref)}")
        _native.store16(buffer, at + abi.V1_DOMID, domid)
        _native.store32(buffer, at + abi.V1_FRAME, frame)
        # A release store: the barrier and the flags in one.
        _native.store16(
            buffer, at + abi.V1_FLAGS, abi.GTF_PERMIT_ACCESS | (0 if writable else abi.GTF_READONLY)
        )

    def end_access(self, ref: int) -> None:
        """Revoke: flags go to 0 in one compare-exchange (Linux gnttab_end_foreign_access_ref_v1).

        `GrantBusy` while the peer maps the page, and then nothing changed; `InvalidGrant` where nothing is granted.
        """
        buffer, at = self.at(ref)
        flags = _native.load16(buffer, at + abi.V1_FLAGS)
        while True:
            if flags == abi.GTF_INVALID:
                raise InvalidGrant(f"reference {ref} is not granted")
            if flags & _IN_USE:
                raise GrantBusy(f"reference {ref} is mapped by domain {self.read(ref).domid}")
            seen = _native.compare_exchange16(buffer, at + abi.V1_FLAGS, flags, abi.GTF_INVALID)
            if seen == flags:
                return
            flags = seen


_FREE, _HELD = 0, 1


class GrantTable:
    """A domain's own table: which references are free, and the entries of those that are held.

    References come and go last in, first out, as Linux's do, so a ref number is reused at once. 0 to 7 are reserved
    for the domain's builder and never handed out. `frames` are the first frames; `grow()` returns the next one, or
    None, and is called until there are `max_frames`. Each operation takes constant time for each reference.

    Threads: any call from any thread.
    """

    def __init__(
        self, frames: Iterable[Buffer], *, max_frames: int = 0, grow: Callable[[], Buffer | None] | None = None
    ) -> None:
        self.entries = Entries(frames)
        self.max_frames = max(max_frames, len(self.entries.frames)) if grow else len(self.entries.frames)
        self._grow = grow
        self._lock = threading.Lock()
        self._state = bytearray(len(self.entries))
        self._free = list(range(len(self.entries) - 1, abi.NR_RESERVED_ENTRIES - 1, -1))

    def __repr__(self) -> str:
        return f"<GrantTable of {len(self.entries.frames)} frames (max {self.max_frames}), {self.num_held} refs held>"

    @property
    def num_free_grants(self) -> int:
        """References that can be had now, growth included."""
        room = (self.max_frames - len(self.entries.frames)) * abi.V1_ENTRIES_PER_FRAME
        return len(self._free) + room

    @property
    def num_held(self) -> int:
        """References handed out and not yet put back."""
        return len(self.entries) - abi.NR_RESERVED_ENTRIES - len(self._free)

    def get_nowait(self) -> int | None:
        """A free reference, or None."""
        refs = self.get_n_nowait(1)
        return refs[0] if refs else None

    def get_n_nowait(self, count: int) -> list[int]:
        """`count` free references, or none of them: an empty list where there are too few."""
        if count < 1:
            raise ValueError(f"count {count}: at least one reference")
        with self._lock:
            if count > len(self._free):
                self._expand(count - len(self._free))
            if count > len(self._free):
                return []
            refs = self._free[: -count - 1 : -1]
            del self._free[-count:]
            for ref in refs:
                self._state[ref] = _HELD
            return refs

    def put(self, ref: int) -> None:
        """Give a reference back.

        `InvalidGrant` where it is reserved, beyond the table, free already, or still granted.
        """
        with self._lock:
            self._check_held(ref)
            if self.entries.read(ref).flags:
                raise InvalidGrant(f"reference {ref} is still granted: end_access first")
            self._state[ref] = _FREE
            self._free.append(ref)

    def grant_access(self, ref: int, domid: int, frame: int, *, writable: bool) -> None:
        """Let `domid` map `frame` through a reference that was gotten. `InvalidGrant` where it is granted already."""
        with self._lock:
            self._check_held(ref)
            self.entries.grant(ref, domid, frame, writable=writable)

    def end_access(self, ref: int) -> None:
        """Revoke; the reference stays held. `GrantBusy` while the peer maps it, and then nothing changed."""
        with self._lock:
            self._check_held(ref)
            self.entries.end_access(ref)

    def _check_held(self, ref: int) -> None:
        if 0 <= ref < abi.NR_RESERVED_ENTRIES:
            raise InvalidGrant(f"reference {ref} is reserved: 0 to {abi.NR_RESERVED_ENTRIES - 1} are the builder's")
        if not 0 <= ref < len(self.entries):
            raise InvalidGrant(f"reference {ref} is beyond the table's {len(self.entries)} entries")
        if self._state[ref] != _HELD:
            raise InvalidGrant(f"reference {ref} is free: it was put back, or never gotten")

    def _expand(self, missing: int) -> None:
        """Add the frames that `missing` more references need; theirs are handed out first (Linux gnttab_expand)."""
        extra = -(-missing // abi.V1_ENTRIES_PER_FRAME)
        if self._grow is None or len(self.entries.frames) + extra > self.max_frames:
            return
        first = len(self.entries)
        for _ in range(extra):
            frame = self._grow()
            if frame is None:
                break
            self.entries.frames.append(frame)
        self._state.extend(bytes(len(self.entries) - first))
        self._free.extend(range(len(self.entries) - 1, first - 1, -1))
