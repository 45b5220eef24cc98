"""Every case of the suite on embedded machines: PV and HVM, tables of both versions, guests with Linux and without."""

from __future__ import annotations

import pytest

from xengrant.testing import Case, all_cases

from .conftest import Suite

MACHINES = [
    ("pv", "dom0", "1"),
    ("hvm", "dom0", "2"),
    ("hvm", "guests", "1"),
    ("pv", "kernels", "1"),
    ("hvm", "kernels", "2"),
]
CASES = [case for case in all_cases() if ".bad_cases" not in type(case).__module__]


@pytest.mark.parametrize("suite", MACHINES, indirect=True, ids=["-".join(machine) for machine in MACHINES])
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_case(case: Case, suite: Suite) -> None:
    result = suite.run(case.name)
    if result["outcome"] == "skipped":
        pytest.skip(result["text"])
    assert result["outcome"] == "passed", result["text"]


def test_most_cases_are_between_two_domains() -> None:
    assert sum(case.needs_two_domains for case in CASES) >= len(CASES) / 2


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 60


def test_a_tenth_at_most_needs_what_a_machine_may_lack() -> None:
    needs = {requirement for case in CASES for requirement in case.requires}
    for lack in ({"dom0", "destroyable peer", "third domain"}, {"Linux"}):
        lacking = [case for case in CASES if {need.name for need in case.requires} & lack]
        assert len(lacking) <= len(CASES) / 10, [case.name for case in lacking]
    assert all(need.reason for need in needs)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_each_case_says_what_it_shows_and_where_it_comes_from(case: Case) -> None:
    assert case.title
    assert not case.title.endswith(".")
    assert case.source
    assert case.peer is None or case.peer in case.half_names()
