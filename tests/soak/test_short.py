"""The short form of the soak, and soaks of machines that leak, which have to find it. `make soak` is the long one."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.soak.machine import LEAKS
from tests.soak.run import Outcome, Soak


def run(soak: Soak, seconds: float) -> Outcome:
    def ignore(left: float, counts: Counter[str]) -> None:
        pass

    with soak:
        return soak.run(seconds, ignore)


def test_all_is_given_back_when_domains_have_died() -> None:
    outcome = run(Soak(6, pause=0.5), 9)
    assert not outcome.wrong, "\n".join(outcome.wrong)
    for name in ("shares", "maps", "copies", "notifications", "vchan bytes", "xenstore requests", "answers"):
        assert outcome.counts[name], f"no {name} in {outcome.counts}"
    for name in ("domains destroyed", "processes killed", "processes stopped", "sessions broken by a death"):
        assert outcome.counts[name], f"no {name}: choose another seed; {outcome.counts}"


@pytest.mark.parametrize("leak", LEAKS)
def test_a_leak_is_found(leak: str) -> None:
    outcome = run(Soak(6, pause=0.2, leak=leak, kills_only=True, patience=1), 1.5)
    assert outcome.counts["processes killed"]
    assert any(leak in text for text in outcome.wrong), outcome
