"""xen/include/public/io/xs_wire.h: xenstore's messages, the strings inside them (docs/misc/xenstore.txt), and the page
through which a guest's kernel and xenstored exchange them.
"""

from __future__ import annotations

import enum
import errno
import re
from struct import Struct
from typing import Literal, NamedTuple, cast

PAYLOAD_MAX = 4096  # of one message, in both directions
ABS_PATH_MAX = 3072
REL_PATH_MAX = 2048
DEVICE_MESSAGE_MAX = 4096  # header and payload: what Linux' /dev/xen/xenbus takes (xenbus_dev_frontend.c)

NO_TRANSACTION = 0
INTRODUCE_DOMAIN = "@introduceDomain"
RELEASE_DOMAIN = "@releaseDomain"

_HEADER = Struct("<4I")  # type, req_id, tx_id, len
HEADER_SIZE = _HEADER.size

# struct xenstore_domain_interface: the guest's requests, xenstored's replies, and where their indices lie.
RING_SIZE = 1024
REQ = 0
RSP = 1024
REQ_CONS = 2048
REQ_PROD = 2052
RSP_CONS = 2056
RSP_PROD = 2060
SERVER_FEATURES = 2064  # which of what follows xenstored knows
CONNECTION = 2068
ERROR = 2072
EVTCHN_PORT = 2076  # Xen 4.21; written by Xen where no toolstack made the domain, else 0

FEATURE_RECONNECTION = 1  # CONNECTION means something
FEATURE_ERROR = 2  # ERROR means something
FEATURE_WATCHDEPTH = 4
FEATURE_DOMID_ANY = 8
CONNECTED = 0
RECONNECT = 1
ERROR_NONE = 0
ERROR_COMM = 1
ERROR_RINGIDX = 2
ERROR_PROTO = 3


class Operation(enum.IntEnum):
    """enum xsd_sockmsg_type."""

    CONTROL = 0
    DIRECTORY = 1
    READ = 2
    GET_PERMS = 3
    WATCH = 4
    UNWATCH = 5
    TRANSACTION_START = 6
    TRANSACTION_END = 7
    INTRODUCE = 8
    RELEASE = 9
    GET_DOMAIN_PATH = 10
    WRITE = 11
    MKDIR = 12
    RM = 13
    SET_PERMS = 14
    WATCH_EVENT = 15
    ERROR = 16
    IS_DOMAIN_INTRODUCED = 17
    RESUME = 18
    SET_TARGET = 19
    RESET_WATCHES = 21
    DIRECTORY_PART = 22


# xsd_errors: errors travel by name. Where a number has no name here, xenstored says EINVAL.
ERRORS = (
    "EINVAL",
    "EACCES",
    "EEXIST",
    "EISDIR",
    "ENOENT",
    "ENOMEM",
    "ENOSPC",
    "EIO",
    "ENOTEMPTY",
    "ENOSYS",
    "EROFS",
    "EBUSY",
    "EAGAIN",
    "EISCONN",
    "E2BIG",
    "EPERM",
)
_NAME_OF = {getattr(errno, name): name for name in ERRORS}
_NUMBER_OF = {name: number for number, name in _NAME_OF.items()} | {"EQUOTA": errno.EDQUOT}  # the OCaml xenstored's


class Message(NamedTuple):
    """struct xsd_sockmsg and what follows it."""

    operation: int
    request_id: int
    transaction_id: int
    payload: bytes


class TooLongError(ValueError):
    """A header announces a payload beyond PAYLOAD_MAX: what follows cannot be told apart."""


class Splitter:
    """Cuts a stream of bytes, fed in any fragments, into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next(self) -> Message | None:
        """The next whole message, None where there is none yet; `TooLongError` as soon as a header says so."""
        if len(self._buffer) < HEADER_SIZE:
            return None
        operation, request_id, transaction_id, length = _HEADER.unpack_from(self._buffer)
        if length > PAYLOAD_MAX:
            raise TooLongError(f"a message with a payload of {length} bytes, where {PAYLOAD_MAX} is the most")
        end = HEADER_SIZE + length
        if len(self._buffer) < end:
            return None
        payload = bytes(self._buffer[HEADER_SIZE:end])
        del self._buffer[:end]
        return Message(operation, request_id, transaction_id, payload)

    def __len__(self) -> int:
        """Bytes that are not yet handed out."""
        return len(self._buffer)


Access = Literal["n", "r", "w", "b"]


class Permission(NamedTuple):
    """One entry of a node's permissions: `access` is n(one), r(ead), w(rite) or b(oth).

    The first entry of a node names its owner, who may do everything, and what every domain may do that has no
    entry of its own.
    """

    domid: int
    access: Access

    @property
    def readable(self) -> bool:
        """Whether it lets the domain read."""
        return self.access in "rb"

    @property
    def writable(self) -> bool:
        """Whether it lets the domain write."""
        return self.access in "wb"

    def __str__(self) -> str:
        return f"{self.access}{self.domid}"


_PERMISSION = re.compile(rb"([nrwb])(\d{1,5})", re.ASCII)


def pack_message(operation: int, request_id: int, transaction_id: int, payload: bytes) -> bytes:
    return _HEADER.pack(operation, request_id, transaction_id, len(payload)) + payload


def unpack_header(data: bytes, at: int) -> tuple[int, int, int, int]:
    """(operation, request id, transaction id, bytes of payload) of the message that begins at `at`."""
    operation, request_id, transaction_id, length = _HEADER.unpack_from(data, at)
    return operation, request_id, transaction_id, length


def pack_strings(*strings: bytes) -> bytes:
    """Each string with its NUL."""
    return b"".join(string + b"\0" for string in strings)


def unpack_strings(payload: bytes) -> list[bytes]:
    """The strings that have their NUL; what follows the last NUL is left out."""
    return payload.split(b"\0")[:-1]


def pack_permissions(permissions: tuple[Permission, ...]) -> bytes:
    return pack_strings(*(str(permission).encode("ascii") for permission in permissions))


def unpack_permissions(strings: list[bytes]) -> tuple[Permission, ...]:
    """ValueError for what is not a permission."""
    permissions = []
    for string in strings:
        match = _PERMISSION.fullmatch(string)
        if match is None:
            raise ValueError(f"{string!r} is no permission: n, r, w or b and a domain's number")
        permissions.append(Permission(int(match[2]), cast(Access, match[1].decode("ascii"))))
    return tuple(permissions)


def pack_error(number: int) -> bytes:
    """The payload of an ERROR."""
    return pack_strings(_NAME_OF.get(number, "EINVAL").encode("ascii"))


def unpack_error(payload: bytes) -> tuple[int, str]:
    """(errno, name) of an ERROR's payload; ValueError for what is no error's name."""
    name = payload.removesuffix(b"\0").decode("ascii", "backslashreplace")
    number = _NUMBER_OF.get(name) or getattr(errno, name, None)
    if not re.fullmatch(r"E[A-Z0-9]+", name) or not isinstance(number, int):
        raise ValueError(f"{payload[:40]!r} is no error's name")
    return number, name
