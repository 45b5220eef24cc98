"""A tool that is asked what it can do answers before one notices: it imports nothing for that."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest

import xengrant
from xengrant.cli.commands import COMMANDS

_DEAR = ("asyncio", "rich", "numpy", "pyarrow", "socket", "subprocess", "xengrant._native", "xengrant.domain")


_ASKED = """
import sys
from xengrant.cli import main
try:
    main(sys.argv[1:])
finally:
    print(*sys.modules, file=sys.stderr)
"""


def _imported(*arguments: str) -> set[str]:
    """What `xengrant ARGUMENTS` has imported when it ends."""
    command = [sys.executable, "-c", _ASKED, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return set(done.stderr.split())


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_it_imports_nothing_dear_and_no_subcommand(option: str) -> None:
    names = _imported(option)
    assert "xengrant.cli.arguments" in names
    assert not names & set(_DEAR)
    assert not names & {f"xengrant.cli.{command}" for command in COMMANDS}


def test_a_subcommand_imports_no_other() -> None:
    names = _imported("share", "--help")
    assert names & {f"xengrant.cli.{command}" for command in COMMANDS} == {"xengrant.cli.share"}
    assert not names & {"asyncio", "rich", "numpy", "xengrant._native"}


def test_public_names_come_from_the_modules_that_have_them() -> None:
    """`import xengrant` imports none of them; what a type checker reads there is what a program gets."""
    assert set(xengrant.__all__) <= set(dir(xengrant))
    for name in xengrant.__all__:
        value = getattr(xengrant, name)
        if not isinstance(value, int):
            assert value is getattr(sys.modules[value.__module__], name) or isinstance(value, ModuleType)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        xengrant.nothing  # type: ignore[attr-defined]  # noqa: B018
