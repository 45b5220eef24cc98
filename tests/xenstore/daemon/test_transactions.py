"""XenStored: transactions."""

from __future__ import annotations

import pytest

from xengrant.abi.xs_wire import Operation
from xengrant.embedded.xenstored import XenStored

from ..asker import Asker, refused


def test_a_transaction_is_seen_when_it_ends(one: Asker, dom0: Asker) -> None:
    tx = one.start()
    one.write("data/a", b"1", tx)
    assert one.read("data/a", tx) == b"1"
    with refused("ENOENT"):
        one.read("data/a")
    one.end(tx)
    assert dom0.read("/local/domain/1/data/a") == b"1"


def test_a_dropped_transaction_leaves_nothing(one: Asker) -> None:
    tx = one.start()
    one.write("data/a", b"1", tx)
    one.end(tx, commit=False)
    assert one.directory("data") == []
    with refused("ENOENT"):
        one.read("data/a", tx)


@pytest.mark.parametrize("meanwhile", ["write", "rm", "chmod", "child"])
def test_what_it_read_has_changed(one: Asker, meanwhile: str) -> None:
    one.write("data/a", b"1")
    tx = one.start()
    one.read("data/a", tx)
    one.write("data/b", b"1", tx)
    if meanwhile == "write":
        one.write("data/a", b"1")
    elif meanwhile == "rm":
        one.rm("data/a")
    elif meanwhile == "chmod":
        one.set_perms("data/a", "r1")
    else:
        one.mkdir("data/a/below")
    with refused("EAGAIN"):
        one.end(tx)
    with refused("ENOENT"):
        one.read("data/b")


def test_what_was_not_there_appeared(one: Asker, dom0: Asker) -> None:
    tx = one.start()
    with refused("ENOENT"):
        one.read("data/a", tx)
    dom0.write("/local/domain/1/data/a", b"1")
    with refused("EAGAIN"):
        one.end(tx)


def test_other_changes_do_not_matter(one: Asker, two: Asker) -> None:
    tx = one.start()
    one.write("data/a", b"1", tx)
    two.write("data/a", b"2")
    one.end(tx)
    assert one.read("data/a") == b"1"


def test_transactions_do_not_nest_and_belong_to_their_connection(store: XenStored, one: Asker) -> None:
    tx = one.start()
    with refused("EBUSY"):
        one.ask(Operation.TRANSACTION_START, "", tx=tx)
    with refused("ENOENT"):
        Asker(store, 1).read("data", tx)
    with refused("ENOENT"):
        one.ask(Operation.TRANSACTION_END, "T")


def test_reset_drops_watches_and_transactions(one: Asker) -> None:
    one.watch("data")
    tx = one.start()
    one.ask_raw(Operation.RESET_WATCHES, b"\0")
    one.take_events()
    one.write("data/a", b"1")
    assert one.take_events() == []
    with refused("ENOENT"):
        one.read("data", tx)
