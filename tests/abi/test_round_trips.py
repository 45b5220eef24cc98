"""What one side packs the other unpacks, whatever the numbers: the embedded machine reads what the library asks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xengrant.abi import evtchn, gntalloc, gntdev, grant_table, privcmd, unmap_notify

u16 = st.integers(0, 0xFFFF)
u32 = st.integers(0, 0xFFFFFFFF)
u64 = st.integers(0, 0xFFFFFFFFFFFFFFFF)
status = st.integers(-0x8000, 0x7FFF)
sides = st.tuples(u32, u16, u16)


@given(u16, u16, st.lists(u32, min_size=1, max_size=600), u64)
def test_alloc(domid: int, flags: int, refs: list[int], index: int) -> None:
    arg = gntalloc.pack_alloc(domid, flags, len(refs))
    assert gntalloc.unpack_alloc(arg) == (domid, flags, len(refs))
    length = len(arg)
    gntalloc.fill_alloc(arg, index, refs)
    assert gntalloc.alloc_result(arg, len(refs)) == (index, tuple(refs))
    assert gntalloc.unpack_alloc(arg) == (domid, flags, len(refs))
    assert len(arg) == length == max(24, 16 + 4 * len(refs))  # what the kernel copies back at the least


@given(u64, u32)
def test_dealloc_and_unmap(index: int, count: int) -> None:
    assert gntalloc.unpack_dealloc(gntalloc.pack_dealloc(index, count)) == (index, count)
    assert gntdev.unpack_unmap(gntdev.pack_unmap(index, count)) == (index, count)


@given(u64, u32, u32)
def test_unmap_notify(index: int, action: int, port: int) -> None:
    assert unmap_notify.unpack_notify(unmap_notify.pack_notify(index, action, port)) == (index, action, port)


@given(st.lists(st.tuples(u32, u32), max_size=600), u64)
def test_map(grants: list[tuple[int, int]], index: int) -> None:
    arg = gntdev.pack_map(grants)
    length = len(arg)
    assert gntdev.map_count(arg) == len(grants)
    gntdev.fill_map(arg, index)
    assert gntdev.map_result(arg) == index
    assert gntdev.unpack_map(arg) == grants
    assert len(arg) == length == max(24, 16 + 8 * len(grants))


def test_a_map_shorter_than_its_count_is_refused() -> None:
    arg = gntdev.pack_map([(1, 8), (1, 9)])
    with pytest.raises(ValueError, match="MAP_GRANT_REF of 2 grants in 31 bytes"):
        gntdev.unpack_map(arg[:-1])


@given(u64, u64, u32)
def test_offset(vaddr: int, offset: int, count: int) -> None:
    arg = gntdev.pack_offset(vaddr)
    gntdev.fill_offset(arg, offset, count)
    assert gntdev.unpack_offset(arg) == vaddr
    assert gntdev.offset_result(arg) == (offset, count)


@given(st.lists(st.tuples(st.none() | sides, st.none() | sides, u16, status), min_size=1, max_size=20))
def test_copy_segments(
    segments: list[tuple[tuple[int, int, int] | None, tuple[int, int, int] | None, int, int]],
) -> None:
    table = bytearray().join(gntdev.pack_segment(source, dest, length) for source, dest, length, _ in segments)
    assert len(table) == gntdev.SEGMENT_SIZE * len(segments)
    for i, (_, _, _, answer) in enumerate(segments):
        gntdev.fill_segment(table, i, answer)
    for i, (source, dest, length, answer) in enumerate(segments):
        read_source, read_dest, read_length, flags = gntdev.unpack_segment(table, i)
        assert (read_source if flags & gntdev.COPY_SOURCE_GREF else None) == source
        assert (read_dest if flags & gntdev.COPY_DEST_GREF else None) == dest
        assert read_length == length
        assert gntdev.segment_status(table, i) == answer


@given(u32)
def test_copy_count(count: int) -> None:
    assert gntdev.copy_count(gntdev.pack_copy(count)) == count


@given(u32, u32, st.lists(u32, max_size=1100), st.integers(0, 3))
def test_event_channels(domid: int, port: int, ports: list[int], cut: int) -> None:
    assert evtchn.unpack_word(evtchn.pack_word(port)) == port
    assert evtchn.unpack_interdomain(evtchn.pack_interdomain(domid, port)) == (domid, port)
    data = evtchn.pack_ports(ports)
    assert evtchn.unpack_ports(data) == tuple(ports)
    assert evtchn.unpack_ports(data + bytes(cut)) == tuple(ports)  # a broken tail is no port


@given(u64, st.lists(u64, max_size=5))
def test_hypercall(operation: int, arguments: list[int]) -> None:
    arg = privcmd.pack_hypercall(operation, *arguments)
    assert privcmd.unpack_hypercall(arg) == (operation, (*arguments, *[0] * (5 - len(arguments))))
    for i, argument in enumerate(arguments):
        at = privcmd.hypercall_argument(i)
        assert int.from_bytes(arg[at : at + 8], "little") == argument


@given(u16, u32, u32, u32, u64, u64)
def test_resource(domid: int, kind: int, number: int, frame: int, frames: int, answer: int) -> None:
    arg = privcmd.pack_resource(domid, kind, number, frame, frames)
    assert privcmd.unpack_resource(arg) == (domid, kind, number, frame, frames)
    privcmd.fill_resource(arg, answer)
    assert privcmd.resource_result(arg) == answer
    assert privcmd.unpack_resource(arg)[:4] == (domid, kind, number, frame)


@given(u16, u32, u32, status)
def test_query_size(domid: int, frames: int, maximum: int, answer: int) -> None:
    arg = grant_table.pack_query_size(domid)
    grant_table.fill_query_size(arg, frames, maximum, answer)
    assert grant_table.unpack_query_size(arg) == domid
    assert grant_table.query_size_result(arg) == (frames, maximum, answer)


@given(u16, u32)
def test_get_version(domid: int, version: int) -> None:
    arg = grant_table.pack_get_version(domid)
    grant_table.fill_get_version(arg, version)
    assert grant_table.unpack_get_version(arg) == domid
    assert grant_table.get_version_result(arg) == version


@pytest.mark.parametrize(
    "pack",
    [
        lambda: gntalloc.pack_alloc(0x10000, 0, 1),
        lambda: gntalloc.pack_alloc(-1, 0, 1),
        lambda: gntdev.pack_map([(1, 1 << 32)]),
        lambda: gntdev.pack_map([(1, -1)]),
        lambda: evtchn.pack_word(1 << 32),
        lambda: unmap_notify.pack_notify(0, 1, -1),
    ],
)
def test_a_number_that_does_not_fit_is_never_cut(pack: object) -> None:
    assert callable(pack)
    with pytest.raises(Exception, match=r"format|range|integer"):
        pack()


@pytest.mark.parametrize("to_grants", [True, False])
def test_a_run_of_copies_is_one_segment_after_the_other(to_grants: bool) -> None:
    refs, offsets, lengths = [8, 9, 0xFFFFFFFF], [0, 512, 4095], [4096, 1024, 1]
    run = gntdev.pack_run(7, refs, offsets, lengths, 0x123456789000, to_grants=to_grants)
    expected = bytearray()
    at = 0x123456789000
    for ref, offset, length in zip(refs, offsets, lengths, strict=True):
        granted = (ref, offset, 7)
        segment = bytearray(
            gntdev.pack_segment(None, granted, length) if to_grants else gntdev.pack_segment(granted, None, length)
        )
        pointer = gntdev.SEGMENT_SOURCE if to_grants else gntdev.SEGMENT_DEST
        segment[pointer : pointer + 8] = at.to_bytes(8, "little")
        expected += segment
        at += length
    assert run == expected
    table = bytearray(run)
    gntdev.fill_segment(table, 1, -3)
    assert gntdev.segment_statuses(table) == [0, -3, 0]
