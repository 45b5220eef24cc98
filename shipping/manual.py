"""Manual pages: xengrant(1), and one for each subcommand with its actions.

`pages` makes of each parser a docutils document, which docutils' own writer turns into a page. Nothing is
written twice: what the pages say is what `--help` and `statuses` say.
"""

from __future__ import annotations

import argparse
import os
import re
import textwrap
import time
from collections.abc import Iterator

from docutils import core, nodes
from docutils.utils import new_document
from docutils.writers import manpage

from xengrant.cli.statuses import MEANINGS

__all__ = ["pages"]

_SUMMARY = "Xen grant tables: share memory pages between domains"
_ENVIRONMENT = {
    "XENGRANT_URL": "the machine and the domain where --url is not given",
    "NO_COLOR": "where it is set to something, nothing is coloured",
}


def pages(parser: argparse.ArgumentParser, version: str) -> dict[str, str]:
    """Each page by its path below the prefix, of a parser that has all its arguments."""
    commands = _subparsers(parser)
    summaries = _summaries(parser)
    made = {"xengrant": _page(parser, _SUMMARY, version, [f"xengrant-{name}" for name in commands], deep=False)}
    for name, command in commands.items():
        made[f"xengrant-{name}"] = _page(command, summaries[name], version, ["xengrant"], deep=True)
    return {f"share/man/man1/{name}.1": text for name, text in made.items()}


def _page(parser: argparse.ArgumentParser, summary: str, version: str, others: list[str], *, deep: bool) -> str:
    document = new_document(parser.prog)
    document += nodes.title("", parser.prog.replace(" ", "-"))
    document += nodes.subtitle("", summary)
    info = nodes.docinfo()
    info += nodes.date(
        "", time.strftime("%Y-%m-%d", time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))))
    )
    info += nodes.version("", f"xengrant {version}")
    for name, value in (("manual section", "1"), ("manual group", "xengrant")):
        info += nodes.field("", nodes.field_name("", name), nodes.field_body("", nodes.paragraph("", value)))
    document += info
    document += _section("Synopsis", [_verbatim(_usage(parser))])
    document += _section("Description", list(_text(parser.description or "")))
    document += list(_arguments(parser))
    document += list(_epilog(parser))
    if deep:
        for action in _subparsers(parser).values():
            document += list(_action(action))
    document += _section("Exit status", [_definitions([([number], text) for number, text in MEANINGS.items()])])
    document += _section("Environment", [_definitions([([name], text) for name, text in _ENVIRONMENT.items()])])
    document += _section("See also", [nodes.paragraph("", ", ".join(f"{name}(1)" for name in others))])
    text = core.publish_from_doctree(
        document, writer=manpage.Writer(), settings_overrides={"output_encoding": "unicode", "strict_visitor": True}
    )
    return str(text)


def _action(parser: argparse.ArgumentParser) -> Iterator[nodes.Element]:
    """The section of an action of a subcommand, and those of its own actions."""
    content = [_verbatim(_usage(parser)), *_text(parser.description or "")]
    yield _section(parser.prog, [*content, *_arguments(parser, common=False), *_epilog(parser)])
    for action in _subparsers(parser).values():
        yield from _action(action)


def _arguments(parser: argparse.ArgumentParser, *, common: bool = True) -> Iterator[nodes.section]:
    """A section for each group of arguments that has some."""
    formatter = parser._get_formatter()
    summaries = _summaries(parser)
    for group in parser._action_groups:
        if group.title == "common options" and not common:
            continue
        items: list[tuple[list[str], str]] = []
        for action in group._group_actions:
            if action.help == argparse.SUPPRESS:
                continue
            if isinstance(action, argparse._SubParsersAction):
                items += [([name], text) for name, text in summaries.items()]
                continue
            # What argparse itself does for --help, by the same calls.
            value = formatter._format_args(action, action.dest.upper()) if action.nargs != 0 else ""
            terms = [f"{option} {value}".rstrip() for option in action.option_strings] or [value]
            items.append((terms, formatter._expand_help(action) if action.help else ""))
        if items:
            text = list(_text(group.description or ""))
            yield _section((group.title or "options").capitalize(), [*text, _definitions(items)])


def _epilog(parser: argparse.ArgumentParser) -> Iterator[nodes.Element]:
    """Examples as they stand, under their own heading; other paragraphs as text."""
    for chunk in re.split(r"\n\s*\n", parser.epilog or ""):
        heading, _, rest = chunk.partition("\n")
        if heading.endswith(":") and rest.startswith(" "):
            yield _section(heading[:-1].capitalize(), [_verbatim(textwrap.dedent(rest))])
        elif chunk:
            yield from _text(chunk)


def _text(text: str) -> Iterator[nodes.Element]:
    for chunk in filter(None, re.split(r"\n\s*\n", text.strip("\n"))):
        yield (
            _verbatim(textwrap.dedent(chunk)) if chunk.startswith(" ") else nodes.paragraph("", " ".join(chunk.split()))
        )


def _definitions(items: list[tuple[list[str], str]]) -> nodes.definition_list:
    made = nodes.definition_list()
    for terms, text in items:
        term = nodes.term()
        for i, part in enumerate(terms):
            name, _, value = part.partition(" ")
            term += [nodes.Text(", " * bool(i)), nodes.strong("", name)]
            if value:
                term += [nodes.Text(" "), nodes.emphasis("", value)]
        definition = nodes.definition("", nodes.paragraph("", " ".join(text.split())))
        made += nodes.definition_list_item("", term, definition)
    return made


def _section(title: str, content: list[nodes.Element]) -> nodes.section:
    return nodes.section("", nodes.title("", title), *content)


def _verbatim(text: str) -> nodes.literal_block:
    return nodes.literal_block(text, text)


def _usage(parser: argparse.ArgumentParser) -> str:
    """The usage in 80 columns, without its first word."""
    formatter = argparse.HelpFormatter(parser.prog, width=80)
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups, prefix="")
    return formatter.format_help().strip("\n")


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of its subcommands by name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _summaries(parser: argparse.ArgumentParser) -> dict[str, str]:
    """A line for each of its subcommands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return {choice.dest: choice.help or "" for choice in action._choices_actions}
    return {}
