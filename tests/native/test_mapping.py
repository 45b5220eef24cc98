"""Mapping as a buffer and a sequence of bytes, made from one part or from several."""

import errno
import mmap
import os
import struct
import sys
import weakref
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

import xengrant.memory
from xengrant.memory import PAGE_SIZE, Mapping

from .conftest import MakePages
from .maps import mapped_memfds, permissions_at


def test_the_page_size_is_the_machines() -> None:
    assert mmap.PAGESIZE == PAGE_SIZE


def test_one_part_is_the_files_pages(make_pages: MakePages) -> None:
    fd = make_pages(4)
    with Mapping([(fd, PAGE_SIZE, 2 * PAGE_SIZE)], writable=True) as mapping:
        assert mapping[:] == b"\x02" * PAGE_SIZE + b"\x03" * PAGE_SIZE
        mapping[0:3] = b"abc"
        assert os.pread(fd, 4, PAGE_SIZE) == b"abc\x02"
        os.pwrite(fd, b"xyz", 3 * PAGE_SIZE - 3)
        assert mapping[-3:] == b"xyz"


def test_parts_lie_side_by_side_in_their_order(make_pages: MakePages) -> None:
    first, second = make_pages(4), make_pages(2)
    parts = [(first, 3 * PAGE_SIZE, PAGE_SIZE), (second, 0, 2 * PAGE_SIZE), (first, 0, PAGE_SIZE)]
    with Mapping(parts, writable=True) as mapping:
        assert [mapping.page(page)[0] for page in range(mapping.pages)] == [4, 1, 2, 1]
        mapping[PAGE_SIZE - 2 : PAGE_SIZE + 2] = b"abcd"
        assert (os.pread(first, 2, 4 * PAGE_SIZE - 2), os.pread(second, 2, 0)) == (b"ab", b"cd")
        assert {permissions_at(mapping.address + page * PAGE_SIZE) for page in range(4)} == {"rw-s"}


def test_parts_may_be_any_iterable_of_any_triples(make_pages: MakePages) -> None:
    fd = make_pages(2)
    with Mapping(([fd, page * PAGE_SIZE, PAGE_SIZE] for page in (1, 0)), writable=False) as mapping:  # type: ignore[misc]
        assert (mapping[0], mapping[-1]) == (2, 1)
    with Mapping(parts=((fd, 0, PAGE_SIZE),), writable=False) as mapping:
        assert mapping[0] == 1


def test_the_descriptors_may_be_closed_once_mapped(make_pages: MakePages) -> None:
    fd = os.dup(make_pages(1))
    mapping = Mapping([(fd, 0, PAGE_SIZE)], writable=False)
    os.close(fd)
    assert mapping[0] == 1
    mapping.close()


