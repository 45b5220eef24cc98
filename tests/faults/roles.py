"""What the two sides of a test do, from first to last: a granter and its mapper, a vchan's server and its client.

`actors.py` runs them, each in a process that may be killed or in a thread that survives. A role says by `Life` where it
is, and waits by it; whatever goes wrong leaves it as an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from xengrant import PeerClosed, UnmapNotify, vchan
from xengrant._native import store32
from xengrant.abi import libxenvchan as abi

if TYPE_CHECKING:
    from tests.faults.lives import Life
    from xengrant.evtchn import Port
    from xengrant.memory import Mapping

__all__ = ["ANSWER", "BLOCKING", "LAST", "MESSAGE", "OTHER", "ROLES", "WHOLE", "EndOfFile"]

_T = TypeVar("_T")

MESSAGE = bytes(range(256)) * 48  # three times as much as the ring has room for
ANSWER = b"the answer" * 20
LAST = b"in place" * 40

# In the shared page: one byte for each side, which its unmap notification clears, one for what was said, and the texts.
GRANTER, MAPPER, SAID, ANSWERED = 0, 1, 2, 3
GONE, HERE, AWAITED = 0, 1, 2
_QUESTION = slice(64, 64 + len(LAST))
_REPLY = slice(2048, 2048 + len(ANSWER))


class EndOfFile(Exception):
    """The stream ended before all had come."""


def granter(life: Life) -> None:
    """Share two pages, say where they are, say something in them, and take them back once it was answered."""
    life.stage = "share"
    domain, other = life.domain, life.other
    with domain.evtchn() as channels, channels.bind_unbound(other) as port, domain.gntshr() as gntshr:
        notify = UnmapNotify(clear_byte=GRANTER, port=port)
        with gntshr.share_pages(other, 2, writable=True, notify=notify) as share:
            page = share.mapping
            page[GRANTER], page[MAPPER] = HERE, AWAITED
            life.stage = "advertise"
            with domain.xenstore() as store:
                store.write(f"data/port{life.name}", str(port.number))
            with domain.advertise(share, f"data/demo{life.name}"):
                life.stage = "notify"
                life.at("advertised")
                _until(life, port, page, MAPPER, lambda: page[MAPPER] == HERE)
                page[_QUESTION] = LAST
                life.at("written, not said")
                page[SAID] = 1
                life.given = LAST
                port.notify()
                _until(life, port, page, MAPPER, lambda: page[ANSWERED] == 1)
                life.received = page[_REPLY]
                life.stage = "close"
            gntshr.munmap(share)


def mapper(life: Life) -> None:
    """Find the pages and map them, answer what is said in them, and unmap them once they were taken back."""
    life.stage = "find"
    domain, other = life.domain, life.other
    grants = life.meet(lambda timeout: domain.find(other, f"data/demo{life.name}", timeout))
    with domain.xenstore() as store:
        number = int(store.read(f"/local/domain/{other}/data/port{life.name}"))
    life.stage = "map"
    with domain.evtchn() as channels, channels.bind_interdomain(other, number) as port, domain.gnttab() as gnttab:
        notify = UnmapNotify(clear_byte=MAPPER, port=port)
        with gnttab.map(grants, writable=True, notify=notify) as mapped:
            page = mapped.mapping
            life.stage = "notify"
            life.at("mapped, not said")
            page[MAPPER] = HERE
            port.notify()
            _until(life, port, page, GRANTER, lambda: page[SAID] == 1)
            life.received = page[_QUESTION]
            page[_REPLY] = ANSWER
            life.at("answered, not said")
            page[ANSWERED] = 1
            life.given = ANSWER
            port.notify()
            _until(life, port, page, GRANTER, lambda: page[GRANTER] == GONE)
            life.stage = "close"


def _until(life: Life, port: Port, page: Mapping, other: int, holds: Callable[[], bool]) -> None:
    """Wait for events until it holds; `PeerClosed` where the byte of the other side, or its domain, has gone before."""

    def wait(timeout: float) -> None:
        port.wait(timeout, peer=life.peer)

    while not holds():
        if page[other] == GONE:
            if holds():  # it may have said so just before
                return
            raise PeerClosed("its byte was cleared")
        try:
            life.wait(wait)
        except PeerClosed:
            if not holds():
                raise
            return


def server(life: Life) -> None:
    """Offer a vchan, write more than fits, read the answer, write in place, and close."""
    life.stage = "connect"
    with vchan.serve(
        life.other, f"faults{life.name}", read_size=1024, write_size=4096, peer=life.peer, domain=life.domain
    ) as end:
        life.wait(end.wait_connected)
        life.stage = "transfer"
        life.at("connected")
        _write(life, end, MESSAGE, pause_at=5000)
        _read(life, end, len(ANSWER))
        with life.wait(end.reserve) as view:
            view[: len(LAST)] = LAST
        life.at("copied, not published")
        store32(end._channel.control, abi.RIGHT_PROD, end._outgoing.prod + len(LAST))
        life.given += LAST
        life.at("published, not told")
        end.commit(len(LAST))
        life.wait(end.wait_drained)
        life.stage = "close"


def client(life: Life) -> None:
    """Connect to the vchan, read all, answer, read what comes in place, and the end of the stream; close."""
    life.stage = "connect"
    with life.meet(
        lambda timeout: vchan.connect(
            life.other, f"faults{life.name}", timeout=timeout, peer=life.peer, domain=life.domain
        )
    ) as end:
        life.stage = "transfer"
        life.at("connected")
        _read(life, end, 5000)
        life.at("some read")
        _read(life, end, len(MESSAGE) - 5000)
        _write(life, end, ANSWER, pause_at=len(ANSWER))
        _read(life, end, len(LAST))
        if life.wait(lambda timeout: end.read(1, timeout)):
            raise AssertionError("more came than was written")
        life.stage = "close"


def _write(life: Life, end: vchan.Vchan, data: bytes, *, pause_at: int) -> None:
    for piece in (data[:pause_at], data[pause_at:]):
        done = 0
        while done < len(piece):
            count = life.wait(lambda timeout: end.write(piece[done:], timeout))  # noqa: B023 - called at once
            life.given += piece[done : done + count]
            done += count
        if piece:
            life.at(f"{len(life.given)} bytes written")


def _read(life: Life, end: vchan.Vchan, size: int) -> None:
    wanted = len(life.received) + size
    while (missing := wanted - len(life.received)) > 0:
        data = life.wait(lambda timeout: end.read(missing, timeout))
        if not data:
            raise EndOfFile(f"the end of the stream after {len(life.received)} bytes")
        life.received += data


ROLES: dict[str, Callable[[Life], None]] = {"granter": granter, "mapper": mapper, "server": server, "client": client}
OTHER = {"granter": "mapper", "mapper": "granter", "server": "client", "client": "server"}

BLOCKING = {"asyncio server": "server", "asyncio client": "client"}
"""The roles of `async_roles.py`, and which of those here does the same."""

# What a role is given when all went well.
WHOLE = {"granter": ANSWER, "mapper": LAST, "server": ANSWER, "client": MESSAGE + LAST}
