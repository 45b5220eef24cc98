"""`python3 -m benchmarks.grant_table [--json]`: what references and whole tables cost, with no Xen.

Getting and putting back a reference must not depend on the table's size, so each size takes its turn with the smallest,
side by side, and the ratio of the best turns counts. A full 64-frame table is looked at as programs do
that watch a host.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from xengrant import GrantTable
from xengrant.abi import grant_table as abi
from xengrant.abi.xen import PAGE_SIZE
from xengrant.grant_entries import Entries, entries_of
from xengrant.grant_snapshot import Snapshot

SIZES = range(11, 21)
PAIRS = 200  # of get and put in one turn, which is so short that others seldom interrupt it
TURNS = 150
LOOKS = 25
FRAMES = 64
PEERS = 50

# What is promised: microseconds for get and put, their ratio, milliseconds for a full table.
MOST_MICROSECONDS, MOST_RATIO, MOST_ARRAYS, MOST_OBJECTS = 1.5, 1.5, 10.0, 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    found = {"references": references(), "tables": tables()}
    if arguments.json:
        print(json.dumps(found))
    else:
        show(found)


def references() -> list[dict[str, Any]]:
    """get_nowait and put at each size, against the smallest in the same turns."""
    rows = []
    for version in (1, 2):
        smallest = partial(get_and_put, make_table(version, SIZES[0]))
        for bits in SIZES:
            work = partial(get_and_put, make_table(version, bits))
            turns = [(spent(smallest) / PAIRS, spent(work) / PAIRS) for _ in range(TURNS)]
            least, own = (min(times) for times in zip(*turns, strict=True))
            rows.append(
                {
                    "version": version,
                    "entries": 1 << bits,
                    "microseconds": own / 1000,
                    "ratio": own / least,
                    "quartiles": statistics.quantiles([other / one for one, other in turns], n=4),
                }
            )
    return rows


def tables() -> list[dict[str, Any]]:
    """A full table of 64 frames, in milliseconds: the best look, and how the others spread."""
    rows = []
    for version in (1, 2):
        entries = full_table(version)
        snapshot = Snapshot(entries)
        works: dict[str, Callable[[], object]] = {
            "copy and arrays": lambda entries=entries: Snapshot(entries).arrays(),  # type: ignore[misc]
            "copy and objects": lambda entries=entries: Snapshot(entries).grants(),  # type: ignore[misc]
            "copy and tally": lambda entries=entries: Snapshot(entries).tally(),  # type: ignore[misc]
            "refresh, nothing changed": partial(snapshot.refresh, entries),
        }
        for name, work in works.items():
            times = [spent(work) / 1e6 for _ in range(LOOKS)]
            rows.append(
                {
                    "version": version,
                    "entries": len(entries),
                    "what": name,
                    "milliseconds": min(times),
                    "median": statistics.median(times),
                }
            )
    return rows


def make_table(version: int, bits: int) -> GrantTable:
    """One whose free references lie all over the table, as after long use."""
    frames, _, status = memory(version, 1 << bits)
    table = GrantTable(frames, version=version, status_frames=status)
    refs = table.get_n_nowait(table.num_free_grants)
    random.Random(1).shuffle(refs)
    for ref in refs:
        table.put(ref)
    return table


def memory(version: int, count: int) -> tuple[list[bytearray], int, list[bytearray]]:
    """Frames, version and status frames for so many entries."""
    per_frame = abi.V1_ENTRIES_PER_FRAME if version == 1 else abi.V2_ENTRIES_PER_FRAME
    status = -(-count // abi.V2_STATUS_PER_FRAME) if version == 2 else 0
    frames = [bytearray(PAGE_SIZE) for _ in range(count // per_frame)]
    return frames, version, [bytearray(PAGE_SIZE) for _ in range(status)]


def full_table(version: int) -> Entries:
    per_frame = abi.V1_ENTRIES_PER_FRAME if version == 1 else abi.V2_ENTRIES_PER_FRAME
    frames, _, status = memory(version, FRAMES * per_frame)
    entries = entries_of(version, frames, status)
    for ref in range(len(entries)):
        entries.grant(ref, ref % PEERS, 0x1000 + ref, writable=ref % 3 != 0)
    return entries


def get_and_put(table: GrantTable) -> None:
    get, put = table.get_nowait, table.put
    refs = [get() for _ in range(PAIRS)]
    for ref in refs:
        assert ref is not None
        put(ref)


def spent(work: Callable[[], object]) -> int:
    """Nanoseconds."""
    started = time.perf_counter_ns()
    work()
    return time.perf_counter_ns() - started


def show(found: dict[str, list[dict[str, Any]]]) -> None:
    print(f"get_nowait and put: at most {MOST_MICROSECONDS} us, and {MOST_RATIO} times the smallest table's")
    print("version     entries        us     ratio   (quartiles of the turns' ratios)")
    for row in found["references"]:
        low, middle, high = row["quartiles"]
        missed = row["microseconds"] > MOST_MICROSECONDS or row["ratio"] > MOST_RATIO
        print(
            f"{row['version']:7} {row['entries']:11} {row['microseconds']:9.2f} {row['ratio']:9.2f}   "
            f"({low:.2f}, {middle:.2f}, {high:.2f}){missed_mark(missed)}"
        )
    print(f"\na full table of {FRAMES} frames: arrays at most {MOST_ARRAYS:g} ms, objects {MOST_OBJECTS:g} ms")
    print("version     entries  what                             ms    median")
    for row in found["tables"]:
        most = MOST_OBJECTS if "objects" in row["what"] else MOST_ARRAYS
        print(
            f"{row['version']:7} {row['entries']:11}  {row['what']:26} {row['milliseconds']:8.2f} {row['median']:9.2f}"
            f"{missed_mark(row['milliseconds'] > most)}"
        )


def missed_mark(missed: bool) -> str:
    return "   MISSED" if missed else ""


if __name__ == "__main__":
    main()
