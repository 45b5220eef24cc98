"""A page of the documentation as its fenced blocks, and what each asks of whoever runs it; see `blocks.py`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

RUN = ("python", "pycon", "console")
"""The languages of blocks that are run."""

_NOT_SHELL = ("sh", "bash", "shell")
_FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<language>[\w+-]*)[^`\n]*$")
_COMMENT = re.compile(r"^ *<!-- run: (?P<options>.*?) -->$")


class PageError(Exception):
    """A page that cannot be run, or does not do what it says; names the line."""


@dataclass(frozen=True)
class Options:
    """What the comment before a block says."""

    needs: str = ""
    domain: int | None = None
    file: str = ""
    terminal: str = "1"
    exits: int = 0
    continues: bool = False
    output: bool = False
    stays: bool = False
    until_enter: bool = False
    key: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """ValueError for what is no option."""
        found: dict[str, str | int | bool] = {}
        for option in filter(None, (part.strip() for part in text.split(","))):
            word, _, rest = option.partition(" ")
            if option in {"continues", "output", "stays"}:
                found[option] = True
            elif option == "stays until Enter":
                found["stays"] = found["until_enter"] = True
            elif option in {"Enter", "Ctrl-C"}:
                found["key"] = option
            elif word in {"domain", "exits"} and rest.isdecimal():
                found[word] = int(rest)
            elif word in {"needs", "file", "terminal"} and rest:
                found[word] = rest
            else:
                raise ValueError(f"there is no option {option!r}")
        return cls(**found)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Block:
    """A fenced block: `line` is that of its fence, counted from 1; `text` ends with a newline or is empty."""

    line: int
    language: str
    text: str
    options: Options

    @property
    def runnable(self) -> bool:
        """Whether it is run, or shows what another one prints, where what it needs is there."""
        return self.language in RUN or self.options != Options()


@dataclass(frozen=True)
class Command:
    """One command of a console block: what is typed after `$ `, and the output that the page shows, if any."""

    typed: str
    background: bool
    shown: str


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order. PageError for a comment that says what no block can do."""
    blocks: list[Block] = []
    options, lines = "", page.read_text().splitlines()
    at = 0
    while at < len(lines):
        fence = _FENCE.match(lines[at])
        if fence is None:
            comment = _COMMENT.match(lines[at])
            if comment:
                options = comment["options"]
            elif lines[at].strip() and options:
                raise PageError(f"{page}:{at}: no block after this comment")
            at += 1
            continue
        first, indent, at = at + 1, len(fence["indent"]), at + 1
        body: list[str] = []
        while at < len(lines) and lines[at].strip() != fence["fence"]:
            body.append(lines[at][indent:])
            at += 1
        if at == len(lines):
            raise PageError(f"{page}:{first}: this block has no end")
        at += 1
        try:
            said = Options.parse(options)
        except ValueError as error:
            raise PageError(f"{page}:{first}: {error}") from None
        options = ""
        if fence["language"] in _NOT_SHELL and not said.needs:
            raise PageError(f"{page}:{first}: write commands as a console block, after `$ `")
        blocks.append(Block(first, fence["language"], "".join(f"{line}\n" for line in body), said))
    return blocks


def commands_of(block: Block) -> list[Command]:
    """The commands of a console block; PageError where it begins with something else."""
    commands: list[tuple[list[str], list[str]]] = []
    for number, line in enumerate(block.text.splitlines()):
        if line.startswith("$ "):
            commands.append(([line[2:]], []))
        elif not commands:
            raise PageError(f"line {block.line + number + 1}: a console block begins with `$ `")
        elif line.startswith("> ") and not commands[-1][1]:
            commands[-1][0].append(line[2:])
        else:
            commands[-1][1].append(line)
    return [_command("\n".join(typed), "".join(f"{line}\n" for line in shown)) for typed, shown in commands]


def _command(typed: str, shown: str) -> Command:
    background = typed.rstrip().endswith(" &")
    return Command(typed.rstrip().removesuffix(" &") if background else typed, background, shown)


def pattern_of(shown: str) -> re.Pattern[str]:
    """What output looks like that a page shows: `...` is any text of a line, and any lines where it is alone."""
    lines: list[str] = []
    for line in shown.splitlines():
        words = r".*?".join(map(re.escape, line.rstrip().split("...")))
        lines.append(r"(?:.*\n)*?" if line.strip() == "..." else words + r"[ \t]*\n")
    return re.compile("".join(lines))
