"""The socket of an embedded machine: conversations of its devices' format (`devices/wire.py`), bent and broken.

Each step speaks on one of four connections, as domain 1 or 2. A number below 0 stands for one that the machine gave
before: a ref, an index, a port, a cookie. Afterwards everything is given back, and two other domains share a page.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import struct
from collections.abc import Iterator
from random import Random
from struct import Struct

import xengrant
from xengrant.abi import evtchn, gntalloc, gntdev, kernelspace, privcmd
from xengrant.devices import wire
from xengrant.devices.wire import Direction, Kind
from xengrant.embedded import Machine

from ..target import Step, Steps, Target, data, eventually, number, text

__all__ = ["MachineSocket", "honest", "machine_with"]

_DEVICES = ["gntalloc", "gntdev", "evtchn", "privcmd", "xenbus"]
_COSTLY = ["kernel", "control"]  # after which a new machine is needed
_DOMIDS = [1, 2]
_HONEST = (3, 4)
_SLOTS = 4
_ANSWER = 20.0  # seconds
_IOCTL = Struct("<III")  # as in wire.py, for lengths that are not so
_POINTER = Struct("<IIIB3x")

# The arguments of each ioctl: its device, its number, what packs it, how many numbers that takes.
_CALLS = {
    "alloc": ("gntalloc", gntalloc.ALLOC_GREF, Struct("<HHIQ8x"), 4),
    "dealloc": ("gntalloc", gntalloc.DEALLOC_GREF, Struct("<QI4x"), 2),
    "notify": ("gntalloc", gntalloc.SET_UNMAP_NOTIFY, Struct("<QII"), 3),
    "map": ("gntdev", gntdev.MAP_GRANT_REF, Struct("<II8xII"), 4),
    "map2": ("gntdev", gntdev.MAP_GRANT_REF, Struct("<II8xIIII"), 6),
    "unmap": ("gntdev", gntdev.UNMAP_GRANT_REF, Struct("<QI4x"), 2),
    "offset": ("gntdev", gntdev.GET_OFFSET_FOR_VADDR, Struct("<QQI4x"), 3),
    "unmap notify": ("gntdev", gntdev.SET_UNMAP_NOTIFY, Struct("<QII"), 3),
    "virq": ("evtchn", evtchn.BIND_VIRQ, Struct("<I"), 1),
    "bind": ("evtchn", evtchn.BIND_INTERDOMAIN, Struct("<II"), 2),
    "offer": ("evtchn", evtchn.BIND_UNBOUND_PORT, Struct("<I"), 1),
    "unbind": ("evtchn", evtchn.UNBIND, Struct("<I"), 1),
    "send": ("evtchn", evtchn.NOTIFY, Struct("<I"), 1),
    "reset": ("evtchn", evtchn.RESET, Struct(""), 0),
    "restrict": ("evtchn", evtchn.RESTRICT_DOMID, Struct("<H"), 1),
    "resource": ("privcmd", privcmd.MMAP_RESOURCE, Struct("<H2xIIIQQ"), 6),
    "hypercall": ("privcmd", privcmd.HYPERCALL, Struct("<6Q"), 6),
    "pages": ("kernel", kernelspace.ALLOC_PAGES, Struct("<IIQ"), 3),
    "free": ("kernel", kernelspace.FREE_PAGES, Struct("<IIQ"), 3),
    "table": ("kernel", kernelspace.TABLE, Struct("<II"), 2),
    "get port": ("kernel", kernelspace.GET_PORT, Struct("<II"), 2),
    "put port": ("kernel", kernelspace.PUT_PORT, Struct("<II"), 2),
}
_CONTROL = [
    '{"do": "status"}',
    '{"do": "create", "domid": 9, "max_grant_frames": 2}',
    '{"do": "configure", "domid": 1, "gntalloc_limit": 5}',
    '{"do": "destroy", "domid": 9}',
    '{"do": "pause", "domid": 9, "paused": true}',
    '{"do": "parameter", "domid": 1, "module": "xen_gntalloc", "name": "limit"}',
    '{"do": "kernel_log", "domid": 1, "seconds": 1e9}',
]


def machine_with(*domids: int) -> Machine:
    machine = Machine(reclaim_interval=0.01)
    for domid in domids:
        machine.create(domid)
    return machine


def honest(machine: Machine, granter: int, mapper: int) -> None:
    """Two domains that nobody has to do with share a page, send an event, and give both back."""
    with xengrant.connect(machine.url(granter)) as one, xengrant.connect(machine.url(mapper)) as two:
        with one.gntshr() as gntshr, gntshr.share_pages(mapper, 1, writable=True) as share, two.gnttab() as gnttab:
            share.mapping[:6] = b"honest"
            with gnttab.map(xengrant.Grant(granter, share.refs[0]), writable=False) as mapped:
                assert mapped.mapping[:6] == b"honest"
        with (
            one.evtchn() as ones,
            two.evtchn() as twos,
            ones.bind_unbound(mapper) as port,
            twos.bind_interdomain(granter, port.number) as other,
        ):
            other.notify()
            port.wait(_ANSWER)


class _Connection:
    """One socket. `strict` while all that was said on it is of the format, so that each request is answered."""

    def __init__(self, machine: Machine, known: list[int]) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_ANSWER)
        self.sock.connect(f"{machine.directory}/{wire.MACHINE_SOCKET}")
        self.known = known
        self.strict = True

    def send(self, sent: bytes, fds: int = 0) -> None:
        with contextlib.suppress(ConnectionError, BlockingIOError):
            try:
                self.sock.sendmsg([sent], wire.rights([self.sock.fileno()] * fds))
            except PermissionError:  # from Linux 6.16 on: the machine takes no descriptors
                self.sock.sendmsg([sent])

    def ask(self, kind: Kind, body: bytes) -> int | None:
        """The result; None where the machine ended the connection, or nobody knows what it answers."""
        self.send(wire.pack_request(kind, body))
        if not self.strict:
            self.drain()
            return None
        head = self._receive(wire.REPLY.size)
        if head is None:
            return None
        length, result, fds = wire.REPLY.unpack(head)
        assert length <= wire.MAX_BODY
        answer = self._receive(length + max(0, -(-fds // wire.FDS_PER_BATCH) - 1))
        assert answer is not None or length, "the machine ended the connection in the middle of an answer"
        self._learn(result, answer or b"")
        return int(result)

    def hello(self, domid: int, device: str, kernel: bool) -> None:
        body = wire.pack_hello(domid & 0xFFFF, "", kernel=kernel) + data(device)
        if self.ask(Kind.HELLO, body) == 0 and device == "xenbus":  # where xenstore's own protocol begins
            self.loosen()

    def loosen(self) -> None:
        """From now on nothing is waited for."""
        self.strict = False
        self.sock.setblocking(False)

    def drain(self) -> None:
        """Take what has come, without waiting; it need not be answers any more."""
        with contextlib.suppress(OSError):
            while select.select([self.sock], [], [], 0)[0] and self._take(1 << 16):
                pass

    def close(self) -> None:
        self.sock.close()

    def _receive(self, length: int) -> bytes | None:
        got = b""
        while len(got) < length:
            try:
                piece = self._take(length - len(got))
            except ConnectionError:
                piece = b""
            if not piece:
                self.loosen()
                return None
            got += piece
        return got

    def _take(self, most: int) -> bytes:
        piece, ancillary, *_ = self.sock.recvmsg(most, 1 << 13, socket.MSG_CMSG_CLOEXEC)
        for fd in wire.received(ancillary):
            os.close(fd)
        return piece

    def _learn(self, result: int, answer: bytes) -> None:
        if result > 0:
            self.known.append(result)
        if result >= 0:
            self.known += [int.from_bytes(answer[at : at + 8], "little") for at in (8, 16)] if len(answer) > 8 else []
            self.known += [int.from_bytes(answer[at : at + 4], "little") for at in (16, 20)] if len(answer) > 16 else []


class MachineSocket(Target):
    name = "machine"
    about = "the embedded machine's socket: its devices' messages, bent and broken, and descriptors sent along"
    guides = ("embedded/", "devices/wire.py")
    short = 80

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        self._machine = machine_with(1, 2, *_HONEST)
        yield
        self._machine.close()

    def first(self, chance: Random) -> Steps:
        granter, mapper = chance.sample(_DOMIDS, 2)
        return [
            ["open", 0, granter, "gntalloc", False],
            ["open", 1, mapper, "gntdev", False],
            ["open", 2, granter, "evtchn", False],
            ["open", 3, mapper, chance.choice(_DEVICES if chance.randrange(8) else _COSTLY), chance.randrange(16) == 0],
            ["call", 0, "alloc", [mapper, 1, chance.randrange(3), 0], []],
            ["mmap", 0, 1, 4096, -2, True],
            ["call", 1, "map", [1, 0, granter, -2], []],
        ]

    def step(self, chance: Random) -> Step:
        slot = chance.randrange(_SLOTS)
        kind = chance.randrange(16)
        if kind < 7:
            name = chance.choice(list(_CALLS))
            pointers = [_pointer(chance) for _ in range(chance.choice((0, 0, 0, 1, 2)))]
            return ["call", slot, name, [_value(chance) for _ in range(_CALLS[name][3])], pointers]
        if kind == 7:
            return ["copy", slot, [[_value(chance) for _ in range(7)] for _ in range(chance.randrange(4))]]
        if kind == 8:
            return ["mmap", slot, _value(chance), chance.choice((1, 4096, 8192, _value(chance))), _value(chance), True]
        if kind == 9:
            return ["munmap", slot, [_value(chance) for _ in range(chance.randrange(4))]]
        if kind == 10:
            return ["prepare", slot, _value(chance), number(chance)]
        if kind == 11:
            return ["control", slot, chance.choice(_CONTROL)] if chance.randrange(20) == 0 else ["read", slot]
        if kind == 12:
            return ["open", slot, chance.choice((0, *_DOMIDS, number(chance))), chance.choice(_DEVICES), False]
        if kind == 13:
            return ["raw", slot, text(chance.randbytes(chance.randrange(40)))]
        if kind == 14:
            return ["half", slot, chance.randrange(9), number(chance), text(chance.randbytes(chance.randrange(20)))]
        last: list[Step] = [["release", slot], ["close", slot], ["read", slot]]
        last.append(["descriptors", slot, chance.randrange(30)])
        return chance.choice(last)

    def run(self, steps: Steps) -> None:
        known: list[int] = []
        slots: dict[int, _Connection] = {}
        controlled = any("control" in step for step in steps)
        try:
            for step in steps:
                self._do(step, slots, known, controlled)
        finally:
            for connection in slots.values():
                connection.close()
        self._check(controlled)

    def _do(self, step: Step, slots: dict[int, _Connection], known: list[int], controlled: bool) -> None:
        kind, at, *rest = step
        slot = int(at) % _SLOTS
        if kind == "open":
            if slot in slots:
                slots.pop(slot).close()
            if rest[0] not in _HONEST:
                connection = slots[slot] = _Connection(self._machine, known)
                connection.hello(*rest)
                if controlled:  # a domain that its owner pauses is not answered
                    connection.loosen()
            return
        connection = slots.get(slot)  # type: ignore[assignment]
        if connection is None:
            return
        numbers = _Numbers(known)
        if kind == "call" and rest[0] in _CALLS:
            connection.ask(Kind.IOCTL, _ioctl(numbers, *rest))
        elif kind == "copy":
            connection.ask(Kind.IOCTL, _copy([numbers.all(segment) for segment in rest[0]]))
        elif kind == "mmap":
            cookie, length, offset = numbers.all(rest[:3])
            connection.ask(Kind.MMAP, wire.pack_mmap(cookie, length, offset, writable=rest[3]))
        elif kind == "munmap":
            connection.ask(Kind.MUNMAP, wire.pack_munmap(numbers.all(rest[0])))
        elif kind == "prepare":
            cookie, pages = numbers.all(rest)
            connection.ask(Kind.PREPARE, wire.pack_prepare(cookie, pages & 0xFFFFFFFF))
        elif kind == "control":
            connection.ask(Kind.CONTROL, data(rest[0]))
        elif kind == "release":
            connection.ask(Kind.RELEASE, b"")
        elif kind == "read":
            connection.drain()
        elif kind == "close":
            slots.pop(slot).close()
        elif kind in ("half", "descriptors", "raw"):
            connection.loosen()
            if kind == "half":
                connection.send(wire.REQUEST.pack(rest[1] & 0xFFFFFFFF, rest[0] & 0xFF) + data(rest[2]))
            elif kind == "descriptors":
                connection.send(wire.pack_request(Kind.MUNMAP), rest[0] % 200)
            else:
                connection.send(data(rest[0]))

    def _check(self, controlled: bool) -> None:
        """All is given back, and others are served. What its owner changed in a machine is undone by a new one."""
        machine = self._machine
        domains = set(machine.status()["domains"])
        if not controlled:
            assert domains >= {0, *_HONEST}, f"only {domains} are there"
            eventually(lambda: not machine.leaks(), lambda: f"still in use: {machine.leaks()}")
            honest(machine, *_HONEST)
        if controlled or domains != {0, 1, 2, *_HONEST}:  # a kernel's end is its domain's
            machine.close()
            self._machine = machine_with(1, 2, *_HONEST)


class _Numbers:
    """Numbers as they are, and for those below 0 what the machine has given."""

    def __init__(self, known: list[int]) -> None:
        self._known = known

    def all(self, values: list[int]) -> list[int]:
        return [self._one(value) & 0xFFFFFFFFFFFFFFFF for value in values]

    def _one(self, value: int) -> int:
        return value if value >= 0 or not self._known else self._known[value % len(self._known)]


def _value(chance: Random) -> int:
    return chance.choice((chance.randrange(-8, 0), chance.randrange(-8, 0), chance.randrange(6), number(chance)))


def _pointer(chance: Random) -> Step:
    """What `wire.pack_ioctl` takes, but for the direction's type and the bytes, and the length that is said."""
    at = chance.choice((0, 8, 16, 24, 32, number(chance, 0xFFFFFFFF)))
    content = text(chance.randbytes(chance.randrange(32)))
    return [chance.randrange(3), at, chance.randrange(1, 5), chance.choice((len(content), number(chance))), content]


