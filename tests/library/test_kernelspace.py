"""A program as its domain's kernel: its pages, its table, and a Gntshr built on them."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import resource
import threading
import warnings
from collections.abc import Callable, Iterator

import pytest

import xengrant
from xengrant import (
    Domain,
    Grant,
    GrantBusy,
    GrantTableFull,
    InterfaceClosed,
    InterfaceUnavailable,
    MapError,
    UnmapNotify,
)
from xengrant.abi.xen import PAGE_SIZE
from xengrant.embedded import Machine

from . import LONG

Eventually = Callable[[Callable[[], bool], Callable[[], str]], None]


@pytest.fixture(params=[1, 2], ids=["v1", "v2"])
def kernel(machine: Machine, request: pytest.FixtureRequest) -> Iterator[Domain]:
    """Domain 5, whose kernel is this program."""
    machine.create(5, max_grant_frames=2, grant_table_version=request.param, max_pages=100)
    with xengrant.connect(machine.url(5, kernel=True)) as domain:
        yield domain


def granted(domain: Domain) -> list[int]:
    """References in use, without the builder's two."""
    return [entry.ref for entry in domain.grant_table() if entry.ref > 1]


def test_references_of_a_destroyed_domain_are_not_waited_for(kernel: Domain, machine: Machine) -> None:
    table = kernel.grant_table()
    grown = table.capacity  # more than the table's first frame has
    machine.destroy(5)
    with pytest.raises(InterfaceUnavailable, match="was destroyed"):
        table.get_n_nowait(grown)
    with pytest.raises(InterfaceUnavailable, match="was destroyed"):
        asyncio.run(table.get_n(grown))


# Pages


def test_a_share_of_many_pages_takes_the_machine_few_descriptors(machine: Machine) -> None:
    with xengrant.connect(machine.url(7, kernel=True)) as domain, domain.gntshr() as gntshr:
        before = machine.status()["descriptors"]
        with gntshr.share_pages(1, 3000, writable=True) as share:
            assert len(share.refs) == 3000
            assert machine.status()["descriptors"] < before + 20


def test_pages_of_their_own_take_a_part_of_the_machines_descriptors_and_no_more(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (40, 40))
    with xengrant.connect(machine.url(7, kernel=True)) as domain:
        pages = domain.alloc_pages(10)
        with pytest.raises(OSError, match=r"domain 7 has .* of the machine's descriptors") as caught:
            domain.alloc_pages(11)
        assert caught.value.errno == errno.ENOMEM
        pages.pop().close()
        pages += domain.alloc_pages(1)
        for page in pages:
            page.close()


def test_pages_are_zeroed_and_each_has_a_frame_of_its_own(kernel: Domain) -> None:
    pages = kernel.alloc_pages(3)
    assert len({page.frame for page in pages}) == 3
    for page in pages:
        assert page.mapping[:] == bytes(PAGE_SIZE)
        page.mapping[:3] = b"\xff\xff\xff"
        page.close()
    (page,) = kernel.alloc_pages(1)
    with page:
        assert page.mapping[:] == bytes(PAGE_SIZE)
    assert page.closed
    page.close()


def test_a_peer_maps_a_page_that_is_granted(kernel: Domain, mapper: Domain) -> None:
    table, pages = kernel.grant_table(), kernel.alloc_pages(2)
    refs = table.get_n_nowait(2)
    with mapper.gnttab() as gnttab, table.grants(refs, 2, pages, writable=True):
        with gnttab.map([Grant(5, ref) for ref in refs], writable=True) as mapped:
            mapped.mapping[PAGE_SIZE : PAGE_SIZE + 5] = b"hello"
            assert pages[1].mapping[:5] == b"hello"
        with pytest.raises(MapError):
            gnttab.map(Grant(5, refs[0] + 5), writable=True)
    for page in pages:
        page.close()


