"""A client of `XenStored` without sockets: one request, one answer, and the events that came."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from xengrant.abi import xs_wire
from xengrant.abi.xs_wire import Operation
from xengrant.embedded.xenstored import XenStored


class Refusal(Exception):
    """The error's name."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Asker:
    """A connection of domain `domid`. `unread` counts as what its client has not taken (`StoreConnection.backlog`)."""

    def __init__(self, store: XenStored, domid: int) -> None:
        self.unread = 0
        self.replies: list[xs_wire.Message] = []
        self.events: list[tuple[str, str]] = []
        self.connection = store.connect(domid, self._take, backlog=lambda: self.unread)
        self._splitter = xs_wire.Splitter()
        self._asked = 0

    def _take(self, data: bytes) -> None:
        self._splitter.feed(data)
        while (message := self._splitter.next()) is not None:
            if message.operation == Operation.WATCH_EVENT:
                path, token = xs_wire.unpack_strings(message.payload)
                self.events.append((path.decode(), token.decode()))
            else:
                self.replies.append(message)

    def ask(self, operation: int, *strings: str, tx: int = 0, value: bytes = b"") -> bytes:
        """The answer's payload, or `Refusal`."""
        return self.ask_raw(operation, xs_wire.pack_strings(*(s.encode() for s in strings)) + value, tx=tx)

    def ask_raw(self, operation: int, payload: bytes, *, tx: int = 0) -> bytes:
        self._asked += 1
        self.connection.feed(xs_wire.pack_message(operation, self._asked, tx, payload))
        reply = self.replies.pop()
        assert not self.replies
        assert (reply.request_id, reply.transaction_id) == (self._asked, tx)
        if reply.operation == Operation.ERROR:
            raise Refusal(reply.payload.removesuffix(b"\0").decode())
        assert reply.operation == operation
        return reply.payload

    def take_events(self) -> list[tuple[str, str]]:
        events, self.events = self.events, []
        return events

    def read(self, path: str, tx: int = 0) -> bytes:
        return self.ask(Operation.READ, path, tx=tx)

    def write(self, path: str, value: bytes, tx: int = 0) -> None:
        assert self.ask(Operation.WRITE, path, tx=tx, value=value) == b"OK\0"

    def mkdir(self, path: str, tx: int = 0) -> None:
        assert self.ask(Operation.MKDIR, path, tx=tx) == b"OK\0"

    def rm(self, path: str, tx: int = 0) -> None:
        assert self.ask(Operation.RM, path, tx=tx) == b"OK\0"

    def directory(self, path: str, tx: int = 0) -> list[str]:
        return [name.decode() for name in xs_wire.unpack_strings(self.ask(Operation.DIRECTORY, path, tx=tx))]

    def get_perms(self, path: str, tx: int = 0) -> list[str]:
        return [name.decode() for name in xs_wire.unpack_strings(self.ask(Operation.GET_PERMS, path, tx=tx))]

    def set_perms(self, path: str, *permissions: str, tx: int = 0) -> None:
        assert self.ask(Operation.SET_PERMS, path, *permissions, tx=tx) == b"OK\0"

    def start(self) -> int:
        return int(self.ask_raw(Operation.TRANSACTION_START, b"\0").removesuffix(b"\0"))

    def end(self, tx: int, *, commit: bool = True) -> None:
        assert self.ask(Operation.TRANSACTION_END, "T" if commit else "F", tx=tx) == b"OK\0"

    def watch(self, path: str, token: str = "t") -> None:
        assert self.ask(Operation.WATCH, path, token) == b"OK\0"

    def unwatch(self, path: str, token: str = "t") -> None:
        assert self.ask(Operation.UNWATCH, path, token) == b"OK\0"


@contextmanager
def refused(name: str) -> Iterator[None]:
    with pytest.raises(Refusal, match=f"^{re.escape(name)}$"):
        yield
