"""The entries of a grant table, and how they are granted and revoked: the protocol of Xen's public/grant_table.h.

`EntriesV1` and `EntriesV2` work on any buffers of grant frames and touch them through `_native` only, since the
hypervisor changes them at the same time. They own no references: `GrantTable` does for whoever owns the table, and a
domain builder or a hypervisor knows its own.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from xengrant import _native
from xengrant.abi import grant_table as abi
from xengrant.arguments import checked_number
from xengrant.errors import GrantBusy, InvalidGrant
from xengrant.memory import PAGE_SIZE

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Entries", "EntriesV1", "EntriesV2", "EntryKind", "GrantEntry", "entries_of", "make_entries", "make_entry"]

_MAX_U16 = 0xFFFF
_IN_USE = abi.GTF_READING | abi.GTF_WRITING
# How often an entry is read again that changes meanwhile, before what was seen last is believed.
_READS = 5


class EntryKind(StrEnum):
    """What an entry offers (GTF_type_mask and GTF_sub_page)."""

    INVALID = "invalid"
    ACCESS = "access"
    SUB_PAGE = "sub-page"
    TRANSFER = "transfer"
    TRANSITIVE = "transitive"


class GrantEntry(NamedTuple):
    """One entry as it was when read.

    `domid` is who may use it, `frame` the page's frame number in the granting domain, which a transitive entry has
    not. `reading` and `writing` say that the peer maps it now (or copies), `readonly` that it may only read.
    """

    ref: int
    kind: EntryKind
    domid: int
    frame: int | None
    readonly: bool
    reading: bool
    writing: bool

    @property
    def granted(self) -> bool:
        """Whether the peer may map it (again)."""
        return self.kind is not EntryKind.INVALID

    @property
    def mapped(self) -> bool:
        """Whether the peer maps it now. A version 2 entry that was revoked meanwhile is mapped and not granted."""
        return self.reading or self.writing


def make_entry(version: int, ref: int, flags: int, domid: int, frame: int) -> GrantEntry:
    """The entry of a table of that version with these flags, those of a version 2 entry's status among them."""
    kind, readonly, reading, writing = _meaning(version, flags)
    return GrantEntry(
        ref, kind, domid, None if kind is EntryKind.TRANSITIVE else frame, readonly, reading, writing
    )


def make_entries(
    version: int, refs: Iterable[int], flags: Sequence[int], domids: Iterable[int], frames: Iterable[int]
) -> list[GrantEntry]:
    """As `make_entry`, for many: in a table few flags differ, and nothing is called for each entry but the tuple."""
    if not len(flags):
        return []
    meanings = {value: _meaning(version, value) for value in set(flags)}
    kinds, readonly, reading, writing = zip(*map(meanings.__getitem__, flags), strict=True)
    shown: Iterable[int | None] = frames
    if EntryKind.TRANSITIVE in kinds:
        shown = [None if kind is EntryKind.TRANSITIVE else frame for kind, frame in zip(kinds, frames, strict=True)]
    rows = zip(refs, kinds, domids, shown, readonly, reading, writing, strict=True)
    return list(map(functools.partial(tuple.__new__, GrantEntry), rows))


@functools.cache  # at most 2 * 65536, of which few are ever seen
def _meaning(version: int, flags: int) -> tuple[EntryKind, bool, bool, bool]:
    """(kind, readonly, reading, writing)."""
    kind = _KINDS[flags & abi.GTF_TYPE_MASK]
    if kind is EntryKind.TRANSFER:  # there the other bits say how far the transfer is
        return kind, False, False, False
    if kind is EntryKind.ACCESS and version == 2 and flags & abi.GTF_SUB_PAGE:
        kind = EntryKind.SUB_PAGE
    return kind, bool(flags & abi.GTF_READONLY), bool(flags & abi.GTF_READING), bool(flags & abi.GTF_WRITING)


_KINDS = {
    abi.GTF_INVALID: EntryKind.INVALID,
    abi.GTF_PERMIT_ACCESS: EntryKind.ACCESS,
    abi.GTF_ACCEPT_TRANSFER: EntryKind.TRANSFER,
    abi.GTF_TRANSITIVE: EntryKind.TRANSITIVE,
}


class Frames:
    """Frames of 4096 bytes, in buffers of one or more each; `places` has (buffer, byte offset in it) of each frame."""

    def __init__(self, buffers: Iterable[Buffer] = ()) -> None:
        self.buffers: list[Buffer] = []
        self.places: list[tuple[Buffer, int]] = []
        for buffer in buffers:
            self.add(buffer)

    def __len__(self) -> int:
        """Frames."""
        return len(self.places)

    def add(self, buffer: Buffer) -> None:
        """Append the frames of a buffer; `ValueError` where it is not whole frames."""
        with memoryview(buffer) as view:
            length = view.nbytes
        if length == 0 or length % PAGE_SIZE:
            raise ValueError(f"{length} bytes: grant frames are {PAGE_SIZE} bytes each")
        self.places += [(buffer, at) for at in range(0, length, PAGE_SIZE)]
        self.buffers.append(buffer)

    def clear(self) -> None:
        """Forget the buffers."""
        self.buffers.clear()
        self.places.clear()


