"""Does the same steps on two machines and compares what comes of each: `Run` is one example, `Record` what many showed.

Called by the state machine here, which chooses the steps, and by `replay`, which is given them. The first machine is
asked first; a difference ends the example, and is kept with the steps that led to it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.differential.actor import Outcome, Step
from tests.differential.allowed import allowed
from tests.differential.pair import GUEST, SIDES, Pair
from tests.differential.things import Fate, Things

__all__ = ["Difference", "DriverFailed", "Record", "Run", "replay", "shortest"]

EVENT_SECONDS = 30.0
"""What an event that the first machine had may take on the second one."""

NO_EVENT_SECONDS = 0.03
"""What is waited on the second machine for an event that the first one had not."""


@dataclass(frozen=True)
class Difference:
    """The first step of an example whose outcomes differ, and the steps up to it."""

    steps: Sequence[Step]
    outcomes: tuple[Any, Any]
    machines: tuple[str, str]

    @property
    def signature(self) -> str:
        """What two examples of one cause have in common."""
        return f"{self.steps[-1]['do']}: {' / '.join(map(_kind, self.outcomes))}"

    def __str__(self) -> str:
        both = zip(self.machines, self.outcomes, strict=True)
        told = [f"    {machine}: {json.dumps(outcome)}" for machine, outcome in both]
        return "\n".join([f"they differ: {self.signature}", *told, "steps, to be run again:", json.dumps(self.steps)])


@dataclass
class Record:
    """What many runs have done: how often each step, how often it was refused alike, and where they differed."""

    done: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    allowed: Counter[str] = field(default_factory=Counter)
    differences: list[Difference] = field(default_factory=list)
    examples: int = 0

    COLUMNS = ("step", "times on both", "refused alike", "allowed differences", "differences")

    def rows(self) -> list[list[str | int]]:
        found = Counter(difference.steps[-1]["do"] for difference in self.differences)
        counts = (self.done, self.refused, self.allowed, found)
        return [[name, *(count[name] for count in counts)] for name in sorted(self.done)]


class DriverFailed(BaseException):
    """A step had no outcome: an actor, its machine or this is broken. Hypothesis would try an `Exception` again."""


class Run:
    """One example, from nothing to nothing, on both machines."""

    def __init__(self, one: Pair, other: Pair, record: Record) -> None:
        self.pairs = (one, other)
        self.guest = one.domids[GUEST]
        self.things = Things()
        self.steps: list[Step] = []
        self.is_over = False
        self.is_broken = False
        self._waited: dict[str, bool] = {}
        self._record = record
        record.examples += 1
        for pair in self.pairs:
            pair.begin()

    def do(self, step: Step) -> Outcome:
        """Do a step on both; the outcome, of the first one. Nothing once they have differed."""
        if self.is_over:
            return {}
        self.steps.append(step)
        try:
            one = _plain(self.pairs[0].do(step))
            other = _plain(self.pairs[1].do(_with_patience(step, one)))
        except Exception as error:
            self.is_broken = True
            raise DriverFailed(json.dumps(self.steps)) from error
        self._compare(one, other)
        self.things.note(step, one)
        if step["do"] == "wait":
            self._waited[step["of"]] = "ok" in one
        return one

    def look(self) -> None:
        """Compare all that can be seen: every object, the contents of all pages, the guest's table as dom0 sees it."""
        for side in SIDES:
            self.do({"do": "look", "side": side})
        self.granted()

    def granted(self) -> None:
        """Compare the guest's table, as dom0 sees it."""
        if not self.is_over:
            self.steps.append({"do": "granted", "side": GUEST})
            live = [each.name for each in self.things.of_kind("share", side=GUEST, is_open=True)]
            self._compare(*(_plain(pair.granted(live)) for pair in self.pairs))

    def finish(self) -> None:
        """Look once more, close everything, and see that nothing is left."""
        if self.is_broken:
            return
        self.look()
        for pair in self.pairs:
            pair.end()
        left = [pair.left() for pair in self.pairs]
        if not self.is_over:
            self.steps.append({"do": "end", "side": GUEST})
            self._compare(*({"ok": each} for each in left))
            if any(left) and not self.is_over:
                self._differ(*left)

    def is_certain(self, name: str, page: int) -> bool:
        """Whether a revoked reference of a share is nobody else's by now, on either machine."""
        return not any(pair.is_used_again(name, page) for pair in self.pairs)

    def last_wait_had_event(self, port: str) -> bool:
        """Whether the wait before this one, on the first machine, was not in vain."""
        return self._waited.get(port, False)

    def grants(self, side: str) -> list[dict[str, Any]]:
        """The pages that `side` can be asked to map or copy: the other side's, those that are revoked too."""
        granter = next(other for other in SIDES if other != side)
        return [
            {"share": name, "page": page}
            for (name, page), fate in self.things.pages(granter)
            if fate is not Fate.REVOKED or self.is_certain(name, page)
        ]

    def _compare(self, one: Outcome, other: Outcome) -> None:
        step = self.steps[-1]
        doing = step["do"]
        self._record.done[doing] += 1
        if one == other:
            self._record.refused[doing] += "error" in one
        elif allowed(self, step, one, other):
            self._record.allowed[doing] += 1
            self.is_over = not step.get("unmask")  # else what comes after would differ too
        else:
            self._differ(one, other)

    def _differ(self, one: Any, other: Any) -> None:
        self.is_over = True
        machines = (self.pairs[0].name, self.pairs[1].name)
        self._record.differences.append(Difference(tuple(self.steps), (one, other), machines))


