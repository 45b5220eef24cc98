"""Polling: whose processor is given away, and that privcmd is open no longer than it is used."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from xengrant._native import Descriptor, Doorbell
from xengrant.devices import kernel
from xengrant.devices.kernel import KernelSystem
from xengrant.errors import InterfaceUnavailable
from xengrant.polling import Polling

from .fake import FakeSystem


@pytest.fixture
def privcmd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[int]]:
    """A /dev/xen whose privcmd is /dev/null; returns how many descriptors of it are open."""
    (tmp_path / "privcmd").symlink_to("/dev/null")
    monkeypatch.setattr(kernel, "DIRECTORY", tmp_path)

    def opened() -> list[int]:
        found = []
        for name in os.listdir("/proc/self/fd"):
            try:
                if os.readlink(f"/proc/self/fd/{name}") == "/dev/null" and os.get_blocking(int(name)) is False:
                    found.append(int(name))
            except OSError:
                continue
        return found

    return opened


def _doorbell() -> Doorbell:
    return Doorbell(Descriptor(os.eventfd(0)), 1, None)


def test_dom0_yields_by_privcmd_until_it_is_closed(
    privcmd: Callable[[], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, bytes]] = []

    def ioctl(fd: int, request: int, arg: bytearray) -> int:
        asked.append((request, bytes(arg)))
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    before, doorbell = len(privcmd()), _doorbell()
    polling = Polling(KernelSystem(), 0.001)
    polling.at(doorbell)
    assert (doorbell.poll, len(privcmd()) - before) == (0.001, 1)
    assert isinstance(doorbell.yielder, Descriptor)
    assert asked[0] == (0x00305000, bytes([29]).ljust(48, b"\0")), "sched_op, SCHEDOP_yield"
    polling.close()
    assert len(privcmd()) == before


def test_whoever_may_not_yield_polls_without_and_keeps_nothing_open(
    privcmd: Callable[[], list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    before, doorbell = len(privcmd()), _doorbell()
    with caplog.at_level("INFO", "xengrant.polling"):
        Polling(KernelSystem(), 0.001).at(doorbell)  # /dev/null knows no hypercalls, as a guest's privcmd does not
    assert (doorbell.poll, doorbell.yielder, len(privcmd())) == (0.001, None, before)
    assert "this domain may not yield" in caplog.text


def test_a_child_has_no_privcmd(privcmd: Callable[[], list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "ioctl", lambda fd, request, arg: 0)
    before = len(privcmd())
    polling = Polling(KernelSystem(), 0.001)
    polling.at(_doorbell())
    child = os.fork()
    if child == 0:
        os._exit(len(privcmd()))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == before
    polling.close()


def test_without_privcmd_or_without_polling_nothing_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "DIRECTORY", tmp_path)
    for seconds, system in ((0.05, KernelSystem()), (0.0, KernelSystem()), (0.05, FakeSystem())):
        doorbell = _doorbell()
        Polling(system, seconds).at(doorbell)
        assert (doorbell.poll, doorbell.yielder) == (seconds, None)


def test_a_lack_of_descriptors_is_told(privcmd: Callable[[], list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*args: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "open", none_left)
    with pytest.raises(InterfaceUnavailable, match="descriptors"):
        Polling(KernelSystem(), 0.05)


@pytest.mark.parametrize("seconds", [-1, 0.11, float("nan")])
def test_no_other_time_is_taken(seconds: float) -> None:
    with pytest.raises(ValueError, match=r"poll is a number of seconds from 0 to 0\.1"):
        Polling(KernelSystem(), seconds)
