"""`Survey`: every other domain's grants, counted anew only where they changed, and nothing that keeps a dead domain."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

import pytest

import xengrant
from xengrant.cli.survey import DomainGrants, Survey
from xengrant.embedded import Machine
from xengrant.grant_snapshot import PeerTally

from .shell import sharing

# What the builder grants of each domain: console and xenstore, which dom0 maps.
BUILT = PeerTally(0, 2, 0, 2, 2)


@pytest.fixture
def dom0(machine: Machine) -> Iterator[xengrant.Domain]:
    with xengrant.connect(machine.url(0)) as domain:
        yield domain


@pytest.fixture
def survey(dom0: xengrant.Domain) -> Iterator[Survey]:
    with Survey(dom0) as survey:
        yield survey


def untouched(domid: int, name: str | None = None) -> DomainGrants:
    return DomainGrants(domid, f"domain-{domid}" if name is None else name, 1, 1, 64, (BUILT,))


def open_files(machine: Machine) -> int:
    """Devices that dom0 has open."""
    return int(machine.status()["domains"][0]["files"])


def test_every_other_domain_is_there_and_dom0_is_a_peer_only(survey: Survey) -> None:
    assert survey.look() == [untouched(1), untouched(2), untouched(3)]
    assert survey.names == {0: "Domain-0", 1: "domain-1", 2: "domain-2", 3: "domain-3"}


def test_grants_are_counted_by_peer_the_most_first(survey: Survey, machine: Machine) -> None:
    with (
        sharing(machine.url(1), 2, pages=3),
        sharing(machine.url(1), 0, writable=False),
        sharing(machine.url(2), 1, pages=4, writable=False) as share,
        xengrant.connect(machine.url(1)) as one,
        one.gnttab() as gnttab,
        gnttab.map([xengrant.Grant(2, ref) for ref in share.refs[:3]], writable=False),
    ):
        first, second, third = survey.look()
        assert first.peers == (PeerTally(0, 3, 1, 2, 2), PeerTally(2, 3, 0, 0, 0))
        assert (first.granted, first.readonly, first.mapped, first.writing) == (6, 1, 2, 2)
        assert second.peers == (PeerTally(1, 4, 4, 3, 0), BUILT)
        assert (second.granted, second.readonly, second.mapped, second.writing) == (6, 4, 5, 2)
        assert third == untouched(3)
        assert [entry.ref for entry in survey.grants(2)] == [0, 1, *share.refs]
    assert survey.look() == [untouched(1), untouched(2), untouched(3)]


def test_a_table_that_did_not_change_is_not_counted_again(survey: Survey, machine: Machine) -> None:
    before = survey.look()
    with sharing(machine.url(1), 2):
        after = survey.look()
    assert after[0] != before[0]
    assert after[1] is before[1]
    assert after[2] is before[2]


def test_a_table_grows_while_it_is_looked_at(survey: Survey, machine: Machine) -> None:
    survey.look()
    with sharing(machine.url(1), 2, pages=600):
        grown = survey.look()[0]
    assert (grown.frames, grown.entries, grown.granted) == (2, 1024, 602)


def test_a_version_2_table_has_half_the_entries_in_a_frame() -> None:
    with Machine(grant_table_version=2) as machine, xengrant.connect(machine.url(0)) as dom0, Survey(dom0) as survey:
        machine.create(1)
        [grants] = survey.look()
        assert (grants.version, grants.frames, grants.entries) == (2, 1, 256)
        assert grants.peers == (BUILT,)


def test_domains_come_and_are_renamed(survey: Survey, machine: Machine, dom0: xengrant.Domain) -> None:
    survey.look()
    machine.create(7, name="web")
    assert survey.look()[-1] == untouched(7, "web")
    with dom0.xenstore() as store:
        store.write("/local/domain/7/name", b"\xffweb\x1b")
        assert survey.look()[-1] == untouched(7, "\\xffweb\x1b")
        store.rm("/local/domain/7/name")
        assert survey.look()[-1] == untouched(7, "")


def test_the_table_of_a_destroyed_domain_is_closed(survey: Survey, machine: Machine) -> None:
    survey.look()
    files = open_files(machine)
    machine.destroy(2)
    assert survey.look() == [untouched(1), untouched(3)]
    assert open_files(machine) == files - 1
    assert survey.grants(2) == []


def test_nodes_without_a_domain_keep_no_table_open(survey: Survey, machine: Machine, dom0: xengrant.Domain) -> None:
    survey.look()
    files = open_files(machine)
    machine.destroy(2)
    with dom0.xenstore() as store:
        for node in ("2", "9", "02x", "x", "99999"):
            store.write(f"/local/domain/{node}/name", "left behind")
    assert survey.look() == [untouched(1), untouched(3)]
    assert open_files(machine) == files - 1


def test_a_domain_that_goes_between_listing_and_opening_is_left_out(
    survey: Survey, machine: Machine, dom0: xengrant.Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    grant_table = dom0.grant_table

    def destroy_first(*, of: int) -> xengrant.ForeignGrantTable:
        if of == 2:
            machine.destroy(2)
        return grant_table(of=of)

    monkeypatch.setattr(dom0, "grant_table", destroy_first)
    assert survey.look() == [untouched(1), untouched(3)]


def test_a_domain_that_goes_between_listing_and_looking_again_is_let_go_of_by_the_next_look(
    survey: Survey, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    survey.look()
    refresh = xengrant.ForeignGrantTable.refresh

    def destroy_first(table: xengrant.ForeignGrantTable) -> bool:
        if table.domid == 2:
            machine.destroy(2)
        return refresh(table)

    monkeypatch.setattr(xengrant.ForeignGrantTable, "refresh", destroy_first)
    assert [grants.domid for grants in survey.look()] == [1, 2, 3]
    assert machine.status()["domains"][2]["state"] == "dying"
    assert survey.look() == [untouched(1), untouched(3)]
    assert 2 not in machine.status()["domains"]


def test_one_table_that_cannot_be_looked_at_hides_no_other(
    survey: Survey, dom0: xengrant.Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    grant_table = dom0.grant_table

    def refuse(*, of: int) -> xengrant.ForeignGrantTable:
        if of == 2:
            raise xengrant.InterfaceUnavailable(errno.EPERM, "not this one")
        return grant_table(of=of)

    monkeypatch.setattr(dom0, "grant_table", refuse)
    first, second, third = survey.look()
    assert second == DomainGrants(2, "domain-2", 0, 0, 0, (), "not this one")
    assert (second.granted, second.entries) == (0, 0)
    assert (first, third) == (untouched(1), untouched(3))
    monkeypatch.undo()
    assert survey.look()[1] == untouched(2)


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), ValueError("version 3")])
def test_what_is_wrong_at_a_later_look_is_a_problem_too(
    survey: Survey, machine: Machine, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    survey.look()
    files = open_files(machine)

    def fail(table: xengrant.ForeignGrantTable) -> Any:
        raise error

    monkeypatch.setattr(xengrant.ForeignGrantTable, "refresh", fail)
    assert {grants.problem for grants in survey.look()} == {getattr(error, "strerror", None) or "version 3"}
    monkeypatch.undo()
    assert open_files(machine) == files - 3
    assert survey.look() == [untouched(1), untouched(2), untouched(3)]


def test_a_guest_is_told_why_not(machine: Machine) -> None:
    with (
        xengrant.connect(machine.url(1)) as domain,
        Survey(domain) as survey,
        pytest.raises(xengrant.InterfaceUnavailable, match="run this in dom0"),
    ):
        survey.look()


def test_closing_closes_every_table(dom0: xengrant.Domain, machine: Machine) -> None:
    assert dom0.domid == 0
    files = open_files(machine)
    with Survey(dom0) as survey:
        survey.look()
        assert open_files(machine) == files + 3
        assert repr(survey) == "<Survey of 3 grant tables>"
    assert open_files(machine) == files
    survey.close()
    assert repr(survey) == "<Survey of 0 grant tables, closed>"