def test_a_page_is_not_given_back_while_it_is_granted(kernel: Domain, mapper: Domain) -> None:
    table, (page,) = kernel.grant_table(), kernel.alloc_pages(1)
    first, second = table.get_n_nowait(2)
    table.grant_access(first, 2, page, writable=True)
    table.grant_access(second, 2, page, writable=False)
    with pytest.raises(GrantBusy, match="granted through 2 references: end_access first"):
        page.close()
    with mapper.gnttab() as gnttab:
        mapped = gnttab.map(Grant(5, first), writable=True)
        with pytest.raises(GrantBusy, match="domain 2"):
            table.end_access(first)
        table.end_access(second)
        with pytest.raises(GrantBusy, match="granted through 1 reference:"):
            page.close()
        mapped.close()
    table.end_access(first)
    page.close()
    with pytest.raises(InterfaceClosed, match="was given back"):
        table.grant_access(first, 2, page, writable=True)
    assert not table.read(first).granted


def test_a_page_with_views_is_not_given_back(kernel: Domain) -> None:
    table, (page,) = kernel.grant_table(), kernel.alloc_pages(1)
    (ref,) = table.get_n_nowait(1)
    with memoryview(page.mapping), pytest.raises(BufferError):
        page.close()
    table.grant_access(ref, 2, page, writable=True)  # it is as it was
    table.end_access(ref)
    page.close()


def test_a_domain_has_so_many_pages(kernel: Domain) -> None:
    with pytest.raises(OSError, match="of at most 100 pages are in use"):
        kernel.alloc_pages(101)
    for count in (0, -1):
        with pytest.raises(ValueError, match="count"):
            kernel.alloc_pages(count)
    pages = kernel.alloc_pages(10)
    with pytest.raises(OSError, match="10 of at most 100"):
        kernel.alloc_pages(91)
    for page in pages:
        page.close()


def test_only_a_kernel_has_pages_and_a_table(granter: Domain) -> None:
    with pytest.raises(InterfaceUnavailable, match="share_pages allocates them"):
        granter.alloc_pages(1)
    with pytest.raises(InterfaceUnavailable, match="kernel=1"):
        granter.grant_table()


# Domains


def test_two_domain_objects_share_the_kernel_and_the_last_ends_it(machine: Machine, kernel: Domain) -> None:
    again = xengrant.connect(kernel.url)
    table = kernel.grant_table()
    assert again.grant_table() is table
    (ref,) = table.get_n_nowait(1)
    kernel.close()
    with pytest.raises(InterfaceClosed):
        kernel.grant_table()
    assert machine.status()["domains"][5]["state"] == "running"
    (page,) = again.alloc_pages(1)
    with table.grant(ref, 2, page, writable=True):
        assert granted(again) == [ref]
    page.close()
    again.close()
    assert 5 not in machine.status()["domains"]


def test_the_domain_lives_as_long_as_its_shares_and_pages(
    machine: Machine, kernel: Domain, eventually: Eventually
) -> None:
    share, (page,) = kernel.gntshr().share_pages(2, writable=True), kernel.alloc_pages(1)
    kernel.close()
    assert machine.status()["domains"][5]["state"] == "running"
    share.close()
    assert machine.status()["domains"][5]["state"] == "running"
    page.close()
    eventually(lambda: 5 not in machine.status()["domains"], lambda: str(machine.status()))


def test_a_kernel_has_events_and_xenstore_and_maps_others_pages(
    kernel: Domain, granter: Domain, machine: Machine
) -> None:
    assert kernel.domid == 5
    with granter.gntshr() as gntshr, gntshr.share_pages(5, writable=True) as share, kernel.gnttab() as gnttab:
        share.mapping[:2] = b"hi"
        with gnttab.map(Grant(1, share.refs[0]), writable=False) as mapped:
            assert mapped.mapping[:2] == b"hi"
    with kernel.evtchn() as channels:
        channels.bind_unbound(2).close()


