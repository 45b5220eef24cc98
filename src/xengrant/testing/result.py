"""How a case ended, and how a whole run did: what `runner` returns and the tool prints or writes as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

__all__ = ["Outcome", "Result", "as_json", "summary"]

Outcome = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Result:
    """How one case ended on one machine; `text` is the failure or the reason of the skip."""

    case: str
    title: str
    machine: str
    outcome: Outcome
    seconds: float
    text: str = ""

    def __str__(self) -> str:
        line = f"{self.outcome:7} {self.case}: {self.title}"
        return f"{line}\n        {self.text}" if self.text else line


def summary(results: Sequence[Result]) -> str:
    """The last line of a run: how many passed, failed and were skipped."""
    outcomes = [result.outcome for result in results]
    return ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in get_args(Outcome))


def as_json(results: Sequence[Result]) -> dict[str, Any]:
    """A run as plain values, for `json.dumps`: `summary`, `machines` and `results`."""
    return {
        "summary": summary(results),
        "machines": list(dict.fromkeys(result.machine for result in results)),
        "results": [{**asdict(result), "seconds": round(result.seconds, 3)} for result in results],
    }
