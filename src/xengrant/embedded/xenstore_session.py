"""One client of the embedded machine's xenstored: its requests, watches and transactions.

Made by `XenStored.connect`; calls `xenstore_tree.py` for what a request does to the nodes. Which requests there are and
how they are answered is docs/misc/xenstore.txt and, where that is silent, tools/xenstore of Xen 4.17.
"""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xengrant.abi import xs_wire
from xengrant.abi.xs_wire import NO_TRANSACTION, Message, Operation
from xengrant.embedded import xenstore_tree as tree
from xengrant.embedded.xenstore_tree import Caller, Node, Refused, Right, Transaction, View
from xengrant.errors import ProtocolError

if TYPE_CHECKING:
    from xengrant.embedded.xenstored import XenStored

# A connection whose client leaves more than this unread is asked nothing further until it has read.
_MAX_BACKLOG = 64 << 10
# Seconds that one connection is served before the others have their turns.
_TURN = 0.005
# More events than this (and than two for each watch) are not kept for a client that does not read.
_MAX_HELD_EVENTS = 1024

_CHARACTERS = re.compile(r"[A-Za-z0-9/_@-]+")
_DOMAIN_PREFIX = re.compile(r"/local/domain/\d{1,5}/")
_DOMID = re.compile(rb"\d{1,5}")

_GIVES_BACK = {Operation.UNWATCH, Operation.TRANSACTION_END, Operation.RM, Operation.RESET_WATCHES}

# Only the toolstack's own connection may do these.
_PRIVILEGED = {
    Operation.CONTROL,
    Operation.INTRODUCE,
    Operation.RELEASE,
    Operation.IS_DOMAIN_INTRODUCED,
    Operation.RESUME,
    Operation.SET_TARGET,
}
_OK = b"OK\0"


class ProtocolViolation(ProtocolError):
    """The client broke the message format: it is to be disconnected."""


@dataclass(frozen=True, eq=False, slots=True)
class Watch:
    connection: StoreConnection
    path: str
    token: bytes
    shown_from: int  # a relative watch is told relative paths: where they begin
    order: int

    def event(self, path: str) -> bytes:
        return xs_wire.pack_strings(path[self.shown_from :].encode("ascii"), self.token)


