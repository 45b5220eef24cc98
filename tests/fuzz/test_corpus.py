"""Every fuzzer's corpus again, and a few new inputs, the same ones each time. `make fuzz` goes on from there."""

from __future__ import annotations

import pytest

from tests.fuzz.__main__ import run
from tests.fuzz.engine import CORPUS, Engine, corpus
from tests.fuzz.reached import Reached
from tests.fuzz.targets import TARGETS

_SEED = 1


@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if not target.isolated])
def test_the_corpus_and_a_few_new_inputs_find_nothing(name: str) -> None:
    target = TARGETS[name]()
    with target.opened():
        engine = Engine(target, _SEED, Reached(()))
        engine.replay(corpus(target).values())
        for _ in range(target.short):
            engine.one()
        engine.check()


@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if target.isolated])
def test_the_corpus_and_a_few_new_inputs_crash_nothing(name: str) -> None:
    found = run(TARGETS[name], _SEED, inputs=TARGETS[name].short)
    assert found.finding is None, f"{found.finding}\n{found.text}"
    assert found.inputs >= TARGETS[name].short


def test_the_corpus_is_small_and_belongs_to_targets() -> None:
    files = list(CORPUS.glob("*/*.json"))
    assert {file.parent.name for file in files} == set(TARGETS)
    assert sum(file.stat().st_size for file in files) < 200_000
