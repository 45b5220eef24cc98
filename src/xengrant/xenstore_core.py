"""The xenstore client without its waiting: what `XenStore` and `AsyncXenStore` share.

`Codec` keeps the books of one connection: it turns requests into bytes, and the bytes that come back into answers and
watch events. The operations below it are generators: they yield one `Request` at a time, are sent its answer (or
thrown its `Refusal`), and return what the caller asked for; the two clients only differ in how they wait in between.
"""

from __future__ import annotations

import errno
import random
import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TypeAlias, TypeVar

from xengrant.abi import xs_wire
from xengrant.abi.xs_wire import NO_TRANSACTION, Operation, Permission
from xengrant.arguments import checked_text
from xengrant.errors import ProtocolError, XenStoreError

T = TypeVar("T")

# Past this many paths a watch that nobody reads holds one event, for its own path: "look at everything again".
_MAX_PENDING_EVENTS = 1024
_MAX_DIRECTORY_BYTES = 16 << 20
_MAX_DIRECTORY_RESTARTS = 64

_SPECIAL = re.compile(r"@[A-Za-z0-9_@/-]*")
_PATH = re.compile(r"/|/?[A-Za-z0-9_@-]+(/[A-Za-z0-9_@-]+)*")
_CHILD = re.compile(rb"[A-Za-z0-9_@-]+")


class Refusal(Exception):
    """xenstore answered `request` with an error."""

    def __init__(self, request: Request, number: int, name: str) -> None:
        super().__init__(number, name)
        self.request = request
        self.errno = number
        self.name = name


class Request:
    """One message to xenstore, and its answer once it is `done`."""

    def __init__(
        self, operation: Operation, path: str | None, payload: bytes, transaction_id: int = NO_TRANSACTION
    ) -> None:
        if xs_wire.HEADER_SIZE + len(payload) > xs_wire.DEVICE_MESSAGE_MAX:
            raise XenStoreError(
                errno.E2BIG,
                f"{operation.name} of {path} would be a message of {xs_wire.HEADER_SIZE + len(payload)} bytes, and "
                f"xenstore takes {xs_wire.DEVICE_MESSAGE_MAX} with its header: split the value over several nodes",
                path=path,
            )
        self.operation = operation
        self.path = path
        self.payload = payload
        self.transaction_id = transaction_id
        self.id = 0
        self.abandoned = False
        self.done = False
        self._answer: bytes | Refusal = b""

    def finish(self, answer: bytes | Refusal) -> None:
        self._answer = answer
        self.done = True

    def result(self) -> bytes:
        if isinstance(self._answer, Refusal):
            raise self._answer
        return self._answer

    @property
    def succeeded(self) -> bool:
        return self.done and not isinstance(self._answer, Refusal)


class Events:
    """What a watch was told and nobody has taken yet: paths in order, each once.

    Events say "look again", so two of one path are one; a watch that nobody reads cannot grow without bound.
    """

    def __init__(self, path: str, token: str) -> None:
        self.path = path
        self.token = token
        self._pending: dict[str, None] = {}

    def __bool__(self) -> bool:
        return bool(self._pending)

    def add(self, path: str) -> None:
        if len(self._pending) >= _MAX_PENDING_EVENTS:
            self._pending.clear()
            path = self.path
        self._pending[path] = None

    def take(self) -> str:
        path = next(iter(self._pending))
        del self._pending[path]
        return path


Steps: TypeAlias = Generator[Request, bytes, T]


