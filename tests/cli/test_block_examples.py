"""The disks in examples/, served by dom0 and used in domain 1."""

from __future__ import annotations

import functools
import http.server
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .shell import Running, User

Users = Callable[[int], User]
SIZE = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(SIZE))
    return path


def plug(user: User, name: str, *arguments: str) -> Running:
    example = user.example(name, *arguments)
    assert example.line() == "plugged"
    return example


def attach(user: User, *arguments: str, stdin: bytes | None = None) -> bytes:
    done = user.run("block", "attach", "0", *arguments, stdin=stdin)
    assert done.returncode == 0, done
    return done.stdout


def unplug(example: Running) -> bytes:
    example.signal(signal.SIGINT)
    done = example.ended()
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


def test_a_disk_in_40_lines_tells_of_writes(user: Users) -> None:
    example = plug(user(0), "disk_in_40_lines.py", "1")
    attach(user(1), "write", "--sector", "8", stdin=b"x" * 4096)
    assert attach(user(1), "read", "--sector", "8", "--count", "8") == b"x" * 4096
    assert unplug(example) == b"4096 bytes at 4096\nflush\n"
    lines = (Path(__file__).parents[2] / "examples/disk_in_40_lines.py").read_text().splitlines()
    assert len(lines) <= 42, "with the two that begin it"


def test_an_overlay_leaves_its_base_alone(user: Users, image: Path, tmp_path: Path) -> None:
    before = image.read_bytes()
    changes = str(tmp_path / "changes")
    example = plug(user(0), "overlay_disk.py", str(image), "1", changes)
    attach(user(1), "write", "--sector", "130", stdin=b"y" * 70_144)
    unplug(example)
    assert image.read_bytes() == before
    example = plug(user(0), "overlay_disk.py", str(image), "1", changes)
    at = 130 * 512
    assert attach(user(1), "read") == before[:at] + b"y" * 70_144 + before[at + 70_144 :]
    unplug(example)
    example = plug(user(0), "overlay_disk.py", str(image), "1")
    assert attach(user(1), "read") == before
    unplug(example)


def test_a_disk_fails_as_scheduled(user: Users, image: Path) -> None:
    data = image.read_bytes()
    schedule = ("fail:100-101", "failwrite:200-200", "corrupt:300-300", "slow:0.001@3", "dead@12")
    example = plug(user(0), "failing_disk.py", str(image), "1", *schedule)
    failed = user(1).run("block", "attach", "0", "read", "--sector", "101", "--count", "1")
    assert (failed.returncode, b"failed at a read" in failed.stderr) == (1, True)
    assert user(1).run("block", "attach", "0", "write", "--sector", "200", stdin=bytes(512)).returncode == 1
    assert attach(user(1), "read", "--sector", "200", "--count", "1") == data[200 * 512 : 201 * 512]
    corrupt = bytearray(data[299 * 512 : 301 * 512])
    corrupt[512] ^= 0x10
    assert attach(user(1), "read", "--sector", "299", "--count", "2") == corrupt
    assert user(1).run("block", "attach", "0", "read").returncode == 1  # some request dies
    unplug(example)
    assert image.read_bytes() == data


class _Ranges(http.server.SimpleHTTPRequestHandler):
    """Python's server, with as much of Range as the example asks for."""

    def do_GET(self) -> None:
        first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        data = Path(self.translate_path(self.path)).read_bytes()[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def web(image: Path) -> Iterator[str]:
    handler = functools.partial(_Ranges, directory=str(image.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/{image.name}"
        server.shutdown()
        thread.join()


def test_a_disk_lies_on_a_web_server(user: Users, image: Path, web: str) -> None:
    example = plug(user(0), "http_disk.py", web, "1")
    assert attach(user(1), "read") == image.read_bytes()
    assert user(1).run("block", "attach", "0", "write", stdin=bytes(512)).returncode == 1
    unplug(example)