class StoreConnection:
    """One client of the store."""

    def __init__(
        self,
        store: XenStored,
        caller: Caller,
        send: Callable[[bytes], None],
        backlog: Callable[[], int],
        give_way: Callable[[], None] | None = None,
        failure: Callable[[], int] = lambda: 0,
    ) -> None:
        self.caller = caller
        self.closed = False
        self._store = store
        self._send = send
        self._backlog = backlog
        self._give_way = give_way
        self._failure = failure
        self._home = f"/local/domain/{caller.domid}"
        self._splitter = xs_wire.Splitter()
        self._watches: dict[tuple[str, bytes], Watch] = {}
        self._held: dict[tuple[Watch, str], None] = {}
        self._transactions: dict[int, Transaction] = {}
        self._last_transaction = 0
        self._busy = False

    @property
    def domid(self) -> int:
        return self.caller.domid

    def feed(self, data: bytes) -> None:
        """Take bytes from the client and answer what they complete; `ProtocolViolation` where they make no sense."""
        if self.closed:
            return
        self._splitter.feed(data)
        self.drained()

    def drained(self) -> None:
        """The client has read something, or has its turn again: go on with what waited for that."""
        if self._busy:
            return  # called out of `send`: the call that sends goes on with it
        self._busy = True
        turn_ends = time.monotonic() + _TURN
        try:
            while not self.closed and self._backlog() <= _MAX_BACKLOG:
                if self._held and not self._backlog():
                    self._send_held()
                message = self._splitter.next()
                if message is None:
                    return
                self._answer(message)
                if self._give_way is not None and len(self._splitter) and time.monotonic() >= turn_ends:
                    self._give_way()
                    return
        except xs_wire.TooLongError as error:
            raise ProtocolViolation(f"domain {self.domid} sent xenstore {error}") from None
        finally:
            self._busy = False

    def close(self) -> None:
        """Drop the connection's watches and transactions. A second time does nothing."""
        if not self.closed:
            self.closed = True
            self._reset()
            self._store.connections.remove(self)

    def tell(self, watch: Watch, path: str) -> None:
        """An event. While the client reads nothing it is held back, and two of one path are one."""
        payload = watch.event(path)
        if self.closed or len(payload) > xs_wire.PAYLOAD_MAX:
            return  # xenstored sends no event that is too long
        if not self._held and not self._backlog():
            self._send(xs_wire.pack_message(Operation.WATCH_EVENT, 0, NO_TRANSACTION, payload))
            return
        if len(self._held) >= max(_MAX_HELD_EVENTS, 2 * len(self._watches)):
            # Each watch's own path stands for everything below it.
            self._held = {(held, held.path): None for held, _ in self._held}
            path = watch.path
        self._held[watch, path] = None

    def _send_held(self) -> None:
        while self._held and self._backlog() <= _MAX_BACKLOG:
            watch, path = next(iter(self._held))
            del self._held[watch, path]
            self._send(xs_wire.pack_message(Operation.WATCH_EVENT, 0, NO_TRANSACTION, watch.event(path)))

    def _answer(self, message: Message) -> None:
        operation = message.operation
        try:
            payload = self._do(message)
            if len(payload) > xs_wire.PAYLOAD_MAX:
                raise Refused(errno.E2BIG)
        except Refused as refused:
            operation, payload = Operation.ERROR, xs_wire.pack_error(refused.errno)
        self._send(xs_wire.pack_message(operation, message.request_id, message.transaction_id, payload))
        if message.operation == operation == Operation.WATCH and not self.closed:
            watch = next(reversed(self._watches.values()))
            self.tell(watch, watch.path)

    def _do(self, message: Message) -> bytes:
        if message.operation not in _GIVES_BACK and (number := self._failure()):
            raise Refused(number)
        handler = _HANDLERS.get(message.operation)
        if message.operation in _PRIVILEGED and not self.caller.privileged:
            raise Refused(errno.EACCES)
        if handler is None:
            raise Refused(errno.ENOSYS)
        view: View = self._store.tree
        if message.transaction_id and message.operation not in (Operation.WATCH, Operation.UNWATCH):
            found = self._transactions.get(message.transaction_id)
            if found is None:
                raise Refused(errno.ENOENT)
            view = found
        return handler(self, view, message)

    def _path(self, string: bytes, *, special: bool = False) -> str:
        """The absolute path of what the client wrote, or EINVAL (is_valid_nodename)."""
        try:
            path = string.decode("ascii")
        except UnicodeDecodeError:
            raise Refused(errno.EINVAL) from None
        if path.startswith("@") and special:
            prefix = 0
        else:
            path = path if path.startswith(("/", "@")) else f"{self._home}/{path}"
            match = _DOMAIN_PREFIX.match(path)
            prefix = match.end() if match else 0
            if not path.startswith("/") or (path.endswith("/") and path != "/") or "//" in path:
                raise Refused(errno.EINVAL)
        if not _CHARACTERS.fullmatch(path) or len(path) > prefix + xs_wire.REL_PATH_MAX:
            raise Refused(errno.EINVAL)
        return path

    def _only_path(self, payload: bytes, *, special: bool = False) -> str:
        return self._path(_only_string(payload), special=special)

    def _read(self, view: View, message: Message) -> bytes:
        return tree.lookup(view, self.caller, self._only_path(message.payload), Right.READ).value

    def _write(self, view: View, message: Message) -> bytes:
        path, nul, value = message.payload.partition(b"\0")
        if not nul:
            raise Refused(errno.EINVAL)
        tree.write(view, self.caller, self._path(path), value)
        return _OK

    def _mkdir(self, view: View, message: Message) -> bytes:
        tree.mkdir(view, self.caller, self._only_path(message.payload))
        return _OK

    def _rm(self, view: View, message: Message) -> bytes:
        tree.rm(view, self.caller, self._only_path(message.payload))
        return _OK

    def _directory(self, view: View, message: Message) -> bytes:
        return _names(tree.lookup(view, self.caller, self._only_path(message.payload), Right.READ))

    def _directory_part(self, view: View, message: Message) -> bytes:
        """The generation, then names from an offset on, as many as fit; an empty name after the last."""
        strings = xs_wire.unpack_strings(message.payload)
        if len(strings) != 2:
            raise Refused(errno.EINVAL)
        node = tree.lookup(view, self.caller, self._path(strings[0]), Right.READ)
        match = re.match(rb"\d{1,9}", strings[1])
        offset = int(match[0]) if match else 0
        generation = xs_wire.pack_strings(str(node.generation).encode("ascii"))
        names = _names(node)[offset:]
        room = xs_wire.PAYLOAD_MAX - len(generation) - 1
        if len(names) <= room:
            return generation + names + b"\0"
        return generation + names[: names.rindex(b"\0", 0, room) + 1]

    def _get_perms(self, view: View, message: Message) -> bytes:
        path = self._only_path(message.payload, special=True)
        return xs_wire.pack_permissions(tree.lookup(view, self.caller, path, Right.READ).permissions)

    def _set_perms(self, view: View, message: Message) -> bytes:
        strings = xs_wire.unpack_strings(message.payload)
        try:
            permissions = xs_wire.unpack_permissions(strings[1:])
        except ValueError:
            raise Refused(errno.EINVAL) from None
        if not permissions:
            raise Refused(errno.EINVAL)
        tree.set_permissions(view, self.caller, self._path(strings[0], special=True), permissions)
        return _OK

    def _watch(self, view: View, message: Message) -> bytes:
        """Any domain may watch any path; what it may not read stays silent, @releaseDomain in a guest too (XSA-115)."""
        strings = xs_wire.unpack_strings(message.payload)
        if len(strings) != 2:
            raise Refused(errno.EINVAL)
        path, token = self._path(strings[0], special=True), strings[1]
        if (path, token) in self._watches:
            raise Refused(errno.EEXIST)
        # xenstored compares before it adds, so that one more than the quota goes in.
        if not self.caller.privileged and self._count_of_domain("_watches") > self.caller.quotas.watches:
            raise Refused(errno.E2BIG)
        shown_from = 0 if strings[0].startswith((b"/", b"@")) else len(self._home) + 1
        self._watches[path, token] = self._store.add_watch(self, path, token, shown_from)
        return _OK

    def _unwatch(self, view: View, message: Message) -> bytes:
        strings = xs_wire.unpack_strings(message.payload)
        if len(strings) != 2:
            raise Refused(errno.EINVAL)
        watch = self._watches.pop((self._path(strings[0], special=True), strings[1]), None)
        if watch is None:
            raise Refused(errno.ENOENT)
        self._drop(watch)
        return _OK

    def _reset_watches(self, view: View, message: Message) -> bytes:
        self._reset()
        return _OK

    def _transaction_start(self, view: View, message: Message) -> bytes:
        if message.transaction_id:
            raise Refused(errno.EBUSY)
        # As with watches, one more than the quota goes in.
        if not self.caller.privileged and self._count_of_domain("_transactions") > self.caller.quotas.transactions:
            raise Refused(errno.ENOSPC)
        while True:
            self._last_transaction = self._last_transaction % 0xFFFFFFFF + 1
            if self._last_transaction not in self._transactions:
                break
        self._transactions[self._last_transaction] = Transaction(self._store.tree, self.caller)
        return xs_wire.pack_strings(str(self._last_transaction).encode("ascii"))

    def _transaction_end(self, view: View, message: Message) -> bytes:
        if message.payload not in (b"T\0", b"F\0"):
            raise Refused(errno.EINVAL)
        transaction = self._transactions.pop(message.transaction_id, None)
        if transaction is None:
            raise Refused(errno.ENOENT)
        if message.payload == b"T\0":
            transaction.commit()
        return _OK

    def _get_domain_path(self, view: View, message: Message) -> bytes:
        return xs_wire.pack_strings(f"/local/domain/{_domid(message.payload)}".encode("ascii"))

    def _is_domain_introduced(self, view: View, message: Message) -> bytes:
        return b"T\0" if _domid(message.payload) in self._store.introduced else b"F\0"

    def _count_of_domain(self, what: str) -> int:
        """Quotas are a domain's, whose programs have a connection each here (in Linux they share the kernel's)."""
        return sum(len(getattr(other, what)) for other in self._store.connections if other.domid == self.domid)

    def _drop(self, watch: Watch) -> None:
        self._store.drop_watch(watch)
        self._held = {event: None for event in self._held if event[0] is not watch}

    def _reset(self) -> None:
        for watch in self._watches.values():
            self._store.drop_watch(watch)
        self._watches.clear()
        self._held.clear()
        self._transactions.clear()


