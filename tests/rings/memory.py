"""Rings in plain memory that begin at any index."""

from __future__ import annotations

from xengrant import _native
from xengrant.abi import ring as abi
from xengrant.rings.rpc import BackRing, FrontRing

__all__ = ["EDGES", "WRAP", "pair", "set_header", "used_ring", "word"]

WRAP = 1 << 32
# Where the counters are about to turn negative, to zero, or are in the middle of nothing.
EDGES = [0, 1, (1 << 31) - 3, (1 << 31) + 1, WRAP - 1, WRAP - 3, 12345678]


def set_header(memory: bytearray | memoryview, req_prod: int, req_event: int, rsp_prod: int, rsp_event: int) -> None:
    words = (req_prod, req_event, rsp_prod, rsp_event)
    for at, value in zip((abi.REQ_PROD, abi.REQ_EVENT, abi.RSP_PROD, abi.RSP_EVENT), words, strict=True):
        _native.store32(memory, at, value % WRAP)


def used_ring(start: int, *, entries: int = 4, entry_size: int = 16) -> bytearray:
    """The memory of a ring that has carried `start` requests, all answered, whose ends both sleep."""
    memory = bytearray(abi.HEADER_SIZE + entries * entry_size)
    set_header(memory, start, start + 1, start, start + 1)
    return memory


def pair(start: int = 0, *, entries: int = 4, entry_size: int = 16) -> tuple[FrontRing, BackRing, bytearray]:
    """Both ends of a ring that has carried `start` requests."""
    memory = used_ring(start, entries=entries, entry_size=entry_size)
    return FrontRing.attach(memory, entry_size), BackRing.attach(memory, entry_size), memory


def word(memory: bytearray | memoryview, at: int) -> int:
    return _native.load32(memory, at)
