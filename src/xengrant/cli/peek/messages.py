"""xenstore's messages among the last bytes of a ring, where nobody has said where one begins.

Called by `xenstore` beside it. What is found is for people to read: a guest can write bytes that look like anything.
"""

from __future__ import annotations

from typing import NamedTuple

from xengrant.abi import xs_wire

__all__ = ["SeenMessage", "find_messages"]


class SeenMessage(NamedTuple):
    """A message that lies in a ring; `payload` is what has come of its `length` bytes, `end` where it ends there."""

    operation: xs_wire.Operation
    request_id: int
    transaction_id: int
    length: int
    payload: bytes
    end: int

    @property
    def whole(self) -> bool:
        return len(self.payload) == self.length


def find_messages(tail: bytes) -> list[SeenMessage]:
    """The messages that `tail` ends with, as many as can be told.

    The stream is read from each byte on: some are nothing but messages from there, the last of which ends where the
    bytes do; where none is, the last may be one that is still being written. Bytes before the first whole message can
    look like one that has others in it, so the most messages are right, and of as many those that begin last.
    """
    streams = [_messages_from(tail, start) for start in range(len(tail) - xs_wire.HEADER_SIZE + 1)]
    ending = [found for found in streams if found and found[-1].end == len(tail)]
    return max(reversed(ending or streams), key=len, default=[])


def _messages_from(tail: bytes, start: int) -> list[SeenMessage]:
    """What `tail` is from `start` on; nothing where that is no stream of messages."""
    found = []
    while len(tail) - start >= xs_wire.HEADER_SIZE:
        operation, request_id, transaction_id, length = xs_wire.unpack_header(tail, start)
        if operation not in _OPERATIONS or length > xs_wire.PAYLOAD_MAX:
            return []
        if operation == xs_wire.Operation.CONTROL and not length:  # zeros, where nothing was written yet
            return []
        begins = start + xs_wire.HEADER_SIZE
        start = begins + length
        payload = tail[begins:start]
        found.append(SeenMessage(xs_wire.Operation(operation), request_id, transaction_id, length, payload, start))
    return found


_OPERATIONS = {operation.value for operation in xs_wire.Operation}
