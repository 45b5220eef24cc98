"""Gnttab and Mapped against a scripted /dev/xen/gntdev: order of calls, undoing, and why a map failed."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from xengrant.abi import gntdev, unmap_notify
from xengrant.abi import grant_table as xen
from xengrant.errors import InterfaceClosed, InterfaceUnavailable, InvalidGrant, MapError
from xengrant.gntshr import UnmapNotify
from xengrant.gnttab import CopySegment, Gnttab, Grant, GrantRef
from xengrant.memory import PAGE_SIZE

from .fake import FakeSystem, error

_CLOSED = ["MAP", "mmap", "munmap", "UNMAP"]


def _refuse(system: FakeSystem, number: int = errno.EINVAL, **statuses: int) -> None:
    """Let the next mmap fail; statuses by ref of domain 1, `r8=-1`."""
    system.failures["mmap"] = error(number)
    system.opened[0].statuses = {(1, int(ref[1:])): status for ref, status in statuses.items()}


def test_a_map_is_unmapped_here_and_then_there(system: FakeSystem, gnttab: Gnttab) -> None:
    with gnttab.map([(1, 8), (2, 9)], writable=True) as mapped:
        assert system.journal == ["MAP", "mmap"]
        assert mapped.grants == (Grant(1, 8), Grant(2, 9))
        assert len(mapped.mapping) == 2 * PAGE_SIZE
        assert gntdev.unpack_map(system.opened[0].asked["MAP"]) == [(1, 8), (2, 9)]
        mapped.mapping[0] = 1
    assert mapped.closed
    mapped.close()
    assert system.journal == _CLOSED


def test_storing_into_a_read_only_map_is_a_type_error(gnttab: Gnttab) -> None:
    with gnttab.map((1, 8), writable=False) as mapped, pytest.raises(TypeError, match="read-only"):
        mapped.mapping[0] = 1


def _generator() -> Iterator[tuple[int, int]]:
    yield 1, 8
    yield 1, 9


@pytest.mark.parametrize(
    ("grants", "meant"),
    [
        ((1, 8), [(1, 8)]),
        (Grant(1, 8), [(1, 8)]),
        ([(1, 8)], [(1, 8)]),
        (((1, 8),), [(1, 8)]),
        (((1, 8), (1, 9)), [(1, 8), (1, 9)]),
        ([Grant(1, 8), [1, 9]], [(1, 8), (1, 9)]),
        (_generator(), [(1, 8), (1, 9)]),
        ((3, GrantRef.XENSTORE), [(3, 1)]),
        ((0x7FEF, 0xFFFFFFFF), [(0x7FEF, 0xFFFFFFFF)]),
    ],
)
def test_one_grant_or_several_in_any_form(gnttab: Gnttab, grants: Any, meant: list[tuple[int, int]]) -> None:
    with gnttab.map(grants, writable=False) as mapped:
        assert list(mapped.grants) == meant
        assert all(type(grant) is Grant for grant in mapped.grants)


@pytest.mark.parametrize(
    ("grants", "raised", "text"),
    [
        ([], ValueError, "no grants"),
        (iter(()), ValueError, "no grants"),
        ([(1, 8)] * 65537, ValueError, "65536"),
        ((-1, 8), InvalidGrant, "domid -1"),
        ((0x7FF0, 8), InvalidGrant, "domid 32752"),
        ((1, -1), InvalidGrant, "ref -1"),
        ((1, 1 << 32), InvalidGrant, "ref 4294967296"),
        ((True, 8), TypeError, "domid"),
        ((1, True), TypeError, "ref"),
        ((1.0, 8), TypeError, "domid"),
        ((1, 8.0), TypeError, "ref"),
        (("1", "8"), TypeError, "domid"),
        ([1, 8], TypeError, "pair"),
        ([(1, 8, 9)], TypeError, "pair"),
        ("18", TypeError, "pair"),
        (8, TypeError, "pair"),
    ],
)
def test_what_cannot_be_a_grant_is_refused_before_any_call(
    system: FakeSystem, gnttab: Gnttab, grants: Any, raised: type[Exception], text: str
) -> None:
    with pytest.raises(raised, match=text):
        gnttab.map(grants, writable=False)
    assert system.journal == []


def test_as_many_grants_as_the_kernel_takes(gnttab: Gnttab) -> None:
    gnttab.map([(1, 8)] * 65536, writable=False).close()


def test_writable_has_no_default(gnttab: Gnttab) -> None:
    unchecked: Any = gnttab
    with pytest.raises(TypeError, match="writable"):
        unchecked.map((1, 8))


def test_the_notification_is_set_after_mmap(system: FakeSystem, gnttab: Gnttab) -> None:
    gnttab_index = gnttab.map((1, 8), writable=True)
    with gnttab.map((1, 9), writable=True, notify=UnmapNotify(clear_byte=5, port=3)):
        assert system.journal[-3:] == ["MAP", "mmap", "NOTIFY"]
        packed = unmap_notify.unpack_notify(system.opened[0].asked["NOTIFY"])
        assert packed == (PAGE_SIZE + 5, unmap_notify.CLEAR_BYTE | unmap_notify.SEND_EVENT, 3)
    gnttab_index.close()


@pytest.mark.parametrize(
    ("notify", "number", "raised", "text"),
    [
        (UnmapNotify(clear_byte=0), errno.EINVAL, ValueError, "read-only map has no byte"),
        (UnmapNotify(port=3), errno.EINVAL, ValueError, "no event channel port 3$"),
        (UnmapNotify(0, 3), errno.EINVAL, ValueError, "port 3, or the byte to clear"),
        (UnmapNotify(port=3), errno.ENOMEM, OSError, "Cannot allocate"),
    ],
)
def test_a_refused_notification_unmaps_once(
    system: FakeSystem, gnttab: Gnttab, notify: UnmapNotify, number: int, raised: type[Exception], text: str
) -> None:
    system.failures["NOTIFY"] = error(number)
    with pytest.raises(raised, match=text):
        gnttab.map((1, 8), writable=False, notify=notify)
    assert system.journal == ["MAP", "mmap", "NOTIFY", "munmap", "UNMAP"]


def test_a_byte_outside_the_map_is_refused_before_any_call(system: FakeSystem, gnttab: Gnttab) -> None:
    with pytest.raises(ValueError, match="outside the 8192 bytes"):
        gnttab.map([(1, 8), (1, 9)], writable=True, notify=UnmapNotify(clear_byte=8192))
    assert system.journal == []


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), MemoryError()])
def test_an_interrupted_mmap_is_undone(system: FakeSystem, gnttab: Gnttab, failure: BaseException) -> None:
    system.failures["mmap"] = failure
    with pytest.raises(type(failure)):
        gnttab.map((1, 8), writable=False)
    assert system.journal == ["MAP", "mmap", "UNMAP"]


def test_what_interrupts_a_map_is_not_hidden_by_an_undo_that_fails(system: FakeSystem, gnttab: Gnttab) -> None:
    system.failures["mmap"] = KeyboardInterrupt()
    system.failures["UNMAP"] = error(errno.ENOENT)  # the mapping came and went before the signal was handled
    with pytest.raises(KeyboardInterrupt):
        gnttab.map((1, 8), writable=False)
    assert system.journal == ["MAP", "mmap", "UNMAP"]
    system.opened[0].held.clear()


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (xen.GNTST_GENERAL_ERROR, "not granted to this domain"),
        (xen.GNTST_BAD_DOMAIN, "no such domain"),
        (xen.GNTST_BAD_GNTREF, "beyond that domain's grant table"),
        (xen.GNTST_PERMISSION_DENIED, "forbids it: .* xsm=dummy"),
        (-99, "status -99"),
    ],
)
def test_a_refused_map_says_why(system: FakeSystem, gnttab: Gnttab, status: int, text: str) -> None:
    _refuse(system, r9=status)
    with pytest.raises(MapError, match=text) as caught:
        gnttab.map([(1, 8), (1, 9)], writable=True)
    assert "cannot map 2 grants: ref 9 of domain 1" in str(caught.value)
    assert caught.value.statuses == (0, status)
    assert caught.value.errno == errno.EINVAL
    assert system.journal == ["MAP", "mmap", "UNMAP", "COPY"]


def test_the_first_refused_grant_is_named_and_the_others_counted(system: FakeSystem, gnttab: Gnttab) -> None:
    _refuse(system, r8=-1, r9=-3, r10=-1)
    with pytest.raises(MapError, match=r"ref 8 .*\(and 2 more\)") as caught:
        gnttab.map([(1, 8), (1, 9), (1, 10)], writable=False)
    assert caught.value.statuses == (-1, -3, -1)


def test_a_diagnosis_copies_from_the_grants_and_never_to_them(system: FakeSystem, gnttab: Gnttab) -> None:
    _refuse(system, r8=-1)
    with pytest.raises(MapError):
        gnttab.map((1, 8), writable=True)
    [table] = [
        pointer.target for pointer in system.opened[0].pointers["COPY"] if pointer.at == 8 and len(pointer.target) == 24
    ][:1]
    assert isinstance(table, bytearray)
    _source, _dest, length, flags = gntdev.unpack_segment(table, 0)
    assert (length, flags) == (1, gntdev.COPY_SOURCE_GREF)


@pytest.mark.parametrize(("writable", "text"), [(True, "writable=False"), (False, "maptrack is full")])
def test_a_map_refused_without_a_reason(system: FakeSystem, gnttab: Gnttab, writable: bool, text: str) -> None:
    _refuse(system)
    with pytest.raises(MapError, match=text) as caught:
        gnttab.map((1, 8), writable=writable)
    assert caught.value.statuses == (0,)


def test_a_diagnosis_that_fails_hides_nothing(system: FakeSystem, gnttab: Gnttab) -> None:
    _refuse(system)
    system.failures["COPY"] = error(errno.ENOMEM)
    with pytest.raises(MapError, match=r"cannot map 1 grant; nor could .* Cannot allocate") as caught:
        gnttab.map((1, 8), writable=True)
    assert caught.value.statuses == ()


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM])
def test_other_errors_of_mmap_are_not_diagnosed(system: FakeSystem, gnttab: Gnttab, number: int) -> None:
    _refuse(system, number)
    with pytest.raises(OSError, match=r".") as caught:
        gnttab.map((1, 8), writable=True)
    assert caught.value.errno == number
    assert system.journal == ["MAP", "mmap", "UNMAP"]


def test_where_the_hypervisor_maps_nothing_it_is_never_asked_to_copy(system: FakeSystem, gnttab: Gnttab) -> None:
    """Linux stops when QEMU's emulation of Xen refuses the copy hypercall."""
    _refuse(system, errno.ENOSYS)
    with pytest.raises(InterfaceUnavailable, match="QEMU") as caught:
        gnttab.map((1, 8), writable=True)
    assert caught.value.errno == errno.ENOSYS
    assert "COPY" not in system.journal


