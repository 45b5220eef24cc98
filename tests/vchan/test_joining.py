"""A client that meets what other clients, and their server, leave and put in its way."""

from __future__ import annotations

import errno
import struct
import time
from collections.abc import Iterator
from typing import Any

import pytest

import xengrant
from xengrant import vchan
from xengrant.embedded import Machine
from xengrant.errors import InterfaceUnavailable, ProtocolError
from xengrant.evtchn import EventChannels
from xengrant.vchan import keys as keys_module
from xengrant.vchan.channel import Channel
from xengrant.vchan.joining import _RETRY, Joined, Pause, joining
from xengrant.vchan.keys import Keys

PATH = "/local/domain/1/data/vchan/2/here"


@pytest.fixture
def offered(granter: xengrant.Domain) -> Iterator[Keys]:
    """The keys of a server of domain 1."""
    with vchan.serve(2, "here", domain=granter) as server:
        keys = server._channel.keys
        assert keys is not None
        yield keys


@pytest.fixture
def channels(mapper: xengrant.Domain) -> Iterator[EventChannels]:
    with mapper.evtchn() as channels:
        yield channels


def test_the_page_is_that_of_the_offer_which_was_bound(
    mapper: xengrant.Domain, channels: EventChannels, offered: Keys
) -> None:
    """A ref that was read together with a port may be another offer's, when refs and ports are used again."""
    steps = joining(mapper, channels, 1, PATH, timeout=10)
    assert steps.send(None) is None
    assert steps.send(Keys(offered.ring_ref + 1, offered.event_channel)) is None  # bound: it looks again
    assert steps.send(offered) is None  # mapped: it looks again
    with pytest.raises(StopIteration) as end:
        steps.send(offered)
    joined: Joined[xengrant.Port] = end.value.value
    assert not joined.channel.is_awaited
    joined.channel.close()


@pytest.mark.parametrize("now", [None, Keys(8, 77)], ids=["withdrawn", "replaced"])
def test_an_offer_that_is_taken_back_is_left_alone_and_the_next_is_waited_for(
    now: Keys | None, machine: Machine, mapper: xengrant.Domain, channels: EventChannels, offered: Keys
) -> None:
    steps = joining(mapper, channels, 1, PATH, timeout=10)
    steps.send(None)
    steps.send(offered)
    assert steps.send(now) == Pause(_RETRY), "a port comes free without a word in xenstore"
    assert machine.status()["domains"][2]["ports"] == 0
    for keys in (None, offered, offered):
        steps.send(keys)
    with pytest.raises(StopIteration) as end:
        steps.send(offered)
    end.value.value.channel.close()


def test_an_offer_replaced_after_its_page_was_mapped_is_left_alone(
    machine: Machine, mapper: xengrant.Domain, channels: EventChannels, offered: Keys
) -> None:
    steps = joining(mapper, channels, 1, PATH, timeout=10)
    for told in (None, offered, offered):
        steps.send(told)
    assert isinstance(steps.send(Keys(offered.ring_ref + 1, offered.event_channel)), Pause)
    assert machine.status()["domains"][2]["maps"] == 0
    steps.close()


def test_a_page_that_took_the_offers_ref_is_not_written_to(
    machine: Machine, granter: xengrant.Domain, mapper: xengrant.Domain, channels: EventChannels
) -> None:
    """The server closes between the client's look at the keys and its map, and its refs are granted anew at once."""
    server = vchan.serve(2, "here", domain=granter)
    keys = server._channel.keys
    assert keys is not None
    steps = joining(mapper, channels, 1, PATH, timeout=10)
    steps.send(None)
    steps.send(keys)
    server.close()
    with granter.gntshr() as gntshr, gntshr.share_pages(2, 64, writable=True) as other:
        assert keys.ring_ref in other.refs
        other.mapping[:] = b"\x0b" * len(other.mapping)  # also where a vchan has orders, and who is there
        steps.send(keys)
        assert isinstance(steps.send(None), Pause)
        assert machine.status()["domains"][2]["maps"] == 0
        assert other.mapping[:] == b"\x0b" * len(other.mapping)
        steps.close()


_INDICES = struct.pack("<IIIIHHBBBB", 7, 5000, 0, 0, 12, 12, 1, 1, 0, 0)  # 4,993 bytes in a ring of 4,096


@pytest.mark.parametrize(
    "start", [b"\x0b" * 24, b"\x2a" * 20 + b"\x0f\0\0\0", _INDICES], ids=["orders", "live", "indices"]
)
def test_what_a_killed_servers_keys_have_come_to_name_is_not_written_to(
    granter: xengrant.Domain, mapper: xengrant.Domain, channels: EventChannels, start: bytes
) -> None:
    """Its port and its ref were used again, both for the same domain, and nobody has replaced its keys."""
    with (
        granter.gntshr() as gntshr,
        gntshr.share_pages(2, 1, writable=True) as page,
        granter.evtchn() as theirs,
        theirs.bind_unbound(2) as port,
    ):
        page.mapping[: len(start)] = start
        keys = Keys(page.refs[0], port.number)
        steps = joining(mapper, channels, 1, PATH, timeout=10)
        try:
            for told in (None, keys, keys, keys):
                steps.send(told)
        except ProtocolError:
            pass
        steps.close()
        assert page.mapping[: len(start)] == start


