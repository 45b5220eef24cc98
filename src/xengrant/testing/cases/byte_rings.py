"""Rings of bytes between two domains: a console's page, whose front is one half and whose back is the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from xengrant import _native
from xengrant.errors import ProtocolError
from xengrant.evtchn import Port
from xengrant.memory import Mapping
from xengrant.rings.byte_ring import ConsoleRing
from xengrant.testing.case import Case
from xengrant.testing.expect import equal, raises
from xengrant.testing.here import SOON, Here

CONSOLE = "Xen public/io/console.h, struct xencons_interface"
INDICES = f"{CONSOLE}: indices run on and are masked; docs/misc/xenstore-ring.txt says how"

_OUT, _IN = ConsoleRing.TO_BACK, ConsoleRing.TO_FRONT
_BEFORE_THE_END = (2**31 - 1500, 2**32 - 1500)
# What the front's indices say: (produced, consumed), where 4 bytes were produced and nothing could be consumed.
_LIES = {"one byte beyond": (2049, 1), "half way round": (2**31, 2**31), "backwards": (3, 2**32 - 5)}


class _Side(NamedTuple):
    """One half's side of the page."""

    ring: ConsoleRing
    page: Mapping
    port: Port

    def send(self, data: bytes) -> None:
        """Write all of it, as room comes."""
        sent = 0
        while sent < len(data):
            count = self.ring.output.write(data[sent:])
            sent += count
            if count:
                self.port.notify()
            else:
                self.port.wait(SOON)

    def receive(self, length: int) -> bytes:
        """So many bytes, as they come."""
        got = bytearray()
        while len(got) < length:
            piece = self.ring.input.read(length - len(got))
            got += piece
            if piece:
                self.port.notify()
            else:
                self.port.wait(SOON)
        return bytes(got)


@contextmanager
def _front(here: Here, *, begins_at: int = 0) -> Iterator[_Side]:
    """The half that makes the page, whose indices begin at some number."""
    with (
        here.domain.gntshr() as gntshr,
        here.domain.evtchn() as channels,
        channels.bind_unbound(here.other) as port,
        gntshr.share_pages(here.other, 1, writable=True) as share,
    ):
        ConsoleRing.init(share.mapping)
        for ring in (_OUT, _IN):
            _native.store32(share.mapping, ring.cons, begins_at)
            _native.store32(share.mapping, ring.prod, begins_at)
        side = _Side(ConsoleRing.front(share.mapping), share.mapping, port)
        here.offer(share, f"refs {begins_at}")
        here.tell(f"port {begins_at}", port.number)
        yield side
        here.tell(f"done {begins_at}")
        here.hear(f"unmapped {begins_at}")


@contextmanager
def _back(here: Here, *, begins_at: int = 0) -> Iterator[_Side]:
    with (
        here.domain.gnttab() as gnttab,
        here.domain.evtchn() as channels,
        gnttab.map(here.offered(f"refs {begins_at}"), writable=True) as mapped,
        channels.bind_interdomain(here.other, here.hear(f"port {begins_at}")) as port,
    ):
        yield _Side(ConsoleRing.back(mapped.mapping), mapped.mapping, port)
        here.hear(f"done {begins_at}")
    here.tell(f"unmapped {begins_at}")


class BothWays(Case):
    """Text goes both ways through a console's page, whole and in order, also what was written before the back came"""

    source = CONSOLE
    peer = "front"

    def front(self, here: Here) -> None:
        with _front(here) as side:
            side.send(b"login: ")
            equal(side.receive(5), b"root\n", "what the back wrote")
            side.send(here.noise(20_000, "out"))
            equal(side.receive(20_000), here.noise(20_000, "in"), "the stream from the back")

    def back(self, here: Here) -> None:
        with _back(here) as side:
            equal(side.receive(7), b"login: ", "what the front wrote")
            side.send(b"root\n")
            equal(side.receive(20_000), here.noise(20_000, "out"), "the stream from the front")
            side.send(here.noise(20_000, "in"))


class ShortCounts(Case):
    """A full ring takes a part of what is written and then nothing, an empty one gives nothing: nobody waits"""

    source = f"{CONSOLE}: 1024 bytes to the guest, 2048 from it"
    peer = "front"

    def front(self, here: Here) -> None:
        noise = here.noise(4000)
        with _front(here) as side:
            equal(side.ring.input.read(100), b"", "reading what nobody wrote")
            equal(side.ring.output.write(noise), 2048, "bytes of 4000 that were taken")
            equal(side.ring.output.write(noise), 0, "bytes that a full ring took")
            here.meet("full")
            here.hear("some were read")
            equal(side.ring.output.write(noise[2048:]), 10, "bytes that were taken when ten had been read")
            here.tell("some were written")

    def back(self, here: Here) -> None:
        noise = here.noise(4000)
        with _back(here) as side:
            here.meet("full")
            equal(side.ring.input.read(10), noise[:10], "the first ten")
            here.tell("some were read")
            here.hear("some were written")
            equal(side.ring.input.read(4000), noise[10:2058], "all that is left")
            equal(side.ring.input.read(4000), b"", "reading an empty ring")
            equal(side.ring.output.write(noise), 1024, "bytes of 4000 that were taken the other way")


