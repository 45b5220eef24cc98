"""The soak's grants: a `Front` shares pages and asks, over a ring of requests, that the `Back` of its peer do things.

The control page is shared first: the numbers of both processes, their live bytes, the port, and the ref of the ring.
Then each request names pages: map or copy them, compare every byte, write an answer into those that are writable. Pages
are revoked while the peer maps them, which then must not change; and refs that are revoked are mapped, which must fail,
or show what was granted later.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import NamedTuple

from tests.soak.links import LONG, PATIENCE, Setting, Side
from xengrant import (
    CopySegment,
    Gnttab,
    Grant,
    MapError,
    Mapped,
    PeerClosed,
    Port,
    Share,
    UnmapNotify,
    _native,
)
from xengrant.abi.xen import PAGE_SIZE
from xengrant.peer import Peer
from xengrant.rings.rpc import BackRing, FrontRing

__all__ = ["SIDES", "path_to"]

# The control page.
_FRONT_LIVE, _BACK_LIVE, _CAME = 0, 1, 2
_MAGIC_AT, _PORT, _RING_REF, _FRONT_NUMBER, _BACK_NUMBER = 8, 16, 20, 24, 28
_MAGIC = b"soaking\0"

_CHECK, _COPY, _HOLD, _RELEASE, _PROBE, _BYE = range(6)
_MOST_PAGES = 8
_REQUEST = struct.Struct(f"<IIII{_MOST_PAGES}I")  # what, sequence number, writable, pages; refs
_RESPONSE = struct.Struct("<II")  # sequence number, what came of it
_DONE, _REFUSED = 1, 2
_ANSWER = 1 << 31  # in the sequence number of what the back writes into pages
_ENTRY_SIZE = 64
_MARK = struct.Struct("<IIQ")  # number of the process, sequence number, page: what pages are full of
_MOST_SECONDS = 3.0


def path_to(peer: int) -> str:
    return f"data/soak/grants/{peer}"


def _pattern(number: int, sequence: int, pages: int) -> bytes:
    """What fills pages."""
    return b"".join(_MARK.pack(number, sequence, page) * (PAGE_SIZE // _MARK.size) for page in range(pages))


class _Session(Side):
    """What both sides have: waiting for the other's event, while it is there."""

    _their_live: int

    def wait(self, port: Port, control: Share | Mapped, peer: Peer) -> None:
        if not _native.load8(control.mapping, self._their_live):
            raise PeerClosed(errno.EPIPE, "the process at the other end is gone")
        port.wait(LONG, peer=peer)
        self.counts["events"] += 1

    def notify(self, port: Port) -> None:
        port.notify()
        self.counts["notifications"] += 1


