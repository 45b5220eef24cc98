"""The shared ring of requests and responses: `FrontRing` and `BackRing`, the two ends of Xen's io/ring.h.

Used by PV devices and by `rpc_front` and `rpc_back`, which add an event channel port and asyncio. The front end writes
requests and pushes them, the back end takes them and pushes responses, in any order, into the slots that the requests
had. Each push says whether the peer wants to be notified; each look at the peer's work ends with `more_to_do`:

    requests = back.take_requests()           # copies
    for request in requests:
        back.next_response(answer(request))
    if back.push_responses():
        port.notify()
    if not back.more_to_do():                 # from here on the next request is an event
        port.wait()

What the peer writes is never trusted: its index is read once for each decision and checked against our own, which are
private; entries are copied out whole, once, before anybody looks at them. A call does at most one ring's work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

from xengrant import _native
from xengrant.abi import ring as abi
from xengrant.arguments import MAX_U32, checked_number
from xengrant.errors import ProtocolError
from xengrant.memory import Mapping

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["BackRing", "FrontRing"]


class _Ring:
    """One end: what it produces, what it consumes of the peer, and where both are.

    Indices are free-running and wrap at 2^32; a slot is an index modulo the number of entries.
    """

    _PROD: ClassVar[int]  # where our producer index is
    _PEER_EVENT: ClassVar[int]  # from which of them on the peer wants to be notified
    _PEER_PROD: ClassVar[int]
    _EVENT: ClassVar[int]
    _PEERS_NAME: ClassVar[str]  # of its producer index

    def __init__(self, buffer: Buffer, entry_size: int) -> None:
        self.entry_size = checked_number("entry_size", entry_size, 1, MAX_U32)
        # A Mapping's slices are copies already; it is not pinned, so that whoever owns the pages can always unmap them.
        self._memory = buffer if isinstance(buffer, Mapping) else memoryview(buffer).cast("B")
        if self._memory.readonly if isinstance(self._memory, memoryview) else not self._memory.writable:
            raise TypeError("a ring takes memory that can be written: both ends keep indices in it")
        self.entries = abi.ring_entries(len(self._memory), self.entry_size)
        if not self.entries:
            raise ValueError(
                f"no entry of {entry_size} bytes fits in {len(self._memory)}: the header takes {abi.HEADER_SIZE}"
            )
        self._prod = self._pushed = abi.FIRST_INDEX  # what is written into slots, and what the peer was told of
        self._cons = self._seen = abi.FIRST_INDEX  # what we took, and how far the peer was when we last looked

    def more_to_do(self) -> bool:
        """Whether the peer has produced more; if not, its next push notifies us (RING_FINAL_CHECK_FOR_*).

        To be asked before each wait for an event: the peer may have pushed just before it saw that we want to be
        notified, so this looks again after saying so, and nothing is missed. Raises `ProtocolError`.
        """
        if self._load_peer_prod() != self._cons:
            return True
        _native.store32(self._memory, self._EVENT, _add(self._cons, 1))
        _native.fence()
        return self._load_peer_prod() != self._cons

    def _start_at(self, prod: int, cons: int) -> None:
        self._prod = self._pushed = prod
        self._cons = self._seen = cons

    def _furthest(self) -> int:
        """The last value that an honest peer's producer index can have now."""
        raise NotImplementedError

    def _load_peer_prod(self) -> int:
        """The peer's producer index, read once; `ProtocolError` where it ran backwards, or further than it can."""
        prod = _native.load32(self._memory, self._PEER_PROD)
        furthest = self._furthest()
        if _distance(self._seen, prod) > _distance(self._seen, furthest):
            raise ProtocolError(
                f"the peer's {self._PEERS_NAME} is {prod}: it was {self._seen} and can be {furthest} at most, "
                f"on a ring of {self.entries} entries"
            )
        self._seen = prod
        return prod

    def _at(self, index: int) -> int:
        return abi.HEADER_SIZE + (index & self.entries - 1) * self.entry_size

    def _put(self, entry: Buffer) -> None:
        data = memoryview(entry).cast("B")
        if len(data) > self.entry_size:
            raise ValueError(f"{len(data)} bytes do not fit in an entry of {self.entry_size}")
        at = self._at(self._prod)
        self._memory[at : at + len(data)] = data
        self._prod = _add(self._prod, 1)

    def _push(self) -> bool:
        old, new = self._pushed, self._prod
        _native.store32(self._memory, self._PROD, new)  # a release: the peer sees the entries before the index
        self._pushed = new
        _native.fence()  # the peer sees the index before we look whether it sleeps
        event = _native.load32(self._memory, self._PEER_EVENT)
        return _distance(event, new) < _distance(old, new)

    def _take(self, limit: int | None) -> list[bytes]:
        if limit is not None:
            checked_number("limit", limit, 0, MAX_U32)
        count = _distance(self._cons, self._load_peer_prod())  # an acquire: the entries are read after the index
        if limit is not None:
            count = min(count, limit)
        taken = []
        for _ in range(count):
            at = self._at(self._cons)
            taken.append(bytes(self._memory[at : at + self.entry_size]))
            self._cons = _add(self._cons, 1)
        return taken

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} of {self.entries} entries of {self.entry_size} bytes, "
            f"produced {self._prod}, consumed {self._cons}>"
        )