_HANDLERS: dict[int, Callable[[StoreConnection, View, Message], bytes]] = {
    Operation.DIRECTORY: StoreConnection._directory,
    Operation.DIRECTORY_PART: StoreConnection._directory_part,
    Operation.READ: StoreConnection._read,
    Operation.WRITE: StoreConnection._write,
    Operation.MKDIR: StoreConnection._mkdir,
    Operation.RM: StoreConnection._rm,
    Operation.GET_PERMS: StoreConnection._get_perms,
    Operation.SET_PERMS: StoreConnection._set_perms,
    Operation.WATCH: StoreConnection._watch,
    Operation.UNWATCH: StoreConnection._unwatch,
    Operation.RESET_WATCHES: StoreConnection._reset_watches,
    Operation.TRANSACTION_START: StoreConnection._transaction_start,
    Operation.TRANSACTION_END: StoreConnection._transaction_end,
    Operation.GET_DOMAIN_PATH: StoreConnection._get_domain_path,
    Operation.IS_DOMAIN_INTRODUCED: StoreConnection._is_domain_introduced,
    # CONTROL, INTRODUCE, RELEASE, RESUME and SET_TARGET are not here (ENOSYS): the machine makes and ends domains.
}


def _names(node: Node) -> bytes:
    return xs_wire.pack_strings(*(name.encode("ascii") for name in node.children))


def _only_string(payload: bytes) -> bytes:
    """The payload's one string, or EINVAL."""
    if payload.find(b"\0") != len(payload) - 1:
        raise Refused(errno.EINVAL)
    return payload[:-1]


def _domid(payload: bytes) -> int:
    string = _only_string(payload)
    if not _DOMID.fullmatch(string):
        raise Refused(errno.EINVAL)
    return int(string)
