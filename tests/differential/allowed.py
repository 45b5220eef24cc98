"""The differences between the embedded machine and real Xen that the differential test passes by, each with its reason.

Each is a row of docs/differences.md, and pinned by the test that it names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from tests.differential.actor import Outcome, Step

if TYPE_CHECKING:
    from tests.differential.run import Run

__all__ = ["ALLOWED", "Allowed", "allowed"]


class Allowed(NamedTuple):
    """One difference: how it is known, why it is, and the test that says what the embedded machine does."""

    name: str
    reason: str
    pinned_by: str
    is_it: Callable[[Run, Step, Outcome, Outcome], bool]


def _is_event_of_the_other_only(step: Step, one: Outcome, other: Outcome) -> bool:
    return step["do"] == "wait" and "error" in one and "ok" in other


def _is_second_event(run: Run, step: Step, one: Outcome, other: Outcome) -> bool:
    return _is_event_of_the_other_only(step, one, other) and run.last_wait_had_event(step["of"])


def _is_stale_event(run: Run, step: Step, one: Outcome, other: Outcome) -> bool:
    return _is_event_of_the_other_only(step, one, other) and run.pairs[1].port_was_used_before(step["of"])


ALLOWED = (
    Allowed(
        "a second event",
        "Linux takes an event into the file's ring as it comes, and what comes after that, before anybody waits, is "
        "pending and comes next. On an embedded machine all that came before a wait is one.",
        "tests/embedded/test_evtchn.py::test_all_events_before_a_read_are_one",
        _is_second_event,
    ),
    Allowed(
        "an event that was not read when its port was closed",
        "Linux leaves it in the file's ring, and it comes on the port that gets the number next; a spurious event is "
        "something that every program has to expect. On an embedded machine it goes with its port.",
        "tests/embedded/test_evtchn.py::test_an_event_that_nobody_read_goes_with_its_port",
        _is_stale_event,
    ),
)


def allowed(run: Run, step: Step, one: Outcome, other: Outcome) -> bool:
    """Whether a difference between two outcomes is one of these. The first is an embedded machine's."""
    return any(each.is_it(run, step, one, other) for each in ALLOWED)
