"""struct ioctl_{gntalloc,gntdev}_unmap_notify: the same bytes in gntalloc.h and gntdev.h."""

from __future__ import annotations

from struct import Struct

CLEAR_BYTE = 1
SEND_EVENT = 2

_NOTIFY = Struct("<QII")  # index: mmap offset of the byte, action, event channel port


def pack_notify(index: int, action: int, port: int) -> bytearray:
    return bytearray(_NOTIFY.pack(index, action, port))


def unpack_notify(arg: bytearray) -> tuple[int, int, int]:
    """(index in bytes, action, port)."""
    index, action, port = _NOTIFY.unpack(arg)
    return index, action, port