def test_a_share_of_a_kernel_is_found_by_its_peer(kernel: Domain, mapper: Domain) -> None:
    with kernel.gntshr() as gntshr, gntshr.share_pages(2, 2, writable=True) as share:
        kernel.advertise(share, "data/demo")
        assert mapper.find(5, "data/demo", timeout=LONG) == [Grant(5, ref) for ref in share.refs]


def test_a_forked_child_is_no_kernel(machine: Machine, kernel: Domain) -> None:
    share = kernel.gntshr().share_pages(2, writable=True)
    child = os.fork()
    if child == 0:
        failed = 1
        try:
            xengrant.connect(kernel.url).grant_table()
        except InterfaceUnavailable:
            failed = 0
        finally:
            os._exit(failed)
    assert os.waitpid(child, 0)[1] == 0
    assert granted(kernel) == list(share.refs)
    share.close()


def test_a_table_whose_domain_is_over_says_so(kernel: Domain) -> None:
    table = kernel.grant_table()
    (ref,) = table.get_n_nowait(1)
    kernel.close()
    with pytest.raises(ValueError, match="closed"):
        table.grant_access(ref, 2, 5, writable=True)
    assert table.num_held == 1


# Gntshr


def test_a_share_is_granted_until_it_is_closed(kernel: Domain, mapper: Domain) -> None:
    free = kernel.grant_table().num_free_grants
    with kernel.gntshr() as gntshr, mapper.gnttab() as gnttab:
        share = gntshr.share_pages(2, 3, writable=True)
        assert (len(share.refs), share.mapping[:], share.writable) == (3, bytes(3 * PAGE_SIZE), True)
        assert granted(kernel) == list(share.refs)
        with gnttab.map([Grant(5, ref) for ref in share.refs], writable=True) as mapped:
            share.mapping[2 * PAGE_SIZE] = 7
            assert mapped.mapping[2 * PAGE_SIZE] == 7
        share.close()
        share.close()
        assert granted(kernel) == []
        assert kernel.grant_table().num_free_grants == free
        with pytest.raises(MapError):
            gnttab.map(Grant(5, share.refs[0]), writable=True)
        with gntshr.share_pages(2, writable=False) as share, pytest.raises(MapError):
            gnttab.map(Grant(5, share.refs[0]), writable=True)


def test_a_share_outlives_its_interface_and_any_open_one_ends_it(kernel: Domain) -> None:
    gntshr, other = kernel.gntshr(), kernel.gntshr()
    share = gntshr.share_pages(2, writable=True)
    gntshr.close()
    assert (gntshr.closed, other.closed) == (True, False)
    with pytest.raises(InterfaceClosed):
        gntshr.share_pages(2, writable=True)
    with pytest.raises(InterfaceClosed):
        gntshr.munmap(share)
    other.munmap(share)
    assert granted(kernel) == []


def test_a_closed_share_that_is_mapped_is_revoked_later(
    kernel: Domain, mapper: Domain, eventually: Eventually
) -> None:
    table = kernel.grant_table()
    free = table.num_free_grants
    with kernel.gntshr() as gntshr, mapper.gnttab() as gnttab:
        share = gntshr.share_pages(2, 2, writable=True)
        mapped = gnttab.map(Grant(5, share.refs[1]), writable=True)
        share.mapping[PAGE_SIZE : PAGE_SIZE + 4] = b"kept"
        share.close()
        assert table.num_free_grants == free - 1
        assert share.refs[1] not in table.get_n_nowait(20)
        assert mapped.mapping[:4] == b"kept"
        mapped.close()
        eventually(lambda: table.num_free_grants == free - 20, lambda: f"{table!r} of {free}")
    assert granted(kernel) == []


