"""The soak of tests/soak on real Xen: dom0 and two guests do everything at full rate, and guests are destroyed.

In each domain a process of tests/soak/worker.py shares, maps, copies, notifies, streams and asks xenstore, with both
others. In each round one guest is destroyed in the middle of that. The two that are left find out and go on with each
other; at the end they have nothing more than they began with. Then the guest comes again. What dom0, Xen and xenstore
have when all is over is compared with what they had at the start.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import xengrant
from lab.dom0 import GUEST_KIND, PROJECT, RELEASE, RESULTS, Command, Guest, GuestError, xl, xl_list
from lab.dom0.xenstore import xenstore_permit, xenstore_remove, xenstore_write
from tests import evidence

SOON = 240.0  # seconds; nothing that is waited for takes as long
PAUSE = 3.0  # from one look at a process to the next: four programs in a guest, half a second of its processor
KINDS = "grants+streams+store"
GUESTS = ("soak-one", "soak-two")
DONE = ("shares", "maps", "copies", "notifications", "vchan bytes", "transactions", "watch events", "answers")
"""What each process is to have done before its guest is destroyed, and the others after it."""

# KiB that may be gone or come at the end: caches, and what Xen keeps of a domain for a while.
TOLERATED = {"dom0's free memory, KiB": 32 << 10, "dom0's slab, KiB": 4 << 10, "Xen's free memory, MiB": 2}


class _Process(Protocol):
    """How a worker is spoken to, wherever it is."""

    def tell(self, command: str) -> None: ...
    def said(self) -> str: ...


class _InGuest:
    def __init__(self, guest: Guest, arguments: Sequence[str]) -> None:
        self._guest = guest
        guest.check("mkfifo -m 600 /run/soak.in 2>/dev/null; : > /run/soak.out")
        words = shlex.join(["python3", "-m", "tests.soak.worker", *arguments])
        self._command: Command = guest.start(f"exec {words} 0<>/run/soak.in >/run/soak.out 2>/run/soak.err")

    def tell(self, command: str) -> None:
        self._guest.check(f"echo {command} > /run/soak.in")

    def said(self) -> str:
        """All but the counts, and the last of those; the console carries little."""
        text = "grep -v '^{.counts' /run/soak.out; grep '^{.counts' /run/soak.out | tail -n 1"
        if self._command.done:
            text += "; cat /run/soak.err >&2"
        return self._guest.run(text).output


class _InDom0:
    def __init__(self, arguments: Sequence[str]) -> None:
        self._file = Path("/run/soak.out")
        with self._file.open("wb") as out:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "tests.soak.worker", *arguments], stdin=subprocess.PIPE, stdout=out, cwd=PROJECT
            )

    def tell(self, command: str) -> None:
        assert self._popen.stdin is not None
        self._popen.stdin.write(command.encode() + b"\n")
        self._popen.stdin.flush()
        if command == "finish":
            self._popen.stdin.close()
            self._popen.wait(SOON)

    def said(self) -> str:
        return self._file.read_text()


class Worker:
    """A process that soaks, and what it has said."""

    def __init__(self, name: str, domid: int, number: int, process: _Process) -> None:
        self.name = f"process {number} of {name} (domain {domid})"
        self.number = number
        self.tell = process.tell
        self._said = process.said
        self.counts: Counter[str] = Counter()
        self.told: list[dict[str, Any]] = []

    def look(self) -> None:
        lines = [line for line in self._said().splitlines() if line.strip()]
        said = [json.loads(line) for line in lines if line.startswith("{")]
        other = [line for line in lines if not line.startswith("{")]
        assert not other, f"{self.name}: {other}"
        self.told = [message for message in said if "counts" not in message]
        self.counts = Counter(next((message["counts"] for message in reversed(said) if "counts" in message), {}))

    def until(self, holds: Callable[[Worker], bool], what: str) -> None:
        """Look until it holds; `AssertionError` in time, with what it has said, or where it says that all is over."""
        deadline = time.monotonic() + SOON
        while True:
            self.look()
            wrong = [said for said in self.told if "failed" in said or "lost" in said]
            assert not wrong, f"{self.name}: {wrong}"
            if holds(self):
                return
            assert time.monotonic() < deadline, f"{self.name}: not {what} in {SOON} s: {self.told} {self.counts}"
            time.sleep(PAUSE)

    def has(self, name: str) -> bool:
        return any(name in said for said in self.told)


class Soak:
    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._numbers = 0
        self.guests = {name: self._created(name) for name in GUESTS}
        self.counts: Counter[str] = Counter()

    def _created(self, name: str) -> Guest:
        """A guest, with a node for its life, which everybody may read."""
        soak = PROJECT / "tests" / "soak"
        files: dict[str, Path | bytes] = {
            f"/opt/xengrant/tests/soak/{file.name}": file
            for file in soak.glob("*.py")
            if not file.stem.startswith("test")
        }
        guest = Guest.create(name, files=files, memory=384)
        _show_life(guest.domid)
        return guest

    def _started(self, name: str, domid: int, start: Callable[[list[str]], _Process]) -> Worker:
        self._numbers += 1
        domids = [0, *(guest.domid for guest in self.guests.values())]
        peers = json.dumps([peer for peer in domids if peer != domid])
        arguments = ["xen:", str(domid), KINDS, str(self._numbers), f"{self._seed}/{self._numbers}", peers]
        return Worker(name, domid, self._numbers, start(arguments))

    def round(self, dying: str) -> None:
        """All soak, one guest is destroyed, the two that are left go on, end, and have nothing left; it comes again."""
        workers = {"dom0": self._started("dom0", 0, _InDom0)}
        for name, guest in self.guests.items():
            workers[name] = self._started(name, guest.domid, partial(_InGuest, guest))
        for worker in workers.values():
            worker.until(lambda worker: worker.has("ready"), "ready")
        for worker in workers.values():
            worker.until(_has_done_all_since({}), "all done once")
        dead = workers.pop(dying)
        self.counts.update(dead.counts)
        self.guests[dying].destroy()
        self.counts["guests destroyed"] += 1
        for worker in workers.values():
            worker.look()
            before = dict(worker.counts)
            worker.until(_has_done_all_since(before), "all done once more")
        for command, said in (("stop", "idle"), ("finish", "left")):
            for worker in workers.values():
                worker.tell(command)
            for worker in workers.values():
                worker.until(lambda worker, said=said: worker.has(said), said)  # type: ignore[misc]
        for worker in workers.values():
            self._judge(worker, dead.number)
            self.counts.update(worker.counts)
        assert any(worker.has("broken") for worker in workers.values()), f"no session with {dead.name} was broken"
        self.guests[dying] = self._created(dying)

    def _judge(self, worker: Worker, dead: int) -> None:
        for said in worker.told:
            if "broken" in said:
                self.counts["sessions broken by a death"] += 1
                assert said["other"] == dead, f"{worker.name} with process {said['other']}, which lives: {said}"
            for name, more in said.get("left", {}).items():
                most = (64 << 10) if name == "resident KiB" else 0
                assert more <= most, f"{worker.name} ends with {more:+} {name}"

    def close(self) -> None:
        for guest in self.guests.values():
            guest.destroy()


def _has_done_all_since(before: dict[str, int]) -> Callable[[Worker], bool]:
    return lambda worker: all(worker.counts[name] > before.get(name, 0) for name in DONE)


def _show_life(domid: int) -> None:
    home = f"/local/domain/{domid}/data/soak"
    xenstore_write({f"{home}/life-1": ""})
    for path in (home, f"{home}/life-1"):
        xenstore_permit(path, f"r{domid}")


def counted(guests: dict[str, Guest]) -> dict[str, int]:
    """What there is of everything that a run uses: of dom0, of Xen, of xenstore, and of both guests."""
    Path("/proc/sys/vm/drop_caches").write_text("3")
    memory = {line.split(":")[0]: int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines()}
    info = dict(line.split(":", 1) for line in xl("info").splitlines() if ":" in line)
    free = next(value for key, value in info.items() if key.strip() == "free_memory")
    nodes = subprocess.run(["xenstore-ls", "-f"], check=True, capture_output=True, text=True, timeout=60).stdout
    found = {
        "domains": len(xl_list()),
        "xenstore nodes": len(nodes.splitlines()),
        "event channels of dom0": _event_channels(0),
        "descriptors in dom0": sum(len(list(each.iterdir())) for each in _descriptors()),
        "dom0's free memory, KiB": memory["MemFree"],
        "dom0's slab, KiB": memory["Slab"],
        "Xen's free memory, MiB": int(free),
    }
    for name, guest in guests.items():
        with xengrant.connect() as domain, domain.grant_table(of=guest.domid) as table:
            entries = list(table.grants())
        found[f"grants of {name}"] = len(entries)
        found[f"grants of {name}, mapped"] = sum(entry.mapped for entry in entries)
        found[f"event channels of {name}"] = _event_channels(guest.domid)
    return found


def _descriptors() -> list[Path]:
    """Of the daemons and this process, each a directory in /proc."""
    wanted = ("xenstored", "xenconsoled", "oxenstored")
    found = [each.parent for each in Path("/proc").glob("[0-9]*/comm") if each.read_text().strip() in wanted]
    return [each / "fd" for each in (*found, Path("/proc/self"))]


def _event_channels(domid: int) -> int:
    (program,) = Path("/usr/lib").glob("xen-4.*/bin/lsevtchn")
    done = subprocess.run([program, str(domid)], check=True, capture_output=True, text=True, timeout=60)
    return len(done.stdout.splitlines())


def compared(at_start: dict[str, int], guests: dict[str, Guest]) -> tuple[dict[str, int], list[str]]:
    """The counts once they are as at the start, or when time is over and some are not."""
    deadline = time.monotonic() + 60
    while True:
        at_end = counted(guests)
        differing = [
            f"{name}: {at_end[name]}, at the start {before}"
            for name, before in at_start.items()
            if abs(at_end[name] - before) > TOLERATED.get(name, 0)
        ]
        if not differing or time.monotonic() > deadline:
            return at_end, differing
        time.sleep(1)


def main() -> int:
    parser = argparse.ArgumentParser(prog="soak")
    parser.add_argument("--seconds", type=float, default=60, help="rounds begin until then (default: 60)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    began = time.monotonic()
    _show_life(0)
    soak = Soak(options.seed)
    wrong: list[str] = []
    at_start = at_end = counted(soak.guests)
    started = time.monotonic()
    print(f"two guests after {started - began:.0f} s", flush=True)
    rounds = 0
    try:
        while not wrong and (rounds < len(GUESTS) or time.monotonic() < started + options.seconds):
            try:
                soak.round(GUESTS[rounds % len(GUESTS)])
            except (AssertionError, GuestError, OSError, ValueError) as error:
                wrong.append(f"{type(error).__name__}: {error}")
            rounds += 1
            print(f"round {rounds} after {time.monotonic() - started:.0f} s: {dict(soak.counts)}", flush=True)
        seconds = time.monotonic() - started
        if not wrong:
            at_end, wrong = compared(at_start, soak.guests)
    finally:
        soak.close()
        xenstore_remove("/local/domain/0/data/soak")
    for name, before in at_start.items():
        print(f"{name:40} {before:12,} {at_end[name]:12,}")
    for text in wrong:
        print(f"WRONG: {text}")
    if not wrong:
        machine = f"real Xen, {RELEASE}"
        rows: list[tuple[str, int]] = sorted(soak.counts.items())
        evidence.keep("soak", machine, ["what", "count"], [*rows, ("seconds", round(seconds))], seconds, RESULTS)
    print(f"soak: {rounds} rounds in {seconds:.0f} s on {RELEASE}, {GUEST_KIND} guests, Linux {platform.release()}")
    return 1 if wrong else 0


sys.exit(main())
