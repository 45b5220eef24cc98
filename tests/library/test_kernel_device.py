"""KernelDevice and KernelSystem without Xen: what is missing and what to do, and closing under way."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import grp
import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from xengrant.devices import Pointer, kernel, open_system
from xengrant.devices.kernel import KernelDevice, KernelSystem
from xengrant.errors import InterfaceClosed, InterfaceUnavailable
from xengrant.memory import PAGE_SIZE, Mapping

from . import LONG


@pytest.fixture
def dev_xen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty /dev/xen."""
    monkeypatch.setattr(kernel, "DIRECTORY", tmp_path)
    return tmp_path


def _device(pages: int = 1) -> KernelDevice:
    memory = os.memfd_create("device", os.MFD_CLOEXEC)
    os.ftruncate(memory, pages * PAGE_SIZE)
    return KernelDevice("gntalloc", memory)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@pytest.mark.parametrize("name", ["gntalloc", "gntdev", "evtchn", "privcmd", "xenbus"])
def test_without_xen_the_embedded_machine_is_named(dev_xen: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(kernel, "is_xen", lambda: False)
    with pytest.raises(
        InterfaceUnavailable, match=f"{name} is not there.*does not run on Xen.*xengrant machine"
    ) as caught:
        open_system("xen:").open(name)
    assert caught.value.errno == errno.ENOENT
    assert str(dev_xen) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("gntalloc", "modprobe xen-gntalloc"), ("evtchn", "modprobe xen-evtchn"), ("xenbus", "built without it")],
)
def test_on_xen_the_module_is_named(dev_xen: Path, monkeypatch: pytest.MonkeyPatch, name: str, remedy: str) -> None:
    monkeypatch.setattr(kernel, "is_xen", lambda: True)
    with pytest.raises(InterfaceUnavailable, match=remedy):
        KernelSystem().open(name)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.EACCES, "no permission: run as root"),
        (errno.EPERM, "no permission: run as root"),
        (errno.EBUSY, "Device or resource busy"),
    ],
)
def test_other_reasons_are_told_too(dev_xen: Path, monkeypatch: pytest.MonkeyPatch, number: int, text: str) -> None:
    (dev_xen / "gntdev").touch()

    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InterfaceUnavailable, match=text) as caught:
        KernelSystem().open("gntdev")
    assert caught.value.errno == number