def replay(one: Pair, other: Pair, steps: Iterable[Step], record: Record | None = None) -> Difference | None:
    """Do steps that were told before; the first difference."""
    record = record or Record()
    run = Run(one, other, record)
    for step in steps:
        if step["do"] == "granted":
            run.granted()
        elif step["do"] != "end" and _is_possible(step, run.things):
            run.do(step)
    run.finish()
    return record.differences[-1] if run.is_over else None


def shortest(one: Pair, other: Pair, difference: Difference, tries: int) -> Difference:
    """The same difference with as few steps as `tries` replays find: each step is left out in turn."""
    at = len(difference.steps) - 2
    while at >= 0 and tries:
        steps = [*difference.steps[:at], *difference.steps[at + 1 :]]
        found = replay(one, other, steps)
        tries -= 1
        if found is not None and found.signature == difference.signature:
            difference = found
        at = min(at, len(difference.steps) - 1) - 1
    return difference


def _is_possible(step: Step, things: Things) -> bool:
    """Whether all that the step names is there: of a shortened example it may not be."""
    grants = [step.get("grants", []), *([each["source"], each["dest"]] for each in step.get("segments", []))]
    names = [step.get("with"), step.get("of"), step.get("port"), (step.get("notify") or {}).get("port")]
    for side in (side for sides in grants for side in sides):
        names.append(side["share"] if isinstance(side, dict) else side)
    return all(name in things.all for name in names if isinstance(name, str))


def _with_patience(step: Step, outcome: Outcome) -> Step:
    """Events of real machines take a moment: the wait is as long as the first machine's outcome asks for."""
    if step["do"] != "wait":
        return step
    return step | {"seconds": EVENT_SECONDS if "ok" in outcome else NO_EVENT_SECONDS}


def _plain(outcome: Outcome) -> Outcome:
    plain: Outcome = json.loads(json.dumps(outcome))
    return plain


def _kind(outcome: Any) -> str:
    error = outcome.get("error") if isinstance(outcome, dict) else None
    if error is None:
        return "done"
    known = [str(error[name]) for name in ("type", "errno", "limit") if name in error]
    return " ".join([*known, *map(str, sorted(set(error.get("statuses", ()))))])
