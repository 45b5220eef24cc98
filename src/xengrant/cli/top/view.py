"""Lines of a state: the table of domains, one domain's peers, the help. Pure: `screen` paints what `lines` returns."""

from __future__ import annotations

import textwrap
from dataclasses import replace

from xengrant.cli.top import columns
from xengrant.cli.top.keys import HELP
from xengrant.cli.top.state import Row, State, View, settled
from xengrant.cli.top.text import FANCY, PLAIN, Line, Marks, Span, chart, clean, clip, count, fit, plain, width_of

__all__ = ["fitted", "lines", "totals_line"]

_COLUMNS_HELP = (
    ("grants", "entries of the domain's table that a peer may map"),
    ("mapped", "those that a peer maps now"),
    ("r/o", "grants that allow reading only"),
    ("writing", "mapped writable"),
    ("frames", "pages that the table has, and may have"),
    ("rate/s", "grants more or fewer in each second since the look before"),
    ("recent", "grants at the last looks, from their least to their most"),
    ("peers, with", "domains that are granted something, those with the most first"),
)


def lines(state: State, width: int, height: int) -> list[Line]:
    """Exactly `height` lines of at most `width` columns."""
    state = fitted(state, width, height)
    above, body, footer = _above(state, width, height), _body(state, width, height), _footer(state, width)
    room = max(height - len(above) - 1, 0)
    body = body[:room] + [()] * (room - len(body))
    return [_cut(line, width) for line in [*above, *body, footer][:height]]


def fitted(state: State, width: int, height: int) -> State:
    """The state for a screen of that size: `page` is what fits, and the scrolling ends where its text does."""
    page = max(height - len(_above(state, width, height)) - 1, 1)
    if state.view is View.LIST:
        return settled(replace(state, page=page, scroll=0))
    most = max(_length(state, width) - page, 0)
    return replace(state, page=page, scroll=min(state.scroll, most))


def _marks(state: State) -> Marks:
    return PLAIN if state.ascii else FANCY


def _above(state: State, width: int, height: int) -> list[Line]:
    """What stands over the part that scrolls."""
    head = [_title(state, width)]
    if state.view is View.HELP:
        return [*head, ()]
    if state.view is View.DETAIL and state.row is not None:
        return [*head, *_facts(state, state.row, width, height)]
    if height >= 6:
        head.append(totals_line(state, width))
    if height >= 10:
        head.append(())
    rows = state.visible
    table = columns.layout(width, rows, state.sort, _marks(state))
    return [*head, columns.head(table, width, state.sort, ascending=state.ascending, marks=_marks(state))]


def _body(state: State, width: int, height: int) -> list[Line]:
    if state.view is View.HELP:
        return _help(state, width)[state.scroll : state.scroll + state.page]
    if state.view is View.DETAIL and state.row is not None:
        return _peers(state, state.row, width)
    if not state.visible:
        return [(), (Span(f"  {_nothing(state)}", "dim"),)]
    marks = _marks(state)
    table = columns.layout(width, state.visible, state.sort, marks)
    shown = range(state.offset, min(state.offset + state.page, len(state.visible)))
    found = [columns.cells(state.visible[at], table, marks, state.names) for at in shown]
    at = state.cursor - state.offset
    found[at] = (Span(fit(plain(found[at]), width, marks), "cursor"),)
    return found


def _length(state: State, width: int) -> int:
    """How many lines there are to scroll through."""
    if state.view is View.HELP:
        return len(_help(state, width))
    return 0 if state.row is None else len(state.row.grants.peers)


def _title(state: State, width: int) -> Line:
    """What is shown, then as much as there is room for."""
    marks = _marks(state)
    spans = [Span(" xengrant top ", "title"), Span(f" {state.time} ")]
    if state.paused:
        spans += [Span(" "), Span(" PAUSED ", "alert")]
    if state.filter:
        spans.append(Span(f" filter {clean(state.filter, marks)} ", "warn"))
    used = sum(width_of(span.text) for span in spans)
    every = f" every {state.delay:g} s"
    if used + len(every) <= width:
        spans.append(Span(every, "dim"))
        used += len(every)
    if width - used >= 16:
        url = clip(clean(state.url, marks), width - used - 3, marks)
        spans += [Span(" " * (width - used - width_of(url) - 1)), Span(url, "dim")]
    return tuple(spans)


def totals_line(state: State, width: int) -> Line:
    """The figures of all domains together."""
    totals = state.totals
    facts = [
        (f"{totals.domains:,}", "domain" if totals.domains == 1 else "domains"),
        (f"{totals.granted:,}", "granted"),
        (f"{totals.mapped:,}", "mapped"),
        (f"{totals.readonly:,}", "read-only"),
        (f"{totals.writing:,}", "writing"),
        (f"{totals.frames:,}/{totals.max_frames:,}", "frames"),
    ]
    return _facts_line(facts, width)


def _facts_line(facts: list[tuple[str, str]], width: int) -> Line:
    """As many of the figures as there is room for."""
    spans: list[Span] = []
    used = 0
    for number, what in facts:
        used += width_of(number) + width_of(what) + 3
        if used > width:
            break
        spans += (Span(" "), Span(number, "number"), Span(f" {what} ", "dim"))
    return tuple(spans)


def _nothing(state: State) -> str:
    if state.filter:
        return f"no domain matches {clean(state.filter, _marks(state))}: Esc shows them all"
    return "there is no other domain" if state.at is not None else "looking"


