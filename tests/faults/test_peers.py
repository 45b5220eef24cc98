"""Either side killed, stopped, destroyed or paused at every step of sharing, mapping, notifying and a vchan's life.

Who is struck is a process. It has done everything before a step and nothing of it, while the other side waits for it;
or it is itself what waits, while the other side is held before a step of its own and finds out later. Then the other
ends in time with all that it was given, leaves nothing behind, and starts again with a new peer.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import pytest

from tests.evidence import Table
from tests.faults.actors import LONG, Actor, Outcome, Part
from tests.faults.conftest import SURVIVOR, VICTIM, chosen, introduce
from tests.faults.expected import (
    DESTROYED,
    DESTROYED_ASYNC,
    DESTROYED_MEANWHILE,
    KILLED,
    KILLED_ASYNC,
    KILLED_MEANWHILE,
    OFFERING,
    expected_of,
    is_offered,
)
from tests.faults.roles import ANSWER, BLOCKING, OTHER, WHOLE
from tests.faults.steps import ASYNC_STEPS, STEPS
from xengrant.embedded import Machine

COLUMNS = ("step", "fault", "side", "the survivor saw", "seconds")


class Fault(enum.Enum):
    """What strikes a side."""

    KILL = "kill -9"
    STOP_KILL = "SIGSTOP, then kill -9"
    DESTROY = "domain destroyed"
    STOP_CONT = "SIGSTOP, then SIGCONT"
    PAUSE = "domain paused, then unpaused"


LASTING = (Fault.KILL, Fault.STOP_KILL, Fault.DESTROY)


class Side(NamedTuple):
    """Who survives."""

    role: str
    domid: int = SURVIVOR

    def __str__(self) -> str:
        return self.role if self.domid == SURVIVOR else f"{self.role} in dom0"

    def part(self, url: str, **settings: Any) -> Part:
        """It knows what tells of its peer's life: a guest by a node."""
        return Part(self.role, url, VICTIM, peer="data/here" if self.domid else "", **settings)


_Struck = tuple[str, int, Fault]


def _rows(of: Iterable[str], *faults: Fault) -> list[_Struck]:
    steps = STEPS | ASYNC_STEPS
    return [(role, step, fault) for role in of for step in range(len(steps[role])) for fault in faults]


def _id(value: Any) -> str:
    return value.name if isinstance(value, Fault) else str(value)


def _with_sides(rows: Sequence[_Struck], side: Callable[[str], Side]) -> list[tuple[str, int, Fault, Side]]:
    return [(role, step, fault, side(OTHER[role])) for role, step, fault in rows]


STRUCK = [
    *_with_sides(chosen(_rows(STEPS, *Fault), 17), Side),
    *_with_sides(chosen(_rows(BLOCKING.values(), *Fault), 51), lambda role: Side(f"asyncio {role}")),
    *_with_sides(chosen(_rows(("granter", "mapper"), *Fault), 89), lambda role: Side(role, 0)),
]


@pytest.mark.parametrize(("role", "step", "fault", "side"), STRUCK, ids=_id)
def test_one_side_is_struck_and_the_other_survives(
    machine: Machine, evidence: Callable[..., Table], role: str, step: int, fault: Fault, side: Side
) -> None:
    killed, destroyed = (KILLED_ASYNC, DESTROYED_ASYNC) if side.role in BLOCKING else (KILLED, DESTROYED)
    table = destroyed if fault is Fault.DESTROY else killed
    expected = expected_of(table, role, STEPS[role][step]) if fault in LASTING else "whole"
    survivor = Actor(side.part(machine.url(side.domid)), process=False)
    with survivor:
        survivor.until_quiet()
        part = Part(role, machine.url(VICTIM), side.domid, hold_at=STEPS[role][step], patience=LONG)
        with Actor(part, process=True) as victim:
            assert victim.until_held() == STEPS[role][step]
            survivor.until_quiet(found=is_offered(role, STEPS[role][step]))
            given, started = victim.given, time.monotonic()
            _strike(machine, victim, survivor, fault)
            saw = _outcome(survivor, expected)
            if fault not in LASTING:
                _assert_whole(role, victim.outcome(), saw)
            elif fault is Fault.DESTROY and not any(": open" in name for name in STEPS[role][step:]):
                victim.say("go on")  # else it would make the domain anew
                end = victim.outcome()
                assert end.kind in ("unavailable", "told", "whole"), f"the destroyed domain's process: {end}"
        if fault in LASTING and expected != "late":
            assert saw.received == given, f"{len(saw.received)} of {len(given)} bytes were received: {saw}"
        name = STEPS[role][step]
        evidence("faults", COLUMNS).add(name, f"{fault.value} of the {role}", str(side), *saw.since(started))
        _start_again(machine, survivor, role, side.domid)


BUSY = [
    *chosen(_rows(STEPS, Fault.KILL, Fault.DESTROY), 13),
    *chosen(_rows(ASYNC_STEPS, Fault.KILL, Fault.DESTROY), 29),
]