def test_more_grants_than_gntdevs_limit_are_told_apart(system: FakeSystem, gnttab: Gnttab) -> None:
    system.parameters["xen_gntdev", "limit"] = "1"
    system.failures["MAP"] = error(errno.EINVAL)
    with pytest.raises(MapError, match=r"at most 1 at once.*xen_gntdev/parameters/limit") as caught:
        gnttab.map([(1, 8), (1, 9)], writable=True)
    assert caught.value.statuses == ()
    assert system.journal == ["MAP"]


def test_try_map_logs_the_diagnosis(system: FakeSystem, gnttab: Gnttab, caplog: pytest.LogCaptureFixture) -> None:
    _refuse(system, r8=-2)
    with caplog.at_level(logging.WARNING, "xengrant.gnttab"):
        assert gnttab.try_map((1, 8), writable=True) is None
    assert "there is no such domain" in caplog.text
    with pytest.raises(ValueError, match="no grants"):
        gnttab.try_map([], writable=True)


def test_a_map_outlives_its_interface(system: FakeSystem, gnttab: Gnttab) -> None:
    mapped = gnttab.map((1, 8), writable=True)
    gnttab.close()
    mapped.mapping[0] = 1
    with pytest.raises(InterfaceClosed, match=r"mapped.close"):
        gnttab.unmap(mapped)
    mapped.close()
    assert system.journal == ["MAP", "mmap", "close", "munmap"]  # the file's release did the rest


