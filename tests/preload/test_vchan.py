"""libxenvchan with itself and with xengrant.vchan, each end a process of its own, on an embedded machine."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

import xengrant
from xengrant.embedded import Machine

from .programs import LONG, TESTS, Preload, need

pytestmark = need()

MIB = 1 << 20
PATH = "/local/domain/1/data/vchan"

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(machine: Machine, preload: Preload) -> Iterator[Start]:
    """Starts `vchan_peer` as a server in domain 1, or as its client: the one in C, or Python's."""
    with contextlib.ExitStack() as stack:

        def start(
            role: str, read: int, write: int, *mode: object, client: int = 2, python: bool = False
        ) -> subprocess.Popen[str]:
            here, peer = (1, client) if role == "server" else (client, 1)
            program = [sys.executable, TESTS.parent / "lab" / "vchan_peer.py"] if python else [preload.vchan_peer]
            process = preload.start(
                list(map(str, [*program, role, peer, PATH, read, write, *mode])),
                machine.url(here),
                VCHAN_PEER_TIMEOUT=str(int(LONG / 2)),
                **({"LD_PRELOAD": "", "XENGRANT_URL": machine.url(here)} if python else {}),
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


def finished(process: subprocess.Popen[str]) -> str:
    """The figures that it prints, behind "listening" or "connected"."""
    out, error = process.communicate(timeout=LONG)
    assert (process.returncode, error) == (0, "")
    return out.splitlines()[-1]


@pytest.mark.parametrize("closes", ["server", "client"])
@pytest.mark.parametrize(
    ("read", "write"),
    [
        (1024, 1024),
        (2048, 2048),
        (4096, 4096),
        (65536, 65536),
        (1024, 65536),
        (65536, 2048),
        (2048, 1024),
        (16, MIB),
    ],
)
def test_a_pattern_crosses_both_ways_at_once(start: Start, read: int, write: int, closes: str) -> None:
    there, back = 3 * MIB + 1, 2 * MIB + 777
    server = start("server", read, write, "transfer", back, there, 99, closes)
    client = start("client", read, write, "transfer", there, back, 99, closes)
    assert finished(client).startswith(f"sent {there} received {back} seconds ")
    assert finished(server).startswith(f"sent {back} received {there} seconds ")


def test_a_pattern_of_another_seed_is_seen(start: Start) -> None:
    server = start("server", 4096, 4096, "transfer", 0, 100, 1, "server")
    client = start("client", 4096, 4096, "transfer", 100, 0, 2, "server")
    assert server.wait(LONG) == 1
    assert server.stderr is not None
    assert "byte 0 of direction 0 is 0x2, not 0x1" in server.stderr.read()
    assert client.wait(LONG) == 0  # the peer's end is all that it waited for


def test_more_than_was_agreed_is_seen(start: Start) -> None:
    server = start("server", 4096, 4096, "transfer", 0, 100, 1, "client")
    start("client", 4096, 4096, "transfer", 101, 0, 1, "client")
    assert server.wait(LONG) == 1
    assert server.stderr is not None
    assert "more came than was agreed" in server.stderr.read()


def test_what_was_sent_is_read_after_the_sender_has_closed(start: Start) -> None:
    """The client sends what just fits, closes and is gone before the server has looked at it."""
    server = start("server", 65536, 1024, "transfer", 0, 65536, 5, "client")
    client = start("client", 0, 0, "transfer", 65536, 0, 5, "client")
    assert finished(client).startswith("sent 65536 ")
    assert finished(server).startswith("sent 0 received 65536 ")


@pytest.mark.parametrize("dies", ["server", "client"])
def test_the_death_of_one_end_is_seen_by_the_other(start: Start, dies: str) -> None:
    """Unmap notification: the kernel clears the byte that says "connected", and sends the event."""
    ends = {
        "server": start("server", 4096, 4096, "echo"),
        "client": start("client", 4096, 4096, "pingpong", 1 << 40, 1),
    }
    assert ends["client"].stdout is not None
    assert ends["client"].stdout.readline() == "connected\n"
    victim = ends.pop(dies)
    victim.kill()
    victim.wait(LONG)
    ((role, other),) = ends.items()
    out, error = other.communicate(timeout=LONG)
    if role == "client":
        assert re.search("the peer closed in round [0-9]+$", error.strip()), error
    else:  # it may have been reading or writing
        assert re.search("echoed [0-9]+|closed before it took back", out + error), error


@pytest.mark.parametrize("active", ["server", "client"])
@pytest.mark.parametrize("size", [1, 1024, 4096])
def test_ping_pong(start: Start, active: str, size: int) -> None:
    modes = {active: ("pingpong", 200, size)}
    server = start("server", 4096, 4096, *modes.get("server", ("echo",)))
    client = start("client", 4096, 4096, *modes.get("client", ("echo",)))
    ends = [server, client] if active == "server" else [client, server]
    assert finished(ends[0]).startswith(f"rounds 200 bytes {size} seconds ")
    assert finished(ends[1]) == f"echoed {200 * size}"


@pytest.mark.parametrize("closes", ["server", "client"])
@pytest.mark.parametrize(("read", "write"), [(1024, 1024), (2048, 2048), (4096, 4096), (65536, 65536), (1024, 65536)])
@pytest.mark.parametrize("c_role", ["server", "client"])
def test_a_pattern_crosses_between_c_and_python(start: Start, c_role: str, read: int, write: int, closes: str) -> None:
    there, back = MIB + 1, MIB // 2 + 77
    server = start("server", read, write, "transfer", back, there, 99, closes, python=c_role != "server")
    client = start("client", read, write, "transfer", there, back, 99, closes, python=c_role != "client")
    assert finished(client).startswith(f"sent {there} received {back} seconds ")
    assert finished(server).startswith(f"sent {back} received {there} seconds ")


@pytest.mark.parametrize("c_role", ["server", "client"])
@pytest.mark.parametrize("active", ["server", "client"])
def test_ping_pong_between_c_and_python(start: Start, c_role: str, active: str) -> None:
    modes = {active: ("pingpong", 100, 1000)}
    server = start("server", 4096, 4096, *modes.get("server", ("echo",)), python=c_role != "server")
    client = start("client", 4096, 4096, *modes.get("client", ("echo",)), python=c_role != "client")
    assert finished(server if active == "server" else client).startswith("rounds 100 bytes 1000 seconds ")
    assert finished(client if active == "server" else server) == "echoed 100000"


def test_dom0_is_a_client_of_a_guest(start: Start) -> None:
    server = start("server", 2048, 4096, "echo", client=0)
    client = start("client", 0, 0, "pingpong", 50, 2000, client=0)
    assert finished(client).startswith("rounds 50 ")
    assert finished(server) == "echoed 100000"


def test_a_server_leaves_nothing_in_xenstore(machine: Machine, start: Start) -> None:
    server = start("server", 1024, 1024, "transfer", 0, 1, 5, "client")
    client = start("client", 0, 0, "transfer", 1, 0, 5, "client")
    finished(client), finished(server)
    with xengrant.connect(machine.url(0)) as domain, domain.xenstore() as store:
        assert store.directory("/local/domain/1/data") == []
