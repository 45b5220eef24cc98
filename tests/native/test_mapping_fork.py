"""What a forked child has of its parent's mappings: nothing, and it is told so."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from xengrant import _native
from xengrant.memory import PAGE_SIZE, Mapping

from .conftest import MakePages
from .maps import mapped_memfds, permissions_at


def in_child(check: Callable[[], object]) -> int:
    """Forks, runs `check` in the child, and returns the child's wait status: 0 if nothing was raised."""
    child = os.fork()
    if child == 0:
        try:
            check()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def test_every_use_in_the_child_says_whose_the_mapping_is(make_pages: MakePages) -> None:
    mapping = Mapping([(make_pages(2), 0, 2 * PAGE_SIZE)], writable=True)
    attempts: list[Callable[[], object]] = [
        lambda: mapping[0],
        lambda: mapping[0:1],
        lambda: mapping.__setitem__(0, 1),
        lambda: memoryview(mapping),
        lambda: mapping.page(0),
        lambda: len(mapping),
        lambda: mapping.address,
        mapping.__enter__,
        lambda: _native.load32(mapping, 0),
    ]

    def check() -> None:
        for attempt in attempts:
            with pytest.raises(ValueError, match="mapping belongs to the parent process: map the pages again"):
                attempt()
        assert (mapping.closed, bool(mapping), mapping.exports) == (True, False, 0)
        assert repr(mapping) == "<Mapping of the parent process>"
        mapping.close()
        mapping.close_on_release()

    with mapping:
        assert in_child(check) == 0
        assert mapping[:2] == b"\x01\x01"


def test_the_child_neither_unmaps_nor_tells_nor_warns(make_pages: MakePages) -> None:
    fd, told = make_pages(1), list[str]()
    kept = Mapping([(fd, 0, PAGE_SIZE)], writable=True, unmapped=lambda: told.append("kept"))
    closing = Mapping([(fd, 0, PAGE_SIZE)], writable=True, unmapped=lambda: told.append("closing"))
    addresses = [kept.address, closing.address]
    views = [memoryview(kept), memoryview(closing)]
    closing.close_on_release()

    def check() -> None:
        nonlocal kept, closing
        views.clear()
        for end in (Mapping.close, Mapping.close_on_release):
            end(kept)
            end(closing)
        del kept, closing
        assert told == []
        assert [permissions_at(address) for address in addresses] == ["---p", "---p"]

    assert in_child(check) == 0
    assert (kept[0], views[1][0], told) == (1, 1, [])
    views.clear()
    kept.close()
    assert told == ["closing", "kept"]


def test_the_holes_are_filled_before_anything_else_can_lie_there(make_pages: MakePages) -> None:
    fd, other = make_pages(2), make_pages(1)
    mappings = [Mapping([(fd, 0, 2 * PAGE_SIZE)], writable=True) for _ in range(20)]
    mappings += [Mapping([(fd, 0, PAGE_SIZE), (other, 0, PAGE_SIZE)], writable=False)]
    addresses = {mapping.address + page * PAGE_SIZE for mapping in mappings for page in range(2)}

    def check() -> None:
        assert {permissions_at(address) for address in addresses} == {"---p"}
        assert mapped_memfds() == 0
        new = [Mapping([(fd, 0, PAGE_SIZE)], writable=True) for _ in range(50)]
        assert not addresses & {mapping.address for mapping in new}
        for mapping in new:
            mapping.close()

    assert in_child(check) == 0
    for mapping in mappings:
        mapping.close()


def test_a_view_from_before_the_fork_faults_in_the_child(make_pages: MakePages) -> None:
    with Mapping([(make_pages(1), 0, PAGE_SIZE)], writable=True) as mapping, memoryview(mapping) as view:

        def check() -> None:
            signal.signal(signal.SIGSEGV, signal.SIG_DFL)
            view[0]

        status = in_child(check)
        assert os.WIFSIGNALED(status)
        assert os.WTERMSIG(status) == signal.SIGSEGV
        assert view[0] == 1


def test_the_child_has_mappings_of_its_own_and_forks_too(make_pages: MakePages) -> None:
    fd, told = make_pages(1), list[str]()
    outer = Mapping([(fd, 0, PAGE_SIZE)], writable=True)

    def check() -> None:
        inner = Mapping([(fd, 0, PAGE_SIZE)], writable=True, unmapped=lambda: told.append("inner"))
        inner[0] = 42

        def check_grandchild() -> None:
            for mapping in (inner, outer):
                with pytest.raises(ValueError, match="parent process"):
                    mapping[0]

        assert in_child(check_grandchild) == 0
        inner.close()
        assert told == ["inner"]

    assert in_child(check) == 0
    assert (outer[0], told) == (42, [])
    outer.close()


def test_closed_mappings_are_not_the_childs_business(make_pages: MakePages) -> None:
    mapping = Mapping([(make_pages(1), 0, PAGE_SIZE)], writable=True)
    address = mapping.address
    mapping.close()

    def check() -> None:
        assert permissions_at(address) != "---p"
        with pytest.raises(ValueError, match="mapping is closed"):
            mapping[0]

    assert in_child(check) == 0


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_no_mapping_that_another_thread_is_making_leaks_into_the_child(make_pages: MakePages) -> None:
    fd, done = make_pages(1), threading.Event()

    def churn() -> None:
        while not done.is_set():
            Mapping([(fd, 0, PAGE_SIZE)], writable=True).close()

    threads = [threading.Thread(target=churn) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(50):
            child = os.fork()
            if child == 0:
                leaked = b"xengrant-test" in Path("/proc/self/maps").read_bytes()
                os._exit(1 if leaked else 0)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        done.set()
        for thread in threads:
            thread.join()


HOOKS_THAT_MAP = """
import os

def hook():
    try:
        old[0]
    except ValueError:
        refused.append(os.getpid())
    Mapping([(fd, 0, 4096)], writable=True).close()

os.register_at_fork(before=hook, after_in_parent=hook, after_in_child=hook)
from xengrant.memory import Mapping
os.register_at_fork(before=hook, after_in_parent=hook, after_in_child=hook)

fd = os.memfd_create("xengrant-test")
os.truncate(fd, 4096)
refused = []
with Mapping([(fd, 0, 4096)], writable=True) as old:
    child = os.fork()
    if child == 0:
        os._exit(0 if refused == [os.getpid()] * 2 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert refused == []
"""


def test_hooks_around_the_fork_may_map_and_find_old_mappings_closed_in_the_child() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", HOOKS_THAT_MAP]
    assert subprocess.run(command, env=environment, timeout=60, check=False).returncode == 0


def test_a_fork_made_in_c_is_no_different(make_pages: MakePages) -> None:
    with Mapping([(make_pages(1), 0, PAGE_SIZE)], writable=True) as mapping:
        address = mapping.address
        child = ctypes.PyDLL(None).fork()
        if child == 0:
            os._exit(0 if mapping.closed and permissions_at(address) == "---p" else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert mapping[0] == 1
