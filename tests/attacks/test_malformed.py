"""Clients that send anything: they are dropped or refused, and the machine lives on and does not grow."""

from __future__ import annotations

import array
import errno
import gc
import json
import os
import socket
import struct
import weakref

import pytest

from tests.attacks.raw import connect, hello, is_dropped
from tests.embedded.ioctls import eventually
from xengrant.abi import gntdev
from xengrant.devices import wire
from xengrant.devices.client import Client, ask
from xengrant.devices.wire import Kind
from xengrant.embedded import Machine, connection
from xengrant.errors import InterfaceUnavailable

THROUGH = "bytes on the machine's socket"

TOO_MANY = [(0, 0, wire.Direction.IN, 0, b"")] * (wire.MAX_POINTERS + 1)
DEVICES = ["gntalloc", "gntdev", "evtchn", "privcmd"]


def serves(machine: Machine) -> bool:
    with hello(machine, "gntalloc", 3):
        return True


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<IB3x", 10, 99) + bytes(10),
        struct.pack("<IB3x", 0xFFFFFFFF, Kind.HELLO),
        struct.pack("<IB3x", wire.MAX_HELLO + 1, Kind.HELLO),
        wire.pack_request(Kind.HELLO, b"\1"),
        wire.pack_request(Kind.IOCTL, bytes(20)),
        wire.pack_request(Kind.MMAP, bytes(32)),
        wire.pack_request(Kind.RELEASE),
        wire.pack_request(Kind.CONTROL, b"{}"),
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=["kind", "huge", "long hello", "short hello", "ioctl", "mmap", "release", "control", "http"],
)
def test_who_does_not_say_hello_properly_is_dropped(machine: Machine, data: bytes) -> None:
    sock = connect(machine)
    sock.sendall(data)
    assert is_dropped(sock)
    assert serves(machine)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (struct.pack("<IHH", 99, 1, 0) + b"gntalloc", "version"),
        (wire.pack_hello(1, "teapot"), "teapot"),
        (wire.pack_hello(0x7FF0, "gntalloc"), "32752"),
        (wire.pack_hello(1, "\N{SNOWMAN}"), "no device"),
    ],
    ids=["version", "device", "domid", "name"],
)
def test_a_wrong_hello_is_answered(machine: Machine, body: bytes, said: str) -> None:
    with connect(machine) as sock:
        sock.sendall(wire.pack_request(Kind.HELLO, body))
        _, result, _ = wire.REPLY.unpack(sock.recv(wire.REPLY.size))
        assert result < 0
        assert said in sock.recv(1000).decode()


@pytest.mark.parametrize("device", [*DEVICES, "control", "xenbus"])
def test_hello_comes_once(machine: Machine, device: str) -> None:
    sock = hello(machine, device)
    sock.sendall(wire.pack_request(Kind.HELLO, wire.pack_hello(1, device)) * 300)
    assert is_dropped(sock) if device != "xenbus" else True
    sock.close()


@pytest.mark.parametrize("device", DEVICES)
def test_wrong_messages_of_every_kind_are_dropped(machine: Machine, device: str) -> None:
    for kind, body in (
        (Kind.IOCTL, b"\1\2\3"),
        (Kind.IOCTL, struct.pack("<III", 1, 0xFFFFFFFF, 0)),
        (Kind.IOCTL, struct.pack("<III", 1, 0, 0xFFFFFFFF)),
        (Kind.IOCTL, struct.pack("<IIIIIIB3x", 1, 0, 1, 0, 0, 0xFFFFFFFF, 2)),  # a pointer to 4 GiB
        (Kind.IOCTL, struct.pack("<IIIIIIB3x", 1, 0, 1, 7, 0, 8, 2)),  # in a holder that does not exist
        (Kind.IOCTL, struct.pack("<IIIIIIB3x", 1, 0, 1, 0, 0, 8, 77)),
        (Kind.MMAP, b""),
        (Kind.MUNMAP, b"\1"),
        (Kind.PREPARE, b"\1"),
        (Kind.CONTROL, b"{}"),
    ):
        sock = hello(machine, device)
        sock.sendall(wire.pack_request(kind, body))
        assert is_dropped(sock)
    assert serves(machine)


