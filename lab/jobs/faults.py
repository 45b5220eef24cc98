"""Either side killed, stopped, paused or destroyed in the middle, or out of grants, on real Xen: what the other sees.

The roles and what is expected are those of tests/faults, at the steps that a role names itself: who is struck has done
all before the step and nothing of it. dom0's ends live in threads of this job, the guest's in processes that
lab/fault_peer.py starts.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import xengrant
from lab.dom0 import PROJECT, RELEASE, RESULTS, Command, Guest, GuestError, xl_list
from lab.dom0.xenstore import xenstore_permit, xenstore_write
from tests import evidence
from tests.faults.actors import Actor
from tests.faults.expected import DESTROYED, KILLED, OFFERING, expected_of
from tests.faults.lives import Outcome, Part
from tests.faults.roles import OTHER, WHOLE

SECONDS = 60.0
PACE = 0.5  # seconds that somebody waits at a time; less would be work for the emulator
OPTIONS = "max_grant_frames = 8\nmax_maptrack_frames = 1"

KILLED_AT = (
    ("granter", "notify: written, not said"),
    ("mapper", "notify: mapped, not said"),
    ("mapper", "notify: answered, not said"),
    ("server", "transfer: copied, not published"),
    ("server", "transfer: published, not told"),
    ("client", "transfer: some read"),
    ("client", "transfer: 200 bytes written"),
)
ONE_EACH = (KILLED_AT[0], KILLED_AT[2], KILLED_AT[4], KILLED_AT[5])
STOPPED_AT = (ONE_EACH[0], ONE_EACH[3])


class Row(NamedTuple):
    step: str
    fault: str
    side: str
    saw: str
    seconds: float


rows: list[Row] = []


class _Output(Protocol):
    def output(self) -> str: ...


class Roles:
    """Processes that play roles, in the guest or here; what they have said."""

    def __init__(self, running: _Output, names: list[str]) -> None:
        self._running = running
        self._names = names

    def pids(self) -> list[str]:
        return [str(pid) for (pid,) in self.said("pid")]

    def said(self, what: str) -> list[list[Any]]:
        """What each has said of that, in the order of their names, once all have."""
        deadline = time.monotonic() + SECONDS
        while True:
            output = self._running.output()
            lines = [json.loads(line) for line in output.splitlines() if line.startswith("[")]
            found = {name: rest for name, kind, *rest in lines if kind == what}
            if found.keys() >= set(self._names):
                return [found[name] for name in self._names]
            ended = [name for name, kind, *_ in lines if kind == "ended" and name not in found]
            assert not ended, f"{ended} ended: {output}"
            assert time.monotonic() < deadline, f"not all have {what}: {output}"
            time.sleep(0.1)


class _Here:
    """The same program as in the guest, in dom0."""

    def __init__(self, arguments: list[str]) -> None:
        self._said = Path("/run/fault-peer.out")
        command = [sys.executable, str(PROJECT / "lab" / "fault_peer.py"), *arguments]
        with self._said.open("wb") as said:
            self.process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)

    def output(self) -> str:
        return self._said.read_text()


def in_guest(guest: Guest, parts: list[tuple[str, str, str]]) -> Roles:
    """Play (role, name, step or "") each against dom0."""
    words = shlex.join([f"{role}/{name}/{step}" for role, name, step in parts])
    command: Command = guest.start(f"exec python3 /opt/fault_peer.py 0 {words}")
    return Roles(command, [name for _, name, _ in parts])


@contextmanager
def survivors(guest: Guest, parts: list[tuple[str, str, str]]) -> Iterator[list[Actor]]:
    """The other side of each, in threads of this process."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                Actor(Part(OTHER[role], None, guest.domid, peer="", name=name, patience=PACE, pace=PACE), process=False)
            )
            for role, name, _ in parts
        ]


def named(steps: tuple[tuple[str, str], ...], prefix: str) -> list[tuple[str, str, str]]:
    return [(role, f"{prefix}{number}", step) for number, (role, step) in enumerate(steps)]


def _until_quiet(actors: list[Actor]) -> None:
    """Until each waits for its other side, which all have found."""
    for actor in actors:
        assert actor.until_quiet(found=OTHER[actor.role] in OFFERING), actor.outcome()


def judge(side: str, step: str, fault: str, expected: str, saw: Outcome, given: int, started: float) -> None:
    """The survivor saw what is expected, and has all that was given."""
    assert saw.kind == expected, f"{fault} at {step}: expected {expected}: {saw}"
    assert len(saw.received) == given, f"{fault} at {step}: {given} bytes were given: {saw}"
    assert WHOLE[side].startswith(saw.received), f"{fault} at {step}: other bytes were received"
    rows.append(Row(step, fault, f"{side} in dom0", *saw.since(started)))


