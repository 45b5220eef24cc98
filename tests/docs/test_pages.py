"""Each page of the documentation does what it says, from its first block to its last."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from tests.docs import blocks
from tests.docs.parsing import RUN, blocks_of

ROOT = Path(__file__).parents[2]

ELSEWHERE = {
    "docs/data.md": "tests/data/test_docs.py",
    "docs/pv.md": "tests/pv/test_docs.py",
    "docs/pytest.md": "tests/plugin/test_docs.py",
    "docs/rings.md": "tests/rings/test_docs.py",
}
"""Pages whose programs have a test of their own, which knows what else they need."""

NOT_RUN: dict[str, dict[str, int]] = {
    "README.md": {"checkout": 2, "tests": 1},
    "docs/benchmarks.md": {"lab": 1},
    "docs/howto/test-on-real-xen.md": {"lab": 1},
    "docs/pv-block.md": {"xen": 2},
    "docs/tutorial.md": {"checkout": 1, "lab": 2},
}
"""For each page, how many of its blocks need what is not here, by what that is: a new one is a decision.

`make check-docs` runs those of README and the tutorial."""


def _pages() -> list[str]:
    paths = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    written = [path for path in paths if any(block.language in RUN for block in blocks_of(path))]
    return sorted(str(path.relative_to(ROOT)) for path in written)


@pytest.mark.parametrize("name", [name for name in _pages() if name not in ELSEWHERE])
def test_a_page_does_what_it_says(name: str) -> None:
    blocks.run(ROOT / name)


def test_what_is_not_run_is_known() -> None:
    found = {name: dict(Counter(blocks.not_run(ROOT / name))) for name in _pages()}
    assert {name: needs for name, needs in found.items() if needs} == NOT_RUN


INDENTED = {
    "docs/architecture.md",  # the layers
    "docs/pv.md",  # a fragment, of two domains
    "docs/pytest.md",  # output, which its test knows
    "docs/tool.md",  # held against the tool by tests/cli/test_docs.py
}
"""Pages with code that is only indented, which nobody runs."""


def test_code_is_fenced_so_that_it_is_run() -> None:
    def has_indented(path: Path) -> bool:
        outside = path.read_text().split("\n```")[::2]  # every other piece is a block's
        return any(re.search(r"\n\n {4}\S", text) for text in outside)

    pages = [path for path in (ROOT / "docs").rglob("*.md") if has_indented(path)]
    assert {path.relative_to(ROOT).as_posix() for path in pages} - INDENTED == set()


def test_pages_run_elsewhere_are_there() -> None:
    assert set(ELSEWHERE) <= set(_pages())
    assert [test for test in ELSEWHERE.values() if not (ROOT / test).exists()] == []