@pytest.mark.parametrize(("role", "step", "fault"), BUSY, ids=_id)
def test_a_side_that_was_busy_when_the_other_was_struck_survives(
    machine: Machine, evidence: Callable[..., Table], role: str, step: int, fault: Fault
) -> None:
    table = DESTROYED_MEANWHILE if fault is Fault.DESTROY else KILLED_MEANWHILE
    name = (STEPS | ASYNC_STEPS)[role][step]
    expected, other = expected_of(table, role, name), OTHER[BLOCKING.get(role, role)]
    with Actor(Part(other, machine.url(VICTIM), SURVIVOR), process=True) as victim:
        victim.until_quiet()
        patience = 1.0 if expected == "late" else LONG
        part = Part(role, machine.url(SURVIVOR), VICTIM, peer="data/here", hold_at=name, patience=patience)
        survivor = Actor(part, process=False)
        with survivor:
            assert survivor.until_held() == name
            waits = victim.until_quiet(found=is_offered(role, name))
            if expected == "seen":
                seen = victim.given == ANSWER if role == "granter" else not waits
                expected = "whole" if seen else "told"
            given, started = victim.given, time.monotonic()
            if fault is Fault.DESTROY:
                victim.stop()  # as its processors do
                machine.destroy(VICTIM)
            victim.kill()
            survivor.say("go on")
            saw = _outcome(survivor, expected)
            if expected in ("told", "whole", "either"):
                assert saw.received == given, f"{len(saw.received)} of {len(given)} bytes were received: {saw}"
            fault_name = f"{fault.value} of the {other} meanwhile"
            evidence("faults", COLUMNS).add(name, fault_name, role, *saw.since(started))
            _start_again(machine, survivor, other)


def _outcome(survivor: Actor, expected: str) -> Outcome:
    """How the survivor ends, in time, which is to be as is expected."""
    if expected == "late":
        assert survivor.until_quiet(), f"nothing could tell it, yet it ended: {survivor.outcome()}"
        survivor.say("give up")
    saw = survivor.outcome()
    assert saw.kind in (("told", "whole") if expected == "either" else (expected,)), f"{saw}"
    return saw


def _strike(machine: Machine, victim: Actor, survivor: Actor, fault: Fault) -> None:
    if fault is Fault.DESTROY:
        machine.destroy(VICTIM)
    elif fault is Fault.PAUSE:
        machine.pause(VICTIM)
        victim.say("go on")
        survivor.until_quiet()
        machine.unpause(VICTIM)
    elif fault is Fault.KILL:
        victim.kill()
    else:
        victim.stop()
        survivor.until_quiet()
        if fault is Fault.STOP_KILL:
            victim.kill()
        else:
            victim.say("go on")
            victim.cont()


def _start_again(machine: Machine, survivor: Actor, role: str, domid: int = SURVIVOR) -> None:
    """The survivor's own role once more, in the same `Domain`, with a new process in the role of the other side."""
    introduce(machine, VICTIM)
    if role not in OFFERING:
        survivor.again()
        survivor.until_quiet()
    with Actor(Part(role, machine.url(VICTIM), domid), process=True) as successor:
        if role in OFFERING:  # what the dead one left in xenstore is replaced before anybody looks there again
            successor.until_quiet()
            survivor.again()
        _assert_whole(role, successor.outcome(), survivor.outcome())


def _assert_whole(role: str, one: Outcome, other: Outcome) -> None:
    assert (one.kind, other.kind) == ("whole", "whole"), f"{one}; {other}"
    assert one.received == WHOLE[role] == other.given
    assert other.received == WHOLE[OTHER[role]] == one.given


@pytest.mark.parametrize("role", STEPS)
def test_the_steps_are_those_that_a_side_makes(machine: Machine, role: str) -> None:
    with Actor(Part(OTHER[role], machine.url(SURVIVOR), VICTIM), process=False) as other:
        other.until_quiet()
        with Actor(Part(role, machine.url(VICTIM), SURVIVOR, patience=LONG), process=True) as one:
            outcome = one.outcome()
            _assert_whole(role, outcome, other.outcome())
    assert tuple(outcome.steps) == STEPS[role]


@pytest.mark.parametrize("role", ASYNC_STEPS)
def test_the_steps_of_asyncio_are_those_that_a_side_makes(machine: Machine, role: str) -> None:
    other = OTHER[BLOCKING[role]]
    with Actor(Part(other, machine.url(VICTIM), SURVIVOR, patience=LONG), process=True) as victim:
        if other in OFFERING:
            victim.until_quiet()
        with Actor(Part(role, machine.url(SURVIVOR), VICTIM, peer="data/here"), process=False) as one:
            outcome = one.outcome()
            _assert_whole(other, victim.outcome(), outcome)
    assert tuple(step for step in outcome.steps if step in ASYNC_STEPS[role]) == ASYNC_STEPS[role]
