"""XenStored: watches."""

from __future__ import annotations

from xengrant.embedded.xenstored import XenStored

from ..asker import Asker, refused


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
