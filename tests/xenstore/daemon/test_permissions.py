"""XenStored: who may do what to which node."""

from __future__ import annotations

import pytest

from xengrant.embedded.xenstored import XenStored

from ..asker import Asker, refused


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


@pytest.mark.parametrize("meanwhile", ["nothing", "write", "child made", "child removed", "permissions kept"])
@pytest.mark.parametrize("when", ["before it comes", "when it is there"])
def test_a_new_domain_does_not_inherit_rights_of_its_number(
    store: XenStored, dom0: Asker, two: Asker, meanwhile: str, when: str
) -> None:
    two.write("data/secret/old", b"1")
    for path in ("data/secret", "data/secret/old"):
        two.set_perms(path, "n2", "b1", "r3")
    store.release(1)
    if when == "when it is there":
        store.introduce(1, "another")
    if meanwhile == "write":
        two.write("data/secret", b"2")
    elif meanwhile == "child made":
        two.write("data/secret/new", b"2")
    elif meanwhile == "child removed":
        two.rm("data/secret/old")
    elif meanwhile == "permissions kept":  # what it read of them it writes again
        two.set_perms("data/secret", *two.get_perms("data/secret"))
    if when == "before it comes":
        store.introduce(1, "another")
    new = Asker(store, 1)
    new.watch("/local/domain/2/data/secret")
    new.take_events()
    for name in ("", "/old", "/new"):
        with refused("EACCES"):
            new.read(f"/local/domain/2/data/secret{name}")
        with refused("EACCES"):
            new.write(f"/local/domain/2/data/secret{name}", b"mine")
    two.write("data/secret", b"3")
    two.write("data/secret/another", b"3")
    assert new.take_events() == []
    assert two.get_perms("data/secret") == ["n2", "r3"]
    two.set_perms("data/secret", "n2", "r1")
    assert new.read("/local/domain/2/data/secret") == b"3"


def test_the_first_domain_of_a_number_may_be_named_before_it_is_there(store: XenStored, dom0: Asker) -> None:
    dom0.write("/a", b"1")
    dom0.set_perms("/a", "n0", "r3")
    store.introduce(3, "three")
    assert Asker(store, 3).read("/a") == b"1"


def test_a_new_domain_is_not_told_what_its_number_was(store: XenStored, dom0: Asker) -> None:
    dom0.set_perms("@releaseDomain", "n0", "r1")
    dom0.set_perms("@introduceDomain", "n1")
    store.release(1)
    assert dom0.get_perms("@releaseDomain") == ["n0"]
    assert dom0.get_perms("@introduceDomain") == ["n0"]
    store.introduce(1, "another")
    new = Asker(store, 1)
    for asker in (new, dom0):
        asker.watch("@releaseDomain")
        asker.watch("@introduceDomain")
        asker.take_events()
    store.release(2)
    store.introduce(2, "another")
    assert dom0.take_events() == [("@releaseDomain", "t"), ("@introduceDomain", "t")]
    assert new.take_events() == []


def test_what_is_there_for_good_outlives_its_owner(store: XenStored, dom0: Asker, two: Asker) -> None:
    dom0.set_perms("/", "r1")
    store.release(1)
    assert dom0.get_perms("/") == ["r0"]
    assert two.read("/local/domain/2/name") == b"two"


@pytest.mark.parametrize("returns", [False, True], ids=["gone", "another is there"])
@pytest.mark.parametrize("what", ["entry", "owner", "write", "child"])
def test_a_transaction_that_names_a_domain_which_goes_is_tried_again(
    store: XenStored, dom0: Asker, what: str, returns: bool
) -> None:
    dom0.mkdir("/a")
    if what in ("write", "child"):
        dom0.set_perms("/a", "n0", "b1")
    tx = dom0.start()
    if what == "write":
        dom0.write("/a", b"2", tx)
    elif what == "child":
        dom0.mkdir("/a/b", tx)
    else:
        dom0.set_perms("/a", *{"entry": ("n0", "b1"), "owner": ("n1",)}[what], tx=tx)
    store.release(1)
    if returns:
        store.introduce(1, "another")
    with refused("EAGAIN"):
        dom0.end(tx)
    tx = dom0.start()
    dom0.write("/a", b"2", tx)
    dom0.end(tx)
    assert dom0.get_perms("/a") == ["n0"]


def test_a_transaction_of_the_time_between_two_domains_names_neither(store: XenStored, dom0: Asker) -> None:
    dom0.mkdir("/a")
    store.release(1)
    tx = dom0.start()
    dom0.set_perms("/a", "n0", "b1", tx=tx)
    store.introduce(1, "another")
    with refused("EAGAIN"):
        dom0.end(tx)


def test_nor_what_was_written_last_before_it_came(store: XenStored, dom0: Asker) -> None:
    store.release(1)
    dom0.write("/secret", b"1")
    dom0.set_perms("/secret", "n0", "r1")
    store.introduce(1, "another")
    with refused("EACCES"):
        Asker(store, 1).read("/secret")
