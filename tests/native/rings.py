"""Rings of 256 bytes in a bytearray, and what their ends wait on: for the tests of `_native`'s rings."""

from __future__ import annotations

import os
import socket
import struct
from typing import Self

from xengrant._native import Descriptor, Doorbell, RingReader, RingWriter

START, SIZE = 64, 256


def ring_memory(index: int = 0) -> bytearray:
    memory = bytearray(b"\xee" * (START + SIZE + 64))
    struct.pack_into("<II", memory, 0, index, index)
    return memory


def ring_reader(memory: bytearray) -> RingReader:
    return RingReader(memory, 0, 4, memory, START, SIZE)


def ring_writer(memory: bytearray) -> RingWriter:
    return RingWriter(memory, 0, 4, memory, START, SIZE)


class Bell:
    """A doorbell as an embedded machine's port has it: two sockets, each end's events in the other's."""

    def __init__(self) -> None:
        self.ends = socket.socketpair()
        self.life = socket.socketpair()
        self.here, self.there = (
            Doorbell(Descriptor(os.dup(end.fileno())), -1, Descriptor(os.dup(self.life[0].fileno())))
            for end in self.ends
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for end in (*self.ends, *self.life):
            end.close()


# Where this end's peer is live, where this end asks to be told, and where the peer does.
LIVE, ASK, ASKED = 8, 9, 10
GONE, LATE, WOKEN, SILENT = range(1, 5)


def live_memory() -> bytearray:
    memory = ring_memory()
    memory[LIVE], memory[ASK], memory[ASKED] = 1, 0, 0
    return memory


def bound_reader(memory: bytearray, doorbell: Doorbell, *, live: int = LIVE, poll: float = 0.0) -> RingReader:
    reader = ring_reader(memory)
    reader.bind(doorbell, live, ASK, ASKED)
    doorbell.poll = poll
    return reader


def peers_writer(memory: bytearray, doorbell: Doorbell) -> RingWriter:
    """The other end, which looks at the other end's bytes."""
    writer = ring_writer(memory)
    writer.bind(doorbell, LIVE, ASKED, ASK)
    return writer