def test_only_its_own_interface_unmaps_a_map(system: FakeSystem, gnttab: Gnttab) -> None:
    mapped = gnttab.map((1, 8), writable=True)
    with Gnttab(system.open("gntdev"), system) as other, pytest.raises(InvalidGrant, match="another Gnttab"):
        other.unmap(mapped)
    assert not mapped.closed
    gnttab.unmap(mapped)
    gnttab.unmap(mapped)
    assert system.journal.count("UNMAP") == 1


def test_a_map_with_a_live_view_does_not_close(system: FakeSystem, gnttab: Gnttab) -> None:
    mapped = gnttab.map((1, 8), writable=True)
    with memoryview(mapped.mapping), pytest.raises(BufferError, match="1 view"):
        gnttab.unmap(mapped)
    assert system.journal == ["MAP", "mmap"]
    mapped.close()


def test_leaving_with_an_error_and_a_view_unmaps_with_the_last_view(system: FakeSystem, gnttab: Gnttab) -> None:
    views = []

    def use() -> None:
        with gnttab.map((1, 8), writable=True) as mapped:
            views.append(memoryview(mapped.mapping))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        use()
    assert "view" in caught.value.__notes__[0]
    assert system.journal == ["MAP", "mmap"]
    views[0].release()
    assert system.journal == _CLOSED