PAGE = PAGE_SIZE
WRONG_PARTS = {
    "no part": ([], ValueError),
    "a misaligned offset": ([(0, 1, PAGE)], ValueError),
    "a negative offset": ([(0, -PAGE, PAGE)], ValueError),
    "an offset over 63 bits": ([(0, 2**63, PAGE)], OverflowError),
    "no length": ([(0, 0, 0)], ValueError),
    "a negative length": ([(0, 0, -PAGE)], ValueError),
    "half a page": ([(0, 0, PAGE // 2)], ValueError),
    "a length over 63 bits": ([(0, 0, 2**63)], OverflowError),
    "more than the address space": ([(0, 0, 2**62), (0, 0, 2**62)], OverflowError),
    "a negative descriptor": ([(-1, 0, PAGE)], ValueError),
    "a descriptor over an int": ([(2**31, 0, PAGE)], ValueError),
    "two numbers": ([(0, 0)], ValueError),
    "four numbers": ([(0, 0, PAGE, 0)], ValueError),
    "no triple": ([0], TypeError),
    "no sequence": (0, TypeError),
    "a text": ([("0", 0, PAGE)], TypeError),
    "a float": ([(0, 0, 4096.0)], TypeError),
}


@pytest.mark.parametrize(("parts", "error"), WRONG_PARTS.values(), ids=WRONG_PARTS)
def test_wrong_parts_are_refused(parts: list[tuple[int, int, int]], error: type[Exception]) -> None:
    with pytest.raises(error):
        Mapping(parts, writable=True)


@pytest.mark.parametrize(
    ("positional", "named"),
    [
        ((), {"writable": True}),
        (([],), {}),
        (([], True), {}),
        (([],), {"writable": True, "unmapped": 3}),
        (([],), {"writable": True, "other": 3}),
        (([],), {"writable": True, "parts": []}),
    ],
)
def test_wrong_arguments_are_type_errors(
    positional: tuple[object, ...], named: dict[str, object], make_pages: MakePages
) -> None:
    one_page = [(make_pages(1), 0, PAGE_SIZE)]
    make: Callable[..., Mapping] = Mapping
    with pytest.raises(TypeError):
        make(*(one_page if value == [] else value for value in positional), **named)


def test_all_parts_are_mapped_or_none(make_pages: MakePages) -> None:
    good, closed = make_pages(1), os.dup(0)
    os.close(closed)
    called: list[None] = []
    before = mapped_memfds()
    for bad in range(3):
        parts = [(good, 0, PAGE_SIZE)] * 3
        parts[bad] = (closed, 0, PAGE_SIZE)
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)) as caught:
            Mapping(parts, writable=True, unmapped=lambda: called.append(None))
        assert caught.value.errno == errno.EBADF
    assert mapped_memfds() == before
    assert called == []


def test_the_kernels_refusal_keeps_its_errno(make_pages: MakePages) -> None:
    read_only = os.open(f"/proc/self/fd/{make_pages(1)}", os.O_RDONLY)
    try:
        with pytest.raises(PermissionError):
            Mapping([(read_only, 0, PAGE_SIZE)], writable=True)
        with Mapping([(read_only, 0, PAGE_SIZE)], writable=False) as mapping:
            assert mapping[0] == 1
        with pytest.raises(OSError, match=os.strerror(errno.ENOMEM)):
            Mapping([(read_only, 0, 2**62)], writable=False)
    finally:
        os.close(read_only)


indices = st.one_of(st.none(), st.integers(-20, 20), st.integers())
slices = st.builds(slice, indices, indices, st.one_of(indices.filter(lambda step: step != 0)))


@given(slices)
def test_slices_are_copies_as_of_bytes(key: slice) -> None:
    fd = os.memfd_create("xengrant-test")
    content = bytes(range(1, 17)) + bytes(PAGE_SIZE - 16)
    os.write(fd, content)
    with Mapping([(fd, 0, PAGE_SIZE)], writable=False) as mapping:
        os.close(fd)
        assert mapping[key] == content[key]
        assert type(mapping[key]) is bytes


@given(slices, st.sampled_from([bytes, bytearray, memoryview]), st.integers(-1, 1))
def test_slices_are_assigned_as_those_of_mmap(key: slice, kind: Callable[[bytes], bytes], wrong_by: int) -> None:
    fd = os.memfd_create("xengrant-test")
    os.ftruncate(fd, PAGE_SIZE)
    with Mapping([(fd, 0, PAGE_SIZE)], writable=True) as mapping, mmap.mmap(-1, PAGE_SIZE) as model:
        os.close(fd)
        length = max(0, len(range(*key.indices(PAGE_SIZE))) + wrong_by)
        data = kind(bytes(position % 251 + 1 for position in range(length)))
        try:
            model[key] = data
        except IndexError:
            with pytest.raises(IndexError, match=f"{length} bytes assigned to a slice of"):
                mapping[key] = data
        else:
            mapping[key] = data
        assert mapping[:] == model[:]


def test_a_slice_may_be_assigned_from_the_same_mapping(make_pages: MakePages) -> None:
    with Mapping([(make_pages(1), 0, PAGE_SIZE)], writable=True) as mapping:
        mapping[:8] = b"abcdefgh"
        with memoryview(mapping) as view:
            mapping[2:8] = view[:6]
            assert mapping[:9] == b"ababcdef\x01"
            mapping[:6] = view[2:8]
            assert mapping[:8] == b"abcdefef"


def test_single_bytes_by_index(make_pages: MakePages) -> None:
    with Mapping([(make_pages(2), 0, 2 * PAGE_SIZE)], writable=True) as mapping:
        assert (mapping[0], mapping[-1], mapping[PAGE_SIZE]) == (1, 2, 2)
        mapping[0], mapping[-1], mapping[True] = 0, 255, 7
        assert (mapping[0], mapping[-1], mapping[1]) == (0, 255, 7)
        for outside in (2 * PAGE_SIZE, -2 * PAGE_SIZE - 1, 2**64, -(2**64)):
            with pytest.raises(IndexError):
                mapping[outside]
            with pytest.raises(IndexError):
                mapping[outside] = 1
        for wrong in (256, -1, 2**64):
            with pytest.raises(ValueError, match="range"):
                mapping[0] = wrong
        for wrong_type in ("x", b"x", 1.0, None):
            with pytest.raises(TypeError):
                mapping[0] = wrong_type  # type: ignore[call-overload]
        for wrong_key in ("x", 1.0, None, (0, 1)):
            with pytest.raises(TypeError):
                mapping[wrong_key]  # type: ignore[call-overload]
            with pytest.raises(TypeError):
                mapping[wrong_key] = 0  # type: ignore[call-overload]
        with pytest.raises(TypeError):
            mapping[0:1] = 7  # type: ignore[call-overload]
        assert mapping[:2] == b"\x00\x07"


def test_items_cannot_be_deleted(make_pages: MakePages) -> None:
    with Mapping([(make_pages(1), 0, PAGE_SIZE)], writable=True) as mapping:
        with pytest.raises(TypeError):
            del mapping[0]  # type: ignore[attr-defined]
        with pytest.raises(TypeError):
            del mapping[0:1]  # type: ignore[attr-defined]


def test_a_read_only_mapping_refuses_every_store(make_pages: MakePages) -> None:
    with Mapping([(make_pages(1), 0, PAGE_SIZE)], writable=False) as mapping:
        with pytest.raises(TypeError, match="read-only"):
            mapping[0] = 1
        with pytest.raises(TypeError, match="read-only"):
            mapping[0:1] = b"x"
        with memoryview(mapping) as view, mapping.page(0) as page:
            assert (view.readonly, page.readonly) == (True, True)
            with pytest.raises(TypeError):
                view[0] = 1
        with pytest.raises((BufferError, TypeError)):
            struct.pack_into("B", mapping, 0, 1)
        assert mapping.exports == 0
        assert (mapping.writable, permissions_at(mapping.address)) == (False, "r--s")


def test_it_is_a_buffer_of_bytes(make_pages: MakePages) -> None:
    with Mapping([(make_pages(2), 0, 2 * PAGE_SIZE)], writable=True) as mapping:
        with memoryview(mapping) as view:
            assert (view.format, view.ndim, view.nbytes, view.readonly) == ("B", 1, 2 * PAGE_SIZE, False)
            view[0] = 9
            with view.cast("I") as words:
                words[1] = 0x01020304
        assert mapping[:8] == b"\x09\x01\x01\x01" + (0x01020304).to_bytes(4, sys.byteorder)
        assert bytes(mapping) == mapping[:]
        assert struct.unpack_from("4s", mapping, PAGE_SIZE) == (b"\x02" * 4,)
        with open("/dev/zero", "rb", buffering=0) as zero:
            assert zero.readinto(mapping) == 2 * PAGE_SIZE
        assert not any(mapping)


def test_it_is_iterated_as_integers(make_pages: MakePages) -> None:
    with Mapping([(make_pages(2), 0, 2 * PAGE_SIZE)], writable=False) as mapping:
        assert list(mapping) == [1] * PAGE_SIZE + [2] * PAGE_SIZE
        assert next(iter(reversed(mapping))) == 2
        assert 2 in mapping
        assert 3 not in mapping


def test_page_views_one_page(make_pages: MakePages) -> None:
    with Mapping([(make_pages(3), 0, 3 * PAGE_SIZE)], writable=True) as mapping:
        for index, first in ((0, 1), (2, 3), (-1, 3), (-3, 1)):
            with mapping.page(index) as page:
                assert (len(page), page[0], page[-1], page.readonly) == (PAGE_SIZE, first, first, False)
        with mapping.page(1) as page:
            page[5] = 77
        assert mapping[PAGE_SIZE + 5] == 77
        for outside in (3, -4, 2**64):
            with pytest.raises(IndexError):
                mapping.page(outside)
        with pytest.raises(TypeError):
            mapping.page("0")  # type: ignore[arg-type]
        assert mapping.exports == 0


def test_it_tells_what_it_is(make_pages: MakePages) -> None:
    fd = make_pages(2)
    with Mapping([(fd, 0, 2 * PAGE_SIZE)], writable=True) as mapping:
        assert (len(mapping), mapping.pages, mapping.writable, mapping.closed) == (2 * PAGE_SIZE, 2, True, False)
        assert mapping
        assert repr(mapping) == f"<Mapping 2 pages at {mapping.address:#x} writable>"
        view = memoryview(mapping)
        mapping.close_on_release()
        assert repr(mapping) == "<Mapping closed, 1 view alive>"
        view.release()
        assert repr(mapping) == "<Mapping closed>"
        assert mapping.closed
        assert not mapping
    with Mapping([(fd, 0, PAGE_SIZE)], writable=False) as mapping:
        assert repr(mapping) == f"<Mapping 1 page at {mapping.address:#x} read-only>"


def test_its_public_home_is_memory() -> None:
    assert (Mapping.__module__, Mapping.__qualname__) == ("xengrant.memory", "Mapping")
    assert set(xengrant.memory.__all__) == {"PAGE_SIZE", "Mapping"}


def test_the_type_is_not_for_patching_or_bypassing() -> None:
    with pytest.raises(TypeError):
        Mapping.close = None  # type: ignore[method-assign,assignment]
    for construct in (Mapping.__base__, lambda: object.__new__(Mapping)):
        assert construct is not None
        with pytest.raises(TypeError):
            construct()


def test_subclasses_and_weak_references(make_pages: MakePages) -> None:
    class Labelled(Mapping):
        label = ""

    with Labelled([(make_pages(1), 0, PAGE_SIZE)], writable=True) as mapping:
        mapping.label = "ring"
        assert repr(mapping).startswith("<Labelled 1 page at ")
        reference = weakref.ref(mapping)
        assert reference() is mapping
    del mapping
    assert reference() is None


def test_an_index_that_closes_the_mapping_finds_it_closed(make_pages: MakePages) -> None:
    fd = make_pages(1)

    class Closing:
        def __index__(self) -> int:
            mapping.close()
            return 0

    attempts: list[Callable[[], object]] = [
        lambda: mapping[Closing()],
        lambda: mapping[Closing() : 5],
        lambda: mapping.__setitem__(Closing(), 0),
        lambda: mapping.__setitem__(0, Closing()),
        lambda: mapping.__setitem__(slice(Closing(), 1), b"x"),
        lambda: mapping.page(Closing()),
    ]
    for attempt in attempts:
        mapping = Mapping([(fd, 0, PAGE_SIZE)], writable=True)
        with pytest.raises(ValueError, match="closed"):
            attempt()