@pytest.mark.parametrize(
    "request_",
    [b"", b"{", b"[]", b"1", b'"status"', b"{}", b'{"do": 1}', b'{"do": []}', b'{"do": "shout"}',
     b'{"do": "close"}', b'{"do": "status", "self": 1}', b'{"do": "status", "x": 1}', b'{"do": "destroy"}',
     b'{"do": "destroy", "domid": "1"}', b'{"do": "destroy", "domid": []}', b'{"do": "create", "domid": -1}',
     b'{"do": "create", "domid": 1.5}', b'{"do": "create", "domid": 7, "max_grant_frames": 1e9}',
     b'{"do": "create", "domid": 7, "name": 5}', b'{"do": "create", "domid": true}',
     b'{"do": "kernel_log", "domid": 0, "seconds": "x"}', b'{"do": "kernel_log", "domid": 0, "seconds": NaN}',
     b'{"do": "kernel_log", "domid": 0, "seconds": -1}', b'{"do": "kernel_log", "domid": "\\ud800", "seconds": 1}',
     b'{"do": "parameter", "domid": 0, "module": 5, "name": "limit"}',
     b'{"do": "parameter", "domid": 0, "module": "xen_gntdev", "name": []}',
     b'{"do": "create", "domid": 7, "unmap_delay": 1' + b"0" * 400 + b"}",
     b'{"do": "create", "domid": 7, "reclaim_interval": NaN}', b"[" * 60000, b'{"do": "\xff"}'],
)  # fmt: skip
def test_control_requests_that_make_no_sense(machine: Machine, request_: bytes) -> None:
    client = Client(machine.directory, 0, "control")
    assert client._request(Kind.CONTROL, request_).result < 0
    assert json.loads(client.request(Kind.CONTROL, b'{"do": "status"}').body)["pid"] == os.getpid()
    client.close()
    assert list(machine.status()["domains"]) == [0, 1, 2, 3]


@pytest.mark.parametrize("seconds", [b"1" + b"0" * 400, b"1e999", b"Infinity"], ids=["integer", "float", "infinity"])
def test_the_kernels_log_of_all_time(machine: Machine, seconds: bytes) -> None:
    client = Client(machine.directory, 0, "control")
    assert client.request(Kind.CONTROL, b'{"do": "kernel_log", "domid": 0, "seconds": ' + seconds + b"}").body == b"[]"
    client.close()


def test_a_long_control_request_is_dropped(machine: Machine) -> None:
    sock = hello(machine, "control")
    sock.sendall(struct.pack("<IB3x", wire.MAX_CONTROL + 1, Kind.CONTROL))
    assert is_dropped(sock)


def test_a_client_that_takes_no_answers_is_not_read_any_more(machine: Machine) -> None:
    """Requests whose answers are much longer than themselves."""
    sock = hello(machine, "control")
    sock.settimeout(0.5)
    request = wire.pack_request(Kind.CONTROL, b'{"do": "status"}')
    sent = 0
    try:
        while sent < 64 << 20:
            sent += sock.send(request * 100)
    except TimeoutError:
        pass
    assert sent < 8 << 20
    assert serves(machine)
    (stream,) = [c.stream for c in machine._server._connections if c.device == "control"]
    assert stream.pending < 1 << 20
    sock.close()


def test_half_a_message_waits_and_harms_nobody(machine: Machine) -> None:
    halves = []
    for _ in range(20):
        sock = hello(machine, "gntalloc")
        sock.sendall(struct.pack("<IB3x", 1000, Kind.IOCTL) + b"x" * 500)
        halves.append(sock)
    assert serves(machine)
    for sock in halves:
        sock.close()


