"""Copying and decoding whole tables: what is refused, and each entry of every kind."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xengrant import _native
from xengrant.memory import PAGE_SIZE, Mapping

from .conftest import MakePages


def test_a_copy_says_whether_anything_changed() -> None:
    source, copy = bytearray(range(64)), bytearray(64)
    assert _native.copy_entries(source, copy, 0, 8) is True
    assert copy == source
    assert _native.copy_entries(source, copy, 0, 8) is False
    source[63] ^= 1
    assert _native.copy_entries(source, copy, 0, 16) is True
    assert copy == source


@pytest.mark.parametrize("byte", [0, 7, 8, 15])
@pytest.mark.parametrize("size", [8, 16])
def test_every_byte_of_an_entry_counts(byte: int, size: int) -> None:
    source, copy = bytearray(32), bytearray(32)
    source[16 + byte] = 1
    assert _native.copy_entries(source, copy, 0, size)
    assert copy == source


def test_a_copy_lies_where_it_is_told_to() -> None:
    copy = bytearray(b"\xff" * 48)
    assert _native.copy_entries(bytes(16), copy, 16, 16)
    assert copy == b"\xff" * 16 + bytes(16) + b"\xff" * 16
    assert not _native.copy_entries(b"", copy, 48, 8)


def test_a_mapping_is_copied_from(make_pages: MakePages) -> None:
    with Mapping([(make_pages(1), 0, PAGE_SIZE)], writable=True) as pages:
        pages[8:16] = b"anything"
        copy = bytearray(PAGE_SIZE)
        assert _native.copy_entries(pages, copy, 0, 8)
        assert copy == pages[:]


@pytest.mark.parametrize(
    ("source", "copy", "at", "size", "error"),
    [
        (bytes(16), bytearray(16), 0, 4, ValueError),
        (bytes(16), bytearray(16), 0, 0, ValueError),
        (bytes(16), bytearray(16), 0, -8, ValueError),
        (bytes(12), bytearray(16), 0, 8, ValueError),
        (bytes(8), bytearray(16), 0, 16, ValueError),
        (bytes(16), bytearray(15), 0, 8, IndexError),
        (bytes(16), bytearray(16), 8, 8, IndexError),
        (bytes(16), bytearray(16), -8, 8, IndexError),
        (bytes(16), bytearray(16), 1 << 62, 8, IndexError),
        (bytes(16), bytearray(40), 4, 8, ValueError),
        (bytes(16), bytes(16), 0, 8, (TypeError, BufferError)),
        ("text", bytearray(16), 0, 8, TypeError),
    ],
)
def test_a_copy_that_cannot_be_is_refused(
    source: bytes, copy: bytearray, at: int, size: int, error: type[Exception]
) -> None:
    before = bytes(copy)
    with pytest.raises(error):
        _native.copy_entries(source, copy, at, size)
    assert copy == before


def test_memory_that_is_not_aligned_is_refused() -> None:
    memory = bytearray(64)
    with pytest.raises(ValueError, match="not aligned"):
        _native.copy_entries(memoryview(memory)[4:36], bytearray(32), 0, 8)
    with pytest.raises(ValueError, match="not aligned"):
        _native.copy_entries(bytes(32), memoryview(memory)[4:36], 0, 8)


def test_a_mapping_that_is_closed_is_refused(make_pages: MakePages) -> None:
    pages = Mapping([(make_pages(1), 0, PAGE_SIZE)], writable=True)
    pages.close()
    with pytest.raises(ValueError, match="closed"):
        _native.copy_entries(pages, bytearray(PAGE_SIZE), 0, 8)


def test_the_copys_memory_is_let_go_of() -> None:
    copy = bytearray(16)
    _native.copy_entries(bytes(16), copy, 0, 8)
    _native.decode_grants(1, copy, b"")
    _native.tally_grants(1, copy, b"")
    with pytest.raises(ValueError, match="entries"):
        _native.decode_grants(2, copy, b"")
    copy.append(1)  # BufferError while it is exported


class V1(ctypes.LittleEndianStructure):
    _fields_ = (("flags", ctypes.c_uint16), ("domid", ctypes.c_uint16), ("frame", ctypes.c_uint32))


class V2(ctypes.LittleEndianStructure):
    _fields_ = (
        *(("flags", ctypes.c_uint16), ("domid", ctypes.c_uint16), ("extra", ctypes.c_uint32)),
        ("frame", ctypes.c_uint64),
    )


def decoded(version: int, frames: bytes, status: bytes = b"") -> list[tuple[int, int, int, int]]:
    """(ref, flags, domid, frame) of each entry in use."""
    columns = _native.decode_grants(version, frames, status)
    return list(zip(*(array(code, data) for code, data in zip("IHHQ", columns, strict=True)), strict=True))


words16, words32, words64 = st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF), st.integers(0, (1 << 64) - 1)


@settings(max_examples=50)
@given(st.lists(st.tuples(words16, words16, words32), max_size=20))
def test_version_1_is_decoded_as_the_header_says(entries: list[tuple[int, int, int]]) -> None:
    frames = b"".join(bytes(V1(*entry)) for entry in entries)
    expected = [(ref, *entry) for ref, entry in enumerate(entries) if entry[0] & 0x1B]
    assert decoded(1, frames) == expected


@settings(max_examples=50)
@given(st.lists(st.tuples(words16, words16, words32, words64, words16), max_size=20))
def test_version_2_is_decoded_with_its_status(entries: list[tuple[int, int, int, int, int]]) -> None:
    frames = b"".join(bytes(V2(*entry[:4])) for entry in entries)
    status = b"".join(entry[4].to_bytes(2, "little") for entry in entries)
    expected = []
    for ref, (own, domid, _, frame, marks) in enumerate(entries):
        # Of a transfer they say how far it is.
        flags = own if own & 3 == 2 else own & ~0x18 | marks & 0x18
        if flags & 0x1B:
            expected.append((ref, flags, domid, frame & 0xFFFFFFFF if flags & 3 == 3 else frame))
    assert decoded(2, frames, status) == expected


@settings(max_examples=50)
@given(st.lists(st.tuples(words16, st.integers(0, 3), words32), max_size=20))
def test_a_tally_counts_what_is_decoded(entries: list[tuple[int, int, int]]) -> None:
    frames = b"".join(bytes(V1(*entry)) for entry in entries)
    expected = []
    for peer in range(4):
        flags = [flags for _, flags, domid, _ in decoded(1, frames) if domid == peer]
        accesses = [flag for flag in flags if flag & 3 != 2]
        granted = sum(flag & 3 != 0 for flag in flags)
        readonly = sum(flag & 3 != 0 and flag & 4 != 0 for flag in accesses)
        mapped, writing = sum(flag & 0x18 != 0 for flag in accesses), sum(flag & 0x10 != 0 for flag in accesses)
        if granted or mapped:
            expected.append((peer, granted, readonly, mapped, writing))
    assert _native.tally_grants(1, frames, b"") == expected


def test_a_tally_knows_every_domid() -> None:
    frames = b"".join(bytes(V1(1, domid, 5)) for domid in (0xFFFF, 0, 0x7FF0, 0xFFFF))
    assert _native.tally_grants(1, frames, b"") == [(0, 1, 0, 0, 0), (0x7FF0, 1, 0, 0, 0), (0xFFFF, 2, 0, 0, 0)]


@pytest.mark.parametrize("function", [_native.decode_grants, _native.tally_grants])
@pytest.mark.parametrize(
    ("version", "frames", "status", "said"),
    [
        (0, b"", b"", "version 0"),
        (3, bytes(16), bytes(2), "version 3"),
        (-1, bytes(16), bytes(2), "version -1"),
        (2, bytes(32), bytes(3), "2 entries, and 3 bytes of status"),
    ],
)
def test_what_is_no_table_is_refused(
    function: Callable[[int, bytes, bytes], object], version: int, frames: bytes, status: bytes, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        function(version, frames, status)


def test_half_an_entry_at_the_end_is_left_out() -> None:
    assert decoded(1, bytes(V1(1, 2, 3)) + b"\1\0\2\0\3\0\0") == [(0, 1, 2, 3)]
    assert decoded(2, bytes(V2(1, 2, 0, 3)) + b"\1" * 15, bytes(2)) == [(0, 1, 2, 3)]
