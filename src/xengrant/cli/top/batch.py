"""`xengrant top -b`: each look as text, or as one line of JSON, on stdout."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from xengrant.cli import output
from xengrant.cli.hold import Hold
from xengrant.cli.top import columns
from xengrant.cli.top.state import Row, State, next_look
from xengrant.cli.top.text import FANCY, PLAIN, plain
from xengrant.cli.top.view import totals_line

__all__ = ["as_json", "as_text", "write"]


def write(
    state: State, look: Callable[[State], State], hold: Hold, *, iterations: int | None = None, json: bool = False
) -> None:
    """Look and write until a signal comes, or so many times."""
    written = 0
    due = time.monotonic()
    while not hold.wait(max(due - time.monotonic(), 0)):
        before, state = state, look(state)
        if json:
            output.emit_json(time=round(time.time(), 3), **as_json(state, before))
        else:
            if written:
                output.emit()
            for line in as_text(state):
                output.emit(line)
        written += 1
        if written == iterations:
            return
        due = next_look(due, state.delay, time.monotonic())


def as_text(state: State) -> list[str]:
    """The time and the totals, the titles, and a line for each domain."""
    marks = FANCY if output.symbol(FANCY.more + FANCY.descending, "") else PLAIN
    table = columns.narrow(state.visible, marks)
    head = columns.head(table, 0, state.sort, ascending=state.ascending, marks=marks)
    rows = [columns.cells(row, table, marks, state.names) for row in state.visible]
    lines = [plain(line).rstrip() for line in (head, *rows)]
    return [f"{state.time} {plain(totals_line(state, 200))}".rstrip(), *lines]


def as_json(state: State, before: State) -> dict[str, Any]:
    """A look as an object with names that stay. `before` is the look before it, whose domains may be gone."""
    return {
        "seconds": None if before.at is None or state.at is None else round(state.at - before.at, 3),
        "totals": state.totals._asdict(),
        "domains": [_domain(row) for row in state.visible if not row.gone],
        "gone": sorted(row.domid for row in state.rows if row.gone_at is not None and row.gone_at == state.at),
    }


def _domain(row: Row) -> dict[str, Any]:
    grants = row.grants
    return {
        "domid": grants.domid,
        "name": grants.name,
        "version": grants.version,
        "frames": grants.frames,
        "max_frames": grants.max_frames,
        "entries": grants.entries,
        "granted": row.granted,
        "readonly": row.readonly,
        "mapped": row.mapped,
        "writing": row.writing,
        "rate": None if row.rate is None else round(row.rate, 3),
        "peers": [peer._asdict() for peer in grants.peers],
        "problem": grants.problem,
    }