class IndicesWrap(Case):
    """Streams come through whole and in order while the indices pass 2^31, where signed numbers end, and 2^32"""

    source = INDICES
    peer = "front"

    def front(self, here: Here) -> None:
        for begins_at in _BEFORE_THE_END:
            with _front(here, begins_at=begins_at) as side:
                side.send(here.noise(5000, begins_at))
                equal(side.receive(5000), here.noise(5000, -begins_at), f"the stream from {begins_at}")

    def back(self, here: Here) -> None:
        for begins_at in _BEFORE_THE_END:
            with _back(here, begins_at=begins_at) as side:
                equal(side.receive(5000), here.noise(5000, begins_at), f"the stream from {begins_at}")
                side.send(here.noise(5000, -begins_at))
                end = (begins_at + 5000) % 2**32
                equal(_native.load32(side.page, _OUT.cons), end, "the index of what was read")
                equal(_native.load32(side.page, _IN.prod), end, "the index of what was written")


class LyingIndex(Case):
    """An index that cannot be is a ProtocolError at the other end, which moves nothing until it can be again"""

    source = "xengrant's own; what xenconsoled ignores and xenstored calls XENSTORE_ERROR_RINGIDX"
    peer = "liar"

    def liar(self, here: Here) -> None:
        with _front(here) as side:
            side.ring.output.write(b"text")
            here.tell("written")
            here.hear("seen")  # before, an index that says less would be no lie
            for name, (produced, consumed) in _LIES.items():
                _native.store32(side.page, _OUT.prod, produced)
                _native.store32(side.page, _IN.cons, consumed)
                here.tell(name)
                here.hear(f"refused {name}")
                equal(_native.load32(side.page, _OUT.cons), 0, "the index of what the other end has read")
                equal(_native.load32(side.page, _IN.prod), 0, "the index of what the other end has written")
            _native.store32(side.page, _OUT.prod, 4)
            _native.store32(side.page, _IN.cons, 0)
            here.tell("honest")
            equal(side.receive(2), b"ok", "what comes once the indices can be")

    def back(self, here: Here) -> None:
        with _back(here) as side:
            into = bytearray(4096)
            here.hear("written")
            equal(side.ring.input.ready, 4, "bytes that can be read")
            here.tell("seen")
            for name in _LIES:
                here.hear(name)
                with raises(ProtocolError, f"reading, {name}", says="cannot be"):
                    side.ring.input.read(4096)
                with raises(ProtocolError, f"reading into a buffer, {name}"):
                    side.ring.input.readinto(into)
                with raises(ProtocolError, f"looking, {name}"):
                    side.ring.input.peek()
                with raises(ProtocolError, f"writing, {name}"):
                    side.ring.output.write(b"more")
                with raises(ProtocolError, f"reserving, {name}"):
                    side.ring.output.reserve()
                equal(bytes(into), bytes(4096), "the buffer after nothing was read")
                here.tell(f"refused {name}")
            here.hear("honest")
            equal(side.receive(4), b"text", "what was written before the lies")
            side.send(b"ok")


class LookAcknowledgesNothing(Case):
    """What was looked at stays until it is consumed, for who attaches after a crash too; what was reserved is not seen
    before it is committed
    """

    source = f"{CONSOLE}; shared-memory-ring's read and advance"
    peer = "front"

    def front(self, here: Here) -> None:
        with _front(here) as side:
            equal(side.ring.output.write(here.noise(2048)), 2048, "bytes that were taken")
            here.meet("full")
            here.hear("looked")
            equal(side.ring.output.space, 0, "the room that a look makes")
            here.tell("no room")
            here.hear("consumed")
            equal(side.ring.output.space, 48, "the room that consuming 48 bytes makes")
            equal(side.ring.input.ready, 0, "bytes to read that were reserved, not committed")
            here.tell("commit")
            here.hear("committed")
            equal(side.ring.input.read(100), b"shown", "what was committed")

    def back(self, here: Here) -> None:
        noise = here.noise(2048)
        with _back(here) as side:
            here.meet("full")
            with side.ring.input.peek() as view:
                equal(bytes(view), noise, "what a look shows")
            here.tell("looked")
            here.hear("no room")
            again = ConsoleRing.back(side.page)
            with again.input.peek() as view:
                equal(bytes(view), noise, "what is there for another that attaches")
            again.input.consume(48)
            with again.output.reserve() as room:
                room[:9] = b"shown not"
            here.tell("consumed")
            here.hear("commit")
            again.output.commit(5)
            here.tell("committed")
