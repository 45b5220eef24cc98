"""`python3 -m benchmarks.top_load`: processor time of `xengrant top` at each look, of many domains with full tables.

Runs an embedded machine whose domains' tables are filled as a builder would, and the tool on a terminal of its own.
First nothing changes between two looks, then one entry of each table, then every entry of every table.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import functools
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import xengrant
from xengrant import Mapping
from xengrant.abi import grant_table as abi
from xengrant.abi import privcmd
from xengrant.abi.xen import PAGE_SIZE
from xengrant.devices import Device, Pointer
from xengrant.embedded import Machine

_TICK = os.sysconf("SC_CLK_TCK")
_PEERS = 8
_TURNS = 5  # contents of a table, so many that what a look finds is never what the last one found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--domains", type=int, default=200)
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--looks", type=int, default=20, help="looks that each figure is the mean of")
    parser.add_argument("--delay", type=float, default=1.0)
    args = parser.parse_args()
    with (
        Machine(max_grant_frames=args.frames) as machine,
        filled(machine, args.domains, args.frames) as tables,
        running(machine.url(0), args.delay) as pid,
    ):
        entries = args.domains * args.frames * abi.V1_ENTRIES_PER_FRAME
        print(f"{args.domains} domains of {args.frames} frames: {entries:,} entries, a look every {args.delay:g} s")
        changes = {
            "nothing changes": unchanged,
            "an entry of each table changes": one_entry_changes,
            "every entry changes": everything_changes,
        }
        for title, change in changes.items():
            with changing(tables, change, args.delay / 2):
                wait(args.delay * 2)
                before, started = cpu_seconds(pid), time.monotonic()
                wait(args.delay * args.looks)
                used, elapsed = cpu_seconds(pid) - before, time.monotonic() - started
            looks = elapsed / args.delay
            print(f"{title:32} {used / looks * 1000:7.1f} ms a look  {used / elapsed:6.1%} of a core")


@contextlib.contextmanager
def filled(machine: Machine, domains: int, frames: int) -> Iterator[list[Mapping]]:
    """So many domains, and their whole tables writable in this process, each entry granted."""
    content = table(frames, 0)
    with contextlib.ExitStack() as stack:
        dom0 = stack.enter_context(xengrant.connect(machine.url(0)))
        tables = []
        for domid in range(1, domains + 1):
            machine.create(domid, name=f"guest-{domid}")
            device = dom0.system.open("privcmd")
            stack.callback(device.close)
            tables.append(stack.enter_context(whole_table(device, domid, frames)))
            tables[-1][:] = content
        yield tables


def whole_table(device: Device, domid: int, frames: int) -> Mapping:
    """All frames that a table can have: mapping one makes the table grow to it."""
    mapping = device.mmap(frames * PAGE_SIZE, 0, writable=True)
    arg = privcmd.pack_resource(domid, abi.RESOURCE_GRANT_TABLE, abi.RESOURCE_ID_SHARED, 0, frames)
    device.ioctl(privcmd.MMAP_RESOURCE, arg, [Pointer(arg, privcmd.RESOURCE_ADDR_POINTER, mapping, "map")])
    return mapping


@functools.cache
def table(frames: int, turn: int) -> bytes:
    """Entries of some peers, every second of which is mapped; in another turn other entries."""
    flags = (abi.GTF_PERMIT_ACCESS, abi.GTF_PERMIT_ACCESS | abi.GTF_READING | abi.GTF_WRITING)
    some = b"".join(struct.pack("<HHI", flags[(at + turn) % 2], at % (_PEERS + turn), at) for at in range(512 * _PEERS))
    return (some * (frames // _PEERS + 1))[: frames * PAGE_SIZE]


def unchanged(tables: list[Mapping], turn: int) -> None:
    pass


def one_entry_changes(tables: list[Mapping], turn: int) -> None:
    entry = struct.pack("<HHI", abi.GTF_PERMIT_ACCESS, turn, 0)
    for mapping in tables:
        at = len(mapping) - abi.V1_ENTRY_SIZE
        mapping[at:] = entry


def everything_changes(tables: list[Mapping], turn: int) -> None:
    content = table(len(tables[0]) // PAGE_SIZE, turn)
    for mapping in tables:
        mapping[:] = content


@contextlib.contextmanager
def changing(tables: list[Mapping], change: Callable[[list[Mapping], int], None], interval: float) -> Iterator[None]:
    """Meanwhile the tables change; more often than top looks, so that every look finds something new."""
    end = threading.Event()

    def run() -> None:
        turn = 0
        while not end.wait(interval):
            turn = (turn + 1) % _TURNS
            change(tables, turn)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


@contextlib.contextmanager
def running(url: str, delay: float) -> Iterator[int]:
    """The pid of `xengrant top` on a terminal of 200 by 60, which somebody reads."""
    own, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("4H", 60, 200, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "XENGRANT_URL": url}
    command = [sys.executable, "-m", "xengrant", "top", "-d", str(delay)]
    process = subprocess.Popen(command, stdin=its, stdout=its, env=environment)
    os.close(its)
    reader = threading.Thread(target=drain, args=(own,))
    reader.start()
    try:
        yield process.pid
        if process.poll() is not None:
            raise SystemExit(f"top ended by itself, with status {process.returncode}")
    finally:
        process.terminate()
        process.wait()
        reader.join()
        os.close(own)


def drain(terminal: int) -> None:
    with contextlib.suppress(OSError):  # EIO: the tool has ended
        while os.read(terminal, 65536):
            pass


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def wait(seconds: float) -> None:
    threading.Event().wait(seconds)


if __name__ == "__main__":
    main()
