"""Being another domain than one attached as, another user, or the machine's owner."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import xengrant
from tests.attacks.conftest import Outcome, Refused
from tests.attacks.raw import Raw, connect, hello, is_dropped
from xengrant.abi import grant_table as table_abi
from xengrant.abi import kernelspace, privcmd
from xengrant.abi.xen import HYPERVISOR_GRANT_TABLE_OP, PAGE_SIZE
from xengrant.devices import wire
from xengrant.devices.wire import Direction, Kind
from xengrant.embedded import Machine, server
from xengrant.errors import InterfaceUnavailable

THROUGH = "the machine's socket"

NOBODY = 65534


@pytest.mark.parametrize("domid", [0x7FF0, 0x7FF1, 0x7FF2, 0x7FFF, 0x8001, 0xFFFF])
@pytest.mark.parametrize("device", ["gntdev", "kernel", "xenbus"])
def test_a_domid_that_is_nobodys(machine: Machine, device: str, domid: int, refused: Refused) -> None:
    """attach as a domain that is none, such as DOMID_IO"""
    with refused(errno.EINVAL):
        Raw(machine, device, domid, kernel=device == "kernel")
    assert list(machine.status()["domains"]) == [0, 1, 2, 3]


@pytest.mark.parametrize("device", ["gntalloc", "gntdev", "evtchn", "privcmd"])
def test_commands_of_the_machines_owner(machine: Machine, device: str, outcome: Outcome) -> None:
    """destroy another domain by a command of `xengrant machine`, on a guest's connection"""
    sock = hello(machine, device, 3)
    sock.sendall(wire.pack_request(Kind.CONTROL, json.dumps({"do": "destroy", "domid": 1}).encode()))
    assert is_dropped(sock)
    assert machine.status()["domains"][1]["state"] == "running"
    outcome("dropped")


@pytest.mark.parametrize("name", ["", "control/", "../control", "Control", "gntdev\0", "gntdev/../control", "memory"])
def test_devices_that_are_none(machine: Machine, name: str, refused: Refused) -> None:
    """open a device that is none"""
    with refused(errno.ENOENT):
        Raw(machine, name, 3)


def test_hypercalls_of_a_guest(machine: Machine, refused: Refused) -> None:
    """make a hypercall, or map another domain's table, as a guest"""
    with Raw(machine, "privcmd", 3) as device:
        query = bytes(table_abi.pack_query_size(1))
        arg = privcmd.pack_hypercall(HYPERVISOR_GRANT_TABLE_OP, table_abi.QUERY_SIZE, 0, 1)
        pointer = (0, privcmd.hypercall_argument(1), Direction.INOUT, len(query), query)
        for request, argument, pointers in (
            (privcmd.HYPERCALL, arg, [pointer]),
            (privcmd.MMAP_RESOURCE, privcmd.pack_resource(1, table_abi.RESOURCE_GRANT_TABLE, 0, 0, 1), []),
        ):
            with refused(errno.EPERM):
                device.ioctl(request, argument, pointers)
        assert not device.fds


def test_a_second_kernel(machine: Machine, outcome: Outcome) -> None:
    """become the kernel of a domain that has one, or that runs Linux, or of dom0"""
    with Raw(machine, "kernel", 5, kernel=True):
        for domid, kernel in ((5, True), (5, False), (1, True), (0, True)):
            with Raw(machine, "gntdev", 1), pytest.raises(OSError, match="busy"):
                Raw(machine, "kernel", domid, kernel=kernel)
    outcome("EBUSY")


def test_devices_of_a_kernel_from_another_process(machine: Machine, outcome: Outcome) -> None:
    """open a device as the kernel of a domain whose kernel is another process"""
    code = (
        "import sys; from xengrant.devices import open_system\n"
        "try: open_system(sys.argv[1]).open(sys.argv[2])\n"
        "except OSError as error: print(error.errno)"
    )
    with Raw(machine, "kernel", 5, kernel=True):
        for device, number in (("gntdev", errno.EPERM), ("evtchn", errno.EPERM), ("kernel", errno.EBUSY)):
            done = subprocess.run(
                [sys.executable, "-c", code, machine.url(5, kernel=True), device], capture_output=True, check=True
            )
            assert int(done.stdout) == number, device
    outcome("EPERM and EBUSY")


