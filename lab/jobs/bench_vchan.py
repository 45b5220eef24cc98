"""A vchan from a guest to dom0, Python's and C's ends in turns: throughput, and the round trip of one byte.

The turns go to bench_vchan.json in the results; `python3 -m benchmarks.run` runs this and prints the table. The
programs are benchmarks/c/vchan_bench.c and benchmarks/vchan_bench.py; the first says what a turn is.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shlex
import subprocess
import sys
import time
from dataclasses import asdict, dataclass

from lab.dom0 import BIN, PROJECT, RESULTS, Command, Guest
from lab.dom0.about import about

TURNS = {
    "stream": (65536, 192),
    "lines": (65536, 192),
    "large": (1 << 20, 12),
    "messages": (65536, 96),
    "ping": (1, 150),
}
"""Size and count of each kind of turn: 100 to 300 ms."""

FIELDS = ("nanoseconds", "cpu", "switches", "events", "peer_cpu", "peer_switches", "peer_events")
"""What a driver answers with; the peer is the guest."""


@dataclass(frozen=True)
class Pair:
    """The guest's end, which writes, and dom0's, which polls for so many seconds, if any, before it sleeps."""

    guest: str
    dom0: str
    ring: int = 65536
    kinds: tuple[str, ...] = ("stream", "large")
    poll: float | None = None

    @property
    def name(self) -> str:
        ring = f", {self.ring >> 20} MiB rings" if self.ring >= 1 << 20 else ""
        return f"{self.guest} to {self.dom0}{ring}{'' if self.poll is None else ', dom0 polls'}"


PAIRS = (
    Pair("C", "C", kinds=tuple(TURNS)),
    Pair("Python", "Python", kinds=tuple(TURNS)),
    Pair("C", "Python"),
    Pair("Python", "C"),
    Pair("Python", "Python", kinds=tuple(TURNS), poll=0.001),
    Pair("C", "C", ring=1 << 20),
    Pair("Python", "Python", ring=1 << 20),
    Pair("Python", "Python", ring=1 << 20, poll=0.001),
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3, help="how often all ends are started anew (default: 3)")
    parser.add_argument("--turns", type=int, default=8, help="turns of each kind and pair in a round (default: 8)")
    options = parser.parse_args()
    known = {"C"} | ({"Python"} if importlib.util.find_spec("xengrant.vchan") else set())
    pairs = [pair for pair in PAIRS if {pair.guest, pair.dom0} <= known]
    measured = {pair: {kind: list[dict[str, int]]() for kind in pair.kinds} for pair in pairs}
    with Guest.create("bench", files={"opt/xengrant/benchmarks": PROJECT / "benchmarks"}, timeout=180) as guest:
        guest.check("echo 4096 > /sys/module/xen_gntalloc/parameters/limit")  # all pairs share at once
        for number in range(options.rounds):
            _round(guest, measured, options.turns)
            print(f"round {number + 1} of {options.rounds} done", flush=True)
    found = about()
    found["pairs"] = [
        {"name": pair.name, **asdict(pair), "size_and_count": TURNS, "turns": turns} for pair, turns in measured.items()
    ]
    (RESULTS / "bench_vchan.json").write_text(json.dumps(found, indent=1))


def _round(guest: Guest, measured: dict[Pair, dict[str, list[dict[str, int]]]], turns: int) -> None:
    """Start both ends of each pair, let them take their turns, end them."""
    running = {pair: _Running(guest, pair, f"bench{number}") for number, pair in enumerate(measured)}
    for kind in TURNS:
        taking = {pair: each for pair, each in running.items() if kind in pair.kinds}
        for each in taking.values():
            each.turn(kind)  # what the first one builds up is nobody's turn
        for _ in range(turns):
            for pair, each in taking.items():
                measured[pair][kind].append(each.turn(kind))
    for each in running.values():
        each.end()


class _Running:
    """Both ends of a pair."""

    def __init__(self, guest: Guest, pair: Pair, name: str) -> None:
        path = f"/local/domain/{guest.domid}/data/vchan/0/{name}"
        poll = [] if pair.poll is None else ["--poll", str(pair.poll)]
        python = ["-m", "benchmarks.vchan_bench"]
        serve = ["/opt/bin/vchan-bench"] if pair.guest == "C" else ["python3", *python]
        drive = [str(BIN / "vchan-bench")] if pair.dom0 == "C" else [sys.executable, *python, *poll]
        self._pair = pair
        self._server = guest.start(shlex.join(["exec", *serve, "serve", "0", path, str(pair.ring), str(pair.ring)]))
        _wait_for_line(self._server)
        self._driver = subprocess.Popen(
            [*drive, "drive", str(guest.domid), path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def turn(self, kind: str) -> dict[str, int]:
        assert self._driver.stdin
        assert self._driver.stdout
        size, count = TURNS[kind]
        self._driver.stdin.write(f"{kind} {size} {count}\n")
        self._driver.stdin.flush()
        line = self._driver.stdout.readline()
        if not line:
            said = self._server.output()
            sys.exit(f"{self._pair.name}: the driver ended with {self._driver.wait(30)}; the server said: {said}")
        return dict(zip(FIELDS, map(int, line.split()), strict=True))

    def end(self) -> None:
        """End the driver; the server ends by itself, which is checked."""
        assert self._driver.stdin
        self._driver.stdin.close()
        self._driver.wait(30)
        status, output = self._server.wait(60)
        if status:
            sys.exit(f"{self._pair.name}: the server ended with {status}: {output}")


def _wait_for_line(command: Command) -> None:
    deadline = time.monotonic() + 60
    while "listening\n" not in command.output():
        if command.done or time.monotonic() > deadline:
            sys.exit(f"the guest does not serve: {command.output()}")
        time.sleep(0.1)


main()
