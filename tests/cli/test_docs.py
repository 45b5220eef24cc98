"""docs/tool.md against the tool: no command and no option is missing there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .shell import User

DOCS = (Path(__file__).parents[2] / "docs/tool.md").read_text()


@pytest.mark.parametrize(
    "command",
    [
        *("demo", "doctor", "share", "map", "cat", "proxy", "ls", "peek console", "peek xenstore", "metrics"),
        *("machine", "machine status", "machine destroy", "selftest", "block serve", "block attach"),
    ],
)
def test_every_option_is_in_the_docs(nobody: User, command: str) -> None:
    assert re.search(rf"^(## |    xengrant |    \$ xengrant ){command}\b", DOCS, re.MULTILINE)
    usage = nobody.run(*command.split(), "--help").stdout.decode().partition("\nusage:")[2]
    assert "--url" in usage
    options = set(re.findall(r"--[a-z-]+", usage)) - {"--help"}
    assert options - set(re.findall(r"--[a-z-]+", DOCS)) == set()