def test_the_kernels_pages_of_another(machine: Machine, refused: Refused) -> None:
    """as a domain's kernel, map or free pages that are another kernel's"""
    with Raw(machine, "kernel", 5, kernel=True) as honest, Raw(machine, "kernel", 6, kernel=True) as hostile:
        arg = kernelspace.pack_run(2)
        honest.ioctl(kernelspace.ALLOC_PAGES, arg)
        frame = kernelspace.unpack_run(arg)[1]
        for number in (frame, frame + 1, 0, 0x1000, 0x1001, (1 << 32) - 1):
            with refused(errno.EINVAL):
                hostile.mmap(PAGE_SIZE, number * PAGE_SIZE, writable=True)
            with refused(errno.EINVAL):
                hostile.ioctl(kernelspace.FREE_PAGES, kernelspace.pack_run(1, number))
        assert not hostile.fds


def test_processes_of_one_user_are_any_domain(machine: Machine, outcome: Outcome) -> None:
    """attach as another domain"""
    with Raw(machine, "gntalloc", 1) as victim:
        _, (ref,) = victim.alloc(2)
        with Raw(machine, "gntdev", 2) as anybody:
            anybody.map((1, ref), writable=True)
            assert anybody.fds
            anybody.munmap(1)
    outcome("gets through, as docs/differences.md says")


def as_nobody(code: str, *arguments: str, fds: tuple[int, ...] = ()) -> str:
    """What a Python program prints that runs as another user, whom the sources need not be readable to."""
    become = f"import os, socket, sys\nos.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
    command = [sys.executable, "-I", "-c", become + code, *arguments]
    return subprocess.run(command, capture_output=True, pass_fds=fds, check=True, timeout=60).stdout.decode().strip()


CONNECT = """
try:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(sys.argv[1])
    sock.sendall(bytes.fromhex(sys.argv[2]))
    print("hung up" if sock.recv(1) == b"" else "served")
except ConnectionError:
    print("hung up")
except OSError as error:
    print(type(error).__name__)
"""
HELLO = wire.pack_request(Kind.HELLO, wire.pack_hello(1, "gntdev")).hex()

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")


@needs_root
@pytest.mark.parametrize("name", [wire.MACHINE_SOCKET, wire.XENSTORED_SOCKET])
def test_the_sockets_of_another_user(machine: Machine, name: str, outcome: Outcome) -> None:
    """connect to another user's machine, by its path and by a descriptor of its directory"""
    assert as_nobody(CONNECT, f"{machine.directory}/{name}", HELLO) == "PermissionError"
    fd = os.open(machine.directory, os.O_PATH)
    assert as_nobody(CONNECT, f"/proc/self/fd/{fd}/{name}", HELLO, fds=(fd,)) == "PermissionError"
    os.close(fd)
    outcome("PermissionError, since the directory has mode 0700")


@needs_root
@pytest.mark.parametrize("name", [wire.MACHINE_SOCKET, wire.XENSTORED_SOCKET])
def test_the_sockets_of_another_user_in_an_open_directory(machine: Machine, name: str, outcome: Outcome) -> None:
    """connect to another user's machine whose directory was opened to all"""
    os.chmod(machine.directory, 0o755)
    os.chmod(f"{machine.directory}/{name}", 0o777)
    try:
        assert as_nobody(CONNECT, f"{machine.directory}/{name}", HELLO) == "hung up"
        with pytest.raises(InterfaceUnavailable, match="open to other users"):
            xengrant.connect(machine.url(1)).evtchn()
    finally:
        os.chmod(machine.directory, 0o700)
    outcome("hung up on, by SO_PEERCRED; and its own user's programs refuse such a directory")


def test_a_client_whose_credentials_are_anothers(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, outcome: Outcome
) -> None:
    """be served as the credentials of another user"""
    monkeypatch.setattr(server, "credentials", lambda sock: (os.getpid(), os.geteuid() + 1, os.getegid()))
    assert is_dropped(connect(machine))
    monkeypatch.undo()
    outcome("hung up on")


@needs_root
def test_a_machine_of_another_user(tmp_path: Path, outcome: Outcome) -> None:
    """have another user's program take one's own machine for its own"""
    directory = tmp_path / "theirs"
    directory.mkdir(mode=0o700)
    os.chown(directory, NOBODY, NOBODY)
    with pytest.raises(InterfaceUnavailable, match="belongs to another user") as caught:
        xengrant.connect(f"embedded:{directory}?domid=1").evtchn()
    assert caught.value.errno == errno.EACCES
    with pytest.raises(PermissionError, match="belongs to another user"):
        Machine(directory)
    outcome("EACCES, by the directory's owner")
