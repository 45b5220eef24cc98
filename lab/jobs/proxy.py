"""`xengrant cat` and `xengrant proxy` on real Xen: between dom0 and a guest, each as server and as client, and with
Xen's own vchan-socket-proxy at dom0's end."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from lab.dom0 import Command, Guest

CONTENT = os.urandom(2 << 20)
WAIT = 30
SLOW = 200_000  # bytes that are enough for a vchan that vchan-socket-proxy serves: its rings have 1 and 2 KiB
# `answer SOCKET` answers every connection with the checksum of the bytes that it announced and sent; `ask SOCKET
# SIZE...` makes connections, one after the other, and looks whether the answers are right.
SUMS = """
import hashlib, socket, sys, time

def read(connection, size):
    data = b""
    while len(data) < size and (more := connection.recv(min(size - len(data), 65536))):
        data += more
    return data

what, where, *sizes = sys.argv[1:]
if what == "answer":
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(where)
    listener.listen()
    while True:
        with listener.accept()[0] as client:
            client.sendall(hashlib.sha256(read(client, int.from_bytes(read(client, 8), "big"))).digest())
            client.recv(1)
content = open("/opt/content", "rb").read()
for size in map(int, sizes):
    started = time.monotonic()
    with socket.socket(socket.AF_UNIX) as server:
        server.settimeout(30)
        server.connect(where)
        server.sendall(size.to_bytes(8, "big") + content[:size])
        answer = read(server, 32)
        assert answer == hashlib.sha256(content[:size]).digest(), f"wrong answer to {size} bytes: {answer!r}"
    print(f"{size} bytes in {time.monotonic() - started:.2f} s", end="; ")
