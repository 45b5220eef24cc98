"""`peek` in dom0: a guest's console and its xenstore connection as they lie in their pages."""

from __future__ import annotations

import base64
import contextlib
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import xengrant
from xengrant import GrantRef
from xengrant._native import store32
from xengrant.abi import console, xs_wire
from xengrant.abi.xs_wire import Operation, pack_message
from xengrant.cli.dump import escape
from xengrant.embedded import Machine
from xengrant.rings.byte_ring import ConsoleRing, XenstoreRing

from .shell import SIGNALS, Running, User
from .test_terminal import on_a_terminal

Users = Callable[[int], User]
HOSTILE = b'\x1b]0;owned\x07\x1b[2J\r| faked \\ \xe2\x80\xae\xff"'


@contextlib.contextmanager
def page_of(machine: Machine, domid: int, ref: GrantRef) -> Iterator[xengrant.Mapping]:
    """The page as its guest and its daemon have it, both of which are this process."""
    with (
        xengrant.connect(machine.url(0)) as dom0,
        dom0.gnttab() as gnttab,
        gnttab.map((domid, ref), writable=True) as mapped,
    ):
        yield mapped.mapping


@pytest.fixture
def page(machine: Machine) -> Iterator[xengrant.Mapping]:
    """Domain 1's console page."""
    with page_of(machine, 1, GrantRef.CONSOLE) as mapping:
        yield mapping


@pytest.fixture
def store_page(machine: Machine) -> Iterator[xengrant.Mapping]:
    """Domain 1's xenstore page."""
    with page_of(machine, 1, GrantRef.XENSTORE) as mapping:
        yield mapping


def peeked(user: User, *arguments: str, status: int = 0) -> list[str]:
    done = user.run("peek", *arguments)
    assert done.returncode == status, done
    return done.stdout.decode().splitlines()


def looked(user: User, *arguments: str) -> dict[str, Any]:
    (line,) = peeked(user, *arguments, "--json")
    found: dict[str, Any] = json.loads(line)
    return found


# The console


def test_the_console_shows_its_state_and_what_was_read_and_what_was_not(user: Users, page: xengrant.Mapping) -> None:
    guest, daemon = ConsoleRing.front(page), ConsoleRing.back(page)
    guest.output.write(b"Linux version 6.1\r\n\r\nlogin")
    daemon.input.read(100)
    guest.output.write(b": root\nPassword: ")
    daemon.output.write(b"secret")
    before = page[:]
    assert peeked(user(0), "console", "1") == [
        "console of domain 1 (domain-1)",
        "ring    from    size  held  consumed  produced",
        "output  guest   2048  17    26        43",
        "input   daemon  1024  6     0         6",
        "connection: connected",
        "| Linux version 6.1",
        "|",
        "| login\\",
        "> : root",
        "> Password: \\",
    ]
    assert page[:] == before, "peek wrote into the page"


def test_a_console_that_nobody_used_has_no_text(user: Users, machine: Machine) -> None:
    lines = peeked(user(0), "console", "2")
    assert lines[-1] == "connection: connected"
    assert "output  guest   2048  0     0         0" in lines


def test_the_console_is_an_object(user: Users, page: xengrant.Mapping) -> None:
    guest = ConsoleRing.front(page)
    guest.output.write(b"text \xff")
    page[console.CONNECTION] = console.DISCONNECTED
    assert looked(user(0), "console", "domain-1") == {
        "event": "looked",
        "domid": 1,
        "name": "domain-1",
        "output": {
            "size": 2048,
            "held": 6,
            "consumed": 0,
            "produced": 6,
            "possible": True,
            "base64": base64.b64encode(b"text \xff").decode(),
        },
        "input": {"size": 1024, "held": 0, "consumed": 0, "produced": 0, "possible": True},
        "connection": "disconnected",
    }


