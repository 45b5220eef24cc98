"""GRANT_COPY: segments, statuses, and what is refused before anything is copied."""

from __future__ import annotations

import errno

import pytest

from xengrant.abi import gntdev, grant_table
from xengrant.abi.xen import DOMID_SELF, PAGE_SIZE
from xengrant.devices import Pointer, wire
from xengrant.embedded import Machine

from .conftest import Open
from .ioctls import copy, map_grants, refused, share


def test_out_of_a_grant_into_one_and_between_two(opened: Open, machine: Machine) -> None:
    refs_1, page_1 = share(opened(1, "gntalloc"), 2)
    refs_3, page_3 = share(opened(3, "gntalloc"), 2)
    page_1[10:14] = b"from"
    got = bytearray(4)
    statuses = copy(
        opened(2, "gntdev"),
        [
            ((refs_1[0], 10, 1), got, 4),
            (bytearray(b"into"), (refs_1[0], PAGE_SIZE - 4, 1), 4),
            ((refs_1[0], 10, 1), (refs_3[0], 0, 3), 4),
            ((refs_1[0], 0, 1), bytearray(0), 0),
        ],
    )
    assert statuses == [0, 0, 0, 0]
    assert (bytes(got), page_1[PAGE_SIZE - 4 :], page_3[:4]) == (b"from", b"into", b"from")
    assert machine.status()["domains"][1]["mapped"] == 0
    page_1.close()
    page_3.close()


def test_each_segment_has_a_status_of_its_own(opened: Open) -> None:
    refs, mine = share(opened(1, "gntalloc"), 2, 2, writable=False)
    _, other = share(opened(1, "gntalloc"), 3)
    statuses = copy(
        opened(2, "gntdev"),
        [
            ((refs[0], 0, 9), bytearray(1), 1),
            ((5000, 0, 1), bytearray(1), 1),
            ((refs[1] + 1, 0, 1), bytearray(1), 1),  # granted to domain 3
            (bytearray(1), (refs[0], 0, 1), 1),  # read-only
            ((refs[0], 0, 1), bytearray(1), 1),
            ((refs[0], 0, 9), bytearray(1), 0),  # of no bytes, for which Linux asks nobody
        ],
    )
    assert statuses == [
        grant_table.GNTST_BAD_DOMAIN,
        grant_table.GNTST_BAD_GNTREF,
        grant_table.GNTST_GENERAL_ERROR,
        grant_table.GNTST_GENERAL_ERROR,
        grant_table.GNTST_OKAY,
        grant_table.GNTST_OKAY,
    ]
    mine.close()
    other.close()


def test_a_page_that_is_mapped_can_be_copied_too(opened: Open) -> None:
    refs, mine = share(opened(1, "gntalloc"), 2)
    device = opened(2, "gntdev")
    _, theirs = map_grants(device, [(1, refs[0])], writable=False)
    assert copy(device, [(bytearray(b"hi"), (refs[0], 0, 1), 2)]) == [0]
    assert theirs[:2] == b"hi"
    mine.close()  # deferred: the entry is busy until the map goes
    theirs.close()


def test_self_names_the_callers_own_table(opened: Open) -> None:
    refs, mine = share(opened(1, "gntalloc"), 1)
    assert copy(opened(1, "gntdev"), [(bytearray(b"hi"), (refs[0], 0, DOMID_SELF), 2)]) == [0]
    assert mine[:2] == b"hi"
    mine.close()


@pytest.mark.parametrize(
    ("source", "dest", "length", "number"),
    [
        (bytearray(1), bytearray(1), 1, errno.EINVAL),
        ((8, PAGE_SIZE, 1), bytearray(1), 1, errno.EINVAL),
        ((8, 1, 1), bytearray(PAGE_SIZE), PAGE_SIZE, errno.EINVAL),
        ((8, 0, 1), bytearray(3), 4, errno.EFAULT),
        ((8, 0, 1), None, 4, errno.EFAULT),
    ],
    ids=["no grant", "offset", "beyond the page", "short buffer", "no buffer"],
)
def test_what_the_ioctl_refuses(opened: Open, source: object, dest: object, length: int, number: int) -> None:
    _, mine = share(opened(1, "gntalloc"), 2)
    device = opened(2, "gntdev")
    with mine, refused(number):
        copy(device, [(source, dest, length)])


def test_segments_that_are_not_there(opened: Open) -> None:
    device = opened(2, "gntdev")
    with refused(errno.EFAULT):
        device.ioctl(gntdev.GRANT_COPY, gntdev.pack_copy(1))
    arg = gntdev.pack_copy(3)
    with refused(errno.EFAULT):
        pointer = Pointer(arg, gntdev.COPY_SEGMENTS_POINTER, bytearray(gntdev.SEGMENT_SIZE), "inout")
        device.ioctl(gntdev.GRANT_COPY, arg, [pointer])


def test_many_segments(opened: Open) -> None:
    refs, mine = share(opened(1, "gntalloc"), 2)
    mine[:] = bytes(range(256)) * 16
    pieces = [bytearray(16) for _ in range(256)]
    assert set(copy(opened(2, "gntdev"), [((refs[0], 16 * i, 1), pieces[i], 16) for i in range(256)])) == {0}
    assert b"".join(pieces) == mine[:]
    mine.close()


def test_an_ioctl_that_is_too_long_for_the_socket_is_told(opened: Open) -> None:
    device = opened(2, "gntdev")
    with refused(errno.ENOMEM):
        copy(device, [(bytearray(PAGE_SIZE), (8, 0, 1), PAGE_SIZE)] * 2100)


def test_more_segments_than_one_request_carries(opened: Open) -> None:
    (ref,), page = share(opened(1, "gntalloc"), 2)
    page[:] = bytes(range(256)) * (PAGE_SIZE // 256)
    device = opened(2, "gntdev")
    got = [bytearray(1) for _ in range(2 * wire.MAX_SEGMENTS + 5)]
    statuses = copy(device, [((ref + i // PAGE_SIZE, i % PAGE_SIZE, 1), byte, 1) for i, byte in enumerate(got)])
    assert statuses[:PAGE_SIZE] == [0] * PAGE_SIZE
    assert set(statuses[PAGE_SIZE:]) == {grant_table.GNTST_GENERAL_ERROR}
    assert b"".join(got[:PAGE_SIZE]) == page[:]
    page.close()


def test_a_refused_segment_leaves_what_the_one_before_it_copied(opened: Open) -> None:
    """Xen copies one after the other, and memory that a refused one names is not touched, whatever it holds by then."""
    (ref,), page = share(opened(1, "gntalloc"), 2)
    page[:8] = b"granted!"
    got = bytearray(b"before--")
    assert copy(opened(2, "gntdev"), [((ref, 0, 1), got, 8), ((ref + 1, 0, 1), got, 8)]) == [0, -1]
    assert got == b"granted!"
    page.close()
