"""The columns of top's table: what each shows of a row, how wide it is, and which are left out of a narrow table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from xengrant.cli.top.state import Row
from xengrant.cli.top.text import Line, Marks, Span, clean, clip, count, fit, spark, width_of

__all__ = ["COLUMNS", "Column", "bar", "cells", "head", "layout", "narrow", "peer_name", "rate"]

Cell = Callable[[Row, int, Marks, Mapping[int, str]], Line]


@dataclass(frozen=True, slots=True)
class Column:
    """`sort` is the name to sort by, "" where that makes no sense; the least `rank` is left out last."""

    title: str
    rank: int
    least: int
    cell: Cell
    sort: str = ""
    most: int = 0
    left: bool = False


def layout(width: int, rows: Sequence[Row], sort: str, marks: Marks) -> list[tuple[Column, int]]:
    """The columns for a table of `width`, each with its own width, the space before it not counted.

    The one that is sorted by is always there. What is left over widens those that can use it.
    """
    wanted = sorted(COLUMNS, key=lambda column: (column.sort != sort or not sort, column.rank))
    widths: dict[str, int] = {}
    room = width
    for column in wanted:
        least = _least(column, rows)
        if room >= least + 1 or not widths:
            widths[column.title] = least
            room -= least + 1
    shown = [column for column in COLUMNS if column.title in widths]
    most = {column.title: _most(column, rows, marks) for column in shown}
    while room > 0 and (growing := [title for title, width in widths.items() if width < most[title]]):
        for title in growing[:room]:
            widths[title] += 1
            room -= 1
    return [(column, widths[column.title]) for column in shown]


def narrow(rows: Sequence[Row], marks: Marks) -> list[tuple[Column, int]]:
    """All columns that are words and numbers, as wide as they have to be."""
    return [
        (column, _most(column, rows, marks) if column.left else _least(column, rows))
        for column in COLUMNS
        if column.title not in ("", "recent")
    ]


def head(columns: Sequence[tuple[Column, int]], width: int, sort: str, *, ascending: bool, marks: Marks) -> Line:
    """The titles, with a mark at the one that is sorted by."""
    mark = marks.ascending if ascending else marks.descending
    spans: list[Span] = []
    for column, wide in columns:
        here = bool(sort) and column.sort == sort
        title = f"{mark if here else ' '}{column.title}"
        if column.left:
            title = f" {column.title}{mark if here else ''}"
        spans.append(Span(fit(title, wide + 1, marks, right=not column.left), "sorted" if here else "head"))
    used = sum(wide + 1 for _, wide in columns)
    return (*spans, Span(" " * (width - used), "head"))


def cells(row: Row, columns: Sequence[tuple[Column, int]], marks: Marks, names: Mapping[int, str]) -> Line:
    """A row's cells; of a table that could not be looked at the reason stands in their place."""
    spans: list[Span] = []
    for at, (column, wide) in enumerate(columns):
        if row.grants.problem and column.sort not in ("domid", "name"):
            rest = sum(wide + 1 for _, wide in columns[at:])
            return (*spans, Span(" " + fit(clean(row.grants.problem, marks), rest - 1, marks), "warn"))
        cell = column.cell(row, wide, marks, names)
        if row.gone and column.title != "rate/s":
            cell = tuple(Span(text, "dim") for text, _ in cell)
        spans += (Span(" "), *cell)
    return tuple(spans)


