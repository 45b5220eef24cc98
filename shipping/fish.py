"""fish's completions of an argparse parser: one `complete` for each subcommand and option."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Set

__all__ = ["script"]


def script(parser: argparse.ArgumentParser, files: Set[str], directories: Set[str]) -> str:
    """The script. Arguments whose metavar is in `files` or `directories` are completed as such."""
    lines = [f"complete -c {parser.prog} -f"]
    for where, options in _completions(parser, (), files, directories):
        lines.append(f"complete -c {parser.prog} -n {_quoted(where)} {options}")
    return "\n".join(lines) + "\n"


def _completions(
    parser: argparse.ArgumentParser, path: tuple[str, ...], files: Set[str], directories: Set[str]
) -> Iterator[tuple[str, str]]:
    """Where each holds, and what it is, of the parser that the subcommands of `path` lead to."""
    seen = [f"__fish_seen_subcommand_from {name}" for name in path]
    commands = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    deeper = " ".join(name for action in commands for name in action.choices)
    where = "; and ".join([*seen, f"not __fish_seen_subcommand_from {deeper}"] if deeper else seen)
    for action in parser._actions:
        if action.help == argparse.SUPPRESS:
            continue
        if isinstance(action, argparse._SubParsersAction):
            summaries = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, choice in action.choices.items():
                yield where, f"-a {name} -d {_quoted(summaries.get(name, ''))}"
                yield from _completions(choice, (*path, name), files, directories)
            continue
        value = _value(action, files, directories)
        if action.option_strings:
            names = " ".join(_option(name) for name in action.option_strings)
            text = parser._get_formatter()._expand_help(action) if action.help else ""
            yield where, " ".join(filter(None, (names, value, f"-d {_quoted(' '.join(text.split()))}")))
        elif value != "-x":
            yield where, value.replace("-x ", "").replace("-r ", "")


def _option(name: str) -> str:
    return f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}"


def _value(action: argparse.Action, files: Set[str], directories: Set[str]) -> str:
    """What may stand for an argument: nothing where it takes none."""
    if action.nargs == 0:
        return ""
    if action.choices:
        return f"-x -a {_quoted(' '.join(map(str, action.choices)))}"
    if action.metavar in files:
        return "-r -F"
    if action.metavar in directories:
        return "-x -a '(__fish_complete_directories)'"
    return "-x"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
