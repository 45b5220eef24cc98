"""XenStored, request by request: paths, permissions, quotas, transactions, watches, hostile clients."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xengrant.abi import xs_wire
from xengrant.abi.xs_wire import Operation
from xengrant.embedded.xenstored import ProtocolViolation, XenStored

from .asker import Asker, Refusal


@pytest.fixture
def store() -> XenStored:
    store = XenStored()
    store.introduce(1, "one")
    store.introduce(2, "two")
    return store


@pytest.fixture
def dom0(store: XenStored) -> Asker:
    return Asker(store, 0)


@pytest.fixture
def one(store: XenStored) -> Asker:
    return Asker(store, 1)


@pytest.fixture
def two(store: XenStored) -> Asker:
    return Asker(store, 2)


@contextmanager
def refused(name: str) -> Iterator[None]:
    with pytest.raises(Refusal, match=f"^{re.escape(name)}$"):
        yield


# What is there


def test_a_domain_finds_what_libxl_makes(one: Asker) -> None:
    assert one.read("domid") == b"1"
    assert one.read("name") == b"one"
    assert one.read("/local/domain/1/name") == b"one"
    assert one.read(one.read("vm").decode() + "/name") == b"one"
    assert one.get_perms("data") == ["n1"]
    assert one.get_perms("device") == ["n0", "r1"]
    assert one.get_perms("control/shutdown") == ["n1"]


def test_dom0_has_a_name_and_relative_paths_too(dom0: Asker) -> None:
    assert dom0.read("domid") == b"0"
    assert dom0.read("/local/domain/0/name") == b"Domain-0"


def test_the_machines_own_calls(store: XenStored) -> None:
    store.write("/m/a", b"1", [xs_wire.Permission(0, "n"), xs_wire.Permission(1, "r")])
    assert Asker(store, 1).read("/m/a") == b"1"
    assert store.read("/m/a") == b"1"
    assert store.ls("/m") == ["a"]
    store.rm("/m")
    assert store.read("/m/a") is None
    assert store.ls("/m") == []


def test_a_domain_is_introduced_once(store: XenStored) -> None:
    with pytest.raises(ValueError, match="introduced already"):
        store.introduce(1, "again")


# Reading and writing


def test_write_makes_the_nodes_above(dom0: Asker) -> None:
    dom0.write("/a/b/c", b"1\0\xff2")
    assert dom0.read("/a/b/c") == b"1\0\xff2"
    assert dom0.read("/a/b") == b""
    assert dom0.directory("/a") == ["b"]


def test_mkdir_leaves_a_value_alone(dom0: Asker) -> None:
    dom0.write("/a", b"1")
    dom0.mkdir("/a")
    assert dom0.read("/a") == b"1"


def test_children_are_listed_as_they_were_made(dom0: Asker) -> None:
    for name in ("z", "a", "m"):
        dom0.mkdir(f"/d/{name}")
    dom0.rm("/d/a")
    dom0.mkdir("/d/a")
    assert dom0.directory("/d") == ["z", "m", "a"]


def test_rm_of_what_is_not_there(dom0: Asker) -> None:
    dom0.mkdir("/a")
    dom0.rm("/a/b")
    with refused("ENOENT"):
        dom0.rm("/nowhere/b")


def test_the_root_stays(dom0: Asker) -> None:
    with refused("EINVAL"):
        dom0.rm("/")


@pytest.mark.parametrize(
    "path",
    ["", "a/", "/a//b", "/a b", "/a\n", "//", "/\u00e9", "/a.b", "@foo", "/" + "a" * 2048],
)
def test_a_path_that_xenstored_takes_no_part_in(dom0: Asker, path: str) -> None:
    with refused("EINVAL"):
        dom0.read(path)


def test_a_path_may_have_2048_bytes_after_the_domains_directory(one: Asker) -> None:
    longest = "data/" + "a" * (2048 - 5)
    with refused("ENOENT"):
        one.read(longest)
    with refused("EINVAL"):
        one.read(longest + "a")


@pytest.mark.parametrize(
    ("operation", "payload"),
    [
        (Operation.READ, b"/a"),
        (Operation.READ, b"/a\0b\0"),
        (Operation.READ, b""),
        (Operation.WRITE, b"/a"),
        (Operation.SET_PERMS, b"/a\0"),
        (Operation.SET_PERMS, b"/a\0x0\0"),
        (Operation.SET_PERMS, b"/a\0r\0"),
        (Operation.SET_PERMS, b"/a\0r-1\0"),
        (Operation.WATCH, b"/a\0"),
        (Operation.WATCH, b"/a\0t\0001\0"),
        (Operation.UNWATCH, b"/a\0"),
        (Operation.DIRECTORY_PART, b"/\0"),
        (Operation.TRANSACTION_END, b"X\0"),
        (Operation.GET_DOMAIN_PATH, b"one\0"),
        (Operation.IS_DOMAIN_INTRODUCED, b"\0"),
    ],
)
def test_arguments_that_are_none(dom0: Asker, operation: Operation, payload: bytes) -> None:
    dom0.mkdir("/a")
    with refused("EINVAL"):
        dom0.ask_raw(operation, payload)


@pytest.mark.parametrize(
    "operation",
    [Operation.CONTROL, Operation.INTRODUCE, Operation.RELEASE, Operation.RESUME, Operation.SET_TARGET, 15, 16, 20, 99],
)
def test_operations_that_are_not_served(dom0: Asker, operation: int) -> None:
    with refused("ENOSYS"):
        dom0.ask(operation, "check")


def test_get_domain_path(one: Asker) -> None:
    assert one.ask(Operation.GET_DOMAIN_PATH, "007") == b"/local/domain/7\0"


def test_only_dom0_learns_which_domains_there_are(dom0: Asker, one: Asker) -> None:
    assert dom0.ask(Operation.IS_DOMAIN_INTRODUCED, "2") == b"T\0"
    assert dom0.ask(Operation.IS_DOMAIN_INTRODUCED, "9") == b"F\0"
    with refused("EACCES"):
        one.ask(Operation.IS_DOMAIN_INTRODUCED, "2")


# Long directories


def in_parts(asker: Asker, path: str) -> list[str]:
    names = b""
    while not names.endswith(b"\0\0") and names != b"\0":
        payload = asker.ask(Operation.DIRECTORY_PART, path, str(len(names)))
        assert len(payload) <= xs_wire.PAYLOAD_MAX
        names += payload.partition(b"\0")[2]
    return [name.decode() for name in names[:-1].split(b"\0")[:-1]]


@pytest.mark.parametrize("prefix", ["", "child-"])
def test_a_directory_beyond_a_message_is_read_in_parts(dom0: Asker, prefix: str) -> None:
    names = [f"{prefix}{i}" for i in range(1500)]
    for name in names:
        dom0.mkdir(f"/many/{name}")
    with refused("E2BIG"):
        dom0.directory("/many")
    assert in_parts(dom0, "/many") == names
    assert in_parts(dom0, f"/many/{prefix}1") == []


def test_the_parts_tell_that_the_directory_changed(dom0: Asker) -> None:
    dom0.mkdir("/d/a")
    first = dom0.ask(Operation.DIRECTORY_PART, "/d", "0").partition(b"\0")[0]
    assert dom0.ask(Operation.DIRECTORY_PART, "/d", "0").partition(b"\0")[0] == first
    dom0.mkdir("/d/b")
    assert dom0.ask(Operation.DIRECTORY_PART, "/d", "0").partition(b"\0")[0] != first


@given(st.lists(st.integers(1, 300), unique=True, max_size=60))
def test_parts_of_any_directory(lengths: list[int]) -> None:
    dom0 = Asker(XenStored(), 0)
    dom0.mkdir("/d")
    names = [chr(97 + length % 26) * length for length in lengths]
    for name in names:
        dom0.mkdir(f"/d/{name}")
    assert in_parts(dom0, "/d") == names


# Permissions


def test_a_guest_owns_what_it_makes(one: Asker, dom0: Asker) -> None:
    dom0.mkdir("/common")
    dom0.set_perms("/common", "b0")
    one.write("/common/x/y", b"1")
    assert dom0.get_perms("/common/x") == ["b1"]
    assert dom0.get_perms("/common/x/y") == ["b1"]


def test_nodes_inherit_permissions_when_they_are_made(dom0: Asker) -> None:
    dom0.mkdir("/a")
    dom0.set_perms("/a", "n0", "r1")
    dom0.write("/a/b", b"")
    dom0.set_perms("/a", "n0", "w2")
    assert dom0.get_perms("/a/b") == ["n0", "r1"]


def test_the_first_entry_is_for_everybody_else(dom0: Asker, one: Asker, two: Asker) -> None:
    dom0.write("/a", b"1")
    dom0.set_perms("/a", "r0", "n1")
    assert two.read("/a") == b"1"
    with refused("EACCES"):
        one.read("/a")
    with refused("EACCES"):
        two.write("/a", b"2")


def test_write_is_not_read(dom0: Asker, one: Asker) -> None:
    dom0.write("/a", b"1")
    dom0.set_perms("/a", "n0", "w1")
    one.write("/a", b"2")
    with refused("EACCES"):
        one.read("/a")
    with refused("EACCES"):
        one.get_perms("/a")


def test_what_a_guest_may_not_read_it_does_not_learn_of(dom0: Asker, one: Asker) -> None:
    for path in ("/local/domain/2/name", "/local/domain/9/name", "/local/domain"):
        with refused("EACCES"):
            one.read(path)
    dom0.mkdir("/open")
    dom0.set_perms("/open", "r0")
    with refused("ENOENT"):
        one.read("/open/nothing")


def test_a_guest_makes_nodes_only_where_it_may_write(one: Asker) -> None:
    with refused("EACCES"):
        one.write("mine", b"1")
    with refused("EACCES"):
        one.mkdir("device/mine")
    with refused("EACCES"):
        one.mkdir("device")
    one.write("data/mine", b"1")


def test_a_grant_deep_down_needs_nothing_above(dom0: Asker, one: Asker, two: Asker) -> None:
    one.write("data/offer", b"1")
    one.set_perms("data/offer", "n1", "r2")
    assert two.read("/local/domain/1/data/offer") == b"1"


def test_the_owner_of_a_directory_removes_what_others_put_there(dom0: Asker, one: Asker, two: Asker) -> None:
    one.mkdir("data/open")
    one.set_perms("data/open", "b1")
    two.write("/local/domain/1/data/open/x", b"1")
    assert dom0.get_perms("/local/domain/1/data/open/x") == ["b2"]
    one.rm("data/open")
    with refused("ENOENT"):
        dom0.read("/local/domain/1/data/open/x")


def test_only_the_owner_sets_permissions_and_stays_the_owner(dom0: Asker, one: Asker, two: Asker) -> None:
    one.mkdir("data/x")
    one.set_perms("data/x", "b1")
    with refused("EACCES"):
        two.set_perms("/local/domain/1/data/x", "b2")
    with refused("EPERM"):
        one.set_perms("data/x", "n2")
    dom0.set_perms("/local/domain/1/data/x", "n2")
    with refused("EACCES"):
        one.read("data/x")


def test_an_owner_has_to_exist(dom0: Asker) -> None:
    dom0.mkdir("/a")
    with refused("ENOENT"):
        dom0.set_perms("/a", "n7")


def test_a_new_domain_does_not_inherit_rights_of_its_number(store: XenStored, dom0: Asker) -> None:
    dom0.write("/secret", b"1")
    dom0.set_perms("/secret", "n0", "r1", "r3")
    store.release(1)
    store.introduce(1, "another")
    store.introduce(3, "three")
    for domid in (1, 3):
        with refused("EACCES"):
            Asker(store, domid).read("/secret")
    dom0.set_perms("/secret", "n0", "r1")
    assert Asker(store, 1).read("/secret") == b"1"


def test_nor_what_was_written_last_before_it_came(store: XenStored, dom0: Asker) -> None:
    store.release(1)
    dom0.write("/secret", b"1")
    dom0.set_perms("/secret", "n0", "r1")
    store.introduce(1, "another")
    with refused("EACCES"):
        Asker(store, 1).read("/secret")


# Quotas


def test_a_guest_may_own_1000_nodes(store: XenStored, one: Asker) -> None:
    had = store.tree.count(1)
    for i in range(1000 - had):
        one.mkdir(f"data/{i // 100}x" if i % 100 == 0 else f"data/{i // 100}x/{i}")
    assert store.tree.count(1) == 1000
    with refused("ENOSPC"):
        one.mkdir("data/more")
    one.rm("data/0x")
    one.mkdir("data/more")


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


# Transactions


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


# Watches


def test_a_watch_fires_at_once_and_for_all_below(dom0: Asker) -> None:
    dom0.watch("/a", "token")
    assert dom0.take_events() == [("/a", "token")]
    dom0.write("/a/b/c", b"1")
    dom0.write("/ab", b"1")
    dom0.set_perms("/a/b", "r0")
    dom0.mkdir("/a/b")
    dom0.read("/a/b")
    dom0.mkdir("/a/b/d")
    assert dom0.take_events() == [("/a/b/c", "token"), ("/a/b", "token"), ("/a/b/d", "token")]


def test_removal_tells_those_above_the_top_and_those_below_their_own(dom0: Asker) -> None:
    dom0.write("/a/b/c/d", b"1")
    for path in ("/", "/a/b", "/a/b/c", "/a/b/c/d", "/a/b/c/d/e"):
        dom0.watch(path, path)
    dom0.take_events()
    dom0.rm("/a/b")
    assert sorted(dom0.take_events()) == [
        ("/a/b", "/"),
        ("/a/b", "/a/b"),
        ("/a/b/c", "/a/b/c"),
        ("/a/b/c/d", "/a/b/c/d"),
    ]


def test_a_relative_watch_is_told_relative_paths(one: Asker, dom0: Asker) -> None:
    one.watch("data")
    dom0.write("/local/domain/1/data/x", b"1")
    assert one.take_events() == [("data", "t"), ("data/x", "t")]


def test_unwatch_ends_it(one: Asker) -> None:
    one.watch("data")
    with refused("ENOENT"):
        one.unwatch("data", "other")
    one.unwatch("/local/domain/1/data")
    one.take_events()
    one.write("data/x", b"1")
    assert one.take_events() == []


def test_one_path_has_many_tokens_and_each_once(one: Asker) -> None:
    one.watch("data", "a")
    one.watch("data", "b")
    with refused("EEXIST"):
        one.watch("data", "a")
    one.take_events()
    one.write("data/x", b"1")
    assert one.take_events() == [("data/x", "a"), ("data/x", "b")]


def test_a_watch_is_silent_where_its_domain_may_not_read(dom0: Asker, one: Asker) -> None:
    dom0.mkdir("/secret")
    one.watch("/secret")
    one.take_events()
    dom0.write("/secret/a", b"1")
    assert one.take_events() == []
    dom0.set_perms("/secret/a", "n0", "r1")
    assert one.take_events() == [("/secret/a", "t")]
    dom0.set_perms("/secret/a", "n0")
    assert one.take_events() == [("/secret/a", "t")], "who loses the right is told of that"
    dom0.write("/secret/a", b"2")
    assert one.take_events() == []


def test_the_reader_of_a_directory_is_told_that_an_unreadable_child_goes(dom0: Asker, one: Asker) -> None:
    dom0.write("/d/a", b"1")
    dom0.set_perms("/d", "r0")
    one.watch("/d")
    one.take_events()
    dom0.rm("/d/a")
    assert one.take_events() == [("/d/a", "t")]


def test_a_transactions_events_come_at_its_end(one: Asker, dom0: Asker) -> None:
    dom0.write("/local/domain/1/data/old/x", b"1")
    dom0.watch("/local/domain/1/data")
    dom0.take_events()
    tx = one.start()
    one.write("data/a", b"1", tx)
    one.write("data/a", b"2", tx)
    dom0_tx = dom0.start()
    dom0.rm("/local/domain/1/data/old", dom0_tx)
    assert dom0.take_events() == []
    dom0.end(dom0_tx)
    assert dom0.take_events() == [("/local/domain/1/data/old", "t")]
    with refused("EAGAIN"):
        one.end(tx)
    assert dom0.take_events() == []
    tx = one.start()
    one.write("data/a", b"1", tx)
    one.end(tx)
    assert dom0.take_events() == [("/local/domain/1/data/a", "t")]


def test_a_write_in_a_transaction_is_told_though_the_node_goes_with_its_directory(dom0: Asker) -> None:
    dom0.write("/a/b", b"1")
    dom0.watch("/a")
    dom0.take_events()
    tx = dom0.start()
    dom0.write("/a/b", b"2", tx)
    dom0.rm("/a", tx)
    dom0.end(tx)
    assert sorted(dom0.take_events()) == [("/a", "t"), ("/a/b", "t")]


def test_domains_coming_and_going_are_told_to_dom0_only(store: XenStored, dom0: Asker, one: Asker) -> None:
    for asker in (dom0, one):
        asker.watch("@introduceDomain", "i")
        asker.watch("@releaseDomain", "r")
        assert len(asker.take_events()) == 2, "xenstored lets everybody watch"
    store.introduce(5, "five")
    assert dom0.take_events() == [("@introduceDomain", "i")]
    store.release(5)
    assert dom0.take_events() == [("@releaseDomain", "r")]
    assert one.take_events() == []


def test_dom0_lets_a_guest_be_told(store: XenStored, dom0: Asker, one: Asker) -> None:
    with refused("EACCES"):
        one.get_perms("@releaseDomain")
    assert dom0.get_perms("@releaseDomain") == ["n0"]
    dom0.set_perms("@releaseDomain", "n0", "r1")
    one.watch("@releaseDomain")
    one.take_events()
    store.release(2)
    assert one.take_events() == [("@releaseDomain", "t")]


def test_an_event_that_fits_no_message_is_not_sent(dom0: Asker) -> None:
    dom0.watch("/", "t" * 4000)
    dom0.take_events()
    dom0.write("/" + "a" * 100, b"1")
    assert dom0.take_events() == []


# The end of a domain


def test_release_removes_what_the_domain_had(store: XenStored, dom0: Asker, one: Asker, two: Asker) -> None:
    one.write("data/x", b"1")
    two.mkdir("data/open")
    two.set_perms("data/open", "b2")
    one.write("/local/domain/2/data/open/ones", b"1")
    dom0.watch("/local/domain/1")
    one.watch("data")
    dom0.take_events()
    one.take_events()
    store.release(1)
    assert ("/local/domain/1", "t") in dom0.take_events()
    assert one.take_events() == []
    assert dom0.directory("/local/domain") == ["0", "2"]
    assert two.directory("data/open") == []
    assert dom0.ask(Operation.IS_DOMAIN_INTRODUCED, "1") == b"F\0"
    assert store.tree.count(1) == 0
    store.release(1)


def test_a_closed_connection_is_forgotten(store: XenStored, one: Asker, two: Asker) -> None:
    two.mkdir("data/x")
    two.set_perms("data/x", "r2")
    one.watch("/local/domain/2/data/x")
    one.take_events()
    one.connection.close()
    one.connection.close()
    two.write("data/x", b"1")
    assert one.events == []
    assert one.connection not in store.connections
    assert not store._watches
    one.connection.feed(b"whatever")


# Clients that do not read, and hostile ones


def test_events_for_a_client_that_does_not_read_are_held_each_once(dom0: Asker, one: Asker) -> None:
    one.watch("data")
    one.take_events()
    one.unread = 1
    for i in range(100):
        dom0.write(f"/local/domain/1/data/{i % 3}", b"1")
    assert one.take_events() == []
    one.unread = 0
    one.connection.drained()
    assert one.take_events() == [("data/0", "t"), ("data/1", "t"), ("data/2", "t")]


def test_events_for_a_client_that_never_reads_do_not_grow(dom0: Asker, one: Asker) -> None:
    one.watch("data", "a")
    one.watch("data", "b")
    one.take_events()
    one.unread = 1
    for i in range(5000):
        dom0.write(f"/local/domain/1/data/{i}", b"1")
    assert len(one.connection._held) <= 1024
    one.unread = 0
    one.connection.drained()
    events = one.take_events()
    assert ("data", "a") in events
    assert ("data", "b") in events


def test_a_watch_that_ends_takes_its_held_events_along(dom0: Asker, one: Asker) -> None:
    one.watch("data")
    one.take_events()
    one.unread = 1
    dom0.write("/local/domain/1/data/x", b"1")
    one.unwatch("data")
    one.unread = 0
    one.connection.drained()
    assert one.take_events() == []


def test_requests_of_a_client_that_does_not_read_wait(one: Asker) -> None:
    one.unread = 100_000
    one.connection.feed(xs_wire.pack_message(Operation.READ, 1, 0, b"domid\0"))
    assert one.replies == []
    one.unread = 0
    one.connection.drained()
    assert [reply.payload for reply in one.replies] == [b"1"]


@given(st.binary(max_size=200), st.integers(4097, 0xFFFFFFFF))
def test_a_message_that_is_too_long_is_a_violation(garbage: bytes, length: int) -> None:
    asker = Asker(XenStored(), 0)
    with pytest.raises(ProtocolViolation):
        asker.connection.feed(length.to_bytes(4, "little") * 4 + garbage)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3), st.binary(max_size=40)), max_size=20), st.data())
def test_nonsense_is_answered_whatever_its_fragments(
    requests: list[tuple[int, int, bytes]], data: st.DataObject
) -> None:
    store = XenStored()
    store.introduce(1, "one")
    asker = Asker(store, data.draw(st.sampled_from([0, 1])))
    stream = b"".join(xs_wire.pack_message(op, i, tx, payload) for i, (op, tx, payload) in enumerate(requests))
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        asker.connection.feed(stream[:size])
        stream = stream[size:]
    assert [reply.request_id for reply in asker.replies] == list(range(len(requests)))