def bar(used: int, total: int, width: int, marks: Marks, style: str = "") -> Line:
    """A part of a whole. Without a style of its own it warns where little is left."""
    part = min(used / total, 1.0) if total > 0 else 0.0
    halves = round(part * width * 2)
    if used > 0:
        halves = max(halves, 1)
    full = marks.full * (halves // 2) + marks.half * (halves % 2)
    warning = "good" if part < 0.6 else "warn" if part < 0.9 else "bad"
    return Span(full, style or warning), Span(marks.track * (width - len(full)), "dim")


def rate(value: float | None) -> tuple[str, str]:
    """Grants per second and the style to show them in; the sign says whether they come or go."""
    if value is None:
        return "", "dim"
    if value == 0:
        return "0", "dim"
    size = abs(value)
    text = f"{size:.1f}".removesuffix(".0") if size < 100 else count(size)
    sign, style = ("+", "up") if value > 0 else ("-", "down")
    return sign + text, style


def peer_name(domid: int, names: Mapping[int, str], marks: Marks) -> str:
    """A peer by its name, or by its domid where it has none."""
    name = names.get(domid)
    return clean(name, marks) if name else str(domid)


def _number(value: Callable[[Row], int]) -> Cell:
    def cell(row: Row, width: int, marks: Marks, names: Mapping[int, str]) -> Line:
        number = value(row)
        return (Span(fit(count(number), width, marks, right=True), "" if number else "dim"),)

    return cell


def _name(row: Row, width: int, marks: Marks, names: Mapping[int, str]) -> Line:
    return (Span(fit(clean(row.grants.name, marks), width, marks), "name"),)


def _frames(row: Row, width: int, marks: Marks, names: Mapping[int, str]) -> Line:
    return (Span(fit(_frames_text(row), width, marks, right=True)),)


def _frames_text(row: Row) -> str:
    return f"{row.grants.frames}/{row.grants.max_frames}"


def _bar(row: Row, width: int, marks: Marks, names: Mapping[int, str]) -> Line:
    return bar(row.grants.frames, row.grants.max_frames, width, marks)


def _rate(row: Row, width: int, marks: Marks, names: Mapping[int, str]) -> Line:
    text, style = ("gone", "bad") if row.gone else rate(row.rate)
    return (Span(fit(text, width, marks, right=True), style),)


def _spark(row: Row, width: int, marks: Marks, names: Mapping[int, str]) -> Line:
    recent = row.history[-width:]
    flat = len(set(recent)) < 2
    return (Span(spark(recent, width, marks), "dim" if flat else "spark"),)


def _whom(row: Row, width: int, marks: Marks, names: Mapping[int, str]) -> Line:
    text = ""
    for at, peer in enumerate(row.grants.peers):
        name = peer_name(peer.domid, names, marks)
        longer = f"{text}, {name}" if text else name
        left = len(row.grants.peers) - at - 1
        if width_of(longer) + (len(f" +{left}") if left else 0) > width:
            text = clip(longer, width, marks) if not text else f"{text} +{left + 1}"
            break
        text = longer
    return (Span(fit(text, width, marks)),)


def _least(column: Column, rows: Sequence[Row]) -> int:
    if column.sort == "frames":
        return max([column.least, *(len(_frames_text(row)) for row in rows)])
    return column.least


def _most(column: Column, rows: Sequence[Row], marks: Marks) -> int:
    if column.sort == "name":
        longest = max((width_of(clean(row.grants.name, marks)) for row in rows), default=0)
        return min(max(longest, column.least), column.most)
    return max(column.most, column.least)


COLUMNS: tuple[Column, ...] = (
    Column("domid", 0, 5, _number(lambda row: row.domid), "domid"),
    Column("name", 1, 9, _name, "name", most=32, left=True),
    Column("grants", 2, 6, _number(lambda row: row.granted), "grants"),
    Column("mapped", 3, 6, _number(lambda row: row.mapped), "mapped"),
    Column("r/o", 9, 6, _number(lambda row: row.readonly), "readonly"),
    Column("writing", 8, 7, _number(lambda row: row.writing), "writing"),
    Column("frames", 5, 6, _frames, "frames"),
    Column("", 10, 6, _bar, most=20, left=True),
    Column("rate/s", 4, 6, _rate, "rate"),
    Column("recent", 6, 8, _spark, most=60, left=True),
    Column("peers", 7, 5, _number(lambda row: len(row.grants.peers)), "peers"),
    Column("with", 11, 12, _whom, most=40, left=True),
)
