"""include/uapi/xen/evtchn.h: /dev/xen/evtchn, event channel ports for a process."""

from __future__ import annotations

from struct import Struct

BIND_VIRQ = 0x00044500
BIND_INTERDOMAIN = 0x00084501
BIND_UNBOUND_PORT = 0x00044502
UNBIND = 0x00044503
NOTIFY = 0x00044504
RESET = 0x00004505
RESTRICT_DOMID = 0x00024506
BIND_STATIC = 0x00044507

PORT_SIZE = 4  # read() and write() carry u32 ports

_PORT = Struct("<I")
_INTERDOMAIN = Struct("<II")  # remote domain, remote port


def pack_word(value: int) -> bytearray:
    """The argument of every one-word call: a port, a virq or a remote domain."""
    return bytearray(_PORT.pack(value))


def unpack_word(arg: bytearray) -> int:
    word: int = _PORT.unpack(arg)[0]
    return word


def pack_interdomain(remote_domid: int, remote_port: int) -> bytearray:
    return bytearray(_INTERDOMAIN.pack(remote_domid, remote_port))


def unpack_interdomain(arg: bytearray) -> tuple[int, int]:
    """(remote domid, remote port)."""
    domid, port = _INTERDOMAIN.unpack(arg)
    return domid, port


def pack_ports(ports: list[int]) -> bytes:
    return Struct(f"<{len(ports)}I").pack(*ports)


def unpack_ports(data: bytes) -> tuple[int, ...]:
    return Struct(f"<{len(data) // PORT_SIZE}I").unpack(data[: len(data) // PORT_SIZE * PORT_SIZE])
