"""Completions for bash and zsh, by shtab, and for fish, by `fish.py`: the shtab that Debian 12 has knows no fish."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import shtab

from shipping import fish

__all__ = ["scripts"]

_FILES = {"F", "FILE", "IMAGE"}
_DIRECTORIES = {"DIR"}


def scripts(parser: argparse.ArgumentParser) -> dict[str, str]:
    """Each script by its path below the prefix, of a parser that has all its arguments, which are marked on the way."""
    for action in _actions(parser):
        if action.metavar in _FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.metavar in _DIRECTORIES:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    return {
        "share/bash-completion/completions/xengrant": shtab.complete(parser, shell="bash"),
        "share/zsh/site-functions/_xengrant": shtab.complete(parser, shell="zsh"),
        "share/fish/vendor_completions.d/xengrant.fish": fish.script(parser, _FILES, _DIRECTORIES),
    }


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for choice in action.choices.values():
                yield from _actions(choice)
        yield action
