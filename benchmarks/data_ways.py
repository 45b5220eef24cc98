"""The ways in which `benchmarks.data` hands arrays, tables and objects over: one context manager for each end of each.

What it gives is called once for each message. The end that hands over returns when the other one has said that it has
read one byte of each page.
"""

from __future__ import annotations

import pickle
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

import numpy
import pyarrow

import xengrant
from xengrant import Permission, data, vchan

__all__ = ["SOON", "WAYS", "Place", "Way"]

SOON = 60.0
PAGE = 4096
RING = 1 << 20

Hand = Callable[[], None]
"""Hands one message over, or at the other end takes it."""


@dataclass(frozen=True)
class Place:
    """Where one end is: its domain, the other's domid, and a directory for sockets."""

    domain: xengrant.Domain
    peer: int
    directory: str


# Arrays


def array_of(size: int) -> numpy.ndarray[Any, Any]:
    return numpy.arange(size // 8, dtype="<i8")


def look(array: numpy.ndarray[Any, Any]) -> int:
    """Read one byte of each page."""
    return int(array.view("u1")[::PAGE].sum())


@contextmanager
def port_of(place: Place, name: str, *, offers: bool) -> Iterator[xengrant.Port]:
    """One end of an event channel; its number goes through xenstore."""
    with place.domain.evtchn() as channels, place.domain.xenstore() as store:
        if offers:
            with channels.bind_unbound(place.peer) as port:
                store.write(f"data/{name}", str(port.number).encode())
                store.set_permissions(f"data/{name}", [Permission(1, "n"), Permission(place.peer, "r")])
                yield port
            return
        number = int(store.read(f"/local/domain/{place.peer}/data/{name}"))
        with channels.bind_interdomain(place.peer, number) as port:
            with suppress(TimeoutError):
                port.wait(timeout=0.2)  # the first one is spurious
            yield port


@contextmanager
def pages_out(place: Place, size: int, *, fills: bool) -> Iterator[Hand]:
    """Pages that stay mapped, into which each array is copied, or computed in place."""
    name, source = ("filled" if fills else "in-place"), array_of(size)
    with (
        data.new_array(place.domain, place.peer, len(source), "<i8", f"data/{name}", writable=False) as shared,
        port_of(place, f"{name}-port", offers=True) as port,
    ):

        def hand() -> None:
            if fills:
                shared.array[:] = source
            port.notify()
            port.wait(SOON)

        yield hand


@contextmanager
def pages_in(place: Place, size: int, *, fills: bool) -> Iterator[Hand]:
    name = "filled" if fills else "in-place"
    with (
        data.map_array(place.domain, place.peer, f"data/{name}", writable=False, timeout=SOON) as mapped,
        port_of(place, f"{name}-port", offers=False) as port,
    ):

        def hand() -> None:
            port.wait(SOON)
            look(mapped.array)
            port.notify()

        yield hand


@contextmanager
def cycle_out(place: Place, size: int, *, table: bool) -> Iterator[Hand]:
    """Shared, advertised, found, mapped and given back again for each message."""
    name = "table" if table else "array"
    array, whole = array_of(size), table_of(size)
    with port_of(place, f"{name}-port", offers=True) as port:

        def hand() -> None:
            shared: data.SharedTable | data.SharedArray
            if table:
                shared = data.share_table(place.domain, place.peer, whole, f"data/{name}")
            else:
                shared = data.share_array(place.domain, place.peer, array, f"data/{name}", writable=False)
            with shared:
                port.notify()
                port.wait(SOON)

        yield hand


@contextmanager
def cycle_in(place: Place, size: int, *, table: bool) -> Iterator[Hand]:
    name = "table" if table else "array"
    with port_of(place, f"{name}-port", offers=False) as port:

        def hand() -> None:
            port.wait(SOON)
            if table:
                with data.map_table(place.domain, place.peer, f"data/{name}", timeout=SOON) as found:
                    look_at_table(found.table)
            else:
                with data.map_array(place.domain, place.peer, f"data/{name}", writable=False, timeout=SOON) as mapped:
                    look(mapped.array)
            port.notify()

        yield hand


# Sockets


@contextmanager
def listener(place: Place, name: str, family: str) -> Iterator[Callable[[], socket.socket]]:
    """Gives the socket that the other end has connected."""
    if family == "unix":
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(f"{place.directory}/{name}")
    else:
        listening = socket.create_server(("127.0.0.1", 0))
        with open(f"{place.directory}/{name}", "w") as file:
            file.write(str(listening.getsockname()[1]))
    with listening, ExitStack() as open_ones:
        listening.listen()
        found: list[socket.socket] = []

        def accepted() -> socket.socket:
            if not found:
                found.append(open_ones.enter_context(listening.accept()[0]))
                if family == "tcp":
                    found[0].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return found[0]

        yield accepted


def connected(place: Place, name: str, family: str) -> socket.socket:
    if family == "unix":
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(f"{place.directory}/{name}")
        return sock
    with open(f"{place.directory}/{name}") as file:
        sock = socket.create_connection(("127.0.0.1", int(file.read())))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


@contextmanager
def socket_out(place: Place, size: int, *, family: str) -> Iterator[Hand]:
    """dtype and shape in a small pickle, and the array's bytes behind it."""
    source = array_of(size)
    with listener(place, f"array-{family}", family) as accepted:

        def hand() -> None:
            sock = accepted()
            head = pickle.dumps((source.dtype.str, source.shape))
            sock.sendall(struct.pack("<I", len(head)) + head)
            sock.sendall(source.data)
            sock.recv(1)

        yield hand


@contextmanager
def socket_in(place: Place, size: int, *, family: str) -> Iterator[Hand]:
    with connected(place, f"array-{family}", family) as sock:

        def hand() -> None:
            length = struct.unpack("<I", fill(sock, bytearray(4)))[0]
            dtype, shape = pickle.loads(fill(sock, bytearray(length)))
            array = numpy.empty(shape, dtype)
            fill(sock, array)
            look(array)
            sock.send(b"!")

        yield hand


def fill(sock: socket.socket, memory: Any) -> Any:
    view = memoryview(memory).cast("B")
    while len(view):
        view = view[sock.recv_into(view) :]
    return memory


# Tables


def table_of(size: int) -> pyarrow.Table:
    rows = size // 16
    return pyarrow.table({"frame": numpy.arange(rows), "level": numpy.linspace(0.0, 1.0, rows)})


def look_at_table(table: pyarrow.Table) -> None:
    for column in table.columns:
        for chunk in column.chunks:
            look(chunk.to_numpy())


@contextmanager
def table_out(place: Place, size: int, *, family: str) -> Iterator[Hand]:
    """Arrow's own IPC stream over a socket."""
    table = table_of(size)
    with listener(place, f"table-{family}", family) as accepted:

        def hand() -> None:
            sock = accepted()
            with sock.makefile("wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
                writer.write(table)
            sock.recv(1)

        yield hand


@contextmanager
def table_in(place: Place, size: int, *, family: str) -> Iterator[Hand]:
    with connected(place, f"table-{family}", family) as sock, sock.makefile("rb") as file:

        def hand() -> None:
            look_at_table(pyarrow.ipc.open_stream(file).read_all())
            sock.send(b"!")

        yield hand


@contextmanager
def rewritten_out(place: Place, size: int) -> Iterator[Hand]:
    """Pages that stay mapped, into which Arrow writes each table; the other end's columns look into them."""
    table = table_of(size)
    with (
        data.share_table(place.domain, place.peer, table, "data/rewritten") as shared,
        port_of(place, "rewritten-port", offers=True) as port,
    ):

        def hand() -> None:
            sink = pyarrow.FixedSizeBufferWriter(pyarrow.py_buffer(shared.share.mapping))
            with sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
                writer.write(table)
            port.notify()
            port.wait(SOON)

        yield hand


@contextmanager
def rewritten_in(place: Place, size: int) -> Iterator[Hand]:
    with (
        data.map_table(place.domain, place.peer, "data/rewritten", timeout=SOON) as mapped,
        port_of(place, "rewritten-port", offers=False) as port,
    ):

        def hand() -> None:
            port.wait(SOON)
            look_at_table(mapped.table)
            port.notify()

        yield hand


# Objects


def object_of(size: int) -> dict[str, Any]:
    return {"step": 7, "labels": ["a", "b"], "weights": array_of(size)}


@contextmanager
def vchan_out(place: Place, size: int) -> Iterator[Hand]:
    """`send_object`: pickle 5, its buffers beside it."""
    value = object_of(size)
    with vchan.serve(place.peer, "objects", domain=place.domain, read_size=PAGE, write_size=RING) as end:

        def hand() -> None:
            data.send_object(end, value, SOON)
            end.recv(1)

        yield hand


@contextmanager
def vchan_in(place: Place, size: int) -> Iterator[Hand]:
    with vchan.connect(place.peer, "objects", domain=place.domain, timeout=SOON) as end:

        def hand() -> None:
            look(data.recv_object(end, SOON)["weights"])
            end.send(b"!")

        yield hand


@contextmanager
def connection_out(place: Place, size: int, *, family: str) -> Iterator[Hand]:
    """multiprocessing's `Connection.send`: a whole pickle over a socket."""
    value = object_of(size)
    name = f"{place.directory}/object-{family}"
    with Listener(name if family == "unix" else ("127.0.0.1", 0)) as listening, ExitStack() as open_ones:
        if family == "tcp":
            with open(name, "w") as file:
                file.write(str(listening.address[1]))
        found: list[Connection] = []

        def hand() -> None:
            if not found:
                found.append(open_ones.enter_context(listening.accept()))
            found[0].send(value)
            found[0].recv_bytes()

        yield hand


@contextmanager
def connection_in(place: Place, size: int, *, family: str) -> Iterator[Hand]:
    name = f"{place.directory}/object-{family}"
    if family == "tcp":
        with open(name) as file:
            connection = Client(("127.0.0.1", int(file.read())))
    else:
        connection = Client(name)
    with connection:

        def hand() -> None:
            look(connection.recv()["weights"])
            connection.send_bytes(b"!")

        yield hand


@dataclass(frozen=True)
class Way:
    """One way to hand over a kind of thing: its name, both its ends and their options."""

    kind: str
    name: str
    out: Callable[..., AbstractContextManager[Hand]]
    into: Callable[..., AbstractContextManager[Hand]]
    options: dict[str, Any]


WAYS = [
    Way("array", "Unix socket", socket_out, socket_in, {"family": "unix"}),
    Way("array", "TCP, loopback", socket_out, socket_in, {"family": "tcp"}),
    Way("array", "shared anew: share_array, map_array", cycle_out, cycle_in, {"table": False}),
    Way("array", "copied into pages that stay mapped", pages_out, pages_in, {"fills": True}),
    Way("array", "computed in pages that stay mapped", pages_out, pages_in, {"fills": False}),
    Way("table", "Unix socket", table_out, table_in, {"family": "unix"}),
    Way("table", "TCP, loopback", table_out, table_in, {"family": "tcp"}),
    Way("table", "shared anew: share_table, map_table", cycle_out, cycle_in, {"table": True}),
    Way("table", "written into pages that stay mapped", rewritten_out, rewritten_in, {}),
    Way("object", "Unix socket", connection_out, connection_in, {"family": "unix"}),
    Way("object", "TCP, loopback", connection_out, connection_in, {"family": "tcp"}),
    Way("object", "vchan: send_object, recv_object", vchan_out, vchan_in, {}),
]
