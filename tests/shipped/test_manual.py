"""Manual pages: each subcommand and each option is in one, as it was given to the parser."""

from __future__ import annotations

import argparse
import functools
import re
import subprocess
from collections.abc import Iterator

import pytest

import xengrant
from shipping import manual
from xengrant.cli import statuses
from xengrant.cli.commands import COMMANDS, whole_parser

PAGES = manual.pages(whole_parser(), xengrant.__version__)


@functools.cache
def _page(name: str) -> str:
    """A page as it is read, in lines that are long enough for each paragraph."""
    return _roff(PAGES[f"share/man/man1/{name}.1"], "-Tascii", "-P-cbou", "-rLL=2000n", "-rHY=0").stdout


def _roff(page: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = ["groff", "-man", "-ww", *options]
    return subprocess.run(command, input=page, capture_output=True, text=True, timeout=60, check=True)


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """It, and all below it."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for choice in action.choices.values():
                yield from parsers(choice)


ALL = list(parsers(whole_parser()))


def test_there_is_a_page_for_the_tool_and_for_each_subcommand() -> None:
    names = {f"share/man/man1/{name}.1" for name in ("xengrant", *(f"xengrant-{name}" for name in COMMANDS))}
    assert set(PAGES) == names
    for name, text in COMMANDS.items():
        assert f"xengrant-{name} - {text}" in _page(f"xengrant-{name}")
        assert f"xengrant-{name}(1)" in _page("xengrant")


@pytest.mark.parametrize("parser", ALL, ids=lambda parser: parser.prog)
def test_every_argument_and_example_is_in_a_page(parser: argparse.ArgumentParser) -> None:
    words = parser.prog.split()
    page = _page("-".join(words[:2]))
    flowing = " ".join(page.split())
    assert parser.prog in page
    assert " ".join((parser.description or "").split()) in flowing
    for action in parser._actions:
        for option in action.option_strings:
            assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", page), option
        if action.help and not isinstance(action, argparse._SubParsersAction):
            assert " ".join(parser._get_formatter()._expand_help(action).split()) in flowing
    for line in (parser.epilog or "").splitlines()[1:]:
        assert line.strip() in page


@pytest.mark.parametrize("name", ["xengrant", *(f"xengrant-{name}" for name in COMMANDS)])
def test_every_exit_status_is_in_each_page(name: str) -> None:
    flowing = " ".join(_page(name).split())
    assert "exit status" in flowing.lower()
    for number, text in statuses.MEANINGS.items():
        assert f"{number} {text}" in flowing


@pytest.mark.parametrize("name", sorted(PAGES))
def test_a_page_is_formatted_without_a_warning(name: str) -> None:
    assert _roff(PAGES[name], "-Tutf8", "-z").stderr == ""


def test_a_page_says_the_day_that_the_build_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert '"1970-01-02"' in manual.pages(whole_parser(), "1")["share/man/man1/xengrant.1"]
