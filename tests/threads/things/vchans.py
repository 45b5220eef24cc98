"""Vchans, in each of their waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from xengrant import vchan

from .thing import LONG, Domains, Thing, at_it

__all__ = ["vchan_connect", "vchan_read", "vchan_recv", "vchan_turn", "vchan_write"]


def _vchan_thing(
    end: vchan.Vchan, other: vchan.Vchan, wait: Callable[[], object], finish: Callable[[], object]
) -> Thing:
    def check() -> None:
        assert end.is_open
        assert other.is_open

    return Thing(
        wait,
        finish,
        check,
        {
            "Vchan.read": lambda: end.read(1, 0),
            "Vchan.recv": lambda: end.recv(1, 0),
            "Vchan.readinto": lambda: end.readinto(bytearray(1), 0),
            "Vchan.fill": lambda: end.fill(bytearray(1), 0),
            "Vchan.peek": lambda: end.peek(0),
            "Vchan.consume": lambda: end.consume(0),
            "Vchan.write": lambda: end.write(b"child", 0),
            "Vchan.write, other end": lambda: other.write(b"child", 0),
            "Vchan.send": lambda: end.send(b"child", 0),
            "Vchan.reserve": lambda: end.reserve(0),
            "Vchan.commit": lambda: end.commit(0),
            "Vchan.wait": lambda: end.wait(0),
            "Vchan.wait for ever": end.wait,
            "Vchan.wait_drained": lambda: end.wait_drained(0),
            "Vchan.data_ready": end.data_ready,
            "Vchan.buffer_space": end.buffer_space,
            "Vchan.is_open": lambda: end.is_open,
            "Vchan.fileno": end.fileno,
            "with vchan": end.__enter__,
        },
        [end.close, other.close],
    )


@contextmanager
def _vchan(there: Domains, path: str) -> Iterator[tuple[vchan.Vchan, vchan.Vchan]]:
    with (
        vchan.serve(2, path, read_size=4096, write_size=4096, domain=there.one) as server,
        vchan.connect(1, path, timeout=LONG, domain=there.two) as client,
    ):
        server.wait_connected(LONG)
        yield server, client


@contextmanager
def vchan_read(there: Domains) -> Iterator[Thing]:
    """A vchan that is read from while it is empty, with no deadline."""
    with _vchan(there, "read") as (server, client):

        def wait() -> None:
            assert client.read(100) == b"the parent's"

        yield _vchan_thing(client, server, wait, lambda: server.write(b"the parent's"))


@contextmanager
def vchan_turn(there: Domains) -> Iterator[Thing]:
    """A vchan that is read from while another thread does, whose turn comes first."""
    with _vchan(there, "turn") as (server, client):

        def read() -> None:
            assert client.read(12) == b"the parent's"

        with at_it(read, lambda: None):
            server_writes = partial(server.write, b"the parent's" * 2)
            yield _vchan_thing(client, server, read, server_writes)


@contextmanager
def vchan_recv(there: Domains) -> Iterator[Thing]:
    """A vchan's server that waits for a whole message, of which a part is there, with a deadline."""
    with _vchan(there, "recv") as (server, client):
        client.write(b"the ")

        def wait() -> None:
            assert server.recv(12, LONG) == b"the parent's"

        yield _vchan_thing(server, client, wait, lambda: client.write(b"parent's"))


@contextmanager
def vchan_write(there: Domains) -> Iterator[Thing]:
    """A vchan that is written to while it is full."""
    with _vchan(there, "write") as (server, client):
        server.write(bytes(4096))

        def finish() -> None:
            assert client.recv(4096, LONG) == bytes(4096)
            assert client.recv(12, LONG) == b"the parent's"

        yield _vchan_thing(server, client, lambda: server.write(b"the parent's", LONG), finish)


@contextmanager
def vchan_connect(there: Domains) -> Iterator[Thing]:
    """A vchan's server that waits for its client."""
    with ExitStack() as held:
        server = held.enter_context(vchan.serve(2, "later", domain=there.one))

        def finish() -> None:
            held.enter_context(vchan.connect(1, "later", timeout=LONG, domain=there.two))

        refused: dict[str, Callable[[], object]] = {
            "Vchan.wait_connected": lambda: server.wait_connected(0),
            "Vchan.hide": server.hide,
        }
        yield Thing(partial(server.wait_connected, LONG), finish, server.data_ready, refused, [server.close])
