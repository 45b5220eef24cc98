"""`xengrant block`: an image served by dom0 and used in domain 1."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

import xengrant
from xengrant.cli.block import vdev
from xengrant.cli.block.live import Look, as_fields, as_line
from xengrant.embedded import Machine
from xengrant.pv import block
from xengrant.pv.block import Counters

from .shell import SIGNALS, Running, User, one_line

Users = Callable[[int], User]
SIZE = 1 << 20
SOON = 60.0  # seconds, which no test comes near


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(SIZE))
    return path


def serve(user: User, image: Path, *options: str) -> Running:
    server = user.start("block", "serve", str(image), "--to", "1", "--interval", "0.05", *options)
    event = json.loads(server.line())
    assert event["event"] == "serving"
    assert event["at"] == "/local/domain/0/backend/vbd/1/51728"
    return server


def nodes(machine: Machine) -> list[str]:
    with xengrant.connect(machine.url(0)) as domain, domain.xenstore() as store:
        return [path for path in ("/local/domain/0/backend/vbd/1", "/local/domain/1/device/vbd") if store.exists(path)]


def test_a_disk_is_read_and_written(user: Users, image: Path) -> None:
    serve(user(0), image)
    info = user(1).run("block", "attach", "0", "info", "--json")
    facts = json.loads(info.stdout)
    assert (facts["size"], facts["writable"], facts["can_discard"]) == (SIZE, True, True)
    assert user(1).run("block", "attach", "0", "read").stdout == image.read_bytes()
    behind = user(1).run("block", "attach", "0", "info", "--json", "--vdev", "xvdb", "--rings", "1", "--timeout", "9")
    assert behind.stdout == info.stdout, behind
    assert "has no disk xvdc" in one_line(user(1).run("block", "attach", "--vdev", "xvdc", "0", "info"), 2)
    piece = user(1).run("block", "attach", "0", "read", "--sector", "5", "--count", "3")
    assert piece.stdout == image.read_bytes()[5 * 512 : 8 * 512]
    written = user(1).run("block", "attach", "0", "write", "--sector", "2", stdin=b"x" * 1024)
    assert written.returncode == 0, written
    assert image.read_bytes()[1024:2048] == b"x" * 1024
    assert "wrote 2 sectors from 2 on" in written.stderr.decode()
    one = user(1).run("block", "attach", "0", "write", "--sector", "5", stdin=b"y" * 512)
    assert "wrote 1 sector from 5 on" in one.stderr.decode(), one


@pytest.mark.parametrize("options", [(), ("--poll", "0.1")])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_unplugs(
    machine: Machine, user: Users, image: Path, number: signal.Signals, options: tuple[str, ...]
) -> None:
    server = serve(user(0), image, *options)
    assert user(1).run("block", "attach", "0", "read", "--count", "8").returncode == 0
    server.signal(number)
    done = server.ended()
    assert done.returncode == 0, done
    last = json.loads(done.stdout.splitlines()[-1])
    assert (last["event"], last["reason"], last["read_bytes"]) == ("stopped", "interrupted", 4096)
    assert nodes(machine) == []


def test_looks_are_lines_of_json(user: Users, image: Path) -> None:
    server = serve(user(0), image)
    user(1).run("block", "attach", "0", "write", stdin=bytes(65536))
    while not (look := json.loads(server.line()))["flushes"]:
        assert look["event"] == "stats"
    assert look["errors"] == 0
    assert look["written_bytes"] == 65536
    assert look["flushes"] == 1


def test_an_image_that_grows_grows_for_the_guest(machine: Machine, user: Users, image: Path) -> None:
    server = serve(user(0), image)

    async def write_behind_the_end() -> None:
        async with block.attach("device/vbd/51728", domain=domain, timeout=SOON) as disk, asyncio.timeout(SOON):
            assert disk.info.size == SIZE
            os.truncate(image, SIZE - 4096)  # which is nobody's business, as long as nobody reads there
            os.truncate(image, 2 * SIZE)
            while disk.info.size == SIZE:
                await asyncio.sleep(0.01)
            await disk.write(SIZE // 512, b"x" * 512)

    with xengrant.connect(machine.url(1)) as domain:
        asyncio.run(write_behind_the_end())
    while (look := json.loads(server.line()))["event"] != "grown":
        assert look["event"] == "stats"
    assert look["bytes"] == 2 * SIZE
    assert image.read_bytes()[SIZE : SIZE + 513] == b"x" * 512 + b"\0"


def test_a_killed_server_is_succeeded(user: Users, image: Path) -> None:
    serve(user(0), image).signal(signal.SIGKILL)
    server = serve(user(0), image)
    assert user(1).run("block", "attach", "0", "read", "--count", "1").stdout == image.read_bytes()[:512]
    server.signal(signal.SIGINT)
    assert server.ended().returncode == 0


def test_a_disk_has_one_server_at_a_time(machine: Machine, user: Users, image: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.img"
    other.write_bytes(bytes(SIZE))
    server = serve(user(0), image)
    again = ("block", "serve", str(other), "--to", "1")
    assert one_line(user(0).run(*again), 2) == "xvdb of domain 1 is served by another xengrant block serve already"
    slashed = machine.url(0).replace("?", "/?")
    assert "already" in one_line(user(0).run(*again, "--url", slashed), 2)
    assert user(1).run("block", "attach", "0", "read").stdout == image.read_bytes()
    neighbour = user(0).start(*again, "--vdev", "xvdc", "--interval", "0.05")
    assert json.loads(neighbour.line())["event"] == "serving"
    server.signal(signal.SIGINT)
    assert server.ended().returncode == 0
    serve(user(0), other)


def test_a_read_only_disk_refuses(user: Users, image: Path) -> None:
    serve(user(0), image, "--read-only")
    assert "read-only" in one_line(user(1).run("block", "attach", "0", "write", stdin=bytes(512)), 1)


def test_two_guests_need_no_dom0(user: Users, image: Path) -> None:
    server = user(2).start("block", "serve", str(image), "--to", "1", "--within", "data", "--interval", "0.05")
    assert json.loads(server.line())["event"] == "serving"
    read = user(1).run("block", "attach", "2", "--within", "data", "read")
    assert read.stdout == image.read_bytes(), read
    server.signal(signal.SIGINT)
    assert server.ended().returncode == 0


def test_a_disk_that_is_not_there_is_told(user: Users, tmp_path: Path) -> None:
    assert "has no disk xvdb" in one_line(user(1).run("block", "attach", "0", "info"), 2)
    missing = str(tmp_path / "missing")
    assert "No such file" in one_line(user(0).run("block", "serve", missing, "--to", "1"), 1)


@pytest.mark.parametrize(
    ("name", "number"),
    [("xvda", 51712), ("xvdb", 51728), ("xvdb3", 51731), ("xvdp", 51952), ("xvdq", 1 << 28 | 16 << 8),
     ("xvdaa", 1 << 28 | 26 << 8), ("xvda16", 1 << 28 | 16)],
)  # fmt: skip
def test_disks_have_names(name: str, number: int) -> None:
    assert vdev.number(name) == number
    assert vdev.name(number) == name


def test_other_numbers_are_their_own_names() -> None:
    assert vdev.number("768") == 768
    assert vdev.name(768) == "768"
    for wrong in ("sda", "xvd", "xvd1", "-1", "xvdzzzz"):
        with pytest.raises(argparse.ArgumentTypeError):
            vdev.number(wrong)


def test_a_look_is_a_line_of_rates() -> None:
    before = Look(10.0, "connected", 2, Counters(reads=5, read_bytes=1_000_000))
    look = Look(12.0, "connected", 2, Counters(reads=25, writes=10, read_bytes=9_000_000, errors=1, depth=7))
    assert as_line(look, before) == (
        "connected, 2 rings  16 requests/s  read 4.0 MB/s  write 0.0 MB/s  depth 7  1 error"
    )
    assert as_fields(look, before)["seconds"] == 2.0
    assert as_fields(look, before)["requests"] == 36


@pytest.mark.parametrize("wrong", ["-1", "0.2", "nan", "soon"])
def test_no_other_time_is_polled(user: Users, image: Path, wrong: str) -> None:
    done = user(0).run("block", "serve", str(image), "--to", "1", "--poll", wrong)
    assert done.returncode == 64
    assert f"argument --poll: {wrong} is no number of seconds from 0 to 0.1" in done.stderr.decode()
