"""Front and back end of a ring over plain memory: what each call does, and what it refuses."""

from __future__ import annotations

import pytest

from xengrant import Domain, Grant, ProtocolError, _native
from xengrant.abi import ring as abi
from xengrant.rings.rpc import BackRing, FrontRing

from .memory import EDGES, WRAP, pair, set_header, used_ring, word

at_every_edge = pytest.mark.parametrize("start", EDGES)


def header(memory: bytearray, start: int) -> list[int]:
    """req_prod, req_event, rsp_prod, rsp_event, counted from `start`."""
    places = (abi.REQ_PROD, abi.REQ_EVENT, abi.RSP_PROD, abi.RSP_EVENT)
    return [(word(memory, at) - start) % WRAP for at in places]


# The first six are what the OCaml library computes for these sizes.
@pytest.mark.parametrize(
    ("length", "entry_size", "entries"),
    [
        *((4096, 1, 2048), (4096, 12, 256), (4096, 8, 256), (4096, 16, 128), (4096, 64, 32), (4096, 112, 32)),
        *((16384, 112, 128), (16384, 108, 128), (64 + 8, 8, 1), (64 + 31, 8, 2)),
    ],
)
def test_a_ring_has_the_largest_power_of_two_of_entries_that_fits(length: int, entry_size: int, entries: int) -> None:
    memory = bytearray(length)
    front = FrontRing.init(memory, entry_size)
    assert (front.entries, front.free_requests, front.in_flight, front.entry_size) == (entries, entries, 0, entry_size)
    assert BackRing.attach(memory, entry_size).entries == entries


def test_memory_in_which_no_entry_fits_is_refused() -> None:
    with pytest.raises(ValueError, match="no entry of 17 bytes fits in 80: the header takes 64"):
        FrontRing.init(bytearray(80), 17)
    with pytest.raises(ValueError, match="entry_size 0"):
        FrontRing.init(bytearray(80), 0)


def test_memory_that_is_read_only_is_refused() -> None:
    with pytest.raises(TypeError, match="can be written"):
        BackRing.attach(bytes(4096), 16)
    with pytest.raises(TypeError, match="can be written"):
        BackRing.attach(memoryview(bytearray(4096)).toreadonly(), 16)


def test_init_zeroes_the_header_and_leaves_the_entries() -> None:
    memory = bytearray(b"\xff" * 128)
    FrontRing.init(memory, 16)
    assert memory == bytes.fromhex("00000000 01000000 00000000 01000000") + bytes(48) + b"\xff" * 64


@pytest.mark.parametrize("end", [FrontRing, BackRing])
def test_attaching_writes_nothing(end: type[FrontRing | BackRing]) -> None:
    memory = used_ring(77)
    set_header(memory, 77, 7, 77, 7)  # nobody sleeps
    before = bytes(memory)
    end.attach(memory, 16)
    assert memory == before


@at_every_edge
def test_a_request_and_its_response_go_through_the_same_slot(start: int) -> None:
    front, back, memory = pair(start)
    front.next_request(b"request number 1")
    assert header(memory, start)[0] == 0, "the peer sees it when it is pushed"
    assert back.take_requests() == []
    assert front.push_requests()
    assert header(memory, start) == [1, 1, 0, 1]
    assert back.take_requests() == [b"request number 1"]
    assert (back.unanswered, front.in_flight, front.free_requests) == (1, 1, 3)
    back.next_response(b"an answer")
    assert back.push_responses()
    assert front.take_responses() == [b"an answer" + b"umber 1"]
    assert (back.unanswered, front.in_flight, front.free_requests) == (0, 0, 4)


@at_every_edge
def test_many_rounds_fill_and_empty_the_ring(start: int) -> None:
    front, back, _ = pair(start)
    for turn in range(20):
        sent = [bytes([turn, number] * 8) for number in range(1 + turn % 4)]
        for request in sent:
            front.next_request(request)
        front.push_requests()
        assert back.take_requests() == sent
        for request in reversed(sent):
            back.next_response(request[::-1])
        back.push_responses()
        assert front.take_responses() == [request[::-1] for request in reversed(sent)]


def test_a_full_ring_takes_no_request_and_says_so() -> None:
    front, back, _ = pair()
    for number in range(4):
        front.next_request(bytes([number]))
    with pytest.raises(ValueError, match="the ring is full: responses to 4 requests"):
        front.next_request(b"x")
    front.push_requests()
    assert [request[0] for request in back.take_requests()] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="full"):  # taken is not answered
        front.next_request(b"x")


def test_an_entry_that_is_too_long_is_refused_and_writes_nothing() -> None:
    front, back, memory = pair()
    front.next_request(b"a")
    front.push_requests()
    back.take_requests()
    before = bytes(memory)
    for put in (front.next_request, back.next_response):
        with pytest.raises(ValueError, match="17 bytes do not fit in an entry of 16"):
            put(bytes(17))
    assert memory == before
    assert (front.in_flight, back.unanswered) == (1, 1)


