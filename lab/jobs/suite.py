"""The conformance suite on real Xen: dom0 with a guest, guest with guest, and guests destroyed under a map.

Writes results.jsonl (`xengrant selftest --json`) to the results directory, and ends with the summary. Arguments are
passed on to both runs of the suite: `-k notify`.
"""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import xengrant
from lab.dom0 import GUEST_KIND, RELEASE, RESULTS, Guest, GuestTimeout, xl_list
from lab.dom0.xl import DomainLine
from xengrant import Grant, Mapped

SELFTEST = "python3 -m xengrant selftest"


def main() -> int:
    started = time.monotonic()
    print(f"{RELEASE}: {GUEST_KIND} guests, Linux {platform.release()}, Python {platform.python_version()}", flush=True)
    guests = _guests()
    print(f"two guests after {time.monotonic() - started:.1f} s", flush=True)
    results = [*_between_guests(*guests), *_with_dom0(*guests)]
    (RESULTS / "results.jsonl").write_text("".join(json.dumps(result) + "\n" for result in results))
    return _summarise(results, time.monotonic() - started)


def _guests() -> tuple[Guest, Guest]:
    """Two guests with an agent for dom0 in each, and one for the first in the second."""
    with ThreadPoolExecutor() as pool:
        first, second = pool.map(Guest.create, ("left", "right"))
    for guest in (first, second):
        guest.start(f"exec {SELFTEST} --agent --peer 0")
    second.start(f"exec {SELFTEST} --agent --peer {first.domid}")
    return first, second


def _between_guests(runner: Guest, peer: Guest) -> list[dict[str, Any]]:
    """The suite between two guests; its results are shown as they come."""
    running = runner.start(f"exec {SELFTEST} --peer {peer.domid} --json {shlex.join(sys.argv[1:])}")
    lines: list[str] = []
    done = False
    while not done:
        with suppress(GuestTimeout):
            running.wait(10)
        done = running.done
        complete = running.output().split("\n")[:-1]
        for line in complete[len(lines) :]:
            _show(line)
        lines = complete
        print(f"{len(lines)} cases between guests", flush=True)
    return _results(lines)


def _with_dom0(first: Guest, peer: Guest) -> list[dict[str, Any]]:
    """dom0 with `peer`. In the end both are destroyed, `first` with a page mapped here all the while."""
    command = [*shlex.split(SELFTEST), "--peer", str(peer.domid), "--third", str(first.domid), "--json"]
    command += sys.argv[1:]
    command += ["--destroy-command", "xl destroy {domid}", "--victim", str(first.domid), "--victim", str(peer.domid)]
    lines: list[str] = []
    with xengrant.connect() as domain, domain.gnttab() as gnttab:
        mapped = gnttab.map(_shared_by(first), writable=True)
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
            assert running.stdout is not None
            for line in running.stdout:
                lines.append(line)
                _show(line)
                if len(lines) % 20 == 0:
                    print(f"{len(lines)} cases with dom0", flush=True)
        return [*_results(lines), _zombie(first, mapped)]


def _show(line: str) -> None:
    """What is no pass."""
    try:
        said = json.loads(line)
    except ValueError:
        print(line.rstrip(), flush=True)
        return
    if said.get("outcome") in ("failed", "skipped"):
        print(f"{said['outcome']} {said['case']} [{said['machine']}]: {said['text']}", flush=True)


def _results(lines: list[str]) -> list[dict[str, Any]]:
    """The results that a selftest printed, once its summary says that it came to its end."""
    said = [json.loads(line) for line in lines if line.startswith("{")]
    if not said or "summary" not in said[-1]:
        sys.exit(f"the suite did not come to its end: {len(said)} cases, and then: {lines[-1:]}")
    return said[:-1]


def _shared_by(guest: Guest) -> Grant:
    """A page that a process of the guest shares with dom0."""
    sharing = guest.start(f"exec python3 -u -c {shlex.quote(_SHARE)}")
    while not sharing.output().endswith("\n") and not sharing.done:
        time.sleep(0.1)
    return Grant(guest.domid, int(sharing.output()))


def _zombie(guest: Guest, mapped: Mapped) -> dict[str, Any]:
    """A destroyed domain stays, as (null) in state --p--d, until dom0 unmaps its page, and not after."""
    started = time.monotonic()
    guest.destroy()  # where no case did
    line = _line(guest.domid, lambda line: line is not None and line.name == "(null)")
    text = ""
    if line is None or line.state != "--p--d" or mapped.mapping[:5] != b"guest":
        text = f"while dom0 maps its page: {line}, {mapped.mapping[:5]!r}"
    mapped.close()
    line = _line(guest.domid, lambda line: line is None)
    if line is not None:
        text += f" after dom0 unmapped: {line}"
    print(f"{'failed' if text else 'passed'} zombie check {text}", flush=True)
    seconds = time.monotonic() - started
    outcome = "failed" if text else "passed"
    return {"case": "zombie", "machine": RELEASE, "outcome": outcome, "seconds": seconds, "text": text}


_SHARE = """
import time, xengrant
with xengrant.connect() as domain, domain.gntshr() as gntshr, gntshr.share_pages(0, 1, writable=True) as share:
    share.mapping[:5] = b"guest"
    print(share.refs[0])
    time.sleep(1000)
"""


def _line(domid: int, condition: Callable[[DomainLine | None], bool]) -> DomainLine | None:
    """The domain's line of `xl list` when `condition` holds, or what it is after ten seconds."""
    deadline = time.monotonic() + 10
    while True:
        line = next((line for line in xl_list() if line.domid == domid), None)
        if condition(line) or time.monotonic() > deadline:
            return line
        time.sleep(0.1)


def _summarise(results: list[dict[str, Any]], seconds: float) -> int:
    slow = sorted(results, key=lambda result: -result["seconds"])[:8]
    print("slowest: " + ", ".join(f"{result['case']} {result['seconds']:.1f}" for result in slow))
    for machine in dict.fromkeys(result["machine"] for result in results):
        ours = [result for result in results if result["machine"] == machine]
        print(f"{machine}: {len(ours)} cases in {sum(result['seconds'] for result in ours):.0f} s")
    counts = {outcome: sum(result["outcome"] == outcome for result in results) for outcome in _OUTCOMES}
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()) + f" in {seconds:.0f} s")
    return 1 if counts["failed"] else 0


_OUTCOMES = ("passed", "failed", "skipped")

sys.exit(main())
