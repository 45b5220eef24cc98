"""What a grant table looks like at one moment: `Snapshot` is a private copy of its entries, decoded natively.

Made by `GrantTable` (iteration) and `ForeignGrantTable`. A table changes while it is looked at: each word is loaded
once, into memory that nobody else can write, and only the copy is decoded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from xengrant import _native
from xengrant.abi.grant_table import V1_ENTRY_SIZE, V2_ENTRY_SIZE
from xengrant.grant_entries import GrantEntry, make_entries

if TYPE_CHECKING:
    from xengrant.grant_entries import Entries, Frames

__all__ = ["GrantArrays", "PeerTally", "Snapshot"]


_WORD = 8


class GrantArrays(NamedTuple):
    """The entries in use as arrays of equal length, in the order of their refs.

    `refs` are u32, `flags` u16 (GTF of public/grant_table.h, with a version 2 entry's status among them), `domids` u16,
    `frames` u64 (of a transitive entry: the reference behind it).
    """

    refs: memoryview
    flags: memoryview
    domids: memoryview
    frames: memoryview


class PeerTally(NamedTuple):
    """How many entries of a table concern the domain `domid`.

    `granted` of them it may map, and `readonly` of these it may only read; `mapped` of them it maps now, and `writing`
    of these for writing. An entry that was revoked while it is mapped (version 2) counts as mapped, not as granted.
    """

    domid: int
    granted: int
    readonly: int
    mapped: int
    writing: int


class Snapshot:
    """The entries of a table when it was made, or last refreshed: a private copy. `len()` counts them, used or not.

    `version` is the table's, 1 or 2. Each entry was loaded once, while others may have been writing. Made by
    `ForeignGrantTable.snapshot`.

    Threads: one at a time.
    """

    def __init__(self, entries: Entries) -> None:
        self.version = entries.version
        self._frames = bytearray()
        self._status = bytearray()
        self.refresh(entries)

    def refresh(self, entries: Entries) -> bool:
        """Look again, at the same table; whether anything had changed. Frames that it grew by are looked at too."""
        changed = _copy(self._frames, entries.frames, entries.entry_size)
        return _copy(self._status, entries.status_frames, _WORD) or changed

    def __len__(self) -> int:
        """Entries, used or not."""
        return len(self._frames) // (V1_ENTRY_SIZE if self.version == 1 else V2_ENTRY_SIZE)

    def arrays(self) -> GrantArrays:
        """The entries in use, 16 bytes for each."""
        refs, flags, domids, frames = _native.decode_grants(self.version, self._frames, self._status)
        return GrantArrays(
            memoryview(refs).cast("I"),
            memoryview(flags).cast("H"),
            memoryview(domids).cast("H"),
            memoryview(frames).cast("Q"),
        )

    def grants(self) -> list[GrantEntry]:
        """The entries in use: granted, or revoked and still mapped."""
        return make_entries(self.version, *self.arrays())

    def tally(self) -> list[PeerTally]:
        """Of each peer how many entries, those with the most first."""
        counted = _native.tally_grants(self.version, self._frames, self._status)
        return sorted((PeerTally(*counts) for counts in counted), key=lambda peer: (-peer.granted, peer.domid))


def _copy(copy: bytearray, frames: Frames, unit: int) -> bool:
    """Copy frames that others write, `unit` bytes at a time; whether anything is new."""
    changed = False
    at = 0
    for buffer in list(frames.buffers):  # the table may grow meanwhile
        with memoryview(buffer) as view:
            end = at + view.nbytes
            if end > len(copy):
                copy.extend(bytes(end - len(copy)))
                changed = True
            changed |= _native.copy_entries(view, copy, at, unit)
            at = end
    return changed
