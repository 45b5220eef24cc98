"""What top shows, as values: `Row` is a domain, `State` is all of it. Nothing here reads, waits or paints.

`observed` takes in a look at the tables, `settled` keeps the cursor on a row and the row on the screen; `keys.press`
makes a state of a key, `view.lines` makes lines of a state.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from xengrant.cli.survey import DomainGrants

__all__ = [
    "GONE_SECONDS",
    "HISTORY",
    "SORTS",
    "Prompt",
    "Row",
    "State",
    "Totals",
    "View",
    "next_look",
    "observed",
    "settled",
]

GONE_SECONDS = 4.0  # a domain that is gone is still shown for so long
HISTORY = 240  # looks that a row remembers


@dataclass(frozen=True, slots=True)
class Row:
    """A domain as of the last look. `rate` is grants per second, None before there are two looks to compare."""

    grants: DomainGrants
    granted: int
    mapped: int
    readonly: int
    writing: int
    rate: float | None = None
    history: tuple[int, ...] = ()
    gone_at: float | None = None

    @property
    def domid(self) -> int:
        return self.grants.domid

    @property
    def gone(self) -> bool:
        return self.gone_at is not None


class View(Enum):
    LIST = "list"
    DETAIL = "detail"
    HELP = "help"


class Prompt(NamedTuple):
    """A line that is being typed, and what to go back to where it is given up."""

    kind: str  # "filter" or "delay"
    text: str
    before: str = ""


SORTS: dict[str, Callable[[Row], float | str]] = {
    "domid": lambda row: row.domid,
    "name": lambda row: row.grants.name.casefold(),
    "grants": lambda row: row.granted,
    "mapped": lambda row: row.mapped,
    "readonly": lambda row: row.readonly,
    "writing": lambda row: row.writing,
    "frames": lambda row: row.grants.frames,
    "rate": lambda row: abs(row.rate or 0),
    "peers": lambda row: len(row.grants.peers),
}
_ASCENDING = ("domid", "name")  # the others begin with the most


class Totals(NamedTuple):
    domains: int
    granted: int
    mapped: int
    readonly: int
    writing: int
    frames: int
    max_frames: int


@dataclass(frozen=True, slots=True)
class State:
    """Everything that decides what is on the screen.

    `selected` is the domain that the cursor stays with, None while it stays at the top; `cursor` and `offset` are
    indexes into `visible`, `page` the rows that fit. `scroll` is the first peer of the detail, or line of the help.
    """

    url: str = ""
    delay: float = 1.0
    rows: tuple[Row, ...] = ()
    names: Mapping[int, str] = field(default_factory=dict)
    at: float | None = None
    time: str = ""
    sort: str = "grants"
    reverse: bool = False
    filter: str = ""
    prompt: Prompt | None = None
    message: str = ""
    paused: bool = False
    selected: int | None = None
    cursor: int = 0
    offset: int = 0
    page: int = 20
    scroll: int = 0
    view: View = View.LIST
    behind: View = View.LIST
    ascii: bool = False
    quit: bool = False
    visible: tuple[Row, ...] = ()

    @property
    def ascending(self) -> bool:
        """Whether the least comes first."""
        return (self.sort in _ASCENDING) != self.reverse

    @property
    def row(self) -> Row | None:
        """The one that the cursor is on."""
        return self.visible[self.cursor] if self.cursor < len(self.visible) else None

    @property
    def totals(self) -> Totals:
        """Of all domains that are there, filtered or not."""
        rows = [row for row in self.rows if not row.gone]
        return Totals(
            len(rows),
            sum(row.granted for row in rows),
            sum(row.mapped for row in rows),
            sum(row.readonly for row in rows),
            sum(row.writing for row in rows),
            sum(row.grants.frames for row in rows),
            sum(row.grants.max_frames for row in rows),
        )


def observed(state: State, domains: Sequence[DomainGrants], names: Mapping[int, str], *, at: float, time: str) -> State:
    """The state after a look at the tables; `at` is when, in seconds of any clock, and `time` the same to be read.

    A domain that is not among them is gone, and forgotten `GONE_SECONDS` later.
    """
    before = {row.domid: row for row in state.rows}
    elapsed = None if state.at is None else at - state.at
    rows = [_row(grants, before.pop(grants.domid, None), elapsed) for grants in domains]
    for row in before.values():
        gone_at = at if row.gone_at is None else row.gone_at
        if at == gone_at or at - gone_at < GONE_SECONDS:
            rows.append(replace(row, rate=None, gone_at=gone_at))
    return settled(replace(state, rows=tuple(rows), names=names, at=at, time=time))


def next_look(due: float, delay: float, now: float) -> float:
    """When to look after a look that was due and is over: in step, but never so soon that a rate is chance."""
    return max(due + delay, now + delay / 2)


def settled(state: State) -> State:
    """The state with its rows filtered and sorted anew, the cursor on one of them, and that one on the screen."""
    visible = [row for row in state.rows if _matches(row, state.filter)]
    visible.sort(key=lambda row: row.domid)
    visible.sort(key=SORTS[state.sort], reverse=not state.ascending)
    last = max(len(visible) - 1, 0)
    cursor, selected = min(state.cursor, last), state.selected
    if selected is not None:
        at = next((at for at, row in enumerate(visible) if row.domid == selected), None)
        if at is None:
            selected = visible[cursor].domid if visible else None
        else:
            cursor = at
    view, behind = state.view, state.behind
    if selected != state.selected:  # of another domain nobody asked the detail
        view, behind = (View.LIST if was is View.DETAIL else was for was in (view, behind))
    offset = min(max(state.offset, cursor - state.page + 1), cursor, max(len(visible) - state.page, 0))
    return replace(
        state,
        visible=tuple(visible),
        cursor=cursor,
        selected=selected,
        offset=offset,
        view=view,
        behind=behind,
    )


def _row(grants: DomainGrants, before: Row | None, elapsed: float | None) -> Row:
    if before is not None and before.gone:
        before = None  # another domain of the same domid
    if before is not None and before.grants is grants:
        granted, mapped, readonly, writing = before.granted, before.mapped, before.readonly, before.writing
    else:
        granted, mapped, readonly, writing = grants.granted, grants.mapped, grants.readonly, grants.writing
    if before is None or not elapsed:
        return Row(grants, granted, mapped, readonly, writing, history=(granted,))
    history = (*before.history[1 - HISTORY :], granted)
    return Row(grants, granted, mapped, readonly, writing, (granted - before.granted) / elapsed, history)


def _matches(row: Row, wanted: str) -> bool:
    return wanted.casefold() in row.grants.name.casefold() or str(row.domid).startswith(wanted)
