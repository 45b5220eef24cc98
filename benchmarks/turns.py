"""Programs measured in turns: C, Python, C, Python ..., each alive all the time, so that only the cycles are timed.

A program reads "PAGES CYCLES" from its standard input and answers with the nanoseconds (CLOCK_MONOTONIC) that the
cycles took together: `answer_turns` here, c/turns.h there. `python3 -m benchmarks.turns` is run where the loop belongs,
in dom0 or in a guest, and prints one JSON object; standard library only. `lab/jobs/bench.py` calls it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

__all__ = ["answer_turns"]


def answer_turns(cycles: Callable[[int, int], None]) -> None:
    """Let `cycles(pages, count)` take the turns that standard input asks for, until it ends."""
    for line in sys.stdin:
        pages, count = map(int, line.split())
        started = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        cycles(pages, count)
        print(time.clock_gettime_ns(time.CLOCK_MONOTONIC) - started, flush=True)


class _Program:
    """A program that takes turns."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def turn(self, pages: int, cycles: int) -> int:
        """The nanoseconds that `cycles` cycles of `pages` pages took."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{pages} {cycles}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self._command[0]} ended with {self._process.wait()}")
        return int(answer)

    def end(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(10)


def measure(
    programs: dict[str, list[str]], sizes: list[tuple[int, int]], rounds: int, turns: int
) -> list[dict[str, Any]]:
    """For each (pages, cycles) of `sizes` the nanoseconds of each program's turns, in the order they were taken.

    Each round starts the programs anew: where a process's mappings come to lie is luck, and some have the kernel make
    and free a page table in each cycle.
    """
    results: list[dict[str, Any]] = [
        {"pages": pages, "cycles": cycles, "nanoseconds": {name: [] for name in programs}} for pages, cycles in sizes
    ]
    for _ in range(rounds):
        running = {name: _Program(command) for name, command in programs.items()}
        for result in results:
            pages, cycles, times = result.values()
            for program in running.values():
                program.turn(pages, max(1, cycles // 4))  # what the first cycles build up is nobody's turn
            for _ in range(turns):
                for name, program in running.items():
                    times[name].append(program.turn(pages, cycles))
        for program in running.values():
            program.end()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure programs in turns; prints JSON.")
    parser.add_argument("--rounds", type=int, default=8, help="how often the programs are started (default: 8)")
    parser.add_argument("--turns", type=int, default=10, help="turns of each program in a round (default: 10)")
    parser.add_argument("--size", action="append", required=True, metavar="PAGES:CYCLES")
    parser.add_argument("program", nargs="+", metavar="NAME=COMMAND")
    options = parser.parse_args()
    programs = {}
    for program in options.program:
        name, _, command = program.partition("=")
        programs[name] = shlex.split(command)
    sizes = []
    for size in options.size:
        pages, _, cycles = size.partition(":")
        sizes.append((int(pages), int(cycles)))
    print(json.dumps({"sizes": measure(programs, sizes, options.rounds, options.turns)}))


if __name__ == "__main__":
    main()
