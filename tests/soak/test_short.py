"""The short form of the soak, and soaks of machines that leak, which have to find it. `make soak` is the long one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest

from tests.soak.machine import LEAKS
from tests.soak.run import Outcome, Soak

_DONE = ("shares", "maps", "copies", "notifications", "vchan bytes", "xenstore requests", "answers")
_DEATH = "sessions broken by a death"
_BEFELL = ("domains destroyed", "domains paused", "processes killed", "processes stopped", _DEATH)


def run(soak: Soak, seconds: float, *, until: Iterable[str]) -> Outcome:
    def ignore(left: float, counts: Counter[str]) -> None:
        pass

    with soak:
        return soak.run(seconds, ignore, until=until)


def test_all_is_given_back_when_domains_have_died() -> None:
    outcome = run(Soak(6, pause=0.5), 6, until=[*_DONE, *_BEFELL])
    assert not outcome.wrong, "\n".join(outcome.wrong)
    missing = [name for name in (*_DONE, *_BEFELL) if not outcome.counts[name]]
    assert not missing, f"it never came to {missing}: {outcome.counts}"


@pytest.mark.parametrize("leak", LEAKS)
def test_a_leak_is_found(leak: str) -> None:
    outcome = run(Soak(6, pause=0.3, leak=leak, kills_only=True, patience=1), 0, until=[_DEATH])
    assert any(leak in text for text in outcome.wrong), outcome
