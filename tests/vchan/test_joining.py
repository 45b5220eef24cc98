"""A client that meets what other clients, and their server, leave and put in its way."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import xengrant
from xengrant import vchan
from xengrant.embedded import Machine
from xengrant.evtchn import EventChannels
from xengrant.vchan.joining import Joined, Pause, joining
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
    assert isinstance(steps.send(now), Pause)
    assert machine.status()["domains"][2]["ports"] == 0
    steps.send(None)
    steps.send(offered)
    with pytest.raises(StopIteration) as end:
        steps.send(offered)
    end.value.value.channel.close()


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