def _ioctl(numbers: _Numbers, name: str, values: list[int], pointers: list[list[int | str]]) -> bytes:
    _, request, layout, _ = _CALLS[name]
    argument = bytearray()
    with contextlib.suppress(struct.error):  # a list of another length
        argument += layout.pack(*_fitted(layout, numbers.all(values)))
    table, inbound = b"", b""
    for holder, at, way, length, content in pointers:
        said = int(length) & 0xFFFFFFFF
        table += _POINTER.pack(int(holder) & 0xFFFFFFFF, int(at) & 0xFFFFFFFF, said, int(way) & 0xFF)
        inbound += data(content) if way != Direction.OUT else b""
    return _IOCTL.pack(request, len(argument), len(pointers)) + argument + table + inbound


def _fitted(layout: struct.Struct, values: list[int]) -> list[int]:
    """Each number cut to the width of its field."""
    widths = [{"H": 16, "I": 32, "Q": 64}[code] for code in _fields(layout.format)]
    return [value & (1 << width) - 1 for value, width in zip(values, widths, strict=False)]


def _fields(format: str) -> str:
    """The codes of the numbers of a format, `6Q` being six."""
    whole = re.sub(r"([0-9]*)([HIQx])", lambda found: found[2] * int(found[1] or 1), format)
    return re.sub("[<x]", "", whole)


def _copy(segments: list[list[int]]) -> bytes:
    """A grant copy between grants, and to and from bytes that are sent along."""
    table = b""
    pointers: list[tuple[int, int, Direction, int, bytes]] = []
    for at, (source, offset, to, ref, at_ref, length, domid) in enumerate(segments):
        ways = (source & 0xFFFFFFFF, offset & 0xFFFF, domid & 0xFFFF) if to % 2 else None
        other = (ref & 0xFFFFFFFF, at_ref & 0xFFFF, domid & 0xFFFF) if to % 3 else None
        table += gntdev.pack_segment(ways, other, length & 0xFFFF)
        side = at * gntdev.SEGMENT_SIZE
        if ways is None:
            pointers.append((1, side + gntdev.SEGMENT_SOURCE, Direction.IN, 16, bytes(16)))
        if other is None:
            pointers.append((1, side + gntdev.SEGMENT_DEST, Direction.OUT, length & 0xFFFF, b""))
    whole = (0, gntdev.COPY_SEGMENTS_POINTER, Direction.INOUT, len(table), table)
    return wire.pack_ioctl(gntdev.GRANT_COPY, gntdev.pack_copy(len(segments)), [whole, *pointers])