def test_sharing_takes_up_what_peers_have_unmapped_meanwhile(machine: Machine, mapper: Domain) -> None:
    """Without waiting for the thread that looks now and then."""
    machine.create(6, max_grant_frames=1, grant_table_version=2)
    with (
        xengrant.connect(machine.url(6, kernel=True)) as domain,
        domain.gntshr() as gntshr,
        mapper.gnttab() as gnttab,
    ):
        whole = gntshr.share_pages(2, 248, writable=True)
        mapped = gnttab.map(Grant(6, whole.refs[7]), writable=True)
        whole.close()
        with pytest.raises(GrantTableFull) as caught:
            gntshr.share_pages(2, 248, writable=True)
        assert caught.value.limit == "table"
        mapped.close()
        gntshr.share_pages(2, 248, writable=True).close()


def test_a_share_that_fails_leaves_nothing(machine: Machine, kernel: Domain) -> None:
    table = kernel.grant_table()
    free, pages = table.num_free_grants, machine.status()["pages"]
    with kernel.gntshr() as gntshr:
        for count, error in ((1 << 20, GrantTableFull), (0, ValueError), (-1, ValueError)):
            with pytest.raises(error):
                gntshr.share_pages(2, count, writable=True)
        for domid in (-1, 0x7FF0):
            with pytest.raises(ValueError, match="domid"):
                gntshr.share_pages(domid, writable=True)
        with pytest.raises(ValueError, match="lies outside"):
            gntshr.share_pages(2, writable=True, notify=UnmapNotify(clear_byte=PAGE_SIZE))
        with pytest.raises(ValueError, match="holds no event channel port 77"):
            gntshr.share_pages(2, writable=True, notify=UnmapNotify(port=77, clear_byte=3))
    assert (table.num_free_grants, machine.status()["pages"]) == (free, pages)
    assert granted(kernel) == []


def test_without_pages_a_share_leaves_nothing(kernel: Domain) -> None:
    table = kernel.grant_table()
    free = table.num_free_grants
    pages = kernel.alloc_pages(99)
    with kernel.gntshr() as gntshr:
        with pytest.raises(OSError, match="99 of at most 100 pages"):
            gntshr.share_pages(2, 2, writable=True)
        assert table.num_free_grants == free
        gntshr.share_pages(2, 1, writable=True).close()
    for page in pages:
        page.close()


def test_an_entry_that_dom0_uses_is_not_shared_over(machine: Machine, kernel: Domain) -> None:
    table = kernel.grant_table()
    (next_ref,) = table.get_n_nowait(1)
    table.put(next_ref)
    with (
        xengrant.connect(machine.url(0)) as dom0,
        dom0.grant_table(of=5, writable=True) as foreign,
        kernel.gntshr() as gntshr,
    ):
        frame = foreign.read(0).frame
        assert frame is not None
        foreign.grant_access(next_ref, 3, frame, writable=True)
        with pytest.raises(ValueError, match="in use already"):
            gntshr.share_pages(2, 2, writable=True)
        assert foreign.read(next_ref).domid == 3
        with gntshr.share_pages(2, 2, writable=True) as share:
            assert next_ref not in share.refs
        foreign.end_access(next_ref)
    assert granted(kernel) == []


def test_closing_clears_the_byte_and_sends_the_event(kernel: Domain, mapper: Domain, eventually: Eventually) -> None:
    with kernel.evtchn() as ours, mapper.evtchn() as theirs, kernel.gntshr() as gntshr, mapper.gnttab() as gnttab:
        port = ours.bind_unbound(2)
        far = theirs.bind_interdomain(5, port.number)
        far.wait(LONG)
        share = gntshr.share_pages(2, 2, writable=True, notify=UnmapNotify(clear_byte=PAGE_SIZE + 5, port=port))
        share.mapping[PAGE_SIZE : PAGE_SIZE + 10] = b"\xff" * 10
        mapped = gnttab.map([Grant(5, ref) for ref in share.refs], writable=True)
        assert mapped.mapping[PAGE_SIZE : PAGE_SIZE + 10] == b"\xff" * 10
        share.close()
        far.wait(LONG)  # though it maps the pages still
        assert mapped.mapping[PAGE_SIZE : PAGE_SIZE + 10] == b"\xff" * 5 + b"\0" + b"\xff" * 4
        assert granted(kernel) != []
        mapped.close()
        eventually(lambda: granted(kernel) == [], lambda: f"still granted: {granted(kernel)}")
        with pytest.raises(TimeoutError):
            far.wait(0)  # once only


