"""Grant tables on real Xen: what dom0 sees of live guests, of version 1 and 2, and what it writes as their builder.

Checked against what the guests say that they share, against Xen's own list of what is mapped (`xl debug-keys g`), and
against what can be mapped.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import xengrant
from lab.dom0 import ARM64, GUEST_KIND, Command, Guest, GuestError, xl, xl_list
from tests.grant_table.model import builders_bench, run_random
from tests.grant_table.state_machine import run_machine
from xengrant import EntryKind, Grant, GrantBusy, GrantRef, MapError

SECONDS = 60


def main() -> int:
    results: list[bool] = []
    # Linux maps the status frames of a version 2 table in PV guests only: any other stops when it first revokes a
    # grant (gnttab_end_foreign_access_ref_v2, a NULL grstatus; seen with 6.12). On arm64 Xen has no version 2, and
    # Linux takes what there is.
    kind = GUEST_KIND if ARM64 else "pv"
    with Guest.create("one") as one, Guest.create("two", kind=kind, cmdline_extra="grant_table.version=2") as two:
        for live in (versions_are_told, ls_shows_what_guests_share, xen_agrees, watch_and_top_see_changes):
            results.append(_passes(live, one, two))
        results.append(_passes(an_open_table_holds_a_zombie, one))
    with Guest.create("built", paused=True) as built:
        results.append(_passes(a_builder_grants_the_console_again, built))
        results.append(_passes(a_table_agrees_with_the_model, built))
    print(f"table: {sum(results)} passed, {len(results) - sum(results)} failed")
    return 0 if all(results) else 1


def _passes(check: Callable[..., None], *guests: Guest) -> bool:
    started = time.monotonic()
    try:
        check(*guests)
    except (AssertionError, GuestError, OSError, ValueError) as error:
        print(f"failed {check.__name__}: {type(error).__name__}: {error}", flush=True)
        return False
    print(f"passed {check.__name__} in {time.monotonic() - started:.1f} s", flush=True)
    return True


def versions_are_told(one: Guest, two: Guest) -> None:
    with xengrant.connect() as domain:
        for guest, version in ((one, 1), (two, 1 if ARM64 else 2)):
            with domain.grant_table(of=guest.domid) as table:
                assert table.version == version, f"{guest} has version {table.version}"
                assert 1 <= table.frames <= table.max_frames == 64, repr(table)


def ls_shows_what_guests_share(one: Guest, two: Guest) -> None:
    """Each guest shares with dom0 and with the other; some of it is mapped, here and there, in either way."""
    _ls_shows(one, two)
    _ls_shows(two, one)


def _ls_shows(granter: Guest, peer: Guest) -> None:
    before = _ls(granter)
    assert _state(before, 0) == _state(before, 1) == (0, False, True, True), f"console and xenstore: {before}"
    wanted = [(0, 3, True), (0, 2, False), (peer.domid, 2, True), (peer.domid, 1, False)]
    with _sharing(granter, *wanted) as shares:
        expected: dict[int, tuple[int, bool, bool, bool]] = {}
        for refs, (domid, _, writable) in zip(shares, wanted, strict=True):
            expected |= dict.fromkeys(refs, (domid, not writable, False, False))
        assert _new(granter, before) == expected
        ours, ours_readonly, theirs, _ = shares
        with _mapping(peer, granter, [theirs[1]], writable=True), _mapped(granter, ours, ours_readonly):
            expected[theirs[1]] = (peer.domid, False, True, True)
            expected[ours[0]] = (0, False, True, True)
            expected[ours[1]] = (0, False, True, False)
            expected[ours_readonly[0]] = (0, True, True, False)
            assert _new(granter, before) == expected
    assert _settles(lambda: _new(granter, before), {}), _new(granter, before)


@contextmanager
def _mapped(granter: Guest, writable: list[int], readonly: list[int]) -> Iterator[None]:
    """The first of each here, the writable one so; the second writable one for reading."""
    with (
        xengrant.connect() as domain,
        domain.gnttab() as gnttab,
        gnttab.map((granter.domid, writable[0]), writable=True),
        gnttab.map([(granter.domid, writable[1]), (granter.domid, readonly[0])], writable=False),
    ):
        yield


def xen_agrees(one: Guest, two: Guest) -> None:
    """Xen prints the entries that are in use; they are those that `ls` shows as mapped."""
    with (
        _sharing(one, (0, 2, True)) as (refs,),
        _sharing(two, (0, 3, False)) as (others,),
        xengrant.connect() as domain,
        domain.gnttab() as gnttab,
        gnttab.map((one.domid, refs[1]), writable=True),
        gnttab.map([Grant(two.domid, ref) for ref in others[:2]], writable=False),
    ):
        for guest in (one, two):
            mapped = {entry["ref"] for entry in _ls(guest) if entry["reading"] or entry["writing"]}
            assert mapped == _active(guest.domid), f"{guest}: ls {mapped}, Xen {_active(guest.domid)}"
            assert {0, 1} < mapped, mapped


def _active(domid: int) -> set[int]:
    """The refs that `xl debug-keys g` prints for a domain's table."""
    xl("dmesg", "-c")
    xl("debug-keys", "g")
    log = xl("dmesg")
    tables = re.split(r"grant-table for remote d(\d+)", log)
    found = dict(zip(tables[1::2], tables[2::2], strict=True)).get(str(domid))
    assert found is not None, f"Xen printed nothing of domain {domid}:\n{log[-2000:]}"
    return {int(ref, 16) for ref in re.findall(r"\[0x([0-9a-f]+)\]", found)}


