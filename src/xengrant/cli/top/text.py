"""Text measured in a terminal's columns: spans with a style, clipping, bars and sparks. Called by the views of top.

What others wrote goes through `clean` before anything else: then every character is one or two columns wide.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from xengrant.cli.dump import printable

__all__ = [
    "FANCY",
    "PLAIN",
    "Line",
    "Marks",
    "Span",
    "chart",
    "clean",
    "clip",
    "count",
    "fit",
    "plain",
    "spark",
    "width_of",
]


class Span(NamedTuple):
    """Some text in one style, a name that `screen` knows the colours of."""

    text: str
    style: str = ""


Line = tuple[Span, ...]


class Marks(NamedTuple):
    """The characters that not every terminal has."""

    levels: str
    full: str
    half: str
    track: str
    ascending: str
    descending: str
    more: str


FANCY = Marks("▁▂▃▄▅▆▇█", "━", "╾", "─", "▲", "▼", "…")
PLAIN = Marks("_.-~=+*#", "#", "=", "-", "^", "v", "~")


@functools.lru_cache(maxsize=4096)
def clean(text: str, marks: Marks = FANCY) -> str:
    """What another domain wrote, of characters that stand still: no control, none of zero width, ASCII if need be."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return "".join(char if _stands_still(char, marks) else _escaped(char) for char in text)


def width_of(text: str) -> int:
    """Columns that clean text takes."""
    return len(text) if text.isascii() else sum(map(_columns, text))


def clip(text: str, width: int, marks: Marks = FANCY) -> str:
    """Clean text in at most `width` columns, the last of them a mark where something is missing."""
    if width_of(text) <= width:
        return text
    if width < 1:
        return ""
    taken, room = 0, width - 1
    for at, char in enumerate(text):
        taken += _columns(char)
        if taken > room:
            return text[:at] + marks.more
    raise AssertionError("unreachable: the text is wider than its characters")


def fit(text: str, width: int, marks: Marks = FANCY, *, right: bool = False) -> str:
    """Clean text in exactly `width` columns."""
    text = clip(text, width, marks)
    space = " " * (width - width_of(text))
    return space + text if right else text + space


def plain(line: Line) -> str:
    """A line without its styles."""
    return "".join(span.text for span in line)


def count(value: float) -> str:
    """A number in at most 6 characters."""
    if value < 1_000_000:
        return str(round(value))
    for unit, size in (("M", 1e6), ("G", 1e9), ("T", 1e12)):
        if value < 1000 * size:
            return f"{value / size:.1f}{unit}"
    return "many"


def spark(values: Sequence[float], width: int, marks: Marks = FANCY) -> str:
    """The last `width` values as levels between the least and the most of them; what came before them is blank."""
    values = values[-width:] if width > 0 else ()
    levels = _levels(values, len(marks.levels) - 1)  # the highest would touch the line above
    return "".join(marks.levels[level] for level in levels).rjust(max(width, 0))


def chart(values: Sequence[float], width: int, height: int, marks: Marks = FANCY) -> list[str]:
    """The last `width` values as columns of `height` rows, from 0 up to the most of them, the top row first."""
    values = values[-width:] if width > 0 else ()
    most, steps = max([*values, 0]), len(marks.levels)
    heights = [round(value / most * steps * height) if most else 0 for value in values]
    heights = [max(level, 1) if value else 0 for level, value in zip(heights, values, strict=True)]
    return [_chart_row(heights, row * steps, marks).rjust(max(width, 0)) for row in reversed(range(height))]


def _chart_row(heights: list[int], below: int, marks: Marks) -> str:
    cells = (min(level - below, len(marks.levels)) for level in heights)
    return "".join(marks.levels[cell - 1] if cell > 0 else " " for cell in cells)


def _levels(values: Sequence[float], steps: int) -> list[int]:
    if not values:
        return []
    least, most = min(values), max(values)
    if least == most:
        return [0] * len(values)
    return [round((value - least) / (most - least) * (steps - 1)) for value in values]


def _stands_still(char: str, marks: Marks) -> bool:
    if char.isascii():
        return char.isprintable()
    # Terminals disagree about marks that combine, and about Hangul's medial vowels and final consonants.
    joins = unicodedata.category(char) in ("Mn", "Me") or "\u1160" <= char <= "\u11ff" or "\ud7b0" <= char <= "\ud7ff"
    return marks is FANCY and char.isprintable() and not joins


def _escaped(char: str) -> str:
    text = printable(char)
    return text if text != char else f"\\x{ord(char):02x}" if ord(char) < 0x100 else f"\\u{ord(char):04x}"


def _columns(char: str) -> int:
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
