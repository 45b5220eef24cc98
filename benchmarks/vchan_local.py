"""`make bench-vchan`: a vchan of the embedded machine beside multiprocessing.Pipe, between two processes, with no Xen.

In turns, in one run: throughput with messages of 64 KiB (rings of 1 MiB), and the round trip of 1 byte, with polling
and without. Prints medians, the 10th to 90th percentile of the ratio, and the processor time of both processes; exit
status 1 where the throughput without polling is below twice that of Pipe, or the round trip longer.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import NamedTuple

import xengrant
from xengrant import vchan
from xengrant.embedded import Machine

MESSAGE = 65536
RING = 1 << 20
POLL = 50e-6
LIMITS = {"stream": (2.0, "at least"), "ping": (1.0, "at most")}

Turn = Callable[[str, int], None]


class Figure(NamedTuple):
    """One turn: nanoseconds, and processor time of both processes, of one message or round trip."""

    taken: float
    cpu: float


def drive(send: Callable[[bytes], object], recv: Callable[[int], object], kind: str, count: int) -> None:
    """The end that measures."""
    if kind == "stream":
        data = os.urandom(MESSAGE)
        for _ in range(count):
            send(data)
        recv(1)
    else:
        for _ in range(count):
            send(b"x")
            recv(1)


def answer(send: Callable[[bytes], object], recv: Callable[[int], object], kind: str, count: int) -> None:
    """The other end of one turn."""
    if kind == "stream":
        for _ in range(count):
            recv(MESSAGE)
        send(b"!")
    else:
        for _ in range(count):
            recv(1)
            send(b"x")


def answer_vchan(url: str, name: str, poll: float, orders: Connection) -> None:
    with xengrant.connect(url) as domain, vchan.connect(1, name, domain=domain, timeout=20, poll=poll) as end:
        serve(end.send, end.recv, orders)


def answer_pipe(pipe: Connection, orders: Connection) -> None:
    serve(pipe.send_bytes, lambda size: pipe.recv_bytes(), orders)


def serve(send: Callable[[bytes], object], recv: Callable[[int], object], orders: Connection) -> None:
    while order := orders.recv():
        before = cpu()
        orders.send(None)
        answer(send, recv, *order)
        orders.send(cpu() - before)


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def measure(turn: Turn, orders: Connection, kind: str, count: int) -> Figure:
    orders.send((kind, count))
    orders.recv()
    before, started = cpu(), time.perf_counter()
    turn(kind, count)
    taken, used = time.perf_counter() - started, cpu() - before
    return Figure(taken / count * 1e9, (used + orders.recv()) / count * 1e9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--turns", type=int, default=15)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    figures: dict[tuple[str, str], list[Figure]] = {}
    with Machine() as machine, xengrant.connect(machine.url(1)) as domain:
        machine.create(1, gntalloc_limit=4096)
        ends: dict[str, tuple[Turn, Connection]] = {}
        running = []

        def start(name: str, turn: Turn, target: Callable[..., None], *arguments: object) -> None:
            ours, theirs = context.Pipe()
            process = context.Process(target=target, args=(*arguments, theirs))
            process.start()
            running.append((process, ours))
            ends[name] = turn, ours

        pipe, other = context.Pipe()
        start(
            "Pipe",
            lambda kind, count: drive(pipe.send_bytes, lambda size: pipe.recv_bytes(), kind, count),
            answer_pipe,
            other,
        )
        with (
            vchan.serve(2, "sleeping", domain=domain, read_size=RING, write_size=RING) as sleeping,
            vchan.serve(2, "polling", domain=domain, read_size=RING, write_size=RING, poll=POLL) as polling,
        ):
            for name, end, poll in (("vchan", sleeping, 0.0), ("vchan, polling", polling, POLL)):

                def turn(kind: str, count: int, end: vchan.Vchan = end) -> None:
                    drive(end.send, end.recv, kind, count)

                start(name, turn, answer_vchan, machine.url(2), "polling" if poll else "sleeping", poll)
                end.wait_connected(20)
            for kind, count in (("stream", 3_000), ("ping", 5_000)):
                for number in range(options.turns + 1):
                    for name, (take, orders) in ends.items():
                        figure = measure(take, orders, kind, count)
                        if number:  # the first warms up
                            figures.setdefault((kind, name), []).append(figure)
            for process, orders in running:
                orders.send(None)
                process.join(20)
    sys.exit(report(figures))


def report(figures: dict[tuple[str, str], list[Figure]]) -> int:
    missed = 0
    print(f"{'messages of 64 KiB and round trips':36}{'median':>14}{'ratio':>8}{'10th-90th':>12}{'CPU of both':>14}")
    for (kind, name), turns in figures.items():
        base = figures[kind, "Pipe"]
        pairs = zip(base, turns, strict=True)
        ratios = sorted((b.taken / t.taken) if kind == "stream" else (t.taken / b.taken) for b, t in pairs)
        ratio = statistics.median(ratios)
        low, high = ratios[len(ratios) // 10], ratios[-1 - len(ratios) // 10]
        median = statistics.median(turn.taken for turn in turns)
        shown = f"{MESSAGE / median * 1e9 / 2**20:8.0f} MiB/s" if kind == "stream" else f"{median / 1e3:8.2f} us   "
        used = statistics.median(turn.cpu for turn in turns) / 1e3
        limit, word = LIMITS[kind]
        bad = name == "vchan" and (ratio < limit if kind == "stream" else ratio > limit)
        missed += bad
        note = f"  not {word} {limit}" if bad else ""
        print(f"{kind + ', ' + name:36}{shown:>14}{ratio:8.2f}{low:6.2f}-{high:5.2f}{used:11.2f} us{note}")
    return 1 if missed else 0


if __name__ == "__main__":
    main()