def watch_and_top_see_changes(one: Guest, two: Guest) -> None:
    """`ls --watch` tells of each change, and `top -b` shows a guest's grants come and go."""
    with (
        _started("ls", one.name, "--watch", "-i", "0.2", "--json") as watching,
        _started("top", "-b", "-i", "60", "-d", "2", "--json") as top,
    ):
        before = _granted(_line(top), one)
        with _sharing(one, (0, 4, True)) as (refs,):
            with _mapped(one, refs, refs[2:]):
                events = _until(watching, lambda event: event["ref"] == refs[0] and event["writing"])
            _await_granted(top, one, before + 4)
        _await_granted(top, one, before)
        events += _until(watching, lambda event: event["event"] == "revoked" and event["ref"] == refs[-1])
        told = {event["ref"] for event in events if event["event"] == "granted"}
        assert told >= set(refs), f"{told} of {refs} were told"


def an_open_table_holds_a_zombie(guest: Guest) -> None:
    """A destroyed domain is not gone entirely while dom0 has its table mapped, and is when it is closed."""
    with xengrant.connect() as domain, domain.grant_table(of=guest.domid) as table:
        before = table.grants()
        guest.destroy()
        domain.peer(guest.domid).wait_gone(SECONDS)
        state = next((line.state for line in xl_list() if line.domid == guest.domid), "gone")
        print(f"a destroyed domain whose table is mapped: {state}", flush=True)
        assert {entry.ref for entry in before} >= {0, 1}
    assert _settles(lambda: guest.domid in {line.domid for line in xl_list()}, False), "the domain is still there"


def a_builder_grants_the_console_again(built: Guest) -> None:
    """In a guest that has not run, a new entry for the frame of its console page shows the same bytes as ref 0."""
    with (
        xengrant.connect() as domain,
        domain.grant_table(of=built.domid, writable=True) as table,
        domain.gnttab() as gnttab,
    ):
        console = table.read(GrantRef.CONSOLE)
        assert console.kind is EntryKind.ACCESS, console
        assert console.frame is not None
        table.grant_access(20, 0, console.frame, writable=True)
        with gnttab.map([(built.domid, 0), (built.domid, 20)], writable=True) as both:
            both.mapping.page(1)[3000:3007] = b"builder"
            assert bytes(both.mapping.page(0)) == bytes(both.mapping.page(1)), "two pages"
            assert table.read(20)[5:] == (True, True), table.read(20)
            _raises(GrantBusy, lambda: table.end_access(20))
        assert table.read(20)[5:] == (False, False), table.read(20)
        table.end_access(20)
        _raises(MapError, lambda: gnttab.map((built.domid, 20), writable=False))


def a_table_agrees_with_the_model(built: Guest) -> None:
    """A `GrantTable` over the live table of a guest that has not run: what maps is what a plain model says."""
    with xengrant.connect() as domain:
        # The first ten examples have hardly a step in Debian 12's version of Hypothesis.
        run_machine(lambda: builders_bench(domain, built.domid), examples=10 + 8, steps=40)
        with builders_bench(domain, built.domid) as bench:
            done = run_random(bench, seed=int(time.time()), steps=1000)
    print(f"what the model and the table did alike: {done}", flush=True)


