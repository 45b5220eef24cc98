"""Two loops with no handshake inside, Python's and C's in turns: sharing and unmapping pages in a guest, and mapping
and unmapping in dom0 what a guest holds open. The times go to bench.json in the results; `python3 -m benchmarks.run`
runs this and prints the table.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time

from lab.dom0 import BIN, PROJECT, RESULTS, Guest
from lab.dom0.about import about

CYCLES = {1: 60, 16: 40, 128: 15}
"""Cycles of a turn for each number of pages: 10 to 40 ms. Short turns meet the same weather as their neighbours."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=8)
    rounds = parser.parse_args().rounds
    found = about()
    files = {"opt/xengrant/benchmarks": PROJECT / "benchmarks"}
    with Guest.create("bench", files=files, timeout=180) as guest:
        programs = ["C=/opt/bin/share-loop 0", "Python=python3 -m benchmarks.share_loop 0"]
        command = ["python3", *_turns(rounds), *programs]
        found["share"] = json.loads(guest.check(shlex.join(command), timeout=900))
        print("share + munmap in the guest: done", flush=True)

        refs = _hold(guest, max(CYCLES))
        programs = [
            f"C={BIN}/map-loop {guest.domid} {refs}",
            f"Python={sys.executable} -m benchmarks.map_loop {guest.domid} {refs}",
        ]
        command = [sys.executable, *_turns(rounds), *programs]
        found["map"] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
        print("map + unmap in dom0: done", flush=True)
    (RESULTS / "bench.json").write_text(json.dumps(found, indent=1))


def _turns(rounds: int) -> list[str]:
    sizes = [f"--size={pages}:{cycles}" for pages, cycles in CYCLES.items()]
    return ["-m", "benchmarks.turns", f"--rounds={rounds}", *sizes]


def _hold(guest: Guest, pages: int) -> str:
    """Let the guest share `pages` pages with dom0 and keep them; returns the refs."""
    holding = guest.start(f"exec python3 -m benchmarks.hold 0 {pages}")
    deadline = time.monotonic() + 60
    while not (refs := holding.output()).endswith("\n"):
        if holding.done or time.monotonic() > deadline:
            sys.exit(f"the guest did not share its pages: {refs}")
        time.sleep(0.2)
    return refs.strip()


main()
