"""XenStored: who may do what to which node."""

from __future__ import annotations

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