@pytest.mark.parametrize("begins_at", [0, 700, 2**31 - 1000, 2**32 - 3000, 2**32 - 1000])
def test_the_last_2048_bytes_are_there_in_order_wherever_the_index_is(
    user: Users, page: xengrant.Mapping, begins_at: int
) -> None:
    for ring in (ConsoleRing.TO_BACK, ConsoleRing.TO_FRONT):
        store32(page, ring.cons, begins_at)
        store32(page, ring.prod, begins_at)
    guest, daemon = ConsoleRing.front(page), ConsoleRing.back(page)
    text = b"".join(b"%07d\n" % number for number in range(500))
    for at in range(0, len(text), 1000):
        assert guest.output.write(text[at : at + 1000]) == len(text[at : at + 1000])
        daemon.input.read(1000 if at < 3000 else 950)
    output = looked(user(0), "console", "1")["output"]
    assert base64.b64decode(output["base64"]) == text[-2048:]
    assert output["held"] == 50
    lines = [line for line in peeked(user(0), "console", "1") if line[0] in "|>"]
    numbers = [f"{number:07d}" for number in range(244, 500)]
    assert (
        lines
        == [
            *(f"| {number}" for number in numbers[:-7]),
            "| 000049\\",  # where the daemon is
            "> 3",
            *(f"> {number}" for number in numbers[-6:]),
        ]
    )


def test_what_a_guest_writes_never_reaches_a_terminal_as_it_is(machine: Machine, page: xengrant.Mapping) -> None:
    ConsoleRing.front(page).output.write(HOSTILE + b"\nnext")
    with xengrant.connect(machine.url(0)) as dom0, dom0.xenstore() as store:
        store.write("/local/domain/1/name", HOSTILE)
    status, shown = on_a_terminal("peek", "console", "1", "--url", machine.url(0), NO_COLOR="1")
    assert status == 0
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "\r| faked" not in shown
    lines = shown.splitlines()
    assert lines[-2:] == ["> " + escape(HOSTILE), "> next\\"]
    assert lines[0].startswith("console of domain 1 (\\x1b]0;owned")


def test_indices_that_cannot_be_are_told(user: Users, page: xengrant.Mapping) -> None:
    ConsoleRing.front(page).output.write(b"last words")
    store32(page, ConsoleRing.TO_BACK.cons, 11)
    done = user(0).run("peek", "console", "1")
    assert done.returncode == 1
    assert "> last words\\" in done.stdout.decode().splitlines()
    assert "the ring output cannot be: 4294967295 bytes in a ring of 2048" in done.stderr.decode()
    again = user(0).run("peek", "console", "1", "--json")
    assert again.returncode == 1
    assert json.loads(again.stdout)["output"]["possible"] is False


# Following it


def following(user: User, *arguments: str, interval: str = "0.02") -> Running:
    """A follow that has begun; its first look's state is taken from stdout."""
    follow = user.start("peek", "console", *arguments, "--follow", "-i", interval)
    assert follow.line("stderr").startswith("following domain ")
    while "--json" not in arguments and not follow.line().startswith("connection: "):
        pass
    return follow


def test_new_output_is_told_as_it_comes(user: Users, page: xengrant.Mapping) -> None:
    guest, daemon = ConsoleRing.front(page), ConsoleRing.back(page)
    guest.output.write(b"before\n")
    follow = following(user(0), "1")
    assert follow.line() == "> before"
    guest.output.write(b"one\ntwo\n")
    assert (follow.line(), follow.line()) == ("| one", "| two")
    daemon.input.read(4096)
    guest.output.write(b"login: ")
    assert follow.line() == "| login: \\"  # no line ends there, and nothing more comes
    guest.output.write(b"root\x1b[0m\n")
    assert follow.line() == "| root\\x1b[0m"
    follow.signal(SIGNALS[0])
    done = follow.ended()
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_what_was_missed_is_said(user: Users, page: xengrant.Mapping) -> None:
    follow = following(user(0), "1")
    # Written around the ring at once: the index last, so that no look comes between.
    page[console.OUT : console.OUT + console.OUT_SIZE] = b"x" * 2047 + b"\n"
    store32(page, ConsoleRing.TO_BACK.prod, 4096)
    assert follow.line("stderr").startswith("missed 2048 bytes")
    assert follow.line() == "| " + "x" * 2047


