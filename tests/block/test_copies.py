"""Grant copy in runs, where an ioctl's bytes have addresses: on a kernel, played here by an embedded machine's copy."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import pytest

from xengrant import CopySegment, Domain, Gnttab, Grant
from xengrant.abi import gntdev as abi
from xengrant.devices import Pointer


class _Addressed:
    """A gntdev of an embedded machine that follows addresses, as the kernel's does."""

    def __init__(self, gnttab: Gnttab) -> None:
        self._gnttab = gnttab
        self._device = gnttab._device
        self.copies = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def address(self, memory: memoryview) -> int:
        return ctypes.addressof(ctypes.c_char.from_buffer(memory))

    def ioctl(self, request: int, arg: bytearray, pointers: Sequence[Pointer] = ()) -> int:
        if request != abi.GRANT_COPY:
            return self._device.ioctl(request, arg, pointers)
        [pointer] = pointers
        table = pointer.target
        assert isinstance(table, bytearray)
        self.copies += 1
        with Gnttab(self._gnttab._system.open("gntdev"), self._gnttab._system) as other:
            for i in range(abi.copy_count(arg)):
                abi.fill_segment(table, i, other.copy([self._segment(table, i)])[0])
        return 0

    def _segment(self, table: bytearray, i: int) -> CopySegment:
        source, dest, length, flags = abi.unpack_segment(table, i)
        start = i * abi.SEGMENT_SIZE + (abi.SEGMENT_SOURCE if flags == abi.COPY_DEST_GREF else abi.SEGMENT_DEST)
        at = int.from_bytes(table[start : start + 8], "little")
        local = memoryview((ctypes.c_char * length).from_address(at)).cast("B")
        if flags == abi.COPY_DEST_GREF:
            return CopySegment(local, Grant(dest[2], dest[0]), length, dest_offset=dest[1])
        return CopySegment(Grant(source[2], source[0]), local, length, source_offset=source[1])


@pytest.mark.parametrize("addressed", [True, False])
def test_a_run_goes_both_ways_and_tells_what_was_refused(granter: Domain, mapper: Domain, addressed: bool) -> None:
    with granter.gntshr() as gntshr, mapper.gnttab() as gnttab:
        device = _Addressed(gnttab)
        if addressed:
            gnttab._device = device  # type: ignore[assignment]
        with gntshr.share_pages(2, 2, writable=True) as share, gntshr.share_pages(2, 1, writable=False) as fixed:
            first, second = share.refs
            share.mapping[:8192] = bytes(range(256)) * 32
            memory = memoryview(bytearray(1024 + 3 + 4096))
            pieces = [(first, 512, 1024), (99, 0, 3), (second, 0, 4096)]
            statuses = gnttab.copy_run(1, pieces, memory, to_grants=False)
            assert [bool(status) for status in statuses] == [False, True, False]
            assert memory[:1024] == share.mapping[512:1536]
            assert memory[1027:] == share.mapping[4096:8192]
            memory[:] = b"x" * len(memory)
            pieces = [(second, 3072, 1024), (fixed.refs[0], 0, 3), (first, 0, 4096)]
            statuses = gnttab.copy_run(1, pieces, memory, to_grants=True)
            assert [bool(status) for status in statuses] == [False, True, False]
            assert share.mapping[:4096] == b"x" * 4096
            assert share.mapping[7168:] == b"x" * 1024
            assert share.mapping[4096:7168] == bytes(range(256)) * 12
            assert fixed.mapping[:3] == bytes(3)
            assert device.copies == 2 * addressed
            assert gnttab.copy_run(1, [], memory[:0], to_grants=True) == []
            for wrong in ([(first, 4000, 97)], [(first, 0, 96)]):
                with pytest.raises(ValueError, match="as long as the memory"):
                    gnttab.copy_run(1, wrong, memory[:97], to_grants=True)
        if addressed:
            gnttab._device = device._device