def test_no_permission_names_the_devices_group(dev_xen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (dev_xen / "gntdev").touch()

    class Group:
        gr_name = "qubes"

    monkeypatch.setattr(grp, "getgrgid", lambda _: Group)
    text = kernel._why_unavailable("gntdev", dev_xen / "gntdev", PermissionError(errno.EACCES, ""))
    assert "join the group qubes (usermod -aG qubes USER)" in text


def test_pages_of_another_size_are_refused(dev_xen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (dev_xen / "gntalloc").touch()
    monkeypatch.setattr(os, "sysconf", lambda _: 65536)
    with pytest.raises(InterfaceUnavailable, match="65536 bytes"):
        KernelSystem().open("gntalloc")


def test_descriptors_do_not_block_and_do_not_reach_programs_started(dev_xen: Path) -> None:
    (dev_xen / "gntalloc").touch()
    device = KernelSystem().open("gntalloc")
    assert not os.get_blocking(device.fileno())
    assert not os.get_inheritable(device.fileno())
    device.close()


def test_parameters_are_those_of_the_module() -> None:
    found = [path for path in Path("/sys/module").glob("*/parameters/*") if os.access(path, os.R_OK)]
    system = KernelSystem()
    for path in found[:3]:
        assert system.parameter(path.parts[3].replace("_", "-"), path.name) == path.read_text().strip()
    assert system.parameter("no-such-module", "limit") is None


def test_the_kernels_log_is_what_it_said_lately(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, kernels = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    for seconds, text in ((10.0, "long ago"), (99.5, "lately; and more"), (99.9, "just now")):
        kernels.send(f"6,1,{int(seconds * 1e6)},-;{text}\n SUBSYSTEM=x\n".encode())
    kernels.send(b"garbage")
    monkeypatch.setattr(time, "clock_gettime", lambda _: 100.0)
    monkeypatch.setattr(os, "open", lambda *_: os.dup(ours.fileno()))
    assert KernelSystem().kernel_log(1.0) == ["lately; and more", "just now"]
    ours.close()
    kernels.close()


def test_a_log_that_cannot_be_read_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "open", refuse)
    assert KernelSystem().kernel_log(1.0) == []


_CALLS: dict[str, Callable[[KernelDevice], object]] = {
    "ioctl": lambda device: device.ioctl(0, bytearray(8)),
    "mmap": lambda device: device.mmap(PAGE_SIZE, 0, writable=True),
    "read": lambda device: device.read(4),
    "write": lambda device: device.write(b"1234"),
    "fileno": lambda device: device.fileno(),
}


@pytest.mark.parametrize("name", _CALLS)
def test_a_closed_device_says_so(name: str) -> None:
    device = _device()
    fd = device.fileno()
    device.close()
    device.close()
    assert not _is_open(fd)
    with pytest.raises(InterfaceClosed, match="gntalloc is closed"):
        _CALLS[name](device)


def test_a_call_under_way_is_finished_before_the_descriptor_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it meets whatever file gets the number next."""
    device = _device()
    fd = device.fileno()
    inside, leave = threading.Event(), threading.Event()

    def slow(number: int, request: int, arg: bytearray) -> int:
        inside.set()
        assert leave.wait(LONG)
        return int(_is_open(number))

    monkeypatch.setattr(fcntl, "ioctl", slow)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(device.ioctl, 0, bytearray(8))
        assert inside.wait(LONG)
        device.close()
        assert _is_open(fd)
        with pytest.raises(InterfaceClosed):
            device.ioctl(0, bytearray(8))
        assert _is_open(fd)
        leave.set()
        assert call.result(LONG) == 1
    assert not _is_open(fd)


def test_a_call_that_fails_lets_the_descriptor_go_too(monkeypatch: pytest.MonkeyPatch) -> None:
    device = _device()
    fd = device.fileno()

    def failing(*_: object) -> int:
        device.close()
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(fcntl, "ioctl", failing)
    with pytest.raises(OSError, match="broken"):
        device.ioctl(0, bytearray(8))
    assert not _is_open(fd)


def test_threads_that_close_and_call_meet_no_other_file() -> None:
    for _ in range(30):
        device = _device()
        together = threading.Barrier(5)

        def call(device: KernelDevice = device, together: threading.Barrier = together) -> None:
            together.wait(LONG)
            while True:
                try:
                    device.ioctl(0x5401, bytearray(64))
                except InterfaceClosed:
                    return
                except OSError as error:
                    if error.errno != errno.ENOTTY:  # EBADF: closed, or another file
                        raise

        with ThreadPoolExecutor(4) as pool:
            calls = [pool.submit(call) for _ in range(4)]
            together.wait(LONG)
            device.close()
            for result in calls:
                result.result(LONG)


def test_a_mapping_outlives_its_device() -> None:
    device = _device(2)
    with device.mmap(2 * PAGE_SIZE, 0, writable=True) as mapping:
        device.close()
        mapping[:5] = b"hello"
        assert mapping[:5] == b"hello"


def test_a_device_never_closed_warns_and_is_closed() -> None:
    device = _device()
    fd = device.fileno()
    with pytest.warns(ResourceWarning, match="unclosed .*gntalloc"):
        del device
    assert not _is_open(fd)


def test_in_a_forked_child_a_device_is_closed() -> None:
    device = _device()
    fd = device.fileno()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            try:
                device.ioctl(0, bytearray(8))
            except InterfaceClosed:
                status = int(_is_open(fd))
            device.close()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert _is_open(fd)
    device.close()


def test_a_child_forked_in_the_middle_of_a_call_closes_it_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    device = _device()
    fd = device.fileno()
    inside, leave = threading.Event(), threading.Event()

    def slow(*_: object) -> int:
        inside.set()
        return int(leave.wait(LONG))

    monkeypatch.setattr(fcntl, "ioctl", slow)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(device.ioctl, 0, bytearray(8))
        assert inside.wait(LONG)
        child = os.fork()
        if child == 0:
            os._exit(int(_is_open(fd)))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        leave.set()
        assert call.result(LONG) == 1
    device.close()


@pytest.mark.parametrize("kind", ["bytearray", "memoryview", "Mapping"])
def test_a_pointer_holds_the_address_of_its_target(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    device = _device()
    seen: list[bytes] = []

    def look(_fd: int, _request: int, arg: bytearray) -> int:
        seen.append(ctypes.string_at(int.from_bytes(arg[8:16], "little"), 5))
        return 0

    monkeypatch.setattr(fcntl, "ioctl", look)
    with device.mmap(PAGE_SIZE, 0, writable=True) as mapping:
        mapping[:5] = b"hello"
        targets: dict[str, bytearray | memoryview | Mapping] = {
            "bytearray": bytearray(b"hello"),
            "memoryview": memoryview(bytearray(b"..hello"))[2:],
            "Mapping": mapping,
        }
        arg = bytearray(16)
        device.ioctl(0, arg, [Pointer(arg, 8, targets[kind], "in")])
        assert mapping.exports == 0
    assert seen == [b"hello"]
    device.close()


def test_nothing_to_point_at_is_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    device = _device()
    monkeypatch.setattr(fcntl, "ioctl", lambda *_: 0)
    arg = bytearray(b"\xff" * 8)
    empty: Any = memoryview(bytearray(4))[4:]
    device.ioctl(0, arg, [Pointer(arg, 0, empty, "out")])
    assert arg == bytes(8)
    device.close()
