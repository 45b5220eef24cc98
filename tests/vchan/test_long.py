"""Millions of messages and many GiB through one vchan: its memory does not grow. `make test-xen-long` runs all of it.

XENGRANT_VCHAN_MESSAGES and XENGRANT_VCHAN_GIB say how much: 10,000,000 and 100 there, a little in `make test`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

import xengrant
from xengrant import vchan
from xengrant.embedded import Machine

_MESSAGES = int(os.environ.get("XENGRANT_VCHAN_MESSAGES", "50000"))
_GIB = float(os.environ.get("XENGRANT_VCHAN_GIB", "0.25"))
_PIECE = 1 << 18
_SOON = 60.0
_GROWTH = 1 << 20  # bytes; a leak of one byte for each message would be ten times as much

_PEER = """
import sys
from xengrant import connect, vchan
messages, pieces, piece = map(int, sys.argv[2:])
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
with connect(sys.argv[1]) as domain, vchan.connect(1, "long", domain=domain, timeout=60, poll=2e-5) as end:
    buffer = bytearray(piece)
    for number in range(messages):
        if number == messages // 10:
            before = resident()
        assert end.recv(16, 60) == number.to_bytes(16, "little")
    for number in range(pieces):
        left = memoryview(buffer)
        while left:
            left = left[end.readinto(left, 60):]
        assert buffer[0] == buffer[-1] == number % 256, (number, buffer[0], buffer[-1])
    print(resident() - before)
    end.send(b"!", 60)
"""


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_memory_does_not_grow_with_what_flows() -> None:
    pieces = int(_GIB * 2**30) // _PIECE
    with (
        Machine() as machine,
        xengrant.connect(machine.url(1)) as domain,
        vchan.serve(2, "long", domain=domain, read_size=1024, write_size=1 << 20, poll=2e-5) as end,
    ):
        command = [sys.executable, "-c", _PEER, machine.url(2), str(_MESSAGES), str(pieces), str(_PIECE)]
        peer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            end.wait_connected(_SOON)
            before = 0
            started = time.monotonic()
            for number in range(_MESSAGES):
                if number == _MESSAGES // 10:
                    before = _resident()
                end.send(number.to_bytes(16, "little"), _SOON)
            messages = time.monotonic() - started
            assert _resident() - before < _GROWTH
            marks = [bytes([number]) * _PIECE for number in range(256)] if pieces else []
            before = _resident()
            for number in range(pieces):
                end.write(marks[number % 256], _SOON)
            assert end.recv(1, _SOON) == b"!"
            taken = time.monotonic() - started
            assert _resident() - before < _GROWTH
            output, _ = peer.communicate(timeout=_SOON)
            assert int(output) < _GROWTH
        finally:
            peer.kill()
            peer.communicate()
    print(f"{_MESSAGES} messages in {messages:.1f} s, {_GIB:g} GiB in {taken - messages:.1f} s")
