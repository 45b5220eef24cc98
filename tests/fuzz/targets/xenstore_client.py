"""The xenstore client, blocking and for asyncio, against a server that lies: on a socket pair, answered as it writes.

Each call has the lies that its requests are answered with, one each; the last one serves for all that come after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from tests.xenstore.store_server import SocketDevice
from xengrant.abi import xs_wire
from xengrant.abi.xs_wire import Operation, Permission
from xengrant.errors import GrantError
from xengrant.xenstore import AsyncXenStore, XenStore

from ..target import Step, Steps, Target, data, number, quick, text

__all__ = ["AsyncXenstoreClient", "XenstoreClient"]

_SOON = 0.01  # seconds that a call waits
_PAYLOADS = [
    *("", "\0", "1\0", "7", "OK\0", "T\0", "F\0", "a\0b\0c\0", "a\0\xff\0", "r1\0n2\0", "x1\0", "r99999\0"),
    *("3\0a\0\0", "3\0a\0", "4\0b\0", "/local/domain/1\0", "0", "4294967296", "01", "a/b\0", "\xb2\0"),
]
_ERRORS = [*xs_wire.ERRORS, "EQUOTA", "E", "EEVIL", "errno", "ENOENT\0\0", "\xff", ""]
_PATHS = ["data", "/local/domain/2/x", "@releaseDomain", "a//b", "", "/", "é", "x" * 2049]
_GOOD = _PATHS[:2]
_CALLS = ["read", "write", "directory", "exists", "mkdir", "rm", "permissions", "chmod", "home", "introduced"]
_CALLS += ["watch", "wait", "unwatch", "transaction", "run"]
_NAME = re.compile(r"[A-Za-z0-9_@-]+")


class _Liar(SocketDevice):
    """The client's device; what it writes is answered at once by the lies that are due."""

    def __init__(self) -> None:
        ours, self._theirs = socket.socketpair()
        super().__init__(ours)
        self._theirs.setblocking(False)
        self._splitter = xs_wire.Splitter()
        self._unanswered: list[xs_wire.Message] = []
        self.lies: list[Step] = []
        self.requests = 0

    def write(self, data: bytes) -> int:
        self._check_open()
        self._splitter.feed(data)
        while (message := self._splitter.next()) is not None:
            self.requests += 1
            lie = self.lies.pop(0) if len(self.lies) > 1 else self.lies[0] if self.lies else ["true", "OK\0"]
            self._answer(message, *lie)
        return len(data)

    def close(self) -> None:
        super().close()
        self._theirs.close()

    def say(self, said: bytes) -> None:
        """As much as there is room for, which is what a stream takes."""
        with contextlib.suppress(OSError):
            self._theirs.send(said)

    def _answer(self, asked: xs_wire.Message, kind: str, *rest: Any) -> None:
        operation, request_id, transaction, _ = asked
        if kind == "true":
            self.say(xs_wire.pack_message(operation, request_id, transaction, data(rest[0], 4096)))
        elif kind == "error":
            self.say(xs_wire.pack_message(Operation.ERROR, request_id, transaction, data(rest[0], 4096) + b"\0"))
        elif kind == "id":
            self.say(
                xs_wire.pack_message(operation, request_id + rest[0] & 0xFFFFFFFF, transaction, data(rest[1], 4096))
            )
        elif kind == "type":
            self.say(xs_wire.pack_message(rest[0] & 0xFFFFFFFF, request_id, transaction, data(rest[1], 4096)))
        elif kind == "length":
            head = xs_wire.pack_message(operation, request_id, transaction, b"")[:12]
            self.say(head + (rest[0] & 0xFFFFFFFF).to_bytes(4, "little") + data(rest[1]))
        elif kind == "event":
            payload = data(rest[0], 4000)
            count = rest[1] % 2000
            self.say(xs_wire.pack_message(Operation.WATCH_EVENT, 0, 0, payload) * count)
            self.say(xs_wire.pack_message(operation, request_id, transaction, data(rest[2], 4096)))
        elif kind == "late":
            self._unanswered.append(asked)
        elif kind == "turned":  # the latest first
            for late in (asked, *reversed(self._unanswered)):
                self.say(xs_wire.pack_message(late.operation, late.request_id, 0, data(rest[0], 4096)))
            self._unanswered.clear()
        elif kind == "twice":
            self.say(xs_wire.pack_message(operation, request_id, transaction, data(rest[0], 4096)) * 2)
        elif kind == "raw":
            self.say(data(rest[0]))
        elif kind == "end":
            self.say(xs_wire.pack_message(operation, request_id, transaction, b"OK\0")[: rest[0] % 20])
            with contextlib.suppress(OSError):
                self._theirs.shutdown(socket.SHUT_WR)


def _lie(chance: Random) -> Step:
    payload = chance.choice(_PAYLOADS)
    token = chance.choice(("xengrant-1", "xengrant-2", "token", ""))
    path = chance.choice(("data", "data/x", "/", "@releaseDomain", "\x1b[2J", "x" * 3000, ""))
    lies: list[Step] = [
        ["true", payload],
        ["true", payload],
        ["true", payload],
        ["error", chance.choice(_ERRORS)],
        ["error", chance.choice(("EAGAIN", "E2BIG", "EACCES", "ENOSPC", "ENOENT"))],
        ["id", chance.choice((-1, 1, 5)), payload],
        ["type", chance.choice((*map(int, Operation), number(chance, 0xFFFFFFFF))), payload],
        ["length", chance.choice((4096, 4097, number(chance, 0xFFFFFFFF))), payload],
        ["event", f"{path}\0{token}\0", chance.choice((1, 1, 1500)), payload],
        ["event", chance.choice(("", "\0", "data", "data\0token", "\0\0\0\0")), 1, payload],
        ["late"],
        ["turned", payload],
        ["twice", payload],
        ["raw", text(chance.randbytes(chance.randrange(40)))],
        ["end", chance.randrange(20)],
    ]
    return chance.choice(lies)


