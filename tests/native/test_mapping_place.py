"""Where mappings come to lie: small ones in a 2 MiB of their own that always has a page table, whatever else lives."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest

from xengrant.memory import PAGE_SIZE, Mapping

from .conftest import MakePages
from .maps import permissions_at

TABLE = 2 << 20  # bytes of what one page table covers


def _open(memory: int, pages: int = 1) -> Mapping:
    return Mapping([(memory, 0, pages * PAGE_SIZE)], writable=True)


@pytest.mark.parametrize("pages", [1, 128, 511])
def test_a_small_mapping_lies_with_a_page_that_stays(make_pages: MakePages, pages: int) -> None:
    memory = make_pages(pages) if pages < 255 else make_pages(1)
    os.truncate(memory, pages * PAGE_SIZE)
    with _open(memory, pages) as mapping:
        first, last = mapping.address, mapping.address + (pages - 1) * PAGE_SIZE
        assert first // TABLE == last // TABLE
        assert permissions_at(first // TABLE * TABLE) == "---p"
    assert permissions_at(first // TABLE * TABLE) == "---p"


def test_one_after_another_lie_at_the_same_place(make_pages: MakePages) -> None:
    memory = make_pages(3)
    places = set()
    for pages in (1, 2, 3, 1):
        with _open(memory, pages) as mapping:
            places.add(mapping.address)
    assert len(places) == 1


def test_one_kept_beside_the_others_does_not_send_them_away(make_pages: MakePages) -> None:
    memory = make_pages(2)
    with _open(memory) as kept:
        for _ in range(3 * TABLE // PAGE_SIZE):
            with _open(memory, 2) as mapping:
                assert mapping.address // TABLE == kept.address // TABLE
        old = _open(memory)
        for _ in range(3 * TABLE // PAGE_SIZE):  # a new one before the old is closed
            new = _open(memory)
            old.close()
            old = new
        near = 0
        for _ in range(20):
            new = _open(memory)
            near += new.address // TABLE == kept.address // TABLE
            old.close()
            old = new
        old.close()
        assert near >= 19
        assert kept[0] == 1


def test_more_than_find_room_are_mapped_elsewhere(make_pages: MakePages) -> None:
    memory = make_pages(128)
    mappings = [_open(memory, 128) for _ in range(12)]
    places = sorted(mapping.address for mapping in mappings)
    assert all(high - low >= 128 * PAGE_SIZE for low, high in itertools.pairwise(places))
    for number, mapping in enumerate(mappings):
        mapping[0] = number
        assert mapping[127 * PAGE_SIZE] == 128
        mapping.close()


def test_a_large_one_lies_where_the_kernel_likes(make_pages: MakePages) -> None:
    memory = make_pages(1)
    os.truncate(memory, 2 * TABLE)
    with _open(memory, 2 * TABLE // PAGE_SIZE) as mapping:
        mapping[2 * TABLE - 1] = 7
        assert mapping[2 * TABLE - 1] == 7
    with _open(memory, 2 * TABLE // PAGE_SIZE), _open(memory) as little:
        assert permissions_at(little.address // TABLE * TABLE) == "---p"


def test_in_a_forked_child_pages_are_mapped_too(make_pages: MakePages) -> None:
    memory = make_pages(1)
    with _open(memory) as before:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                for _ in range(2):
                    with _open(memory) as mapping:
                        status = int(mapping[0] != 1 or mapping.address == before_address(before))
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert before[0] == 1


def before_address(mapping: Mapping) -> int:
    """A closed mapping tells none."""
    return 0 if mapping.closed else mapping.address


LITTLE = """
import ctypes, os, resource
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
LOW, FIXED_ANONYMOUS = 0x20000000, 0x100032
assert libc.mmap(ctypes.c_void_p(LOW), ctypes.c_size_t(4096), 3, FIXED_ANONYMOUS, -1, ctypes.c_long(0)) == LOW
resource.setrlimit(resource.RLIMIT_AS, (900 << 20, 900 << 20))
from xengrant.memory import Mapping
fd = os.memfd_create("xengrant-test")
os.truncate(fd, 4096)
for _ in range(2):
    with Mapping([(fd, 0, 4096)], writable=True) as mapping:
        mapping[0] = 1
assert ctypes.string_at(LOW, 1) == bytes(1)
"""


def test_where_there_is_little_address_space_pages_are_mapped_all_the_same() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", LITTLE], env=environment, check=True, timeout=60)
