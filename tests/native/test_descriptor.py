"""Descriptor: a file that is closed when the last call under way has ended. What share() and map() do, Xen shows."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from xengrant._native import Descriptor, Held


class Pair(NamedTuple):
    domid: int
    ref: int


@pytest.fixture
def fd() -> Iterator[int]:
    fd = os.memfd_create("descriptor")
    yield fd
    if is_open(fd):
        os.close(fd)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_close_closes_the_file_at_once_when_no_call_is_under_way(fd: int) -> None:
    file = Descriptor(fd)
    assert file.hold() == fd
    file.drop()
    assert is_open(fd)
    file.close()
    assert not is_open(fd)
    assert file.hold() == -1


def test_close_waits_for_the_calls_under_way(fd: int) -> None:
    file = Descriptor(fd)
    file.hold()
    file.hold()
    file.close()
    assert file.hold() == -1, "a new call is refused"
    file.drop()
    assert is_open(fd)
    file.drop()
    assert not is_open(fd)


def test_close_twice_leaves_another_file_of_the_same_number_alone(fd: int) -> None:
    file = Descriptor(fd)
    file.close()
    other = os.memfd_create("other")
    assert other == fd
    file.close()
    file.abandon()
    del file
    assert is_open(other)


def test_abandon_closes_the_file_though_calls_are_under_way(fd: int) -> None:
    file = Descriptor(fd)
    file.hold()
    file.abandon()
    assert not is_open(fd)
    other = os.memfd_create("other")
    assert other == fd
    file.abandon()
    file.close()
    del file
    assert is_open(other)


def test_a_call_that_nobody_began_cannot_be_ended(fd: int) -> None:
    file = Descriptor(fd)
    with pytest.raises(RuntimeError, match="no call of this file is under way"):
        file.drop()
    assert file.hold() == fd
    file.drop()
    file.close()
    with pytest.raises(RuntimeError, match="no call of this file is under way"):
        file.drop()
    assert file.hold() == -1, "a file that is closed stays so"


def test_the_calls_that_a_forked_child_finds_under_way_end_quietly(fd: int) -> None:
    file = Descriptor(fd)
    file.hold()
    file.abandon()
    other = os.memfd_create("other")
    assert other == fd
    file.drop()
    assert file.hold() == -1
    del file
    assert is_open(other)


def test_the_last_reference_closes_the_file(fd: int) -> None:
    file = Descriptor(fd)
    del file
    assert not is_open(fd)


def test_share_says_why_the_kernel_refused(fd: int) -> None:
    file = Descriptor(fd)
    with pytest.raises(OSError, match="ioctl") as raised:
        file.share(1, 2, True, Held)
    assert raised.value.errno == errno.ENOTTY
    file.close()
    assert not is_open(fd), "no call is under way any more"


@pytest.mark.parametrize(
    ("domid", "count"),
    [(-1, 1), (0x7FF0, 1), (1 << 70, 1), (1, 0), (1, -1), (1, 1 << 40), (True, 1), (1, True), (1.0, 1), ("1", 1)],
)
def test_share_leaves_what_is_unusual_to_the_caller(fd: int, domid: int, count: int) -> None:
    file = Descriptor(fd)
    assert file.share(domid, count, True, Held) is None
    file.close()
    assert not is_open(fd)


def test_share_and_map_of_a_closed_file_do_nothing(fd: int) -> None:
    file = Descriptor(fd)
    file.close()
    assert file.share(1, 1, True, Held) is None
    assert file.map((Pair(1, 8),), Pair, True, Held, None) is None


@pytest.mark.parametrize(
    "grants",
    [
        (),
        [(1, 8)],
        (1, 8),
        {Pair(1, 8)},
        8,
        ((1, 8),),
        (Pair(1, 8), (1, 9)),
        (Pair(1, 8), 9),
        (Pair(-1, 8),),
        (Pair(0x7FF0, 8),),
        (Pair(1, -1),),
        (Pair(1, 1 << 32),),
        (Pair(1, 1 << 70),),
        (Pair(1, True),),
        (Pair(1, 8),) * 65537,
    ],
)
def test_map_leaves_what_is_unusual_to_the_caller(fd: int, grants: object) -> None:
    file = Descriptor(fd)
    assert file.map(grants, Pair, True, Held, None) is None
    file.close()
    assert not is_open(fd)


def test_map_leaves_what_the_kernel_refuses_to_the_caller(fd: int) -> None:
    file = Descriptor(fd)
    for grants in (Pair(1, 8), (Pair(1, 8), Pair(2, 0xFFFFFFFF)), [Pair(1, 8)]):
        assert file.map(grants, Pair, False, Held, None) is None
    file.close()
    assert not is_open(fd)


@pytest.mark.parametrize("made", [object, int, Held.__base__, 8, "Held"])
def test_only_what_is_held_is_made(fd: int, made: Any) -> None:
    file = Descriptor(fd)
    with pytest.raises(TypeError, match="no subclass of Held"):
        file.share(1, 1, True, made)
    with pytest.raises(TypeError, match="no subclass of Held"):
        file.map(Pair(1, 8), Pair, True, made, None)
    file.close()
    assert not is_open(fd), "no call is under way"


def test_wrong_numbers_of_arguments_are_type_errors(fd: int) -> None:
    file = Descriptor(fd)
    with pytest.raises(TypeError):
        file.share(1)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        file.map(())  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Descriptor(fd=fd)  # type: ignore[call-arg]
    file.close()
