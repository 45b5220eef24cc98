"""Help: of the tool, of each subcommand, of each action; examples first."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator

import pytest

from xengrant.cli.commands import command_parser, whole_parser

from .shell import User


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for choice in action.choices.values():
                yield from _parsers(choice)


ALL = {parser.prog: parser for parser in _parsers(whole_parser())}
# With what has to stand between the words of its name.
ASKED = {prog: prog.replace("attach DOMAIN", "attach 0").split()[1:] for prog in ALL}


def test_there_are_all_of_them() -> None:
    assert {"xengrant", "xengrant ls", "xengrant peek console", "xengrant block attach DOMAIN read"} <= set(ALL)


@pytest.mark.parametrize("prog", ALL)
def test_help_begins_with_examples_of_the_command_itself(nobody: User, prog: str) -> None:
    done = nobody.run(*ASKED[prog], "--help", COLUMNS="300")
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode()
    assert text.startswith("examples:\n  ")
    examples, _, rest = text.partition("\n\nusage: ")
    command = " ".join(["xengrant", *ASKED[prog]])
    assert all(line.startswith("  ") for line in examples.splitlines()[1:])
    assert command in examples
    assert rest.startswith(prog)
    for option in ("--url", "--json", "--verbose", "--debug"):
        assert option in rest


def _examples() -> Iterator[str]:
    for parser in ALL.values():
        for line in (parser.epilog or "").splitlines()[1:]:
            command = line.partition("xengrant ")[2]
            for end in ("  ", " | ", " > ", " < ", " >> "):
                command = command.partition(end)[0]
            yield command


@pytest.mark.parametrize("example", sorted(set(_examples())))
def test_an_example_is_right_usage(example: str) -> None:
    command_parser().parse_args(shlex.split(example))
