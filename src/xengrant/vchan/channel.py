"""One end of a vchan without any waiting: its two rings, who is live, and who wants to be told of what.

`offer` makes a server's end and `attach` a client's; `endpoint` and `transport` wait for it, each in its own way. What
a peer may write at any time is copied once and checked: orders and refs when the client attaches, indices in `_native`.
The behaviour is libxenvchan's (tools/libs/vchan/{init,io}.c), but for its private copies and what it asks to be told.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple, Self

from xengrant._native import RingReader, RingWriter, fence, fetch_or8, load8, load16, load32, store8, store16
from xengrant.abi import libxenvchan as abi
from xengrant.arguments import MAX_U32
from xengrant.errors import PeerClosed, ProtocolError
from xengrant.gntshr import UnmapNotify
from xengrant.gnttab import Grant
from xengrant.vchan.keys import Keys
from xengrant.vchan.orders import choose_orders

if TYPE_CHECKING:
    from xengrant.domain import Domain
    from xengrant.evtchn import AsyncPort, Port
    from xengrant.memory import Mapping

__all__ = ["Channel", "attach", "check_page", "offer", "pinned"]


class Place(NamedTuple):
    """Where a ring's bytes lie; inside the shared page that is at the ring's own size."""

    memory: Mapping
    start: int
    size: int


class Channel:
    """The rings of one end: `incoming` is what it reads from, `outgoing` what it writes to. They tell the peer.

    Threads: one may read while another writes.
    """

    def __init__(
        self,
        control: Mapping,
        left: Place,
        right: Place,
        port: Port | AsyncPort,
        *,
        is_server: bool,
        persists: bool = False,
    ) -> None:
        self.control = control
        self.port = port
        self.doorbell = port.doorbell()
        self.is_server = is_server
        self.persists = persists
        self.keys: Keys | None = None
        self._closed = False
        self._held = ExitStack()
        read, write = (left, right) if is_server else (right, left)
        left_indices, right_indices = (abi.LEFT_CONS, abi.LEFT_PROD), (abi.RIGHT_CONS, abi.RIGHT_PROD)
        read_indices, write_indices = (left_indices, right_indices) if is_server else (right_indices, left_indices)
        self.incoming = RingReader(control, *read_indices, read.memory, read.start, read.size)
        self.outgoing = RingWriter(control, *write_indices, write.memory, write.start, write.size)
        self._read_memory, self._write_memory = read.memory, write.memory
        self._live, self._peer_live = (abi.SRV_LIVE, abi.CLI_LIVE) if is_server else (abi.CLI_LIVE, abi.SRV_LIVE)
        # Where this end asks to be told, and where the peer does.
        self._ask, asked = (abi.CLI_NOTIFY, abi.SRV_NOTIFY) if is_server else (abi.SRV_NOTIFY, abi.CLI_NOTIFY)
        live = -1 if persists else self._peer_live
        for ring in (self.incoming, self.outgoing):
            ring.bind(self.doorbell, live, self._ask, asked)

    def keep(self, held: ExitStack) -> Self:
        """Have `close` give this back."""
        self._held = held
        return self

    def before_release(self, function: Callable[[], None]) -> None:
        """Have `close` call it when the peer was told, before the memory is given back."""
        self._held.callback(function)

    @property
    def closed(self) -> bool:
        """Whether this end is closed, or is the one of a process that forked this one."""
        return self._closed or self.control.closed

    @property
    def is_open(self) -> bool:
        """Whether the peer is there, or is still awaited."""
        return self.persists or load8(self.control, self._peer_live) != abi.LIVE_GONE

    @property
    def is_awaited(self) -> bool:
        """Whether this is a server whose client has not come yet."""
        return self.is_server and load8(self.control, abi.CLI_LIVE) == abi.LIVE_AWAITED

    def connect(self) -> None:
        """As a client: say that it is here."""
        store8(self.control, abi.CLI_LIVE, abi.LIVE_CONNECTED)
        fetch_or8(self.control, abi.SRV_NOTIFY, abi.NOTIFY_WRITE)
        self.doorbell.ring()

    def peek(self) -> memoryview:
        """The bytes that are there up to the ring's end, in place."""
        at, length = self.incoming.peek()
        return memoryview(self._read_memory).toreadonly()[at : at + length]

    def reserve(self) -> memoryview:
        """The room that is free up to the ring's end, in place."""
        at, length = self.outgoing.reserve()
        return memoryview(self._write_memory)[at : at + length]

    # Looking before waiting. What comes after False is told by an event.

    def has_data(self, wanted: int) -> bool:
        """Whether that many bytes are there, or no more will come; else the peer is asked to tell when it writes."""
        if self.incoming.ready >= wanted:
            return True
        self._ask_notify(abi.NOTIFY_WRITE)
        return self.incoming.ready >= wanted or not self.is_open

    def has_space(self, wanted: int) -> bool:
        """Whether that many bytes fit, or nobody reads any more; else the peer is asked to tell when it reads."""
        if self.outgoing.space >= wanted:
            return True
        self._ask_notify(abi.NOTIFY_READ)
        return self.outgoing.space >= wanted or not self.is_open

    def _ask_notify(self, bit: int) -> None:
        """Ask to be told; the ring is to be looked at again afterwards."""
        fetch_or8(self.control, self._ask, bit)
        fence()

    def close(self) -> None:
        """Say goodbye and give the memory back; `BufferError` while views of it are alive, and nothing changes.

        The peer keeps what was written before, in its own mapping, and reads it to the end.
        """
        if self.closed:
            return
        memories = {id(memory): memory for memory in (self.control, self._read_memory, self._write_memory)}
        exports = sum(memory.exports for memory in memories.values())
        if exports:
            raise BufferError(f"cannot close a vchan with {exports} views of its rings alive: release them first")
        try:
            self._closed = True
            store8(self.control, self._live, abi.LIVE_GONE)
            self.doorbell.ring()
        finally:
            self._held.close()


