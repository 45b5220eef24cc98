"""The lines of `top`, of fixed states: wide and narrow, many domains, dead ones, names that lie."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from wcwidth import wcswidth

from xengrant.cli.survey import DomainGrants
from xengrant.cli.top.keys import press
from xengrant.cli.top.state import GONE_SECONDS, SORTS, State, View, next_look, observed
from xengrant.cli.top.text import FANCY, PLAIN, chart, clean, clip, plain, spark
from xengrant.cli.top.view import fitted, lines
from xengrant.grant_snapshot import PeerTally

HOSTILE = "\x1b[2J\x9b31m\u202eevil\n\x00\r\u200b"
NAMES = {0: "Domain-0", 1: "web", 2: "db", 3: "mail"}


def grants(domid: int, *peers: tuple[int, ...], name: str | None = None, frames: int = 1) -> DomainGrants:
    """`peers` are tallies: domid, granted, readonly, mapped, writing."""
    tallies = tuple(PeerTally(*(*peer, 0, 0, 0)[:5]) for peer in peers)
    return DomainGrants(domid, NAMES.get(domid, f"domain-{domid}") if name is None else name, 1, frames, 64, tallies)


def seen(*looks: list[DomainGrants], state: State | None = None) -> State:
    """The state after such looks, a second apart."""
    state = State(url="embedded:/m?domid=0") if state is None else state
    at = 0.0 if state.at is None else state.at + 1
    for second, look in enumerate(looks):
        state = observed(state, look, NAMES, at=at + second, time="12:34:56")
    return state


def shown(state: State, width: int = 100, height: int = 24) -> list[str]:
    return [plain(line) for line in lines(state, width, height)]


def row_of(domid: int, text: list[str]) -> str:
    """The last line that begins with the domid; the chart above peers has numbers at its left, too."""
    return [line for line in text if line.split()[:1] == [str(domid)]][-1]


THREE = [
    grants(1, (2, 40, 10, 7, 3), (0, 2, 0, 2, 2)),
    grants(2, (1, 700, 0, 0, 0), frames=2),
    grants(3, (1, 5, 5, 1, 0), (2, 3, 0, 0, 0), frames=60),
]
MANY = [grants(domid, (0, 32760 - domid, 0, 3, 3), (domid + 1, 8), frames=64) for domid in range(1, 201)]


def test_a_domain_is_a_line_with_its_figures_and_peers() -> None:
    text = shown(seen(THREE), 120)
    found = row_of(1, text).split()
    assert found[:7] == ["1", "web", "42", "9", "10", "5", "1/64"]
    assert found[8:] == ["▁", "2", "db,", "Domain-0"]
    assert row_of(3, text).split()[2:7] == ["8", "1", "5", "0", "60/64"]


def test_the_header_has_the_time_and_the_totals() -> None:
    text = shown(seen(THREE))
    assert "12:34:56" in text[0]
    assert "every 1 s" in text[0]
    assert text[0].endswith("embedded:/m?domid=0")
    wanted = " 3 domains  750 granted  10 mapped  15 read-only  5 writing  63/192 frames"
    assert text[1].rstrip() == wanted


def test_the_rate_is_grants_per_second_and_the_spark_their_past() -> None:
    looks = [[grants(1, (2, count))] for count in (0, 70, 30)]
    state = seen(*looks[:2])
    assert "+70" in row_of(1, shown(state)).split()
    assert "-40" in row_of(1, shown(seen(*looks[:3]))).split()
    last = row_of(1, shown(seen(*looks[:3], looks[2])))
    assert "0" in last.split()
    assert " ▁▇▄▄ " in last
    one_look = row_of(1, shown(seen(looks[1]), 40))
    assert one_look.split() == ["1", "web", "70", "0"], "there is nothing to compare"


@pytest.mark.parametrize("width", [1, 7, 20, 40, 41, 57, 80, 100, 133, 200, 400])
@pytest.mark.parametrize("view", list(View))
def test_every_size_gets_as_many_lines_and_none_too_wide(width: int, view: View) -> None:
    hostile = [grants(5, (6, 1), name="日本語サーバー" * 4), grants(6, (5, 123456, 99999, 99999, 99999), name=HOSTILE)]
    state = replace(seen(THREE + hostile, THREE + hostile, THREE), selected=6, cursor=4, view=view, filter="")
    state = replace(state, url="embedded:/" + "長い" * 30)
    variants = (state, replace(state, ascii=True), press(state, "d"), replace(state, paused=True))
    for height, variant in itertools.product((1, 2, 5, 10, 24, 60), variants):
        text = shown(variant, width, height)
        assert len(text) == height
        assert all(wcswidth(line) <= width for line in text), text
        assert all(wcswidth(line) >= 0 for line in text), "something does not print"


def test_columns_stand_under_each_other_whatever_the_names() -> None:
    names = ["", "web", "日本語", "e\u0301e\u0301", "x" * 90, HOSTILE, "\u1100\u1161", "😀😀"]
    state = seen([grants(at, (0, 77), name=name) for at, name in enumerate(names, 1)])
    for width in (40, 80, 130):
        text = shown(state, width)[4:-1]
        ends = {wcswidth(line[: line.index(" 77 ") + 3]) for line in text if line.strip()}
        assert len(ends) == 1, text


def test_a_hostile_name_is_escaped_and_clipped() -> None:
    assert clean(HOSTILE) == "\\x1b[2J\\x9b31m\\u202eevil\\x0a\\x00\\x0d\\u200b"
    assert clean("a\u0301\u0302\u1160") == "á\\u0302\\u1160", "marks that combine stand still"
    text = shown(press(seen([grants(4, (0, 1), name=HOSTILE)]), "enter"), 40)
    assert all(line.isprintable() for line in text)
    assert clip("日本語", 4) == "日…"
    assert clip("日本語", 6) == "日本語"


def test_where_the_locale_has_no_bars_everything_is_ascii() -> None:
    state = seen([*THREE, grants(4, name="日本語")], THREE)
    for view in (state, press(state, "enter"), press(state, "?"), press(press(state, "/"), "é")):
        text = shown(replace(view, ascii=True), 150, 40)
        assert "".join(text).isascii(), text
    assert "\\u65e5\\u672c" in row_of(4, shown(replace(state, ascii=True), 150))


def test_narrow_terminals_keep_the_figures_that_matter() -> None:
    text = shown(seen(THREE), 40)
    assert text[3].split() == ["domid", "name", "▼grants", "mapped", "rate/s"]
    assert row_of(2, text).split() == ["2", "db", "700", "0"]


@pytest.mark.parametrize("sort", SORTS)
def test_the_column_that_is_sorted_by_is_always_there_and_marked(sort: str) -> None:
    state = replace(seen(THREE), sort=sort)
    for width in (40, 80, 200):
        head = [line for line in lines(state, width, 24)[:5] for span in line if span.style == "sorted"]
        assert len(head) == 1
        [marked] = [span.text for span in head[0] if span.style == "sorted"]
        assert ("▲" if sort in ("domid", "name") else "▼") in marked
    reversed_ = press(state, "r")
    assert ("▼" if sort in ("domid", "name") else "▲") in "".join(shown(reversed_)[3])


def test_two_hundred_domains_scroll_and_say_where() -> None:
    state = fitted(seen(MANY), 80, 24)
    assert state.page == 19
    text = shown(state, 80)
    assert text[4].split()[0] == "1"
    assert text[-1].rstrip().endswith("1-19 of 200")
    for _ in range(3):
        state = press(state, "pgdn")
    text = shown(state, 80)
    assert text[-1].rstrip().endswith("40-58 of 200")
    assert "".join(span.text for span in lines(state, 80, 24)[-2] if span.style == "cursor").split()[0] == "58"
    text = shown(press(state, "end"), 80)
    assert text[-2].split()[0] == "200"
    assert "6,533,500 granted" in text[1]


def test_a_domain_that_dies_is_marked_and_then_forgotten() -> None:
    state = press(fitted(seen(THREE), 100, 24), "end")
    assert state.selected == 3
    state = seen(THREE[:2], state=state)
    assert row_of(3, shown(state)).split()[-4:-1] != []
    assert "gone" in row_of(3, shown(state))
    assert " 2 domains  742 granted" in shown(state)[1]
    for _ in range(int(GONE_SECONDS)):
        state = seen(THREE[:2], state=state)
    assert [row.domid for row in state.visible] == [2, 1]
    assert (state.cursor, state.selected) == (1, 1), "the cursor stays at a line"


def test_when_every_domain_is_gone_the_table_is_empty() -> None:
    state = press(seen(THREE), "down")
    for _ in range(int(GONE_SECONDS) + 1):
        state = seen([], state=state)
    assert "there is no other domain" in "\n".join(shown(state))
    assert (state.cursor, state.selected, state.row) == (0, None, None)
    assert press(press(state, "enter"), "down").view is View.LIST


def test_another_domain_of_the_same_domid_begins_anew() -> None:
    state = seen(THREE, THREE[:2], THREE)
    assert next(row for row in state.rows if row.domid == 3).history == (8,)
    assert not any(row.gone for row in state.rows)


def test_a_table_that_cannot_be_looked_at_says_why() -> None:
    state = seen([DomainGrants(4, "odd", 0, 0, 0, (), "no \x1bpermission")])
    assert row_of(4, shown(state)).split(maxsplit=2)[2].startswith("no \\x1bpermission")
    assert "no \\x1bpermission" in "\n".join(shown(press(state, "enter")))


def test_a_filter_is_shown_and_counts_all_the_same() -> None:
    state = press(press(press(seen(THREE), "/"), "w"), "e")
    text = shown(state)
    assert text[-1].startswith(" show only: we")
    assert row_of(1, text)
    assert "db" not in "".join(line.split()[1] for line in text[4:6] if line.split())
    assert " 3 domains" in text[1]
    text = shown(press(press(state, "enter"), "x"))
    assert "filter we" in text[0]
    nothing = "\n".join(shown(press(press(state, "x"), "enter")))
    assert "no domain matches wex" in nothing


def test_a_pause_is_marked() -> None:
    assert "PAUSED" not in shown(seen(THREE))[0]
    assert "PAUSED" in shown(press(seen(THREE), " "))[0]


def test_the_detail_has_each_peer_with_its_name_and_counts() -> None:
    state = press(press(fitted(seen(THREE, THREE), 100, 24), "down"), "enter")
    text = shown(state)
    assert " domain 1  web" in text[2]
    assert text[3].split() == ["42", "granted", "9", "mapped", "10", "read-only", "5", "writing", "0/s"]
    assert "1 of 64 frames" in text[4]
    assert "512 entries, version 1" in text[4]
    assert row_of(2, text).split()[:6] == ["2", "db", "40", "10", "7", "3"]
    assert row_of(0, text).split()[:6] == ["0", "Domain-0", "2", "0", "2", "2"]


def test_many_peers_scroll_to_their_end_and_no_further() -> None:
    state = press(fitted(seen([grants(1, *((peer, 100) for peer in range(2, 60)))]), 80, 20), "enter")
    for _ in range(100):
        state = fitted(press(state, "down"), 80, 20)
    text = shown(state, 80, 20)
    assert text[-1].rstrip().endswith("of 58")
    assert text[-2].split()[0] == "59"
    assert row_of(58, shown(press(state, "up"), 80, 20)) == shown(press(state, "up"), 80, 20)[-2]


def test_the_detail_of_a_domain_that_is_gone_goes_back_to_the_list() -> None:
    state = press(press(seen(THREE), "down"), "enter")
    state = seen(THREE[1:], state=state)
    assert " gone " in shown(state)[2]
    behind_help = press(state, "?")
    for _ in range(int(GONE_SECONDS)):
        state = seen(THREE[1:], state=state)
        behind_help = seen(THREE[1:], state=behind_help)
    assert state.view is View.LIST
    assert press(behind_help, "esc").view is View.LIST


def test_the_help_names_every_key_and_scrolls() -> None:
    state = press(seen(THREE), "?")
    text = "\n".join(shown(state, 100, 50))
    assert all(f"  {key}" in text for key in ("PgUp", "Enter", "Esc", "/", "s, S", "r ", "Space", "d ", "?, h", "q "))
    small = fitted(state, 40, 10)
    for _ in range(9):
        small = fitted(press(small, "pgdn"), 40, 10)
    assert "those with the most first" in " ".join("\n".join(shown(small, 40, 10)).split())


def test_sparks_and_charts_have_the_levels_of_their_values() -> None:
    assert spark([0, 1, 2, 3, 4, 5, 6], 7) == "▁▂▃▄▅▆▇"
    assert spark([5, 5], 4) == "  ▁▁"
    assert spark([0, 9], 2, PLAIN) == "_*"
    assert spark([], 3, FANCY) == "   "
    assert chart([0, 1, 8, 16], 5, 2) == ["    █", "  ▁██"]
    assert chart([0, 0], 3, 1) == ["   "]
    assert chart([1, 999], 2, 1) == ["▁█"], "one grant is seen beside many"


def test_looks_keep_in_step_and_apart() -> None:
    assert next_look(10.0, 1.0, 10.1) == 11.0
    assert next_look(10.0, 1.0, 10.9) == 11.4
    assert next_look(10.0, 1.0, 99.0) == 99.5, "those that were missed are not made up for"