def test_a_server_that_starts_anew_with_the_port_of_one_that_was_killed_is_waited_for(
    granter: xengrant.Domain, mapper: xengrant.Domain, channels: EventChannels, offered: Keys
) -> None:
    """Its keys are not written yet, and the ref in those that stand is another page's by now."""
    with granter.gntshr() as gntshr, gntshr.share_pages(2, 1, writable=True) as page:
        page.mapping[:24] = b"\x0b" * 24
        old = Keys(page.refs[0], offered.event_channel)
        steps = joining(mapper, channels, 1, PATH, timeout=10)
        for told in (None, old, old, old):
            pause = steps.send(told)
        assert pause == Pause(_RETRY)
        for told in (None, offered, offered):
            steps.send(told)
        with pytest.raises(StopIteration) as end:
            steps.send(offered)
        end.value.value.channel.close()


@pytest.mark.parametrize("timeout", [20, 0])
def test_keys_that_go_on_leading_to_nonsense_are_the_servers_lie(
    timeout: float, granter: xengrant.Domain, mapper: xengrant.Domain, offered: Keys
) -> None:
    with granter.gntshr() as gntshr, gntshr.share_pages(2, 1, writable=True) as page, granter.xenstore() as store:
        page.mapping[:24] = b"\x0b" * 24
        store.write(f"{PATH}/ring-ref", str(page.refs[0]))
        started = time.monotonic()
        with pytest.raises(ProtocolError, match="rings of order 2827 and 2827"):
            vchan.connect(1, "here", domain=mapper, timeout=timeout)
        assert time.monotonic() - started < 10, "it was refused at the time-out only"


def test_rings_whose_refs_were_used_again_are_not_taken(
    granter: xengrant.Domain, mapper: xengrant.Domain, channels: EventChannels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server closes between the client's map of the page, which says what the rings' refs are, and of the rings."""
    server = vchan.serve(2, "here", domain=granter)
    keys = server._channel.keys
    assert keys is not None
    others: list[xengrant.Share] = []
    map_grants = xengrant.Gnttab.map

    def close_first(self: xengrant.Gnttab, grants: Any, **arguments: Any) -> xengrant.Mapped:
        if isinstance(grants, list) and not others:
            server.close()
            with granter.gntshr() as gntshr:
                others.append(gntshr.share_pages(2, 64, writable=True))
        return map_grants(self, grants, **arguments)

    monkeypatch.setattr(xengrant.Gnttab, "map", close_first)
    steps = joining(mapper, channels, 1, PATH, timeout=10)
    for told in (None, keys, keys):
        steps.send(told)
    assert isinstance(steps.send(keys), Pause)
    steps.close()
    (other,) = others
    other.close()


@pytest.mark.parametrize("persist", [False, True])
def test_a_server_withdraws_its_keys_before_it_gives_back_the_page(
    persist: bool, machine: Machine, granter: xengrant.Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    withdraw = keys_module.withdraw

    def note(*arguments: object) -> None:
        seen.append(machine.status()["domains"][1]["grants"])
        withdraw(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(keys_module, "withdraw", note)
    vchan.serve(2, "here", domain=granter, persist=persist).close()
    assert seen
    assert all(grants > 0 for grants in seen), "its pages were gone already"
    with granter.xenstore() as store:
        assert not store.exists(PATH)


def test_a_client_that_cannot_say_that_it_is_here_holds_nothing(
    machine: Machine,
    mapper: xengrant.Domain,
    channels: EventChannels,
    offered: Keys,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(self: Channel) -> None:
        raise InterfaceUnavailable(errno.ENODEV, "the machine is gone")

    monkeypatch.setattr(Channel, "connect", fail)
    steps = joining(mapper, channels, 1, PATH, timeout=10)
    for told in (None, offered, offered):
        steps.send(told)
    with pytest.raises(InterfaceUnavailable):
        steps.send(offered)
    held = machine.status()["domains"][2]
    assert held["maps"] == held["ports"] == 0


def test_closing_the_steps_undoes_them(
    machine: Machine, mapper: xengrant.Domain, channels: EventChannels, offered: Keys
) -> None:
    steps = joining(mapper, channels, 1, PATH, timeout=10)
    steps.send(None)
    steps.send(offered)
    assert machine.status()["domains"][2]["ports"] == 1
    steps.close()
    assert machine.status()["domains"][2]["ports"] == 0
    with pytest.raises(StopIteration):
        next(steps)