def test_a_notification_keeps_its_port(kernel: Domain, mapper: Domain, machine: Machine) -> None:
    with kernel.evtchn() as ours, mapper.evtchn() as theirs, kernel.gntshr() as gntshr:
        port = ours.bind_unbound(2)
        far = theirs.bind_interdomain(5, port.number)
        far.wait(LONG)
        share = gntshr.share_pages(2, writable=True, notify=UnmapNotify(port=port))
        port.close()
        share.close()
        far.wait(LONG)
    assert machine.status()["domains"][5]["ports"] == 0


def test_a_share_that_is_garbage_is_revoked_with_a_warning(kernel: Domain) -> None:
    free = kernel.grant_table().num_free_grants
    share = kernel.gntshr().share_pages(2, 2, writable=True)
    with pytest.warns(ResourceWarning, match="unclosed"):  # noqa: PT031
        del share
        gc.collect()
    assert kernel.grant_table().num_free_grants == free
    assert granted(kernel) == []


def test_a_share_that_is_garbage_while_it_is_mapped_is_revoked_later(
    kernel: Domain, mapper: Domain, eventually: Eventually
) -> None:
    free = kernel.grant_table().num_free_grants
    with mapper.gnttab() as gnttab:
        share = kernel.gntshr().share_pages(2, writable=True)
        mapped = gnttab.map(Grant(5, share.refs[0]), writable=True)
        with pytest.warns(ResourceWarning, match="unclosed"):  # noqa: PT031
            del share
            gc.collect()
        assert kernel.grant_table().num_free_grants == free - 1
        mapped.close()
    eventually(lambda: kernel.grant_table().num_free_grants == free, lambda: repr(kernel.grant_table()))


def test_a_share_that_is_collected_inside_the_tables_own_call_is_revoked_after_it(kernel: Domain) -> None:
    """There the finalizer would wait for the lock that its own thread has."""
    table = kernel.grant_table()
    room = table.capacity
    table.get_n_nowait(room // 2 - 10)
    cycle: list[object] = [kernel.gntshr().share_pages(2, 2, writable=True)]
    cycle.append(cycle)
    real = table._grow
    assert real is not None
    found: list[int] = []

    def grow(number: int) -> object:
        found.append(gc.collect())
        return real(number)

    table._grow = grow  # type: ignore[assignment]
    del cycle
    before = table.num_free_grants
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        refs = table.get_n_nowait(room // 2)
    assert found
    assert table.num_free_grants == before - len(refs) + 2


def test_shares_come_and_go_in_threads_while_the_table_grows_and_pages_are_granted(
    machine: Machine, kernel: Domain, mapper: Domain, eventually: Eventually
) -> None:
    """Ends of mappings are told in any thread that talks to the machine, inside the table's calls too."""
    table = kernel.grant_table()
    free = table.num_free_grants
    failures: list[BaseException] = []

    def share() -> None:
        with kernel.gntshr() as gntshr:
            for _ in range(60):
                gntshr.share_pages(2, 3, writable=True).close()

    def grant() -> None:
        async def main() -> None:
            for _ in range(60):
                (page,) = kernel.alloc_pages(1)
                async with table.ref() as ref, table.grant(ref, 2, page, writable=True):
                    pass
                page.close()

        asyncio.run(main())

    def take() -> None:
        for _ in range(60):
            for ref in table.get_n_nowait(40):
                table.put(ref)

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in (share, share, grant, grant, take)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG * 2)
        assert not thread.is_alive(), "a thread waits for ever"
    assert failures == []
    eventually(lambda: table.num_free_grants == free, lambda: f"{table!r} of {free}")
    assert machine.status()["domains"][5]["grants"] == 0