def offer(
    domain: Domain,
    port: Port | AsyncPort,
    read_size: int,
    write_size: int,
    *,
    persists: bool = False,
) -> Channel:
    """A server's end for the port's remote domain, with rings of at least so many bytes; `keys` are for its client.

    Raises as `Gntshr.share_pages`. The port stays the caller's.
    """
    orders = choose_orders(read_size, write_size)
    domid = port.remote_domid
    with ExitStack() as held, domain.gntshr() as gntshr:
        notify = UnmapNotify(clear_byte=abi.SRV_LIVE, port=port)
        page = held.enter_context(gntshr.share_pages(domid, 1, writable=True, notify=notify))
        control = page.mapping
        store16(control, abi.LEFT_ORDER, orders[0])
        store16(control, abi.RIGHT_ORDER, orders[1])
        store8(control, abi.CLI_LIVE, abi.LIVE_AWAITED)
        store8(control, abi.SRV_LIVE, abi.LIVE_CONNECTED)
        store8(control, abi.CLI_NOTIFY, abi.NOTIFY_WRITE)
        refs: list[int] = []
        rings = []
        for order in orders:
            memory = control
            if abi.ring_pages(order):
                share = held.enter_context(gntshr.share_pages(domid, abi.ring_pages(order), writable=True))
                refs += share.refs
                memory = share.mapping
            rings.append(_place(memory, order))
        control[abi.GRANTS : abi.GRANTS + len(abi.pack_refs(refs))] = abi.pack_refs(refs)
        channel = Channel(control, rings[0], rings[1], port, is_server=True, persists=persists)
        channel.keys = Keys(page.refs[0], port.number)
        return channel.keep(held.pop_all())


@contextmanager
def pinned(domain: Domain, domid: int, keys: Keys) -> Iterator[Mapping]:
    """Map the page that the keys name, to look at: as long as it is mapped its ref is not used again.

    Raises `MapError` where it is not there any more.
    """
    with domain.gnttab() as gnttab, gnttab.map(Grant(domid, keys.ring_ref), writable=False) as page:
        yield page.mapping


def attach(domain: Domain, port: Port | AsyncPort, keys: Keys) -> Channel:
    """A client's end of what the port's remote domain offers; `connect` then says that it is here.

    Raises `MapError` where the page is not there any more, `ProtocolError` where it makes no sense, `PeerClosed` where
    the server has closed already. The port stays the caller's.
    """
    domid = port.remote_domid
    with ExitStack() as held:
        gnttab = held.enter_context(domain.gnttab())
        notify = UnmapNotify(clear_byte=abi.CLI_LIVE, port=port)
        control = held.enter_context(gnttab.map(Grant(domid, keys.ring_ref), writable=True, notify=notify)).mapping
        orders = check_page(control, domid)
        refs = abi.unpack_refs(control[abi.GRANTS : abi.GRANTS + 4 * sum(map(abi.ring_pages, orders))])
        rings = []
        for order, writable in zip(orders, (True, False), strict=True):
            memory = control
            pages = abi.ring_pages(order)
            if pages:
                grants = [Grant(domid, ref) for ref in refs[:pages]]
                del refs[:pages]
                memory = held.enter_context(gnttab.map(grants, writable=writable)).mapping
            rings.append(_place(memory, order))
        # A server that closes says so before its refs are used again: these were still its own.
        _check_server(control, domid)
        channel = Channel(control, rings[0], rings[1], port, is_server=False)
        return channel.keep(held.pop_all())


def check_page(control: Mapping, domid: int) -> tuple[int, int]:
    """The orders of the rings in a page that a server offers, each word of which is loaded once.

    Raises `ProtocolError` and `PeerClosed` as `attach`.
    """
    _check_server(control, domid)
    orders = load16(control, abi.LEFT_ORDER), load16(control, abi.RIGHT_ORDER)
    if not abi.fits(*orders):
        raise ProtocolError(f"domain {domid} offers a vchan with rings of order {orders[0]} and {orders[1]}")
    for order, cons_at, prod_at in zip(
        orders, (abi.LEFT_CONS, abi.RIGHT_CONS), (abi.LEFT_PROD, abi.RIGHT_PROD), strict=True
    ):
        cons, prod = load32(control, cons_at), load32(control, prod_at)
        if (prod - cons) & MAX_U32 > 1 << order:
            raise ProtocolError(f"domain {domid} offers a vchan whose indices, {cons} and {prod}, cannot be")
    return orders


def _check_server(control: Mapping, domid: int) -> None:
    if load8(control, abi.SRV_LIVE) == abi.LIVE_GONE:
        raise PeerClosed(errno.EPIPE, f"the server in domain {domid} has closed this vchan")


def _place(memory: Mapping, order: int) -> Place:
    size = 1 << order
    return Place(memory, size if order < abi.PAGE_ORDER else 0, size)
