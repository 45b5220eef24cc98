"""docs/pytest.md: its tests pass, and what it says of a test that leaves something open is what such a test is told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

GUIDE = Path(__file__).parents[2] / "docs" / "pytest.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("number", "tests"), [(0, 1), (1, 3)])
def test_the_guides_tests_pass(pytester: pytest.Pytester, number: int, tests: int) -> None:
    pytester.makepyfile(BLOCKS[number])
    pytester.runpytest_subprocess("-p", "xengrant.pytest").assert_outcomes(passed=tests)


def test_every_program_of_the_guide_is_tried() -> None:
    assert len(BLOCKS) == 2


def test_what_is_left_open_is_told_as_the_guide_says(pytester: pytest.Pytester) -> None:
    said = re.findall(r"^    (the test did not .*|left to .*unclosed <Mapping 1 page)", GUIDE.read_text(), re.MULTILINE)
    source = "def test(domains):\n    domains(1)[0].gntshr().share_pages(2, 1, writable=True)\n"
    pytester.makepyfile(source)
    result = pytester.runpytest_subprocess("-p", "xengrant.pytest")
    result.stdout.fnmatch_lines([f"{line}*" for line in said])
    assert len(said) == 2


def test_its_fixtures_and_faults_are_in_the_guide() -> None:
    import xengrant.pytest

    text = GUIDE.read_text()
    for name in [n for n in dir(xengrant.pytest.Faults) if not n.startswith("_")]:
        assert f"`{name}(" in text or f"`with {name}(" in text, name
    for name in ("domains", "domains.join", "xen_machine", "xen_faults"):
        assert re.search(rf"^\| `{name}[`(]", text, re.MULTILINE), name
