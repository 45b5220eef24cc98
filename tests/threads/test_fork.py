"""A fork in the middle of a call, with one of each thing open: the child has nothing, and the parent loses nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.evidence import Table
from xengrant.embedded import Machine

from . import things
from .program import KINDS, run

COLUMNS = ("step", "fault", "side", "what was seen", "seconds")

Evidence = Callable[[str, Sequence[str]], Table]
Results = dict[str, dict[str, Any]]

# What opens a device for each of its calls forks in the middle of one where its thread is at it, not where main is.
IN_HANDLERS = [kind for kind in things.KINDS if kind not in ("domain", "find")]


def _results(mode: str, kinds: Sequence[str]) -> Results:
    """What the program says of each kind; one program for all, since starting one takes long."""
    with Machine(reclaim_interval=0.01) as machine:
        ran = run(machine.directory, mode, *kinds)
        assert (ran.status, ran.errors) == (0, ""), f"it ended with {ran.status}\n{ran.told}\n{ran.errors}"
        assert not machine.leaks()
    return {result["name"]: result for result in map(json.loads, ran.told.splitlines())}


@pytest.fixture(scope="module")
def of_threads() -> Results:
    return _results("fork", list(KINDS))


@pytest.fixture(scope="module")
def of_handlers() -> Results:
    return _results("handler", IN_HANDLERS)


def told(result: dict[str, Any]) -> str:
    """What the children were told."""
    assert not result["failure"], result["failure"]
    errors = {said.rpartition(": ")[2] for said in result["said"]}
    return ", ".join(sorted(errors)) or "nothing of the parent's is used"


def _keep(evidence: Evidence, kind: str, fault: str, seen: str, results: Results) -> None:
    evidence("faults", COLUMNS).add(f"in a call: {kind}", fault, "both", seen, results[kind]["seconds"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_fork_leaves_the_child_nothing_and_takes_the_parent_nothing(
    kind: str, of_threads: Results, evidence: Evidence
) -> None:
    seen = f"the child: {told(of_threads[kind])}; its exit changes nothing; the call goes on and returns"
    _keep(evidence, kind, "fork by another thread", seen, of_threads)


@pytest.mark.parametrize("kind", IN_HANDLERS)
def test_a_call_that_a_signal_handler_forks_in_is_refused_in_the_child_and_goes_on_in_the_parent(
    kind: str, of_handlers: Results, evidence: Evidence
) -> None:
    seen = f"the call in the child: {told(of_handlers[kind])}; the parent's goes on and returns"
    _keep(evidence, kind, "fork by a signal handler", seen, of_handlers)
