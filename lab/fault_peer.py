"""Roles of tests/faults/roles.py on real Xen, each in a process of its own that stops where it is told to.

    python3 fault_peer.py DOMID ROLE/NAME[/STEP]...

The roles' other sides are in domain DOMID, and have the same NAMEs. Each process prints what befalls it, a line of JSON
for each: [NAME, "pid", N], [NAME, "held", STEP, BYTES GIVEN], [NAME, "ended", KIND, SAW, TEXT, BYTES RECEIVED].
One that is held goes on with SIGUSR1. `jobs/faults.py` runs it in guests and in dom0. One program for all, since Python
takes long to start under emulation.
"""

from __future__ import annotations

import json
import os
import signal
import sys

import xengrant
from tests.faults.lives import Life, Part, played

SECONDS = 120


class Notes:
    """What `Life` speaks by: printed, and answered by a signal."""

    def __init__(self, name: str) -> None:
        self._name = name

    def note(self, *words: object) -> None:
        os.write(1, json.dumps([self._name, *words]).encode() + b"\n")  # at once, and whole

    def send(self, message: tuple[object, ...], /) -> None:
        what, *rest = message
        if what == "held":
            step, given = rest
            assert isinstance(given, bytes)
            self.note(what, step, len(given))

    def recv(self) -> object:
        return signal.sigwait({signal.SIGUSR1})

    def poll(self) -> bool:
        return False


def play(other: int, role: str, name: str, step: str = "") -> None:
    notes = Notes(name)
    notes.note("pid", os.getpid())
    with xengrant.connect() as domain:
        part = Part(role, None, other, name=name, hold_at=step, patience=SECONDS, pace=SECONDS)
        outcome = played(Life(domain, part, notes), part)
    notes.note("ended", outcome.kind, outcome.saw, outcome.text, len(outcome.received))


def main() -> None:
    other, *parts = sys.argv[1:]
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    for part in parts:
        if os.fork() == 0:
            signal.alarm(SECONDS)
            play(int(other), *part.split("/"))
            return
    for _ in parts:
        os.wait()


if __name__ == "__main__":
    main()
