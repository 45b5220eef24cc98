"""libxengnttab's pages and Python's, each side with each: what one shares the other maps, and both see the same."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

import xengrant
from xengrant import Grant, MapError, UnmapNotify
from xengrant.embedded import Machine
from xengrant.embedded.domain import Lifetime
from xengrant.memory import PAGE_SIZE

from .programs import LONG, Actor, Preload, need, pattern

pytestmark = need()

Eventually = Callable[[Callable[[], bool], Callable[[], str]], None]

NONE = -1  # no byte, no port


@pytest.mark.parametrize("count", [1, 3, 40])
def test_what_c_shares_python_maps(c_granter: Actor, mapper: xengrant.Domain, count: int) -> None:
    refs = c_granter.numbers("share", 2, count, 1, NONE, NONE)
    assert len(set(refs)) == count
    c_granter.ask("fill", 0, 5)
    with mapper.gnttab() as gnttab, gnttab.map([Grant(1, ref) for ref in refs], writable=True) as mapped:
        assert bytes(mapped.mapping[:]) == pattern(count * PAGE_SIZE, 5)
        mapped.mapping[:] = pattern(count * PAGE_SIZE, 77)
        assert c_granter.ask("check", 0, 77) == []
    c_granter.ask("unshare", 0)


@pytest.mark.parametrize("count", [1, 3, 40])
def test_what_python_shares_c_maps(granter: xengrant.Domain, c_mapper: Actor, count: int) -> None:
    with granter.gntshr() as gntshr, gntshr.share_pages(2, count, writable=True) as share:
        share.mapping[:] = pattern(count * PAGE_SIZE, 5)
        c_mapper.ask("map", 1, 1, NONE, NONE, *share.refs)
        assert c_mapper.ask("check", 0, 5) == []
        c_mapper.ask("fill", 0, 77)
        assert bytes(share.mapping[:]) == pattern(count * PAGE_SIZE, 77)
        c_mapper.ask("unmap", 0)


def test_what_c_shares_c_maps(c_granter: Actor, c_mapper: Actor) -> None:
    refs = c_granter.numbers("share", 2, 5, 1, NONE, NONE)
    c_mapper.ask("map", 1, 1, NONE, NONE, *reversed(refs))
    c_granter.ask("set", 0, 4 * PAGE_SIZE + 9, 123)
    assert c_mapper.numbers("get", 0, 9) == [123]


def test_a_page_that_c_shares_read_only_is_so_for_python(c_granter: Actor, mapper: xengrant.Domain) -> None:
    (ref,) = c_granter.numbers("share", 2, 1, 0, NONE, NONE)
    c_granter.ask("fill", 0, 9)
    with mapper.gnttab() as gnttab:
        with pytest.raises(MapError, match="granted read-only"):
            gnttab.map(Grant(1, ref), writable=True)
        with gnttab.map(Grant(1, ref), writable=False) as mapped:
            assert bytes(mapped.mapping[:]) == pattern(PAGE_SIZE, 9)
            c_granter.ask("set", 0, 17, 1)  # it may still write itself
            assert mapped.mapping[17] == 1


def test_a_page_that_python_shares_read_only_is_so_for_c(granter: xengrant.Domain, c_mapper: Actor) -> None:
    with granter.gntshr() as gntshr, gntshr.share_pages(2, writable=False) as share:
        share.mapping[:] = pattern(PAGE_SIZE, 9)
        with pytest.raises(OSError) as refused:  # noqa: PT011 - the errno is compared below
            c_mapper.ask("map", 1, 1, NONE, NONE, *share.refs)
        assert refused.value.errno == errno.EINVAL
        c_mapper.ask("map", 1, 0, NONE, NONE, *share.refs)
        assert c_mapper.ask("check", 0, 9) == []


def test_c_is_refused_what_is_not_granted_to_it(granter: xengrant.Domain, c_mapper: Actor) -> None:
    with granter.gntshr() as gntshr, gntshr.share_pages(0, writable=True) as share:
        with pytest.raises(OSError) as refused:  # noqa: PT011
            c_mapper.ask("map", 1, 1, NONE, NONE, *share.refs)
        assert refused.value.errno == errno.EINVAL


def test_c_is_told_that_gntalloc_is_at_its_limit(machine: Machine, c_granter: Actor) -> None:
    machine.configure(1, gntalloc_limit=3)
    c_granter.ask("share", 2, 2, 1, NONE, NONE)
    with pytest.raises(OSError) as refused:  # noqa: PT011
        c_granter.ask("share", 2, 2, 1, NONE, NONE)
    assert refused.value.errno == errno.ENOSPC
    c_granter.ask("unshare", 0)
    c_granter.ask("share", 2, 2, 1, NONE, NONE)


def test_shares_and_maps_of_c_outlive_their_interfaces(
    machine: Machine, c_granter: Actor, c_mapper: Actor, eventually: Eventually
) -> None:
    refs = c_granter.numbers("share", 2, 1, 1, NONE, NONE)
    c_mapper.ask("map", 1, 1, NONE, NONE, *refs)
    c_granter.ask("close_gntshr")
    c_mapper.ask("close_gnttab")
    c_granter.ask("fill", 0, 3)
    assert c_mapper.ask("check", 0, 3) == []
    assert granted(machine) == 1
    c_granter.ask("unshare", 0)  # the peer still maps it
    assert granted(machine) == 1
    c_mapper.kill()
    eventually(lambda: granted(machine) == 0, lambda: "the grant is left")


def granted(machine: Machine) -> int:
    """How many pages domain 1 grants."""
    return int(machine.status()["domains"][1]["grants"])


# Unmap notification: a byte is cleared, and an event sent


def connect(listener: Actor, domid: int, caller: Actor, remote: int) -> tuple[int, int]:
    """The two ports of a new channel, (listener's, caller's), with no event in it."""
    (port,) = listener.numbers("bind_unbound", remote)
    (other,) = caller.numbers("bind_interdomain", domid, port)
    assert caller.numbers("pending") == [other]  # Xen's first, spurious one
    caller.ask("unmask", other)
    return port, other


@pytest.mark.parametrize("ends", ["unshare", "death"])
def test_python_learns_that_c_has_unshared(c_granter: Actor, mapper: xengrant.Domain, ends: str) -> None:
    with mapper.evtchn() as evtchn, mapper.gnttab() as gnttab, evtchn.bind_unbound(1) as port:
        (local,) = c_granter.numbers("bind_interdomain", 2, port.number)
        (ref,) = c_granter.numbers("share", 2, 1, 1, 7, local)
        c_granter.ask("fill", 0, 250)
        with gnttab.map(Grant(1, ref), writable=True) as mapped:
            assert mapped.mapping[7] != 0
            if ends == "unshare":
                c_granter.ask("unshare", 0)
            else:
                c_granter.kill()
            port.wait(LONG)
            expected = bytearray(pattern(PAGE_SIZE, 250))
            expected[7] = 0
            assert bytes(mapped.mapping[:]) == bytes(expected)


@pytest.mark.parametrize("ends", ["unmap", "death"])
def test_python_learns_that_c_has_unmapped(granter: xengrant.Domain, c_mapper: Actor, ends: str) -> None:
    with granter.evtchn() as evtchn, granter.gntshr() as gntshr, evtchn.bind_unbound(2) as port:
        (local,) = c_mapper.numbers("bind_interdomain", 1, port.number)
        with gntshr.share_pages(2, writable=True) as share:
            share.mapping[:] = b"\xff" * PAGE_SIZE
            c_mapper.ask("map", 1, 1, 4095, local, *share.refs)
            if ends == "unmap":
                c_mapper.ask("unmap", 0)
            else:
                c_mapper.kill()
            port.wait(LONG)
            assert bytes(share.mapping[:]) == b"\xff" * 4095 + b"\0"


def test_c_learns_that_python_has_unshared(granter: xengrant.Domain, c_mapper: Actor) -> None:
    (offered,) = c_mapper.numbers("bind_unbound", 1)
    with granter.evtchn() as evtchn, granter.gntshr() as gntshr, evtchn.bind_interdomain(2, offered) as port:
        share = gntshr.share_pages(2, writable=True, notify=UnmapNotify(clear_byte=7, port=port))
        share.mapping[:] = b"\xff" * PAGE_SIZE
        c_mapper.ask("map", 1, 1, NONE, NONE, *share.refs)
        assert c_mapper.numbers("poll", 0) == [0]
        share.close()
        assert c_mapper.numbers("pending") == [offered]
        assert c_mapper.numbers("get", 0, 7) == [0]
        assert c_mapper.numbers("get", 0, 8) == [255]


def test_c_learns_that_python_has_unmapped(c_granter: Actor, mapper: xengrant.Domain) -> None:
    (offered,) = c_granter.numbers("bind_unbound", 2)
    refs = c_granter.numbers("share", 2, 2, 1, NONE, NONE)
    c_granter.ask("fill", 0, 250)
    with mapper.evtchn() as evtchn, mapper.gnttab() as gnttab, evtchn.bind_interdomain(1, offered) as port:
        notify = UnmapNotify(clear_byte=PAGE_SIZE + 9, port=port)
        mapped = gnttab.map([Grant(1, ref) for ref in refs], writable=True, notify=notify)
        assert c_granter.numbers("poll", 0) == [0]
        mapped.close()
        assert c_granter.numbers("pending") == [offered]
        assert c_granter.numbers("get", 0, PAGE_SIZE + 9) == [0]
        assert c_granter.numbers("get", 0, PAGE_SIZE + 10) == [pattern(PAGE_SIZE + 11, 250)[-1]]


def test_c_learns_that_c_has_unmapped(c_granter: Actor, c_mapper: Actor) -> None:
    port, other = connect(c_granter, 1, c_mapper, 2)
    (ref,) = c_granter.numbers("share", 2, 1, 1, NONE, NONE)
    c_granter.ask("set", 0, 0, 1)
    c_mapper.ask("map", 1, 1, 0, other, ref)
    c_mapper.ask("unmap", 0)
    assert c_granter.numbers("pending") == [port]
    assert c_granter.numbers("get", 0, 0) == [0]


# Grant copy


def test_c_copies_to_and_from_what_python_shares(granter: xengrant.Domain, c_mapper: Actor) -> None:
    with granter.gntshr() as gntshr, gntshr.share_pages(2, 2, writable=True) as share:
        share.mapping[:] = pattern(2 * PAGE_SIZE, 40)
        status, data = c_mapper.ask("copy_from", 1, share.refs[1], 96, 4000, 0)
        assert (status, bytes.fromhex(data)) == ("0", pattern(2 * PAGE_SIZE, 40)[PAGE_SIZE + 96 :])
        assert c_mapper.ask("copy_to", 1, share.refs[0], 100, 50, 3) == ["0"]
        assert share.mapping[100:150] == pattern(50, 3)
        assert share.mapping[:100] == pattern(100, 40)
        assert c_mapper.ask("copy_between", 1, share.refs[0], 1, share.refs[1]) == ["0"]
        assert bytes(share.mapping[:PAGE_SIZE]) == bytes(share.mapping[PAGE_SIZE:])


def test_python_copies_to_and_from_what_c_shares(c_granter: Actor, mapper: xengrant.Domain) -> None:
    (ref,) = c_granter.numbers("share", 2, 1, 1, NONE, NONE)
    c_granter.ask("fill", 0, 8)
    page = bytearray(PAGE_SIZE)
    with mapper.gnttab() as gnttab:
        to_us = xengrant.CopySegment(Grant(1, ref), page, PAGE_SIZE)
        assert gnttab.copy([to_us]) == [0]
        assert page == pattern(PAGE_SIZE, 8)
        assert gnttab.copy([xengrant.CopySegment(pattern(PAGE_SIZE, 9), Grant(1, ref), PAGE_SIZE)]) == [0]
    assert c_granter.ask("check", 0, 9) == []


def test_a_copy_that_is_refused_leaves_the_memory_of_c_as_it_is(granter: xengrant.Domain, c_mapper: Actor) -> None:
    status, data = c_mapper.ask("copy_from", 1, 500, 0, 16, 0)
    assert (status, bytes.fromhex(data)) == ("-1", b"\xee" * 16)
    status, data = c_mapper.ask("copy_from", 77, 8, 0, 16, 0)
    assert (status, bytes.fromhex(data)) == ("-2", b"\xee" * 16)
    with pytest.raises(OSError) as refused:  # noqa: PT011
        c_mapper.ask("copy_from", 1, 8, 4090, 16, 0)  # beyond the page
    assert refused.value.errno == errno.EINVAL, os.strerror(refused.value.errno or 0)


@pytest.mark.parametrize("lifetime", ["pv", "hvm"])
def test_the_pages_come_back_when_c_unmaps(machine: Machine, preload: Preload, lifetime: Lifetime) -> None:
    """In an HVM domain it takes munmap and UNMAP_GRANT_REF, and C's library does both."""
    machine.create(5, lifetime=lifetime)
    with (
        preload.start_actor(machine.url(5)) as actor,
        xengrant.connect(machine.url(1)) as domain,
        domain.gntshr() as gntshr,
        gntshr.share_pages(5, 3, writable=True) as share,
    ):
        actor.ask("map", 1, 1, NONE, NONE, *share.refs)
        assert machine.status()["domains"][1]["mapped"] == 3
        actor.ask("unmap", 0)
        assert machine.status()["domains"][1]["mapped"] == 0