class Front(_Session):
    _their_live = _BACK_LIVE

    def __init__(self, setting: Setting, peer: int) -> None:
        super().__init__(setting, peer)
        self._gntshr = self.domain.gntshr()
        self._channels = self.domain.evtchn()
        self._sequence = 0
        self._ring: FrontRing

    def meet(self, life: str) -> None:
        with ExitStack() as held:
            port = held.enter_context(self._channels.bind_unbound(self.peer))
            notify = UnmapNotify(clear_byte=_FRONT_LIVE, port=port)
            control = held.enter_context(self._gntshr.share_pages(self.peer, 1, writable=True, notify=notify))
            ring = held.enter_context(self._gntshr.share_pages(self.peer, 1, writable=True))
            self._ring = FrontRing.init(ring.mapping, _ENTRY_SIZE)
            for at, value in ((_PORT, port.number), (_RING_REF, ring.refs[0]), (_FRONT_NUMBER, self.setting.number)):
                _native.store32(control.mapping, at, value)
            control.mapping[_MAGIC_AT : _MAGIC_AT + 8] = _MAGIC
            _native.store8(control.mapping, _FRONT_LIVE, 1)
            held.enter_context(self.domain.advertise(control, path_to(self.peer)))
            peer = held.enter_context(self.domain.peer(self.peer, life))
            while not _native.load8(control.mapping, _CAME):
                port.wait(PATIENCE, peer=peer)
            self.other = _native.load32(control.mapping, _BACK_NUMBER)
            self._work(port, control, peer)

    def _work(self, port: Port, control: Share, peer: Peer) -> None:
        is_over = self.ends_at(_MOST_SECONDS)
        while not is_over():
            if self.random.random() < 0.2:
                self._revoke_while_mapped(port, control, peer)
            else:
                self._have_checked(port, control, peer)
        self._ask(port, control, peer, [(_BYE, self._next(), False, ())])

    def _have_checked(self, port: Port, control: Share, peer: Peer) -> None:
        """Some requests at once, each with pages of its own."""
        with ExitStack() as held:
            asked = [self._share(held) for _ in range(self.random.randint(1, 4))]
            requests = [
                (self.random.choice((_CHECK, _CHECK, _COPY)), sequence, share.writable, share.refs)
                for sequence, share in asked
            ]
            for (sequence, share), outcome in zip(asked, self._ask(port, control, peer, requests), strict=True):
                assert outcome == _DONE, f"request {sequence} came to {outcome}"
                expected = sequence | _ANSWER if share.writable else sequence
                _check(share.mapping[:], self.setting.number, expected)
        sequence, share = self.random.choice(asked)
        if self.random.random() < 0.2:
            self._ask(port, control, peer, [(_PROBE, sequence, False, share.refs[:1])])

    def _revoke_while_mapped(self, port: Port, control: Share, peer: Peer) -> None:
        with ExitStack() as held:
            sequence, share = self._share(held)
            self._ask(port, control, peer, [(_HOLD, sequence, share.writable, share.refs)])
            share.close()
            for _ in range(3):
                self._share(held)  # pages that are used for something else
            self._ask(port, control, peer, [(_RELEASE, sequence, share.writable, share.refs)])

    def _share(self, held: ExitStack) -> tuple[int, Share]:
        pages, sequence = self.random.randint(1, _MOST_PAGES), self._next()
        share = held.enter_context(self._gntshr.share_pages(self.peer, pages, writable=self.random.random() < 0.5))
        share.mapping[:] = _pattern(self.setting.number, sequence, pages)
        self.counts["shares"] += 1
        self.counts["pages shared"] += pages
        return sequence, share

    def _ask(
        self, port: Port, control: Share, peer: Peer, requests: list[tuple[int, int, bool, tuple[int, ...]]]
    ) -> list[int]:
        """What came of each."""
        ring = self._ring
        for what, sequence, writable, refs in requests:
            room = (*refs, *(0,) * (_MOST_PAGES - len(refs)))
            ring.next_request(_REQUEST.pack(what, sequence, writable, len(refs), *room))
        if ring.push_requests():
            self.notify(port)
        outcomes: list[int] = []
        while len(outcomes) < len(requests):
            for response in ring.take_responses():
                sequence, outcome = _RESPONSE.unpack_from(response)
                assert sequence == requests[len(outcomes)][1], f"response {sequence} to {requests}"
                outcomes.append(outcome)
            if len(outcomes) < len(requests) and not ring.more_to_do():
                self.wait(port, control, peer)
        self.counts["requests"] += len(requests)
        return outcomes

    def _next(self) -> int:
        self._sequence = self._sequence % (_ANSWER - 1) + 1
        return self._sequence


class _Offer(NamedTuple):
    """What the control page says."""

    port: int
    ring_ref: int
    front: int


