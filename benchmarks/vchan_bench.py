"""The two ends of a vchan whose speed is measured, in Python: the twin of c/vchan_bench.c, which says what a turn is.

    python3 -m benchmarks.vchan_bench [--poll SECONDS] serve DOMID PATH READ WRITE
    python3 -m benchmarks.vchan_bench [--poll SECONDS] drive DOMID PATH

Written as a user would write it. Either end may be C's.
"""

from __future__ import annotations

import argparse
import resource
import struct
import sys
import time
from pathlib import Path

from xengrant import PeerClosed, vchan
from xengrant.vchan import Vchan

KINDS = ("stream", "messages", "ping", "large", "lines")
REQUEST = struct.Struct("<IIQ")
USAGE = struct.Struct("<QQQ")
MOST = 1 << 20
MESSAGE = 65536
LINES = 64
"""How many messages `lines` gives to one call."""


def usage() -> tuple[int, int, int]:
    """Nanoseconds of processor time, voluntary context switches, and events for processes of this name, so far.

    The time is taken last, and by `since` first: what it costs to ask is no turn's.
    """
    events, switches = _events(), resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
    return time.process_time_ns(), switches, events


def since(before: tuple[int, int, int]) -> tuple[int, int, int]:
    cpu, switches = time.process_time_ns(), resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
    return cpu - before[0], switches - before[1], _events() - before[2]


def _events() -> int:
    ours = b"evtchn:" + Path("/proc/self/comm").read_bytes()
    with open("/proc/interrupts", "rb") as file:
        return sum(int(line.split()[1]) for line in file if line.endswith(ours))


def serve(channel: Vchan) -> None:
    data = memoryview(bytearray(b"x" * MOST))
    while True:
        try:
            kind, size, count = REQUEST.unpack(channel.recv(REQUEST.size))
        except PeerClosed:
            return
        before = usage()
        channel.write(b"!")
        serve_turn(channel, KINDS[kind], data[:size], count)
        channel.recv(1)
        channel.write(USAGE.pack(*since(before)))


def serve_turn(channel: Vchan, kind: str, data: memoryview, count: int) -> None:
    if kind in ("stream", "large"):
        for _ in range(count):
            channel.write(data)
    elif kind == "lines":
        for _ in range(count // LINES):
            channel.writelines([data] * LINES)
    elif kind == "messages":
        for _ in range(count):
            channel.send(data)
    else:
        for _ in range(count):
            channel.send(channel.recv(len(data)))


def drive(channel: Vchan) -> None:
    buffer = memoryview(bytearray(LINES * MESSAGE))
    for line in sys.stdin:
        kind, size, count = line.split()[0], *map(int, line.split()[1:])
        channel.write(REQUEST.pack(KINDS.index(kind), size, count))
        channel.recv(1)
        before = usage()
        started = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        drive_turn(channel, kind, buffer, size, count)
        taken = time.clock_gettime_ns(time.CLOCK_MONOTONIC) - started
        mine = since(before)
        channel.write(b"!")
        print(taken, *mine, *USAGE.unpack(channel.recv(USAGE.size)), flush=True)


def drive_turn(channel: Vchan, kind: str, buffer: memoryview, size: int, count: int) -> None:
    if kind in ("stream", "large", "lines"):
        step = LINES if kind == "lines" else 1
        part = buffer[: size * step]
        for _ in range(count // step):
            channel.fill(part)
    elif kind == "messages":
        for _ in range(count):
            channel.recv(size)
    else:
        ball = b"x" * size
        for _ in range(count):
            channel.send(ball)
            channel.recv(size)


def main() -> None:
    parser = argparse.ArgumentParser(description="One end of a vchan whose speed is measured.")
    parser.add_argument("--poll", type=float, default=0.0, help="seconds to look before sleeping (default: 0)")
    parser.add_argument("role", choices=("serve", "drive"))
    parser.add_argument("domid", type=int)
    parser.add_argument("path")
    parser.add_argument("read_size", type=int, nargs="?", default=65536)
    parser.add_argument("write_size", type=int, nargs="?", default=65536)
    o = parser.parse_args()
    if o.role == "serve":
        with vchan.serve(o.domid, o.path, read_size=o.read_size, write_size=o.write_size, poll=o.poll) as channel:
            print("listening", flush=True)
            serve(channel)
    else:
        with vchan.connect(o.domid, o.path, timeout=60, poll=o.poll) as channel:
            drive(channel)


if __name__ == "__main__":
    main()