def test_a_closed_interface_says_so(gnttab: Gnttab) -> None:
    gnttab.close()
    gnttab.close()
    for call in (
        lambda: gnttab.map((1, 8), writable=True),
        lambda: gnttab.copy([CopySegment((1, 8), bytearray(1), 1)]),
        gnttab.__enter__,
        gnttab.fileno,
    ):
        with pytest.raises(InterfaceClosed):
            call()


def _last_segments(system: FakeSystem) -> list[tuple[Any, Any, int, int]]:
    device = system.opened[0]
    table: Any = device.pointers["COPY"][0].target
    return [gntdev.unpack_segment(table, i) for i in range(gntdev.copy_count(device.asked["COPY"]))]


def test_a_copy_carries_both_sides(system: FakeSystem, gnttab: Gnttab) -> None:
    system.failures["mmap"] = error(errno.EINVAL)  # of the question whether there is grant copy at all
    system.opened[0].statuses = {(2, 9): -1}
    local = bytearray(100)
    statuses = gnttab.copy(
        [
            CopySegment(Grant(1, 8), local, 10, source_offset=4086, dest_offset=90),
            CopySegment(b"hello", (2, 9), 4, source_offset=1, dest_offset=7),
            CopySegment((1, 8), (1, 10), 4096),
        ]
    )
    assert statuses == [0, -1, 0]
    first, second, third = _last_segments(system)
    assert (first[0], first[2:]) == ((8, 4086, 1), (10, gntdev.COPY_SOURCE_GREF))
    assert (second[1], second[2:]) == ((9, 7, 2), (4, gntdev.COPY_DEST_GREF))
    assert third == ((8, 0, 1), (10, 0, 1), 4096, gntdev.COPY_SOURCE_GREF | gntdev.COPY_DEST_GREF)
    _table, out, into = system.opened[0].pointers["COPY"]
    assert (out.at, out.direction, len(out.target)) == (gntdev.SEGMENT_DEST, "out", 10)
    assert (into.at, into.direction) == (gntdev.SEGMENT_SIZE + gntdev.SEGMENT_SOURCE, "in")
    assert bytes(into.target) == b"ello"


