"""The same steps on real Xen and on an embedded machine beside it, compared: what Hypothesis chooses of the API.

dom0 and a guest on either machine, with an actor in each domain (tests/differential). `--examples` and `--steps` say
how much, `--seed` what. A difference is printed as steps, shortened, which `--replay` does again; without one it ends
with 0.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time

import xengrant
from lab.dom0 import GUEST_KIND, PROJECT, RELEASE, RESULTS, Guest
from tests import evidence
from tests.differential.actor import Actor
from tests.differential.allowed import ALLOWED
from tests.differential.pair import Pair, Remote, embedded
from tests.differential.run import Difference, Record, replay, shortest
from tests.differential.state_machine import run_machine
from xengrant.testing.embedded import MachineProcess

SHORTENED = 3
"""Differences that are told as few steps, at most: that takes a replay for each step that is left out."""

TRIES = 30
SETTLE_SECONDS = 30.0


def main() -> int:
    options = _options()
    started = time.monotonic()
    record = Record()
    actor = PROJECT / "tests" / "differential" / "actor.py"
    # The machine's process is forked before there are threads, which a guest's console has.
    with MachineProcess("pv") as machine, Guest.create("actor", files={"opt/lab/differential.py": actor}) as guest:
        serving = guest.start("exec python3 -u /opt/lab/differential.py 0")
        with xengrant.connect() as dom0, embedded(machine, guest.domid, "pv" if GUEST_KIND == "pv" else "hvm") as one:
            remote = Remote(dom0, guest.domid)
            other = Pair("real Xen", guest.domid, remote, Actor(dom0))
            if options.replay:
                replay(one, other, json.loads(options.replay), record)
            else:
                print(f"seed {options.seed}, after {time.monotonic() - started:.1f} s", flush=True)
                run_machine(one, other, record, examples=options.examples, steps=options.steps, seed=options.seed)
            left = [_settled(pair) for pair in (one, other)]
            found = list({each.signature: each for each in record.differences}.values())
            for difference in found:
                _tell(one, other, difference, shorten=len(found) <= SHORTENED and not options.replay)
            remote.close()
            status, output = serving.wait()
    return _summarise(record, left, status, output, time.monotonic() - started)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="differential")
    parser.add_argument("--examples", type=int, default=100, metavar="N")
    parser.add_argument("--steps", type=int, default=50, metavar="N", help="of one example, at most")
    parser.add_argument("--seed", type=int, default=1, metavar="N")
    parser.add_argument("--replay", metavar="JSON", help="these steps instead, as they were printed")
    return parser.parse_args()


def _tell(one: Pair, other: Pair, difference: Difference, *, shorten: bool) -> None:
    print(shortest(one, other, difference, TRIES) if shorten else difference, flush=True)


def _settled(pair: Pair) -> str:
    """What the guest still grants: Linux tries again each second to revoke what was mapped."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while left := pair.ungiven():
        if time.monotonic() > deadline:
            return f"{pair.name}: the guest's references {sorted(left)} are still granted"
        time.sleep(0.2)
    return ""


def _summarise(record: Record, left: list[str], status: int, output: str, seconds: float) -> int:
    machine = f"Debian {RELEASE}, {GUEST_KIND} guest, Linux {platform.release()}"
    rows = record.rows()
    evidence.keep("differential", machine, record.COLUMNS, rows, seconds, RESULTS)
    for row in rows:
        print(*row)
    complaints = [text for text in left if text]
    if status:
        complaints.append(f"the guest's actor ended with {status}: {output}")
    for text in complaints:
        print(text)
    steps, refused = sum(record.done.values()), sum(record.refused.values())
    print(
        f"differential: {record.examples} examples, {steps} steps compared, {refused} of them refused alike, "
        f"{sum(record.allowed.values())} allowed differences of {len(ALLOWED)} kinds, "
        f"{len(record.differences)} differences, in {seconds:.0f} s"
    )
    return 1 if record.differences or complaints or not steps else 0


sys.exit(main())
