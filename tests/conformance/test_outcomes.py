"""What the suite says of halves that fail, hang, die or leave something behind."""

from __future__ import annotations

import pytest

from .conftest import Suite


def test_a_failure_in_the_peer_is_told_and_ends_the_other_half(suite: Suite) -> None:
    result = suite.run("bad_cases.peer_raises")
    assert result["outcome"] == "failed"
    assert result["text"].startswith("bad_cases.peer_raises: right: UnexpectedError: one: 1 instead of 2")
    assert "left: the other half failed before it said 'never'" in result["text"]
    assert result["seconds"] < 4


def test_a_failure_here_ends_the_peers_half(suite: Suite) -> None:
    result = suite.run("bad_cases.local_raises")
    assert result["outcome"] == "failed"
    assert result["text"].startswith("bad_cases.local_raises: left: KeyError: 'left'")
    assert result["seconds"] < 4


def test_a_half_that_hangs_is_ended_and_its_last_step_told(suite: Suite) -> None:
    result = suite.run("bad_cases.hangs")
    assert result["outcome"] == "failed"
    assert "bad_cases.hangs: right: not done after 1 seconds; its last step: sleeping" in result["text"]


def test_a_wait_for_the_other_half_has_a_deadline(suite: Suite) -> None:
    result = suite.run("bad_cases.waits")
    assert result["outcome"] == "failed"
    assert "left: TimeoutError: the other half never said 'answer'" in result["text"]


def test_a_half_that_dies_unasked_is_a_failure(suite: Suite) -> None:
    result = suite.run("bad_cases.dies")
    assert result["outcome"] == "failed"
    assert "bad_cases.dies: right: killed by signal 9; its last step: dying" in result["text"]
    assert result["seconds"] < 4


@pytest.mark.parametrize("name", ["leaves_descriptor", "leaves_share"])
def test_what_a_half_leaves_open_is_a_failure(suite: Suite, name: str) -> None:
    result = suite.run(f"bad_cases.{name}")
    assert result["outcome"] == "failed"
    assert "left open" in result["text"]


def test_a_half_that_cannot_run_is_a_skip_with_its_reason(suite: Suite) -> None:
    result = suite.run("bad_cases.skips")
    assert result["outcome"] == "skipped"
    assert "the moon is in the way" in result["text"]


def test_halves_exchange_values_and_may_die_by_kill(suite: Suite) -> None:
    result = suite.run("bad_cases.passes")
    assert result["outcome"] == "passed", result["text"]
