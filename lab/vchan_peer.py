"""One end of a vchan, in Python: the twin of tests/c/vchan_peer.c, with its command line, its pattern and its answers.

    python3 vchan_peer.py server|client DOMID PATH READ WRITE transfer SEND RECEIVE SEED server|client
    python3 vchan_peer.py server|client DOMID PATH READ WRITE echo
    python3 vchan_peer.py server|client DOMID PATH READ WRITE pingpong COUNT SIZE

Several such lines, with -- between them, are done one after the other: Python takes long to start under emulation.
`jobs/vchan.py` runs it in dom0 and in guests. With VCHAN_PEER_THREADS set a transfer has a thread for each direction,
which wait in `write` and `readinto`; else one thread looks at both and waits for events.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from itertools import groupby

import xengrant
from xengrant import vchan as xen_vchan
from xengrant.vchan import Vchan

CHUNK = 1 << 20
PERIOD = 65536
"""Bytes after which the pattern comes again."""


def pattern(seed: int, direction: int) -> memoryview:
    """The pattern for a chunk that begins anywhere in a period."""
    row = bytes((i * 131 + seed + direction) & 0xFF for i in range(256))
    plus = bytes(range(256)) * 2
    period = b"".join(row.translate(plus[at : at + 256]) for at in (i * 7 & 0xFF for i in range(256)))
    return memoryview(period * (CHUNK // PERIOD + 1))


class Transfer:
    """A pattern both ways, and what is left of it."""

    def __init__(self, vchan: Vchan, send: int, receive: int, seed: int) -> None:
        direction = int(vchan.is_server)
        self._vchan = vchan
        self._out, self._in = pattern(seed, direction), pattern(seed, 1 - direction)
        self._buffer = memoryview(bytearray(CHUNK))
        self._send, self._receive = send, receive
        self.sent = self.received = 0

    def write(self, most: int) -> int:
        """Write the next bytes, `most` at most: how many."""
        at = self.sent % PERIOD
        size = min(most, CHUNK, self._send - self.sent)
        count = self._vchan.write(self._out[at : at + size]) if size else 0
        self.sent += count
        return count

    def read(self, most: int) -> int:
        """Read the next bytes, `most` at most, and check them: how many."""
        size = min(most, CHUNK, self._receive - self.received)
        count = self._vchan.readinto(self._buffer[:size]) if size else 0
        at = self.received % PERIOD
        if self._buffer[:count] != self._in[at : at + count]:
            wrong = next(i for i in range(count) if self._buffer[i] != self._in[at + i])
            sys.exit(f"byte {self.received + wrong} is {self._buffer[wrong]:#x}, not {self._in[at + wrong]:#x}")
        self.received += count
        return count

    def by_events(self) -> None:
        """One thread: what can be moved is moved, and where nothing can the next event is awaited."""
        vchan = self._vchan
        while self.sent < self._send or self.received < self._receive:
            was_open = vchan.is_open
            moved = 0
            if self.sent < self._send:
                moved += self.write(vchan.buffer_space())
            if self.received < self._receive:
                moved += self.read(vchan.data_ready())
            if not moved:
                if not was_open:
                    sys.exit(f"the peer closed after {self.sent} of {self._send} bytes were sent, {self.received} came")
                vchan.wait()

    def by_threads(self) -> None:
        """A thread writes, this one reads."""
        failures: list[BaseException] = []

        def write() -> None:
            try:
                while self.sent < self._send:
                    self.write(CHUNK)
            except BaseException as error:
                failures.append(error)

        writing = threading.Thread(target=write)
        writing.start()
        try:
            while self.received < self._receive:
                if not self.read(CHUNK):
                    sys.exit(f"the peer closed after {self.received} of {self._receive} bytes were received")
        finally:
            writing.join()
        for failure in failures:
            raise failure


def transfer(vchan: Vchan, send: int, receive: int, seed: int, *, close_first: bool) -> str:
    moving = Transfer(vchan, send, receive, seed)
    started = time.monotonic()
    if os.environ.get("VCHAN_PEER_THREADS"):
        moving.by_threads()
    else:
        moving.by_events()
    seconds = time.monotonic() - started
    if not close_first and vchan.read(1):
        sys.exit("more came than was agreed")
    return f"sent {moving.sent} received {moving.received} seconds {seconds:.6f}"


def echo(vchan: Vchan) -> str:
    total = 0
    while data := vchan.read(CHUNK):
        vchan.write(data)
        total += len(data)
    return f"echoed {total}"


def pingpong(vchan: Vchan, count: int, size: int) -> str:
    out, expected = pattern(0, int(vchan.is_server)), pattern(0, int(vchan.is_server))
    started = time.monotonic()
    for number in range(count):
        at = number * size % PERIOD
        vchan.send(out[at : at + size])
        if vchan.recv(size) != expected[at : at + size]:
            sys.exit(f"round {number} came back changed")
    return f"rounds {count} bytes {size} seconds {time.monotonic() - started:.6f}"


def run(domain: xengrant.Domain, arguments: list[str]) -> None:
    role, domid, path, read_size, write_size, mode, *rest = arguments
    with _open(domain, role, int(domid), path, int(read_size), int(write_size)) as vchan:
        _modes: dict[str, Callable[[], str]] = {
            "transfer": lambda: transfer(vchan, *map(int, rest[:3]), close_first=rest[3] == role),
            "echo": lambda: echo(vchan),
            "pingpong": lambda: pingpong(vchan, *map(int, rest)),
        }
        said = _modes[mode]()
    print(said, flush=True)


def _open(domain: xengrant.Domain, role: str, domid: int, path: str, read_size: int, write_size: int) -> Vchan:
    if role == "client":
        return xen_vchan.connect(domid, path, domain=domain, timeout=_timeout())
    vchan = xen_vchan.serve(domid, path, read_size=read_size, write_size=write_size, domain=domain)
    print("listening", flush=True)
    return vchan


def _timeout() -> int:
    return int(os.environ.get("VCHAN_PEER_TIMEOUT", "60"))


def main() -> None:
    signal.signal(signal.SIGALRM, lambda *_: sys.exit("the time is over (VCHAN_PEER_TIMEOUT)"))
    signal.alarm(_timeout())
    with xengrant.connect() as domain:
        for is_separator, line in groupby(sys.argv[1:], lambda word: word == "--"):
            if not is_separator:
                run(domain, list(line))


if __name__ == "__main__":
    main()
