"""XenStored: what a guest has at most."""

from __future__ import annotations

from xengrant.embedded.xenstored import XenStored

from ..asker import Asker, refused


def test_a_guest_may_own_1000_nodes(store: XenStored, one: Asker) -> None:
    had = store.tree.count(1)
    for i in range(1000 - had):
        one.mkdir(f"data/{i // 100}x" if i % 100 == 0 else f"data/{i // 100}x/{i}")
    assert store.tree.count(1) == 1000
    with refused("ENOSPC"):
        one.mkdir("data/more")
    one.rm("data/0x")
    one.mkdir("data/more")


def test_what_one_deep_write_makes_counts_together() -> None:
    store = XenStored(nodes=20)
    store.introduce(1, "one")
    one = Asker(store, 1)
    had = store.tree.count(1)
    deepest = "data" + "/x" * (20 - had)
    with refused("ENOSPC"):
        one.write(f"{deepest}/x", b"")
    assert store.tree.count(1) == had
    assert one.directory("data") == []
    one.write(deepest, b"")
    assert store.tree.count(1) == 20


def test_a_guests_node_stays_below_2048_bytes(one: Asker, dom0: Asker) -> None:
    one.write("data/x", bytes(2048 - 1 - 24 - 8))
    with refused("ENOSPC"):
        one.write("data/x", bytes(2048 - 24 - 8))
    with refused("ENOSPC"):
        one.write("data/y", bytes(2048 - 24 - 8))
    with refused("ENOENT"):
        one.read("data/y")
    dom0.write("/x", bytes(4000))


def test_the_names_of_a_guests_children_count(one: Asker) -> None:
    for i in range(100):
        one.mkdir(f"data/child-number-{i:05}")  # 19 bytes with the NUL
    for i in range(6):
        one.mkdir(f"data/child-number-{i + 100:05}")
    with refused("ENOSPC"):
        one.mkdir("data/child-number-00106")


def test_a_guest_names_five_permissions(dom0: Asker, one: Asker) -> None:
    one.mkdir("data/x")
    one.set_perms("data/x", "n1", "r0", "r2", "r3", "r4")
    with refused("ENOSPC"):
        one.set_perms("data/x", "n1", "r0", "r2", "r3", "r4", "r5")
    dom0.mkdir("/x")
    dom0.set_perms("/x", "n0", "r1", "r2", "r3", "r4", "r5")


def test_a_guests_watches_are_limited_over_all_its_connections(store: XenStored, one: Asker, two: Asker) -> None:
    other = Asker(store, 1)
    for i in range(129):  # as in Xen's: one more than the quota
        (one if i % 2 else other).watch("data", f"{i}")
    for asker in (one, other):
        with refused("E2BIG"):
            asker.watch("data", "more")
    two.watch("data", "0")
    other.connection.close()
    one.watch("data", "more")


def test_a_guests_transactions_are_limited(one: Asker, dom0: Asker) -> None:
    open_ones = [one.start() for _ in range(11)]  # as in Xen's: one more than the quota
    with refused("ENOSPC"):
        one.start()
    one.end(open_ones[3], commit=False)
    one.start()
    for _ in range(50):
        dom0.start()


def test_a_transaction_of_a_guest_that_hit_a_quota_can_only_be_dropped(one: Asker) -> None:
    tx = one.start()
    one.write("data/a", b"1", tx)
    with refused("ENOSPC"):
        one.write("data/b", bytes(2048), tx)
    with refused("ENOMEM"):
        one.end(tx)
    with refused("ENOENT"):
        one.read("data/a")


def test_a_guest_looks_at_so_many_nodes_in_a_transaction() -> None:
    store = XenStored(transaction_nodes=8)
    store.introduce(1, "one")
    one = Asker(store, 1)
    tx = one.start()
    for i in range(7):  # and data, which says that it may know
        with refused("ENOENT"):
            one.read(f"data/{i}", tx)
    with refused("ENOSPC"):
        one.read("data/7", tx)
    with refused("ENOMEM"):
        one.end(tx)


def test_nodes_made_in_a_transaction_count_when_it_ends() -> None:
    store = XenStored(nodes=20)
    store.introduce(1, "one")
    one = Asker(store, 1)
    tx = one.start()
    for i in range(19 - store.tree.count(1)):
        one.mkdir(f"data/{i}", tx)
    one.end(tx)
    tx = one.start()
    one.mkdir("data/last", tx)
    with refused("ENOSPC"):
        one.end(tx)