def test_a_follow_in_json_has_a_line_for_each_look_that_saw_something(
    user: Users, page: xengrant.Mapping, machine: Machine
) -> None:
    guest = ConsoleRing.front(page)
    follow = following(user(0), "1", "--json")
    assert json.loads(follow.line())["event"] == "looked"
    guest.output.write(b"more")
    assert json.loads(follow.line()) == {
        "event": "output",
        "domid": 1,
        "missed": 0,
        "base64": base64.b64encode(b"more").decode(),
    }
    machine.destroy(1)
    assert json.loads(follow.line()) == {"event": "gone", "domid": 1}
    assert follow.ended().returncode == 0


def test_a_follow_ends_with_the_guest_and_lets_go_of_it(user: Users, machine: Machine) -> None:
    follow = following(user(0), "2")
    machine.destroy(2)
    done = follow.ended()
    assert done.returncode == 0
    assert done.stderr == b"domain 2 (domain-2) is gone\n"
    assert 2 not in machine.status()["domains"]


@pytest.mark.parametrize("end", ["signal", "destroyed"])
def test_the_last_words_are_told_though_no_look_was_due(
    user: Users, machine: Machine, page: xengrant.Mapping, end: str
) -> None:
    follow = following(user(0), "1", interval="1000")
    ConsoleRing.front(page).output.write(b"panic\n")
    if end == "signal":
        follow.signal(SIGNALS[0])
    else:
        machine.destroy(1)
    done = follow.ended()
    assert (done.returncode, done.stdout) == (0, b"| panic\n")


def test_an_index_that_goes_backwards_while_it_is_followed_is_said(user: Users, page: xengrant.Mapping) -> None:
    ConsoleRing.front(page).output.write(b"abcdefghijklmnopqrst\n")
    follow = following(user(0), "1")
    assert follow.line() == "> abcdefghijklmnopqrst"
    store32(page, ConsoleRing.TO_BACK.prod, 10)
    assert "went backwards" in follow.line("stderr")
    store32(page, ConsoleRing.TO_BACK.prod, 12)
    assert follow.line() == "| kl\\"


# xenstore


REQUESTS = [
    (Operation.READ, 1, 0, b"domid\0"),
    (Operation.TRANSACTION_START, 2, 0, b"\0"),
    (Operation.WRITE, 3, 7, b"data/key\0v\x1bl"),
]
REPLIES = [(Operation.READ, 1, 0, b"1"), (Operation.ERROR, 2, 0, b"ENOSPC\0")]


def speak(page: xengrant.Mapping) -> None:
    """Two requests and their replies, and a third request that xenstored has not read."""
    guest, daemon = XenstoreRing.front(page), XenstoreRing.back(page)
    for message in REQUESTS[:2]:
        guest.output.write(pack_message(*message))
    daemon.input.read(1000)
    for message in REPLIES:
        daemon.output.write(pack_message(*message))
    guest.input.read(1000)
    guest.output.write(pack_message(*REQUESTS[2]))


