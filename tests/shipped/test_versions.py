"""One version, wherever it is written."""

import re
import tomllib
from pathlib import Path

import xengrant

ROOT = Path(__file__).parents[2]


def test_the_package_says_the_version_of_its_metadata() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == xengrant.__version__


def test_the_newest_changes_are_of_this_version() -> None:
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == xengrant.__version__
