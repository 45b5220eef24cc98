"""`machine`: running one, looking at it, destroying a domain of it."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import xengrant
from xengrant.embedded import Machine

from .shell import SIGNALS, Running, User, one_line, sharing

Users = Callable[[int], User]


def started(user: User, directory: Path, *arguments: str) -> Running:
    """A machine that serves."""
    running = user.start("machine", "--dir", str(directory), *arguments)
    assert running.line("stderr") == "Ctrl-C stops the machine"
    return running


def test_what_a_machine_prints_is_shell_and_works(nobody: User, tmp_path: Path) -> None:
    directory = tmp_path / "it's here"
    machine = started(nobody, directory)
    script = "\n".join(machine.line() for _ in range(5))
    printed = subprocess.run(
        ["sh", "-c", f'{script}\nprintf "%s\\n%s" "$XENGRANT_URL" "$XENSTORED_PATH"'],
        stdout=subprocess.PIPE,
        check=True,
    )
    url, path = printed.stdout.decode().split("\n")
    with xengrant.connect(url) as domain:
        assert domain.domid == 1
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_stops_a_machine_and_its_sockets_go(nobody: User, tmp_path: Path, number: int) -> None:
    machine = started(nobody, tmp_path / "m")
    machine.signal(number)
    done = machine.ended()
    assert (done.returncode, done.stderr) == (0, b"stopped\n")
    assert not (tmp_path / "m/machine").exists()


def test_a_machine_has_the_settings_asked_for(nobody: User, tmp_path: Path) -> None:
    machine = nobody.start(
        "machine", "--dir", str(tmp_path / "m"), "--lifetime", "hvm", "--gntalloc-limit", "3",
        "--grant-table-version", "2", "--json",
    )  # fmt: skip
    ready = json.loads(machine.line())
    assert ready["event"] == "ready"
    assert ready["directory"] == str(tmp_path / "m")
    assert ready["xenstored_path"] == str(tmp_path / "m/xenstored")
    with (
        pytest.raises(xengrant.GrantTableFull, match="limit of gntalloc is 3"),
        sharing(ready["url"].replace("N", "4"), 1, pages=4),
    ):
        pass
    status = json.loads(nobody.run("machine", "status", "--dir", str(tmp_path / "m"), "--json").stdout)
    assert status["domains"]["4"]["lifetime"] == "hvm"
    with xengrant.connect(ready["url"].replace("N", "0")) as dom0, dom0.grant_table(of=4) as table:
        assert table.version == 2
    machine.signal(signal.SIGINT)
    assert json.loads(machine.ended().stdout) == {"event": "stopped", "directory": str(tmp_path / "m")}


def test_the_default_directory_is_the_users_own(nobody: User, tmp_path: Path) -> None:
    machine = nobody.start("machine", "--json", XDG_RUNTIME_DIR=str(tmp_path))
    assert json.loads(machine.line())["directory"] == str(tmp_path / "xengrant")
    assert (tmp_path / "xengrant").stat().st_mode & 0o777 == 0o700
    assert nobody.run("machine", "status", XDG_RUNTIME_DIR=str(tmp_path)).returncode == 0


def test_status_lists_domains_and_what_they_hold(nobody: User, machine: Machine) -> None:
    with sharing(machine.url(3), 5, pages=2):
        done = nobody.run("machine", "status", "--dir", machine.directory)
        found = json.loads(nobody.run("machine", "status", "--dir", machine.directory, "--json").stdout)
    assert done.returncode == 0
    header, dom0, _, _, three = done.stdout.decode().splitlines()
    assert header.split()[:4] == ["domid", "name", "state", "grants"]
    assert dom0.split()[:4] == ["0", "Domain-0", "running", "0"]
    assert three.split()[:4] == ["3", "domain-3", "running", "2"]
    assert header.index("grants") == three.index("2", header.index("state"))
    assert found["pid"] == os.getpid()
    assert found["domains"]["3"]["grants"] == 2


def test_destroy_ends_a_domain(nobody: User, machine: Machine) -> None:
    with xengrant.connect(machine.url(3)) as domain, domain.gntshr() as gntshr:
        done = nobody.run("machine", "destroy", "3", "--dir", machine.directory)
        assert (done.returncode, done.stderr) == (0, b"domain 3 is destroyed\n")
        assert 3 not in machine.status()["domains"]
        text = one_line(nobody.run("machine", "destroy", "3", "--dir", machine.directory), 1)
        assert "there is no domain 3" in text
        assert "domain 0" in one_line(nobody.run("machine", "destroy", "0", "--dir", machine.directory), 1)
        with pytest.raises(xengrant.InterfaceUnavailable):
            gntshr.share_pages(1, writable=True)


def test_a_destroyed_domains_share_says_what_happened(user: Users, machine: Machine) -> None:
    share = user(3).start("share", "--to", "1")
    share.line()
    share.line("stderr")
    share.line("stderr")
    machine.destroy(3)
    share.signal(signal.SIGINT)
    done = share.ended()
    assert "Traceback" not in done.stderr.decode()


@pytest.mark.parametrize("action", [["status"], ["destroy", "3"]])
def test_a_directory_without_a_machine_says_how_to_start_one(nobody: User, tmp_path: Path, action: list[str]) -> None:
    missing = tmp_path / "missing"
    text = one_line(nobody.run("machine", *action, "--dir", str(missing)), 1)
    assert f"xengrant machine --dir {missing}" in text
    empty = tmp_path / "empty"
    empty.mkdir(0o700)
    assert f"xengrant machine --dir {empty}" in one_line(nobody.run("machine", *action, "--dir", str(empty)), 1)


def test_the_directory_of_a_machine_that_was_killed_can_be_used_again(nobody: User, tmp_path: Path) -> None:
    killed = started(nobody, tmp_path / "m")
    killed.signal(signal.SIGKILL)
    killed.ended()
    assert (tmp_path / "m/machine").exists()
    text = one_line(nobody.run("machine", "status", "--dir", str(tmp_path / "m")), 1)
    assert "does not run" in text
    text = one_line(nobody.run("map", "1", "8", "--url", f"embedded:{tmp_path}/m?domid=2"), 1)
    assert "does not run" in text
    started(nobody, tmp_path / "m")
    assert nobody.run("machine", "status", "--dir", str(tmp_path / "m")).returncode == 0


def test_two_machines_do_not_share_a_directory(nobody: User, machine: Machine) -> None:
    text = one_line(nobody.run("machine", "--dir", machine.directory), 2)
    assert "a machine runs here already" in text


def test_a_directory_open_to_others_is_refused(nobody: User, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    assert "mode 700" in one_line(nobody.run("machine", "--dir", str(tmp_path / "open")), 1)


def test_a_directory_that_cannot_be_made_is_one_line(nobody: User, tmp_path: Path) -> None:
    text = one_line(nobody.run("machine", "--dir", str(tmp_path / "no/such")), 1)
    assert shlex.quote(str(tmp_path)) in text


@pytest.mark.parametrize("arguments", [["--lifetime", "xx"], ["--gntalloc-limit", "-1"], ["destroy"]])
def test_wrong_usage_is_status_64(nobody: User, arguments: list[str]) -> None:
    assert nobody.run("machine", *arguments).returncode == 64