class Codec:
    """The books of one connection, without any I/O. Threads: one at a time."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._splitter = xs_wire.Splitter()
        self._requests: dict[int, Request] = {}
        self._watches: dict[str, Events] = {}
        self._last_id = 0
        self._last_token = 0
        self._undoing: list[Request] = []

    def start(self, request: Request) -> bytes:
        """The bytes to send; from now on the answer is expected."""
        self._last_id = self._last_id % 0xFFFFFFFF + 1  # never 0: Linux answers WATCH with request id 0
        while self._last_id in self._requests:
            self._last_id = self._last_id % 0xFFFFFFFF + 1
        request.id = self._last_id
        self._requests[request.id] = request
        return xs_wire.pack_message(request.operation, request.id, request.transaction_id, request.payload)

    def forget(self, request: Request) -> None:
        """It was never sent."""
        self._requests.pop(request.id, None)

    def abandon(self, request: Request) -> None:
        """Nobody waits for it any more: a late answer is dropped, and the watch or transaction it made is undone."""
        request.abandoned = True
        if request.done:
            self._undo(request)

    def undo_with(self, request: Request) -> None:
        """A request that undoes something, to be sent whenever that can be; its answer is dropped.

        xenstore answers in order, so that whatever is asked after it finds the thing undone.
        """
        request.abandoned = True
        self._undoing.append(request)

    @property
    def has_undoing(self) -> bool:
        """Whether something is to be sent to undo things."""
        return bool(self._undoing)

    def take_undoing(self) -> list[Request]:
        """What is to be sent to undo things."""
        undoing, self._undoing = self._undoing, []
        return undoing

    def new_watch(self, path: str) -> Events:
        self._last_token += 1
        events = Events(path, f"xengrant-{self._last_token}")
        self._watches[events.token] = events
        return events

    def drop_watch(self, events: Events) -> bool:
        """Whether the watch was still there; events that come late are ignored."""
        return self._watches.pop(events.token, None) is not None

    def feed(self, data: bytes) -> Iterator[Request | Events]:
        """What `data` completes, one by one: requests that are done, watches that were told something.

        Raises `ProtocolError` where the stream cannot be xenstore's.
        """
        self._splitter.feed(data)
        while True:
            try:
                message = self._splitter.next()
            except xs_wire.TooLongError as error:
                raise ProtocolError(f"{self.name} sent {error}") from None
            if message is None:
                return
            news = self._take_event(message) if message.operation == Operation.WATCH_EVENT else self._match(message)
            if news is not None:
                yield news

    def _take_event(self, message: xs_wire.Message) -> Events | None:
        strings = xs_wire.unpack_strings(message.payload)
        if len(strings) < 2:
            raise ProtocolError(f"{self.name} sent a watch event without a path and a token")
        events = self._watches.get(strings[1].decode("ascii", "replace"))
        if events is not None:
            path = strings[0].decode("ascii", "replace")
            if not (_PATH.fullmatch(path) or _SPECIAL.fullmatch(path)):
                raise ProtocolError(f"{self.name} sent a watch event for {strings[0][:64]!r}, which is no path")
            events.add(path)
        return events

    def _match(self, message: xs_wire.Message) -> Request | None:
        request = self._requests.pop(message.request_id, None)
        if request is None and message.request_id == 0:
            request = self._oldest(message.operation)
        if request is None:
            raise ProtocolError(f"{self.name} answered request {message.request_id}, which was never asked")
        if message.operation == Operation.ERROR:
            try:
                number, name = xs_wire.unpack_error(message.payload)
            except ValueError as error:
                raise ProtocolError(f"{self.name} sent an error that is none: {error}") from None
            request.finish(Refusal(request, number, name))
        elif message.operation == request.operation:
            request.finish(message.payload)
        else:
            raise ProtocolError(f"{self.name} answered {request.operation.name} with type {message.operation}")
        if request.abandoned:
            self._undo(request)
            return None
        return request

    def _oldest(self, operation: int) -> Request | None:
        """Linux answers WATCH and UNWATCH itself, in order, with request id 0 (xenbus_dev_frontend.c)."""
        if operation in (Operation.WATCH, Operation.UNWATCH):
            for request in self._requests.values():
                if request.operation == operation:
                    return self._requests.pop(request.id)
        return None

    def _undo(self, request: Request) -> None:
        if not request.succeeded:
            return
        if request.operation == Operation.WATCH:
            self.undo_with(Request(Operation.UNWATCH, request.path, request.payload))
        elif request.operation == Operation.TRANSACTION_START:
            self.undo_with(ending(_transaction_id(request.result()), commit=False))


def read(path: str, transaction_id: int) -> Steps[bytes]:
    return (yield _on_path(Operation.READ, path, transaction_id))


def write(path: str, value: bytes | bytearray | memoryview | str, transaction_id: int) -> Steps[None]:
    yield Request(Operation.WRITE, path, xs_wire.pack_strings(checked_path(path)) + _value(value), transaction_id)


def _value(value: bytes | bytearray | memoryview | str) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8")
    try:
        return memoryview(value).tobytes()  # bytes() would make so many zeros of a number
    except TypeError:
        raise TypeError(f"a value is bytes or str, not {value!r}") from None


def mkdir(path: str, transaction_id: int) -> Steps[None]:
    yield _on_path(Operation.MKDIR, path, transaction_id)


def rm(path: str, transaction_id: int) -> Steps[None]:
    yield _on_path(Operation.RM, path, transaction_id)


def exists(path: str, transaction_id: int) -> Steps[bool]:
    try:
        yield _on_path(Operation.READ, path, transaction_id)
    except Refusal as refusal:
        if refusal.errno != errno.ENOENT:
            raise
        return False
    return True


def directory(path: str, transaction_id: int) -> Steps[list[str]]:
    """Children's names; in parts where they do not fit one message (E2BIG)."""
    try:
        payload = yield _on_path(Operation.DIRECTORY, path, transaction_id)
    except Refusal as refusal:
        if refusal.errno != errno.E2BIG:
            raise
        payload = yield from _directory_in_parts(path, transaction_id)
    names = xs_wire.unpack_strings(payload)
    for name in names:
        if not _CHILD.fullmatch(name):
            raise ProtocolError(f"xenstore says that {path} has a child {name[:64]!r}, which is no name")
    return [name.decode("ascii") for name in names]


