"""A vchan between a guest and dom0 on real Xen, with C (libxenvchan) or Python at each end.

Each end is a program with the same command line: tests/c/vchan_peer.c or lab/vchan_peer.py. `--heavy` moves tens of MiB
and takes every pair of ends through every pair of rings; without it each pair of rings meets each kind of server and
client at least once. `--only WORD` runs the checks whose name has that word.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, product
from pathlib import Path
from typing import Protocol

from lab.dom0 import BIN, PROJECT, Command, Guest, GuestTimeout
from xengrant import vchan

RINGS = (
    (1024, 1024),
    (2048, 2048),
    (4096, 4096),
    (65536, 65536),
    (1024, 2048),
    (2048, 1024),
    (1024, 65536),
    (65536, 2048),
    (4096, 1 << 20),
)
"""Sizes that a server asks for: what it reads from, what it writes to. The smaller ones lie in the shared page."""

PINGS = (["1024", "2048", "pingpong", "60", "333"], ["4096", "4096", "pingpong", "60", "4000"])
"""Messages of sizes that wrap within the ring."""

LARGE = ((65536, 1 << 20), (65536, 65536), (1 << 20, 1 << 20))
"""The first is taken unless all are asked for."""

DEADLINE = 20.0
"""Seconds in which a survivor has to notice: one that would not notice at all takes VCHAN_PEER_TIMEOUT."""

KINDS = ("C", "Python")
_numbers = count()


@dataclass(frozen=True)
class Pair:
    """Who serves, where, and who connects from the other domain."""

    server: str
    client: str
    guest_serves: bool

    def __str__(self) -> str:
        guest, dom0 = (self.server, self.client) if self.guest_serves else (self.client, self.server)
        return f"{guest} in the guest {'serves' if self.guest_serves else 'connects to'} {dom0} in dom0"


PAIRS = tuple(Pair(*choice) for choice in product(KINDS, KINDS, (True, False)))


class Running(Protocol):
    """A program that was started, here or in the guest."""

    def wait(self, timeout: float) -> tuple[int, str]: ...
    def kill(self) -> None: ...
    def done(self) -> bool: ...


class _Here:
    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def wait(self, timeout: float) -> tuple[int, str]:
        try:
            output, _ = self._process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(
                f"dom0's end was not done after {timeout:g} s: {self._process.communicate()[0]}"
            ) from None
        return self._process.returncode, output

    def kill(self) -> None:
        self._process.kill()

    def done(self) -> bool:
        return self._process.poll() is not None


class _InGuest:
    def __init__(self, command: Command) -> None:
        self._command = command

    def wait(self, timeout: float) -> tuple[int, str]:
        try:
            status, output = self._command.wait(timeout)
        except GuestTimeout:
            output = self._command.output()
            self.kill()
            raise AssertionError(f"the guest's end was not done after {timeout:g} s: {output}") from None
        return status, output

    def kill(self) -> None:
        self._command.kill()

    def done(self) -> bool:
        return self._command.done


class Lab:
    """The guest, and how a program of a kind is run in it or here."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest

    def start(self, pair: Pair, works: list[list[str]], *, threads: bool = False) -> tuple[Running, Running]:
        """Both ends of a pair, each doing its share of all `works` one after the other: server, client.

        A work is "READ WRITE MODE ..." of tests/c/vchan_peer.c with "{role}" and what else differs left to `_lines`.
        """
        paths = [self._path(pair) for _ in works]
        server = _lines("server", self._peer(pair, is_server=True), paths, works)
        client = _lines("client", self._peer(pair, is_server=False), paths, works)
        return (
            self._run(pair.server, server, in_guest=pair.guest_serves, threads=threads),
            self._run(pair.client, client, in_guest=not pair.guest_serves, threads=threads),
        )

    def _path(self, pair: Pair) -> str:
        server, client = (self.guest.domid, 0) if pair.guest_serves else (0, self.guest.domid)
        return f"/local/domain/{server}/data/vchan/{client}/{next(_numbers)}"

    def _peer(self, pair: Pair, *, is_server: bool) -> int:
        return 0 if is_server == pair.guest_serves else self.guest.domid

    def _run(self, kind: str, lines: list[list[str]], *, in_guest: bool, threads: bool) -> Running:
        if kind == "C":
            program = "/opt/bin/vchan-peer" if in_guest else str(BIN / "vchan-peer")
            commands = [shlex.join([program, *line]) for line in lines]
        else:
            python = "python3 /opt/vchan_peer.py" if in_guest else f"{sys.executable} {PROJECT}/lab/vchan_peer.py"
            joined = " -- ".join(shlex.join(line) for line in lines)
            commands = [f"{'VCHAN_PEER_THREADS=1 ' if threads else ''}exec {python} {joined}"]
        if len(commands) == 1 and kind == "C":
            commands = [f"exec {commands[0]}"]
        script = f"export VCHAN_PEER_TIMEOUT={60 + 10 * len(lines)}; " + " && ".join(commands)
        return _InGuest(self.guest.start(script)) if in_guest else _Here(["sh", "-c", script])