class Entries(abc.ABC):
    """The entries in the frames of one table. `frames` (and version 2's `status_frames`) grow with it.

    Threads: changes of one ref belong to its holder; anybody may read.
    """

    version: ClassVar[int]
    entry_size: ClassVar[int]
    per_frame: ClassVar[int]
    max_frame: ClassVar[int]  # the highest frame number that an entry has room for

    def __init__(self, frames: Iterable[Buffer], status_frames: Iterable[Buffer] = ()) -> None:
        self.frames = Frames(frames)
        self._places = self.frames.places
        self.status_frames = Frames(status_frames)

    def __len__(self) -> int:
        return len(self.frames) * self.per_frame

    def at(self, ref: int) -> tuple[Buffer, int]:
        """(buffer, byte offset in it) of an entry; `InvalidGrant` beyond the table."""
        number, entry = divmod(ref, self.per_frame)
        if not 0 <= number < len(self._places):
            raise InvalidGrant(f"reference {ref} is beyond the table's {len(self)} entries")
        buffer, at = self._places[number]
        return buffer, at + entry * self.entry_size

    def is_free(self, ref: int) -> bool:
        """Whether the entry grants nothing and nobody maps it."""
        return self.is_invalid(ref) and not self.in_use(ref)

    @abc.abstractmethod
    def is_invalid(self, ref: int) -> bool:
        """Whether the entry grants nothing.

        In version 2 the hypervisor marks the status first and then looks whether the entry is still granted: after
        `end_access` the status may show for a moment that it is in use, and nobody maps it.
        """

    @abc.abstractmethod
    def in_use(self, ref: int) -> int:
        """GTF_reading and GTF_writing, as the hypervisor set them."""

    @abc.abstractmethod
    def read(self, ref: int) -> GrantEntry:
        """The entry now."""

    def grant(self, ref: int, domid: int, frame: int, *, writable: bool, ended: bool = False) -> None:
        """Let `domid` map `frame`: domid, frame, write barrier, flags in one store (public/grant_table.h).

        `InvalidGrant` where the entry is not free, `ValueError` for a domid or a frame that cannot be. `ended`: the
        caller has ended a grant of this entry, so that nobody maps it, whatever the status says.
        """
        checked_number("domid", domid, 0, _MAX_U16)
        checked_number("frame", frame, 0, self.max_frame)
        if not (self.is_invalid(ref) if ended else self.is_free(ref)):
            raise InvalidGrant(f"reference {ref} is in use already: {self.read(ref)}")
        buffer, at = self.at(ref)
        _native.store16(buffer, at + abi.DOMID, domid)
        self._store_frame(buffer, at, frame)
        # A release store: the barrier and the flags in one.
        _native.store16(buffer, at + abi.FLAGS, abi.GTF_PERMIT_ACCESS | (0 if writable else abi.GTF_READONLY))

    @abc.abstractmethod
    def end_access(self, ref: int) -> None:
        """Revoke. `GrantBusy` while the peer maps the page, `InvalidGrant` where nothing is granted.

        A busy version 1 entry is unchanged; a busy version 2 entry is revoked already, so that nobody can map it
        again, and its page has to be kept until `in_use` says 0.
        """

    def make_readonly(self, ref: int) -> None:
        """Let the peer only read from now on. `GrantBusy` while it maps the page writable, and then nothing changed."""
        self._change_access(ref, readonly=True)

    def make_writable(self, ref: int) -> None:
        """Let the peer write too, which it can when it maps the page anew."""
        self._change_access(ref, readonly=False)

    def _change_access(self, ref: int, *, readonly: bool) -> bool:
        """public/grant_table.h: a compare-exchange of the flags, while writing is not set; whether anything changed."""
        buffer, at = self.at(ref)
        flags = _native.load16(buffer, at + abi.FLAGS)
        while True:
            if flags & abi.GTF_TYPE_MASK != abi.GTF_PERMIT_ACCESS:
                raise InvalidGrant(f"reference {ref} is not granted")
            if readonly and flags & abi.GTF_WRITING:
                raise GrantBusy(self._busy(ref))
            changed = flags | abi.GTF_READONLY if readonly else flags & ~abi.GTF_READONLY
            seen = _native.compare_exchange16(buffer, at + abi.FLAGS, flags, changed)
            if seen == flags:
                return changed != flags
            flags = seen

    def _busy(self, ref: int) -> str:
        return f"reference {ref} is mapped by domain {self.read(ref).domid}"

    @abc.abstractmethod
    def _store_frame(self, buffer: Buffer, at: int, frame: int) -> None: ...


