"""The arrows between the folders beside the package: `shipping` uses the lab's tools, and nothing uses `shipping`."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# setup.py runs these wherever a wheel is built, and Debian builds it so.
OF_EVERY_BUILD = ("__init__", "__main__", "completions", "fish", "manual")


def _imported(file: Path) -> set[str]:
    """The first part of each module that it names."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("folder", ["benchmarks", "examples", "lab", "src"])
def test_nothing_needs_what_makes_packages(folder: str) -> None:
    files = [file for file in (ROOT / folder).rglob("*.py") if "shipping" in _imported(file)]
    assert files == []


@pytest.mark.parametrize("name", OF_EVERY_BUILD)
def test_a_build_needs_no_lab(name: str) -> None:
    assert not {"lab", "tests"} & _imported(ROOT / "shipping" / f"{name}.py")