def guests_processes_are_struck(guest: Guest) -> None:
    """Some are killed. Others stand still, by SIGSTOP and then with their whole guest, and go on to their end."""
    killed, stopped = named(KILLED_AT, "kill"), named(STOPPED_AT, "stop")
    with survivors(guest, killed + stopped) as actors:
        struck = in_guest(guest, killed + stopped)
        given = [count for _, count in struck.said("held")]
        pids = struck.pids()
        _until_quiet(actors)
        started = time.monotonic()
        guest.check(f"kill -9 {' '.join(pids[: len(killed)])}")
        for (role, _, step), actor, count in zip(killed, actors, given, strict=False):
            expected = expected_of(KILLED, role, step)
            judge(OTHER[role], step, f"kill -9 of the {role}", expected, actor.outcome(), count, started)
        left, still = actors[len(killed) :], " ".join(pids[len(killed) :])
        guest.check(f"kill -STOP {still}")
        started = time.monotonic()
        _until_quiet(left)
        guest.pause()
        _until_quiet(left)
        guest.unpause()
        guest.check(f"kill -USR1 {still}; kill -CONT {still}")
        for (role, _, step), actor in zip(stopped, left, strict=True):
            fault = f"SIGSTOP of the {role}, its guest paused; then both go on"
            judge(OTHER[role], step, fault, "whole", actor.outcome(), len(WHOLE[OTHER[role]]), started)


def dom0s_processes_are_killed(guest: Guest) -> None:
    parts = named(ONE_EACH, "here")
    alive = in_guest(guest, [(OTHER[role], name, "") for role, name, _ in parts])
    here = _Here([str(guest.domid), *(f"{role}/{name}/{step}" for role, name, step in parts)])
    struck = Roles(here, [name for _, name, _ in parts])
    given = [count for _, count in struck.said("held")]
    started = time.monotonic()
    for pid in struck.pids():
        os.kill(int(pid), 9)
    here.process.wait(SECONDS)
    for (role, _, step), count, end in zip(parts, given, alive.said("ended"), strict=True):
        kind, saw, _text, received = end
        expected = expected_of(KILLED, role, step)
        assert (kind, received) == (expected, count), f"{role} at {step}: {expected}, {count} bytes given: {end}"
        rows.append(Row(step, f"kill -9 of the {role}", f"{OTHER[role]} in the guest", saw, time.monotonic() - started))


_OUT_OF_GRANTS = """
import json, subprocess, sys, xengrant
from pathlib import Path
refs = json.loads(sys.argv[1])
limit = Path("/sys/module/xen_gntalloc/parameters/limit")
def seen(call):
    try:
        call()
    except xengrant.GrantError as error:
        return [type(error).__name__, getattr(error, "limit", ""), str(error)]
    return ["all of it", "", ""]
with xengrant.connect() as domain:
    with domain.gntshr() as gntshr:
        limit.write_text("4")
        beyond = seen(lambda: gntshr.share_pages(0, 5, writable=True))
        limit.write_text("100000")
        shares, full = [], ["all of it"]
        while full[0] == "all of it":
            full = seen(lambda: shares.append(gntshr.share_pages(0, 128, writable=True)))
        while shares:
            shares.pop().close()
        at_once = seen(lambda: gntshr.share_pages(0, 5, writable=True).close())
    subprocess.run("modprobe -r xen-gntalloc; modprobe xen-gntalloc", shell=True, check=True)
    with domain.gntshr() as gntshr, domain.gnttab() as gnttab:
        again = seen(lambda: gntshr.share_pages(0, 5, writable=True).close())
        grants = [(0, ref) for ref in refs]
        maptrack = seen(lambda: gnttab.map(grants, writable=True).close())
        fewer = seen(lambda: gnttab.map(grants[:8], writable=True).close())
print(json.dumps([beyond, full, at_once, again, maptrack, fewer]))
"""


