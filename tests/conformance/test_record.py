"""Results: the summary, JSON, and what is recorded as seen."""

from __future__ import annotations

from xengrant.testing import Result, as_json, find, summary
from xengrant.testing.record import merged
from xengrant.testing.seen import SEEN


def result(case: str, outcome: str, machine: str = "here") -> Result:
    return Result(case, "a title", machine, outcome, 1.0)  # type: ignore[arg-type]


def test_the_summary_counts() -> None:
    results = [result("a", "passed"), result("b", "passed"), result("c", "failed"), result("d", "skipped")]
    assert summary(results) == "2 passed, 1 failed, 1 skipped"
    assert summary([]) == "0 passed, 0 failed, 0 skipped"


def test_json_has_every_result() -> None:
    found = as_json([result("a", "passed"), result("b", "failed", "there")])
    assert found["machines"] == ["here", "there"]
    assert [entry["case"] for entry in found["results"]] == ["a", "b"]


def test_what_failed_or_was_skipped_is_not_seen() -> None:
    before = {"here": frozenset({"share.one_page", "copy.offsets"}), "there": frozenset({"share.one_page"})}
    results = as_json(
        [result("share.one_page", "failed"), result("map.order_asked", "passed"), result("no.such_case", "passed")]
    )["results"]
    assert merged(before, results) == {
        "here": frozenset({"copy.offsets", "map.order_asked"}),
        "there": frozenset({"share.one_page"}),
    }


def test_what_is_recorded_are_cases() -> None:
    for names in SEEN.values():
        for name in names.split():
            case = find(name)
            assert case is not None, name
            assert case.seen
