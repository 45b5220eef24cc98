"""A peer that changes what it wrote between two looks. What it may write at all is fuzzed: `tests/fuzz`."""

from __future__ import annotations

import pytest

from xengrant import _native

from .memory import pair


@pytest.mark.parametrize("end", ["front", "back"])
def test_each_decision_reads_the_peers_index_once(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that is right when it is checked, and wrong when it is looked at again."""
    front, back, memory = pair()
    for _ in range(2):
        front.next_request(b"")
    front.push_requests()
    if end == "front":
        back.take_requests()
        for _ in range(2):
            back.next_response(b"")
        back.push_responses()
    reads = []
    real = _native.load32

    def load(buffer: bytearray, at: int) -> int:
        reads.append(at)
        value = real(buffer, at)
        _native.store32(memory, at, 0xDEAD)
        return value

    monkeypatch.setattr(_native, "load32", load)
    taken = front.take_responses() if end == "front" else back.take_requests()
    assert len(taken) == 2
    assert reads == [8 if end == "front" else 0]