def test_entries_may_be_any_buffer_and_shorter_than_the_slot() -> None:
    front, back, _ = pair()
    for request in (b"", b"bytes", bytearray(b"bytearray"), memoryview(b"a view of items").cast("c")):
        front.next_request(request)
    front.push_requests()
    taken = back.take_requests()
    assert [request.rstrip(b"\0") for request in taken] == [b"", b"bytes", b"bytearray", b"a view of items"]
    assert {len(request) for request in taken} == {16}


def test_what_is_taken_is_a_copy_that_the_peer_cannot_change() -> None:
    front, back, memory = pair()
    front.next_request(b"before")
    front.push_requests()
    [request] = back.take_requests()
    memory[abi.HEADER_SIZE :] = b"\xff" * 64
    assert request.startswith(b"before")
    assert type(request) is bytes


@at_every_edge
def test_a_limit_leaves_the_rest_for_later(start: int) -> None:
    front, back, _ = pair(start)
    for number in range(4):
        front.next_request(bytes([number]))
    front.push_requests()
    assert [entry[0] for entry in back.take_requests(3)] == [0, 1, 2]
    assert back.take_requests(0) == []
    assert back.more_to_do()
    assert [entry[0] for entry in back.take_requests(9)] == [3]
    assert not back.more_to_do()
    with pytest.raises(ValueError, match="limit -1"):
        back.take_requests(-1)


@at_every_edge
def test_more_to_do_asks_for_the_very_next_one(start: int) -> None:
    front, back, memory = pair(start)
    for _ in range(2):
        front.next_request(b"")
    assert front.push_requests()
    back.take_requests(1)
    assert back.more_to_do()
    assert header(memory, start)[1] == 1, "nothing is asked for while there is work"
    front.next_request(b"")
    assert not front.push_requests(), "the back end has not said that it sleeps"
    back.take_requests()
    assert not back.more_to_do()
    assert header(memory, start)[1] == 4
    front.next_request(b"")
    assert front.push_requests()


