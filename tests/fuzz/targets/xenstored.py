"""xenstore's own protocol, to an embedded machine: through xenbus as guests 1 and 2, and on the socket of Xen's tools.

Every answer is looked at: its type is the request's or ERROR with a name that is one, in the order of the requests.
Afterwards a third guest has what it wrote, which the others may not read, and no watch or transaction is left.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections import deque
from collections.abc import Iterator
from random import Random

import xengrant
from xengrant.abi import xs_wire
from xengrant.abi.xs_wire import Operation
from xengrant.devices import wire
from xengrant.devices.wire import Kind
from xengrant.embedded import Machine

from ..target import Step, Steps, Target, data, eventually, number, text
from .machine import machine_with

__all__ = ["Xenstored"]

_SLOTS = 3
_HONEST = 3
_TOOLS = 0  # the domid that stands for the socket of Xen's tools
_ANSWER = 20.0
_SECRET = b"not for others"

_PATHS = [
    *("data", "data/a", "data/a/b", "/local/domain/1/data", "/local/domain/2/data/x", "/local/domain/3/data/secret"),
    *("/", "/local", "/local/domain", "/local/domain/1", "@releaseDomain", "@introduceDomain", "/tool/x", ""),
    *("data/", "//", "data//a", "x" * 2100, "/" + "x" * 3100, "da ta", "\xff", ".."),
]
_WORDS = ["1", "0", "T", "F", "n1", "r2", "b1", "w0", "n65536", "token", "5", "5x", "4294967295", "-1", "x", "T" * 5000]
_OPERATIONS = [int(operation) for operation in Operation]


_BY_NUMBER = {Operation.GET_DOMAIN_PATH, Operation.IS_DOMAIN_INTRODUCED, Operation.TRANSACTION_END}


def _strings(chance: Random, operation: int) -> list[str]:
    """What the operation takes, more or less; or anything."""
    words = [chance.choice(_WORDS) for _ in range(chance.choice((0, 0, 1, 1, 2, 6)))]
    if chance.randrange(4) and operation in _BY_NUMBER:
        return [chance.choice(_WORDS)]
    return [chance.choice(_PATHS), *words] if chance.randrange(6) else words


class _Client:
    def __init__(self, machine: Machine, domid: int) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_ANSWER)
        self._asked: deque[tuple[int, int]] = deque()
        self._splitter = xs_wire.Splitter()
        self.strict = True
        self.transactions: list[int] = []
        if domid == _TOOLS:
            self.sock.connect(machine.xenstored_path)
            return
        self.sock.connect(f"{machine.directory}/{wire.MACHINE_SOCKET}")
        self.sock.sendall(wire.pack_request(Kind.HELLO, wire.pack_hello(domid, "xenbus")))
        answer = self.sock.recv(wire.REPLY.size, socket.MSG_WAITALL)
        assert answer == wire.pack_reply(0), answer

    def ask(self, operation: int, request_id: int, transaction: int, payload: bytes) -> None:
        """A request of the format; one that is too long, or a broken one before it, has the connection ended."""
        self._asked.append((operation, request_id))
        if len(payload) > xs_wire.PAYLOAD_MAX:
            self.loosen()
        self.send(xs_wire.pack_message(operation, request_id, transaction, payload))
        if self.strict:
            self._wait()

    def send(self, sent: bytes) -> None:
        with contextlib.suppress(ConnectionError, BlockingIOError):
            if self.strict:
                self.sock.sendall(sent)
            else:
                self.sock.send(sent)

    def loosen(self) -> None:
        """From now on nothing is waited for."""
        self.strict = False
        self.sock.setblocking(False)

    def drain(self) -> None:
        with contextlib.suppress(OSError):
            while select.select([self.sock], [], [], 0)[0] and self._receive():
                pass

    def _wait(self) -> None:
        deadline = time.monotonic() + _ANSWER
        while self._asked:
            assert time.monotonic() < deadline, "no answer"
            assert self._receive(), "xenstored ended a connection that kept to the format"

    def _receive(self) -> bool:
        try:
            got = self.sock.recv(1 << 16)
        except ConnectionError:
            got = b""
        self._splitter.feed(got)
        while (message := self._splitter.next()) is not None:
            self._check(message)
        return bool(got)

    def _check(self, message: xs_wire.Message) -> None:
        if message.operation == Operation.WATCH_EVENT:
            assert len(xs_wire.unpack_strings(message.payload)) == 2, message
            return
        if not self.strict:
            return
        operation, request_id = self._asked.popleft()
        assert message.request_id == request_id, (message, request_id)
        if message.operation == Operation.ERROR:
            xs_wire.unpack_error(message.payload)
            return
        assert message.operation == operation, (message, operation)
        assert _SECRET not in message.payload, message
        if operation == Operation.TRANSACTION_START:
            self.transactions.append(int(message.payload.rstrip(b"\0")))


class Xenstored(Target):
    name = "xenstored"
    about = "the embedded machine's xenstore, through xenbus and on the socket of Xen's tools"
    guides = ("embedded/xenstore", "abi/xs_wire.py")
    short = 80

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        self._machine = self._made()
        yield
        self._machine.close()

    def first(self, chance: Random) -> Steps:
        return [
            ["open", 0, chance.choice((1, 2))],
            ["open", 1, chance.choice((1, 2)) if chance.randrange(12) else _TOOLS],
        ]

    def step(self, chance: Random) -> Step:
        slot = chance.randrange(_SLOTS)
        kind = chance.randrange(12)
        if kind < 8:
            transaction = chance.choice((0, 0, -1, -1, -2, number(chance, 0xFFFFFFFF)))
            operation = chance.choice((*_OPERATIONS, *_OPERATIONS, number(chance, 0xFFFFFFFF)))
            return ["ask", slot, operation, transaction, _strings(chance, operation), chance.randrange(5) > 0]
        if kind == 8:
            said = chance.choice((0, 10, 4096, 4097, number(chance, 0xFFFFFFFF)))
            return ["header", slot, chance.choice(_OPERATIONS), said, text(chance.randbytes(chance.randrange(40)))]
        if kind == 9:
            return ["raw", slot, text(chance.randbytes(chance.randrange(30)))]
        if kind == 10:
            return ["open", slot, chance.choice((1, 2)) if chance.randrange(30) else _TOOLS]
        last: list[Step] = [["close", slot], ["read", slot], ["many", slot, chance.choice(_OPERATIONS), 200]]
        return chance.choice(last)

    def run(self, steps: Steps) -> None:
        slots: dict[int, _Client] = {}
        trusted = False
        try:
            for at, step in enumerate(steps):
                trusted |= self._do(at, step, slots)
        finally:
            for client in slots.values():
                client.sock.close()
        if trusted:  # dom0 may do anything
            self._machine.close()
            self._machine = self._made()
        else:
            self._check()

    def _do(self, at: int, step: Step, slots: dict[int, _Client]) -> bool:
        """Whether it was dom0's."""
        kind, slot, *rest = step
        slot %= _SLOTS
        if kind == "open":
            if slot in slots:
                slots.pop(slot).sock.close()
            domid = rest[0] if rest[0] in (1, 2, _TOOLS) else 1
            slots[slot] = _Client(self._machine, domid)
            return domid == _TOOLS
        client = slots.get(slot)
        if client is None:
            return False
        if kind == "ask":
            operation, transaction, strings, ended = rest
            payload = b"\0".join(map(data, strings)) + b"\0" * ended
            if transaction < 0:
                transaction = client.transactions[transaction % len(client.transactions)] if client.transactions else 0
            client.ask(operation & 0xFFFFFFFF, at, transaction & 0xFFFFFFFF, payload)
        elif kind == "many":  # which are not read until later
            client.loosen()
            message = xs_wire.pack_message(rest[0] & 0xFFFFFFFF, 1, 0, b"data\0token\0")
            client.send(message * (rest[1] % 1000))
        elif kind == "close":
            slots.pop(slot).sock.close()
        elif kind == "read":
            client.drain()
        elif kind in ("header", "raw"):
            client.loosen()
            head = xs_wire.pack_message(rest[0] & 0xFFFFFFFF, 0, 0, b"")[:12] if kind == "header" else b""
            client.send(head + ((rest[1] & 0xFFFFFFFF).to_bytes(4, "little") if head else b"") + data(rest[-1]))
        return False

    def _made(self) -> Machine:
        machine = machine_with(1, 2, _HONEST)
        with xengrant.connect(machine.url(_HONEST)) as domain, domain.xenstore() as store:
            store.write("data/secret", _SECRET)
        return machine

    def _check(self) -> None:
        with xengrant.connect(self._machine.url(_HONEST)) as domain, domain.xenstore() as store:
            assert store.read("data/secret", timeout=_ANSWER) == _SECRET
            name = f"data/{os.getpid()}"
            with store.watch(name, timeout=_ANSWER) as watch:
                watch.wait(_ANSWER)
                store.write(name, b"honest", timeout=_ANSWER)
                watch.wait(_ANSWER)
            store.rm(name, timeout=_ANSWER)
        server = self._machine._server
        eventually(lambda: not server.store.connections, lambda: f"connections are left: {server.store.connections}")