# What guests and the tool do


_SHARE = """
import json, sys, xengrant
from contextlib import ExitStack
with ExitStack() as stack:
    gntshr = stack.enter_context(stack.enter_context(xengrant.connect()).gntshr())
    wanted = json.loads(sys.argv[1])
    print(json.dumps([list(stack.enter_context(gntshr.share_pages(d, n, writable=w)).refs) for d, n, w in wanted]))
    import signal
    signal.sigwait({signal.SIGTERM})
"""

_MAP = """
import json, sys, xengrant
domid, refs, writable = json.loads(sys.argv[1])
with xengrant.connect() as domain, domain.gnttab() as gnttab:
    with gnttab.map([(domid, ref) for ref in refs], writable=writable):
        print("[]")
        import signal
        signal.sigwait({signal.SIGTERM})
"""


@contextmanager
def _sharing(guest: Guest, *wanted: tuple[int, int, bool]) -> Iterator[list[list[int]]]:
    """A process of the guest shares: (domid, pages, writable) each; the refs of each, as it says."""
    with _running(guest, _SHARE, wanted) as said:
        yield said


@contextmanager
def _mapping(guest: Guest, granter: Guest, refs: list[int], *, writable: bool) -> Iterator[None]:
    with _running(guest, _MAP, (granter.domid, refs, writable)):
        yield


@contextmanager
def _running(guest: Guest, program: str, argument: object) -> Iterator[Any]:
    """A Python program in the guest, from its first line of JSON until it is told to end, and has."""
    command = guest.start(f"exec python3 -u -c {shlex.quote(program)} {shlex.quote(json.dumps(argument))}")
    try:
        yield json.loads(_first_line(command))
    finally:
        guest.run(f"kill -TERM {command.pid()}")
        command.wait(SECONDS)


def _first_line(command: Command) -> str:
    deadline = time.monotonic() + SECONDS
    while not (output := command.output()).endswith("\n"):
        assert not command.done, output
        assert time.monotonic() < deadline, f"{command.text}: {output}"
        time.sleep(0.1)
    return output.splitlines()[-1]


def _tool(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "xengrant", *arguments]


def _ls(guest: Guest) -> list[dict[str, Any]]:
    """The entries that `xengrant ls` shows."""
    command = _tool("ls", guest.name, "--json")
    run = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    said = [json.loads(line) for line in run.stdout.splitlines()]
    assert "summary" in said[-1], said
    return said[:-1]


def _state(entries: list[dict[str, Any]], ref: int) -> tuple[Any, ...]:
    entry = next(entry for entry in entries if entry["ref"] == ref)
    return tuple(entry[key] for key in ("domid", "readonly", "reading", "writing"))


def _new(guest: Guest, before: list[dict[str, Any]]) -> dict[int, tuple[Any, ...]]:
    """The entries that `ls` shows beyond those of before: (domid, readonly, reading, writing)."""
    known = {entry["ref"] for entry in before}
    now = _ls(guest)
    assert all(entry["kind"] == "access" for entry in now), now
    return {entry["ref"]: _state(now, entry["ref"]) for entry in now if entry["ref"] not in known}


@contextmanager
def _started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(_tool(*arguments), stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


def _line(process: subprocess.Popen[str], message: str = "") -> Any:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"{process.args!r} ended; {message}"
    return json.loads(line)


def _until(process: subprocess.Popen[str], wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """The events up to the wanted one."""
    events = [_line(process)]
    while not wanted(events[-1]):
        events.append(_line(process))
    return events


def _await_granted(top: subprocess.Popen[str], guest: Guest, wanted: int) -> None:
    """Until `top` shows so many grants of a guest; it ends after two minutes."""
    seen: list[int] = []
    while wanted not in seen:
        line = _line(top, f"top saw {seen} grants, not {wanted}")
        seen.append(_granted(line, guest))


def _granted(iteration: dict[str, Any], guest: Guest) -> int:
    return next(int(each["granted"]) for each in iteration["domains"] if each["domid"] == guest.domid)


def _settles(look: Callable[[], object], wanted: object) -> bool:
    """What `look` gives is what is wanted, soon: Linux frees deferred pages each second."""
    deadline = time.monotonic() + 20
    while look() != wanted:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _raises(kind: type[Exception], call: Callable[[], object]) -> None:
    try:
        call()
    except kind:
        return
    raise AssertionError(f"no {kind.__name__}")


sys.exit(main())
