"""Either side killed, stopped, destroyed or paused at every step of sharing, mapping, notifying and a vchan's life.

Who is struck is a process. It has done everything before a step and nothing of it, while the other side waits for it;
or it is itself what waits, while the other side is held before a step of its own and finds out later. Then the other
ends in time with all that it was given, leaves nothing behind, and starts again with a new peer.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.evidence import Table
from tests.faults.actors import LONG, Actor, Outcome, Part
from tests.faults.conftest import SURVIVOR, VICTIM, chosen, introduce
from tests.faults.expected import (
    DESTROYED,
    DESTROYED_MEANWHILE,
    KILLED,
    KILLED_MEANWHILE,
    OFFERING,
    expected_of,
    is_offered,
)
from tests.faults.roles import ANSWER, OTHER, WHOLE
from tests.faults.steps import STEPS
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


def _rows(*faults: Fault) -> list[tuple[str, int, Fault]]:
    return [(role, step, fault) for role, steps in STEPS.items() for step in range(len(steps)) for fault in faults]


def _id(value: Any) -> str:
    return value.name if isinstance(value, Fault) else str(value)


@pytest.mark.parametrize(("role", "step", "fault"), chosen(_rows(*Fault), 17), ids=_id)
def test_one_side_is_struck_and_the_other_survives(
    machine: Machine, evidence: Callable[..., Table], role: str, step: int, fault: Fault
) -> None:
    table = DESTROYED if fault is Fault.DESTROY else KILLED
    expected = expected_of(table, role, STEPS[role][step]) if fault in LASTING else "whole"
    survivor = Actor(Part(OTHER[role], machine.url(SURVIVOR), VICTIM, peer="data/here"), process=False)
    with survivor:
        survivor.until_quiet()
        part = Part(role, machine.url(VICTIM), SURVIVOR, hold_at=STEPS[role][step], patience=LONG)
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
        evidence("faults", COLUMNS).add(
            name, f"{fault.value} of the {role}", OTHER[role], saw.saw, saw.seconds - started
        )
        _start_again(machine, survivor, role)


@pytest.mark.parametrize(("role", "step", "fault"), chosen(_rows(Fault.KILL, Fault.DESTROY), 13), ids=_id)
def test_a_side_that_was_busy_when_the_other_was_struck_survives(
    machine: Machine, evidence: Callable[..., Table], role: str, step: int, fault: Fault
) -> None:
    table = DESTROYED_MEANWHILE if fault is Fault.DESTROY else KILLED_MEANWHILE
    expected = expected_of(table, role, STEPS[role][step])
    with Actor(Part(OTHER[role], machine.url(VICTIM), SURVIVOR), process=True) as victim:
        victim.until_quiet()
        patience = 1.0 if expected == "late" else LONG
        part = Part(role, machine.url(SURVIVOR), VICTIM, peer="data/here", hold_at=STEPS[role][step], patience=patience)
        survivor = Actor(part, process=False)
        with survivor:
            assert survivor.until_held() == STEPS[role][step]
            waits = victim.until_quiet(found=is_offered(role, STEPS[role][step]))
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
            if expected in ("told", "whole"):
                assert saw.received == given, f"{len(saw.received)} of {len(given)} bytes were received: {saw}"
            name = STEPS[role][step]
            fault_name = f"{fault.value} of the {OTHER[role]} meanwhile"
            evidence("faults", COLUMNS).add(name, fault_name, role, saw.saw, saw.seconds - started)
            _start_again(machine, survivor, OTHER[role])


def _outcome(survivor: Actor, expected: str) -> Outcome:
    """How the survivor ends, in time, which is to be as is expected."""
    if expected == "late":
        assert survivor.until_quiet(), f"nothing could tell it, yet it ended: {survivor.outcome()}"
        survivor.say("give up")
    saw = survivor.outcome()
    assert saw.kind == expected, f"{saw}"
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


def _start_again(machine: Machine, survivor: Actor, role: str) -> None:
    """The survivor's own role once more, in the same `Domain`, with a new process in the role of the other side."""
    introduce(machine, VICTIM)
    if role not in OFFERING:
        survivor.again()
        survivor.until_quiet()
    with Actor(Part(role, machine.url(VICTIM), SURVIVOR), process=True) as successor:
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