class FrontRing(_Ring):
    """The front end of a ring: the side that asks. Made by `init`, or by `attach` where the ring exists.

    `entries` slots of `entry_size` bytes, which is the size of the larger of request and response. A slot is free again
    when its response is taken. Threads: one at a time.
    """

    _PROD, _PEER_EVENT, _PEER_PROD, _EVENT = abi.REQ_PROD, abi.REQ_EVENT, abi.RSP_PROD, abi.RSP_EVENT
    _PEERS_NAME = "rsp_prod"

    @classmethod
    def init(cls, buffer: Buffer, entry_size: int) -> Self:
        """Make a new, empty ring in `buffer` (XEN_FRONT_RING_INIT), before the peer is told of the pages.

        `buffer` is a `Mapping` of one page or more, or other writable memory, aligned to 4 bytes. A ring over a
        `Mapping` does not pin it: after the mapping's close each call is a `ValueError`. Raises `ValueError` where no
        entry fits, `TypeError` for memory that is read-only.
        """
        ring = cls(buffer, entry_size)
        memory = ring._memory
        for prod, event in ((abi.REQ_PROD, abi.REQ_EVENT), (abi.RSP_PROD, abi.RSP_EVENT)):
            _native.store32(memory, prod, abi.FIRST_INDEX)
            _native.store32(memory, event, abi.FIRST_EVENT)
        memory[abi.PRIVATE : abi.HEADER_SIZE] = bytes(abi.HEADER_SIZE - abi.PRIVATE)
        return ring

    @classmethod
    def attach(cls, buffer: Buffer, entry_size: int) -> Self:
        """Take over the front end of a ring that exists, and write nothing (FRONT_RING_ATTACH).

        It goes on after the last request that was pushed. Responses that were pushed before count as taken; those of
        requests that are still in flight will come. Raises as `init`, and `ProtocolError` where more are in flight than
        the ring holds.
        """
        ring = cls(buffer, entry_size)
        rsp_prod = _native.load32(ring._memory, abi.RSP_PROD)
        req_prod = _native.load32(ring._memory, abi.REQ_PROD)
        ring._start_at(req_prod, rsp_prod)
        if ring.in_flight > ring.entries:
            raise ProtocolError(
                f"the ring says req_prod {req_prod} and rsp_prod {rsp_prod}: it has {ring.entries} entries only"
            )
        return ring

    @property
    def in_flight(self) -> int:
        """Requests, pushed or only written, whose responses were not taken yet."""
        return _distance(self._cons, self._prod)

    @property
    def free_requests(self) -> int:
        """How many requests can be written now (RING_FREE_REQUESTS)."""
        return self.entries - self.in_flight

    def next_request(self, request: Buffer) -> None:
        """Write a request of at most `entry_size` bytes into the next slot; the peer sees it after `push_requests`.

        The slot's bytes beyond it stay what they were. `ValueError` where the ring is full, which `free_requests`
        tells, or where the request is too long.
        """
        if not self.free_requests:
            raise ValueError(f"the ring is full: responses to {self.entries} requests were not taken yet")
        self._put(request)

    def push_requests(self) -> bool:
        """Show the peer all requests written so far; whether it is to be notified.

        RING_PUSH_REQUESTS_AND_CHECK_NOTIFY, but what was pushed last is known here, not read from memory that the
        peer can write.
        """
        return self._push()

    def take_responses(self, limit: int | None = None) -> list[bytes]:
        """Private copies of the responses that are there, whole entries in their order; at most `limit`.

        Raises `ProtocolError` where the peer says that it answered more than it was asked, or less than it had; nothing
        is taken then.
        """
        return self._take(limit)

    def _furthest(self) -> int:
        return self._pushed


class BackRing(_Ring):
    """The back end of a ring: the side that answers. Made by `attach`; it never initialises a ring.

    `entries` and `entry_size` as for `FrontRing`. Threads: one at a time.
    """

    _PROD, _PEER_EVENT, _PEER_PROD, _EVENT = abi.RSP_PROD, abi.RSP_EVENT, abi.REQ_PROD, abi.REQ_EVENT
    _PEERS_NAME = "req_prod"

    @classmethod
    def attach(cls, buffer: Buffer, entry_size: int) -> Self:
        """Attach to the ring that the front end made in `buffer`, and write nothing (BACK_RING_ATTACH).

        A used ring goes on after its last response, with the requests that were not answered (Linux
        drivers/block/xen-blkback/xenbus.c, xen_blkif_map). Raises as `FrontRing.attach`.
        """
        ring = cls(buffer, entry_size)
        rsp_prod = _native.load32(ring._memory, abi.RSP_PROD)
        ring._start_at(rsp_prod, rsp_prod)
        ring._load_peer_prod()
        return ring

    @property
    def unanswered(self) -> int:
        """Requests that were taken and whose responses were not written yet."""
        return _distance(self._prod, self._cons)

    def take_requests(self, limit: int | None = None) -> list[bytes]:
        """Private copies of the requests that are there, whole entries in their order; at most `limit`.

        Raises `ProtocolError` where the peer says that it asked more than the ring holds
        (RING_REQUEST_PROD_OVERFLOW), or less than it had; nothing is taken then.
        """
        return self._take(limit)

    def next_response(self, response: Buffer) -> None:
        """Write a response of at most `entry_size` bytes into the next slot; the peer sees it after `push_responses`.

        Which request it answers is the protocol's to say, by an id in both. `ValueError` where every request that was
        taken is answered, or where the response is too long.
        """
        if not self.unanswered:
            raise ValueError("every request that was taken is answered: take_requests comes first")
        self._put(response)

    def push_responses(self) -> bool:
        """As `FrontRing.push_requests` (RING_PUSH_RESPONSES_AND_CHECK_NOTIFY)."""
        return self._push()

    def _furthest(self) -> int:
        # The front end fills a slot again only when it has seen the response, so what is not pushed yet does not count.
        return _add(self._pushed, self.entries)


def _add(index: int, count: int) -> int:
    return index + count & MAX_U32


def _distance(start: int, end: int) -> int:
    """From one index on to another, as unsigned 32-bit numbers."""
    return end - start & MAX_U32