def _directory_in_parts(path: str, transaction_id: int) -> Steps[bytes]:
    """DIRECTORY_PART until the list's end, from the start again where the node changed in between."""
    for _ in range(_MAX_DIRECTORY_RESTARTS):
        names = bytearray()
        first_generation = None
        while len(names) < _MAX_DIRECTORY_BYTES:
            strings = xs_wire.pack_strings(checked_path(path), str(len(names)).encode("ascii"))
            payload = yield Request(Operation.DIRECTORY_PART, path, strings, transaction_id)
            generation, nul, part = payload.partition(b"\0")
            if not nul or not part.endswith(b"\0"):
                raise ProtocolError(f"xenstore sent a part of the children of {path} that is cut short")
            if first_generation not in (None, generation):
                break
            first_generation = generation
            if part == b"\0" or part.endswith(b"\0\0"):
                return bytes(names + part[:-1])
            names += part
        else:
            raise ProtocolError(f"xenstore goes on listing the children of {path}")
    raise XenStoreError(errno.EAGAIN, f"the children of {path} change faster than they can be listed", path=path)


def get_permissions(path: str, transaction_id: int) -> Steps[list[Permission]]:
    payload = yield _on_path(Operation.GET_PERMS, path, transaction_id, special=True)
    try:
        permissions = xs_wire.unpack_permissions(xs_wire.unpack_strings(payload))
    except ValueError as error:
        raise ProtocolError(f"xenstore's permissions of {path}: {error}") from None
    if not permissions:
        raise ProtocolError(f"xenstore says that {path} has no owner")
    return list(permissions)


def set_permissions(path: str, permissions: Sequence[Permission], transaction_id: int) -> Steps[None]:
    entries = tuple(Permission(*permission) for permission in permissions)
    if not entries:
        raise ValueError("permissions begin with the owner's entry: there must be at least one")
    for entry in entries:
        if not 0 <= entry.domid <= 0xFFFF or entry.access not in ("n", "r", "w", "b"):
            raise ValueError(f"{entry!r} is no permission: a domid of 16 bits and one of n, r, w, b")
    payload = xs_wire.pack_strings(checked_path(path, special=True)) + xs_wire.pack_permissions(entries)
    yield Request(Operation.SET_PERMS, path, payload, transaction_id)


def get_domain_path(domid: int) -> Steps[str]:
    payload = yield Request(Operation.GET_DOMAIN_PATH, None, _domid(domid))
    path = payload.removesuffix(b"\0").decode("ascii", "replace")
    if not _PATH.fullmatch(path):
        raise ProtocolError(f"xenstore says that domain {domid} lives at {payload[:64]!r}")
    return path


