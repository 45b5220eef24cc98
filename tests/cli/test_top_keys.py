"""What the keys of `top` do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from xengrant.cli.top.keys import LEAST_DELAY, press
from xengrant.cli.top.state import SORTS, State, View
from xengrant.cli.top.view import fitted

from .test_top_view import MANY, THREE, seen


def typed(state: State, *keys: str) -> State:
    for key in keys:
        state = press(state, key)
    return state


def order(state: State) -> list[int]:
    return [row.domid for row in state.visible]


def test_the_cursor_moves_by_lines_and_pages_and_stops_at_the_ends() -> None:
    state = fitted(seen(MANY), 80, 24)
    where = {
        ("up",): 0,
        ("down", "j", "k"): 1,
        ("pgdn",): 19,
        ("pgdn", "pgdn", "pgup"): 19,
        ("end",): 199,
        ("G", "down"): 199,
        ("end", "home"): 0,
        ("end", "g", "up"): 0,
    }
    for keys, cursor in where.items():
        assert typed(state, *keys).cursor == cursor, keys


def test_the_cursor_stays_with_its_domain_once_it_was_moved() -> None:
    state = press(seen(THREE), "down")
    assert order(state) == [2, 1, 3]
    state = press(state, "r")
    assert (order(state), state.cursor, state.selected) == ([3, 1, 2], 1, 1)
    state = typed(state, "1")
    assert (order(state), state.cursor, state.selected) == ([1, 2, 3], 0, 1)
    assert typed(state, "home", "r").cursor == 0, "at the top it stays at the top"


def test_every_column_can_be_sorted_by() -> None:
    state = seen(THREE)
    assert state.sort == "grants"
    forward = [state := press(state, "s") for _ in SORTS]
    assert {one.sort for one in forward} == set(SORTS)
    assert forward[-1].sort == "grants"
    assert press(press(state, ">"), "<").sort == press(press(state, "s"), "S").sort == "grants"
    for number, sort in enumerate(SORTS, 1):
        if sort != "grants":
            assert press(state, str(number)).sort == sort
    assert order(press(state, "2")) == [2, 3, 1]
    assert order(typed(state, "2", "2")) == [1, 3, 2]
    assert order(press(state, "5")) == [1, 3, 2]
    assert order(press(state, "7")) == [3, 2, 1]


def test_rates_are_sorted_by_their_size() -> None:
    fewer = [THREE[0], replace(THREE[1], peers=()), replace(THREE[2], peers=THREE[0].peers)]
    assert order(press(seen(THREE, fewer), "8")) == [2, 3, 1]


def test_a_filter_matches_names_and_the_beginning_of_domids() -> None:
    state = seen(MANY)
    assert order(typed(state, "/", *"main-20"))[:2] == [20, 200]
    assert order(typed(state, "/", *"DOMAIN-17", "enter", "1")) == [17, *range(170, 180)]
    assert order(typed(state, "/", "1", "9", "9")) == [199]


def test_a_filter_is_edited_given_up_and_dropped() -> None:
    state = typed(seen(THREE), "/", *"wed", "backspace", "b", "enter")
    assert (state.filter, state.prompt) == ("web", None)
    again = typed(state, "/", "clear", *"db")
    assert order(again) == [2]
    assert press(again, "esc").filter == "web"
    assert press(state, "esc").filter == ""
    assert typed(state, "/", *"q ?", "enter").filter == "webq ?", "while typing every key is text"
    assert len(typed(state, "/", *"x" * 1000).filter) == 64


def test_a_delay_is_typed() -> None:
    state = typed(seen(THREE), "d", *"2.5", "enter")
    assert state.delay == 2.5
    for wrong in ("0", "-1", "nan", "soon", "1e9", str(LEAST_DELAY / 2)):
        refused = typed(state, "d", *wrong, "enter")
        assert refused.delay == 2.5
        assert wrong in refused.message
        assert press(refused, "x").message == ""
    assert typed(state, "d", "enter").delay == 2.5
    assert typed(state, "d", "9", "esc").delay == 2.5


@pytest.mark.parametrize("keys", [(), ("enter",), ("?",)])
def test_pause_and_quit_work_everywhere(keys: tuple[str, ...]) -> None:
    state = typed(seen(THREE), *keys)
    assert press(state, " ").paused
    assert not typed(state, " ", "p").paused
    assert press(state, "q").quit


def test_enter_and_help_lead_back_to_where_they_came_from() -> None:
    state = typed(seen(THREE), "down", "enter")
    assert (state.view, state.selected) == (View.DETAIL, 1)
    assert press(state, "?").view is View.HELP
    assert typed(state, "?", "?").view is View.DETAIL
    assert typed(state, "?", "esc").view is View.DETAIL
    assert typed(state, "?", "esc", "left").view is View.LIST
    assert typed(seen(THREE), "h", "esc").view is View.LIST


def test_a_key_that_means_nothing_changes_nothing() -> None:
    state = seen(THREE)
    for key in ("z", "left", "\x00", "0", "é", "backspace"):
        assert press(state, key) == state, key