def test_the_messages_of_a_xenstore_connection_are_told(user: Users, store_page: xengrant.Mapping) -> None:
    speak(store_page)
    store32(store_page, xs_wire.SERVER_FEATURES, xs_wire.FEATURE_RECONNECTION | xs_wire.FEATURE_ERROR)
    store32(store_page, xs_wire.CONNECTION, xs_wire.RECONNECT)
    store32(store_page, xs_wire.ERROR, xs_wire.ERROR_PROTO)
    before = store_page[:]
    assert peeked(user(0), "xenstore", "1") == [
        "xenstore of domain 1 (domain-1)",
        "ring      from       size  held  consumed  produced",
        "requests  guest      1024  28    39        67",
        "replies   xenstored  1024  0     40        40",
        "features: reconnection, error, connection: reconnecting, error: protocol",
        "ring      state   operation          id  transaction  bytes  payload",
        "requests  read    READ               1   0            6      domid\\x00",
        "requests  read    TRANSACTION_START  2   0            1      \\x00",
        "requests  unread  WRITE              3   7            12     data/key\\x00v\\x1bl",
        "replies   read    READ               1   0            1      1",
        "replies   read    ERROR              2   0            7      ENOSPC\\x00",
    ]
    assert store_page[:] == before, "peek wrote into the page"


def test_a_xenstore_connection_is_an_object(user: Users, store_page: xengrant.Mapping) -> None:
    speak(store_page)
    found = looked(user(0), "xenstore", "1")
    assert found.keys() == {"event", "domid", "name", "requests", "replies", "features"}
    assert found["features"] == []
    assert found["requests"]["held"] == 28
    assert found["requests"]["messages"][2] == {
        "state": "unread",
        "operation": "WRITE",
        "id": 3,
        "transaction": 7,
        "length": 12,
        "base64": base64.b64encode(b"data/key\0v\x1bl").decode(),
    }
    assert [message["operation"] for message in found["replies"]["messages"]] == ["READ", "ERROR"]


def test_messages_are_found_when_the_ring_has_gone_round(user: Users, store_page: xengrant.Mapping) -> None:
    guest, daemon = XenstoreRing.front(store_page), XenstoreRing.back(store_page)
    for number in range(1, 101):
        message = pack_message(Operation.READ, number, 0, b"device/vif/0/" + b"x" * (number % 7) + b"\0")
        assert guest.output.write(message) == len(message)
        assert daemon.input.read(1000) == message
    ids = [message["id"] for message in looked(user(0), "xenstore", "1")["requests"]["messages"]]
    assert ids == list(range(ids[0], 101))
    assert len(ids) >= 1024 // 37 - 1, "messages that lie there were not found"


def test_a_message_that_is_still_coming_is_told_by_its_header(user: Users, store_page: xengrant.Mapping) -> None:
    guest = XenstoreRing.front(store_page)
    guest.output.write(pack_message(Operation.READ, 1, 0, b"a\0"))
    guest.output.write(pack_message(Operation.WRITE, 2, 0, b"data/long\0" + bytes(range(1, 101)) * 30)[:900])
    first, second = looked(user(0), "xenstore", "1")["requests"]["messages"]
    assert (first["state"], second["state"]) == ("unread", "coming")
    assert second["length"] == 3010
    line = peeked(user(0), "xenstore", "1")[-1]
    assert "data/long" in line
    assert line.endswith("...")


def test_bytes_that_are_no_messages_are_said_to_be_none(user: Users, store_page: xengrant.Mapping) -> None:
    XenstoreRing.front(store_page).output.write(b"\xff" * 1000)
    done = user(0).run("peek", "xenstore", "1")
    assert done.returncode == 0
    assert done.stderr == b"requests: no message's beginning can be told among the last 1000 bytes\n"


def test_any_bytes_in_a_xenstore_page_are_shown_harmless(machine: Machine, store_page: xengrant.Mapping) -> None:
    for seed in range(3):
        store_page[:] = random.Random(seed).randbytes(4096)
        for ring in (XenstoreRing.TO_BACK, XenstoreRing.TO_FRONT):
            store32(store_page, ring.cons, 5000)
            store32(store_page, ring.prod, 5000)
        XenstoreRing.front(store_page).output.write(pack_message(Operation.WRITE, 1, 1, HOSTILE * 5))
        status, shown = on_a_terminal("peek", "xenstore", "1", "--url", machine.url(0), NO_COLOR="1")
        assert status == 0
        assert escape(HOSTILE) in shown
        assert shown.replace("\r\n", "").isprintable()
