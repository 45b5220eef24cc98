"""How a client comes to what a server offers, whichever other clients come and go there.

`joining` is the steps, which never wait; `opening` takes them with a blocking xenstore, `streams` with asyncio's.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar

from xengrant.errors import GrantError, InterfaceUnavailable, ProtocolError
from xengrant.vchan.channel import Channel, attach, check_page, pinned
from xengrant.waiting import deadline_after, seconds_until

if TYPE_CHECKING:
    from xengrant.domain import Domain
    from xengrant.evtchn import AsyncPort, Port
    from xengrant.vchan.keys import Keys

__all__ = ["Joined", "Pause", "Steps", "joining"]

_RETRY = 0.2  # seconds after which keys that led nowhere are tried again, though nothing changed in xenstore

_P = TypeVar("_P", bound="Port | AsyncPort")
_P_co = TypeVar("_P_co", bound="Port | AsyncPort", covariant=True)


class Pause(NamedTuple):
    """Wait for that many seconds, for ever where it is None, or until something changes at the path."""

    seconds: float | None


class Joined(NamedTuple, Generic[_P]):
    """A client's end, and its port."""

    channel: Channel
    port: _P


class Binds(Protocol[_P_co]):
    """`EventChannels`, or `AsyncEventChannels`."""

    def bind_interdomain(self, remote_domid: int, remote_port: int) -> _P_co: ...


Steps = Generator[Pause | None, "Keys | None", Joined[_P]]
"""Yields a `Pause`, or None to be sent the keys that stand at the path, None for none. Closing it undoes all."""


def joining(domain: Domain, channels: Binds[_P], domid: int, where: str, timeout: float | None) -> Steps[_P]:
    """Connect to the vchan of domain `domid` at `where`; raises as `connect`."""
    deadline = deadline_after(timeout)
    failure: Exception | None = None
    nonsense: Keys | None = None  # the keys that last led to what cannot be,
    patience: float | None = None  # and the time until which others may come in their place
    while True:
        found = yield None
        if found is not None:
            try:
                with ExitStack() as undo:
                    port = channels.bind_interdomain(domid, found.event_channel)
                    undo.callback(port.close)
                    # Only now is the offer ours: before, another client may have taken it, the server may have put a
                    # new one in its place, and the ref that was read be a page of theirs.
                    found = _same_offer(domid, found, (yield None))
                    with pinned(domain, domid, found) as page:
                        # The server may have closed meanwhile, and the ref be another page's, in which the notification
                        # of `attach` would clear a byte. Servers withdraw their keys before they give back the page.
                        if (yield None) != found:
                            raise _taken_back(domid)
                        # One that was killed left them, and both the ref and the port may be others' by now.
                        check_page(page, domid)
                        channel = attach(domain, port, found)
                    undo.callback(channel.close)
                    channel.connect()
                    undo.pop_all()
                    return Joined(channel, port)
            except InterfaceUnavailable:
                raise
            except ProtocolError as error:
                # The keys of a server that was killed stand until the next one, which often has the same port first,
                # writes its own. Keys that go on leading to what cannot be are a lie.
                if found != nonsense:
                    nonsense, patience = found, deadline_after(_RETRY)
                if seconds_until(patience) == 0 or seconds_until(deadline) == 0:
                    raise
                failure = error
            except GrantError as error:
                failure = error
        left = seconds_until(deadline)
        if left == 0:
            raise _no_server(domid, where, timeout, failure)
        # A port that another client still has comes free, and a page goes, without a word in xenstore.
        yield Pause(left if failure is None else _RETRY if left is None else min(left, _RETRY))


def _same_offer(domid: int, bound: Keys, now: Keys | None) -> Keys:
    if now is None or now.event_channel != bound.event_channel:
        raise _taken_back(domid)
    return now


def _taken_back(domid: int) -> GrantError:
    return GrantError(f"domain {domid} took back what it offered")


def _no_server(domid: int, where: str, timeout: float | None, failure: Exception | None) -> TimeoutError:
    if failure is None:
        why = f"domain {domid} offers this domain nothing there: start its server, or check path and domid"
    else:
        why = f"what domain {domid} offers there is another client's, or its server is gone ({failure})"
    return TimeoutError(f"no vchan at {where} in {timeout} seconds: {why}")