def _facts(state: State, row: Row, width: int, height: int) -> list[Line]:
    """What is to be said of one domain above its peers."""
    marks = _marks(state)
    grants = row.grants
    name = clip(clean(grants.name, marks), max(width - 24, 8), marks)
    title = [Span(" domain "), Span(str(row.domid), "number"), Span("  "), Span(name, "title")]
    if row.gone:
        title += (Span("  "), Span(" gone ", "alert"))
    found: list[Line] = [(), tuple(title)]
    if grants.problem:
        return [*found, (Span(f" {clean(grants.problem, marks)}", "warn"),), ()]
    text, style = columns.rate(row.rate)
    figures = _facts_line(
        [
            (count(row.granted), "granted"),
            (count(row.mapped), "mapped"),
            (count(row.readonly), "read-only"),
            (count(row.writing), "writing"),
        ],
        width - 12,
    )
    found.append((*figures, Span(f"  {text}/s" if text else "", style)))
    size = f" {grants.frames} of {grants.max_frames} frames "
    room = f" {grants.entries:,} entries, version {grants.version}"
    track = min(max(width - len(size) - len(room) - 2, 8), 40)
    found.append((Span(size), *columns.bar(grants.frames, grants.max_frames, track, marks), Span(room, "dim")))
    found += _history(row, width, height, marks)
    return [*found, (), _peers_head(width, marks)]


def _history(row: Row, width: int, height: int, marks: Marks) -> list[Line]:
    """The grants at the last looks as a chart, where the screen is high enough."""
    tall = 8 if height >= 30 else 5 if height >= 22 else 3 if height >= 17 else 0
    if not tall or width < 24:
        return []
    labels = [fit("", 7, marks)] * tall
    labels[0] = fit(count(max(row.history, default=0)), 7, marks, right=True)
    labels[-1] = fit("0", 7, marks, right=True)
    drawn = chart(row.history, width - 9, tall, marks)
    return [(), *((Span(f"{label} ", "dim"), Span(line, "spark")) for label, line in zip(labels, drawn, strict=True))]


def _peers_head(width: int, marks: Marks) -> Line:
    text = f"{'peer':>6} {fit('name', _peer_width(width), marks)}"
    for title, least in _PEER_FIGURES:
        text += f" {title:>{least}}" if width_of(text) + least + 1 <= width else ""
    return (Span(fit(text, width, marks), "head"),)


def _peers(state: State, row: Row, width: int) -> list[Line]:
    marks = _marks(state)
    found: list[Line] = []
    for peer in row.grants.peers[state.scroll : state.scroll + state.page]:
        name = state.names.get(peer.domid)
        shown = fit(clean(name, marks) if name else "", _peer_width(width), marks)
        spans = [Span(f"{peer.domid:>6} "), Span(shown, "name")]
        used = 7 + _peer_width(width)
        for number, (_, least) in zip(peer[1:], _PEER_FIGURES, strict=True):
            if used + least + 1 <= width:
                used += least + 1
                spans.append(Span(f" {count(number):>{least}}", "" if number else "dim"))
        if width - used >= 8:
            share = columns.bar(peer.granted, row.granted, min(width - used - 2, 40), marks, "spark")
            spans += (Span(" "), *share)
        found.append(tuple(spans))
    return found or [(Span("  nothing is granted", "dim"),)]


def _peer_width(width: int) -> int:
    return min(max(width - 52, 9), 32)


# In the order of PeerTally.
_PEER_FIGURES = (("grants", 6), ("r/o", 6), ("mapped", 6), ("writing", 7))


def _help(state: State, width: int) -> list[Line]:
    found: list[Line] = []
    for title, entries in (("Keys", HELP), ("Columns", _COLUMNS_HELP)):
        found += ([()] if found else []) + [(Span(f" {title}", "title"),)]
        for name, text in entries:
            first, *more = textwrap.wrap(text, max(width - 19, 12))
            found.append((Span(f"  {name:14}", "number"), Span(f" {first}")))
            found += [(Span(" " * 17 + line),) for line in more]
    return found


def _footer(state: State, width: int) -> Line:
    if state.prompt is not None:
        asked = {"filter": "show only: ", "delay": "seconds from look to look: "}[state.prompt.kind]
        typed = clean(state.prompt.text, _marks(state))
        return Span(f" {asked}", "number"), Span(typed), Span(" ", "cursor")
    if state.message:
        return (Span(f" {clean(state.message, _marks(state))}", "warn"),)
    keys = {
        View.LIST: ("q quit", "? help", "s sort", "/ filter", "Enter peers", "Space pause", "d delay"),
        View.DETAIL: ("q quit", "? help", "Esc back", "Space pause"),
        View.HELP: ("q quit", "Esc back"),
    }[state.view]
    where = _where(state)
    room = width - len(where) - 1
    spans: list[Span] = []
    for text in keys:
        key, _, what = text.partition(" ")
        room -= len(text) + 3
        if room < 0:
            break
        spans += (Span(" "), Span(f"{key}", "key"), Span(f" {what} ", "dim"))
    used = sum(len(span.text) for span in spans)
    return (*spans, Span(" " * (width - used - len(where) - 1)), Span(where, "dim"))


def _where(state: State) -> str:
    """Which part is on the screen, where that is not all."""
    if state.view is View.LIST:
        first, total = state.offset, len(state.visible)
    else:
        first, total = state.scroll, len(state.row.grants.peers) if state.view is View.DETAIL and state.row else 0
    if total <= state.page:
        return ""
    return f"{first + 1}-{min(first + state.page, total)} of {total}"


def _cut(line: Line, width: int) -> Line:
    """No more columns than there are, whatever a view came to."""
    found: list[Span] = []
    for span in line:
        text = clip(span.text, width) if width_of(span.text) > width else span.text
        width -= width_of(text)
        found.append(Span(text, span.style))
    return tuple(found)
