"""One of each thing that xengrant opens, with a call in the middle of which forks and ends of a program come: `KINDS`.

Both ends of each are in one program, in domains of one machine. `LOOPED` are those of asyncio.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from .loops import LOOPED
from .pages import foreign_table, mapped, share, table
from .ports import following_port, port
from .store import domain, find, peer, requests, watch
from .thing import LONG, Domains, Thing, in_a_call, until
from .vchans import vchan_connect, vchan_read, vchan_recv, vchan_turn, vchan_write

__all__ = ["KINDS", "LONG", "LOOPED", "Domains", "Thing", "in_a_call", "until"]

KINDS: dict[str, Callable[[Domains], AbstractContextManager[Thing]]] = {
    made.__name__: made
    for made in (
        share,
        mapped,
        port,
        following_port,
        watch,
        requests,
        find,
        vchan_read,
        vchan_turn,
        vchan_recv,
        vchan_write,
        vchan_connect,
        peer,
        table,
        foreign_table,
        domain,
    )
}
