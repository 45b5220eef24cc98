"""connect and Domain: the URL, what is opened when, and what closing means."""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import Any

import pytest

import xengrant
from xengrant.domain import Domain, _parse_domid
from xengrant.embedded import Machine
from xengrant.errors import InterfaceClosed, InterfaceUnavailable, ProtocolError

from .fake import FakeSystem


@pytest.fixture(autouse=True)
def _no_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XENGRANT_URL", raising=False)


@pytest.mark.parametrize(
    "url",
    [
        "xen",
        "xen:0",
        "Xen:",
        "kvm:",
        "embedded",
        "embedded:",
        "embedded:/tmp/x",
        "embedded:/tmp/x?domid=",
        "embedded:/tmp/x?domid=-1",
        "embedded:/tmp/x?domid=one",
        "embedded:/tmp/x?domid=32752",
        "embedded:/tmp/x?domid=1&colour=red",
        "/tmp/x",
    ],
)
def test_a_url_that_names_no_machine_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match=r"machine|domid") as caught:
        xengrant.connect(url)
    assert url in str(caught.value)


def test_the_url_is_the_one_given_else_the_environments_else_this_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    assert xengrant.connect().url == "xen:"
    monkeypatch.setenv("XENGRANT_URL", "embedded:/tmp/x?domid=3")
    assert xengrant.connect().url == "embedded:/tmp/x?domid=3"
    assert xengrant.connect("xen:").url == "xen:"
    monkeypatch.setenv("XENGRANT_URL", "")
    assert xengrant.connect().url == "xen:"


def test_a_wrong_environment_says_what_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XENGRANT_URL", "nonsense")
    with pytest.raises(ValueError, match="nonsense"):
        xengrant.connect()


def test_a_missing_machine_is_said_by_the_first_call_that_needs_it(tmp_path: Path) -> None:
    with xengrant.connect(f"embedded:{tmp_path}/none?domid=1") as domain:
        for call in (domain.gntshr, domain.gnttab, domain.evtchn, domain.xenstore, lambda: domain.domid):
            with pytest.raises(InterfaceUnavailable, match="xengrant machine"):
                call()


def test_devices_are_opened_one_for_each_object_asked_for(system: FakeSystem) -> None:
    domain = Domain(system)
    assert system.opened == []
    with domain.gntshr(), domain.gntshr(), domain.gnttab(), domain.evtchn():
        assert [device.name for device in system.opened] == ["gntalloc", "gntalloc", "gntdev", "evtchn"]
    assert all(device.closed for device in system.opened)


def test_closing_the_domain_leaves_its_interfaces_open(system: FakeSystem) -> None:
    with Domain(system) as domain:
        gntshr = domain.gntshr()
        share = gntshr.share_pages(5, writable=True)
    assert domain.closed
    share.mapping[0] = 1
    share.close()
    gntshr.share_pages(5, writable=True).close()


def test_a_closed_domain_says_so(system: FakeSystem) -> None:
    domain = Domain(system)
    domain.close()
    domain.close()
    calls: list[Any] = [
        domain.gntshr,
        domain.gnttab,
        domain.evtchn,
        domain.xenstore,
        lambda: domain.domid,
        lambda: domain.find(1, "data/demo", 0),
        lambda: domain.peer(1),
        lambda: domain.aio.peer(1),
        domain.__enter__,
    ]
    for call in calls:
        with pytest.raises(InterfaceClosed, match="connect"):
            call()
    assert system.opened == []
    assert repr(domain) == "<Domain on fake:, closed>"


def test_the_asyncio_face_outside_a_loop_leaves_nothing_open(system: FakeSystem) -> None:
    domain = Domain(system)
    for call in (domain.aio.evtchn, domain.aio.xenstore):
        with pytest.raises(RuntimeError, match="no running event loop"):
            call()
    assert system.opened == []


def test_a_bad_domid_is_refused(system: FakeSystem) -> None:
    domain = Domain(system)
    for domid in (-1, 0x7FF0):
        with pytest.raises(ValueError, match="domid"):
            domain.peer(domid)
        with pytest.raises(ValueError, match="domid"):
            domain.aio.peer(domid)


@pytest.mark.parametrize(
    "value", [b"", b"-1", b"1 ", b"1\n", b"0x1", b"32752", b"99999", b"1" * 4096, "\u0661".encode()]
)
def test_a_xenstore_that_lies_about_our_domid_is_not_believed(value: bytes) -> None:
    with pytest.raises(ProtocolError, match="this domain's domid"):
        _parse_domid(value)


def test_the_domid_is_asked_once(machine: Machine, granter: xengrant.Domain) -> None:
    assert granter.domid == 1
    assert repr(granter) == f"<Domain 1 on {machine.url(1)}>"
    assert machine.status()["domains"][1]["connections"] == 1
    granter._own_store().close()
    assert granter.domid == 1


def test_a_peer_that_nobody_keeps_is_not_kept(system: FakeSystem) -> None:
    domain = Domain(system)
    peer = weakref.ref(domain.peer(1))
    assert peer() is None


def test_closing_goes_on_where_xenstore_fails(system: FakeSystem) -> None:
    """Every advertisement and peer is closed, then the first failure is raised."""
    closed: list[str] = []

    class Closing:
        closed = False

        def __init__(self, name: str, failure: Exception | None) -> None:
            self.name = name
            self.failure = failure

        def close(self) -> None:
            closed.append(self.name)
            if self.failure is not None:
                raise self.failure

    domain = Domain(system)
    unchecked: Any = domain
    unchecked._store = Closing("store", None)
    unchecked._advertisements = [Closing("first", InterfaceUnavailable(5, "broken")), Closing("second", None)]
    unchecked._peers = [Closing("peer", ValueError("odd"))]
    with pytest.raises(InterfaceUnavailable, match="broken"):
        domain.close()
    assert sorted(closed) == ["first", "peer", "second", "store"]
    assert domain.closed
    domain.close()
    assert len(closed) == 4


def test_a_child_has_a_domain_that_is_of_no_use_and_does_no_harm(
    granter: xengrant.Domain, mapper: xengrant.Domain
) -> None:
    """Its devices are closed; the parent's advertisement stays."""
    with granter.gntshr() as gntshr, gntshr.share_pages(2, writable=True) as share:
        granter.advertise(share, "data/demo")
        child = os.fork()
        if child == 0:
            status = 1
            try:
                granter.close()
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert [grant.ref for grant in mapper.find(1, "data/demo", timeout=20)] == list(share.refs)
