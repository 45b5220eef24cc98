"""`XenStore` against a real server: what users see, from several threads."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from typing import Any

import pytest

from xengrant.errors import InterfaceClosed, XenStoreError
from xengrant.xenstore import Permission, Transaction, XenStore

from .conftest import refused
from .store_server import StoreServer
from .worker import LONG, Worker

Open = Callable[[int], XenStore]


def test_read_and_write(guest: XenStore) -> None:
    guest.write("data/a/b", "text \u00e9")
    guest.write("data/a/c", b"\0bytes")
    assert guest.read("data/a/b") == "text \u00e9".encode()
    assert guest.read("/local/domain/1/data/a/c") == b"\0bytes"
    assert guest.directory("data/a") == ["b", "c"]
    guest.rm("data/a")
    assert not guest.exists("data/a")
    guest.mkdir("data/a")
    assert guest.exists("data/a")
    assert guest.directory("data/a") == []


@pytest.mark.parametrize("value", [5, True, [1, 2], None])
def test_a_value_is_bytes_or_text(guest: XenStore, value: Any) -> None:
    with pytest.raises(TypeError, match=re.escape(f"a value is bytes or str, not {value!r}")):
        guest.write("data/a", value)
    assert not guest.exists("data/a")
    buffers: list[Any] = [bytearray(b"bytes"), memoryview(b"bytes"), memoryview(b"b-y-t-e-s")[::2]]
    for buffer in buffers:
        guest.write("data/a", buffer)
        assert guest.read("data/a") == b"bytes"


def test_permissions(guest: XenStore, open_store: Open) -> None:
    guest.write("data/a", "1")
    assert guest.get_permissions("data/a") == [Permission(1, "n")]
    guest.set_permissions("data/a", [Permission(1, "n"), Permission(2, "r")])
    assert guest.get_permissions("data/a") == [Permission(1, "n"), Permission(2, "r")]
    assert open_store(2).read("/local/domain/1/data/a") == b"1"


def test_permissions_that_are_none(guest: XenStore) -> None:
    with pytest.raises(ValueError, match="owner"):
        guest.set_permissions("data", [])
    with pytest.raises(ValueError, match="no permission"):
        guest.set_permissions("data", [Permission(70000, "r")])


def test_a_directory_beyond_one_message(dom0: XenStore, server: StoreServer) -> None:
    names = [f"a-rather-long-name-{i}" for i in range(1000)]
    for name in names:
        server.call(lambda name=name: server.store.mkdir(f"/many/{name}"))  # type: ignore[misc]
    assert dom0.directory("/many") == names


def test_domains(dom0: XenStore) -> None:
    assert dom0.get_domain_path(7) == "/local/domain/7"
    assert dom0.is_domain_introduced(1)
    assert not dom0.is_domain_introduced(7)


# What errors say


def test_an_error_says_who_owns_the_node(guest: XenStore) -> None:
    with refused(errno.EACCES, r"may not write name .*domain 0 owns name, permissions n0 r1"):
        guest.write("name", "other")
    with refused(errno.EACCES, r"may not write /local/domain/1/x .*domain 0 owns /local/domain/1,.*data"):
        guest.write("/local/domain/1/x", "1")
    with refused(errno.EACCES, r"may not read /local/domain/2/name .*nor see who owns it"):
        guest.read("/local/domain/2/name")
    with refused(errno.EACCES, r"may not set the permissions of name"):
        guest.set_permissions("name", [Permission(0, "r")])


def test_an_error_carries_its_path(guest: XenStore) -> None:
    with pytest.raises(XenStoreError) as caught:
        guest.read("data/nothing")
    assert (caught.value.errno, caught.value.path) == (errno.ENOENT, "data/nothing")
    assert "does not exist" in str(caught.value)


def test_errors_name_the_quota(guest: XenStore) -> None:
    with refused(errno.ENOSPC, r"value of 2040 bytes at data/x is too long"):
        guest.write("data/x", bytes(2040))
    with refused(errno.ENOSPC, r"5 permissions"):
        guest.set_permissions("data", [Permission(1, "n"), *(Permission(i, "r") for i in range(5))])
    with refused(errno.ENOSPC, r"transactions open .*10 by default"):
        for _ in range(12):
            guest.transaction()
    with refused(errno.E2BIG, r"watch on data.*128 by default"):
        for _ in range(130):
            guest.watch("data")


def test_an_error_tells_a_full_directory_from_too_many_nodes(guest: XenStore) -> None:
    guest.mkdir("data/d")
    with refused(errno.ENOSPC, r"data/d has no room for another child: the names of its \d+ children take \d+ bytes"):
        for i in range(1000):
            guest.mkdir(f"data/d/{i:0200}")
    with refused(errno.ENOSPC, r"data/\d+/\d+ would be one node too many.*1000"):
        for i in range(1000):
            guest.mkdir(f"data/{i // 100}/{i}")


def test_a_guest_hears_why_it_is_not_told_of_other_domains(guest: XenStore, dom0: XenStore) -> None:
    with refused(errno.EACCES, r"only dom0 may ask"):
        guest.watch("@releaseDomain")
    with refused(errno.EACCES, r"only dom0 may ask"):
        guest.is_domain_introduced(2)
    dom0.set_permissions("@releaseDomain", [Permission(0, "n"), Permission(1, "r")])
    with guest.watch("@releaseDomain") as watch:
        assert watch.wait(LONG) == "@releaseDomain"


def test_a_guest_cannot_give_a_node_away(guest: XenStore) -> None:
    with refused(errno.EPERM, "only dom0 may change a node's owner"):
        guest.set_permissions("data", [Permission(2, "n")])


# Transactions


def test_a_transaction_commits_at_the_end_of_its_block(guest: XenStore, dom0: XenStore) -> None:
    with guest.transaction() as transaction:
        transaction.write("data/a", "1")
        assert transaction.read("data/a") == b"1"
        assert not guest.exists("data/a")
    assert dom0.read("/local/domain/1/data/a") == b"1"
    with pytest.raises(InterfaceClosed):
        transaction.read("data/a")


def test_a_transaction_is_dropped_after_an_error(guest: XenStore, server: StoreServer) -> None:
    def fail(transaction: Transaction) -> None:
        with transaction:
            transaction.write("data/a", "1")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail(guest.transaction())
    assert not guest.exists("data/a")
    assert not any(server.call(lambda: [c._transactions for c in server.store.connections]))


def test_a_transaction_that_met_another(guest: XenStore) -> None:
    with refused(errno.EAGAIN, "run_transaction"), guest.transaction() as transaction:
        transaction.exists("data/a")
        guest.write("data/a", "1")


def test_abort(guest: XenStore) -> None:
    with guest.transaction() as transaction:
        transaction.write("data/a", "1")
        transaction.abort()
        transaction.abort()
    assert not guest.exists("data/a")


def test_run_transaction_counts_exactly_from_many_threads(guest: XenStore) -> None:
    guest.write("data/n", "0")

    def add(transaction: Transaction) -> None:
        transaction.write("data/n", str(int(transaction.read("data/n")) + 1))

    def work() -> None:
        for _ in range(10):
            guest.run_transaction(add, attempts=1000)

    for worker in [Worker(work) for _ in range(5)]:
        worker.get()
    assert guest.read("data/n") == b"50"


def test_run_transaction_gives_up(guest: XenStore) -> None:
    tries = []

    def meet(transaction: Transaction) -> None:
        transaction.exists("data/a")
        guest.write("data/a", "1")
        tries.append(1)

    with refused(errno.EAGAIN, "3 transactions in a row"):
        guest.run_transaction(meet, attempts=3)
    assert len(tries) == 3


def test_run_transaction_returns_and_raises_what_the_function_does(guest: XenStore) -> None:
    assert guest.run_transaction(lambda transaction: transaction.read("domid")) == b"1"
    with pytest.raises(ZeroDivisionError):
        guest.run_transaction(lambda transaction: 1 // 0)