class EntriesV1(Entries):
    """Version 1: 8 bytes each, the hypervisor's marks among the flags."""

    version = 1
    entry_size = abi.V1_ENTRY_SIZE
    per_frame = abi.V1_ENTRIES_PER_FRAME
    max_frame = 0xFFFFFFFF

    def is_invalid(self, ref: int) -> bool:
        buffer, at = self.at(ref)
        return not _native.load16(buffer, at)

    def in_use(self, ref: int) -> int:
        buffer, at = self.at(ref)
        return _native.load16(buffer, at + abi.FLAGS) & _IN_USE

    def read(self, ref: int) -> GrantEntry:
        buffer, at = self.at(ref)
        word = _native.load32(buffer, at)
        for _ in range(_READS):
            frame = _native.load32(buffer, at + abi.V1_FRAME)
            again = _native.load32(buffer, at)
            if again == word:
                break
            word = again
        return make_entry(1, ref, word & 0xFFFF, word >> 16, frame)

    def end_access(self, ref: int) -> None:
        """Flags go to 0 in one compare-exchange (Linux gnttab_end_foreign_access_ref_v1)."""
        buffer, at = self.at(ref)
        flags = _native.load16(buffer, at + abi.FLAGS)
        while True:
            if flags == abi.GTF_INVALID:
                raise InvalidGrant(f"reference {ref} is not granted")
            if flags & _IN_USE:
                raise GrantBusy(self._busy(ref))
            seen = _native.compare_exchange16(buffer, at + abi.FLAGS, flags, abi.GTF_INVALID)
            if seen == flags:
                return
            flags = seen

    def _store_frame(self, buffer: Buffer, at: int, frame: int) -> None:
        _native.store32(buffer, at + abi.V1_FRAME, frame)


class EntriesV2(Entries):
    """Version 2: 16 bytes each, the hypervisor's marks in status frames of their own."""

    version = 2
    entry_size = abi.V2_ENTRY_SIZE
    per_frame = abi.V2_ENTRIES_PER_FRAME
    max_frame = 0xFFFFFFFFFFFFFFFF

    def status_at(self, ref: int) -> tuple[Buffer, int]:
        """(buffer, byte offset in it) of an entry's status word; `InvalidGrant` beyond the table."""
        number, entry = divmod(ref, abi.V2_STATUS_PER_FRAME)
        places = self.status_frames.places
        if not 0 <= number < len(places):
            raise InvalidGrant(f"reference {ref} is beyond the table's status frames")
        buffer, at = places[number]
        return buffer, at + entry * abi.V2_STATUS_SIZE

    def is_invalid(self, ref: int) -> bool:
        buffer, at = self.at(ref)
        return not _native.load16(buffer, at + abi.FLAGS) & ~_IN_USE

    def in_use(self, ref: int) -> int:
        buffer, at = self.status_at(ref)
        return _native.load16(buffer, at) & _IN_USE

    def read(self, ref: int) -> GrantEntry:
        buffer, at = self.at(ref)
        word = _native.load32(buffer, at)
        for _ in range(_READS):
            frame = _native.load32(buffer, at + abi.V2_FRAME) | _native.load32(buffer, at + abi.V2_FRAME + 4) << 32
            status = self.in_use(ref)
            again = _native.load32(buffer, at)
            if again == word:
                break
            word = again
        return make_entry(2, ref, word & 0xFFFF & ~_IN_USE | status, word >> 16, frame)

    def end_access(self, ref: int) -> None:
        """Flags go to 0, a full fence, then the status is read (Linux gnttab_end_foreign_access_ref_v2)."""
        buffer, at = self.at(ref)
        was_granted = _native.load16(buffer, at + abi.FLAGS) & ~_IN_USE
        _native.store16(buffer, at + abi.FLAGS, abi.GTF_INVALID)
        _native.fence()
        if self.in_use(ref):  # an acquire load: what is freed next is freed after it
            raise GrantBusy(f"{self._busy(ref)}, and cannot be mapped again")
        if not was_granted:
            raise InvalidGrant(f"reference {ref} is not granted")

    def make_readonly(self, ref: int) -> None:
        changed = self._change_access(ref, readonly=True)
        _native.fence()
        if self.in_use(ref) & abi.GTF_WRITING:
            if changed:
                self._change_access(ref, readonly=False)
            raise GrantBusy(self._busy(ref))

    def _store_frame(self, buffer: Buffer, at: int, frame: int) -> None:
        _native.store32(buffer, at + abi.V2_FRAME, frame & 0xFFFFFFFF)
        _native.store32(buffer, at + abi.V2_FRAME + 4, frame >> 32)


def entries_of(version: int, frames: Iterable[Buffer], status_frames: Iterable[Buffer] = ()) -> Entries:
    """The entries of a table of that version, 1 or 2; `ValueError` for another, or too few status frames."""
    if version not in (1, 2):
        raise ValueError(f"version {version}: a grant table is of version 1 or 2")
    if version == 1:
        return EntriesV1(frames)
    entries = EntriesV2(frames, status_frames)
    if len(entries.status_frames) * abi.V2_FRAMES_PER_STATUS_FRAME < len(entries.frames):
        raise ValueError(
            f"{len(entries.status_frames)} status frames for {len(entries.frames)} frames of a version 2 table: "
            f"one for each {abi.V2_FRAMES_PER_STATUS_FRAME} is needed"
        )
    return entries