def test_half_a_message_is_not_waited_for_for_ever(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_MESSAGE_TIMEOUT", 0.05)
    sock = hello(machine, "gntalloc")
    sock.sendall(struct.pack("<IB3x", 1000, Kind.IOCTL) + b"x" * 500)
    assert is_dropped(sock)


def test_what_a_client_sent_is_forgotten_when_it_ends(machine: Machine) -> None:
    gc.collect()
    gc.disable()
    try:
        with hello(machine, "gntalloc") as sock:
            sock.sendall(struct.pack("<IB3x", 1 << 20, Kind.IOCTL) + b"x" * 500_000)
            (there,) = map(weakref.ref, machine._server._connections)
        eventually(lambda: there() is None, "the connection's memory is free without a collection of garbage")
    finally:
        gc.enable()


def test_connections_are_limited(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_OF_DOMAIN", 2)
    monkeypatch.setattr(connection, "MAX_CONNECTIONS", 3)
    clients = [Client(machine.directory, domid, "gntdev") for domid in (1, 1, 2)]
    for domid, text in ((3, "machine serves 3"), (1, "machine serves 3")):
        with pytest.raises(InterfaceUnavailable, match=text):
            Client(machine.directory, domid, "gntdev")
    clients.pop().close()
    eventually(lambda: machine._server.count() == 2, "the connection has ended")
    with pytest.raises(InterfaceUnavailable, match="domain 1 has 2 connections") as caught:
        Client(machine.directory, 1, "gntdev")
    assert caught.value.errno == errno.EMFILE
    assert ask(machine.directory, "status")["pid"] == os.getpid()
    for client in clients:
        client.close()


def test_a_message_in_single_bytes_is_understood(machine: Machine) -> None:
    with connect(machine) as sock:
        for byte in wire.pack_request(Kind.HELLO, wire.pack_hello(1, "gntalloc")) + wire.pack_request(Kind.RELEASE):
            sock.send(bytes([byte]))
        with sock.makefile("rb") as replies:
            assert replies.read() == wire.pack_reply(0) * 2


def test_a_client_that_lies_about_its_batch_of_descriptors(machine: Machine) -> None:
    """Ancillary data that is no descriptors at all."""
    sock = hello(machine, "gntdev")
    sock.sendmsg([wire.pack_request(Kind.MUNMAP)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", []))])
    assert len(sock.recv(wire.REPLY.size)) == wire.REPLY.size
    sock.close()


def test_an_ioctl_with_too_many_pointers_is_refused(machine: Machine) -> None:
    client = Client(machine.directory, 1, "gntdev")
    with pytest.raises(OSError, match=f"{wire.MAX_POINTERS + 1} pointers") as caught:
        client.request(Kind.IOCTL, wire.pack_ioctl(1, bytearray(8), TOO_MANY))
    assert caught.value.errno == errno.ENOMEM
    with pytest.raises(OSError, match="no such ioctl"):
        client.request(Kind.IOCTL, wire.pack_ioctl(1, bytearray(8), TOO_MANY[1:]))
    client.close()


def test_a_copy_of_too_many_segments_is_refused_before_it_begins(machine: Machine) -> None:
    client = Client(machine.directory, 1, "gntdev")
    segment = gntdev.pack_segment((8, 0, 1), (8, 0, 1), 1)

    def request(count: int) -> bytes:
        table = bytes(segment * count)
        pointer = (0, gntdev.COPY_SEGMENTS_POINTER, wire.Direction.INOUT, len(table), table)
        return wire.pack_ioctl(gntdev.GRANT_COPY, gntdev.pack_copy(count), [pointer])

    with pytest.raises(OSError, match=f"at most {wire.MAX_SEGMENTS} are copied") as caught:
        client.request(Kind.IOCTL, request(wire.MAX_SEGMENTS + 1))
    assert caught.value.errno == errno.ENOMEM
    assert client.request(Kind.IOCTL, request(wire.MAX_SEGMENTS)).result == 0
    client.close()


def test_ask_tells_what_is_wrong(machine: Machine) -> None:
    with pytest.raises(OSError, match="there is no domain 9"):
        ask(machine.directory, "destroy", domid=9)
    with pytest.raises(OSError, match="lifetime"):
        ask(machine.directory, "create", domid=9, lifetime="x")
    ask(machine.directory, "create", domid=9, lifetime="hvm")
    assert ask(machine.directory, "status")["domains"]["9"]["lifetime"] == "hvm"
    ask(machine.directory, "destroy", domid=9)