def _lines(role: str, peer: int, paths: list[str], works: list[list[str]]) -> list[list[str]]:
    """The command lines of one end. Of "SEND/RECEIVE" a server sends the first and a client the second."""
    return [
        [role, str(peer), path, *rings, *_share(role, *rest)]
        for path, (*rings, rest) in zip(paths, ((read, write, rest) for read, write, *rest in works), strict=True)
    ]


def _share(role: str, mode: str, *arguments: str) -> list[str]:
    """What one end does of a work: the server sends what the client receives, and echoes what it plays."""
    if role == "client":
        return [mode, *arguments[1::-1], *arguments[2:]] if mode == "transfer" else [mode, *arguments]
    return ["echo"] if mode == "pingpong" else [mode, *arguments]


def _transfer(rings: tuple[int, int], to_server: int, to_client: int, seed: int, closes_first: str) -> list[str]:
    return [*map(str, (*rings, "transfer", to_client, to_server, seed)), closes_first]


def _both(lab: Lab, pair: Pair, works: list[list[str]], timeout: float, *, threads: bool = False) -> list[str]:
    """Run works to their end; what the client said of each."""
    ends = lab.start(pair, works, threads=threads)
    said = []
    for role, end in zip(("server", "client"), ends, strict=True):
        try:
            status, output = end.wait(timeout)
        except AssertionError as error:
            for other in ends:
                other.kill()
            raise AssertionError(f"{pair}: {role}: {error}") from None
        if status:
            for other in ends:
                other.kill()
            raise AssertionError(f"{pair}: the {role} ended with {status}: {output}")
        said.append(output)
    return said[1].splitlines()


def patterns(lab: Lab, pairs: tuple[Pair, ...], *, heavy: bool) -> None:
    """A pattern both ways through each pair of rings, each side closing first in turn; then messages there and back."""
    for number, pair in enumerate(pairs):
        chosen = RINGS if heavy else RINGS[number % 3 :: 3]
        works = []
        for seed, rings in enumerate(chosen):
            to_server, to_client = (min(size * (1024 if heavy else 128), 3 << 20) for size in rings)
            works.append(_transfer(rings, to_server, to_client, seed, ("server", "client")[(seed + number) % 2]))
        started = time.monotonic()
        works += PINGS
        _both(lab, pair, works, 300)
        print(f"  {pair}: {len(works)} vchans in {time.monotonic() - started:.1f} s", flush=True)


def large(lab: Lab, pairs: tuple[Pair, ...], *, heavy: bool) -> None:
    """Many bytes both ways at once through larger rings, in Python by a thread for each direction."""
    size = (48 << 20) if heavy else (6 << 20)
    for pair in (
        pairs if heavy else [pair for pair in pairs if pair.guest_serves != (pair.server == pair.client == "Python")]
    ):
        works = [_transfer(rings, size, size, 7, "client") for rings in (LARGE if heavy else LARGE[:1])]
        said = _both(lab, pair, works, 300, threads=True)
        rates = [2 * size / (1 << 20) / float(line.split()[-1]) for line in said if line.startswith("sent")]
        print(f"  {pair}: {' and '.join(f'{rate:.0f}' for rate in rates)} MiB/s", flush=True)


