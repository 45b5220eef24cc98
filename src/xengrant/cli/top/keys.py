"""What each key does to the state of top. A key is a character, or a name: "up", "enter", "esc" and so on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from xengrant.cli.top.state import SORTS, Prompt, State, View, settled

__all__ = ["HELP", "LEAST_DELAY", "press"]

LEAST_DELAY = 0.1
_MOST_DELAY = 3600.0
_LONGEST = 64

HELP: tuple[tuple[str, str], ...] = (
    ("up down, k j", "a line up or down"),
    ("PgUp PgDn", "a page up or down"),
    ("Home End, g G", "the first, the last line"),
    ("Enter", "the peers of the domain"),
    ("Esc", "back; without the filter"),
    ("/", "show only names with a text in them, or domids that begin with it"),
    ("s, S", "sort by the next column, or the one before"),
    ("1 ... 9", "sort by a column; again: the other way round"),
    ("r", "sort the other way round"),
    ("Space, p", "pause: what is shown stays until the next"),
    ("d", "seconds from one look to the next"),
    ("?, h", "this help"),
    ("q", "quit"),
)


def press(state: State, key: str) -> State:
    """The state after a key; a key that means nothing here changes nothing."""
    state = replace(state, message="")
    if state.prompt is not None:
        return settled(_type(state, state.prompt, key))
    action = _EVERYWHERE.get(key)
    if action is None and state.view is View.LIST:
        action = _LIST.get(key)
        if action is None and key in _NUMBERED:
            return settled(_sort(state, _NUMBERED[key]))
    elif action is None:
        action = _READING.get(key)
    return state if action is None else settled(action(state))


def _type(state: State, prompt: Prompt, key: str) -> State:
    """A key of the line that is being typed. A filter works from its first character on."""
    if key == "esc":
        return replace(state, prompt=None, filter=prompt.before if prompt.kind == "filter" else state.filter)
    if key == "enter":
        return _entered(replace(state, prompt=None), prompt)
    text = prompt.text
    if key == "backspace":
        text = text[:-1]
    elif key == "clear":
        text = ""
    elif len(key) == 1 and key.isprintable() and len(text) < _LONGEST:
        text += key
    state = replace(state, prompt=prompt._replace(text=text))
    return replace(state, filter=text) if prompt.kind == "filter" else state


def _entered(state: State, prompt: Prompt) -> State:
    if prompt.kind == "filter" or not prompt.text:
        return state
    try:
        delay = float(prompt.text)
    except ValueError:
        delay = 0.0
    if not LEAST_DELAY <= delay <= _MOST_DELAY:
        return replace(state, message=f"not from {LEAST_DELAY:g} to {_MOST_DELAY:g} seconds: {prompt.text}")
    return replace(state, delay=delay)


def _move(by: Callable[[State], int]) -> Callable[[State], State]:
    def moved(state: State) -> State:
        if not state.visible:
            return state
        cursor = min(max(state.cursor + by(state), 0), len(state.visible) - 1)
        return replace(state, cursor=cursor, selected=state.visible[cursor].domid)

    return moved


def _scroll(by: Callable[[State], int]) -> Callable[[State], State]:
    # How far down there is something to see is the view's to know.
    return lambda state: replace(state, scroll=max(state.scroll + by(state), 0))


def _top(state: State) -> State:
    """The first line, whichever domain that will be."""
    return replace(state, cursor=0, selected=None)


def _sort(state: State, sort: str) -> State:
    if sort == state.sort:
        return replace(state, reverse=not state.reverse)
    return replace(state, sort=sort, reverse=False)


def _sort_beside(step: int) -> Callable[[State], State]:
    names = list(SORTS)
    return lambda state: _sort(state, names[(names.index(state.sort) + step) % len(names)])


def _enter(state: State) -> State:
    row = state.row
    return state if row is None else replace(state, view=View.DETAIL, selected=row.domid, scroll=0)


def _help(state: State) -> State:
    return replace(state, view=View.HELP, behind=state.view, scroll=0)


def _back(state: State) -> State:
    if state.view is View.HELP and state.behind is not View.HELP:
        return replace(state, view=state.behind, scroll=0)
    return replace(state, view=View.LIST, scroll=0)


_NUMBERED = {str(number): sort for number, sort in enumerate(SORTS, 1)}

_EVERYWHERE: dict[str, Callable[[State], State]] = {
    "q": lambda state: replace(state, quit=True),
    " ": lambda state: replace(state, paused=not state.paused),
    "p": lambda state: replace(state, paused=not state.paused),
    "d": lambda state: replace(state, prompt=Prompt("delay", "")),
}

_LIST: dict[str, Callable[[State], State]] = {
    **dict.fromkeys(("up", "k"), _move(lambda state: -1)),
    **dict.fromkeys(("down", "j"), _move(lambda state: 1)),
    "pgup": _move(lambda state: -state.page),
    "pgdn": _move(lambda state: state.page),
    **dict.fromkeys(("home", "g"), _top),
    **dict.fromkeys(("end", "G"), _move(lambda state: len(state.visible))),
    **dict.fromkeys(("enter", "right"), _enter),
    **dict.fromkeys(("?", "h"), _help),
    "/": lambda state: replace(state, prompt=Prompt("filter", state.filter, state.filter)),
    "esc": lambda state: replace(state, filter=""),
    **dict.fromkeys(("s", ">"), _sort_beside(1)),
    **dict.fromkeys(("S", "<"), _sort_beside(-1)),
    "r": lambda state: replace(state, reverse=not state.reverse),
}

_READING: dict[str, Callable[[State], State]] = {
    **dict.fromkeys(("up", "k"), _scroll(lambda state: -1)),
    **dict.fromkeys(("down", "j"), _scroll(lambda state: 1)),
    "pgup": _scroll(lambda state: -state.page),
    "pgdn": _scroll(lambda state: state.page),
    **dict.fromkeys(("home", "g"), _scroll(lambda state: -state.scroll)),
    **dict.fromkeys(("esc", "enter", "left", "backspace"), _back),
    **dict.fromkeys(("?", "h"), lambda state: _back(state) if state.view is View.HELP else _help(state)),
}
