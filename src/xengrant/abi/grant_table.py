"""xen/include/public/grant_table.h: entries, flags, statuses and the hypercall's operations."""

from __future__ import annotations

from struct import Struct

NR_RESERVED_ENTRIES = 8
RESERVED_CONSOLE = 0
RESERVED_XENSTORE = 1

# Entry flags.
GTF_TYPE_MASK = 3
GTF_INVALID = 0
GTF_PERMIT_ACCESS = 1
GTF_ACCEPT_TRANSFER = 2
GTF_TRANSITIVE = 3
GTF_READONLY = 4
GTF_READING = 8
GTF_WRITING = 16
GTF_SUB_PAGE = 256

# Both versions' entries begin alike: flags u16, domid u16.
FLAGS = 0
DOMID = 2

# Version 1 entry: flags, domid, frame u32.
V1_ENTRY_SIZE = 8
V1_ENTRIES_PER_FRAME = 512
V1_FRAME = 4

# Version 2 entry: flags, domid, 4 bytes of pad, frame u64; its status is a u16 in frames of its own.
V2_ENTRY_SIZE = 16
V2_ENTRIES_PER_FRAME = 256
V2_FRAME = 8
V2_STATUS_SIZE = 2
V2_STATUS_PER_FRAME = 2048
V2_FRAMES_PER_STATUS_FRAME = V2_STATUS_PER_FRAME // V2_ENTRIES_PER_FRAME

# GNTST: status of a grant operation.
GNTST_OKAY = 0
GNTST_GENERAL_ERROR = -1
GNTST_BAD_DOMAIN = -2
GNTST_BAD_GNTREF = -3
GNTST_BAD_HANDLE = -4
GNTST_BAD_VIRT_ADDR = -5
GNTST_BAD_DEV_ADDR = -6
GNTST_NO_DEVICE_SPACE = -7
GNTST_PERMISSION_DENIED = -8
GNTST_BAD_PAGE = -9
GNTST_BAD_COPY_ARG = -10
GNTST_ADDRESS_TOO_BIG = -11
GNTST_EAGAIN = -12
GNTST_NO_SPACE = -13

# GNTTABOP.
QUERY_SIZE = 6
GET_VERSION = 10

# XENMEM_acquire_resource (xen/include/public/memory.h).
RESOURCE_GRANT_TABLE = 1
RESOURCE_ID_SHARED = 0
RESOURCE_ID_STATUS = 1

_QUERY_SIZE = Struct("<H2xIIh2x")  # domid, frames (out), maximum (out), status (out)
_GET_VERSION = Struct("<H2xI")  # domid, version (out)


def pack_query_size(domid: int) -> bytearray:
    return bytearray(_QUERY_SIZE.pack(domid, 0, 0, 0))


def unpack_query_size(arg: bytearray) -> int:
    domid, _frames, _maximum, _status = _QUERY_SIZE.unpack(arg)
    return int(domid)


def fill_query_size(arg: bytearray, frames: int, maximum: int, status: int) -> None:
    arg[4:16] = _QUERY_SIZE.pack(0, frames, maximum, status)[4:16]


def query_size_result(arg: bytearray) -> tuple[int, int, int]:
    """(frames in use, maximum, GNTST status)."""
    _domid, frames, maximum, status = _QUERY_SIZE.unpack(arg)
    return frames, maximum, status


def pack_get_version(domid: int) -> bytearray:
    return bytearray(_GET_VERSION.pack(domid, 0))


def unpack_get_version(arg: bytearray) -> int:
    domid, _version = _GET_VERSION.unpack(arg)
    return int(domid)


def fill_get_version(arg: bytearray, version: int) -> None:
    arg[4:8] = version.to_bytes(4, "little")


def get_version_result(arg: bytearray) -> int:
    return int.from_bytes(arg[4:8], "little")