class Back(_Session):
    _their_live = _FRONT_LIVE
    answers = True

    def __init__(self, setting: Setting, peer: int) -> None:
        super().__init__(setting, peer)
        self._gnttab: Gnttab = self.domain.gnttab()
        self._channels = self.domain.evtchn()
        self._is_gone: Callable[[], bool]  # whether the front of this session is

    def meet(self, life: str) -> None:
        (grant,) = self.domain.find(self.peer, path_to(self.setting.domid), self.setting.look)
        with ExitStack() as held:
            # A notification writes, so the page is looked at first; while it is mapped its ref stays what it is.
            offer = _read_offer(held.enter_context(self._gnttab.map(grant, writable=False)))
            if offer is None:
                return
            port = held.enter_context(self._channels.bind_interdomain(self.peer, offer.port))
            notify = UnmapNotify(clear_byte=_BACK_LIVE, port=port)
            control = held.enter_context(self._gnttab.map(grant, writable=True, notify=notify))
            ring_page = held.enter_context(self._gnttab.map(Grant(self.peer, offer.ring_ref), writable=True))
            if _read_offer(control) != offer:  # the front is gone, and the ring's ref may have been another's
                return
            ring = BackRing.attach(ring_page.mapping, _ENTRY_SIZE)
            _native.store32(control.mapping, _BACK_NUMBER, self.setting.number)
            _native.store8(control.mapping, _BACK_LIVE, 1)
            _native.store8(control.mapping, _CAME, 1)
            self.notify(port)
            with self.domain.peer(self.peer, life) as peer, ExitStack() as kept:
                self._is_gone = lambda: not _native.load8(control.mapping, _FRONT_LIVE) or peer.gone()
                for outcomes in self._serve(ring, kept, port, control, peer):
                    self.other = offer.front
                    for outcome in outcomes:
                        ring.next_response(outcome)
                    if ring.push_responses():
                        self.notify(port)

    def _serve(self, ring: BackRing, kept: ExitStack, port: Port, control: Mapped, peer: Peer) -> Iterator[list[bytes]]:
        """The responses to what was asked together, until the front says goodbye."""
        number = _native.load32(control.mapping, _FRONT_NUMBER)
        held: dict[int, Mapped] = {}
        while True:
            outcomes: list[bytes] = []
            for request in ring.take_requests():
                what, sequence, writable, pages, *refs = _REQUEST.unpack_from(request)
                grants = [Grant(self.peer, ref) for ref in refs[:pages]]
                if what == _BYE:
                    yield [*outcomes, _RESPONSE.pack(sequence, _DONE)]
                    return
                outcome = _DONE
                if what == _CHECK:
                    self._map(grants, number, sequence, writable=bool(writable)).close()
                elif what == _COPY:
                    self._copy(grants, number, sequence, writable=bool(writable))
                elif what == _HOLD:
                    mapped = self._map(grants, number, sequence, writable=bool(writable))
                    held[sequence] = kept.enter_context(mapped)
                elif what == _RELEASE:
                    mapped = held.pop(sequence)
                    _check(mapped.mapping[:], number, sequence | _ANSWER if writable else sequence)
                    mapped.close()
                else:
                    outcome = self._probe(grants[0], number, sequence)
                outcomes.append(_RESPONSE.pack(sequence, outcome))
            if outcomes:
                yield outcomes
            elif not ring.more_to_do():
                self.wait(port, control, peer)

    def _map(self, grants: list[Grant], number: int, sequence: int, *, writable: bool) -> Mapped:
        """Pages mapped and compared, and the answer written where that can be."""
        mapped = self._gnttab.map(grants, writable=writable)
        self.counts["maps"] += 1
        try:
            try:
                _check(mapped.mapping[:], number, sequence)
            except AssertionError:
                if self._is_gone():  # and its refs may be others' already; those of one that lives may not
                    raise PeerClosed(errno.EPIPE, "the front is gone, and its pages too") from None
                raise
            if writable:
                mapped.mapping[:] = _pattern(number, sequence | _ANSWER, len(grants))
                _check(mapped.mapping[:], number, sequence | _ANSWER)
        except BaseException:
            mapped.close()
            raise
        return mapped

    def _copy(self, grants: list[Grant], number: int, sequence: int, *, writable: bool) -> None:
        """Pages copied and compared, and the answer copied there; mapped meanwhile, so that the refs stay theirs."""
        pages = [bytearray(PAGE_SIZE) for _ in grants]
        with self._map(grants, number, sequence, writable=False):
            self._do_copy([CopySegment(grant, page, PAGE_SIZE) for grant, page in zip(grants, pages, strict=True)])
            _check(b"".join(pages), number, sequence)
            if writable:
                answer = _pattern(number, sequence | _ANSWER, len(grants))
                pieces = [answer[at : at + PAGE_SIZE] for at in range(0, len(answer), PAGE_SIZE)]
                self._do_copy(
                    [CopySegment(piece, grant, PAGE_SIZE) for piece, grant in zip(pieces, grants, strict=True)]
                )

    def _do_copy(self, segments: list[CopySegment]) -> None:
        statuses = self._gnttab.copy(segments)
        if any(statuses):
            raise MapError(errno.EINVAL, f"copied with statuses {statuses}", statuses=statuses)
        self.counts["copies"] += len(segments)

    def _probe(self, grant: Grant, number: int, sequence: int) -> int:
        """Map a page that was revoked when nobody mapped it: it cannot be had, but its ref may be another's by now."""
        try:
            mapped = self._gnttab.map(grant, writable=False)
        except MapError:
            return _REFUSED
        with mapped:
            found = mapped.mapping[:8]
        revoked = (struct.pack("<II", number, sequence), struct.pack("<II", number, sequence | _ANSWER))
        assert found not in revoked, f"the page of request {sequence} was revoked, and could be mapped"
        return _DONE


def _read_offer(control: Mapped) -> _Offer | None:
    """None where the page is not a control page, or its front is gone: the ref was another's already.

    And where a back has come before, which was killed: a front that is stopped meanwhile could not tell the two apart,
    and would go on with what it had the first one hold.
    """
    mapping = control.mapping
    if mapping[_MAGIC_AT : _MAGIC_AT + 8] != _MAGIC or not _native.load8(mapping, _FRONT_LIVE):
        return None
    if _native.load8(mapping, _CAME):
        return None
    return _Offer(*(_native.load32(mapping, at) for at in (_PORT, _RING_REF, _FRONT_NUMBER)))


def _check(found: bytes, number: int, sequence: int) -> None:
    """Every byte of pages is what that request of that process says."""
    expected = _pattern(number, sequence, len(found) // PAGE_SIZE)
    if found == expected:
        return
    wrong = [at for at in range(0, len(found), 16) if found[at : at + 16] != expected[at : at + 16]]
    there = [f"{part:#x}" for part in _MARK.unpack_from(found, wrong[0])]
    raise AssertionError(
        f"{len(wrong) * 16} of {len(found)} bytes of request {sequence:#x} of process {number:#x} are wrong, from "
        f"{wrong[0]:#x} to {wrong[-1]:#x}: there is {there}"
    )


SIDES = (Front, Back)
