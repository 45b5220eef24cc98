"""`make bench-start`: how long `xengrant --help` takes, beside a Python that does nothing; the goal is below 100 ms.

The least and the median of 30 runs of each in turns, in ms, of wall time and of processor time.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

_ROUNDS = 30
_COMMANDS = {
    "python3 -c pass": [sys.executable, "-c", "pass"],
    "xengrant --help": [sys.executable, "-m", "xengrant", "--help"],
    "xengrant share --help": [sys.executable, "-m", "xengrant", "share", "--help"],
}


def main() -> None:
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in _COMMANDS}
    for _ in range(_ROUNDS):
        for name, command in _COMMANDS.items():
            taken[name].append(_time(command))
    print(f"{'':24}{'wall, least':>14}{'median':>10}{'cpu, least':>14}{'median':>10}")
    for name, times in taken.items():
        wall, cpu = zip(*times, strict=True)
        figures = min(wall), statistics.median(wall), min(cpu), statistics.median(cpu)
        print(f"{name:24}{figures[0]:14.1f}{figures[1]:10.1f}{figures[2]:14.1f}{figures[3]:10.1f}")


def _time(command: list[str]) -> tuple[float, float]:
    before, started = os.times(), time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    wall, after = time.perf_counter() - started, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return wall * 1000, cpu * 1000


if __name__ == "__main__":
    main()
