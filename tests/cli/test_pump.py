"""What the pump of `cat` and `proxy` knows at the end of a vchan, whichever of its threads sees that end first."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest

from xengrant.cli.pump import Pump
from xengrant.errors import InterfaceClosed, PeerClosed

from .shell import DEADLINE


class Channel:
    """A vchan whose peer has closed and read all that lay in the ring, but not what is being written."""

    read_size = write_size = 4096

    def __init__(self, error: Exception) -> None:
        self._error = error
        self._writing = threading.Event()
        self._closed = threading.Event()

    def write(self, data: bytes) -> None:
        self._writing.set()
        if isinstance(self._error, InterfaceClosed):
            assert self._closed.wait(DEADLINE)
        raise self._error

    def read(self, size: int) -> bytes:
        assert self._writing.wait(DEADLINE)
        for thread in threading.enumerate():
            if thread.name == "feeder" and isinstance(self._error, PeerClosed):
                thread.join(DEADLINE)
        return b""

    def buffer_space(self) -> int:
        return self.write_size

    def close(self) -> None:
        self._closed.set()


@pytest.mark.parametrize("error", [PeerClosed(32, "they"), InterfaceClosed("we")], ids=["they", "we"])
def test_what_was_being_written_when_the_peer_closed_is_lost(error: Exception) -> None:
    channel: Any = Channel(error)
    reader, writer = os.pipe()
    with open(reader, "rb") as source, open(writer, "wb", buffering=0) as typing:
        typing.write(b"for the peer")
        pump = Pump(channel, source.fileno(), lambda data: None, ends=False)
        pump.run()
    assert pump.lost
    assert pump.sent == 0