@at_every_edge
def test_a_push_between_the_look_and_the_wish_to_be_notified_is_not_lost(
    start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peer pushes after we looked, and before it can see that we sleep: it will not notify, so we must see it."""
    front, back, _ = pair(start)
    front.next_request(b"")
    front.push_requests()
    back.take_requests()
    front.next_request(b"")
    real = _native.store32
    notified: list[bool] = []

    def store(memory: bytearray, at: int, value: int) -> None:
        if at == abi.REQ_EVENT:
            monkeypatch.setattr(_native, "store32", real)
            notified.append(front.push_requests())
        real(memory, at, value)

    monkeypatch.setattr(_native, "store32", store)
    assert back.more_to_do()
    assert notified == [False]
    assert len(back.take_requests()) == 1


@at_every_edge
def test_a_back_end_attaches_to_a_used_ring_and_answers_what_was_left(start: int) -> None:
    front, back, memory = pair(start)
    for number in range(4):
        front.next_request(bytes([number]) * 16)
    front.push_requests()
    back.take_requests()
    for _ in range(2):
        back.next_response(b"answered")
    back.push_responses()  # and then it is gone: two were taken and never answered
    before = bytes(memory)
    again = BackRing.attach(memory, 16)
    assert memory == before
    assert [request[0] for request in again.take_requests()] == [2, 3]
    for _ in range(2):
        again.next_response(b"late")
    again.push_responses()
    assert [response[:8] for response in front.take_responses()] == [b"answered"] * 2 + [
        b"late\2\2\2\2",
        b"late\3\3\3\3",
    ]


@at_every_edge
def test_a_front_end_attaches_to_a_used_ring_and_goes_on(start: int) -> None:
    front, back, memory = pair(start)
    for number in range(3):
        front.next_request(bytes([number]))
    front.push_requests()
    back.take_requests()
    back.next_response(b"first")
    back.push_responses()
    again = FrontRing.attach(memory, 16)
    assert (again.in_flight, again.free_requests) == (2, 2)
    again.next_request(b"new")
    again.push_requests()
    assert [request[:3] for request in back.take_requests()] == [b"new"]
    for answer in (b"second", b"third", b"fourth"):
        back.next_response(answer)
    back.push_responses()
    assert [response[:2] for response in again.take_responses()] == [b"se", b"th", b"fo"]


@at_every_edge
@pytest.mark.parametrize("end", [FrontRing, BackRing])
@pytest.mark.parametrize("ahead", [5, 1 << 31, -1])
def test_attaching_to_a_ring_with_more_in_flight_than_it_holds_is_refused(
    start: int, end: type[FrontRing | BackRing], ahead: int
) -> None:
    memory = used_ring(start)
    set_header(memory, start + ahead, start + 1, start, start + 1)
    with pytest.raises(ProtocolError, match="4 entries"):
        end.attach(memory, 16)
    set_header(memory, start + 4, start + 1, start, start + 1)
    end.attach(memory, 16)


@at_every_edge
@pytest.mark.parametrize("req_prod", [5, 6, 1 << 31, -1, -4])
def test_a_front_end_that_asks_more_than_the_ring_holds_is_a_liar(start: int, req_prod: int) -> None:
    _, back, memory = pair(start)
    set_header(memory, start + req_prod, start + 1, start, start + 1)
    for look in (back.take_requests, back.more_to_do):
        with pytest.raises(ProtocolError, match=f"req_prod is {(start + req_prod) % WRAP}: .*4 entries"):
            look()
    set_header(memory, start + 4, start + 1, start, start + 1)
    assert len(back.take_requests()) == 4, "nothing of the lie was believed"


@at_every_edge
@pytest.mark.parametrize("rsp_prod", [3, 4, 5, 1 << 31, -1])
def test_a_back_end_that_answers_more_than_it_was_asked_is_a_liar(start: int, rsp_prod: int) -> None:
    front, _, memory = pair(start)
    for _ in range(3):
        front.next_request(b"")
        if front.in_flight == 2:
            front.push_requests()  # the third is not pushed: nobody can have answered it
    set_header(memory, start + 2, start + 1, start + rsp_prod, start + 1)
    for look in (front.take_responses, front.more_to_do):
        with pytest.raises(ProtocolError, match=f"rsp_prod is {(start + rsp_prod) % WRAP}"):
            look()
    set_header(memory, start + 2, start + 1, start + 2, start + 1)
    assert len(front.take_responses()) == 2


@at_every_edge
def test_an_index_that_runs_backwards_is_a_lie_though_there_is_work_left(start: int) -> None:
    front, back, memory = pair(start)
    for _ in range(4):
        front.next_request(b"")
    front.push_requests()
    back.take_requests(1)
    set_header(memory, start + 3, start + 1, start, start + 1)
    with pytest.raises(ProtocolError, match=r"it was \d+"):
        back.take_requests()
    set_header(memory, start + 4, start + 1, start, start + 1)
    back.take_requests()
    for _ in range(4):
        back.next_response(b"")
    back.push_responses()
    front.take_responses(1)
    set_header(memory, start + 4, start + 1, start + 3, start + 1)
    with pytest.raises(ProtocolError, match=r"it was \d+"):
        front.more_to_do()


def test_requests_beyond_responses_that_were_not_pushed_are_a_lie() -> None:
    """A slot whose response the front end cannot have seen is not free for it."""
    front, back, memory = pair()
    for _ in range(4):
        front.next_request(b"")
    front.push_requests()
    back.take_requests()
    back.next_response(b"")
    set_header(memory, 5, 1, 0, 1)
    with pytest.raises(ProtocolError, match="can be 4 at most"):
        back.take_requests()
    back.push_responses()
    assert len(back.take_requests()) == 1


def test_our_own_words_in_shared_memory_are_never_read_back() -> None:
    """The peer writes into them that everything is pushed already: then nobody would be notified."""
    front, back, memory = pair()
    front.next_request(b"one")
    front.push_requests()
    back.take_requests()
    back.next_response(b"")
    set_header(memory, 1, 2, 1, 1)
    assert back.push_responses()
    assert word(memory, abi.RSP_PROD) == 1
    front.take_responses()
    front.next_request(b"two")
    set_header(memory, 2, 2, 1, 1)
    assert front.push_requests()
    assert word(memory, abi.REQ_PROD) == 2


@pytest.mark.parametrize("pages", [1, 4])
def test_between_two_domains_over_pages_that_one_shares(granter: Domain, mapper: Domain, pages: int) -> None:
    with (
        granter.gntshr() as gntshr,
        gntshr.share_pages(2, pages, writable=True) as share,
        mapper.gnttab() as gnttab,
    ):
        front = FrontRing.init(share.mapping, 112)
        with gnttab.map([Grant(1, ref) for ref in share.refs], writable=True) as mapped:
            back = BackRing.attach(mapped.mapping, 112)
            assert front.entries == back.entries == 32 * pages
            requests = [bytes([number]) * 112 for number in range(front.entries)]
            for _ in range(2):
                for request in requests:
                    front.next_request(request)
                assert front.push_requests()
                assert back.take_requests() == requests
                for request in requests:
                    back.next_response(request[:50])
                assert back.push_responses()
                assert front.take_responses() == requests
                assert not back.more_to_do()
                assert not front.more_to_do()
            with (
                gnttab.map(Grant(1, share.refs[0]), writable=False) as read_only,
                pytest.raises(TypeError, match="can be written"),
            ):
                BackRing.attach(read_only.mapping, 112)
        with pytest.raises(ValueError, match="closed"):  # the ring pinned nothing
            back.take_requests()
    with pytest.raises(ValueError, match="closed"):
        front.next_request(b"")


def test_a_ring_shows_its_state() -> None:
    front, _, _ = pair(7)
    front.next_request(b"")
    assert repr(front) == "<FrontRing of 4 entries of 16 bytes, produced 8, consumed 7>"
