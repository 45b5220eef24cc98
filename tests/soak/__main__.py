"""`python -m tests.soak --seconds N`: soak, say how it goes, and at the end whether everything was given back.

Status 0 where it was, 1 where something differs, 130 where it was interrupted and nothing differs. Ctrl-C ends the run
early, with what it came to so far; a second one ends it at once. The record for docs/evidence.md is that of a whole
run.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections import Counter
from types import FrameType

from tests import evidence
from tests.soak.run import DOMIDS, Outcome, Soak

_LIVE = ("shares", "maps", "notifications", "vchan bytes", "xenstore requests")
_ROWS = (
    *("shares", "pages shared", "maps", "copies", "requests", "notifications", "events", "vchan bytes"),
    *("xenstore requests", "transactions", "watch events", "answers", "sessions", "sessions broken by a death"),
    *("domains destroyed", "domains paused", "processes killed", "processes stopped"),
)


class Progress:
    """A line that is written over on a terminal, and a line now and then elsewhere; on standard error."""

    def __init__(self, seconds: float) -> None:
        self._live = sys.stderr.isatty()
        self._started = time.monotonic()
        self._next = 0.0
        self._pause = 0.5 if self._live else max(5.0, seconds / 30)

    def __call__(self, left: float, counts: Counter[str]) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + self._pause
        past = max(0.1, now - self._started)
        rates = ", ".join(f"{name} {_amount(counts[name] / past)}/s" for name in _LIVE)
        deaths = counts["domains destroyed"], counts["processes killed"]
        text = f"{left:4.0f} s left: {rates}; {deaths[0]} domains and {deaths[1]} processes died"
        print(f"\r\x1b[K{text}" if self._live else text, end="" if self._live else "\n", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._live:
            print(file=sys.stderr)


def _amount(number: float) -> str:
    for unit in ("", "k", "M"):
        if number < 10000:
            return f"{number:.0f}{unit}"
        number /= 1000
    return f"{number:.0f}G"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1800, help="how long (default: 1800)")
    parser.add_argument("--seed", type=int, default=None, help="of what befalls whom (default: a new one)")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else time.time_ns() % 1_000_000
    print(f"seed {seed}: {len(DOMIDS)} domains for {options.seconds:g} s", file=sys.stderr)
    progress = Progress(options.seconds)
    with Soak(seed) as soak:

        def on_interrupt(number: int, frame: FrameType | None) -> None:
            if soak.interrupted:
                raise KeyboardInterrupt
            soak.interrupt()

        signal.signal(signal.SIGINT, on_interrupt)
        try:
            outcome = soak.run(options.seconds, progress)
        except KeyboardInterrupt:
            return 130
        finally:
            progress.close()
    _show(outcome)
    if outcome.wrong:
        print(f"To try again: python -m tests.soak --seconds {options.seconds:g} --seed {seed}")
        return 1
    if soak.interrupted:
        return 130
    rows: list[tuple[str, int]] = [(name, outcome.counts[name]) for name in _ROWS]
    rows.append(("seconds", round(outcome.seconds)))
    evidence.keep("soak", "embedded machine", ["what", "count"], rows, outcome.seconds)
    return 0


def _show(outcome: Outcome) -> None:
    for name in _ROWS:
        print(f"{name:28} {outcome.counts[name]:16,}")
    print(f"{'seconds':28} {outcome.seconds:16,.0f}")
    print(f"\n{'of the machine':28} {'at the start':>16} {'at the end':>16}")
    for name, before in outcome.at_start.items():
        print(f"{name:28} {before:16,} {outcome.at_end[name]:16,}")
    for text in outcome.wrong:
        print(f"WRONG: {text}")


sys.exit(main())
