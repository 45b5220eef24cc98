"""What a program that is its domain's kernel asks an embedded machine: xengrant's own, no header of Xen has it.

A real kernel has its memory from the domain's builder and its table from a hypercall; here both are mapped from the
device `kernel`, frame N at byte N * 4096, the table behind them.
"""

from __future__ import annotations

from struct import Struct

ALLOC_PAGES = 0x4B01
FREE_PAGES = 0x4B02
TABLE = 0x4B03
GET_PORT = 0x4B04
PUT_PORT = 0x4B05

TABLE_OFFSET = 1 << 52
STATUS_OFFSET = 1 << 53

TOGETHER = 1
"""ALLOC_PAGES: pages that are granted and revoked together, to one domain, and so can be one piece of memory."""

_RUN = Struct("<IIQ")  # pages, flags, the first one's frame number (out for ALLOC_PAGES)
_TABLE = Struct("<II")  # version, maximum of frames (both out)
_PORT = Struct("<II")  # number, whether to send an event


def pack_run(count: int, frame: int = 0, *, together: bool = False) -> bytearray:
    """ALLOC_PAGES' and FREE_PAGES' argument: `count` pages of neighbouring frame numbers."""
    return bytearray(_RUN.pack(count, TOGETHER if together else 0, frame))


def unpack_run(arg: bytearray) -> tuple[int, int]:
    """(count, first frame)."""
    count, _flags, frame = _RUN.unpack(arg)
    return count, frame


def is_together(arg: bytearray) -> bool:
    """Whether ALLOC_PAGES asks for pages that are granted and revoked together."""
    _count, flags, _frame = _RUN.unpack(arg)
    return bool(flags & TOGETHER)


def fill_run(arg: bytearray, frame: int) -> None:
    arg[8:16] = frame.to_bytes(8, "little")


def pack_table(version: int = 0, max_frames: int = 0) -> bytearray:
    return bytearray(_TABLE.pack(version, max_frames))


def unpack_table(arg: bytearray) -> tuple[int, int]:
    """(version, maximum of frames)."""
    version, max_frames = _TABLE.unpack(arg)
    return version, max_frames


def pack_port(number: int, *, send: bool = False) -> bytearray:
    return bytearray(_PORT.pack(number, send))


def unpack_port(arg: bytearray) -> tuple[int, bool]:
    """(number, whether to send an event)."""
    number, send = _PORT.unpack(arg)
    return number, bool(send)
