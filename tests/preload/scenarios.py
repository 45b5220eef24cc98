"""The same work done by a C process (`actor.c`) and by xengrant, for `test_calls.py` to compare what they ask for.

Domain 1 works, domain 2 is the peer. Run as a program, under the preload library, it is xengrant on the kernel's
devices, with the native calls that an embedded machine's own devices have not.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import xengrant
from xengrant import CopySegment, Grant, UnmapNotify
from xengrant.memory import PAGE_SIZE

from .programs import LONG, Actor, pattern

NONE = -1  # no byte, no port

FIRST_REF = 8
"""What a fresh domain's first share gets: the refs below are the builder's."""

Peer = contextlib.AbstractContextManager[object]


@dataclass(frozen=True)
class Scenario:
    """`peer` is what domain 2 has done when the work begins."""

    c: Callable[[Actor], None]
    python: Callable[[xengrant.Domain], None]
    peer: Callable[[xengrant.Domain], Peer] = lambda domain: contextlib.nullcontext()


@contextlib.contextmanager
def _shared(domain: xengrant.Domain, count: int, *, writable: bool = True) -> Iterator[None]:
    with domain.gntshr() as gntshr, gntshr.share_pages(1, count, writable=writable) as share:
        assert share.refs == tuple(range(FIRST_REF, FIRST_REF + count))
        share.mapping[:] = pattern(count * PAGE_SIZE, 3)
        yield


@contextlib.contextmanager
def _offered(domain: xengrant.Domain) -> Iterator[None]:
    with domain.evtchn() as evtchn, evtchn.bind_unbound(1) as port:
        assert port.number == 1
        yield


def _share(count: int, *, writable: bool) -> Scenario:
    def c(actor: Actor) -> None:
        actor.ask("share", 2, count, int(writable), NONE, NONE)
        actor.ask("unshare", 0)

    def python(domain: xengrant.Domain) -> None:
        with domain.gntshr() as gntshr, gntshr.share_pages(2, count, writable=writable):
            pass

    return Scenario(c, python)


def _share_with_notify() -> Scenario:
    def c(actor: Actor) -> None:
        (port,) = actor.numbers("bind_unbound", 2)
        actor.ask("share", 2, 1, 1, 21, port)
        actor.ask("unshare", 0)

    def python(domain: xengrant.Domain) -> None:
        with domain.evtchn() as evtchn:
            port = evtchn.bind_unbound(2)
            notify = UnmapNotify(clear_byte=21, port=port)
            with domain.gntshr() as gntshr, gntshr.share_pages(2, 1, writable=True, notify=notify):
                pass

    return Scenario(c, python)


def _map(count: int, *, writable: bool) -> Scenario:
    refs = range(FIRST_REF, FIRST_REF + count)

    def c(actor: Actor) -> None:
        actor.ask("map", 2, int(writable), NONE, NONE, *refs)
        actor.ask("unmap", 0)

    def python(domain: xengrant.Domain) -> None:
        grants = [Grant(2, ref) for ref in refs]
        with domain.gnttab() as gnttab, gnttab.map(grants, writable=writable):
            pass

    return Scenario(c, python, lambda domain: _shared(domain, count, writable=writable))


def _map_with_notify() -> Scenario:
    def c(actor: Actor) -> None:
        (port,) = actor.numbers("bind_unbound", 2)
        actor.ask("map", 2, 1, 21, port, FIRST_REF)
        actor.ask("unmap", 0)

    def python(domain: xengrant.Domain) -> None:
        with domain.evtchn() as evtchn, domain.gnttab() as gnttab:
            port = evtchn.bind_unbound(2)
            notify = UnmapNotify(clear_byte=21, port=port)
            with gnttab.map(Grant(2, FIRST_REF), writable=True, notify=notify):
                pass

    return Scenario(c, python, lambda domain: _shared(domain, 1))


def _copy_from() -> Scenario:
    def c(actor: Actor) -> None:
        status, data = actor.ask("copy_from", 2, FIRST_REF, 16, 100, 0)
        assert (status, bytes.fromhex(data)) == ("0", pattern(PAGE_SIZE, 3)[16:116])

    def python(domain: xengrant.Domain) -> None:
        data = bytearray(100)
        with domain.gnttab() as gnttab:
            assert gnttab.copy([CopySegment(Grant(2, FIRST_REF), data, 100, source_offset=16)]) == [0]
        assert data == pattern(PAGE_SIZE, 3)[16:116]

    return Scenario(c, python, lambda domain: _shared(domain, 1))


def _copy_to() -> Scenario:
    def c(actor: Actor) -> None:
        assert actor.ask("copy_to", 2, FIRST_REF, 16, 100, 9) == ["0"]

    def python(domain: xengrant.Domain) -> None:
        with domain.gnttab() as gnttab:
            segment = CopySegment(pattern(100, 9), Grant(2, FIRST_REF), 100, dest_offset=16)
            assert gnttab.copy([segment]) == [0]

    return Scenario(c, python, lambda domain: _shared(domain, 1))


def _copy_between() -> Scenario:
    def c(actor: Actor) -> None:
        assert actor.ask("copy_between", 2, FIRST_REF, 2, FIRST_REF + 1) == ["0"]

    def python(domain: xengrant.Domain) -> None:
        with domain.gnttab() as gnttab:
            segment = CopySegment(Grant(2, FIRST_REF), Grant(2, FIRST_REF + 1), PAGE_SIZE)
            assert gnttab.copy([segment]) == [0]

    return Scenario(c, python, lambda domain: _shared(domain, 2))


def _event_channel_offered() -> Scenario:
    def c(actor: Actor) -> None:
        (port,) = actor.numbers("bind_unbound", 2)
        actor.ask("notify", port)
        actor.ask("unbind", port)

    def python(domain: xengrant.Domain) -> None:
        with domain.evtchn() as evtchn, evtchn.bind_unbound(2) as port:
            port.notify()

    return Scenario(c, python)


def _event_channel_bound() -> Scenario:
    def c(actor: Actor) -> None:
        (port,) = actor.numbers("bind_interdomain", 2, 1)
        assert actor.numbers("pending") == [port]
        actor.ask("unmask", port)
        actor.ask("notify", port)
        actor.ask("unbind", port)

    def python(domain: xengrant.Domain) -> None:
        with domain.evtchn() as evtchn, evtchn.bind_interdomain(2, 1) as port:
            port.wait(LONG)
            port.notify()

    return Scenario(c, python, _offered)


SCENARIOS = {
    "share 1": _share(1, writable=True),
    "share 3": _share(3, writable=True),
    "share 1 read-only": _share(1, writable=False),
    "share 1 with notify": _share_with_notify(),
    "map 1": _map(1, writable=True),
    "map 3": _map(3, writable=True),
    "map 1 read-only": _map(1, writable=False),
    "map 1 with notify": _map_with_notify(),
    "copy from a grant": _copy_from(),
    "copy to a grant": _copy_to(),
    "copy between grants": _copy_between(),
    "event channel offered": _event_channel_offered(),
    "event channel bound": _event_channel_bound(),
}


def main() -> None:
    with xengrant.connect("xen:") as domain:
        SCENARIOS[sys.argv[1]].python(domain)


if __name__ == "__main__":
    main()