class XenstoreClient(Target):
    name = "xenstore-client"
    about = "the blocking xenstore client against a server that lies"
    guides = ("xenstore", "waiting.py", "abi/xs_wire.py")
    short = 100

    def step(self, chance: Random) -> Step:
        lies = [_lie(chance) for _ in range(chance.choice((1, 1, 1, 2, 4)))]
        return [chance.choice(_CALLS), chance.choice(_PATHS[:3] if chance.randrange(3) else _PATHS), lies]

    def run(self, steps: Steps) -> None:
        liar = _Liar()
        watches: list[Any] = []
        with XenStore(liar) as store:
            for name, path, lies in steps:
                before = liar.requests
                liar.lies = list(lies)
                with quick(f"{name} of {path[:40]!r}"), contextlib.suppress(*_errors(path)):
                    _check(name, self._call(store, watches, name, str(path)))
                assert liar.requests - before < 10_000, "it goes on asking"
                _check_books(store, watches)
        assert not store

    def _call(self, store: XenStore, watches: list[Any], name: str, path: str) -> Any:
        if name == "watch":
            watches.append(store.watch(path, timeout=_SOON))
        elif name == "wait":
            return watches[-1].wait(_SOON) if watches else None
        elif name == "unwatch":
            return watches.pop().close() if watches else None
        elif name == "transaction":
            with store.transaction(timeout=_SOON) as transaction:
                return transaction.read(path, timeout=_SOON)
        elif name == "run":
            return store.run_transaction(lambda one: one.read(path, timeout=_SOON), attempts=2, timeout=_SOON)
        calls: dict[str, Callable[[], Any]] = {
            "read": lambda: store.read(path, timeout=_SOON),
            "write": lambda: store.write(path, b"value", timeout=_SOON),
            "directory": lambda: store.directory(path, timeout=_SOON),
            "exists": lambda: store.exists(path, timeout=_SOON),
            "mkdir": lambda: store.mkdir(path, timeout=_SOON),
            "rm": lambda: store.rm(path, timeout=_SOON),
            "permissions": lambda: store.get_permissions(path, timeout=_SOON),
            "chmod": lambda: store.set_permissions(path, [Permission(1, "n")], timeout=_SOON),
            "home": lambda: store.get_domain_path(1, timeout=_SOON),
            "introduced": lambda: store.is_domain_introduced(1, timeout=_SOON),
        }
        return calls[name]() if name in calls else None


class AsyncXenstoreClient(XenstoreClient):
    name = "xenstore-asyncio"
    about = "the xenstore client for asyncio against a server that lies"

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        with asyncio.Runner() as self._runner:
            yield

    def run(self, steps: Steps) -> None:
        self._runner.run(self._run(steps))

    async def _run(self, steps: Steps) -> None:
        liar = _Liar()
        watches: list[Any] = []
        async with AsyncXenStore(liar) as store:
            for name, path, lies in steps:
                before = liar.requests
                liar.lies = list(lies)
                with quick(f"{name} of {path[:40]!r}"), contextlib.suppress(*_errors(path)):
                    async with asyncio.timeout(_SOON):
                        _check(name, await self._ask(store, watches, name, str(path)))
                assert liar.requests - before < 10_000, "it goes on asking"
                _check_books(store, watches)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, left

    async def _ask(self, store: AsyncXenStore, watches: list[Any], name: str, path: str) -> Any:
        if name == "watch":
            watches.append(await store.watch(path))
        elif name == "wait":
            return await watches[-1].wait() if watches else None
        elif name == "unwatch":
            return watches.pop().close() if watches else None
        elif name == "transaction":
            async with await store.transaction() as transaction:
                return await transaction.read(path)
        elif name == "run":
            return await store.run_transaction(lambda one: one.read(path), attempts=2)
        elif name == "write":
            return await store.write(path, b"value")
        elif name == "chmod":
            return await store.set_permissions(path, [Permission(1, "n")])
        elif name in ("home", "introduced"):
            return await (store.get_domain_path(1) if name == "home" else store.is_domain_introduced(1))
        elif name in _CALLS:
            return await getattr(store, "get_permissions" if name == "permissions" else name)(path)
        return None


def _errors(path: str) -> tuple[type[Exception], ...]:
    """What a call may raise; ValueError only for a path that may not be one."""
    return (GrantError, TimeoutError) if path in _GOOD else (GrantError, TimeoutError, ValueError)


def _check(name: str, answer: Any) -> None:
    """What came of a lie is of the right type, and no name or path is one that could not be."""
    if name == "directory":
        assert all(_NAME.fullmatch(one) for one in answer), answer
    elif name == "permissions":
        assert answer, "no owner"
        assert all(0 <= one.domid <= 99999 and one.access in "nrwb" for one in answer), answer
    elif name in ("wait", "home") and answer is not None:
        assert answer.isascii(), answer
        assert answer.isprintable(), answer
    elif name in ("read", "transaction", "run"):
        assert isinstance(answer, bytes)
        assert len(answer) <= xs_wire.PAYLOAD_MAX
    elif name in ("exists", "introduced"):
        assert answer in (True, False)


def _check_books(store: XenStore | AsyncXenStore, watches: list[Any]) -> None:
    """No server has the client remember without bound."""
    codec = store._codec
    assert all(len(events._pending) <= 1024 for events in codec._watches.values())
    assert len(codec._watches) <= len(watches) + 1
