"""Pages shared, mapped and compared: gntalloc and gntdev as drivers/xen/ has them."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from xengrant.abi import gntdev
from xengrant.abi.xen import PAGE_SIZE
from xengrant.embedded import Machine

from .conftest import Open
from .ioctls import add_map, alloc, map_grants, refused, share, unmap


@pytest.mark.parametrize("writable", [True, False])
def test_both_sides_see_the_same_pages(opened: Open, writable: bool) -> None:
    refs, mine = share(opened(1, "gntalloc"), 2, 3, writable=writable)
    gntdev_2 = opened(2, "gntdev")
    _, theirs = map_grants(gntdev_2, [(1, ref) for ref in refs], writable=writable)
    with mine, theirs:
        assert mine[:] == theirs[:] == bytes(3 * PAGE_SIZE)
        mine[PAGE_SIZE : PAGE_SIZE + 5] = b"hello"
        assert theirs[PAGE_SIZE : PAGE_SIZE + 5] == b"hello"
        if writable:
            theirs[2 * PAGE_SIZE :] = b"x" * PAGE_SIZE
            assert mine[2 * PAGE_SIZE :] == b"x" * PAGE_SIZE


def test_refs_start_behind_the_reserved_ones_and_are_reused_last_in_first_out(opened: Open) -> None:
    device = opened(1, "gntalloc")
    refs, mapping = share(device, 2, 3)
    assert refs == (8, 9, 10)
    mapping.close()
    refs, mapping = share(device, 2, 3)
    mapping.close()
    assert refs == (10, 9, 8)


def test_pages_are_zeroed_also_when_a_ref_is_used_again(opened: Open) -> None:
    device = opened(1, "gntalloc")
    refs, mapping = share(device, 2)
    mapping[:] = b"s" * PAGE_SIZE
    mapping.close()
    again, mapping = share(device, 2)
    with mapping:
        assert again == refs
        assert mapping[:] == bytes(PAGE_SIZE)


def test_a_map_may_mix_domains_and_allocations_in_any_order(opened: Open) -> None:
    first, second = opened(1, "gntalloc"), opened(3, "gntalloc")
    refs_1, mine_1 = share(first, 2, 2)
    refs_3, mine_3 = share(second, 2, 1)
    mine_1[0], mine_1[PAGE_SIZE], mine_3[0] = 1, 2, 3
    _, theirs = map_grants(opened(2, "gntdev"), [(1, refs_1[1]), (3, refs_3[0]), (1, refs_1[0])], writable=True)
    with mine_1, mine_3, theirs:
        assert [theirs[page * PAGE_SIZE] for page in range(3)] == [2, 3, 1]


def test_mapping_the_same_ref_twice_shows_one_page(opened: Open) -> None:
    refs, mine = share(opened(1, "gntalloc"), 2)
    device = opened(2, "gntdev")
    _, a = map_grants(device, [(1, refs[0])], writable=True)
    _, b = map_grants(device, [(1, refs[0]), (1, refs[0])], writable=False)
    with mine, a, b:
        a[7] = 7
        assert (mine[7], b[7], b[PAGE_SIZE + 7]) == (7, 7, 7)


@pytest.mark.parametrize(
    ("domid", "ref", "writable"),
    [(1, 11, False), (1, 8, True), (9, 8, False), (1, 10_000_000, False), (0x7FF0, 8, False)],
    ids=["not granted", "read-only", "no such domain", "beyond the table", "reserved domid"],
)
def test_every_refusal_of_the_hypervisor_is_einval_at_mmap(opened: Open, domid: int, ref: int, writable: bool) -> None:
    refs, mine = share(opened(1, "gntalloc"), 2, writable=False)
    assert refs == (8,)
    device = opened(2, "gntdev")
    index = add_map(device, [(domid, ref)])
    with mine, refused(errno.EINVAL):
        device.mmap(PAGE_SIZE, index, writable=writable)


def test_a_third_domain_is_refused(opened: Open, machine: Machine) -> None:
    refs, mine = share(opened(1, "gntalloc"), 2)
    device = opened(3, "gntdev")
    index = add_map(device, [(1, refs[0])])
    with mine, refused(errno.EINVAL):
        device.mmap(PAGE_SIZE, index, writable=False)
    assert machine.status()["domains"][1]["mapped"] == 0


def test_a_map_with_one_bad_ref_maps_nothing(opened: Open, machine: Machine) -> None:
    refs, mine = share(opened(1, "gntalloc"), 2, 2)
    device = opened(2, "gntdev")
    index = add_map(device, [(1, refs[0]), (1, 500), (1, refs[1])])
    with mine:
        with refused(errno.EINVAL):
            device.mmap(3 * PAGE_SIZE, index, writable=True)
        assert machine.status()["domains"][1]["mapped"] == 0


def test_mmap_of_gntdev_wants_the_exact_index_and_count(opened: Open) -> None:
    refs, mine = share(opened(1, "gntalloc"), 2, 2)
    device = opened(2, "gntdev")
    index = add_map(device, [(1, ref) for ref in refs])
    with mine:
        for length, offset in ((PAGE_SIZE, index), (3 * PAGE_SIZE, index), (2 * PAGE_SIZE, index + PAGE_SIZE)):
            with refused(errno.EINVAL):
                device.mmap(length, offset, writable=True)
        device.mmap(2 * PAGE_SIZE, index, writable=True).close()


def test_each_map_is_mmapped_once(opened: Open) -> None:
    refs, mine = share(opened(1, "gntalloc"), 2)
    device = opened(2, "gntdev")
    index, theirs = map_grants(device, [(1, refs[0])], writable=True)
    with mine, theirs, refused(errno.EINVAL):
        device.mmap(PAGE_SIZE, index, writable=True)
    with refused(errno.EINVAL):  # nor after munmap
        device.mmap(PAGE_SIZE, index, writable=True)


def test_the_index_of_gntdev_is_the_first_gap(opened: Open) -> None:
    device = opened(2, "gntdev")
    assert [add_map(device, [(1, 8)] * count) for count in (1, 3, 2)] == [0, PAGE_SIZE, 4 * PAGE_SIZE]
    unmap(device, PAGE_SIZE, 3)
    assert add_map(device, [(1, 8)] * 2) == PAGE_SIZE
    with refused(errno.ENOENT):
        unmap(device, 3 * PAGE_SIZE, 1)
    unmap(device, PAGE_SIZE, 0)  # 0 is any count


def test_a_domid_is_cut_to_16_bits_as_the_kernel_does(opened: Open) -> None:
    refs, mine = share(opened(1, "gntalloc"), 2)
    _, theirs = map_grants(opened(2, "gntdev"), [(0x10001, refs[0])], writable=False)
    mine.close()
    theirs.close()


def test_the_offset_of_an_address_inside_a_map(opened: Open) -> None:
    refs, mine = share(opened(1, "gntalloc"), 2, 2)
    device = opened(2, "gntdev")
    add_map(device, [(1, 9)])
    index, theirs = map_grants(device, [(1, ref) for ref in refs], writable=False)
    with mine:
        arg = gntdev.pack_offset(theirs.address + PAGE_SIZE + 5)
        device.ioctl(gntdev.GET_OFFSET_FOR_VADDR, arg)
        assert gntdev.offset_result(arg) == (index, 2)
        address = theirs.address
        theirs.close()
        for vaddr in (address, mine.address):
            with refused(errno.EINVAL):
                device.ioctl(gntdev.GET_OFFSET_FOR_VADDR, gntdev.pack_offset(vaddr))


def test_any_neighbouring_pages_of_a_gntalloc_file_can_be_mmapped(opened: Open) -> None:
    device = opened(1, "gntalloc")
    first, _ = alloc(device, 2, 2)
    second, _ = alloc(device, 2, 2)
    assert second == first + 2 * PAGE_SIZE
    with (
        device.mmap(4 * PAGE_SIZE, first, writable=True) as whole,
        device.mmap(2 * PAGE_SIZE, first + PAGE_SIZE, writable=True) as middle,
        device.mmap(PAGE_SIZE, second, writable=False) as readonly,
    ):
        middle[PAGE_SIZE] = 5
        assert whole[2 * PAGE_SIZE] == readonly[0] == 5
        with pytest.raises(TypeError):
            readonly[0] = 1
    for offset, length in ((first, 5 * PAGE_SIZE), (4 * PAGE_SIZE, PAGE_SIZE), (17, PAGE_SIZE)):
        with refused(errno.ENOENT):
            device.mmap(length, offset, writable=True)


def test_a_domain_may_map_what_it_granted_to_itself(opened: Open) -> None:
    refs, mine = share(opened(1, "gntalloc"), 1)
    _, again = map_grants(opened(1, "gntdev"), [(1, refs[0])], writable=True)
    with mine, again:
        mine[0] = 9
        assert again[0] == 9


def test_dom0_maps_the_builders_pages_of_every_domain(opened: Open) -> None:
    opened(1, "gntalloc")
    device = opened(0, "gntdev")
    _, pages = map_grants(device, [(1, 0), (1, 1)], writable=True)
    with pages:
        assert len(pages[:]) == 2 * PAGE_SIZE
    index = add_map(opened(2, "gntdev"), [(1, 0)])
    with refused(errno.EINVAL):
        opened(2, "gntdev").mmap(PAGE_SIZE, index, writable=False)


def test_a_machine_that_runs_without_assertions_keeps_its_promises() -> None:
    program = """
import xengrant
from xengrant.embedded import Machine
with Machine() as machine, xengrant.connect(machine.url(1)) as one, xengrant.connect(machine.url(2)) as two:
    with one.gntshr() as gntshr, two.gnttab() as gnttab:
        with gntshr.share_pages(2, 2, writable=False) as share:
            share.mapping[:5] = b"hello"
            copied = bytearray(5)
            print(gnttab.copy_run(1, [(share.refs[0], 0, 5)], memoryview(copied), to_grants=False), bytes(copied))
        print(machine.status()["domains"][1]["grants"])
"""
    command = [sys.executable, "-O", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("[0] b'hello'\n0\n", "")