"""
ASK = "/opt/sums.py ask {where} 1000 0 {most} 1"


def main() -> int:
    Path("/opt/content").write_bytes(CONTENT)
    Path("/opt/sums.py").write_text(SUMS)
    passed = failed = 0
    with Guest.create("peer", files={"/opt/content": CONTENT, "/opt/sums.py": SUMS.encode()}) as guest:
        guest.start("exec python3 /opt/sums.py answer /run/answer")
        for check in CHECKS:
            started = time.monotonic()
            try:
                check(guest)
            except (AssertionError, OSError, subprocess.TimeoutExpired) as error:
                failed += 1
                print(f"failed {check.__name__}: {type(error).__name__}: {error}", flush=True)
            else:
                passed += 1
                print(f"passed {check.__name__} in {time.monotonic() - started:.1f} s", flush=True)
    print(f"proxy: {passed} passed, {failed} failed")
    return 1 if failed else 0


def cat_in_the_guest_serves(guest: Guest) -> None:
    sending = guest.start("exec python3 -m xengrant cat -lN 0 one --timeout 30 < /opt/content")
    with process("-m", "xengrant", "-v", "cat", "--timeout", "30", guest.name, "one") as receiving:
        assert receiving.output() == CONTENT, "other bytes than the guest sent"
        print(receiving.said().splitlines()[-1])
    assert sending.wait(WAIT).status == 0


def cat_in_dom0_serves(guest: Guest) -> None:
    with process("-m", "xengrant", "cat", "-l", guest.name, "two", "--read-size", "1M") as receiving:
        guest.check("python3 -m xengrant cat -N 0 two --timeout 30 < /opt/content", WAIT)
        assert receiving.output() == CONTENT, "other bytes than the guest sent"


def proxies_carry_connections(guest: Guest) -> None:
    with (
        running_in(guest, "python3 -m xengrant proxy --listen-vchan 0 p --connect /run/answer"),
        process("-m", "xengrant", "proxy", "--listen", "/run/p", "--connect-vchan", guest.name, "p"),
    ):
        ask("/run/p")


def xens_proxy_is_the_client(guest: Guest) -> None:
    path = f"/local/domain/{guest.domid}/data/vchan/0/q"
    with (
        running_in(guest, f"python3 -m xengrant proxy --listen-vchan 0 {path} --connect /run/answer"),
        xens_proxy("client", guest, path, "/run/q"),
    ):
        ask("/run/q")


def xens_proxy_is_the_server(guest: Guest) -> None:
    path = f"/local/domain/0/data/vchan/{guest.domid}/r"
    with (
        process("/opt/sums.py", "answer", "/run/answer"),
        xens_proxy("server", guest, path, "/run/answer"),
        running_in(guest, f"python3 -m xengrant proxy --listen /run/r --connect-vchan 0 {path}"),
    ):
        asking = f"until test -e /run/r; do sleep 0.1; done; python3 {ASK.format(where='/run/r', most=SLOW)}"
        print(guest.check(asking, WAIT), flush=True)


def cat_talks_to_xens_proxy(guest: Guest) -> None:
    path = f"/local/domain/{guest.domid}/data/vchan/0/s"
    sending = guest.start(f"exec python3 -m xengrant cat -lN 0 {path} < /opt/content")
    with xens_proxy("client", guest, path, "-") as receiving:
        assert receiving.output() == CONTENT, "other bytes than the guest sent"
    assert sending.wait(WAIT).status == 0
    path = f"/local/domain/0/data/vchan/{guest.domid}/t"
    with xens_proxy("server", guest, path, "-") as receiving:
        guest.check(f"head -c {SLOW} /opt/content | python3 -m xengrant cat -N 0 {path} --timeout 30", WAIT)
        assert receiving.output() == CONTENT[:SLOW], "other bytes than the guest sent"


CHECKS = (
    cat_in_the_guest_serves,
    cat_in_dom0_serves,
    proxies_carry_connections,
    xens_proxy_is_the_client,
    xens_proxy_is_the_server,
    cat_talks_to_xens_proxy,
)


class Process(NamedTuple):
    """A process in dom0, and the files that have its output and what it says."""

    running: subprocess.Popen[bytes]
    stdout: BinaryIO
    stderr: BinaryIO

    def output(self) -> bytes:
        """What it wrote to stdout, to its end, which must be a good one."""
        status = self.running.wait(WAIT)
        assert status == 0, f"{self.running.args!r} ended with {status}"
        self.stdout.seek(0)
        return self.stdout.read()

    def said(self) -> str:
        self.stderr.seek(0)
        return self.stderr.read().decode()


@contextlib.contextmanager
def process(*arguments: str, program: str = sys.executable) -> Iterator[Process]:
    """A process that is gone at the end; its stdin is open until then. What it says is shown if the block fails."""
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        running = subprocess.Popen([program, *arguments], stdin=subprocess.PIPE, stdout=stdout, stderr=stderr)
        started = Process(running, stdout, stderr)
        try:
            yield started
        except BaseException:
            print(f"{running.args!r} said: {started.said()}", flush=True)
            raise
        finally:
            running.terminate()
            running.communicate(timeout=WAIT)


def xens_proxy(mode: str, guest: Guest, path: str, where: str) -> contextlib.AbstractContextManager[Process]:
    program = next(Path("/usr/lib").glob("xen-*/bin/vchan-socket-proxy"))
    return process(f"--mode={mode}", str(guest.domid), path, where, program=str(program))


@contextlib.contextmanager
def running_in(guest: Guest, command: str) -> Iterator[Command]:
    running = guest.start(f"exec {command}")
    try:
        yield running
    except BaseException:
        print(f"{command} said: {running.output()}", flush=True)
        raise
    finally:
        running.kill()


def ask(where: str) -> None:
    deadline = time.monotonic() + WAIT
    while not os.path.exists(where):
        assert time.monotonic() < deadline, f"{where} is not there"
        time.sleep(0.05)
    asked = subprocess.run(
        [sys.executable, *ASK.format(where=where, most=len(CONTENT)).split()],
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=False,
    )
    assert asked.returncode == 0, asked.stderr
    print(asked.stdout, flush=True)


sys.exit(main())
