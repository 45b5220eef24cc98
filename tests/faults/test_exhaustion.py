"""Either side out of something at every step that takes some: told of what, keeping nothing, well when there is more.

The other side waits meanwhile, and goes on with whoever comes then.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import pytest

import xengrant
from tests.evidence import Table
from tests.faults.actors import LONG, Actor, Outcome, Part
from tests.faults.conftest import SURVIVOR, VICTIM, chosen
from tests.faults.roles import OTHER, WHOLE
from tests.faults.shortages import (
    full_table,
    gntalloc_limit,
    gntdev_total,
    maptrack,
    no_ports,
    short_of_memory,
    xenstore_nodes,
    xenstore_transactions,
    xenstore_watches,
)
from tests.faults.steps import STEPS
from tests.faults.test_peers import COLUMNS
from xengrant.embedded import Machine

Shortage = Callable[[Machine, int], AbstractContextManager[None]]

# What runs out; who takes how many of it, so that it runs out at each of them; what that one is told.
ROWS = [
    (shortage, role, left, saw)
    for shortage, roles in {
        gntalloc_limit: {"granter": (2, "GrantTableFull"), "server": (2, "GrantTableFull")},
        full_table: {"granter": (2, "GrantTableFull"), "server": (2, "GrantTableFull")},
        no_ports: dict.fromkeys(STEPS, (1, "InterfaceUnavailable")),
        maptrack: {"mapper": (1, "MapError"), "client": (1, "TimeoutError")},
        gntdev_total: {"mapper": (2, "OSError"), "client": (2, "OSError")},
        xenstore_nodes: {"granter": (6, "XenStoreError"), "server": (5, "XenStoreError")},
        xenstore_watches: {"mapper": (1, "XenStoreError"), "client": (1, "XenStoreError")},
        xenstore_transactions: dict.fromkeys(("granter", "mapper", "server"), (1, "XenStoreError")),
    }.items()
    for role, (needed, saw) in roles.items()
    for left in range(needed)
]


def _id(value: Any) -> str:
    return value.__name__ if callable(value) else str(value)


@pytest.mark.parametrize(("shortage", "role", "left", "saw"), chosen(ROWS, 3), ids=_id)
def test_who_is_short_of_something_is_told_and_goes_on_when_there_is_more(
    machine: Machine, evidence: Callable[..., Table], shortage: Shortage, role: str, left: int, saw: str
) -> None:
    with ExitStack() as stack:
        with shortage(machine, left):
            part = Part(role, machine.url(VICTIM), SURVIVOR, patience=1.0 if saw == "TimeoutError" else LONG)
            before, started = _held(machine), time.monotonic()
            one, other = _both(machine, stack, part)
            if saw == "TimeoutError":
                one.until_quiet()
                one.say("give up")
            outcome = _is_told_and_has_given_back(machine, one, saw, before)
        fault = f"{shortage.__name__.replace('_', ' ')}, {left} left"
        evidence("faults", COLUMNS).add("all", fault, role, *outcome.since(started))
        _goes_on(one, other)


DESCRIPTORS = {"granter": 9, "mapper": 7, "server": 15, "client": 16}
"""How many each role needs in all."""

NEEDS = [(role, left) for role, needed in DESCRIPTORS.items() for left in range(needed)]


@pytest.mark.parametrize(("role", "left"), chosen(NEEDS, 11))
def test_a_process_without_descriptors_is_told_and_goes_on_when_there_are_more(
    machine: Machine, evidence: Callable[..., Table], role: str, left: int
) -> None:
    part = Part(role, machine.url(VICTIM), SURVIVOR, patience=LONG, descriptors=left)
    before, started = _held(machine), time.monotonic()
    with ExitStack() as stack:
        one, other = _both(machine, stack, part)
        outcome = _is_told_and_has_given_back(machine, one, "InterfaceUnavailable", before)
        assert "raise RLIMIT_NOFILE" in outcome.text, outcome
        fault = f"descriptors of its process, {left} left"
        evidence("faults", COLUMNS).add("all", fault, role, *outcome.since(started))
        _goes_on(one, other)


@pytest.mark.parametrize("role", DESCRIPTORS)
def test_with_so_many_descriptors_it_works(machine: Machine, role: str) -> None:
    """Else the rows above would not be all that there are."""
    part = Part(role, machine.url(VICTIM), SURVIVOR, patience=LONG, descriptors=DESCRIPTORS[role])
    with ExitStack() as stack:
        one, other = _both(machine, stack, part)
        assert one.outcome().kind == other.outcome().kind == "whole", f"{one.outcome()}; {other.outcome()}"


MANY = 2048  # pages: twice as much as there is memory for


@pytest.mark.parametrize("call", ["share", "map"])
def test_a_process_without_memory_is_told_and_goes_on_when_there_is_more(
    machine: Machine, evidence: Callable[..., Table], call: str
) -> None:
    machine.configure(SURVIVOR, gntalloc_limit=MANY)
    machine.configure(VICTIM, gntalloc_limit=MANY)
    with (
        xengrant.connect(machine.url(SURVIVOR)) as domain,
        domain.gntshr() as gntshr,
        gntshr.share_pages(VICTIM, MANY, writable=True) as share,
    ):
        before, started = _held(machine), time.monotonic()
        refs = list(share.refs) if call == "map" else None
        with short_of_memory(machine.url(VICTIM), SURVIVOR, MANY, refs) as told:
            saw, number = told()
            assert (saw, number) == ("OSError", errno.ENOMEM)
            assert _held(machine) == before, f"it holds {_held(machine)}, and {before} before"
            evidence("faults", COLUMNS).add(
                f"{call} of {MANY} pages",
                f"memory of its process, {MANY // 2} pages left",
                call,
                saw,
                time.monotonic() - started,
            )
            assert told() == ("all of it", 0)


def _both(machine: Machine, stack: ExitStack, part: Part) -> tuple[Actor, Actor]:
    """The part, in a process, and the other side, which was there first and waits."""
    other = stack.enter_context(Actor(Part(OTHER[part.role], machine.url(part.other), VICTIM), process=False))
    other.until_quiet()
    return stack.enter_context(Actor(part, process=True)), other


def _is_told_and_has_given_back(machine: Machine, one: Actor, saw: str, before: dict[str, int]) -> Outcome:
    outcome = one.outcome()
    assert outcome.saw == saw or (saw, outcome.saw) == ("InterfaceUnavailable", "DescriptorsLostError"), outcome
    assert _held(machine) == before, f"it holds {_held(machine)}, and {before} before"
    return outcome


def _goes_on(one: Actor, other: Actor) -> None:
    if not other.until_quiet():  # a client that had mapped the first page was one, and has left
        assert (one.role, other.outcome().kind) == ("client", "told"), other.outcome()
        other.again()
        other.until_quiet()
    one.again()
    assert one.outcome().received == WHOLE[one.role], one.outcome()
    assert other.outcome().received == WHOLE[other.role], other.outcome()


def _held(machine: Machine) -> dict[str, int]:
    """What the domain holds, but for its processes' open files."""
    status = machine.status()["domains"][VICTIM]
    return {name: status[name] for name in ("grants", "mapped", "maps", "mmaps", "ports", "deferred")}
