"""The engine finds what there is to find: an assertion, a crash, a hang, a leak; and what it found is found again."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

from tests.fuzz import __main__ as tool
from tests.fuzz import bounds
from tests.fuzz.engine import Engine, FindingError, load
from tests.fuzz.mutate import MOST_STEPS, mutated
from tests.fuzz.reached import Reached
from tests.fuzz.target import Steps, Target
from tests.fuzz.targets import TARGETS
from tests.fuzz.toys import Crashes, Finds, Hangs, Leaks
from xengrant import meeting
from xengrant.errors import ProtocolError

ENOUGH = 20_000  # inputs


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the toys find is kept apart, and no process is given long to show that it hangs."""
    monkeypatch.setattr(tool, "FOLDER", tmp_path)
    monkeypatch.setattr(tool, "_PATIENCE", 3.0)


def test_what_is_wrong_is_found_with_few_steps_and_found_again() -> None:
    found = tool.run(Finds, 1, inputs=ENOUGH)
    assert "AssertionError: it is there" in found.text
    assert found.finding is not None
    assert [step[1] for step in load(found.finding)] == [3, 1, 2]
    assert "it is there" in found.finding.with_suffix(".txt").read_text()
    again = tool.run(Finds, 1, files=[found.finding])
    assert again.finding == found.finding
    assert "it is there" in again.text


@pytest.mark.parametrize(("target", "says"), [(Crashes, "Segmentation fault"), (Hangs, "it hangs")])
def test_what_ends_the_process_or_never_ends_is_found(target: type[Target], says: str) -> None:
    found = tool.run(target, 1, inputs=ENOUGH)
    assert says in found.text
    assert found.finding is not None
    assert len(load(found.finding)) == 5, "the input that did it"


def test_what_grows_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "_SECONDS", 0.1)
    with pytest.raises(FindingError, match="descriptors, once"):
        _until_found(Engine(Leaks(), 1, Reached(())))
    for file in Leaks.held:
        file.close()


def test_a_finding_is_exit_status_1_and_says_how_to_run_it_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tool, "TARGETS", {"toy-finds": Finds})
    assert tool.main(["--target", "toy-finds", "--inputs", str(ENOUGH), "--seed", "1"]) == 1
    said = capsys.readouterr().out
    assert "FOUND (seed 1)" in said
    command = said.strip().splitlines()[-1].removeprefix("again: python -m tests.fuzz ")
    assert tool.main(command.split()) == 1
    assert "it is there" in capsys.readouterr().out


def test_the_targets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["--list"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == list(TARGETS)


class _Refs(Target):
    """The parser of refs, fed with one letter after the other: which of them gets further, its lines tell."""

    guides = ("meeting.py",)

    def step(self, chance: Random) -> list[str]:
        return ["letter", chance.choice("0123456789-,x")]

    def run(self, steps: Steps) -> None:
        try:
            meeting.parse(0, "", b"0", ["".join(str(step[1]) for step in steps).encode()])
        except ProtocolError as error:
            if "more than" in str(error):
                raise AssertionError(str(error)) from None


def _until_found(engine: Engine) -> None:
    for _ in range(ENOUGH):
        engine.one()


def test_inputs_that_reach_new_lines_are_kept() -> None:
    with Reached(_Refs.guides) as reached:
        engine = Engine(_Refs(), 1, reached)
        engine.replay([[["letter", "x"]]])
        before = reached.lines
        with pytest.raises(FindingError, match="more than"):
            _until_found(engine)
    assert reached.lines > before
    assert engine.new


def test_mutations_keep_the_types_of_arguments_and_the_names_of_steps() -> None:
    chance = Random(3)
    steps: Steps = [["one", 1, "text", True, [2, ["@", 3]]], ["two"]]
    seen = set()
    for _ in range(500):
        steps = mutated(steps, [steps], lambda chance: ["new", chance.randrange(9)], chance)
        assert len(steps) <= MOST_STEPS
        json.dumps(steps)
        for name, *arguments in steps:
            assert name in ("one", "two", "new")
            seen.add(name)
            if name == "one":
                assert [type(argument) for argument in arguments] == [int, str, bool, list]
        if len(steps) < 2:
            steps = [["one", 1, "text", True, [2, ["@", 3]]], ["two"]]
    assert seen == {"one", "two", "new"}
