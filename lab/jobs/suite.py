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
from typing import Any

import xengrant
from lab.dom0 import GUEST_KIND, RELEASE, RESULTS, Guest, xl_list
from lab.dom0.xl import DomainLine
from xengrant import Grant, Mapped

SELFTEST = "python3 -m xengrant selftest"


def main() -> int:
    started = time.monotonic()
    print(f"{RELEASE}: {GUEST_KIND} guests, Linux {platform.release()}, Python {platform.python_version()}", flush=True)
    with ThreadPoolExecutor() as pool:
        left, right = pool.map(lambda name: Guest.create(name, timeout=180), ("left", "right"))
    print(f"two guests after {time.monotonic() - started:.1f} s", flush=True)
    for guest in (left, right):
        guest.start(f"exec {SELFTEST} --agent --peer 0")
    right.start(f"exec {SELFTEST} --agent --peer {left.domid}")
    results = _between_guests(left, right)
    with xengrant.connect() as domain, domain.gnttab() as gnttab:
        mapped = gnttab.map(_shared_by(left), writable=True)
        results += _with_dom0(left, right)
        results.append(_zombie(left, mapped))
    return _summarise(results, time.monotonic() - started)


def _between_guests(runner: Guest, peer: Guest) -> list[dict[str, Any]]:
    """The suite between two guests, whose results are shown as they come."""
    command = f"exec {SELFTEST} --peer {peer.domid} --json {shlex.join(sys.argv[1:])}"
    running = runner.start(command)
    results: list[dict[str, Any]] = []
    shown = 0
    while True:
        done = running.done
        lines = running.output().split("\n")[:-1]
        results += [result for line in lines[shown:] if (result := _shown(line))]
        shown = len(lines)
        if done:
            return results or [_broken(command, running.wait().status, running.output())]
        print(f"{len(results)} cases between guests", flush=True)
        time.sleep(10)


def _with_dom0(first: Guest, peer: Guest) -> list[dict[str, Any]]:
    """dom0 with `peer`; in the end `first` and `peer` are destroyed."""
    command = [*shlex.split(SELFTEST), "--peer", str(peer.domid), "--third", str(first.domid), "--json", *sys.argv[1:]]
    command += ["--destroy-command", "xl destroy {domid}", "--victim", str(first.domid), "--victim", str(peer.domid)]
    results = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        assert running.stdout is not None
        text = ""
        for line in running.stdout:
            text += line
            result = _shown(line)
            if result:
                results.append(result)
    return results or [_broken(shlex.join(command), running.returncode, text)]


def _shown(line: str) -> dict[str, Any] | None:
    """The result in a line, kept, and shown where it is no pass."""
    try:
        result = json.loads(line)
    except ValueError:
        print(f"? {line.rstrip()}", flush=True)
        return None
    if "case" not in result:
        return None
    with open(RESULTS / "results.jsonl", "a") as kept:
        kept.write(line.strip() + "\n")
    if result["outcome"] != "passed":
        print(f"{result['outcome']} {result['case']} [{result['machine']}]: {result['text']}", flush=True)
    return dict(result)


def _broken(command: str, status: int, text: str) -> dict[str, Any]:
    print(f"{command} ended with {status} and no results:\n{text}", flush=True)
    return {"case": "suite", "machine": RELEASE, "outcome": "failed", "seconds": 0.0, "text": command}


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
