"""A table's memory for the tests, in either version, what a hypervisor does to it, and a clock."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from xengrant import grant_contexts, grant_table
from xengrant._native import load16, store16
from xengrant.abi import grant_table as abi
from xengrant.abi.xen import PAGE_SIZE
from xengrant.grant_table import GrantTable, NewFrames

READING, WRITING = abi.GTF_READING, abi.GTF_WRITING


class TableMemory:
    """Frames of a table that has `frames` of at most `maximum`."""

    def __init__(self, version: int = 1, frames: int = 1, maximum: int = 1) -> None:
        self.version = version
        self.maximum = maximum
        self.per_frame = abi.V1_ENTRIES_PER_FRAME if version == 1 else abi.V2_ENTRIES_PER_FRAME
        self.frames: list[bytearray] = []
        self.status: list[bytearray] = []
        for _ in range(frames):
            self._add()

    def table(self) -> GrantTable:
        return GrantTable(
            self.frames, version=self.version, status_frames=self.status, max_frames=self.maximum, grow=self.grow
        )

    @property
    def room(self) -> int:
        """References of one frame, without the reserved ones."""
        return self.per_frame - abi.NR_RESERVED_ENTRIES

    def grow(self, number: int) -> NewFrames | None:
        """Frame `number`, where it was asked for before too, as a hypervisor gives it."""
        if number == len(self.frames) < self.maximum:
            self._add()
        if number >= len(self.frames):
            return None
        needed = self.version == 2 and number % abi.V2_FRAMES_PER_STATUS_FRAME == 0
        return NewFrames(self.frames[number], self.status[number // abi.V2_FRAMES_PER_STATUS_FRAME] if needed else None)

    def entry(self, ref: int) -> bytes:
        """The bytes of an entry, as Xen reads them."""
        number, i = divmod(ref, self.per_frame)
        size = PAGE_SIZE // self.per_frame
        return bytes(self.frames[number][i * size : (i + 1) * size])

    def write_entry(self, ref: int, data: bytes) -> None:
        """What somebody else writes over an entry."""
        number, i = divmod(ref, self.per_frame)
        size = PAGE_SIZE // self.per_frame
        self.frames[number][i * size : i * size + len(data)] = data

    def in_use(self, ref: int) -> int:
        """GTF_reading and GTF_writing, where Xen keeps them."""
        buffer, at = self._marks(ref)
        return load16(buffer, at) & (READING | WRITING)

    def pin(self, ref: int, bits: int) -> None:
        """The hypervisor maps the page for a peer."""
        buffer, at = self._marks(ref)
        store16(buffer, at, load16(buffer, at) | bits)

    def unpin(self, ref: int) -> None:
        """The peer has unmapped it."""
        buffer, at = self._marks(ref)
        store16(buffer, at, load16(buffer, at) & ~(READING | WRITING))

    def _marks(self, ref: int) -> tuple[bytearray, int]:
        if self.version == 1:
            number, i = divmod(ref, abi.V1_ENTRIES_PER_FRAME)
            return self.frames[number], i * abi.V1_ENTRY_SIZE
        number, i = divmod(ref, abi.V2_STATUS_PER_FRAME)
        return self.status[number], i * abi.V2_STATUS_SIZE

    def _add(self) -> None:
        needed = self.version == 2 and len(self.frames) % abi.V2_FRAMES_PER_STATUS_FRAME == 0
        self.frames.append(bytearray(PAGE_SIZE))
        if needed:
            self.status.append(bytearray(PAGE_SIZE))


class FakePage:
    """A page that counts who holds it."""

    def __init__(self, frame: int = 0x77) -> None:
        self.frame = frame
        self.held = 0

    def hold(self) -> None:
        self.held += 1

    def drop(self) -> None:
        self.held -= 1


class Clock:
    """Time that passes only while somebody sleeps. `unmaps_at` is when the peer unmaps."""

    def __init__(self, memory: TableMemory, ref: int, unmaps_at: float = float("inf")) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []
        self._memory, self._ref = memory, ref
        self._unmaps_at = self.now + unmaps_at

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds
        assert len(self.pauses) < 1000, "it never gives up"
        if self.now >= self._unmaps_at:
            self._memory.unpin(self._ref)

    def rule(self, monkeypatch: pytest.MonkeyPatch) -> Clock:
        for module in (grant_table, grant_contexts):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=self.monotonic))
        monkeypatch.setattr(asyncio, "sleep", self.sleep)
        return self
