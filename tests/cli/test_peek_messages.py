"""xenstore's messages found among the bytes of a ring that has gone round: all that are there, and no others."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from xengrant.abi.xs_wire import HEADER_SIZE, Operation, pack_message
from xengrant.cli.peek.messages import find_messages

READ = pack_message(Operation.READ, 1, 0, b"domid\0")
LONG = pack_message(Operation.WRITE, 2, 0, b"data/key\0" + b"v" * 3000)
CUT = pack_message(Operation.CONTROL, 1, 0, b"aaa\0")  # its length, from there on, is an operation's number
SWALLOWED = pack_message(Operation.CONTROL, 36, 0, b"aaaaaaa\0")  # and 36 bytes on is where another message ends

# As they are: text that ends with NUL. Any bytes can be made to look like messages.
payloads = st.lists(st.sampled_from(b"abc/"), min_size=1, max_size=40).map(lambda text: bytes(text) + b"\0")
messages = st.builds(pack_message, st.sampled_from(Operation), st.integers(1, 99), st.integers(0, 9), payloads)


def ids(tail: bytes) -> list[int]:
    return [message.request_id for message in find_messages(tail)]


@given(st.lists(messages, max_size=20), st.integers(0, 600))
@example([CUT, SWALLOWED, CUT], 1)
def test_every_whole_message_is_found_wherever_the_bytes_begin(stream: list[bytes], cut: int) -> None:
    tail = b"".join(stream)[cut:]
    left = list(stream)
    while left and sum(map(len, left)) > len(tail):
        del left[0]
    found = find_messages(tail)
    assert [message.end for message in found] == sorted({message.end for message in found})
    shown = [
        pack_message(message.operation, message.request_id, message.transaction_id, message.payload)
        for message in found
    ]
    assert shown[len(shown) - len(left) :] == left
    if left:
        assert found[-1].end == len(tail)


def test_zeros_are_no_messages() -> None:
    assert find_messages(bytes(4 * HEADER_SIZE)) == []
    assert ids(bytes(2 * HEADER_SIZE) + READ) == [1]


def test_what_is_left_of_a_longer_message_hides_none_that_follow() -> None:
    assert ids(LONG[:HEADER_SIZE] + READ + READ) == [1, 1]
    assert ids(LONG[-700:] + READ) == [1]


def test_a_message_that_is_still_coming_is_the_last() -> None:
    first, second = find_messages(READ + LONG[:500])
    assert (first.whole, first.payload) == (True, b"domid\0")
    assert (second.whole, second.length, len(second.payload)) == (False, 3009, 500 - HEADER_SIZE)


@given(st.binary(max_size=1024) | st.lists(st.sampled_from(b"\0\x01\x0b\x10"), max_size=1024).map(bytes))
def test_any_bytes_are_taken(tail: bytes) -> None:
    for message in find_messages(tail):
        assert len(message.payload) <= message.length <= 4096
        assert message.operation in Operation