def killed(lab: Lab, pairs: tuple[Pair, ...], *, heavy: bool) -> None:
    """Either end dies by SIGKILL in the middle of a transfer; the other says that its peer closed, soon.

    Who dies is the kernel's business more than the library's: without `heavy` the two ends are of different kinds.
    """
    for pair, server_dies in product(pairs, (True, False)):
        if not heavy and (pair.server, pair.client) != (("C", "Python") if server_dies else ("Python", "C")):
            continue
        ends = lab.start(pair, [_transfer((65536, 65536), 1 << 40, 1 << 40, 1, "client")])
        victim, survivor = ends if server_dies else ends[::-1]
        dead, alive = ("server", "client") if server_dies else ("client", "server")
        try:
            _until_it_flows(lab.guest, ends)
            victim.kill()
            started = time.monotonic()
            status, output = survivor.wait(DEADLINE)
            taken = time.monotonic() - started
        finally:
            for end in ends:
                end.kill()
        assert status == 1, f"{pair}, {dead} killed: the {alive} ended with {status}: {output}"
        assert "closed" in output, f"{pair}, {dead} killed: the {alive} said {output}"
        print(f"  {pair}: {dead} killed, {alive} ends after {taken:.2f} s", flush=True)


def _until_it_flows(guest: Guest, ends: tuple[Running, Running]) -> None:
    """Until dom0 has had fifty more events for processes that use event channels: some hundreds of KiB."""
    deadline = time.monotonic() + 60
    before = _events()
    while sum(_events().values()) < sum(before.values()) + 50:
        assert time.monotonic() < deadline, f"nothing flows: {[end.wait(1) for end in ends if end.done()]}"
        time.sleep(0.05)


def _events() -> dict[str, int]:
    """The events that dom0 has received for each port of a vchan's end that lives."""
    found = {}
    for line in Path("/proc/interrupts").read_text().splitlines():
        if line.endswith(("evtchn:vchan-peer", "evtchn:python3")):
            number, counted, *_ = line.split()
            found[number] = int(counted)
    return found


def proxied(lab: Lab, pairs: tuple[Pair, ...], *, heavy: bool) -> None:
    """Xen's vchan-socket-proxy: a program here speaks with one in the guest, whose end is a Unix socket."""
    guest = lab.guest
    path = lab._path(PAIRS[0])
    guest.start(f"exec python3 -c {shlex.quote(_ECHO)} listen /run/echo")
    guest.start(f"until [ -S /run/echo ]; do sleep 0.1; done; exec vchan-socket-proxy -m server 0 {path} /run/echo")
    socket_path = f"/run/proxy-{next(_numbers)}"
    proxy = _Here([_PROXY, "-m", "client", str(guest.domid), path, socket_path])
    try:
        with _connected(socket_path) as speaking:
            _rounds(speaking.sendall, speaking.recv)
    finally:
        proxy.kill()
    print("  its server in the guest, its client here", flush=True)
    if any("Python" in (pair.server, pair.client) for pair in pairs):
        with vchan.connect(guest.domid, path, timeout=30) as channel:
            _rounds(channel.write, lambda most: channel.read(most, 30))
        print("  its server in the guest, Python's client here", flush=True)
        path = lab._path(PAIRS[-1])
        with vchan.serve(guest.domid, path, read_size=2048, write_size=1024) as channel:
            guest.start(f"exec vchan-socket-proxy -m client 0 {path} /run/client")
            guest.start(f"exec python3 -c {shlex.quote(_ECHO)} connect /run/client")
            channel.wait_connected(30)
            _rounds(channel.write, lambda most: channel.read(most, 30))
        print("  Python's server here, its client in the guest", flush=True)


def _rounds(send: Callable[[bytes], object], receive: Callable[[int], bytes]) -> None:
    """Forty messages there and back, larger than the proxy's rings."""
    for number in range(40):
        ball = bytes([number]) * 3000
        send(ball)
        got = b""
        while len(got) < len(ball):
            more = receive(8192)
            assert more, f"the other end closed in round {number} after {len(got)} bytes"
            got += more
        assert got == ball, f"round {number} came back changed"