def is_domain_introduced(domid: int) -> Steps[bool]:
    payload = yield Request(Operation.IS_DOMAIN_INTRODUCED, None, _domid(domid))
    if payload not in (b"T\0", b"F\0"):
        raise ProtocolError(f"xenstore answered IS_DOMAIN_INTRODUCED with {payload[:64]!r}")
    return payload == b"T\0"


def start_transaction() -> Steps[int]:
    return _transaction_id((yield Request(Operation.TRANSACTION_START, None, b"\0")))


def end_transaction(transaction_id: int, *, commit: bool) -> Steps[None]:
    yield ending(transaction_id, commit=commit)


def watch(codec: Codec, path: str, lock: AbstractContextManager[object]) -> Steps[Events]:
    """`lock` is held while the watch gets its token, where threads may begin two at once."""
    if checked_text("path", path).startswith("@"):
        yield from _check_told_of_domains(path)
    checked = checked_path(path, special=True)
    with lock:
        events = codec.new_watch(path)
    try:
        yield Request(Operation.WATCH, path, xs_wire.pack_strings(checked, events.token.encode("ascii")))
    except BaseException:
        codec.drop_watch(events)
        raise
    return events


def unwatching(events: Events) -> Request:
    strings = xs_wire.pack_strings(events.path.encode("ascii"), events.token.encode("ascii"))
    return Request(Operation.UNWATCH, events.path, strings)


def _check_told_of_domains(path: str) -> Steps[None]:
    """Refuse a watch that would stay silent.

    xenstored takes a watch on @releaseDomain from any guest, but tells only dom0 and the domains that dom0 named in
    the path's permissions (XSA-115). Those can be asked for; Xen up to 4.17 says EINVAL, and there only dom0 is told
    whether a domain is introduced.
    """
    try:
        yield _on_path(Operation.GET_PERMS, path, NO_TRANSACTION, special=True)
    except Refusal as refusal:
        if refusal.errno != errno.EINVAL:
            raise
        yield Request(Operation.IS_DOMAIN_INTRODUCED, path, _domid(0))


def backoff(attempts: int) -> Iterator[float]:
    """Seconds to wait before each further attempt, random so that two domains do not meet again."""
    for attempt in range(attempts - 1):
        yield random.uniform(0, min(0.1, 0.001 * 2**attempt))


def ending(transaction_id: int, *, commit: bool) -> Request:
    return Request(Operation.TRANSACTION_END, None, b"T\0" if commit else b"F\0", transaction_id)


def _transaction_id(payload: bytes) -> int:
    match = re.fullmatch(rb"(\d{1,10})\0?", payload)
    if match is None or not 0 < int(match[1]) <= 0xFFFFFFFF:
        raise ProtocolError(f"xenstore started a transaction {payload[:64]!r}, which is no number")
    return int(match[1])


def _domid(domid: int) -> bytes:
    if not 0 <= domid <= 0xFFFF:
        raise ValueError(f"{domid} is no domid: 16 bits")
    return xs_wire.pack_strings(str(domid).encode("ascii"))


def _on_path(operation: Operation, path: str, transaction_id: int, *, special: bool = False) -> Request:
    return Request(operation, path, xs_wire.pack_strings(checked_path(path, special=special)), transaction_id)


def checked_path(path: str, *, special: bool = False) -> bytes:
    """The path's bytes, or ValueError saying what xenstore does not take (docs/misc/xenstore.txt)."""
    checked_text("path", path)
    if not (_PATH.fullmatch(path) or (special and _SPECIAL.fullmatch(path))) or (path[0] == "@" and not special):
        raise ValueError(
            f"{path!r} is no xenstore path: letters, digits, - _ @ and single slashes between names, none at the end"
        )
    limit = xs_wire.ABS_PATH_MAX if path[0] == "/" else xs_wire.REL_PATH_MAX
    if len(path) > limit:
        raise ValueError(f"a xenstore path of {len(path)} bytes: {limit} is the most, beginning {path[:64]!r}")
    return path.encode("ascii")
