"""Where a machine is found, by whom, and what a client is told when there is none."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from xengrant.devices import open_system, wire
from xengrant.devices.socket import SocketSystem
from xengrant.embedded import Machine
from xengrant.errors import InterfaceUnavailable

from .ioctls import add_map


def open_gntdev(directory: str | Path) -> None:
    open_system(f"embedded:{directory}?domid=1").open("gntdev").close()


def test_a_named_directory_is_made_private(tmp_path: Path) -> None:
    with Machine(tmp_path / "xen") as machine:
        assert machine.directory == str(tmp_path / "xen")
        assert stat.S_IMODE(os.stat(machine.directory).st_mode) == 0o700
        open_gntdev(tmp_path / "xen")
    assert os.listdir(tmp_path / "xen") == [wire.LOCK_FILE]


def test_a_temporary_directory_goes_with_the_machine() -> None:
    with Machine() as machine:
        assert stat.S_IMODE(os.stat(machine.directory).st_mode) == 0o700
    assert not os.path.exists(machine.directory)


def test_a_directory_open_to_others_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(PermissionError, match="mode 700"):
        Machine(tmp_path)
    assert os.listdir(tmp_path) == []
    with pytest.raises(InterfaceUnavailable, match="mode 700"):
        open_gntdev(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_another_users_directory_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    os.chown(tmp_path, 12345, 12345)
    with pytest.raises(PermissionError, match="another user"):
        Machine(tmp_path)
    with pytest.raises(InterfaceUnavailable, match="another user"):
        open_gntdev(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_not_served(tmp_path: Path) -> None:
    with Machine() as machine:
        path = f"{machine.directory}/{wire.MACHINE_SOCKET}"
        os.chmod(machine.directory, 0o755)
        os.chmod(path, 0o777)
        code = (
            "import os, socket, sys; os.setuid(12345); s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
            "print(s.recv(1))"
        )
        output = subprocess.run([sys.executable, "-c", code, path], capture_output=True, timeout=20, check=True).stdout
        assert output.strip() == b"b''"


def test_two_machines_do_not_share_a_directory(tmp_path: Path) -> None:
    with Machine(tmp_path / "xen") as machine:
        with pytest.raises(InterfaceUnavailable, match="runs here already"):
            Machine(tmp_path / "xen")
        open_gntdev(machine.directory)


def test_a_dead_machines_directory_can_be_used_again(tmp_path: Path) -> None:
    code = (
        "import sys; from xengrant.embedded import Machine;"
        "machine = Machine(sys.argv[1]); print(flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "xen")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        device = open_system(f"embedded:{tmp_path}/xen?domid=1").open("gntdev")
        process.kill()
    assert wire.MACHINE_SOCKET in os.listdir(tmp_path / "xen")
    with pytest.raises(InterfaceUnavailable, match="was stopped"):
        add_map(device, [(2, 8)])
    device.close()
    with pytest.raises(InterfaceUnavailable, match=r"does not run; start one with `xengrant machine --dir"):
        open_gntdev(tmp_path / "xen")
    with Machine(tmp_path / "xen"):
        open_gntdev(tmp_path / "xen")


@pytest.mark.parametrize("name", [wire.MACHINE_SOCKET, wire.XENSTORED_SOCKET])
@pytest.mark.parametrize("kind", ["file", "link", "directory"])
def test_a_users_file_of_a_sockets_name_is_refused_and_stays(tmp_path: Path, name: str, kind: str) -> None:
    tmp_path.chmod(0o700)
    theirs = tmp_path / name
    if kind == "file":
        theirs.write_text("mine")
    elif kind == "link":
        theirs.symlink_to("elsewhere")
    else:
        theirs.mkdir()
    with pytest.raises(InterfaceUnavailable, match=f"{theirs} is there already and no socket"):
        Machine(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([wire.LOCK_FILE, name])
    assert kind != "file" or theirs.read_text() == "mine"
    os.rename(theirs, tmp_path / "away")
    with Machine(tmp_path):
        open_gntdev(tmp_path)


def test_a_file_that_took_a_sockets_place_outlives_the_machine(tmp_path: Path) -> None:
    with Machine(tmp_path / "xen"):
        (tmp_path / "xen" / wire.MACHINE_SOCKET).unlink()
        (tmp_path / "xen" / wire.MACHINE_SOCKET).write_text("mine")
    assert (tmp_path / "xen" / wire.MACHINE_SOCKET).read_text() == "mine"


def test_no_directory_at_all(tmp_path: Path) -> None:
    with pytest.raises(InterfaceUnavailable, match="no embedded machine here; start one with"):
        open_gntdev(tmp_path / "none")
    with pytest.raises(InterfaceUnavailable, match="No such file"):
        open_system(f"embedded:{tmp_path}?domid=1").parameter("xen_gntalloc", "limit")
    (tmp_path / "file").write_text("")
    with pytest.raises(InterfaceUnavailable, match="Not a directory"):
        open_gntdev(tmp_path / "file")
    with pytest.raises(NotADirectoryError):
        Machine(tmp_path / "file")


def test_a_path_may_be_longer_than_a_sockets(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 120)
    with Machine(directory):
        open_gntdev(directory)


def test_a_path_may_hold_any_character(tmp_path: Path) -> None:
    with Machine(tmp_path / "a ?domid=9&%#") as machine:
        assert SocketSystem(machine.url(3)).directory == machine.directory
        open_system(machine.url(3)).open("gntdev").close()


@pytest.mark.parametrize(
    "url",
    ["embedded:", "embedded:/x", "embedded:/x?domid=", "embedded:/x?domid=a", "embedded:/x?domid=-1",
     "embedded:/x?domid=1&colour=red", "embedded:/x?domid=32752", "embedded:?domid=1", "embedded:/x?domid=1&kernel=2",
     "embedded:/x?domid=\N{ARABIC-INDIC DIGIT ONE}"],
)  # fmt: skip
def test_urls_that_name_no_machine(url: str) -> None:
    with pytest.raises(ValueError, match=r"embedded|names no machine"):
        open_system(url)


def test_a_kernel_attachment_and_an_unknown_device_are_told_apart(tmp_path: Path) -> None:
    with Machine() as machine:
        with pytest.raises(InterfaceUnavailable, match="device of Linux"):
            open_system(machine.url(1, kernel=True)).open("gntalloc")
        with pytest.raises(InterfaceUnavailable, match="teapot"):
            open_system(machine.url(1)).open("teapot")
        with pytest.raises(ValueError, match="domid"):
            machine.url(0x7FF0)


def test_run_stays_until_a_signal_and_leaves_nothing(
    tmp_path: Path, eventually: Callable[[Callable[[], bool], Callable[[], str]], None]
) -> None:
    code = (
        "import sys, resource; from xengrant.embedded import Machine; m = Machine(sys.argv[1]); print(flush=True);"
        "m.run(); print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    command = ["sh", "-c", 'ulimit -Sn 256; exec "$@"', "sh", sys.executable, "-c", code, str(tmp_path / "xen")]
    for number in (signal.SIGTERM, signal.SIGINT):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"\n"
            devices = [open_system(f"embedded:{tmp_path}/xen?domid=1").open("gntdev") for _ in range(10)]
            eventually(partial(_handles, process.pid, signal.SIGTERM), lambda: "run() has not begun")
            process.send_signal(number)
            assert process.wait(20) == 0
            assert process.stdout.read() == b"256\n"
            for device in devices:
                device.close()
        assert os.listdir(tmp_path / "xen") == [wire.LOCK_FILE]


def _handles(pid: int, number: signal.Signals) -> bool:
    """Whether the process has a handler for the signal; `run` sets that of SIGTERM last."""
    caught = re.search(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert caught is not None
    return bool(int(caught[1], 16) >> number - 1 & 1)


def test_the_lock_of_a_machine_does_not_live_on_in_a_forked_child(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "xen")
    release, wait = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(wait)
        os.read(release, 1)  # until the parent is through
        os._exit(0)
    device = open_system(machine.url(1)).open("gntdev")
    machine.close()
    with pytest.raises(InterfaceUnavailable, match="was stopped"):
        add_map(device, [(2, 8)])
    device.close()
    with Machine(tmp_path / "xen"):
        open_gntdev(tmp_path / "xen")
    os.close(wait)
    os.close(release)
    assert os.waitpid(child, 0)[1] == 0


def test_xens_own_tools_have_a_socket(tmp_path: Path) -> None:
    with Machine() as machine, socket.socket(socket.AF_UNIX) as sock:
        sock.connect(machine.xenstored_path)
        from xengrant.abi.xs_wire import Operation, Splitter, pack_message, pack_strings

        sock.sendall(pack_message(Operation.READ, 7, 0, pack_strings(b"/local/domain/0/name")))
        splitter = Splitter()
        while (message := splitter.next()) is None:
            splitter.feed(sock.recv(1000))
        assert message == (Operation.READ, 7, 0, b"Domain-0")
