"""include/uapi/xen/privcmd.h: /dev/xen/privcmd, hypercalls and other domains' memory for the control domain."""

from __future__ import annotations

from struct import Struct

HYPERCALL = 0x00305000
MMAP_RESOURCE = 0x00205007

_HYPERCALL = Struct("<6Q")  # op, five arguments
_RESOURCE = Struct("<H2xIIIQQ")  # domid, type, id, first frame, frames, address

RESOURCE_ADDR_POINTER = 24


def hypercall_argument(i: int) -> int:
    """Byte offset of argument i (0 to 4), for a pointer."""
    return 8 + 8 * i


def pack_hypercall(op: int, *args: int) -> bytearray:
    return bytearray(_HYPERCALL.pack(op, *args, *[0] * (5 - len(args))))


def unpack_hypercall(arg: bytearray) -> tuple[int, tuple[int, ...]]:
    """(op, the five arguments)."""
    op, *args = _HYPERCALL.unpack(arg)
    return op, tuple(args)


def pack_resource(domid: int, kind: int, id_: int, frame: int, frames: int) -> bytearray:
    """MMAP_RESOURCE's argument; with 0 frames and no address it asks for the size."""
    return bytearray(_RESOURCE.pack(domid, kind, id_, frame, frames, 0))


def unpack_resource(arg: bytearray) -> tuple[int, int, int, int, int]:
    """(domid, type, id, first frame, frames)."""
    domid, kind, id_, frame, frames, _addr = _RESOURCE.unpack(arg)
    return domid, kind, id_, frame, frames


def fill_resource(arg: bytearray, frames: int) -> None:
    arg[16:24] = frames.to_bytes(8, "little")


def resource_result(arg: bytearray) -> int:
    """Number of frames, after a size query."""
    return int.from_bytes(arg[16:24], "little")