def test_memory_that_was_shortened_meanwhile_is_not_copied_to(
    system: FakeSystem, gnttab: Gnttab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by another thread, after the segments were checked: the hypervisor would write beyond its end."""
    memory = bytearray(100)
    monkeypatch.setattr(gnttab, "check_can_copy", lambda: memory.__delitem__(slice(50, None)))
    for segment in (CopySegment((1, 8), memory, 10, dest_offset=45), CopySegment(memory, (1, 8), 10, source_offset=45)):
        memory.extend(bytes(100 - len(memory)))
        with pytest.raises(ValueError, match="no longer within"):
            gnttab.copy([segment])
    assert "COPY" not in system.journal


def test_whether_there_is_grant_copy_is_asked_once(system: FakeSystem, gnttab: Gnttab) -> None:
    segment = CopySegment((1, 8), bytearray(1), 1)
    system.failures["mmap"] = error(errno.EINVAL)
    gnttab.copy([segment])
    assert system.journal == ["MAP", "mmap", "UNMAP", "COPY"]
    gnttab.copy([segment])
    assert system.journal[4:] == ["COPY"]


def test_no_copy_where_the_hypervisor_has_none(system: FakeSystem, gnttab: Gnttab) -> None:
    for _ in range(2):
        system.failures["mmap"] = error(errno.ENOSYS)
        with pytest.raises(InterfaceUnavailable, match="no grant copy"):
            gnttab.copy([CopySegment((1, 8), bytearray(1), 1)])
    assert "COPY" not in system.journal


def test_nothing_to_copy_asks_nothing(system: FakeSystem, gnttab: Gnttab) -> None:
    assert gnttab.copy([]) == []
    assert system.journal == []


@pytest.mark.parametrize(
    ("segment", "raised", "text"),
    [
        (CopySegment(b"a", bytearray(1), 1), ValueError, "a grant on one side"),
        (CopySegment((1, 8), bytearray(1), 2), ValueError, "do not fit in 1"),
        (CopySegment((1, 8), bytearray(4), 2, dest_offset=3), ValueError, "dest_offset 3 do not fit"),
        (CopySegment((1, 8), bytearray(9000), 4097), ValueError, "length 4097"),
        (CopySegment((1, 8), bytearray(9000), 2, source_offset=4095), ValueError, "source_offset 4095 do not fit"),
        (CopySegment((1, 8), bytearray(1), -1), ValueError, "length -1"),
        (CopySegment((1, 8), bytearray(1), 1, source_offset=-1), ValueError, "source_offset -1"),
        (CopySegment((1, 8), bytearray(1), True), TypeError, "length"),
        (CopySegment((1, -8), bytearray(1), 1), InvalidGrant, "ref -8"),
        (CopySegment((1, 8), memoryview(b"a"), 1), TypeError, "read-only"),
    ],
)
def test_a_copy_that_cannot_be_is_refused_before_any_call(
    system: FakeSystem, gnttab: Gnttab, segment: CopySegment, raised: type[Exception], text: str
) -> None:
    with pytest.raises(raised, match=text):
        gnttab.copy([CopySegment((1, 8), bytearray(1), 1), segment])
    assert system.journal == []


def test_reprs_show_the_state(gnttab: Gnttab) -> None:
    mapped = gnttab.map([(2, 8), (1, 9)], writable=False)
    assert repr(mapped) == "<Mapped 2 pages of domain 1, 2, read-only>"
    mapped.close()
    assert repr(mapped) == "<Mapped 2 pages of domain 1, 2, closed>"
    assert repr(gnttab) == "<Gnttab open on fake:>"