def a_guest_out_of_grants_is_told(guest: Guest) -> None:
    """gntalloc's limit, the grant table and the maptrack.

    Once an ALLOC has met a full table, gntalloc of Linux 6.1 and 6.12 refuses all of 1 to 511 pages, whatever was given
    back since, until the module is loaded anew.
    """
    with (
        xengrant.connect() as domain,
        domain.gntshr() as gntshr,
        gntshr.share_pages(guest.domid, 1000, writable=True) as share,
    ):
        started = time.monotonic()
        refs = json.dumps(list(share.refs))
        status, output = guest.run(f"exec python3 -c {shlex.quote(_OUT_OF_GRANTS)} {shlex.quote(refs)}")
    assert status == 0, output
    beyond, full, at_once, again, maptrack, fewer = json.loads(output.splitlines()[-1])
    print(f"  after the table was full, and all was given back, sharing 5 pages: {at_once[0]}", flush=True)
    assert beyond[:2] == ["GrantTableFull", "gntalloc"], beyond
    assert full[:2] == ["GrantTableFull", "table"], full
    assert maptrack[0] == "MapError", maptrack
    assert "maptrack" in maptrack[2], maptrack
    assert again[0] == fewer[0] == "all of it", (again, fewer)
    seconds = time.monotonic() - started
    for step, fault, saw in (
        ("share 5 pages", "gntalloc's limit 4", beyond),
        ("share until refused; then the module is loaded anew", "grant table full", full),
        ("map 1,000 grants", "maptrack full", maptrack),
    ):
        rows.append(Row(step, fault, "guest", f"{saw[0]}, then all of it", seconds))


def guest_is_destroyed(guest: Guest) -> None:
    parts = named(ONE_EACH, "destroy")
    with survivors(guest, parts) as actors:
        struck = in_guest(guest, parts)
        given = [count for _, count in struck.said("held")]
        _until_quiet(actors)
        started = time.monotonic()
        guest.destroy()
        for (role, _, step), actor, count in zip(parts, actors, given, strict=True):
            expected = expected_of(DESTROYED, role, step)
            judge(OTHER[role], step, f"xl destroy of the {role}'s guest", expected, actor.outcome(), count, started)
    deadline = time.monotonic() + SECONDS
    while guest.domid in {line.domid for line in xl_list()}:
        assert time.monotonic() < deadline, f"something of it is held still: {xl_list()}"
        time.sleep(0.1)


def _granted(guest: Guest) -> set[int]:
    """The refs in use in the guest's table."""
    with xengrant.connect() as domain, domain.grant_table(of=guest.domid) as table:
        return {entry.ref for entry in table.grants()}


def main() -> int:
    started = time.monotonic()
    failed = 0
    tests = PROJECT / "tests"
    files: dict[str, Path | bytes] = {"/opt/fault_peer.py": PROJECT / "lab" / "fault_peer.py"}
    for name in ("__init__", "lives", "roles", "steps"):
        files[f"/opt/xengrant/tests/faults/{name}.py"] = tests / "faults" / f"{name}.py"
    with Guest.create("faults", files=files, config_extra=OPTIONS) as guest:
        print(f"a guest after {time.monotonic() - started:.1f} s", flush=True)
        xenstore_write({"/local/domain/0/data": ""})
        xenstore_permit("/local/domain/0/data", "n0", f"r{guest.domid}")  # what is written there is the guest's to read
        granted, descriptors = _granted(guest), len(os.listdir("/proc/self/fd"))
        checks: list[Callable[[Guest], None]] = [
            guests_processes_are_struck,
            dom0s_processes_are_killed,
            a_guest_out_of_grants_is_told,
            lambda guest: nothing_is_left(guest, granted, descriptors),
            guest_is_destroyed,
        ]
        for check in checks:
            failed += not _passed(check, guest)
    evidence.keep(
        "faults",
        f"real Xen, {RELEASE}",
        ("step", "fault", "side", "it saw", "seconds"),
        rows,
        time.monotonic() - started,
        RESULTS,
    )
    print(f"faults: {len(rows)} survived, {failed} checks failed in {time.monotonic() - started:.0f} s")
    return 1 if failed else 0


def nothing_is_left(guest: Guest, granted: set[int], descriptors: int) -> None:
    """Neither in the guest's table, which Linux clears in its own time, nor in this process."""
    deadline = time.monotonic() + SECONDS
    while _granted(guest) - granted or len(os.listdir("/proc/self/fd")) > descriptors:
        left = f"refs {_granted(guest) - granted}, {len(os.listdir('/proc/self/fd'))} descriptors of {descriptors}"
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def _passed(check: Callable[[Guest], None], guest: Guest) -> bool:
    started = time.monotonic()
    name = getattr(check, "__name__", "").replace("<lambda>", "nothing_is_left")
    try:
        check(guest)
    except (AssertionError, GuestError, OSError, ValueError) as error:
        print(f"failed {name}: {type(error).__name__}: {error}", flush=True)
        return False
    print(f"passed {name} in {time.monotonic() - started:.1f} s", flush=True)
    return True


sys.exit(main())
