"""An index that is stored with struct.pack_into is 0 for a moment, which the peer may see: the ring takes it for a lie.

The hook is in the value that is stored: `struct.pack_into` zeroes the room first, and asks for the value then.
"""

from __future__ import annotations

import struct

import pytest

from tests.controls.conftest import Control
from tests.controls.protocols import push_and_wait, pushed_while
from tests.controls.words import Words, ZeroFirst
from xengrant import ProtocolError, _native
from xengrant.rings.rpc import BackRing


def test_an_index_is_never_anything_but_the_old_or_the_new() -> None:
    assert pushed_while(_look, _native.store32) == [0, 1]


def test_an_index_stored_with_pack_into_is_taken_for_a_lie(control: Control) -> None:
    def pack(buffer: memoryview, at: int, value: int) -> None:
        struct.pack_into("<I", buffer, at, value)

    how = "deterministic: a hook in the middle of the store"
    with control("indices stored by struct.pack_into", how, "test_an_index_is_never_anything_but_the_old_or_the_new"):
        during, after = pushed_while(_look, pack)
        assert isinstance(during, ProtocolError)
        assert after == 1


@pytest.mark.parametrize("start", [5, 12345678])
def test_two_stores_for_an_index_are_found_in_every_order(start: int, control: Control) -> None:
    how = "deterministic: every order that x86-TSO allows, of the accesses of rings/rpc.py"
    with control(f"an index stored as 0 and then itself, from {start}", how, "test_a_ring_of_requests_loses_no_event"):
        _, violation = push_and_wait(ZeroFirst, Words, start)
        assert violation is not None
        assert "req_prod is 0" in violation.text


def _look(back: BackRing) -> int:
    return len(back.take_requests())
