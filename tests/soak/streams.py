"""The soak's streams: a `Server` and the `Client` of its peer send each other pieces of a known stream by a vchan.

Each says its number, then the server sends and asks for some bytes in each round. Every byte is compared with what
stands at that place of the stream, so none can be lost, doubled or another's.
"""

from __future__ import annotations

import errno
import random
import struct
from functools import cache

import xengrant
from tests.soak.links import LONG, PATIENCE, Side
from xengrant import PeerClosed, ProtocolError, vchan
from xengrant.vchan.endpoint import Vchan

__all__ = ["SIDES"]

_PERIOD = 16381  # bytes until a stream repeats itself: a prime
_MOST = 65536  # bytes in one call
_HEADER = struct.Struct("<8sII")  # magic, number of the process, seed of its stream
_MAGIC = b"soaking\0"
_ROUND = struct.Struct("<II")  # bytes that come, bytes that are to come back; 0 and 0 is goodbye
_TOTAL = struct.Struct("<Q")
_MOST_SECONDS = 3.0
_NAME = "soak"


@cache
def _block() -> bytes:
    return random.Random("soak").randbytes(_PERIOD) * (_MOST // _PERIOD + 2)


class _Stream:
    """The bytes of one direction, each found by its place."""

    def __init__(self, seed: int) -> None:
        self._view = memoryview(_block())
        self._seed = seed % _PERIOD
        self.total = 0

    def next(self, count: int) -> memoryview:
        at = (self._seed + self.total) % _PERIOD
        self.total += count
        return self._view[at : at + count]


class _End(Side):
    """What both ends do."""

    def greet(self, end: Vchan) -> _Stream:
        """Say who writes here; what this end writes."""
        seed = self.random.getrandbits(32)
        end.write(_HEADER.pack(_MAGIC, self.setting.number, seed), LONG)
        return _Stream(seed)

    def greeted(self, end: Vchan) -> _Stream:
        """What the other end writes, who has said who it is; from here on the session has begun."""
        magic, self.other, seed = _HEADER.unpack(self._exactly(end, _HEADER.size))
        assert magic == _MAGIC, f"a stream begins with {magic!r}"
        return _Stream(seed)

    def put(self, end: Vchan, stream: _Stream, count: int) -> None:
        while count:
            size = min(count, self.random.randint(1, _MOST))
            if self.random.random() < 0.2:
                room = end.reserve(LONG)
                with room:
                    size = min(size, len(room))
                    room[:size] = stream.next(size)
                end.commit(size)
            elif self.random.random() < 0.2:
                size = min(size, end.write_size)
                end.send(stream.next(size), LONG)
            else:
                written = end.write(stream.next(size), LONG)
                if written != size:
                    raise TimeoutError(f"{written} of {size} bytes written in {LONG} seconds")
            count -= size
        self._exchange(end, stream)

    def _exchange(self, end: Vchan, stream: _Stream) -> None:
        """The other end has taken all of it, and nothing else."""
        (total,) = _TOTAL.unpack(self._exactly(end, _TOTAL.size))
        assert total == stream.total, f"{total} of {stream.total} bytes came"

    def take(self, end: Vchan, stream: _Stream, count: int) -> None:
        buffer = memoryview(bytearray(_MOST))
        while count:
            most = min(count, self.random.randint(1, _MOST))
            if self.random.random() < 0.2:
                view = end.peek(LONG)
                with view:
                    size = min(most, len(view))
                    expected = stream.next(size)
                    assert view[:size] == expected, self._differs(stream)
                if size:
                    end.consume(size)
            else:
                size = end.readinto(buffer[:most], LONG)
                assert buffer[:size] == stream.next(size), self._differs(stream)
            if not size:
                raise PeerClosed(errno.EPIPE, f"the stream ended before {count} bytes")
            count -= size
            self.counts["vchan bytes"] += size
        end.write(_TOTAL.pack(stream.total), LONG)

    def _differs(self, stream: _Stream) -> str:
        return f"other bytes than were written, before byte {stream.total}"

    def _exactly(self, end: Vchan, count: int) -> bytes:
        buffer = bytearray(count)
        got = end.fill(buffer, LONG)
        if got != count:
            raise PeerClosed(errno.EPIPE, f"the stream ended after {got} of {count} bytes")
        return bytes(buffer)


class Server(_End):
    def meet(self, life: str) -> None:
        reads, writes = (1 << self.random.randint(10, 18) for _ in range(2))
        with (
            self.domain.peer(self.peer, life) as peer,
            vchan.serve(self.peer, _NAME, domain=self.domain, peer=peer, read_size=reads, write_size=writes) as end,
        ):
            end.wait_connected(PATIENCE)
            end.hide()  # before a byte is written, so that whoever comes after a client that was killed takes the next
            self._work(end)

    def _work(self, end: Vchan) -> None:
        out, back = self.greet(end), self.greeted(end)
        is_over = self.ends_at(_MOST_SECONDS)
        while not is_over():
            there, here = (int(2 ** self.random.uniform(0, 21)) for _ in range(2))  # bytes: seldom many
            end.write(_ROUND.pack(there, here), LONG)
            self.put(end, out, there)
            self.take(end, back, here)
        end.write(_ROUND.pack(0, 0), LONG)
        rest = end.read(_MOST, LONG)
        assert rest == b"", f"after goodbye the client wrote {rest[:16]!r}"


class Client(_End):
    answers = True

    def meet(self, life: str) -> None:
        with self.domain.peer(self.peer, life) as peer, self._connected(peer) as end:
            back = self.greeted(end)
            out = self.greet(end)
            while True:
                there, here = _ROUND.unpack(self._exactly(end, _ROUND.size))
                if not there and not here:
                    return
                self.take(end, back, there)
                self.put(end, out, here)

    def _connected(self, peer: xengrant.Peer) -> Vchan:
        try:
            return vchan.connect(self.peer, _NAME, domain=self.domain, peer=peer, timeout=0.5)
        except ProtocolError as error:
            self.counts["vchan keys of the dead"] += 1
            raise PeerClosed(errno.EPIPE, f"keys that a server left lead elsewhere: {error}") from error


SIDES = (Server, Client)
