"""Xen's own xenstore-* programs, unmodified, against `XenStored`."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable

import pytest

from xengrant.abi.xs_wire import Permission

from .store_server import StoreServer
from .worker import LONG

pytestmark = pytest.mark.skipif(shutil.which("xenstore-ls") is None, reason="Debian's xenstore-utils are not installed")

Run = Callable[..., str]


@pytest.fixture
def run(server: StoreServer) -> Run:
    def run(*command: str, status: int = 0) -> str:
        done = subprocess.run(
            command,
            env=os.environ | {"XENSTORED_PATH": str(server.path)},
            capture_output=True,
            text=True,
            timeout=LONG,
            check=False,
        )
        assert done.returncode == status, done.stderr
        return done.stdout

    return run


def test_read_and_write(run: Run) -> None:
    run("xenstore-write", "/a/b", "hello", "/a/c", "world")
    assert run("xenstore-read", "/a/b", "/a/c") == "hello\nworld\n"


def test_ls_shows_what_libxl_makes(run: Run) -> None:
    shown = run("xenstore-ls", "/local/domain/1")
    assert 'name = "one"' in shown
    assert 'domid = "1"' in shown
    assert 'data = ""' in shown


def test_ls_shows_owners_and_permissions(run: Run) -> None:
    lines = run("xenstore-ls", "-f", "-p", "/local/domain/1").splitlines()
    assert any(line.startswith("/local/domain/1/data ") and line.endswith("(n1)") for line in lines)
    assert any(line.startswith("/local/domain/1/name ") and line.endswith("(n0,r1)") for line in lines)


def test_list_gives_the_children(run: Run) -> None:
    assert run("xenstore-list", "/local/domain").split() == ["0", "1", "2"]


def test_list_of_more_than_a_message(run: Run, server: StoreServer) -> None:
    names = [f"a-rather-long-name-of-a-child-{i}" for i in range(1000)]
    for name in names:
        server.call(lambda name=name: server.store.mkdir(f"/many/{name}"))  # type: ignore[misc]
    assert run("xenstore-list", "/many").split() == names


def test_exists_says_so_with_its_status(run: Run) -> None:
    run("xenstore-exists", "/local/domain/1")
    run("xenstore-exists", "/local/domain/9", status=1)


def test_rm_removes_all_below(run: Run) -> None:
    run("xenstore-write", "/a/b/c", "1")
    run("xenstore-rm", "/a")
    run("xenstore-exists", "/a/b/c", status=1)


def test_chmod_sets_permissions(run: Run, server: StoreServer) -> None:
    run("xenstore-write", "/shared", "x")
    run("xenstore-chmod", "/shared", "n0", "r1", "b2")
    node = server.call(lambda: server.store.tree.get("/shared"))
    assert node is not None
    assert node.permissions == (Permission(0, "n"), Permission(1, "r"), Permission(2, "b"))


def test_watch_tells_a_change(run: Run, server: StoreServer) -> None:
    command = ["xenstore-watch", "-n", "2", "/watched"]
    environment = os.environ | {"XENSTORED_PATH": str(server.path)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline() == "/watched\n", "the first event comes at once"
        run("xenstore-write", "/watched/below", "1")
        assert watching.stdout.readline() == "/watched/below\n"
        assert watching.wait(LONG) == 0