@contextmanager
def _connected(path: str) -> Iterator[socket.socket]:
    """A connection to a Unix socket that is about to be there."""
    deadline = time.monotonic() + 30
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        while True:
            try:
                connection.connect(path)
            except OSError:
                assert time.monotonic() < deadline, f"nobody listens at {path}"
                time.sleep(0.1)
            else:
                break
        yield connection


_PROXY = shutil.which("vchan-socket-proxy") or "/usr/bin/vchan-socket-proxy"

_ECHO = """
import socket, sys, time
how, path = sys.argv[1:]
listening = socket.socket(socket.AF_UNIX)
if how == "listen":
    listening.bind(path)
    listening.listen()
while True:
    if how == "listen":
        connection, _ = listening.accept()
    else:
        connection = socket.socket(socket.AF_UNIX)
        while connection.connect_ex(path):
            time.sleep(0.1)
    while data := connection.recv(65536):
        connection.sendall(data)
    if how == "connect":
        break
"""


def endless(lab: Lab, pairs: tuple[Pair, ...], *, heavy: bool) -> None:
    """A wait that has no deadline ends by Ctrl-C, and with the guest, which is destroyed: the last check."""
    if "Python" not in {kind for pair in pairs for kind in (pair.server, pair.client)}:
        return
    for name, end, said in (
        ("Ctrl-C", lambda process: process.send_signal(signal.SIGINT), "KeyboardInterrupt"),
        ("the guest's end", lambda process: lab.guest.destroy(), f"PeerClosed: domain {lab.guest.domid} is gone"),
    ):
        process = subprocess.Popen(
            [sys.executable, "-c", _WAITS, str(lab.guest.domid)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            process.stdout.readline()
            _until_it_sleeps(process.pid)
            started = time.monotonic()
            end(process)
            _, errors = process.communicate(timeout=DEADLINE)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(f"{name} ended no wait in {DEADLINE:g} s") from None
        assert said in errors, f"after {name} the wait said {errors}"
        print(f"  {name} ends a wait after {time.monotonic() - started:.2f} s", flush=True)


def _until_it_sleeps(pid: int) -> None:
    """Until the main thread of a process has been in a system call for long."""
    deadline = time.monotonic() + 60
    seen: list[str] = []
    while len(seen) < 30 or set(seen[-30:]) != {"S"}:
        assert time.monotonic() < deadline, f"it does not wait: {seen[-30:]}"
        seen.append(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0])
        time.sleep(0.05)


_WAITS = """\
import sys
from xengrant import vchan

with vchan.serve(int(sys.argv[1]), "endless") as end:
    print("waiting", flush=True)
    end.recv(1)
"""

CHECKS: tuple[Callable[..., None], ...] = (patterns, large, killed, proxied, endless)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--heavy", action="store_true", help="tens of MiB, every pair of ends and rings")
    parser.add_argument("--only", default="", metavar="WORD", help="the checks that have this word in their name")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="what the ends may be")
    options = parser.parse_args()
    pairs = tuple(pair for pair in PAIRS if {pair.server, pair.client} <= set(options.kinds))
    failed = 0
    started = time.monotonic()
    files = {"/opt/vchan_peer.py": PROJECT / "lab" / "vchan_peer.py", "/opt/bin/vchan-socket-proxy": Path(_PROXY)}
    with Guest.create("vchan", files=files) as guest:
        print(f"a guest after {time.monotonic() - started:.1f} s", flush=True)
        for check in CHECKS:
            if options.only in check.__name__:
                failed += not _passed(check, Lab(guest), pairs, options.heavy)
    print(f"vchan: {failed} failed in {time.monotonic() - started:.0f} s")
    return 1 if failed else 0


def _passed(check: Callable[..., None], lab: Lab, pairs: tuple[Pair, ...], heavy: bool) -> bool:
    started = time.monotonic()
    try:
        check(lab, pairs, heavy=heavy)
    except AssertionError as error:
        print(f"failed {check.__name__}: {error}", flush=True)
        return False
    print(f"passed {check.__name__} in {time.monotonic() - started:.1f} s", flush=True)
    return True


sys.exit(main())
